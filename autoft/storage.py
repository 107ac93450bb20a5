"""Where a run's trials are: a file in its folder, or a database that other runs may share; finds, opens and reads it.

How an opened database is held through an outage is left to `outage.py`, tables of other versions to `optuna_tables.py`.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from filelock import FileLock
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from autoft.config.address import is_masked, masked, objection, scrubbed, without_password
from autoft.errors import RunError, StorageError, first_line
from autoft.events import Event, Listener
from autoft.files import read_json, write_checked
from autoft.optuna_tables import BUSY, connect_file, other_schema, refuse_other, schemas, stored_schema, upgrade
from autoft.outage import PatientStorage
from autoft.runfolder import PLACE, STUDY, TRIALS
from autoft.specs import Direction
from autoft.worker import is_full_disk

VARIABLE = "AUTOFT_STORAGE"
# A server that is gone without a word is noticed: libpq tells the kernel to look after the connection.
POSTGRESQL = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "application_name": "autoft",
}
MAKING = 0x6175746F6674  # PostgreSQL's advisory lock while tables are made: searches on a new database begin together


# --- which ------------------------------------------------------------------------------------------------------------


def choose_url(setting: str | None, run: Path, environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the URL of the database that keeps a run's trials, with its password; None for the file in its folder.

    The study's setting comes first, then AUTOFT_STORAGE, which is for new runs and for those that have their trials there.

    Args:
        setting: `search.storage`, whose password may be hidden, as in a run's `study.yaml`.
        run: The run folder, which may not exist yet.
        environ: The environment.

    Raises:
        StorageError: The run has its trials elsewhere, or the password is missing.
    """
    offered = environ.get(VARIABLE) or None
    if offered is not None:
        wrong = objection(offered)
        if wrong is not None:
            raise StorageError(f"{VARIABLE} {wrong[0]}", wrong[1])
    known = _place(run)["url"] if (run / PLACE).exists() else None
    if known is None and (run / STUDY).exists():
        if setting is not None:
            raise StorageError(
                f"the trials of {run} are in its {STUDY}, but `search.storage` is {masked(setting)}",
                "leave the setting out, or choose another folder with -o",
            )
        return None
    if setting is not None:
        return _with_password(setting, offered, environ)
    if offered is not None:
        return offered
    return None if known is None else _with_password(known, None, environ)


def _with_password(url: str, offered: str | None, environ: Mapping[str, str]) -> str:
    if not is_masked(url):
        return url
    if offered is not None and masked(offered) == url:
        return offered
    if "PGPASSWORD" in environ or "PGPASSFILE" in environ:
        return without_password(url)
    raise StorageError(
        f"the trials are in {url}, but its password is not known: it is never written to a run folder",
        f"set {VARIABLE} to the whole URL, or PGPASSWORD to the password; or give the URL with --storage",
    )


def _place(run: Path) -> dict[str, Any]:
    """Return what a run folder says of a database elsewhere."""
    try:
        place = read_json(run / PLACE)
        return {"url": str(place["url"]), "study": str(place["study"]), "made": bool(place["made"])}
    except (OSError, ValueError, KeyError) as error:
        raise StorageError(f"{run / PLACE} is damaged: {first_line(error)}", "restore it from a backup") from error


# --- opening it to search ---------------------------------------------------------------------------------------------


