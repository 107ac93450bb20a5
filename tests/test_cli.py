"""The command as people and programs meet it: streams, exit codes, bad input, signals, help, a terminal."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import (
    Result,
    assert_same_search,
    autoft,
    command,
    files_in,
    json_lines,
    start,
    table,
    wait_for,
)
from conftest import FinishedRun, InstallPlugin
from PIL import Image

from autoft.tasks import classification

Command = Callable[..., Result]

BUNDLE_FILES = {
    "config.pbtxt",
    "sbom.json",
    "README.md",
    "autoft.json",
    "config.json",
    "golden/golden.json",
    "golden/logits.npy",
    "golden/pixel_values.npy",
    "golden/probabilities.npy",
    "model.safetensors",
    "onnx/model.onnx",
    "onnx/preprocess.onnx",
    "predict.py",
    "preprocessor_config.json",
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command in this process."""
    return lambda *arguments: command(monkeypatch, capsys, *arguments)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, so that a stray `runs/` would be seen."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


# --- a whole search -------------------------------------------------------------------------------------


def test_search_prints_its_result_to_stdout_and_all_else_to_stderr(finished: FinishedRun) -> None:
    shown = dict(line.split(maxsplit=1) for line in finished.out.splitlines())
    assert list(shown) == ["best", "trials", "run", "bundle", "report", "next"]
    assert re.fullmatch(
        r"trial \d: accuracy [01]\.\d{4} on validation \(preset [01]\.\d{4}\), [01]\.\d{4} ± [01]\.\d{4} on test",
        shown["best"],
    )
    assert shown["trials"] == "2 complete, 1 pruned"
    assert shown["bundle"] == str(finished.path / "bundle")
    assert shown["next"] == f"autoft predict {finished.path / 'bundle'} INPUTS..."
    lines = finished.err.splitlines()
    assert "\x1b" not in finished.err, "plain lines where there is no terminal"
    for words in ("36 samples in 3 classes", "builds, exports", "trial 0 (preset)", "epoch 1/2", "left", "exporting trial"):
        assert any(words in line for line in lines), words


def test_bundle_is_complete(finished: FinishedRun) -> None:
    bundle = finished.path / "bundle"
    found = {str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file()}
    inputs = {name for name in found if name.startswith("golden/inputs/")}
    assert found - inputs == BUNDLE_FILES
    assert len(inputs) == 6, "the whole validation split, as it is smaller than the usual eight"
    contract = json.loads((bundle / "autoft.json").read_text())
    assert set(contract["files"]) == found - {"autoft.json"}
    assert contract["labels"] == ["stripes-0", "stripes-60", "stripes-120"]
    assert contract["parity"]["samples"] == 6
    assert contract["parity"]["max_output_difference"] < 1e-3
    secrets = [str(Path.home()), sys.prefix, str(finished.path)]
    for name, content in files_in(bundle).items():
        for secret in secrets:
            assert secret.encode() not in content, f"{name} tells strangers about this machine: {secret}"


def test_run_folder_is_complete_and_shows_in_optuna(finished: FinishedRun) -> None:
    names = {path.name for path in finished.path.iterdir()}
    assert {"study.yaml", "lock.json", "study.db", "trials", "bundle", "log.jsonl", "result.json"} <= names
    assert [trial["state"] for trial in table(finished.path)] == ["COMPLETE", "COMPLETE", "PRUNED"]
    events = json_lines((finished.path / "log.jsonl").read_text())
    assert [event["event"] for event in events].count("epoch") == 2 + 2 + 1
    assert events[-1]["event"] == "done"


