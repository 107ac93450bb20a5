"""Models of transformers as modules that give features: loading, pooling, and stages found by running them once.

Which files to read, and what a name means, is for `autoft/builtin/transformers.py`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from autoft.errors import BackboneError, first_line
from autoft.hf_files import quiet
from autoft.specs import Stage

EXAMPLE_TOKENS = 8
DROP_PATH_RATE = 0.1
# what vision models leave undecayed, as timm does for its own
UNDECAYED = ("cls_token", "distillation_token", "register_tokens", "position_embeddings", "relative_position_bias_table")


# --- features -----------------------------------------------------------------------------------------


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1.0)


def _mean_sqrt_length(hidden: Tensor, mask: Tensor) -> Tensor:
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1.0).sqrt()


def _maximum(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden.masked_fill(mask.unsqueeze(-1) == 0, torch.finfo(hidden.dtype).min).amax(1)


def _last(hidden: Tensor, mask: Tensor) -> Tensor:
    # texts are padded on the right
    where = (mask.sum(1) - 1).clamp(min=0)
    return hidden.gather(1, where.view(-1, 1, 1).expand(-1, 1, hidden.shape[-1])).squeeze(1)


# by sentence-transformers' words; several are put side by side in this order, as it does
POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": lambda hidden, mask: hidden[:, 0],
    "max": _maximum,
    "mean": _mean,
    "mean_sqrt_len": _mean_sqrt_length,
    "lasttoken": _last,
}


@dataclass(frozen=True)
class Projection:
    """A dense layer after pooling, as sentence-transformers' `Dense`.

    Attributes:
        size: Width of its output.
        bias: Whether it adds a bias.
        activation: The name of torch's module.
        weights: A safetensors file with `linear.weight` and perhaps `linear.bias`; None for random weights.
    """

    size: int
    bias: bool
    activation: str
    weights: Path | None


@dataclass(frozen=True)
class Plan:
    """What to build.

    Attributes:
        name: The backbone's name, for errors.
        config: The configuration of transformers.
        model_class: The class of transformers without a task's head.
        weights: Safetensors files; empty for random weights.
        inputs: Names of the module's positional inputs.
        poolings: For texts some of `POOLINGS`; empty for a feature a token. For images one of `IMAGE_POOLINGS`.
        projections: What follows after pooling.
        image_size: For images, height and width of the input.
    """

    name: str
    config: Any
    model_class: Any
    weights: tuple[Path, ...]
    inputs: tuple[str, ...]
    poolings: tuple[str, ...]
    projections: tuple[Projection, ...] = ()
    image_size: tuple[int, int] | None = None


class FeatureModule(nn.Module):
    """A model of transformers that takes tensors and gives features.

    Attributes:
        model: The model itself.
        stages: Its parameters in stages, input first.
        feature_size: C of the features.
    """

    stages: tuple[Stage, ...] = ()
    feature_size: int = 0

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


class TextModule(FeatureModule):
    """Gives `(N, C)` pooled features of texts, or `(N, T, C)` features of their tokens.

    Args:
        model: A model whose output has `last_hidden_state`.
        inputs: Names of its positional inputs `(N, T)`.
        poolings: Some of `POOLINGS`; empty for a feature a token.
        projections: What follows after pooling.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[str], poolings: Sequence[str], projections: nn.Sequential) -> None:
        super().__init__(model)
        self.inputs = tuple(inputs)
        self.poolings = tuple(poolings)
        self.projections = projections

    def get_input_embeddings(self) -> nn.Module:
        """Return the layer that turns tokens into vectors."""
        found: nn.Module = self.model.get_input_embeddings()  # type: ignore[operator]
        return found

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return float32 features of inputs given in the order of `inputs`."""
        named = dict(zip(self.inputs, inputs, strict=True))
        hidden: Tensor = self.model(**named).last_hidden_state.float()
        if not self.poolings:
            return hidden
        mask = named["attention_mask"]
        pooled = [POOLINGS[name](hidden, mask) for name in self.poolings]
        features: Tensor = self.projections(torch.cat(pooled, 1) if len(pooled) > 1 else pooled[0])
        return features


# what a model's own ForImageClassification makes of `last_hidden_state` (N, T, C); the argument is the first patch's place
IMAGE_POOLINGS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "cls": lambda hidden, first: hidden[:, 0],
    "cls+patches": lambda hidden, first: torch.cat([hidden[:, 0], hidden[:, first:].mean(1)], 1),
    "patches": lambda hidden, first: hidden[:, first:].mean(1),
    "mean": lambda hidden, first: hidden.mean(1),
}
OWN_POOLER = "pooler"


class ImageModule(FeatureModule):
    """Gives `(N, C)` features of images.

    Args:
        model: A model whose output has `last_hidden_state`, or `pooler_output` where that is the pooling.
        pooling: One of `IMAGE_POOLINGS`, or `OWN_POOLER`.
        first: Where the patches begin among the tokens.
        options: Passed to the model as they are.
    """

    def __init__(self, model: nn.Module, pooling: str, first: int, options: Mapping[str, Any]) -> None:
        super().__init__(model)
        self.pooling = pooling
        self.first = first
        self.options = dict(options)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return float32 features of pixels `(N, 3, H, W)`."""
        output = self.model(pixel_values, **self.options)
        if self.pooling == OWN_POOLER:
            pooled: Tensor = output.pooler_output.flatten(1)
        else:
            pooled = IMAGE_POOLINGS[self.pooling](output.last_hidden_state, self.first)
        return pooled.float()


