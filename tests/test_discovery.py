"""Discovery: what is found without importing, what each breakage says, and that one never takes the others down."""

from __future__ import annotations

import functools
import importlib
import logging
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
from conftest import InstallPlugin

from autoft import HOOKS_VERSION, __version__, discovery, hookspecs
from autoft.discovery import PluginInfo, discover, installed
from autoft.errors import PluginError

START = """
import autoft
from autoft.specs import DataFormat

def form(name):
    return DataFormat(name=name, modality="image", detect=lambda path: False, load=None, help=f"reads {name}")
"""


def provides(*names: str) -> str:
    """Source of a sound plugin that provides data formats."""
    listed = ", ".join(f"form({name!r})" for name in names)
    return f"{START}\n@autoft.hookimpl\ndef autoft_data():\n    return [{listed}]\n"


def named(plugins: tuple[PluginInfo, ...], name: str, package: str | None = None) -> PluginInfo:
    (found,) = [plugin for plugin in plugins if plugin.name == name and package in (None, plugin.package)]
    return found


# --- listing --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("only_fake_plugins")
def test_listing_imports_no_plugin(install_plugin: InstallPlugin, tmp_path: Path) -> None:
    witness = tmp_path / "imported"
    install_plugin("curious", f"open({str(witness)!r}, 'w').close()\n{provides('curious')}", version="2.5")
    assert installed() == (PluginInfo("curious", "curious", "curious", "2.5"),)
    assert not witness.exists()
    discover()
    assert witness.exists(), "the witness must tell an import when there is one"


@pytest.mark.usefixtures("only_fake_plugins")
def test_listing_shows_what_the_last_loading_found(install_plugin: InstallPlugin) -> None:
    install_plugin("sound", provides("pictures"))
    install_plugin("sick", "raise ValueError('no luck')")
    assert [plugin.status for plugin in installed()] == ["not loaded yet", "not loaded yet"]
    discover()
    sick, sound = installed()
    assert sick.status == "broken: importing `sick` failed: ValueError: no luck"
    assert sound.status == "ok"
    assert [(given.kind, given.name, given.help) for given in sound.provides] == [("data", "pictures", "reads pictures")]


@pytest.mark.usefixtures("only_fake_plugins")
def test_autofts_own_plugins_come_first_then_by_name(install_plugin: InstallPlugin) -> None:
    install_plugin("alpha", provides("alpha"))
    install_plugin("zulu", provides("zulu"), package="autoft", version="0.1.0")
    install_plugin("beta", provides("beta"))
    assert [plugin.name for plugin in installed()] == ["zulu", "alpha", "beta"]
    assert [plugin.name for plugin in discover().plugins] == ["zulu", "alpha", "beta"]


@pytest.mark.usefixtures("only_fake_plugins")
def test_damaged_package_metadata_hides_no_other_plugin(install_plugin: InstallPlugin) -> None:
    install_plugin("sound", provides("pictures"))
    install_plugin("torn", provides("torn"), entry_points="[autoft]\nno equals sign\n")
    with pytest.raises(TypeError):  # why discovery reads the packages one by one
        list(metadata.distribution("torn").entry_points)
    catalog = discover()
    assert set(catalog.data) == {"pictures"}
    assert named(catalog.plugins, "torn").status.startswith("broken: its package's metadata cannot be read: TypeError")