def test_finished_run_typed_again_answers_at_once_and_changes_nothing(
    finished: FinishedRun, toy_env: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    shutil.copytree(finished.path, path)
    before = files_in(path / "bundle") | files_in(path / "trials")
    arguments = [path if item == finished.path else item for item in finished.arguments]
    started = time.monotonic()
    again = autoft(*arguments, env=toy_env)
    assert (again.code, again.out) == (0, finished.out.replace(str(finished.path), str(path)))
    assert "epoch" not in again.err.replace("epochs each", "")
    assert "exporting" not in again.err
    assert time.monotonic() - started < 60
    assert files_in(path / "bundle") | files_in(path / "trials") == before


@pytest.mark.usefixtures("toys", "fast_export")
def test_json_prints_every_event_as_a_line_of_json_and_nothing_else(run: Command, here: Path, toy_images: Path) -> None:
    result = run("search", toy_images, "-b", "toy/mlp", "--trials", 2, "--epochs", 1, "--json", "--set", "search.soup=false")
    assert (result.code, result.err) == (0, "")
    events = json_lines(result.out)
    kinds = [event["event"] for event in events]
    assert kinds == [
        "data", "data", "preflight", "probe", "search",
        "trial", "epoch", "trial_end", "trial", "epoch", "trial_end",
        *["confirm"] * (4 + 1), "export", "done",
    ]  # fmt: skip
    done = events[-1]
    assert done["bundle"] == "runs/stripes/bundle"
    winner = str(done["winner"]["trial"])
    assert done["winner"]["value"] == max(done["confirmed"]["values"][winner].values()), "its best seed"
    assert (here / done["bundle"]).is_dir()


@pytest.mark.usefixtures("toys", "fast_export", "here")
def test_quiet_prints_the_bundles_path_alone(run: Command, toy_images: Path) -> None:
    result = run("search", toy_images, "-b", "toy/mlp", "--trials", 1, "--epochs", 1, "-q")
    assert result == Result(0, "runs/stripes/bundle\n", "")


@pytest.mark.usefixtures("toys", "fast_export")
def test_options_win_over_the_study_file_and_set_wins_over_options(run: Command, here: Path, toy_images: Path) -> None:
    (here / "study.yaml").write_text(
        f"name: mine\ndata: {toy_images}\nbackbones: [{{name: toy/convnet}}]\nsearch: {{trials: 9, seed: 3}}\n"
    )
    result = run(
        "search", "study.yaml", "--trials", 5, "--epochs", 7, "--metric", "log_loss", "--device", "cpu",
        "-b", "toy/mlp", "--weights", "none", "--set", "trainer.epochs=1", "--set", "search.trials=1", "-q",
    )  # fmt: skip
    assert result.code == 0, result.err
    resolved = (here / "runs" / "mine" / "study.yaml").read_text()
    for line in ("trials: 1", "epochs: 1", "seed: 3", "metric: log_loss", "weights: none", "device: cpu", "- name: toy/mlp"):
        assert line in resolved, line
    assert "toy/convnet" not in resolved


# --- stopping and going on ------------------------------------------------------------------------------


@pytest.mark.slow
def test_interrupted_terminated_and_killed_search_equals_an_uninterrupted_one(
    finished: FinishedRun, toy_env: dict[str, str], tmp_path: Path
) -> None:
    """The real command: Ctrl-C in the first trial, SIGTERM in the second, kill -9 in the third's and in the export."""
    path = tmp_path / "run"
    arguments = [path if item == finished.path else item for item in finished.arguments]
    moments = [
        ("trial 1 epoch 1", signal.SIGINT, 130),  # from the probe's head: it begins before the preset
        ("trial 0 epoch 1", signal.SIGTERM, 143),
        ("trial 2 epoch 1", signal.SIGKILL, -9),
        ("exporting", signal.SIGKILL, -9),
    ]
    for words, number, code in moments:
        process = start(*arguments, env=toy_env)
        wait_for(process, words)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == code, err
        assert out == ""
        if code > 0:
            assert "stopping after this step; once more stops at once" in err
            assert "the same command goes on" in err
        assert not (path / "bundle").exists()
    last = autoft(*arguments, env=toy_env)
    assert (last.code, last.out) == (0, finished.out.replace(str(finished.path), str(path)))
    assert_same_search(path, finished.path)


@pytest.mark.parametrize(
    ("words", "number", "code"),
    [("reading", signal.SIGINT, 130), ("samples in", signal.SIGTERM, 143)],
)
def test_signal_before_the_search_leaves_nothing(
    words: str, number: int, code: int, toy_images: Path, toy_env: dict[str, str], tmp_path: Path
) -> None:
    process = start("search", toy_images, "-b", "toy/mlp", env=toy_env, cwd=tmp_path)
    wait_for(process, words)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert out == ""
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_signal_while_libraries_are_imported_ends_the_command_without_a_trace(
    toy_images: Path, toy_env: dict[str, str], tmp_path: Path
) -> None:
    process = start("search", toy_images, "-b", "toy/mlp", env=toy_env, cwd=tmp_path)
    time.sleep(1.0)  # importing torch takes longer
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_reader_that_has_seen_enough_is_no_error(finished: FinishedRun, toy_env: dict[str, str]) -> None:
    for arguments in (["plugins"], ["predict", finished.path / "bundle", *sorted(finished.path.rglob("golden/inputs/*"))]):
        process = start(*arguments, env=toy_env)
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        assert process.communicate(timeout=60)[1] == ""
        assert process.returncode == 128 + signal.SIGPIPE


# --- bad input ------------------------------------------------------------------------------------------


def images(folder: Path, **classes: int) -> Path:
    """A folder of so many images a class."""
    for number, (label, count) in enumerate(classes.items()):
        (folder / label).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (16, 16), (40 * number, 5 * index, 90)).save(folder / label / f"{index}.png")
    return folder