# what transformers' models raise for settings and weights that do not fit
_FAILURES = (
    *(RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, OSError, SafetensorError),
)


# --- building -----------------------------------------------------------------------------------------


def build(plan: Plan) -> nn.Module:
    """Return a new module with its weights loaded, as float32.

    What the features do not depend on, such as a pooler that is not asked or a mask token, becomes buffers: there is
    nothing in it to train.

    Raises:
        BackboneError: The weights are of another model, or the model cannot be made or run.
    """
    try:
        with quiet():
            model, missing = _load(plan)
            module, missing_projections = _wrapped(plan, model)
            settle(module, _example(plan), plan.config)
    except _FAILURES as error:
        where = f"with the weights {plan.weights[0]}" if plan.weights else "with random weights"
        raise BackboneError(f"{plan.name} cannot be built {where}: {first_line(error)}") from error
    trained = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    lacking = sorted(trained & {*(f"model.{name}" for name in missing), *missing_projections})
    if lacking:
        raise BackboneError(
            f"the weights {plan.weights[0]} lack {len(lacking)} parameters of {plan.name}, such as "
            + lacking[0].removeprefix("model."),
            "they belong to another model, or are only a part of one",
        )
    return module.train()


def _load(plan: Plan) -> tuple[nn.Module, Collection[str]]:
    """Return the model of transformers, and the names of the parameters that the weights lack."""
    config = copy.deepcopy(plan.config)  # models write to theirs
    config.use_cache = False
    if getattr(config, "drop_path_rate", None) == 0:
        config.drop_path_rate = DROP_PATH_RATE  # else there would be no layers for stochastic depth, whose rate autoft sets
    arguments: dict[str, Any] = {"dtype": torch.float32}
    # eager where the model has no other; flash attention has no counterpart in ONNX
    arguments["attn_implementation"] = "sdpa" if plan.model_class._supports_sdpa else "eager"
    if "add_pooling_layer" in inspect.signature(plan.model_class.__init__).parameters:
        arguments["add_pooling_layer"] = OWN_POOLER in plan.poolings
    if not plan.weights:
        return plan.model_class._from_config(config, **arguments), ()
    state: dict[str, Tensor] = {}
    for file in plan.weights:
        state |= load_file(file)
    # from a dictionary, not a folder: nothing else that lies there, such as an adapter, gets in
    model, info = plan.model_class.from_pretrained(
        None, config=config, state_dict=state, output_loading_info=True, **arguments
    )
    return model, info["missing_keys"]


def _wrapped(plan: Plan, model: nn.Module) -> tuple[FeatureModule, Collection[str]]:
    if plan.image_size is not None:
        options: dict[str, Any] = {}
        own = getattr(plan.config, "image_size", None)
        own = (own, own) if isinstance(own, int) else own
        if own and tuple(own) != plan.image_size and "interpolate_pos_encoding" in _arguments(plan.model_class):
            options["interpolate_pos_encoding"] = True
        first = 1 + int(getattr(plan.config, "num_register_tokens", 0) or 0)
        return ImageModule(model, plan.poolings[0], first, options), ()
    layers: list[nn.Module] = []
    missing: list[str] = []
    width = int(plan.config.hidden_size) * len(plan.poolings) if plan.projections else 0
    for projection in plan.projections:
        linear = nn.Linear(width, projection.size, bias=projection.bias)
        if projection.weights is not None:
            state = {name.removeprefix("linear."): value for name, value in load_file(projection.weights).items()}
            found = linear.load_state_dict({name: value.float() for name, value in state.items()}, strict=False)
            missing += [f"projections.{len(layers)}.{name}" for name in found.missing_keys]
        layers += [linear, getattr(nn, projection.activation)()]
        width = projection.size
    return TextModule(model, plan.inputs, plan.poolings, nn.Sequential(*layers)), missing


def takes(model_class: Any, name: str) -> bool:
    """Return whether a model's `forward` has an argument of that name."""
    return name in _arguments(model_class)


def _arguments(model_class: Any) -> Collection[str]:
    return inspect.signature(model_class.forward).parameters


def _example(plan: Plan) -> tuple[Tensor, ...]:
    """Make the smallest inputs that use every part of a model: two texts of which one is padded, or an image."""
    if plan.image_size is not None:
        return (torch.zeros(1, 3, *plan.image_size),)
    pad = getattr(plan.config, "pad_token_id", None) or 0
    ids = torch.full((2, EXAMPLE_TOKENS), 0 if pad else 1)
    ids[1, -2:] = pad
    mask = torch.ones_like(ids)
    mask[1, -2:] = 0
    made = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return tuple(made[name] for name in plan.inputs)


# --- stages -------------------------------------------------------------------------------------------


