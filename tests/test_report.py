"""The report of a run opens anywhere, shows what there is of the run, and never costs the search its result."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from commands import SMALL, autoft, command, fake_export
from conftest import FinishedRun
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from PIL import Image

from autoft.driver import search
from autoft.errors import RunError
from autoft.events import Event
from autoft.files import read_json, write_checked
from autoft.report.course import by_seconds
from autoft.report.outcome import outcome, variants
from autoft.report.page import render, write_report
from autoft.report.section import Section, figure
from autoft.report.settings import parallel
from autoft.runfolder import LOCK

HOSTILE = "<script>document.title='taken'</script>"
LIMIT = 5_000_000  # bytes
RESULT: Mapping[str, Any] = {  # as the first versions wrote it
    "metric": "accuracy",
    "winner": {"trial": 1, "epoch": 2, "value": 0.61},
    "validation": {"accuracy": 0.61},
    "test": {"accuracy": 0.6},
    "test_error": 0.02,
}


@pytest.fixture
def chromium() -> Path:
    """The browser; without it, a test is skipped."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("Chromium is not installed")
    return Path(found)


def made_run(folder: Path, trials: int, *, failed: int = 0, name: str = "made", more: int = 0) -> Path:
    """Make the folder of a run that is not finished, with some trials that trained and some that failed."""
    folder.mkdir()
    study = optuna.create_study(storage=f"sqlite:///{folder / 'study.db'}", direction="maximize")
    space = {"learning_rate": FloatDistribution(1e-5, 1e-2, log=True), "freeze_depth": IntDistribution(0, 6)}
    others = ("weight_decay", "dropout", "label_smoothing", "layer_decay", "head_multiplier")[:more]
    space |= {other: FloatDistribution(0.0, 1.0) for other in others}
    for number in range(trials):
        params = {"learning_rate": 1e-5 * 1.7**number, "freeze_depth": number % 7}
        params |= {other: (number * (place + 3) % 11) / 11 for place, other in enumerate(others)}
        values = {1: 0.5 + 0.01 * number, 2: 0.6 + 0.01 * number}
        facts = {"best_value": values[2], "best_epoch": 2, "epochs": 2, "seconds": 1.5}
        study.add_trial(
            create_trial(value=values[2], params=params, distributions=space, intermediate_values=values, user_attrs=facts)
        )
    for _ in range(failed):
        facts = {"failure": "oom", "message": HOSTILE}
        study.add_trial(create_trial(state=TrialState.FAIL, user_attrs=facts))
    write_checked(folder / LOCK, {"format": 1, "identity": {"name": name}})
    return folder


