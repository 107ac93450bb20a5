"""peft's strategies on small models of timm and transformers: by hand, by the conformance kit, and in a whole search."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from autoft_peft import autoft_strategies
from safetensors.torch import load, load_file
from torch import nn

from autoft import timm_models
from autoft.builtin import transformers as transformers_family
from autoft.builtin.heads import autoft_heads
from autoft.model import FineTuneModel, assemble
from autoft.specs import Backbone, BackboneRequest, Strategy
from autoft.testing import toy
from autoft.testing.checks import run_checks
from autoft.testing.process_checks import check_import
from autoft.testing.strategy_checks import CHECKS

STRATEGIES: dict[str, Strategy] = {strategy.name: strategy for strategy in autoft_strategies()}
IMAGES, TEXTS = autoft_heads()[0], autoft_heads()[1]
LABELS = IMAGES.describe(["a", "b", "c"])


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A tiny BERT with random weights, as `save_pretrained` writes it, with the toy's tokenizer."""
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from autoft.testing import toy_text

    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(toy_text.vocabulary()), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=160,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(toy_text.tokenizer_json(), encoding="utf-8")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    return transformers_family.resolve(BackboneRequest(str(folder)))


def test_listing_imports_neither_torch_nor_peft() -> None:
    check_import("autoft_peft")
    code = (
        "import sys, autoft_peft; autoft_peft.autoft_strategies(); print([m for m in ('torch', 'peft') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def timm_backbone(name: str) -> Backbone:
    return timm_models.resolve(BackboneRequest(name, "none", image_size=32))


def knobs(strategy: Strategy, **changes: Any) -> dict[str, Any]:
    own = {knob.name: knob.default for knob in (*IMAGES.knobs, *strategy.knobs)}
    return {**own, "dropout": 0.0, **changes}


def adapted(backbone: Backbone, name: str, depth: int = 0, *, finished: bool = False, **changes: Any) -> FineTuneModel:
    strategy = STRATEGIES[name]
    head = IMAGES if backbone.modality == "image" else TEXTS
    return assemble(
        backbone, head, LABELS, knobs(strategy, **changes), seed=0, strategy=strategy, depth=depth, finished=finished
    )


def disturb(model: FineTuneModel) -> None:
    """Give what may be trained other values, as training would."""
    generator = torch.Generator().manual_seed(3)
    assert model.trained
    with torch.no_grad():
        for name, parameter in model.backbone.named_parameters():
            if name in model.trained:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_merged_lora_is_the_weight_plus_both_matrices_by_alpha_over_rank() -> None:
    backbone = timm_backbone("test_vit")
    model = adapted(backbone, "lora", lora_rank=4, lora_alpha=12.0)
    disturb(model)
    pretrained = adapted(backbone, "lora", finished=True).state_dict()
    own = model.backbone.state_dict()
    merged = model.finished_state()
    compared = 0
    for name in pretrained:
        layer = name.removeprefix("backbone.").removesuffix(".weight")
        if f"{layer}.lora_A.default.weight" not in own:
            assert torch.equal(merged[name], pretrained[name]), name
            continue
        a, b = own[f"{layer}.lora_A.default.weight"], own[f"{layer}.lora_B.default.weight"]
        added = (b.flatten(1) @ a.flatten(1)).view_as(pretrained[name]) if a.ndim == 2 or b.shape[-1] == 1 else None
        assert added is not None
        torch.testing.assert_close(merged[name], pretrained[name] + added * 12.0 / 4)
        compared += 1
    assert compared > 5


def test_merged_ia3_scales_outputs_and_the_inputs_of_layers_that_narrow() -> None:
    backbone = timm_backbone("test_vit")
    model = adapted(backbone, "ia3")
    disturb(model)
    pretrained = adapted(backbone, "ia3", finished=True).state_dict()
    merged, own = model.finished_state(), model.backbone.state_dict()
    for layer, by_input in (("blocks.0.mlp.fc1", False), ("blocks.0.mlp.fc2", True)):
        factors = own[f"{layer}.ia3_l.default"].flatten()
        weight = pretrained[f"backbone.{layer}.weight"]
        wanted = weight * (factors[None, :] if by_input else factors[:, None])
        torch.testing.assert_close(merged[f"backbone.{layer}.weight"], wanted)


def test_dora_keeps_the_length_that_it_learned() -> None:
    model = adapted(timm_backbone("test_vit"), "dora", lora_rank=2)
    disturb(model)
    merged, own = model.finished_state(), model.backbone.state_dict()
    layer = "blocks.0.mlp.fc1"
    lengths = merged[f"backbone.{layer}.weight"].norm(dim=1)
    torch.testing.assert_close(lengths, own[f"{layer}.lora_magnitude_vector.default.weight"].abs(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["test_resnet", *(pytest.param(each, marks=pytest.mark.slow) for each in ("test_vit", "test_convnext"))]
)
def test_backbones_of_timm_pass_the_checks(name: str) -> None:
    backbone = timm_backbone(name)
    fitting = [each for each in STRATEGIES.values() if each.check(backbone, backbone.build()) is None]
    assert {"lora", "dora", "ia3"} <= {each.name for each in fitting}
    assert "prompt-tuning" not in {each.name for each in fitting}
    found = [result for result in run_checks(backbone, IMAGES, fitting) if ": " in result.id]
    assert len(found) == len(fitting) * len(CHECKS)
    assert [f"{result.id}: {result.message}" for result in found if not result.passed] == []


@pytest.mark.slow
def test_a_text_model_of_transformers_passes_the_checks(bert: Backbone) -> None:
    found = [result for result in run_checks(bert, TEXTS, STRATEGIES.values()) if ": " in result.id]
    assert len(found) == len(STRATEGIES) * len(CHECKS)
    assert [f"{result.id}: {result.message}" for result in found if not result.passed] == []


def test_layers_that_compute_in_their_own_way_are_left_alone() -> None:
    class Standardized(nn.Conv2d):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self._conv_forward(inputs, self.weight - self.weight.mean(), self.bias)

    module = nn.Sequential(Standardized(3, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.MultiheadAttention(4, 2))
    assert STRATEGIES["lora"].check(timm_backbone("test_resnet"), module) == "it has no plain linear or convolutional layer"
    assert STRATEGIES["layer-norm"].check(timm_backbone("test_resnet"), module) == "it has no LayerNorm"


def test_peft_itself_reads_the_adapter_files(bert: Backbone, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import BertModel

    model = adapted(bert, "lora", lora_rank=4)
    disturb(model)
    for name, content in model.adapter_files().items():
        (tmp_path / name).write_bytes(content)
    folder = bert.name.partition("/")[2]
    alone = PeftModel.from_pretrained(BertModel.from_pretrained(folder, add_pooling_layer=False), tmp_path).eval()
    tokens = torch.randint(5, 60, (2, 9))
    mask = torch.ones_like(tokens)
    wanted = alone(input_ids=tokens, attention_mask=mask).last_hidden_state
    found = model.eval().backbone.model(input_ids=tokens, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found, wanted)
    plain = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    assert not torch.allclose(plain(input_ids=tokens, attention_mask=mask).last_hidden_state, wanted, atol=1e-3)


def test_prompt_files_hold_the_prompt(bert: Backbone) -> None:
    model = adapted(bert, "prompt-tuning", prompt_tokens=6)
    files = model.adapter_files()
    config = json.loads(files["adapter_config.json"])
    assert (config["peft_type"], config["num_virtual_tokens"], config["token_dim"]) == ("PROMPT_TUNING", 6, 16)
    assert load(files["adapter_model.safetensors"])["prompt_embeddings"].shape == (6, 16)


@pytest.mark.slow
def test_search_chooses_between_full_and_lora_and_lets_it_through_the_gate(tmp_path: Path) -> None:
    data = tmp_path / "stripes"
    toy.write_toy_images(data, classes=3, per_class=16)
    settings = [
        "space.strategy=lora", "search.trials=3", "search.seeds=1", "search.workers=0", "search.soup=false",
        "search.prune=false", "trainer.epochs=2", "trainer.device=cpu",
    ]  # fmt: skip
    run = tmp_path / "run"
    command = [sys.executable, "-m", "autoft", "search", str(data), "-o", str(run), "--backbone", "timm/test_vit"]
    command += ["--weights", "none", *(word for setting in settings for word in ("--set", setting))]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=250, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    assert result["winner"]["training"]["strategy"] == "lora"
    assert result["parity"]["max_output_difference"] < 1e-3
    assert sorted(file.name for file in (run / "bundle" / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    names = set(load_file(run / "bundle" / "model.safetensors"))
    assert not any("lora" in name for name in names)
    hashes = json.loads((run / "bundle" / "autoft.json").read_text(encoding="utf-8"))["files"]
    assert "adapter/adapter_model.safetensors" in hashes
