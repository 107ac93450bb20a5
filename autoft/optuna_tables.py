"""Which version of Optuna's tables a database has; upgrades those of a run's file, and refuses others."""

from __future__ import annotations

import logging
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path

import optuna
from alembic.script import ScriptDirectory
from optuna.storages import RDBStorage

from autoft.config.address import HIDDEN, masked
from autoft.errors import StorageError
from autoft.files import copy_atomically
from autoft.runfolder import STUDY

BUSY = 60.0  # seconds that SQLite waits for a lock: readers hold one for milliseconds, a machine that pages for longer


def connect_file(database: Path, *, make: bool = False) -> sqlite3.Connection:
    """Open an SQLite file, by path.

    Args:
        database: The file.
        make: Whether it may be made; otherwise a missing one is an error.
    """
    where = f"{database.absolute().as_uri()}?mode={'rwc' if make else 'rw'}"
    return sqlite3.connect(where, uri=True, timeout=BUSY, check_same_thread=False)


def refuse_other(stored: str | None, url: str) -> None:
    """Refuse tables of another version than the installed Optuna's."""
    known, head = schemas()
    if stored is None or stored == head:
        return
    raise StorageError(other_schema(masked(url), stored, known), _schema_hint(stored, known, masked(url)))


def upgrade(database: Path, warn: Callable[[str], None]) -> None:
    """Bring the file of a run of an older Optuna to the present schema: a copy is upgraded, and the old file kept."""
    stored = stored_schema(database)
    known, head = schemas()
    if stored is None or stored == head:
        return
    if stored not in known:
        raise StorageError(other_schema(str(database), stored, known), _schema_hint(stored, known, ""))
    backup = database.with_name(f"{database.name}.schema-{stored}")
    with tempfile.TemporaryDirectory(prefix="autoft-upgrade-") as folder, _quiet_alembic():
        draft = Path(folder) / STUDY
        with closing(connect_file(database)) as file, closing(sqlite3.connect(draft)) as copy:
            file.backup(copy)
        RDBStorage(f"sqlite:///{draft}", skip_compatibility_check=True).upgrade()
        copy_atomically(database, backup)
        copy_atomically(draft, database)
    warn(f"{database} was of an older Optuna (schema {stored}) and has been upgraded; as it was, it is in {backup.name}")


def stored_schema(database: Path) -> str | None:
    """Return the version of the tables in an SQLite file; None where there are none yet."""
    if not database.is_file() or database.stat().st_size == 0:
        return None
    with closing(connect_file(database)) as file:
        if not file.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone():
            return None
        row = file.execute("SELECT version_num FROM alembic_version").fetchone()
    return None if row is None else str(row[0])


def schemas() -> tuple[list[str], str]:
    """Return the versions of its tables that the installed Optuna knows, and the one that it works with."""
    script = ScriptDirectory(str(Path(optuna.__file__).parent / "storages" / "_rdb" / "alembic"))
    return [revision.revision for revision in script.walk_revisions()], str(script.get_current_head())


def other_schema(where: str, stored: str, known: list[str]) -> str:
    """Return what is wrong with tables of another version, in words."""
    whose = "an older" if stored in known else "a newer"
    return f"{where} has the tables of {whose} Optuna (schema {stored}), which Optuna {version('optuna')} does not read"


def _schema_hint(stored: str, known: list[str], url: str) -> str:
    if stored not in known:
        return "pip install -U optuna"
    return f"make a backup, then `optuna storage upgrade --storage {url}` with your password in place of {HIDDEN}"


@contextmanager
def _quiet_alembic() -> Iterator[None]:
    """Keep alembic from setting up the logging of this whole process, as it does where it finds none."""
    handler = logging.NullHandler()
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
