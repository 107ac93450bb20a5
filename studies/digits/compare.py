"""Answer the study's question: search with pretrained and with random weights at the same budget, over several seeds.

    python compare.py --seeds 5

Prints the test accuracy of every search's winner, then means, standard deviations, and the paired difference.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import autoft

HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="searches of each kind")
    parser.add_argument("--runs", type=Path, help="keep the run folders here, and resume from them")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="override a setting of both studies")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        runs = arguments.runs or Path(temporary)
        scores: dict[str, list[float]] = {"study": [], "scratch": []}
        for seed in range(arguments.seeds):
            for name, collected in scores.items():
                started = time.monotonic()
                result = autoft.search(
                    HERE / f"{name}.yaml",
                    output=runs / f"{name}-{seed}",
                    overrides=[f"search.seed={seed}", *arguments.set],
                )
                collected.append(result.test["accuracy"])
                print(
                    f"seed {seed}  {name:7}  test accuracy {result.test['accuracy']:.4f}  (validation {result.value:.4f}, "
                    f"preset {result.preset:.4f}, trial {result.trial}, {time.monotonic() - started:.0f} s)",
                    flush=True,
                )
    print()
    for name, collected in scores.items():
        print(f"{name:8} mean {statistics.mean(collected):.4f}  sd {spread(collected):.4f}  over {len(collected)} seeds")
    differences = [mine - other for mine, other in zip(scores["study"], scores["scratch"], strict=True)]
    wins = sum(difference > 0 for difference in differences)
    error = spread(differences) / len(differences) ** 0.5
    print(
        f"pretrained minus scratch: {statistics.mean(differences):+.4f} ± {error:.4f} (standard error), "
        f"better in {wins} of {len(differences)}"
    )
    return 0


def spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    sys.exit(main())
