"""The transformers family, on tiny random models of many architectures: features, stages, export, files, refusals."""

from __future__ import annotations

import copy
import json
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_transformers import ARCHITECTURES, IMAGE_ARCHITECTURES, POSITIONS, SENTENCES, TEXT_ARCHITECTURES, write_tiny
from torch import Tensor, nn

from autoft.builtin import transformers as family
from autoft.errors import BackboneError
from autoft.export.onnx import to_onnx
from autoft.freezing import check_stages
from autoft.hf_files import image_preprocessing
from autoft.model import FineTuneModel
from autoft.specs import Backbone, BackboneRequest
from autoft.text import TextPreprocessing

TEXTS = (*SENTENCES, "cat", "")
DECODERS = ("llama", "qwen2", "gpt2")
FEATURES = [(name, "pooled") for name in ARCHITECTURES] + [(name, "sequence") for name in TEXT_ARCHITECTURES]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of tiny models, written once each; not to be changed."""
    root = tmp_path_factory.mktemp("tiny")
    return lambda name: root / name if (root / name).is_dir() else write_tiny(root / name, name)


@pytest.fixture
def folder(tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    """A tiny BERT that a test may change."""
    return Path(shutil.copytree(tiny("bert"), tmp_path / "bert"))


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No network, no proxy, and an empty cache, which is returned."""
    from huggingface_hub import constants

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    return tmp_path / "hub"


def resolve(model: Path | str, weights: str = "pretrained", features: str = "pooled", **options: Any) -> Backbone:
    return family.resolve(BackboneRequest(str(model), weights, features=features, **options))


def texts_of(backbone: Backbone) -> TextPreprocessing:
    assert isinstance(backbone.preprocessing, TextPreprocessing)
    return backbone.preprocessing


def inputs_of(backbone: Backbone, texts: tuple[str, ...] = TEXTS) -> tuple[Tensor, ...]:
    """Inputs of texts, or of as many random images."""
    if backbone.modality == "image":
        assert backbone.image_size is not None
        return (torch.randn(len(texts), 3, *backbone.image_size, generator=torch.Generator().manual_seed(0)),)
    preprocessing = texts_of(backbone).fit([])
    sources = [text.split() for text in texts] if backbone.features == "sequence" else list(texts)
    return preprocessing.inputs(preprocessing.decode_many(sources)[0])


def features_of(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad():
        found: Tensor = module.eval()(*inputs)
    return found


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in {**content, **changes}.items() if value is not None}))


# --- every architecture -------------------------------------------------------------------------------


@pytest.mark.parametrize(("architecture", "features"), FEATURES)
def test_features_do_not_depend_on_the_batch(tiny: Callable[[str], Path], architecture: str, features: str) -> None:
    backbone = resolve(tiny(architecture), features=features)
    module = backbone.build()
    inputs = inputs_of(backbone)
    together = features_of(module, inputs)
    assert together.dtype == torch.float32
    assert together.shape[-1] == backbone.feature_size(module)
    assert together.dim() == {"pooled": 2, "sequence": 3}[features]
    order = torch.randperm(len(TEXTS), generator=torch.Generator().manual_seed(1))
    shuffled = features_of(module, tuple(item[order] for item in inputs))
    for row, text in enumerate(TEXTS):
        own = inputs_of(backbone, (text,)) if backbone.modality == "text" else (inputs[0][row : row + 1],)
        alone = features_of(module, own)[0]
        length = len(alone) if features == "sequence" else None
        for one in (together[row], shuffled[order.argsort()[row]]):
            torch.testing.assert_close(one[:length], alone, atol=1e-5, rtol=1e-5)
    assert float((together[0, 0] - together[1, 0]).abs().max()) > 1e-3, "features must differ between texts"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_stages_are_embeddings_then_layers_and_hold_every_parameter_once(
    tiny: Callable[[str], Path], architecture: str
) -> None:
    backbone = resolve(tiny(architecture))
    module = backbone.build()
    stages = backbone.stages(module)
    check_stages(module, stages)
    assert stages[0].name == "embeddings"
    assert len(stages) == (2 if architecture == "albert" else 4)
    assert backbone.stages(backbone.build()) == stages
    # nothing that a stage takes may depend on parameters of it or of a later one
    inputs = inputs_of(backbone)
    for number, stage in enumerate(stages[1:], start=1):
        expected = taken(module, stage.name, inputs)
        changed = copy.deepcopy(module)
        later = {name for each in stages[number:] for name in each.parameters}
        with torch.no_grad():
            for name, parameter in changed.named_parameters():
                if name in later:
                    parameter.normal_()
        assert torch.equal(taken(changed, stage.name, inputs), expected)
        assert not torch.equal(features_of(changed, inputs), features_of(module, inputs))


