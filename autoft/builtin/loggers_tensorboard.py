"""The logger of TensorBoard: event files in the run folder, a folder for each trial, with its settings as hparams."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import autoft
from autoft.events import Event
from autoft.specs import LoggedSearch, Logger

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"  # in the run folder
STUDY = "study"


@autoft.hookimpl
def autoft_loggers() -> list[Logger]:
    """Offer `tensorboard`."""
    return [
        Logger(
            name="tensorboard",
            check=check,
            open=TensorBoardLog,
            options={"folder": "where the event files are to be; RUN/tensorboard by default"},
            help="TensorBoard: event files, a folder for each trial with its settings as hparams",
        )
    ]


def check(options: Mapping[str, Any]) -> str | None:
    """Return what is missing: the package that writes and reads event files."""
    if find_spec("tensorboard") is None:
        return "TensorBoard is not installed; pip install 'autoft[tensorboard]'"
    return None


class TensorBoardLog:
    """Event files of one search.

    Args:
        search: The search.
    """

    def __init__(self, search: LoggedSearch) -> None:
        folder = search.options.get("folder")
        self.root = search.run / FOLDER if folder is None else Path(str(folder)).expanduser() / search.name
        self._metric = search.metric
        self._writers: dict[int, SummaryWriter] = {}
        self._written: dict[int, set[int]] = {}

    def hear(self, event: Event) -> None:
        """Write scalars for an epoch, hparams for a trial, and a text for the result."""
        data = event.data
        if event.kind == "trial":
            if self._open(data["trial"]) is None:
                self._begin(data)
        elif event.kind == "epoch":
            self._epoch(data)
        elif event.kind == "trial_end" and data["state"] != "paused":
            self._end(data)
        elif event.kind == "done":
            self._done(data)

    def close(self) -> None:
        """Write out what is buffered."""
        for writer in self._writers.values():
            writer.close()

    def _open(self, number: int) -> SummaryWriter | None:
        """Return the writer of a trial, or None where the trial has no folder yet."""
        if number in self._writers:
            return self._writers[number]
        folder = self.root / f"trial-{number}"
        return self._add(number, folder) if any(folder.glob("events*")) else None

    def _add(self, number: int, folder: Path) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter

        # what a kill cut off from the ledger is in the files, and is not to be there twice
        self._written[number] = _steps(folder, self._metric) if folder.is_dir() else set()
        self._writers[number] = SummaryWriter(str(folder))
        return self._writers[number]

    def _begin(self, data: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard.summary import hparams

        writer = self._add(data["trial"], self.root / f"trial-{data['trial']}")
        settings = {"backbone": data["backbone"], "role": data["role"], **data["settings"]}
        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in settings.items()
        }
        experiment, session, _ = hparams(plain, {self._metric: 0.0})  # type: ignore[no-untyped-call]
        files: Any = writer.file_writer
        files.add_summary(experiment)
        files.add_summary(session)
        writer.flush()

    def _epoch(self, data: Mapping[str, Any]) -> None:
        number, epoch = data["trial"], data["epoch"]
        writer = self._open(number) or self._add(number, self.root / f"trial-{number}")
        if epoch in self._written[number]:
            return
        values = {"train_loss": data["train_loss"], **data["metrics"], self._metric: data["value"]}
        for name, value in values.items():  # what is optimized last: it says that the others are there
            writer.add_scalar(name, value, epoch)
        self._written[number].add(epoch)
        writer.flush()

    def _end(self, data: Mapping[str, Any]) -> None:
        number = data["trial"]
        writer = self._open(number) or self._add(number, self.root / f"trial-{number}")
        writer.add_text("end", f"{data['state']}: {data['why']}")
        if data["value"] is not None and math.isfinite(data["value"]):
            writer.add_scalar(f"best/{self._metric}", data["value"])
        self._writers.pop(number).close()

    def _done(self, data: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(self.root / STUDY)) as writer:
            winner = data["winner"]
            told = {"winner": winner["trial"], "value": winner["value"], "test": data["test"], "bundle": data["bundle"]}
            writer.add_text("result", f"```json\n{json.dumps(told, indent=2)}\n```")
            for name, value in data["test"].items():
                writer.add_scalar(f"test/{name}", value)


def _steps(folder: Path, tag: str) -> set[int]:
    """Return the epochs that the event files of a trial have already."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={SCALARS: 0})
    found.Reload()
    return {scalar.step for scalar in found.Scalars(tag)} if tag in found.Tags()["scalars"] else set()
