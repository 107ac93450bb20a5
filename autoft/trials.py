"""What a run's Optuna study holds: asks for trials, pauses and continues them, and knows which is the best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from autoft.deployed import Apart, Point, front
from autoft.knobs import FRESH, PROBE
from autoft.promotion import Progress
from autoft.seals import SEAL, on_write, promise, read_whole, seal_of
from autoft.space import Space, suggest
from autoft.specs import Choice, Direction, is_better

# Trials of these roles never rest. Fine-tuning from the probe's head begins with a good score that first falls: what an
# early rung shows of it says little.
WHOLE = ("preset", "lp-ft")
STARTUP_TRIALS = 8  # random points before TPE has enough to model
# How often an extra setting of the full space is open in a new trial, once the random points are through. Were all of them,
# nearly every trial would have some that does harm; so most stay as they are in the best trial, and each trial tells what a
# few of them do. A short search is thus that of the small space: it is the settings there that matter most.
IN_PLAY = 0.2
TURNS = 3  # scored trials of each backbone, where each is searched by itself, before one that is dominated gets no more
# User attributes of a trial. A paused trial is RUNNING for Optuna, which knows no other word for one that is neither
# finished nor to be handed out by `ask`; when the session ends before the search, it is WAITING.
PAUSED = "paused"  # the epoch after which it rests; 0 while it trains
UNTIL = "until"  # the epoch that it trains to
SURVIVED = ("infra", "oom")  # failures after which a trial goes on: its worker's death, memory that ran out
# Without a time limit, trials are taken up and judged in the order of a clock that counts work (`driver.py`), since seconds
# are never the same twice.
DUE = "due"  # when the clock says that what it trains now ends
CLOCK = "clock"  # what the clock said when it last rested or ended


class Trials:
    """The trials of one run, kept by Optuna.

    This process holds the run folder, so it is the only one that writes them.

    Args:
        study: Theirs, as `storage.open_study` opens it.
        direction: Of the metric.
        space: Its presets are queued first, one a backbone.
        seed: Of the search.
        openings: Role and parameters of what is queued next.
        probe_first: Whether the first of them that fine-tunes from a probe's head is started before the presets: its first
            epochs already give a good model.
        most: How many trials there may be, or None for any number; no more are queued.
        apart: What the backbones cost, where each is searched by itself; None where all compete for the best score.
    """

    def __init__(
        self,
        study: optuna.Study,
        direction: Direction,
        space: Space,
        *,
        seed: int,
        openings: Sequence[tuple[str, Mapping[str, Any]]] = (),
        probe_first: bool = False,
        most: int | None = None,
        apart: Apart | None = None,
    ) -> None:
        self.direction = direction
        self._apart = apart if len(space.backbones) > 1 else None
        self._seed = seed
        self._probe_first = probe_first
        self._space = space
        self._study = study
        read_whole(study, f"the database of {study.study_name}")
        self._known: list[FrozenTrial] | None = None  # what `all` read last; None once anything was written
        on_write(study, self._forget)
        # the preset first, on the first backbone; then on each other one, for an honest first score of all; a kill may
        # have come after some of them
        presets = [
            (space.preset_of(index), {"role": "preset", "backbone": label}) for index, label in enumerate(space.labels)
        ]
        queue = [*presets, *((params, {"role": role}) for role, params in openings)]
        if not self._study.trials:
            promise(self._study)
        for params, facts in queue[len(self._study.trials) : most]:
            self._study.enqueue_trial(dict(params), user_attrs=facts)
        for trial in self.all(TrialState.RUNNING, TrialState.WAITING):
            # whoever ran it is gone; its checkpoint continues it, now or when it is promoted
            self._set_state(trial, TrialState.RUNNING if trial.user_attrs.get(PAUSED) else TrialState.WAITING)

    def ask(self) -> optuna.Trial:
        """Start the next trial: one that was broken off, else the first that waits, else a new one."""
        waiting = self.all(TrialState.WAITING)
        if not waiting:
            self._study.enqueue_trial(self._propose(len(self.all())))
            return self._study.ask()
        fresh = self._probe_first and len(waiting) == len(self.all())

        def order(trial: FrozenTrial) -> tuple[bool, bool, int]:
            return (UNTIL not in trial.user_attrs, not (fresh and trial.user_attrs.get("role") == "lp-ft"), trial.number)

        first = min(waiting, key=order)
        self._set_state(first, TrialState.RUNNING)
        return optuna.Trial(self._study, first._trial_id)

    def head_start(self) -> str | None:
        """Return what the heads of new trials start from, as `space.PROBE` or `space.FRESH`; None where it is not searched.

        Random weights, until fine-tuning from the probe's head has ended better than the best preset.
        """
        if not isinstance(self._space.parameters.get("head_start"), Choice):
            return None
        ended = self.all(TrialState.COMPLETE)
        scores = {
            role: [trial.value for trial in ended if trial.user_attrs.get("role") == role and trial.value is not None]
            for role in ("preset", "lp-ft")
        }
        if not all(scores.values()):
            return FRESH
        best = max if self.direction == "maximize" else min
        return PROBE if is_better(self.direction, best(scores["lp-ft"]), best(scores["preset"])) else FRESH

    def presets_wait(self) -> bool:
        """Return whether a preset has not begun yet."""
        return any(trial.user_attrs.get("role") == "preset" for trial in self.all(TrialState.WAITING))

    def _propose(self, number: int) -> dict[str, Any]:
        """Return the parameters of a new trial: TPE's, from all that is known now.

        TPE sees a copy of the study in memory, in which a paused trial counts as one that was stopped early: of a RUNNING
        one it would assume the worst. The sampler is made anew from (seed, number), so that a resumed search proposes what
        an uninterrupted one does, without storing the sampler.
        """
        seed = int(np.random.SeedSequence((self._seed, number)).generate_state(1)[0])
        start = self.head_start()
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
        copy = optuna.create_study(direction=self.direction, sampler=sampler)
        for trial in self.all():
            if start is not None and trial.params.get("head_start") != start and trial.state != TrialState.COMPLETE:
                continue  # its early scores say nothing of trials that start otherwise
            if trial.state == TrialState.RUNNING and not trial.user_attrs.get(PAUSED):
                # without its scores: how far it has come by now depends on the machine
                trial = optuna.trial.create_trial(
                    state=TrialState.RUNNING, params=trial.params, distributions=trial.distributions
                )
            elif trial.user_attrs.get(PAUSED):
                trial = optuna.trial.create_trial(
                    state=TrialState.PRUNED,
                    params=trial.params,
                    distributions=trial.distributions,
                    intermediate_values=trial.intermediate_values,
                )
            copy.add_trial(trial)
        held: dict[str, Any] = self._held(seed, number)
        if self._apart is not None:
            held["backbone"] = self._turn(number)
        if start is not None:
            held["head_start"] = start
        if held:
            copy.enqueue_trial(held)
        asked = copy.ask()
        suggest(asked, self._space)
        return asked.params

    def _held(self, seed: int, number: int) -> dict[str, Any]:
        """Return what is said of extra settings before TPE is asked: most have the values of the best finished trial."""
        if number < STARTUP_TRIALS:
            preset = self._space.preset_of(0)
            return {name: preset[name] for name in self._space.extra}
        rng = np.random.default_rng(seed)
        ended = self.all(TrialState.COMPLETE)
        best = next((trial for trial in self.ranked() if trial in ended), None)
        values = best.params if best is not None else self._space.preset_of(0)
        held = {}
        for name in sorted(self._space.extra):
            what, opened = self._space.parameters[name], rng.random() < IN_PLAY
            if not opened:
                held[name] = values[name]
            elif isinstance(what, Choice):  # TPE would hardly ever leave a word that all good trials have
                others = [value for value in what.values if value != values[name]]
                held[name] = others[int(rng.integers(len(others)))]
        return held

    def _turn(self, number: int) -> str:
        """Return the backbone whose turn it is: one after the other, those aside that are dominated after some trials."""
        labels = self._space.labels
        scored = Counter(self.model(trial) for trial in self.ranked())
        if min(scored[label] for label in labels) >= TURNS:
            labels = tuple(sorted({point.backbone for point in self.front()}, key=labels.index))
        return labels[number % len(labels)]

    def model(self, trial: optuna.Trial | FrozenTrial) -> str:
        """Return what a trial competes with: its backbone where each is searched by itself, else nothing."""
        return str(trial.params["backbone"]) if self._apart is not None else ""

    def group(self, trial: optuna.Trial | FrozenTrial) -> str:
        """Return what tells the trials apart whose early scores are not to be compared."""
        return "|".join(filter(None, (str(trial.params.get("head_start", "")), self.model(trial))))

    def next_group(self) -> tuple[str, str]:
        """Return the group and the model of the trial that would be begun next."""
        model = "" if self._apart is None else self._turn(len(self.all()))
        return "|".join(filter(None, (self.head_start() or "", model))), model

    def front(self) -> tuple[Point, ...]:
        """Return the best trial of each backbone that no other dominates; empty where all compete for the best score."""
        if self._apart is None:
            return ()
        best: dict[str, FrozenTrial] = {}
        for trial in self.ranked():
            best.setdefault(self.model(trial), trial)
        points = [self._apart.point(trial.number, label, trial.user_attrs["best_value"]) for label, trial in best.items()]
        return front(points, self._apart.objectives, self.direction)

    def broken_off(self) -> bool:
        """Return whether a trial was broken off in the middle by a kill or an interruption; `ask` takes it up."""
        return any(UNTIL in trial.user_attrs for trial in self.all(TrialState.WAITING))

    def start(self, trial: optuna.Trial, until: int, due: float) -> None:
        """Note that a trial trains now, how far, and when the clock says that it has come there."""
        trial.set_user_attr(DUE, due)  # before `UNTIL`, which alone says that it has begun: a kill may come in between
        trial.set_user_attr(UNTIL, until)
        trial.set_user_attr(PAUSED, 0)

    def clock(self) -> float:
        """Return what the clock says: when the last of the trials that now rest or have ended did so."""
        told = (trial for trial in self.all() if trial.state.is_finished() or trial.user_attrs.get(PAUSED))
        return max((trial.user_attrs.get(CLOCK, 0.0) for trial in told), default=0.0)

    def pause(self, trial: optuna.Trial, epoch: int, **facts: Any) -> None:
        """Let a trial rest after an epoch; `facts` are stored with it, where they are not None."""
        for name, fact in facts.items():
            if fact is not None:
                trial.set_user_attr(name, fact)
        trial.set_user_attr(SEAL, seal_of(self.all()[trial.number], "paused", None))
        trial.set_user_attr(PAUSED, epoch)

    def paused(self) -> list[FrozenTrial]:
        """Return the trials that rest."""
        return [trial for trial in self.all(TrialState.RUNNING) if trial.user_attrs.get(PAUSED)]

    def resume(self, number: int) -> optuna.Trial:
        """Return a trial that rests, to be trained on."""
        return optuna.Trial(self._study, self.all()[number]._trial_id)

    def rest(self) -> None:
        """Mark what is paused as WAITING: nothing runs after this session."""
        for trial in self.paused():
            self._set_state(trial, TrialState.WAITING)

    def started(self) -> int:
        """Return how many trials have begun, in whatever state they are now; those put back have not."""
        return len(self.all()) - len(self.all(TrialState.WAITING))

    def progress(self, *, cost: bool) -> list[Progress]:
        """Return the trials as the promotion policy sees them; those that failed or wait are left out.

        Args:
            cost: Whether measured seconds may decide. Without them the same seed repeats the same search.
        """
        seen = []
        for trial in self.all(TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED):
            known = trial.user_attrs
            if "duplicate_of" in known:
                continue
            state = "ended" if trial.state.is_finished() else "paused" if known.get(PAUSED) else "running"
            steps = sorted(trial.intermediate_values.items())
            seconds = known.get("seconds", 0.0) / max(1, len(steps)) if cost else 0.0
            if state == "running":  # what it has shown since it was taken up is not judged yet
                steps = steps[: known.get("epochs", 0)]
            values = tuple(value for _, value in steps)
            whole, group, model = known.get("role") in WHOLE, self.group(trial), self.model(trial)
            seen.append(Progress(trial.number, values, seconds, state, whole, group, model))  # type: ignore[arg-type]
        return seen

    def report(self, trial: optuna.Trial, value: float, epoch: int) -> None:
        """Store an epoch's value, unless it is there already, from before a kill; the training is what counts."""
        stored = self.all()[trial.number].intermediate_values.get(epoch)
        if stored is None:
            trial.report(value, epoch)
        elif stored != value:  # damaged on the disk, or trained again where hardware repeats nothing
            self._study._storage.set_trial_intermediate_value(trial._trial_id, epoch, value)

    def tell(self, trial: optuna.Trial, state: TrialState, value: float | None = None, **facts: Any) -> None:
        """End a trial; `facts` are stored with it, where they are not None."""
        for name, fact in facts.items():
            if fact is not None:
                trial.set_user_attr(name, fact)
        trial.set_user_attr(SEAL, seal_of(self.all()[trial.number], state.name, value))
        self._study.tell(trial, value, state=state)

    def put_back(self, trial: optuna.Trial) -> None:
        """Queue a trial again under its own number: `ask` takes it up, and its checkpoint continues it."""
        self._set_state(trial, TrialState.WAITING)

    def _set_state(self, trial: optuna.Trial | FrozenTrial, state: TrialState) -> None:
        self._study._storage.set_trial_state_values(trial._trial_id, state=state)  # Optuna has no public call for it

    def all(self, *states: TrialState) -> list[FrozenTrial]:
        """Return all trials, or those in some states, in order.

        Read again only after something was written: Optuna reads those that have not ended anew each time, which for
        hundreds of trials took as long as everything else that the driver does.
        """
        if self._known is None:
            self._known = self._study.get_trials(deepcopy=False)
        return [trial for trial in self._known if trial.state in states] if states else list(self._known)

    def _forget(self) -> None:
        self._known = None

    def twin(self, trial: optuna.Trial) -> FrozenTrial | None:
        """Return a finished trial that is trained in exactly the same way."""
        own = suggest(optuna.trial.FixedTrial(trial.params), self._space)
        for other in self.all(TrialState.COMPLETE):
            if other.number != trial.number and suggest(optuna.trial.FixedTrial(other.params), self._space) == own:
                return other
        return None

    def ranked(self) -> list[FrozenTrial]:
        """Return the trials that left weights, finished, paused or stopped early, best first.

        Among equals the earlier one leads: the preset is trial 0, and nothing beats it by noughts.
        """

        def rank(trial: FrozenTrial) -> tuple[float, int]:
            value: float = trial.user_attrs["best_value"]
            return (-value if self.direction == "maximize" else value, trial.number)

        left = self.all(TrialState.COMPLETE, TrialState.PRUNED) + self.paused()
        return sorted((trial for trial in left if "best_value" in trial.user_attrs), key=rank)

    def best(self) -> FrozenTrial | None:
        """Return the best trial so far."""
        return next(iter(self.ranked()), None)

    def finished(self) -> int:
        """Return how many trials have ended, in whatever way."""
        return sum(trial.state.is_finished() for trial in self.all())

    def counts(self) -> dict[str, int]:
        """Return the number of trials in each state."""
        return dict(
            Counter(
                "paused" if trial.user_attrs.get(PAUSED) and not trial.state.is_finished() else trial.state.name.lower()
                for trial in self.all()
            )
        )

    def recall(self, name: str, default: float) -> float:
        """Return a number that was stored with the study, such as the seconds spent; the default where there is none."""
        value: float = self._study.user_attrs.get(name, default)
        return value

    def count(self, kind: str) -> None:
        """Count a failure that was survived, such as `oom` or `infra`."""
        self.remember(f"survived_{kind}", self.recall(f"survived_{kind}", 0.0) + 1.0)

    def failures(self) -> dict[str, dict[str, int]]:
        """Return how many trials failed for what (`failed`), and how often it was survived (`survived`)."""
        failed = Counter(str(trial.user_attrs.get("failure", "unknown")) for trial in self.all(TrialState.FAIL))
        survived = {kind: int(self.recall(f"survived_{kind}", 0.0)) for kind in SURVIVED}
        return {
            "failed": dict(sorted(failed.items())),
            "survived": {kind: count for kind, count in survived.items() if count},
        }

    def remember(self, name: str, value: float) -> None:
        """Store a number with the study."""
        self._study.set_user_attr(name, value)
