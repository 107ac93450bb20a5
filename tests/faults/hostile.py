"""Gives hostile input to the doors of autoft, each case in a process of its own, and looks at what that did.

The cases are in `hostile_*.py`. Run as a script with a folder, it does all of them and prints a line of JSON each: one
process imports everything, and forks for every case.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from commands import COMMAND, ONE_THREAD  # noqa: E402
from kills import site  # noqa: E402
from promise import Tally  # noqa: E402

PARTS = ("hostile_bundles", "hostile_models", "hostile_studies", "hostile_plugins", "hostile_images", "hostile_tables")
CANARY = "canary"  # a file that a payload would make
SECRET = "the secret words"  # of a file outside of what is given
SECONDS = 60.0
MEGABYTES = 3000  # at the peak; torch, transformers and onnxruntime are about 800 of it


@dataclass(frozen=True)
class Case:
    """Something hostile.

    Attributes:
        name: What it is, in words.
        make: Makes it in a folder, which holds `bundle` (a copy of a good one) and `images`, and returns the arguments of
            `autoft`; with `predict.py` as the first, those of the bundle's own script.
        words: What the message must have.
        code: The exit code: 2 where it is refused, 0 where it does no harm.
        seconds: Of wall time, at most.
        megabytes: Of memory, at most.
    """

    name: str
    make: Callable[[Path], Sequence[object]]
    words: Sequence[str] = ()
    code: int = 2
    seconds: float = SECONDS
    megabytes: int = MEGABYTES


@dataclass(frozen=True)
class Report:
    """What a case did.

    Attributes:
        part: Where it comes from.
        name: The case's.
        broken: What must not be, a line each.
        seconds: Wall time.
        megabytes: Memory at the peak.
        said: What it wrote to stderr.
    """

    part: str
    name: str
    broken: list[str]
    seconds: float
    megabytes: int
    said: str


def payload(folder: Path) -> str:
    """Return Python that makes the canary."""
    return f"open({str(folder / CANARY)!r}, 'w').write('code was run')"


class Payload:
    """Pickled, it makes the canary where it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, (payload(self.folder),)


def cases() -> Iterator[tuple[str, Case]]:
    """Yield all cases, with the part that each is of."""
    for part in PARTS:
        for case in importlib.import_module(part).CASES:
            yield part, case


def names_in(folder: Path) -> set[str]:
    """Return the paths of all files below, links included."""
    return {os.path.relpath(os.path.join(top, name), folder) for top, _, files in os.walk(folder) for name in files}


