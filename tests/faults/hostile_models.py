"""Hostile model folders and weight files, given as backbones."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hostile import Case, Payload, payload

FEW = ("--trials", 1, "--epochs", 1, "--set", "search.workers=0")


def _model(folder: Path, **changes: Any) -> Path:
    """Make a folder of a tiny model for images, in the layout of transformers, with weights of its own shapes."""
    import torch
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(0)
    made = folder / "model"
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(made)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(made)
    described = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps({**described, **changes}))
    return made


def _with(damage: Callable[[Path, Path], object], **changes: Any) -> Callable[[Path], Sequence[object]]:
    def make(folder: Path) -> Sequence[object]:
        made = _model(folder, **changes)
        damage(made, folder.parent)
        return "search", "images", "-b", f"transformers/{made}", *FEW

    return make


def _pickled(made: Path, outside: Path) -> None:
    (made / "model.safetensors").unlink()
    (made / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(outside)))


def _pickle_named_safetensors(made: Path, outside: Path) -> None:
    (made / "model.safetensors").write_bytes(pickle.dumps(Payload(outside)))


def _code(made: Path, outside: Path) -> None:
    (made / "evil.py").write_text(payload(outside) + "\nclass Evil: pass\n")
    described = json.loads((made / "config.json").read_text())
    described |= {"auto_map": {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}, "model_type": "evil"}
    (made / "config.json").write_text(json.dumps(described))


def _code_beside_a_known_type(made: Path, outside: Path) -> None:
    (made / "evil.py").write_text(payload(outside) + "\nclass Evil: pass\n")
    described = json.loads((made / "config.json").read_text())
    described |= {"auto_map": {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}}
    (made / "config.json").write_text(json.dumps(described))


def _header(length: int, content: bytes = b"{}") -> Callable[[Path, Path], None]:
    def damage(made: Path, outside: Path) -> None:
        (made / "model.safetensors").write_bytes(struct.pack("<Q", length) + content)

    return damage


def _overlapping(made: Path, outside: Path) -> None:
    header = json.dumps({name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in ("a", "b")}).encode()
    (made / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))


def _index(target: str) -> Callable[[Path, Path], None]:
    def damage(made: Path, outside: Path) -> None:
        (made / "model.safetensors").unlink()
        (made / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"a": target}}))

    return damage


def _adapter(made: Path, outside: Path) -> None:
    (made / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "evil/model"}))
    (made / "adapter_model.bin").write_bytes(pickle.dumps(Payload(outside)))


def _weights_file(content: Callable[[Path], bytes], name: str) -> Callable[[Path], Sequence[object]]:
    def make(folder: Path) -> Sequence[object]:
        (folder / name).write_bytes(content(folder.parent))
        return "search", "images", "-b", "timm/test_resnet", "--weights", name, *FEW

    return make


def _pickle_of(outside: Path) -> bytes:
    return pickle.dumps(Payload(outside))


CASES: tuple[Case, ...] = (
    Case("pickled weights in a folder", _with(_pickled), ("safetensors",)),
    Case("pickle named safetensors", _with(_pickle_named_safetensors), ("safetensors",)),
    Case("code for an unknown type", _with(_code), ("evil",)),
    Case("code beside a known type is not run", _with(_code_beside_a_known_type), code=0),
    Case("adapter with a pickle is not loaded", _with(_adapter), code=0),
    Case("header longer than the file", _with(_header(1 << 20)), ("safetensors",)),
    Case("header of 2^63 bytes", _with(_header(1 << 63)), ("safetensors",)),
    Case("header that is no JSON", _with(_header(2, b"xx")), ("safetensors",)),
    Case("tensors that overlap", _with(_overlapping), ("safetensors",)),
    Case("shard above the folder", _with(_index("../../secret.txt")), ("secret.txt",)),
    Case("shard at the root", _with(_index("/etc/passwd")), ("/etc/passwd",)),
    Case("hidden size of 10^9", _with(lambda made, outside: None, hidden_size=10**9), ("`hidden_size`", "at most")),
    Case("10^9 layers", _with(lambda made, outside: None, num_hidden_layers=10**9), ("`num_hidden_layers`", "at most")),
    Case("images of 10^9 pixels a side", _with(lambda made, outside: None, image_size=10**9), ("`image_size`", "at most")),
    Case("activation that is code", _with(lambda made, outside: None, hidden_act="__import__('os').getcwd()"), ("error",)),
    Case(
        "configuration that is a list",
        _with(lambda made, outside: (made / "config.json").write_text("[]")),
        ("config.json",),
    ),
    Case(
        "configuration nested 100,000 deep",
        _with(lambda made, outside: (made / "config.json").write_text("[" * 100_000)),
        ("config.json",),
    ),
    Case("pickled weights for timm", _weights_file(_pickle_of, "weights.pth"), ("safetensors",)),
    Case("pickle named safetensors for timm", _weights_file(_pickle_of, "weights.safetensors"), ("safetensors",)),
    Case("empty weights for timm", _weights_file(lambda outside: b"", "weights.safetensors"), ("safetensors",)),
)
