"""Waveforms as data: reading clips, cutting and padding them to one length, and random variants of them."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoft.errors import BackboneError
from autoft_audio import script

RATE = 16_000
COVERED = 0.995  # share of the clips that a chosen length leaves uncut
STEP = 0.1  # seconds that a chosen length is a multiple of
LONGEST = 30.0  # seconds
NAMES = ("waveform", "lengths")

LOUDER = 6.0  # dB, at most, either way
SNR = (15.0, 40.0)  # dB, of added noise
SHIFT = 0.1  # of the length, at most
MASKS = 2  # of each kind
MASKED_TIME, MASKED_BAND = 0.15, 0.1  # of the sound, and of the frequencies, at most, each


@dataclass(frozen=True)
class AudioPreprocessing:
    """Mono waveforms of one rate and length; implements `autoft.specs.Preprocessing`.

    Attributes:
        rate: Samples a second.
        samples: Of every input; None until `fit` chooses.
        longest: Seconds that `fit` chooses at most.

    Raises:
        BackboneError: A value is out of its range.
    """

    rate: int = RATE
    samples: int | None = None
    longest: float = LONGEST

    def __post_init__(self) -> None:
        try:
            script.check_preprocessing(self.to_dict())
        except ValueError as error:
            raise BackboneError(str(error)) from error

    @property
    def policies(self) -> tuple[str, ...]:
        """Augmentation policies: `light` is gain, noise and shift; `standard` masks times and frequencies too."""
        return ("none", "light", "standard")

    @property
    def ragged(self) -> bool:
        """All clips are decoded to one length."""
        return False

    @property
    def runtime(self) -> Path:
        """The bundle's script for audio."""
        return Path(script.__file__)

    def fit(self, sources: Sequence[script.AudioSource]) -> AudioPreprocessing:
        """Choose the length by some training samples, unless it is set: it leaves 99.5 % whole, up to `longest`."""
        if self.samples is not None or not sources:
            return self
        lengths = sorted(seconds(source) for source in sources)
        wanted = lengths[math.ceil(COVERED * len(lengths)) - 1]
        chosen = max(1, math.ceil(wanted / STEP - 1e-9)) * STEP
        return replace(self, samples=round(min(chosen, self.longest) * self.rate))

    def decode(self, source: script.AudioSource, *, augmented: bool) -> Tensor:
        """Return a clip as `(samples + 2,)` int16: see `script.read_clip`."""
        return torch.from_numpy(script.read_clip(source, self.to_dict()))

    def augment(self, item: Tensor, policy: str, rng: np.random.Generator) -> Tensor:
        """Return a random variant of a clip."""
        if policy == "none":
            return item
        clip = item.numpy()
        size = len(clip) - script.TAIL
        length = int(clip[size]) * script.BASE + int(clip[size + 1])
        sound = clip[:length].astype(np.float32)
        if policy == "standard":
            sound = mask_times(mask_bands(sound, rng), rng)
        sound = add_noise(sound * np.float32(10 ** (rng.uniform(-LOUDER, LOUDER) / 20)), rng)
        # where there is room behind the sound, a later start; otherwise the sound is moved out at either end
        most = int(SHIFT * size)
        moved = int(rng.integers(-min(most, length - 1), most + 1))
        sound = sound[-moved:] if moved < 0 else np.concatenate([np.zeros(moved, np.float32), sound])[:size]
        out = np.zeros_like(clip)
        out[: len(sound)] = np.clip(np.rint(sound), -32768, 32767).astype(np.int16)
        out[size:] = divmod(len(sound), script.BASE)
        return torch.from_numpy(out)

    def inputs(self, batch: Tensor) -> tuple[Tensor, ...]:
        """Return `waveform` (N, samples) float32 and `lengths` (N,) int64, on the batch's device; equal to `to_inputs`."""
        tail = batch[:, -script.TAIL :].long()
        return batch[:, : -script.TAIL].float() / 32768, tail[:, 0] * script.BASE + tail[:, 1]

    def to_dict(self) -> dict[str, Any]:
        """Return the declaration that the bundle's script follows."""
        return {"kind": "audio", "rate": self.rate, "samples": self.samples or round(self.longest * self.rate)}

    def files(self) -> dict[str, str]:
        """Return `preprocessor_config.json`; what the graph computes itself, it does not ask for."""
        config = {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "feature_size": 1,
            "sampling_rate": self.rate,
            "do_normalize": False,
            "padding_side": "right",
            "padding_value": 0.0,
        }
        return {"preprocessor_config.json": json.dumps(config, indent=2) + "\n"}


def seconds(source: script.AudioSource) -> float:
    """Return how long a clip is, by its header. Raises `AudioError`."""
    import soundfile

    try:
        return float(soundfile.info(io.BytesIO(source) if isinstance(source, bytes) else str(source)).duration)
    except (RuntimeError, OSError) as error:
        raise script.AudioError(f"{source!r} cannot be read: {error}") from error


def mask_times(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Silence random stretches: SpecAugment's time masks (arXiv:1904.08779), made where every backbone sees them."""
    out = sound.copy()
    for _ in range(MASKS):
        width = int(rng.uniform(0, MASKED_TIME) * len(out))
        start = int(rng.integers(0, len(out) - width + 1))
        out[start : start + width] = 0
    return out


def mask_bands(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Remove random bands of frequencies: SpecAugment's frequency masks, made on the waveform."""
    spectrum = np.fft.rfft(sound)
    for _ in range(MASKS):
        # on a scale as ears have, so that low frequencies, where the sound is, are not lost at once
        width = rng.uniform(0, MASKED_BAND)
        low = rng.uniform(0, 1 - width)
        begin, end = (int((np.expm1(place * np.log(32)) / 31) * len(spectrum)) for place in (low, low + width))
        spectrum[begin:end] = 0
    return np.fft.irfft(spectrum, len(sound)).astype(np.float32)


def add_noise(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add white noise, some decibels below the sound."""
    level = float(np.sqrt(np.mean(np.square(sound)))) * 10 ** (-rng.uniform(*SNR) / 20)
    noisy: np.ndarray = sound + rng.standard_normal(len(sound), dtype=np.float32) * np.float32(level)
    return noisy


def examples(count: int) -> list[bytes]:
    """Make clips as WAV files: tones of three pitches, some at another rate, of two lengths, the longer first."""
    import soundfile

    made = []
    for number in range(count):
        rate = (RATE, 8000)[number % 2]
        time = np.arange(int(rate * (0.5 - 0.1 * (number % 2)))) / rate
        tone = 0.3 * np.sin(2 * np.pi * (300, 800, 2000)[number % 3] * time)
        noise = 0.02 * np.random.default_rng(number).standard_normal(len(time))
        file = io.BytesIO()
        soundfile.write(file, tone + noise, rate, format="WAV", subtype="PCM_16")
        made.append(file.getvalue())
    return made
