"""What several runs gave, beside each other: their scores, what differs between their studies, and whether it mattered."""

from __future__ import annotations

import html
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autoft.contrast import SURE, Contrast, Scored, contrast
from autoft.discovery import discover
from autoft.errors import RunError
from autoft.finish import read_result
from autoft.identity import defaults
from autoft.runfolder import flat, read_events, read_lock
from autoft.specs import Direction
from autoft.status import Status, read_status
from autoft.telling import number

DIVISION = ("validation_share", "test_share", "split_seed", "group")  # settings by which autoft divides data itself
LONGEST = 28  # characters of a value in a table
Row = tuple[str, ...]


@dataclass(frozen=True)
class Compared:
    """A run, in one line.

    Attributes:
        path: Its folder.
        name: Of its study.
        state: `done`, `stopped`, `killed`, or `running`.
        data: Name of the data's folder or file, with the beginning of the fingerprint.
        task: Its task; empty where it is not known yet.
        metric: What is optimized; empty where it is not known yet.
        direction: Of the metric.
        validation: The best value on the validation split so far, or None.
        test: The exported model's on the test split, or None.
        test_error: Standard error of that over the test samples, or None.
        looks: How many models of this run were scored on the test split.
        seeds: The winner's validation metric by seed; empty where it was not trained over seeds.
        ended: Trials that have ended.
        budget: How many there may be, or None where that is not known.
        seconds: That it was worked on, in all sessions.
        backbone: The best trial's; empty before there is one.
        bundle_size: Bytes of the bundle, or None where there is none.
    """

    path: Path
    name: str
    state: str
    data: str
    task: str
    metric: str
    direction: Direction
    validation: float | None
    test: float | None
    test_error: float | None
    looks: int
    seeds: Mapping[str, float]
    ended: int
    budget: int | None
    seconds: float
    backbone: str
    bundle_size: int | None


