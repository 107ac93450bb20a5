"""Runs the fuzz tests with many inputs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from promise import Tally

INPUTS = 5000  # of each reader


def tallies(folder: Path, *, long: bool, seed: int) -> Iterator[Tally]:
    """Try many inputs on the readers of study files, tables and contracts."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "--timeout", "3600"]
    ran = subprocess.run(
        [*command, "--hypothesis-seed", str(seed), str(Path(__file__).with_name("test_fuzz.py"))],
        capture_output=True,
        text=True,
        env={**os.environ, "AUTOFT_FUZZ": str(INPUTS), "HYPOTHESIS_STORAGE_DIRECTORY": str(folder)},
    )
    passed = re.search(r"(\d+) passed", ran.stdout)
    broken = [line for line in ran.stdout.splitlines() if line.startswith(("FAILED", "E  "))]
    promise = "any bytes as a study file, a table or a contract give a result or an error with a message"
    yield Tally("fuzz", promise, INPUTS * int(passed.group(1)) if passed else 0, broken)
