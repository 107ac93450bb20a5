"""A search's loggers hear each trial, epoch and end once, in all its sessions, and whatever they do, the search goes on."""

from __future__ import annotations

import importlib
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import SMALL, autoft, start, wait_for

from autoft.driver import search
from autoft.errors import ConfigError
from autoft.events import Event
from autoft.finish import SearchResult
from autoft.specs import Logger
from autoft.testing import checks_for, toy
from autoft.testing.kit import CheckFailed, CheckWarning
from autoft.testing.logger_checks import check_follows, check_goes_on, check_usable
from autoft.testing.toy_log import ToyLog

SEARCHED = pytest.mark.usefixtures("toys", "fast_export")


def searched(data: Path, run: Path, *logging: str, **named: Any) -> tuple[SearchResult, list[Event]]:
    """Search in this process, with settings of `logging`; return the result, and what was told."""
    heard: list[Event] = []
    settings = ["backbones=toy/mlp", *SMALL, *logging]
    result = search(data, output=run, overrides=settings, on_event=heard.append, **named)
    return result, heard


def lines(run: Path) -> list[dict[str, Any]]:
    """Return what the toy logger has heard."""
    return [json.loads(line) for line in (run / "toy-log.jsonl").read_text().splitlines()]


def of_trials(events: list[dict[str, Any]]) -> Counter[tuple[Any, ...]]:
    """Count epochs and ends, by trial and epoch; a rest is no end."""
    told = (event for event in events if event["event"] in ("epoch", "trial_end") and event.get("state") != "paused")
    return Counter((event["event"], event["trial"], event.get("epoch")) for event in told)


