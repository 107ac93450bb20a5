"""An autoft plugin for audio classification: clips as data, and backbones that take waveforms."""

from __future__ import annotations

from pathlib import Path

from autoft import hookimpl
from autoft.specs import BackboneFamily, DataFormat
from autoft_audio import clips, on_spectrograms, speech

SCRIPT = Path(__file__).parent / "script.py"


@hookimpl
def autoft_data() -> list[DataFormat]:
    """Offer `audio-folder`: clips in a folder for each class, or beside a `metadata.csv`."""
    return [
        DataFormat(
            name="audio-folder",
            modality="audio",
            detect=clips.detect,
            load=clips.load,
            options=("label", "group"),
            before=("table",),
            help="A folder of WAV, FLAC or OGG clips for each class, or clips beside a metadata.csv.",
        )
    ]


@hookimpl
def autoft_backbones() -> list[BackboneFamily]:
    """Offer timm's models on spectrograms, and transformers' audio encoders."""
    return [
        BackboneFamily(
            name="audio-timm",
            modality="audio",
            resolve=on_spectrograms.resolve,
            models=on_spectrograms.models,
            suggest=lambda modality, max_millions: on_spectrograms.suggest(modality, max_millions),
            help="timm's models on log-mel spectrograms that the graph computes: audio-timm/resnet18, ...",
            runtimes={"audio": SCRIPT},
        ),
        BackboneFamily(
            name="audio-transformers",
            modality="audio",
            resolve=speech.resolve,
            models=lambda: (),
            suggest=lambda modality, max_millions: (),
            help="encoders of transformers (wav2vec2, HuBERT, WavLM, Whisper, AST) by local folder or hub id.",
        ),
    ]
