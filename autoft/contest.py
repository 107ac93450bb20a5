"""The last round: trains the best few trials and the preset over several seeds, and chooses the weights to export.

What is enough of a gain, and what to train with the time that is left, `confirm.py` decides; `soup.py` mixes weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from torch import Tensor

from autoft.checkpoint import ADAPTER
from autoft.confirm import Contender, judge, makespan, plan
from autoft.crew import Crew
from autoft.engine import Ended
from autoft.errors import RunError, first_line
from autoft.events import Event, Listener, trained_again
from autoft.failures import stop_if_not_its_fault
from autoft.files import load_tensors
from autoft.mix import Mixture, mix
from autoft.prepare import Prepared
from autoft.ragged import Rows
from autoft.recipe import Recipe
from autoft.runfolder import RunFolder
from autoft.space import Candidate
from autoft.specs import is_better
from autoft.train import TrainConfig, predict
from autoft.trials import Trials
from autoft.worker import RESULT, WEIGHTS, Outcome, Worker, kept_whole, load_outcome, settle

CONFIRM = "confirm"  # the folder of this round in a run folder


@dataclass(frozen=True)
class Chosen:
    """What is exported.

    Attributes:
        trial: The trial whose settings won.
        weights: The model's state.
        value: Validation metric of these weights.
        epoch: The epoch that they, or the first of them where they are mixed, are from.
        seed: The seed that they were trained with.
        made_of: How they came about.
        confirmed: What training over seeds gave, JSON-ready; empty where it was not done.
        adapter: Folder of the adapter alone, where the weights are those of one training with a strategy.
    """

    trial: FrozenTrial
    weights: Mapping[str, Tensor]
    value: float
    epoch: int
    seed: int
    made_of: Mixture
    confirmed: Mapping[str, Any] = field(default_factory=dict)
    adapter: Path | None = None


@dataclass(frozen=True)
class _Trained:
    """One training of a contender: a seed, its best epoch's value, and where the weights are."""

    seed: int
    value: float
    epoch: int
    weights: Any  # the file

    @property
    def adapter(self) -> Path | None:
        """Folder of the adapter alone, where it was trained with a strategy."""
        folder: Path = self.weights.parent / ADAPTER
        return folder if folder.exists() else None


def drop_losers(run: RunFolder, winner: int | None) -> None:
    """Remove the weights of all trainings but the winner's; their results stay."""
    for file in run.path.glob(f"{CONFIRM}/*-*/{WEIGHTS}"):
        if file.parent.name.partition("-")[0] != str(winner):
            file.unlink()


@dataclass(frozen=True)
class _Training:
    """One to be done: a trial's settings with a seed."""

    trial: FrozenTrial
    seed: int
    folder: Path


