"""Whether searching everything costs anything: the full space against the small one, at the same wall time.

    python studies/benchmarks/spaces.py digits --seeds 6 --seconds 60
    python studies/benchmarks/spaces.py sentences --seeds 3 --seconds 240

Two searches of the same data and seed follow each other, on one thread and in an order that changes from seed to seed; each
ends at the time limit, with its winner confirmed and exported. What counts is that winner's score on the untouched test
split. Sentences need studies/docstrings (fetch_model.py, make_data.py), digits studies/digits (make_data.py, pretrain.py).
"""

import argparse
import csv
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
STUDIES = HERE.parent
DATA = HERE / "data" / "spaces"
SPACES = ("small", "full")
MODULES = 0.3  # share of the modules whose sentences are taken: so many that a trial takes seconds


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("case", choices=("digits", "sentences"))
    parser.add_argument("--seeds", type=int, default=3, help="searches in each space")
    parser.add_argument("--seconds", type=int, default=60, help="time limit of a search")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="override a setting of all searches")
    arguments = parser.parse_args()
    study = STUDIES / "digits" / "study.yaml" if arguments.case == "digits" else sentences()
    scores: dict[str, list[float]] = {space: [] for space in SPACES}
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        for space in SPACES if seed % 2 == 0 else reversed(SPACES):
            scores[space].append(search(study, arguments.case, space, seed, arguments.seconds, arguments.set))
    print()
    for space in SPACES:
        found = scores[space]
        print(f"{space:6} mean {statistics.mean(found):.4f}  sd {spread(found):.4f}  over {len(found)} seeds")
    differences = [full - small for full, small in zip(scores["full"], scores["small"], strict=True)]
    error = spread(differences) / len(differences) ** 0.5
    better, equal = sum(each > 0 for each in differences), sum(each == 0 for each in differences)
    print(
        f"full minus small: {statistics.mean(differences):+.4f} ± {error:.4f} (standard error), "
        f"better in {better}, equal in {equal} of {len(differences)}"
    )
    return 0


def search(study: Path, case: str, space: str, seed: int, seconds: int, more: Sequence[str]) -> float:
    """Return the test accuracy of a search's winner."""
    run = DATA / f"{case}-{space}-{seed}"
    shutil.rmtree(run, ignore_errors=True)
    settings = [
        f"search.space={space}",
        f"search.seed={seed}",
        f"search.time_limit={seconds}",
        "search.trials=1000",
        "search.workers=0",
        "search.metric=accuracy",
        "trainer.device=cpu",
        *more,
    ]
    command = [sys.executable, "-m", "autoft", "search", str(study), "-o", str(run), "-q"]
    command += [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    ends = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    trials = sum(each["event"] == "trial" and not each["from_epoch"] for each in ends)
    accuracy = float(result["test"]["accuracy"])
    winner = result["winner"]
    which = f"validation {winner['value']:.4f}, trial {winner['trial']} of {trials}"
    print(f"seed {seed}  {space:6} test accuracy {accuracy:.4f}  ({which})", flush=True)
    shutil.rmtree(run)
    return accuracy


def sentences() -> Path:
    """Write the sentences of some modules, and a study of them; return the study."""
    home = STUDIES / "docstrings"
    with (home / "data" / "docstrings.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    modules = sorted({row["module"] for row in rows})
    chosen = set(random.Random(0).sample(modules, round(MODULES * len(modules))))
    DATA.mkdir(parents=True, exist_ok=True)
    with (DATA / "sentences.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row for row in rows if row["module"] in chosen)
    study = DATA / "sentences.yaml"
    study.write_text(
        f"""
name: sentences
data: {{path: sentences.csv, text: text, label: library, group: module, validation_share: 0.2, test_share: 0.4}}
task: text-classification
backbones: [{{name: transformers/sentence-transformers/all-MiniLM-L6-v2, weights: "{home / "data" / "minilm"}"}}]
""",
        encoding="utf-8",
    )
    return study


def spread(values: Sequence[float]) -> float:
    """Return the standard deviation of a sample; 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    sys.exit(main())
