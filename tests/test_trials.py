"""What a new trial is made of: extra settings of the full space vary a few at a time, around the best trial."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import event
from sqlalchemy.engine import Engine
from test_space import space_of

from autoft.space import Space, suggest
from autoft.storage import open_study
from autoft.trials import DUE, IN_PLAY, PAUSED, STARTUP_TRIALS, UNTIL, Trials

FULL: Space = space_of(level="full", traits=[frozenset({"batch_norm"})], samples=100)


def trials(folder: Path, space: Space = FULL, seed: int = 0) -> Trials:
    folder.mkdir(exist_ok=True)
    return Trials(open_study(folder, None, "test", "maximize"), "maximize", space, seed=seed)


def tell(kept: Trials, value: float, space: Space = FULL) -> dict[str, Any]:
    trial = kept.ask()
    suggest(trial, space)
    kept.tell(trial, TrialState.COMPLETE, value, best_value=value)
    return dict(trial.params)


def changed(params: dict[str, Any], base: dict[str, Any]) -> set[str]:
    return {name for name in FULL.extra if params[name] != base[name]}


def test_a_few_extra_settings_vary_in_each_trial_and_the_others_always(tmp_path: Path) -> None:
    kept = trials(tmp_path)
    preset = tell(kept, 0.9)
    first = [tell(kept, 0.1) for _ in range(STARTUP_TRIALS - 1)]
    found = [tell(kept, 0.1) for _ in range(24)]
    assert preset == FULL.preset_of(0)
    assert [changed(params, preset) for params in first] == [set()] * len(first)
    counts = [len(changed(params, preset)) for params in found]
    # a choice may fall on the preset's own value
    assert 0.5 * IN_PLAY * len(FULL.extra) < fmean(counts) < 1.5 * IN_PLAY * len(FULL.extra)
    assert max(counts) < 0.7 * len(FULL.extra)
    assert len(set.union(*(changed(params, preset) for params in found))) > 0.7 * len(FULL.extra)
    assert len({params["learning_rate"] for params in found}) == len(found)


def test_extra_settings_of_the_best_trial_are_kept(tmp_path: Path) -> None:
    kept = trials(tmp_path)
    preset = tell(kept, 0.1)
    for _ in range(STARTUP_TRIALS):
        tell(kept, 0.2)
    best = max((tell(kept, 0.3 + number / 100) for number in range(6)), key=lambda params: len(changed(params, preset)))
    kept.tell(again := _queued(kept, best), TrialState.COMPLETE, 0.9, best_value=0.9)
    assert len(changed(again.params, preset)) >= 2
    for _ in range(5):
        following = tell(kept, 0.0)
        assert len(changed(following, best)) < len(changed(following, preset))


def _queued(kept: Trials, params: dict[str, Any]) -> optuna.Trial:
    kept._study.enqueue_trial(params)
    trial = kept._study.ask()
    suggest(trial, kept._space)
    return trial


def test_trial_that_trains_alike_is_a_twin_whatever_its_settings_without_effect(tmp_path: Path) -> None:
    space = space_of({"averaging": "search", "ema_decay": "search"})
    kept = trials(tmp_path, space)
    params = tell(kept, 0.5, space)
    assert kept.twin(_queued(kept, params | {"ema_decay": 0.95})) is not None
    assert kept.twin(_queued(kept, params | {"ema_decay": 0.95, "averaging": "ema"})) is None


@pytest.mark.parametrize("space", [FULL, space_of()], ids=["full", "small"])
def test_proposals_repeat_with_the_seed(space: Space, tmp_path: Path) -> None:
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        kept = trials(tmp_path / name, space, seed)
        found.append([tell(kept, 0.5 + number / 100, space) for number in range(12)])
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_short_search_in_the_full_space_is_that_in_the_small_one(tmp_path: Path) -> None:
    small = space_of()
    found = {}
    for name, space in (("small", small), ("full", FULL)):
        kept = trials(tmp_path / name, space)
        found[name] = [tell(kept, 0.5 + number / 100, space) for number in range(STARTUP_TRIALS)]
    assert [{key: params[key] for key in small.preset_of(0)} for params in found["full"]] == found["small"]


@pytest.mark.parametrize("writes", range(4))
def test_kill_between_the_writes_of_a_start_leaves_a_trial_that_has_begun_or_has_not(
    writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = trials(tmp_path)
    trial = kept.ask()
    left, original = iter(range(writes)), optuna.Trial.set_user_attr

    def write(self: optuna.Trial, key: str, value: object) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        original(self, key, value)

    monkeypatch.setattr(optuna.Trial, "set_user_attr", write)
    with nullcontext() if writes == 3 else pytest.raises(KeyboardInterrupt):
        kept.start(trial, 3, 7.5)
    known = trials(tmp_path).all()[trial.number].user_attrs
    assert (UNTIL in known) == (writes >= 2)
    assert UNTIL not in known or (known[UNTIL], known[DUE], known.get(PAUSED, 0)) == (3, 7.5, 0)


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def live(kept: Trials, space: Space) -> None:
    """Let two trials train, rest, go on and end, one of them as not promoted, as the driver does."""
    kept.remember("seconds", 1.0)
    for number in range(2):
        trial = kept.ask()
        suggest(trial, space)
        kept.start(trial, 1, 10.0)
        kept.report(trial, 0.25, 1)
        kept.pause(trial, 1, best_value=0.25, epochs=1, metrics={"accuracy": 0.25})
        if number:
            kept.tell(kept.resume(trial.number), TrialState.PRUNED, paused=0, stopped="not promoted")
            continue
        trial = kept.resume(trial.number)
        kept.start(trial, 2, 20.0)
        kept.report(trial, 0.5, 2)
        kept.tell(trial, TrialState.COMPLETE, 0.5, best_value=0.5, epochs=2)


def test_kill_at_any_write_is_no_damage(tmp_path: Path) -> None:
    space = space_of()
    left: list[int | None] = [None]

    def kill(connection: Any, cursor: Any, statement: str, *others: Any) -> None:
        if left[0] is None or statement.startswith(("SELECT", "PRAGMA")):
            return
        left[0] -= 1
        if left[0] < 0:
            left[0] = None
            raise Killed

    trials(tmp_path / "new", space)
    event.listen(Engine, "before_cursor_execute", kill)
    try:
        place, lived = 0, False
        while not lived:
            folder = tmp_path / str(place)
            shutil.copytree(tmp_path / "new", folder)
            kept = trials(folder, space)
            left[0] = place
            try:
                live(kept, space)
                lived = True
            except Killed:
                place += 2
            left[0] = None
            found = trials(folder, space).all()  # reads all, and compares
        assert place > 40
        assert all(trial.user_attrs["seal"] for trial in found)
    finally:
        event.remove(Engine, "before_cursor_execute", kill)


def test_epoch_that_the_database_has_otherwise_counts_as_it_was_trained(tmp_path: Path) -> None:
    space = space_of()
    kept = trials(tmp_path, space)
    trial = kept.ask()
    suggest(trial, space)
    kept.report(trial, 0.25, 1)
    kept.report(trial, 0.5, 1)
    assert kept.all()[trial.number].intermediate_values == {1: 0.5}
    assert trials(tmp_path, space).all()[trial.number].intermediate_values == {1: 0.5}
