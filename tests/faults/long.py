"""The long form of the reliability tests: prints how often each promise was put to the test, and what broke it.

    python tests/faults/long.py [PART ...] [--seed N]

Takes an hour on 2 cores; PART chooses among the parts. Exits with 1 where a promise is broken.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]  # the parts, and what all tests share

from promise import Tally  # noqa: E402

# each is a module beside this file with a function `tallies(folder, *, long, seed) -> Iterator[Tally]`
PARTS: tuple[str, ...] = ("kills", "failures", "repeats", "storage", "torn_files", "endurance", "hostile", "fuzz")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all of them otherwise")
    parser.add_argument("--seed", type=int, default=0, help="of what is random")
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"a part must be one of {', '.join(PARTS)}, but got {', '.join(sorted(unknown))}")
    began, found = time.monotonic(), list[Tally]()
    for part in options.parts or PARTS:
        print(f"-- {part}", flush=True)
        with tempfile.TemporaryDirectory(prefix=f"autoft-{part}-") as folder:
            for tally in importlib.import_module(part).tallies(Path(folder), long=True, seed=options.seed):
                print(tally, *(f"    {reason}" for reason in tally.broken), sep="\n", flush=True)
                found.append(tally)
    broken = [tally for tally in found if not tally.kept]
    tried = sum(tally.tried for tally in found)
    print(f"{len(found) - len(broken)} of {len(found)} promises held in {tried} tries, {time.monotonic() - began:.0f} s")
    raise SystemExit(bool(broken))


if __name__ == "__main__":
    main()
