"""The documentation site is built without a warning, has every page, asks nothing of the network, and notices dead links."""

from __future__ import annotations

import re
import runpy
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "docs" / "site"
# what a page loads, not what it links to
LOADED = re.compile(r"<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=[\"']?(https?://[^\"'\s>]+)[^>]*>")

pytest.importorskip("zensical")


@pytest.fixture(scope="module")
def builder() -> dict[str, Any]:
    """What `docs/site/build.py` defines."""
    return runpy.run_path(str(SITE / "build.py"))


@pytest.fixture(scope="module")
def site(builder: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built."""
    output: Path = tmp_path_factory.mktemp("site") / "site"
    builder["build"](output)
    return output


def pages(navigation: list[Any]) -> Iterator[str]:
    for entry in navigation:
        for value in entry.values():
            if isinstance(value, str):
                yield value
            else:
                yield from pages(value)


def test_every_page_is_in_the_navigation_and_built(site: Path, builder: dict[str, Any]) -> None:
    named = list(pages(tomllib.loads((SITE / "zensical.toml").read_text())["project"]["nav"]))
    there = {str(page.relative_to(ROOT)) for pattern in builder["PAGES"] for page in ROOT.glob(pattern)}
    assert set(named) == there
    for page in named:
        built = "index.html" if page == "README.md" else re.sub(r"README\.md$|\.md$", "", page)
        found = (
            site / built
            if built.endswith("html")
            else next(file for file in (site / f"{built}.html", site / built / "index.html") if file.exists())
        )
        assert "<h1" in found.read_text(), page


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    found = {
        (str(page.relative_to(site)), match.group(1))
        for page in site.rglob("*.html")
        for match in LOADED.finditer(page.read_text())
        if 'rel="canonical"' not in match.group()
    }
    assert found == set()


def test_python_reference_has_the_public_names(site: Path) -> None:
    import autoft

    page = (site / "docs" / "api.html").read_text()
    for name in set(autoft.__all__) - {"HOOKS_VERSION", "__version__", "hookimpl"}:
        assert f'id="autoft.{name}"' in page, name
    assert "trainer.epochs=5" in page, "docstrings are there"


def test_dead_link_fails_the_build(builder: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out = builder["lay_out"]

    def with_dead_link(target: Path) -> None:
        lay_out(target)
        page = target / "docs" / "faq.md"
        page.write_text(page.read_text() + "\n[gone](nowhere.md)\n")

    monkeypatch.setitem(builder["build"].__globals__, "lay_out", with_dead_link)
    with pytest.raises(SystemExit, match=r"page does not exist[\s\S]*docs/faq\.md"):
        builder["build"](tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_links_to_files_that_are_no_pages_become_their_names(builder: dict[str, Any]) -> None:
    page = ROOT / "docs" / "faq.md"
    text = "[licence](../LICENSE) [guide](user-guide.md#x) [web](https://example.org) ![picture](images/flow.svg)"
    turned = builder["without_files"](text, page, {ROOT / "docs" / "user-guide.md"})
    assert turned == text.replace("[licence](../LICENSE)", "licence (`LICENSE`)")
