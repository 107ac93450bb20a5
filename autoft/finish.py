"""The end of a search: exports the winner through the gate, scores the test split, and writes down the result."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from autoft.answered import keep
from autoft.contest import Chosen
from autoft.deployed import Point
from autoft.determinism import reasons_to_differ
from autoft.errors import RepeatedBugError, RunError, first_line
from autoft.export.bundle import Trained, export_bundle, exported_facts
from autoft.export.variants import Wanted
from autoft.files import read_json, write_checked
from autoft.prepare import Prepared
from autoft.recipe import Recipe
from autoft.runfolder import RunFolder
from autoft.space import Candidate, Space
from autoft.train import TrainConfig
from autoft.trials import Trials
from autoft.worker import Worker

RESULT = "result.json"


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
        front: With `search.objectives`, the trials that are best for what they cost; else empty.
        failures: How many trials failed for what (`failed`), and how often a failure was survived (`survived`), by type.
        differs: Why another search of the same study and seed may give other trials; empty where it repeats bit for bit.
        report: The page that tells of the search, or None where it was interrupted or the page could not be written.
        unlogged: Loggers that have not heard everything in this session, and why.
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
    front: tuple[Point, ...] = ()
    failures: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    differs: tuple[str, ...] = ()
    report: Path | None = None
    unlogged: Mapping[str, str] = field(default_factory=dict)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the winner against the preset, the test score, where everything is."""
        best = "none yet" if self.value is None else f"trial {self.trial}: {self.metric} {self.value:.4f} on validation"
        rows = [("best", best)]
        if self.preset is not None:
            rows.append(("preset", f"{self.preset:.4f}"))
        if self.metric in self.test:
            rows.append(("test", f"{self.test[self.metric]:.4f} ± {self.test_error:.4f}"))
        rows.append(("trials", ", ".join(f"{count} {state}" for state, count in self.trials.items())))
        rows += [("run", str(self.run)), ("bundle", str(self.bundle or "none yet: the same call goes on"))]
        listed = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows)
        return f"<table><tbody>{listed}</tbody></table>"


def export_winner(
    chosen: Chosen,
    prepared: Prepared,
    run: RunFolder,
    worker: Worker,
    recipe: Recipe,
    trials: Trials,
) -> dict[str, Any]:
    """Export a trial through the gate as the run's bundle, and return what `result.json` now holds.

    Args:
        chosen: The winning trial, and the weights that stand for it.
        prepared: The study.
        run: Its folder.
        worker: Builds the model and has the data.
        recipe: Makes settings of the trial's parameters.
        trials: All trials.

    Raises:
        ExportError: The model cannot be exported, or the gate fails.
    """
    scored = look_at_test(trials)
    stored = export_chosen(chosen, prepared, run.bundle, worker, recipe, trials, scored=scored, answers=run.path)
    write_checked(run.path / RESULT, stored)
    return stored


def look_at_test(trials: Trials) -> int:
    """Count that one more model is scored on the test split; return how many were, in all sessions of the run.

    A continued run may find another winner, and any trial may be exported: the more looks, the less the best of them says.
    """
    scored = int(trials.recall("test_scored", 0)) + 1
    trials.remember("test_scored", scored)
    return scored


def export_chosen(
    chosen: Chosen,
    prepared: Prepared,
    folder: Path,
    worker: Worker,
    recipe: Recipe,
    trials: Trials,
    *,
    scored: int,
    answers: Path | None = None,
) -> dict[str, Any]:
    """Export a trial through the gate, and return what there is to say of it, as `result.json` has it.

    Args:
        chosen: The trial, and the weights that stand for it.
        prepared: The study, with the settings of the export.
        folder: Where the bundle is to be.
        worker: Builds the model and has the data.
        recipe: Makes settings of the trial's parameters.
        trials: All trials.
        scored: How many models of this run were scored on the test split, this one included.
        answers: The run folder, for what the model answered to validation and test; None keeps nothing.

    Raises:
        ExportError: The model cannot be exported, or the gate fails.
    """
    winner = chosen.trial
    candidate = recipe.candidate(winner)
    settings = recipe.settings(candidate, seed=chosen.seed)
    shown = describe_settings(candidate, settings, recipe.space)
    backbone = recipe.backbone(candidate)
    model = worker.build(backbone, settings, finished=True)
    model.load_state_dict(chosen.weights)
    facts = {
        "name": prepared.config.name,
        "golden": prepared.config.export.golden,
        "data": {
            "format": prepared.data_format,
            "fingerprint": prepared.raw.fingerprint,
            **{split: len(samples) for split, samples in prepared.samples.items()},
            "rejected": len(prepared.raw.rejected),
            "made_splits": list(prepared.splits.made),
            "columns": dict(prepared.raw.found),
        },
        "training": {
            "trial": winner.number,
            "trials": trials.finished(),
            "epoch": chosen.epoch,
            "weights": chosen.made_of.text,
            "refitted": chosen.made_of.refitted,
            "confirmed": chosen.confirmed,
            "device": prepared.device.type,
            "precision": settings.precision,
            "settings": {**recipe.space.notable(candidate), **fixed_of(settings), "backbone": backbone.public_name},
            "test_scored": scored,
            "why_not_repeated": reasons_to_differ(prepared, trials.failures()["survived"]),
        },
    }
    exported = export_bundle(
        Trained(
            model=model,
            backbone=backbone,
            objective=prepared.objective,
            validation=worker.data("validation", backbone),
            test=worker.data("test", backbone),
            facts=facts,
            adapter=chosen.adapter,
            variants=Wanted(
                prepared.config.export.quantize,
                prepared.config.export.max_quantized_drop,
                worker.data("train", backbone),
            )
            if prepared.config.export.quantize
            else None,
        ),
        folder,
        max_metric_drop=prepared.config.export.max_metric_drop,
        max_output_difference=prepared.config.export.max_output_difference,
        golden=prepared.config.export.golden,
    )
    if answers is not None:
        keep(answers, exported.answered)
    return {
        "metric": prepared.objective.metric,
        "winner": {
            "trial": winner.number,
            "epoch": chosen.epoch,
            "value": chosen.value,
            "settings": shown,
            "training": asdict(settings),  # all of it, for `autoft reproduce`
            "weights": chosen.made_of.text,
            "made_of": chosen.made_of.to_dict(),
        },
        "confirmed": chosen.confirmed,
        **exported_facts(exported),
        "test_scored": scored,
        "reports": exported.reports,
    }