def no_images(folder: Path) -> Path:
    images(folder, cats=0, dogs=0)
    (folder / "cats" / "notes.txt").write_text("no image")
    return folder


def broken_images(folder: Path) -> Path:
    images(folder, cats=10, dogs=10)
    for name in ("cats/3.png", "dogs/4.png"):
        (folder / name).write_bytes(b"torn")
    return folder


BAD_DATA: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "no images": (no_images, r"no installed data format recognizes .*known formats:\n(  .*\n)*  image-folder: ", "arrange"),
    "empty folder": (lambda folder: folder.mkdir() or folder, r"no installed data format recognizes", "arrange the data"),
    "one class": (lambda folder: images(folder, cats=9), r"at least two classes.*only 'cats'", "add a folder"),
    "one image per class": (
        lambda folder: images(folder, cats=1, dogs=1), r"at least 2 readable images.*'cats' has 1", "add images"
    ),
    "two images per class": (
        lambda folder: images(folder, cats=2, dogs=2), r"at least 3 distinct samples.*'cats' \(2 distinct of 2\)", "add"
    ),
    "empty class": (lambda folder: images(folder, cats=9, dogs=0), r"every class must have images, but .*dogs", "delete"),
    "unreadable files": (
        broken_images,
        r"at most 1 of 20 images may be unreadable, but 2 in .* are:\n  cats/3\.png: .*\n  dogs/4\.png",
        "max_rejected",
    ),
    "a file": (lambda folder: folder.write_text("text") and folder, r"no installed data format recognizes", "arrange"),
    "missing path": (lambda folder: folder, r"data\.path: must be an existing file or folder", "relative path"),
}  # fmt: skip


