"""In a notebook a search is one output that changes in place; elsewhere its listener prints lines; scripts need no guard."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import ONE_THREAD, run_search

import autoft
from autoft import notebook
from autoft.events import Event
from autoft.notebook import LINES, NotebookView, Shown, notebook_display

SEARCH = Event("search", "searching in runs/a", {"trials": 2, "done": 0})


class Screen:
    """Stands in for a notebook's output: what it shows, and how often it changed."""

    def __init__(self) -> None:
        self.shown: list[Shown] = []
        self.outputs = 0

    def __call__(self, content: Shown) -> notebook.Update:
        self.outputs += 1
        self.shown.append(content)
        return self.shown.append

    @property
    def html(self) -> str:
        return self.shown[-1]["text/html"]


def epoch(number: int) -> Event:
    data = {"trial": 0, "epoch": number, "epochs": 9, "value": 0.5, "seconds_left": 75.0}
    return Event("epoch", f"trial 0 epoch {number}/9", data)


def test_one_output_shows_trials_best_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebook, "EVERY", 0.0)
    screen = Screen()
    view = NotebookView(screen)
    for event in (SEARCH, Event("trial", "trial 0: learning_rate 0.1", {"trial": 0}), epoch(3)):
        view(event)
    assert screen.outputs == 1
    assert '<progress value="0" max="2">' in screen.html
    assert "trial 0: epoch 3 of 9, 0.5000" in screen.html
    assert "about 1 min 15 s left" in screen.html
    view(Event("trial_end", "trial 0 paused", {"trial": 0, "state": "paused", "best": False, "value": 0.5}))
    assert "0 of 2 trials" in screen.html, "one that rests has not ended"
    view(Event("trial_end", "trial 0 complete", {"trial": 0, "state": "complete", "best": True, "value": 0.6}))
    assert "1 of 2 trials, best 0.6000 (trial 0)" in screen.html
    assert "epoch 3 of 9" not in screen.html
    view(Event("done", "trial 0 won", {}))
    assert "left" not in screen.html
    assert screen.shown[-1]["text/plain"] == "trial 0 won"
    assert screen.outputs == 1


def test_many_epochs_change_it_seldom_and_few_lines_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    view = NotebookView(screen)
    view(SEARCH)
    for number in range(200):
        view(epoch(number))
    assert len(screen.shown) < 20
    for number in range(50):
        view(Event("warning", f"line <b>{number}", {}))
    assert screen.html.count("line") == LINES
    assert "warning: line &lt;b&gt;49" in screen.html
    assert "<b>" not in screen.html


def test_events_of_a_real_search_are_shown(toys: None, fast_export: None, toy_images: Path, tmp_path: Path) -> None:
    screen = Screen()
    run_search(toy_images, tmp_path / "run", on_event=NotebookView(screen))
    assert screen.outputs == 1
    assert '<progress value="3" max="3">' in screen.html
    assert "exporting trial" in screen.html
    assert "won: accuracy" in screen.shown[-1]["text/plain"]


def test_only_a_kernel_is_a_notebook(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def ipython(shell: object) -> SimpleNamespace:
        return SimpleNamespace(get_ipython=lambda: shell)

    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert notebook_display() is None
    autoft.show_progress()(SEARCH)
    assert capsys.readouterr().err == "searching in runs/a\n"
    monkeypatch.setitem(sys.modules, "IPython", ipython(None))
    assert notebook_display() is None
    monkeypatch.setitem(sys.modules, "IPython", ipython(SimpleNamespace(kernel="one")))
    assert notebook_display() is not None
    assert isinstance(autoft.show_progress(), NotebookView)


@pytest.mark.slow
def test_script_without_a_guard_searches_on_two_workers(toy_env: dict[str, str], toy_images: Path, tmp_path: Path) -> None:
    """Whoever writes a first script leaves out `if __name__ == "__main__"`: it must run once, not once a worker."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
            import autoft

            print("started")
            small = ["backbones=[toy/mlp]", "search.trials=2", "trainer.epochs=1", "search.seeds=1", "search.workers=2"]
            result = autoft.search({str(toy_images)!r}, output="run", overrides=small, on_event=autoft.show_progress())
            print(result.bundle)
        """)
    )
    ran = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env={**os.environ, **ONE_THREAD, **toy_env}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == ["started", "run/bundle"]
    assert "exporting trial" in ran.stderr