def describe_settings(candidate: Candidate, settings: TrainConfig, space: Space) -> dict[str, Any]:
    """Return everything that decided a trial's training, JSON-ready."""
    return {"backbone": space.labels[candidate.backbone], **candidate.values, **fixed_of(settings)}


def fixed_of(settings: TrainConfig) -> dict[str, Any]:
    """Return what a training has beside its point of the space, or as a rule outside of it."""
    names = ("epochs", "batch_size", "optimizer", "warmup", "gradient_clip", "seed")
    return {name: getattr(settings, name) for name in names}


def stored_result(run: RunFolder, chosen: Chosen) -> dict[str, Any] | None:
    """Return the result of an earlier session if it is of these weights and its bundle is still there."""
    stored = read_result(run.path)
    if stored is None:
        return None
    winner = stored["winner"]
    same = (winner["trial"], winner["value"], winner["weights"]) == (chosen.trial.number, chosen.value, chosen.made_of.text)
    if not same or not (run.bundle / "autoft.json").exists():
        return None
    return stored


def note(run: RunFolder, stored: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Store what else there is to say of a search with its result; return that."""
    noted = {**stored, **facts}
    write_checked(run.path / RESULT, noted)
    return noted


def summarize(trials: Trials, run: RunFolder, metric: str, stored: Mapping[str, Any] | None) -> SearchResult:
    """Return the result of a session; `stored` is None where it was interrupted."""
    best = trials.best()
    winner = stored["winner"] if stored else None
    preset = next((trial.user_attrs.get("best_value") for trial in trials.all()), None)
    return SearchResult(
        run=run.path,
        bundle=run.bundle if stored else None,
        metric=metric,
        trial=winner["trial"] if winner else best.number if best else None,
        value=winner["value"] if winner else best.user_attrs["best_value"] if best else None,
        preset=preset,
        test=stored["test"] if stored else {},
        test_error=stored["test_error"] if stored else None,
        trials=trials.counts(),
        interrupted=stored is None,
        front=tuple(Point(**each) for each in (stored or {}).get("front", ())),
        failures=trials.failures(),
        differs=tuple((stored or {}).get("repeats", {}).get("why_not", ())),
    )


def nothing_trained(trials: Trials, run: RunFolder) -> Exception:
    """Return the error of a search in which every trial failed; a bug where any was one."""
    failed = trials.all(TrialState.FAIL)
    bugs = [trial for trial in failed if trial.user_attrs.get("failure") == "bug"]
    if bugs:
        return RepeatedBugError(f"no trial gave a model; please report this:\n{bugs[0].user_attrs['trace']}")
    kinds = Counter(_failure(trial) for trial in failed)
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    first = failed[0].user_attrs.get("message", "no message") if failed else "no trial ran"
    return RunError(
        f"no trial gave a model: all {len(failed)} failed ({counted}); the first: {first}",
        f"{run.path / 'log.jsonl'} has all of them; lower `space.learning_rate` where the loss became NaN, "
        "choose a smaller backbone where memory ran out",
    )


def _failure(trial: FrozenTrial) -> str:
    kind: str = trial.user_attrs.get("failure", "unknown")
    return kind


def read_result(run: Path) -> dict[str, Any] | None:
    """Return a run's `result.json`, or None where there is none.

    Raises:
        RunError: It is damaged.
    """
    file = run / RESULT
    if not file.exists():
        return None
    try:
        return read_json(file)
    except (OSError, ValueError) as error:
        raise RunError(
            f"{file} is damaged: {first_line(error)}", "remove it: the same `autoft search` again writes it anew"
        ) from error
