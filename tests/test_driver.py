"""A search asks, trains, prunes and resumes as promised, and whatever fails leaves what was finished."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from commands import (
    ONE_THREAD,
    Heard,
    assert_same_search,
    fake_export,
    files_in,
    run_search,
    study_of,
    table,
)

import autoft
from autoft import finish, openings, trials
from autoft.driver import search
from autoft.errors import ConfigError, DataError, ExportError, RepeatedBugError, RunError
from autoft.events import Event
from autoft.export.bundle import Exported, Trained
from autoft.files import read_json
from autoft.probe import ProbeResult, probe_backbones
from autoft.tasks import classification
from autoft.testing.toy import write_toy_images

pytestmark = pytest.mark.usefixtures("toys")

KILLS = 6
EVERYTHING_FIXED = (
    "space={learning_rate: 0.001, head_multiplier: 1.0, freeze_depth: 0, layer_decay: 1.0, weight_decay: 0.0, "
    "dropout: 0.0, label_smoothing: 0.0}"
)


@pytest.fixture(scope="module")
def reference(toy_images: Path, toy_site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An uninterrupted search of five trials, random ones and TPE's, one of them pruned or more."""
    run = tmp_path_factory.mktemp("reference") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(toy_site))
        patch.setenv("AUTOFT_CACHE", str(run.parent / "cache"))
        patch.setattr("autoft.finish.export_bundle", fake_export)
        patch.setattr("autoft.preflight.to_onnx", lambda *arguments, **named: None)
        early_tpe_and_pruning(patch)
        run_search(toy_images, run, *LONGER)
    states = [trial["state"] for trial in table(run)]
    assert states.count("COMPLETE") >= 2, states
    assert "PRUNED" in states, f"a resumed pruning would not be tried: {states}"
    return run


AS_TYPED = ("search.seeds=3", "search.prune=true")  # as a command without these options has it
LONGER = ("search.trials=6", "trainer.epochs=3", "search.prune=true")


