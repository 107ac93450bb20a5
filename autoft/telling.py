"""What a search says of itself, as events: the words and the numbers; when each is said, the driver knows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoft.errors import first_line
from autoft.events import Event, Listener
from autoft.finish import SearchResult
from autoft.space import Candidate, Space
from autoft.specs import Range
from autoft.train import EpochReport


def search_begins(
    run: Path,
    name: str,
    *,
    done: int,
    trials: int,
    epochs: int,
    time_limit: float | None,
    space: Space,
    device: str,
    precision: str,
    metric: str,
    direction: str,
    in_memory: bool,
) -> Event:
    """Say that trials begin, or go on.

    Args:
        run: The run folder.
        name: Of the study.
        done: Trials that have ended in earlier sessions.
        trials: Trials in all.
        epochs: Of a whole trial.
        time_limit: Seconds in all, or None.
        space: What is searched.
        device: Where trials run.
        precision: Of the first backbone's trials.
        metric: What is optimized.
        direction: `maximize` or `minimize`.
        in_memory: Whether decoded samples are held in memory.
    """
    size, preset = space.parameters["batch_size"], space.preset["batch_size"]
    batch_size = f"{size.low:g} to {size.high:g}" if isinstance(size, Range) else preset
    text = f"resuming {run}: {done} trials done of" if done else f"searching in {run}:"
    budget = many(trials, "trial") + (f" or {time_limit:g} s" if time_limit else "")
    return Event(
        "search",
        f"{text} {budget}, {many(epochs, 'epoch')} each, batch size {batch_size}, on {device} in {precision}",
        {
            "run": str(run),
            "name": name,
            "trials": trials,
            "done": done,
            "time_limit": time_limit,
            "epochs": epochs,
            "batch_size": preset,
            "device": device,
            "precision": precision,
            "metric": metric,
            "direction": direction,
            "in_memory": in_memory,
        },
    )


def few_samples(samples: int, epochs: int, usual: int) -> Event:
    """Say that there are more epochs than usual, and why."""
    text = f"{samples} training samples are few: {epochs} epochs, not {usual}, so that there are enough steps to learn from"
    return Event("data", text, {"about": "data", "epochs": epochs, "usual": usual})


def trial_begins(number: int, role: str, candidate: Candidate, space: Space, *, from_epoch: int) -> Event:
    """Say that a trial begins, with what it tries, or goes on after a rest."""
    label = space.labels[candidate.backbone]
    shown = [f"{name} {short(value)}" for name, value in space.told(candidate).items()]
    if len(space.backbones) > 1:
        shown.insert(0, f"backbone {label}")
    which = f"trial {number}" + (f" ({role})" if role != "trial" else "")
    return Event(
        "trial",
        f"{which} goes on from epoch {from_epoch}" if from_epoch else f"{which}: {', '.join(shown)}",
        {"trial": number, "role": role, "from_epoch": from_epoch, "backbone": label, "settings": dict(candidate.values)},
    )


def epoch_ended(number: int, report: EpochReport, *, epochs: int, metric: str, seconds_left: float) -> Event:
    """Say what an epoch of a trial gave."""
    return Event(
        "epoch",
        f"trial {number} epoch {report.epoch}/{epochs}: "
        f"{metric} {report.value:.4f}, loss {report.train_loss:.4f}, {report.seconds:.1f} s",
        {
            "trial": number,
            "epoch": report.epoch,
            "epochs": epochs,
            "value": report.value,
            "train_loss": report.train_loss,
            "metrics": report.metrics,
            "seconds": round(report.seconds, 3),
            "seconds_left": seconds_left,
        },
    )


def trial_ended(
    number: int, state: str, value: float | None, why: str, *, leads: bool, seconds: float, metric: str
) -> Event:
    """Say that a trial ended, or rests, and why."""
    text = f"trial {number} {state}"
    if value is not None:
        text += f": {metric} {value:.4f}{', the best so far' if leads else ''}"
    if why not in ("finished", state):
        text += f" ({why})"
    data = {"trial": number, "state": state, "value": value, "why": why, "best": leads, "seconds": round(seconds, 3)}
    return Event("trial_end", text, data)


def memory_ran_out(number: int, micro_batch: int, batch_size: int) -> Event:
    """Say that a trial ran out of memory and went on, and what all later ones of its backbone do now."""
    text = f"trial {number} ran out of memory and went on: {many(micro_batch, 'sample')} a pass from now on, "
    return Event(
        "warning",
        text + f"still {batch_size} a step",
        {"about": "memory", "trial": number, "micro_batch": micro_batch, "batch_size": batch_size},
    )


def export_begins(number: int) -> Event:
    """Say that the winner goes through the gate."""
    return Event("export", f"exporting trial {number} and checking it", {"trial": number})


def variant_told(name: str, entry: Mapping[str, Any], metric: str, *, recommended: bool) -> Event:
    """Say what became of a variant of the exported graph."""
    if entry["shipped"]:
        size, latency = next(iter(entry["latency_ms"].items()))
        text = f"{name}: {metric} {entry['metric']:.4f}, {latency['p50']:.3g} ms for {many(int(size), 'sample')}"
        text += f", {entry['size_mb']:.3g} MB" + (", recommended" if recommended else "")
    else:
        text = f"{name} is left out: {entry['why']}"
    return Event("export", text, {"variant": name, **entry})


def tell_variants(stored: Mapping[str, Any], listener: Listener) -> None:
    """Tell what became of each variant of an export."""
    for name, entry in stored.get("variants", {}).items():
        best = stored["recommended"]["variant"] == name
        listener(variant_told(name, entry, stored["metric"], recommended=best))


def refit_begins(number: int, epochs: int) -> Event:
    """Say that the winner is trained once more, on both splits."""
    text = f"training trial {number} on the training and validation splits, for {epochs} epochs"
    return Event("export", text, {"trial": number, "refit": True})


def refit_left_out(seconds: float, seconds_left: float) -> Event:
    """Say that there is no time for that."""
    text = f"there is no time left to train on both splits: it would take about {seconds:.0f} s"
    return Event("warning", text, {"about": "refit", "seconds": seconds, "seconds_left": seconds_left})


def time_is_up() -> Event:
    """Say that no more trials begin."""
    return Event("stopped", "the time limit is reached", {"reason": "time limit"})


def interrupted(done: int, trials: int) -> Event:
    """Say that the user stopped the search, and what is kept."""
    text = f"stopped after {done} of {trials} trials; all of them are kept, and the same command goes on from here"
    return Event("stopped", text, {"reason": "interrupted", "trials": done})


def search_done(result: SearchResult, stored: Mapping[str, Any], *, run: Path, bundle: Path) -> Event:
    """Say who won, with the scores on validation and test."""
    return Event(
        "done",
        f"trial {result.trial} won: {result.metric} {number(result.value)} on validation "
        f"(preset {number(result.preset)}), {number(result.test.get(result.metric))} "
        f"± {number(result.test_error)} on test",
        {**stored, "run": str(run), "bundle": str(bundle), "trials": result.trials},
    )


def report_failed(run: Path, error: Exception) -> Event:
    """Say that the report could not be written, and how to try again."""
    why = f"{type(error).__name__}: {first_line(error)}"
    text = f"the search is done, but its report could not be written: {why}; hint: `autoft report {run}` tries again"
    return Event("warning", text, {"about": "report", "run": str(run), "why": why})


def many(count: int, noun: str) -> str:
    """Return a count with its noun, in the plural where it is not one."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def number(value: float | None) -> str:
    """Return a metric to four digits, or `none`."""
    return "none" if value is None else f"{value:.4f}"


def short(value: Any) -> str:
    """Return a setting's value to three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