def open_study(
    run: Path,
    url: str | None,
    name: str,
    direction: Direction,
    *,
    listener: Listener = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> optuna.Study:
    """Open the Optuna study of a run that this process holds; make it where there is none.

    In a shared database its name ends in a random part, so that no two runs meet, whatever they are called; the run folder
    knows it.

    Args:
        run: The run folder.
        url: Of `choose_url`.
        name: Of the study.
        direction: Of the metric.
        listener: Hears of outages, and of an upgrade.
        should_stop: Whether the user wants to stop.

    Raises:
        StorageError: The database cannot be opened, or has no such study.
        RunError: The file in the run folder is damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # autoft reports trials itself

    def warn(text: str) -> None:
        listener(Event("warning", text, {"about": "storage"}))

    if url is None:
        return _open_file(run / STUDY, name, direction, warn, should_stop)
    place = _place(run) if (run / PLACE).exists() else None
    storage = connect(url, warn=warn, should_stop=should_stop)
    if place is not None and place["made"]:
        if place["study"] not in optuna.get_all_study_names(storage):
            raise StorageError(
                f"the trials of {run} are in the study {place['study']} of {place['url']}, "
                f"but {masked(url)} has no such study",
                "give the URL of the database that has it with --storage, or choose another folder with -o",
            )
        found = optuna.load_study(study_name=place["study"], storage=storage, **_never_asked())
        if place["url"] != masked(url):  # the database has moved
            write_checked(run / PLACE, {**place, "url": masked(url)})
        return found
    place = {"url": masked(url), "study": f"{name}-{secrets.token_hex(6)}", "made": False}
    write_checked(run / PLACE, place)
    made = optuna.create_study(storage=storage, study_name=place["study"], direction=direction, **_never_asked())
    write_checked(run / PLACE, {**place, "made": True})  # from now on a database without it is another one
    return made


def _open_file(
    database: Path, name: str, direction: Direction, warn: Callable[[str], None], should_stop: Callable[[], bool]
) -> optuna.Study:
    there, trials = database.exists(), database.parent / TRIALS
    if any(trials.glob("*")) and not (there and database.stat().st_size):
        raise RunError(
            f"{database} is {'empty' if there else 'gone'}, but {trials} holds its trials' files",
            "restore it from a backup, or choose another folder with -o",
        )
    try:
        upgrade(database, warn)
        return optuna.create_study(
            storage=_sqlite(database, str(database), warn, should_stop),
            study_name=name,
            direction=direction,
            load_if_exists=True,
            **_never_asked(),
        )
    except (sqlite3.Error, SQLAlchemyError, StorageInternalError, RuntimeError) as error:
        if is_full_disk(error):
            raise
        raise RunError(
            f"{database} cannot be read: {first_line(error)}",
            "restore it from a backup, or choose another folder with -o",
        ) from error


def _never_asked() -> dict[str, Any]:
    # every trial's parameters are queued
    return {"sampler": optuna.samplers.RandomSampler(), "pruner": optuna.pruners.NopPruner()}


def connect(
    url: str,
    *,
    warn: Callable[[str], None] = lambda text: None,
    should_stop: Callable[[], bool] = lambda: False,
    patience: float | None = None,
) -> PatientStorage:
    """Open a database of Optuna's, and make its tables where it is new.

    Args:
        url: Its URL, with the password where it needs one.
        warn: Hears of outages.
        should_stop: Whether the user wants to stop.
        patience: Seconds that an operation is repeated for; as `outage.py` says if None.

    Raises:
        StorageError: It cannot be opened; says why.
    """
    try:
        if url.startswith("sqlite"):
            file = Path(url.removeprefix("sqlite:///"))
            if not file.parent.is_dir():
                raise NotADirectoryError(f"there is no folder {file.parent}")
            # beside the file, as SQLite has no lock that outlives a transaction: others make the same tables
            with FileLock(file.with_name(f".{file.name}.opening"), timeout=BUSY):
                refuse_other(stored_schema(file), url)
                return _sqlite(file, url, warn, should_stop, patience)
        return _postgresql(url, warn, should_stop, patience)
    except ImportError as error:
        raise StorageError(
            f"{masked(url)} needs the package psycopg, which is missing: {first_line(error)}",
            "pip install 'autoft[postgresql]'",
        ) from error
    # a RuntimeError is Optuna's, of tables from before they had versions
    except (OSError, sqlite3.Error, SQLAlchemyError, StorageInternalError, ValueError, RuntimeError) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        raise StorageError(
            f"{masked(url)} cannot be opened: {scrubbed(first_line(cause or error), url)}",
            "see that the server runs and that name, password and database are right; the same command then goes on",
        ) from None  # a library's own words may hold the password


def _sqlite(
    database: Path,
    name: str,
    warn: Callable[[str], None] = lambda text: None,
    should_stop: Callable[[], bool] = lambda: False,
    patience: float | None = None,
) -> PatientStorage:
    """Open an SQLite file, by path: in a URL, characters such as `?` in a folder's name would end it.

    The journal is SQLite's own choice, a file that is there during a write alone. A write-ahead log would let readers pass a
    writer, but it does not work on network file systems, and leaves trials in a second file that a copy of the first lacks.
    """
    opened = False

    def open_file() -> sqlite3.Connection:
        # once opened, never made anew: a file that somebody has removed would come back empty
        return connect_file(database, make=not opened)

    options = {"creator": open_file}
    storage = PatientStorage(f"sqlite:///{STUDY}", options, name=name, warn=warn, should_stop=should_stop, patience=patience)
    opened = True
    return storage


def _postgresql(
    url: str, warn: Callable[[str], None], should_stop: Callable[[], bool], patience: float | None
) -> PatientStorage:
    parsed = sqlalchemy.make_url(url).set(drivername="postgresql+psycopg")
    whole = parsed.render_as_string(hide_password=False)
    options: dict[str, Any] = {
        "pool_pre_ping": True,  # a connection that died while a trial trained is replaced before it is used
        "pool_size": 1,
        "max_overflow": 2,
        "connect_args": {name: value for name, value in POSTGRESQL.items() if name not in parsed.query},
    }
    with _making(sqlalchemy.create_engine(whole, **options)) as connection:
        _check_schema(connection, url)
        return PatientStorage(whole, options, name=url, warn=warn, should_stop=should_stop, patience=patience)


def _check_schema(connection: sqlalchemy.Connection, url: str) -> None:
    """Refuse a server's tables where they are another Optuna's: others may be using them."""
    if sqlalchemy.inspect(connection).has_table("alembic_version"):  # else it is new, or not Optuna's yet
        refuse_other(connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version")).scalar(), url)


@contextmanager
def _making(engine: sqlalchemy.Engine) -> Iterator[sqlalchemy.Connection]:
    """Let one process at a time make tables: a lock that the server drops with the connection."""
    try:
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)"), {"key": MAKING})
            yield connection
    finally:
        engine.dispose()


# --- reading a run that may be searched meanwhile ---------------------------------------------------------------------


def read_study(run: Path, environ: Mapping[str, str] = os.environ) -> tuple[list[FrozenTrial], Direction]:
    """Return a run's trials and their direction; nothing is written, and the search may go on meanwhile.

    Raises:
        RunError: There are none, or they cannot be read.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it tells which study it found
    if (run / PLACE).exists():
        place = _place(run)
        url = choose_url(None, run, environ)
        if url is None:
            raise AssertionError(f"{PLACE} names no database")
        storage: RDBStorage = connect(url, patience=0.0)
        if place["study"] not in optuna.get_all_study_names(storage):
            raise StorageError(
                f"the trials of {run} are in the study {place['study']}, but {masked(url)} has no such study",
                f"set {VARIABLE} to the URL of the database that has it",
            )
        return _content(optuna.load_study(study_name=place["study"], storage=storage))
    database = run / STUDY
    if not database.is_file():
        what = "is no folder" if not run.is_dir() else f"has no {STUDY}"
        raise RunError(
            f"the run folder of a search is needed, but {run} {what}",
            "name the folder that `autoft search` printed as `run`, such as runs/NAME",
        )
    try:
        with closing(sqlite3.connect(":memory:", check_same_thread=False)) as copy:
            # not read-only: a killed search may have left a journal, with which the file must first be mended
            with closing(connect_file(database)) as file:
                file.backup(copy)
            options = {"creator": lambda: copy, "poolclass": StaticPool}
            storage = RDBStorage("sqlite://", engine_kwargs=options, skip_compatibility_check=True)
            if storage.get_current_version() != storage.get_head_version():
                known, _ = schemas()
                stored = storage.get_current_version()
                hint = "a search that goes on in the folder upgrades it" if stored in known else "pip install -U optuna"
                raise StorageError(other_schema(str(database), stored, known), hint)
            names = optuna.get_all_study_names(storage)
            return _content(optuna.load_study(study_name=names[0], storage=storage)) if names else ([], "maximize")
    except (sqlite3.DatabaseError, SQLAlchemyError, StorageInternalError) as error:
        raise RunError(f"{database} cannot be read: {first_line(error)}", "restore it from a backup") from error


def _content(study: optuna.Study) -> tuple[list[FrozenTrial], Direction]:
    direction: Direction = "maximize" if study.direction == optuna.study.StudyDirection.MAXIMIZE else "minimize"
    return study.get_trials(), direction