def taken(module: nn.Module, layer: str, inputs: tuple[Tensor, ...]) -> Tensor:
    """What a layer takes when it is first called."""
    found: list[Tensor] = []
    assert isinstance(module.model, nn.Module)
    hook = module.model.get_submodule(layer).register_forward_pre_hook(
        lambda _, arguments, named: found.append(next(iter((*arguments, *named.values())))), with_kwargs=True
    )
    features_of(module, inputs)
    hook.remove()
    return found[0]


@pytest.mark.parametrize(("architecture", "features"), FEATURES)
def test_at_every_depth_frozen_stages_stay_and_all_others_learn(
    tiny: Callable[[str], Path], architecture: str, features: str
) -> None:
    backbone = resolve(tiny(architecture), features=features)
    module = backbone.build()
    model = FineTuneModel(module, nn.Linear(backbone.feature_size(module), 3), backbone.stages(module))
    inputs = inputs_of(backbone)
    for depth in range(len(model.stages) + 1):
        model.freeze(depth)
        model.train()
        frozen = {name for stage in model.stages[:depth] for name in stage.parameters}
        before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        optimizer.zero_grad()
        model(*inputs).logsumexp(-1).square().sum().backward()
        without = {name for name, parameter in module.named_parameters() if parameter.grad is None}
        assert without == frozen
        optimizer.step()
        moved = {name for name, parameter in module.named_parameters() if not torch.equal(parameter, before[name])}
        assert not moved & frozen
        optimizer.zero_grad()


# all architectures once, and features of tokens for one
EXPORTS = [(name, "pooled") for name in ARCHITECTURES] + [("bert", "sequence"), ("gpt2", "sequence")]


@pytest.mark.parametrize(("architecture", "features"), EXPORTS)
def test_exported_graph_gives_the_features_at_any_batch_and_length(
    tiny: Callable[[str], Path], architecture: str, features: str
) -> None:
    backbone = resolve(tiny(architecture), features=features)
    module = backbone.build().eval()
    is_text = backbone.modality == "text"
    example = (
        inputs_of(backbone, TEXTS[:2]) if not is_text else tuple(item[:, :12] for item in inputs_of(backbone, TEXTS[-3:]))
    )
    proto = to_onnx(module, torch.tanh, example, input_names=backbone.inputs, labels=(), lengths=is_text)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for texts in (TEXTS[-2:-1], TEXTS[3:5], TEXTS):
        inputs = inputs_of(backbone, texts)
        wanted = features_of(module, inputs).numpy()
        named = {name: item.numpy() for name, item in zip(backbone.inputs, inputs, strict=True)}
        (found,) = session.run(["logits"], named)
        if features == "sequence":
            mask = named["attention_mask"].astype(bool)
            found, wanted = found[mask], wanted[mask]
        np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("architecture", TEXT_ARCHITECTURES)
def test_limit_is_the_longest_text_that_the_model_takes(tiny: Callable[[str], Path], architecture: str) -> None:
    backbone = resolve(tiny(architecture))
    limit = texts_of(backbone).limit
    assert limit == (None if architecture == "deberta-v2" else POSITIONS)
    long = inputs_of(backbone, (" ".join(SENTENCES) * 3,))
    assert long[0].shape[1] == (limit or 512)
    assert torch.isfinite(features_of(backbone.build(), long)).all()


