"""The family `audio-timm`: timm's image models on log-mel spectrograms, which are computed inside the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoft import timm_models
from autoft.errors import BackboneError
from autoft.specs import Backbone, BackboneRequest, Stage
from autoft_audio.spectrogram import LogMel, standardize
from autoft_audio.waveform import NAMES, AudioPreprocessing, examples

FAMILY = "audio-timm"
SUGGESTIONS = (("resnet18.a1_in1k", 11.2), ("mobilenetv4_conv_small.e2400_r224_in1k", 2.5))  # millions of parameters
OWNER = "model."


class OnSpectrograms(nn.Module):
    """A model of images that is given waveforms.

    Args:
        model: Takes `(N, 3, H, W)`, gives pooled features `(N, C)`.
        rate: Samples a second.
        size: Height and width that spectrograms are resized to, for models of one size; None as they come.
    """

    def __init__(self, model: nn.Module, rate: int, size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.mel = LogMel(rate)
        self.model = model
        self.size = size

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Return pooled features `(N, C)` of waveforms `(N, samples)`, of which `lengths` (N,) samples are sound."""
        frames = self.mel(waveform)
        mask = torch.arange(frames.shape[1], device=lengths.device) < self.mel.count_frames(lengths)[:, None]
        pictures = standardize(frames, mask).transpose(1, 2)[:, None]
        if self.size is not None:
            pictures = F.interpolate(pictures, size=self.size, mode="bilinear", align_corners=False)
        features: Tensor = self.model(pictures.expand(-1, 3, -1, -1))
        return features


def models() -> list[str]:
    """Return the names of all timm models."""
    return timm_models.models()


def suggest(modality: str, max_millions: float) -> Sequence[str]:
    """Return suggested backbones by full name, best first."""
    return [f"{FAMILY}/{name}" for name, millions in SUGGESTIONS if modality == "audio" and millions <= max_millions]


def resolve(request: BackboneRequest) -> Backbone:
    """Turn a timm model's name into a backbone for audio.

    Raises:
        BackboneError: timm has no such model or weights, or the features are not pooled.
    """
    if request.features != "pooled":
        raise BackboneError(f"{FAMILY} gives pooled features, but the task needs {request.features}", "choose another task")
    if request.max_length is not None:
        raise BackboneError(f"{FAMILY}/{request.model} takes audio, which has no max_length", "leave max_length out")
    inner = timm_models.resolve(replace(request, typical_size=None))
    fixed = bool(_config(request.model).get("fixed_input_size"))
    size = inner.image_size if fixed or request.image_size is not None else None
    preprocessing = AudioPreprocessing()
    return replace(
        inner,
        name=f"{FAMILY}/{request.model}",
        modality="audio",
        inputs=NAMES,
        preprocessing=preprocessing,
        build=lambda: OnSpectrograms(inner.build(), preprocessing.rate, size),
        stages=_stages,
        feature_size=lambda module: timm_models.feature_size(_inner(module)),
        no_weight_decay=lambda module: frozenset(OWNER + name for name in timm_models.no_weight_decay(_inner(module))),
        config={"model_type": "autoft_audio_timm", "architecture": request.model.split(".")[0]},
        image_size=size,
        examples=examples,
    )


def _stages(module: nn.Module) -> tuple[Stage, ...]:
    """Return the image model's stages: the spectrogram has nothing to train."""
    return tuple(
        Stage(stage.name, tuple(OWNER + name for name in stage.parameters)) for stage in timm_models.stages(_inner(module))
    )


def _inner(module: nn.Module) -> nn.Module:
    return module.get_submodule("model")


@lru_cache(maxsize=64)
def _config(model: str) -> dict[str, Any]:
    import timm

    found = timm.get_pretrained_cfg(model)
    return dict(found.to_dict()) if found is not None else {}  # type: ignore[no-untyped-call]
