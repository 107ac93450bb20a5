"""How much faster exported graphs are than torch's eager mode: float32 and int8 in ONNX Runtime, one sample, one thread.

    python studies/benchmarks/quantized.py text --model studies/docstrings/data/minilm
    python studies/benchmarks/quantized.py images --model resnet18

Weights of the images' model are random: they do not change the latency. The variants and the eager model take turns, so
that a busy machine slows all of them. What int8 loses on a task, a search with `export.quantize=[int8]` tells.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from autoft import timm_models
from autoft.builtin import transformers as transformers_family
from autoft.builtin.heads import autoft_heads
from autoft.export.onnx import to_onnx
from autoft.export.quantize import make_variant, method_of
from autoft.model import assemble
from autoft.ragged import Ragged
from autoft.specs import Backbone, BackboneRequest

ROUNDS, WARM_UP = 60, 5
TOKENS = 32  # of a sentence


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("case", choices=("text", "images"))
    parser.add_argument("--model", required=True, help="a folder of transformers' files, or a name of timm's")
    parser.add_argument("--size", type=int, default=224, help="side of the image")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    backbone, inputs = text(arguments.model) if arguments.case == "text" else images(arguments.model, arguments.size)
    head = next(
        head for head in autoft_heads() if head.name == f"{'text' if arguments.case == 'text' else 'image'}-classification"
    )
    targets = head.describe(["a", "b", "c"] * 4)
    model = assemble(backbone, head, targets, {knob.name: knob.default for knob in head.knobs}, seed=0).eval()
    one = tuple(tensor[:1] for tensor in inputs)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in ("fp32", "int8")}
        proto = to_onnx(
            model,
            head.activation,
            inputs,
            input_names=backbone.inputs,
            labels=targets.labels,
            scores=head.scores,
            lengths=backbone.preprocessing.ragged,
        )
        print(f"int8: {method_of('int8', proto)}")
        onnx.save_model(proto, files["fp32"])
        named = {name: tensor.numpy() for name, tensor in zip(backbone.inputs, inputs, strict=True)}
        make_variant("int8", files["fp32"], files["int8"], iter([named] * 4))
        ways: dict[str, Callable[[], Any]] = {"torch eager": lambda: model(*one)}
        single = {name: array[:1] for name, array in named.items()}
        for name, file in files.items():
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
            ways[f"{name} in ONNX Runtime"] = lambda session=session: session.run(None, single)
        times: dict[str, list[float]] = {name: [] for name in ways}
        with torch.inference_mode():
            for round_ in range(WARM_UP + ROUNDS):
                for name, way in ways.items():
                    began = time.perf_counter()
                    way()
                    if round_ >= WARM_UP:
                        times[name].append(1e3 * (time.perf_counter() - began))
        eager = statistics.median(times["torch eager"])
        for name, found in times.items():
            p50 = statistics.median(found)
            size = next((file.stat().st_size / 1e6 for key, file in files.items() if name.startswith(key)), None)
            print(
                f"{name:22} p50 {p50:7.2f} ms  p95 {float(np.percentile(found, 95)):7.2f} ms  "
                f"{eager / p50:5.2f} times as fast as eager" + (f"  {size:6.1f} MB" if size is not None else "")
            )
    return 0


def text(folder: str) -> tuple[Backbone, tuple[torch.Tensor, ...]]:
    """Return a text backbone, and two rows of tokens."""
    backbone = transformers_family.resolve(BackboneRequest(str(Path(folder).resolve())))
    words = "the quick brown fox jumps over the lazy dog and runs " * TOKENS
    preprocessing = backbone.preprocessing.fit([words])
    decoded = torch.as_tensor(preprocessing.decode(words, augmented=False))[:TOKENS]
    return backbone, preprocessing.inputs(Ragged.of([decoded, decoded[: TOKENS // 2]]))


def images(name: str, size: int) -> tuple[Backbone, tuple[torch.Tensor, ...]]:
    """Return an image backbone with random weights, and two random images."""
    backbone = timm_models.resolve(BackboneRequest(name, "none", image_size=size))
    pixels = torch.randint(0, 256, (2, 3, *(backbone.image_size or (size, size))), dtype=torch.uint8)
    return backbone, backbone.preprocessing.inputs(pixels)


if __name__ == "__main__":
    sys.exit(main())