def test_position_beyond_the_limit_would_fail(tiny: Callable[[str], Path]) -> None:
    module = resolve(tiny("roberta")).build()
    ids = torch.full((1, POSITIONS + 1), 5)
    with pytest.raises((IndexError, RuntimeError)):
        module(ids, torch.ones_like(ids))


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("bert", "cls"),
        ("albert", "cls"),
        ("modernbert", "mean"),
        ("mpnet", "mean"),
        *((name, "lasttoken") for name in DECODERS),
    ],
)
def test_texts_are_pooled_as_the_architecture_is_trained(
    tiny: Callable[[str], Path], architecture: str, expected: str
) -> None:
    backbone = resolve(tiny(architecture))
    inputs = inputs_of(backbone)
    mask = inputs[1].bool()
    hidden = features_of(resolve_tokens(tiny(architecture)), inputs)
    rows = range(len(mask))
    wanted = {
        "cls": hidden[:, 0],
        "mean": torch.stack([hidden[row][mask[row]].mean(0) for row in rows]),
        "lasttoken": torch.stack([hidden[row][mask[row]][-1] for row in rows]),
    }
    found = features_of(backbone.build(), inputs)
    torch.testing.assert_close(found, wanted.pop(expected))
    assert all(not torch.allclose(found, other, atol=1e-3) for other in wanted.values())


def resolve_tokens(folder: Path) -> nn.Module:
    return resolve(folder, features="sequence").build()


@pytest.mark.parametrize("architecture", IMAGE_ARCHITECTURES)
def test_images_are_prepared_and_pooled_as_transformers_does(
    tiny: Callable[[str], Path], architecture: str, tmp_path: Path
) -> None:
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    backbone = resolve(tiny(architecture))
    decoded = backbone.preprocessing.decode(tmp_path / "photo.png", augmented=False)[None]
    (ours,) = backbone.preprocessing.inputs(decoded)
    processor = AutoImageProcessor.from_pretrained(tiny(architecture), backend="pil")
    theirs = processor(Image.open(tmp_path / "photo.png").convert("RGB"), return_tensors="pt")["pixel_values"]
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().mean()) < 0.05  # Pillow's two passes round apart
    own = AutoModelForImageClassification.from_pretrained(tiny(architecture)).eval()
    classifier = own.classifier
    own.classifier = nn.Identity()
    with torch.no_grad():
        wanted = own(ours, **({"interpolate_pos_encoding": True} if architecture == "vit" else {})).logits
    assert isinstance(classifier, nn.Linear)
    torch.testing.assert_close(features_of(backbone.build(), (ours,)), wanted)


def test_other_sizes_of_images_go_where_positions_adapt(tiny: Callable[[str], Path]) -> None:
    for architecture in IMAGE_ARCHITECTURES:
        backbone = resolve(tiny(architecture), image_size=64)
        assert backbone.image_size == (64, 64)
        assert torch.isfinite(features_of(backbone.build(), inputs_of(backbone, TEXTS[:1]))).all()
    assert resolve(tiny("dinov2"), image_size=64).preprocessing.to_dict()["resize"]["size"] == 80
    edit(tiny("convnextv2") / "preprocessor_config.json", size={"shortest_edge": 224})
    assert resolve(tiny("convnextv2"), typical_size=8).image_size == (32, 32)
    assert resolve(tiny("convnextv2"), typical_size=300).image_size == (224, 224)


# --- weights ------------------------------------------------------------------------------------------


def test_pretrained_weights_are_loaded_and_random_ones_follow_the_seed(tiny: Callable[[str], Path]) -> None:
    stored = load_file(tiny("bert") / "model.safetensors")
    state = resolve(tiny("bert")).build().state_dict()
    for name, value in state.items():
        if name.removeprefix("model.") in stored:
            assert torch.equal(value, stored[name.removeprefix("model.")])
    backbone = resolve(tiny("bert"), weights="none")
    builds = []
    for _ in range(2):
        torch.manual_seed(3)
        builds.append(backbone.build().state_dict())
    assert all(torch.equal(builds[0][name], builds[1][name]) for name in builds[0])
    assert not torch.equal(builds[0]["model.embeddings.word_embeddings.weight"], stored["embeddings.word_embeddings.weight"])
    assert (backbone.licence, backbone.citation) == (None, None)


