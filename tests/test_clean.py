"""Cleaning frees what can be made again, and a search that goes on afterwards comes to the same result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commands import Heard, command, files_in, run_search, table
from conftest import FinishedRun

from autoft.clean import clean
from autoft.errors import RunError
from autoft.finish import read_result
from autoft.runfolder import hold

PRUNED = ("search.trials=7", "trainer.epochs=3", "search.prune=true", "search.confirm=2")
RESULT = ("lock.json", "study.yaml", "study.db", "log.jsonl", "result.json")


def names(folder: Path) -> set[str]:
    return set(files_in(folder))


def start(data: Path, run: Path, *settings: str) -> None:
    """Leave a run in which trials rest."""
    heard = Heard()

    def stop() -> bool:
        return sum(one["state"] == "paused" for one in heard.of("trial_end")) >= 2

    assert run_search(data, run, *PRUNED, *settings, on_event=heard, should_stop=stop).interrupted
    assert list(run.glob("trials/*/checkpoint"))


def same(found: Path, wanted: Path) -> None:
    assert table(found) == table(wanted)
    one, other = read_result(found), read_result(wanted)
    assert one is not None
    assert other is not None
    assert (one["winner"], one["confirmed"]) == (other["winner"], other["confirmed"])


@pytest.mark.usefixtures("toys", "fast_export")
@pytest.mark.parametrize("seeds", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_cleaned_run_goes_on_to_the_result_that_it_would_have_had(seeds: int, toy_images: Path, tmp_path: Path) -> None:
    settings = (f"search.seeds={seeds}", "search.reuse=true", "space.freeze_depth={low: 0, high: 2}")
    whole, run = tmp_path / "whole", tmp_path / "run"
    start(toy_images, whole, *settings)
    shutil.copytree(whole, run)
    done = clean(run, everything=True)
    assert any("checkpoint" in one.what and one.files for one in done.freed)
    assert not list(run.glob("trials/*/checkpoint"))
    assert not list(run.rglob("model.safetensors"))
    for folder in (whole, run):
        assert not run_search(toy_images, folder, *PRUNED, *settings).interrupted
    same(run, whole)
    # and once more, with more trials
    clean(run, everything=True)
    assert not list(run.rglob("trials/*/model.safetensors"))
    for folder in (whole, run):
        assert not run_search(toy_images, folder, *PRUNED, *settings, "search.trials=9").interrupted
    same(run, whole)


@pytest.mark.usefixtures("toys", "fast_export")
def test_finished_run_loses_what_only_going_on_needs(toy_images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_search(toy_images, run, *PRUNED, "search.seeds=2")
    (run / "prefix").mkdir()
    (run / "prefix" / "train-0.bin").write_bytes(bytes(1000))
    (run / "trials" / "0" / ".result.json.1.tmp").write_bytes(bytes(10))
    before = files_in(run)
    winner = str((read_result(run) or {})["winner"]["trial"])
    weights = {name for name in before if name.endswith("model.safetensors") and not name.startswith("bundle")}
    others = {name for name in weights if Path(name).parent.name.partition("-")[0] != winner}
    assert others
    assert weights - others

    looked = clean(run, dry_run=True)
    assert files_in(run).keys() - {".held"} == before.keys() - {".held"}
    kept = clean(run, keep_weights=True)
    assert names(run) == before.keys() - {"prefix/train-0.bin", "trials/0/.result.json.1.tmp"}
    assert {one.bytes for one in kept.freed} == {1000, 10}
    done = clean(run)
    assert names(run) == before.keys() - {"prefix/train-0.bin", "trials/0/.result.json.1.tmp"} - others
    assert kept.bytes + done.bytes == looked.bytes == sum(len(before[name]) for name in before.keys() - names(run))
    assert done.kept == sum(len(content) for content in files_in(run).values())
    clean(run, everything=True)
    assert not {name for name in names(run) if name.endswith("model.safetensors")}
    assert {name: files_in(run)[name] for name in RESULT} == {name: before[name] for name in RESULT}
    assert clean(run, everything=True).freed == ()


@pytest.mark.usefixtures("toys", "fast_export")
def test_run_without_a_result_keeps_its_weights(toy_images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    start(toy_images, run)
    before = sorted(run.rglob("model.safetensors"))
    assert before
    clean(run)
    assert sorted(run.rglob("model.safetensors")) == before


def test_what_lies_behind_a_link_stays(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    (run / "trials" / "0").mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "file.bin").write_bytes(b"mine")
    (run / "lock.json").write_text('{"identity": {}}')
    (run / "prefix").symlink_to(elsewhere)
    (run / "trials" / "0" / "checkpoint").symlink_to(elsewhere)
    assert clean(run, everything=True).freed == ()
    assert (elsewhere / "file.bin").read_bytes() == b"mine"


def test_run_that_is_held_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lock.json").write_text('{"identity": {}}')
    (tmp_path / "prefix").mkdir()
    with hold(tmp_path), pytest.raises(RunError, match="must be free, but another process holds it"):
        clean(tmp_path)
    assert (tmp_path / "prefix").exists()
    clean(tmp_path)
    assert not (tmp_path / "prefix").exists()


@pytest.mark.parametrize("lock", [None, "{", "{}"])
def test_what_is_no_run_folder_is_refused(
    lock: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prefix").mkdir()
    if lock is not None:
        (tmp_path / "lock.json").write_text(lock)
    done = command(monkeypatch, capsys, "clean", tmp_path, "--all")
    assert done.code == 2
    assert "lock.json" in done.err
    assert "hint:" in done.err
    assert (tmp_path / "prefix").exists()


def test_damaged_result_is_told_before_anything_goes(tmp_path: Path) -> None:
    (tmp_path / "lock.json").write_text('{"identity": {}}')
    (tmp_path / "result.json").write_text("{")
    (tmp_path / "prefix").mkdir()
    with pytest.raises(RunError, match=r"result\.json is damaged"):
        clean(tmp_path)
    assert (tmp_path / "prefix").exists()


def test_command_says_what_goes_and_what_stays(
    finished: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.path, run)
    before = names(run)
    looked = command(monkeypatch, capsys, "clean", run, "--dry-run")
    assert looked.code == 0
    assert "would be freed" in looked.out
    assert names(run) == before
    told = json.loads(command(monkeypatch, capsys, "clean", run, "--dry-run", "--json").out)
    done = json.loads(command(monkeypatch, capsys, "clean", run, "--json").out)
    assert told == {**done, "dry_run": True}
    assert done["bytes"] == sum(one["bytes"] for one in done["freed"]) > 0
    assert all(one["afterwards"] for one in done["freed"])
    assert names(run) < before
    assert "0.0 MB freed" in command(monkeypatch, capsys, "clean", run).out
    both = command(monkeypatch, capsys, "clean", run, "--all", "--keep-weights")
    assert both.code == 2
    assert "exclude each other" in both.err


@pytest.mark.usefixtures("toys", "fast_export")
@pytest.mark.parametrize("seeds", [1, 2])
def test_winner_whose_weights_are_damaged_is_trained_again_with_a_warning(
    seeds: int, toy_images: Path, tmp_path: Path
) -> None:
    run, heard = tmp_path / "run", Heard()
    settings = (*PRUNED, f"search.seeds={seeds}")
    run_search(toy_images, run, *settings)
    before = read_result(run)
    assert before is not None
    winner = before["winner"]["trial"]
    files = [*run.glob(f"trials/{winner}/model.safetensors"), *run.glob(f"confirm/{winner}-*/model.safetensors")]
    whole = {file: file.read_bytes() for file in files}
    for file, content in whole.items():
        file.write_bytes(content[:-10] + bytes([content[-10] ^ 1]) + content[-9:])
    run_search(toy_images, run, *settings, on_event=heard)
    assert read_result(run) == before
    told = [data for data in heard.of("warning") if data["about"] == "damaged"]
    assert told
    assert {data["trial"] for data in told} == {winner}
    mended = [file for file, content in whole.items() if file.read_bytes() == content]
    assert len(mended) == len(told)


@pytest.mark.usefixtures("toys", "fast_export")
def test_trial_that_rests_without_its_checkpoint_keeps_its_score_with_a_warning(toy_images: Path, tmp_path: Path) -> None:
    run, heard = tmp_path / "run", Heard()
    start(toy_images, run)
    for file in run.glob("trials/*/checkpoint/last.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    assert not run_search(toy_images, run, *PRUNED, on_event=heard).interrupted
    told = [data for data in heard.of("warning") if data["about"] == "damaged"]
    assert told
    assert not list(run.glob("trials/*/checkpoint"))
    assert all(trial["state"] in ("COMPLETE", "PRUNED") for trial in table(run))
