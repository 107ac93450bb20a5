"""The driver: ask, train, tell, prune, and finish with a checked bundle; the one owner of a run's storage."""

from __future__ import annotations

import logging
import platform
import shutil
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState
from sqlalchemy.exc import DatabaseError

from autoft.errors import AutoftError, ConfigError, DataError, RepeatedBugError, RunError
from autoft.events import Event, Listener
from autoft.export.bundle import RECORDED_PACKAGES, Trained, export_bundle, exported_facts
from autoft.files import load_tensors, read_json, sha256, write_json
from autoft.preflight import KEPT_TRIALS, Checked, preflight
from autoft.prepare import Prepared, load_config, prepare
from autoft.runfolder import STUDY, RunFolder, open_run
from autoft.space import Candidate, Space, build_space, suggest, train_config
from autoft.specs import is_better
from autoft.train import EpochReport, TrainConfig, choose_batch_size, choose_precision
from autoft.worker import WEIGHTS, Failure, Job, Outcome, StopTrial, Worker, is_full_disk

RESULT = "result.json"
EQUAL_BUGS = 3  # equal bugs that stop a search: one may be the configuration's fault, three are ours
STARTUP_TRIALS = 8  # random points before TPE has enough to model
PRUNE_AFTER_TRIALS = 4
GOLDEN_SAMPLES = 8

logger = logging.getLogger("autoft")


