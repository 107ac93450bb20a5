"""A bundle answers for files and scores data, in autoft and in a clean environment alike; an altered one is refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import venv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Result, command, files_in, json_lines
from conftest import FinishedRun
from PIL import Image

from autoft import deploy
from autoft.discovery import discover
from autoft.errors import BundleError, DataError, PluginError
from autoft.testing.toy import write_toy_images

pytestmark = pytest.mark.usefixtures("toys")
Command = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command in this process."""
    return lambda *arguments: command(monkeypatch, capsys, *arguments)


@pytest.fixture(scope="session")
def bundle(finished: FinishedRun) -> Path:
    return finished.path / "bundle"


@pytest.fixture
def altered(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to be changed."""
    copy = tmp_path / "altered"
    shutil.copytree(bundle, copy)
    return copy


@pytest.fixture(scope="session")
def new_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that the model has not seen."""
    folder = tmp_path_factory.mktemp("new") / "stripes"
    write_toy_images(folder, per_class=5, seed=99)
    return folder


# --- predict --------------------------------------------------------------------------------------------


def test_every_file_gets_an_answer_in_order(run: Command, bundle: Path, new_images: Path) -> None:
    files = sorted(new_images.rglob("*.png"))
    plain = run("predict", bundle, *files)
    assert (plain.code, plain.err) == (0, "")
    for line, file in zip(plain.out.splitlines(), files, strict=True):
        assert re.fullmatch(rf"{re.escape(str(file))}  stripes-\d+  [01]\.\d{{4}}", line)
    as_json = run("predict", bundle, *files, "--json", "--batch-size", 4)
    answers = json_lines(as_json.out)
    assert [answer["input"] for answer in answers] == list(map(str, files))
    assert all(set(answer) == {"input", "label", "score"} for answer in answers)
    assert all(1 / 3 <= answer["score"] <= 1 for answer in answers)


def test_batch_size_changes_no_answer(bundle: Path, new_images: Path) -> None:
    opened = deploy.open_bundle(bundle, discover())
    files = sorted(new_images.rglob("*.png"))
    one, many = (list(deploy.predict(opened, files, batch_size=size)) for size in (1, 32))
    for first, second in zip(one, many, strict=True):
        assert first["label"] == second["label"]
        np.testing.assert_allclose(list(first["scores"].values()), list(second["scores"].values()), atol=1e-6)


def test_unreadable_files_among_good_ones_are_named_and_the_others_answered(
    run: Command, bundle: Path, new_images: Path, tmp_path: Path
) -> None:
    good = sorted(new_images.rglob("*.png"))[:3]
    broken, text, missing = tmp_path / "broken.png", tmp_path / "notes.txt", tmp_path / "missing.png"
    broken.write_bytes(good[0].read_bytes()[:80])
    text.write_text("no image")
    result = run("predict", bundle, good[0], missing, broken, good[1], text, tmp_path, good[2], "--json", "--batch-size", 2)
    assert result.code == 2
    assert [answer["input"] for answer in json_lines(result.out)] == list(map(str, good))
    errors = result.err.splitlines()
    assert len(errors) == 4
    for line, name in zip(errors, (missing, broken, text, tmp_path), strict=True):
        assert line.startswith(f"error: {name}: ")
    assert "no such file" in errors[0]


def test_any_kind_of_image_is_answered(run: Command, bundle: Path, tmp_path: Path) -> None:
    for mode in ("L", "RGBA", "P", "1", "I;16", "LA"):
        Image.new(mode, (50, 20)).save(tmp_path / f"{mode.replace(';', '')}.png")
    Image.new("CMYK", (20, 50)).save(tmp_path / "cmyk.jpg")
    files = [path for path in sorted(tmp_path.iterdir()) if path.is_file()]
    assert len(files) == 7
    result = run("predict", bundle, *files, "--json")
    assert result.code == 0, result.err
    assert len(json_lines(result.out)) == 7


@pytest.mark.parametrize("name", ["onnx/model.onnx", "predict.py", "model.safetensors", "golden/logits.npy", "README.md"])
def test_one_altered_byte_anywhere_is_refused(name: str, run: Command, altered: Path, new_images: Path) -> None:
    content = bytearray((altered / name).read_bytes())
    content[len(content) // 2] ^= 1
    (altered / name).write_bytes(content)
    for arguments in (("predict", altered, *new_images.rglob("*.png")), ("evaluate", altered, new_images)):
        result = run(*arguments)
        assert (result.code, result.out) == (2, "")
        assert f"error: {altered}: {name} was altered" in result.err
        assert "hint: get the bundle again" in result.err


def test_missing_file_is_refused(run: Command, altered: Path, new_images: Path) -> None:
    (altered / "onnx" / "preprocess.onnx").unlink()
    result = run("predict", altered, *new_images.rglob("*.png"))
    assert (result.code, result.out) == (2, "")
    assert "onnx/preprocess.onnx is missing" in result.err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda contract: contract.update(format="other"), "must be of the format 'autoft-bundle', but is 'other'"),
        (lambda contract: contract.update(format_version=99), "reads bundles of format version 1, but .* has 99"),
        (lambda contract: contract.update(task="image-clasification"), "head must be one that is installed"),
        (lambda contract: contract.update(labels=[]), "`labels` in autoft.json must be a list of names"),
        (lambda contract: contract.pop("files"), "must list onnx/model.onnx"),
        (lambda contract: contract["files"].update({"../secret": "0"}), "must lie inside the bundle"),
        (lambda contract: contract.pop("preprocessing"), "must hold `preprocessing`"),
    ],
)
def test_contract_that_promises_something_else_is_refused(
    change: Callable[[dict[str, Any]], Any], said: str, run: Command, altered: Path, new_images: Path
) -> None:
    contract = json.loads((altered / "autoft.json").read_text())
    change(contract)
    (altered / "autoft.json").write_text(json.dumps(contract))
    result = run("predict", altered, *new_images.rglob("*.png"))
    assert (result.code, result.out) == (2, "")
    assert re.search(f"error: .*{said}", result.err), result.err
    assert "Traceback" not in result.err


