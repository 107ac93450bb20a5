"""The family `audio-transformers`: audio encoders of transformers, with their preprocessing inside the graph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoft import hf_models
from autoft.errors import BackboneError, first_line
from autoft.hf_files import quiet
from autoft.specs import Backbone, BackboneRequest, Stage
from autoft_audio.spectrogram import KaldiMel, WhisperMel, standardize
from autoft_audio.waveform import LONGEST, NAMES, RATE, AudioPreprocessing, examples

FAMILY = "audio-transformers"
WAVEFORM_KINDS = ("wav2vec2", "hubert", "wavlm")
WHISPER, AST = "whisper", "audio-spectrogram-transformer"
KINDS = (*WAVEFORM_KINDS, WHISPER, AST)
AUDIOSET = (-4.2677393, 4.5689974)  # mean and deviation that `ASTFeatureExtractor` takes unless told
FILES = ("config.json", "preprocessor_config.json")


class Encoded(hf_models.FeatureModule):
    """A speech encoder that takes waveforms as they are, and gives the mean of its features over the sound.

    Args:
        model: Takes `input_values` and an `attention_mask`, gives `last_hidden_state`.
        normalize: Whether each clip is to have mean 0 and variance 1.
        masked: Whether the model was trained with an attention mask; those that were not take padding for silence.
    """

    def __init__(self, model: nn.Module, *, normalize: bool, masked: bool) -> None:
        super().__init__(model)
        self.normalize = normalize
        self.masked = masked

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Return features `(N, C)` of waveforms `(N, samples)`, of which `lengths` (N,) samples are sound."""
        sound = torch.arange(waveform.shape[1], device=lengths.device) < lengths[:, None]
        values = standardize(waveform[..., None], sound)[..., 0] if self.normalize else waveform
        hidden: Tensor = self.model(values, attention_mask=sound.long() if self.masked else None).last_hidden_state.float()
        kept = torch.arange(hidden.shape[1], device=lengths.device) < self._count_frames(lengths)[:, None]
        weights = kept[..., None].to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1.0)

    def _count_frames(self, lengths: Tensor) -> Tensor:
        config: Any = self.model.config
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
        return lengths.clamp(min=1)


class WhisperEncoded(hf_models.FeatureModule):
    """The encoder of Whisper with its spectrogram, which gives the mean of its features over the whole window.

    So does `WhisperForAudioClassification`: the model takes padding for silence. Nothing behind the encoder then asks for
    the lengths, and what its frozen stages give can be stored.

    Args:
        model: Takes log-mel `(N, bands, T)` of one T, gives `last_hidden_state`.
        mel: Makes them.
    """

    def __init__(self, model: nn.Module, mel: WhisperMel) -> None:
        super().__init__(model)
        self.mel = mel

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Return features `(N, C)` of waveforms `(N, samples)`, of which `lengths` (N,) samples are sound."""
        sound = torch.arange(waveform.shape[1], device=lengths.device) < lengths[:, None]
        features: Tensor = self.model(self.mel(waveform * sound.to(waveform.dtype))).last_hidden_state.float().mean(1)
        return features


class AstEncoded(hf_models.FeatureModule):
    """An audio spectrogram transformer with its filter banks, which gives the mean of its two tokens for the whole clip.

    Args:
        model: Takes filter banks `(N, T, bands)` of one T, gives `pooler_output`.
        mel: Makes them.
    """

    def __init__(self, model: nn.Module, mel: KaldiMel) -> None:
        super().__init__(model)
        self.mel = mel

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Return features `(N, C)` of waveforms `(N, samples)`, of which `lengths` (N,) samples are sound."""
        features: Tensor = self.model(self.mel(waveform, lengths)).pooler_output.float()
        return features


@dataclass(frozen=True)
class _Source:
    """A model's settings, and where they are from."""

    name: str
    origin: str
    config: Mapping[str, Any]
    extractor: Mapping[str, Any]


def resolve(request: BackboneRequest) -> Backbone:
    """Turn a local folder or a hub id into a backbone, reading its settings alone.

    Raises:
        BackboneError: It is no encoder of a kind that is known, or not to be had.
    """
    if request.features != "pooled":
        raise BackboneError(f"{FAMILY} gives pooled features, but the task needs {request.features}", "choose another task")
    if request.max_length is not None or request.image_size is not None:
        raise BackboneError(f"{FAMILY}/{request.model} takes audio, which has no max_length or image_size", "leave it out")
    if request.weights not in ("pretrained", "none"):
        raise BackboneError(f"{FAMILY} takes weights from the model's folder, but got {request.weights}", "name the folder")
    source = _read(request)
    kind = source.config.get("model_type")
    if kind not in KINDS:
        raise BackboneError(
            f"{FAMILY} knows {', '.join(KINDS)}, but {source.name} is of the type {kind!r}",
            "`audio-timm/NAME` takes models of timm",
        )
    rate = source.extractor.get("sampling_rate", RATE)
    return Backbone(
        name=source.name,
        modality="audio",
        weights=request.weights,
        features="pooled",
        inputs=NAMES,
        preprocessing=AudioPreprocessing(rate=rate, longest=_window(source) / rate if kind in (WHISPER, AST) else LONGEST),
        build=lambda: _build(request, source),
        stages=_stages,
        feature_size=_feature_size,
        citation=source.origin if request.weights == "pretrained" else None,
        config={**source.config, "architectures": None},
        examples=examples,
    )