class Contest:
    """Trains the best trials and the preset again with other seeds, and chooses.

    Trainings are kept in the run folder under `confirm/TRIAL-SEED/`, so that a kill loses at most an epoch.

    Args:
        prepared: The study.
        run: Its folder.
        worker: Builds models and has the data.
        crew: Trains.
        recipe: Makes settings of trials' parameters.
        trials: All trials, none of them paused.
        listener: Hears of each training, and of the verdict.
        should_stop: Whether the user wants to stop.
        seconds_left: Seconds for this round, or None for no limit.
    """

    def __init__(
        self,
        prepared: Prepared,
        run: RunFolder,
        worker: Worker,
        crew: Crew,
        recipe: Recipe,
        trials: Trials,
        listener: Listener,
        *,
        should_stop: Callable[[], bool],
        seconds_left: Callable[[], float | None],
    ) -> None:
        self.prepared, self.run, self.worker, self.recipe = prepared, run, worker, recipe
        self.trials, self.listener = trials, listener
        self.crew = crew
        self.user_stops, self.seconds_left = should_stop, seconds_left
        self.direction = prepared.objective.direction

    def choose(self) -> Chosen | None:
        """Return what is exported, or None where the user stopped; there must be a trial that left weights."""
        contenders = self._contenders()
        preset = next((trial for trial in contenders if trial.number == 0), None)
        if self.prepared.config.search.seeds == 1 or len(contenders) == 1:
            return self._single(contenders[0])
        trained = self._train_all(contenders)
        if trained is None:
            return None
        able = [trial for trial in contenders if trained[trial.number]]
        if not able:  # no time for any training to its end: the best trial as it is
            return self._single(contenders[0])
        verdict = judge(
            [
                Contender(trial.number, trial is preset, tuple(each.value for each in trained[trial.number]))
                for trial in able
            ],
            self.direction,
        )
        winner = next(trial for trial in able if trial.number == verdict.winner)
        self.listener(
            Event(
                "confirm", f"trial {winner.number} is the winner: {verdict.reason}", {"stage": "verdict", **asdict(verdict)}
            )
        )
        if not self._restored(winner, trained[winner.number]):
            return None
        values = {str(number): {str(each.seed): each.value for each in found} for number, found in trained.items()}
        return self._mixed(winner, trained[winner.number], {**asdict(verdict), "values": values})

    def _single(self, trial: FrozenTrial) -> Chosen | None:
        known = trial.user_attrs
        one = _Trained(self.recipe.seed, known["best_value"], known["best_epoch"], self.run.trial(trial.number) / WEIGHTS)
        if not self._restored(trial, [one]):
            return None
        weights, _ = load_tensors(one.weights)
        return Chosen(trial, weights, one.value, one.epoch, one.seed, Mixture((one.seed,)), adapter=one.adapter)

    def seconds_wanted(self, most: float) -> float:
        """Return how many seconds this round would need now, of at most so many; 0 where they are too few for anything.

        There must be a trial that left weights.
        """
        contenders = self._contenders()
        if self.prepared.config.search.seeds == 1 or len(contenders) == 1:
            return 0.0
        return makespan(self._plan(contenders, most), self._seconds(contenders), self.crew.size)

    def _contenders(self) -> list[FrozenTrial]:
        """Return the best trials, best first, and the preset, wherever it is."""
        ranked = self.trials.ranked()
        chosen = ranked[: self.prepared.config.search.confirm]
        return chosen + [trial for trial in ranked if trial.number == 0 and trial not in chosen]

    def _seconds(self, contenders: list[FrozenTrial]) -> dict[int, float]:
        """Return what a whole training of each has been seen to take."""
        known = {trial.number: trial.user_attrs for trial in contenders}
        return {number: facts["seconds"] / facts["epochs"] * self.recipe.epochs for number, facts in known.items()}

    def _plan(self, contenders: list[FrozenTrial], seconds_left: float | None) -> list[tuple[int, int]]:
        return plan(
            [trial.number for trial in contenders],
            preset=0 if any(trial.number == 0 for trial in contenders) else None,
            seeds=self.prepared.config.search.seeds,
            seconds=self._seconds(contenders),
            seconds_left=seconds_left,
            # with the first seed, it has been trained to its end
            done={(trial.number, 0) for trial in contenders if trial.state == TrialState.COMPLETE},
            workers=self.crew.size,
        )

    def _train_all(self, contenders: list[FrozenTrial]) -> dict[int, list[_Trained]] | None:
        first = self.recipe.seed
        trained: dict[int, list[_Trained]] = {trial.number: [] for trial in contenders}
        for trial in contenders:
            known = trial.user_attrs
            if trial.state == TrialState.COMPLETE:
                file = self.run.trial(trial.number) / WEIGHTS
                trained[trial.number].append(_Trained(first, known["best_value"], known["best_epoch"], file))
        wanted = self._plan(contenders, self.seconds_left())
        trainings = [
            _Training(
                next(trial for trial in contenders if trial.number == number),
                first + offset,
                self.run.path / CONFIRM / f"{number}-{first + offset}",
            )
            for number, offset in wanted
        ]
        outcomes = self._run(trainings)
        if outcomes is None:
            return None
        for index, training in enumerate(trainings):  # in the order of the plan, whichever ended first
            best = outcomes[index].best if index in outcomes else None
            if best is not None:
                file = training.folder / WEIGHTS
                trained[training.trial.number].append(_Trained(training.seed, best.value, best.epoch, file))
        return trained

    def _run(self, trainings: list[_Training], *, in_time: bool = True) -> dict[int, Outcome] | None:
        """Return the outcomes of the trainings that ended, by their places; None where the user stopped.

        Args:
            trainings: What to train.
            in_time: Whether what does not fit into the time that is left is left out.
        """
        outcomes: dict[int, Outcome] = {}
        waiting: list[int] = []
        for place, training in enumerate(trainings):
            try:
                finished = load_outcome(training.folder)  # told in the session that trained it
            except RunError:
                finished = None  # damaged: the worker drops it, and says so
            if finished is None:
                waiting.append(place)
            else:
                outcomes[place] = finished
        under_way = 0
        while waiting or under_way:
            if self.user_stops():
                return None
            left = self.seconds_left() if in_time else None
            if left is not None and left <= 0.0:
                waiting.clear()  # what is there decides
            while waiting and self.crew.free:
                self._submit(waiting[0], trainings[waiting[0]], left)
                del waiting[0]
                under_way += 1
            for message in self.crew.poll():
                if isinstance(message, Ended):
                    under_way -= 1
                    outcomes[message.number] = message.outcome
                    self._tell(trainings[message.number], message.outcome, len(outcomes), len(trainings))
        return None if self.user_stops() else outcomes

    def _submit(self, place: int, training: _Training, seconds: float | None) -> None:
        candidate, settings = self._settings(training.trial, training.seed)
        known, in_trial = training.trial.user_attrs, training.folder == self.run.trial(training.trial.number)
        if in_trial:  # its own training, to be repeated as it was
            settings = replace(settings, micro_batch=known.get("micro_batch") or settings.micro_batch)
        self.crew.submit(
            place,
            self.recipe.backbone(candidate),
            settings,
            str(candidate.values["augmentation"]),
            training.folder,
            seconds=seconds,
            whole=True,
            pause_after=known["epochs"] if in_trial else None,
        )

    def _tell(self, training: _Training, outcome: Outcome, done: int, of: int) -> None:
        number = training.trial.number
        if outcome.redone:
            what = f"training trial {number} with seed {training.seed}"
            self.listener(trained_again(what, outcome.redone, number))
        if outcome.state == "interrupted":
            return
        if outcome.failure is not None:
            stop_if_not_its_fault(outcome.failure, self.run.path)
        metric = self.prepared.objective.metric
        said = f"{metric} {outcome.best.value:.4f}" if outcome.best else outcome.stopped
        self.listener(
            Event(
                "confirm",
                f"confirming {done}/{of}: trial {number} with seed {training.seed}: {said}",
                {
                    "stage": "training",
                    "trial": number,
                    "seed": training.seed,
                    "state": outcome.state,
                    "value": outcome.best.value if outcome.best else None,
                    "seconds": round(outcome.seconds, 3),
                },
            )
        )

    def _restored(self, winner: FrozenTrial, trained: list[_Trained]) -> bool:
        """Train again what is damaged, or was dropped as a loser's or by `autoft clean`; False where the user stops.

        Raises:
            RunError: It fails.
        """
        gone = []
        for each in trained:
            folder = each.weights.parent
            try:
                whole = kept_whole(folder)
            except ValueError as error:
                whole = False
                what = f"training trial {winner.number} with seed {each.seed}"
                self.listener(trained_again(what, first_line(error), winner.number))
            if not whole:
                gone.append(_Training(winner, each.seed, folder))
                for name in (WEIGHTS, RESULT):
                    (folder / name).unlink(missing_ok=True)
        outcomes = self._run(gone, in_time=False)
        if outcomes is None:
            return False
        for place, training in enumerate(gone):
            outcome = outcomes[place]
            if outcome.state == "paused":  # it was stopped there
                known = winner.user_attrs
                settle(
                    training.folder,
                    "complete" if winner.state == TrialState.COMPLETE else "pruned",
                    str(known.get("stopped", "pruned")),
                    seconds=outcome.seconds,
                    micro_batch=outcome.micro_batch,
                    reuse=outcome.reuse,
                )
            if outcome.best is None:
                raise RunError(
                    f"trial {winner.number} trained again gives nothing: {outcome.stopped}",
                    "search again, with another folder",
                )
        return True

    def _settings(self, trial: FrozenTrial, seed: int) -> tuple[Candidate, TrainConfig]:
        candidate = self.recipe.candidate(trial)
        return candidate, self.recipe.settings(candidate, seed=seed)

    def _mixed(self, winner: FrozenTrial, trained: list[_Trained], confirmed: Mapping[str, Any]) -> Chosen:
        """Return the winner's best single training, or what of it and the others is better."""
        best = trained[0]
        for each in trained[1:]:
            if is_better(self.direction, each.value, best.value):
                best = each
        single = Mixture((best.seed,))
        search = self.prepared.config.search
        if not search.soup:
            weights, _ = load_tensors(best.weights)
            return Chosen(winner, weights, best.value, best.epoch, best.seed, single, confirmed, best.adapter)
        ordered = [best, *sorted((each for each in trained if each is not best), key=lambda each: each.value)]
        if self.direction == "maximize":
            ordered[1:] = ordered[1:][::-1]
        candidate, settings = self._settings(winner, best.seed)
        backbone = self.recipe.backbone(candidate)
        model = self.worker.build(backbone, settings, finished=True)
        whole = settings.freeze_depth == self.recipe.space.stages[candidate.backbone]
        blends = backbone.weights != "none" and not whole
        pretrained = {name: tensor.clone() for name, tensor in model.state_dict().items()} if blends else None
        model.to(self.prepared.device)
        validation = self.worker.data("validation", backbone)

        def answer(weights: Mapping[str, Tensor]) -> Rows:
            model.load_state_dict(dict(weights))
            return predict(
                model,
                validation,
                device=self.prepared.device,
                batch_size=max(64, 2 * settings.batch_size),
                precision=settings.precision,
            )

        objective = self.prepared.objective
        found = mix(
            [(each.seed, load_tensors(each.weights)[0]) for each in ordered],
            pretrained,
            answer,
            objective,
            validation.targets,
        )
        if found.mixture == single:  # scored in training, in whose batches the last bits may differ
            return Chosen(winner, found.weights, best.value, best.epoch, best.seed, single, confirmed, best.adapter)
        self.listener(
            Event(
                "confirm",
                f"{found.mixture.text} is better: {objective.metric} {found.value:.4f}",
                {"stage": "mix", **found.mixture.to_dict(), "value": found.value},
            )
        )
        return Chosen(winner, found.weights, found.value, best.epoch, best.seed, found.mixture, confirmed)
