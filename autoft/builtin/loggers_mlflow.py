"""The logger of MLflow: a run for the study, and below it one for each trial."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import autoft
from autoft.events import Event
from autoft.specs import LoggedSearch, Logger

if TYPE_CHECKING:
    from mlflow import MlflowClient

STUDY = "study"
MAX_PARAM = 500  # characters of a parameter that every store takes
# MLflow's client waits minutes for a server that is away; the search waits half a minute at most, at its end
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is for results
}
STATUS = {"complete": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}


@autoft.hookimpl
def autoft_loggers() -> list[Logger]:
    """Offer `mlflow`."""
    return [
        Logger(
            name="mlflow",
            check=check,
            open=MlflowLog,
            options={
                "uri": "where runs are kept, such as http://localhost:5000 or sqlite:///mlflow.db; "
                "MLFLOW_TRACKING_URI by default, or MLflow's own choice",
                "experiment": "name of the experiment; that of the study by default",
            },
            help="MLflow: a run for the study, and below it one for each trial",
        )
    ]


def check(options: Mapping[str, Any]) -> str | None:
    """Return what is missing: the client; or what must not be in a study file: a password."""
    if find_spec("mlflow") is None:
        return "MLflow is not installed; pip install 'autoft[mlflow]'"
    if urlsplit(str(options.get("uri", ""))).password:
        return "`uri` must hold no password, as run folders keep it; set MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_PASSWORD"
    return None


class MlflowLog:
    """The runs of one search.

    They carry the run folder's id as a tag, and are found by it where a kill came before their own ids were kept.

    Args:
        search: The search.
    """

    def __init__(self, search: LoggedSearch) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # it tells of each table that it makes
        uri = search.options.get("uri")
        self._client: MlflowClient = MlflowClient(tracking_uri=None if uri is None else str(uri))
        self._search = search
        self._ids: dict[str, str] = search.state.setdefault("runs", {})
        self._known: dict[str, set[int]] = {}  # epochs that the runs which an earlier session began have
        name = str(search.options.get("experiment", search.name))
        found = self._client.get_experiment_by_name(name)
        self._experiment: str = found.experiment_id if found is not None else self._client.create_experiment(name)

    def hear(self, event: Event) -> None:
        """Log a trial's settings, an epoch's metrics, an end, or the result."""
        data = event.data
        if event.kind == "search":
            self._client.update_run(self._run(STUDY, self._study()), status="RUNNING")
        elif event.kind == "trial":
            settings = {"backbone": data["backbone"], **data["settings"]}
            self._run(str(data["trial"]), settings, role=data["role"])
        elif event.kind == "epoch":
            self._epoch(data)
        elif event.kind == "trial_end":
            self._end(data)
        elif event.kind == "done":
            self._done(data)
        elif event.kind == "stopped" and data["reason"] == "interrupted":
            self._client.set_terminated(self._run(STUDY, self._study()), "KILLED")

    def close(self) -> None:
        """Do nothing: every call has reached the store already."""

    def _run(self, key: str, params: Mapping[str, Any] | None = None, **tags: str) -> str:
        """Return the id of the study's run or a trial's, which is begun where there is none."""
        from mlflow.entities import Param

        if key in self._ids:
            return self._ids[key]
        known = f"tags.`autoft.run` = '{self._search.id}' and tags.`autoft.trial` = '{key}'"
        found = self._client.search_runs([self._experiment], known, max_results=1)
        run: str
        if found:
            run = found[0].info.run_id
        else:
            name = self._search.name if key == STUDY else f"trial {key}"
            parent = {} if key == STUDY else {"mlflow.parentRunId": self._run(STUDY, self._study())}
            own = {f"autoft.{tag}": value for tag, value in {"run": self._search.id, "trial": key, **tags}.items()}
            run = self._client.create_run(self._experiment, tags={**own, **parent}, run_name=name).info.run_id
            self._known[key] = set()
        # of a run that was found, too: a kill may have come before its settings, and the same again changes nothing
        shown = [Param(name, str(value)[:MAX_PARAM]) for name, value in (params or {}).items()]
        self._client.log_batch(run, params=shown)
        self._ids[key] = run
        return run

    def _study(self) -> dict[str, Any]:
        """Return the study's settings by dotted name, as far as they are single values."""
        found: dict[str, Any] = {"metric": self._search.metric, "run_folder": str(self._search.run)}
        for section, settings in self._search.study.items():
            if isinstance(settings, Mapping):
                found |= {f"{section}.{name}": value for name, value in settings.items()}
            else:
                found[section] = settings
        return found

    def _epoch(self, data: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric

        key, epoch = str(data["trial"]), data["epoch"]
        run = self._run(key)
        if key not in self._known:  # what a kill cut off from the ledger
            self._known[key] = {metric.step for metric in self._client.get_metric_history(run, self._search.metric)}
        if epoch in self._known[key]:
            return
        now = round(1000 * time.time())
        values = {**data["metrics"], self._search.metric: data["value"], "train_loss": data["train_loss"]}
        metrics = [Metric(name, value, now, epoch) for name, value in values.items()]
        self._client.log_batch(run, metrics=metrics)
        self._known[key].add(epoch)

    def _end(self, data: Mapping[str, Any]) -> None:
        run = self._run(str(data["trial"]))
        for tag in ("state", "why"):
            self._client.set_tag(run, f"autoft.{tag}", data[tag])
        if data["state"] == "paused":
            return
        if data["value"] is not None and math.isfinite(data["value"]):
            self._client.log_metric(run, f"best_{self._search.metric}", data["value"])
        self._client.set_terminated(run, STATUS[data["state"]])

    def _done(self, data: Mapping[str, Any]) -> None:
        run, winner = self._run(STUDY, self._study()), data["winner"]
        values = {f"test_{name}": value for name, value in data["test"].items()}
        for name, value in {f"best_{self._search.metric}": winner["value"], **values}.items():
            self._client.log_metric(run, name, value)
        for tag, value in {"winner": winner["trial"], "bundle": data["bundle"]}.items():
            self._client.set_tag(run, f"autoft.{tag}", str(value))
        self._client.set_terminated(run, "FINISHED")
