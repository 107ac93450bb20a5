"""A backbone's weights load from a file of its own or of a bundle, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from autoft.errors import BackboneError
from autoft.weights import load_weights, with_versions


def module() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.fixture
def source() -> nn.Module:
    torch.manual_seed(1)
    return module()


def load(file: Path, **options: object) -> nn.Module:
    found = module()
    load_weights(found, file, "toy/net", **options)  # type: ignore[arg-type]
    return found


def assert_loaded(found: nn.Module, source: nn.Module) -> None:
    for name, value in source.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)


def test_own_file_loads(source: nn.Module, tmp_path: Path) -> None:
    save_file(source.state_dict(), tmp_path / "own.safetensors")
    assert_loaded(load(tmp_path / "own.safetensors"), source)


def test_of_a_bundle_the_backbone_is_loaded(source: nn.Module, tmp_path: Path) -> None:
    bundled = {f"backbone.{name}": value for name, value in source.state_dict().items()}
    save_file({**bundled, "head.weight": torch.zeros(2, 4)}, tmp_path / "model.safetensors")
    assert_loaded(load(tmp_path / "model.safetensors"), source)


def test_layers_that_the_backbone_does_not_have_are_left_out_by_name_alone(source: nn.Module, tmp_path: Path) -> None:
    save_file({**source.state_dict(), "fc.weight": torch.zeros(2, 4)}, tmp_path / "whole.safetensors")
    assert_loaded(load(tmp_path / "whole.safetensors", without=["fc"]), source)
    with pytest.raises(BackboneError, match=r"they have too many 1 parameters, such as fc\.weight"):
        load(tmp_path / "whole.safetensors")


def test_lacking_parameters_are_named(source: nn.Module, tmp_path: Path) -> None:
    state = {name: value for name, value in source.state_dict().items() if name != "1.running_var"}
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(BackboneError, match=r"are not of toy/net: they lack 1 parameters, such as 1\.running_var"):
        load(tmp_path / "part.safetensors")


def test_other_shapes_are_named(tmp_path: Path) -> None:
    save_file(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)).state_dict(), tmp_path / "wide.safetensors")
    with pytest.raises(BackboneError, match=r"are not of toy/net: size mismatch for 0\.weight"):
        load(tmp_path / "wide.safetensors")


def test_missing_and_torn_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"the weights of toy/net do not exist: .*gone"):
        load(tmp_path / "gone.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"\x80\x00\x00\x00\x00\x00\x00\x00{")
    with pytest.raises(BackboneError, match=r"the weights of toy/net cannot be read: .*is not a whole safetensors file"):
        load(tmp_path / "torn.safetensors")


class Versioned(nn.Linear):
    """Refuses what does not say which version it is, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state: object, prefix: str, local: dict[str, int], *others: object) -> None:
        if local.get("version") is None:
            raise ValueError("version should be set")
        super()._load_from_state_dict(state, prefix, local, *others)  # type: ignore[arg-type]


def test_part_that_asks_for_its_version_is_told_it(tmp_path: Path) -> None:
    source = nn.Sequential(Versioned(3, 4))
    save_file(source.state_dict(), tmp_path / "versioned.safetensors")
    found = nn.Sequential(Versioned(3, 4))
    with pytest.raises(ValueError, match="version should be set"):
        found.load_state_dict(dict(source.state_dict()))
    load_weights(found, tmp_path / "versioned.safetensors", "toy/net")
    assert_loaded(found, source)


def test_versions_that_a_state_says_itself_stay() -> None:
    state = nn.BatchNorm1d(4).state_dict()
    assert with_versions(nn.BatchNorm1d(4), state) is state