@pytest.mark.usefixtures("toys", "here")
@pytest.mark.parametrize("name", BAD_DATA)
def test_data_that_cannot_be_learned_from_is_refused(name: str, run: Command, tmp_path: Path, here: Path) -> None:
    make, said, hint = BAD_DATA[name]
    result = run("search", make(tmp_path / "data"), "-b", "toy/mlp")
    refused(result, said, hint, here)


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--label", "moods"), r"`data\.label` .* no 'moods'; it has 'one', 'two', 'mood'"),
        (("--text", "twice"), r"`data\.text` .* no 'twice'"),
        (("--label", "mood", "--label", "moody"), r"`data\.label` .* no 'moody'"),
        (("--group", "author"), r"`data\.group` .* no 'author'"),
        (("--task", "multi-label"), r"multi-label needs lists of labels"),
    ],
)
def test_columns_and_task_named_by_options_reach_the_table(
    options: tuple[str, ...], said: str, run: Command, tmp_path: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    file = tmp_path / "some.csv"
    file.write_text("one,two,mood\n" + "".join(f"a text {i},other {i},{'ab'[i % 2]}\n" for i in range(9)))
    refused(run("search", file, "-b", "toy/mlp", "--text", "one", *options), said, "", here)


def refused(result: Result, said: str, hint: str, here: Path) -> None:
    """A clear error: rule, value, next step, exit code 2; and no folder made."""
    assert (result.code, result.out) == (2, ""), result
    errors = result.err[result.err.index("error: ") :]
    assert re.search(said, errors), errors
    assert "hint: " in errors or "did you mean" in errors, errors
    assert hint in errors, errors
    assert "Traceback" not in errors
    assert list(here.glob("runs*")) == [], "nothing was begun"


BAD_OPTIONS: dict[str, tuple[list[str], str, str]] = {
    "unknown family": (["-b", "tymm/resnet18"], r"backbone family must be one that is installed, but got 'tymm'", "`timm`"),
    "unknown model": (["-b", "timm/resnet81"], r"timm has no model 'resnet81'", "did you mean timm/resnet18"),
    "no family": (["-b", "resnet18"], r"must be FAMILY/MODEL, such as timm/resnet18, or a preset", "plugins presets"),
    "impossible freeze depth": (
        ["-b", "toy/mlp", "--set", "space.freeze_depth=9"],
        r"must be a whole number between 0 and 3 for toy/mlp, or `all`, but got 9",
        "autoft plugins show toy/mlp",
    ),
    "negative freeze depth": (["-b", "toy/mlp", "--set", "space.freeze_depth=-1"], r"space\.freeze_depth", ""),
    "batch larger than the data": (
        ["-b", "toy/mlp", "--set", "trainer.batch_size=500"],
        r"must be at most the number of training samples, 24, but got 500",
        "`auto` chooses one that fits",
    ),
    "unknown metric": (["-b", "toy/mlp", "--metric", "acuracy"], r"search\.metric.*acuracy", "accuracy"),
    "no device": (
        ["-b", "toy/mlp", "--device", "cuda:17"],
        r"must be a device of this machine, but got 'cuda:17'",
        "doctor",
    ),
    "strange device": (["-b", "toy/mlp", "--device", "gpu"], r"must be `auto`, `cpu`, `cuda`.*but got 'gpu'", "doctor"),
    "no trials": (["-b", "toy/mlp", "--trials", "0"], r"search\.trials.*0", ""),
    "strange time": (["-b", "toy/mlp", "--time-limit", "soon"], r"must be a time such as `90s`.*'soon'", "leave it out"),
    "unknown setting": (["-b", "toy/mlp", "--set", "trainer.epoch=3"], r"trainer\.epoch", "epochs"),
    "no setting": (["-b", "toy/mlp", "--set", "trainer"], r"must be written as `setting=value`", "search.trials=5"),
    "missing weights": (["-b", "toy/mlp", "--weights", "nowhere.safetensors"], r"there is nothing at '.*nowhere", ""),
    "weights without backbone": (["--weights", "none"], r"`--weights` needs a `--backbone`", "--backbone FAMILY/MODEL"),
    "the same backbone twice": (
        ["-b", "toy/mlp", "-b", "toy/mlp"],
        r"must differ from the other backbones",
        "change its weights",
    ),
    "image size": (["-b", "toy/mlp", "--set", "backbones.0.image_size=4"], r"image_size.*4", ""),
}


@pytest.mark.usefixtures("toys", "fast_export")
@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_option_that_cannot_be_is_refused(name: str, run: Command, toy_images: Path, here: Path) -> None:
    options, said, hint = BAD_OPTIONS[name]
    result = run("search", toy_images, *options)
    if hint:
        refused(result, said, hint, here)
    else:
        assert result.code == 2, result
        assert re.search(said, result.err), result.err
        assert not (here / "runs").exists()


@pytest.mark.usefixtures("toys")
def test_all_five_mistakes_of_a_study_file_are_reported_with_their_lines(run: Command, toy_images: Path, here: Path) -> None:
    (here / "study.yaml").write_text(
        f"name: mine\ndata: {{path: {toy_images}}}\n"
        "backbones: [toy/mlpp]\n"
        "search:\n  trails: 9\n  seed: -1\n"
        "trainer:\n  epochs: many\n"
        "space:\n  dropot: 0.1\n"
    )
    result = run("search", "study.yaml")
    assert (result.code, result.out) == (2, "")
    assert "study.yaml has 5 problems:" in result.err
    for line, words in {3: "mlpp", 5: "search.trails", 6: "search.seed", 8: "trainer.epochs", 10: "space.dropot"}.items():
        (said,) = [text for text in result.err.splitlines() if f"line {line}: " in text]
        assert words in said
    for near in ("toy/mlp", "trials", "dropout"):
        assert f"`{near}`" in result.err or near in result.err
    assert not (here / "runs").exists()


@pytest.mark.usefixtures("toys", "here")
def test_interrupt_that_a_library_wraps_is_an_interrupt_all_the_same(
    run: Command, toy_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt as error:
            raise ValueError("as pydantic does") from error

    monkeypatch.setattr("autoft.driver.prepare", interrupted)
    result = run("search", toy_images, "-b", "toy/mlp")
    assert result.code == 143
    assert "Traceback" not in result.err


@pytest.mark.usefixtures("toys")
def test_study_file_that_is_missing_or_no_yaml_is_refused(run: Command, here: Path) -> None:
    (here / "stdy.yaml").write_text("a: [1\n")
    for name in ("study.yaml", "stdy.yaml"):
        result = run("search", name)
        assert (result.code, result.out) == (2, "")
        assert name in result.err
        assert "Traceback" not in result.err


@pytest.mark.usefixtures("toys", "fast_export")
def test_one_unreadable_file_among_many_is_left_out_with_a_warning(run: Command, toy_images: Path, here: Path) -> None:
    shutil.copytree(toy_images, here / "data")
    (here / "data" / "stripes-60" / "007.png").write_bytes(b"torn")
    result = run("search", "data", "-b", "toy/mlp", "--trials", 1, "--epochs", 1, "-q")
    assert (result.code, result.out) == (0, "runs/data/bundle\n")
    assert "warning: 1 unreadable sample was left out: stripes-60/007.png: is not a" in result.err


@pytest.mark.usefixtures("toys")
def test_output_folder_of_another_study_or_of_anything_else_is_refused(
    run: Command, finished: FinishedRun, toy_images: Path, here: Path
) -> None:
    taken, mine = here / "taken", here / "mine"
    shutil.copytree(finished.path, taken)
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    (here / "file").write_text("a file")
    before = files_in(here)
    usual = ("search", toy_images, "-b", "toy/mlp", "--trials", 3, "--epochs", 2)
    for arguments, said in [
        ((*usual, "--seed", 1, "-o", taken), "belongs to another study: search.seed is 0 there and 1 here"),
        ((*usual, "--epochs", 5, "-o", taken), "trainer.epochs is 2 there and 5 here"),
        ((*usual, "-b", "toy/convnet", "-o", taken), "backbones.1.name is None there and 'toy/convnet' here"),
        ((*usual, "-o", mine), "must be new, empty or of the same study, but .* holds thesis.tex"),
        ((*usual, "-o", here / "file"), "must be a folder, but .* is a file"),
        ((*usual, "-o", here / "file" / "below"), "cannot be made"),
    ]:
        result = run(*arguments)
        assert (result.code, result.out) == (2, "")
        assert re.search(f"error: .*{said}", result.err), result.err
        assert "hint: choose another folder with -o" in result.err
    assert files_in(here) == before


@pytest.mark.usefixtures("toys")
def test_weights_of_another_architecture_are_refused(run: Command, toy_images: Path, here: Path) -> None:
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("resnet10t", num_classes=0).state_dict(), here / "resnet10t.safetensors")
    result = run("search", toy_images, "-b", "timm/mobilenetv3_small_050", "--weights", "resnet10t.safetensors")
    assert result.code == 2
    assert re.search(r"error: .*resnet10t\.safetensors", result.err), result.err
    assert "timm/mobilenetv3_small_050" in result.err
    assert "Traceback" not in result.err
    assert not (here / "runs").exists()


def test_pretrained_weights_without_a_network_are_refused_within_seconds(
    toy_images: Path, toy_env: dict[str, str], tmp_path: Path
) -> None:
    env = {**toy_env, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    here = tmp_path / "here"
    here.mkdir()
    started = time.monotonic()
    result = autoft("search", toy_images, "-b", "timm/resnet18.a1_in1k", env=env, cwd=here)
    assert time.monotonic() - started < 45, "seconds, even on a busy machine"
    refused(result, r"the pretrained weights of timm/resnet18\.a1_in1k are not in the local cache", "weights: PATH", here)
    assert list(here.iterdir()) == []


@pytest.mark.usefixtures("toys", "fast_export", "here")
def test_bug_leaves_its_trace_and_exit_code_1(run: Command, toy_images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> torch.Tensor:
        raise ZeroDivisionError("a bug of the head")

    monkeypatch.setattr(classification, "loss", broken)
    result = run("search", toy_images, "-b", "toy/mlp", "--epochs", 1)
    assert result.code == 1
    assert "error: 3 trials failed in the same way" in result.err
    assert "raise ZeroDivisionError" in result.err


@pytest.mark.usefixtures("toys", "fast_export", "here")
def test_search_without_a_single_good_trial_is_exit_code_2(
    run: Command, toy_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classification, "loss", lambda *arguments: torch.tensor(float("nan"), requires_grad=True))
    result = run("search", toy_images, "-b", "toy/mlp", "--epochs", 1, "--trials", 2)
    assert (result.code, result.out) == (2, "")
    assert "no trial gave a model: all 2 failed (2 nan)" in result.err


# --- plugins --------------------------------------------------------------------------------------------

BROKEN = {
    "fails_at_import": "import nothing_of_this_name\n",
    "raises_in_hook": "import autoft\n\n@autoft.hookimpl\ndef autoft_heads():\n    raise KeyError('lost')\n",
    "misspelt_hook": "import autoft\n\n@autoft.hookimpl\ndef autoft_bakbones():\n    return []\n",
    "wrong_arguments": "import autoft\n\n@autoft.hookimpl\ndef autoft_heads(model):\n    return []\n",
    "returns_nonsense": "import autoft\n\n@autoft.hookimpl\ndef autoft_data():\n    return 3\n",
}


@pytest.mark.usefixtures("toys", "fast_export", "here")
def test_broken_plugins_are_left_out_warned_about_once_and_shown(
    run: Command, install_plugin: InstallPlugin, toy_images: Path
) -> None:
    for name, source in BROKEN.items():
        install_plugin(name, source, package=f"package-of-{name.replace('_', '-')}")
    usual = ("search", toy_images, "-b", "toy/mlp", "--trials", 1, "--epochs", 1, "-q")
    result = run(*usual)
    assert (result.code, result.out) == (0, "runs/stripes/bundle\n")
    for name in BROKEN:
        assert len([line for line in result.err.splitlines() if line.startswith("warning: ") and name in line]) == 1

    listed = run("plugins")
    assert listed.code == 0
    for name in BROKEN:
        (line,) = [text for text in listed.out.splitlines() if text.startswith(name)]
        assert f"package-of-{name.replace('_', '-')} 1.0" in line
        assert "broken: " in line
    assert "did you mean `autoft_backbones`?" in listed.out

    missing = run("search", toy_images, "-b", "mine/net", "-o", "other")
    assert missing.code == 2
    assert "misspelt_hook" in missing.err
    assert "may have provided it" in missing.err

    strict = run(*usual[:-1], "--strict-plugins", "-o", "strict")
    assert strict.code == 2
    assert "strict mode allows no broken plugin, but 5 of" in strict.err
    assert not Path("strict").exists()

    without = run("search", toy_images, "-b", "toy/mlp", "--no-plugins", "-o", "without")
    assert without.code == 2, "the toys are a third party's"
    assert "was left out" in without.err


def test_listing_plugins_imports_none(toy_env: dict[str, str], tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "loud.py").write_text("raise SystemExit('imported')\n")
    (site / "loud-1.0.dist-info").mkdir()
    (site / "loud-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: loud\nVersion: 1.0\n")
    (site / "loud-1.0.dist-info" / "entry_points.txt").write_text("[autoft]\nloud = loud\n")
    env = {**toy_env, "PYTHONPATH": f"{site}{os.pathsep}{toy_env['PYTHONPATH']}", "AUTOFT_CACHE": str(tmp_path / "cache")}
    listed = autoft("plugins", "--json", env=env)
    assert listed.code == 0
    found = {plugin["name"]: plugin for plugin in json.loads(listed.out)}
    assert found["loud"]["status"] == "not loaded yet"
    assert found["toy"]["package"] == "toy-plugin"
    loaded = autoft("plugins", "--load", "--json", env=env)
    found = {plugin["name"]: plugin for plugin in json.loads(loaded.out)}
    assert found["loud"]["status"] == "broken"
    assert "imported" in found["loud"]["reason"]
    names = {"toy", "toy-classification", "toy-stripes", "toy-scale", "toy-log"}
    assert {given["name"] for given in found["toy"]["provides"]} == names


THIRD_PARTY = '''
"""A backbone family: one plain network."""

import autoft
import torch
from torch import nn

from autoft.errors import BackboneError
from autoft.images import ImagePreprocessing
from autoft.specs import Backbone, BackboneFamily, Stage


def build():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())


def resolve(request):
    if request.model != "net":
        raise BackboneError(f"acme has no model {request.model!r}", "there is acme/net")
    return Backbone(
        name="acme/net", modality="image", weights="none", features="pooled", inputs=("pixel_values",),
        preprocessing=ImagePreprocessing((16, 16), 16, "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        build=build, stages=lambda module: (Stage("0", ("0.weight", "0.bias")),), feature_size=lambda module: 32,
    )


@autoft.hookimpl
def autoft_backbones():
    return [BackboneFamily("acme", "image", resolve, lambda: ["net"], lambda size: ["acme/net"], "a plain network")]
'''


@pytest.mark.slow
def test_third_partys_package_is_installed_found_and_used(toy_images: Path, toy_env: dict[str, str], tmp_path: Path) -> None:
    package, site = tmp_path / "package", tmp_path / "site"
    package.mkdir()
    (package / "autoft_acme.py").write_text(THIRD_PARTY)
    (package / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "autoft-acme"\nversion = "1.2"\ndependencies = ["autoft"]\n'
        '[project.entry-points.autoft]\nacme = "autoft_acme"\n[tool.setuptools]\npy-modules = ["autoft_acme"]\n'
    )
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    installed = subprocess.run(
        [*pip, "--no-build-isolation", "--target", site, package], capture_output=True, text=True, timeout=120
    )
    assert installed.returncode == 0, installed.stderr
    env = {**toy_env, "PYTHONPATH": str(site), "AUTOFT_CACHE": str(tmp_path / "cache")}
    listed = autoft("plugins", "--load", env=env)
    assert re.search(r"^acme +autoft-acme 1\.2 +ok +acme \(family\)", listed.out, re.MULTILINE), listed.out
    run = tmp_path / "run"
    found = autoft("search", toy_images, "-b", "acme/net", "--trials", 2, "--epochs", 1, "-o", run, "-q", env=env)
    assert (found.code, found.out) == (0, f"{run / 'bundle'}\n"), found.err
    assert json.loads((run / "bundle" / "autoft.json").read_text())["backbone"]["name"] == "acme/net"


# --- other commands -------------------------------------------------------------------------------------


def test_doctor_tells_versions_devices_plugins_and_disk(run: Command) -> None:
    found = {item["about"]: item for item in json.loads(run("doctor", "--json").out)}
    assert {"python", "torch", "timm", "optuna", "cpu", "cuda", "plugin", "disk"} <= set(found)
    shown = run("doctor")
    assert shown.code in (0, 2)
    assert (shown.code == 2) == ("<- " in shown.out)
    assert "torch" in shown.out


@pytest.mark.usefixtures("toys")
def test_plugins_show_lists_stages(run: Command) -> None:
    shown = run("plugins", "show", "toy/convnet")
    assert shown.code == 0
    assert re.search(r"FREEZE_DEPTH +STAGE +PARAMETERS\n1 +stem +\d+\n2 +stage1 +", shown.out), shown.out
    as_json = json.loads(run("plugins", "show", "toy/convnet", "--json").out)
    assert [stage["name"] for stage in as_json["stages"]] == ["stem", "stage1", "stage2", "stage3"]
    unknown = run("plugins", "show", "image-classificaton")
    assert unknown.code == 2
    assert "did you mean image-classification" in unknown.err


@pytest.mark.usefixtures("toys")
def test_plugins_check_passes_a_sound_backbone(run: Command) -> None:
    checked = run("plugins", "check", "toy/mlp", "--json")
    assert checked.code == 0, checked.out
    results = json.loads(checked.out)
    assert len(results) >= 13
    assert {item["outcome"] for item in results} == {"passed"}
    assert {item["subject"] for item in results} == {"toy/mlp"}
    assert all(item["passed"] and item["about"] and item["seconds"] >= 0 for item in results)


@pytest.mark.slow
@pytest.mark.usefixtures("toys")
def test_plugins_check_checks_each_kind_of_features(run: Command) -> None:
    checked = run("plugins", "check", "toy/text")
    assert checked.code == 0, checked.out
    for kind in ("pooled", "sequence"):
        for check in ("feature-shape", "padding", "truncation", "export-parity"):
            assert f"ok    toy/text {kind}: {check}\n" in checked.out


def test_version_and_no_arguments(run: Command) -> None:
    from autoft import __version__

    assert run("--version") == Result(0, f"autoft {__version__}\n", "")
    bare = run()
    assert bare.code == 2
    assert "Commands:" in bare.out + bare.err
    unknown = run("serch")
    assert unknown.code == 2
    assert "serch" in unknown.err


COMMANDS = (
    ("search",), ("predict",), ("evaluate",), ("doctor",), ("plugins",), ("plugins", "show"), ("plugins", "check"),
)  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_every_option_with_its_default(
    name: tuple[str, ...], run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    shown = run(*name, "--help")
    assert shown.code == 0
    options = shown.out.partition("Options:")[2].partition("Commands:")[0]
    entries = re.split(r"\n  (?=-)", options)
    listed = [" ".join(entry.split()) for entry in entries if entry.strip()]
    assert len(listed) >= 2
    for entry in listed:
        if "--help" not in entry:
            assert "[default: " in entry, entry


def test_help_of_search_names_every_option_of_the_design(run: Command) -> None:
    shown = run("search", "-h").out
    for option in (
        "--output", "-o", "--backbone", "--weights", "--metric", "--trials", "--time-limit", "--epochs", "--seed", "--seeds",
        "--device", "--set", "--no-plugins", "--strict-plugins", "--quiet", "--json",
    ):  # fmt: skip
        assert option in shown


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['autoft', '--help']\nfrom autoft.cli import main\ntry:\n    main()\nexcept SystemExit:\n"
        "    pass\nprint(sorted(set(sys.modules) & {'torch', 'timm', 'optuna', 'onnx', 'sklearn', 'numpy', 'rich'}))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[-1] == "[]"
