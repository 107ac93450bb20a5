"""What the tests of whole searches share: toy images, a fast search in process, the real command, what a run holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import pytest

from autoft.cli import main
from autoft.driver import search
from autoft.events import Event
from autoft.export.bundle import Exported, Trained
from autoft.export.parity import Parity
from autoft.files import folder_in_place, load_tensors, write_json
from autoft.finish import SearchResult

COMMAND = Path(sysconfig.get_path("scripts")) / "autoft"
# One thread: sums are the same in every process, and the tests leave the machine to others.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
SMALL = ("search.trials=3", "trainer.epochs=2", "search.seeds=1", "search.prune=false", "search.workers=0")


@dataclass
class Result:
    """What a command gave."""

    code: int
    out: str
    err: str


def autoft(*arguments: object, env: Mapping[str, str], cwd: Path | None = None, timeout: float = 120) -> Result:
    """Run the real command in a process of its own."""
    whole = {**os.environ, **ONE_THREAD, **env}
    run = subprocess.run(
        [COMMAND, *map(str, arguments)], capture_output=True, text=True, env=whole, cwd=cwd, timeout=timeout
    )
    return Result(run.returncode, run.stdout, run.stderr)


def start(*arguments: object, env: Mapping[str, str], cwd: Path | None = None) -> subprocess.Popen[str]:
    """Start the real command; the test reads its stderr and stops it."""
    return subprocess.Popen(
        [COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **ONE_THREAD, **env},
        cwd=cwd,
    )


def wait_for(process: subprocess.Popen[str], words: str) -> str:
    """Read a process's stderr until a line holds some words; return what was read."""
    assert process.stderr is not None
    read = ""
    for line in process.stderr:
        read += line
        if words in line:
            return read
    pytest.fail(f"the process ended before it wrote {words!r}:\n{read}")


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> Result:
    """Run the command in this process, where starting another is not the point."""
    monkeypatch.setattr(sys, "argv", ["autoft", *map(str, arguments)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as leaving:
        main()
    shown = capsys.readouterr()
    return Result(int(leaving.value.code or 0), shown.out, shown.err)


@dataclass
class Heard:
    """A listener that remembers."""

    events: list[Event] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        return [event.data for event in self.events if event.kind == kind]


def run_search(
    data: Path, folder: Path, *overrides: str, backbones: Sequence[str] = ("toy/mlp",), **arguments: Any
) -> SearchResult:
    """Search on toy images; later overrides win."""
    named = f"backbones=[{', '.join(backbones)}]"
    return search(data, output=folder, overrides=[named, *SMALL, *overrides], **arguments)


def study_of(run: Path) -> optuna.Study:
    """Open a run's study, as Optuna's own tools do."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.load_study(study_name=None, storage=f"sqlite:///{run / 'study.db'}")


def table(run: Path) -> list[dict[str, Any]]:
    """All that a search decided and found, without times."""
    left_out = ("seconds", "trace")
    return [
        {
            "number": trial.number,
            "state": trial.state.name,
            "params": trial.params,
            "value": trial.value if trial.state.name == "COMPLETE" else None,
            "intermediate": trial.intermediate_values,
            "attributes": {name: value for name, value in trial.user_attrs.items() if name not in left_out},
        }
        for trial in study_of(run).trials
    ]


def weights(run: Path) -> dict[str, dict[str, Any]]:
    """The weights that each trial kept, as exact values."""
    return {
        file.parent.name: {name: tensor.tolist() for name, tensor in load_tensors(file)[0].items()}
        for file in sorted(run.glob("trials/*/model.safetensors"))
    }


def assert_same_search(found: Path, wanted: Path) -> None:
    """Two runs decided and found the same, bit for bit, and left the same files behind.

    But for the log, which has times, and the report, which `fast_export` leaves out.
    """
    told = {"log.jsonl", "report.html"}
    for one, other in zip(table(found), table(wanted), strict=True):
        assert one == other
    assert weights(found) == weights(wanted)
    assert {trial["state"] for trial in table(found)} <= {"COMPLETE", "PRUNED", "FAIL"}
    files = [
        sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.name not in told) for run in (found, wanted)
    ]
    assert files[0] == files[1]


def fake_export(trained: Trained, folder: Path, **limits: Any) -> Exported:
    """Stand in for the export, which costs seconds, where it is not the point."""
    with folder_in_place(folder) as draft:
        write_json(draft / "autoft.json", {"trial": trained.facts["training"]["trial"]})
    metric = trained.objective.metric
    return Exported(Parity(6, metric, 0.5, 0.5, 0.0, (1,)), {metric: 0.5}, {metric: 0.5}, 0.1, {})


def json_lines(text: str) -> list[dict[str, Any]]:
    """Parse lines of JSON, strictly."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def files_in(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
