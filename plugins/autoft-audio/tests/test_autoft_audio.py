"""autoft-audio on tones: reading, spectrograms, families by the conformance kit, and a whole search to `predict.py`."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path
from typing import Any

import autoft_audio
import numpy as np
import pytest
import soundfile
import torch
from autoft_audio import clips, on_spectrograms, script, speech
from autoft_audio.spectrogram import KaldiMel, LogMel, WhisperMel, standardize
from autoft_audio.waveform import AudioPreprocessing, examples, mask_bands, mask_times
from torch import Tensor, nn
from torch.nn import functional as F

from autoft.builtin.heads import autoft_heads
from autoft.errors import BackboneError, DataError
from autoft.specs import Backbone, BackboneRequest
from autoft.testing.checks import run_checks

CLASSIFICATION = next(head for head in autoft_heads() if head.name == "classification")
PITCHES = {"low": 300, "mid": 900, "high": 2500}
RATE = 16_000


def tone(pitch: float, seconds: float = 0.3, rate: int = RATE, seed: int = 0) -> np.ndarray:
    time = np.arange(int(seconds * rate)) / rate
    return 0.3 * np.sin(2 * np.pi * pitch * time) + 0.02 * np.random.default_rng(seed).standard_normal(len(time))


def wav(values: np.ndarray, rate: int = RATE, subtype: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, values, rate, format="WAV", subtype=subtype)
    return file.getvalue()


def write_tones(root: Path, each: int = 8) -> Path:
    for label, pitch in PITCHES.items():
        (root / label).mkdir(parents=True)
        for number in range(each):
            rate = (RATE, 8000, 22_050)[number % 3]
            values = tone(pitch * (1 + 0.02 * number), 0.3 + 0.02 * (number % 2), rate, number)
            soundfile.write(root / label / f"{number}.{'flac' if number % 4 == 0 else 'wav'}", values, rate)
    return root


@pytest.fixture
def tones(tmp_path: Path) -> Path:
    return write_tones(tmp_path / "tones", 4)


# --- reading --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32"])
def test_wav_reads_the_same_without_soundfile(subtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = wav(np.stack([tone(300), tone(700)], axis=1), subtype=subtype)
    wanted, rate = script.read_audio(file)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    found, again = script.read_audio(file)
    assert again == rate
    assert np.array_equal(found, wanted)
    assert wanted.std() > 0.1


def test_other_than_wav_asks_for_soundfile(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    soundfile.write(file, tone(300), RATE, format="FLAC")
    assert len(script.read_audio(file.getvalue())[0]) == int(0.3 * RATE)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(script.AudioError, match="without the package soundfile"):
        script.read_audio(file.getvalue())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no audio", "no audio file"),
        (wav(np.zeros(0)), "no samples"),
        (wav(np.array([0.0, np.nan]), subtype="FLOAT"), "not finite"),
    ],
    ids=["no audio", "empty", "not finite"],
)
def test_what_is_no_sound_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(script.AudioError, match=message):
        script.read_audio(content)


def test_clip_of_another_rate_is_resampled_to_the_same_tone() -> None:
    declared = {"kind": "audio", "rate": RATE, "samples": 4000}
    loud = [int(np.abs(np.fft.rfft(script.read_clip(wav(tone(900, 0.25, rate), rate), declared)[:4000])).argmax())
            for rate in (8000, RATE, 44_100)]  # fmt: skip
    assert loud == [225, 225, 225]  # of bins of 4 Hz
    slow = {**declared, "rate": 8000, "samples": 2000}
    assert np.abs(np.fft.rfft(script.read_clip(wav(tone(900, 0.25)), slow)[:2000])).argmax() == 225


def test_long_clip_gives_its_middle_and_short_one_is_padded() -> None:
    ramp = wav(np.arange(100) / 100)
    middle = script.read_clip(ramp, {"kind": "audio", "rate": RATE, "samples": 10})
    assert np.allclose(middle[:10] / 32768, np.arange(45, 55) / 100, atol=1e-3)
    padded = script.read_clip(ramp, {"kind": "audio", "rate": RATE, "samples": 40_000})
    inputs = script.to_inputs(np.stack([padded]))
    assert inputs["lengths"].tolist() == [100]
    assert not inputs["waveform"][0, 100:].any()


def test_training_and_bundle_see_the_same_tensors() -> None:
    chosen = AudioPreprocessing().fit(examples(6))
    assert chosen.samples == 8000  # the longest is 0.5 s
    decoded = torch.stack([chosen.decode(source, augmented=False) for source in examples(6)])
    ours = chosen.inputs(decoded)
    theirs = script.to_inputs(decoded.numpy())
    assert torch.equal(ours[0], torch.from_numpy(theirs["waveform"]))
    assert ours[1].tolist() == theirs["lengths"].tolist() == [8000, 6400] * 3


def test_declaration_out_of_range_is_refused() -> None:
    with pytest.raises(BackboneError, match="`rate` must be a whole number from 1"):
        AudioPreprocessing(rate=0)
    with pytest.raises(ValueError, match="must be kind 'audio'"):
        script.check_preprocessing({"kind": "image"})


# --- augmentation ---------------------------------------------------------------------------------------


def test_variants_follow_from_the_generator_and_keep_the_declaration() -> None:
    chosen = AudioPreprocessing(samples=8000)
    item = chosen.decode(wav(tone(900)), augmented=True)
    before = item.clone()
    for policy in ("light", "standard"):
        one, same, other = (chosen.augment(item, policy, np.random.default_rng(seed)) for seed in (1, 1, 2))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)
        assert one.shape == item.shape
        waveform, lengths = chosen.inputs(one[None])
        assert 0 < int(lengths[0]) <= 8000
        assert not waveform[0, int(lengths[0]) :].any()
    assert torch.equal(item, before)
    assert torch.equal(chosen.augment(item, "none", np.random.default_rng(0)), item)


def test_masks_silence_a_stretch_and_a_band() -> None:
    noise = np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    silent = (mask_times(noise, np.random.default_rng(1)) == 0).mean()
    assert 0.01 < silent <= 0.3
    spectrum = np.abs(np.fft.rfft(mask_bands(noise, np.random.default_rng(1))))
    assert 0.001 < (spectrum < 1e-2).mean() < 0.6
    assert (np.abs(np.fft.rfft(noise)) < 1e-2).mean() < 0.001  # what was not masked has every frequency


# --- spectrograms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["htk", "slaney"])
def test_spectrogram_is_that_of_transformers(scale: str) -> None:
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    sound = tone(900).astype(np.float32)
    norm = "slaney" if scale == "slaney" else None
    filters = mel_filter_bank(201, 64, 20.0, 8000, RATE, norm=norm, mel_scale=scale)
    wanted = spectrogram(
        sound, window_function(400, "hann"), 400, 160, power=2.0, center=True, pad_mode="constant",
        mel_filters=filters, mel_floor=1e-6, log_mel="log",
    ).T  # fmt: skip
    found = LogMel(RATE, scale=scale)(torch.from_numpy(sound)[None])[0].numpy()
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < 1e-2
    other = LogMel(RATE, scale="htk" if scale == "slaney" else "slaney")(torch.from_numpy(sound)[None])[0].numpy()
    assert np.abs(other - wanted).max() > 1


@pytest.mark.parametrize("seconds", [0.3, 0.5])
def test_whispers_spectrogram_is_that_of_its_extractor(seconds: float) -> None:
    from transformers import WhisperFeatureExtractor

    sound = tone(900, seconds).astype(np.float32)
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=1)
    wanted = extractor(sound, sampling_rate=RATE, return_tensors="np").input_features[0]
    mel = WhisperMel(RATE, bands=80, samples=RATE, window=400, hop=160)
    found = mel(torch.from_numpy(sound)[None])[0].numpy()
    assert found.shape == wanted.shape == (80, 100)
    assert np.abs(found - wanted).max() < 1e-3
    assert wanted.std() > 0.1
    padded = mel(F.pad(torch.from_numpy(sound), (0, 1600))[None])[0].numpy()
    assert np.array_equal(padded, found)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("frames", [40, 20])
def test_asts_filter_banks_are_those_of_its_extractor(frames: int, normalized: bool) -> None:
    from transformers import ASTFeatureExtractor

    sound = tone(900).astype(np.float32)
    extractor = ASTFeatureExtractor(num_mel_bins=64, max_length=frames, do_normalize=normalized)
    wanted = extractor(sound, sampling_rate=RATE, return_tensors="np").input_values[0]
    mean, deviation = (extractor.mean, extractor.std) if normalized else (0.0, 0.5)
    mel = KaldiMel(RATE, bands=64, frames=frames, mean=mean, deviation=deviation)
    padded = F.pad(torch.from_numpy(sound), (0, 3200))[None]
    found = mel(padded, torch.tensor([len(sound)]))[0].numpy()
    assert found.shape == wanted.shape == (frames, 64)
    assert np.abs(found - wanted).max() < 1e-2
    assert wanted.std() > 0.1
    if frames == 40:  # more than the sound has
        louder = mel(padded, torch.tensor([padded.shape[1]]))[0].numpy()
        assert np.abs(louder - wanted).max() > 0.1


def test_padding_does_not_change_what_is_made_of_the_sound() -> None:
    frames = torch.randn(1, 6, 4)
    longer = F.pad(frames, (0, 0, 0, 3), value=7.0)
    alone = standardize(frames, torch.ones(1, 6))
    masked = standardize(longer, (torch.arange(9) < 6)[None])
    assert torch.allclose(masked[:, :6], alone, atol=1e-6)
    assert not masked[:, 6:].any()
    assert not torch.allclose(standardize(longer, torch.ones(1, 9))[:, :6], alone, atol=0.1)


# --- backbones ------------------------------------------------------------------------------------------


def tiny(folder: Path, kind: str, norm: str) -> Backbone:
    """Save a tiny encoder as `save_pretrained` does, and resolve it."""
    from transformers import AutoConfig, AutoModel, Wav2Vec2FeatureExtractor

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=(8, 8, 8),
        conv_stride=(5, 4, 4), conv_kernel=(10, 8, 4), num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
        feat_extract_norm=norm, do_stable_layer_norm=norm == "layer",
    )  # fmt: skip
    AutoModel.from_config(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer").save_pretrained(folder)
    return speech.resolve(BackboneRequest(str(folder)))


@pytest.mark.parametrize(("kind", "norm"), [("wav2vec2", "layer"), ("hubert", "group"), ("wavlm", "group")])
def test_encoder_keeps_the_contract(kind: str, norm: str, tmp_path: Path) -> None:
    backbone = tiny(tmp_path / kind, kind, norm)
    assert backbone.stages(backbone.build())[-1].name == "encoder.layers.1"
    results = run_checks(backbone, CLASSIFICATION)
    assert len(results) > 4
    assert [result for result in results if result.outcome != "passed" and result.id != "cuts"] == []


def tiny_on_spectrograms(folder: Path, kind: str) -> Backbone:
    """Save a tiny model of spectrograms of half a second as `save_pretrained` does, and resolve it."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel, WhisperConfig, WhisperFeatureExtractor, WhisperModel

    torch.manual_seed(0)
    if kind == "whisper":
        WhisperModel(
            WhisperConfig(
                d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
                encoder_ffn_dim=32, decoder_ffn_dim=32, max_source_positions=25, num_mel_bins=20, vocab_size=100,
                pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
            )
        ).save_pretrained(folder)  # fmt: skip
        WhisperFeatureExtractor(feature_size=20).save_pretrained(folder)
    else:
        ASTModel(
            ASTConfig(
                hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, patch_size=8,
                frequency_stride=6, time_stride=6, max_length=48, num_mel_bins=20,
            )
        ).save_pretrained(folder)  # fmt: skip
        ASTFeatureExtractor(num_mel_bins=20, max_length=48).save_pretrained(folder)
    return speech.resolve(BackboneRequest(str(folder)))


