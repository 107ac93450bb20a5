"""An autoft plugin: torchvision's image classifiers, without their last layer, as the backbone family `torchvision`."""

from operator import attrgetter
from pathlib import Path
from typing import Any

from autoft import hookimpl
from autoft.errors import BackboneError, nearest
from autoft.hub import require_torch_file
from autoft.specs import Backbone, BackboneFamily, BackboneRequest
from autoft.weights import load_weights

AUTOFT_HOOKS = 1
SUGGESTED = {"torchvision/convnext_tiny": 27.8, "torchvision/resnet18": 11.2, "torchvision/mobilenet_v3_small": 1.5}
LEFT_OUT = ("googlenet", "inception_", "squeezenet")  # several answers in training, or no linear layer to take off
ONE_SIZE = ("vit_", "maxvit_")  # positions or windows are made for one size of images


@hookimpl
def autoft_backbones() -> list[BackboneFamily]:
    """Offer torchvision's classifiers that end in a linear layer."""
    return [BackboneFamily("torchvision", "image", resolve, models, suggest, "torchvision's image classifiers")]


def suggest(modality: str, max_millions: float) -> list[str]:
    """Return good models of at most so many million parameters, the best first."""
    return [name for name, millions in SUGGESTED.items() if millions <= max_millions]


def models() -> list[str]:
    """Return the names of all models, without the family's."""
    from torchvision import models

    return [name for name in models.list_models(models) if not name.startswith(LEFT_OUT)]


def resolve(request: BackboneRequest) -> Backbone:
    """Say what a model is, without building it; `pretrained` weights are downloaded when it is built."""
    from torchvision.models import get_model_weights
    from torchvision.models.vision_transformer import Encoder

    from autoft.freezing import stages_by_module
    from autoft.images import ImagePreprocessing

    name = f"torchvision/{request.model}"
    if request.model not in models():
        raise BackboneError(f"there is no {name}", f"the nearest: {', '.join(nearest(request.model, models()))}")
    shown = (weights := get_model_weights(request.model).DEFAULT).transforms()
    (own,), (resize,), smallest = shown.crop_size, shown.resize_size, max(weights.meta["min_size"])
    side, largest = request.image_size or own, own if request.model.startswith(ONE_SIZE) else float("inf")
    if not smallest <= side <= largest:
        raise BackboneError(f"image_size must be between {smallest} and {largest} for {name}, but got {side}")
    mean, std, interpolation = tuple(shown.mean), tuple(shown.std), shown.interpolation.value
    return Backbone(
        name=name, modality="image", weights=request.weights, features="pooled", inputs=("pixel_values",),
        preprocessing=ImagePreprocessing((side, side), round(resize * side / own), interpolation, mean, std),
        build=lambda: build(request, weights), feature_size=attrgetter("num_features"),
        stages=lambda module: stages_by_module(module, open=(Encoder,)),
        licence=weights.meta.get("license") if request.weights == "pretrained" else None,
        citation={"none": None, "pretrained": str(weights)}.get(request.weights, Path(request.weights).name),
        config={"model_type": "torchvision", "architecture": request.model}, image_size=(side, side),
    )  # fmt: skip


def build(request: BackboneRequest, weights: Any) -> Any:
    """Return a new module: images (N, 3, H, W) to what torchvision's last linear layer would be given, (N, C)."""
    from torch import nn
    from torchvision.models import get_model

    name, pretrained = f"torchvision/{request.model}", request.weights == "pretrained"
    if pretrained:
        require_torch_file(f"the pretrained weights of {name}", weights.url)
    module = get_model(request.model, weights=weights if pretrained else None)
    last, layer = [(path, layer) for path, layer in module.named_modules() if isinstance(layer, nn.Linear)][-1]
    module.num_features = layer.in_features
    module.set_submodule(last, nn.Identity())
    if request.weights not in ("pretrained", "none"):
        load_weights(module, request.weights, name, without=[last])
    return module
