"""Trains a finished run's winner again, from what its folder holds, and compares the score; the folder stays as it is."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoft.crew import choose_manning
from autoft.deployed import allowed, load_costs
from autoft.errors import DataError, RunError
from autoft.events import Event
from autoft.files import load_tensors, read_json
from autoft.finish import RESULT
from autoft.identity import facts, identity
from autoft.mix import Mixture
from autoft.prepare import Prepared, load_config, prepare
from autoft.refit import refit
from autoft.runfolder import HEADS, LOCK, PROBES, differences
from autoft.session import SHARING
from autoft.soup import greedy_soup, interpolate
from autoft.space import Space
from autoft.specs import Backbone
from autoft.train import EpochReport, TrainConfig, predict
from autoft.worker import WEIGHTS, Job, Outcome, StopTrial, Worker, load_outcome

STUDY_FILE = "study.yaml"
EVALUATION_BATCH = 64  # as of the export, which scores the test split


@dataclass(frozen=True)
class Difference:
    """Something that is not here as it was in the run.

    Attributes:
        what: Its name, such as `versions.torch`.
        run: What it was; None where there was no such thing.
        here: What it is now, likewise.
    """

    what: str
    run: Any
    here: Any


@dataclass(frozen=True)
class Score:
    """A metric of the run, and of the model that was trained again.

    Attributes:
        run: What `result.json` says.
        here: What it came to now.
    """

    run: float
    here: float

    @property
    def difference(self) -> float:
        """How much more it is here."""
        return self.here - self.run


@dataclass(frozen=True)
class Reproduction:
    """What training the winner again gave.

    Attributes:
        metric: The metric that was optimized.
        trial: Number of the winning trial.
        weights: What its weights are, in the run's words.
        seeds: The seeds that were trained with.
        validation: The metric on the validation split; equal to the last bit, the run is reproduced.
        test: On the test split, or None where it was not asked for.
        differences: What is not as it was in the run.
    """

    metric: str
    trial: int
    weights: str
    seeds: tuple[int, ...]
    validation: Score
    test: Score | None
    differences: tuple[Difference, ...]

    @property
    def reproduced(self) -> bool:
        """Whether the scores are equal to the last bit."""
        return self.validation.difference == 0.0 and (self.test is None or self.test.difference == 0.0)


def reproduce(
    run: str | Path,
    *,
    data: Path | None = None,
    test: bool = False,
    plugins: bool = True,
    on_note: Callable[[str], None] = lambda note: None,
) -> Reproduction:
    """Train the winner of a finished run again, in a temporary folder, and compare its score with the run's.

    Where its head started from a probe's, it does so again: probes are not repeated, but read from the run folder.

    Args:
        run: The run folder; nothing in it is changed.
        data: Where the data is now; where the study says, if None.
        test: Whether to score the test split too. It has been looked at once, for the result; the same model gives the same
            score, so that this is no second look.
        plugins: Whether third-party plugins may be loaded.
        on_note: Hears of warnings and of each training.

    Raises:
        RunError: The folder holds no finished run, or one that cannot be trained again.
        DataError: The data is not the run's.
        ConfigError: The study cannot be read any more.
    """
    folder = Path(run)
    result, lock = _read(folder, RESULT), _read(folder, LOCK)
    winner = _winner(folder, result)
    # JSON is YAML, so that any path is only a path
    overrides = [] if data is None else [f"data.path={json.dumps(str(data.resolve()))}"]
    config, catalog = load_config(folder / STUDY_FILE, overrides, plugins=plugins)

    def hear(event: Event) -> None:
        if event.kind == "warning":
            on_note(event.text)

    prepared = prepare(config, catalog, hear)
    different = _compare(lock, prepared)
    backbone = _backbone(folder, prepared, winner["settings"]["backbone"])
    settings = _settings(folder, winner["training"])
    made_of = _made_of(folder, winner)
    members = made_of.seeds
    with tempfile.TemporaryDirectory(prefix="autoft-reproduce-") as name:
        scratch = Path(name)
        worker = _worker(prepared, scratch, folder / HEADS)
        metric, score = prepared.objective.metric, winner["value"]
        model = worker.build(backbone, settings, finished=True)
        weights: Mapping[str, Tensor]
        if made_of.refitted:
            on_note(f"training trial {winner['trial']} with seed {settings.seed} on both splits")
            weights = _refitted(
                folder, prepared, backbone, settings, str(winner["settings"]["augmentation"]), made_of, scratch
            )
            model.load_state_dict(dict(weights))
            value = _score_as_exported(model, prepared, worker, backbone, "validation")
            score = result["validation"][metric]
        else:
            weights, value = _again(
                folder, prepared, winner, made_of, settings, backbone, worker, scratch, different, on_note
            )
        tested = None
        if test:
            model.load_state_dict(dict(weights))
            tested = Score(result["test"][metric], _score_as_exported(model, prepared, worker, backbone, "test"))
    return Reproduction(
        metric=metric,
        trial=winner["trial"],
        weights=winner["weights"],
        seeds=members,
        validation=Score(score, value),
        test=tested,
        differences=tuple(different),
    )


# --- what the run folder says -----------------------------------------------------------------------------------------


def _read(folder: Path, name: str) -> dict[str, Any]:
    try:
        return read_json(folder / name)
    except FileNotFoundError as error:
        raise RunError(
            f"a run to reproduce must be finished, but {folder} has no {name}",
            "`autoft search` with the study and `-o` this folder finishes it",
        ) from error
    except (OSError, ValueError) as error:
        raise RunError(f"{folder / name} is damaged: {error}", "search again, with another folder") from error


def _winner(folder: Path, result: Mapping[str, Any]) -> Mapping[str, Any]:
    winner: Mapping[str, Any] = result.get("winner", {})
    if "training" not in winner:
        raise RunError(
            f"{folder / RESULT} must say how the winner was trained, but has no `winner.training`",
            "it was written by an older autoft; search again to have a run that can be reproduced",
        )
    return winner


def _settings(folder: Path, stored: Mapping[str, Any]) -> TrainConfig:
    try:
        return TrainConfig(**stored)
    except TypeError as error:
        raise RunError(
            f"{folder / RESULT} says how the winner was trained in the words of another autoft: {error}",
            f"{folder / LOCK} names the version to install",
        ) from error


def _made_of(folder: Path, winner: Mapping[str, Any]) -> Mixture:
    try:
        return Mixture.from_dict(winner["made_of"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{folder / RESULT} must say what the exported weights are made of, but `winner.made_of` is damaged: {error}",
            "search again, with another folder",
        ) from error


def _known_training(folder: Path, trial: int, seed: int, *, first: int) -> Outcome:
    """Return how the run's own training of the winner with a seed went; with the first seed it may be the trial itself."""
    again = folder / "confirm" / f"{trial}-{seed}"
    found = load_outcome(again)
    if found is None and seed == first:
        found = load_outcome(folder / "trials" / str(trial))
    if found is None:
        raise RunError(
            f"a run to reproduce must hold the result of each training that was exported, but {again} has none",
            "it was removed; search again, with another folder",
        )
    return found


