"""What a search gave: the winner against the preset over seeds, its scores, and the variants of its graph."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from autoft.finish import read_result
from autoft.insight.page import BLUE, GREY
from autoft.report.section import Section, figure, paragraph, table
from autoft.telling import number


def outcome(run: Path) -> Section | None:
    """Return who won, by how much over the preset, and the scores; None where nothing was exported yet."""
    result = read_result(run)
    if result is None:
        return None
    winner, metric, test = result["winner"], result["metric"], result.get("test", {})
    told = f"Trial {winner['trial']} won: {metric} {number(winner['value'])} on validation"
    if metric in test:
        told += f", {number(test[metric])} ± {number(result.get('test_error'))} on test (one standard error)"
    body = paragraph(f"{told}. Exported were {winner.get('weights', 'the weights of its best epoch')}.")
    scored = result.get("test_scored", 1)
    if scored > 1:
        body += paragraph(f"The test split was looked at {scored} times: the best of several looks is a little optimistic.")
    confirmed = result.get("confirmed") or {}
    if confirmed:
        body += _over_seeds(confirmed, metric)
    names = dict.fromkeys([metric, *result.get("validation", {}), *test])
    rows = [(name, number(result.get("validation", {}).get(name)), number(test.get(name))) for name in names]
    return Section("result", "Result", body + table(("metric", "validation", "test"), rows))


def _over_seeds(confirmed: Mapping[str, Any], metric: str) -> str:
    values = {name: list(seeds.values()) for name, seeds in confirmed.get("values", {}).items()}
    winner, preset, gain = confirmed["winner"], confirmed.get("preset_mean"), confirmed.get("gain")
    told = f"Over {confirmed['seeds']} seeds trial {winner} has {number(confirmed['mean'])} ± {number(confirmed['spread'])}"
    if preset is not None and gain is not None:
        told += f", and the preset {number(preset)} ± {number(confirmed.get('preset_spread'))}: a gain of {gain:+.4f}"
    body = paragraph(f"{told} (standard deviation over seeds). Decided by: {confirmed['reason']}.")
    if not values:
        return body
    drawn = go.Figure()
    for name, seeds in values.items():
        colour = BLUE if name == str(winner) else GREY
        places = [f"trial {name}"] * len(seeds)
        drawn.add_scatter(x=seeds, y=places, mode="markers", marker={"color": colour, "size": 10}, showlegend=False)
    drawn.update_xaxes(title=metric)
    drawn.update_yaxes(type="category")
    drawn.update_layout(height=120 + 40 * len(values))
    rows = [
        (name, number(statistics.fmean(seeds)), number(statistics.stdev(seeds)) if len(seeds) > 1 else "", len(seeds))
        for name, seeds in values.items()
    ]
    rows.sort(key=lambda row: row[0] != str(winner))
    body += figure(drawn, f"{metric} on validation of each training with another seed; the winner's are blue.")
    return body + table(("trial", "mean", "spread", "seeds"), rows)


def variants(run: Path) -> Section | None:
    """Return what each graph of the bundle scores, weighs and takes; None where there is one alone."""
    result = read_result(run)
    if result is None or not result.get("variants"):
        return None
    rows = []
    for name, entry in result["variants"].items():
        latency = entry.get("latency_ms", {})
        fastest = min(latency, key=int, default=None)
        rows.append(
            (
                name,
                "yes" if entry["shipped"] else f"no: {entry.get('why', '')}",
                number(entry["metric"]) if "metric" in entry else "",
                f"{entry['drop']:+.4f}" if "drop" in entry else "",
                f"{latency[fastest]['p50']:.3g}" if fastest is not None else "",
                f"{entry['size_mb']:.3g}" if "size_mb" in entry else "",
                entry["method"],
            )
        )
    head = ("graph", "shipped", result["metric"], "loss", "ms, one sample", "MB", "method")
    advised = result.get("recommended")
    why = paragraph(f"Recommended is {advised['variant']}: {advised['why']}.") if advised else ""
    return Section("variants", "Variants of the graph", why + table(head, rows))
