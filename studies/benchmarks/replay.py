"""Compares how searches spend their seconds: records learning curves once, then replays searches against them.

    python studies/benchmarks/replay.py record studies/digits/study.yaml --configs 120 --epochs 12
    python studies/benchmarks/replay.py replay --seeds 30

`record` trains the preset and random points of autoft's default space to the end with autoft's trainer, and keeps every
epoch's metric and the mean seconds an epoch; stopped early, it leaves what it has. `replay` lets each method propose points;
each is answered with the nearest recorded one. All methods begin with the preset, trained to the end, and share the
sampler's settings and the seconds. Regret is how much worse the best value seen so far is than the best recorded.
With `--reuse`, an epoch costs in proportion to the stages that it trains, a tenth at least: a model of what a reused frozen
prefix saves, not a measurement.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
import torch
from optuna.distributions import CategoricalDistribution, distribution_to_json, json_to_distribution
from optuna.trial import TrialState, create_trial

from autoft.files import read_json, write_json
from autoft.prepare import load_config, prepare
from autoft.promotion import Progress, Promote, Start, next_action, rungs
from autoft.space import build_space, suggest, train_config
from autoft.specs import Direction
from autoft.train import choose_batch_size, fit
from autoft.worker import Worker

TABLE = Path(__file__).parent / "data" / "curves.json"
SHARES = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
STARTUP_TRIALS = 8  # as in autoft's own search; random before TPE
ETA = 3

# --- recording --------------------------------------------------------------------------------------------------------


def record(study: Path, table: Path, configs: int, epochs: int, overrides: list[str]) -> None:
    """Train the preset and random configurations to the end, and write their curves."""
    config, catalog = load_config(study, [*overrides, f"trainer.epochs={epochs}"])
    prepared = prepare(config, catalog, lambda event: None)
    objective = prepared.objective
    worker = Worker(
        {split: (prepared.samples[split], prepared.encoded[split]) for split in prepared.samples},
        objective,
        device=torch.device("cpu"),
        memory=prepared.memory,
    )
    stages = [len(backbone.stages(backbone.build())) for backbone in prepared.backbones]
    space, problems = build_space({}, objective.head, prepared.backbones, stages, augmentation="none")
    if problems:
        sys.exit("\n".join(str(problem) for problem in problems))
    base = {
        "epochs": epochs,
        "batch_size": choose_batch_size("auto", len(prepared.samples["train"]), prepared.raw.modality),
    }
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table.parent.mkdir(parents=True, exist_ok=True)
    asking = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    asking.enqueue_trial(space.preset_of(0))
    rows = []
    started = time.monotonic()
    for number in range(configs):
        trial = asking.ask()
        candidate = suggest(trial, space)
        settings = train_config(candidate, objective.head, base)
        backbone = space.backbones[candidate.backbone]
        model = worker.build(backbone, settings)
        result = fit(
            model,
            worker.data("train", backbone),
            worker.data("validation", backbone),
            objective,
            settings,
            device=torch.device("cpu"),
            no_weight_decay=backbone.no_weight_decay(model.backbone),
        )
        values = [report.value for report in result.history]
        seconds = statistics.fmean(report.seconds for report in result.history)
        rows.append({"params": trial.params, "values": values, "seconds": seconds})
        print(f"{number + 1}/{configs}  {seconds * epochs:.2f} s  {objective.metric} {values[-1]:.4f}", flush=True)
        written = {
            "metric": objective.metric,
            "direction": objective.direction,
            "epochs": epochs,
            "space": {name: distribution_to_json(distribution) for name, distribution in trial.distributions.items()},
            "rows": rows,
        }
        write_json(table, written)
    print(f"{table}: {configs} configurations of {epochs} epochs in {time.monotonic() - started:.0f} s")


# --- the recorded world -----------------------------------------------------------------------------------------------


class Recorded:
    """The table; its row 0 is the preset."""

    def __init__(self, path: Path, *, reuse: bool = False) -> None:
        table = read_json(path)
        self.metric: str = table["metric"]
        self.direction: Direction = table["direction"]
        self.epochs: int = table["epochs"]
        self.space = {name: json_to_distribution(text) for name, text in table["space"].items()}
        self.params = [row["params"] for row in table["rows"]]
        self.curves = [tuple(row["values"]) for row in table["rows"]]
        self.seconds = [row["seconds"] for row in table["rows"]]
        if reuse:
            most = self.space["freeze_depth"].high
            shares = [max(0.1, 1.0 - params["freeze_depth"] / most) for params in self.params]
            self.seconds = [seconds * share for seconds, share in zip(self.seconds, shares, strict=True)]
        self.places = np.array([self._place(params) for params in self.params])
        self.best = max(self.score(value) for curve in self.curves for value in curve)

    def score(self, value: float) -> float:
        """Return a value so that larger is better."""
        return value if self.direction == "maximize" else -value

    def nearest(self, params: dict) -> int:
        """Return the row next to a point, each parameter's range counting as 1."""
        return int(np.abs(self.places - self._place(params)).sum(axis=1).argmin())

    def _place(self, params: dict) -> np.ndarray:
        place: list[float] = []
        for name, distribution in self.space.items():
            value = params[name]
            if isinstance(distribution, CategoricalDistribution):
                place += [0.5 * (value == choice) for choice in distribution.choices]  # two that differ are 1 apart
                continue
            scale = math.log if distribution.log else float
            low, high = scale(distribution.low), scale(distribution.high)
            place.append((scale(value) - low) / (high - low) if high > low else 0.0)
        return np.array(place)


