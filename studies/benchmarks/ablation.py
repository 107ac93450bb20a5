"""What each part of the search is worth: the same search with the part on and off, in turn, with the same seeds.

    python studies/benchmarks/ablation.py                       # sentences (MiniLM) and digits
    python studies/benchmarks/ablation.py digits --seeds 3

Each search trains the same number of trials. `trials` are the seconds from the moment that every backbone is checked to the
end of the last trial, probes included; imports, reading the data and the export are the same with and without any part, and
are left out, as is the confirmation over seeds, which is switched off. `target` are the seconds from the same moment to the
first epoch that scores at least what the worst of all these searches of a seed reached, so that every one gets there.
`accuracy` is the winner's on the validation split. Where there are several seeds, all three are means.

Sentences need studies/docstrings/fetch_model.py, digits studies/digits/pretrain.py; both say so.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
STUDIES = HERE.parent
DATA = HERE / "data" / "ablation"
MINILM = "transformers/sentence-transformers/all-MiniLM-L6-v2"
DIGITS = "timm/test_resnet"
WORKERS = 2


@dataclass(frozen=True)
class Part:
    """A part of the search.

    Attributes:
        name: For the table.
        on: What switches it on.
        off: What switches it off; both are settings that win over the common ones.
        two_backbones: Whether it needs a second candidate: the same network with random weights.
        texts_only: Whether it does nothing for images.
    """

    name: str
    on: dict[str, Any]
    off: dict[str, Any]
    two_backbones: bool = False
    texts_only: bool = False


PARTS = (
    Part("reuse of frozen stages", {"search.reuse": True}, {"search.reuse": False}),
    Part("pausing and promoting", {"search.prune": True}, {"search.prune": False}),
    Part("length grouping", {"trainer.group_by_length": True}, {"trainer.group_by_length": False}, texts_only=True),
    Part(f"packing, {WORKERS} workers", {"search.workers": WORKERS}, {"search.workers": 0}),
    Part("probing two backbones", {"search.probe": True}, {"search.probe": False}, two_backbones=True),
)
COMMON = {
    "search.reuse": True,
    "search.probe": True,
    "search.prune": True,
    "search.workers": 0,
    "search.seeds": 1,
    "search.soup": False,
    "search.metric": "accuracy",
    "trainer.group_by_length": True,
    "trainer.augmentation": "none",
    "trainer.device": "cpu",
    "trainer.precision": "fp32",
}


@dataclass(frozen=True)
class Result:
    """One search: its curve of (seconds, best score so far), seconds to the end of the trials, the winner's score."""

    curve: tuple[tuple[float, float], ...]
    seconds: float
    score: float

    def reaches(self, target: float) -> float:
        """Return the seconds to the first epoch as good as the target."""
        return next(seconds for seconds, value in self.curve if value >= target)


def search(kind: str, settings: dict[str, Any], two_backbones: bool, seed: int, options: argparse.Namespace) -> Result:
    """Run one search with autoft's command, and read what it took from its log."""
    data, columns, backbone = texts(options) if kind == "sentences" else digits(options)
    untrained = {**backbone, "weights": "none"}
    if kind == "sentences":  # without weights, the architecture and the tokenizer must come from a folder
        untrained["name"] = f"transformers/{backbone['weights']}"
    backbones = [backbone, untrained] if two_backbones else [backbone]
    trials, epochs = (
        (options.trials, options.epochs) if kind == "sentences" else (options.digits_trials, options.digits_epochs)
    )
    study = {
        "name": "ablation",
        "data": {"path": str(data), "split_seed": seed, **columns},
        "backbones": backbones,
        "search": {"trials": trials, "seed": seed},
        "trainer": {"epochs": epochs},
    }
    folder = DATA / f"run-{os.getpid()}"  # two of these benchmarks may run side by side
    shutil.rmtree(folder, ignore_errors=True)
    file = DATA / f"study-{os.getpid()}.yaml"
    file.write_text(json.dumps(study), encoding="utf-8")  # YAML reads JSON
    changes = [part for name, value in (COMMON | settings).items() for part in ("--set", f"{name}={json.dumps(value)}")]
    run([sys.executable, "-m", "autoft", "search", str(file), "-o", str(folder), *changes], options.threads)
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    checked = max(event["time"] for event in events if event["event"] == "preflight")
    ended = next(event["time"] for event in events if event["event"] == "export")
    epochs_seen = [(event["time"] - checked, event["value"]) for event in events if event["event"] == "epoch"]
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    shutil.rmtree(folder)
    file.unlink()
    print(f"{kind} seed {seed}: {ended - checked:.1f} s with {json.dumps(dict(settings))}", file=sys.stderr, flush=True)
    return Result(tuple(epochs_seen), ended - checked, result["winner"]["value"])


