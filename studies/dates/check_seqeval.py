"""Compare the entity F1 that `autoft evaluate` gives for a bundle with seqeval's own on the bundle's tags.

    python check_seqeval.py runs/dates/bundle

The tags come from the bundle's own script through ONNX Runtime; words that were cut off count as tagged `O`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from seqeval.metrics import classification_report, f1_score, precision_score, recall_score

HERE = Path(__file__).parent
TOLERANCE = 1e-6


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("bundle", nargs="?", type=Path, default=Path("runs/dates/bundle"), help="of the search")
    parser.add_argument("data", nargs="?", type=Path, default=HERE / "data" / "dates.jsonl", help="made by make_data.py")
    arguments = parser.parse_args()

    with arguments.data.open(encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if row["split"] == "test"]
    expected = [row["tags"] for row in rows]
    found = tags_of(arguments.bundle, [row["tokens"] for row in rows])
    theirs = {
        "f1": f1_score(expected, found),
        "precision": precision_score(expected, found),
        "recall": recall_score(expected, found),
    }
    ours = evaluate(arguments.bundle, arguments.data)
    print(classification_report(expected, found, digits=4))
    wrong = 0
    for name, value in theirs.items():
        equal = abs(value - ours[name]) <= TOLERANCE
        wrong += not equal
        print(f"{name:9}  seqeval {value:.6f}  autoft evaluate {ours[name]:.6f}  {'equal' if equal else 'DIFFERENT'}")
    return 1 if wrong else 0


def tags_of(folder: Path, texts: list[list[str]]) -> list[list[str]]:
    """Return the bundle's tag for every word of every text."""
    script = folder / "predict.py"
    if not script.is_file():
        print(f"error: no bundle in {folder}\nhint: autoft search {HERE / 'study.yaml'}", file=sys.stderr)
        raise SystemExit(2)
    spec = importlib.util.spec_from_file_location("bundle_predict", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    bundle = module.Bundle.load(folder)
    tags = []
    for words, outputs in zip(texts, bundle.outputs(texts), strict=True):
        best = [bundle.labels[place] for place in outputs.argmax(axis=1)]
        tags.append(best + ["O"] * (len(words) - len(best)))
    return tags


def evaluate(folder: Path, data: Path) -> dict[str, Any]:
    """Return the metrics that `autoft evaluate` prints."""
    command = [sys.executable, "-m", "autoft", "evaluate", str(folder), str(data), "--json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        print(done.stderr, file=sys.stderr)
        raise SystemExit(done.returncode)
    return json.loads(done.stdout)


if __name__ == "__main__":
    sys.exit(main())
