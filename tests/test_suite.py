"""`checks_for` gives the checks of anything, by name or itself; they run in pytest or by the command, and can be waived."""

from __future__ import annotations

import json
import subprocess
import sys
import unittest
from dataclasses import replace
from pathlib import Path

import pytest
from commands import command
from conftest import InstallPlugin

from autoft.discovery import discover
from autoft.errors import PluginError
from autoft.specs import Backbone, BackboneRequest
from autoft.testing import checks_for, toy
from autoft.testing.bound import BoundCheck
from autoft.testing.kit import CheckFailed, CheckWarning

CONVNET: Backbone = toy.resolve(BackboneRequest("convnet", "none"))


def failing() -> None:
    raise CheckFailed("it is broken", "mend it")


def warning() -> None:
    raise CheckWarning("it is slow")


def crashing() -> None:
    raise KeyError("weights")


def bound(check: object, waiver: str | None = None) -> BoundCheck:
    return BoundCheck("toy/it", "rule", "what holds", check, waiver)  # type: ignore[arg-type]


# --- outcomes ---------------------------------------------------------------------------------------


def test_outcomes_say_what_was_found() -> None:
    assert bound(lambda: None).run().outcome == "passed"
    failed = bound(failing).run()
    assert (failed.outcome, failed.message, failed.passed) == ("failed", "it is broken\nhint: mend it", False)
    warned = bound(warning).run()
    assert (warned.outcome, warned.message, warned.passed) == ("warned", "it is slow", True)
    crashed = bound(crashing).run()
    assert crashed.outcome == "failed"
    assert "raised KeyError: 'weights' (at " in crashed.message


def test_waived_failure_is_shown_with_its_reason() -> None:
    waived = bound(failing, "no such operator yet").run()
    assert (waived.outcome, waived.passed) == ("waived", True)
    assert waived.message == "no such operator yet; it is broken"


def test_waiver_that_is_no_longer_needed_fails() -> None:
    found = bound(lambda: None, "no such operator yet").run()
    assert (found.outcome, found.passed) == ("failed", False)
    assert "remove the waiver" in found.message
    with pytest.raises(CheckFailed, match="toy/it: rule: the rule holds, but is waived"):
        bound(lambda: None, "no such operator yet")()


def test_in_pytest_a_failure_raises_a_warning_warns_and_a_waived_failure_skips() -> None:
    bound(lambda: None)()
    with pytest.raises(CheckFailed, match="it is broken"):
        bound(failing)()
    with pytest.warns(UserWarning, match="it is slow"):
        bound(warning)()
    with pytest.raises(unittest.SkipTest, match="waived: no such operator yet"):
        bound(failing, "no such operator yet")()


# --- checks_for -------------------------------------------------------------------------------------


def test_backbone_itself_is_checked_under_a_plain_head_and_strategies_that_fit() -> None:
    assert len(checks_for(CONVNET)) == 14
    (strategy,) = toy.autoft_strategies()
    with_strategy = [str(check) for check in checks_for(CONVNET, strategies=[strategy])]
    assert f"toy/convnet: {strategy.name}: merged-exports" in with_strategy
    refused = replace(strategy, check=lambda backbone, module: "no")
    assert len(checks_for(CONVNET, strategies=[refused])) == 14


@pytest.mark.usefixtures("toys")
def test_everything_can_be_named(tmp_path: Path) -> None:
    catalog = discover()
    toy.write_toy_images(tmp_path / "images", per_class=2)

    def subjects(name: str) -> list[str]:
        return list(dict.fromkeys(check.subject for check in checks_for(name, catalog=catalog, example=tmp_path / "images")))

    (strategy,) = toy.autoft_strategies()
    assert subjects("toy/mlp") == ["toy/mlp"]
    assert subjects("toy/text") == ["toy/text pooled", "toy/text sequence"]
    assert subjects("regression") == ["regression"]
    assert subjects("image-folder") == ["image-folder"]
    assert subjects(strategy.name)[0] == f"{strategy.name} on toy/convnet"
    assert subjects("toy") == subjects("Toy_Plugin")  # the plugin, and its package
    assert subjects("toy")[:2] == ["toy", "toy/mlp"]
    assert {"toy-classification", f"{strategy.name} on toy/mlp"} <= set(subjects("toy"))
    with pytest.raises(PluginError, match=r"named 'regresion'\nhint: did you mean regression"):
        subjects("regresion")