@pytest.mark.parametrize(("kind", "samples"), [("whisper", 8000), ("ast", 7920)])
def test_encoder_of_spectrograms_keeps_the_contract(kind: str, samples: int, tmp_path: Path) -> None:
    backbone = tiny_on_spectrograms(tmp_path / kind, kind)
    assert [stage.name for stage in backbone.stages(backbone.build())] == ["embeddings", "layers.0", "layers.1"]
    assert backbone.preprocessing.fit([wav(tone(900, 2.0))]).to_dict()["samples"] == samples
    results = run_checks(backbone, CLASSIFICATION)
    assert len(results) > 4
    assert "cuts" in {result.id for result in results}
    assert [result for result in results if not result.passed or result.outcome != "passed"] == []


@pytest.mark.parametrize("kind", ["whisper", "ast"])
def test_encoder_of_spectrograms_is_the_one_of_transformers(kind: str, tmp_path: Path) -> None:
    from transformers import AutoFeatureExtractor, AutoModel

    backbone = tiny_on_spectrograms(tmp_path / kind, kind)
    sound = tone(900).astype(np.float32)
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / kind)
    settings = {"max_length": 8000} if kind == "whisper" else {}
    (values,) = extractor(sound, sampling_rate=RATE, return_tensors="pt", **settings).values()
    model = AutoModel.from_pretrained(tmp_path / kind).eval()
    waveform, lengths = F.pad(torch.from_numpy(sound), (0, 1600))[None], torch.tensor([len(sound)])
    with torch.no_grad():
        # pooled as their own ForAudioClassification does
        wanted = model.encoder(values).last_hidden_state.mean(1) if kind == "whisper" else model(values).pooler_output
        found = backbone.build().eval()(waveform, lengths)
        other = backbone.build().eval()(waveform, lengths // 2)
    assert torch.allclose(found, wanted, atol=1e-3)
    assert not torch.allclose(other, wanted, atol=1e-3)


def test_encoder_with_a_mask_gives_the_same_however_long_the_padding_is(tmp_path: Path) -> None:
    module = tiny(tmp_path / "masked", "wav2vec2", "layer").build().eval()
    sound = torch.from_numpy(tone(900).astype(np.float32))[None]
    padded, lengths = F.pad(sound, (0, 3200)), torch.tensor([sound.shape[1]])
    with torch.no_grad():
        short, long = module(sound, lengths), module(padded, lengths)
        wrong = module(padded, torch.tensor([padded.shape[1]]))
    assert torch.allclose(short, long, atol=1e-4)
    assert not torch.allclose(short, wrong, atol=1e-4)


def test_encoder_is_the_one_of_transformers(tmp_path: Path) -> None:
    from transformers import AutoModel

    backbone = tiny(tmp_path / "own", "hubert", "layer")
    sound = tone(900).astype(np.float32)
    values = torch.from_numpy((sound - sound.mean()) / np.sqrt(sound.var() + 1e-5))[None]
    with torch.no_grad():
        wanted = AutoModel.from_pretrained(tmp_path / "own").eval()(values).last_hidden_state.mean(1)
        found = backbone.build().eval()(torch.from_numpy(sound)[None], torch.tensor([len(sound)]))
    assert torch.allclose(found, wanted, atol=1e-4)


def test_weights_that_lack_parameters_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    backbone = tiny(tmp_path / "cut", "hubert", "group")
    file = tmp_path / "cut" / "model.safetensors"
    state = {name: value for name, value in load_file(file).items() if "encoder.layers.1" not in name}
    save_file(state, file, {"format": "pt"})
    with pytest.raises(BackboneError, match="lack 16 parameters"):
        backbone.build()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (BackboneRequest("x/y", features="sequence"), "gives pooled features"),
        (BackboneRequest("x/y", max_length=7), "has no max_length"),
        (BackboneRequest("x/y", weights="elsewhere"), "weights from the model's folder"),
    ],
)
def test_request_that_cannot_be_met_is_refused(request_: BackboneRequest, message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        speech.resolve(request_)


def test_encoder_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(BackboneError, match=r"must have a readable preprocessor_config\.json"):
        speech.resolve(BackboneRequest(str(tmp_path)))
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(BackboneError, match="is of the type 'bert'"):
        speech.resolve(BackboneRequest(str(tmp_path)))


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_timm_model_on_spectrograms_keeps_the_contract(model: str) -> None:
    results = run_checks(on_spectrograms.resolve(BackboneRequest(model, "none")), CLASSIFICATION)
    assert len(results) > 4
    assert [result for result in results if result.outcome != "passed" and result.id != "cuts"] == []


def test_kit_catches_a_model_that_mixes_up_its_rows() -> None:
    class Flipped(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
            return self.inner(waveform, lengths).flip(0)

    good = on_spectrograms.resolve(BackboneRequest("test_resnet", "none"))

    def owned(module: nn.Module) -> Any:
        stages = good.stages(module.inner)  # type: ignore[arg-type]
        return tuple(replace(each, parameters=tuple(f"inner.{name}" for name in each.parameters)) for each in stages)

    bad = replace(
        good,
        build=lambda: Flipped(good.build()),
        stages=owned,
        feature_size=lambda module: good.feature_size(module.inner),  # type: ignore[arg-type]
    )
    failed = [result.id for result in run_checks(bad, CLASSIFICATION) if not result.passed]
    assert "feature-shape" in failed


def test_suggestions_are_for_audio_and_small_enough() -> None:
    assert on_spectrograms.suggest("audio", 3.0) == ["audio-timm/mobilenetv4_conv_small.e2400_r224_in1k"]
    assert on_spectrograms.suggest("image", 100.0) == []


# --- data -----------------------------------------------------------------------------------------------


def test_folders_are_classes(tones: Path) -> None:
    assert clips.detect(tones)
    raw = clips.load(tones, {})
    assert (len(raw.samples), raw.modality, raw.task) == (12, "audio", "classification")
    assert {sample.target for sample in raw.samples} == set(PITCHES)
    assert clips.load(tones, {}).fingerprint == raw.fingerprint
    soundfile.write(tones / "low" / "1.wav", tone(310), RATE)
    assert clips.load(tones, {}).fingerprint != raw.fingerprint


def test_split_folders_are_taken(tones: Path, tmp_path: Path) -> None:
    root = tmp_path / "split"
    root.mkdir()
    tones.rename(root / "train")
    write_tones(root / "val", 2)
    assert {sample.split for sample in clips.load(root, {}).samples} == {"train", "validation"}
    (root / "more").mkdir()
    with pytest.raises(DataError, match="it has more"):
        clips.load(root, {})


def test_unreadable_clip_goes_into_quarantine_and_too_many_stop(tones: Path) -> None:
    (tones / "low" / "0.flac").write_bytes(b"fLaC damaged")
    raw = clips.load(tones, {})
    assert [entry.id for entry in raw.rejected] == ["low/0.flac"]
    assert len(raw.samples) == 11
    (tones / "low" / "1.wav").write_bytes(b"")
    with pytest.raises(DataError, match="clips may be unreadable"):
        clips.load(tones, {})


def test_table_gives_labels_speakers_and_splits(tones: Path) -> None:
    rows = ["file_name,label,speaker,split"]
    rows += [f"{path.relative_to(tones).as_posix()},{path.parent.name},s{path.stem},"
             + ("test" if path.stem == "3" else "") for path in sorted(tones.rglob("*.*"))]  # fmt: skip
    (tones / "metadata.csv").write_text("\n".join(rows) + "\n")
    raw = clips.load(tones, {})
    assert {sample.group for sample in raw.samples} == {"s0", "s1", "s2", "s3"}
    assert {sample.group for sample in raw.samples if sample.split == "test"} == {"s3"}
    assert raw.found == {"label": "label", "group": "speaker"}
    with pytest.raises(DataError, match=r"column for the labels \(digit\)"):
        clips.load(tones, {"label": "digit"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("../x.wav,low", "clips must lie in"),
        (",low", "must have file_name and label"),
        ("low/1.wav,low\nlow/1.wav,mid", "must have one line"),
    ],
)
def test_wrong_table_is_refused_with_its_line(row: str, message: str, tones: Path) -> None:
    (tones / "metadata.csv").write_text(f"file_name,label\n{row}\n")
    with pytest.raises(DataError, match=message):
        clips.load(tones, {})


def test_folder_without_clips_is_not_claimed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"")
    assert not clips.detect(tmp_path)
    with pytest.raises(DataError, match="must hold clips"):
        clips.load(tmp_path, {})


def test_one_class_is_enough_to_be_scored_but_not_to_learn_from(tones: Path) -> None:
    for label in ("mid", "high"):
        shutil.rmtree(tones / label)
    assert len(clips.load(tones, {"for_training": False}).samples) == 4
    with pytest.raises(DataError, match="at least two classes"):
        clips.load(tones, {})


# --- from end to end ------------------------------------------------------------------------------------


def test_search_makes_a_bundle_that_answers_for_files(tmp_path: Path) -> None:
    data = write_tones(tmp_path / "tones")
    command = str(Path(sysconfig.get_path("scripts")) / "autoft")
    study = tmp_path / "study.yaml"
    study.write_text(
        f"data: {{path: {data}}}\nbackbones: [{{name: audio-timm/test_resnet, weights: none}}]\n"
        "trainer: {epochs: 1}\nsearch: {trials: 1, seeds: 1, workers: 0}\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*map(str, arguments)], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=240
        )

    searched = run(command, "search", study, "-o", "run")
    assert searched.returncode == 0, searched.stderr
    bundle = tmp_path / "run" / "bundle"
    contract = json.loads((bundle / "autoft.json").read_text())
    assert contract["inputs"] == ["waveform", "lengths"]
    assert contract["preprocessing"] == {"kind": "audio", "rate": RATE, "samples": 6400}
    card = (bundle / "README.md").read_text()
    assert "pipeline_tag: audio-classification" in card
    assert "from the raw clips through `predict.py`" in card
    assert "for any clip" in card
    assert run(sys.executable, bundle / "predict.py", "--check").returncode == 0
    clip = data / "low" / "0.flac"
    (answer,) = run(sys.executable, bundle / "predict.py", clip, "--json").stdout.splitlines()
    assert json.loads(answer)["label"] in PITCHES
    (same,) = run(command, "predict", bundle, clip, "--json").stdout.splitlines()
    assert json.loads(same)["score"] == json.loads(answer)["score"]
    missing = run(sys.executable, bundle / "predict.py", "no.wav")
    assert (missing.returncode, "no audio file" in missing.stderr) == (2, True)
    verified = run(command, "verify", bundle)
    assert (verified.returncode, "FAIL" in verified.stdout) == (0, False), verified.stdout


def test_plugin_offers_one_format_and_two_families() -> None:
    assert [data.name for data in autoft_audio.autoft_data()] == ["audio-folder"]
    assert [family.name for family in autoft_audio.autoft_backbones()] == ["audio-timm", "audio-transformers"]
