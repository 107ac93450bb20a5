"""Types the same search twice, and compares trials and weights; where seconds decide, looks whether it says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from commands import table
from kills import Search, differences
from promise import Tally

from autoft.files import read_json

USUAL = ("search.trials=8", "trainer.epochs=9", "search.seeds=2")
KINDS = {
    "one process": (*USUAL, "search.workers=0"),
    "two workers": (*USUAL, "search.workers=2"),
    "three workers": (*USUAL, "search.workers=3"),
    "full space": (*USUAL, "search.workers=2", "search.space=full"),
}


def twice(folder: Path, kind: str) -> Tally:
    """Search twice in processes of their own."""
    runs = [Search(folder, f"{name}-{kind.replace(' ', '-')}", KINDS[kind]) for name in ("one", "other")]
    for run in runs:
        run.whole()
    broken = differences(*runs)
    said = [read_json(run.path / "result.json")["repeats"] for run in runs]
    broken += [f"result.json says {each}" for each in said if not each["bit_for_bit"]]
    return Tally("repeats", f"same seed, same trials and weights bit for bit: {kind}", len(table(runs[0].path)), broken)


def timed(folder: Path) -> Tally:
    """Search with a time limit: what is trained depends on seconds, and the result says so."""
    run = Search(folder, "timed", (*USUAL, "search.time_limit=1m"))
    run.whole()
    said = read_json(run.path / "result.json")["repeats"]
    card = (run.path / "bundle" / "README.md").read_text()
    told = not said["bit_for_bit"] and "time limit" in said["why_not"][0] and "time limit" in card
    return Tally(
        "repeats", "what keeps a search from repeating is in the result and the card", 1, [] if told else [str(said)]
    )


def tallies(folder: Path, *, long: bool, seed: int) -> Iterator[Tally]:
    """Repeat searches."""
    for kind in KINDS if long else ("two workers",):
        yield twice(folder, kind)
    yield timed(folder)
