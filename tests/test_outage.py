"""Operations are repeated while a database is away, take effect once, and end in an error that says what to do."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from autoft import outage
from autoft.errors import StorageError
from autoft.outage import TOKEN, PatientStorage
from autoft.storage import connect
from autoft.worker import is_full_disk

if TYPE_CHECKING:
    from postgres import Server

LOST = OperationalError("SELECT 1", {}, Exception("the server closed the connection"), connection_invalidated=True)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(outage, "LONGEST_WAIT", 0.05)
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'shared.db'}"
    server: Server = request.getfixturevalue("postgres")
    name = f"outage{len(server.sql('SELECT datname FROM pg_database').splitlines())}"
    return server.database(name)


def study_on(storage: PatientStorage) -> optuna.Study:
    return optuna.create_study(storage=storage, study_name="photos", direction="maximize")


def fail_after(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, *, committed: bool, times: int = 1
) -> Callable[[], int]:
    """Lose the answer of an operation: it is done, or not, and an error of the connection follows."""
    method, calls = getattr(owner, name), 0

    def lossy(self: Any, *arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > times:
            return method(self, *arguments, **named)
        if committed:
            method(self, *arguments, **named)
        raise LOST

    monkeypatch.setattr(owner, name, lossy)
    return lambda: calls


@pytest.mark.parametrize("committed", [True, False])
def test_trial_whose_answer_was_lost_is_made_once(url: str, committed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.orm import Session

    study = study_on(connect(url))
    calls = 0
    leave = Session.__exit__

    def lossy(self: Session, *reason: Any) -> None:
        nonlocal calls
        leave(self, *reason)  # it has been committed by now
        calls += 1
        if calls == 1:
            raise LOST

    if committed:
        monkeypatch.setattr(Session, "__exit__", lossy)
    else:
        fail_after(monkeypatch, RDBStorage, "_get_prepared_new_trial", committed=False)
    study.enqueue_trial({"x": 1})
    study.enqueue_trial({"x": 2})
    assert calls > 1 or not committed
    assert [trial.system_attrs["fixed_params"] for trial in study.trials] == [{"x": 1}, {"x": 2}]
    assert len({trial.system_attrs[TOKEN] for trial in study.trials}) == 2
    assert [trial.number for trial in study.trials] == [0, 1]


@pytest.mark.parametrize("committed", [True, False])
def test_state_whose_answer_was_lost_is_set_once(url: str, committed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_on(connect(url))
    study.enqueue_trial({"x": 1})
    calls = fail_after(monkeypatch, RDBStorage, "set_trial_state_values", committed=committed)
    trial = study.ask()
    assert calls() == 2
    assert (len(study.trials), study.trials[0].state) == (1, TrialState.RUNNING), "the waiting trial, not another one"
    calls = fail_after(monkeypatch, RDBStorage, "set_trial_state_values", committed=committed)
    study.tell(trial, 0.5)
    assert calls() >= 2
    assert [(one.state, one.value) for one in study.trials] == [(TrialState.COMPLETE, 0.5)]


def test_trial_that_was_ended_otherwise_is_not_taken_for_ours(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = connect(url)
    study = study_on(storage)
    trial = study.ask()
    study.tell(trial, 0.5)
    fail_after(monkeypatch, RDBStorage, "set_trial_state_values", committed=False)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [0.7])


@pytest.mark.parametrize("committed", [True, False])
def test_every_other_operation_may_be_done_twice(url: str, committed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_on(connect(url))
    trial = study.ask()
    study.add_trial(optuna.trial.create_trial(value=1.0))  # of which it asks for the best
    for name in outage.IDEMPOTENT:
        calls = 0
        method = getattr(RDBStorage, name)

        def lossy(self: Any, *arguments: Any, method: Any = method, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 1:
                if committed:
                    method(self, *arguments, **named)
                raise LOST
            return method(self, *arguments, **named)

        if name != "delete_study":
            monkeypatch.setattr(PatientStorage, name, outage._repeated(name))
            with monkeypatch.context() as patch:
                patch.setattr(RDBStorage, name, lossy)
                patch.setattr(PatientStorage, name, outage._repeated(name))
                _use(study, trial, name)
                assert calls > 1, f"{name} was never repeated"
    found, _ = study.trials
    assert (found.params, found.user_attrs, found.intermediate_values) == ({"_x": 0.5}, {"note": 1}, {3: 0.25})
    assert study.user_attrs == {"seconds": 1.5}


def _use(study: optuna.Study, trial: optuna.Trial, name: str) -> None:
    storage = study._storage._backend
    uses: dict[str, Callable[[], Any]] = {
        "get_study_id_from_name": lambda: storage.get_study_id_from_name("photos"),
        "get_study_name_from_id": lambda: storage.get_study_name_from_id(study._study_id),
        "get_study_directions": lambda: storage.get_study_directions(study._study_id),
        "get_study_user_attrs": lambda: study.user_attrs,
        "get_study_system_attrs": lambda: study._storage.get_study_system_attrs(study._study_id),
        "get_all_studies": lambda: optuna.get_all_study_names(study._storage),
        "get_trial": lambda: storage.get_trial(trial._trial_id),
        "get_trial_id_from_study_id_trial_number": lambda: storage.get_trial_id_from_study_id_trial_number(
            study._study_id, 0
        ),
        "get_trial_system_attrs": lambda: storage.get_trial_system_attrs(trial._trial_id),
        "_get_best_trial_id": lambda: study.best_trial,
        "_get_trials": lambda: study.get_trials(),
        "set_study_user_attr": lambda: study.set_user_attr("seconds", 1.5),
        "set_study_system_attr": lambda: study._storage.set_study_system_attr(study._study_id, "a", 1),
        "set_trial_user_attr": lambda: trial.set_user_attr("note", 1),
        "set_trial_system_attr": lambda: storage.set_trial_system_attr(trial._trial_id, "a", 1),
        "set_trial_intermediate_value": lambda: trial.report(0.25, 3),
        "_set_trial_param": lambda: trial.suggest_categorical("_x", [0.5]),
    }
    uses[name]()


def test_outage_that_lasts_is_told_and_then_stops_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "QUIET", 0.0)
    heard: list[str] = []
    study = study_on(connect(f"sqlite:///{tmp_path / 'shared.db'}", warn=heard.append, patience=0.2))
    with monkeypatch.context() as patch:
        patch.setattr(PatientStorage, "set_study_user_attr", outage._repeated("set_study_user_attr"))
        fail_after(patch, RDBStorage, "set_study_user_attr", committed=False, times=10_000)
        patch.setattr(PatientStorage, "set_study_user_attr", outage._repeated("set_study_user_attr"))
        with pytest.raises(StorageError, match=r"shared\.db does not answer, for 0.2 s: the server closed") as caught:
            study.set_user_attr("a", 1)
    assert "type the same command again" in str(caught.value.hint)
    assert len(heard) == 1
    assert "trying again for up to 0.2 s" in heard[0]
    fail_after(monkeypatch, RDBStorage, "set_study_user_attr", committed=False, times=3)
    monkeypatch.setattr(PatientStorage, "set_study_user_attr", outage._repeated("set_study_user_attr"))
    study.set_user_attr("a", 1)
    assert "answers again" in heard[-1]


def test_whoever_asks_to_stop_does_not_wait_for_an_outage_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "STOP_PATIENCE", 0.05)
    study = study_on(connect(f"sqlite:///{tmp_path / 'shared.db'}", should_stop=lambda: True, patience=1e9))
    fail_after(monkeypatch, RDBStorage, "set_study_user_attr", committed=False, times=10_000)
    monkeypatch.setattr(PatientStorage, "set_study_user_attr", outage._repeated("set_study_user_attr"))
    with pytest.raises(StorageError, match="and a stop was asked for"):
        study.set_user_attr("a", 1)


def test_mistake_of_ours_is_no_outage(tmp_path: Path) -> None:
    study = study_on(connect(f"sqlite:///{tmp_path / 'shared.db'}", patience=1e9))
    with pytest.raises(TypeError):
        study.set_user_attr("a", object())  # no JSON


# --- SQLite -----------------------------------------------------------------------------------------------------------


def _remove(file: Path) -> None:
    file.unlink()


def _replace_with_nothing(file: Path) -> None:
    file.unlink()
    file.touch()


def _damage(file: Path) -> None:
    file.write_bytes(b"no database" * 5000)


@pytest.mark.parametrize("spoil", [_remove, _replace_with_nothing, _damage])
@pytest.mark.parametrize("fresh", [False, True])
def test_file_that_is_lost_during_a_search_is_an_error_at_once(
    spoil: Callable[[Path], None], fresh: bool, tmp_path: Path
) -> None:
    file = tmp_path / "shared.db"
    storage = connect(f"sqlite:///{file}", patience=1e9)
    study = study_on(storage)
    study.set_user_attr("a", 1)
    spoil(file)
    if fresh:
        storage.engine.dispose()  # as a pool does with a connection that failed
    before = file.exists()
    with pytest.raises(StorageError, match=r"shared\.db cannot be used any more") as caught:
        study.ask()
    assert "from a backup" in str(caught.value.hint)
    assert file.exists() == before, "an empty file would hide that the trials are gone"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_file_that_became_read_only_is_an_error_at_once(tmp_path: Path) -> None:
    file = tmp_path / "shared.db"
    storage = connect(f"sqlite:///{file}", patience=1e9)
    study = study_on(storage)
    file.chmod(0o444)
    storage.engine.dispose()
    with pytest.raises(StorageError, match="readonly"):
        study.set_user_attr("a", 1)


def test_full_disk_stays_what_it_is_for_the_search_to_tell(tmp_path: Path) -> None:
    storage = connect(f"sqlite:///{tmp_path / 'shared.db'}", patience=1e9)
    study = study_on(storage)
    storage.engine.dispose()
    sqlalchemy.event.listen(storage.engine, "connect", lambda made, _: made.execute("PRAGMA max_page_count = 1"))
    with pytest.raises(optuna.exceptions.StorageInternalError) as caught:
        study.set_user_attr("a", "x" * 100_000)
    assert is_full_disk(caught.value)


def test_lock_of_another_process_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoft.optuna_tables.BUSY", 0.01)  # SQLite's own wait; what is tested is ours, that comes after
    file = tmp_path / "shared.db"
    study = study_on(connect(f"sqlite:///{file}"))
    other = sqlite3.connect(file, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    release = threading.Timer(0.3, other.rollback)
    release.start()
    study.set_user_attr("a", 1)
    release.join()
    assert study.user_attrs == {"a": 1}
    other.close()


def test_lock_that_is_never_released_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoft.optuna_tables.BUSY", 0.01)
    file = tmp_path / "shared.db"
    study = study_on(connect(f"sqlite:///{file}", patience=0.05))
    other = sqlite3.connect(file)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StorageError, match="database is locked"):
        study.set_user_attr("a", 1)
    other.close()


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


def test_killed_connections_are_replaced(postgres: Server) -> None:
    study = study_on(connect(postgres.database("killed")))
    killed = 0
    for number in range(10):
        killed += postgres.end_connections("killed")
        study.enqueue_trial({"x": number})
        killed += postgres.end_connections("killed")
        trial = study.ask()
        killed += postgres.end_connections("killed")
        trial.report(0.1, 1)
        study.tell(trial, number)
    assert killed >= 20
    assert [trial.value for trial in study.trials] == list(range(10))


def test_restart_of_the_server_is_waited_for(postgres: Server) -> None:
    study = study_on(connect(postgres.database("restarted")))
    postgres.stop()
    restart = threading.Timer(0.3, postgres.start)
    restart.start()
    try:
        study.enqueue_trial({"x": 1})
    finally:
        restart.join()
    assert len(study.trials) == 1


def test_server_that_stays_away_is_an_error_without_its_password(postgres: Server) -> None:
    postgres.database("away")
    url = postgres.url("away", "guest:tr0ub4dor%263")
    study = study_on(connect(url, patience=0.3))
    postgres.stop()
    try:
        began = time.monotonic()
        with pytest.raises(StorageError, match=r"guest:\*\*\*@/away.* does not answer, for 0.3 s") as caught:
            study.enqueue_trial({"x": 1})
        assert time.monotonic() - began < 60
        assert "tr0ub4dor" not in str(caught.value)
    finally:
        postgres.start()
    study.enqueue_trial({"x": 1})
    assert len(study.trials) == 1


def test_study_that_somebody_deletes_is_named(postgres: Server) -> None:
    url = postgres.database("deleted")
    study = study_on(connect(url))
    optuna.delete_study(study_name="photos", storage=connect(url))
    with pytest.raises(StorageError, match="somebody has deleted it"):
        study.get_trials()
    study = study_on(connect(url))
    postgres.sql("DROP TABLE trials CASCADE", "deleted")
    with pytest.raises(StorageError, match="cannot be used any more"):
        study.get_trials()
