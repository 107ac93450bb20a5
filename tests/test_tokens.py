import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from letters import PLAIN

from autoft import tokens
from autoft.batching import even_batches, token_slots
from autoft.errors import DataError
from autoft.loading import FixedData, RaggedData, load_split
from autoft.ragged import Ragged
from autoft.specs import IGNORED, Sample
from autoft.tokens import decode_all

PREPROCESSING = dataclasses.replace(PLAIN, max_length=12)
CPU = torch.device("cpu")


def samples(count: int = 40) -> list[Sample]:
    texts = [" ".join("abcdefghij"[: 1 + number % 10]) + " b" * (number % 7) for number in range(count)]
    return [Sample(f"train:{number}", text, "x", str(number)) for number, text in enumerate(texts)]


@pytest.fixture(params=["memory", "file", "cache"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, object]:
    """Where decoded samples are kept: in memory alone; in a file that is read as needed; in a file, read whole."""
    return {
        "memory": {"memory": 1 << 20, "cache": None},
        "file": {"memory": 0, "cache": tmp_path / "tokens"},
        "cache": {"memory": 1 << 20, "cache": tmp_path / "tokens"},
    }[request.param]


def test_samples_are_the_same_wherever_they_are_kept(place: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "CHUNK", 7)
    data = samples()
    wanted, cut = PREPROCESSING.decode_many([sample.source for sample in data])
    kept = decode_all(data, PREPROCESSING, name="train", **place)  # type: ignore[arg-type]
    assert (len(kept), kept.cut, kept.columns) == (40, cut.sum(), 1)
    assert cut.sum() > 0
    assert kept.in_memory == (place["memory"] != 0)
    for rows in (np.arange(40), np.array([5, 5, 39, 0])):
        found = kept.take(rows)
        assert torch.equal(found.values, wanted[rows].values)
        assert torch.equal(found.offsets, wanted[rows].offsets)


def test_a_cache_is_used_again_and_only_for_what_it_was_made_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = samples()
    decode_all(data, PREPROCESSING, memory=0, cache=tmp_path, name="train")
    asked: list[int] = []
    decode = type(PREPROCESSING).decode_many
    monkeypatch.setattr(
        type(PREPROCESSING), "decode_many", lambda self, sources: (asked.append(len(sources)), decode(self, sources))[1]
    )
    decode_all(data, PREPROCESSING, memory=0, cache=tmp_path, name="train")
    assert asked == []
    decode_all(data, PREPROCESSING, memory=0, cache=tmp_path, name="test")
    decode_all(data, dataclasses.replace(PREPROCESSING, max_length=8), memory=0, cache=tmp_path, name="train")
    assert asked == [40, 40]
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("damage", ["shorter", "gone", "no JSON", "flipped", "other samples"])
def test_a_damaged_cache_is_told_and_made_again(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = samples()
    wanted = decode_all(data, PREPROCESSING, memory=0, cache=tmp_path, name="train")
    rows = np.arange(len(data) - 1)
    values, described = next(tmp_path.glob("*.bin")), next(tmp_path.glob("*.json"))
    if damage == "shorter":
        values.write_bytes(values.read_bytes()[:-4])
    elif damage == "gone":
        values.unlink()
    elif damage == "no JSON":
        described.write_text("{")
    elif damage == "flipped":
        values.write_bytes(bytes([values.read_bytes()[0] ^ 1]) + values.read_bytes()[1:])
    else:
        data = data[:-1]
    before = wanted.take(rows).values.clone() if damage == "other samples" else None
    found = decode_all(data, PREPROCESSING, memory=0, cache=tmp_path, name="train")
    assert "are damaged and are made again" in caplog.text
    fresh = decode_all(data, PREPROCESSING, memory=0, cache=None, name="train").take(rows).values
    assert torch.equal(found.take(rows).values, fresh)
    assert before is None or torch.equal(before, fresh)


def test_a_kill_before_the_description_is_written_leaves_nothing_that_counts(tmp_path: Path) -> None:
    decode_all(samples(), PREPROCESSING, memory=0, cache=tmp_path, name="train")
    next(tmp_path.glob("*.json")).unlink()
    next(tmp_path.glob("*.bin")).write_bytes(b"half")
    assert (
        decode_all(samples(), PREPROCESSING, memory=0, cache=tmp_path, name="train").take(np.array([3])).values.numel() > 0
    )


def test_a_sample_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    broken = [*samples(3), Sample("train:3", 17, "x", "")]
    with pytest.raises(DataError, match="train:0 to train:3 cannot be decoded"):
        decode_all(broken, PREPROCESSING, memory=0, cache=None, name="train")


def test_reading_from_a_file_keeps_out_of_memory(tmp_path: Path) -> None:
    """A file of 96 MB, read through in random order, adds little to the process's peak."""
    code = f"""
import resource, sys
import numpy as np, torch
from pathlib import Path
from autoft.files import write_json
from autoft.tokens import _content, _open
stem = Path({str(tmp_path / "train-0")!r})
lengths = np.full(200_000, 120)
with open(stem.with_suffix(".bin"), "wb") as file:
    for _ in range(200):
        file.write(np.arange(120_000, dtype="<i4").tobytes())
np.save(stem.with_suffix(".npy"), np.stack([lengths, lengths * 0]))
described = {{"samples": 200_000, "columns": 1, "cut": 0, "bytes": 96_000_000, "content": _content(stem)}}
write_json(stem.with_suffix(".json"), described)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tokens = _open(stem, 200_000, 0)
order = np.random.default_rng(0).permutation(200_000)
total = sum(int(tokens.take(rows).values.sum()) for rows in np.array_split(order, 2000))
assert total == 200 * 120_000 * 119_999 // 2, total
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(run.stdout) * unit < 30e6


# --- as training data ---------------------------------------------------------------------------------


def test_texts_are_loaded_ragged_and_images_fixed() -> None:
    from autoft.specs import BackboneRequest
    from autoft.testing.toy import resolve as toy
    from autoft.testing.toy import toy_samples

    assert isinstance(load_split(samples(), torch.zeros(40), PREPROCESSING), RaggedData)
    images = toy_samples(2, 2)
    preprocessing = toy(BackboneRequest("mlp", "none")).preprocessing
    assert isinstance(load_split(images, torch.zeros(4), preprocessing), FixedData)


def test_batches_hold_the_inputs_and_targets_of_their_rows(place: dict[str, object]) -> None:
    data = samples()
    split = RaggedData(data, torch.arange(40), PREPROCESSING, **place)  # type: ignore[arg-type]
    rows = [np.array([3, 20, 7]), np.array([11])]
    for chosen, (inputs, wanted) in zip(rows, split.batches(rows, device=CPU), strict=True):
        decoded, _ = PREPROCESSING.decode_many([data[row].source for row in chosen])
        assert wanted.tolist() == chosen.tolist()
        for found, made in zip(inputs, PREPROCESSING.inputs(decoded), strict=True):
            assert torch.equal(found, made)


@pytest.mark.parametrize("micro", [None, 3])
def test_steps_hold_every_sample_once_within_the_sizes_asked_for(micro: int | None) -> None:
    split = RaggedData(samples(), torch.arange(40), PREPROCESSING)
    rng = np.random.default_rng(0)
    steps = split.steps(rng.permutation(40), 8, micro, rng=rng, device=CPU)
    assert len(steps) == 5
    assert all(sum(map(len, parts)) == 8 for parts in steps)
    assert max(len(part) for parts in steps for part in parts) <= (micro or 8)
    assert sorted(np.concatenate([part for parts in steps for part in parts])) == list(range(40))


@pytest.mark.parametrize("grouped", [True, False])
def test_steps_pad_less_where_texts_are_grouped_by_length(grouped: bool) -> None:
    split = RaggedData(samples(), torch.arange(40), PREPROCESSING)
    order = np.random.default_rng(0).permutation(40)
    steps = split.steps(order, 2, None, rng=np.random.default_rng(0), device=CPU, group_by_length=grouped)
    batches = [np.concatenate(parts) for parts in steps]
    assert sorted(np.concatenate(batches)) == list(range(40))
    plain = even_batches(order, 2)
    assert (len(batches) == len(plain) and all(map(np.array_equal, batches, plain))) != grouped
    lengths = split.tokens.lengths
    assert (token_slots(batches, lengths) < token_slots(plain, lengths)) == grouped


def test_evaluation_takes_more_short_texts_at_a_time_than_long_ones() -> None:
    split = RaggedData(samples(), torch.arange(40), PREPROCESSING)
    batches = split.evaluation_batches(8, device=CPU)
    assert sorted(np.concatenate(batches)) == list(range(40))
    assert len(batches[0]) < len(batches[-2])
    assert len(even_batches(np.arange(40), 8)) >= len(batches)


def test_words_bring_aligned_targets_and_count_each() -> None:
    preprocessing = dataclasses.replace(PREPROCESSING, words=True, max_length=5)
    data = [Sample(str(number), ["a", "bc", "d", "e"][: number + 1], (), "") for number in range(4)]
    tags = Ragged.of([torch.arange(number + 1) for number in range(4)])
    split = RaggedData(data, tags, preprocessing)
    assert split.units(np.arange(4)).tolist() == [1, 2, 2, 2]
    (_, wanted) = next(iter(split.batches([np.array([1, 0])], device=CPU)))
    assert wanted.tolist() == [[IGNORED, 0, 1, IGNORED, IGNORED], [IGNORED, 0, IGNORED, IGNORED, IGNORED]]
    assert split.cut == 2