def _read(request: BackboneRequest) -> _Source:
    from transformers.utils.hub import cached_file

    name = f"{FAMILY}/{request.model}"
    folder = Path(request.model).expanduser()
    here = str(folder.resolve()) if folder.is_dir() else request.model
    contents = []
    for file in FILES:
        try:
            found = cached_file(here, file)
            contents.append(json.loads(Path(str(found)).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise BackboneError(
                f"{name} must have a readable {file}: {first_line(error)}", "name a folder as save_pretrained writes it"
            ) from error
    full = f"{FAMILY}/{here}" if folder.is_dir() else name
    return _Source(full, folder.name if folder.is_dir() else request.model, contents[0], contents[1])


def _build(request: BackboneRequest, source: _Source) -> nn.Module:
    """Return a new module. Raises `BackboneError` where the weights are missing or of another model."""
    from transformers import AutoConfig, AutoModel

    content = dict(source.config)
    kind = content["model_type"]
    # a frame that is masked at random has no place in a graph, and autoft has its own augmentation
    content |= {"apply_spec_augment": False, "encoder_layerdrop" if kind == WHISPER else "layerdrop": 0.0}
    config = AutoConfig.for_model(content.pop("model_type"), **content)
    where = source.name.removeprefix(f"{FAMILY}/")
    try:
        with quiet():
            if request.weights == "none":
                model = AutoModel.from_config(config, attn_implementation="eager")  # type: ignore[no-untyped-call]
                missing: list[str] = []
            else:
                model, info = AutoModel.from_pretrained(
                    where, config=config, use_safetensors=True, output_loading_info=True, attn_implementation="eager"
                )
                missing = sorted(info["missing_keys"])
            if kind == WHISPER:
                model, missing = model.encoder, [name.removeprefix("encoder.") for name in missing]
            module = _with_preprocessing(model.float(), source)
            hf_models.settle(module, _example(), config)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise BackboneError(f"{source.name} cannot be built: {first_line(error)}", "name another model") from error
    trained = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    lacking = [name for name in missing if f"model.{name}" in trained]
    if lacking:
        raise BackboneError(f"the weights of {source.name} lack {len(lacking)} parameters, such as {lacking[0]}")
    return module.train()


def _with_preprocessing(model: nn.Module, source: _Source) -> hf_models.FeatureModule:
    """Return the module that takes waveforms, as the extractor's settings ask."""
    config: Any = model.config
    extractor = source.extractor
    rate = extractor.get("sampling_rate", RATE)
    if config.model_type == WHISPER:
        hop, window = _hop(source), extractor.get("n_fft", 400)
        samples = _window(source)
        return WhisperEncoded(model, WhisperMel(rate, bands=config.num_mel_bins, samples=samples, window=window, hop=hop))
    if config.model_type == AST:
        mean, deviation = extractor.get("mean", AUDIOSET[0]), extractor.get("std", AUDIOSET[1])
        if not extractor.get("do_normalize", True):
            mean, deviation = 0.0, 0.5
        mel = KaldiMel(rate, bands=config.num_mel_bins, frames=config.max_length, mean=mean, deviation=deviation)
        return AstEncoded(model, mel)
    return Encoded(
        model,
        normalize=bool(extractor.get("do_normalize", True)),
        masked=bool(extractor.get("return_attention_mask", False)),
    )


def _window(source: _Source) -> int:
    """Return how many samples a model of one length sees, by its positions, which weights of it are made for."""
    rate = int(source.extractor.get("sampling_rate", RATE))
    if source.config["model_type"] == WHISPER:
        return int(2 * source.config.get("max_source_positions", 1500) * _hop(source))
    frames = int(source.config.get("max_length", 1024))
    return int(0.025 * rate) + (frames - 1) * int(0.01 * rate)


def _hop(source: _Source) -> int:
    return int(source.extractor.get("hop_length", 160))


def _example() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, RATE // 2, generator=generator) * 0.1, torch.tensor([RATE // 2, RATE // 3])


def _stages(module: nn.Module) -> tuple[Stage, ...]:
    assert isinstance(module, hf_models.FeatureModule)  # `_build` made it
    return module.stages


def _feature_size(module: nn.Module) -> int:
    assert isinstance(module, hf_models.FeatureModule)
    return module.feature_size
