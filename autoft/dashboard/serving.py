"""Serves a run to a browser through optuna-dashboard, read only, and looks for new trials while the search goes on."""

from __future__ import annotations

import json
import tempfile
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from socketserver import ThreadingMixIn
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial

from autoft.answered import ANSWERS, read_answers
from autoft.dashboard.copy import STUDY_ID, CopiedStudy
from autoft.dashboard.pictures import learning_curves, mistakes
from autoft.errors import AutoftError, RunError, first_line
from autoft.finish import read_result
from autoft.runfolder import read_events
from autoft.status import read_status
from autoft.storage import read_study
from autoft.telling import number

EVERY = 3.0  # seconds between two looks at the run, and only when the browser asks
LOOPBACK = ("127.0.0.1", "localhost", "::1")
FACTS = ("role", "backbone", "epochs", "best_epoch", "best_value", "seconds")  # of a trial, that say something to people
NOTED = ("stopped", "failure", "message", "reuse", "duplicate_of")  # those that its note tells

Start = Callable[..., Any]
Application = Callable[[dict[str, Any], Start], Iterable[bytes]]


class Shown:
    """A run as the dashboard shows it: its trials, with notes, curves and mistakes attached.

    Args:
        run: The run folder.
        folder: Where artifacts are kept as long as the dashboard runs.

    Raises:
        RunError: The folder has no trials, or they cannot be read.
    """

    def __init__(self, run: Path, folder: Path) -> None:
        trials, direction = read_study(run)
        status = read_status(run)
        self.run, self.metric = run, status.metric or "value"
        self.storage = CopiedStudy(status.name or run.name, direction)
        self._study = optuna.load_study(study_name=status.name or run.name, storage=self.storage)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self._study.set_metric_names([self.metric])
        (folder / "artifacts").mkdir()
        self.artifacts = FileSystemArtifactStore(folder / "artifacts")
        self._folder = folder
        self._drawn: set[int] = set()
        self._notes: dict[int | None, str] = {}
        self._answers: float | None = None  # when those that are attached were written
        self._show(trials)
        self._looked = time.monotonic()

    def refresh(self) -> None:
        """Look at the run again, unless that was just done."""
        if time.monotonic() - self._looked >= EVERY:
            self._show(read_study(self.run)[0])
            self._looked = time.monotonic()

    def _show(self, trials: list[FrozenTrial]) -> None:
        epochs = defaultdict[int, list[dict[str, Any]]](list)
        fresh = {trial.number for trial in trials if trial.state.is_finished()} - self._drawn
        if fresh:
            for event in read_events(self.run):
                if event["event"] == "epoch" and event["trial"] in fresh:
                    epochs[event["trial"]].append(event)
        for trial in trials:
            if trial.number in fresh:
                drawn = learning_curves(epochs[trial.number], self.metric)
                if drawn is not None:
                    self._attach(trial, f"learning curves of trial {trial.number}.svg", drawn)
                self._drawn.add(trial.number)
        self.storage.put([_told(trial) for trial in trials])
        self._write(None, _about_run(self.run, self.metric))
        for trial in trials:
            self._write(trial._trial_id, _about_trial(trial))
        self._attach_mistakes()

    def _attach(self, trial: FrozenTrial, name: str, content: str) -> None:
        file = self._folder / name
        file.write_text(content, encoding="utf-8")
        upload_artifact(artifact_store=self.artifacts, file_path=str(file), study_or_trial=trial, storage=self.storage)

    def _attach_mistakes(self) -> None:
        file = self.run / ANSWERS / "test.safetensors"
        written = file.stat().st_mtime if file.is_file() else None
        if written is None or written == self._answers:
            return
        found = read_answers(self.run)
        if found is not None:
            for each in mistakes(found, self._folder):
                upload_artifact(artifact_store=self.artifacts, file_path=str(each), study_or_trial=self._study)
        self._answers = written

    def _write(self, trial_id: int | None, text: str) -> None:
        """Put a note on the study, or on a trial."""
        from optuna_dashboard import save_note

        if self._notes.get(trial_id) == text:
            return
        # of a trial `save_note` reads these three alone; a real `optuna.Trial` would ask the sampler for parameters
        on = SimpleNamespace(storage=self.storage, study=self._study, _trial_id=trial_id)
        save_note(self._study if trial_id is None else on, text)
        self._notes[trial_id] = text