def test_what_is_no_bundle_is_refused(run: Command, finished: FinishedRun, new_images: Path, tmp_path: Path) -> None:
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "autoft.json").write_text("{")
    for folder, said in [
        (new_images, "has none"),
        (finished.path, "has none"),
        (tmp_path / "missing", "is no folder"),
        (next(new_images.rglob("*.png")), "is no folder"),
        (tmp_path / "torn", "is damaged"),
    ]:
        result = run("predict", folder, next(new_images.rglob("*.png")))
        assert (result.code, result.out) == (2, "")
        assert said in result.err
        assert "hint: " in result.err


def test_script_in_the_folder_is_never_run_by_autoft(altered: Path) -> None:
    """A bundle from elsewhere could hold any script; autoft runs its own copy."""
    (altered / "predict.py").write_text("raise SystemExit('owned')\n")
    with pytest.raises(BundleError, match=r"predict\.py was altered"):
        deploy.open_bundle(altered, discover())


def test_task_of_a_plugin_that_is_not_there_is_named(altered: Path) -> None:
    contract = json.loads((altered / "autoft.json").read_text())
    (altered / "autoft.json").write_text(json.dumps({**contract, "task": "toy-classification"}))
    assert deploy.open_bundle(altered, discover()).head.name == "toy-classification"
    with pytest.raises(PluginError, match="got 'toy-classification'"):
        deploy.open_bundle(altered, discover(enabled=False))


