"""The toys are real plugins: found by the ordinary hooks, learnable, and repeatable."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pluggy
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from autoft import hookspecs
from autoft.errors import BackboneError, DataError
from autoft.files import save_tensors
from autoft.specs import Backbone, BackboneRequest, Sample
from autoft.testing import toy, toy_text
from autoft.testing.toy_text import LABELS
from autoft.text import TextPreprocessing


def backbone(model: str = "convnet", weights: str = "none", **wanted: Any) -> Backbone:
    return toy.resolve(BackboneRequest(model, weights, **wanted))


def test_importing_the_toys_imports_nothing_heavy() -> None:
    heavy = {"torch", "timm", "numpy", "PIL", "sklearn", "tokenizers"}
    code = f"import sys, autoft.testing.toy; print(*({heavy} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.split() == []


def test_toys_come_in_by_the_ordinary_hooks() -> None:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(toy)
    manager.check_pending()
    assert [family.name for families in manager.hook.autoft_backbones() for family in families] == ["toy"]
    assert [head.name for heads in manager.hook.autoft_heads() for head in heads] == ["toy-classification"]
    assert [data.name for formats in manager.hook.autoft_data() for data in formats] == ["toy-stripes"]


@pytest.mark.parametrize("model", toy.MODELS)
def test_toy_backbone_is_tiny(model: str) -> None:
    count = sum(parameter.numel() for parameter in backbone(model).build().parameters())
    assert 4_000 < count < 10_000


def test_convnet_has_batchnorm_and_dropout_and_mlp_has_neither() -> None:
    kinds = {model: {type(module).__name__ for module in backbone(model).build().modules()} for model in toy.MODELS}
    assert {"BatchNorm2d", "Dropout"} <= kinds["convnet"]
    assert not {"BatchNorm2d", "Dropout"} & kinds["mlp"]
    assert {"LayerNorm", "Dropout"} <= kinds["text"]


@pytest.mark.parametrize(
    ("modality", "models"), [("image", ("toy/convnet", "toy/mlp")), ("text", ("toy/text",)), ("audio", ())]
)
def test_toys_are_suggested_for_what_they_take(modality: str, models: tuple[str, ...]) -> None:
    (family,) = toy.autoft_backbones()
    assert family.suggest(modality, 0.1) == models
    assert set(models) <= {f"toy/{name}" for name in family.models()}
    assert all(backbone(name.removeprefix("toy/")).modality == modality for name in models)


def test_pretrained_weights_are_equal_each_time_and_leave_the_generator_alone() -> None:
    torch.manual_seed(1)
    first = backbone(weights="pretrained").build().state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(2)
    second = backbone(weights="pretrained").build().state_dict()
    torch.manual_seed(1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(drawn, torch.rand(1))


def test_random_weights_follow_torchs_generator() -> None:
    torch.manual_seed(1)
    first = backbone().build().state_dict()
    other = backbone().build().state_dict()
    torch.manual_seed(1)
    again = backbone().build().state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["stem.conv.weight"], other["stem.conv.weight"])


@pytest.mark.parametrize("model", ["convnet", "text"])
def test_weights_come_from_a_local_file(model: str, tmp_path: Path) -> None:
    module = backbone(model).build()
    save_tensors(tmp_path / "weights.safetensors", module.state_dict())
    loaded = backbone(model, str(tmp_path / "weights.safetensors")).build().state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in module.state_dict().items())


def test_weights_of_another_toy_are_refused(tmp_path: Path) -> None:
    save_tensors(tmp_path / "weights.safetensors", backbone("mlp").build().state_dict())
    with pytest.raises(BackboneError, match="cannot be built"):
        backbone("convnet", str(tmp_path / "weights.safetensors")).build()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (BackboneRequest("convnext", "none"), "did you mean toy/convnet"),
        (BackboneRequest("convnet", "nowhere.safetensors"), "do not exist: nowhere.safetensors"),
        (BackboneRequest("mlp", "none", image_size=4), "must be at least 8 for toy/mlp, but got 4"),
        (BackboneRequest("mlp", "none", max_length=16), "takes images, which have no max_length"),
        (BackboneRequest("text", "none", image_size=16), "takes texts, which have no image_size"),
    ],
)
def test_impossible_request_is_refused(request_: BackboneRequest, message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        toy.resolve(request_)


def test_images_are_written_into_a_folder_for_each_class(tmp_path: Path) -> None:
    files = toy.write_toy_images(tmp_path, classes=4, per_class=3, size=20)
    assert len(files) == 12
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["stripes-0", "stripes-135", "stripes-45", "stripes-90"]
    with Image.open(files[0]) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (20, 20))


def test_images_depend_on_the_seed_alone_and_never_repeat() -> None:
    first, again, other = (toy.toy_samples(seed=seed) for seed in (0, 0, 1))
    assert first == again
    contents = [sample.content for sample in (*first, *other)]
    assert len(set(contents)) == len(contents) == 72


def test_stripes_file_is_detected_and_loaded(tmp_path: Path) -> None:
    (format_,) = toy.autoft_data()
    file = tmp_path / "small.stripes.json"
    file.write_text(json.dumps({"classes": 2, "per_class": 5, "seed": 3, "size": 12}))
    assert format_.detect(file)
    assert not format_.detect(tmp_path)
    raw = format_.load(file, {})
    assert raw.samples == toy.toy_samples(2, 5, 3, 12)
    assert raw.typical_size == 12
    file.write_text(json.dumps({"classes": 2, "per_class": 5, "seed": 4, "size": 12}))
    assert format_.load(file, {}).fingerprint != raw.fingerprint


@pytest.mark.parametrize("content", ["no JSON", '{"colours": 3}', "[1, 2]"])
def test_wrong_stripes_file_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "wrong.stripes.json"
    file.write_text(content)
    with pytest.raises(DataError, match=r"wrong\.stripes\.json must hold"):
        toy.load_stripes(file, {})


def test_toy_head_needs_two_classes_and_knows_its_labels() -> None:
    (head,) = toy.autoft_heads()
    targets = head.describe(["b", "a", "b"])
    assert (targets.labels, targets.counts) == (("a", "b"), (1, 2))
    assert head.encode(["b", "a"], targets).tolist() == [1, 0]
    with pytest.raises(DataError, match="at least 2 classes"):
        head.describe(["a", "a"])
    with pytest.raises(DataError, match="'c' is not among"):
        head.encode(["c"], targets)


# --- texts ------------------------------------------------------------------------------------------


def test_tokenizer_is_the_same_each_time_it_is_made() -> None:
    again = toy_text.tokenizer_json.__wrapped__()
    assert again == toy_text.tokenizer_json()
    assert len(set(toy_text.vocabulary())) == len(toy_text.vocabulary())


def test_any_text_becomes_tokens_and_none_of_letters_or_digits_is_unknown() -> None:
    preprocessing = backbone("text").preprocessing.fit(["", "Zoë paid 42, didn't she?", "漢字", ("Who?", "Zoë")])
    assert isinstance(preprocessing, TextPreprocessing)
    rows, cut = preprocessing.decode_many(["", "Zoë paid 42, didn't she?", "漢字", ("Who?", "Zoë")])
    tokens = [" ".join(toy_text.vocabulary()[token] for token in rows.row(number)[:, 0]) for number in range(4)]
    assert tokens[0] == "[CLS] [SEP]"
    assert tokens[1] == "[CLS] z ##o ##e p ##a ##i ##d 4 ##2 , d ##i ##d ##n ' t s ##h ##e ? [SEP]"
    assert tokens[2] == "[CLS] [UNK] [UNK] [SEP]"
    assert tokens[3] == "[CLS] w ##h ##o ? [SEP] z ##o ##e [SEP]"
    assert rows.row(3)[:, 1].tolist() == [0] * 6 + [1] * 4
    assert not cut.any()


@pytest.mark.parametrize(("features", "shape"), [("pooled", (2, 16)), ("sequence", (2, 7, 16))])
def test_text_toy_gives_the_features_that_are_asked_for(features: str, shape: tuple[int, ...]) -> None:
    text = backbone("text", features=features)
    assert text.features == features
    assert isinstance(text.preprocessing, TextPreprocessing)
    assert text.preprocessing.words == (features == "sequence")
    ids = torch.arange(14).view(2, 7)
    assert text.build()(ids, torch.ones_like(ids), torch.zeros_like(ids)).shape == shape
    assert [stage.name for stage in text.stages(text.build())] == ["embeddings", "block1", "block2"]


def test_text_toy_keeps_to_the_length_that_is_asked_for_and_that_it_has() -> None:
    long = "x " * 90
    assert len(backbone("text", max_length=12).preprocessing.fit([long]).decode(long, augmented=False)) == 12
    assert len(backbone("text").preprocessing.fit([long + long]).decode(long + long, augmented=False)) == 128
    with pytest.raises(BackboneError, match="must be at most 128"):
        backbone("text", max_length=129)


@pytest.mark.parametrize(
    "make", [toy.toy_texts, partial(toy.toy_texts, pairs=True), toy.toy_tagged], ids=["texts", "pairs", "tagged"]
)
def test_texts_depend_on_the_seed_alone_and_never_repeat(make: Callable[..., tuple[Sample, ...]]) -> None:
    first = make(seed=0)
    assert first == make(seed=0)
    assert first != make(seed=1)
    assert len({sample.id for sample in first}) == len({sample.content for sample in first}) == len(first) >= 24


def test_texts_have_2_to_40_words_one_of_which_tells_the_class() -> None:
    samples = toy.toy_texts(classes=4, per_class=200)
    lengths = [len(sample.source.split()) for sample in samples]
    assert (min(lengths), max(lengths)) == (2, 40)
    for sample in samples:
        words = set(sample.source.split())
        assert [bool(words & set(topic)) for topic in toy_text.TOPICS[:4]] == [
            label == sample.target for label in LABELS[:4]
        ]
    with pytest.raises(ValueError, match="between 2 and 6, but got 7"):
        toy.toy_texts(classes=7)


def test_pairs_are_of_the_same_topic_or_not() -> None:
    for sample in toy.toy_texts(pairs=True, per_class=40):
        about = [{n for n, topic in enumerate(toy_text.TOPICS) if set(half.split()) & set(topic)} for half in sample.source]
        assert (about[0] == about[1]) == (sample.target == "same")


def test_every_name_and_number_is_tagged() -> None:
    tags = set()
    for sample in toy.toy_tagged(60):
        assert len(sample.source) == len(sample.target)
        for before, word, tag in zip(["O", *sample.target], sample.source, sample.target, strict=False):
            tags.add(tag)
            kind = "NUMBER" if word.isdigit() else "PERSON" if word in (*toy_text.NAMES, *toy_text.SURNAMES) else ""
            assert tag[2:] == kind
            assert word not in toy_text.SURNAMES or (tag[0] == "I" and before == "B-PERSON")
    assert tags == {"O", "B-PERSON", "I-PERSON", "B-NUMBER"}


def test_texts_are_written_as_tables(tmp_path: Path) -> None:
    def rows(path: Path, delimiter: str = ",") -> list[list[str]]:
        with path.open(newline="") as file:
            return list(csv.reader(file, delimiter=delimiter))

    samples = toy.toy_texts(per_class=2)
    table = [["text", "label"], *([sample.source, sample.target] for sample in samples)]
    assert rows(toy.write_toy_csv(tmp_path / "a.csv", per_class=2)) == table
    assert rows(toy.write_toy_csv(tmp_path / "a.tsv", per_class=2, delimiter="\t"), "\t") == table
    assert rows(toy.write_toy_csv(tmp_path / "b.csv", pairs=True))[0] == ["sentence1", "sentence2", "label"]
    lines = toy.write_toy_tagged(tmp_path / "c.jsonl", 3).read_text().splitlines()
    wanted = [{"tokens": sample.source, "tags": list(sample.target)} for sample in toy.toy_tagged(3)]
    assert [json.loads(line) for line in lines] == wanted


def test_text_toy_learns_its_texts() -> None:
    torch.manual_seed(0)
    samples = toy.toy_texts(per_class=60)
    text, head = backbone("text"), toy.autoft_heads()[0]
    preprocessing = text.preprocessing.fit([sample.source for sample in samples])
    assert isinstance(preprocessing, TextPreprocessing)
    rows, _ = preprocessing.decode_many([sample.source for sample in samples])
    targets = head.describe([sample.target for sample in samples])
    encoded = head.encode([sample.target for sample in samples], targets)
    assert isinstance(encoded, torch.Tensor)
    model = torch.nn.Linear(16, 3)
    module = text.build()
    optimizer = torch.optim.AdamW([*module.parameters(), *model.parameters()], lr=5e-3)
    for _ in range(8):
        for chosen in torch.randperm(len(samples))[len(samples) // 4 :].split(8):
            optimizer.zero_grad()
            F.cross_entropy(model(module(*preprocessing.inputs(rows[chosen]))), encoded[chosen]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    outputs = model(module.eval()(*preprocessing.inputs(rows))).detach()
    assert head.metrics(outputs, encoded, targets)["accuracy"] > 0.9