def test_ids_are_readable_and_unique() -> None:
    ids = [str(check) for check in checks_for(CONVNET)]
    assert len(set(ids)) == len(ids)
    assert "toy/convnet: export-parity" in ids
    assert all(check.about for check in checks_for(CONVNET))


def test_waiver_must_name_a_check_and_give_a_reason() -> None:
    (waived,) = [check for check in checks_for(CONVNET, waive={"export-parity": "an operator is new"}) if check.waiver]
    assert waived.id == "export-parity"
    with pytest.raises(PluginError, match="did you mean export-parity"):
        checks_for(CONVNET, waive={"export-partiy": "an operator is new"})
    with pytest.raises(PluginError, match="a waiver must give its reason, but that of export-parity is empty"):
        checks_for(CONVNET, waive={"export-parity": " "})


TEST = """
import pytest
from dataclasses import replace
from autoft.specs import BackboneRequest
from autoft.testing import checks_for, toy

BROKEN = replace(toy.resolve(BackboneRequest("mlp", "none")), feature_size=lambda module: 17)
ALL = checks_for(BROKEN, waive={"batch-order": "late"})
CHECKS = [check for check in ALL if check.id in ("feature-shape", "batch-order")]


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_conformance(check):
    check()
"""


def test_checks_parametrize_a_test_of_a_third_party(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TEST)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rA", "test_it.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "FAILED test_it.py::test_conformance[toy/mlp: feature-shape]" in done.stdout
    assert "hint: mend `feature_size`" in done.stdout
    assert "FAILED test_it.py::test_conformance[toy/mlp: batch-order]" in done.stdout  # it holds: the waiver is not needed
    assert "2 failed" in done.stdout


# --- the command ------------------------------------------------------------------------------------

PLUGIN = """
    from dataclasses import replace
    from autoft import hookimpl
    from autoft.specs import BackboneFamily
    from autoft.testing import toy

    def resolve(request):
        backbone = toy.resolve(request)
        return replace(backbone, name=f"faulty/{request.model}", feature_size=lambda module: 17)

    @hookimpl
    def autoft_backbones():
        suggest = lambda modality, limit: ("faulty/mlp",) if limit else ()
        return [BackboneFamily("faulty", "image", resolve, lambda: ("mlp",), suggest)]
"""


def test_command_checks_a_whole_package_and_says_what_to_mend(
    install_plugin: InstallPlugin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_plugin("faulty", PLUGIN, package="autoft-faulty")
    found = command(
        monkeypatch, capsys, "plugins", "check", "autoft-faulty", "--waive", "learns=its width is wrong", "--json"
    )
    assert found.code == 2
    results = {(entry["subject"], entry["check"]): entry for entry in json.loads(found.out)}
    assert results["faulty", "loads"]["outcome"] == "passed"
    assert results["faulty", "names"]["outcome"] == "passed"
    assert results["faulty/mlp", "feature-shape"]["outcome"] == "failed"
    assert "hint: mend `feature_size`" in results["faulty/mlp", "feature-shape"]["message"]
    assert results["faulty/mlp", "learns"]["outcome"] == "waived"


@pytest.mark.usefixtures("toys")
def test_what_cannot_be_checked_is_a_warning_among_the_checks_of_its_plugin() -> None:
    found = {check.subject: check.run() for check in checks_for("toy") if check.id == "can-be-checked"}
    assert list(found) == ["toy-stripes"]  # a data format, and no example was given
    assert found["toy-stripes"].outcome == "warned"
    assert "toy-stripes is not checked: a data format is checked on data that it can read" in found["toy-stripes"].message


def test_command_shows_a_broken_plugin_as_a_failure(
    install_plugin: InstallPlugin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_plugin("torn", "import nonsense_that_is_not_there\n")
    found = command(monkeypatch, capsys, "plugins", "check", "torn")
    assert found.code == 2
    assert "FAIL  loads\n      plugin torn must load, but is broken: importing `torn` failed" in found.out
    assert "FAIL  imports-fast\n" in found.out


def test_command_refuses_a_waiver_without_a_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = command(monkeypatch, capsys, "plugins", "check", "regression", "--waive", "metrics")
    assert found.code == 2
    assert "a waiver must be CHECK=REASON, but got 'metrics'" in " ".join(found.err.split())
