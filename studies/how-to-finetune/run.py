"""Answer the study's questions: which methods matter, how deep to freeze, with how much data; print the tables of README.md.

    python run.py digits            # images: scans, from a network that has only seen printed letters
    python run.py sentences         # texts: docstrings, from MiniLM

Each training is the preset with one thing changed. Its best epoch is chosen on a few validation samples, as in a search, and
what counts is its accuracy on a large test split. Differences are to the preset with the same samples and the same seed.
Trainings that are done are kept in `data/`, so that the command may be stopped and typed again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch

from autoft.files import load_tensors, read_json, write_json
from autoft.knobs import Value
from autoft.layers import traits
from autoft.model import FineTuneModel
from autoft.prepare import Prepared, load_config, prepare
from autoft.probe import probe
from autoft.space import Space, build_space, choose_augmentation, shared_policies, suggest, train_config
from autoft.specs import Backbone
from autoft.train import choose_batch_size, choose_epochs, predict
from autoft.worker import Job, Worker

HERE = Path(__file__).resolve().parent
STUDIES = HERE.parent
CPU = torch.device("cpu")
Build = Callable[[], torch.nn.Module]

# What is changed of the preset; a number where the method has one is in the middle of what autoft searches.
METHODS: dict[str, dict[str, Value]] = {
    "learning rate x 3": {"learning_rate": 3.0},
    "learning rate / 3": {"learning_rate": 1 / 3},
    "head from the linear probe (LP-FT)": {"head_start": "probe", "head_multiplier": 1.0},
    "one rate for all layers": {"layer_decay": 1.0},
    "layer decay 0.7": {"layer_decay": 0.7},
    "one rate for head and backbone": {"head_multiplier": 1.0},
    "gradual unfreezing": {"unfreeze": 0.4},
    "L2-SP": {"l2_sp": 10.0},
    "weight decay 0.1": {"weight_decay": 0.1},
    "label smoothing 0.1": {"label_smoothing": 0.1},
    "dropout 0.3": {"dropout": 0.3},
    "stochastic depth 0.1": {"stochastic_depth": 0.1},
    "frozen BatchNorm statistics": {"batch_norm": "frozen"},
    "EMA": {"averaging": "ema"},
    "SWA": {"averaging": "swa"},
    "SAM": {"sam": 0.05},
    "linear schedule": {"schedule": "linear"},
    "constant rate": {"schedule": "constant"},
    "no warm-up": {"warmup": 0.0},
    "no limit of the gradient": {"gradient_clip": 0.0},
    "half the batch size": {"batch_size": 0.5},
    "twice the batch size": {"batch_size": 2.0},
    "twice the epochs": {"epochs": 2.0},
    "no augmentation": {"augmentation": "none"},
    "stronger augmentation": {"augmentation": "standard"},
    "TrivialAugment": {"augmentation": "trivial"},
    "mixup": {"mixup": 0.4},
    "cutmix": {"cutmix": 0.4},
    "random erasing": {"erasing": 0.25},
    "R-Drop": {"r_drop": 1.0},
    "adversarial embeddings (FGM)": {"adversarial": 0.5},
}
TIMES = ("learning_rate", "batch_size", "epochs")  # settings that a method multiplies
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
VALIDATION = 10  # samples of each class, at most
RATES = (1 / 3, 1.0, 3.0)  # of the preset's learning rate; at each depth the best one counts, as a search would find it


@dataclass(frozen=True)
class Case:
    """Data to fine-tune on.

    Attributes:
        study: The study file.
        sizes: Training samples of each class.
        seeds: Trainings of each kind, each with samples of its own.
        test: Samples that are scored, at most.
    """

    study: Path
    sizes: tuple[int, ...]
    seeds: int
    test: int


CASES = {
    "digits": Case(STUDIES / "digits" / "study.yaml", (4, 16, 40), 5, 2000),
    "sentences": Case(STUDIES / "docstrings" / "study.yaml", (8,), 3, 500),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("case", choices=tuple(CASES))
    parser.add_argument("--sizes", type=int, nargs="+", help="training samples of each class; the study's where left out")
    parser.add_argument("--seeds", type=int, help="trainings of each kind; the study's where left out")
    arguments = parser.parse_args()
    case = CASES[arguments.case]
    case = replace(case, sizes=tuple(arguments.sizes or case.sizes), seeds=arguments.seeds or case.seeds)
    study = Study(arguments.case, case)
    methods: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    presets: dict[int, list[float]] = defaultdict(list)
    depths: dict[tuple[int, int], list[dict[float, tuple[float, float]]]] = defaultdict(list)
    for size in case.sizes:
        for seed in range(case.seeds):
            preset = study.train(size, seed, {})[0]
            presets[size].append(preset)
            for name, changes in METHODS.items():
                if study.able(changes):
                    methods[name][size].append(study.train(size, seed, changes)[0] - preset)
            for depth in study.depths():
                found = {rate: study.train(size, seed, {"freeze_depth": depth, "learning_rate": rate}) for rate in RATES}
                depths[depth, size].append(found)
            print(f"{size} a class, seed {seed}: preset {preset:.4f}", file=sys.stderr, flush=True)
    print(methods_table(methods, presets, case))
    print(depths_table(depths, study, case))
    return 0


class Study:
    """Trains variants of the preset on parts of the data, each once.

    Args:
        name: Of the case, for the file of what is done.
        case: It.
        home: Whose `data/` has that file.
        epochs: Of a training, unless a change multiplies them; None for the usual number, twice that below 10 samples.
        backbone: In place of the study's.
    """

    def __init__(
        self, name: str, case: Case, *, home: Path = HERE, epochs: int | None = None, backbone: Backbone | None = None
    ) -> None:
        self.name, self.case, self.home, self.epochs = name, case, home, epochs
        config, catalog = load_config(
            case.study, ["search.metric=accuracy", "trainer.epochs=auto", "trainer.batch_size=auto"]
        )
        self.prepared: Prepared = prepare(config, catalog, lambda event: None)
        self.backbone: Backbone = backbone or self.prepared.backbones[0]
        module = self.backbone.build()
        self.stages = len(self.backbone.stages(module))
        self.traits = traits(module)
        self.done: dict[int, dict[str, Any]] = {}
        self.workers: dict[tuple[int, int], tuple[Worker, Path, str | None]] = {}
        self.probes: dict[tuple[int, int], float] = {}
        self.scratch = Path(tempfile.mkdtemp(prefix="autoft-study-"))

    def depths(self) -> list[int]:
        """Return the depths that are compared, in stages."""
        return sorted({round(share * self.stages) for share in DEPTHS})

    def able(self, changes: Mapping[str, Value]) -> bool:
        """Return whether the data and the backbone can have a change."""
        fixed = {name: value for name, value in changes.items() if name not in (*TIMES, "head_start")}
        _, problems = self.space(fixed, 16)
        return not problems

    def space(self, wanted: Mapping[str, Value], samples: int, head: str | None = None) -> tuple[Space, list[Any]]:
        """Return a space in which all that is wanted is fixed."""
        policies = shared_policies(self.prepared.backbones)
        modality = self.prepared.raw.modality
        return build_space(
            wanted,
            self.prepared.objective.head,
            [self.backbone],
            [self.stages],
            augmentation=choose_augmentation("auto", policies),
            heads=[head],
            trainer={"batch_size": choose_batch_size("auto", samples, modality)},
            traits=[self.traits],
        )

    def train(self, size: int, seed: int, changes: Mapping[str, Value]) -> tuple[float, float]:
        """Return the test accuracy of the best epoch, and the seconds of an epoch."""
        metrics, seconds = self.trained(size, seed, changes)
        return metrics["accuracy"], seconds

    def trained(self, size: int, seed: int, changes: Mapping[str, Value]) -> tuple[dict[str, float], float]:
        """Return the metrics of the best epoch on the test split, and the seconds of an epoch."""
        file = self.home / "data" / f"{self.name}-{size}.json"  # one a size, so that several processes may share the work
        if size not in self.done:
            self.done[size] = read_json(file) if file.exists() else {}
        key = json.dumps([seed, self.case.test, dict(changes)])
        if key not in self.done[size]:
            self.done[size][key] = self._train(size, seed, changes)
            file.parent.mkdir(exist_ok=True)
            write_json(file, self.done[size])
        metrics, seconds = self.done[size][key]
        return metrics, seconds

    def probed(self, size: int, seed: int) -> float:
        """Return the test accuracy of the linear probe."""
        worker, _, head = self._worker(size, seed)
        assert head is not None
        fixed = {"freeze_depth": self.stages, "head_start": "probe"}
        space, _ = self.space(fixed, len(worker.data("train", self.backbone)), head)
        candidate = suggest(optuna.trial.FixedTrial(space.preset_of(0)), space)
        settings = train_config(candidate, self.prepared.objective.head, {"epochs": 1, "seed": seed})
        return self._score(worker, worker.build(self.backbone, settings))["accuracy"]

    def count(self, label: str, size: int) -> int:
        """Return how many training samples a class has."""
        return size

    def _score(self, worker: Worker, model: FineTuneModel) -> dict[str, float]:
        test, objective = worker.data("test", self.backbone), self.prepared.objective
        outputs = predict(model, test, device=CPU, batch_size=64)
        return objective.head.metrics(outputs, test.targets, objective.targets)

    def _train(self, size: int, seed: int, changes: Mapping[str, Value]) -> tuple[dict[str, float], float]:
        worker, folder, head = self._worker(size, seed)
        count = len(worker.data("train", self.backbone))
        space, problems = self.space({name: value for name, value in changes.items() if name not in TIMES}, count, head)
        if problems:
            raise SystemExit("\n".join(map(str, problems)))
        candidate = suggest(optuna.trial.FixedTrial(space.preset_of(0)), space)
        values = dict(candidate.values)
        epochs = self.epochs or choose_epochs("auto", self.prepared.raw.modality) * (2 if size < 10 else 1)
        for name in ("learning_rate", "batch_size"):
            values[name] = float(values[name]) * float(changes.get(name, 1.0))
        values["batch_size"] = max(2, min(count, round(float(values["batch_size"]))))
        settings = train_config(
            replace(candidate, values=values),
            self.prepared.objective.head,
            {"epochs": round(epochs * float(changes.get("epochs", 1.0))), "seed": seed},
        )
        job = Job(self.backbone, settings, str(values["augmentation"]), folder / "trial")
        outcome = worker.run(job)
        if outcome.state != "complete":
            raise SystemExit(f"{dict(changes)}: {outcome.failure}")
        model = worker.build(self.backbone, settings)
        model.load_state_dict(load_tensors(job.folder / "model.safetensors")[0])
        shutil.rmtree(job.folder)
        return self._score(worker, model), statistics.median(report.seconds for report in outcome.history)

    def _worker(self, size: int, seed: int) -> tuple[Worker, Path, str | None]:
        if (size, seed) in self.workers:
            return self.workers[size, seed]
        objective, head = self.prepared.objective, self.prepared.objective.head
        pool = [*self.prepared.samples["train"], *self.prepared.samples["validation"]]
        rng = np.random.default_rng((seed, 7))
        by_class: dict[str, list[int]] = defaultdict(list)
        for row in rng.permutation(len(pool)):
            by_class[pool[int(row)].target].append(int(row))
        chosen = [pool[row] for label, rows in by_class.items() for row in rows[: self.count(label, size)]]
        left = [pool[row] for rows in by_class.values() for row in rows[size : size + VALIDATION]]
        rows = np.random.default_rng(1).permutation(len(self.prepared.samples["test"]))[: self.case.test]
        test = [self.prepared.samples["test"][int(row)] for row in rows]
        targets = head.describe([sample.target for sample in chosen])
        parts = {"train": chosen, "validation": left, "test": test}
        splits = {name: (part, head.encode([each.target for each in part], targets)) for name, part in parts.items()}
        folder = self.scratch / f"{size}-{seed}"
        own = replace(objective, targets=targets)
        worker = Worker(splits, own, device=CPU, memory=1 << 30, prefix=folder / "prefix", sharing=3, heads=folder)
        found = probe(0, self.backbone, own, worker, device=CPU, folder=folder)
        self.workers = {(size, seed): (worker, folder, found.head)}  # the others are not needed again
        return self.workers[size, seed]


def methods_table(
    methods: Mapping[str, Mapping[int, Sequence[float]]], presets: Mapping[int, Sequence[float]], case: Case
) -> str:
    """Return what each method adds to the preset, the largest effect first."""
    heading = "| changed of the preset | " + " | ".join(f"{size} a class" for size in case.sizes) + " |"
    lines = [heading, "|---|" + "---|" * len(case.sizes)]
    lines.append(f"| nothing: accuracy | {' | '.join(mean_and_error(presets[size]) for size in case.sizes)} |")
    order = sorted(methods, key=lambda name: -statistics.fmean(statistics.fmean(each) for each in methods[name].values()))
    for name in order:
        cells = [mean_and_error(methods[name][size], signed=True) for size in case.sizes]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def depths_table(
    depths: Mapping[tuple[int, int], Sequence[Mapping[float, tuple[float, float]]]], study: Study, case: Case
) -> str:
    """Return the accuracy at each depth with the learning rate that is best there, and the seconds against none frozen."""
    sizes = " | ".join(f"{size} a class" for size in case.sizes)
    lines = [f"| stages frozen | {sizes} | seconds of an epoch, against none frozen |"]
    lines.append("|---|" + "---|" * (len(case.sizes) + 1))

    def best(depth: int, size: int) -> float:
        return max(RATES, key=lambda rate: statistics.fmean(found[rate][0] for found in depths[depth, size]))

    def seconds(depth: int, size: int) -> float:
        return statistics.median(found[rate][1] for found in depths[depth, size] for rate in RATES)

    for depth in study.depths():
        cells = [mean_and_error([found[best(depth, size)][0] for found in depths[depth, size]]) for size in case.sizes]
        last = case.sizes[-1]
        lines.append(f"| {depth} of {study.stages} | {' | '.join(cells)} | {seconds(depth, last) / seconds(0, last):.2f} |")
    return "\n".join(lines)


def mean_and_error(values: Sequence[float], *, signed: bool = False) -> str:
    """Return a mean and its standard error; in bold where a difference is more than two of them."""
    mean = statistics.fmean(values)
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    text = f"{mean:{'+' if signed else ''}.3f} ± {error:.3f}"
    return f"**{text}**" if signed and abs(mean) > 2 * error else text


if __name__ == "__main__":
    sys.exit(main())
