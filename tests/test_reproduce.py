"""A finished run's winner, trained again, scores the same to the last bit; what is not as it was is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import command, fake_export, files_in, run_search

from autoft.errors import ConfigError, DataError, RunError
from autoft.files import read_json, write_json
from autoft.reproduce import Difference, reproduce
from autoft.testing.toy import write_toy_images

pytestmark = pytest.mark.usefixtures("toys")
LOSS = "search.metric=log_loss"  # of two trainings it is never the same by chance


@pytest.fixture(scope="module")
def confirmed(toy_images: Path, toy_site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run whose winner was confirmed over three seeds, reusing frozen stages: not to be changed, copy it first."""
    run = tmp_path_factory.mktemp("confirmed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(toy_site))
        patch.setenv("AUTOFT_CACHE", str(run.parent / "cache"))
        patch.setattr("autoft.finish.export_bundle", fake_export)
        patch.setattr("autoft.preflight.to_onnx", lambda *arguments, **named: None)
        run_search(toy_images, run, LOSS, "search.seeds=3", "search.prune=true", "space={freeze_depth: 1}")
    return run


@pytest.fixture
def copied(confirmed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(confirmed, tmp_path / "copied"))


def edit(run: Path, name: str, **changes: Any) -> None:
    """Change values in a JSON file of a run, by dotted name."""
    content = read_json(run / name)
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        inner = content
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    write_json(run / name, content)


def test_winner_of_a_confirmed_run_is_reproduced_and_the_run_stays_as_it_is(confirmed: Path) -> None:
    before, notes = files_in(confirmed), []
    found = reproduce(confirmed, on_note=notes.append)
    winner = read_json(confirmed / "result.json")["winner"]
    assert found.reproduced
    assert (found.validation.run, found.validation.here) == (winner["value"], winner["value"])
    assert (found.trial, found.weights, found.test) == (winner["trial"], winner["weights"], None)
    assert found.differences == ()
    assert [f"training trial {found.trial} with seed {seed}" for seed in found.seeds] == notes
    assert files_in(confirmed) == before


def test_winner_that_is_a_pruned_trial_is_reproduced(toy_images: Path, tmp_path: Path, fast_export: None) -> None:
    run = tmp_path / "run"
    run_search(toy_images, run, LOSS, "search.seeds=1", "search.prune=true", "search.trials=5", "trainer.epochs=3")
    assert reproduce(run).reproduced


def test_mean_of_several_seeds_is_reproduced(
    toy_images: Path, tmp_path: Path, fast_export: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autoft import mix
    from autoft.soup import greedy_soup

    def eager(candidates: Any, score: Any, direction: Any) -> Any:
        rising = iter(range(100))
        return greedy_soup(candidates, lambda weights: -float(next(rising)), direction)

    monkeypatch.setattr(mix, "greedy_soup", eager)  # take all of them, as real ones are too seldom better
    run = tmp_path / "run"
    run_search(toy_images, run, LOSS, "search.seeds=3")
    found = reproduce(run)
    assert len(found.seeds) == 3
    assert found.weights.startswith("the mean of the weights of seeds")
    assert found.reproduced


def test_blend_with_the_pretrained_weights_is_reproduced(
    toy_images: Path, tmp_path: Path, fast_export: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autoft import mix

    monkeypatch.setattr(mix, "paired_error", lambda *arguments: -1.0)
    monkeypatch.setattr(mix, "is_better", lambda direction, value, other: True)  # the last blend is taken
    run = tmp_path / "run"
    run_search(toy_images, run, LOSS, "search.seeds=2")
    found = reproduce(run)
    assert found.weights.endswith("75% of it and the rest pretrained")
    assert found.reproduced


def test_winner_whose_head_started_from_a_probe_is_reproduced(toy_images: Path, tmp_path: Path, fast_export: None) -> None:
    run = tmp_path / "run"
    backbones = ("toy/mlp", "toy/convnet")
    run_search(
        toy_images, run, LOSS, "search.probe=true", "space={head_start: probe}", "search.seeds=1", backbones=backbones
    )
    assert read_json(run / "result.json")["winner"]["training"]["head_start"] is not None
    assert reproduce(run).reproduced


def test_training_that_goes_otherwise_is_not_called_reproduced(copied: Path) -> None:
    rate = read_json(copied / "result.json")["winner"]["training"]["learning_rate"]
    edit(copied, "result.json", winner__training__learning_rate=rate * 2)
    found = reproduce(copied)
    assert not found.reproduced
    assert found.validation.difference == found.validation.here - found.validation.run != 0.0


def test_versions_plugins_and_devices_that_are_not_as_they_were_are_named(copied: Path) -> None:
    edit(copied, "lock.json", versions__torch="1.0", platform="another", device="cuda")
    lock = read_json(copied / "lock.json")
    gone = {"name": "gone", "package": "gone-plugin", "version": "1.0", "state": "loaded"}
    edit(copied, "lock.json", plugins=[gone, *lock["plugins"]])
    found = {one.what: one for one in reproduce(copied).differences}
    assert set(found) == {"versions.torch", "platform", "device", "plugins.gone"}
    assert found["plugins.gone"] == Difference("plugins.gone", "gone-plugin 1.0 (loaded)", None)


def test_other_data_is_refused_and_the_same_data_elsewhere_is_not(copied: Path, toy_images: Path, tmp_path: Path) -> None:
    elsewhere = Path(shutil.copytree(toy_images, tmp_path / "moved: elsewhere"))
    assert reproduce(copied, data=elsewhere).reproduced
    write_toy_images(tmp_path / "other", per_class=13)
    with pytest.raises(DataError, match=r"holds other data[\s\S]*--data PATH"):
        reproduce(copied, data=tmp_path / "other")
    with pytest.raises(ConfigError, match="nowhere"):
        reproduce(copied, data=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "result.json").unlink(), "must be finished, but .* has no result.json"),
        (lambda run: (run / "lock.json").write_text("{"), "lock.json is damaged"),
        (lambda run: edit(run, "result.json", winner={"trial": 0}), "has no `winner.training`"),
        (lambda run: edit(run, "result.json", winner__training__newer=1), "in the words of another autoft"),
        (lambda run: edit(run, "result.json", winner__made_of={"seeds": [0]}), "`winner.made_of` is damaged: 'alpha'"),
        (lambda run: edit(run, "result.json", winner__settings__backbone="toy/other"), "but is toy/other"),
        (lambda run: [shutil.rmtree(run / name) for name in ("confirm", "trials")], "must hold the result of each training"),
    ],
)  # fmt: skip
def test_run_that_cannot_be_reproduced_is_refused(copied: Path, spoil: Any, message: str) -> None:
    spoil(copied)
    with pytest.raises(RunError, match=rf"(?s){message}"):
        reproduce(copied)


