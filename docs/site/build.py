"""Builds the documentation site: `python docs/site/build.py [--output FOLDER] [--serve]`, with `pip install 'autoft[docs]'`.

Pages are laid out as in the repository, so that links between them hold there as well as on the site. Links to files that
are no pages become those files' names. Building asks no network; any warning fails it.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SITE = Path(__file__).resolve().parent
ROOT = SITE.parent.parent
PAGES = ("README.md", "docs/*.md", "docs/example-web/README.md", "studies/*/README.md", "plugins/*/README.md")
PICTURES = ("*.webp", "*.png", "*.svg")
LINK = re.compile(r"(?<!!)\[([^\]\n]+)\]\(([^)\s#]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def main() -> None:
    """Build the site, and show it where that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "site", help="where the site is to be")
    parser.add_argument(
        "--serve", action="store_true", help="show it on this machine, and build again when it is typed again"
    )
    options = parser.parse_args()
    build(options.output)
    print(options.output / "index.html")
    if options.serve:
        subprocess.run(
            [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", options.output], check=True
        )


def build(output: Path) -> None:
    """Build the site, and put it in the place of an earlier one."""
    with tempfile.TemporaryDirectory(prefix="autoft-site-") as name:
        folder = Path(name)
        lay_out(folder / "source")
        shutil.copy(SITE / "zensical.toml", folder)
        command = [sys.executable, "-m", "zensical", "build", "--strict"]
        made = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if made.returncode:
            raise SystemExit(f"the site could not be built:\n{made.stdout}{made.stderr}")
        shutil.rmtree(output, ignore_errors=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder / "site", output)


def lay_out(target: Path) -> None:
    """Copy the pages and their pictures."""
    pages = {page for pattern in PAGES for page in ROOT.glob(pattern)}
    for page in pages:
        place = target / page.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        parts = FENCE.split(page.read_text(encoding="utf-8"))
        parts[::2] = [without_files(part, page, pages) for part in parts[::2]]
        place.write_text("".join(parts), encoding="utf-8")
    for folder in {page.parent for page in pages} | {ROOT / "docs" / "images"}:
        if folder != ROOT:
            for picture in (file for pattern in PICTURES for file in folder.glob(pattern)):
                place = target / picture.relative_to(ROOT)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(picture, place)


def without_files(text: str, page: Path, pages: set[Path]) -> str:
    """Turn links to files that are no pages into their names: the site has no such files."""

    def shown(link: re.Match[str]) -> str:
        words, to, _ = link.groups()
        file = (page.parent / to).resolve()
        if to.startswith(("http:", "https:", "mailto:")) or file in pages or not file.exists():
            return link.group()
        return f"{words} (`{file.relative_to(ROOT)}`)"

    return LINK.sub(shown, text)


if __name__ == "__main__":
    main()
