"""The graph answers as torch does at any batch size, tells strangers nothing, and is what old runtimes read."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from toy_training import CONVNET, HEAD, MLP, TARGETS, build

from autoft.errors import ExportError
from autoft.export import onnx as export
from autoft.export.onnx import NEWEST_IR, OPSET, check_graph, to_onnx
from autoft.specs import Backbone

NAMES = ("pixel_values",)
LABELS = ("stripes-0", "Größe 2", 'quote"d')


def example(count: int = 2) -> tuple[Tensor, ...]:
    return (torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(count)),)


def exported(model: nn.Module) -> onnx.ModelProto:
    return to_onnx(model, HEAD.activation, example(), input_names=NAMES, labels=LABELS)


def run(proto: onnx.ModelProto, inputs: Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(["logits", "probabilities"], {"pixel_values": inputs.numpy()})
    return found


@pytest.fixture(scope="module")
def proto() -> onnx.ModelProto:
    return exported(build().eval())


@pytest.mark.parametrize("backbone", [CONVNET, MLP], ids=lambda backbone: backbone.name)
def test_graph_answers_as_torch_does_at_any_batch_size(backbone: Backbone) -> None:
    model = build(backbone).eval()
    graph = exported(model)
    for count in (1, 2, 7, 32):
        (inputs,) = example(count)
        logits, probabilities = run(graph, inputs)
        with torch.no_grad():
            outputs = model(inputs)
        assert logits.shape == probabilities.shape == (count, 3)
        np.testing.assert_allclose(logits, outputs.numpy(), atol=1e-5)
        np.testing.assert_allclose(probabilities, outputs.softmax(dim=1).numpy(), atol=1e-5)


def test_model_in_training_mode_is_exported_in_evaluation_and_batchnorm_stays_as_it_is() -> None:
    model = build().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph = exported(model)
    (inputs,) = example(5)
    np.testing.assert_allclose(run(graph, inputs)[0], model.eval()(inputs).detach().numpy(), atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_opset_and_ir_version_are_what_old_runtimes_read(proto: onnx.ModelProto) -> None:
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 18)]
    assert proto.ir_version <= 10
    onnx.checker.check_model(proto, full_check=True)


def test_labels_are_in_the_metadata(proto: onnx.ModelProto) -> None:
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    assert tuple(json.loads(metadata["labels"])) == LABELS
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    assert tuple(json.loads(session.get_modelmeta().custom_metadata_map["labels"])) == LABELS


def secrets() -> list[str]:
    """What the exporter would write of this machine: its folders, and where the code lies in them."""
    return [
        str(Path(torch.__file__).parent),
        str(Path(__file__).parent),
        str(Path(export.__file__).parent),
        "Traceback",
        ".py",
    ]


@pytest.mark.parametrize("fallback", [False, True])
def test_graph_tells_nothing_of_the_machine_that_made_it(
    fallback: bool, proto: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fallback:
        monkeypatch.setattr(export, "_by_dynamo", refuse)
        proto = exported(build().eval())
    content = proto.SerializeToString()
    assert not [secret for secret in secrets() if secret.encode() in content]
    assert {entry.key for entry in proto.metadata_props} == {"labels", "producer"}


def test_exporter_would_have_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_strip", lambda proto: None)
    content = exported(build().eval()).SerializeToString()
    assert [secret for secret in secrets() if secret.encode() in content]


def test_exporting_twice_gives_equal_bytes() -> None:
    first, second = (exported(build(seed=3).eval()).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_exporters_chatter_stays_off_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    level = logging.getLogger("torch.onnx").level
    exported(build().eval())
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert logging.getLogger("torch.onnx").level == level


def test_single_example_is_refused_since_its_batch_would_come_out_fixed() -> None:
    with pytest.raises(ValueError, match=r"at least 2 rows, but has \[1\]"):
        to_onnx(build(), HEAD.activation, example(1), input_names=NAMES, labels=TARGETS.labels)


# --- the fallback -----------------------------------------------------------------------------------


def refuse(*arguments: object) -> onnx.ModelProto:
    raise RuntimeError("dynamo cannot do this\nand tells it at length")


def test_torchscript_exporter_serves_where_dynamo_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(export, "_by_dynamo", refuse)
    model = build().eval()
    with caplog.at_level("INFO", logger="autoft"):
        graph = exported(model)
    assert "torch's exporter failed (dynamo cannot do this), trying TorchScript" in caplog.text
    check_graph(graph, NAMES)
    assert {entry.key for entry in graph.metadata_props} == {"labels", "producer"}
    for count in (1, 7):
        (inputs,) = example(count)
        np.testing.assert_allclose(run(graph, inputs)[0], model(inputs).detach().numpy(), atol=1e-5)


class Foreign(nn.Module):
    """Uses an operator that ONNX lacks."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.linalg.eigvals(inputs[:, 0, :2, :2]).real