def test_training_that_fails_says_why(copied: Path) -> None:
    edit(copied, "result.json", winner__training__learning_rate=1e30)
    with pytest.raises(RunError, match="training it again failed: NonFiniteError"):
        reproduce(copied)


def test_command_prints_the_verdict_and_exits_with_it(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = command(monkeypatch, capsys, "reproduce", copied)
    value = read_json(copied / "result.json")["winner"]["value"]
    assert good.code == 0, good.err
    assert "verdict     reproduced\n" in good.out
    assert f"log_loss {value!r} in the run, {value!r} here, difference 0\n" in good.out
    edit(copied, "result.json", winner__value=value + 0.25)
    bad = command(monkeypatch, capsys, "reproduce", copied, "--json")
    content = json.loads(bad.out)
    assert (bad.code, content["reproduced"], content["differences"]) == (1, False, [])
    assert content["validation"] == {"run": value + 0.25, "here": value, "difference": value - (value + 0.25)}
    edit(copied, "lock.json", versions__torch="1.0")
    bad = command(monkeypatch, capsys, "reproduce", copied)
    assert bad.code == 1
    assert "differs" in bad.out
    assert "versions.torch  1.0" in bad.out
    (copied / "lock.json").unlink()
    assert command(monkeypatch, capsys, "reproduce", copied).code == 2


def test_test_split_of_an_exported_run_is_scored_the_same(finished: Any, toy_env: dict[str, str]) -> None:
    from commands import autoft

    result = autoft("reproduce", finished.path, "--test", "--json", env=toy_env)
    assert result.code == 0, result.err
    content = json.loads(result.out)
    assert content["test"]["run"] == content["test"]["here"] == read_json(finished.path / "result.json")["test"]["accuracy"]
