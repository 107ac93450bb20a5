"""Each runtime loads the bundles as they are, and answers as the golden vectors say; `run.sh` sets the runtimes up."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import golden_tensors, make_image, make_text

HERE = Path(__file__).resolve().parent
HOME = Path(os.environ.get("AUTOFT_LOADERS", "nowhere"))
SECONDS = 280
TENSORS = 1e-3  # how far logits for the same tensors may be apart
# Probabilities from raw input. Images: what rounds otherwise, but resizes alike, stays below; None where a runtime is known
# to ignore `antialias`, or has another way to resize: there the difference is told, and not tested.
RAW = {
    ("onnxruntime", "image"): 1e-3,
    ("reference", "image"): 1e-3,
    ("openvino", "image"): None,
    ("mlflow", "image"): 1e-3,
    ("optimum", "image"): None,
    ("onnxruntime-node", "image"): 1e-3,
    ("onnxruntime-web", "image"): 1e-3,
    ("transformers.js-node", "image"): None,
    ("transformers.js-web", "image"): None,
}
PYTHON = ("onnxruntime", "reference", "openvino", "mlflow", "optimum")
NODE = ("onnxruntime-node", "transformers.js-node", "onnxruntime-web", "transformers.js-web")

pytestmark = [pytest.mark.loaders, pytest.mark.timeout(SECONDS + 20)]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An image and a text bundle."""
    folder = tmp_path_factory.mktemp("loaders")
    return {"image": make_image(folder), "text": make_text(folder)}


@pytest.fixture(scope="module")
def rows() -> Iterator[dict[tuple[str, str], tuple[str, float, float]]]:
    """What was found, printed as a table at the end."""
    found: dict[tuple[str, str], tuple[str, float, float]] = {}
    yield found
    print("\n\n| runtime | version | image tensors | image raw | text tensors | text raw |\n|---|---|---|---|---|---|")
    for runtime in (*PYTHON, *NODE):
        if (runtime, "image") in found and (runtime, "text") in found:
            version, *image = found[runtime, "image"]
            _, *text = found[runtime, "text"]
            print(f"| {runtime} | {version} | {' | '.join(f'{value:.1e}' for value in (*image, *text))} |")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the scripts and the packages, beside which a browser is served too."""
    folder = tmp_path_factory.mktemp("node")
    for file in (*HERE.glob("*.mjs"), *HERE.glob("*.html")):
        shutil.copyfile(file, folder / file.name)
    (folder / "node_modules").symlink_to(HOME / "node" / "node_modules")
    return folder


def answers(command: list[str], folder: Path) -> dict[str, Any]:
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def compare(runtime: str, kind: str, bundle: Path, found: dict[str, Any], rows: dict[Any, Any]) -> None:
    golden = golden_tensors(bundle)
    tensors = float(np.abs(np.array(found["tensors"]) - golden["logits"]).max())
    raw = float(np.abs(np.array(found["raw"]) - golden["probabilities"]).max())
    rows[runtime, kind] = (found["version"], tensors, raw)
    assert tensors <= TENSORS, "the same tensors must give the same logits"
    limit = RAW[runtime, kind] if kind == "image" else 1e-3
    assert limit is None or raw <= limit, "raw input must give the same probabilities"


@pytest.mark.parametrize("kind", ["image", "text"])
@pytest.mark.parametrize("runtime", PYTHON)
def test_python_runtime(runtime: str, kind: str, bundles: dict[str, Path], rows: dict[Any, Any], tmp_path: Path) -> None:
    python = HOME / ("optimum" if runtime == "optimum" else "python") / "bin" / "python"
    if not python.exists():
        pytest.skip(f"sh tests/loaders/run.sh sets {runtime} up")
    found = answers([str(python), str(HERE / "probe.py"), runtime, str(bundles[kind])], tmp_path)
    compare(runtime, kind, bundles[kind], found, rows)


@pytest.mark.parametrize("kind", ["image", "text"])
@pytest.mark.parametrize("runtime", NODE)
def test_javascript_runtime(runtime: str, kind: str, bundles: dict[str, Path], rows: dict[Any, Any], node: Path) -> None:
    if not (HOME / "node" / "node_modules").exists():
        pytest.skip(f"sh tests/loaders/run.sh sets {runtime} up")
    found = answers(["node", "probe.mjs", runtime, str(bundles[kind])], node)
    compare(runtime, kind, bundles[kind], found, rows)


def test_page_of_static_files_answers_as_the_bundles_do(bundles: dict[str, Path], node: Path) -> None:
    if not (HOME / "node" / "node_modules").exists():
        pytest.skip("sh tests/loaders/run.sh sets onnxruntime-web up")
    page = HERE.parent.parent / "docs" / "example-web"
    golden = {kind: json.loads((folder / "golden" / "golden.json").read_text()) for kind, folder in bundles.items()}
    image, text = bundles["image"] / "golden" / "inputs" / golden["image"]["inputs"][0], golden["text"]["inputs"][0]
    found = answers(["node", "page.mjs", str(page), str(bundles["image"]), str(bundles["text"]), str(image), text], node)
    assert found["foreign"] == [], "nothing is fetched from elsewhere"
    for kind in ("image", "text"):
        label, _, score = found[kind].rpartition("  ")
        assert label == golden[kind]["answers"][0]
        assert float(score) == pytest.approx(golden_tensors(bundles[kind])["probabilities"][0].max(), abs=2e-3)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_triton_configuration_parses_with_dynamic_batching(kind: str, bundles: dict[str, Path], tmp_path: Path) -> None:
    python = HOME / "python" / "bin" / "python"
    if not python.exists():
        pytest.skip("sh tests/loaders/run.sh sets Triton's client up")
    folder = tmp_path / "models" / "served"  # as docs/deployers.md says
    folder.mkdir(parents=True)
    shutil.copy(bundles[kind] / "config.pbtxt", folder)
    shutil.copytree(bundles[kind] / "onnx", folder / "1")
    check = (
        "import sys, json; from google.protobuf import text_format; from tritonclient.grpc import model_config_pb2 as m;"
        "c = text_format.Parse(open(sys.argv[1]).read(), m.ModelConfig());"
        "print(json.dumps([c.max_batch_size, c.HasField('dynamic_batching'), [i.name for i in c.input],"
        " [list(i.dims) for i in c.input], [o.name for o in c.output]]))"
    )
    ran = subprocess.run(
        [python, "-c", check, folder / "config.pbtxt"], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert ran.returncode == 0, ran.stderr
    most, batching, inputs, dims, outputs = json.loads(ran.stdout)
    assert most > 1
    assert batching is True
    assert inputs == json.loads((bundles[kind] / "autoft.json").read_text())["inputs"]
    assert dims == ([[3, 64, 64]] if kind == "image" else [[-1]] * len(inputs))
    assert outputs == ["logits", "probabilities"]
    assert (folder / "1" / "model.onnx").is_file()
