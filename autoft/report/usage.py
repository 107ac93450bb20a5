"""What to type with a run: how its bundle is run, and how the winner is trained again."""

from __future__ import annotations

import shlex
from pathlib import Path

from autoft.finish import read_result
from autoft.report.section import Section, commands, paragraph, table
from autoft.runfolder import LOCK, read_lock


def running(run: Path) -> Section | None:
    """Return how the bundle is run; None where there is none."""
    bundle = run / "bundle"
    if read_result(run) is None or not (bundle / "autoft.json").exists():
        return None
    place = shlex.quote(str(bundle.resolve()))
    body = paragraph("With autoft:") + commands(f"autoft predict {place} INPUTS...", f"autoft verify {place}")
    body += paragraph("Without it, on any machine with ONNX Runtime; the bundle's README.md says what else to install:")
    body += commands(f"cd {place}", "python predict.py --check", "python predict.py INPUTS...")
    return Section("run", "How to run it", body)


def reproducing(run: Path) -> Section | None:
    """Return what the search was made with, and how its winner is trained again; None where nothing was recorded."""
    lock, result = read_lock(run), read_result(run)
    search = lock["identity"].get("search") or {}
    data = lock["identity"].get("data") or {}
    facts = [
        ("seed", search.get("seed")),
        ("data's fingerprint", data.get("fingerprint")),
        ("device", lock.get("device")),
        ("platform", lock.get("platform")),
        *((name, number) for name, number in (lock.get("versions") or {}).items()),
    ]
    rows = [(name, value) for name, value in facts if value is not None]
    if not rows:
        return None
    place = shlex.quote(str(run.resolve()))
    body = ""
    if result is not None:
        body = commands(f"autoft reproduce {place}")
        repeats = result.get("repeats")
        if repeats is not None:
            why = "; ".join(repeats["why_not"])
            same = "to the last bit, with the same versions on the same machine" if repeats["bit_for_bit"] else f"not: {why}"
            body += paragraph(f"Another search of the same study and seed repeats {same}.")
    body += table(("what", "in this run"), rows)
    return Section(
        "reproduce", "How to reproduce it", body + paragraph(f"{run.resolve() / LOCK} has all that was recorded.")
    )