@dataclass
class Clock:
    """What a search has spent and found; raises `StopIteration` once the budget is spent."""

    recorded: Recorded
    budget: float
    spent: float = 0.0
    best: float = -math.inf
    epochs: int = 0

    def __post_init__(self) -> None:
        self.found: list[tuple[float, float]] = []  # seconds, best score from then on

    def epoch(self, row: int, epoch: int) -> float:
        """Spend one epoch (counted from 0) of a row and return its value."""
        self.spent += self.recorded.seconds[row]
        if self.spent > self.budget:
            raise StopIteration
        value = self.recorded.curves[row][epoch]
        if self.recorded.score(value) > self.best:
            self.best = self.recorded.score(value)
            self.found.append((self.spent, self.best))
        return value

    def regret(self, seconds: float) -> float:
        """Return how far the best seen up to a second is from the best recorded; before any, the preset's worst is taken."""
        known = [score for when, score in self.found if when <= seconds]
        return self.recorded.best - (known[-1] if known else min(map(self.recorded.score, self.recorded.curves[0])))


# --- the methods ------------------------------------------------------------------------------------------------------


def one_by_one(
    recorded: Recorded, clock: Clock, sampler: optuna.samplers.BaseSampler, pruner: optuna.pruners.BasePruner
) -> None:
    """Train trial after trial to its end, or until Optuna's pruner stops it."""
    study = optuna.create_study(direction=recorded.direction, sampler=sampler, pruner=pruner)
    study.enqueue_trial(recorded.params[0])
    while True:
        trial = study.ask(recorded.space)
        row = recorded.nearest(trial.params)
        best = -math.inf
        for epoch in range(recorded.epochs):
            value = clock.epoch(row, epoch)
            best = max(best, recorded.score(value))
            trial.report(value, epoch + 1)
            if trial.number and epoch + 1 < recorded.epochs and trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial, recorded.score(best))


Policy = Callable[[list[Progress], int, Direction], Start | Promote]


def plain(trials: list[Progress], epochs: int, direction: Direction) -> Start | Promote:
    """Choose as asynchronous successive halving does, whatever an epoch costs: the highest rung first, then a new trial."""
    steps = rungs(epochs, eta=ETA)
    sign = 1.0 if direction == "maximize" else -1.0
    for at in reversed(range(len(steps) - 1)):
        reached = [trial for trial in trials if len(trial.values) >= steps[at]]
        reached.sort(key=lambda trial: (-max(sign * value for value in trial.values[: steps[at]]), trial.number))
        for trial in reached[: len(reached) // ETA]:
            if trial.state == "paused" and len(trial.values) == steps[at]:
                return Promote(trial.number, steps[at + 1])
    return Start()


def ours(trials: list[Progress], epochs: int, direction: Direction) -> Start | Promote:
    """Choose as autoft does."""
    action = next_action(trials, epochs=epochs, direction=direction, may_start=True, eta=ETA)
    if not isinstance(action, Start | Promote):
        raise AssertionError("a search that may start trials is never done")
    return action


def by_rungs(recorded: Recorded, clock: Clock, seed: int, policy: Policy) -> None:
    """Pause trials at rungs and continue those that a policy chooses; TPE proposes, as in autoft's `Trials`."""
    trials: list[Progress] = []
    points: list[dict] = []
    rows: list[int] = []
    while True:
        action = policy(trials, recorded.epochs, recorded.direction)
        if isinstance(action, Start):
            points.append(propose(recorded, trials, points, seed))
            rows.append(recorded.nearest(points[-1]))
            first = not trials
            until = recorded.epochs if first else rungs(recorded.epochs, eta=ETA)[0]
            trials.append(Progress(len(trials), (), recorded.seconds[rows[-1]], "running", full=first))
            number = trials[-1].number
        else:
            number, until = action.number, action.until
        values = list(trials[number].values)
        while len(values) < until:
            values.append(clock.epoch(rows[number], len(values)))
        state = "ended" if until == recorded.epochs else "paused"
        trials[number] = Progress(number, tuple(values), trials[number].seconds, state, trials[number].full)


def propose(recorded: Recorded, trials: list[Progress], points: list[dict], seed: int) -> dict:
    """Return a new point: the preset, then TPE's, which sees a trial that rests as one stopped early."""
    if not trials:
        return recorded.params[0]
    sampler = tpe(int(np.random.SeedSequence((seed, len(trials))).generate_state(1)[0]))
    study = optuna.create_study(direction=recorded.direction, sampler=sampler)
    best = max if recorded.direction == "maximize" else min
    study.add_trials(
        [
            create_trial(
                state=TrialState.COMPLETE if trial.state == "ended" else TrialState.PRUNED,
                value=best(trial.values) if trial.state == "ended" else None,
                params=params,
                distributions=recorded.space,
                intermediate_values={epoch + 1: value for epoch, value in enumerate(trial.values)},
            )
            for trial, params in zip(trials, points, strict=True)
        ]
    )
    return study.ask(recorded.space).params


def tpe(seed: int) -> optuna.samplers.TPESampler:
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)