def texts(options: argparse.Namespace) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Return the table of sentences, what its columns are, and the backbone."""
    model = need(STUDIES / "docstrings" / "data" / "minilm" / "model.safetensors", STUDIES / "docstrings" / "fetch_model.py")
    table = DATA / f"docstrings-{options.samples}.csv"
    if not table.exists():
        make = [sys.executable, str(STUDIES / "docstrings" / "make_data.py"), str(table)]
        run([*make, "--per-library", str(options.samples // 10)], options.threads)
    columns = {"text": "text", "label": "library", "group": "module", "validation_share": 0.3, "test_share": 0.2}
    return table, columns, {"name": MINILM, "weights": str(model.parent)}


def digits(options: argparse.Namespace) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Return the folder of scans and the backbone."""
    weights = need(STUDIES / "digits" / "weights" / "model.safetensors", STUDIES / "digits" / "pretrain.py")
    folder = DATA / f"digits-{options.digits_samples}"
    if not folder.exists():
        make = [sys.executable, str(STUDIES / "digits" / "make_data.py"), str(folder)]
        run([*make, "--train-per-class", str(options.digits_samples // 10)], options.threads)
    return folder, {}, {"name": DIGITS, "weights": str(weights.parent), "image_size": 32}


def need(file: Path, script: Path) -> Path:
    """Return a file that a study's script makes; end with a hint where it is missing."""
    if not file.exists():
        sys.exit(f"error: {file} is missing\nhint: python {os.path.relpath(script)}")
    return file


def run(command: Sequence[str], threads: int) -> None:
    """Run a command offline; what it prints is shown only if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, cwd=DATA, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")


def ablate(kind: str, options: argparse.Namespace) -> None:
    """Search with every part on and off, in turn, and print the table."""
    parts = [part for part in PARTS if kind == "sentences" or not part.texts_only]
    if options.parts:
        parts = [part for part in parts if any(word in part.name for word in options.parts)]
    found: dict[tuple[str, bool], list[Result]] = {}
    targets = []
    started = time.monotonic()
    for seed in range(options.seeds):
        done: dict[str, Result] = {}  # the same settings need not be searched twice
        for part in parts:
            for on in (True, False):
                settings = part.on if on else part.off
                key = json.dumps([COMMON | settings, part.two_backbones], sort_keys=True)
                if key not in done:
                    done[key] = search(kind, settings, part.two_backbones, seed, options)
                found.setdefault((part.name, on), []).append(done[key])
        targets.append(min(max(value for _, value in result.curve) for result in done.values()))
    trials, epochs = (
        (options.trials, options.epochs) if kind == "sentences" else (options.digits_trials, options.digits_epochs)
    )
    samples = options.samples if kind == "sentences" else options.digits_samples
    shown = ", ".join(f"{target:.4f}" for target in targets)
    counted = "in all" if kind == "sentences" else "to train on"
    print(
        f"{kind}: {samples} {counted}, {trials} trials of {epochs} epochs at most, "
        f"{options.threads} thread{'s' * (options.threads > 1)} a process, seeds {options.seeds}, target {shown}; "
        f"{time.monotonic() - started:.0f} s\n"
    )
    print(f"{'':24}       trials, seconds          target, seconds        accuracy")
    print(f"{'':24}     on     off  off/on     on     off  off/on       on     off")
    for part in parts:
        on, off = found[part.name, True], found[part.name, False]
        ends = [statistics.mean(result.seconds for result in side) for side in (on, off)]
        reached = [
            statistics.mean(result.reaches(target) for result, target in zip(side, targets, strict=True))
            for side in (on, off)
        ]
        scores = [statistics.mean(result.score for result in side) for side in (on, off)]
        print(
            f"{part.name:24} {ends[0]:6.1f}  {ends[1]:6.1f}  {ends[1] / ends[0]:6.2f} {reached[0]:6.1f}  {reached[1]:6.1f}  "
            f"{reached[1] / reached[0]:6.2f}   {scores[0]:.4f}  {scores[1]:.4f}"
        )
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="{sentences,digits}", help="which studies (default: both)")
    parser.add_argument("--samples", type=int, default=400, help="sentences, half of them for training (default: 400)")
    parser.add_argument("--trials", type=int, default=6, help="of a search on sentences (default: 6)")
    parser.add_argument("--epochs", type=int, default=4, help="of a trial on sentences (default: 4)")
    parser.add_argument("--digits-samples", type=int, default=100, help="scans for training (default: 100)")
    parser.add_argument("--digits-trials", type=int, default=12, help="of a search on digits (default: 12)")
    parser.add_argument("--digits-epochs", type=int, default=10, help="of a trial on digits (default: 10)")
    parser.add_argument("--seeds", type=int, default=1, help="repeat with seeds 0, 1, ... (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="of each process (default: 1)")
    parser.add_argument("--parts", nargs="*", default=[], metavar="WORD", help="only parts with such a word in their name")
    options = parser.parse_args()
    kinds = options.kinds or ["sentences", "digits"]
    for kind in kinds:
        if kind not in ("sentences", "digits"):
            parser.error(f"there are sentences and digits, but got {kind!r}")
    DATA.mkdir(parents=True, exist_ok=True)
    for kind in kinds:
        ablate(kind, options)


if __name__ == "__main__":
    main()
