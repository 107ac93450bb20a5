"""The driver: ask, train, pause and promote, tell, and finish with a checked bundle; the one owner of a run's storage."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from autoft.contest import Contest
from autoft.errors import AutoftError, ConfigError, DataError, RepeatedBugError, RunError, first_line
from autoft.events import Event, Listener
from autoft.files import read_json, write_json
from autoft.finish import SearchResult, export_winner, nothing_trained, stored_result, summarize
from autoft.identity import facts, identity
from autoft.preflight import KEPT_TRIALS, Checked, preflight
from autoft.prepare import Prepared, load_config, prepare
from autoft.probe import probe_backbones
from autoft.promotion import Done, Promote, Start, next_action, rungs
from autoft.runfolder import PROBES, RunFolder, open_run
from autoft.space import Candidate, Space, build_space, choose_augmentation, shared_policies, suggest, train_config
from autoft.specs import is_better
from autoft.train import EpochReport, TrainConfig, choose_batch_size, choose_epochs, choose_precision
from autoft.trials import PAUSED, UNTIL, Trials
from autoft.worker import WEIGHTS, Failure, Job, Outcome, PauseTrial, StopTrial, Worker, is_full_disk, settle

ETA = 3  # one in so many trials goes on from each rung
CONFIRM_SHARE = 0.2  # of the time limit, kept for training the best few again with other seeds
SHARING = 3  # trials that are expected to use one store of what frozen stages give
EQUAL_BUGS = 3  # equal bugs that stop a search: one may be the configuration's fault, three are ours


def search(
    target: str | Path,
    *,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
    plugins: bool = True,
    strict_plugins: bool = False,
    on_event: Listener | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> SearchResult:
    """Search for the best way to fine-tune on some data, and export it as a checked bundle.

    The same call on the same folder resumes an interrupted search; trials and time already spent count.

    Args:
        target: A study file (`.yaml`), or the data itself.
        output: The run folder; `runs/NAME` in the current folder where None.
        overrides: Settings such as `trainer.epochs=5`, which win over the study file.
        plugins: Whether third-party plugins may be loaded.
        strict_plugins: Whether a broken plugin is an error.
        on_event: Hears what happens.
        should_stop: Asked before every step; True stops cleanly, to be resumed.

    Raises:
        AutoftError: Bad input, or a model that cannot be exported faithfully; says what to do.
        RepeatedBugError: Three trials failed with the same unexpected exception.
    """
    started = time.monotonic()
    config, catalog = load_config(Path(target), overrides, plugins=plugins, strict=strict_plugins)
    path = Path(output) if output is not None else Path("runs") / config.name
    held: list[Event] = []
    early: Listener = on_event if on_event is not None else lambda event: None

    def before_run(event: Event) -> None:
        held.append(event)
        early(event)

    prepared = prepare(config, catalog, before_run)
    try:
        with open_run(path, identity(prepared), facts(prepared), config.to_yaml()) as run:

            def listener(event: Event) -> None:
                run.log(event)
                early(event)

            for event in held:
                run.log(event)
            worker = Worker(
                {split: (prepared.samples[split], prepared.encoded[split]) for split in prepared.samples},
                prepared.objective,
                device=prepared.device,
                memory=prepared.memory,
                cache=run.tokens,
                prefix=run.prefix,
                reuse=config.search.reuse,
                sharing=SHARING,
            )
            checked = preflight(prepared, worker, path, listener, export=not run.resumed)
            result = _Driver(prepared, run, worker, checked, listener, should_stop or (lambda: False), started).run()
            if not result.interrupted and run.prefix.exists():
                shutil.rmtree(run.prefix)  # large, and of use to further trials alone, which make it again
            return result
    except AutoftError:
        raise
    except Exception as error:
        if not is_full_disk(error):
            raise
        raise _full_disk(path, first_line(error)) from error


class _Driver:
    """State of one running search.

    Args:
        prepared: The study.
        run: Its folder, held.
        worker: Runs the trials.
        checked: What the preflight found.
        listener: Hears what happens.
        should_stop: Whether the user wants to stop.
        started: When the call began; reading the data counts against the time limit too.
    """

    def __init__(
        self,
        prepared: Prepared,
        run: RunFolder,
        worker: Worker,
        checked: Checked,
        listener: Listener,
        should_stop: Callable[[], bool],
        started: float,
    ) -> None:
        self.started = started
        self.prepared, self.folder, self.worker, self.listener = prepared, run, worker, listener
        self.user_stops = should_stop
        self.config = prepared.config
        self.objective = prepared.objective
        self.space = self._without_weak(_space(prepared, checked))
        samples = len(prepared.samples["train"])
        trainer = self.config.trainer
        self.base: dict[str, Any] = {
            "epochs": choose_epochs(trainer.epochs, prepared.raw.modality),
            "batch_size": choose_batch_size(trainer.batch_size, samples, prepared.raw.modality),
            "warmup": trainer.warmup,
            "gradient_clip": trainer.gradient_clip,
            "optimizer": trainer.optimizer,
            "momentum": trainer.momentum,
            "precision": choose_precision(trainer.precision, prepared.device),
            "patience": trainer.patience,
            "seed": self.config.search.seed,
        }
        self.trials = Trials(
            run.study,
            self.config.name,
            self.objective.direction,
            self.space,
            seed=self.config.search.seed,
        )
        self.seconds_before = self.trials.recall("seconds", 0.0)
        self.export_seconds = self.trials.recall("export_seconds", checked.export_seconds)
        self.trials.remember("export_seconds", self.export_seconds)
        self.bugs: Counter[str] = Counter()

    def run(self) -> SearchResult:
        """Run trials until the budget is spent or the user stops, then export the winner."""
        self._announce()
        while True:
            if self.user_stops():
                return self._interrupted()
            if self._out_of_time() and (self.trials.best() is not None or self.trials.finished() > 0):
                self.listener(Event("stopped", "the time limit is reached", {"reason": "time limit"}))
                break
            action = self._next_action()
            if isinstance(action, Done):
                break
            trial = self.trials.ask() if isinstance(action, Start) else self.trials.resume(action.number)
            until = action.until if isinstance(action, Promote) else self._first_stop(trial)
            if not self._run_trial(trial, until) and self.user_stops():
                return self._interrupted()
        self._settle_all()
        return self._finish()

    def _without_weak(self, space: Space) -> Space:
        """Probe the backbones where there are several, and leave out the clearly weak ones; a resumed run remembers."""
        if len(space.backbones) == 1 or not self.config.search.probe:
            return space
        file = self.folder.path / PROBES
        if not file.exists():
            results = probe_backbones(
                space.backbones,
                self.objective,
                self.worker,
                self.listener,
                device=self.prepared.device,
                seed=self.config.search.seed,
            )
            found = [
                {"backbone": label, "knn": each.knn, "linear": each.linear, "reason": each.reason, "kept": each.kept}
                for label, each in zip(space.labels, results, strict=True)
            ]
            write_json(file, {"probes": found})
        kept = [index for index, each in enumerate(read_json(file)["probes"]) if each["kept"]]
        return replace(
            space,
            backbones=tuple(space.backbones[index] for index in kept),
            stages=tuple(space.stages[index] for index in kept),
        )

    # --- trials -----------------------------------------------------------------------------------------------------

    def _next_action(self) -> Start | Promote | Done:
        """Choose between a new trial, a paused one, and the end; seconds count only where time is limited.

        What takes how long is never the same twice, so that a search bounded by trials alone leaves it out, and repeats.
        """
        if self.trials.broken_off():
            return Start()
        search = self.config.search
        return next_action(
            self.trials.progress(cost=search.time_limit is not None),
            epochs=self.base["epochs"],
            direction=self.objective.direction,
            eta=ETA,
            may_start=self.trials.started() < search.trials,
        )

    def _first_stop(self, trial: optuna.Trial) -> int:
        """Return the epoch at which a trial pauses first, or goes on to where a kill came between."""
        epochs: int = self.base["epochs"]
        if trial.user_attrs.get("role") == "preset" or not self.config.search.prune:
            return epochs
        stored: int | None = trial.user_attrs.get(UNTIL)
        return stored or rungs(epochs, eta=ETA)[0]

    def _run_trial(self, trial: optuna.Trial, until: int) -> bool:
        """Train one trial up to an epoch and tell Optuna; return False when it was put back because the search must stop."""
        candidate = suggest(trial, self.space)
        settings = train_config(candidate, self.objective.head, self.base)
        backbone = self.space.backbones[candidate.backbone]
        twin = self.trials.twin(trial)
        if twin is not None:
            self._tell_twin(trial, twin)
            return True
        done = trial.user_attrs.get("epochs", 0)
        self.listener(self._trial_event(trial, candidate, done))
        self.trials.start(trial, until)
        job = Job(backbone, settings, str(candidate.values["augmentation"]), self.folder.trial(trial.number))
        outcome = self.worker.run(
            job,
            on_epoch=lambda report: self._epoch(trial, report, settings, until),
            should_stop=lambda: self.user_stops() or (self._out_of_time() and self.trials.best() is not None),
        )
        self._save_seconds()
        if outcome.state == "interrupted":
            if done:  # promoted, and stopped by time before its next epoch: it still has the epochs from before
                self.trials.pause(trial, done)
            else:
                self.trials.put_back(trial)
            return False
        if outcome.failure is not None:
            self._failed(trial, outcome, outcome.failure)
        elif outcome.state == "paused":
            self._paused(trial, outcome)
        else:
            self._tell(trial, outcome)
        return True

    def _epoch(self, trial: optuna.Trial, report: EpochReport, settings: TrainConfig, until: int) -> None:
        if report.epoch > trial.user_attrs.get("epochs", 0):  # else it was told when the trial was paused
            self._tell_epoch(trial, report, settings)
        if report.epoch == settings.epochs:
            return
        if self._out_of_time():
            raise StopTrial("time limit")
        if report.epoch >= until:
            raise PauseTrial

    def _tell_epoch(self, trial: optuna.Trial, report: EpochReport, settings: TrainConfig) -> None:
        self.trials.report(trial, report.value, report.epoch)
        self._save_seconds()
        self.listener(
            Event(
                "epoch",
                f"trial {trial.number} epoch {report.epoch}/{settings.epochs}: "
                f"{self.objective.metric} {report.value:.4f}, loss {report.train_loss:.4f}, {report.seconds:.1f} s",
                {
                    "trial": trial.number,
                    "epoch": report.epoch,
                    "epochs": settings.epochs,
                    "value": report.value,
                    "train_loss": report.train_loss,
                    "metrics": report.metrics,
                    "seconds": round(report.seconds, 3),
                    "seconds_left": self._seconds_left(report, settings),
                },
            )
        )

    def _tell(self, trial: optuna.Trial, outcome: Outcome) -> None:
        leads = self._leads(outcome)
        self.trials.tell(
            trial,
            TrialState.COMPLETE if outcome.state == "complete" else TrialState.PRUNED,
            _best(outcome).value if outcome.state == "complete" else None,
            stopped=outcome.stopped,
            **_facts_of(trial, outcome),
        )
        self._collect_weights()
        self._end_event(trial.number, outcome.state, _best(outcome).value, outcome.stopped, leads, outcome.seconds)

    def _paused(self, trial: optuna.Trial, outcome: Outcome) -> None:
        """Let a trial rest with its checkpoint."""
        leads = self._leads(outcome)
        self.trials.pause(trial, outcome.epochs, **_facts_of(trial, outcome))
        self._end_event(
            trial.number, "paused", _best(outcome).value, f"after epoch {outcome.epochs}", leads, outcome.seconds
        )
        self._settle_hopeless(outcome.epochs)

    def _settle_hopeless(self, epoch: int) -> None:
        """End the trials that rest after an epoch but can never be in the promoted share: checkpoints are large."""
        resting = [trial for trial in self.trials.ranked() if trial.user_attrs.get(PAUSED) == epoch]
        for trial in resting[max(1, self.config.search.trials // ETA) :]:
            self._settle(trial)
        self._collect_weights()

    def _settle(self, resting: FrozenTrial) -> None:
        """End a trial that rests: its best epoch counts as it is."""
        trial = self.trials.resume(resting.number)
        known = trial.user_attrs
        folder, micro = self.folder.trial(trial.number), known.get("micro_batch")
        reuse = known.get("reuse", "")
        settle(folder, "pruned", "not promoted", seconds=known["seconds"], micro_batch=micro, reuse=reuse)
        self.trials.tell(trial, TrialState.PRUNED, stopped="not promoted", paused=0)
        self._end_event(trial.number, "pruned", known["best_value"], "not promoted", False, 0.0)

    def _settle_all(self) -> None:
        for trial in self.trials.paused():
            self._settle(trial)
        self._collect_weights()

    def _leads(self, outcome: Outcome) -> bool:
        leader = self.trials.best()
        return leader is None or is_better(self.objective.direction, _best(outcome).value, leader.user_attrs["best_value"])

    def _failed(self, trial: optuna.Trial, outcome: Outcome, failure: Failure) -> None:
        """Record a typed failure; stop the search where going on cannot help."""
        if failure.kind in ("disk", "data"):  # not the trial's fault: it goes on from its checkpoint once this is mended
            self.trials.put_back(trial)
            if failure.kind == "disk":
                raise _full_disk(self.folder.path, failure.message)
            raise DataError(failure.message.partition(": ")[2], "restore the data, then type the same command again")
        self.trials.tell(trial, TrialState.FAIL, failure=failure.kind, message=failure.message, trace=failure.trace)
        shutil.rmtree(self.folder.trial(trial.number), ignore_errors=True)
        self._end_event(trial.number, "failed", None, f"{failure.kind}: {failure.message}", False, outcome.seconds)
        if failure.kind == "bug":
            self.bugs[failure.place] += 1
            if self.bugs[failure.place] >= EQUAL_BUGS:
                raise RepeatedBugError(f"{EQUAL_BUGS} trials failed in the same way; please report this:\n{failure.trace}")

    def _tell_twin(self, trial: optuna.Trial, twin: FrozenTrial) -> None:
        self.trials.tell(trial, TrialState.COMPLETE, twin.value, duplicate_of=twin.number)
        self._end_event(trial.number, "complete", twin.value, f"the same as trial {twin.number}", False, 0.0)

    def _collect_weights(self) -> None:
        """Keep the weights of the preset and of the best trials, which are confirmed at the end; remove the others'."""
        ranked = self.trials.ranked()
        kept = {trial.number for trial in ranked[: max(KEPT_TRIALS - 1, self.config.search.confirm)]} | {0}
        for trial in ranked:
            if trial.number not in kept:
                (self.folder.trial(trial.number) / WEIGHTS).unlink(missing_ok=True)

    # --- what is known so far ---------------------------------------------------------------------------------------

    def _spent(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def _save_seconds(self) -> None:
        self.trials.remember("seconds", round(self._spent(), 3))

    def _out_of_time(self) -> bool:
        limit = self.config.search.time_limit
        if limit is None:
            return False
        left = self._seconds_to_export()
        return left is not None and left <= CONFIRM_SHARE * limit * (self.config.search.seeds > 1)

    def _seconds_to_export(self) -> float | None:
        """Return the seconds until the export must begin, or None where time is not limited."""
        limit = self.config.search.time_limit
        if limit is None:
            return None
        # beside the export itself: the gate, which scores validation several times, and the test split
        return limit - min(0.4 * limit, 2.0 * self.export_seconds + 4.0) - self._spent()

    def _seconds_left(self, report: EpochReport, settings: TrainConfig) -> float:
        """Estimate the seconds to the end of the trials from what epochs have cost so far."""
        ended = [trial.user_attrs["seconds"] for trial in self.trials.all() if "seconds" in trial.user_attrs]
        this_trial = report.seconds * settings.epochs
        each = (sum(ended) + this_trial) / (len(ended) + 1)
        rest = self.config.search.trials - self.trials.finished() - 1
        left: float = report.seconds * (settings.epochs - report.epoch) + max(0, rest) * each
        limit = self.config.search.time_limit
        return round(left if limit is None else max(0.0, min(left, limit - self._spent())), 1)

    # --- the end ----------------------------------------------------------------------------------------------------

    def _finish(self) -> SearchResult:
        if self.trials.best() is None:
            raise nothing_trained(self.trials, self.folder)
        chosen = Contest(
            self.prepared,
            self.folder,
            self.worker,
            self.space,
            self.base,
            self.trials,
            self.listener,
            should_stop=self.user_stops,
            seconds_left=self._seconds_to_export,
        ).choose()
        if chosen is None:
            return self._interrupted()
        winner = chosen.trial
        stored = stored_result(self.folder, chosen)
        if stored is None:
            self.listener(Event("export", f"exporting trial {winner.number} and checking it", {"trial": winner.number}))
            stored = export_winner(chosen, self.prepared, self.folder, self.worker, self.space, self.base, self.trials)
        self._save_seconds()
        result = summarize(self.trials, self.folder, self.objective.metric, stored)
        self.listener(
            Event(
                "done",
                f"trial {winner.number} won: {result.metric} {_number(result.value)} on validation "
                f"(preset {_number(result.preset)}), {_number(result.test.get(result.metric))} "
                f"± {_number(result.test_error)} on test",
                {**stored, "run": str(self.folder.path), "bundle": str(self.folder.bundle), "trials": result.trials},
            )
        )
        return result

    def _interrupted(self) -> SearchResult:
        self.trials.rest()
        self._save_seconds()
        done = self.trials.finished()
        self.listener(
            Event(
                "stopped",
                f"stopped after {done} of {self.config.search.trials} trials; all of them are kept, "
                "and the same command goes on from here",
                {"reason": "interrupted", "trials": done},
            )
        )
        return summarize(self.trials, self.folder, self.objective.metric, None)

    # --- events -----------------------------------------------------------------------------------------------------

    def _announce(self) -> None:
        done = self.trials.finished()
        limit = self.config.search.time_limit
        trials, epochs = self.config.search.trials, self.base["epochs"]
        budget = _many(trials, "trial") + (f" or {limit:g} s" if limit else "")
        text = f"resuming {self.folder.path}: {done} trials done of" if done else f"searching in {self.folder.path}:"
        self.listener(
            Event(
                "search",
                f"{text} {budget}, {_many(epochs, 'epoch')} each, batch size {self.base['batch_size']}, "
                f"on {self.prepared.device} in {self.base['precision']}",
                {
                    "run": str(self.folder.path),
                    "name": self.config.name,
                    "trials": self.config.search.trials,
                    "done": done,
                    "time_limit": limit,
                    "epochs": self.base["epochs"],
                    "batch_size": self.base["batch_size"],
                    "device": str(self.prepared.device),
                    "precision": self.base["precision"],
                    "metric": self.objective.metric,
                    "direction": self.objective.direction,
                    "in_memory": self.worker.data("validation", self.space.backbones[0]).in_memory,
                },
            )
        )

    def _trial_event(self, trial: optuna.Trial, candidate: Candidate, done: int) -> Event:
        role = trial.user_attrs.get("role", "trial")
        shown = ", ".join(f"{name} {_short(value)}" for name, value in trial.params.items())
        which = f"trial {trial.number}" + (f" ({role})" if role != "trial" else "")
        return Event(
            "trial",
            f"{which} goes on from epoch {done}" if done else f"{which}: {shown}",
            {
                "trial": trial.number,
                "role": role,
                "from_epoch": done,
                "backbone": self.space.labels[candidate.backbone],
                "settings": dict(candidate.values),
            },
        )

    def _end_event(self, number: int, state: str, value: float | None, why: str, leads: bool, seconds: float) -> None:
        text = f"trial {number} {state}"
        if value is not None:
            text += f": {self.objective.metric} {value:.4f}{', the best so far' if leads else ''}"
        if why not in ("finished", state):
            text += f" ({why})"
        data = {"trial": number, "state": state, "value": value, "why": why, "best": leads, "seconds": round(seconds, 3)}
        self.listener(Event("trial_end", text, data))


def _space(prepared: Prepared, checked: Checked) -> Space:
    config = prepared.config
    policies = shared_policies(prepared.backbones)
    augmentation = choose_augmentation(config.trainer.augmentation, policies)
    space, problems = build_space(
        config.space,
        prepared.objective.head,
        prepared.backbones,
        checked.stages,
        augmentation=augmentation,
    )
    found = [config.problem(problem.where, problem.message, problem.hint) for problem in problems]
    if augmentation not in policies:
        message = f"must be one of {', '.join(policies)}, but got {augmentation!r}"
        found.append(config.problem("trainer.augmentation", message))
    if found:
        raise ConfigError(config.source, found)
    return space


def _best(outcome: Outcome) -> EpochReport:
    if outcome.best is None:
        raise AssertionError(f"a trial ended as {outcome.state} without a best epoch")
    return outcome.best


def _facts_of(trial: optuna.Trial, outcome: Outcome) -> dict[str, Any]:
    """Return what is stored with a trial of its training so far; the seconds of all its parts together."""
    best = _best(outcome)
    return {
        "metrics": best.metrics,
        "best_epoch": best.epoch,
        "best_value": best.value,
        "epochs": outcome.epochs,
        "seconds": round(trial.user_attrs.get("seconds", 0.0) + outcome.seconds, 3),
        "micro_batch": outcome.micro_batch,
        "reuse": outcome.reuse or None,
    }


def _full_disk(path: Path, message: str) -> RunError:
    return RunError(
        f"the disk of {path} is full: {message}",
        "free some space, then type the same command again: nothing that was finished is lost",
    )


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
