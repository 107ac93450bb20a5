"""Every failure gets its type, running out of memory is survived, and a kill at any moment loses no result."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from toy_training import (
    CONVNET,
    CPU,
    HEAD,
    MLP,
    TRAIN,
    VALIDATION,
    assert_equal_tensors,
    config,
    encode,
    objective,
    run,
)

from autoft import worker as worker_module
from autoft.checkpoint import DamagedCheckpointError
from autoft.errors import DataError, RunError
from autoft.files import as_path, load_tensors
from autoft.loading import FixedData, SplitData
from autoft.specs import Backbone, Head
from autoft.testing import toy
from autoft.train import EpochReport, NonFiniteError
from autoft.worker import WEIGHTS, Job, PauseTrial, StopTrial, Worker, classify, load_outcome, settle


def make(head: Head = HEAD) -> Worker:
    splits = {"train": (TRAIN, encode(TRAIN)), "validation": (VALIDATION, encode(VALIDATION)), "test": ((), encode(()))}
    return Worker(splits, objective(head=head), device=CPU, memory=1 << 30)


def job(folder: Path, backbone: Backbone = MLP, augmentation: str = "none", **changes: object) -> Job:
    return Job(backbone, config(**{"epochs": 3, **changes}), augmentation, folder / "trial")


def failing(error: BaseException, epoch: int = 1, times: int = 1_000_000) -> Head:
    """A head whose loss raises from an epoch on (five steps each), so many times."""
    calls = [0, 0]

    def loss(*arguments: object) -> torch.Tensor:
        calls[0] += 1
        if calls[0] > 5 * (epoch - 1) and calls[1] < times:
            calls[1] += 1
            raise error
        return HEAD.loss(*arguments)  # type: ignore[arg-type]

    return replace(HEAD, loss=loss)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- a trial that ends well -------------------------------------------------------------------------


def test_finished_trial_keeps_its_best_weights_and_result_and_drops_its_checkpoint(tmp_path: Path) -> None:
    seen: list[EpochReport] = []
    outcome = make().run(job(tmp_path), on_epoch=seen.append)
    wanted, _ = run(config(epochs=3), MLP)
    assert (outcome.state, outcome.stopped, outcome.epochs, outcome.failure) == ("complete", "finished", 3, None)
    assert outcome.best is not None
    assert outcome.best.value == wanted.best.value
    assert [report.epoch for report in seen] == [1, 2, 3]
    assert names(tmp_path / "trial") == ["model.safetensors", "result.json"]
    assert_equal_tensors(load_tensors(tmp_path / "trial" / "model.safetensors")[0], wanted.weights)
    assert load_outcome(tmp_path / "trial") == outcome
    stored = json.loads((tmp_path / "trial" / "result.json").read_text())
    assert [report["epoch"] for report in stored["history"]] == [1, 2, 3]


def test_pruned_trial_keeps_its_best_epoch(tmp_path: Path) -> None:
    def prune(report: EpochReport) -> None:
        if report.epoch == 2:
            raise StopTrial("pruned: worse than the median")

    outcome = make().run(job(tmp_path), on_epoch=prune)
    assert (outcome.state, outcome.stopped, outcome.epochs) == ("pruned", "pruned: worse than the median", 2)
    assert outcome.best is not None
    assert names(tmp_path / "trial") == ["model.safetensors", "result.json"]


def test_interrupted_trial_goes_on_where_it_was(tmp_path: Path) -> None:
    asked: list[int] = []

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) == 8  # in the second epoch

    outcome = make().run(job(tmp_path, CONVNET, "light"), should_stop=should_stop)
    assert (outcome.state, outcome.epochs, outcome.best) == ("interrupted", 1, None)
    assert names(tmp_path / "trial") == ["checkpoint"]
    resumed = make().run(job(tmp_path, CONVNET, "light"))
    wanted, _ = run(config(epochs=3), CONVNET, "light")
    assert resumed.state == "complete"
    assert_equal_tensors(load_tensors(tmp_path / "trial" / "model.safetensors")[0], wanted.weights)


def test_trials_of_one_worker_do_not_influence_each_other(tmp_path: Path) -> None:
    one = make()
    first = one.run(job(tmp_path / "1", CONVNET, "light"))
    one.run(job(tmp_path / "2", MLP, "standard", seed=5))
    again = one.run(job(tmp_path / "3", CONVNET, "light"))
    assert again.best is not None
    assert first.best is not None
    assert again.best.metrics == first.best.metrics


def test_decoded_data_is_kept_from_trial_to_trial() -> None:
    one = make()
    data = one.data("train", CONVNET, "light")
    assert one.data("train", MLP, "light") is data, "the same preprocessing decodes to the same pixels"
    assert one.data("train", CONVNET, "none") is not data
    assert one.data("validation", CONVNET) is not one.data("train", CONVNET)


@pytest.mark.parametrize("mapped", [False, True])
def test_policies_share_the_pixels_that_they_vary(mapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def first(data: SplitData) -> torch.Tensor:
        return next(iter(data.batches([np.arange(4)], device=CPU)))[0][0]

    shared = tmp_path if mapped else None
    one = Worker({"train": (TRAIN, encode(TRAIN))}, objective(), device=CPU, memory=1 << 30, shared=shared)
    expected = {policy: first(make().data("train", CONVNET, policy)) for policy in ("light", "standard", "trivial")}
    decoded: list[int] = []
    decode = FixedData._decode
    monkeypatch.setattr(FixedData, "_decode", lambda data, row: decoded.append(row) or decode(data, row))
    light = one.data("train", CONVNET, "light")
    assert len(decoded) == len(TRAIN) + 1, "the first one also tells the shape"
    for policy in ("standard", "trivial", "light"):
        assert torch.equal(first(one.data("train", CONVNET, policy)), expected[policy])
    assert torch.equal(first(light), expected["light"]), "an earlier trial's data keeps its policy"
    assert len(decoded) == len(TRAIN) + 1
    assert len(one._warm) == 1, "what fits into memory is counted once"
    one.data("train", CONVNET, "none")
    assert len(decoded) == 2 * (len(TRAIN) + 1), "`none` has pixels without a margin"


def test_memory_is_shared_out_by_the_size_of_the_splits() -> None:
    def held(memory: int) -> tuple[bool, bool]:
        splits = {"train": (TRAIN, encode(TRAIN)), "validation": (VALIDATION, encode(VALIDATION))}
        one = Worker(splits, objective(), device=CPU, memory=memory)
        return one.data("train", MLP).in_memory, one.data("validation", MLP).in_memory

    needed = (len(TRAIN) + len(VALIDATION)) * 3 * 16 * 16
    assert held(needed) == (True, True)
    assert held(needed // 2) == (False, False)


# --- failures ---------------------------------------------------------------------------------------

FAILURES: list[tuple[BaseException, str]] = [
    (torch.OutOfMemoryError("CUDA out of memory"), "oom"),
    (MemoryError(), "oom"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "oom"),
    (NonFiniteError("the loss is nan"), "nan"),
    (DataError("unreadable"), "data"),
    (OSError(errno.ENOSPC, "No space left on device"), "disk"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk"),
    (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "disk"),
    (RuntimeError("database or disk is full"), "disk"),
    (ConnectionResetError("gone"), "infra"),
    (TimeoutError("too slow"), "infra"),
    (FileNotFoundError("nowhere"), "bug"),
    (KeyError("head"), "bug"),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "bug"),
]


@pytest.mark.parametrize(("error", "kind"), FAILURES, ids=lambda value: str(value)[:30])
def test_every_exception_has_its_type(error: BaseException, kind: str) -> None:
    assert classify(error) == kind


@pytest.mark.parametrize(
    "number", [3, 4, 5, 9, 12], ids=lambda number: FAILURES[number][1]
)  # one of each kind; running out of memory has tests of its own
def test_failed_trial_says_why_where_and_how_far_it_came(number: int, tmp_path: Path) -> None:
    error, kind = FAILURES[number]
    outcome = make(failing(error, epoch=3)).run(job(tmp_path))
    assert (outcome.state, outcome.stopped, outcome.best, outcome.epochs) == ("failed", kind, None, 2)
    assert outcome.failure is not None
    assert outcome.failure.kind == kind
    assert outcome.failure.message.startswith(f"{type(error).__name__}: ")
    assert "Traceback" in outcome.failure.trace
    assert "in loss" in outcome.failure.trace
    assert outcome.failure.place.startswith(f"{type(error).__name__} at ")
    assert not (tmp_path / "trial" / "result.json").exists()


def test_equal_bugs_share_their_place_and_different_ones_do_not(tmp_path: Path) -> None:
    def place(head: Head, name: str) -> str:
        failure = make(head).run(job(tmp_path / name)).failure
        assert failure is not None
        return failure.place

    def elsewhere(*arguments: object) -> torch.Tensor:
        raise KeyError("head")

    first, again = (place(failing(KeyError(name)), name) for name in ("head", "tail"))
    assert first == again
    assert place(replace(HEAD, loss=elsewhere), "elsewhere") != first


def test_divergence_is_a_nan(tmp_path: Path) -> None:
    outcome = make(replace(HEAD, loss=lambda outputs, *_: outputs.sum() * math.nan)).run(job(tmp_path))
    assert outcome.failure is not None
    assert (outcome.failure.kind, outcome.epochs) == ("nan", 0)


def test_sample_that_is_gone_is_a_data_failure(tmp_path: Path) -> None:
    written = toy.write_toy_images(tmp_path / "images", per_class=2)
    samples = tuple(replace(s, source=p) for s, p in zip(toy.toy_samples(per_class=2), written, strict=True))
    written[3].unlink()
    splits = {"train": (samples, encode(samples)), "validation": (VALIDATION, encode(VALIDATION))}
    outcome = Worker(splits, objective(), device=CPU, memory=1 << 30).run(job(tmp_path))
    assert outcome.failure is not None
    assert outcome.failure.kind == "data"
    assert samples[3].id in outcome.failure.message


def test_full_disk_while_writing_a_checkpoint_is_a_disk_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("autoft.checkpoint.save_tensors", full)
    outcome = make().run(job(tmp_path))
    assert outcome.failure is not None
    assert outcome.failure.kind == "disk"


def test_keyboard_interrupt_is_not_swallowed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(failing(KeyboardInterrupt(), epoch=2)).run(job(tmp_path))
    assert make().run(job(tmp_path)).state == "complete"


# --- running out of memory --------------------------------------------------------------------------


def fits_only(backbone: Backbone, most: int, seen: list[int], error: Callable[[], BaseException]) -> Backbone:
    def build() -> nn.Module:
        def watch(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            seen.append(len(inputs[0]))
            if len(inputs[0]) > most:
                raise error()

        module = backbone.build()
        module.register_forward_pre_hook(watch)
        return module

    return replace(backbone, build=build)


@pytest.mark.parametrize("error", [lambda: torch.OutOfMemoryError("CUDA out of memory"), MemoryError])
def test_out_of_memory_halves_the_micro_batch_at_the_same_effective_batch(
    tmp_path: Path, error: Callable[[], BaseException]
) -> None:
    seen: list[int] = []
    one = make()
    outcome = one.run(job(tmp_path, fits_only(MLP, 4, seen, error)))
    assert outcome.state == "complete"
    assert outcome.micro_batch == 2  # scoring takes twice the micro-batch
    wanted, _ = run(config(epochs=3), MLP)
    assert outcome.best is not None
    assert outcome.best.value == pytest.approx(wanted.best.value, abs=1e-5)
    assert load_outcome(tmp_path / "trial") == outcome
    # the next trial starts with what was learned
    seen.clear()
    assert one.run(job(tmp_path / "next", fits_only(MLP, 4, seen, error))).state == "complete"
    assert max(seen) <= 4


def test_micro_batch_of_the_settings_is_kept_to(tmp_path: Path) -> None:
    seen: list[int] = []
    one, watched = make(), fits_only(MLP, 64, seen, MemoryError)
    outcome = one.run(replace(job(tmp_path, watched), config=config(epochs=1, micro_batch=2)))
    assert (outcome.state, outcome.micro_batch) == ("complete", 2)
    assert max(seen) == 4, "scoring takes twice the micro-batch"
    seen.clear()
    assert one.run(replace(job(tmp_path / "next", watched), config=config(epochs=1))).micro_batch is None
    assert max(seen) > 4, "it is of that trial alone"


def test_out_of_memory_later_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    told: list[int] = []
    head = failing(torch.OutOfMemoryError("CUDA out of memory"), epoch=3, times=1)
    outcome = make(head).run(job(tmp_path), on_epoch=lambda report: told.append(report.epoch))
    assert (outcome.state, outcome.epochs, outcome.micro_batch) == ("complete", 3, 4)
    assert told == [1, 2, 2, 3], "the second epoch was not trained again, only told again"


def test_model_that_does_not_fit_at_all_fails_once_and_for_good(tmp_path: Path) -> None:
    seen: list[int] = []
    error = torch.OutOfMemoryError("CUDA out of memory")
    outcome = make().run(job(tmp_path, fits_only(MLP, 0, seen, lambda: error)))
    assert outcome.failure is not None
    assert (outcome.state, outcome.failure.kind, outcome.micro_batch) == ("failed", "oom", 1)
    assert seen == [8, 4, 2, 1]


# --- kills ------------------------------------------------------------------------------------------


def untouchable(report: EpochReport) -> None:
    raise AssertionError("nothing may be trained again")


def test_result_that_a_kill_left_behind_is_used_again(tmp_path: Path) -> None:
    wanted = make().run(job(tmp_path))
    again = make(failing(AssertionError("nothing may be trained again"))).run(job(tmp_path), on_epoch=untouchable)
    assert again == wanted


@pytest.mark.parametrize("moment", ["copy_atomically", "write_checked", "remove_tree"])
def test_kill_while_the_result_is_kept_loses_nothing(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def kill(*arguments: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(worker_module, moment, kill)
        with pytest.raises(Killed):
            make().run(job(tmp_path))
    told: list[int] = []
    outcome = make().run(job(tmp_path), on_epoch=lambda report: told.append(report.epoch), should_stop=lambda: True)
    wanted = make().run(job(tmp_path / "whole"))
    assert outcome.best is not None
    assert wanted.best is not None
    assert (outcome.state, outcome.best.metrics, outcome.epochs) == ("complete", wanted.best.metrics, 3)
    assert told == ([] if moment == "remove_tree" else [3])
    assert names(tmp_path / "trial") == ["model.safetensors", "result.json"]


@pytest.mark.parametrize("torn", ["last", "best"])
@pytest.mark.parametrize("damage", ["cut", "altered", "gone"])
def test_trial_with_a_damaged_checkpoint_begins_again_and_says_so(torn: str, damage: str, tmp_path: Path) -> None:
    wanted = make().run(job(tmp_path / "whole"))
    make().run(job(tmp_path), should_stop=iter([False] * 7 + [True]).__next__)
    (file,) = (tmp_path / "trial" / "checkpoint").glob(f"{torn}*.safetensors")
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:-100] if damage == "cut" else content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    outcome = make().run(job(tmp_path))
    assert outcome.state == "complete"
    assert outcome.best == replace_seconds(wanted.best, outcome.best)
    if (torn, damage) == ("last", "gone"):  # none was written yet
        assert outcome.redone == ""
    else:
        assert file.name in outcome.redone
    assert not (tmp_path / "trial" / "checkpoint").exists()


def replace_seconds(report: EpochReport | None, other: EpochReport | None) -> EpochReport:
    assert report is not None
    assert other is not None
    return dataclasses.replace(report, seconds=other.seconds)


def test_checkpoint_that_a_disk_never_keeps_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(folder: Path) -> Any:
        raise DamagedCheckpointError(f"{folder} is altered")

    monkeypatch.setattr(worker_module, "read_best", gone)
    outcome = make().run(job(tmp_path))
    assert outcome.failure is not None
    assert outcome.failure.message == f"DamagedCheckpointError: {tmp_path / 'trial' / 'checkpoint'} is altered"


@pytest.mark.parametrize("content", ["", '{"state": "comp', "[]", '{"state": "complete"}'])
def test_torn_result_is_named_and_the_trial_trained_again(content: str, tmp_path: Path) -> None:
    wanted = make().run(job(tmp_path))
    (tmp_path / "trial" / "result.json").write_text(content)
    with pytest.raises(RunError, match=r"trial.result\.json .*\n?.*hint: remove the folder"):
        load_outcome(tmp_path / "trial")
    outcome = make().run(job(tmp_path))
    assert "result.json is damaged" in outcome.redone
    assert outcome.best == replace_seconds(wanted.best, outcome.best)
    assert load_outcome(tmp_path / "trial") == dataclasses.replace(outcome, redone="")


def test_folder_without_a_result_has_no_outcome(tmp_path: Path) -> None:
    assert load_outcome(tmp_path) is None


def test_a_paused_trial_goes_on_from_its_checkpoint_as_if_it_had_never_paused(tmp_path: Path) -> None:
    def pause(report: EpochReport) -> None:
        if report.epoch == 2:
            raise PauseTrial

    whole = make().run(job(tmp_path / "whole"))
    paused = make().run(job(tmp_path / "paused"), on_epoch=pause)
    assert (paused.state, paused.epochs) == ("paused", 2)
    assert (tmp_path / "paused" / "trial" / "checkpoint").exists()
    continued = make().run(job(tmp_path / "paused"))
    assert continued.best is not None
    assert whole.best is not None
    assert replace(continued.best, seconds=0) == replace(whole.best, seconds=0)
    one, other = (load_tensors(tmp_path / name / "trial" / WEIGHTS)[0] for name in ("whole", "paused"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_paused_trial_that_will_not_go_on_keeps_its_best_epoch(tmp_path: Path) -> None:
    def pause(report: EpochReport) -> None:
        raise PauseTrial

    folder = tmp_path / "trial"
    paused = make().run(job(tmp_path), on_epoch=pause)
    settled = settle(folder, "pruned", "not promoted", seconds=1.5)
    assert (settled.state, settled.stopped, settled.best) == ("pruned", "not promoted", paused.best)
    assert (folder / WEIGHTS).exists()
    assert not (folder / "checkpoint").exists()
    assert settle(folder, "pruned", "again", seconds=9.0) == settled


# --- other file systems -----------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["memory://", "file://"])
def test_trial_anywhere_is_resumed_from_its_checkpoint_and_ends_as_one_here(tmp_path: Path, where: str) -> None:
    wanted = make().run(job(tmp_path / "here"))
    folder = as_path(f"{where}{tmp_path}/there")
    steps = 0

    def stop() -> bool:
        nonlocal steps
        steps += 1
        return steps > 7  # five are an epoch

    broken = make().run(job(folder), should_stop=stop)
    assert (broken.state, broken.epochs) == ("interrupted", 1)
    assert (folder / "trial" / "checkpoint" / "last.safetensors").exists()
    told: list[int] = []
    outcome = make().run(job(folder), on_epoch=lambda report: told.append(report.epoch))
    assert told == [1, 2, 3]
    assert outcome.best is not None
    assert wanted.best is not None
    assert (outcome.state, outcome.best.value) == ("complete", wanted.best.value)
    assert_equal_tensors(
        load_tensors(folder / "trial" / "model.safetensors")[0],
        load_tensors(tmp_path / "here" / "trial" / "model.safetensors")[0],
    )
    assert load_outcome(folder / "trial") == outcome == make().run(job(folder))
    assert not (folder / "trial" / "checkpoint").exists()


def test_trial_elsewhere_is_paused_and_settled(tmp_path: Path) -> None:
    folder = as_path(f"memory://{tmp_path}/paused")

    def pause(report: EpochReport) -> None:
        raise PauseTrial

    assert make().run(job(folder), on_epoch=pause).state == "paused"
    settled = settle(folder / "trial", "pruned", "not promoted", seconds=1.0)
    assert load_outcome(folder / "trial") == settled
    assert sorted(path.name for path in (folder / "trial").iterdir()) == ["model.safetensors", "result.json"]
