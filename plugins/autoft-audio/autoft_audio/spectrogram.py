"""Log-mel spectrograms as a module whose operations every ONNX runtime has: the Fourier transform is a convolution."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LogMel(nn.Module):
    """Turns waveforms into log-mel spectrograms; opset 18's own STFT is missing in many runtimes.

    Frames are centred on multiples of `hop`, with zeros beyond both ends. The filters and the window are those of
    `transformers.audio_utils`, against which it is tested.

    Args:
        rate: Samples a second.
        window: Samples of a frame.
        hop: Samples from frame to frame.
        bands: Mel bands.
        lowest: Frequency where the first band begins, in Hz.
        scale: `htk` or `slaney`; with `slaney`, bands are also normalized to one area, as librosa does.
        floor: Least energy of a band, below which all is the same silence.
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
        scale: str = "htk",
        floor: float = 1e-6,
    ) -> None:
        super().__init__()
        from transformers.audio_utils import mel_filter_bank, window_function

        self.window, self.hop, self.floor = window, hop, floor
        frequencies = window // 2 + 1
        angles = 2 * np.pi * np.outer(np.arange(frequencies), np.arange(window)) / window
        shape = window_function(window, "hann")
        waves = np.concatenate([np.cos(angles), np.sin(angles)]) * shape
        norm = "slaney" if scale == "slaney" else None
        filters = mel_filter_bank(frequencies, bands, lowest, rate / 2, rate, norm=norm, mel_scale=scale)
        # not persistent: they follow from the settings, and weights of timm have no place for them
        self.register_buffer("kernel", torch.from_numpy(waves).float()[:, None], persistent=False)
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """Return the natural logarithm of mel energies `(N, 1 + samples // hop, bands)` of waveforms `(N, samples)`."""
        with torch.autocast(waveform.device.type, enabled=False):  # energies span more than bf16 can tell apart
            padded = F.pad(waveform.float(), (self.window // 2, self.window // 2))[:, None]
            cosines, sines = F.conv1d(padded, self.kernel, stride=self.hop).chunk(2, dim=1)
            energies = (cosines.square() + sines.square()).transpose(1, 2) @ self.filters
            return energies.clamp(min=self.floor).log()

    def count_frames(self, lengths: Tensor) -> Tensor:
        """Return how many frames are centred on sound rather than on padding, `(N,)`."""
        return torch.div(lengths + self.hop - 1, self.hop, rounding_mode="floor")


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
