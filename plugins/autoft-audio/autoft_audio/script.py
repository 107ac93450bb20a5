"""Runs an autoft bundle for audio with onnxruntime, numpy and soxr; soundfile reads what is not plain WAV.

It becomes the `predict.py` of such a bundle, and training reads clips with these same functions. It imports nothing of
autoft or torch; Python 3.10 will do.

    python predict.py clip.wav other.flac --json
"""

from __future__ import annotations

import argparse
import io
import itertools
import sys
import wave
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autoft.runtime.shared import (
    BundleError,
    Contract,
    InputError,
    Model,
    answer_all,
    answer_of,
    check_golden,
    exit_code,
    inside,
    json_answer,
    make_parser,
    parse,
    plain_answer,
    predicted,
    print_check,
    read_bundle,
    safely,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

AudioSource = str | Path | bytes

MOST_VALUES = 1 << 28  # of all channels: an hour and a half of stereo at 24 kHz, 1 GiB as float32
MOST_RATE = 768_000
TAIL = 2  # values behind the samples of a clip that hold how many of them are sound
BASE = 1 << 15


class AudioError(InputError):
    """A file cannot be read as audio, is empty, or too long."""


# --- preprocessing ----------------------------------------------------------------------------------


def read_audio(source: AudioSource) -> tuple[NDArray[np.float32], int]:
    """Read a clip as `(samples,)` in -1..1, the mean of its channels, with its rate.

    soundfile reads it where it is installed. Without, the standard library reads WAV of whole numbers, to the same values.

    Args:
        source: A path, or the bytes of a file.

    Raises:
        AudioError: It is no whole audio file, has no samples, values that are not finite, or too many.
    """
    name = str(source) if isinstance(source, (str, Path)) else "clip"
    try:
        import soundfile
    except ImportError:
        values, rate = _read_wave(source, name)
    else:
        try:
            with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as file:
                _check_size(name, file.frames, file.channels, file.samplerate)
                values, rate = file.read(dtype="float32", always_2d=True), file.samplerate
        except (RuntimeError, OSError, ValueError) as error:  # soundfile's own are RuntimeErrors
            if isinstance(error, AudioError):
                raise
            raise AudioError(f"{name}: is no audio file that can be read ({error})") from error
    if not len(values):
        raise AudioError(f"{name}: holds no samples")
    if not np.isfinite(values).all():
        raise AudioError(f"{name}: has values that are not finite")
    mono = values[:, 0] if values.shape[1] == 1 else values.mean(axis=1, dtype=np.float32)
    return np.ascontiguousarray(mono, dtype=np.float32), int(rate)


def _read_wave(source: AudioSource, name: str) -> tuple[NDArray[np.float32], int]:
    try:
        with wave.open(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as file:
            frames, channels, width, rate = file.getnframes(), file.getnchannels(), file.getsampwidth(), file.getframerate()
            _check_size(name, frames, channels, rate)
            content = file.readframes(frames)
    except (wave.Error, EOFError, OSError) as error:
        hint = "without the package soundfile, only WAV of whole numbers can be"
        raise AudioError(f"{name}: is no audio file that can be read ({error}); {hint}") from error
    content = content[: len(content) // (width * channels) * width * channels]
    if width == 1:  # the only width without a sign
        whole = np.frombuffer(content, np.uint8).astype(np.int32) - 128
    elif width == 3:
        parts = np.frombuffer(content, np.uint8).reshape(-1, 3).astype(np.int32)
        whole = ((parts[:, 0] << 8) | (parts[:, 1] << 16) | (parts[:, 2] << 24)) >> 8
    else:
        whole = np.frombuffer(content, {2: "<i2", 4: "<i4"}[width]).astype(np.int64)
    return (whole / float(1 << (8 * width - 1))).astype(np.float32).reshape(-1, channels), rate


def _check_size(name: str, frames: int, channels: int, rate: int) -> None:
    if not 0 < rate <= MOST_RATE:
        raise AudioError(f"{name}: the rate must be at most {MOST_RATE} Hz, but is {rate}")
    if frames * channels > MOST_VALUES:
        raise AudioError(f"{name}: clips may have {MOST_VALUES} values, but it has {frames * channels}")


def check_preprocessing(preprocessing: Mapping[str, Any]) -> None:
    """Check a declaration of audio preprocessing.

    Args:
        preprocessing: `kind` ("audio"); `rate` in Hz; `samples`, of which each input has so many.

    Raises:
        ValueError: Naming the rule and the value.
    """
    if set(preprocessing) != {"kind", "rate", "samples"} or preprocessing["kind"] != "audio":
        raise ValueError(f"preprocessing: must be kind 'audio', `rate` and `samples`, but got {dict(preprocessing)!r}")
    for name, most in (("rate", MOST_RATE), ("samples", BASE * BASE - 1)):
        value = preprocessing[name]
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
            raise ValueError(f"preprocessing: `{name}` must be a whole number from 1 to {most}, but got {value!r}")


def read_clip(source: AudioSource, preprocessing: Mapping[str, Any]) -> NDArray[np.int16]:
    """Read a clip at a rate and a length: of longer ones the middle, shorter ones with zeros behind.

    Args:
        source: A path, or the bytes of a file.
        preprocessing: As `check_preprocessing` describes it.

    Returns:
        `(samples + 2,)`: 16-bit samples, and how many of them are sound, in two digits of base 2^15.

    Raises:
        AudioError: It cannot be read.
    """
    values, rate = read_audio(source)
    if rate != preprocessing["rate"]:
        try:
            import soxr  # here: clips of the right rate need none
        except ImportError as error:
            raise AudioError(f"{source!s}: has {rate} Hz, not {preprocessing['rate']}: pip install soxr") from error
        values = soxr.resample(values, rate, preprocessing["rate"], quality="HQ")
        if not len(values):
            raise AudioError("the clip is too short to be resampled")
    size = preprocessing["samples"]
    start = max(0, len(values) - size) // 2
    kept = values[start : start + size]
    clip = np.zeros(size + TAIL, np.int16)
    clip[: len(kept)] = np.clip(np.rint(kept * 32768.0), -32768, 32767).astype(np.int16)
    clip[size:] = divmod(len(kept), BASE)
    return clip


def to_inputs(clips: NDArray[np.int16]) -> dict[str, NDArray[Any]]:
    """Return `waveform` (N, samples) float32 and `lengths` (N,) int64 of clips (N, samples + 2)."""
    tail = clips[:, -TAIL:].astype(np.int64)
    waveform = clips[:, :-TAIL].astype(np.float32) / np.float32(32768)
    return {"waveform": np.ascontiguousarray(waveform), "lengths": tail[:, 0] * BASE + tail[:, 1]}


# --- the bundle ---------------------------------------------------------------------------------------


class Bundle:
    """A loaded bundle; make it with `Bundle.load`.

    Attributes:
        folder: Where it lies.
        labels: Names of the outputs, in their order.
        preprocessing: The declaration that `read_clip` follows.
    """

    def __init__(self, contract: Contract, model: Model) -> None:
        self.folder = contract.folder
        self.labels = contract.labels
        self.preprocessing = contract.preprocessing
        self._contract = contract
        self._model = model

    @classmethod
    def load(cls, folder: str | Path, *, threads: int = 0, variant: str = "fp32") -> Bundle:
        """Check a bundle's files against their hashes, then load its model.

        Args:
            folder: The bundle.
            threads: Threads of one inference; 0 leaves the choice to ONNX Runtime.
            variant: Which of its graphs, as autoft.json names them.

        Raises:
            BundleError: A file is missing or altered, or this is no bundle for audio.
        """
        contract = read_bundle(Path(folder), ("label", "labels", "values"), check_preprocessing)
        return cls(contract, Model(contract, ("waveform", "lengths"), threads, variant))

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Return the outputs (N, K) for `waveform` and `lengths` by name."""
        return self._model.run(inputs)

    def vectors(self, sources: Sequence[AudioSource]) -> dict[str, NDArray[Any]]:
        """Return what the model sees and says of a batch of clips, by name. Raises `AudioError`."""
        inputs = self._inputs(sources)
        return {**inputs, **self._model.run(inputs)}

    def outputs(self, sources: Iterable[AudioSource], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Return the logits (N, K) of clips, batch by batch. Raises `AudioError`."""
        rest = iter(sources)
        parts = []
        while batch := list(itertools.islice(rest, batch_size)):
            parts.append(self._model.run(self._inputs(batch))["logits"])
        return np.concatenate(parts) if parts else np.zeros((0, len(self.labels)), np.float32)

    def predict(self, inputs: Iterable[AudioSource], *, batch_size: int = 32) -> list[dict[str, Any]]:
        """Answer for clips; see `answers`. Raises `AudioError` for the first that cannot be read."""
        return predicted(self.answers(inputs, batch_size=batch_size), AudioError)

    def answers(self, inputs: Iterable[AudioSource], *, batch_size: int = 32) -> Iterator[dict[str, Any]]:
        """Answer for clips batch by batch; an unreadable one gives `{"input", "error"}`, in its place."""
        return answer_all(inputs, batch_size, lambda source: read_clip(source, self.preprocessing), self._answer, _shown)

    def _answer(self, clips: list[NDArray[np.int16]]) -> Iterator[dict[str, Any] | InputError]:
        for row in self._model.run(to_inputs(np.stack(clips)))[self._contract.outputs[-1]]:
            try:
                yield answer_of(self._contract, row)
            except InputError as error:
                yield error

    def _inputs(self, sources: Sequence[AudioSource]) -> dict[str, NDArray[Any]]:
        return to_inputs(np.stack([read_clip(source, self.preprocessing) for source in sources]))

    def check(self) -> dict[str, Any]:
        """Replay the golden inputs of the bundle; see `check_golden`. Raises `BundleError` where there are none."""
        return check_golden(self._contract, self._model.run, self._inputs, self.answers, _golden_clip)


def _shown(source: AudioSource) -> str | None:
    return str(source) if isinstance(source, (str, Path)) else None


def _golden_clip(folder: Path, name: Any) -> Path:
    if not isinstance(name, str):
        raise BundleError(f"{folder}: `inputs` in golden.json must be file names, but got {name!r}")
    return inside(folder / "inputs", name)


# --- the command line -----------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer for files, or check the bundle; return the exit code (0 fine, 1 check failed, 2 bad input)."""
    parser = make_parser("Answer for audio clips with this bundle.", __file__)
    parser.add_argument("files", nargs="*", metavar="FILE", help="clips: WAV; with soundfile FLAC, OGG and others too")
    options = parse(parser, arguments, ("files",))
    return safely(lambda: _command(options))


def _command(options: argparse.Namespace) -> int:
    bundle = Bundle.load(options.bundle, variant=options.variant)
    if options.check:
        return print_check(bundle.check())
    unreadable = 0
    width, label_width = max(map(len, options.files)), max(map(len, bundle.labels))
    for answer in bundle.answers(options.files, batch_size=options.batch_size):
        if "error" in answer:
            unreadable += 1
            print(f"error: {answer['error']}", file=sys.stderr)
        else:
            print(json_answer(answer) if options.json else f"{answer['input']:{width}}  {plain_answer(answer, label_width)}")
    return 2 if unreadable else 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
