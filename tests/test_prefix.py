"""Frozen prefix reuse: a cut is exact wherever one is found, and none is found where it would not be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_transformers import write_tiny
from torch import Tensor, nn
from toy_training import HEAD, KNOBS, TARGETS, assert_equal_tensors, build, state

from autoft import timm_models
from autoft.builtin import transformers as transformers_family
from autoft.model import FineTuneModel, assemble
from autoft.prefix import Cut, find_cut, record, replaying
from autoft.specs import Backbone, BackboneRequest, Stage
from autoft.testing import toy

Batch = tuple[Tensor, ...]


def images(side: int = 16) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(rows, 3, side, side, generator=generator),) for rows in (3, 2)]


def texts(backbone: Backbone) -> list[Batch]:
    made = []
    for sources in (
        ["the cat sat on the mat", "rain falls", "a dog runs"],
        ["she reads long letters from far away cities near the river", "numbers"],
    ):
        items, _ = backbone.preprocessing.decode_many(sources)  # type: ignore[attr-defined]
        made.append(backbone.preprocessing.inputs(items))
    return made


def assert_exact(model: FineTuneModel, cut: Cut, inputs: Batch) -> None:
    """The replay gives what the whole model gives, bit for bit."""
    model.eval()
    with torch.no_grad():
        wanted = model(*inputs)
        activation = record(model, cut, inputs)
        with replaying(model, cut):
            found = model(activation, *cut.carried(inputs))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", ["convnet", "mlp"])
def test_toys_are_cut_at_every_depth(name: str) -> None:
    model = build(toy.resolve(BackboneRequest(name, "none")))
    depths = range(1, len(model.stages) + 1)
    for depth in depths:
        cut, failures = find_cut(model, depth, images())
        assert cut is not None, failures
        assert cut.depth == depth
        assert_exact(model, cut, images()[0])
    assert len(depths) >= 3


def test_a_search_for_cuts_leaves_weights_and_statistics_as_they_were() -> None:
    model = build()
    before = state(model)
    find_cut(model, 2, images())
    assert_equal_tensors(state(model), before)
    assert not any("forward" in vars(module) for module in model.modules())


TIMM = {
    "vit_tiny_patch16_224": {"depth": 3, "embed_dim": 24, "num_heads": 2, "img_size": 32},
    "resnet10t": {},
    "convnext_atto": {"depths": (1, 1, 2, 1), "dims": (8, 8, 16, 16)},
    "efficientnet_lite0": {},
}


def timm_model(name: str, **settings: object) -> FineTuneModel:
    import timm

    torch.manual_seed(0)
    module = timm.create_model(name, num_classes=0, **settings)
    stages = timm_models.stages(module)
    head = HEAD.build(timm_models.feature_size(module), TARGETS, {**KNOBS, "dropout": 0.0})
    return FineTuneModel(module, head, stages)


@pytest.mark.parametrize("name", TIMM)
def test_timm_models_are_cut(name: str) -> None:
    model = timm_model(name, **TIMM[name])
    last = len(model.stages)
    for depth in (1, last // 2, last - 1, last):
        cut, failures = find_cut(model, depth, images(32))
        assert cut is not None, failures
        assert_exact(model, cut, images(32)[1])


def test_densenet_is_cut_shallower_than_inside_a_dense_block() -> None:
    model = timm_model("densenet121", block_config=(2, 2), growth_rate=8)
    names = [stage.name for stage in model.stages]
    cuts = {depth: find_cut(model, depth, images(32))[0] for depth in range(1, len(names) + 1)}
    assert any(cut is None or cut.depth < depth for depth, cut in cuts.items()), (names, cuts)
    for cut in cuts.values():
        if cut is not None:
            assert_exact(model, cut, images(32)[0])


@pytest.mark.parametrize("architecture", ["bert", "deberta-v2", "distilbert", "albert", "modernbert", "llama"])
def test_transformers_are_cut(architecture: str, tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / architecture, architecture)
    backbone = transformers_family.resolve(BackboneRequest(str(folder), "pretrained"))
    model = assemble(backbone, HEAD, TARGETS, {**KNOBS, "dropout": 0.0}, seed=0)
    last = len(model.stages)
    for depth in range(1, last + 1):
        cut, failures = find_cut(model, depth, texts(backbone), mask=backbone.inputs.index("attention_mask"))
        assert cut is not None, failures
        assert cut.ragged or depth == last
        assert_exact(model, cut, texts(backbone)[0])


def test_a_deeper_activation_is_computed_from_a_shallower_one() -> None:
    model = build()
    shallow, deep = (find_cut(model, depth, images())[0] for depth in (1, 3))
    assert shallow is not None
    assert deep is not None
    model.eval()
    (inputs,) = images()[:1]
    start = record(model, shallow, inputs)
    with replaying(model, shallow):
        found = record(model, deep, (start,))
    assert torch.equal(found, record(model, deep, inputs))


class Backwards(nn.Module):
    """Its second stage runs first, so that the frozen first stage depends on what is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Linear(4, 4)
        self.early = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.late(self.early(x))
        return out


def test_a_frozen_module_behind_a_trained_one_is_no_cut() -> None:
    module = Backwards()
    stages = (Stage("late", ("late.weight", "late.bias")), Stage("early", ("early.weight", "early.bias")))
    model = FineTuneModel(module, nn.Linear(4, 2), stages)
    cut, failures = find_cut(model, 1, [(torch.randn(3, 4),), (torch.randn(2, 4),)])
    assert cut is None
    assert "trains otherwise" in failures[0]


def test_batches_must_differ_in_size() -> None:
    with pytest.raises(ValueError, match="different size"):
        find_cut(build(), 1, [images()[0], images()[0]])
