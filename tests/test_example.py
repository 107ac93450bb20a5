"""The example notebook runs from its first cell to its last, and what it shows is what such a run gives.

`python tests/test_example.py --write` runs it, and writes it with the outputs of that run.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from test_docs import broken_links

NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "example.ipynb"
LARGEST = 300_000  # bytes
MACHINE = re.compile(r"/(?:home|root|tmp|opt|usr|work|var|Users)/")  # paths that only the machine has on which it ran
TIMEOUT = 600  # seconds a cell


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    found = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert found
    return found


def structure(notebook: dict[str, Any]) -> list[list[tuple[str, ...]]]:
    """What kinds of outputs each cell has."""
    return [
        [(output["output_type"], output.get("name", ""), *sorted(output.get("data", {}))) for output in cell["outputs"]]
        for cell in code_cells(notebook)
    ]


def executed(folder: Path) -> dict[str, Any]:
    """Run the notebook in a folder; an error in a cell is raised."""
    import nbclient
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=TIMEOUT, kernel_name="python3", record_timing=False, resources={"metadata": {"path": folder}}
    )
    client.execute()
    notebook.metadata["language_info"] = {"name": "python"}  # without the version of whoever ran it
    return json.loads(nbformat.writes(notebook))


def faults(text: str) -> list[str]:
    """What must not be in the notebook as it is stored."""
    notebook = json.loads(text)
    counts = [cell["execution_count"] for cell in code_cells(notebook)]
    found = [] if counts == list(range(1, len(counts) + 1)) else [f"cells were run in the order {counts}"]
    found += [f"too large: {len(text)}"] if len(text) > LARGEST else []
    outputs = [output for cell in code_cells(notebook) for output in cell["outputs"]]
    found += [
        f"an output is {kind}" for output in outputs if (kind := output.get("name", output["output_type"])) == "stderr"
    ]
    found += ["an output is an error" for output in outputs if output["output_type"] == "error"]
    written = "\n\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    found += [f"a link leads nowhere: {link}" for link in broken_links(written, NOTEBOOK.parent)]
    return found + [f"names a machine's path: {match}" for match in MACHINE.findall(json.dumps(outputs))]


def test_stored_outputs_are_those_of_one_run_and_name_no_machine() -> None:
    assert faults(NOTEBOOK.read_text(encoding="utf-8")) == []


def test_faults_are_found() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cell = code_cells(notebook)[0]
    cell["execution_count"] = 9
    notebook["cells"][0]["source"] = "[none](nowhere.md)"
    cell["outputs"] = [
        {"output_type": "stream", "name": "stderr", "text": f"/tmp/x{' ' * LARGEST}"},
        {"output_type": "error"},
    ]
    assert len(faults(json.dumps(notebook))) == 6


@pytest.mark.slow
@pytest.mark.timeout(2 * TIMEOUT)
def test_notebook_runs_and_gives_what_it_shows(tmp_path: Path) -> None:
    for package in ("nbclient", "ipykernel"):
        pytest.importorskip(package, reason=f"{package} is not installed, which runs notebooks")
    assert structure(executed(tmp_path)) == structure(json.loads(NOTEBOOK.read_text(encoding="utf-8")))


if __name__ == "__main__" and "--write" in sys.argv:
    with tempfile.TemporaryDirectory() as temporary:
        NOTEBOOK.write_text(json.dumps(executed(Path(temporary)), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