def test_half_precision_shards_and_a_head_are_read_as_float32(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    expected = features_of(resolve(folder).build(), inputs_of(resolve(folder)))
    (folder / "model.safetensors").unlink()
    half = {f"bert.{name}": value.to(torch.bfloat16) for name, value in stored.items() if not name.startswith("pooler")}
    names = sorted(half)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        extra = {"cls.predictions.bias": torch.zeros(3)} if file == "a.safetensors" else {}
        save_file({name: half[name] for name in part} | extra, folder / file)
    where = {name: file for file, part in shards.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    module = resolve(folder).build()
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    torch.testing.assert_close(features_of(module, inputs_of(resolve(folder))), expected, atol=0.1, rtol=0.1)
    (folder / "b.safetensors").unlink()
    with pytest.raises(BackboneError, match=r"lacks b\.safetensors"):
        resolve(folder)


def test_weights_of_another_model_are_refused_with_the_names(folder: Path, tiny: Callable[[str], Path]) -> None:
    stored = load_file(folder / "model.safetensors")
    del stored["encoder.layer.1.output.dense.bias"]
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(BackboneError, match=r"lack 1 parameters .* such as encoder\.layer\.1\.output\.dense\.bias"):
        resolve(folder).build()
    shutil.copy(tiny("gpt2") / "model.safetensors", folder)
    with pytest.raises(BackboneError, match="lack 53 parameters"):
        resolve(folder).build()
    edit(folder / "config.json", hidden_size=32)
    shutil.copy(tiny("bert") / "model.safetensors", folder)
    with pytest.raises(BackboneError, match="cannot be built with the weights"):
        resolve(folder).build()


def test_torn_weights_are_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(BackboneError, match="cannot be built with the weights"):
        resolve(folder).build()


def test_pickled_weights_are_refused_with_how_to_convert_them(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        BackboneError, match=r"must be safetensors, but .* only pytorch_model\.bin.*\nhint: .*save_pretrained"
    ):
        resolve(folder)
    resolve(folder, weights="none").build()
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(BackboneError, match=r"has neither model\.safetensors nor"):
        resolve(folder)


def test_weights_beside_a_name_replace_the_models_own(folder: Path, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    save_file({name: value + 1 for name, value in stored.items()}, tmp_path / "other.safetensors")
    backbone = resolve(folder, weights=str(tmp_path / "other.safetensors"))
    assert backbone.weights == str(tmp_path / "other.safetensors")
    moved = backbone.build().state_dict()["model.embeddings.word_embeddings.weight"]
    assert torch.equal(moved, stored["embeddings.word_embeddings.weight"] + 1)
    # a whole folder brings its own configuration and tokenizer, so that a name on the hub is a name only
    backbone = resolve("google-bert/bert-base-uncased", weights=str(folder))
    assert backbone.name == "transformers/google-bert/bert-base-uncased"
    assert backbone.feature_size(backbone.build()) == 16
    with pytest.raises(BackboneError, match=r"weights must be a \.safetensors file or a folder, but .* does not exist"):
        resolve(folder, weights="nowhere")


# --- names and the hub --------------------------------------------------------------------------------


def test_folder_that_is_not_there_is_refused_with_the_nearest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackboneError, match=r"bret does not exist\nhint: did you mean transformers/.*/bert\?"):
        resolve(folder.parent / "bret")
    with pytest.raises(BackboneError, match="is a file"):
        resolve(folder / "config.json")
    monkeypatch.chdir(folder.parent)
    assert resolve("./bert").weights == resolve("bert").weights == str(folder / "model.safetensors")


@pytest.mark.usefixtures("offline")
def test_without_network_and_cache_the_error_comes_at_once_and_names_the_nearest() -> None:
    started = time.monotonic()
    with pytest.raises(BackboneError, match=r"are not in the local cache, and .* cannot be reached") as caught:
        resolve("sentence-transformers/all-MiniLM-L6-v3")
    assert time.monotonic() - started < 2
    assert caught.value.hint is not None
    assert "transformers/sentence-transformers/all-MiniLM-L6-v2" in caught.value.hint
    assert "HF_HOME" in caught.value.hint


def test_cached_model_needs_no_network(offline: Path, tiny: Callable[[str], Path]) -> None:
    root = offline / "models--owner--tiny"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0123abc")
    shutil.copytree(tiny("roberta"), root / "snapshots" / "0123abc")
    (root / "snapshots" / "0123abc" / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    backbone = resolve("owner/tiny")
    assert (backbone.weights, backbone.licence, backbone.citation) == ("pretrained", "mit", "owner/tiny")
    local = resolve(tiny("roberta"))
    assert torch.equal(features_of(backbone.build(), inputs_of(backbone)), features_of(local.build(), inputs_of(local)))
    (root / "snapshots" / "0123abc" / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match="cannot be reached"):
        backbone.build()


def test_suggestions_fit_the_limit() -> None:
    assert family.suggest("text", 25) == ["transformers/sentence-transformers/all-MiniLM-L6-v2"]
    assert family.suggest("text", 200)[0] == "transformers/answerdotai/ModernBERT-base"
    assert family.suggest("text", 1) == family.suggest("audio", 1000) == []
    (found,) = family.autoft_backbones()
    assert (found.name, found.modality) == ("transformers", None)
    assert {f"transformers/{name}" for name in found.models()} >= set(found.suggest("image", 100))


# --- configurations that are refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mystery", "auto_map": {"AutoModel": "mystery.Model"}}, "needs code of its own .*never runs"),
        ({"model_type": "brt"}, r"must be one that transformers knows, but is 'brt'\nhint: .*bert"),
        ({"model_type": None}, "must be one that transformers knows, but is None"),
        ({"quantization_config": {"bits": 4}}, "are quantized"),
        ({"hidden_size": "wide"}, "is not of a bert"),
        ({"hidden_size": 17}, "cannot be built"),
        ({"vocab_size": 20}, "tokens up to number"),
        ({"model_type": "bart"}, "must be an encoder or a decoder, but .* is both"),
        ({"model_type": "fnet"}, "no attention mask"),
        ({"model_type": "wav2vec2"}, "texts and images"),
        ({"model_type": "llava"}, "takes several"),
        ({"model_type": "timm_wrapper", "architecture": "resnet18"}, r"hint: name it timm/resnet18"),
        ({"model_type": "vit_mae"}, "image models must be of"),
    ],
)
def test_model_that_cannot_be_trained_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit(folder / "config.json", **changes)
    with pytest.raises(BackboneError, match=message):
        resolve(folder, weights="none").build()


def test_code_of_a_repository_is_never_run_and_never_bundled(folder: Path) -> None:
    (folder / "evil.py").write_text("raise SystemExit('code of the repository was run')")
    edit(folder / "config.json", auto_map={"AutoModel": "evil.Model", "AutoConfig": "evil.Config"})
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})
    backbone = resolve(folder)
    assert type(backbone.build().model).__name__ == "BertModel"
    assert "auto_map" not in backbone.config


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_missing_and_damaged_files_are_named(folder: Path, name: str) -> None:
    (folder / name).write_text('{"half')
    with pytest.raises(BackboneError, match=r"config\.json is not readable JSON|the tokenizer of .* cannot be read"):
        resolve(folder)
    (folder / name).unlink()
    with pytest.raises(BackboneError, match=f"has no {name}"):
        resolve(folder)


