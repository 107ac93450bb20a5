"""Log-mel spectrograms as a module whose operations every ONNX runtime has: the Fourier transform is a convolution."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

KALDI_FLOOR = 1.192092955078125e-07  # float32's step above 1
PREEMPHASIS = 0.97


class LogMel(nn.Module):
    """Turns waveforms into log-mel spectrograms; opset 18's own STFT is missing in many runtimes.

    Frames are centred on multiples of `hop`, with zeros beyond both ends, unless they are to begin there. The filters and
    the window are those of `transformers.audio_utils`, against which it is tested.

    Args:
        rate: Samples a second.
        window: Samples of a frame.
        hop: Samples from frame to frame.
        bands: Mel bands.
        lowest: Frequency where the first band begins, in Hz.
        highest: Frequency where the last band ends, in Hz; by default half the rate.
        scale: `htk` or `slaney`; with `slaney`, bands are also normalized to one area, as librosa does.
        floor: Least energy of a band, below which all is the same silence.
        kaldi: Kaldi's filters, window, transform of a power of two, pre-emphasis and no constant part; `scale` has no say.
        centred: Whether frames are centred on multiples of `hop`, or begin there and are whole.
    """

    kernel: Tensor
    filters: Tensor

    def __init__(
        self,
        rate: int,
        *,
        window: int = 400,
        hop: int = 160,
        bands: int = 64,
        lowest: float = 20.0,
        highest: float | None = None,
        scale: str = "htk",
        floor: float = 1e-6,
        kaldi: bool = False,
        centred: bool = True,
    ) -> None:
        super().__init__()
        from transformers.audio_utils import mel_filter_bank, window_function

        self.window, self.hop, self.floor, self.centred = window, hop, floor, centred
        size = 1 << (window - 1).bit_length() if kaldi else window
        frequencies = size // 2 + 1
        angles = 2 * np.pi * np.outer(np.arange(frequencies), np.arange(window)) / size
        shape = window_function(window, "hann", periodic=not kaldi)
        waves = np.concatenate([np.cos(angles), np.sin(angles)]) * shape
        if kaldi:
            waves = waves @ _kaldi_frame(window)
        filters = mel_filter_bank(
            frequencies,
            bands,
            lowest,
            highest or rate / 2,
            rate,
            norm="slaney" if scale == "slaney" and not kaldi else None,
            mel_scale="kaldi" if kaldi else scale,
            triangularize_in_mel_space=kaldi,
        )
        # not persistent: they follow from the settings, and weights of timm have no place for them
        self.register_buffer("kernel", torch.from_numpy(waves).float()[:, None], persistent=False)
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """Return the natural logarithm of mel energies `(N, T, bands)` of waveforms `(N, samples)`.

        T is `1 + samples // hop`, or of frames that are whole `1 + (samples - window) // hop`.
        """
        with torch.autocast(waveform.device.type, enabled=False):  # energies span more than bf16 can tell apart
            margin = self.window // 2 if self.centred else 0
            padded = F.pad(waveform.float(), (margin, margin))[:, None]
            cosines, sines = F.conv1d(padded, self.kernel, stride=self.hop).chunk(2, dim=1)
            energies = (cosines.square() + sines.square()).transpose(1, 2) @ self.filters
            return energies.clamp(min=self.floor).log()

    def count_frames(self, lengths: Tensor) -> Tensor:
        """Return how many frames are centred on sound rather than on padding, `(N,)`."""
        return torch.div(lengths + self.hop - 1, self.hop, rounding_mode="floor")


def _kaldi_frame(window: int) -> np.ndarray:
    """Return the matrix that takes from a frame its mean, and then of each sample most of the one before."""
    centre = np.eye(window) - 1 / window
    emphasis = np.eye(window) - PREEMPHASIS * np.eye(window, k=-1)
    emphasis[0, 0] = 1 - PREEMPHASIS  # the first one has none before it but itself
    return np.asarray(emphasis @ centre)


def standardize(frames: Tensor, mask: Tensor) -> Tensor:
    """Return frames of mean 0 and variance 1 over the sound of each clip, and 0 where there is padding.

    Args:
        frames: `(N, T, ...)`.
        mask: `(N, T)`, 1 where there is sound.
    """
    kept = mask[:, :, None].to(frames.dtype)
    count = kept.sum(dim=(1, 2), keepdim=True).clamp(min=1) * frames.shape[2]
    mean = (frames * kept).sum(dim=(1, 2), keepdim=True) / count
    spread = ((frames - mean).square() * kept).sum(dim=(1, 2), keepdim=True) / count
    return (frames - mean) / (spread + 1e-5).sqrt() * kept


class WhisperMel(nn.Module):
    """Makes what Whisper's encoder takes, as transformers' `WhisperFeatureExtractor` does: log-mel, cut 8 below its peak.

    Args:
        rate: Samples a second.
        bands: Mel bands.
        samples: Of the encoder's window; shorter sound is filled with zeros, of longer the beginning is taken.
        window: Samples of a frame.
        hop: Samples from frame to frame.
    """

    def __init__(self, rate: int, *, bands: int, samples: int, window: int, hop: int) -> None:
        super().__init__()
        self.samples, self.margin = samples, window // 2
        self.mel = LogMel(
            rate, window=window, hop=hop, bands=bands, lowest=0.0, highest=8000.0, scale="slaney", floor=1e-10, centred=False
        )

    def forward(self, waveform: Tensor) -> Tensor:
        """Return `(N, bands, samples // hop)` of waveforms `(N, any)`."""
        whole = F.pad(waveform.float()[:, : self.samples], (0, max(0, self.samples - waveform.shape[1])))
        frames = self.mel(F.pad(whole[:, None], (self.margin, self.margin), mode="reflect")[:, 0])[:, :-1] / math.log(10)
        loudest = frames.amax(dim=(1, 2), keepdim=True)
        return (torch.maximum(frames, loudest - 8.0).transpose(1, 2) + 4.0) / 4.0


class KaldiMel(nn.Module):
    """Makes what AST takes, as transformers' `ASTFeatureExtractor` does: Kaldi's filter banks of whole frames.

    From each frame its mean is taken, then 0.97 of the sample before; both are linear, and so part of the convolution.
    Only the sound's own frames count; behind them zeros follow, and all is normalized.

    Args:
        rate: Samples a second.
        bands: Mel bands.
        frames: How many there are; shorter sound is filled, of longer the beginning is taken.
        mean: Of the data that the model was trained on; 0 with a `deviation` of 0.5 leaves all as it is.
        deviation: Of the same.
    """

    def __init__(self, rate: int, *, bands: int, frames: int, mean: float, deviation: float) -> None:
        super().__init__()
        self.mel = LogMel(
            rate,
            window=int(0.025 * rate),
            hop=int(0.01 * rate),
            bands=bands,
            floor=KALDI_FLOOR,
            kaldi=True,
            centred=False,
        )
        self.frames, self.mean, self.deviation = frames, mean, deviation

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Return `(N, frames, bands)` of waveforms `(N, samples)`, of which `lengths` (N,) samples are sound."""
        window, hop = self.mel.window, self.mel.hop
        wanted = window + (self.frames - 1) * hop
        whole = F.pad(waveform.float()[:, :wanted], (0, max(0, wanted - waveform.shape[1])))
        count = torch.div(lengths - window, hop, rounding_mode="floor") + 1
        sound = torch.arange(self.frames, device=lengths.device) < count[:, None]
        frames = torch.where(sound[..., None], self.mel(whole), torch.zeros((), device=lengths.device))
        return (frames - self.mean) / (2 * self.deviation)
