"""Writes the report of a run: its sections as one HTML file that needs no network, with plotly's script inside once."""

from __future__ import annotations

import base64
import gzip
import html
from collections.abc import Callable, Sequence
from pathlib import Path

from optuna.trial import TrialState
from plotly.offline import get_plotlyjs

from autoft.errors import RunError
from autoft.files import write_text
from autoft.finish import RESULT, read_result
from autoft.report import answers
from autoft.report.course import course, curves
from autoft.report.data import data
from autoft.report.leaderboard import failures, leaderboard
from autoft.report.mistakes import mistakes
from autoft.report.outcome import outcome, variants
from autoft.report.section import Section
from autoft.report.settings import parallel, settings
from autoft.report.usage import reproducing, running
from autoft.runfolder import read_lock
from autoft.storage import read_study

REPORT = "report.html"
Maker = Callable[[Path], Section | None]

# What is asked first comes first. A maker gets the run folder, and gives None where it has nothing to show of it.
SECTIONS: tuple[Maker, ...] = (
    outcome,
    running,
    leaderboard,
    course,
    settings,
    parallel,
    curves,
    answers.per_class,
    answers.confusion,
    answers.calibration,
    answers.curves,
    answers.errors,
    mistakes,
    data,
    variants,
    failures,
    reproducing,
)

# The browser itself refuses whatever would leave the file; plotly compiles the shaders of parallel coordinates.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'; "
    "img-src data: blob:; media-src data:; font-src data:"
)

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c1c1c; --faint: #5c5c5c; --line: #d8d8d8; --mark: #1f6fd0; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181c; --ink: #e8e8e8; --faint: #a8a8a8; --line: #3a3d42; --mark: #6cb0ff; }
}
* { box-sizing: border-box; }
body { background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; max-width: 62rem;
  margin: 1.5rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h2 { border-top: 1px solid var(--line); margin-top: 2.5rem; padding-top: 1rem; }
nav { display: flex; flex-wrap: wrap; gap: 0.3rem 1rem; }
a { color: var(--mark); }
figcaption, .faint { color: var(--faint); }
code, pre { font-family: ui-monospace, monospace; font-size: 0.9em; }
pre { border: 1px solid var(--line); border-radius: 6px; overflow-x: auto; padding: 0.6rem 0.8rem; }
.warning { border-left: 4px solid #d9730d; padding-left: 0.8rem; }
figure { margin: 1.5rem 0; overflow-x: auto; }
.plot { overflow-x: auto; }
.wide { overflow-x: auto; max-height: 36rem; overflow-y: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { border-bottom: 1px solid var(--line); padding: 0.3rem 0.8rem 0.3rem 0; text-align: left; vertical-align: top; }
th { background: var(--paper); position: sticky; top: 0; white-space: nowrap; }
.sortable th { cursor: pointer; }
th[aria-sort=ascending]::after { content: " \\25B2"; }
th[aria-sort=descending]::after { content: " \\25BC"; }
/* plotly writes colours into each element, so only an important rule is stronger */
.js-plotly-plot text:not(.nums):not(.name) { fill: var(--ink) !important; text-shadow: none !important; }
"""

SCRIPT = """
'use strict'
for (const heading of document.querySelectorAll('.sortable th')) {
  heading.tabIndex = 0
  const sort = () => {
    const table = heading.closest('table'), column = heading.cellIndex
    const down = heading.getAttribute('aria-sort') === 'ascending'
    for (const other of heading.parentNode.children) other.removeAttribute('aria-sort')
    heading.setAttribute('aria-sort', down ? 'descending' : 'ascending')
    const rows = [...table.tBodies[0].rows].map(row => [row.cells[column].textContent.trim(), row])
    const compare = (one, other) => {
      // what is missing stays below, whichever way
      if (!one[0] || !other[0]) return !one[0] - !other[0]
      const order = one[0].localeCompare(other[0], undefined, {numeric: true})
      const difference = parseFloat(one[0]) - parseFloat(other[0])
      return (down ? -1 : 1) * (Number.isNaN(difference) ? order : difference)
    }
    for (const [, row] of rows.sort(compare)) table.tBodies[0].append(row)
  }
  heading.addEventListener('click', sort)
  heading.addEventListener('keydown', event => { if (event.key === 'Enter') sort() })
}
const packed = document.getElementById('plotly')
const draw = async () => {
  const bytes = Uint8Array.from(atob(packed.textContent), letter => letter.charCodeAt(0))
  const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'))
  const script = document.createElement('script')
  script.textContent = await new Response(unpacked).text()
  document.head.append(script)
  for (const plot of document.querySelectorAll('.plot')) {
    const content = JSON.parse(plot.querySelector('script').textContent)
    await Plotly.newPlot(plot, content.data, content.layout, {displayModeBar: false, responsive: true})
  }
}
const drawn = packed ? draw() : Promise.resolve()
drawn.then(() => document.documentElement.setAttribute('data-drawn', ''))
"""


def write_report(run: Path, output: Path | None = None) -> Path:
    """Write the report of a run, whatever became of it; the search may go on meanwhile.

    Args:
        run: The run folder; nothing but the report is written there.
        output: The file; `RUN/report.html` where None.

    Returns:
        The file.

    Raises:
        RunError: There is no run, it cannot be read, is of a newer autoft, or the file cannot be written.
    """
    path = output if output is not None else run / REPORT
    page = render(run)
    try:
        write_text(path, page)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error}", "choose another place with --output FILE") from error
    return path


def render(run: Path) -> str:
    """Return the report's HTML.

    Raises:
        RunError: There is no run, it cannot be read, or is of a newer autoft.
    """
    trials, _ = read_study(run)  # says it best where there is no run
    title = f"{read_lock(run)['identity'].get('name', run.name)}: report of the search"
    ended = sum(trial.state.is_finished() for trial in trials)
    failed = sum(trial.state == TrialState.FAIL for trial in trials)
    state = ""
    if read_result(run) is None:
        told = f"The search is not finished: {run / RESULT} is missing. {ended} trials have ended, {failed} of them failed."
        state = f'<p class="warning">{html.escape(told)} What follows is what is known so far.</p>\n'
    return document(title, state, [section for maker in SECTIONS if (section := maker(run)) is not None])


def document(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Return a page of HTML that needs no network: a title, what comes first, and sections with links to them.

    Args:
        title: As plain text.
        lead: HTML, such as a warning; may be empty.
        sections: In order.
    """
    links = "\n".join(f'<a href="#{html.escape(one.key)}">{html.escape(one.title)}</a>' for one in sections)
    body = "".join(
        f'<section id="{html.escape(one.key)}">\n<h2>{html.escape(one.title)}</h2>\n{one.body}</section>\n'
        for one in sections
    )
    plotly = f'<script type="text/plain" id="plotly">{_packed_plotly()}</script>\n' if 'class="plot"' in body else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n{lead}<nav>\n{links}\n</nav>\n{body}"
        "<noscript><p>Plots, and tables that sort, need JavaScript.</p></noscript>\n"
        f"{plotly}<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _packed_plotly() -> str:
    """Return plotly's script compressed, as text: a fourth of its 4.8 MB, and base64."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