def test_requests_that_make_no_sense_are_refused(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(BackboneError, match="must be at most 40"):
        resolve(tiny("bert"), max_length=41)
    assert texts_of(resolve(tiny("bert"), max_length=30)).max_length == 30
    for architecture, options, message in (
        ("bert", {"image_size": 32}, "no image_size"),
        ("bert", {"features": "map"}, "the task needs map"),
        ("vit", {"max_length": 32}, "no max_length"),
        ("vit", {"features": "sequence"}, "the task needs sequence"),
    ):
        with pytest.raises(BackboneError, match=message):
            resolve(tiny(architecture), **options)


def test_bundles_configuration_names_the_class_and_nothing_private(folder: Path) -> None:
    edit(folder / "config.json", _name_or_path="/home/me/secret", id2label={"0": "old"}, dtype="bfloat16")
    pooled, tokens = resolve(folder).config, resolve(folder, features="sequence").config
    assert pooled["architectures"] == ["BertForSequenceClassification"]
    assert tokens["architectures"] == ["BertForTokenClassification"]
    assert "secret" not in json.dumps(pooled)
    assert not {"id2label", "dtype"} & set(pooled)


# --- tokenizers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", TEXT_ARCHITECTURES)
def test_words_get_the_tokens_that_they_have_inside_a_text(tiny: Callable[[str], Path], architecture: str) -> None:
    text = "the cat isn't in the green park"
    whole = texts_of(resolve(tiny(architecture))).fit([])
    words = texts_of(resolve(tiny(architecture), features="sequence")).fit([])
    of_text = whole.decode(" " + text if architecture in (*DECODERS, "roberta", "modernbert") else text, augmented=False)
    of_words = words.decode(text.split(), augmented=False)
    assert of_words[:, 0].tolist() == of_text[:, 0].tolist()
    assert int((of_words[:, -1] > 0).sum()) == len(text.split())


def test_decoder_without_padding_is_filled_with_its_end(tiny: Callable[[str], Path]) -> None:
    backbone = resolve(tiny("llama"))
    assert texts_of(backbone).pad_id == 1
    assert texts_of(backbone).config["pad_token"] == "<|end|>"
    assert backbone.config["pad_token_id"] == 1
    assert backbone.inputs == ("input_ids", "attention_mask")
    assert resolve(tiny("bert")).inputs == ("input_ids", "attention_mask", "token_type_ids")


def test_older_vocabulary_files_are_enough(folder: Path) -> None:
    tokens = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    expected = inputs_of(resolve(folder))
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(sorted(tokens, key=tokens.__getitem__)))
    edit(folder / "tokenizer_config.json", tokenizer_class="BertTokenizer")
    assert all(torch.equal(one, other) for one, other in zip(inputs_of(resolve(folder)), expected, strict=True))