@pytest.mark.slow
def test_bundle_runs_without_autoft_and_torch_and_answers_the_same(
    run: Command, bundle: Path, new_images: Path, tmp_path: Path
) -> None:
    """A fresh environment with nothing but what the README of the bundle names."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    named = re.search(r"^pip install (.+)$", (bundle / "README.md").read_text(), re.MULTILINE)
    assert named
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *named[1].split()]
    installed = subprocess.run(pip, capture_output=True, text=True, timeout=240)
    assert installed.returncode == 0, installed.stderr
    absent = subprocess.run([python, "-c", "import torch"], capture_output=True, text=True)
    assert "ModuleNotFoundError" in absent.stderr
    absent = subprocess.run([python, "-c", "import autoft"], capture_output=True, text=True, cwd=tmp_path)
    assert "ModuleNotFoundError" in absent.stderr

    copy = tmp_path / "somewhere else"
    shutil.copytree(bundle, copy)
    files = sorted(new_images.rglob("*.png"))
    alone = subprocess.run(
        [python, "predict.py", *files, tmp_path / "missing.png", "--json"], capture_output=True, text=True, cwd=copy
    )
    assert alone.returncode == 2, alone.stderr
    assert "missing.png: no such file" in alone.stderr
    ours = run("predict", bundle, *files, "--json")
    for mine, other in zip(json_lines(ours.out), json_lines(alone.stdout), strict=True):
        assert (mine["input"], mine["label"]) == (other["input"], other["label"])
        assert mine["score"] == pytest.approx(other["score"], abs=1e-6)
    checked = subprocess.run([python, "predict.py", "--check"], capture_output=True, text=True, cwd=copy)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert checked.stdout.splitlines()[-1].startswith("ok")
    assert files_in(copy).keys() == files_in(bundle).keys(), "running it leaves nothing behind"


# --- evaluate -------------------------------------------------------------------------------------------


def labels_and_scores(run: Command, bundle: Path, data: Path) -> tuple[list[str], np.ndarray, list[str]]:
    """Truth, scores and answers of the files below a folder, by way of `predict`."""
    files = sorted(data.rglob("*.png"))
    opened = deploy.open_bundle(bundle, discover())
    answers = list(deploy.predict(opened, files))
    scores = np.array([list(answer["scores"].values()) for answer in answers])
    scores /= scores.sum(axis=1, keepdims=True)  # float32's rounding, which scikit-learn minds
    return [file.parent.name for file in files], scores, [answer["label"] for answer in answers]


def test_metrics_are_those_of_scikit_learn_on_the_same_predictions(run: Command, bundle: Path, new_images: Path) -> None:
    from sklearn import metrics

    labels = json.loads((bundle / "autoft.json").read_text())["labels"]
    truth, scores, predicted = labels_and_scores(run, bundle, new_images)
    found = json.loads(run("evaluate", bundle, new_images, "--json").out)
    assert {name: found.pop(name) for name in ("split", "samples", "rejected")} == {
        "split": "all", "samples": 15, "rejected": 0,
    }  # fmt: skip
    indices = [labels.index(label) for label in truth]
    wanted = {
        "accuracy": metrics.accuracy_score(truth, predicted),
        "balanced_accuracy": metrics.balanced_accuracy_score(truth, predicted),
        "f1_macro": metrics.f1_score(truth, predicted, average="macro", labels=labels, zero_division=0.0),
        "log_loss": metrics.log_loss(indices, scores, labels=range(len(labels))),
        "auroc": metrics.roc_auc_score(indices, scores, multi_class="ovr", average="macro"),
    }
    assert found == pytest.approx(wanted, abs=1e-6)
    plain = run("evaluate", bundle, new_images)
    assert plain.code == 0
    assert re.search(rf"^accuracy +{found['accuracy']:.6g}$", plain.out, re.MULTILINE), plain.out


def test_test_split_of_the_search_scores_as_the_search_said(finished: FinishedRun, bundle: Path, toy_images: Path) -> None:
    """The whole data, scored again: its test split's share must agree with what the result says."""
    from autoft.prepare import load_config, prepare

    config, catalog = load_config(finished.path / "study.yaml")
    prepared = prepare(config, catalog, lambda event: None)
    opened = deploy.open_bundle(bundle, catalog)
    answers = deploy.predict(opened, [Path(str(sample.source)) for sample in prepared.samples["test"]])
    right = [answer["label"] == sample.target for answer, sample in zip(answers, prepared.samples["test"], strict=True)]
    result = json.loads((finished.path / "result.json").read_text())
    assert np.mean(right) == pytest.approx(result["test"]["accuracy"])


@pytest.fixture
def declared(tmp_path: Path) -> Path:
    """Data with splits of 2, 3 and 4 images a class."""
    for number, split in enumerate(("train", "val", "test")):
        write_toy_images(tmp_path / "declared" / split, per_class=number + 2, seed=number)
    return tmp_path / "declared"


