"""Tells whether what a database gives back of a run's trials is what was written, and when; what it is, `trials.py` decides.

SQLite notices a torn file, and most damage to its structure, but not a number that has changed on the disk. So a trial that
rests or has ended carries a checksum of itself, as one of its attributes, and the study says that they all do.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import optuna
from optuna.trial import FrozenTrial
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from autoft.errors import RunError, first_line

SEAL = "seal"
SEALED = "sealed"  # of a study: every trial that rests or has ended has a seal
# `paused` and its like are written one after another, before and after the seal; seconds and traces differ from run to run,
# and two runs of one study are to be compared by their attributes
LEFT_OUT = frozenset({SEAL, "paused", "until", "due", "seconds", "trace"})
HINT = "restore it from a backup, or choose another folder with -o"

_Found = TypeVar("_Found")


def seal_of(trial: FrozenTrial, state: str, value: float | None) -> str:
    """Return the checksum of a trial's number, parameters, values and attributes.

    Args:
        trial: As it is stored now.
        state: What it is about to become: the name of a finished state, or `paused`.
        value: Its final value, where it gets one.
    """
    stored = {
        "number": trial.number,
        "state": state,
        "value": value,
        "params": trial.params,
        "steps": sorted(trial.intermediate_values.items()),
        "attributes": {name: found for name, found in trial.user_attrs.items() if name not in LEFT_OUT},
    }
    return f"crc32:{zlib.crc32(json.dumps(stored, sort_keys=True).encode('utf-8')):08x}"


def promise(study: optuna.Study) -> None:
    """Note in a new study that its trials are sealed, so that a seal that got lost is noticed."""
    study.set_user_attr(SEALED, True)


def check(trials: Sequence[FrozenTrial], where: str, *, sealed: bool = False) -> None:
    """Compare trials with their seals, and the parameters of all with those that were queued.

    Args:
        trials: All trials of a run, in order.
        where: The database, for the error.
        sealed: Whether all must have one; those of an earlier autoft have none.

    Raises:
        RunError: One is not what was written.
    """
    readable(lambda: _check(trials, where, sealed), where)  # a value of another type may not even be comparable


def _check(trials: Sequence[FrozenTrial], where: str, always: bool) -> None:
    for place, trial in enumerate(trials):
        queued = trial.system_attrs.get("fixed_params", {})
        seal = trial.user_attrs.get(SEAL)
        state = trial.state.name if trial.state.is_finished() else "paused"
        due = trial.state.is_finished() or bool(trial.user_attrs.get("paused"))
        values = trial.values if trial.state == optuna.trial.TrialState.COMPLETE else [None]
        if (
            trial.number != place
            or any(queued.get(name, found) != found for name, found in trial.params.items())
            or (due and seal is None and always)
            or (due and seal is not None and (len(values) != 1 or seal != seal_of(trial, state, values[0])))
        ):
            raise RunError(f"{where} is damaged: what it says of trial {place} does not match its checksum", HINT)


def read_whole(study: optuna.Study, where: str) -> None:
    """Read all that a study's database has, once, before it is relied upon.

    Raises:
        RunError: It cannot be read, or is not what was written.
    """
    engine = _engine(study)
    if engine.dialect.name == "sqlite":

        def structure() -> str:
            # not `quick_check`, which does not see an index that no longer leads to its rows
            with engine.connect() as connection:
                return str(connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar())

        found = readable(structure, where)
        if found != "ok":
            raise RunError(f"{where} is damaged: {found}", HINT)
    sealed = bool(readable(lambda: study.user_attrs, where).get(SEALED))
    check(readable(lambda: study.get_trials(deepcopy=False), where), where, sealed=sealed)


def on_write(study: optuna.Study, call: Callable[[], None]) -> None:
    """Call a function before each statement by which this process changes a study's database."""

    def note(connection: Any, cursor: Any, statement: str, *others: Any) -> None:
        if not statement.lstrip().upper().startswith(("SELECT", "PRAGMA")):
            call()

    event.listen(_engine(study), "before_cursor_execute", note)


def _engine(study: optuna.Study) -> Any:
    storage: Any = study._storage
    return getattr(storage, "_backend", storage).engine  # below Optuna's cache


def readable(read: Callable[[], _Found], where: str) -> _Found:
    """Return what `read` gives; what Optuna and SQLAlchemy raise over a damaged database becomes one error.

    Raises:
        RunError: It cannot be read.
    """
    try:
        return read()
    except RunError:
        raise
    # beside the database's own errors: what is no JSON, no text, no date, no known state or type of value any more
    except (
        SQLAlchemyError,
        optuna.exceptions.OptunaError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        AssertionError,
        OverflowError,
    ) as error:
        raise RunError(f"{where} cannot be read: {type(error).__name__}: {first_line(error)}", HINT) from error
