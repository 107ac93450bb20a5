"""How a model of timm becomes a backbone: with timm's own stages, preprocessing and weights.

Stages come from each model's `group_matcher`, preprocessing from `resolve_data_config`, and weights from the Hugging Face
cache or hub, or from a local file or folder in timm's layout. Which models are suggested is for `autoft/builtin/timm.py`.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoft.errors import BackboneError, first_line, nearest
from autoft.hub import find_file, require_torch_file
from autoft.specs import Backbone, BackboneRequest, FeatureMap, Stage
from autoft.timm_maps import INNER, MAPS, divisible, make_pyramid, maps_of

if TYPE_CHECKING:
    from torch import nn

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
SMALLEST_SIZE = 32
DROP_PATH_RATE = 0.1  # any number above 0 gives a model the layers, in the proportions of its own rule


def models() -> list[str]:
    """Return the names of all timm models, without the family's prefix."""
    import timm

    return list(timm.list_models()) + list(timm.list_pretrained())


def resolve(request: BackboneRequest) -> Backbone:
    """Turn a model's name into a backbone, reading at most a local folder's `config.json`.

    Raises:
        BackboneError: The name is unknown, the weights' path is missing or of another model, or the size is impossible.
    """
    import timm
    from timm.data.config import resolve_data_config

    from autoft.images import from_timm_config

    if not timm.is_model(request.model):
        near = nearest(request.model, models())
        hint = f"did you mean {', '.join('timm/' + name for name in near)}?" if near else "`timm.list_models()` lists all"
        raise BackboneError(f"timm has no model {request.model!r}", hint)
    try:
        found = timm.get_pretrained_cfg(request.model)
    except RuntimeError as error:  # `is_model` looks at the part before the dot alone
        tags = ", ".join(f"timm/{name}" for name in timm.list_pretrained(request.model.split(".")[0]))
        raise BackboneError(f"timm has no weights {request.model!r}", f"there are: {tags or 'none'}") from error
    config: dict[str, Any] = found.to_dict() if found is not None else {}
    source = _local_weights(request, config) if request.weights not in ("pretrained", "none") else None
    if source is not None:
        config = {**config, **source.overlay}
    if request.weights == "pretrained" and not _has_pretrained(config):
        raise BackboneError(
            f"timm/{request.model} has no pretrained weights",
            "name another tag or model, give `weights: PATH`, or `weights: none` to train from scratch",
        )
    size = choose_size(config, request)
    if request.features == MAPS and request.image_size is None and not config.get("fixed_input_size"):
        size = divisible(size)
    wanted: dict[str, Any] = {"input_size": (3, *size)}
    if request.features == MAPS:
        wanted |= {"crop_pct": 1.0, "crop_mode": "squash"}  # whoever answers for places must see all of the image
    preprocessing = from_timm_config(resolve_data_config(wanted, pretrained_cfg=config))

    def build() -> nn.Module:
        module = _build(request, config, source.file if source else None, size)
        return make_pyramid(module, request.model, size) if request.features == MAPS else module

    return Backbone(
        name=f"timm/{request.model}",
        modality="image",
        weights=request.weights if source is None else str(source.file),
        features=MAPS if request.features == MAPS else "pooled",
        inputs=("pixel_values",),
        preprocessing=preprocessing,
        build=build,
        stages=stages,
        feature_size=feature_size,
        no_weight_decay=no_weight_decay,
        # a local file's licence is known only from the config.json beside it, and random weights have none
        licence=(source.overlay if source else config if request.weights == "pretrained" else {}).get("license"),
        citation=_origin(request, config, source),
        # transformers and Optimum load timm models under this type, by timm's own name
        config={"model_type": "timm_wrapper", "architecture": request.model.split(".")[0]},
        image_size=size,
        fetch=lambda: _fetch(request, config),
    )


def choose_size(config: dict[str, Any], request: BackboneRequest) -> tuple[int, int]:
    """Choose height and width of the input.

    The study's `image_size` wins. Otherwise it is the model's own size, except that a model which takes any size is not
    given images blown up more than four times: 8x8 scans are read at 32x32, not at 224x224.
    """
    own = tuple(int(side) for side in (config.get("input_size") or (3, 224, 224))[1:])
    if request.image_size is not None:
        return (request.image_size, request.image_size)
    if request.typical_size is not None and not config.get("fixed_input_size"):
        enough = max(SMALLEST_SIZE, math.ceil(4 * request.typical_size / 32) * 32)
        smallest = tuple(int(side) for side in (config.get("min_input_size") or (3, 0, 0))[1:])
        if enough < min(own) and enough >= max(smallest):
            return (enough, enough)
    return (own[0], own[1])


