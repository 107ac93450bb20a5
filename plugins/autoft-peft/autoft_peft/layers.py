"""Strategies that change layers: which they take, how peft adapts them, how they are merged again, and their files."""

from __future__ import annotations

import copy
import json
import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import nn

from autoft.freezing import stages_of_adapted
from autoft.specs import Adapted, Backbone, Stage

ADAPTER = "default"  # peft's own name for the only adapter of a module


def check(name: str, backbone: Backbone, module: nn.Module) -> str | None:
    """Return why a backbone has no layer for a strategy, or None where it has some."""
    if _targets(name, module, [parameter for parameter, _ in module.named_parameters()]):
        return None
    return "it has no LayerNorm" if name == "layer-norm" else "it has no plain linear or convolutional layer"


def adapt(name: str, module: nn.Module, stages: tuple[Stage, ...], depth: int, knobs: Mapping[str, Any]) -> Adapted:
    """Adapt the layers of the stages from `depth` on."""
    from peft import inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    targets = _targets(name, module, [parameter for stage in stages[depth:] for parameter in stage.parameters])
    if not targets:
        return Adapted(module, stages, frozenset())
    before = {parameter for parameter, _ in module.named_parameters()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unsupported layer type")  # of LayerNorm, which peft does train
        adapted = inject_adapter_in_model(_config(name, module, targets, knobs), module, adapter_name=ADAPTER)
    missed = [target for target in targets if not isinstance(adapted.get_submodule(target), BaseTunerLayer)]
    if missed:
        raise AssertionError(f"peft left {missed[0]} as it is")
    trained = frozenset(
        parameter for parameter, _ in adapted.named_parameters() if f".{ADAPTER}" in parameter and parameter not in before
    )
    return Adapted(adapted, stages_of_adapted(adapted, stages), trained)


def merge(module: nn.Module) -> nn.Module:
    """Return the module with what was added merged into its layers: their own again, under their own names."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(module.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge(safe_merge=True)  # refuses what is not finite
            module.set_submodule(name, layer.get_base_layer())
    if hasattr(module, "peft_config"):
        del module.peft_config
    return module


def files(module: nn.Module) -> dict[str, bytes]:
    """Return `adapter_model.safetensors` and `adapter_config.json`, as `peft.PeftModel.from_pretrained` reads them.

    Names are those of the model itself: of transformers' own where the backbone is one of them.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save

    if not hasattr(module, "peft_config"):
        return {"adapter_config.json": b"{}\n"}  # all stages are frozen: there is nothing to keep
    inner = "model." if hasattr(module, "model") and hasattr(module.model, "config") else ""
    found = get_peft_model_state_dict(module, adapter_name=ADAPTER)
    state = {f"base_model.model.{name.removeprefix(inner)}": value.detach().cpu() for name, value in found.items()}
    config: Any = copy.deepcopy(cast("dict[str, Any]", module.peft_config)[ADAPTER])
    for field in ("target_modules", "feedforward_modules"):
        pattern = getattr(config, field, None)
        if isinstance(pattern, str):
            setattr(config, field, pattern.replace(re.escape(inner), ""))
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        written = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
    described = json.dumps(written, indent=2, sort_keys=True) + "\n"
    return {
        "adapter_model.safetensors": save({name: value.contiguous() for name, value in state.items()}, {"format": "pt"}),
        "adapter_config.json": described.encode(),
    }


def _targets(name: str, module: nn.Module, parameters: Sequence[str]) -> list[str]:
    """Return the names of the layers that a strategy adapts, of those that have one of the parameters.

    Of linear and convolutional layers only torch's own classes: a subclass may compute with its weight in its own way, such
    as standardizing it, and then nothing can be merged into it. Of torch's attention, whose layers are never called, none is
    taken.
    """
    owners = {parameter.rpartition(".")[0] for parameter in parameters}
    found = []
    for layer_name, layer in module.named_modules():
        parent = module.get_submodule(layer_name.rpartition(".")[0])
        kind = isinstance(layer, nn.LayerNorm) if name == "layer-norm" else type(layer) in (nn.Linear, nn.Conv2d)
        if layer_name not in owners or not kind or isinstance(parent, nn.MultiheadAttention):
            continue
        if isinstance(layer, nn.Conv2d) and layer.groups != 1:
            continue  # a depthwise layer has less to train than what would be added
        if isinstance(layer, nn.LayerNorm) and not layer.elementwise_affine:
            continue
        found.append(layer_name)
    return found


def _config(name: str, module: nn.Module, targets: Sequence[str], knobs: Mapping[str, Any]) -> Any:
    from peft import IA3Config, LNTuningConfig, LoraConfig

    pattern = _pattern(targets)  # of whole names: peft takes a list for the ends of names
    if name in ("lora", "dora"):
        return LoraConfig(
            r=int(knobs["lora_rank"]),
            lora_alpha=float(knobs["lora_alpha"]),  # type: ignore[arg-type]  # annotated as whole, used as it is
            lora_dropout=float(knobs["lora_dropout"]),
            use_dora=name == "dora",
            target_modules=pattern,
        )
    if name == "ia3":
        # the paper scales keys, values, and what the second layer of each feed-forward block is given; which those are
        # differs from model to model, but a layer that narrows is such a second layer
        narrowing = [target for target in targets if _narrows(module.get_submodule(target))]
        return IA3Config(target_modules=pattern, feedforward_modules=_pattern(narrowing) if narrowing else [])
    return LNTuningConfig(target_modules=pattern)


def _narrows(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) and layer.in_features > layer.out_features


def _pattern(names: Sequence[str]) -> str:
    return "|".join(re.escape(name) for name in names)
