"""Feeds a bundle's golden inputs to one runtime, and prints what it answers as JSON; runs without autoft.

    python probe.py RUNTIME BUNDLE

Printed are the runtime's `version`, the logits for the stored `tensors`, and the probabilities for the `raw` inputs.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def main(runtime: str, bundle: Path) -> None:
    """Print the answers of one runtime."""
    print(json.dumps(PROBES[runtime](bundle)))


def through_graphs(bundle: Path, open_graph: Callable[[Path], Run], package: str) -> dict[str, Any]:
    """Return what a runtime gives that runs the bundle's own graphs; texts are tokenized by the library `tokenizers`."""
    contract = json.loads((bundle / "autoft.json").read_text(encoding="utf-8"))
    golden = json.loads((bundle / "golden" / "golden.json").read_text(encoding="utf-8"))
    model = open_graph(bundle / "onnx" / "model.onnx")
    tensors = {name: np.load(bundle / "golden" / f"{name}.npy") for name in contract["inputs"]}
    logits = model(tensors)["logits"]
    rows = []
    if contract["preprocessing"]["kind"] == "image":
        from PIL import Image, ImageOps

        preprocess = open_graph(bundle / "onnx" / "preprocess.onnx")
        for name in golden["inputs"]:
            image = ImageOps.exif_transpose(Image.open(bundle / "golden" / "inputs" / name)).convert("RGB")
            rows.append(model(preprocess({"image": np.asarray(image)[None]}))["probabilities"][0])
    else:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
        for text in golden["inputs"]:
            found = tokenizer.encode(*text) if isinstance(text, list) else tokenizer.encode(text)
            made = {"input_ids": found.ids, "attention_mask": found.attention_mask, "token_type_ids": found.type_ids}
            rows.append(model({name: np.array([made[name]], np.int64) for name in contract["inputs"]})["probabilities"][0])
    return answered(package, logits, rows)


def answered(package: str, logits: Any, probabilities: Any) -> dict[str, Any]:
    """Return what is printed."""
    return {
        "version": importlib.metadata.version(package),
        "tensors": np.asarray(logits, dtype=np.float64).tolist(),
        "raw": np.asarray(probabilities, dtype=np.float64).tolist(),
    }


def onnx_runtime(bundle: Path) -> dict[str, Any]:
    """ONNX Runtime on the CPU."""
    import onnxruntime

    def open_graph(file: Path) -> Run:
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))

    return through_graphs(bundle, open_graph, "onnxruntime")


def openvino(bundle: Path) -> dict[str, Any]:
    """OpenVINO on the CPU, told to compute in float32: it would take bfloat16 where the processor has it."""
    from openvino import Core

    core = Core()

    def open_graph(file: Path) -> Run:
        compiled = core.compile_model(core.read_model(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        names = [output.get_any_name() for output in compiled.outputs]
        return lambda inputs: {name: np.array(compiled(inputs)[name]) for name in names}

    return through_graphs(bundle, open_graph, "openvino")


def reference(bundle: Path) -> dict[str, Any]:
    """The reference evaluator of the package `onnx`, in plain numpy."""
    from onnx.reference import ReferenceEvaluator

    def open_graph(file: Path) -> Run:
        evaluator = ReferenceEvaluator(str(file))
        return lambda inputs: dict(zip(evaluator.output_names, evaluator.run(None, inputs), strict=True))

    return through_graphs(bundle, open_graph, "onnx")


def mlflow(bundle: Path) -> dict[str, Any]:
    """MLflow's flavour `onnx`: saved as its model, loaded again as its Python function."""
    import mlflow.onnx
    import mlflow.pyfunc
    import onnx

    with tempfile.TemporaryDirectory() as folder:

        def open_graph(file: Path) -> Run:
            saved = Path(folder) / file.stem
            mlflow.onnx.save_model(onnx.load(str(file)), str(saved))
            loaded = mlflow.pyfunc.load_model(str(saved))
            return lambda inputs: loaded.predict(inputs)

        return through_graphs(bundle, open_graph, "mlflow")


def optimum(bundle: Path) -> dict[str, Any]:
    """Optimum's classes for ONNX Runtime, and the pipelines of transformers over them."""
    import torch
    from optimum.onnxruntime import ORTModelForImageClassification, ORTModelForSequenceClassification
    from PIL import Image
    from transformers import AutoImageProcessor, AutoTokenizer, pipeline

    contract = json.loads((bundle / "autoft.json").read_text(encoding="utf-8"))
    golden = json.loads((bundle / "golden" / "golden.json").read_text(encoding="utf-8"))
    tensors = {name: torch.from_numpy(np.load(bundle / "golden" / f"{name}.npy")) for name in contract["inputs"]}
    arguments: dict[str, Any] = {"file_name": "model.onnx", "subfolder": "onnx", "local_files_only": True}
    if contract["preprocessing"]["kind"] == "image":
        model = ORTModelForImageClassification.from_pretrained(bundle, **arguments)
        processor = AutoImageProcessor.from_pretrained(bundle)
        classify = pipeline("image-classification", model=model, image_processor=processor)
        inputs: list[Any] = [Image.open(bundle / "golden" / "inputs" / name) for name in golden["inputs"]]
    else:
        model = ORTModelForSequenceClassification.from_pretrained(bundle, **arguments)
        classify = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(bundle))
        inputs = golden["inputs"]
    logits = model(**tensors).logits.numpy()
    rows = []
    for one in inputs:
        options: dict[str, Any] = {} if contract["preprocessing"]["kind"] == "image" else {"truncation": True}
        found = {answer["label"]: answer["score"] for answer in classify(one, top_k=len(contract["labels"]), **options)}
        rows.append([found[label] for label in contract["labels"]])
    return answered("optimum-onnx", logits, rows)


PROBES = {
    "onnxruntime": onnx_runtime,
    "openvino": openvino,
    "reference": reference,
    "mlflow": mlflow,
    "optimum": optimum,
}

if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