def stages(module: nn.Module) -> tuple[Stage, ...]:
    """Order a timm model's parameters into stages by its own `group_matcher`, input first.

    Source: timm's `group_parameters`, which its layer-wise learning rates use. The few models without a matcher
    (MetaFormer, PiT) are cut at their outermost modules.
    """
    from timm.models import group_parameters

    if maps_of(module):
        inner = stages(module.get_submodule(INNER))
        return tuple(Stage(one.name, tuple(f"{INNER}.{name}" for name in one.parameters)) for one in inner)
    if not hasattr(module, "group_matcher"):
        return _stages_by_module(module)
    matcher = module.group_matcher(coarse=False)  # type: ignore[operator]
    groups = group_parameters(module, matcher)
    return tuple(Stage(_stage_name(names), tuple(names)) for _, names in sorted(groups.items()))


def feature_size(module: nn.Module) -> int | tuple[FeatureMap, ...]:
    """Return the width C of the pooled features `(N, C)`; some models widen them between the last stage and the head."""
    if maps := maps_of(module):
        return maps
    size: Any = getattr(module, "head_hidden_size", None) or module.num_features
    return int(size)


def no_weight_decay(module: nn.Module) -> frozenset[str]:
    """Return the parameters that the model's authors do not decay, such as position embeddings."""
    if maps_of(module):
        return frozenset(f"{INNER}.{name}" for name in no_weight_decay(module.get_submodule(INNER)))
    named = getattr(module, "no_weight_decay", None)
    patterns = named() if callable(named) else ()
    # timm matches them as file name patterns: XCiT's `pos_embed.*`
    return frozenset(name for name, _ in module.named_parameters() if any(fnmatchcase(name, each) for each in patterns))


def _stages_by_module(module: nn.Module) -> tuple[Stage, ...]:
    """Make a stage of each child, and of each part of a child that is a list; registered in the order of computation.

    Parameters of the model itself, such as position embeddings, belong to the first stage: they are used early.
    """
    from torch import nn

    groups: dict[str, list[str]] = {}
    loose: list[str] = []
    for name, _ in module.named_parameters():
        parts = name.split(".")
        if len(parts) == 1:
            loose.append(name)
            continue
        is_list = isinstance(getattr(module, parts[0]), nn.Sequential | nn.ModuleList)
        groups.setdefault(".".join(parts[: 2 if is_list else 1]), []).append(name)
    first = next(iter(groups))
    groups[first] = loose + groups[first]
    return tuple(Stage(name, tuple(names)) for name, names in groups.items())


def _stage_name(parameters: Sequence[str]) -> str:
    """Name a stage after what its parameters share: `blocks.3` for all of a block, the first module otherwise."""
    owners = [name.split(".")[:-1] or [name] for name in parameters]
    shared: list[str] = []
    for parts in zip(*owners, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared) if shared else ".".join(owners[0])


@dataclass(frozen=True)
class _LocalWeights:
    """A local weights file, and what a `config.json` beside it says about the model."""

    file: Path
    overlay: dict[str, Any]


def _local_weights(request: BackboneRequest, config: dict[str, Any]) -> _LocalWeights:
    path = Path(request.weights).expanduser()
    if path.is_file():
        if path.suffix not in (".safetensors", ".pt", ".pth", ".bin"):
            raise BackboneError(
                f"weights must be a .safetensors, .pt, .pth or .bin file or a folder, but got {path}",
                "save the state dict with safetensors.torch.save_file",
            )
        return _LocalWeights(path.resolve(), {})
    if not path.is_dir():
        raise BackboneError(
            f"the weights of timm/{request.model} do not exist: {path}",
            "use `pretrained`, `none`, or the path of a local weights file or folder",
        )
    file = next((path / name for name in WEIGHT_FILES if (path / name).is_file()), None)
    if file is None:
        raise BackboneError(f"the weights folder {path} has none of {', '.join(WEIGHT_FILES)}", "name the file itself")
    overlay: dict[str, Any] = {}
    if (path / "config.json").is_file():
        overlay = _read_folder_config(path / "config.json", request)
    return _LocalWeights(file.resolve(), overlay)


def _read_folder_config(file: Path, request: BackboneRequest) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError(f"{file} is not readable JSON: {error}", "remove it, or save the model again") from error
    architecture = content.get("architecture") if isinstance(content, dict) else None
    wanted = request.model.split(".")[0]
    if architecture is not None and architecture != wanted:
        raise BackboneError(
            f"the weights in {file.parent} are of timm/{architecture}, but the study asks for timm/{request.model}",
            f"use `name: timm/{architecture}`",
        )
    overlay = content.get("pretrained_cfg", {}) if isinstance(content, dict) else {}
    return {key: value for key, value in overlay.items() if value is not None and key not in ("tag", "file", "url")}


def _has_pretrained(config: dict[str, Any]) -> bool:
    return bool(config.get("hf_hub_id") or config.get("url"))


def _origin(request: BackboneRequest, config: dict[str, Any], source: _LocalWeights | None) -> str | None:
    if request.weights == "none":
        return None
    if source is not None:
        return source.file.name
    return config.get("hf_hub_id") or config.get("url")