def test_copy_of_a_package_behind_another_on_the_path_does_not_count(
    install_plugin: InstallPlugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = tmp_path / "older"
    older.mkdir()
    install_plugin("sound", provides("pictures"), package="sound-pkg", version="2.0")
    install_plugin("sound", provides("pictures"), package="sound-pkg", version="1.0", folder=older)
    install_plugin("gone", provides("gone"), package="shrunk", version="2.0", entry_points="[console_scripts]\n")
    install_plugin("gone", provides("gone"), package="shrunk", version="1.0", folder=older)
    path = [str(tmp_path / "site"), str(older)]
    monkeypatch.setattr(metadata, "distributions", functools.partial(metadata.distributions, path=path))
    assert [str(plugin) for plugin in installed()] == ["plugin sound (sound-pkg 2.0)"]


# --- breakages ------------------------------------------------------------------------------------

BREAKAGES = {
    "fails at import": (
        "raise RuntimeError('first line\\nsecond line')",
        "importing `broken` failed: RuntimeError: first line second line",
    ),
    "exits at import": ("import sys; sys.exit(3)", "importing `broken` failed: SystemExit: 3"),
    "panics at import": (
        "class Panic(BaseException): pass\nraise Panic('rust')",
        "importing `broken` failed: Panic: rust",
    ),
    "syntax error": ("def broken(:", "importing `broken` failed: SyntaxError: "),
    "needs a package that is not there": (
        "import package_that_is_not_there",
        "importing `broken` failed: ModuleNotFoundError: No module named 'package_that_is_not_there'",
    ),
    "error that cannot be shown": (
        "class Odd(Exception):\n    def __str__(self): raise KeyError\nraise Odd",
        "importing `broken` failed: Odd: (its message cannot be shown: KeyError)",
    ),
    "no hook": ("answer = 42", "it implements no hook; did you mark it with @autoft.hookimpl?"),
    "hook without the marker": (
        "def autoft_data(): return []",
        "it implements no hook but has `autoft_data`; did you mark it with @autoft.hookimpl?",
    ),
    "one of two hooks without the marker": (
        provides("half") + "def autoft_heads(): return []",
        "hook `autoft_heads` would never be called; did you mark it with @autoft.hookimpl?",
    ),
    "misspelt hook": (
        START + "@autoft.hookimpl\ndef autoft_dataa(): return []",
        "hook `autoft_dataa` is unknown to autoft; did you mean `autoft_data`?",
    ),
    "hook like no other": (
        START + "@autoft.hookimpl\ndef cook_dinner(): return []",
        "hook `cook_dinner` is unknown to autoft; it knows autoft_backbones, autoft_heads, autoft_data",
    ),
    "wrong argument": (
        START + "@autoft.hookimpl\ndef autoft_data(config): return []",
        "hook `autoft_data` is given no argument `config`; its arguments are: none",
    ),
    "wrapper": (
        START + "@autoft.hookimpl(wrapper=True)\ndef autoft_data():\n    return (yield)",
        "hook `autoft_data` is marked as a wrapper",
    ),
    "hook raises": (
        START + "@autoft.hookimpl\ndef autoft_data(): raise ValueError('oops')",
        "hook `autoft_data` raised: ValueError: oops",
    ),
    "hook exits": (
        START + "@autoft.hookimpl\ndef autoft_data(): raise SystemExit('bye')",
        "hook `autoft_data` raised: SystemExit: bye",
    ),
    "hook returns nothing": (
        START + "@autoft.hookimpl\ndef autoft_data(): pass",
        "hook `autoft_data` must return a list of DataFormat, but returned NoneType",
    ),
    "hook yields": (
        START + "@autoft.hookimpl\ndef autoft_data(): yield form('one')",
        "hook `autoft_data` must return a list of DataFormat, but returned generator",
    ),
    "item of the wrong type": (
        START + "@autoft.hookimpl\ndef autoft_data(): return [form('one'), 'two']",
        "hook `autoft_data` must return a list of DataFormat, but [1] is str",
    ),
    "the class for an item": (
        START + "@autoft.hookimpl\ndef autoft_data(): return [DataFormat]",
        "hook `autoft_data` must return a list of DataFormat, but [0] is the class DataFormat itself",
    ),
    "spec for another hook": (
        START + "@autoft.hookimpl\ndef autoft_heads(): return [form('one')]",
        "hook `autoft_heads` must return a list of Head, but [0] is DataFormat",
    ),
    "invalid name": (
        provides("good", "Not Good"),
        "hook `autoft_data` returned [1] with the name 'Not Good', but a name is lowercase letters",
    ),
    "name with a line end": (provides("good\n"), "hook `autoft_data` returned [0] with the name 'good\\n', but a name"),
    "name that is no text": (provides("good").replace("'good'", "3"), "returned [0] with the name 3, but a name is"),
    "name twice": (provides("one", "one"), "hook `autoft_data` returned [1] with the name `one` a second time"),
}


@pytest.mark.usefixtures("only_fake_plugins")
@pytest.mark.parametrize(("source", "reason"), BREAKAGES.values(), ids=BREAKAGES)
def test_broken_plugin_is_told_and_the_others_stay(
    install_plugin: InstallPlugin, caplog: pytest.LogCaptureFixture, source: str, reason: str
) -> None:
    install_plugin("early", provides("early"))
    install_plugin("broken", source, package="broken-pkg", version="1.2")
    install_plugin("late", provides("late"))
    catalog = discover()
    assert set(catalog.data) == {"early", "late"}, "a broken plugin's specs are accepted all or none"
    assert not catalog.families
    assert not catalog.heads
    plugin = named(catalog.plugins, "broken")
    assert plugin.state == "broken"
    assert plugin.provides == ()
    assert plugin.reason is not None
    assert reason in plugin.reason
    assert "\n" not in plugin.reason
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning == f"plugin broken (broken-pkg 1.2) is broken and was left out: {plugin.reason}"
    assert named(installed(), "broken").reason == plugin.reason


@pytest.mark.usefixtures("only_fake_plugins")
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("missing_module", "its entry point names module `missing_module`, which does not exist"),
        ("real.missing", "its entry point names module `real.missing`, which does not exist"),
        ("real:missing", "its entry point names `real:missing`, but `real` has no `missing`"),
        ("real:data.missing", "its entry point names `real:data.missing`, but `real` has no `data.missing`"),
        ("", "importing `` failed: ValueError"),
    ],
)
def test_entry_point_without_its_target_is_told(install_plugin: InstallPlugin, value: str, reason: str) -> None:
    install_plugin("real", provides("real") + "data = 1\n", entry_points=f"[autoft]\nreal = {value}\n")
    plugin = named(discover().plugins, "real")
    assert plugin.state == "broken"
    assert plugin.reason is not None
    assert plugin.reason.startswith(reason)


