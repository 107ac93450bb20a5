"""Freezing by stages, and the optimizer's parameter groups; the loop that uses them is in `train.py`.

A *depth* counts frozen stages from the input: 0 trains everything, `len(stages)` trains the head alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import nn

from autoft.errors import BackboneError
from autoft.specs import Stage


def check_stages(module: nn.Module, stages: Sequence[Stage]) -> None:
    """Check that stages partition a module's parameters: each in exactly one stage, none unknown.

    Raises:
        BackboneError: Names the first parameters that are missing, repeated or unknown.
    """
    known = {name for name, _ in module.named_parameters()}
    listed = [name for stage in stages for name in stage.parameters]
    problems = {
        "in no stage": sorted(known - set(listed)),
        "unknown to the module": sorted(set(listed) - known),
        "in more than one stage": sorted({name for name in listed if listed.count(name) > 1}),
    }
    if not stages:
        raise BackboneError("a backbone must have at least one stage, but got none")
    for what, names in problems.items():
        if names:
            raise BackboneError(
                f"stages must partition the parameters, but {len(names)} are {what}, such as {names[0]}",
                "mend the backbone's `stages` function",
            )


def stages_by_module(module: nn.Module, *, open: tuple[type[nn.Module], ...] = ()) -> tuple[Stage, ...]:
    """Order a module's parameters into stages by its tree of modules, for families that know no better order.

    A stage is the outermost module that does more than hold others: `layer1.0` of a `layer1` that is a `Sequential`. What
    has no weights of two axes or more, such as a norm, or is loose, such as an embedding of positions, belongs to the stage
    before it. Modules must be registered in the order of the computation.

    Args:
        module: A backbone's module.
        open: Types that only hold others, beside `Sequential`, `ModuleList` and `ModuleDict` themselves.
    """
    holders = (nn.Sequential, nn.ModuleList, nn.ModuleDict, *open)

    def owner(parameter: str) -> str:
        parts = parameter.split(".")[:-1]
        for depth in range(1, len(parts) + 1):
            inner = module.get_submodule(".".join(parts[:depth]))
            if type(inner) not in holders:
                return ".".join(parts[:depth]) if any(value.dim() > 1 for value in inner.parameters()) else ""
        return ""

    found: dict[str, list[str]] = {}
    names: list[str] = []
    for parameter, _ in module.named_parameters():
        name = owner(parameter)
        if name and name not in found:
            names = found[name] = [] if found else names
        names.append(parameter)
    return tuple(Stage(name, tuple(listed)) for name, listed in found.items())


def frozen_parameters(stages: Sequence[Stage], depth: int) -> frozenset[str]:
    """Return the names of the parameters in the first `depth` stages.

    Raises:
        BackboneError: `depth` is not between 0 and the number of stages.
    """
    if not 0 <= depth <= len(stages):
        raise BackboneError(f"`freeze_depth` must be between 0 and {len(stages)}, but got {depth}")
    return frozenset(name for stage in stages[:depth] for name in stage.parameters)


def frozen_modules(module: nn.Module, frozen: Collection[str]) -> tuple[str, ...]:
    """Return the names of the modules that must stay in `eval()` when the parameters named in `frozen` are frozen.

    A module is frozen when it holds parameters and all of them are. One that holds none (dropout, a BatchNorm without
    affine parameters) follows its nearest ancestor where that is wholly frozen or wholly trained, else the sibling
    before it: modules are registered in the order of the computation.
    """
    trained: dict[str, bool] = {}

    def decide(prefix: str, parent: nn.Module, inherited: bool) -> None:
        previous = inherited
        for child_name, child in parent.named_children():
            name = f"{prefix}{child_name}"
            states = {f"{name}.{parameter}" in frozen for parameter, _ in child.named_parameters()}
            if not states:
                is_frozen = previous
            elif len(states) == 1:
                is_frozen = states.pop()
            else:
                is_frozen = False
                trained[name] = True
                decide(f"{name}.", child, previous)
                previous = False
                continue
            for descendant, _ in child.named_modules(prefix=name):
                trained[descendant] = not is_frozen
            previous = is_frozen

    everything = {name for name, _ in module.named_parameters()}
    if everything and everything <= set(frozen):
        return tuple(name for name, _ in module.named_modules())
    decide("", module, bool(frozen))
    return tuple(name for name, is_trained in trained.items() if not is_trained)


def parameter_groups(
    backbone: nn.Module,
    head: nn.Module,
    stages: Sequence[Stage],
    *,
    learning_rate: float,
    head_multiplier: float,
    layer_decay: float,
    weight_decay: float,
    no_weight_decay: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Group the trainable parameters for an optimizer, with layer-wise learning rates.

    The head learns at `learning_rate * head_multiplier`; stage i of S at `learning_rate * layer_decay ** (S - i)`, as in
    BEiT (arXiv:2106.08254) and timm's `param_groups_layer_decay`. Norms, biases and the names in `no_weight_decay` are not
    decayed.

    Returns:
        Groups with `params`, `names`, `lr`, `initial_lr` and `weight_decay`; frozen parameters are in none.
    """
    groups: list[dict[str, Any]] = []
    parameters = dict(backbone.named_parameters())

    def add(named: list[tuple[str, nn.Parameter]], rate: float) -> None:
        trainable = [(name, parameter) for name, parameter in named if parameter.requires_grad]
        for decayed in (True, False):
            chosen = [pair for pair in trainable if _decays(*pair, exempt=no_weight_decay) == decayed]
            if chosen:
                groups.append(
                    {
                        "params": [parameter for _, parameter in chosen],
                        "names": [name for name, _ in chosen],
                        "lr": rate,
                        "initial_lr": rate,
                        "weight_decay": weight_decay if decayed else 0.0,
                    }
                )

    for index, stage in enumerate(stages):
        rate = learning_rate * layer_decay ** (len(stages) - index)
        add([(name, parameters[name]) for name in stage.parameters], rate)
    add([(f"head.{name}", parameter) for name, parameter in head.named_parameters()], learning_rate * head_multiplier)
    return groups


def _decays(name: str, parameter: nn.Parameter, *, exempt: Collection[str]) -> bool:
    return parameter.ndim > 1 and not name.endswith(".bias") and name not in exempt


def stages_of_adapted(module: nn.Module, stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Return the stages of a module to whose layers something was added, each new parameter with the layer that has it.

    For strategies: where `blocks.0.attn.qkv` becomes a layer that holds the old one and more, all of it belongs to the stage
    of `blocks.0.attn.qkv`.

    Args:
        module: As it is now.
        stages: Of the module as it was.

    Raises:
        BackboneError: A parameter is in no module that the stages knew.
    """
    place = {name: index for index, stage in enumerate(stages) for name in stage.parameters}
    owners: dict[str, int] = {}
    for name, index in place.items():
        owner = name.rpartition(".")[0]
        owners[owner] = max(index, owners.get(owner, 0))
    found: list[list[str]] = [[] for _ in stages]
    for name, _ in module.named_parameters():
        owner = name
        while name not in place and owner and owner not in owners:
            owner = owner.rpartition(".")[0]
        if name not in place and owner not in owners:
            raise BackboneError(f"the parameter {name} must belong to a layer that the stages know, but belongs to none")
        found[place[name] if name in place else owners[owner]].append(name)
    return tuple(Stage(stage.name, tuple(names)) for stage, names in zip(stages, found, strict=True))
