"""The study of conformance: every check against all built-ins and packages, and against a thing that breaks it.

    python studies/conformance/run.py            both tables, some minutes
    python studies/conformance/run.py broken     the second alone

The tables are written into README.md.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from broken import Broken, all_broken

from autoft.discovery import discover
from autoft.testing.bound import BoundCheck, CheckResult
from autoft.testing.suite import checks_for
from autoft.testing.toy import write_toy_csv, write_toy_images

README = Path(__file__).parent / "README.md"
EXAMPLES = {"image-folder": "stripes", "table": "messages.csv"}
# beside what checking a plugin by its name covers: the least of its suggested models
BACKBONES = (
    "timm/resnet18",
    "timm/vit_tiny_patch16_224",
    "timm/convnext_atto",
    "torchvision/resnet18",
    "torchvision/shufflenet_v2_x0_5",
)
MARKS = {"passed": "ok", "warned": "warned", "failed": "FAIL", "waived": "waived"}


def subjects(folder: Path) -> Iterable[tuple[str, list[BoundCheck]]]:
    """Yield everything that is installed, with its checks: plugins by name, some backbones, formats with an example."""
    write_toy_images(folder / "stripes", per_class=4)
    write_toy_csv(folder / "messages.csv")
    catalog = discover()
    for plugin in catalog.plugins:
        example = next((folder / EXAMPLES[given.name] for given in plugin.provides if given.name in EXAMPLES), None)
        yield plugin.package, checks_for(plugin.name, catalog=catalog, example=example)
    for name in BACKBONES:
        yield name.partition("/")[0], checks_for(name, catalog=catalog)


def sound(folder: Path) -> list[str]:
    """Run every check on what is installed; return a table with a row for each subject."""
    rows = ["| package | subject | checks | passed | warned, failed or waived |", "|---|---|---|---|---|"]
    for package, checks in subjects(folder):
        by_subject: dict[str, list[CheckResult]] = {}
        for check in checks:
            by_subject.setdefault(check.subject, []).append(check.run())
        for subject, results in by_subject.items():
            other = [result for result in results if result.outcome != "passed"]
            told = "; ".join(f"`{one.id}` {MARKS[one.outcome]}: {flat(one.message)}" for one in other)
            rows.append(f"| {package} | `{subject}` | {len(results)} | {len(results) - len(other)} | {told} |")
            print(rows[-1], flush=True)
    return rows


def caught(broken: Broken) -> CheckResult:
    """Run the check that must catch a broken thing."""
    (check,) = [check for check in broken.checks() if check.id == broken.check]
    return check.run()


def faults(folder: Path) -> list[str]:
    """Run on each broken thing the check that must catch it; return a table with a row for each."""
    sys.path.insert(0, str(folder))
    rows = ["| of | check | what is wrong | what its author is told |", "|---|---|---|---|"]
    for broken in all_broken(folder):
        result = caught(broken)
        rows.append(f"| {broken.of} | `{broken.check}` | {broken.how} | {MARKS[result.outcome]}: {flat(result.message)} |")
        print(rows[-1], flush=True)
    return rows


def flat(message: str) -> str:
    """Return a message as one cell of a table, without folders of this machine."""
    message = re.sub(r"(?<![\w:/])(/[\w.-]+)+/", "", message)
    return " ".join(message.replace("|", "\\|").replace("\nhint:", " *hint:*").split())


def renew(name: str, rows: Sequence[str]) -> None:
    """Replace a table in the README."""
    pattern = re.compile(rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)", re.DOTALL)
    table = "\n".join(["", *rows, "", ""])
    README.write_text(pattern.sub(lambda found: found[1] + table + found[2], README.read_text()), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        renew("broken", faults(Path(temporary)))
        if sys.argv[1:] != ["broken"]:
            renew("sound", sound(Path(temporary)))
