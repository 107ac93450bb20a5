"""Whole searches with tiny random models of many architectures: split into stages, frozen, trained, exported, checked."""

import json
from pathlib import Path

import pytest
from tiny_transformers import TEXT_ARCHITECTURES, write_tiny

import autoft
from autoft.testing.toy_text import write_toy_csv, write_toy_tagged


def run(data: Path, model: Path, folder: Path, *overrides: str) -> tuple[autoft.SearchResult, dict]:
    backbone = json.dumps([{"name": f"transformers/{model}"}])
    settings = [f"backbones={backbone}", "search.trials=2", "trainer.epochs=1", *overrides]
    result = autoft.search(data, output=folder, overrides=settings, plugins=False)
    assert result.bundle is not None
    return result, json.loads((result.bundle / "autoft.json").read_text())


QUICK = ("bert",)  # the others take minutes


@pytest.mark.parametrize(
    "architecture", [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in TEXT_ARCHITECTURES]
)
def test_search_freezes_and_exports(architecture: str, tmp_path: Path) -> None:
    data = write_toy_csv(tmp_path / "texts.csv", per_class=8)
    model = write_tiny(tmp_path / "model", architecture)
    frozen = "space={freeze_depth: {choices: [0, all]}}"
    result, contract = run(data, model, tmp_path / "run", frozen)
    assert contract["task"] == "text-classification"
    assert contract["backbone"]["name"] == contract["training"]["settings"]["backbone"] == "transformers/model"
    assert str(tmp_path) not in (result.bundle / "README.md").read_text() + json.dumps(contract)
    assert contract["parity"]["samples"] > 0
    assert contract["parity"]["max_output_difference"] < 1e-4
    assert result.trials["complete"] + result.trials.get("pruned", 0) == 2


@pytest.mark.parametrize(
    "architecture",  # byte-level BPE and a decoder; word pieces; an encoder with byte-level BPE
    ["gpt2", pytest.param("bert", marks=pytest.mark.slow), pytest.param("roberta", marks=pytest.mark.slow)],
)
def test_search_tags_words(architecture: str, tmp_path: Path) -> None:
    data = write_toy_tagged(tmp_path / "tagged.jsonl")
    _, contract = run(data, write_tiny(tmp_path / "model", architecture), tmp_path / "run")
    assert contract["answer"] == "entities"
    assert contract["parity"]["max_output_difference"] < 1e-4


def test_search_takes_images_with_a_vision_transformer(toy_images: Path, tmp_path: Path) -> None:
    _, contract = run(toy_images, write_tiny(tmp_path / "model", "vit"), tmp_path / "run", "space={freeze_depth: all}")
    assert contract["task"] == "image-classification"
    assert contract["inputs"] == ["pixel_values"]
    assert contract["parity"]["max_output_difference"] < 1e-4
