"""What a database gives back is compared with what was written; a kill between two writes is no damage."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from autoft.errors import RunError
from autoft.seals import SEAL, check, on_write, promise, read_whole, readable, seal_of

optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    """Two trials, as `trials.py` keeps them: one has ended, one rests."""
    made = optuna.create_study(storage=f"sqlite:///{tmp_path / 'study.db'}", direction="maximize")
    promise(made)
    for _ in range(2):
        made.enqueue_trial({"rate": 0.25})
    for paused in (0, 1):
        trial = made.ask()
        trial.suggest_float("rate", 0.0, 1.0)
        trial.report(0.5, 1)
        trial.set_user_attr("best_value", 0.5)
        frozen = made.get_trials(deepcopy=False)[trial.number]
        trial.set_user_attr(SEAL, seal_of(frozen, *(("paused", None) if paused else ("COMPLETE", 0.5))))
        trial.set_user_attr("paused", paused)
        if not paused:
            made.tell(trial, 0.5)
    return made


def again(tmp_path: Path) -> optuna.Study:
    return optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path / 'study.db'}")


def test_trials_as_they_were_written_pass(study: optuna.Study, tmp_path: Path) -> None:
    read_whole(again(tmp_path), "study.db")
    assert [SEAL in trial.user_attrs for trial in again(tmp_path).trials] == [True, True]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE trial_values SET value = 0.75",
        "UPDATE trial_intermediate_values SET intermediate_value = 0.75 WHERE trial_id = 2",
        "UPDATE trial_user_attributes SET value_json = '0.75' WHERE key = 'best_value' AND trial_id = 2",
        "UPDATE trial_params SET param_value = 0.75 WHERE trial_id = 1",
        "UPDATE trial_params SET param_value = 0.75 WHERE trial_id = 2",
        "UPDATE trials SET state = 'PRUNED' WHERE trial_id = 1",
        "DELETE FROM trial_user_attributes WHERE key = 'best_value' AND trial_id = 1",
        "UPDATE trials SET state = 'COMPLETF' WHERE trial_id = 1",
        "UPDATE trial_user_attributes SET value_json = '0.5]' WHERE key = 'best_value' AND trial_id = 2",
        "UPDATE trials SET number = 'x' WHERE trial_id = 2",
        "INSERT INTO trial_intermediate_values SELECT 9, trial_id, 'x', intermediate_value, intermediate_value_type "
        "FROM trial_intermediate_values WHERE trial_id = 2",
        "DELETE FROM trial_user_attributes WHERE key = 'seal' AND trial_id = 1",
        "UPDATE trial_user_attributes SET key = 'sebl' WHERE key = 'seal' AND trial_id = 2",
        "INSERT INTO trial_values SELECT 9, trial_id, 1, value, value_type FROM trial_values",
        "DROP TABLE trial_params",
    ],
)
def test_what_has_changed_is_told(change: str, study: optuna.Study, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "study.db")) as database:
        database.execute(change)
        database.commit()
    with pytest.raises(RunError, match=r"^study\.db (is damaged|cannot be read): ") as caught:
        read_whole(again(tmp_path), "study.db")
    assert caught.value.hint


def test_index_that_no_longer_leads_to_its_rows_is_told(study: optuna.Study, tmp_path: Path) -> None:
    def change(*statements: str) -> None:
        with closing(sqlite3.connect(tmp_path / "study.db")) as database:
            database.execute("PRAGMA writable_schema = ON")
            for statement in statements:
                database.execute(statement)
            database.commit()

    index = "FROM sqlite_master WHERE name = 'ix_trials_study_id'"
    change(f"CREATE TABLE hidden AS SELECT * {index}", f"DELETE {index}")
    change("UPDATE trials SET study_id = 1 - study_id WHERE trial_id = 2")
    change("INSERT INTO sqlite_master SELECT * FROM hidden")
    with closing(sqlite3.connect(tmp_path / "study.db")) as database:
        assert database.execute("PRAGMA quick_check").fetchall() == [("ok",)]
    with pytest.raises(RunError, match=r"^study\.db is damaged: row 2 missing from index"):
        read_whole(again(tmp_path), "study.db")


def test_trials_of_an_earlier_autoft_need_no_seal(study: optuna.Study, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "study.db")) as database:
        database.execute("DELETE FROM study_user_attributes")
        database.execute("DELETE FROM trial_user_attributes WHERE key = 'seal' AND trial_id = 1")
        database.commit()
    read_whole(again(tmp_path), "study.db")


def test_trial_that_trains_may_change_under_its_seal(study: optuna.Study, tmp_path: Path) -> None:
    trial = optuna.Trial(study, study.trials[1]._trial_id)
    trial.set_user_attr("due", 3.0)  # the first writes of a trial that goes on, between each of which a kill may come
    read_whole(again(tmp_path), "study.db")
    trial.set_user_attr("until", 3)
    read_whole(again(tmp_path), "study.db")
    trial.set_user_attr("paused", 0)
    trial.report(0.625, 2)
    read_whole(again(tmp_path), "study.db")


def test_trials_without_seals_pass_and_missing_ones_are_told(study: optuna.Study) -> None:
    plain = optuna.trial.create_trial(value=1.0)
    plain.number = 0
    check([plain], "study.db")
    with pytest.raises(RunError, match="trial 0 does not match"):
        check(study.get_trials(deepcopy=False)[1:], "study.db")


def test_only_what_a_damaged_database_raises_is_told_as_such() -> None:
    def fails(error: Exception) -> Callable[[], Any]:
        def read() -> Any:
            raise error

        return read

    assert readable(lambda: 3, "study.db") == 3
    with pytest.raises(RunError, match=r"study\.db cannot be read: KeyError: 'x'"):
        readable(fails(KeyError("x")), "study.db")
    with pytest.raises(MemoryError):
        readable(fails(MemoryError()), "study.db")


def test_writing_is_told_and_reading_is_not(study: optuna.Study) -> None:
    told: list[int] = []
    on_write(study, lambda: told.append(1))
    study.get_trials(deepcopy=False)
    assert not told
    study.enqueue_trial({"rate": 0.5})
    assert told


def test_trials_of_a_database_in_memory_are_checked_too() -> None:
    made = optuna.create_study(storage="sqlite://", direction="maximize")
    made.enqueue_trial({"rate": 0.25})
    made.ask().suggest_float("rate", 0.0, 1.0)
    read_whole(made, "memory")
    assert made.trials[0].state == TrialState.RUNNING
