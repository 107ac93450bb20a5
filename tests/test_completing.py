"""A shell is offered settings, loggers and what plugins provide, without torch being imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from commands import COMMAND

from autoft.cli.completing import complete_export_setting, complete_logger, complete_setting


def offered(*words: str) -> list[str]:
    """Return what bash is offered for the last of some words."""
    environment = {
        **os.environ,
        "_AUTOFT_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(("autoft", *words)),
        "COMP_CWORD": str(len(words)),
    }
    return subprocess.run([COMMAND], env=environment, capture_output=True, text=True, timeout=60).stdout.split()


@pytest.mark.parametrize(
    ("words", "among"),
    [
        (("se",), {"search"}),
        (("search", "photos", "--tri"), {"--trials"}),
        (("search", "photos", "--set", "trainer.ep"), {"trainer.epochs="}),
        (("init", "photos", "--set", "search.time"), {"search.time_limit="}),
        (("export", "run", "--set", "exp"), {"export.quantize=", "export.golden="}),
        (("search", "photos", "--log", "tens"), {"tensorboard"}),
        (("plugins", "show", "image-f"), {"image-folder"}),
        (("search", "photos", "--task", "multi"), {"multi-label"}),
    ],
)
def test_shell_is_offered_what_fits(words: tuple[str, ...], among: set[str]) -> None:
    if words[-1] in ("tens", "image-f", "multi"):  # the record of the last loading has them
        subprocess.run([COMMAND, "plugins", "--load"], capture_output=True, timeout=120, check=True)
    assert among <= set(offered(*words))


def test_every_setting_is_offered_and_nothing_else() -> None:
    whole = complete_setting("")
    assert {"name=", "task=", "data.path=", "search.trials=", "trainer.precision=", "export.quantize="} <= set(whole)
    assert complete_export_setting("") == [name for name in whole if name.startswith("export.")]
    assert complete_setting("nothing") == []
    assert complete_logger("nothing") == []


def test_completing_imports_no_torch() -> None:
    script = (
        "import sys\nfrom autoft.cli.completing import complete_provided, complete_setting\n"
        "complete_setting(''), complete_provided('')\nassert not {'torch', 'optuna', 'timm'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
