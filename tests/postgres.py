"""A PostgreSQL server for tests: in a folder of its own, on a socket in it, gone at the end."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

# Debian keeps the server's programs out of PATH, one folder a version.
FOLDERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
NEEDED = ("initdb", "pg_ctl", "psql")
SETTINGS = "-c fsync=off -c listen_addresses='' -c max_connections=120"


def programs() -> Path | None:
    """The folder of the server's programs; None where no server is installed."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent, *FOLDERS] if found else FOLDERS
    return next((folder for folder in folders if all((folder / name).exists() for name in NEEDED)), None)


def why_not() -> str | None:
    """Why no server can be started here; None where one can."""
    if programs() is None:
        return "no PostgreSQL server is installed (Debian: apt install postgresql)"
    if os.name == "posix" and os.geteuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            return "PostgreSQL does not run as root, and there is no user postgres"
    return None


class Server:
    """A running server, with one superuser `keeper` that needs no password, and `guest`, that does."""

    def __init__(self, folder: Path) -> None:
        found = programs()
        assert found is not None
        self.programs, self.folder = found, folder
        self.as_user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
        if self.as_user:
            shutil.chown(folder, "postgres", "postgres")
        self._do("initdb", "-D", folder / "data", "-U", "keeper", "-A", "trust", "--no-sync", "-E", "UTF8")
        access = folder / "data" / "pg_hba.conf"
        access.write_text("local all guest scram-sha-256\nlocal all all trust\n")
        self.start()
        self.sql("CREATE ROLE guest LOGIN SUPERUSER PASSWORD 'tr0ub4dor&3'")

    def _do(self, program: str, *arguments: object) -> str:
        command = [self.programs / program, *map(str, arguments)]
        run = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.folder, timeout=60, **self.as_user
        )
        assert run.returncode == 0, run.stdout
        return run.stdout

    def start(self) -> None:
        data, log = self.folder / "data", self.folder / "log"
        self._do("pg_ctl", "-D", data, "-l", log, "-w", "-o", f"{SETTINGS} -k '{self.folder}'", "start")

    def stop(self, how: str = "immediate") -> None:
        """Stop it; `immediate` is what a crash is like."""
        self._do("pg_ctl", "-D", self.folder / "data", "-w", "-m", how, "stop")

    def sql(self, command: str, database: str = "postgres") -> str:
        return self._do("psql", "-X", "-At", "-h", self.folder, "-U", "keeper", "-d", database, "-c", command).strip()

    def database(self, name: str) -> str:
        """Make a database; return its URL."""
        self.sql(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def url(self, database: str, who: str = "keeper") -> str:
        return f"postgresql://{who}@/{database}?host={quote(str(self.folder), safe='')}"

    def end_connections(self, database: str) -> int:
        """Kill what serves a database's clients; return how many there were."""
        ended = self.sql(
            f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{database}' "
            "AND pid <> pg_backend_pid()"
        )
        return int(ended)


@contextmanager
def running() -> Iterator[Server]:
    """Start a server, and stop it."""
    # not in pytest's folder, which another user may not enter
    folder = Path(tempfile.mkdtemp(prefix="autoft-postgres-"))
    try:
        server = Server(folder)
        try:
            yield server
        finally:
            if (folder / "data" / "postmaster.pid").exists():
                server.stop()
    finally:
        shutil.rmtree(folder)