@pytest.mark.usefixtures("only_fake_plugins")
def test_entry_point_may_name_an_object(install_plugin: InstallPlugin) -> None:
    source = f"{START}\nclass Plugin:\n    @autoft.hookimpl\n    def autoft_data(self):\n        return [form('pictures')]\n"
    install_plugin("thing", f"{source}\nplugin = Plugin()\n", entry_points="[autoft]\nthing = thing:plugin\n")
    assert set(discover(strict=True).data) == {"pictures"}


@pytest.mark.usefixtures("only_fake_plugins")
def test_clash_names_both_plugins_and_the_first_keeps_the_name(
    install_plugin: InstallPlugin, caplog: pytest.LogCaptureFixture
) -> None:
    install_plugin("one", provides("pictures"), package="one-pkg", version="1.1")
    install_plugin("two", provides("extra", "pictures"), package="two-pkg", version="2.2")
    catalog = discover()
    assert set(catalog.data) == {"pictures"}
    origin = catalog.origin("data", "pictures")
    assert origin is not None
    assert origin.name == "one"
    assert caplog.messages == [
        "plugin two (two-pkg 2.2) is broken and was left out: "
        "its data format `pictures` is already provided by plugin one (one-pkg 1.1)"
    ]


@pytest.mark.usefixtures("only_fake_plugins")
def test_third_party_cannot_take_a_built_in_down(install_plugin: InstallPlugin) -> None:
    install_plugin("aaa", provides("pictures"))
    install_plugin("zzz", provides("pictures"), package="autoft", version="0.1.0")
    catalog = discover()
    origin = catalog.origin("data", "pictures")
    assert origin is not None
    assert origin.name == "zzz"
    assert named(catalog.plugins, "aaa").state == "broken"


@pytest.mark.usefixtures("only_fake_plugins")
def test_two_packages_with_one_entry_point_name_are_both_named(install_plugin: InstallPlugin) -> None:
    install_plugin("first", provides("first"), package="a-pkg", entry_points="[autoft]\nsame = first\n")
    install_plugin("second", provides("second"), package="b-pkg", entry_points="[autoft]\nsame = second\n")
    catalog = discover()
    assert set(catalog.data) == {"first"}
    second = named(catalog.plugins, "same", "b-pkg")
    assert second.status == "broken: its name is already that of plugin same (a-pkg 1.0)"
    assert "second" not in sys.modules, "it must not even be imported"


@pytest.mark.usefixtures("only_fake_plugins")
def test_one_module_under_two_names_is_loaded_once(install_plugin: InstallPlugin) -> None:
    install_plugin("module", provides("pictures"), entry_points="[autoft]\na = module\nb = module\n")
    catalog = discover()
    assert named(catalog.plugins, "a").state == "ok"
    assert named(catalog.plugins, "b").status == "broken: its target `module` is already loaded as plugin a"


@pytest.mark.usefixtures("only_fake_plugins")
def test_optional_hook_of_a_newer_autoft_is_no_mistake(install_plugin: InstallPlugin) -> None:
    source = provides("pictures") + "@autoft.hookimpl(optionalhook=True)\ndef autoft_from_the_future(): return []\n"
    install_plugin("modern", source)
    assert set(discover(strict=True).data) == {"pictures"}


