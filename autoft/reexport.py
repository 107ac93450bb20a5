"""Exports a trial of a run again: another one than the winner, or with other choices for the export."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from autoft.checkpoint import ADAPTER
from autoft.contest import Chosen
from autoft.crew import choose_manning
from autoft.errors import AutoftError, RunError, first_line
from autoft.events import Event, Listener
from autoft.files import load_tensors, write_checked
from autoft.finish import RESULT, export_chosen, look_at_test, read_result
from autoft.identity import defaults, facts, identity
from autoft.mix import Mixture
from autoft.preflight import preflight
from autoft.prepare import Prepared, load_config, prepare
from autoft.reproduce import STUDY_FILE, threads, train_up_to
from autoft.runfolder import LOCK, PLACE, STUDY, RunFolder, open_run
from autoft.session import Session, make_worker, open_session
from autoft.storage import choose_url
from autoft.telling import tell_variants
from autoft.worker import WEIGHTS, Job, Worker, kept_whole

EXPORTS = "exports"  # in a run folder: bundles of trials that did not win


@dataclass(frozen=True)
class Reexported:
    """What an export gave.

    Attributes:
        bundle: The folder.
        trial: The trial's number.
        weights: What the exported weights are, in words.
        metric: The metric that was optimized.
        validation: Its value on the validation split, through the bundle.
        test: On the test split, or None where that does not give it.
        test_scored: How many models of this run were scored on the test split so far.
    """

    bundle: Path
    trial: int
    weights: str
    metric: str
    validation: float
    test: float | None
    test_scored: int


def find_run(target: Path) -> tuple[Path, int | None]:
    """Return the run folder that a path names, and the trial where it is that of one (`RUN_DIR/trials/N`).

    Raises:
        RunError: It is neither.
    """
    trial = int(target.name) if target.parent.name == "trials" and target.name.isdecimal() else None
    run = target if trial is None else target.parent.parent
    trials = PLACE if (run / PLACE).is_file() else STUDY
    for name in (LOCK, trials, STUDY_FILE):
        if not (run / name).is_file():
            raise RunError(f"a run folder has {name}, but {run} has none", "`autoft search` makes it: runs/NAME, or -o")
    return run, trial


def export_again(
    target: str | Path,
    *,
    trial: int | None = None,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
    data: Path | None = None,
    plugins: bool = True,
    on_event: Listener | None = None,
) -> Reexported:
    """Export a trial of a run through the gate, without searching.

    The weights are those that the run kept; where it kept none of the trial, it is trained again first.

    Args:
        target: A run folder, or that of one of its trials, `RUN_DIR/trials/N`.
        trial: The trial's number; the winner, or in an unfinished run the best so far, where None.
        output: Where the bundle is to be; `RUN_DIR/bundle` for the winner and `RUN_DIR/exports/N` for others where None.
        overrides: Settings `export.NAME=VALUE` that win over the study's.
        data: Where the data is now; where the study says, if None.
        plugins: Whether third-party plugins may be loaded.
        on_event: Hears what happens.

    Raises:
        RunError: There is no such run or trial, or it is in use.
        ExportError: The model cannot be exported, or the gate fails; a bundle that was there before stays.
        AutoftError: An override is not of the export.
    """
    started = time.monotonic()
    run_path, named = find_run(Path(target))
    number = trial if trial is not None else named
    for override in overrides:
        if not override.startswith("export."):
            raise AutoftError(
                f"only settings of the export can be changed here, but got {override!r}",
                "`--set export.NAME=VALUE`; another training is another search",
            )
    listener: Listener = on_event if on_event is not None else lambda event: None
    here = [] if data is None else [f"data.path={json.dumps(str(data.resolve()))}"]  # JSON is YAML
    config, catalog = load_config(run_path / STUDY_FILE, here, plugins=plugins)
    wanted, _ = load_config(run_path / STUDY_FILE, [*here, *overrides], plugins=plugins)
    prepared = prepare(config, catalog, listener)
    study = (run_path / STUDY_FILE).read_text(encoding="utf-8")
    url = choose_url(config.search.storage, run_path)
    with (
        open_run(run_path, identity(prepared), facts(prepared), study, defaults=defaults(), storage=url) as run,
        tempfile.TemporaryDirectory() as scratch,
    ):
        had_prefix = run.prefix.exists()
        worker = make_worker(prepared, run, shared=False)
        checked = preflight(prepared, worker, run.path, listener, export=False)
        opened = open_session(prepared, run, worker, checked, listener, started=started)
        result = read_result(run.path)
        winner = result["winner"]["trial"] if result else None
        try:
            if result is not None and number in (None, winner):
                chosen = _winner(run, opened, result)
            else:
                chosen = _other(run, opened, _find(opened, run.path, number), prepared, worker, Path(scratch), listener)
        finally:
            if not had_prefix and run.prefix.exists():  # large, and of use to further trials alone
                shutil.rmtree(run.prefix)
        won = chosen.trial.number == winner
        usual = run.bundle if won else run.path / EXPORTS / str(chosen.trial.number)
        folder = Path(output) if output is not None else usual
        _check_output(folder)
        # the winner was scored for the result: the same model gives the same score, which is no second look
        scored = result["test_scored"] if result is not None and won else look_at_test(opened.trials)
        listener(Event("export", f"exporting trial {chosen.trial.number} and checking it", {"trial": chosen.trial.number}))
        stored = export_chosen(
            chosen,
            replace(prepared, config=prepared.config.model_copy(update={"export": wanted.export})),
            folder,
            worker,
            opened.recipe,
            opened.trials,
            scored=scored,
        )
        tell_variants(stored, listener)
        if result is not None and folder == run.bundle:
            write_checked(run.path / RESULT, {**result, **stored})
    metric = prepared.objective.metric
    return Reexported(
        bundle=folder,
        trial=chosen.trial.number,
        weights=chosen.made_of.text,
        metric=metric,
        validation=stored["parity"]["exported"],
        test=stored["test"].get(metric),
        test_scored=scored,
    )


def _check_output(folder: Path) -> None:
    """Refuse to replace what is no bundle."""
    if folder.exists() and not (folder / "autoft.json").is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"an export replaces a bundle or makes a folder, but {folder} is neither", "choose another -o")


def _find(opened: Session, run: Path, number: int | None) -> FrozenTrial:
    """Return a trial that has been scored; the best one for None."""
    known = {trial.number: trial for trial in opened.trials.ranked()}  # best first
    if number is None:
        if not known:
            raise RunError(f"no trial of {run} has been scored yet", "go on with the search: the same `autoft search` again")
        return next(iter(known.values()))
    if number in known:
        return known[number]
    twin = next((one.user_attrs.get("duplicate_of") for one in opened.trials.all() if one.number == number), None)
    if twin is not None:
        return known[twin]
    why = "failed or was not finished" if number < len(opened.trials.all()) else "does not exist"
    raise RunError(
        f"trial {number} of {run} cannot be exported: it {why}",
        f"scored trials, best first: {', '.join(map(str, known)) or 'none'}",
    )


def _winner(run: RunFolder, opened: Session, result: dict[str, Any]) -> Chosen:
    """Return what the run exported, as its bundle holds it."""
    winner = result["winner"]
    trial = next(one for one in opened.trials.all() if one.number == winner["trial"])
    file = run.bundle / WEIGHTS
    again = "the same `autoft search` again makes it anew, once the bundle is removed"
    if not file.is_file():
        raise RunError(f"the winner's weights are in {file}, but it is gone", again)
    try:
        weights, _ = load_tensors(file)
    except ValueError as error:
        raise RunError(f"the winner's weights are damaged: {first_line(error)}", again) from error
    adapter = run.bundle / ADAPTER
    return Chosen(
        trial=trial,
        weights=weights,
        value=winner["value"],
        epoch=winner["epoch"],
        seed=winner["training"]["seed"],
        made_of=Mixture.from_dict(winner["made_of"]),
        confirmed=result["confirmed"],
        adapter=adapter if adapter.is_dir() else None,
    )


def _other(
    run: RunFolder,
    opened: Session,
    trial: FrozenTrial,
    prepared: Prepared,
    worker: Worker,
    scratch: Path,
    listener: Listener,
) -> Chosen:
    """Return a trial that was not exported, with the weights that it kept, else trained again."""
    known, recipe = trial.user_attrs, opened.recipe
    folder = run.trial(trial.number)
    value, epoch = known["best_value"], known["best_epoch"]
    try:
        why = None if kept_whole(folder) else "the run did not keep its weights"
    except ValueError as error:
        why = first_line(error)
    if why is not None:
        candidate = recipe.candidate(trial)
        settings = recipe.settings(candidate)
        settings = replace(settings, micro_batch=known.get("micro_batch") or settings.micro_batch)
        text = f"training trial {trial.number} again up to epoch {epoch}: {why}"
        listener(Event("export", text, {"trial": trial.number, "epoch": epoch}))
        folder = scratch / "training"
        job = Job(recipe.backbone(candidate), settings, str(candidate.values["augmentation"]), folder)
        with threads(choose_manning(prepared).threads):
            best = train_up_to(worker, job, epochs=epoch).best
        if best is None or best.value != value:
            now, metric = best.value if best else None, prepared.objective.metric
            text = f"trained again, it has {metric} {now}, not {value} as in the run"
            listener(Event("warning", text, {"about": "reproduction", "trial": trial.number}))
        if best is not None:
            value, epoch = best.value, best.epoch
    adapter = folder / ADAPTER
    return Chosen(
        trial=trial,
        weights=load_tensors(folder / WEIGHTS)[0],
        value=value,
        epoch=epoch,
        seed=recipe.seed,
        made_of=Mixture((recipe.seed,)),
        adapter=adapter if adapter.is_dir() else None,
    )