def hyperband(recorded: Recorded) -> optuna.pruners.HyperbandPruner:
    return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=recorded.epochs, reduction_factor=ETA)


METHODS: dict[str, Callable[[Recorded, Clock, int], None]] = {
    "random, whole trials": lambda recorded, clock, seed: one_by_one(
        recorded, clock, optuna.samplers.RandomSampler(seed=seed), optuna.pruners.NopPruner()
    ),
    "TPE, whole trials": lambda recorded, clock, seed: one_by_one(recorded, clock, tpe(seed), optuna.pruners.NopPruner()),
    "TPE + Optuna's Hyperband": lambda recorded, clock, seed: one_by_one(recorded, clock, tpe(seed), hyperband(recorded)),
    "TPE + plain ASHA": lambda recorded, clock, seed: by_rungs(recorded, clock, seed, plain),
    "TPE + autoft's promotion": lambda recorded, clock, seed: by_rungs(recorded, clock, seed, ours),
}


def replay(path: Path, seeds: range, trials: float, *, reuse: bool) -> None:
    """Print the regret of every method at shares of the seconds."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    recorded = Recorded(path, reuse=reuse)
    whole = recorded.epochs * statistics.fmean(recorded.seconds)
    budget = trials * whole
    ends = sorted((max(map(recorded.score, curve)) for curve in recorded.curves), reverse=True)
    preset = max(map(recorded.score, recorded.curves[0]))
    print(
        f"{len(recorded.curves)} configurations of {recorded.epochs} epochs, {recorded.metric}: best {abs(ends[0]):.4f}, "
        f"best tenth from {abs(ends[len(ends) // 10]):.4f}, median {abs(statistics.median(ends)):.4f}, "
        f"preset {abs(preset):.4f}\n"
        f"seconds an epoch {min(recorded.seconds):.3f} to {max(recorded.seconds):.3f}; "
        f"budget {budget:.0f} s, as long as {trials:g} mean whole trials; "
        f"{len(seeds)} seeds from {seeds.start}; regret ± standard error\n"
    )
    print("| method | " + " | ".join(f"{share:.0%}" for share in SHARES) + " |")
    print("|---" * (len(SHARES) + 1) + "|")
    for name, method in METHODS.items():
        regrets = []
        for seed in seeds:
            clock = Clock(recorded, budget)
            try:
                method(recorded, clock, seed)
            except StopIteration:
                regrets.append([clock.regret(share * budget) for share in SHARES])
        cells = []
        for column in zip(*regrets, strict=True):
            error = statistics.stdev(column) / math.sqrt(len(column)) if len(column) > 1 else 0.0
            cells.append(f"{statistics.fmean(column):.4f} ± {error:.4f}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--table", type=Path, default=TABLE, help="where the curves are (default: data/curves.json beside this)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="train configurations to the end and keep their curves")
    recording.add_argument("study", type=Path, help="a study file; its space is replaced by the default one")
    recording.add_argument("--configs", type=int, default=120)
    recording.add_argument("--epochs", type=int, default=12)
    recording.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="override a setting of the study")
    replaying = commands.add_parser("replay", help="replay searches against the curves")
    replaying.add_argument("--seeds", type=int, default=30)
    replaying.add_argument("--first-seed", type=int, default=0)
    replaying.add_argument("--trials", type=float, default=10, help="the budget, in mean whole trials (default: 10)")
    replaying.add_argument("--reuse", action="store_true", help="let frozen stages cost next to nothing")
    options = parser.parse_args()
    if options.command == "record":
        torch.set_num_threads(1)
        record(options.study, options.table, options.configs, options.epochs, options.set)
    else:
        seeds = range(options.first_seed, options.first_seed + options.seeds)
        replay(options.table, seeds, options.trials, reuse=options.reuse)


if __name__ == "__main__":
    main()
