"""Whether the outputs of a backbone's frozen stages can be stored and replayed exactly (`prefix.py`): tried on samples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from autoft.specs import Backbone
from autoft.testing.kit import WORDS, CheckWarning, make_inputs, with_linear

if TYPE_CHECKING:
    from torch import Tensor, nn

EXACT = "exact"
MOST_DEPTHS = 4  # that the check tries: each is run forward and backward several times
MASK = "attention_mask"  # what backbones of texts call the input that is 0 at padding


def cuts(backbone: Backbone, module: nn.Module, depths: Iterable[int] | None = None) -> tuple[str, ...]:
    """Return for each number of frozen stages `exact`, or why the output behind them cannot be stored.

    Args:
        backbone: What the module is.
        module: A build of it.
        depths: Numbers of frozen stages; all where they are left out.
    """
    from autoft.prefix import find_cut

    model = with_linear(backbone, module)
    batches, mask = _two_batches(backbone)
    found = []
    for depth in depths if depths is not None else range(1, len(model.stages) + 1):
        cut, failures = find_cut(model, depth, batches, mask=mask)
        exact = cut is not None and cut.depth == depth
        found.append(EXACT if exact else "refused: " + failures[0].removeprefix(f"depth {depth}: "))
    return tuple(found)


def check_cuts(backbone: Backbone) -> None:
    """Check at some depths that the output behind the frozen stages, stored and replayed, gives equal outputs and gradients.

    Raises:
        CheckWarning: At some it cannot be stored. Nothing breaks, as autoft looks; trials that freeze so many are slower.
    """
    module = backbone.build()
    count = len(backbone.stages(module))
    depths = sorted({max(1, round(count * share / MOST_DEPTHS)) for share in range(1, MOST_DEPTHS + 1)})
    found = cuts(backbone, module, depths)
    refused = [(depth, why) for depth, why in zip(depths, found, strict=True) if why != EXACT]
    if refused:
        depth, why = refused[0]
        raise CheckWarning(
            f"{backbone.name}: what frozen stages give should be stored once for all trials, but cannot at "
            f"{len(refused)} of the {len(depths)} depths tried; at {depth} of {count} stages it is {why}",
            "list the stages from input to output, and let nothing behind a stage read what is inside of it",
        )


def _two_batches(backbone: Backbone) -> tuple[list[tuple[Tensor, ...]], int | None]:
    """Return batches of different sizes, and where there are texts of different lengths, and which input is their mask."""
    if MASK not in backbone.inputs:
        return [make_inputs(backbone, 3), make_inputs(backbone, 2)], None
    mask = backbone.inputs.index(MASK)
    inputs = make_inputs(backbone, len(WORDS))
    order = inputs[mask].sum(dim=1).argsort(stable=True)
    batches = []
    for rows in (order[-3:], order[:2]):
        used = inputs[mask][rows].bool().any(dim=0)  # without the padding that only longer texts need
        batches.append(tuple(item[rows][:, used] for item in inputs))
    return batches, mask
