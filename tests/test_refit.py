"""Where a study asks for it, the winner is trained once more, on training and validation split together."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from commands import Heard, autoft, run_search

from autoft import driver
from autoft.errors import ConfigError
from autoft.events import Event
from autoft.files import read_json
from autoft.refit import refit
from autoft.reproduce import reproduce
from autoft.worker import Job, Worker

pytestmark = pytest.mark.usefixtures("toys")

BOTH = ("export.refit=true", "search.trials=2", "search.metric=log_loss", "trainer.epochs=3")


@pytest.mark.usefixtures("fast_export")
def test_winner_is_trained_on_both_splits_for_its_best_number_of_epochs_and_says_so(
    toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[tuple[int, Job]] = []
    real = Worker.run

    def run(worker: Worker, job: Job, **rest: object) -> object:
        jobs.append((len(worker.data("train", job.backbone)), job))
        return real(worker, job, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Worker, "run", run)
    heard, folder = Heard(), tmp_path / "run"
    run_search(toy_images, folder, *BOTH, on_event=heard)
    result, counts = read_json(folder / "result.json"), next(data for data in heard.of("data") if "train" in data)
    *others, (samples, job) = jobs
    assert samples == counts["train"] + counts["validation"]
    assert {size for size, _ in others} == {counts["train"]}
    made_of = result["winner"]["made_of"]
    assert (made_of["refitted"], made_of["epochs"]) == (True, result["winner"]["epoch"])
    assert job.config.seed == result["winner"]["training"]["seed"]
    assert "on the training and validation splits" in result["winner"]["weights"]
    assert not (folder / "refit").exists()
    assert result["test_scored"] == 1
    again = Heard()
    run_search(toy_images, folder, *BOTH, on_event=again)
    assert not again.of("export"), "a finished run is not trained again"


@pytest.mark.usefixtures("fast_export")
def test_refit_that_is_stopped_goes_on_to_the_same_weights(
    toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def remember(*arguments: object, **named: object) -> object:
        found.append(refit(*arguments, **named))  # type: ignore[arg-type]
        return found[-1]

    monkeypatch.setattr(driver, "refit", remember)
    run_search(toy_images, tmp_path / "whole", *BOTH)
    stop = threading.Event()

    def hear(event: Event) -> None:
        if event.kind == "export" and "refit" in event.data:
            stop.set()

    assert run_search(toy_images, tmp_path / "run", *BOTH, on_event=hear, should_stop=stop.is_set).interrupted
    stop.clear()
    assert not run_search(toy_images, tmp_path / "run", *BOTH).interrupted
    whole, stopped, resumed = found
    assert stopped is None
    assert all((whole[name] == resumed[name]).all() for name in whole)


@pytest.mark.usefixtures("fast_export")
def test_patience_does_not_end_a_refit(toy_images: Path, tmp_path: Path) -> None:
    accuracy = ("search.metric=accuracy", "trainer.patience=1", "trainer.epochs=6")  # which is soon at its highest
    run_search(toy_images, tmp_path / "run", *BOTH, *accuracy)
    assert read_json(tmp_path / "run" / "result.json")["winner"]["made_of"]["refitted"]


def test_task_whose_thresholds_need_samples_that_were_not_trained_on_is_refused(toy_images: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.jsonl"
    rows = [{"text": f"word{number % 3} and more {number}", "labels": [f"l{number % 3}"]} for number in range(60)]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match=r"export\.refit: must be false for multi-label"):
        run_search(table, tmp_path / "run", *BOTH[:2], "task=multi-label", backbones=("toy/text",))
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("fast_export")
def test_without_time_for_it_the_search_says_so_and_exports_what_it_has(
    toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = driver._Driver._refit

    def late(self: driver._Driver, *rest: object) -> object:
        self.started -= 1000.0
        return real(self, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(driver._Driver, "_refit", late)
    heard = Heard()
    run_search(toy_images, tmp_path / "run", *BOTH, "search.time_limit=60s", on_event=heard)
    assert [data["about"] for data in heard.of("warning")] == ["refit"]
    assert not read_json(tmp_path / "run" / "result.json")["winner"]["made_of"]["refitted"]


@pytest.mark.slow
def test_model_card_does_not_praise_scores_on_samples_that_were_trained_on_and_the_run_is_reproduced(
    toy_images: Path, toy_env: dict[str, str], tmp_path: Path
) -> None:
    settings = [argument for setting in BOTH for argument in ("--set", setting)]
    run = tmp_path / "run"
    found = autoft("search", toy_images, "-b", "toy/mlp", *settings, "-o", run, env=toy_env)
    assert found.code == 0, found.err
    card = (run / "bundle" / "README.md").read_text()
    assert "their figures say nothing about new data" in card
    assert "a little optimistic" not in card
    assert reproduce(run, test=True).reproduced