@pytest.mark.usefixtures("only_fake_plugins")
def test_interrupt_passes_through(install_plugin: InstallPlugin) -> None:
    install_plugin("impatient", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        discover()


@pytest.mark.usefixtures("only_fake_plugins")
def test_what_plugins_print_goes_to_stderr(install_plugin: InstallPlugin, capsys: pytest.CaptureFixture[str]) -> None:
    install_plugin("chatty", "print('at import')\n" + provides("chatty").replace("return", "print('in a hook'); return"))
    assert set(discover().data) == {"chatty"}
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.split("\n")[:2] == ["at import", "in a hook"]


# --- warnings and traces --------------------------------------------------------------------------


@pytest.mark.usefixtures("only_fake_plugins")
def test_broken_plugin_is_warned_about_once_a_process(
    install_plugin: InstallPlugin, caplog: pytest.LogCaptureFixture
) -> None:
    install_plugin("broken", "raise ValueError(object())")  # the reason differs each time
    discover()
    discover()
    assert len(caplog.messages) == 1


@pytest.mark.usefixtures("only_fake_plugins")
@pytest.mark.parametrize(("value", "traced"), [("1", True), ("0", False), ("", False)])
def test_trace_is_kept_and_logged_on_request(
    install_plugin: InstallPlugin,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    value: str,
    traced: bool,
) -> None:
    monkeypatch.setenv("AUTOFT_TRACE_PLUGINS", value)
    install_plugin("broken", "def fail():\n    raise ValueError('deep')\nfail()")
    (plugin,) = discover().plugins
    assert plugin.traceback is not None
    assert "in fail" in plugin.traceback
    assert ("in fail" in caplog.text) is traced


def test_trace_tells_of_each_entry_point_its_seconds_and_what_it_gave(
    install_plugin: InstallPlugin,
    only_fake_plugins: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install_plugin("sound", provides("pictures", "sounds"), package="sound-pkg", version="2.5")
    install_plugin("torn", "raise ValueError('deep')")
    logging.getLogger("autoft").handlers.clear()  # of commands that ran in this process before
    discover()
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("AUTOFT_TRACE_PLUGINS", "1")
    monkeypatch.delitem(sys.modules, "sound")
    discover()
    sound, torn = [line for line in capsys.readouterr().err.splitlines() if " = " in line]
    assert re.fullmatch(
        r"sound = sound \(sound-pkg 2\.5\): imported in \d\.\d{3} s, hooks called in \d\.\d{3} s, "
        r"gave pictures \(data\), sounds \(data\)",
        sound,
    )
    assert re.fullmatch(r"torn = torn \(torn 1\.0\): \d\.\d{3} s, broken: importing `torn` failed: ValueError: deep", torn)


# --- versions -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        ("", None),
        (f"AUTOFT_HOOKS = {HOOKS_VERSION}", None),
        ("AUTOFT_HOOKS = 99", "it is written for version 99 of the hooks, but autoft {} knows 2 to 3; upgrade autoft"),
        ("AUTOFT_HOOKS = 1", "it is written for version 1 of the hooks, but autoft {} knows 2 to 3; upgrade plug-pkg"),
        ("AUTOFT_HOOKS = '3'", "`AUTOFT_HOOKS` must be a whole number, as 3 is, but is '3'"),
        ("AUTOFT_HOOKS = True", "`AUTOFT_HOOKS` must be a whole number, as 3 is, but is True"),
        ("AUTOFT_HOOKS = 2", None),
    ],
)
def test_version_of_the_hooks_is_checked(
    declared: str,
    reason: str | None,
    install_plugin: InstallPlugin,
    only_fake_plugins: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if declared != f"AUTOFT_HOOKS = {HOOKS_VERSION}" or reason:
        monkeypatch.setattr(hookspecs, "HOOKS_VERSION", 3)
        monkeypatch.setattr(hookspecs, "OLDEST_HOOKS", 2)
    install_plugin("plug", f"{declared}\n{provides('pictures')}", package="plug-pkg")
    (plugin,) = discover().plugins
    assert plugin.reason == (reason and reason.format(__version__))
    assert plugin.state == ("broken" if reason else "ok")


@pytest.mark.parametrize(
    ("requirement", "fits"),
    [
        ("autoft", True),
        (f"autoft>={__version__}", True),
        ("Autoft>=99", False),
        ("autoft<0.0.1", False),
        ('autoft>=99; python_version < "3"', True),
        ("autoft-other>=99", True),
    ],
)
def test_package_that_requires_another_autoft_is_left_out_before_it_is_imported(
    requirement: str, fits: bool, install_plugin: InstallPlugin, only_fake_plugins: None, tmp_path: Path
) -> None:
    install_plugin("plug", provides("pictures"), package="plug-pkg")
    with (tmp_path / "site" / "plug_pkg-1.0.dist-info" / "METADATA").open("a") as file:
        file.write(f"Requires-Dist: numpy\nRequires-Dist: {requirement}\n")
    (plugin,) = discover().plugins
    assert plugin.state == ("ok" if fits else "broken")
    assert ("plug" in sys.modules) is fits
    if not fits:
        wanted = requirement[len("autoft") :]
        assert plugin.reason is not None
        assert plugin.reason.startswith(
            f"it requires autoft{wanted}, but autoft {__version__} is installed; install versions"
        )


# --- which plugins --------------------------------------------------------------------------------


@pytest.fixture
def three_plugins(install_plugin: InstallPlugin, only_fake_plugins: None) -> None:
    install_plugin("own", provides("own"), package="autoft", version="0.1.0")
    install_plugin("red", provides("red"), package="Red_Pkg")
    install_plugin("blue", provides("blue"))


@pytest.mark.usefixtures("three_plugins")
def test_switched_off_plugins_are_not_imported() -> None:
    catalog = discover(enabled=False)
    assert set(catalog.data) == {"own"}
    assert not {"red", "blue"} & set(sys.modules)
    assert named(catalog.plugins, "red").status == "left out: --no-plugins"
    assert named(installed(), "red").status == "not loaded yet"


@pytest.mark.usefixtures("three_plugins")
@pytest.mark.parametrize("allowed", ["red", "Red_Pkg", "red-pkg"])
def test_allow_list_takes_names_of_plugins_and_packages(allowed: str) -> None:
    catalog = discover(allow=[allowed])
    assert set(catalog.data) == {"own", "red"}
    assert "blue" not in sys.modules
    assert named(catalog.plugins, "blue").status == "left out: not among the allowed plugins"


@pytest.mark.usefixtures("three_plugins")
def test_empty_allow_list_leaves_autofts_own() -> None:
    assert set(discover(allow=()).data) == {"own"}


@pytest.mark.usefixtures("three_plugins")
def test_allowed_plugin_that_is_not_installed_is_an_error() -> None:
    with pytest.raises(PluginError, match="these are not: bleu") as caught:
        discover(allow=["red", "bleu"])
    assert caught.value.hint == "did you mean `blue`?"


@pytest.mark.usefixtures("three_plugins")
def test_record_keeps_what_it_knew_of_plugins_left_out() -> None:
    discover()
    discover(enabled=False)
    assert named(installed(), "red").status == "ok"


@pytest.mark.usefixtures("three_plugins")
def test_strict_mode_passes_sound_plugins_and_lists_every_broken_one(install_plugin: InstallPlugin) -> None:
    assert set(discover(strict=True).data) == {"own", "red", "blue"}
    install_plugin("bad", "raise ValueError('bad luck')")
    install_plugin("worse", "raise ValueError('worse luck')")
    with pytest.raises(PluginError) as caught:
        discover(strict=True)
    assert "2 of 5 are broken" in caught.value.message
    assert "plugin bad (bad 1.0): importing `bad` failed: ValueError: bad luck" in caught.value.message
    assert "plugin worse (worse 1.0)" in caught.value.message


# --- the same door --------------------------------------------------------------------------------


def test_built_ins_come_in_through_the_same_entry_points(install_plugin: InstallPlugin) -> None:
    install_plugin("guest", provides("guest-format"))
    own = {plugin.name: plugin for plugin in installed() if plugin.own}
    assert {"timm", "heads", "image-folder"} <= set(own)
    assert all(plugin.value.startswith("autoft.builtin.") for plugin in own.values())
    catalog = discover()
    assert [plugin.status for plugin in catalog.plugins if plugin.own] == ["ok"] * len(own)
    assert "timm" in catalog.families
    assert "image-classification" in catalog.heads
    assert {"image-folder", "guest-format"} <= set(catalog.data)
    origin = catalog.origin("family", "timm")
    assert origin is not None
    assert origin.value == "autoft.builtin.timm"


def test_every_hook_is_known_to_discovery() -> None:
    hookspecs = importlib.import_module("autoft.hookspecs")
    declared = {name for name, value in vars(hookspecs).items() if hasattr(value, "autoft_spec")}
    assert declared
    assert declared == set(discovery._HOOKS)