@dataclass
class _Uses(TorchFunctionMode):
    """Notes when each parameter is first and last used in a computation that has a gradient.

    Attributes:
        names: The parameters' names by identity.
        first: For each name, the number of the call that used it first.
        last: For each name, the number of the call that used it last.
    """

    names: Mapping[int, str]
    first: dict[str, int] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)
    calls: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls += 1
        # only what computes: asking a weight for its dtype is no use of it
        if any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves(result)):
            for leaf in tree_leaves((args, kwargs)):
                name = self.names.get(id(leaf))
                if name is not None:
                    self.first.setdefault(name, self.calls)
                    self.last[name] = self.calls
        return result


def settle(module: FeatureModule, example: Sequence[Tensor], config: Any) -> None:
    """Run a module once; find its stages and its width, and make buffers of what its features do not depend on."""
    uses = _Uses({id(parameter): name for name, parameter in module.named_parameters()})
    module.eval()
    with torch.enable_grad(), uses:
        features = module(*example)
    reached = _reached(features)
    for name, parameter in list(module.named_parameters(remove_duplicate=False)):
        if id(parameter) not in reached:
            owner = module.get_submodule(name.rpartition(".")[0])
            leaf = name.rpartition(".")[2]
            del owner._parameters[leaf]
            owner.register_buffer(leaf, parameter.detach())
    module.stages = _stages(module, uses, hierarchical=hasattr(config, "depths"))
    module.feature_size = features.shape[-1]


def _reached(features: Tensor) -> set[int]:
    """Return the identities of the parameters that a result depends on, from its graph of gradients."""
    found: set[int] = set()
    seen: set[Any] = set()
    waiting: list[Any] = [features.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        waiting += [before for before, _ in node.next_functions]
    return found


def _stages(module: FeatureModule, uses: _Uses, *, hierarchical: bool) -> tuple[Stage, ...]:
    """Order the parameters into stages: what comes before the first layer, then the layers.

    Where a parameter lies in the computation is seen from its first use, not from its name: DeBERTa keeps embeddings in its
    encoder, MPNet a bias after its layers. So no frozen stage depends on one that is trained. What is used between two
    layers or after the last goes with the layer before it. Layers that take turns, because they share parameters or are
    gone through again (ALBERT), are one stage: no part of them could be frozen without freezing what depends on the rest.
    """
    names = [name for name, _ in module.named_parameters()]
    of = {id(parameter): name for name, parameter in module.named_parameters()}
    layers: list[tuple[int, int, str]] = []  # first use, last use, name
    owner: dict[str, int] = {}
    for name, layer in _layers(module.model, hierarchical=hierarchical):
        own = {of[id(parameter)] for parameter in layer.parameters() if id(parameter) in of}
        if own:
            layers.append((min(uses.first[one] for one in own), max(uses.last[one] for one in own), name))
            owner |= {one: layers[-1][0] for one in own if one not in owner}
    merged: list[tuple[int, int, str]] = []
    for first, last, name in sorted(layers):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]), merged[-1][2])
        else:
            merged.append((first, last, name))
    starts = [(-1, "embeddings"), *((first, name) for first, _, name in merged)]
    groups: list[list[str]] = [[] for _ in starts]
    for name in names:
        at = owner.get(name, uses.first[name])
        groups[max(number for number, (start, _) in enumerate(starts) if start <= at)].append(name)
    return tuple(Stage(name, tuple(group)) for (_, name), group in zip(starts, groups, strict=True) if group)


def _layers(model: nn.Module, *, hierarchical: bool) -> list[tuple[str, nn.Module]]:
    """Return a model's layers: the items of its outermost lists, or of those below if hierarchical; else its children."""
    found = [
        (f"{name}.{number}", item)
        for name, items in _outermost(model, (nn.ModuleList,))
        for number, item in enumerate(items.children())
    ]
    if not found:
        return list(model.named_children())
    if not hierarchical:
        return found
    finer: list[tuple[str, nn.Module]] = []
    for name, part in found:
        # a list of unequal parts (norm, convolution) is one operation, not layers
        inner = [
            (f"{name}.{below}.{number}", item)
            for below, items in _outermost(part, (nn.ModuleList, nn.Sequential))
            if len({type(item) for item in items.children()}) == 1
            for number, item in enumerate(items.children())
        ]
        finer += inner or [(name, part)]
    return finer


def _outermost(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[tuple[str, nn.Module]]:
    """Return the modules of some kinds that lie in no other of them, by name."""
    found: list[tuple[str, nn.Module]] = []
    for name, child in module.named_children():
        if isinstance(child, kinds):
            found.append((name, child))
        else:
            found += [(f"{name}.{below}", each) for below, each in _outermost(child, kinds)]
    return found


def no_weight_decay(module: nn.Module) -> frozenset[str]:
    """Return an image model's position embeddings and special tokens, which are not decayed; of texts' models nothing."""
    if not isinstance(module, ImageModule):
        return frozenset()  # as transformers' own Trainer
    return frozenset(
        name for name, _ in module.named_parameters() if any(part in UNDECAYED for part in name.split(".")[-2:])
    )