@pytest.mark.parametrize(
    ("split", "chosen", "samples"),
    [(None, "test", 12), ("all", "all", 27), ("train", "train", 6), ("validation", "validation", 9), ("test", "test", 12)],
)
def test_declared_splits_are_respected(
    split: str | None, chosen: str, samples: int, run: Command, bundle: Path, declared: Path
) -> None:
    found = json.loads(run("evaluate", bundle, declared, "--json", *(("--split", split) if split else ())).out)
    assert (found["split"], found["samples"]) == (chosen, samples)


def test_split_that_is_not_there_or_unknown_is_refused(run: Command, bundle: Path, new_images: Path, declared: Path) -> None:
    for data, split, said in [
        (new_images, "test", "has no test split; it declares none"),
        (declared, "tset", "must be one of all, train, validation, test, but got 'tset'"),
    ]:
        result = run("evaluate", bundle, data, "--split", split)
        assert (result.code, result.out) == (2, "")
        assert said in result.err
    shutil.rmtree(declared / "val")
    assert "it declares test, train" in run("evaluate", bundle, declared, "--split", "validation").err


@pytest.mark.parametrize("classes", [1, 2])
def test_data_with_only_some_of_the_classes_is_scored(
    classes: int, run: Command, bundle: Path, new_images: Path, tmp_path: Path
) -> None:
    data = tmp_path / "some"
    for folder in sorted(new_images.iterdir())[:classes]:
        shutil.copytree(folder, data / folder.name)
    truth, _, predicted = labels_and_scores(run, bundle, data)
    result = run("evaluate", bundle, data, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found["samples"] == 5 * classes
    assert found["accuracy"] == pytest.approx(np.mean([one == other for one, other in zip(truth, predicted, strict=True)]))
    assert "auroc" not in found, "not defined there"


def test_single_image_is_scored(run: Command, bundle: Path, new_images: Path, tmp_path: Path) -> None:
    (tmp_path / "one" / "stripes-60").mkdir(parents=True)
    shutil.copy(next((new_images / "stripes-60").iterdir()), tmp_path / "one" / "stripes-60")
    found = json.loads(run("evaluate", bundle, tmp_path / "one", "--json").out)
    assert found["samples"] == 1
    assert found["accuracy"] in (0.0, 1.0)


def test_test_folder_alone_is_scored(run: Command, bundle: Path, declared: Path) -> None:
    shutil.rmtree(declared / "train")
    shutil.rmtree(declared / "val")
    found = json.loads(run("evaluate", bundle, declared, "--json").out)
    assert (found["split"], found["samples"]) == ("test", 12)


def test_unknown_label_is_refused_with_the_nearest(run: Command, bundle: Path, new_images: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(new_images, data)
    (data / "stripes-0").rename(data / "stripes-00")
    result = run("evaluate", bundle, data)
    assert (result.code, result.out) == (2, "")
    assert "'stripes-00'" in result.err
    assert "hint: did you mean" in result.err
    assert "stripes-0" in result.err


def test_unreadable_images_are_counted(run: Command, bundle: Path, new_images: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(new_images, data)
    (data / "stripes-0" / "000.png").write_bytes(b"torn")
    found = json.loads(run("evaluate", bundle, data, "--json").out)
    assert (found["samples"], found["rejected"]) == (14, 1)
    (data / "stripes-0" / "001.png").write_bytes(b"torn")
    assert "at most 1 of 15 images may be unreadable" in run("evaluate", bundle, data).err


def test_data_that_is_not_there_or_nothing_known_is_refused(run: Command, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for data in (tmp_path / "missing", tmp_path / "empty", bundle):
        result = run("evaluate", bundle, data)
        assert (result.code, result.out) == (2, "")
        assert "hint: " in result.err
        assert "Traceback" not in result.err


def test_image_that_vanishes_between_reading_and_scoring_is_a_clear_error(
    bundle: Path, new_images: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(new_images, data)
    catalog = discover()
    opened = deploy.open_bundle(bundle, catalog)
    encode = opened.head.encode
    victim = next(data.rglob("*.png"))

    def lose(*arguments: Any) -> Any:
        victim.unlink()
        return encode(*arguments)

    opened = replace(opened, head=replace(opened.head, encode=lose))
    with pytest.raises(DataError, match="no such file"):
        deploy.evaluate(opened, data, catalog)
