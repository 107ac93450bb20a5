"""A run is shown in optuna-dashboard: all its trials, with what is attached; nothing in the browser reaches the run."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import socket
import urllib.error
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from commands import autoft, start
from conftest import FinishedRun
from optuna.trial import TrialState, create_trial
from PIL import Image
from test_report import made_run
from test_report_answers import made

from autoft.dashboard.copy import STUDY_ID, CopiedStudy
from autoft.dashboard.pictures import learning_curves, mistakes
from autoft.dashboard.serving import Shown, guarded
from autoft.errors import RunError
from autoft.files import read_json, write_checked


def asked(address: str, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(address + path, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def contents(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.fixture
def address(finished: FinishedRun, toy_env: dict[str, str]) -> Iterator[str]:
    """The real command shows a finished search; it ends with Ctrl-C, and says nothing more."""
    process = start("dashboard", finished.path, "--port", 0, env=toy_env)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), process.communicate()
        yield line.split("/dashboard")[0]
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "Ctrl-C ends it\n")
    finally:
        process.kill()
        process.communicate()


def test_finished_search_is_shown_whole_and_nothing_in_the_browser_changes_it(finished: FinishedRun, address: str) -> None:
    before = contents(finished.path)
    assert b"<html" in asked(address, "/dashboard")[1]
    (listed,) = json.loads(asked(address, "/api/studies")[1])["study_summaries"]
    study = json.loads(asked(address, f"/api/studies/{listed['study_id']}")[1])
    result = read_json(finished.path / "result.json")
    assert [trial["number"] for trial in study["trials"]] == [0, 1, 2]
    assert study["best_trials"][0]["values"] == [max(trial["values"][0] for trial in study["trials"] if trial["values"])]
    assert study["objective_names"] == ["accuracy"]
    assert f"**Trial {result['winner']['trial']} won**" in study["note"]["body"]
    assert f"autoft reproduce {finished.path}" in study["note"]["body"]
    preset = study["trials"][0]
    assert {"key": "role", "value": "preset"} in preset["user_attrs"]
    assert not {"seal", "clock", "due"} & {fact["key"] for fact in preset["user_attrs"]}
    assert "**preset** 0: complete" in preset["note"]["body"]

    (curve,) = preset["artifacts"]
    code, drawn = asked(address, f"/artifacts/{listed['study_id']}/{preset['trial_id']}/{curve['artifact_id']}")
    assert (code, curve["mimetype"]) == (200, "image/svg+xml")
    assert "accuracy" in "".join(ElementTree.fromstring(drawn).itertext())

    for method, path in (("DELETE", "/api/studies/0"), ("POST", "/api/studies"), ("PUT", "/api/studies/0/note")):
        code, said = asked(address, path, method)
        assert (code, json.loads(said)["reason"]) == (403, "this is a copy of the run, and nothing in it can be changed")
    code, said = asked(address, "/api/studies", Host="evil.example:8080")
    assert (code, b"not evil.example" in said) == (403, True)
    assert asked(address, "/api/studies")[0] == 200
    assert contents(finished.path) == before


def test_search_that_goes_on_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoft.dashboard.serving.EVERY", 0.0)
    run = made_run(tmp_path / "run", 1, failed=1)
    shown = Shown(run, folder(tmp_path))
    study = optuna.load_study(study_name="run", storage=shown.storage)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.FAIL]
    assert "It has no result yet." in str(shown.storage.get_study_system_attrs(STUDY_ID))
    assert "- failure: `oom`\\n- message: `<script>" in json.dumps(shown.storage.get_study_system_attrs(STUDY_ID))

    optuna.load_study(study_name=None, storage=f"sqlite:///{run / 'study.db'}").add_trial(create_trial(value=0.9))
    shown.refresh()
    assert [trial.value for trial in study.trials] == [0.6, None, 0.9]
    assert study.best_trial.number == 2

    write_checked(run / "result.json", {"metric": "accuracy", "winner": {"trial": 2, "value": 0.9}, "test": {}})
    shown.refresh()
    assert "**Trial 2 won**: value 0.9000 on validation" in str(shown.storage.get_study_system_attrs(STUDY_ID))


def test_run_that_becomes_unreadable_is_told_to_the_browser_and_comes_back(tmp_path: Path) -> None:
    run, said = tmp_path / "run", list[str]()
    state = {"gone": True}

    def refresh() -> None:
        if state["gone"]:
            raise RunError(f"{run} cannot be read", "restore it")

    application = guarded(lambda environ, start: [b"page"], refresh, "127.0.0.1")
    asked = {"REQUEST_METHOD": "GET", "HTTP_HOST": "127.0.0.1:80"}
    (answer,) = application(asked, lambda status, headers: said.append(status))
    assert said == ["503 Service Unavailable"]
    assert f"{run} cannot be read" in json.loads(answer)["reason"]
    state["gone"] = False
    assert list(application(asked, lambda status, headers: None)) == [b"page"]


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("create_new_study", ([],)),
        ("delete_study", (STUDY_ID,)),
        ("create_new_trial", (STUDY_ID,)),
        ("set_trial_state_values", (1, TrialState.FAIL)),
        ("set_trial_user_attr", (1, "name", 1)),
    ],
)
def test_trials_of_the_copy_cannot_be_changed(call: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(PermissionError, match="the trials here are a copy"):
        getattr(CopiedStudy("toys", "maximize"), call)(*arguments)


def test_curve_shows_each_epoch_once_and_what_is_finite(tmp_path: Path) -> None:
    epochs = [
        {"epoch": 1, "value": 0.25, "train_loss": 2.0},
        {"epoch": 2, "value": 0.5, "train_loss": float("nan")},
        {"epoch": 2, "value": 0.75, "train_loss": 1.0},
        {"epoch": 3, "value": 1.0, "train_loss": float("inf")},
    ]
    drawn = learning_curves(epochs, "<accuracy>")
    assert drawn is not None
    root = ElementTree.fromstring(drawn)
    told = "".join(root.itertext())
    assert "training loss: 1 to 2" in told
    assert "<accuracy>: 0.25 to 1" in told
    loss, value = (line.attrib["points"].split() for line in root.iter("{http://www.w3.org/2000/svg}polyline"))
    assert (len(loss), len(value)) == (2, 3)
    heights = [float(point.split(",")[1]) for point in value]
    assert heights == sorted(heights, reverse=True), "a better value is higher up"
    assert learning_curves(epochs[:1], "accuracy") is None


def test_worst_mistakes_are_a_table_and_images(tmp_path: Path) -> None:
    found = made("label")
    image = tmp_path / "image.png"
    Image.new("RGB", (300, 200), "red").save(image)
    found = replace(found, texts=(None,) * 300, files=(str(image),) * 299 + (str(tmp_path / "gone.png"),))
    table, *images = mistakes(found, folder(tmp_path))
    rows = table.read_text().splitlines()
    assert rows[0] == "sample,truth,answer,probability"
    sure = [float(row.rsplit(",", 1)[1].rstrip("%")) for row in rows[1:]]
    assert sure == sorted(sure, reverse=True)
    assert len(images) == 12
    assert all("<" not in each.name and Image.open(each).size == (160, 107) for each in images)
    perfect = replace(found, scores=found.targets[:, None] == found.targets.unique()[None])
    (tmp_path / "none").mkdir()
    assert mistakes(replace(perfect, scores=perfect.scores.float()), tmp_path / "none") == []


def test_what_cannot_be_served_is_refused(finished: FinishedRun, tmp_path: Path, toy_env: dict[str, str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = autoft("dashboard", finished.path, "--port", port, env=toy_env)
    assert refused.code == 2
    assert f"127.0.0.1:{port} cannot be listened on" in refused.err
    assert "--port" in refused.err
    refused = autoft("dashboard", tmp_path, env=toy_env)
    assert (refused.code, "the run folder of a search is needed" in refused.err) == (2, True)

    (tmp_path / "optuna_dashboard.py").write_text("raise ImportError('no module named optuna_dashboard')\n")
    refused = autoft("dashboard", finished.path, env={**toy_env, "PYTHONPATH": str(tmp_path)})
    assert (refused.code, "pip install 'autoft[dashboard]'" in refused.err) == (2, True)


def test_damaged_answers_are_told(finished: FinishedRun, tmp_path: Path) -> None:
    run = shutil.copytree(finished.path, tmp_path / "run")
    file = run / "answers" / "test.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RunError, match="answers"):
        Shown(run, folder(tmp_path))


def folder(parent: Path) -> Path:
    made = parent / "kept"
    made.mkdir()
    return made
