"""How a search's events reach the loggers that its study names: in order, each once, and without ever holding up a trial.

The driver alone tells them; workers log nothing. Each logger has a thread and a ledger of its own. What a session could not
tell, as a server was away or a kill came between, the next one tells from `log.jsonl`.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoft.config.address import masked
from autoft.errors import ConfigError
from autoft.events import Event, Listener
from autoft.files import read_json, write_checked
from autoft.plugin_record import describe
from autoft.prepare import Prepared
from autoft.runfolder import RunFolder, read_events
from autoft.specs import LoggedSearch, Logger

FOLDER = "logging"  # in the run folder: a ledger for each logger
PATIENCE = 30.0  # seconds that a search waits at its end for all its loggers together
RESTING = "paused"  # a trial that goes on later has not ended

logger = logging.getLogger("autoft")


def check_loggers(prepared: Prepared) -> None:
    """Ask each logger of a study whether it can be used here, such as whether its package is installed.

    Raises:
        ConfigError: Lists those that cannot, and what to do about it.
    """
    config = prepared.config
    faults = {name: prepared.catalog.logger(name).check(options) for name, options in config.logging.items()}
    problems = [config.problem(f"logging.{name}", f"cannot be used: {why}") for name, why in faults.items() if why]
    if problems:
        raise ConfigError(config.source, problems)


class Followers:
    """The loggers of one session of a search.

    Args:
        prepared: The study.
        run: Its folder, held.
        warn: Hears, in the caller's own thread, of a logger that failed.
    """

    def __init__(self, prepared: Prepared, run: RunFolder, warn: Listener) -> None:
        self._prepared, self._run, self._warn = prepared, run, warn
        self._following: list[_Follower] = []
        self.faults: dict[str, str] = {}
        """Why a logger has not heard everything, by its name."""

    def hear(self, event: Event) -> None:
        """Pass an event on, and tell of loggers that have failed meanwhile; before the search begins there are none."""
        if event.kind == "search" and not self._following and self._prepared.config.logging:
            self._begin()
        for follower in self._following:
            follower.tell(event)
        self._note_faults()

    def close(self) -> None:
        """Let the loggers write what they have still to write, for `PATIENCE` seconds at most."""
        deadline = time.monotonic() + PATIENCE
        for follower in self._following:
            follower.finish()
        for follower in self._following:
            follower.thread.join(max(0.0, deadline - time.monotonic()))
            if follower.thread.is_alive():
                follower.given_up.set()
                follower.fault = follower.fault or f"it did not answer within {PATIENCE:g} s after the search"
        self._note_faults()

    def _begin(self) -> None:
        (self._run.path / FOLDER).mkdir(exist_ok=True)
        earlier = _earlier(self._run.path) if self._run.resumed else []
        for name in self._prepared.config.logging:
            ledger = _read_ledger(self._run.path / FOLDER / f"{name}.json")
            if ledger is None:
                text = f"the ledger of logger {name} is damaged: it begins anew, and may tell again what it has told"
                self._warn(Event("warning", text, {"about": "damaged", "logger": name}))
                ledger = _Ledger(uuid.uuid4().hex)
            self._following.append(_Follower(self._prepared, self._run.path, name, ledger, earlier))

    def _note_faults(self) -> None:
        for follower in self._following:
            if follower.fault is not None and follower.name not in self.faults:
                self.faults[follower.name] = follower.fault
                text = f"logger {follower.name} hears no more of this session: {follower.fault}; "
                text += "the same command tells it what is missing"
                self._warn(Event("warning", text, {"about": "logger", "logger": follower.name, "why": follower.fault}))


@dataclass
class _Ledger:
    """What a logger was told.

    Attributes:
        id: Names the run folder to the logger.
        state: The logger's own.
        epochs: Those of each trial, by its number as text.
        ended: Trials.
        done: The result, as far as it tells one from another.
    """

    id: str
    state: dict[str, Any] = field(default_factory=dict)
    epochs: dict[str, list[int]] = field(default_factory=dict)
    ended: list[int] = field(default_factory=list)
    done: list[Any] = field(default_factory=list)

    def lacks(self, event: Event) -> bool:
        """Return whether the logger is to hear an event: late ones of ended trials, and what it knows, are left out."""
        if event.kind == "done":
            return _signature(event) != self.done
        if event.kind not in ("trial", "epoch", "trial_end"):
            return True
        number = event.data["trial"]
        if number in self.ended:
            return False
        return event.kind != "epoch" or event.data["epoch"] not in self.epochs.get(str(number), ())

    def note(self, event: Event) -> None:
        """Take down that the logger has heard an event."""
        if event.kind == "done":
            self.done = _signature(event)
        elif event.kind == "epoch":
            self.epochs.setdefault(str(event.data["trial"]), []).append(event.data["epoch"])
        elif event.kind == "trial_end" and event.data["state"] != RESTING:
            self.ended.append(event.data["trial"])
            self.epochs.pop(str(event.data["trial"]), None)


class _Follower:
    """One logger, in a thread of its own: a server that answers slowly, or never, holds up nobody else."""

    def __init__(self, prepared: Prepared, run: Path, name: str, ledger: _Ledger, earlier: list[Event]) -> None:
        self.name = name
        self.fault: str | None = None
        self.given_up = threading.Event()  # a later session may write the ledger, so this one tells and writes nothing more
        self._logger: Logger = prepared.catalog.logger(name)
        self._ledger, self._file = ledger, run / FOLDER / f"{name}.json"
        self._search = LoggedSearch(
            name=prepared.config.name,
            id=ledger.id,
            run=run.absolute(),
            metric=prepared.objective.metric,
            direction=prepared.objective.direction,
            study=prepared.config.plain(),
            options=prepared.config.logging[name],
            state=ledger.state,
        )
        self._waiting: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        for event in earlier:
            self._waiting.put(event)
        self.thread = threading.Thread(target=self._follow, name=f"autoft-logger-{name}", daemon=True)
        self.thread.start()

    def tell(self, event: Event) -> None:
        """Hand an event over; does not wait."""
        if self.fault is None:
            self._waiting.put(event)

    def finish(self) -> None:
        """Let the thread end once it has told everything."""
        self._waiting.put(None)

    def _follow(self) -> None:
        try:
            self._save()  # the id, before anyone else has it
            log = self._logger.open(self._search)
            try:
                while (event := self._waiting.get()) is not None and not self.given_up.is_set():
                    if self._ledger.lacks(event):
                        log.hear(event)
                        if self.given_up.is_set():
                            break
                        self._ledger.note(event)
                        self._save()
            finally:
                log.close()
        except Exception as error:  # foreign code, a foreign server: told as a warning, by name
            logger.debug("logger %s failed", self.name, exc_info=error)
            self.fault = masked(describe(error))

    def _save(self) -> None:
        write_checked(self._file, vars(self._ledger))


def _signature(event: Event) -> list[Any]:
    winner: Mapping[str, Any] = event.data["winner"]
    return [winner["trial"], winner["value"], winner["weights"]]


def _read_ledger(file: Path) -> _Ledger | None:
    """Return what a logger was told in earlier sessions, a new ledger if there was none, or None where it is damaged."""
    if not file.exists():
        return _Ledger(uuid.uuid4().hex)
    try:
        return _Ledger(**read_json(file))
    except (OSError, ValueError, TypeError):
        return None


def _earlier(run: Path) -> list[Event]:
    """Return what earlier sessions told of trials; a rest is no news in a later one, nor is how those sessions began."""
    kinds = ("trial", "epoch", "trial_end")
    told = (event for event in read_events(run) if event["event"] in kinds and event.get("state") != RESTING)
    return [Event(event.pop("event"), "", event) for event in told]