def browse(chromium: Path, page: Path, folder: Path, *flags: str) -> str:
    """Return what headless Chromium made of a page, with what it logged on stderr after it."""
    shown = subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader", "--hide-scrollbars",
            f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--virtual-time-budget=20000", *flags,
            page.as_uri(),
        ],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    complaints = [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
    assert complaints == []
    return shown.stdout


def titles(page: str) -> list[str]:
    return [html.unescape(title) for title in re.findall(r"<h2>(.*?)</h2>", page)]


# --- what it says -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_finished_search_has_written_its_report_and_says_where(finished: FinishedRun) -> None:
    page = finished.path / "report.html"
    assert page.stat().st_size < LIMIT
    assert re.search(rf"^report +{re.escape(str(page))}$", finished.out, re.MULTILINE)
    content = page.read_text()
    named = set(re.findall(r"^(?:<pre><code>)?autoft ([a-z]+)", content, re.MULTILINE))
    assert {"predict", "verify"} <= named <= set(re.findall(r"^  ([a-z]+) ", autoft("-h", env={}).out, re.MULTILINE))
    assert titles(content)[:3] == ["Result", "How to run it", "Leaderboard"]
    assert {"How the search went", "Learning curves", "How to reproduce it"} <= set(titles(content))
    result = read_json(finished.path / "result.json")
    assert f"Trial {result['winner']['trial']} won: accuracy {result['winner']['value']:.4f} on validation" in content
    assert f"± {result['test_error']:.4f} on test" in content
    assert f"autoft reproduce {finished.path.resolve()}" in content


def test_script_of_plotly_is_there_once_and_only_where_it_is_needed(tmp_path: Path) -> None:
    with_plots = render(made_run(tmp_path / "some", 3))
    assert with_plots.count('id="plotly"') == 1
    assert len(with_plots.encode()) < LIMIT
    assert 'id="plotly"' not in render(made_run(tmp_path / "none", 0))


def test_run_that_is_not_finished_says_so_and_shows_what_is_known(tmp_path: Path) -> None:
    page = render(made_run(tmp_path / "run", 12, failed=2))
    assert "The search is not finished" in page
    assert "14 trials have ended, 2 of them failed" in page
    assert titles(page) == [
        "Leaderboard", "How the search went", "What the search learned", "All trials at once", "Learning curves", "Failures",
    ]  # fmt: skip
    assert "hints, no more" in page


def test_one_trial_and_none_that_trained_are_no_trouble(tmp_path: Path) -> None:
    assert "All trials at once" not in titles(render(made_run(tmp_path / "one", 1)))
    assert titles(render(made_run(tmp_path / "failed", 0, failed=2))) == ["Leaderboard", "Failures"]
    assert titles(render(made_run(tmp_path / "none", 0))) == []
    assert parallel(tmp_path / "one") is None


def test_best_trials_are_blue_and_the_worst_grey_on_either_paper(tmp_path: Path) -> None:
    section = parallel(made_run(tmp_path / "run", 4))
    assert section is not None
    (content,) = re.findall(r'<script type="application/json">(.*?)</script>', section.body, re.DOTALL)
    drawn = json.loads(content)["data"]
    colours = [trace["line"]["color"] for trace in drawn if str(trace.get("line", {}).get("color")).startswith("rgb")]
    whole = [trace["line"]["colorscale"] for trace in drawn if trace["type"] == "parcoords"]
    assert whole == [[[0, "#8a8a8a"], [1, "#3987e5"]]] or {"rgb(138,138,138)", "rgb(57,135,229)"} <= set(colours)


def test_names_from_outside_are_escaped(tmp_path: Path) -> None:
    page = render(made_run(tmp_path / "run", 3, failed=1, name=HOSTILE))
    assert html.escape(HOSTILE) in page
    assert HOSTILE not in page


def test_figure_with_a_hostile_label_cannot_end_its_script() -> None:
    import plotly.graph_objects as go

    body = figure(go.Figure(go.Bar(x=[HOSTILE], y=[1])), HOSTILE)
    assert body.count("</script>") == 1
    (content,) = re.findall(r'<script type="application/json">(.*?)</script>', body, re.DOTALL)
    assert json.loads(content)["data"][0]["x"] == [HOSTILE]


def test_time_between_sessions_is_left_out() -> None:
    events: list[dict[str, Any]] = [
        {"event": "search", "time": 100.0},
        {"event": "epoch", "time": 110.0, "trial": 0, "value": 0.5},
        {"event": "search", "time": 5000.0},
        {"event": "epoch", "time": 5004.0, "trial": 1, "value": 0.6},
    ]
    assert by_seconds(events) == [(10.0, 0, 0.5), (14.0, 1, 0.6)]


def test_winner_is_compared_with_the_preset_over_seeds(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", 3)
    confirmed = {
        "winner": 1, "mean": 0.62, "spread": 0.01, "seeds": 2, "preset_mean": 0.5, "preset_spread": 0.02, "gain": 0.12,
        "noise": 0.03, "reason": "its mean is better", "values": {"0": {"0": 0.48, "1": 0.52}, "1": {"0": 0.61, "1": 0.63}},
    }  # fmt: skip
    write_checked(run / "result.json", {**RESULT, "confirmed": confirmed})
    found = outcome(run)
    assert found is not None
    assert "Trial 1 won: accuracy 0.6100 on validation, 0.6000 ± 0.0200 on test" in found.body
    assert "trial 1 has 0.6200 ± 0.0100, and the preset 0.5000 ± 0.0200: a gain of +0.1200" in found.body
    assert re.findall(r"<tr><td>(\d+)</td><td>([\d.]+)</td>", found.body) == [("1", "0.6200"), ("0", "0.5000")]


def test_variants_show_what_they_cost_and_why_one_is_left_out(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", 3)
    write_checked(run / "result.json", RESULT)
    assert variants(run) is None
    made = {
        "fp32": {"shipped": True, "method": "as trained", "metric": 0.9, "drop": 0.0, "size_mb": 10.0,
                 "latency_ms": {"1": {"p50": 4.25}}},
        "int8": {"shipped": False, "method": "dynamic", "metric": 0.5, "drop": 0.4, "why": "it may lose 0.005"},
    }  # fmt: skip
    advised = {"variant": "fp32", "why": "the fastest"}
    write_checked(run / "result.json", {**RESULT, "variants": made, "recommended": advised})
    found = variants(run)
    assert found is not None
    assert all(f"<td>{cell}</td>" in found.body for cell in ("4.25", "10", "no: it may lose 0.005", "+0.4000"))
    assert "Recommended is fp32: the fastest." in found.body


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_folder_without_a_run_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no folder"):
        write_report(tmp_path / "nothing")
    newer = made_run(tmp_path / "newer", 1)
    write_checked(newer / LOCK, {"format": 99, "identity": {}})
    with pytest.raises(RunError, match="in format 99"):
        write_report(newer)


def test_place_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be written"):
        write_report(made_run(tmp_path / "run", 1), tmp_path / "missing" / "page.html")


def test_run_of_an_older_format_has_a_report(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", 3)
    write_checked(run / LOCK, {"identity": {"name": "old"}})
    write_checked(run / "result.json", RESULT)
    page = render(run)
    assert "not finished" not in page
    assert titles(page)[:2] == ["Result", "Leaderboard"]
    assert "<td>1 (winner)</td>" in page


@pytest.mark.usefixtures("toys")
def test_report_that_fails_does_not_cost_the_search_its_result(
    toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(run: Path) -> Section:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr("autoft.finish.export_bundle", fake_export)
    monkeypatch.setattr("autoft.preflight.to_onnx", lambda *arguments, **named: None)
    monkeypatch.setattr("autoft.report.page.SECTIONS", (fail,))
    heard: list[Event] = []
    backbone = 'backbones=[{"name": "toy/mlp"}]'
    result = search(toy_images, output=tmp_path / "run", overrides=[*SMALL, backbone], on_event=heard.append)
    assert result.report is None
    assert result.bundle is not None
    (warning,) = [event for event in heard if event.data.get("about") == "report"]
    assert "ZeroDivisionError: planted" in warning.text
    assert f"`autoft report {tmp_path / 'run'}`" in warning.text


# --- the command ------------------------------------------------------------------------------------------------------


def test_command_writes_where_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, page = made_run(tmp_path / "run", 2), tmp_path / "page.html"
    result = command(monkeypatch, capsys, "report", folder, "--output", page, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out) == {"run": str(folder), "page": str(page)}
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert not (folder / "report.html").exists()


# --- in a browser -----------------------------------------------------------------------------------------------------

CLICKS = """
<script>drawn.then(() => {
  const seen = []
  const heading = [...document.querySelectorAll('#leaderboard th')].find(th => th.textContent === 'learning_rate')
  const column = () => [...document.querySelectorAll('#leaderboard tbody tr')]
    .map(row => row.cells[heading.cellIndex].textContent)
  heading.click(); seen.push(column())
  heading.click(); seen.push(column())
  const answer = document.createElement('output')
  answer.id = 'seen'
  answer.textContent = JSON.stringify({
    orders: seen, title: document.title, wide: document.documentElement.scrollWidth, width: innerWidth,
    plots: document.querySelectorAll('.plot').length, drawn: document.querySelectorAll('.plot .main-svg').length,
    requests: performance.getEntriesByType('resource').map(entry => entry.name),
    dark: getComputedStyle(document.body).backgroundColor,
  })
  document.body.append(answer)
})</script>
"""


def opened(chromium: Path, page: str, folder: Path, *flags: str) -> Mapping[str, Any]:
    """Open a page with a script that clicks, and return what that saw."""
    file = folder / "clicked.html"
    file.write_text(page.replace("</body>", CLICKS + "</body>"))
    dom = browse(chromium, file, folder, "--dump-dom", *flags)
    (answer,) = re.findall(r'<output id="seen">(.*?)</output>', dom)
    seen: Mapping[str, Any] = json.loads(html.unescape(answer))
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("size", ["500,900", "1280,900"])  # no headless window is narrower than 500
def test_page_opens_sorts_and_asks_for_nothing(chromium: Path, tmp_path: Path, size: str) -> None:
    page = render(made_run(tmp_path / "run", 12, failed=1, name=HOSTILE, more=5))
    seen = opened(chromium, page, tmp_path, f"--window-size={size}")
    numbers = [[float(cell) for cell in order if cell] for order in seen["orders"]]
    assert len(numbers[0]) == 12
    assert numbers[0] == sorted(numbers[0])
    assert numbers[1] == numbers[0][::-1]
    assert [order[-1] for order in seen["orders"]] == ["", ""]  # the one that failed
    assert seen["plots"] >= 5
    assert seen["drawn"] >= seen["plots"]
    assert seen["requests"] == []
    assert seen["title"] != "taken"
    assert seen["wide"] <= seen["width"]


@pytest.mark.slow
def test_browser_that_would_ask_for_something_is_noticed(chromium: Path, tmp_path: Path) -> None:
    page = render(made_run(tmp_path / "run", 2)).replace("<nav>", '<img src="http://127.0.0.1:9/pixel.png"><nav>')
    with pytest.raises(AssertionError, match="Loading the image"):
        opened(chromium, page, tmp_path)


@pytest.mark.slow
def test_photographs_in_light_and_dark_show_something(chromium: Path, tmp_path: Path) -> None:
    page = write_report(made_run(tmp_path / "run", 12), tmp_path / "page.html")
    means = {}
    for mode, flags in {"light": (), "dark": ("--blink-settings=preferredColorScheme=0",)}.items():
        photograph = tmp_path / f"{mode}.png"
        browse(chromium, page, tmp_path, f"--screenshot={photograph}", "--window-size=1280,2400", *flags)
        with Image.open(photograph) as image:
            grey = image.convert("L")
            assert len(grey.getcolors() or []) > 50
            histogram = grey.histogram()
            means[mode] = sum(place * count for place, count in enumerate(histogram)) / sum(histogram)
    assert means["dark"] < 80 < 180 < means["light"]
