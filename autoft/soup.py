"""Mixes trained weights into one model, and takes a mixture only where it scores better; scoring is the caller's.

Running statistics of BatchNorm are mixed like weights. Exact ones would need a pass over the training split with the mixed
weights, as for stochastic weight averaging (Izmailov et al., https://arxiv.org/abs/1803.05407); but a mixture is scored
with the statistics that it would be exported with, so where they do not fit, it does not win. Buffers of whole numbers,
such as BatchNorm's `num_batches_tracked`, have no meaningful mean, and are not mixed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from autoft.specs import Direction, is_better

BACKBONE = "backbone."  # what the names of the backbone's tensors begin with in a model's state
ALPHAS = (0.25, 0.5, 0.75)  # each costs a pass over the validation split; the paper finds the optimum broad

Weights = dict[str, Tensor]


def compatible(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> str | None:
    """Return why two models' states cannot be mixed, or None where they can: the same names, shapes and dtypes.

    That a mixture is any good is another matter: the two must come from the same pretrained weights, and the score decides.
    """
    for name in sorted(one.keys() ^ other.keys()):
        return f"only one of them has `{name}`"
    for name, tensor in one.items():
        if tensor.shape != other[name].shape:
            return f"the shapes of `{name}` differ: {tuple(tensor.shape)} and {tuple(other[name].shape)}"
        if tensor.dtype != other[name].dtype:
            return f"the dtypes of `{name}` differ: {tensor.dtype} and {other[name].dtype}"
    return None


def greedy_soup(
    candidates: Sequence[Mapping[str, Tensor]], score: Callable[[Weights], float], direction: Direction
) -> tuple[Weights, list[int]]:
    """Average candidates' weights one after another, each kept only where the mean scores strictly better with it.

    The greedy recipe of model soups (Wortsman et al., https://arxiv.org/abs/2203.05482, recipe 1). One departure: there a
    candidate is also kept at an equal score; here a single model is given up only for a better one. A tensor that is
    the same in all candidates, such as a frozen stage's, stays the same to the last bit.

    Args:
        candidates: States of models, best first; of whole numbers the first's are taken.
        score: Validation metric of weights; called once a candidate.
        direction: Of the metric.

    Returns:
        The weights, and which candidates they are the mean of. Of the first alone, they are the first's own.

    Raises:
        ValueError: There is no candidate, or one cannot be mixed with the first; `compatible` tells beforehand.
    """
    if not candidates:
        raise ValueError("a soup must have at least one candidate, but got none")
    first = dict(candidates[0])
    for index, candidate in enumerate(candidates):
        if reason := compatible(first, candidate):
            raise ValueError(f"candidate {index} cannot be mixed with the first: {reason}")
    # the mean is kept in at least 32 bits: in half precision each further candidate would be rounded away
    weights, mean, members = first, _widened(first), [0]
    if len(candidates) == 1:
        return weights, members
    best = score(first)
    for index in range(1, len(candidates)):
        tried = _lerp(mean, candidates[index], 1 / (len(members) + 1))
        narrowed = {name: tensor.to(first[name].dtype) for name, tensor in tried.items()}
        value = score(narrowed)
        if is_better(direction, value, best):
            weights, mean, best = narrowed, tried, value
            members.append(index)
    return weights, members


def interpolate(pretrained: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: float) -> Weights:
    """Return the model whose backbone lies between the pretrained and the tuned one; the head is the tuned one's.

    WiSE-FT (Wortsman et al., https://arxiv.org/abs/2109.01903). There the head starts from a zero-shot classifier and is
    mixed too; ours starts from random weights, with which there is no point in mixing.

    Args:
        pretrained: State of the model before training; its head, where it has one, is ignored.
        tuned: State of the same model after training; whole numbers are taken from here.
        alpha: Share of the tuned backbone, from 0 (pretrained) to 1 (tuned).

    Raises:
        ValueError: `alpha` is out of its limits, or the backbones cannot be mixed.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"`alpha` must be between 0 and 1, but got {alpha}")
    before, after = (
        {name: tensor for name, tensor in state.items() if name.startswith(BACKBONE)} for state in (pretrained, tuned)
    )
    if not after:
        raise ValueError(f"the names of the backbone's tensors must begin with `{BACKBONE}`, but none does")
    if reason := compatible(before, after):
        raise ValueError(f"the pretrained and the tuned backbone cannot be mixed: {reason}")
    mixed = _lerp(_widened(before), after, alpha)
    # whole numbers are the tuned model's
    return {
        name: mixed[name].to(tensor.dtype) if name in mixed and _has_mean(tensor) else tensor
        for name, tensor in tuned.items()
    }


def _has_mean(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _widened(state: Mapping[str, Tensor]) -> Weights:
    """Return a state whose numbers have at least 32 bits."""
    return {
        name: tensor.to(torch.promote_types(tensor.dtype, torch.float32)) if _has_mean(tensor) else tensor
        for name, tensor in state.items()
    }


def _lerp(start: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float) -> Weights:
    """Return the widened state at `share` of the way from `start`, which is widened, to `end`; whole numbers are of `start`.

    Equal numbers stay equal to the last bit, infinite ones too, as an attention mask may hold.
    """
    mixed = {}
    with torch.no_grad():
        for name, tensor in start.items():
            other = end[name].to(tensor.dtype)
            mixed[name] = torch.where(tensor == other, tensor, tensor.lerp(other, share)) if _has_mean(tensor) else tensor
    return mixed