def _told(trial: FrozenTrial) -> FrozenTrial:
    """Return a trial with those facts alone that say something to people."""
    facts = {name: trial.user_attrs[name] for name in (*FACTS, *NOTED) if name in trial.user_attrs}
    metrics = trial.user_attrs.get("metrics") or {}
    trial.user_attrs = facts | {name: round(value, 6) for name, value in metrics.items() if isinstance(value, int | float)}
    return trial


def _about_trial(trial: FrozenTrial) -> str:
    facts = trial.user_attrs
    lines = [f"**{facts.get('role', 'trial')}** {trial.number}: {trial.state.name.lower()}"]
    lines += [f"- {name.replace('_', ' ')}: {_plain(facts[name])}" for name in NOTED if name in facts]
    return "\n".join(lines)


def _plain(value: object) -> str:
    """Return what a trial came to as text in which Markdown sees nothing of its own."""
    return "`" + " ".join(str(value).replace("`", "'").split()) + "`"


def _about_run(run: Path, metric: str) -> str:
    result = read_result(run)
    lines = [f"Of the run folder `{run}`, read only: nothing that is done here changes the run."]
    if result is None:
        lines.append("It has no result yet.")
    else:
        winner, test = result["winner"], result.get("test", {}).get(metric)
        lines.append(f"**Trial {winner['trial']} won**: {metric} {number(winner['value'])} on validation")
        if test is not None:
            lines[-1] += f", {number(test)} ± {number(result.get('test_error'))} on test (one standard error)"
        confirmed = result.get("confirmed") or {}
        if confirmed.get("gain") is not None:
            lines.append(
                f"Over {confirmed['seeds']} seeds it gains {confirmed['gain']:+.4f} over the preset. The best trial "
                "here is that of the best single training, which seeds may not confirm."
            )
        lines.append(f"The report: `{run / 'report.html'}`. Train the winner again: `autoft reproduce {run}`.")
    return "\n\n".join(lines)


# --- over HTTP --------------------------------------------------------------------------------------------------------


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each request; none keeps the program from ending."""

    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Print no line for each request."""


def guarded(dashboard: Application, refresh: Callable[[], None], host: str) -> Application:
    """Let only reading through, and on loopback only what was asked of it by that name.

    A page elsewhere can lead a browser to a name that it then points at 127.0.0.1 (DNS rebinding); the name gives it away.

    Args:
        dashboard: The application of optuna-dashboard.
        refresh: Called before each request.
        host: The address that is served.
    """
    lock = threading.Lock()
    names = {*LOOPBACK, host}

    def answer(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _refused(start, "403 Forbidden", "this is a copy of the run, and nothing in it can be changed")
        asked = urlsplit(f"//{environ.get('HTTP_HOST', host)}").hostname
        if host in LOOPBACK and asked not in names:
            return _refused(start, "403 Forbidden", f"this serves {host}, not {asked}")
        try:
            with lock:
                refresh()
        except AutoftError as error:
            return _refused(start, "503 Service Unavailable", str(error))
        return dashboard(environ, start)

    return answer


def _refused(start: Start, status: str, reason: str) -> Iterable[bytes]:
    start(status, [("Content-Type", "application/json")])
    return [json.dumps({"reason": reason}).encode()]


def serve(run: Path, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve a run's dashboard until the process is interrupted.

    Args:
        run: The run folder.
        host: Address to listen on.
        port: Port to listen on; 0 for any that is free.
        ready: Called with the address once it is served.

    Raises:
        RunError: optuna-dashboard is not installed, there is no run, or the port is taken.
    """
    try:
        from optuna_dashboard import wsgi
    except ImportError as error:
        raise RunError(
            f"the dashboard needs the package optuna-dashboard, which is missing: {first_line(error)}",
            "pip install 'autoft[dashboard]'",
        ) from error
    with tempfile.TemporaryDirectory(prefix="autoft-dashboard-") as folder:
        shown = Shown(run, Path(folder))
        application = guarded(wsgi(shown.storage, artifact_store=shown.artifacts), shown.refresh, host)
        try:
            server = make_server(host, port, application, server_class=_Server, handler_class=_Quiet)
        except (OSError, OverflowError) as error:
            raise RunError(
                f"{host}:{port} cannot be listened on: {first_line(error)}", "name another with --port"
            ) from error
        with server:
            ready(f"http://{host}:{server.server_port}/dashboard/studies/{STUDY_ID}")
            server.serve_forever()
