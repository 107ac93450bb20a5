"""What a run folder and its study give whoever works on the run: worker, space, trials, and how they are trained.

The driver opens one to search, `autoft export` to take a trial out again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from autoft.deployed import Apart, allowed
from autoft.events import Listener
from autoft.openings import TIME_SHARE, Probed, openings, predict_seconds, probe_once, worth_probing
from autoft.preflight import Checked
from autoft.prepare import Prepared
from autoft.recipe import Recipe, fixed_settings, make_recipe, study_space
from autoft.runfolder import PROBES, TUNED, RunFolder
from autoft.space import Space
from autoft.storage import open_study
from autoft.trials import Trials
from autoft.worker import Worker

SHARING = 3  # trials that are expected to use one store of what frozen stages give
USUAL_TRIALS = 20  # of a search, to judge whether probes are worth their time


@dataclass(frozen=True)
class Session:
    """An opened run.

    Attributes:
        space: What is searched: backbones that meet the constraints and that the probe kept.
        trials: All trials.
        recipe: Makes settings of a trial's parameters.
        seconds_before: What earlier sessions took.
    """

    space: Space
    trials: Trials
    recipe: Recipe
    seconds_before: float


def make_worker(prepared: Prepared, run: RunFolder, *, shared: bool) -> Worker:
    """Return what trains on a study's data in this process.

    Args:
        prepared: The study.
        run: Its folder, which keeps decoded texts, probes' heads and what frozen stages give.
        shared: Whether decoded samples of other kinds are mapped from the folder, as other processes use them too.
    """
    return Worker(
        {split: (prepared.samples[split], prepared.encoded[split]) for split in prepared.samples},
        prepared.objective,
        device=prepared.device,
        memory=prepared.memory,
        cache=run.tokens,
        shared=run.pixels if shared else None,
        prefix=run.prefix,
        reuse=prepared.config.search.reuse,
        sharing=SHARING,
        heads=run.heads,
        strategies=prepared.catalog.strategies,
    )


def open_session(
    prepared: Prepared,
    run: RunFolder,
    worker: Worker,
    checked: Checked,
    listener: Listener,
    *,
    started: float,
    should_stop: Callable[[], bool] = lambda: False,
) -> Session:
    """Open a run's trials; in a new one, probe and measure first.

    Args:
        prepared: The study.
        run: Its folder, held.
        worker: Has the data.
        checked: What the preflight found of all backbones.
        listener: Hears of probes and measurements.
        started: When the call began, for the time limit.
        should_stop: Whether the user wants to stop.

    Raises:
        RunError: A file of the folder is damaged.
        StorageError: The trials cannot be reached.
        ConfigError: The study asks for a space that cannot be.
    """
    config, objective = prepared.config, prepared.objective
    several = len(config.search.objectives) > 1
    places = allowed(checked.costs, config.search, len(prepared.backbones))
    checked = checked.of(places)
    whole = study_space(prepared, [prepared.backbones[place] for place in places], checked.stages, checked.traits)
    probes = _probe(prepared, run, worker, whole, listener, keep_all=several)
    kept = [index for index in range(len(whole.backbones)) if probes is None or probes[index].kept]
    checked = checked.of(kept)
    space = study_space(
        prepared,
        [whole.backbones[index] for index in kept],
        checked.stages,
        checked.traits,
        heads=[probes[index].head if probes else None for index in kept],
    )
    scores = [probes[index].score if probes else None for index in kept]
    apart = None
    if several and checked.costs is not None:
        apart = Apart(config.search.objectives, dict(zip(space.labels, checked.costs, strict=True)))
    study = open_study(run.path, run.storage, config.name, objective.direction, listener=listener, should_stop=should_stop)
    trials = Trials(
        study,
        objective.direction,
        space,
        seed=config.search.seed,
        openings=[(each.role, each.params) for each in openings(space, scores, objective.direction)],
        probe_first=config.search.prune,
        most=config.search.trials,
        apart=apart,
    )
    before, limit = trials.recall("seconds", 0.0), config.search.time_limit
    left = None if limit is None else limit - before - (time.monotonic() - started)
    return Session(space, trials, make_recipe(prepared, space, worker, run.path / TUNED, listener, seconds=left), before)


def _probe(
    prepared: Prepared, run: RunFolder, worker: Worker, space: Space, listener: Listener, *, keep_all: bool
) -> list[Probed] | None:
    """Probe the backbones, where there are several or it costs little; a resumed run remembers what came of it.

    Where a cost counts too, all are kept: a weak backbone may be the best of the cheap ones.
    """
    file = run.path / PROBES
    if not file.exists() and (run.resumed or not _worth_probing(prepared, worker, space)):
        return None  # decided once: the space of a run never changes
    return probe_once(
        file,
        run.heads,
        space.labels,
        space.backbones,
        prepared.objective,
        worker,
        listener,
        device=prepared.device,
        seed=prepared.config.search.seed,
        keep_all=keep_all,
    )


def _worth_probing(prepared: Prepared, worker: Worker, space: Space) -> bool:
    search, samples = prepared.config.search, prepared.samples
    if prepared.objective.head.features == "maps":
        return False  # of all places of all images, they would not fit into memory, and a linear layer says little
    if not search.probe or len(space.backbones) > 1:
        return search.probe
    backbone = space.backbones[0]
    if backbone.weights == "none" or search.trials == 1:
        return False
    if search.time_limit is not None:
        seconds = predict_seconds(worker, backbone, prepared.objective, device=prepared.device)
        return seconds <= TIME_SHARE * search.time_limit
    return worth_probing(
        train=len(samples["train"]),
        validation=len(samples["validation"]),
        trials=USUAL_TRIALS,  # not the search's own number: more may be added later
        epochs=fixed_settings(prepared)["epochs"],
    )