def _backbone(folder: Path, prepared: Prepared, label: str) -> Backbone:
    """Return the backbone of a label; labels are told apart among those that the constraints and the probe had kept."""
    places = allowed(load_costs(folder), prepared.config.search, len(prepared.backbones))
    kept = tuple(prepared.backbones[place] for place in places)
    if (folder / PROBES).exists():
        probes = _read(folder, PROBES)["probes"]
        kept = tuple(backbone for backbone, probe in zip(kept, probes, strict=True) if probe["kept"])
    labels = Space(kept, (0,) * len(kept), {}, {}).labels
    if label not in labels:
        raise RunError(
            f"the winner's backbone must be one of the study's, {', '.join(labels)}, but is {label}",
            f"{folder / STUDY_FILE} was changed; write it as it was",
        )
    return kept[labels.index(label)]


def _compare(lock: Mapping[str, Any], prepared: Prepared) -> list[Difference]:
    """Return what is not as it was.

    Raises:
        DataError: The data is not.
    """
    here = {"identity": identity(prepared), **facts(prepared)}
    was, now = lock["identity"]["data"]["fingerprint"], here["identity"]["data"]["fingerprint"]
    if was != now:
        raise DataError(
            f"a run is reproduced from its own data, but {prepared.config.data.path} holds other data: its fingerprint is "
            f"{now}, the run's {was}",
            "--data PATH takes the data from elsewhere",
        )
    found = differences(_by_name(lock), _by_name(here))
    return [Difference(what.removeprefix("identity."), there, value) for what, there, value in found]


