"""The `timm` backbone family: which of timm's models are suggested, and for which preset.

How a name becomes a backbone is for `autoft/timm_models.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from autoft.hookspecs import hookimpl
from autoft.presets import Member, members_of
from autoft.specs import BackboneFamily
from autoft.timm_models import models, resolve

# Name and size in millions of parameters without the classifier; the best known trade first.
SUGGESTIONS: tuple[tuple[str, float], ...] = (
    ("timm/convnext_tiny.in12k_ft_in1k", 27.8),
    ("timm/resnet18.a1_in1k", 11.2),
    ("timm/mobilenetv4_conv_small.e2400_r224_in1k", 2.5),
)
# The strongest come first in each preset. Licences allow commercial use: ConvNeXt V2 (CC-BY-NC) and DINOv3 are left out.
PRESETS: tuple[Member, ...] = (
    Member(
        "timm/convnext_base.fb_in22k_ft_in1k", 87.6, "apache-2.0", ("best",),
        "convolutions, pretrained on 14 million images: strong on most data, takes any size",
    ),
    Member(
        "timm/vit_base_patch16_clip_224.laion2b_ft_in12k_in1k", 85.8, "apache-2.0", ("best",),
        "a transformer, pretrained on images with captions: strong on data unlike ImageNet",
    ),
    Member(
        "timm/swin_base_patch4_window7_224.ms_in22k_ft_in1k", 86.7, "mit", ("best",),
        "a transformer with windows: good at detail, a third way beside the other two",
    ),
    Member(
        "timm/convnext_tiny.in12k_ft_in1k", 27.8, "apache-2.0", ("balanced", "best"),
        "the best known trade of quality for time; small data may need no more",
    ),
    Member(
        "timm/vit_small_patch16_224.augreg_in21k_ft_in1k", 21.7, "apache-2.0", ("balanced",),
        "a transformer of the same cost, whose frozen stages are cheap to reuse",
    ),
    Member(
        "timm/resnet50.a1_in1k", 23.5, "apache-2.0", ("balanced",),
        "runs everywhere, and quantizes well",
    ),
    Member(
        "timm/resnet18.a1_in1k", 11.2, "apache-2.0", ("fast",),
        "fast on every processor, and robust",
    ),
    Member(
        "timm/mobilenetv4_conv_small.e2400_r224_in1k", 2.5, "apache-2.0", ("fast",),
        "the smallest, made for phones",
    ),
)  # fmt: skip


@hookimpl
def autoft_backbones() -> list[BackboneFamily]:
    """Offer every timm model as an image backbone."""
    return [
        BackboneFamily(
            name="timm",
            modality="image",
            resolve=resolve,
            models=models,
            suggest=lambda modality, max_millions: suggest(max_millions),
            help="image models of pytorch-image-models, by name: timm/resnet18, timm/vit_tiny_patch16_224, ...",
            presets=lambda modality, preset, task: members_of(PRESETS, preset),
        )
    ]


def suggest(max_millions: float) -> Sequence[str]:
    """Return suggested backbones of at most `max_millions` million parameters, best first."""
    return [name for name, millions in SUGGESTIONS if millions <= max_millions]