def logged(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


# --- what they hear ---------------------------------------------------------------------------------------------------


@SEARCHED
def test_logger_hears_what_the_log_has_in_its_order(toy_images: Path, tmp_path: Path) -> None:
    result, _ = searched(toy_images, tmp_path / "run", "logging=toy-log")
    told = [{**event} for event in lines(tmp_path / "run")]
    kept = [{name: value for name, value in event.items() if name != "time"} for event in logged(tmp_path / "run")]
    begins = next(at for at, event in enumerate(kept) if event["event"] == "search")
    assert told == kept[begins:]
    assert told[0]["event"] == "search"
    assert told[-1]["event"] == "done"
    assert of_trials(told)[("epoch", 2, 2)] == 1
    assert result.unlogged == {}


@SEARCHED
def test_search_that_goes_on_tells_what_is_missing_once(toy_images: Path, tmp_path: Path) -> None:
    run, epochs = tmp_path / "run", []

    def stop() -> bool:
        return len(epochs) >= 3

    heard: list[Event] = []

    def hear(event: Event) -> None:
        heard.append(event)
        epochs.extend([event] if event.kind == "epoch" else [])

    settings = ["backbones=toy/mlp", *SMALL, "logging=toy-log"]
    assert search(toy_images, output=run, overrides=settings, on_event=hear, should_stop=stop).interrupted
    ledger = run / "logging" / "toy-log.json"
    before, first = ledger.read_bytes(), lines(run)
    assert first[-1]["event"] == "stopped"
    ledger.write_bytes(before)
    searched(toy_images, run, "logging=toy-log")
    assert set(of_trials(lines(run)).values()) == {1}
    assert set(of_trials(lines(run))) == set(of_trials(logged(run)))
    assert json.loads(ledger.read_text())["state"]["sessions"] == 2

    # nothing is new in a session that finds all done
    length = len(lines(run))
    searched(toy_images, run, "logging=toy-log")
    assert [
        event["event"] for event in lines(run)[length:] if event["event"] in ("trial", "epoch", "trial_end", "done")
    ] == []


@SEARCHED
def test_logger_that_comes_later_hears_of_earlier_sessions(toy_images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    searched(toy_images, run)
    assert not (run / "logging").exists()
    result, _ = searched(toy_images, run, "logging=toy-log")
    assert of_trials(lines(run)) == of_trials(logged(run))
    assert lines(run)[-1]["event"] == "done"
    assert result.bundle is not None, "another logger does not make another search"


@SEARCHED
def test_damaged_ledger_is_told_and_begins_anew(toy_images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    searched(toy_images, run, "logging=toy-log")
    (run / "logging" / "toy-log.json").write_text("{")
    _, heard = searched(toy_images, run, "logging=toy-log")
    (warning,) = [event for event in heard if event.kind == "warning" and event.data["about"] == "damaged"]
    assert "the ledger of logger toy-log is damaged" in warning.text
    assert set(of_trials(lines(run)).values()) == {2}


# --- what goes wrong --------------------------------------------------------------------------------------------------


@SEARCHED
@pytest.mark.parametrize("kind", ["search", "epoch", "done"])
def test_logger_that_fails_is_told_once_and_harms_nobody(kind: str, toy_images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result, heard = searched(toy_images, run, f"logging={{toy-log: {{fail: {kind}}}}}")
    warnings = [event for event in heard if event.kind == "warning" and event.data["about"] == "logger"]
    assert len(warnings) == 1
    assert (
        f"logger toy-log hears no more of this session: ConnectionError: the toy's server is away at {kind}"
        in warnings[0].text
    )
    assert result.trials["complete"] == 3
    assert result.bundle is not None
    assert list(result.unlogged) == ["toy-log"]

    again, _ = searched(toy_images, run, "logging=toy-log")
    assert again.unlogged == {}
    assert of_trials(lines(run)) == of_trials(logged(run)), "the next session tells what is missing"


@SEARCHED
def test_logger_that_answers_slowly_holds_up_no_trial_and_the_end_for_a_while(
    toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoft.loggers.PATIENCE", 0.5)
    run = tmp_path / "run"
    result, heard = searched(toy_images, run, "logging={toy-log: {wait: 3.0}}")
    assert result.bundle is not None
    assert "did not answer within 0.5 s after the search" in result.unlogged["toy-log"]
    seconds = logged(run)
    trained = [event["time"] for event in seconds if event["event"] == "epoch"]
    assert len(trained) == 6
    assert [event for event in heard if event.kind == "warning" and event.data["about"] == "logger"]


@SEARCHED
@pytest.mark.parametrize(
    ("logging", "message"),
    [
        ("logging=toy-lug", "logging.toy-lug: is not an installed logger"),
        ("logging={toy-log: {wiat: 1}}", "logging.toy-log.wiat: is not an option of toy-log"),
        ("logging={toy-log: {usable: false}}", "logging.toy-log: cannot be used: it was told so; set `usable: true`"),
        ("logging=3", "logging: must be a list of loggers, or a mapping from each to its options, but got 3"),
        ("logging.toy-log=yes", "must be"),
    ],
)
def test_logger_that_cannot_be_used_is_refused_before_the_search(
    logging: str, message: str, toy_images: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        searched(toy_images, tmp_path / "run", logging)
    assert message in str(caught.value)
    assert "toy-lug" not in message or "did you mean `toy-log`?" in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_command_takes_loggers_and_a_kill_leaves_nothing_out(
    toy_images: Path, toy_env: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = ("search", toy_images, "-b", "toy/mlp", "--trials", 3, "--epochs", 3, "--log", "toy-log", "-o", run)
    process = start(*arguments, env=toy_env)
    try:
        wait_for(process, "epoch 2")
    finally:
        process.kill()
        process.communicate()
    result = autoft(*arguments, env=toy_env)
    assert result.code == 0, result.err
    counted = of_trials(lines(run))
    assert set(of_trials(logged(run))) == set(counted)
    # one event at most was heard when the kill came before the ledger had it
    assert sum(count - 1 for count in counted.values()) <= 1


# --- the kit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", checks_for(toy.autoft_loggers()[0]), ids=str)
def test_toy_logger_passes_the_kit(check: Any) -> None:
    check()


def broken(**changes: Any) -> Logger:
    (logger,) = toy.autoft_loggers()
    return replace(logger, **changes)


def test_kit_says_what_is_wrong_with_a_logger() -> None:
    with pytest.raises(CheckFailed, match="`check` must return None or a reason, but returned 7"):
        check_usable(broken(check=lambda options: 7))
    with pytest.raises(CheckWarning, match="toy-log cannot be used here: no server"):
        check_usable(broken(check=lambda options: "no server"))
    with pytest.raises(CheckWarning, match="cannot be used here"):
        check_follows(broken(check=lambda options: "no server"))

    class Fails(ToyLog):
        def hear(self, event: Event) -> None:
            if event.data.get("value") is None and event.kind == "trial_end":
                raise KeyError("value")

    with pytest.raises(CheckFailed, match=r"toy-log must follow a search, but raises KeyError at `trial_end`"):
        check_follows(broken(open=Fails))

    class Keeps(ToyLog):
        def __init__(self, search: Any) -> None:
            super().__init__(search)
            search.state["runs"] = {1, 2}

    with pytest.raises(CheckFailed, match="`state` must be JSON"):
        check_goes_on(broken(open=Keeps))


# --- TensorBoard ------------------------------------------------------------------------------------------------------


@SEARCHED
def test_tensorboard_has_each_trial_with_its_settings(toy_images: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "run"
    result, _ = searched(toy_images, run, "logging=tensorboard", should_stop=stops_after(3))
    assert result.interrupted
    result, _ = searched(toy_images, run, "logging=tensorboard")
    assert result.unlogged == {}
    told = {(event["trial"], event["epoch"]): event for event in logged(run) if event["event"] == "epoch"}
    for number in range(3):
        found = accumulator.EventAccumulator(str(run / "tensorboard" / f"trial-{number}"))
        found.Reload()
        scalars = [(scalar.step, scalar.value) for scalar in found.Scalars("accuracy")]
        expected = [(epoch, told[number, epoch]["value"]) for epoch in (1, 2)]
        assert scalars == [(step, pytest.approx(value)) for step, value in expected], "each epoch once, of both sessions"
        assert len(found.Scalars("train_loss")) == 2
        plugins = found.summary_metadata.get("_hparams_/session_start_info") or found.PluginTagToContent("hparams")
        assert b"learning_rate" in str(plugins).encode()
    found = accumulator.EventAccumulator(str(run / "tensorboard" / "study"))
    found.Reload()
    (text,) = found.Tensors("result/text_summary")
    assert f'"winner": {result.trial}' in text.tensor_proto.string_val[0].decode()


def stops_after(epochs: int) -> Any:
    """Return a function that asks a search to stop some looks after it has begun to train."""
    looks = iter(range(10_000))
    return lambda: next(looks) >= epochs * 4


# --- MLflow -----------------------------------------------------------------------------------------------------------


def check_mlflow(client: Any, run: Path, result: SearchResult, experiment: str) -> None:
    """Check that MLflow holds a run of the study, and nested below it one of each trial, with every epoch once."""
    (found,) = [each for each in client.search_experiments() if each.name == experiment]
    runs = client.search_runs([found.experiment_id])
    (study,) = [each for each in runs if "mlflow.parentRunId" not in each.data.tags]
    trials = {each.data.tags["autoft.trial"]: each for each in runs if each is not study}
    assert set(trials) == {"0", "1", "2"}
    assert {each.data.tags["mlflow.parentRunId"] for each in trials.values()} == {study.info.run_id}
    assert study.info.status == "FINISHED"
    assert study.data.tags["autoft.winner"] == str(result.trial)
    assert study.data.metrics["best_accuracy"] == result.value
    told = {(event["trial"], event["epoch"]): event for event in logged(run) if event["event"] == "epoch"}
    for number, trial in trials.items():
        assert trial.info.status == "FINISHED"
        assert trial.data.params["backbone"] == "toy/mlp"
        assert "learning_rate" in trial.data.params
        history = client.get_metric_history(trial.info.run_id, "accuracy")
        assert sorted((metric.step, metric.value) for metric in history) == [
            (epoch, told[int(number), epoch]["value"]) for epoch in (1, 2)
        ]


@SEARCHED
def test_mlflow_has_a_run_of_the_study_and_of_each_trial(toy_images: Path, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("alembic")
    pytest.importorskip("flask", reason="mlflow-skinny alone has no store in a file")
    run, uri = tmp_path / "run", f"sqlite:///{tmp_path / 'mlflow.db'}"
    logging = f"logging={{mlflow: {{uri: '{uri}', experiment: toys}}}}"
    assert searched(toy_images, run, logging, should_stop=stops_after(3))[0].interrupted
    result, _ = searched(toy_images, run, logging)
    assert result.unlogged == {}
    check_mlflow(mlflow.MlflowClient(tracking_uri=uri), run, result, "toys")


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[str]:
    """A real server on this machine."""
    pytest.importorskip("flask", reason="mlflow-skinny alone has no server")
    mlflow = pytest.importorskip("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{tmp_path / 'server.db'}",
        "--artifacts-destination",
        str(tmp_path / "art"),
    ]
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True)
    address, stop = f"http://127.0.0.1:{port}", time.monotonic() + 110
    try:
        while True:
            try:
                mlflow.MlflowClient(tracking_uri=address).search_experiments()
                break
            except mlflow.exceptions.MlflowException:
                assert server.poll() is None, (tmp_path / "server.log").read_text()
                assert time.monotonic() < stop, (tmp_path / "server.log").read_text()
                time.sleep(1)
        yield address
    finally:
        os.killpg(server.pid, 15)
        server.wait(timeout=60)


@SEARCHED
@pytest.mark.slow
def test_mlflow_server_holds_the_trials(
    mlflow_server: str, toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    run = tmp_path / "run"
    result, _ = searched(toy_images, run, "logging=mlflow", "name=toys")
    assert result.unlogged == {}
    check_mlflow(mlflow.MlflowClient(tracking_uri=mlflow_server), run, result, "toys")


@SEARCHED
def test_server_that_is_away_is_told_and_the_search_goes_on(
    toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    result, _ = searched(toy_images, tmp_path / "run", "logging={mlflow: {uri: 'http://127.0.0.1:9'}}")
    assert result.bundle is not None
    assert "127.0.0.1" in result.unlogged["mlflow"]


def test_password_of_a_server_is_not_kept_in_a_run_folder() -> None:
    from autoft.builtin.loggers_mlflow import check

    pytest.importorskip("mlflow")
    said = check({"uri": "https://me:secret@example.org"})
    assert said is not None
    assert "secret" not in said


# --- Weights & Biases -------------------------------------------------------------------------------------------------


@SEARCHED
def test_wandb_offline_has_a_group_of_runs(toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "run"
    result, _ = searched(toy_images, run, "logging=wandb")
    assert result.unlogged == {}
    records = [of_wandb(file) for file in sorted(run.glob("wandb/offline-run-*/*.wandb"))]
    names = {found["run"].display_name: found for found in records}
    assert len(records) == 4
    assert set(names) == {"stripes", "trial 0", "trial 1", "trial 2"}
    assert len({found["run"].run_group for found in records}) == 1
    assert [row["accuracy"] for row in names["trial 0"]["history"]] == [
        event["value"] for event in logged(run) if event["event"] == "epoch" and event["trial"] == 0
    ]
    assert {item.key for item in names["trial 1"]["run"].config.update} >= {"learning_rate", "backbone", "role"}


def of_wandb(file: Path) -> dict[str, Any]:
    """Return the run and the history in a file of an offline run."""
    from wandb.proto import wandb_internal_pb2

    found: dict[str, Any] = {"run": None, "history": []}
    for content in log_records(file.read_bytes()[7:], 7):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        if record.WhichOneof("record_type") == "run":
            found["run"] = record.run
        elif record.WhichOneof("record_type") == "history":
            row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            found["history"].append(row)
    return found


def log_records(content: bytes, begun: int) -> Iterator[bytes]:
    """Yield the records of LevelDB's log format: blocks of 32 KiB, of parts with checksum, length and kind before them."""
    at, record = 0, b""
    while at < len(content):
        left = 32768 - (at + begun) % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole one, or the last part
            yield record
            record = b""


def test_wandb_asks_who_the_user_is_unless_it_is_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    from autoft.builtin.loggers_wandb import check

    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert "wandb login" in str(check({}))
    assert check({"mode": "offline"}) is None
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    assert check({}) is None


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_package_that_is_missing_is_told_with_how_to_install_it(
    name: str, toy_images: Path, toy_env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"autoft.builtin.loggers_{name}")
    monkeypatch.setattr(module, "find_spec", lambda package: None)
    assert f"pip install 'autoft[{name}]'" in str(module.check({}))
