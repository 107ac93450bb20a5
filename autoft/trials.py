"""What a run's Optuna study holds: asks for trials, puts interrupted ones back, and knows which is the best."""

from __future__ import annotations

import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DatabaseError

from autoft.errors import RunError, first_line
from autoft.runfolder import STUDY
from autoft.space import Space
from autoft.specs import Direction
from autoft.worker import is_full_disk

STARTUP_TRIALS = 8  # random points before TPE has enough to model
PRUNE_AFTER_TRIALS = 4


class Trials:
    """The trials of one run, kept by Optuna in the run folder's SQLite file.

    This process holds the run folder, so it is the only one that writes them.

    Args:
        database: The SQLite file; made where there is none.
        name: The study's name.
        direction: Of the metric.
        space: Its presets are queued first, one a backbone.
        epochs: Of a trial; the first quarter of them is not pruned.
        seed: Of the search.

    Raises:
        RunError: The file is damaged.
    """

    def __init__(self, database: Path, name: str, direction: Direction, space: Space, *, epochs: int, seed: int) -> None:
        self.direction = direction
        self._seed = seed
        self._study = _open(database, name, direction, epochs)
        # the preset first, on the first backbone; then on each other one, for an honest first score of all; a kill may
        # have come after some of them
        for index in range(len(self._study.trials), len(space.labels)):
            label = space.labels[index]
            self._study.enqueue_trial(space.preset_of(index), user_attrs={"role": "preset", "backbone": label})
        for trial in self.all(TrialState.RUNNING):
            # whoever ran it is gone; its checkpoint continues it
            self._study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)

    def ask(self) -> optuna.Trial:
        """Start the next trial: the first that waits, or a new one."""
        waiting = [trial.number for trial in self.all(TrialState.WAITING)]
        self._study.sampler = _Sampler(self._seed, min(waiting, default=len(self.all())))
        return self._study.ask()

    def report(self, trial: optuna.Trial, value: float, epoch: int) -> None:
        """Store an epoch's value, unless it is there already, from before a kill."""
        if epoch not in self._study.trials[trial.number].intermediate_values:
            trial.report(value, epoch)

    def tell(self, trial: optuna.Trial, state: TrialState, value: float | None = None, **facts: Any) -> None:
        """End a trial; `facts` are stored with it, where they are not None."""
        for name, fact in facts.items():
            if fact is not None:
                trial.set_user_attr(name, fact)
        self._study.tell(trial, value, state=state)

    def put_back(self, trial: optuna.Trial) -> None:
        """Queue a trial again under its own number: `ask` takes it up, and its checkpoint continues it."""
        self._study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)

    def all(self, *states: TrialState) -> list[FrozenTrial]:
        """Return all trials, or those in some states, in order."""
        return self._study.get_trials(deepcopy=False, states=states or None)

    def twin(self, trial: optuna.Trial) -> FrozenTrial | None:
        """Return a finished trial with exactly the same parameters."""
        for other in self.all(TrialState.COMPLETE):
            if other.number != trial.number and other.params == trial.params:
                return other
        return None

    def ranked(self) -> list[FrozenTrial]:
        """Return the trials that left weights, finished or stopped early, best first.

        Among equals the earlier one leads: the preset is trial 0, and nothing beats it by noughts.
        """

        def rank(trial: FrozenTrial) -> tuple[float, int]:
            value: float = trial.user_attrs["best_value"]
            return (-value if self.direction == "maximize" else value, trial.number)

        finished = self.all(TrialState.COMPLETE, TrialState.PRUNED)
        return sorted((trial for trial in finished if "best_value" in trial.user_attrs), key=rank)

    def best(self) -> FrozenTrial | None:
        """Return the best trial so far."""
        return next(iter(self.ranked()), None)

    def finished(self) -> int:
        """Return how many trials have ended, in whatever way."""
        return sum(trial.state.is_finished() for trial in self.all())

    def counts(self) -> dict[str, int]:
        """Return the number of trials in each state."""
        return dict(Counter(trial.state.name.lower() for trial in self.all()))

    def recall(self, name: str, default: float) -> float:
        """Return a number that was stored with the study, such as the seconds spent; the default where there is none."""
        value: float = self._study.user_attrs.get(name, default)
        return value

    def remember(self, name: str, value: float) -> None:
        """Store a number with the study."""
        self._study.set_user_attr(name, value)


def _open(database: Path, name: str, direction: Direction, epochs: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # autoft reports trials itself
    try:
        return optuna.create_study(
            storage=_storage(database),
            study_name=name,
            direction=direction,
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=PRUNE_AFTER_TRIALS, n_warmup_steps=max(1, epochs // 4)),
        )
    except (DatabaseError, optuna.exceptions.StorageInternalError) as error:
        if is_full_disk(error):
            raise
        raise RunError(
            f"{database} cannot be read: {first_line(error)}",
            "restore it from a backup, or choose another folder with -o",
        ) from error


def _storage(database: Path) -> optuna.storages.RDBStorage:
    """Open Optuna's SQLite storage, by path: in a URL, characters such as `?` in a folder's name would end it."""

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(database, check_same_thread=False)

    return optuna.storages.RDBStorage(f"sqlite:///{STUDY}", engine_kwargs={"creator": connect})


class _Sampler(optuna.samplers.BaseSampler):
    """Optuna's TPE, reseeded for each trial and each independent parameter.

    So a resumed search asks as an uninterrupted one, even where a kill came when some of a trial's parameters were stored
    already: these take no random number any more.

    Args:
        seed: The search's seed.
        number: The trial's.
    """

    def __init__(self, seed: int, number: int) -> None:
        self._key = (seed, number)
        self._relative = self._tpe()

    def _tpe(self, *more: int) -> optuna.samplers.TPESampler:
        seed = int(np.random.SeedSequence((*self._key, *more)).generate_state(1)[0])
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial
    ) -> dict[str, optuna.distributions.BaseDistribution]:
        return self._relative.infer_relative_search_space(study, trial)

    def sample_relative(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        search_space: dict[str, optuna.distributions.BaseDistribution],
    ) -> dict[str, Any]:
        return self._relative.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        param_name: str,
        param_distribution: optuna.distributions.BaseDistribution,
    ) -> Any:
        sampler = self._tpe(*param_name.encode())
        return sampler.sample_independent(study, trial, param_name, param_distribution)
