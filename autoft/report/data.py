"""What the data were: how they are divided, how balanced, what was left out, and what was found wrong with the splits."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autoft.report.section import Section, table
from autoft.specs import SPLITS

MOST_ROWS = 200


def data(run: Path) -> Section | None:
    """Return sizes of splits, samples of each class, warnings and quarantined samples; None for a run without a log."""
    events = list(_events(run / "log.jsonl"))
    found = next((event for event in reversed(events) if event.get("event") == "data" and "train" in event), None)
    if found is None:
        return None
    made = found.get("made_splits", [])
    rows = [(split, found[split], "by autoft" if split in made else "by the data") for split in SPLITS]
    if made:  # taken from the training samples, of which the rest stays
        rows[0] = ("train", found["train"], "what is left")
    body = table(("split", "samples", "divided"), rows)
    counts = found.get("counts") or []  # none in logs of an earlier autoft, and where there are no classes
    if counts:
        total = sum(counts)
        classes = sorted(zip(found["classes"], counts, strict=True), key=lambda each: -each[1])
        cells = [(label, count, f"{count / total:.1%}") for label, count in classes[:MOST_ROWS]]
        more = f" The {MOST_ROWS} largest of {len(classes)}." if len(classes) > MOST_ROWS else ""
        body += f"<p>What the training split has of each class.{more}</p>\n"
        body += table(("class", "samples", "share"), cells)
    told = list(dict.fromkeys(event["warning"] for event in _warnings(events, "splits") if "warning" in event))
    if told:
        body += f"<ul>\n{''.join(f'<li>{html.escape(warning)}</li>{chr(10)}' for warning in told)}</ul>\n"
    left_out: list[dict[str, Any]] = next((event["rejected"] for event in reversed(list(_warnings(events, "rejected")))), [])
    if left_out:
        more = f" The first {MOST_ROWS} are listed." if len(left_out) > MOST_ROWS else ""
        body += f"<p>{len(left_out)} samples were left out, as they cannot be read.{more}</p>\n"
        body += table(("sample", "why"), [(one["id"], one["reason"]) for one in left_out[:MOST_ROWS]])
    return Section("data", "Data", body)


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