# --- sentence-transformers ----------------------------------------------------------------------------


def write_modules(folder: Path, *modules: tuple[str, dict[str, Any]]) -> None:
    listed = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for number, (kind, settings) in enumerate(modules, start=1):
        path = folder / f"{number}_{kind}"
        path.mkdir(exist_ok=True)
        (path / "config.json").write_text(json.dumps(settings))
        listed.append(
            {"idx": number, "name": str(number), "path": path.name, "type": f"sentence_transformers.models.{kind}"}
        )
    (folder / "modules.json").write_text(json.dumps(listed))


def test_pooling_of_sentence_transformers_is_respected(folder: Path) -> None:
    write_modules(
        folder, ("Pooling", {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}), ("Normalize", {})
    )
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 20}')
    backbone = resolve(folder)
    module = backbone.build()
    assert backbone.feature_size(module) == 32
    assert texts_of(backbone).limit == 20
    assert texts_of(resolve(folder, max_length=30)).limit == POSITIONS, "what is asked for is bounded by the model alone"
    inputs = inputs_of(backbone)
    hidden = features_of(resolve_tokens(folder), inputs)
    row = hidden[0][inputs[1][0].bool()]
    torch.testing.assert_close(features_of(module, inputs)[0], torch.cat([row.amax(0), row.mean(0)]))
    write_modules(folder, ("Pooling", {"pooling_mode": "lasttoken"}))
    inputs = inputs_of(resolve(folder))
    torch.testing.assert_close(
        features_of(resolve(folder).build(), inputs)[0],
        features_of(resolve_tokens(folder), inputs)[0][inputs[1][0].bool()][-1],
    )


