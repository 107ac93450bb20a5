"""The hostile corpus, case by case, and that a case which does harm is seen."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hostile import CANARY, PARTS, SECRET, Case, attempt, cases, payload, run_all

pytestmark = pytest.mark.slow
NAMES = [f"{part}: {case.name}" for part, case in cases()]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("part", PARTS)
def test_no_case_does_harm_and_each_is_told_clearly(part: str, tmp_path: Path) -> None:
    reports = run_all(tmp_path, part)
    assert len(reports) == sum(name.startswith(f"{part}: ") for name in NAMES)
    broken = [f"{report.name}: {report.broken}\n{report.said}" for report in reports if report.broken]
    assert not broken, "\n".join(broken)


def test_corpus_is_large_and_its_names_differ() -> None:
    assert len(NAMES) >= 200
    assert not [name for name, count in Counter(NAMES).items() if count > 1]


@pytest.mark.parametrize(
    ("source", "code", "words"),
    [
        (lambda folder: payload(folder), 0, "code was run"),
        (lambda folder: f"import sys; sys.stderr.write({SECRET!r})", 0, "it tells what is in another file"),
        (lambda folder: "raise ValueError", 2, "a trace was printed"),
        (lambda folder: "import sys; sys.exit(2)", 2, "no rule was printed"),
        (lambda folder: "import sys; sys.exit(2)", 0, "exit code 2 instead of 0"),
        (lambda folder: "import sys; sys.stderr.write('\\x1b]0;owned\\a')", 0, "it wrote to the terminal's controls"),
        (lambda folder: f"open({str(folder / 'other')!r}, 'w')", 0, "it wrote other"),
        (lambda folder: "import time; time.sleep(60)", 0, "longer than 2 s"),
        (lambda folder: "x = bytearray(400 << 20)", 0, "MB instead of 300"),
    ],
)
def test_harm_is_seen(source: object, code: int, words: str, tmp_path: Path) -> None:
    def make(given: Path) -> tuple[str]:
        (given / "bundle").mkdir()
        (given / "bundle" / "predict.py").write_text(source(given.parent))  # type: ignore[operator]
        return ("predict.py",)

    (tmp_path / "good").mkdir()
    report = attempt("own", Case("harm", make, code=code, seconds=2, megabytes=300), tmp_path / "case", tmp_path / "good")
    assert any(words in each for each in report.broken), report
    assert not (tmp_path / CANARY).exists()