def _build(request: BackboneRequest, config: dict[str, Any], file: Path | None, size: tuple[int, int]) -> nn.Module:
    from safetensors import SafetensorError

    arguments: dict[str, Any] = {"num_classes": 0}
    own = tuple((config.get("input_size") or (3, 224, 224))[1:])
    if config.get("fixed_input_size") and size != own:
        arguments["img_size"] = size
    name = request.model
    if request.weights == "pretrained" and file is None and not config.get("custom_load"):
        file = _hub_file(name, config)
    try:
        if file is not None:
            overlay = {**_loadable(config), "file": str(file), "source": "", "custom_load": False}
            with _MissingKeys() as missing:
                model = _create(name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
            if missing.names:
                raise BackboneError(
                    f"the weights {file} lack {len(missing.names)} parameters of timm/{name}, such as {missing.names[0]}",
                    "they belong to another model, or are only a part of one",
                )
        else:
            model = _create(name, pretrained=request.weights == "pretrained", **arguments)
    except BackboneError:
        raise
    except TypeError as error:
        if "img_size" in arguments and "img_size" in str(error):
            raise BackboneError(
                f"timm/{name} takes only images of {own[0]}x{own[1]}, but image_size is {size[0]}",
                "leave image_size out",
            ) from error
        raise
    except (RuntimeError, KeyError, ValueError, AssertionError, OSError, EOFError, SafetensorError) as error:
        where = f"with the weights {file}" if file else f"at {size[0]}x{size[1]}"
        unsafe = "weights_only" in str(error)  # torch's own advice is to load it all the same, which runs what it holds
        raise BackboneError(
            f"timm/{name} cannot be built {where}: "
            + ("it is a pickle that holds more than tensors, and could run code" if unsafe else first_line(error)),
            "get the weights as safetensors" if unsafe else None,
        ) from error
    return _float32(model)


def _create(name: str, **arguments: Any) -> nn.Module:
    """Create a model with layers for stochastic depth where it can have them; autoft sets their rate."""
    import timm

    try:
        return timm.create_model(name, drop_path_rate=DROP_PATH_RATE, **arguments)
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        return timm.create_model(name, **arguments)  # such as VGG, which has no residual branches


def _fetch(request: BackboneRequest, config: dict[str, Any]) -> None:
    """Bring pretrained weights into the local cache; those that are a file, or that a model fetches itself, are left."""
    if request.weights == "pretrained" and not config.get("custom_load"):
        _hub_file(request.model, config)


def _loadable(config: dict[str, Any]) -> dict[str, Any]:
    """Return what timm needs to know of a checkpoint in order to adapt it: its classes, channels and input size."""
    keys = (
        "num_classes",
        "input_size",
        "classifier",
        "first_conv",
        "mean",
        "std",
        "interpolation",
        "crop_pct",
        "crop_mode",
    )
    return {key: config[key] for key in keys if config.get(key) is not None}


def _float32(model: nn.Module) -> nn.Module:
    # Some checkpoints are stored in half precision; master weights are float32, autocast does the rest.
    return model.float()


def _hub_file(model: str, config: dict[str, Any]) -> Path | None:
    """Return the model's weights file from the Hugging Face cache, downloading it where the hub can be reached.

    Returns None for the few models whose weights lie elsewhere; timm downloads those itself.

    Raises:
        BackboneError: The weights are not in the cache and the hub cannot be reached.
    """
    what = f"the pretrained weights of timm/{model}"
    if not config.get("hf_hub_id"):
        require_torch_file(what, config.get("url") or "")
        return None
    repository, _, revision = str(config["hf_hub_id"]).partition("@")
    names = (config["hf_hub_filename"],) if config.get("hf_hub_filename") else WEIGHT_FILES
    file = find_file(repository, *names, what=what, revision=revision or None)
    if file is None:
        raise BackboneError(f"{repository} on the hub has none of {', '.join(names)}", "give `weights: PATH`")
    return file


class _MissingKeys(logging.Handler):
    """Collects the parameters that timm did not find in a checkpoint: it only logs them, where autoft must refuse.

    timm loads with `strict=False` whenever the classifier is dropped, so a file of another model would pass unseen.
    """

    _pattern = re.compile(r"^Missing keys \((?P<names>[^)]*)\)")

    def __init__(self) -> None:
        super().__init__(level=logging.INFO)
        self.names: list[str] = []
        self._logger = logging.getLogger("timm.models._builder")

    def emit(self, record: logging.LogRecord) -> None:
        found = self._pattern.match(record.getMessage())
        if found:
            self.names += found["names"].split(", ")

    def __enter__(self) -> _MissingKeys:
        self._level, self._propagate = self._logger.level, self._logger.propagate
        self._logger.addHandler(self)
        self._logger.setLevel(logging.INFO)
        self._logger.propagate = False
        return self

    def __exit__(self, *exception: object) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._level)
        self._logger.propagate = self._propagate
