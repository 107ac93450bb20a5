"""The logger of Weights & Biases: a run for the study and one for each trial, in one group."""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import autoft
from autoft.events import Event
from autoft.specs import LoggedSearch, Logger

if TYPE_CHECKING:
    from wandb import Run

STUDY = "study"
OFFLINE = ("offline", "dryrun", "disabled")
HOST = "https://api.wandb.ai"


@autoft.hookimpl
def autoft_loggers() -> list[Logger]:
    """Offer `wandb`."""
    return [
        Logger(
            name="wandb",
            check=check,
            open=WandbLog,
            options={
                "project": "name of the project; `autoft` by default",
                "entity": "user or team that the project is of; the usual one by default",
                "mode": "`online` or `offline`; WANDB_MODE by default",
            },
            help="Weights & Biases: a run for the study and one for each trial, in one group",
        )
    ]


def check(options: Mapping[str, Any]) -> str | None:
    """Return what is missing: the package, or who the user is."""
    if find_spec("wandb") is None:
        return "Weights & Biases is not installed; pip install 'autoft[wandb]'"
    if _mode(options) in OFFLINE or any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")):
        return None
    if not _has_login(urlsplit(os.environ.get("WANDB_BASE_URL", HOST)).hostname or ""):
        return "Weights & Biases must know who you are; `wandb login` once, or WANDB_MODE=offline, and `wandb sync` later"
    return None


class WandbLog:
    """The runs of one search.

    Their ids follow from the run folder's, so that they are the same in all sessions.

    Args:
        search: The search.
    """

    def __init__(self, search: LoggedSearch) -> None:
        self._search = search
        self._runs: dict[str, Run] = {}

    def hear(self, event: Event) -> None:
        """Log a trial's settings, an epoch's metrics, an end, or the result."""
        data, metric = event.data, self._search.metric
        if event.kind == "search":
            self._run(STUDY, self._search.study)
        elif event.kind == "trial":
            self._run(str(data["trial"]), {"backbone": data["backbone"], "role": data["role"], **data["settings"]})
        elif event.kind == "epoch":
            values = {**data["metrics"], metric: data["value"], "train_loss": data["train_loss"]}
            self._run(str(data["trial"])).log({"epoch": data["epoch"], **values})
        elif event.kind == "trial_end" and data["state"] != "paused":
            run = self._run(str(data["trial"]))
            run.summary.update({"state": data["state"], "why": data["why"], f"best_{metric}": data["value"]})
            self._runs.pop(str(data["trial"])).finish(exit_code=1 if data["state"] == "failed" else 0)
        elif event.kind == "done":
            winner = data["winner"]
            values = {"winner": winner["trial"], "bundle": data["bundle"], f"best_{metric}": winner["value"]}
            self._run(STUDY).summary.update({**values, **{f"test_{name}": value for name, value in data["test"].items()}})

    def close(self) -> None:
        """End the study's run, and those of trials that rest."""
        for run in self._runs.values():
            run.finish()
        self._runs.clear()

    def _run(self, key: str, config: Mapping[str, Any] | None = None) -> Run:
        """Return the study's run or a trial's, begun or gone on with."""
        if key in self._runs:
            return self._runs[key]
        import wandb

        search = self._search
        run = wandb.init(
            project=str(search.options.get("project", "autoft")),
            entity=search.options.get("entity"),  # type: ignore[arg-type]
            mode=search.options.get("mode"),  # type: ignore[arg-type]
            id=f"{search.id[:16]}-{key}",
            name=search.name if key == STUDY else f"trial {key}",
            group=f"{search.name}-{search.id[:8]}",
            job_type=STUDY if key == STUDY else "trial",
            config=dict(config or {}),
            dir=str(search.run),
            resume=None if _mode(search.options) in OFFLINE else "allow",
            reinit="create_new",  # trials train side by side
            # stdout is for results; a search's code and the machine's load are nobody's business unless asked for
            settings=wandb.Settings(silent=True, console="off", disable_code=True, disable_git=True, x_disable_stats=True),
        )
        run.define_metric("*", step_metric="epoch")
        self._runs[key] = run
        return run


def _mode(options: Mapping[str, Any]) -> str:
    return str(options.get("mode") or os.environ.get("WANDB_MODE") or "online")


def _has_login(host: str) -> bool:
    """Return whether the file that `wandb login` writes has an entry for a host."""
    file = Path(os.environ.get("NETRC", Path.home() / ("_netrc" if os.name == "nt" else ".netrc")))
    try:
        return netrc.netrc(str(file)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False  # so nobody has logged in that could be found; what to do is said