def test_dense_layer_of_sentence_transformers_is_the_end_of_the_last_stage(folder: Path) -> None:
    pooling = ("Pooling", {"pooling_mode_cls_token": True})
    dense = {"in_features": 16, "out_features": 5, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}
    write_modules(folder, pooling, ("Dense", dense))
    with pytest.raises(BackboneError, match=r"lacks the model\.safetensors of a dense layer"):
        resolve(folder).build()
    weight, bias = torch.randn(5, 16), torch.randn(5)
    save_file({"linear.weight": weight, "linear.bias": bias}, folder / "2_Dense" / "model.safetensors")
    backbone = resolve(folder)
    module = backbone.build()
    inputs = inputs_of(backbone)
    plain = features_of(resolve_tokens(folder), inputs)[:, 0]
    torch.testing.assert_close(features_of(module, inputs), torch.tanh(plain @ weight.T + bias))
    assert backbone.stages(module)[-1].parameters[-2:] == ("projections.0.weight", "projections.0.bias")
    check_stages(module, backbone.stages(module))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (("LSTM", {}), "one is 'LSTM'"),
        (("Pooling", {"pooling_mode_weightedmean_tokens": True}), "asks for weightedmean"),
        (("Pooling", {}), "asks for none"),
        (("Dense", {"out_features": 5, "activation_function": "my.code.Swish"}), "has 5, Swish"),
    ],
)
def test_unknown_modules_of_sentence_transformers_are_refused(
    folder: Path, module: tuple[str, dict[str, Any]], message: str
) -> None:
    write_modules(folder, module)
    with pytest.raises(BackboneError, match=message):
        resolve(folder)


# --- stages in special cases --------------------------------------------------------------------------


def test_layers_that_take_turns_are_one_stage(folder: Path) -> None:
    edit(folder / "config.json", model_type="albert", num_hidden_groups=3, num_hidden_layers=3, embedding_size=16)
    assert len(family.stages(resolve(folder, weights="none").build())) == 4
    edit(folder / "config.json", num_hidden_layers=6, num_hidden_groups=2, inner_group_num=2)
    assert len(family.stages(resolve(folder, weights="none").build())) == 3, "the layers in a group take turns"


def test_encoder_of_t5_keeps_its_shared_bias_in_the_first_layer(tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    settings = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": 200}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", **settings}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny("xlm-roberta") / name, tmp_path)
    backbone = resolve(tmp_path, weights="none")
    module = backbone.build()
    stages = backbone.stages(module)
    assert [stage.name for stage in stages] == ["embeddings", "encoder.block.0", "encoder.block.1"]
    assert any("relative_attention_bias" in name for name in stages[1].parameters)
    assert texts_of(backbone).limit is None
    assert features_of(module, inputs_of(backbone)).shape == (len(TEXTS), 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_resize": False}, "has no do_resize"),
        ({"do_rescale": False}, "another scale"),
        ({"rescale_factor": 1 / 127.5}, "must be scaled by 1/255"),
        ({"do_pad": True}, "has do_pad"),
        ({"size": {"longest_edge": 5}}, "must be height and width"),
        ({"size": {"shortest_edge": 5}}, "sets the shorter side alone"),
        ({"resample": 99}, "interpolation"),
    ],
)
def test_image_processor_that_cannot_be_declared_is_refused(changes: dict[str, Any], message: str) -> None:
    class Processor:
        def __init__(self, **settings: Any) -> None:
            self.__dict__.update(settings)

    fine = {
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "size": {"height": 8, "width": 8},
        "resample": 2,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    assert image_preprocessing(Processor(**fine), None).size == (8, 8)
    with pytest.raises(BackboneError, match=message):
        image_preprocessing(Processor(**{**fine, **changes}), None)