def test_exporters_print_nothing_not_even_below_python() -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from test_export_onnx import Foreign, exported\n"
        "from autoft.errors import ExportError\n"
        "try:\n    exported(Foreign())\n"
        "except ExportError:\n    print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, text=True)
    assert done.stdout == "refused\n", "C++ would print the whole graph, at the latest when the process ends"
    assert done.returncode == 0


def test_model_that_neither_exporter_takes_is_refused_with_both_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_too(*arguments: object) -> onnx.ModelProto:
        raise ValueError("nor TorchScript this")

    monkeypatch.setattr(export, "_by_dynamo", refuse)
    monkeypatch.setattr(export, "_by_torchscript", refuse_too)
    with pytest.raises(ExportError, match="dynamo cannot do this; and with TorchScript: nor TorchScript this"):
        exported(build())


def test_batch_baked_into_the_graph_is_refused() -> None:
    class Baked(nn.Module):
        def forward(self, pixel_values: Tensor) -> Tensor:
            zeros = np.zeros((int(pixel_values.shape[0]), 3), np.float32)  # tracing sees the example's batch size
            return pixel_values.mean(dim=(2, 3)) + torch.from_numpy(zeros)

    with pytest.raises(ExportError, match="the batch axis of pixel_values must be dynamic, but is fixed to 2"):
        exported(Baked())  # TorchScript would call it dynamic, and keep the constant


# --- texts ------------------------------------------------------------------------------------------

BERT: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 48,
}


def encoder(name: str) -> nn.Module:
    import transformers

    if name == "bert":
        return transformers.BertModel(transformers.BertConfig(**BERT), add_pooling_layer=False)
    if name == "gpt2":
        sizes = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 48}
        special = {"bos_token_id": 1, "eos_token_id": 1, "use_cache": False}
        return transformers.GPT2Model(transformers.GPT2Config(**sizes, **special))
    if name == "deberta":
        relative = {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"], "conv_kernel_size": 3}
        return transformers.DebertaV2Model(transformers.DebertaV2Config(**BERT, **relative))
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "pad_token_id"), 1)
    windows = {"local_attention": 6, "global_attn_every_n_layers": 2}
    return transformers.ModernBertModel(transformers.ModernBertConfig(**BERT, **special, **windows))