@dataclass(frozen=True)
class SearchResult:
    """What a search gave.

    Attributes:
        run: The run folder.
        bundle: The exported model, or None where the search was interrupted before there was one.
        metric: The metric that was optimized.
        trial: Number of the winning trial, or None.
        value: Its validation metric.
        preset: The preset's validation metric, or None where the preset failed.
        test: All metrics on the test split, scored once.
        test_error: Standard error of the metric on the test split.
        trials: How many trials ended in each state.
        interrupted: Whether the search was stopped before its budget; the same call resumes it.
    """

    run: Path
    bundle: Path | None
    metric: str
    trial: int | None
    value: float | None
    preset: float | None
    test: dict[str, float]
    test_error: float | None
    trials: dict[str, int]
    interrupted: bool


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
        with open_run(path, _identity(prepared), _facts(prepared), config.to_yaml()) as run:

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
            )
            checked = preflight(prepared, worker, path, listener, export=not run.resumed)
            return _Driver(prepared, run, worker, checked, listener, should_stop or (lambda: False), started).run()
    except AutoftError:
        raise
    except Exception as error:
        if not is_full_disk(error):
            raise
        raise _full_disk(path, str(error).splitlines()[0]) from error


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
        self.space = _space(prepared, checked)
        samples = len(prepared.samples["train"])
        trainer = self.config.trainer
        self.base: dict[str, Any] = {
            "epochs": trainer.epochs,
            "batch_size": choose_batch_size(trainer.batch_size, samples),
            "warmup": trainer.warmup,
            "gradient_clip": trainer.gradient_clip,
            "optimizer": trainer.optimizer,
            "momentum": trainer.momentum,
            "precision": choose_precision(trainer.precision, prepared.device),
            "patience": trainer.patience,
            "seed": self.config.search.seed,
        }
        self.study = self._open_study()
        known = self.study.user_attrs
        if "export_seconds" not in known:
            self.study.set_user_attr("export_seconds", checked.export_seconds)
        self.seconds_before: float = known.get("seconds", 0.0)
        self.export_seconds: float = known.get("export_seconds", checked.export_seconds)
        self.bugs: Counter[str] = Counter()

    def run(self) -> SearchResult:
        """Run trials until the budget is spent or the user stops, then export the winner."""
        self._announce()
        while not self.user_stops() and self._finished() < self.config.search.trials:
            if self._out_of_time() and self._best() is not None:
                self.listener(Event("stopped", "the time limit is reached", {"reason": "time limit"}))
                break
            if not self._one_trial():
                break
        if self.user_stops():
            return self._interrupted()
        return self._finish()

    # --- trials -----------------------------------------------------------------------------------------------------

    def _one_trial(self) -> bool:
        """Run one trial and tell Optuna; return False when it was put back because the search must stop."""
        waiting = [trial.number for trial in self.study.trials if trial.state == TrialState.WAITING]
        number = min(waiting, default=len(self.study.trials))
        self.study.sampler = _Sampler(self.config.search.seed, number)
        trial = self.study.ask()
        candidate = suggest(trial, self.space)
        settings = train_config(candidate, self.objective.head, self.base)
        backbone = self.space.backbones[candidate.backbone]
        twin = self._twin(trial)
        if twin is not None:
            self._tell_twin(trial, twin)
            return True
        self.listener(self._trial_event(trial, candidate))
        job = Job(backbone, settings, str(candidate.values["augmentation"]), self.folder.trial(trial.number))
        outcome = self.worker.run(
            job,
            on_epoch=lambda report: self._epoch(trial, report, settings),
            should_stop=lambda: self.user_stops() or (self._out_of_time() and self._best() is not None),
        )
        self._save_seconds()
        if outcome.state == "interrupted":
            self._put_back(trial)
            return not self.user_stops()
        if outcome.failure is not None:
            self._failed(trial, outcome, outcome.failure)
        else:
            self._tell(trial, outcome)
        return True

    def _epoch(self, trial: optuna.Trial, report: EpochReport, settings: TrainConfig) -> None:
        seen = self.study.trials[trial.number].intermediate_values
        if report.epoch not in seen:
            trial.report(report.value, report.epoch)
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
        if report.epoch == settings.epochs:
            return
        if self._out_of_time():
            raise StopTrial("time limit")
        if self.config.search.prune and trial.number >= len(self.space.backbones) and trial.should_prune():
            raise StopTrial("pruned")

    def _tell(self, trial: optuna.Trial, outcome: Outcome) -> None:
        best = outcome.best
        if best is None:
            raise AssertionError(f"trial {trial.number} ended as {outcome.state} without a best epoch")
        trial.set_user_attr("metrics", best.metrics)
        trial.set_user_attr("best_epoch", best.epoch)
        trial.set_user_attr("best_value", best.value)
        trial.set_user_attr("epochs", outcome.epochs)
        trial.set_user_attr("stopped", outcome.stopped)
        trial.set_user_attr("seconds", round(outcome.seconds, 3))
        if outcome.micro_batch is not None:
            trial.set_user_attr("micro_batch", outcome.micro_batch)
        leader = self._best()
        if outcome.state == "complete":
            self.study.tell(trial, best.value)
        else:
            self.study.tell(trial, state=TrialState.PRUNED)
        self._collect_weights()
        leads = leader is None or is_better(self.objective.direction, best.value, leader.user_attrs["best_value"])
        self._end_event(trial.number, outcome.state, best.value, outcome.stopped, leads, outcome.seconds)

    def _failed(self, trial: optuna.Trial, outcome: Outcome, failure: Failure) -> None:
        """Record a typed failure; stop the search where going on cannot help."""
        if failure.kind in ("disk", "data"):  # not the trial's fault: it goes on from its checkpoint once this is mended
            self._put_back(trial)
            if failure.kind == "disk":
                raise _full_disk(self.folder.path, failure.message)
            raise DataError(failure.message.partition(": ")[2], "restore the data, then type the same command again")
        trial.set_user_attr("failure", failure.kind)
        trial.set_user_attr("message", failure.message)
        trial.set_user_attr("trace", failure.trace)
        self.study.tell(trial, state=TrialState.FAIL)
        shutil.rmtree(self.folder.trial(trial.number), ignore_errors=True)
        self._end_event(trial.number, "failed", None, f"{failure.kind}: {failure.message}", False, outcome.seconds)
        if failure.kind == "bug":
            self.bugs[failure.place] += 1
            if self.bugs[failure.place] >= EQUAL_BUGS:
                raise RepeatedBugError(f"{EQUAL_BUGS} trials failed in the same way; please report this:\n{failure.trace}")

    def _put_back(self, trial: optuna.Trial) -> None:
        """Queue a trial again under its own number: `ask` takes it up, and its checkpoint continues it."""
        self.study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)

    def _twin(self, trial: optuna.Trial) -> optuna.trial.FrozenTrial | None:
        """Return a finished trial with exactly the same parameters."""
        for other in self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            if other.number != trial.number and other.params == trial.params:
                return other
        return None

    def _tell_twin(self, trial: optuna.Trial, twin: optuna.trial.FrozenTrial) -> None:
        trial.set_user_attr("duplicate_of", twin.number)
        self.study.tell(trial, twin.value)
        self._end_event(trial.number, "complete", twin.value, f"the same as trial {twin.number}", False, 0.0)

    def _collect_weights(self) -> None:
        """Keep the weights of the preset and of the best trials; remove the others'."""
        ranked = sorted(self._candidates(), key=self._rank)
        kept = {trial.number for trial in ranked[: KEPT_TRIALS - 1]} | {0}
        for trial in ranked:
            if trial.number not in kept:
                (self.folder.trial(trial.number) / WEIGHTS).unlink(missing_ok=True)

    # --- what is known so far ---------------------------------------------------------------------------------------

    def _candidates(self) -> list[optuna.trial.FrozenTrial]:
        """Return the trials that left weights, finished or stopped early."""
        finished = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return [trial for trial in finished if "best_value" in trial.user_attrs]

    def _rank(self, trial: optuna.trial.FrozenTrial) -> tuple[float, int]:
        value: float = trial.user_attrs["best_value"]
        # among equals the earlier one leads: the preset is trial 0, and nothing beats it by noughts
        return (-value if self.objective.direction == "maximize" else value, trial.number)

    def _best(self) -> optuna.trial.FrozenTrial | None:
        return min(self._candidates(), key=self._rank, default=None)

    def _finished(self) -> int:
        return sum(trial.state.is_finished() for trial in self.study.get_trials(deepcopy=False))

    def _spent(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def _save_seconds(self) -> None:
        self.study.set_user_attr("seconds", round(self._spent(), 3))

    def _out_of_time(self) -> bool:
        limit = self.config.search.time_limit
        if limit is None:
            return False
        return self._spent() > limit - min(0.4 * limit, 1.5 * self.export_seconds + 2.0)

    def _seconds_left(self, report: EpochReport, settings: TrainConfig) -> float:
        """Estimate the seconds to the end of the trials from what epochs have cost so far."""
        trials = self.study.get_trials(deepcopy=False)
        ended = [trial.user_attrs["seconds"] for trial in trials if "seconds" in trial.user_attrs]
        this_trial = report.seconds * settings.epochs
        each = (sum(ended) + this_trial) / (len(ended) + 1)
        rest = self.config.search.trials - self._finished() - 1
        left: float = report.seconds * (settings.epochs - report.epoch) + max(0, rest) * each
        limit = self.config.search.time_limit
        return round(left if limit is None else max(0.0, min(left, limit - self._spent())), 1)

    # --- Optuna -----------------------------------------------------------------------------------------------------

    def _open_study(self) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # autoft reports trials itself
        try:
            study = optuna.create_study(
                storage=_storage(self.folder.study),
                study_name=self.config.name,
                direction=self.objective.direction,
                load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(
                    n_startup_trials=PRUNE_AFTER_TRIALS, n_warmup_steps=max(1, self.base["epochs"] // 4)
                ),
            )
        except (DatabaseError, optuna.exceptions.StorageInternalError) as error:
            if is_full_disk(error):
                raise
            raise RunError(
                f"{self.folder.study} cannot be read: {str(error).splitlines()[0]}",
                "restore it from a backup, or choose another folder with -o",
            ) from error
        # the preset first, on the first backbone; then on each other one, for an honest first score of all; a kill may
        # have come after some of them
        for index in range(len(study.trials), len(self.space.labels)):
            label = self.space.labels[index]
            study.enqueue_trial(self.space.preset_of(index), user_attrs={"role": "preset", "backbone": label})
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            # this process holds the run folder, so whoever ran it is gone; its checkpoint continues it
            study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
        return study

    # --- the end ----------------------------------------------------------------------------------------------------

    def _finish(self) -> SearchResult:
        """Export the winner through the gate, score the test split, and write down the result."""
        winner = self._best()
        if winner is None:
            raise self._nothing_trained()
        stored = self._stored_result()
        if stored is None or stored["winner"]["trial"] != winner.number or not (self.folder.bundle / "autoft.json").exists():
            stored = self._export(winner)
        self._save_seconds()
        result = self._result(winner, stored)
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

    def _export(self, winner: optuna.trial.FrozenTrial) -> dict[str, Any]:
        self.listener(Event("export", f"exporting trial {winner.number} and checking it", {"trial": winner.number}))
        candidate = suggest(optuna.trial.FixedTrial(winner.params, winner.number), self.space)
        settings = train_config(candidate, self.objective.head, self.base)
        backbone = self.space.backbones[candidate.backbone]
        model = self.worker.build(backbone, settings)
        weights, _ = load_tensors(self.folder.trial(winner.number) / WEIGHTS)
        model.load_state_dict(weights)
        counts = {split: len(samples) for split, samples in self.prepared.samples.items()}
        # a continued run may find another winner; how often the test split was looked at belongs to the result
        scored = (self._stored_result() or {}).get("test_scored", 0) + 1
        trained = Trained(
            model=model,
            backbone=backbone,
            objective=self.objective,
            validation=self.worker.data("validation", backbone),
            test=self.worker.data("test", backbone),
            facts={
                "name": self.config.name,
                "data": {
                    "format": self.prepared.data_format,
                    "fingerprint": self.prepared.raw.fingerprint,
                    **counts,
                    "rejected": len(self.prepared.raw.rejected),
                    "made_splits": list(self.prepared.splits.made),
                },
                "training": {
                    "trial": winner.number,
                    "trials": self._finished(),
                    "epoch": winner.user_attrs["best_epoch"],
                    "device": self.prepared.device.type,
                    "precision": settings.precision,
                    "settings": self._settings(candidate, settings),
                    "test_scored": scored,
                },
            },
        )
        exported = export_bundle(
            trained,
            self.folder.bundle,
            max_metric_drop=self.config.export.max_metric_drop,
            max_output_difference=self.config.export.max_output_difference,
            golden=GOLDEN_SAMPLES,
        )
        stored = {
            "metric": self.objective.metric,
            "winner": {
                "trial": winner.number,
                "epoch": winner.user_attrs["best_epoch"],
                "value": winner.user_attrs["best_value"],
                "settings": self._settings(candidate, settings),
            },
            **exported_facts(exported),
            "test_scored": scored,
            "reports": exported.reports,
        }
        write_json(self.folder.path / RESULT, stored)
        return stored

    def _settings(self, candidate: Candidate, settings: TrainConfig) -> dict[str, Any]:
        fixed = {name: getattr(settings, name) for name in ("epochs", "batch_size", "optimizer", "warmup", "gradient_clip")}
        return {"backbone": self.space.labels[candidate.backbone], **candidate.values, **fixed, "seed": settings.seed}

    def _stored_result(self) -> dict[str, Any] | None:
        file = self.folder.path / RESULT
        return read_json(file) if file.exists() else None

    def _interrupted(self) -> SearchResult:
        self._save_seconds()
        done = self._finished()
        best = self._best()
        self.listener(
            Event(
                "stopped",
                f"stopped after {done} of {self.config.search.trials} trials; all of them are kept, "
                "and the same command goes on from here",
                {"reason": "interrupted", "trials": done},
            )
        )
        return self._result(best, None)

    def _result(self, best: optuna.trial.FrozenTrial | None, stored: dict[str, Any] | None) -> SearchResult:
        trials = self.study.get_trials(deepcopy=False)
        preset = trials[0].user_attrs.get("best_value") if trials else None
        return SearchResult(
            run=self.folder.path,
            bundle=self.folder.bundle if stored else None,
            metric=self.objective.metric,
            trial=best.number if best else None,
            value=best.user_attrs["best_value"] if best else None,
            preset=preset,
            test=stored["test"] if stored else {},
            test_error=stored["test_error"] if stored else None,
            trials=dict(Counter(trial.state.name.lower() for trial in trials)),
            interrupted=stored is None,
        )

    def _nothing_trained(self) -> Exception:
        failed = self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        bugs = [trial for trial in failed if trial.user_attrs.get("failure") == "bug"]
        if bugs:
            return RepeatedBugError(f"no trial gave a model; please report this:\n{bugs[0].user_attrs['trace']}")
        kinds = Counter(trial.user_attrs.get("failure", "unknown") for trial in failed)
        counted = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        first = failed[0].user_attrs.get("message", "no message") if failed else "no trial ran"
        return RunError(
            f"no trial gave a model: all {len(failed)} failed ({counted}); the first: {first}",
            f"{self.folder.path / 'log.jsonl'} has all of them; lower `space.learning_rate` where the loss became NaN, "
            "choose a smaller backbone where memory ran out",
        )

    # --- events -----------------------------------------------------------------------------------------------------

    def _announce(self) -> None:
        done = self._finished()
        limit = self.config.search.time_limit
        budget = f"{self.config.search.trials} trials" + (f" or {limit:g} s" if limit else "")
        text = f"resuming {self.folder.path}: {done} trials done of" if done else f"searching in {self.folder.path}:"
        self.listener(
            Event(
                "search",
                f"{text} {budget}, {self.base['epochs']} epochs each, batch size {self.base['batch_size']}, "
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

    def _trial_event(self, trial: optuna.Trial, candidate: Candidate) -> Event:
        role = trial.user_attrs.get("role", "trial")
        shown = ", ".join(f"{name} {_short(value)}" for name, value in trial.params.items())
        return Event(
            "trial",
            f"trial {trial.number} ({role}): {shown}" if role != "trial" else f"trial {trial.number}: {shown}",
            {
                "trial": trial.number,
                "role": role,
                "backbone": self.space.labels[candidate.backbone],
                "settings": dict(candidate.values),
            },
        )

    def _end_event(self, number: int, state: str, value: float | None, why: str, leads: bool, seconds: float) -> None:
        text = f"trial {number} {state}"
        if value is not None:
            text += f": {self.objective.metric} {value:.4f}{', the best so far' if leads else ''}"
        if why != "finished":
            text += f" ({why})"
        data = {"trial": number, "state": state, "value": value, "why": why, "best": leads, "seconds": round(seconds, 3)}
        self.listener(Event("trial_end", text, data))


def _space(prepared: Prepared, checked: Checked) -> Space:
    config = prepared.config
    space, problems = build_space(
        config.space,
        prepared.objective.head,
        prepared.backbones,
        checked.stages,
        augmentation=config.trainer.augmentation,
    )
    shared = [set(backbone.preprocessing.policies) for backbone in prepared.backbones]
    policies = [
        policy for policy in prepared.backbones[0].preprocessing.policies if all(policy in known for known in shared)
    ]
    found = [config.problem(problem.where, problem.message, problem.hint) for problem in problems]
    if config.trainer.augmentation not in policies:
        message = f"must be one of {', '.join(policies)}, but got {config.trainer.augmentation!r}"
        found.append(config.problem("trainer.augmentation", message))
    if found:
        raise ConfigError(config.source, found)
    return space


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


def _storage(database: Path) -> optuna.storages.RDBStorage:
    """Open Optuna's SQLite storage, by path: in a URL, characters such as `?` in a folder's name would end it."""

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(database, check_same_thread=False)

    return optuna.storages.RDBStorage(f"sqlite:///{STUDY}", engine_kwargs={"creator": connect})


def _full_disk(path: Path, message: str) -> RunError:
    return RunError(
        f"the disk of {path} is full: {message}",
        "free some space, then type the same command again: nothing that was finished is lost",
    )


def _identity(prepared: Prepared) -> dict[str, Any]:
    """Return what makes a run this study's: its settings, the data's content, and the weights it starts from."""
    identity = prepared.config.identity()
    identity["data"].pop("path")  # the data's content counts, not where it lies
    identity["data"]["fingerprint"] = prepared.raw.fingerprint
    identity["backbones"] = [
        {
            "name": backbone.name,
            "weights": _weights_identity(backbone.weights),
            "preprocessing": backbone.preprocessing.to_dict(),
        }
        for backbone in prepared.backbones
    ]
    return identity


def _weights_identity(weights: str) -> str:
    return f"sha256:{sha256(Path(weights))}" if Path(weights).is_file() else weights


def _facts(prepared: Prepared) -> dict[str, Any]:
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in RECORDED_PACKAGES}},
        "platform": platform.platform(),
        "device": str(prepared.device),
        "plugins": [
            {"name": plugin.name, "package": plugin.package, "version": plugin.version, "state": plugin.state}
            for plugin in prepared.catalog.plugins
        ],
    }


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


class _CallableModule(ModuleType):
    """Keeps `autoft.search(...)` callable: importing this module binds the package's attribute `search` to it."""

    def __call__(self, *arguments: Any, **named: Any) -> SearchResult:
        return search(*arguments, **named)


sys.modules[__name__].__class__ = _CallableModule

__all__ = ["RepeatedBugError", "SearchResult", "search"]
