"""Toy plugins: a tiny backbone family, head and data format that train, freeze, resume and export in seconds, offline.

They come in by the ordinary hooks, so this module is also the shortest example of a whole plugin. What the toys for texts
are made of is in `toy_text.py`.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoft.errors import BackboneError, DataError, first_line, nearest
from autoft.hookspecs import hookimpl
from autoft.specs import (
    Adapted,
    Backbone,
    BackboneFamily,
    BackboneRequest,
    Choice,
    DataFormat,
    FeatureMap,
    Head,
    Knob,
    Range,
    RawData,
    Sample,
    Stage,
    Strategy,
    Targets,
)
from autoft.testing import toy_text
from autoft.testing.toy_log import autoft_loggers
from autoft.testing.toy_text import toy_tagged, toy_texts, write_toy_csv, write_toy_tagged

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "autoft_backbones", "autoft_data", "autoft_heads", "autoft_loggers", "autoft_strategies", "load_stripes",
    "paint_png", "resolve", "stages", "suggest", "toy_samples", "toy_tagged", "toy_texts", "write_toy_csv",
    "write_toy_images", "write_toy_tagged",
]  # fmt: skip

IMAGE_SIZE = 16
SMALLEST_SIZE = 8
IMAGE_MODELS = ("convnet", "mlp")
TEXT_MODELS = ("text",)
MODELS = IMAGE_MODELS + TEXT_MODELS
TOY_MAPS = (FeatureMap(12, 2), FeatureMap(16, 4))  # of toy/convnet
PRETRAINED_SEED = 20240229
STRIPES_SUFFIX = ".stripes.json"


# --- backbones --------------------------------------------------------------------------------------


@hookimpl
def autoft_backbones() -> list[BackboneFamily]:
    """Offer two image backbones of some 5,000 parameters, and one for texts."""
    return [
        BackboneFamily(
            name="toy",
            modality=None,
            resolve=resolve,
            models=lambda: MODELS,
            suggest=suggest,
            presets=lambda modality, preset, task: suggest(modality, math.inf)[: 2 if preset == "best" else 1],
            help="tiny models for tests: toy/convnet (images; BatchNorm, dropout), toy/mlp (images; neither), toy/text",
        )
    ]


def suggest(modality: str, max_millions: float) -> tuple[str, ...]:
    """Return the toys for a modality; all of them are small enough."""
    models = {"image": IMAGE_MODELS, "text": TEXT_MODELS}.get(modality, ())
    return tuple(f"toy/{name}" for name in models)


def resolve(request: BackboneRequest) -> Backbone:
    """Turn `convnet`, `mlp` or `text` into a backbone.

    Weights: `none` draws them from torch's generator, `pretrained` from a fixed seed, a path names a safetensors file.

    Raises:
        BackboneError: The model is unknown, its images would be too small, it is asked for what its kind does not have, or
            the weights' file is missing.
    """
    if request.model not in MODELS:
        near = nearest(request.model, MODELS) or MODELS
        raise BackboneError(f"toy has no model {request.model!r}", f"did you mean {', '.join('toy/' + n for n in near)}?")
    local = request.weights not in ("pretrained", "none")
    if local and not Path(request.weights).is_file():
        raise BackboneError(
            f"the weights of toy/{request.model} do not exist: {request.weights}",
            "use `pretrained`, `none`, or the path of a safetensors file",
        )
    describe = _text_backbone if request.model in TEXT_MODELS else _image_backbone
    return describe(request, None if request.weights == "none" else f"autoft toy weights ({Path(request.weights).name})")


def _image_backbone(request: BackboneRequest, citation: str | None) -> Backbone:
    from autoft.images import ImagePreprocessing

    if request.max_length is not None:
        raise BackboneError(f"toy/{request.model} takes images, which have no max_length", "leave max_length out")
    maps = request.features == "maps" and request.model == "convnet"
    side = request.image_size or IMAGE_SIZE
    if side < SMALLEST_SIZE:
        raise BackboneError(f"image_size must be at least {SMALLEST_SIZE} for toy/{request.model}, but got {side}")
    return Backbone(
        name=f"toy/{request.model}",
        modality="image",
        weights=request.weights,
        features="maps" if maps else "pooled",
        inputs=("pixel_values",),
        preprocessing=ImagePreprocessing(
            size=(side, side),
            resize=(side, side) if maps else side,
            interpolation="bilinear",
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
        ),
        build=lambda: _build(request),
        stages=stages,
        feature_size=lambda module: TOY_MAPS if maps else 16,
        licence="apache-2.0",
        citation=citation,
        config={"model_type": "autoft_toy", "architecture": request.model},
        image_size=(side, side),
    )


def _text_backbone(request: BackboneRequest, citation: str | None) -> Backbone:
    if request.image_size is not None:
        raise BackboneError(f"toy/{request.model} takes texts, which have no image_size", "leave image_size out")
    features = "sequence" if request.features == "sequence" else "pooled"
    return Backbone(
        name=f"toy/{request.model}",
        modality="text",
        weights=request.weights,
        features=features,
        inputs=toy_text.INPUTS,
        preprocessing=toy_text.preprocessing(request.max_length, words=features == "sequence"),
        build=lambda: _build(request),
        stages=stages,
        feature_size=lambda module: toy_text.WIDTH,
        licence="apache-2.0",
        citation=citation,
        config={"model_type": "autoft_toy", "architecture": request.model},
    )


def stages(module: nn.Module) -> tuple[Stage, ...]:
    """Take each child that holds parameters as a stage: they are registered in the order of the computation."""
    return tuple(
        Stage(name, tuple(f"{name}.{parameter}" for parameter, _ in child.named_parameters()))
        for name, child in module.named_children()
        if any(True for _ in child.parameters())
    )


def _build(request: BackboneRequest) -> nn.Module:
    import torch

    from autoft.files import load_tensors

    text = partial(toy_text.make_encoder, pooled=request.features != "sequence")
    image = _pyramid if request.features == "maps" else _convnet
    makers: dict[str, Callable[[], nn.Module]] = {"convnet": image, "mlp": _mlp, "text": text}
    make = makers[request.model]
    if request.weights == "none":
        return make()
    with torch.random.fork_rng(devices=()):  # the caller's random numbers must not depend on where weights come from
        torch.manual_seed(PRETRAINED_SEED)
        module = make()
    if request.weights != "pretrained":
        try:
            module.load_state_dict(load_tensors(Path(request.weights))[0])
        except (OSError, ValueError, RuntimeError) as error:
            reason = first_line(error)
            raise BackboneError(f"toy/{request.model} cannot be built with {request.weights}: {reason}") from error
    return module


def _convnet() -> nn.Module:
    """Make four stages of convolution, BatchNorm, ReLU and dropout, then the mean over the image: (N, 16)."""
    from torch import nn

    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv"] = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        layers["norm"] = nn.BatchNorm2d(outputs)
        layers["act"] = nn.ReLU()
        layers["drop"] = nn.Dropout(0.05)
        return nn.Sequential(layers)

    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["stem"] = block(3, 8, 1)
    layers["stage1"] = block(8, 12, 2)
    layers["stage2"] = block(12, 16, 2)
    layers["stage3"] = block(16, 16, 1)
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    return nn.Sequential(layers)


def _pyramid() -> nn.Module:
    """Make the stages of `_convnet`, which give two maps: (N, 12, H/2, W/2) and (N, 16, H/4, W/4)."""
    from torch import nn

    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, child in _convnet().named_children():
                if any(True for _ in child.parameters()):
                    self.add_module(name, child)

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            found = []
            for name, child in self.named_children():
                images = child(images)
                found += [images] if name in ("stage1", "stage3") else []
            return tuple(found)

    return Pyramid()


def _mlp() -> nn.Module:
    """Make three stages of linear layers and LayerNorm over an 8x8 thumbnail: (N, 16); no BatchNorm, no dropout."""
    from torch import nn

    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["thumbnail"] = nn.AdaptiveAvgPool2d(SMALLEST_SIZE)
    layers["flatten"] = nn.Flatten()
    layers["embed"] = nn.Sequential(nn.Linear(3 * SMALLEST_SIZE**2, 24), nn.LayerNorm(24))
    layers["hidden"] = nn.Sequential(nn.Linear(24, 24), nn.GELU(), nn.LayerNorm(24))
    layers["features"] = nn.Sequential(nn.Linear(24, 16), nn.GELU())
    return nn.Sequential(layers)


# --- head -------------------------------------------------------------------------------------------


@hookimpl
def autoft_heads() -> list[Head]:
    """Offer the plainest classification: a linear layer, cross-entropy, accuracy."""
    return [
        Head(
            name="toy-classification",
            modality=None,
            features="pooled",
            describe=_describe,
            encode=_encode,
            build=_build_head,
            loss=_loss,
            activation=lambda outputs: outputs.softmax(dim=-1),
            metrics=_metrics,
            directions={"accuracy": "maximize", "loss": "minimize"},
            default_metric=lambda targets: "accuracy",
            report=lambda outputs, encoded, targets: _metrics(outputs, encoded, targets),
            stratify=list,
            knobs=(
                Knob("dropout", 0.0, Range(0.0, 0.4), "dropout before the output layer", Range(0.0, 0.9)),
                Knob("bias", "yes", None, "whether the output layer has a bias", Choice(("yes", "no"))),
            ),
            help="for tests: one label a sample, by a linear layer",
        )
    ]


def _describe(targets: Sequence[str]) -> Targets:
    counts = Counter(targets)
    if len(counts) < 2:
        raise DataError(f"classification needs at least 2 classes, but the training data has {len(counts)}")
    labels = tuple(sorted(counts))
    return Targets(labels, tuple(counts[label] for label in labels))


def _encode(targets: Sequence[str], described: Targets) -> Tensor:
    import torch

    unknown = sorted(set(targets) - set(described.labels))
    if unknown:
        raise DataError(f"the label {unknown[0]!r} is not among the classes {', '.join(described.labels)}")
    return torch.tensor([described.labels.index(target) for target in targets], dtype=torch.int64)


def _build_head(features: int, targets: Targets, knobs: Mapping[str, Any]) -> nn.Module:
    from torch import nn

    linear = nn.Linear(features, len(targets.labels), bias=knobs["bias"] == "yes")
    return nn.Sequential(nn.Dropout(float(knobs["dropout"])), linear)


def _loss(outputs: Tensor, encoded: Tensor, targets: Targets, knobs: Mapping[str, Any]) -> Tensor:
    from torch.nn import functional as F

    return F.cross_entropy(outputs.float(), encoded)


def _metrics(outputs: Tensor, encoded: Tensor, targets: Targets) -> dict[str, float]:
    from torch.nn import functional as F

    right = (outputs.argmax(dim=-1) == encoded).double().mean()
    return {"accuracy": float(right), "loss": float(F.cross_entropy(outputs.double(), encoded))}


# --- strategy ---------------------------------------------------------------------------------------


@hookimpl
def autoft_strategies() -> list[Strategy]:
    """Offer the plainest strategy: a factor for each channel of each linear and convolutional layer."""
    return [
        Strategy(
            name="toy-scale",
            check=lambda backbone, module: None if _scalable(module) else "it has no linear or convolutional layer",
            apply=_apply_scales,
            merge=_merge_scales,
            files=_scale_files,
            knobs=(Knob("toy_start", 1.0, Range(0.9, 1.1), "what the factors start from", Range(0.1, 10.0)),),
            help="for tests: a trained factor for each channel",
        )
    ]


def _scalable(module: nn.Module) -> list[str]:
    from torch import nn

    kinds = (nn.Linear, nn.Conv2d)
    return [name for name, layer in module.named_modules() if isinstance(layer, kinds)]


def _apply_scales(module: nn.Module, own: tuple[Stage, ...], depth: int, knobs: Mapping[str, Any]) -> Adapted:
    import torch
    from torch import Tensor, nn

    from autoft.freezing import stages_of_adapted

    class Scaled(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer
            weight = layer.weight
            assert isinstance(weight, Tensor)
            self.scale = nn.Parameter(torch.full((len(weight),), float(knobs["toy_start"])))

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.layer(inputs)
            return outputs * (self.scale.view(-1, 1, 1) if outputs.ndim == 4 else self.scale)

    open_ = {name.rpartition(".")[0] for stage in own[depth:] for name in stage.parameters}
    for name in _scalable(module):
        if name in open_:
            module.set_submodule(name, Scaled(module.get_submodule(name)))
    trained = frozenset(name for name, _ in module.named_parameters() if name.endswith(".scale"))
    return Adapted(module, stages_of_adapted(module, own), trained)


def _merge_scales(module: nn.Module) -> nn.Module:
    import torch

    for name, scaled in list(module.named_modules()):
        scale, layer = getattr(scaled, "scale", None), getattr(scaled, "layer", None)
        if scale is None or layer is None:
            continue
        with torch.no_grad():
            layer.weight *= scale.view(-1, *([1] * (layer.weight.ndim - 1)))
            if layer.bias is not None:
                layer.bias *= scale
        module.set_submodule(name, layer)
    return module


def _scale_files(module: nn.Module) -> dict[str, bytes]:
    from safetensors.torch import save

    scales = {name: value.detach().cpu() for name, value in module.state_dict().items() if name.endswith(".scale")}
    return {"adapter.safetensors": save(scales), "adapter.json": b'{"strategy": "toy-scale"}\n'}


# --- data -------------------------------------------------------------------------------------------


@hookimpl
def autoft_data() -> list[DataFormat]:
    """Offer images that are painted from a few numbers in a file."""
    return [
        DataFormat(
            name="toy-stripes",
            modality="image",
            detect=lambda path: path.name.endswith(STRIPES_SUFFIX) and path.is_file(),
            load=load_stripes,
            help='for tests: a .stripes.json file such as {"classes": 3, "per_class": 12, "seed": 0, "size": 16}',
        )
    ]


def load_stripes(path: Path, options: Mapping[str, Any]) -> RawData:
    """Paint the images that a `.stripes.json` file asks for; its fields are the arguments of `toy_samples`.

    Raises:
        DataError: The file is unreadable, or asks for something else.
    """
    try:
        wanted = json.loads(path.read_text(encoding="utf-8"))
        samples = toy_samples(**wanted)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} must hold the arguments of `toy_samples` as JSON: {error}") from error
    digest = hashlib.sha256("".join(f"{sample.content}{sample.target}" for sample in samples).encode())
    return RawData("image", "toy-classification", samples, (), digest.hexdigest(), wanted.get("size", IMAGE_SIZE))


def toy_samples(classes: int = 3, per_class: int = 12, seed: int = 0, size: int = IMAGE_SIZE) -> tuple[Sample, ...]:
    """Paint a learnable data set: stripes whose angle and tint depend on the class, under noise.

    Args:
        classes: Number of classes, labelled `stripes-0`, `stripes-60` ... by their angle in degrees.
        per_class: Images of each.
        seed: Equal seeds give equal images.
        size: Side of the square images in pixels.

    Returns:
        Samples class after class, each with the bytes of a PNG file as its source.
    """
    samples = []
    for number in range(classes):
        label = f"stripes-{round(180 * number / classes)}"
        for index in range(per_class):
            source = paint_png(number, classes, seed=(seed, number, index), size=size)
            content = hashlib.sha256(source).hexdigest()
            samples.append(Sample(f"{label}/{index:03}.png", source, label, content))
    return tuple(samples)


def write_toy_images(
    folder: Path, classes: int = 3, per_class: int = 12, seed: int = 0, size: int = IMAGE_SIZE
) -> tuple[Path, ...]:
    """Write `toy_samples` as PNG files into one folder a class; return the files, class after class."""
    files = []
    for sample in toy_samples(classes, per_class, seed, size):
        files.append(folder / sample.id)
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        files[-1].write_bytes(sample.source)
    return tuple(files)


def paint_png(number: int, classes: int, *, seed: Sequence[int], size: int = IMAGE_SIZE) -> bytes:
    """Paint one image of class `number` of `classes`, and return it as the bytes of a PNG file."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(tuple(seed))
    angle = math.pi * number / classes + rng.uniform(-0.1, 0.1)
    rows, columns = np.mgrid[0:size, 0:size] * (2 * math.pi * 3 / size)  # three periods across
    wave = np.sin(rows * math.sin(angle) + columns * math.cos(angle) + rng.uniform(0, 2 * math.pi))
    shares = 2 * math.pi * (number / classes + np.arange(3) / 3)
    tint = 0.5 + 0.12 * np.cos(shares)  # weak: most of what there is to learn lies in the stripes
    pixels = tint + 0.25 * wave[..., None] + rng.normal(0, 0.08, (size, size, 3))
    file = io.BytesIO()
    Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8)).save(file, "PNG")
    return file.getvalue()
