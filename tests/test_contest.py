"""The last round trains the best few and the preset over seeds, decides by `confirm.judge`, and survives being stopped."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from commands import Heard, run_search, study_of

from autoft import contest
from autoft.confirm import Contender, Verdict, judge
from autoft.events import Event
from autoft.files import load_tensors, read_json

pytestmark = pytest.mark.usefixtures("toys", "fast_export")
ROUND = ("search.seeds=3", "search.metric=log_loss")


def confirmed(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(run / "result.json")["confirmed"]
    return found


def test_the_best_trials_and_the_preset_are_trained_with_three_seeds_and_the_best_mean_wins(
    toy_images: Path, tmp_path: Path
) -> None:
    heard, run = Heard(), tmp_path / "run"
    result = run_search(toy_images, run, *ROUND, "search.confirm=1", on_event=heard)
    ranked = sorted(study_of(run).trials, key=lambda trial: trial.user_attrs["best_value"])
    contenders = {0, ranked[0].number}
    trained = [(data["trial"], data["seed"]) for data in heard.of("confirm") if data["stage"] == "training"]
    assert sorted(trained) == [(number, seed) for number in sorted(contenders) for seed in (1, 2)], "seed 0 is the trial"
    found = confirmed(run)
    assert {int(number) for number in found["values"]} == contenders
    assert all(sorted(values) == ["0", "1", "2"] for values in found["values"].values())
    assert len({value for values in found["values"].values() for value in values.values()}) == 3 * len(contenders)
    wanted = judge(
        [Contender(int(number), number == "0", tuple(values.values())) for number, values in found["values"].items()],
        "minimize",
    )
    assert result.trial == found["winner"] == wanted.winner
    assert [data["winner"] for data in heard.of("confirm") if data["stage"] == "verdict"] == [wanted.winner]


def test_the_verdict_decides_which_trial_is_exported_not_the_single_best_score(
    toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def last(contenders: list[Contender], direction: str) -> Verdict:
        worst = max(contenders, key=lambda one: one.values[0])
        return Verdict(worst.number, 0.5, 0.1, 3, 0.5, 0.1, 0.0, 0.1, "the test says so")

    monkeypatch.setattr(contest, "judge", last)
    result = run_search(toy_images, tmp_path / "run", *ROUND)
    ranked = sorted(study_of(tmp_path / "run").trials, key=lambda trial: trial.user_attrs["best_value"])
    assert result.trial == ranked[-1].number != ranked[0].number


def test_without_confirmation_the_best_single_score_wins(toy_images: Path, tmp_path: Path) -> None:
    heard = Heard()
    result = run_search(toy_images, tmp_path / "run", "search.seeds=1", "search.metric=log_loss", on_event=heard)
    ranked = sorted(study_of(tmp_path / "run").trials, key=lambda trial: trial.user_attrs["best_value"])
    assert heard.of("confirm") == []
    assert (result.trial, confirmed(tmp_path / "run")) == (ranked[0].number, {})


def test_a_last_round_that_is_stopped_goes_on_to_the_same_end(toy_images: Path, tmp_path: Path) -> None:
    run_search(toy_images, tmp_path / "whole", *ROUND)
    stop = threading.Event()

    def hear(event: Event) -> None:
        if event.kind == "confirm" and event.data["stage"] == "training":
            stop.set()

    run = tmp_path / "run"
    sessions = 0
    for _ in range(10):
        stop.clear()
        sessions += 1
        if not run_search(toy_images, run, *ROUND, on_event=hear, should_stop=stop.is_set).interrupted:
            break
        assert not (run / "result.json").exists()
    assert sessions > 1, "it was stopped"
    assert confirmed(run) == confirmed(tmp_path / "whole")
    for file in sorted((tmp_path / "whole" / "confirm").glob("*/model.safetensors")):
        one, other = load_tensors(file)[0], load_tensors(run / "confirm" / file.parent.name / file.name)[0]
        assert all((one[name] == other[name]).all() for name in one)


def test_weights_of_losers_go_and_are_trained_again_when_one_of_them_wins_later(
    toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    first = run_search(toy_images, run, *ROUND)

    def owners() -> set[str]:
        return {file.parent.name.partition("-")[0] for file in run.glob("confirm/*/model.safetensors")}

    def results() -> set[str]:
        return {file.parent.name.partition("-")[0] for file in run.glob("confirm/*/result.json")}

    assert owners() == {str(first.trial)} < results()
    loser = min(int(number) for number in results() - owners())

    def choose(contenders: list[Contender], direction: str) -> Verdict:
        return Verdict(loser, 0.5, 0.1, 3, 0.5, 0.1, 0.0, 0.1, "the test says so")

    monkeypatch.setattr(contest, "judge", choose)
    assert run_search(toy_images, run, *ROUND).trial == loser
    assert owners() == {str(loser)}
