"""Answer the study's question: fine-tuned MiniLM against its linear probe and against TF-IDF, over several seeds.

    python compare.py --seeds 3

Each seed divides the data anew, and all three get the same division. Prints test accuracy and macro F1 of each, then means,
standard deviations, and the paired differences.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from baselines import HERE, MODEL, Embedder, divide, line, score_all

import autoft

FINE_TUNED = "finetuned"
METRICS = {"accuracy": "accuracy", "f1_macro": "macro F1"}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="divisions of the data, each with one search")
    parser.add_argument("--runs", type=Path, help="keep the run folders here, and resume from them")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="override a setting of the study")
    arguments = parser.parse_args()
    embedder = Embedder(MODEL)
    tests: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        runs = arguments.runs or Path(temporary)
        for seed in range(arguments.seeds):
            for name, scored in score_all(divide(seed, arguments.set), embedder).items():
                tests.setdefault(name, []).append(dict(scored.test))
                print(line(seed, name, scored), flush=True)
            started = time.monotonic()
            result = autoft.search(
                HERE / "study.yaml",
                output=runs / f"docstrings-{seed}",
                overrides=[f"search.seed={seed}", f"data.split_seed={seed}", *arguments.set],
            )
            tests.setdefault(FINE_TUNED, []).append(result.test)
            print(
                f"seed {seed}  {FINE_TUNED:9}  test accuracy {result.test['accuracy']:.4f}  "
                f"macro F1 {result.test['f1_macro']:.4f}  (validation {result.value:.4f}, preset {result.preset:.4f}, "
                f"trial {result.trial}, {time.monotonic() - started:.0f} s)",
                flush=True,
            )
    for metric, words in METRICS.items():
        print(f"\n{words}")
        for name, found in tests.items():
            values = [test[metric] for test in found]
            print(f"  {name:9} mean {statistics.mean(values):.4f}  sd {spread(values):.4f}  over {len(values)} seeds")
        for name in tests:
            if name != FINE_TUNED:
                print(f"  {difference(FINE_TUNED, name, metric, tests)}")
    return 0


def difference(mine: str, other: str, metric: str, tests: dict[str, list[dict[str, float]]]) -> str:
    """Return a line on the paired difference between two methods."""
    differences = [one[metric] - two[metric] for one, two in zip(tests[mine], tests[other], strict=True)]
    error = spread(differences) / len(differences) ** 0.5
    wins = sum(value > 0 for value in differences)
    return (
        f"{mine} minus {other}: {statistics.mean(differences):+.4f} ± {error:.4f} (standard error), "
        f"better in {wins} of {len(differences)}"
    )


def spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    sys.exit(main())
