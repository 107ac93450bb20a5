"""Any trial of a run can be exported: the winner with other choices, one whose weights were kept, one trained again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from commands import autoft as run_command
from commands import run_search, study_of

from autoft.errors import AutoftError, ExportError, RunError
from autoft.events import Event
from autoft.export.script import load_script
from autoft.reexport import export_again, find_run
from autoft.worker import WEIGHTS

pytestmark = pytest.mark.usefixtures("toys")


@pytest.fixture(scope="module")
def finished(toy_images: Path, toy_site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four trials."""
    run = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(toy_site))
        run_search(toy_images, run, "search.trials=4")
    return run


def outputs(bundle: Path, images: Sequence[Path]) -> list[list[float]]:
    found: list[list[float]] = load_script(bundle / "predict.py").Bundle.load(bundle).outputs(images).tolist()
    return found


def others(run: Path) -> list[int]:
    winner = json.loads((run / "result.json").read_text())["winner"]["trial"]
    return [trial.number for trial in study_of(run).trials if trial.number != winner]


def test_winner_is_exported_as_before(finished: Path, toy_images: Path, tmp_path: Path) -> None:
    again = export_again(finished, output=tmp_path / "again")
    result = json.loads((finished / "result.json").read_text())
    images = sorted(toy_images.rglob("*.png"))[:5]
    assert outputs(again.bundle, images) == outputs(finished / "bundle", images)
    assert (again.trial, again.weights) == (result["winner"]["trial"], result["winner"]["weights"])
    assert again.test == result["test"][result["metric"]]
    assert again.test_scored == result["test_scored"] == 1  # the same model: no second look


def test_trial_that_was_not_kept_is_trained_again_to_the_same_model(
    finished: Path, toy_images: Path, tmp_path: Path
) -> None:
    number = next(number for number in others(finished) if (finished / "trials" / str(number) / WEIGHTS).exists())
    images, heard = sorted(toy_images.rglob("*.png"))[:5], list[Event]()
    kept = export_again(finished, trial=number, output=tmp_path / "kept", on_event=heard.append)
    assert not any("again up to epoch" in event.text for event in heard)
    weights = finished / "trials" / str(number) / WEIGHTS
    content = weights.read_bytes()
    weights.unlink()
    try:
        again = export_again(finished / "trials" / str(number), on_event=heard.append)
    finally:
        weights.write_bytes(content)
    assert again.bundle == finished / "exports" / str(number)
    assert any(event.text.startswith(f"training trial {number} again up to epoch") for event in heard)
    assert not any(event.kind == "warning" for event in heard)
    assert outputs(again.bundle, images) == outputs(kept.bundle, images)
    assert (kept.test_scored, again.test_scored) == (2, 3)  # each is a look at the test split, and says so
    assert "scored 3 times" in (again.bundle / "README.md").read_text()


def test_gate_of_other_choices_leaves_the_bundle_as_it_was(finished: Path) -> None:
    before = (finished / "bundle" / "autoft.json").read_bytes()
    with pytest.raises(ExportError, match="may differ by 1e-12"):
        export_again(finished, overrides=["export.max_output_difference=1e-12"])
    assert (finished / "bundle" / "autoft.json").read_bytes() == before
    assert "1e-12" not in (finished / "study.yaml").read_text()


def test_what_cannot_be_exported_is_refused_with_what_can(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"trial 77 .* does not exist\n.*scored trials, best first: "):
        export_again(finished, trial=77)
    with pytest.raises(AutoftError, match="only settings of the export can be changed"):
        export_again(finished, overrides=["trainer.epochs=1"])
    with pytest.raises(RunError, match=r"a run folder has lock\.json, but .* has none"):
        export_again(tmp_path)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "letter.txt").write_text("dear")
    with pytest.raises(RunError, match="is neither"):
        export_again(finished, output=tmp_path / "precious")
    assert (tmp_path / "precious" / "letter.txt").read_text() == "dear"


def test_path_of_a_trial_names_run_and_trial(finished: Path) -> None:
    assert find_run(finished) == (finished, None)
    assert find_run(finished / "trials" / "2") == (finished, 2)


def test_best_so_far_of_an_interrupted_run_can_be_exported(toy_images: Path, tmp_path: Path) -> None:
    ended: list[Event] = []
    run_search(
        toy_images,
        tmp_path / "run",
        on_event=lambda event: ended.append(event) if event.kind == "trial_end" else None,
        should_stop=lambda: bool(ended),
    )
    assert not (tmp_path / "run" / "result.json").exists()
    assert export_again(tmp_path / "run").trial == 0
    finished = run_search(toy_images, tmp_path / "run")  # the search goes on as if nothing had been
    assert finished.bundle is not None
    assert json.loads((tmp_path / "run" / "result.json").read_text())["test_scored"] == 2


def test_command_prints_what_was_exported(finished: Path, toy_env: dict[str, str], tmp_path: Path) -> None:
    done = run_command("export", finished, "-o", tmp_path / "bundle", "--json", env=toy_env)
    assert done.code == 0, done.err
    assert json.loads(done.out)["bundle"] == str(tmp_path / "bundle")
    assert "exporting trial" in done.err
    refused = run_command("export", finished, "--trial", "77", env=toy_env)
    assert refused.code == 2
    assert "does not exist" in refused.err