def attempt(part: str, case: Case, folder: Path, good: Path) -> Report:
    """Do one case in a child; return what it did."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder / "given")
    given = folder / "given"
    (folder / "secret.txt").write_text(SECRET)
    arguments = [str(argument) for argument in case.make(given)]
    before, began = names_in(folder), time.monotonic()
    child = os.fork()
    if child == 0:
        _in_child(arguments, folder, given)
    status, usage, late = _wait(child, case.seconds)
    seconds = time.monotonic() - began
    out, said = ((folder / name).read_text(errors="replace") for name in ("out", "err"))
    code = -signal.SIGKILL if late else os.waitstatus_to_exitcode(status)
    megabytes = usage.ru_maxrss // 1024
    broken = [f"exit code {code} instead of {case.code}"] if code != case.code else []
    both = re.sub(r"\x1b\[[0-9;]*m", "", out + said)  # colours, as of ONNX Runtime's own log, do no harm
    broken += [f"lacks {word!r}" for word in case.words if word.casefold() not in both.casefold()]
    broken += ["a trace was printed"] if "Traceback (most recent call last)" in both else []
    broken += ["no rule was printed"] if case.code == 2 and "error" not in said and "FAIL" not in out else []
    broken += ["it wrote to the terminal's controls"] if re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", both) else []
    broken += ["code was run"] if list(folder.rglob(CANARY)) else []
    broken += ["it tells what is in another file"] if SECRET in out + said else []
    new = {name for name in names_in(folder) - before if not name.startswith(("given/runs/", "out", "err", "cache"))}
    broken += [f"it wrote {name}" for name in sorted(new)[:3]]
    broken += [f"{megabytes} MB instead of {case.megabytes}"] if megabytes > case.megabytes else []
    broken += [f"longer than {case.seconds:.0f} s"] if late else []
    shutil.rmtree(folder, ignore_errors=True)
    return Report(part, case.name, broken, round(seconds, 2), megabytes, both[-2000:])


def _wait(child: int, seconds: float) -> tuple[int, resource.struct_rusage, bool]:
    """Wait for a child; kill it where it takes longer."""
    deadline, late = time.monotonic() + seconds, False
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return status, usage, late
        if time.monotonic() > deadline and not late:
            late = True
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.02)


def _in_child(arguments: list[str], folder: Path, given: Path) -> None:
    """Run the command, or a bundle's script, with the case's folder as the current one; never returns."""
    os.setpgid(0, 0)
    code = 1
    try:
        os.chdir(given)
        for name, descriptor in (("out", 1), ("err", 2)):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), descriptor)
        os.environ["AUTOFT_CACHE"] = str(folder / "cache")
        if arguments[0] == "predict.py":
            command = [sys.executable, "-I", str(given / "bundle" / "predict.py"), *arguments[1:]]
            code = subprocess.run(command, env={**os.environ, **ONE_THREAD}).returncode
        else:
            from autoft.cli import main

            sys.argv = ["autoft", *arguments]
            main()
    except SystemExit as leaving:
        code = int(leaving.code or 0) if not isinstance(leaving.code, str) else 1
    except BaseException:  # noqa: BLE001 - whatever escapes is what is looked for
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def prepare(folder: Path) -> Path:
    """Make what every case begins with: a good bundle, and images."""
    from autoft.testing.toy import write_toy_images

    good = folder / "good"
    write_toy_images(good / "images")
    few = [word for setting in ("search.trials=1", "trainer.epochs=1", "search.workers=0") for word in ("--set", setting)]
    arguments = ["search", good / "images", "-b", "toy/mlp", "-o", folder / "run", *few, "--quiet"]
    # in a process of its own: a process that has trained cannot fork others that train
    path = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(folder / "site")}
    subprocess.run([str(COMMAND), *map(str, arguments)], env=path, check=True, stdout=subprocess.DEVNULL)
    shutil.copytree(folder / "run" / "bundle", good / "bundle")
    return good


def main() -> None:
    """Do all cases, or those whose part or name has the words that are given."""
    folder, words = Path(sys.argv[1]), sys.argv[2:]
    sys.path.insert(0, str(site(folder / "site")))
    os.environ["AUTOFT_CACHE"] = str(folder / "cache")
    import torch

    import autoft.driver  # noqa: F401 - with all that it takes, so that the cases need not import it

    torch.set_num_threads(1)
    good = prepare(folder)
    for part, case in cases():
        if all(word in f"{part} {case.name}" for word in words):
            print(json.dumps(asdict(attempt(part, case, folder / "case", good))), flush=True)


def run_all(folder: Path, *words: str) -> list[Report]:
    """Do the cases in a process of its own; return what they did."""
    folder.mkdir(parents=True, exist_ok=True)
    ran = subprocess.run(
        [sys.executable, __file__, str(folder), *words],
        capture_output=True,
        text=True,
        env={**os.environ, **ONE_THREAD},
        timeout=1800,
    )
    assert ran.returncode == 0, ran.stderr
    return [Report(**json.loads(line)) for line in ran.stdout.splitlines()]


def tallies(folder: Path, *, long: bool, seed: int) -> Iterator[Tally]:
    """Do all cases, and count them by part."""
    reports = run_all(folder)
    for part in PARTS:
        own = [report for report in reports if report.part == part]
        broken = [f"{report.name}: {'; '.join(report.broken)}" for report in own if report.broken]
        slowest, largest = max(report.seconds for report in own), max(report.megabytes for report in own)
        note = f"the slowest took {slowest:.1f} s, the largest {largest} MB"
        promise = "refused or harmless, with a clear message, no code run, time and memory bounded"
        yield Tally(part.replace("_", " "), promise, len(own), broken, note)


if __name__ == "__main__":
    main()
