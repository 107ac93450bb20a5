"""Assembles a backbone and a head into the model that is trained and exported."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoft.errors import BackboneError
from autoft.freezing import check_stages, frozen_modules, frozen_parameters
from autoft.head_start import load_head
from autoft.layers import batch_norms, set_stochastic_depth
from autoft.specs import Backbone, Head, Stage, Strategy, Targets
from autoft.weights import with_versions


class FineTuneModel(nn.Module):
    """A backbone followed by a head; frozen stages stay in `eval()` through every `train()`.

    Attributes:
        backbone: Takes the inputs, gives features; as a strategy has adapted it, where there is one.
        head: Takes features, gives outputs.
        stages: The backbone's stages, input to output.
        trained: Names of the backbone's parameters that may be trained at all, or None for all.
        strategy: What adapted the backbone, or None.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        stages: Sequence[Stage],
        *,
        trained: frozenset[str] | None = None,
        strategy: Strategy | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.stages = tuple(stages)
        self.trained = trained
        self.strategy = strategy
        self._held_in_eval: tuple[nn.Module, ...] = ()

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the head's outputs `(N, ...)` for the backbone's inputs, each with N rows."""
        outputs: Tensor = self.head(self.backbone(*inputs))
        return outputs

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights as torch does, those of a file of tensors alone too; see `with_versions`."""
        return super().load_state_dict(with_versions(self, state_dict), strict=strict, assign=assign)

    def freeze(self, depth: int, *, statistics: bool = False) -> None:
        """Freeze the first `depth` stages: no gradients, and no change of running statistics.

        Args:
            depth: Stages frozen, counted from the input.
            statistics: Whether the running statistics of every BatchNorm of the backbone are frozen, also of trained ones.

        Raises:
            BackboneError: `depth` is not between 0 and the number of stages.
        """
        frozen = frozen_parameters(self.stages, depth)
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(name not in frozen and (self.trained is None or name in self.trained))
        held = frozen_modules(self.backbone, frozen) if depth else ()
        normalizing = batch_norms(self.backbone) if statistics else []
        self._held_in_eval = (*(self.backbone.get_submodule(name) for name in held), *normalizing)
        self.train(self.training)

    def finished_state(self) -> dict[str, Tensor]:
        """Return the state, on the CPU, of the model that is scored from files and exported: adapters are merged into it."""
        if self.strategy is None:
            state = self.state_dict()
        else:
            # of a copy: merging adds to the weights, and what was added cannot be taken away again to the last bit
            merged = self.strategy.merge(copy.deepcopy(self.backbone))
            state = {f"backbone.{name}": value for name, value in merged.state_dict().items()}
            state |= {f"head.{name}": value for name, value in self.head.state_dict().items()}
        return {name: value.detach().cpu().clone() for name, value in state.items()}

    def adapter_files(self) -> Mapping[str, bytes]:
        """Return the adapter alone as files by name; none without a strategy."""
        return {} if self.strategy is None else self.strategy.files(self.backbone)

    def train(self, mode: bool = True) -> FineTuneModel:
        """Set training mode, except in frozen modules: a frozen BatchNorm would keep drifting, a frozen dropout firing."""
        super().train(mode)
        for module in self._held_in_eval:
            module.training = False
        return self


def assemble(
    backbone: Backbone,
    head: Head,
    targets: Targets,
    knobs: Mapping[str, Any],
    *,
    seed: int,
    head_start: Path | None = None,
    stochastic_depth: float = 0.0,
    strategy: Strategy | None = None,
    depth: int = 0,
    finished: bool = False,
) -> FineTuneModel:
    """Build a backbone with its weights, and a head of matching size on top.

    Args:
        backbone: What to build.
        head: The task.
        targets: The task's targets, which decide the size of the output.
        knobs: Values of the head's knobs, such as `dropout`.
        seed: Seeds the random initialization of the head (and of the backbone where it has no weights).
        head_start: File of `head_start.save_head` with the weights that the head starts from, or None for random ones.
        stochastic_depth: How often the backbone's last residual branch is left out in training, earlier ones less.
        strategy: How the stages from `depth` on are trained, or None for all of their weights.
        depth: Stages that will be frozen.
        finished: Whether the model is to take weights of `finished_state`, to be scored or exported, and not trained.

    Raises:
        DataError: That file is damaged, or of another head.
        BackboneError: The backbone gives features that the head cannot use, or its stages are not a partition.
    """
    if backbone.features != head.features:
        raise BackboneError(
            f"the head {head.name} needs {head.features} features, but {backbone.name} gives {backbone.features}",
            "choose another backbone or task",
        )
    torch.manual_seed(seed)
    module = backbone.build()
    stages = backbone.stages(module)
    try:
        check_stages(module, stages)
    except BackboneError as error:
        raise BackboneError(f"{backbone.name}: {error.message}", error.hint) from error
    set_stochastic_depth(module, stochastic_depth)
    width, trained = backbone.feature_size(module), None
    if strategy is not None:
        adapted = strategy.apply(module, stages, depth, knobs)
        check_stages(adapted.module, adapted.stages)
        module, stages, trained = adapted.module, adapted.stages, adapted.trained
    if strategy is not None and finished:
        module, stages = strategy.merge(module), ()
    torch.manual_seed(seed)  # again: the head's start must not depend on how the backbone was made
    output = head.build(width, targets, knobs)
    if head_start is not None:
        load_head(output, head_start)
    return FineTuneModel(module, output, stages, trained=trained, strategy=None if finished else strategy)