def early_tpe_and_pruning(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(trials, "STARTUP_TRIALS", 3)


def both(*listeners: Callable[[Event], None]) -> Callable[[Event], None]:
    def hear(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return hear


class Scripted:
    """Stands in for a head's metrics or loss: a listener that knows the trial, and a function that follows a script."""

    def __init__(self) -> None:
        self.trial = -1
        self.epoch = 1

    def hear(self, event: Event) -> None:
        if event.kind == "trial":
            self.trial, self.epoch = event.data["trial"], 1
        elif event.kind == "epoch":
            self.epoch = event.data["epoch"] + 1


def script_accuracy(monkeypatch: pytest.MonkeyPatch, values: Callable[[int, int], float]) -> Scripted:
    """Let the accuracy on validation be a function of trial and epoch."""
    script, real = Scripted(), classification.metrics

    def metrics(*arguments: Any) -> dict[str, float]:
        found = real(*arguments)
        return {**found, "accuracy": values(script.trial, script.epoch)} if script.trial >= 0 else found

    monkeypatch.setattr(classification, "metrics", metrics)
    return script


def script_loss(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[int, torch.Tensor], torch.Tensor]) -> Scripted:
    """Let something happen to the training loss, by trial."""
    script, real = Scripted(), classification.loss
    monkeypatch.setattr(classification, "loss", lambda *arguments: spoil(script.trial, real(*arguments)))
    return script


# --- what is searched -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("fast_export")
def test_trial_0_is_the_preset_and_the_depth_of_one_backbone_is_searched_in_stages(toy_images: Path, tmp_path: Path) -> None:
    heard = Heard()
    result = run_search(toy_images, tmp_path / "run", on_event=heard)
    first, *others = study_of(tmp_path / "run").trials
    preset = {"learning_rate": 3e-4, "head_multiplier": 10.0, "freeze_depth": 0, "layer_decay": 0.9, "weight_decay": 0.01}
    assert first.params == {**preset, "dropout": 0.1, "label_smoothing": 0.0, "head_start": "fresh"}
    assert heard.of("trial")[0]["role"] == "preset"
    assert all(other.params != first.params for other in others)
    assert all(isinstance(trial.params["freeze_depth"], int) for trial in (first, *others))
    assert result.preset == first.user_attrs["best_value"]
    assert result.trials == {"complete": 3}
    assert not result.interrupted


@pytest.mark.usefixtures("fast_export")
def test_first_trials_are_the_presets_of_every_backbone_and_depths_are_fractions(toy_images: Path, tmp_path: Path) -> None:
    run_search(toy_images, tmp_path / "run", "search.trials=4", backbones=("toy/mlp", "toy/convnet"))
    trials = study_of(tmp_path / "run").trials
    assert [trial.params["backbone"] for trial in trials[:2]] == ["toy/mlp", "toy/convnet"]
    assert [trial.user_attrs.get("role") for trial in trials] == ["preset", "preset", "lp-ft", "probe"]
    assert trials[3].params["freeze_fraction"] == 1.0
    for trial in trials:
        assert "freeze_depth" not in trial.params
        assert 0.0 <= trial.params["freeze_fraction"] <= 1.0
    own = [{**trial.params, "backbone": ""} for trial in trials[:2]]
    assert own[0] == own[1]


@pytest.mark.usefixtures("fast_export")
def test_kill_between_two_queued_presets_loses_none(
    toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = optuna.Study.enqueue_trial, iter([True, False])

    def enqueue(*arguments: Any, **named: Any) -> None:
        if not next(calls, True):
            raise KeyboardInterrupt
        real(*arguments, **named)

    monkeypatch.setattr(optuna.Study, "enqueue_trial", enqueue)
    with pytest.raises(KeyboardInterrupt):
        run_search(toy_images, tmp_path / "run", backbones=("toy/mlp", "toy/convnet"))
    run_search(toy_images, tmp_path / "run", backbones=("toy/mlp", "toy/convnet"))
    trials = study_of(tmp_path / "run").trials
    assert [trial.params["backbone"] for trial in trials[:2]] == ["toy/mlp", "toy/convnet"]
    assert [trial.user_attrs.get("role") for trial in trials] == ["preset", "preset", "lp-ft"]


@pytest.mark.usefixtures("fast_export")
@pytest.mark.parametrize("prune", [True, False])
def test_trial_that_falls_behind_is_stopped_unless_told_otherwise(
    prune: bool, toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted = {0: 0.9, 3: 0.95, 4: 0.2}
    script = script_accuracy(monkeypatch, lambda trial, epoch: scripted.get(trial, 0.5))
    heard = Heard()
    settings = ("search.trials=6", "trainer.epochs=4", f"search.prune={str(prune).lower()}", "search.metric=accuracy")
    run = tmp_path / "run"
    result = run_search(toy_images, run, *settings, on_event=both(script.hear, heard))
    trials = study_of(run).trials
    bad, good = trials[4], trials[3]
    assert bad.state.name == ("PRUNED" if prune else "COMPLETE")
    assert len(bad.intermediate_values) == (1 if prune else 4)
    assert len([1 for epoch in heard.of("epoch") if epoch["trial"] == 4]) == len(bad.intermediate_values)
    assert bad.user_attrs["stopped"] == ("not promoted" if prune else "finished")
    assert (good.state.name, len(good.intermediate_values)) == ("COMPLETE", 4), "the best goes on from its checkpoint"
    assert [data["from_epoch"] for data in heard.of("trial") if data["trial"] == 3] == ([0, 1] if prune else [0])
    assert trials[0].state.name == "COMPLETE", "the preset never pauses"
    assert result.trial == 3


@pytest.mark.usefixtures("fast_export")
def test_backbones_are_probed_and_those_left_out_stay_out_after_a_resume(
    toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_the_second(*arguments: Any, **named: Any) -> list[ProbeResult]:
        first, second = probe_backbones(*arguments, **named)
        return [first, replace(second, kept=False)]

    monkeypatch.setattr(openings, "probe_backbones", without_the_second)
    heard, run, backbones = Heard(), tmp_path / "run", ("toy/mlp", "toy/convnet")
    run_search(toy_images, run, backbones=backbones, on_event=heard)
    assert [data["backbone"] for data in heard.of("probe") if "backbone" in data] == list(backbones)
    assert {data["backbone"] for data in heard.of("trial")} == {"toy/mlp"}
    monkeypatch.setattr(openings, "probe_backbones", None)  # a resumed run does not probe again
    again = Heard()
    run_search(toy_images, run, "search.trials=4", backbones=backbones, on_event=again)
    assert [data["backbone"] for data in again.of("trial")] == ["toy/mlp"]


@pytest.mark.usefixtures("fast_export")
@pytest.mark.parametrize("reuse", [True, False])
def test_what_frozen_stages_give_is_reused_unless_told_otherwise_and_removed_at_the_end(
    reuse: bool, toy_images: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run_search(
        toy_images, run, "space={freeze_depth: all}", f"search.reuse={str(reuse).lower()}", backbones=("toy/convnet",)
    )
    said = [trial.user_attrs.get("reuse", "") for trial in study_of(run).trials]
    assert all(bool(words) == reuse for words in said), said
    assert not (run / "prefix").exists()


@pytest.mark.usefixtures("fast_export")
def test_among_equals_the_preset_wins(toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = script_accuracy(monkeypatch, lambda trial, epoch: 0.9)
    result = run_search(toy_images, tmp_path / "run", "search.metric=accuracy", on_event=script.hear)
    assert result.trial == 0


@pytest.mark.usefixtures("fast_export")
def test_exact_duplicates_reuse_the_result(toy_images: Path, tmp_path: Path) -> None:
    heard, run = Heard(), tmp_path / "run"
    two = EVERYTHING_FIXED.replace("dropout: 0.0", "dropout: {choices: [0.0, 0.3]}")
    result = run_search(toy_images, run, two, "search.trials=7", "search.probe=false", on_event=heard)
    trained = {data["trial"] for data in heard.of("epoch")}
    assert len(trained) == 2
    assert result.trials == {"complete": 7}
    trials = study_of(run).trials
    for trial in trials:
        if trial.number not in trained:
            twin = trials[trial.user_attrs["duplicate_of"]]
            assert twin.number in trained
            assert (trial.params, trial.value) == (twin.params, twin.value)
    assert result.trial in trained, "only a trial with weights can win"


@pytest.mark.usefixtures("fast_export")
def test_weights_of_the_preset_and_the_best_three_are_kept(
    toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = script_accuracy(monkeypatch, lambda trial, epoch: 0.1 * trial)
    run_search(toy_images, tmp_path / "run", "search.trials=6", "search.metric=accuracy", on_event=script.hear)
    kept = {int(file.parent.name) for file in tmp_path.glob("run/trials/*/model.safetensors")}
    assert kept == {0, 3, 4, 5}


def test_policy_that_one_backbone_lacks_is_refused_before_the_first_trial(
    toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autoft.images import ImagePreprocessing

    # the second backbone to ask has fewer policies than the first
    sizes = {16: ("none", "light"), 32: ("none",)}
    monkeypatch.setattr(ImagePreprocessing, "policies", property(lambda self: sizes[self.size[0]]))
    with pytest.raises(ConfigError, match=r"trainer.augmentation: must be one of none, but got 'light'"):
        run_search(
            toy_images,
            tmp_path / "run",
            "backbones=[{name: toy/mlp}, {name: toy/convnet, image_size: 32}]",
            "trainer.augmentation=light",
        )
    assert not (tmp_path / "run").exists()


# --- budgets --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fast_export")
def test_trials_count_over_resumes_and_a_finished_run_does_nothing(toy_images: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_search(toy_images, whole, "search.trials=4")
    first = run_search(toy_images, parts, "search.trials=2")
    before = files_in(parts / "trials")

    heard = Heard()
    again = run_search(toy_images, parts, "search.trials=2", on_event=heard)
    assert again == first
    assert not heard.of("trial")
    assert not heard.of("export")
    assert files_in(parts / "trials") == before
    assert run_search(toy_images, parts, "search.trials=1") == first, "a smaller budget undoes nothing"

    more = run_search(toy_images, parts, "search.trials=4", on_event=heard)
    assert more.trials == {"complete": 4}
    assert {data["trial"] for data in heard.of("trial")} == {2, 3}
    assert_same_search(parts, whole)


@pytest.mark.usefixtures("fast_export")
def test_time_limit_ends_the_search_near_it_and_survives_a_resume(toy_images: Path, tmp_path: Path) -> None:
    run, endless = tmp_path / "run", ("search.trials=100000", "trainer.epochs=1")
    started = time.monotonic()
    first = run_search(toy_images, run, *endless, "search.time_limit=5s")
    assert time.monotonic() - started < 5 + 6, "an epoch of a toy takes no six seconds, even on a busy machine"
    assert first.bundle is not None
    assert not first.interrupted
    done = sum(first.trials.values())
    assert 1 <= done < 100000

    heard = Heard()
    again = run_search(toy_images, run, *endless, "search.time_limit=5s", on_event=heard)
    assert not heard.of("trial"), "the time is spent"
    assert again == first
    assert [data["reason"] for data in heard.of("stopped")] == ["time limit"]

    limit = "search.time_limit=10m"
    longer = run_search(toy_images, run, *endless, limit, on_event=heard, should_stop=lambda: bool(heard.of("trial_end")))
    assert heard.of("trial")[0]["trial"] <= done, "it goes on where it was"
    assert longer.trials["complete"] > first.trials["complete"]


@pytest.mark.usefixtures("fast_export")
def test_time_limit_below_one_trial_still_gives_a_model(toy_images: Path, tmp_path: Path) -> None:
    result = run_search(toy_images, tmp_path / "run", "search.time_limit=0.01s", "trainer.epochs=50")
    assert result.bundle is not None
    (trial,) = [trial for trial in study_of(tmp_path / "run").trials if trial.state.is_finished()]
    assert trial.user_attrs["stopped"] == "time limit"
    assert trial.user_attrs["epochs"] == 1


@pytest.mark.usefixtures("fast_export")
def test_time_limit_ends_a_search_in_which_every_trial_fails(
    toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classification, "loss", lambda *arguments: torch.tensor(math.nan, requires_grad=True))
    with pytest.raises(RunError, match=r"no trial gave a model: all 1 failed \(1 nan\)"):
        run_search(toy_images, tmp_path / "run", "search.trials=1000", "search.time_limit=0.01s")


# --- stopping and going on ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("fast_export")
def test_search_that_is_stopped_after_every_single_epoch_equals_an_uninterrupted_one(
    toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: Path
) -> None:
    early_tpe_and_pruning(monkeypatch)
    run, seen, stop = tmp_path / "run", set(), threading.Event()

    def hear(event: Event) -> None:
        if event.kind == "epoch":
            here = (event.data["trial"], event.data["epoch"])
            if here not in seen:  # a resumed trial tells its last epoch again
                stop.set()
            seen.add(here)

    for session in range(40):
        stop.clear()
        result = run_search(toy_images, run, *LONGER, on_event=hear, should_stop=stop.is_set)
        if not result.interrupted:
            assert session > 7, "it was stopped often"
            break
        assert result.bundle is None
        assert "running" not in result.trials
    assert_same_search(run, reference)


@pytest.mark.usefixtures("fast_export")
def test_stop_before_the_first_trial_keeps_the_folder_for_the_next_session(toy_images: Path, tmp_path: Path) -> None:
    result = run_search(toy_images, tmp_path / "run", should_stop=lambda: True)
    assert (result.interrupted, result.bundle, result.trial) == (True, None, None)
    assert run_search(toy_images, tmp_path / "run").trials == {"complete": 3}


@pytest.mark.slow
def test_search_that_is_killed_at_any_write_equals_an_uninterrupted_one(
    toy_images: Path, toy_env: dict[str, str], tmp_path: Path
) -> None:
    """Kills a process (SIGKILL) around a write to the disk, at points all over a run, then lets another finish it."""
    script = Path(__file__).with_name("killed_search.py")
    ran = subprocess.run(
        [sys.executable, script, toy_images, tmp_path, str(KILLS)],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, **ONE_THREAD, **toy_env},
    )
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout.splitlines()[-1])
    assert report["writes"] > 100, report
    assert report["killed"] == KILLS, report
    runs = sorted(tmp_path.glob("run-*"))
    assert len(runs) == KILLS
    for run in runs:
        assert_same_search(run, tmp_path / "whole")


# --- failures -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fast_export")
def test_bug_in_one_trial_is_recorded_and_the_search_goes_on(
    toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(trial: int, loss: torch.Tensor) -> torch.Tensor:
        if trial == 1:
            raise ZeroDivisionError("a bug of the head")
        return loss

    script, heard = script_loss(monkeypatch, spoil), Heard()
    result = run_search(toy_images, tmp_path / "run", on_event=both(script.hear, heard))
    assert result.trials == {"complete": 2, "fail": 1}
    failed = study_of(tmp_path / "run").trials[1]
    assert failed.user_attrs["failure"] == "bug"
    assert "ZeroDivisionError: a bug of the head" in failed.user_attrs["message"]
    assert "raise ZeroDivisionError" in failed.user_attrs["trace"]
    assert heard.of("trial_end")[1]["state"] == "failed"
    assert not (tmp_path / "run" / "trials" / "1").exists()


@pytest.mark.usefixtures("fast_export")
def test_three_equal_bugs_stop_the_search_with_the_trace(
    toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(trial: int, loss: torch.Tensor) -> torch.Tensor:
        if trial > 0:
            raise ZeroDivisionError("a bug of the head")
        return loss

    script = script_loss(monkeypatch, spoil)
    with pytest.raises(RepeatedBugError, match=r"3 trials failed in the same way[^$]*raise ZeroDivisionError"):
        run_search(toy_images, tmp_path / "run", "search.trials=20", on_event=script.hear)
    states = [trial["state"] for trial in table(tmp_path / "run")]
    assert states == ["COMPLETE", "FAIL", "FAIL", "FAIL"]


@pytest.mark.usefixtures("fast_export")
def test_different_bugs_do_not_stop_the_search(toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(trial: int, loss: torch.Tensor) -> torch.Tensor:
        if trial == 1:
            raise ZeroDivisionError
        if trial == 2:
            raise KeyError("other")
        if trial == 3:
            raise IndexError
        return loss

    script = script_loss(monkeypatch, spoil)
    result = run_search(toy_images, tmp_path / "run", "search.trials=5", on_event=script.hear)
    assert result.trials == {"complete": 2, "fail": 3}


@pytest.mark.usefixtures("fast_export")
def test_memory_that_ran_out_is_learned_for_later_trials_and_sessions(
    toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised, real, heard = list[int](), classification.loss, Heard()

    def loss(outputs: torch.Tensor, *arguments: Any) -> torch.Tensor:
        if len(outputs) > 3:
            raised.append(len(outputs))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(outputs, *arguments)

    monkeypatch.setattr(classification, "loss", loss)
    settings = ("trainer.batch_size=8", "search.probe=false")
    for trials_wanted in (1, 2, 4):  # each session has a worker of its own
        result = run_search(toy_images, tmp_path / "run", *settings, f"search.trials={trials_wanted}", on_event=heard)
    assert raised == [8, 4], "in the first trial alone"
    assert result.trials == {"complete": 4}
    assert result.failures == {"failed": {}, "survived": {"oom": 1}}
    assert {trial.user_attrs["micro_batch"] for trial in study_of(tmp_path / "run").trials} == {2}
    assert [told["micro_batch"] for told in heard.of("warning") if told["about"] == "memory"] == [2]
    stored = read_json(tmp_path / "run" / "result.json")
    assert stored["failures"] == result.failures
    assert (stored["repeats"]["bit_for_bit"], len(stored["repeats"]["why_not"])) == (False, 1)


@pytest.mark.usefixtures("fast_export")
def test_trial_that_diverges_fails_as_nan_and_the_search_goes_on(
    toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = script_loss(monkeypatch, lambda trial, loss: loss * math.nan if trial == 0 else loss)
    result = run_search(toy_images, tmp_path / "run", on_event=script.hear)
    assert result.trials == {"fail": 1, "complete": 2}
    assert study_of(tmp_path / "run").trials[0].user_attrs["failure"] == "nan"
    assert result.preset is None
    assert result.failures == {"failed": {"nan": 1}, "survived": {}}
    assert result.trial in (1, 2)
    # typed again, the failed trial is not tried again
    assert run_search(toy_images, tmp_path / "run") == result


@pytest.mark.usefixtures("fast_export")
def test_search_in_which_every_trial_diverges_says_so(
    toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classification, "loss", lambda *arguments: torch.tensor(math.nan, requires_grad=True))
    with pytest.raises(RunError, match=r"no trial gave a model: all 3 failed \(3 nan\)") as caught:
        run_search(toy_images, tmp_path / "run")
    assert "learning_rate" in str(caught.value.hint)
    assert not (tmp_path / "run" / "bundle").exists()


@pytest.mark.usefixtures("fast_export")
def test_file_that_vanishes_stops_the_search_and_loses_no_trial(toy_images: Path, tmp_path: Path) -> None:
    data, run, whole = tmp_path / "data" / "stripes", tmp_path / "run", tmp_path / "whole"
    shutil.copytree(toy_images, data)
    unkept = "trainer.memory=0"
    run_search(data, whole, unkept)
    victims = list(data.rglob("*.png"))

    def hide(event: Event) -> None:
        if event.kind == "epoch" and (event.data["trial"], event.data["epoch"]) == (1, 1):
            for victim in victims:
                victim.rename(victim.with_suffix(".hidden"))

    with pytest.raises(DataError, match=r"was readable when the search began.*no such file") as caught:
        run_search(data, run, unkept, on_event=hide)
    assert "restore" in str(caught.value.hint)
    for victim in victims:
        victim.with_suffix(".hidden").rename(victim)
    assert run_search(data, run, unkept).trials == {"complete": 3}
    assert_same_search(run, whole)


class FullDisk:
    """Fills the file system of a folder when a search comes to a moment."""

    def __init__(self, folder: Path, kind: str, **data: Any) -> None:
        self.filler, self.kind, self.data = folder / "filler", kind, data

    def hear(self, event: Event) -> None:
        if event.kind != self.kind or not self.data.items() <= event.data.items() or self.filler.exists():
            return
        with self.filler.open("wb", buffering=0) as file:
            size = 1 << 20
            while size:
                try:
                    written = file.write(bytes(size))
                except OSError:
                    written = 0
                size = size if written == size else size // 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 100 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "none", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting a small disk needs root: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.usefixtures("fast_export")
@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("epoch", {"trial": 1, "epoch": 1}),  # the next write is a checkpoint
        ("trial", {"trial": 1}),  # a trial's folder
        ("trial_end", {"trial": 1}),  # study.db: the next trial
        ("export", {}),
    ],
)
def test_full_disk_stops_the_search_with_what_to_do_and_loses_nothing(
    kind: str, data: dict[str, Any], toy_images: Path, small_disk: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    run_search(toy_images, whole)
    full = FullDisk(small_disk, kind, **data)
    with pytest.raises(RunError, match=r"disk of .* is full") as caught:
        run_search(toy_images, small_disk / "run", on_event=full.hear)
    assert "free some space" in str(caught.value.hint)
    full.filler.unlink()
    assert run_search(toy_images, small_disk / "run").trials == {"complete": 3}
    assert_same_search(small_disk / "run", whole)


@pytest.mark.usefixtures("fast_export")
def test_disk_that_is_too_small_is_refused_before_the_first_trial(
    toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("autoft.preflight.shutil.disk_usage", lambda path: usage)
    with pytest.raises(RunError, match=r"the search needs about 0\.\d+ GB of disk, but .* has 0\.00 GB free"):
        run_search(toy_images, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("fast_export")
def test_disk_that_the_whole_search_may_fill_is_warned_of(
    toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=65 << 20)
    monkeypatch.setattr("autoft.preflight.shutil.disk_usage", lambda path: usage)
    heard = Heard()
    run_search(toy_images, tmp_path / "run", "search.trials=30", "search.prune=true", "search.time_limit=5s", on_event=heard)
    assert [data["about"] for data in heard.of("warning")] == ["disk"]


@pytest.mark.usefixtures("fast_export")
def test_damaged_study_database_is_named(toy_images: Path, tmp_path: Path) -> None:
    run_search(toy_images, tmp_path / "run")
    (tmp_path / "run" / "study.db").write_bytes(b"this is no database" * 1000)
    before = files_in(tmp_path / "run")
    with pytest.raises(RunError, match=r"study\.db cannot be read"):
        run_search(toy_images, tmp_path / "run")
    after = files_in(tmp_path / "run")
    assert {name: after[name] for name in before if name != "log.jsonl"} == {
        name: content for name, content in before.items() if name != "log.jsonl"
    }


@pytest.mark.usefixtures("fast_export")
def test_listener_that_fails_is_no_failure_of_the_trial(toy_images: Path, tmp_path: Path) -> None:
    def hear(event: Event) -> None:
        if event.kind == "epoch":
            raise BrokenPipeError(32, "Broken pipe")  # as of `autoft search --json | head`

    with pytest.raises(BrokenPipeError):
        run_search(toy_images, tmp_path / "run", on_event=hear)
    assert run_search(toy_images, tmp_path / "run").trials == {"complete": 3}


def test_package_offers_the_search_however_often_and_in_whatever_order_it_is_imported(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ConfigError, match="there is nothing at"):
            autoft.search(tmp_path / "missing")
    assert autoft.SearchResult is finish.SearchResult


# --- the end --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fast_export")
def test_folder_may_have_any_name(toy_images: Path, tmp_path: Path) -> None:
    run = tmp_path / "what? #1 100%20 {x}"
    assert run_search(toy_images, run).bundle == run / "bundle"
    assert (run / "study.db").exists()
    assert [path.name for path in tmp_path.iterdir()] == [run.name], "nothing lands elsewhere"


@pytest.mark.usefixtures("fast_export")
def test_kill_between_bundle_and_result_exports_again(
    toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    result = run_search(toy_images, run)
    (run / "result.json").unlink()
    exports: list[Path] = []

    def export(trained: Trained, folder: Path, **limits: Any) -> Exported:
        exports.append(folder)
        return fake_export(trained, folder)

    monkeypatch.setattr(finish, "export_bundle", export)
    assert run_search(toy_images, run) == result
    assert exports == [run / "bundle"]
    shutil.rmtree(run / "bundle")
    assert run_search(toy_images, run) == result
    assert len(exports) == 2


def test_model_that_answers_otherwise_after_export_is_not_handed_out(
    finished: Any, toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx.numpy_helper

    from autoft.export import bundle

    def perturbed(*arguments: Any, **named: Any) -> Any:
        proto = real(*arguments, **named)
        for tensor in proto.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            if values.dtype.kind == "f" and values.ndim == 2:
                tensor.CopyFrom(onnx.numpy_helper.from_array(values + values.dtype.type(0.05), tensor.name))
        return proto

    run = tmp_path / "run"
    shutil.copytree(finished.path, run)
    (run / "result.json").unlink()  # so that it is exported again
    before = files_in(run / "bundle")
    real = bundle.to_onnx
    monkeypatch.setattr(bundle, "to_onnx", perturbed)
    with pytest.raises(ExportError, match=r"does not behave as the trained one.*worst samples: stripes-"):
        run_search(toy_images, run, *AS_TYPED)
    assert files_in(run / "bundle") == before, "the older bundle stays"
    shutil.rmtree(run / "bundle")
    with pytest.raises(ExportError):
        run_search(toy_images, run, *AS_TYPED)
    assert not [path.name for path in run.iterdir() if "bundle" in path.name], "no bundle, no draft"
    monkeypatch.setattr(bundle, "to_onnx", real)
    assert run_search(toy_images, run, *AS_TYPED).bundle == run / "bundle"


def test_resolved_study_starts_the_same_run_again(finished: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.path, run)
    result = search(run / "study.yaml", output=run)
    assert result.trial == read_json(finished.path / "result.json")["winner"]["trial"]
    assert result.trials == {"complete": 2, "pruned": 1}


def test_data_may_move(finished: Any, toy_images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.path, run)
    shutil.copytree(toy_images, tmp_path / "elsewhere" / "stripes")
    assert run_search(tmp_path / "elsewhere" / "stripes", run, *AS_TYPED).trials == {"complete": 2, "pruned": 1}
    write_toy_images(tmp_path / "elsewhere" / "stripes", per_class=13)
    with pytest.raises(RunError, match=r"belongs to another study: data\.fingerprint is"):
        run_search(tmp_path / "elsewhere" / "stripes", run, *AS_TYPED)


def test_sharded_weights_count_by_the_content_of_every_shard(tmp_path: Path) -> None:
    from autoft.identity import weights_identity

    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "one.safetensors", "b": "two.safetensors", "c": "one.safetensors"}}')
    (tmp_path / "one.safetensors").write_bytes(b"1")
    found = set()
    for content in (b"2", b"3"):
        (tmp_path / "two.safetensors").write_bytes(content)
        found.add(weights_identity(str(index)))
    assert len(found) == 2


@pytest.mark.usefixtures("fast_export")
def test_fine_tuning_from_the_probes_head_gives_the_first_score_and_never_rests_after_the_preset(
    toy_images: Path, tmp_path: Path
) -> None:
    heard = Heard()
    settings = ("search.trials=4", "trainer.epochs=4", "search.prune=true")
    run_search(toy_images, tmp_path / "run", *settings, on_event=heard)
    begun = [(data["trial"], data["role"], data["from_epoch"]) for data in heard.of("trial")]
    assert begun[:3] == [(1, "lp-ft", 0), (0, "preset", 0), (1, "lp-ft", 1)]
    assert [data["epoch"] for data in heard.of("epoch") if data["trial"] == 1] == [1, 2, 3, 4]
