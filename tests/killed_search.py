"""Run by `test_driver.py`: searches in processes that are killed around a write to the disk, then finishes each.

One process imports and warms everything and forks; a child kills itself (SIGKILL) at its write, and the next one goes on.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path

import torch
from commands import fake_export, run_search
from sqlalchemy import event
from sqlalchemy.engine import Engine

from autoft import finish, preflight, trials

SETTINGS = ["search.trials=6", "trainer.epochs=3", "search.prune=true", *sys.argv[4:]]


class Writes:
    """Counts the moments before and after each write to the disk, and dies at one of them."""

    def __init__(self) -> None:
        self.count, self.fatal = 0, 0
        self._fsync = os.fsync
        os.fsync = self._synced  # type: ignore[assignment]  # every file is written atomically, by way of this
        for moment in ("commit", "rollback"):
            event.listen(Engine, moment, lambda connection: self.step())

    def step(self) -> None:
        self.count += 1
        if self.count == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def _synced(self, descriptor: int) -> None:
        self.step()
        self._fsync(descriptor)
        self.step()


def in_child(data: Path, run: Path, writes: Writes, fatal: int) -> int:
    """Search in a child that dies at a write (0: never); return its status."""
    child = os.fork()
    if child == 0:
        writes.count, writes.fatal = 0, fatal
        torch.set_num_threads(1)  # before any thread is started: torch mends its pool after a fork, but not in a race
        code = 1
        try:
            run_search(data, run, *SETTINGS)
            code = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitpid(child, 0)[1]


def main() -> None:
    data, folder, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    trials.STARTUP_TRIALS = 3
    finish.export_bundle = fake_export  # type: ignore[assignment]
    preflight.to_onnx = lambda *arguments, **named: None  # type: ignore[assignment]
    writes = Writes()
    run_search(data, folder / "whole", *SETTINGS)
    total, killed = writes.count, 0
    for number in range(kills):
        # spread over the whole run; odd and even ones alike, which lie before and after a write
        fatal = 1 + round(number * (total - 1) / kills)
        run = folder / f"run-{fatal}"
        killed += in_child(data, run, writes, fatal) == signal.SIGKILL
        if in_child(data, run, writes, 0):
            raise SystemExit(f"the search that was killed at write {fatal} of {total} cannot go on")
    print(json.dumps({"writes": total, "killed": killed}))


if __name__ == "__main__":
    main()