@dataclass(frozen=True)
class Comparison:
    """Several runs beside each other.

    Attributes:
        runs: As they were named; the first is the one that the others are compared with.
        settings: What differs between their studies: by the setting's dotted name, each run's value, in their order.
        winners: The same of the settings of the trials that won, of those runs that have one; None for the others.
        contrasts: Each other run against the first.
    """

    runs: tuple[Compared, ...]
    settings: Mapping[str, tuple[Any, ...]]
    winners: Mapping[str, tuple[Any, ...]]
    contrasts: tuple[Contrast, ...]

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the runs, the verdicts, what differs."""
        tables = [runs_table(self), contrasts_table(self)]
        tables += [settings_table(self, values) for values in (self.settings, self.winners) if values]
        said = "".join(f"<p>{html.escape(line)}</p>" for line in explained(self))
        return "".join(map(_html, tables[:2])) + said + "".join(map(_html, tables[2:]))


def compare(*runs: str | Path, plugins: bool = True) -> Comparison:
    """Compare runs: what each gave, what differs between their studies, and whether the scores differ by more than chance.

    Nothing is trained or written; a search may go on meanwhile, and is shown with what it has.

    Args:
        runs: Two run folders or more; each is compared with the first.
        plugins: Whether third-party plugins may be loaded, which a task may need.

    Raises:
        RunError: There are less than two different runs, one of them is none, or is damaged.

    Example:
        >>> comparison = autoft.compare("runs/first", "runs/second")  # doctest: +SKIP
        >>> comparison.contrasts[0].verdict  # doctest: +SKIP
        'better'
    """
    paths = [Path(run) for run in runs]
    if len({path.resolve() for path in paths}) < max(2, len(paths)):
        raise RunError(
            f"two runs or more are compared, each named once, but got {', '.join(map(str, paths)) or 'none'}",
            "`autoft list` shows the runs of a folder",
        )
    found = [_look(path) for path in paths]
    catalog = discover(enabled=plugins)
    first, *others = (scored for _, scored, _, _ in found)
    return Comparison(
        runs=tuple(compared for compared, *_ in found),
        settings=differing([settings for _, _, settings, _ in found]),
        winners=differing([winner for *_, winner in found]),
        contrasts=tuple(contrast(each, first, catalog, comparisons=len(others)) for each in others),
    )


def differing(mappings: Sequence[Mapping[str, Any] | None]) -> dict[str, tuple[Any, ...]]:
    """Return the names whose values are not the same in all mappings, with each one's; None stands for no mapping.

    Example:
        >>> differing([{"a": 1, "b": 2}, {"a": 1, "b": 3}, None])
        {'b': (2, 3, None)}
    """
    there = [each for each in mappings if each is not None]
    names = dict.fromkeys(name for each in there for name in each)
    return {
        name: tuple(None if each is None else each.get(name) for each in mappings)
        for name in names
        if any(each.get(name) != there[0].get(name) for each in there)
    }


def worked_seconds(events: Iterable[Mapping[str, Any]]) -> float:
    """Return how long a run was worked on: from the first to the last event of each session, without the time between.

    Args:
        events: As `log.jsonl` has them, in order.
    """
    seconds, last = 0.0, None
    for event in events:
        when = event.get("time")
        if not isinstance(when, int | float):
            continue
        begins = event["event"] == "data" and "path" in event
        if last is not None and not begins:
            seconds += max(0.0, when - last)
        last = when
    return seconds


def runs_table(found: Comparison) -> list[Row]:
    """Return the runs as rows of cells, the headings first."""
    rows: list[Row] = [
        ("run", "state", "data", "metric", "validation", "test", "over seeds", "trials", "seconds", "backbone", "bundle")
    ]
    for run in found.runs:
        rows.append(
            (
                str(run.path),
                run.state,
                run.data,
                run.metric,
                "" if run.validation is None else number(run.validation),
                "" if run.test is None else f"{number(run.test)} ± {number(run.test_error)}",
                _over_seeds(run.seeds),
                f"{run.ended}" + ("" if run.budget is None else f" of {run.budget}"),
                f"{run.seconds:.0f}",
                run.backbone,
                "" if run.bundle_size is None else f"{run.bundle_size / 1e6:.1f} MB",
            )
        )
    return rows


def settings_table(found: Comparison, values: Mapping[str, Sequence[Any]]) -> list[Row]:
    """Return settings that differ as rows of cells, the headings first: a column a run.

    Args:
        found: The comparison.
        values: Its `settings` or `winners`.
    """
    return [
        ("setting", *(str(run.path) for run in found.runs)),
        *((name, *(_shown(value) for value in each)) for name, each in values.items()),
    ]


def contrasts_table(found: Comparison) -> list[Row]:
    """Return each run against the first as rows of cells, the headings first."""
    rows: list[Row] = [
        (f"against {found.runs[0].path}", "verdict", "difference", "standard error", "interval", "p", "rests on")
    ]
    for each in found.contrasts:
        if each.difference is None or each.p is None:
            rows.append((str(each.run), each.verdict, "", "", "", "", ""))
            continue
        rows.append(
            (
                str(each.run),
                each.verdict,
                f"{each.difference:+.4f}",
                number(each.error),
                f"{each.low:+.4f} to {each.high:+.4f}",
                "below 0.001" if each.p < 0.001 else f"{each.p:.3f}",
                each.counted,
            )
        )
    return rows


def explained(found: Comparison) -> list[str]:
    """Return what is to be known of the verdicts, in words: why there is none, and what moves the scores of the others."""
    lines = [
        f"{each.run}: {'' if each.basis is None else 'not by the test samples, as '}{'; '.join(each.why)}"
        for each in found.contrasts
        if each.why
    ]
    bases = {each.basis for each in found.contrasts}
    several = "all intervals hold together" if len(found.contrasts) > 1 else "the interval holds"
    sure = f"{several} at {SURE:.0%} confidence"
    if "samples" in bases:
        lines.append(f"on test samples: by a paired bootstrap, so for other samples of the same kind; {sure}")
    if "seeds" in bases:
        lines.append(f"over seeds: by Welch's t-test, so for trainings with other seeds on the same samples; {sure}")
    return lines


def as_json(found: Comparison) -> dict[str, Any]:
    """Return a comparison, JSON-ready."""
    return {
        "runs": [
            {**asdict(run), "path": str(run.path), "over_seeds": {"mean": mean, "spread": spread}}
            for run in found.runs
            for mean, spread in [mean_and_spread(run.seeds)]
        ],
        "settings": {name: list(values) for name, values in found.settings.items()},
        "winners": {name: list(values) for name, values in found.winners.items()},
        "contrasts": [{**asdict(each), "run": str(each.run), "other": str(each.other)} for each in found.contrasts],
    }


def mean_and_spread(seeds: Mapping[str, float]) -> tuple[float | None, float | None]:
    """Return mean and standard deviation over seeds; None where there are too few."""
    values = list(seeds.values())
    return statistics.fmean(values) if values else None, statistics.stdev(values) if len(values) > 1 else None


def _look(path: Path) -> tuple[Compared, Scored, dict[str, Any], dict[str, Any] | None]:
    """Return what there is of a run: its line, what its score is compared by, its settings, those of the winner."""
    status, lock, result = read_status(path), read_lock(path), read_result(path) or {}
    events = list(read_events(path))
    identity: Mapping[str, Any] = lock["identity"]
    data: Mapping[str, Any] = identity.get("data") or {}
    facts: Mapping[str, Any] = next(
        (event for event in reversed(events) if event["event"] == "data" and "train" in event), {}
    )
    winner: Mapping[str, Any] = result.get("winner") or {}
    seeds = ((result.get("confirmed") or {}).get("values") or {}).get(str(winner.get("trial")), {})
    metric, direction = result.get("metric", status.metric), _direction(status)
    test: Mapping[str, float] = result.get("test") or {}
    best, bundle = status.best, status.bundle
    compared = Compared(
        path=path,
        name=status.name or identity.get("name", path.name),
        state=status.state,
        data=_data(events, data.get("fingerprint")),
        task=facts.get("task", ""),
        metric=metric,
        direction=direction,
        validation=winner.get("value", None if best is None else best.value),
        test=test.get(metric),
        test_error=result.get("test_error"),
        looks=result.get("test_scored", 1 if test else 0),
        seeds=seeds,
        ended=status.ended,
        budget=status.budget,
        seconds=worked_seconds(events),
        backbone=winner.get("settings", {}).get("backbone", "" if best is None else best.backbone),
        bundle_size=None if bundle is None else sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file()),
    )
    scored = Scored(
        run=path,
        task=compared.task,
        metric=metric,
        direction=direction,
        fingerprint=data.get("fingerprint"),
        division={name: data.get(name) for name in DIVISION} if facts.get("made_splits") else {},
        test=test,
        seeds=seeds,
    )
    # the budget is no part of what a run is, but of what it cost; and a run of an older autoft lacks what came later
    budget = {"search.trials": status.budget, "search.time_limit": status.time_limit}
    return compared, scored, {**flat(defaults()), **flat(identity), **budget}, winner.get("settings")


def _direction(status: Status) -> Direction:
    return "minimize" if status.direction == "minimize" else "maximize"


def _data(events: Iterable[Mapping[str, Any]], fingerprint: str | None) -> str:
    """Return the name of the data that was read last, with the beginning of the fingerprint."""
    paths = [event["path"] for event in events if event["event"] == "data" and "path" in event]
    name = Path(paths[-1]).name if paths else ""
    return f"{name} ({fingerprint[:8]})" if fingerprint else name


def _over_seeds(seeds: Mapping[str, float]) -> str:
    mean, spread = mean_and_spread(seeds)
    if mean is None:
        return ""
    return f"{number(mean)}{'' if spread is None else f' ± {number(spread)}'} ({len(seeds)})"


def _shown(value: Any) -> str:
    """Return a setting's value as a study file writes it, cut to a length; nothing for one that is not set."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _html(rows: Sequence[Row]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0])
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows[1:])
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
