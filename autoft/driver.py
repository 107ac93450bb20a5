"""The driver: ask, train, pause and promote, tell, and finish with a checked bundle; the one owner of a run's storage."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from autoft import telling
from autoft.checkpoint import DamagedCheckpointError
from autoft.contest import Chosen, Contest, drop_losers
from autoft.crew import Crew, choose_manning, make_setup, start_local
from autoft.deployed import describe
from autoft.determinism import repeats
from autoft.engine import Ended, Epoch
from autoft.errors import AutoftError, ConfigError, RepeatedBugError, first_line
from autoft.events import Event, Listener, trained_again, weights_lost
from autoft.failures import full_disk, stop_if_not_its_fault
from autoft.files import remove_tree
from autoft.finish import SearchResult, export_winner, note, nothing_trained, stored_result, summarize
from autoft.identity import defaults, facts, identity
from autoft.loggers import Followers, check_loggers
from autoft.mix import Mixture
from autoft.preflight import KEPT_TRIALS, MOST_RESTING, Checked, preflight
from autoft.prepare import Prepared, load_config, prepare
from autoft.processes import ProcessEngine
from autoft.promotion import Done, Promote, Start, next_action, rungs
from autoft.refit import refit
from autoft.runfolder import RunFolder, open_run
from autoft.session import SHARING, make_worker, open_session
from autoft.space import Candidate, suggest
from autoft.specs import is_better
from autoft.storage import choose_url, connect
from autoft.train import EpochReport, TrainConfig, choose_epochs
from autoft.trials import CLOCK, DUE, PAUSED, UNTIL, WHOLE
from autoft.worker import CHECKPOINT, WEIGHTS, Failure, Outcome, Worker, is_full_disk, settle

ETA = 3  # one in so many trials goes on from each rung
CONFIRM_SHARE = 0.2  # of the time limit, kept at most for training the best few again with other seeds
SPARE = 1.2  # times what that is expected to take
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
    config = prepared.config  # with the models of presets in their places
    _check_refit(prepared)
    check_loggers(prepared)
    try:
        url = choose_url(config.search.storage, path)
        if url is not None:
            connect(url).engine.dispose()  # before anything takes minutes
        shown = config.with_storage(url).to_yaml()
        with open_run(path, identity(prepared), facts(prepared), shown, defaults=defaults(), storage=url) as run:

            def tell(event: Event) -> None:
                run.log(event)
                early(event)

            followers = Followers(prepared, run, tell)

            def listener(event: Event) -> None:
                tell(event)
                followers.hear(event)

            for event in held:
                run.log(event)
            manning = choose_manning(prepared)
            worker = make_worker(prepared, run, shared=bool(manning.workers))
            setup = make_setup(prepared, run, manning, plugins=plugins, sharing=SHARING)
            engine = ProcessEngine() if manning.workers else None
            try:
                if engine is not None:
                    engine.start(setup, manning.workers)  # they import while the preflight goes on
                checked = preflight(prepared, worker, path, listener, export=not run.resumed)
                ask = should_stop or (lambda: False)
                driver = _Driver(prepared, run, worker, checked, listener, ask, started)
                driver.crew = (
                    Crew(engine, manning.workers, prepared.backbones, driver.hear_crew)
                    if engine is not None
                    else start_local(worker, prepared, setup, driver.hear_crew, driver.hear, ask)
                )
                driver.late = followers.hear
                result = driver.run()
            finally:
                if engine is not None:
                    engine.stop(gracefully=False)
                followers.close()
            if not result.interrupted:
                drop_losers(run, result.trial)
                # large, and of use to further trials alone, which make it again
                for folder in (run.prefix, run.pixels, run.refit):
                    if folder.exists():
                        shutil.rmtree(folder)
                result = replace(result, report=_report(path, listener))
            return replace(result, unlogged=dict(followers.faults))
    except AutoftError:
        raise
    except Exception as error:
        if not is_full_disk(error):
            raise
        raise full_disk(path, first_line(error)) from error


@dataclass(frozen=True)
class _Flight:
    """A trial that a worker has taken up.

    Attributes:
        trial: It.
        settings: How it is trained.
        until: To which epoch.
        due: When it ends by the clock that counts work.
    """

    trial: optuna.Trial
    settings: TrainConfig
    until: int
    due: float


class _Driver:
    """State of one running search.

    Without a time limit, trials are judged in the order of a clock that counts their work, not in that in which they
    happen to end: so a search on several workers repeats bit for bit, at the price that a result may wait a little.

    Args:
        prepared: The study.
        run: Its folder, held.
        worker: Runs the trials.
        checked: What the preflight found.
        listener: Hears what happens.
        should_stop: Whether the user wants to stop.
        started: When the call began; reading the data counts against the time limit too.
    """

    crew: Crew
    late: Listener  # hears of epochs that were trained while nobody listened, or were told already

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
        self.parameters = {
            id(backbone): count for backbone, count in zip(prepared.backbones, checked.parameters, strict=True)
        }
        self.prepared, self.folder, self.worker, self.listener = prepared, run, worker, listener
        self.user_stops = should_stop
        self.config = prepared.config
        self.objective = prepared.objective
        opened = open_session(prepared, run, worker, checked, listener, started=started, should_stop=should_stop)
        self.space, self.trials, self.recipe = opened.space, opened.trials, opened.recipe
        self.seconds_before = opened.seconds_before
        limit = self.config.search.time_limit
        self.export_seconds = self.trials.recall("export_seconds", checked.export_seconds)
        self.trials.remember("export_seconds", self.export_seconds)
        # a trial that was warmed up tells more than one that was not; but where seconds are what is scarce, more trials are
        # worth more than surer scores of each (studies/benchmarks/replay.py)
        self.first_rung = None if limit is not None else min(self.recipe.epochs, self.recipe.warm_up + 1)
        self.bugs: Counter[str] = Counter()
        for trial in self.trials.all():  # what earlier sessions learned about memory
            if "epochs" in trial.user_attrs:
                self.recipe.learn(self.recipe.candidate(trial), trial.user_attrs.get("micro_batch"))
        self.flights: dict[int, _Flight] = {}
        self.arrived: dict[int, Outcome] = {}  # in the order in which they ended

    def _several(self) -> bool:
        return len(self.config.search.objectives) > 1

    def run(self) -> SearchResult:
        """Run trials until the budget is spent or the user stops, then export the winner."""
        self._announce()
        while not self.user_stops():
            self._fill()
            if not self.flights:
                self._settle_all()
                return self._finish()
            number = self._await()
            if number is not None:
                self._judge(number)
        return self._interrupted()

    # --- trials -----------------------------------------------------------------------------------------------------

    def _next_action(self) -> Start | Promote | Done:
        """Choose between a new trial, a paused one, and the end; seconds count only where time is limited.

        What takes how long is never the same twice, so that a search bounded by trials alone leaves it out, and repeats.
        """
        if self.trials.broken_off() or self.trials.presets_wait():
            return Start()
        search, (group, model) = self.config.search, self.trials.next_group()
        return next_action(
            self.trials.progress(cost=search.time_limit is not None),
            epochs=self.recipe.epochs,
            first=self.first_rung,
            direction=self.objective.direction,
            eta=ETA,
            may_start=self.trials.started() < search.trials,
            group=group,
            model=model,
        )

    def _first_stop(self, trial: optuna.Trial) -> int:
        """Return the epoch at which a trial pauses first, or goes on to where a kill came between."""
        epochs, role = self.recipe.epochs, trial.user_attrs.get("role")
        stored: int | None = trial.user_attrs.get(UNTIL)
        if stored is not None:
            return stored
        first = self.trials.presets_wait() and role != "preset"  # even one that never rests lets the presets go before
        if not self.config.search.prune or (role in WHOLE and not first):
            return epochs
        return 1 if role in WHOLE else rungs(epochs, eta=ETA, first=self.first_rung)[0]

    def _fill(self) -> None:
        """Give every free worker a trial, as long as there is time and something to do."""
        while len(self.flights) < self.crew.size:
            if self._out_of_time() and (self.trials.best() is not None or self.trials.finished() > 0):
                if not self.flights:
                    self.listener(telling.time_is_up())
                return
            action = self._next_action()
            if isinstance(action, Done):
                return
            trial = self.trials.ask() if isinstance(action, Start) else self.trials.resume(action.number)
            until = action.until if isinstance(action, Promote) else self._first_stop(trial)
            candidate = suggest(trial, self.space)
            twin = self.trials.twin(trial)
            if twin is None:
                self._take_off(trial, candidate, until)
            else:
                self._tell_twin(trial, twin)

    def _take_off(self, trial: optuna.Trial, candidate: Candidate, until: int) -> None:
        """Give a free worker a trial, to be trained up to an epoch."""
        settings = self.recipe.settings(candidate)
        known = trial.user_attrs
        done = known.get("epochs", 0)
        broken_off = UNTIL in known and not known.get(PAUSED)
        due = known[DUE] if broken_off else self.trials.clock() + self._work(candidate, settings, until - done)
        role = known.get("role", "trial")
        self.listener(telling.trial_begins(trial.number, role, candidate, self.space, from_epoch=done))
        self.trials.start(trial, until, due)
        self.flights[trial.number] = _Flight(trial, settings, until, due)
        self.crew.submit(
            trial.number,
            self.space.backbones[candidate.backbone],
            settings,
            str(candidate.values["augmentation"]),
            self.folder.trial(trial.number),
            seconds=self._seconds_to_confirm(),
            one_epoch=self.trials.best() is None,  # there must be something to export
            pause_after=until,
        )

    def _work(self, candidate: Candidate, settings: TrainConfig, epochs: int) -> float:
        """Return how much work some epochs are: parameters, of frozen stages a third, as they are only run forward."""
        frozen = settings.freeze_depth / self.space.stages[candidate.backbone]
        each = self.parameters[id(self.space.backbones[candidate.backbone])] * (1.0 - 2.0 / 3.0 * min(1.0, frozen))
        return epochs * each * settings.passes

    def _await(self) -> int | None:
        """Return the trial that is to be judged next, once it has ended; None where the user stops first."""
        while not self.user_stops():
            ready = [number for number in self.arrived if number in self.flights]
            if self.config.search.time_limit is None:
                first = min(self.flights, key=lambda number: (self.flights[number].due, number))
                ready = [number for number in ready if number == first]
            if ready:
                return ready[0]
            for message in self.crew.poll():
                if isinstance(message, Ended):
                    self.arrived[message.number] = message.outcome
                else:
                    self.hear(message.number, message.report)
        return None

    def _judge(self, number: int) -> None:
        """Tell Optuna what a trial gave."""
        flight, outcome = self.flights.pop(number), self.arrived.pop(number)
        trial = flight.trial
        self._save_seconds()
        if outcome.redone:
            self.listener(trained_again(f"trial {number}", outcome.redone, number))
        if outcome.state == "interrupted":  # by the time limit
            done = trial.user_attrs.get("epochs", 0)
            if done:  # promoted: it still has the epochs from before
                self.trials.pause(trial, done)
            else:
                self.trials.put_back(trial)
            return
        if outcome.failure is not None:
            self._failed(flight, outcome, outcome.failure)
            return
        if self.recipe.learn(self.recipe.candidate(trial), outcome.micro_batch):
            self.trials.count("oom")
            self.listener(telling.memory_ran_out(number, outcome.micro_batch or 0, flight.settings.batch_size))
        for report in outcome.history:  # a kill may have come before some of them were told
            self.trials.report(trial, report.value, report.epoch)
            self.late(self._epoch_event(number, report, flight.settings))
        if outcome.state == "paused":
            self._paused(flight, outcome)
        else:
            self._tell(flight, outcome)

    def hear(self, number: int, report: EpochReport) -> None:
        """Take note of an epoch that a worker has trained."""
        flight = self.flights.get(number)
        if flight is None:
            return  # of the last round, which tells of whole trainings only
        if report.epoch > flight.trial.user_attrs.get("epochs", 0):  # else it was told when the trial was paused
            self._tell_epoch(flight.trial, report, flight.settings)

    def hear_crew(self, event: Event) -> None:
        """Take note of a worker that died, and pass it on."""
        if event.kind == "warning" and event.data["about"] == "worker":
            self.trials.count("infra")
        self.listener(event)

    def _tell_epoch(self, trial: optuna.Trial, report: EpochReport, settings: TrainConfig) -> None:
        self.trials.report(trial, report.value, report.epoch)
        self._save_seconds()
        self.listener(self._epoch_event(trial.number, report, settings))

    def _epoch_event(self, number: int, report: EpochReport, settings: TrainConfig) -> Event:
        left, metric = self._seconds_left(report, settings), self.objective.metric
        return telling.epoch_ended(number, report, epochs=settings.epochs, metric=metric, seconds_left=left)

    def _tell(self, flight: _Flight, outcome: Outcome) -> None:
        trial, leads = flight.trial, self._leads(outcome)
        self.trials.tell(
            trial,
            TrialState.COMPLETE if outcome.state == "complete" else TrialState.PRUNED,
            _best(outcome).value if outcome.state == "complete" else None,
            stopped=outcome.stopped,
            **_facts_of(flight, outcome),
        )
        self._collect_weights()
        self._end_event(trial.number, outcome.state, _best(outcome).value, outcome.stopped, leads, outcome.seconds)

    def _paused(self, flight: _Flight, outcome: Outcome) -> None:
        """Let a trial rest with its checkpoint."""
        trial, leads = flight.trial, self._leads(outcome)
        self.trials.pause(trial, outcome.epochs, **_facts_of(flight, outcome))
        self._end_event(
            trial.number, "paused", _best(outcome).value, f"after epoch {outcome.epochs}", leads, outcome.seconds
        )
        self._settle_hopeless(outcome.epochs)

    def _settle_hopeless(self, epoch: int) -> None:
        """End the trials that rest after an epoch but can never be in the promoted share: checkpoints are large."""
        resting = [trial for trial in self.trials.ranked() if trial.user_attrs.get(PAUSED) == epoch]
        for group in {self.trials.group(trial) for trial in resting}:
            own = [trial for trial in resting if self.trials.group(trial) == group]
            for trial in own[max(1, min(self.config.search.trials // ETA, MOST_RESTING)) :]:
                self._settle(trial)
        self._collect_weights()

    def _settle(self, resting: FrozenTrial) -> None:
        """End a trial that rests: its best epoch counts as it is."""
        trial = self.trials.resume(resting.number)
        known = trial.user_attrs
        folder, micro = self.folder.trial(trial.number), known.get("micro_batch")
        reuse = known.get("reuse", "")
        try:
            settle(folder, "pruned", "not promoted", seconds=known["seconds"], micro_batch=micro, reuse=reuse)
        except DamagedCheckpointError as error:  # whoever wants its weights trains it again
            self.listener(weights_lost(trial.number, str(error)))
            remove_tree(folder / CHECKPOINT)
        # `paused` first: of a trial that rests, nothing else may change under its seal
        self.trials.tell(trial, TrialState.PRUNED, paused=0, stopped="not promoted")
        self._end_event(trial.number, "pruned", known["best_value"], "not promoted", False, 0.0)

    def _settle_all(self) -> None:
        for trial in self.trials.paused():
            self._settle(trial)
        self._collect_weights()

    def _leads(self, outcome: Outcome) -> bool:
        leader = self.trials.best()
        return leader is None or is_better(self.objective.direction, _best(outcome).value, leader.user_attrs["best_value"])

    def _failed(self, flight: _Flight, outcome: Outcome, failure: Failure) -> None:
        """Record a typed failure; stop the search where going on cannot help."""
        trial = flight.trial
        if failure.kind in ("disk", "data"):  # not the trial's fault: it goes on from its checkpoint once this is mended
            self.trials.put_back(trial)
            stop_if_not_its_fault(failure, self.folder.path)
        self.trials.tell(
            trial, TrialState.FAIL, failure=failure.kind, message=failure.message, trace=failure.trace, **{CLOCK: flight.due}
        )
        shutil.rmtree(self.folder.trial(trial.number), ignore_errors=True)
        self._end_event(trial.number, "failed", None, f"{failure.kind}: {failure.message}", False, outcome.seconds)
        if failure.kind == "bug":
            self.bugs[failure.place] += 1
            if self.bugs[failure.place] >= EQUAL_BUGS:
                raise RepeatedBugError(f"{EQUAL_BUGS} trials failed in the same way; please report this:\n{failure.trace}")

    def _tell_twin(self, trial: optuna.Trial, twin: FrozenTrial) -> None:
        self.trials.tell(trial, TrialState.COMPLETE, twin.value, duplicate_of=twin.number, **{CLOCK: self.trials.clock()})
        self._end_event(trial.number, "complete", twin.value, f"the same as trial {twin.number}", False, 0.0)

    def _collect_weights(self) -> None:
        """Keep the weights of the preset, of the best trials, which are confirmed at the end, and of the front."""
        ranked = self.trials.ranked()
        kept = {trial.number for trial in ranked[: max(KEPT_TRIALS - 1, self.config.search.confirm)]} | {0}
        kept |= {point.trial for point in self.trials.front()}
        for trial in ranked:
            if trial.number not in kept:
                (self.folder.trial(trial.number) / WEIGHTS).unlink(missing_ok=True)

    # --- what is known so far ---------------------------------------------------------------------------------------

    def _spent(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def _save_seconds(self) -> None:
        self.trials.remember("seconds", round(self._spent(), 3))

    def _out_of_time(self) -> bool:
        left = self._seconds_to_confirm()
        return left is not None and left <= 0.0

    def _seconds_to_confirm(self) -> float | None:
        """Return the seconds until no more trials may train, or None where time is not limited."""
        limit, left = self.config.search.time_limit, self._seconds_to_export()
        if limit is None or left is None:
            return None
        if self.trials.best() is None:
            return left
        return left - min(CONFIRM_SHARE * limit, SPARE * self._contest().seconds_wanted(CONFIRM_SHARE * limit))

    def _contest(self) -> Contest:
        return Contest(
            self.prepared,
            self.folder,
            self.worker,
            self.crew,
            self.recipe,
            self.trials,
            self.listener,
            should_stop=self.user_stops,
            seconds_left=self._seconds_to_export,
        )

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
        left: float = report.seconds * (settings.epochs - report.epoch) + max(0, rest) * each / self.crew.size
        limit = self.config.search.time_limit
        return round(left if limit is None else max(0.0, min(left, limit - self._spent())), 1)

    # --- the end ----------------------------------------------------------------------------------------------------

    def _finish(self) -> SearchResult:
        if self.trials.best() is None:
            raise nothing_trained(self.trials, self.folder)
        chosen = self._contest().choose()
        if chosen is None:
            return self._interrupted()
        winner = chosen.trial
        stored = stored_result(self.folder, chosen)
        if self.config.export.refit and stored is None:
            anew = Mixture((chosen.seed,), refitted=True, epochs=chosen.epoch)
            stored = stored_result(self.folder, replace(chosen, made_of=anew))
            if stored is None:
                refitted = self._refit(chosen, anew)
                if refitted is None:
                    return self._interrupted()
                chosen = refitted
        if stored is None:
            self.listener(telling.export_begins(winner.number))
            stored = export_winner(chosen, self.prepared, self.folder, self.worker, self.recipe, self.trials)
            telling.tell_variants(stored, self.listener)
        failures = self.trials.failures()
        noted: dict[str, Any] = {
            "failures": failures,
            "repeats": repeats(self.prepared, failures["survived"], workers=self.crew.size),
        }
        if self._several():
            noted["front"] = describe(self.trials.front())
        stored = note(self.folder, stored, noted)
        self._save_seconds()
        result = summarize(self.trials, self.folder, self.objective.metric, stored)
        self.listener(telling.search_done(result, stored, run=self.folder.path, bundle=self.folder.bundle))
        return result

    def _refit(self, chosen: Chosen, anew: Mixture) -> Chosen | None:
        """Train what was chosen once more, on both splits; None where the user stops. Without time for it, it stays."""
        known, left, count = chosen.trial.user_attrs, self._seconds_to_export(), len(self.prepared.samples["train"])
        grown = 1.0 + len(self.prepared.samples["validation"]) / count
        seconds = known["seconds"] / known["epochs"] * chosen.epoch * grown
        if left is not None and seconds > left:
            self.listener(telling.refit_left_out(seconds, left))
            return chosen
        self.listener(telling.refit_begins(chosen.trial.number, chosen.epoch))
        candidate = self.recipe.candidate(chosen.trial)
        weights = refit(
            self.prepared,
            self.recipe.backbone(candidate),
            self.recipe.settings(candidate, seed=chosen.seed),
            str(candidate.values["augmentation"]),
            self.folder.refit / f"{chosen.trial.number}-{chosen.seed}-{chosen.epoch}",
            epochs=chosen.epoch,
            heads=self.folder.heads,
            should_stop=self.user_stops,
        )
        if weights is None:
            return None
        return replace(chosen, weights=weights, made_of=anew, adapter=None)

    def _interrupted(self) -> SearchResult:
        for message in self.crew.stop(gracefully=True):
            if isinstance(message, Epoch) and message.number in self.flights:
                self.hear(message.number, message.report)
        for flight in self.flights.values():  # also what has ended, but is not judged: its files say so when it is taken up
            self.trials.put_back(flight.trial)
        self.trials.rest()
        self._save_seconds()
        self.listener(telling.interrupted(self.trials.finished(), self.config.search.trials))
        return summarize(self.trials, self.folder, self.objective.metric, None)

    # --- events -----------------------------------------------------------------------------------------------------

    def _announce(self) -> None:
        search, samples = self.config.search, len(self.prepared.samples["train"])
        usual = choose_epochs("auto", self.prepared.raw.modality)
        if self.config.trainer.epochs == "auto" and self.recipe.epochs != usual:
            self.listener(telling.few_samples(samples, self.recipe.epochs, usual))
        self.listener(
            telling.search_begins(
                self.folder.path,
                self.config.name,
                done=self.trials.finished(),
                trials=search.trials,
                epochs=self.recipe.epochs,
                time_limit=search.time_limit,
                space=self.space,
                device=str(self.prepared.device),
                precision=self.recipe.tuned[self.space.labels[0]].precision,
                metric=self.objective.metric,
                direction=self.objective.direction,
                in_memory=self.worker.data("validation", self.space.backbones[0]).in_memory,
            )
        )

    def _end_event(self, number: int, state: str, value: float | None, why: str, leads: bool, seconds: float) -> None:
        metric = self.objective.metric
        self.listener(telling.trial_ended(number, state, value, why, leads=leads, seconds=seconds, metric=metric))


def _report(run: Path, listener: Listener) -> Path | None:
    """Write the report of a finished search; where that fails, say so: the result stands without it."""
    from autoft.report.page import write_report  # here, as plotly takes a second that most commands would wait in vain

    try:
        return write_report(run)
    except Exception as error:  # noqa: BLE001 - told below; whatever it is, the search is done and its bundle is there
        listener(telling.report_failed(run, error))
        return None


def _check_refit(prepared: Prepared) -> None:
    head, config = prepared.objective.head, prepared.config
    if config.export.refit and head.tune is not None:
        message = f"must be false for {head.name}: it tunes thresholds, which takes samples that were not trained on"
        raise ConfigError(config.source, [config.problem("export.refit", message)])


def _best(outcome: Outcome) -> EpochReport:
    if outcome.best is None:
        raise AssertionError(f"a trial ended as {outcome.state} without a best epoch")
    return outcome.best


def _facts_of(flight: _Flight, outcome: Outcome) -> dict[str, Any]:
    """Return what is stored with a trial of its training so far; the seconds of all its parts together."""
    best, trial = _best(outcome), flight.trial
    return {
        "metrics": best.metrics,
        "best_epoch": best.epoch,
        "best_value": best.value,
        "epochs": outcome.epochs,
        "seconds": round(trial.user_attrs.get("seconds", 0.0) + outcome.seconds, 3),
        "micro_batch": outcome.micro_batch,
        "reuse": outcome.reuse or None,
        CLOCK: flight.due,
    }