def _by_name(made_of: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `lock.json` holds with each plugin under its name: another installed before it is no difference.

    The number of the folder's format says nothing of the training.
    """
    made_of = {name: value for name, value in made_of.items() if name != "format"}
    named = {one["name"]: f"{one['package']} {one['version']} ({one['state']})" for one in made_of["plugins"]}
    return {**made_of, "plugins": named}


# --- training and scoring ---------------------------------------------------------------------------------------------


def _again(
    folder: Path,
    prepared: Prepared,
    winner: Mapping[str, Any],
    made_of: Mixture,
    settings: TrainConfig,
    backbone: Backbone,
    worker: Worker,
    scratch: Path,
    different: list[Difference],
    on_note: Callable[[str], None],
) -> tuple[Mapping[str, Tensor], float]:
    """Return the weights that the run exported, made again of its trainings, and their validation metric."""
    states, best = [], None
    for seed in made_of.seeds:
        known = _known_training(folder, winner["trial"], seed, first=prepared.config.search.seed)
        on_note(f"training trial {winner['trial']} with seed {seed}")
        with threads(choose_manning(prepared).threads):
            outcome = train_up_to(
                worker,
                Job(
                    backbone,
                    replace(settings, seed=seed, micro_batch=known.micro_batch or settings.micro_batch),
                    str(winner["settings"]["augmentation"]),
                    scratch / "trainings" / str(seed),
                ),
                epochs=known.best.epoch if known.best else settings.epochs,
            )
        if outcome.reuse != known.reuse:
            different.append(Difference(f"reuse of frozen stages, seed {seed}", known.reuse, outcome.reuse))
        best = best or outcome.best
        states.append(load_tensors(scratch / "trainings" / str(seed) / WEIGHTS)[0])
    model = worker.build(backbone, settings, finished=True)
    weights: Mapping[str, Tensor] = states[0]
    value = _best(best).value
    if len(states) > 1:
        # which of them make a better mean was decided in the run: each further one counts as better here
        rising = count()
        weights, _ = greedy_soup(states, lambda mixed: float(next(rising)), "maximize")
    if made_of.alpha != 1.0:
        weights = interpolate(model.state_dict(), weights, made_of.alpha)
    if weights is not states[0]:
        model.load_state_dict(dict(weights))
        value = _score(model.to(prepared.device), prepared, worker, backbone, settings)
    return weights, value


def _refitted(
    folder: Path,
    prepared: Prepared,
    backbone: Backbone,
    settings: TrainConfig,
    augmentation: str,
    made_of: Mixture,
    scratch: Path,
) -> dict[str, Tensor]:
    weights = refit(
        prepared, backbone, settings, augmentation, scratch / "refit", epochs=made_of.epochs, heads=folder / HEADS
    )
    if weights is None:
        raise AssertionError("nobody stopped it")
    return weights


def _worker(prepared: Prepared, scratch: Path, heads: Path) -> Worker:
    for name in ("tokens", "prefix"):
        (scratch / name).mkdir()
    return Worker(
        {split: (prepared.samples[split], prepared.encoded[split]) for split in prepared.samples},
        prepared.objective,
        device=prepared.device,
        memory=prepared.memory,
        cache=scratch / "tokens",
        prefix=scratch / "prefix",
        reuse=prepared.config.search.reuse,
        sharing=SHARING,
        heads=heads,
        strategies=prepared.catalog.strategies,
    )


def train_up_to(worker: Worker, job: Job, *, epochs: int) -> Outcome:
    """Train up to the epoch that a run's weights are from: what came after it did not change them.

    Raises:
        RunError: The training fails.
    """

    def stop(report: EpochReport) -> None:
        if report.epoch == epochs and epochs < job.config.epochs:
            raise StopTrial("the best epoch of the run")

    outcome = worker.run(job, on_epoch=stop)
    if outcome.failure is not None:
        raise RunError(f"training it again failed: {outcome.failure.message}", f"its trace:\n{outcome.failure.trace}")
    return outcome


def _best(report: EpochReport | None) -> EpochReport:
    if report is None:
        raise AssertionError("a training that ended well has a best epoch")
    return report


def _score(model: torch.nn.Module, prepared: Prepared, worker: Worker, backbone: Backbone, settings: TrainConfig) -> float:
    """Return the validation metric of a mixed model, in the batches of `contest.py`: others round differently."""
    validation, objective = worker.data("validation", backbone), prepared.objective
    outputs = predict(
        model,
        validation,
        device=prepared.device,
        batch_size=max(64, 2 * settings.batch_size),
        precision=settings.precision,
    )
    return objective.head.metrics(outputs, validation.targets, objective.targets)[objective.metric]


def _score_as_exported(model: Any, prepared: Prepared, worker: Worker, backbone: Backbone, split: str) -> float:
    """Return a split's metric as the export finds it: on the CPU in float32, with thresholds tuned on validation."""
    cpu, head, targets = torch.device("cpu"), prepared.objective.head, prepared.objective.targets
    model = model.to(cpu).to(memory_format=torch.contiguous_format)
    if head.tune is not None:
        validation = worker.data("validation", backbone)
        outputs = predict(model, validation, device=cpu, batch_size=EVALUATION_BATCH)
        targets = head.tune(outputs, validation.targets, targets)
    data = worker.data(split, backbone)
    outputs = predict(model, data, device=cpu, batch_size=EVALUATION_BATCH)
    return head.metrics(outputs, data.targets, targets)[prepared.objective.metric]


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Use as many threads as a worker of the search does: how sums are divided among threads decides their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