class Texts(nn.Module):
    """An encoder with a linear head over tokens, or over their mean."""

    def __init__(self, encoder: nn.Module, *, tokens: bool) -> None:
        super().__init__()
        self.encoder, self.tokens = encoder, tokens
        self.head = nn.Linear(16, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        features = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.tokens:
            return self.head(features)
        weights = attention_mask.unsqueeze(-1).to(features.dtype)
        return self.head((features * weights).sum(1) / weights.sum(1))


def tokens(rows: int, length: int) -> tuple[Tensor, Tensor]:
    """Ids, and a mask whose first row alone is whole."""
    ids = torch.randint(2, 40, (rows, length), generator=torch.Generator().manual_seed(rows))
    mask = torch.ones_like(ids)
    mask[1:, length - length // 3 :] = 0
    return ids, mask


def exported_texts(model: nn.Module, scores: str | None = "probabilities") -> onnx.ModelProto:
    names = ("input_ids", "attention_mask")
    return to_onnx(
        model, HEAD.activation, tokens(2, 7), input_names=names, labels=LABELS, scores=scores, lengths=True,
        metadata={"thresholds": "[0.5]"},
    )  # fmt: skip


@pytest.mark.parametrize("fallback", [False, True], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "deberta", "modernbert"])
def test_texts_of_any_number_and_length_are_answered_as_torch_does(
    kind: str, fallback: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fallback:
        monkeypatch.setattr(export, "_by_dynamo", refuse)
    torch.manual_seed(0)
    by_token = kind in ("bert", "modernbert")
    model = Texts(encoder(kind), tokens=by_token).eval()
    graph = exported_texts(model, scores=None if kind == "gpt2" else "probabilities")
    assert [value.name for value in graph.graph.output] == ["logits", "probabilities"][: 1 if kind == "gpt2" else 2]
    assert {entry.key: entry.value for entry in graph.metadata_props}["thresholds"] == "[0.5]"
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for rows, length in ((1, 1), (1, 7), (3, 4), (2, 31), (5, 48)):
        ids, mask = tokens(rows, length)
        with torch.no_grad():
            wanted = model(ids, mask).numpy()
        found = session.run(["logits"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
        kept = mask.numpy().astype(bool) if by_token else slice(None)
        np.testing.assert_allclose(found[kept], wanted[kept], atol=1e-5)


class FixedLength(nn.Module):
    """Keeps the example's length in a constant."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        places = torch.from_numpy(np.arange(int(input_ids.shape[1]), dtype=np.float32))
        return ((input_ids * attention_mask) * places).mean(dim=1, keepdim=True).repeat(1, 3)


class BranchOnLength(nn.Module):
    """Runs at any length, and answers wrong beyond the one it was traced with."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        long = 2.0 if int(input_ids.shape[1]) > 8 else 1.0
        return long * (input_ids * attention_mask).float().mean(dim=1, keepdim=True).repeat(1, 3)


@pytest.mark.parametrize("model", [FixedLength(), BranchOnLength()], ids=lambda model: type(model).__name__)
def test_length_baked_into_the_graph_is_refused(model: nn.Module) -> None:
    with pytest.raises(ExportError, match=r"the model cannot be exported to ONNX: .*; and with TorchScript: .*"):
        exported_texts(model)


def test_model_that_takes_no_longer_text_than_the_example_is_checked_at_shorter_ones() -> None:
    model = Texts(encoder("bert"), tokens=False).eval()
    names = ("input_ids", "attention_mask")
    graph = to_onnx(model, HEAD.activation, tokens(2, 48), input_names=names, labels=LABELS, lengths=True)
    check_graph(graph, names, lengths=True)


def test_example_of_few_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 4 tokens, but has \[3, 3\]"):
        to_onnx(
            FixedLength(), HEAD.activation, tokens(2, 3), input_names=("input_ids", "attention_mask"), labels=LABELS,
            lengths=True,
        )  # fmt: skip


# --- check_graph ------------------------------------------------------------------------------------


def graph_of(
    *,
    opset: int = OPSET,
    domain: str | None = None,
    ir_version: int = NEWEST_IR,
    inputs: tuple[str, ...] = NAMES,
    outputs: tuple[str, ...] = ("logits", "probabilities"),
    batch: tuple[str | int | None, str | int | None] = ("batch", "batch"),
    length: tuple[str | int, str | int] | None = None,
) -> onnx.ModelProto:
    nodes = [helper.make_node("Identity", [inputs[0]], [output]) for output in outputs]
    graph = helper.make_graph(
        nodes,
        "graph",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch[0], *(length[:1] if length else ()), 3])
            for name in inputs
        ],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch[1], *(length[1:] if length else ()), 3])
            for name in outputs
        ],
    )
    opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def test_graph_as_promised_passes() -> None:
    check_graph(graph_of(), NAMES)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (graph_of(opset=20), "must use opset 18 alone, but uses {'': 20}"),
        (graph_of(opset=17), "must use opset 18 alone"),
        (graph_of(domain="com.microsoft"), "must use opset 18 alone, but uses .*com.microsoft"),
        (graph_of(ir_version=11), "IR version must be at most 10, but is 11"),
        (graph_of(inputs=("x",)), r"must map \['pixel_values'\] to .*, but maps \['x'\]"),
        (graph_of(inputs=("pixel_values", "mask")), r"but maps \['pixel_values', 'mask'\]"),
        (graph_of(outputs=("logits",)), r"to \['logits'\]"),
        (graph_of(outputs=("probabilities", "logits")), r"to \['probabilities', 'logits'\]"),
        (graph_of(batch=(2, "batch")), "batch axis of pixel_values must be dynamic, but is fixed to 2"),
        (graph_of(batch=("batch", 2)), "batch axis of logits must be dynamic, but is fixed to 2"),
    ],
)
def test_graph_that_breaks_a_promise_is_refused(graph: onnx.ModelProto, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        check_graph(graph, NAMES)


@pytest.mark.parametrize("fixed", [None, "pixel_values", "logits"])
def test_length_must_be_dynamic_where_rows_differ_in_length(fixed: str | None) -> None:
    length = (7 if fixed == "pixel_values" else "length", 7 if fixed == "logits" else "length")
    graph = graph_of(length=length)
    check_graph(graph, NAMES)
    if fixed is None:
        check_graph(graph, NAMES, lengths=True)
    else:
        with pytest.raises(ExportError, match=f"the length axis of {fixed} must be dynamic, but is fixed to 7"):
            check_graph(graph, NAMES, lengths=True)


def test_graph_of_a_task_without_scores_gives_logits_alone() -> None:
    check_graph(graph_of(outputs=("logits",)), NAMES, ("logits",))
    with pytest.raises(ExportError, match=r"to \['logits'\], but maps"):
        check_graph(graph_of(), NAMES, ("logits",))
