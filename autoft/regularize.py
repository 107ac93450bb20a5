"""Regularization of the weights and of the inputs' embeddings: L2-SP, SAM, adversarial perturbation; one small class each.

Decoupled weight decay is the optimizer's, with its groups in `freezing.py`; averages of weights are in `averaging.py`,
mixing of images in `mixing.py`, and what a step makes of all of them in `gradients.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

TINY = 1e-12


class L2SP:
    """Pulls the backbone's weights toward where they started, the pretrained ones (L2-SP, arXiv:1802.01483).

    The paper adds `strength / 2 * |w - w0|^2` to the loss. Here the pull is decoupled from the gradient, as AdamW's weight
    decay is (arXiv:1711.05101): `w <- w - rate * strength * (w - w0)` after each step. With plain SGD the two are the same;
    with Adam the penalty would be divided by the gradient's size, and so pull least where the gradient is large.

    Args:
        groups: Of the optimizer, with `params`, `names` and `lr`; the head's are left out, as it starts from random weights.
        strength: Of the pull; 1 / (rate * steps) is where it begins to matter.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], strength: float) -> None:
        self._strength = strength
        self._groups = [group for group in groups if not group["names"][0].startswith("head.")]
        self._start = [[parameter.detach().clone() for parameter in group["params"]] for group in self._groups]

    @torch.no_grad()
    def pull(self) -> None:
        """Do the pull of one step, at the groups' present learning rates."""
        for group, start in zip(self._groups, self._start, strict=True):
            moving = [
                (parameter, origin)
                for parameter, origin in zip(group["params"], start, strict=True)
                if parameter.requires_grad  # what gradual unfreezing still holds is where it started
            ]
            if moving:
                share = min(1.0, group["lr"] * self._strength)  # more would step over the start
                torch._foreach_lerp_([parameter for parameter, _ in moving], [origin for _, origin in moving], share)


class SAM:
    """Sharpness-aware minimization (arXiv:2010.01412): takes the gradient where the loss nearby is highest.

    Args:
        parameters: What is trained.
        rho: Length of the step uphill.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], rho: float) -> None:
        self._parameters = parameters
        self._rho = rho

    @contextmanager
    def uphill(self) -> Iterator[None]:
        """Move the weights by `rho * g / |g|` along their gradients, drop these, and put the weights back at the end."""
        moved: list[Tensor] = [parameter for parameter in self._parameters if parameter.grad is not None]
        gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        before = [parameter.detach().clone() for parameter in moved]
        with torch.no_grad():
            steps = list(torch._foreach_mul(gradients, self._rho / (norm + TINY)))
            torch._foreach_add_(moved, steps)
        for parameter in moved:
            parameter.grad = None
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(moved, before)  # not subtracted: that would leave a rounding in each step


class Adversary:
    """Perturbs word embeddings along the loss's gradient (FGM: Miyato et al., arXiv:1605.07725).

    For each text the perturbation is `size * u * g / |g|`: g is the gradient at its embedded tokens `(T, C)`, and u the mean
    length of the vocabulary's vectors, so that `size` means the same for every model. The paper normalizes the embeddings
    instead, which a pretrained model does not survive.

    Args:
        embeddings: The layer that gives the embedded tokens `(N, T, C)`, with the vocabulary in `weight`.
        size: Length of the perturbation of a whole text, in lengths of a vocabulary's vector.
    """

    def __init__(self, embeddings: nn.Module, size: float) -> None:
        self._embeddings = embeddings
        weight = embeddings.weight
        assert isinstance(weight, Tensor)
        self._size = size * weight.detach().float().norm(dim=-1).mean()
        self._added: Tensor | None = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note the gradient that a backward pass within the context gives at the embedded tokens; nothing is changed."""

        def note(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            self._added = torch.zeros_like(output, requires_grad=True)
            return output + self._added

        yield from self._hooked(note)

    @contextmanager
    def attacking(self) -> Iterator[None]:
        """Add the perturbation that follows from what was noted, within the context.

        Raises:
            RuntimeError: No backward pass was watched before.
        """
        if self._added is None or self._added.grad is None:
            raise RuntimeError("the gradient at the embeddings must be watched before an attack")
        gradient = self._added.grad.float()
        length = gradient.flatten(1).norm(dim=1).clamp(min=TINY).view(-1, *([1] * (gradient.ndim - 1)))
        perturbation = (self._size * gradient / length).to(self._added.dtype)
        yield from self._hooked(lambda module, inputs, output: output + perturbation)

    def _hooked(self, hook: Any) -> Iterator[None]:
        handle = self._embeddings.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()


@contextmanager
def still(batch_norms: Sequence[nn.Module]) -> Iterator[None]:
    """Keep BatchNorm's running statistics as they are, for further passes over a batch that was counted already."""
    before = [(layer, layer.momentum) for layer in batch_norms if layer.training]
    for layer, _ in before:
        layer.momentum = 0.0  # type: ignore[assignment]
    try:
        yield
    finally:
        for layer, momentum in before:
            layer.momentum = momentum
