"""What the data were: how divided, how balanced, how large or long, what was left out, and what is wrong with the splits."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autoft.report.section import Section, paragraph, table
from autoft.specs import SPLITS

MOST_ROWS = 200


def data(run: Path) -> Section | None:
    """Return splits, classes, sizes or lengths, warnings and quarantined samples; None for a run without a log."""
    events = list(_events(run / "log.jsonl"))
    found = next((event for event in reversed(events) if event.get("event") == "data" and "train" in event), None)
    if found is None:
        return None
    made = found.get("made_splits", [])
    rows = [(split, found[split], "by autoft" if split in made else "by the data") for split in SPLITS]
    if made:  # taken from the training samples, of which the rest stays
        rows[0] = ("train", found["train"], "what is left")
    body = table(("split", "samples", "divided"), rows)
    body += _classes(found) + _sizes(found, events)
    told = list(dict.fromkeys(event["warning"] for event in _warnings(events, "splits") if "warning" in event))
    if told:
        body += f"<ul>\n{''.join(f'<li>{html.escape(warning)}</li>{chr(10)}' for warning in told)}</ul>\n"
    left_out: list[dict[str, Any]] = next((event["rejected"] for event in reversed(list(_warnings(events, "rejected")))), [])
    if left_out:
        more = f" The first {MOST_ROWS} are listed." if len(left_out) > MOST_ROWS else ""
        body += f"<p>{len(left_out)} samples were left out, as they cannot be read.{more}</p>\n"
        body += table(("sample", "why"), [(one["id"], one["reason"]) for one in left_out[:MOST_ROWS]])
    return Section("data", "Data", body)


def _classes(found: dict[str, Any]) -> str:
    """Return what the splits have of each class; nothing where there are no classes, as in logs of an earlier autoft."""
    counts = found.get("counts") or []
    if not counts:
        return ""
    by_split = found.get("class_counts") or {"train": counts}
    total = sum(counts)
    order = sorted(range(len(counts)), key=lambda place: -counts[place])
    more = f" The {MOST_ROWS} largest of {len(order)}." if len(order) > MOST_ROWS else ""
    cells = [
        (found["classes"][place], f"{counts[place] / total:.1%}", *(column[place] for column in by_split.values()))
        for place in order[:MOST_ROWS]
    ]
    largest, smallest = counts[order[0]], counts[order[-1]]
    balance = f"The largest has {largest / smallest:.3g} times the samples of the smallest." if smallest else ""
    return paragraph(f"What each class has; its share is that of the training split. {balance}{more}") + table(
        ("class", "share", *by_split), cells
    )


def _sizes(found: dict[str, Any], events: list[dict[str, Any]]) -> str:
    """Return how large images are, and how long texts are for each backbone in its own tokens."""
    checked = {event["backbone"]: event for event in events if event.get("event") == "preflight" and "stages" in event}
    body = ""
    if found.get("typical_size"):
        taken = ", ".join(f"{name} {'x'.join(map(str, one['input_size']))}" for name, one in checked.items())
        body += paragraph(
            f"The longer side of 95 % of the images has at most {found['typical_size']} pixels."
            + (f" What backbones take: {taken}." if taken else "")
        )
    rows = [
        (name, split, *(one["tokens"][split][key] for key in ("median", "most", "longest", "cut")))
        for name, one in checked.items()
        for split in one.get("tokens", {})
    ]
    if rows:
        body += paragraph("How many tokens the samples have, special ones included, once those that are too long are cut.")
        body += table(("backbone", "split", "half have at most", "95 % at most", "the longest", "cut"), rows)
    return body


def _warnings(events: list[dict[str, Any]], about: str) -> Iterator[dict[str, Any]]:
    return (event for event in events if event.get("event") == "warning" and event.get("about") == about)


def _events(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a log; a line that a kill tore is passed over, as the log decides nothing."""
    if not file.exists():
        return
    for line in file.read_bytes().splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            yield event
