"""Bundles go to the hub as they are, and only if nothing in them was changed; the hub is a substitute here."""

from __future__ import annotations

import inspect
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from commands import autoft, run_search
from huggingface_hub.errors import LocalTokenNotFoundError

from autoft.errors import BundleError, RunError
from autoft.push import push
from autoft.reexport import export_again
from autoft.signing import SIGNATURE

# the real client's, so that the substitute takes nothing that it would not
CREATE = inspect.signature(huggingface_hub.HfApi.create_repo)
UPLOAD = inspect.signature(huggingface_hub.HfApi.upload_folder)


@dataclass
class Url:
    """What the hub answers when a repository is made."""

    repo_id: str

    def __str__(self) -> str:
        return f"https://hub.test/{self.repo_id}"


@dataclass
class Commit:
    """What it answers to an upload."""

    oid: str = "abc123"


class Hub:
    """Stands in for `HfApi`, and remembers what was asked of it."""

    def __init__(self) -> None:
        self.made: dict[str, Any] = {}
        self.uploaded: dict[str, Any] = {}

    def create_repo(self, *arguments: Any, **named: Any) -> Url:
        self.made = CREATE.bind(self, *arguments, **named).arguments
        return Url(self.made["repo_id"])

    def upload_folder(self, *arguments: Any, **named: Any) -> Commit:
        self.uploaded = UPLOAD.bind(self, *arguments, **named).arguments
        return Commit()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setattr("autoft.push.unreachable", lambda address: None)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    return made


@pytest.fixture(scope="module")
def run(toy_images: Path, toy_site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pushed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(toy_site))
        run_search(toy_images, folder, "search.trials=1")
    return folder


def test_every_file_of_the_bundle_goes_up_and_nothing_else(run: Path, hub: Hub, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(run / "bundle", bundle)
    files = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    (bundle / "notes.txt").write_text("not of the bundle")
    done = push(bundle, "me/model", revision="next")
    assert set(hub.uploaded["allow_patterns"]) == files
    assert (hub.uploaded["repo_id"], hub.uploaded["revision"]) == ("me/model", "next")
    assert hub.made["private"] is True
    samples = len(list((bundle / "golden" / "inputs").iterdir()))
    assert 0 < samples == done.samples
    assert (done.url, done.commit, done.files) == ("https://hub.test/me/model", "abc123", len(files))
    (bundle / SIGNATURE).write_text("{}")
    push(bundle, "me/model", public=True)
    assert hub.made["private"] is False
    assert set(hub.uploaded["allow_patterns"]) == {*files, SIGNATURE}


def test_bundle_that_was_changed_is_not_uploaded(run: Path, hub: Hub, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(run / "bundle", bundle)
    with (bundle / "onnx" / "model.onnx").open("r+b") as file:
        file.seek(100)
        file.write(b"\0\1")
    with pytest.raises(BundleError, match=r"onnx/model\.onnx must be as it was written"):
        push(bundle, "me/model")
    (bundle / "onnx" / "model.onnx").unlink()
    with pytest.raises(BundleError, match="but it is missing"):
        push(bundle, "me/model")
    with pytest.raises(BundleError, match="a bundle is a folder with"):
        push(tmp_path, "me/model")
    assert not hub.made


@pytest.mark.usefixtures("toys")
def test_bundle_without_samples_of_the_user_can_be_had(run: Path, hub: Hub, tmp_path: Path) -> None:
    bare = export_again(run, output=tmp_path / "bare", overrides=["export.golden=0"]).bundle
    assert not (bare / "golden").exists()
    assert "None of them are in this bundle" in (bare / "README.md").read_text()
    assert "--check" not in (bare / "README.md").read_text()
    assert push(bare, "me/model").samples == 0
    assert "golden" in (run / "bundle" / "README.md").read_text()


def test_hub_that_refuses_or_is_not_there_is_an_error_with_what_to_do(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*arguments: object, **named: object) -> None:
        raise LocalTokenNotFoundError("no token")

    monkeypatch.setattr(hub, "create_repo", refuses)
    with pytest.raises(RunError, match=r"could not be uploaded to me/model: no token\n.*hf auth login"):
        push(run / "bundle", "me/model")
    monkeypatch.setattr("autoft.push.unreachable", lambda address: "no route")
    with pytest.raises(RunError, match=r"cannot be reached \(no route\)"):
        push(run / "bundle", "me/model")


def test_command_without_network_exits_with_2(run: Path, toy_env: dict[str, str]) -> None:
    refused = autoft("push", run / "bundle", "me/model", env={**toy_env, "HF_HUB_OFFLINE": "1"})
    assert refused.code == 2
    assert "HF_HUB_OFFLINE is set" in refused.err


def test_command_prints_where_it_went(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from commands import command

    done = command(monkeypatch, capsys, "push", run / "bundle", "me/model", "--json")
    assert done.code == 0
    assert json.loads(done.out)["url"] == "https://hub.test/me/model"
