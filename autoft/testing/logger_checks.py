"""The conformance checks of loggers: they say whether they can be used, follow a search to its end, and go on with it."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autoft.events import Event
from autoft.specs import LoggedSearch, Logger
from autoft.testing.kit import CheckFailed, CheckWarning

SETTINGS = {"learning_rate": 0.001, "freeze_depth": 2, "head_start": "probe", "swa_share": None}


def check_usable(logger: Logger) -> None:
    """Check that `check` returns None, or why the logger cannot be used and what to do.

    Raises:
        CheckFailed: It returns something else.
        CheckWarning: It says that it cannot be used here.
    """
    said = logger.check({})
    if said is not None and not (isinstance(said, str) and said.strip()):
        raise CheckFailed(f"`check` must return None or a reason, but returned {said!r}", "such as `pip install ...`")
    if said is not None:
        raise CheckWarning(f"{logger.name} cannot be used here: {said}", "install what it needs to run its other checks")


def check_follows(logger: Logger) -> None:
    """Check that a search is followed from its beginning to its result: two trials side by side, of which one fails.

    Raises:
        CheckFailed: The logger raises, or its state cannot be kept as JSON.
    """
    with _following(logger) as search:
        _tell(logger, search, [*_first(), *_rest()])


def check_goes_on(logger: Logger) -> None:
    """Check that an interrupted search is gone on with, from the state that was kept; its trials are told of again.

    Raises:
        CheckFailed: The logger raises, or its state cannot be kept as JSON.
    """
    with _following(logger) as search:
        _tell(logger, search, [*_first(), Event("stopped", "", {"reason": "interrupted"})])
        # the last epoch was heard, and a kill came before that was noted
        _tell(logger, search, [_search(), *_first()[1:], *_rest()])


CHECKS = (
    ("usable", "it says whether it can be used, and what to do where it cannot", check_usable),
    ("follows", "it follows a search to its result", check_follows),
    ("goes-on", "it goes on with a search that was interrupted, from its kept state", check_goes_on),
)


@contextlib.contextmanager
def _following(logger: Logger) -> Iterator[LoggedSearch]:
    """Give a search to follow, in a folder of its own, which is the current one too: where relative paths lead."""
    if logger.check({}) is not None:
        raise CheckWarning(f"{logger.name} cannot be used here", "see the check `usable`")
    with (
        tempfile.TemporaryDirectory(prefix="autoft-logger-", ignore_cleanup_errors=True) as folder,
        contextlib.chdir(folder),
    ):
        run = Path(folder) / "run"
        run.mkdir()
        study: dict[str, Any] = {"name": "autoft-check", "data": {"path": "toys"}, "trainer": {"epochs": 2}}
        yield LoggedSearch("autoft-check", run.parent.name, run, "accuracy", "maximize", study, {}, {})


def _tell(logger: Logger, search: LoggedSearch, events: list[Event]) -> None:
    said = "opening"
    try:
        log = logger.open(search)
        for event in events:
            said = f"`{event.kind}`"
            log.hear(event)
        said = "closing"
        log.close()
    except Exception as error:
        raise CheckFailed(
            f"{logger.name} must follow a search, but raises {type(error).__name__} at {said}: {error}"
        ) from error
    try:
        kept = json.loads(json.dumps(search.state))
    except (TypeError, ValueError) as error:
        raise CheckFailed(
            f"`state` must be JSON, but is {search.state!r}", "keep plain numbers, texts, lists, mappings"
        ) from error
    search.state.clear()
    search.state.update(kept)


def _search() -> Event:
    return Event("search", "", {"name": "autoft-check", "trials": 2, "done": 0, "epochs": 2, "metric": "accuracy"})


def _first() -> list[Event]:
    return [
        _search(),
        *(Event("trial", "", {"trial": at, "role": "preset", "backbone": "toy/mlp", "settings": SETTINGS}) for at in (0, 1)),
        _epoch(0, 1),
        _epoch(1, 1),
    ]


def _rest() -> list[Event]:
    ends = ((0, "complete", 0.75, "finished"), (1, "failed", None, "oom: out of memory"))
    return [
        _epoch(0, 2),
        *(
            Event("trial_end", "", {"trial": at, "state": state, "value": value, "why": why, "best": not at, "seconds": 1.0})
            for at, state, value, why in ends
        ),
        Event(
            "done",
            "",
            {
                "winner": {"trial": 0, "value": 0.75, "weights": "those of its best epoch"},
                "test": {"accuracy": 0.7},
                "bundle": "run/bundle",
            },
        ),
    ]


def _epoch(trial: int, epoch: int) -> Event:
    data = {"trial": trial, "epoch": epoch, "epochs": 2, "value": 0.25 + epoch / 4, "train_loss": 1.0 / epoch}
    return Event("epoch", "", {**data, "metrics": {"accuracy": data["value"], "f1_macro": 0.5}, "seconds_left": 1.0})
