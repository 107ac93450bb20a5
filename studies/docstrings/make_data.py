"""Write first sentences of installed libraries' docstrings, each with its library, as a table; trains nothing.

The libraries come with autoft itself, so nothing is downloaded, and nothing of them is imported: their sources are parsed.

    python make_data.py                            # data/docstrings.csv: columns text, library, module
    python make_data.py /tmp/many.csv --per-library 1000
"""

from __future__ import annotations

import argparse
import ast
import csv
import hashlib
import importlib.util
import io
import re
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

# Package to import: distribution, and the words for it that are taken out of every sentence.
LIBRARIES = {
    "networkx": ("networkx", ("networkx", "nx")),
    "numpy": ("numpy", ("numpy", "np")),
    "pandas": ("pandas", ("pandas", "pd")),
    "scipy": ("scipy", ("scipy",)),
    "sklearn": ("scikit-learn", ("scikit-learn", "sklearn", "scikit")),
    "sqlalchemy": ("sqlalchemy", ("sqlalchemy",)),
    "sympy": ("sympy", ("sympy",)),
    "timm": ("timm", ("timm",)),
    "torch": ("torch", ("torch", "pytorch")),
    "transformers": ("transformers", ("transformers", "huggingface", "hugging face")),
}
PER_LIBRARY = 400
PER_MODULE = 8  # sentences of one file at most: modules are copied from each other, most of all in transformers
WORDS = (4, 50)

# Tests, and copies of other libraries.
SKIPPED_FOLDERS = {"tests", "testing", "_vendor", "externals", "_external", "array_api_compat", "array_api_extra"}

NAMES = sorted((name for _, names in LIBRARIES.values() for name in names), key=len, reverse=True)
_NAME = "|".join(re.escape(name) for name in NAMES)
DOTTED_NAME = re.compile(rf"(?<![\w.])(?:{_NAME})\.(?=\w)", re.IGNORECASE)
LONE_NAME = re.compile(rf"(?<!\w)(?:{_NAME})(?!\w)", re.IGNORECASE)
PART_OF_WORD = re.compile("|".join(re.escape(name) for name in NAMES if len(name) > 2), re.IGNORECASE)

SECTION = re.compile(
    r"(args?|arguments|parameters|returns?|yields?|raises|examples?|notes?|usage|inputs?|outputs?|shape)\s*:?\s*$"
    r"|[-*+] |\d+[.)] |\.\. |>>>|:\w+|={3,}|-{3,}|@",
    re.IGNORECASE,
)
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z0-9`])")
ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|vs|cf|al|eq|eqs|fig|ref|refs|sec|approx|resp|no|[A-Z])\.)$", re.IGNORECASE)


@dataclass(frozen=True)
class Sentence:
    """One row of the table."""

    text: str
    library: str
    module: str


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "out", nargs="?", type=Path, default=Path(__file__).parent / "data" / "docstrings.csv", help="file to write"
    )
    parser.add_argument("--per-library", type=int, default=PER_LIBRARY, help="sentences of each library")
    arguments = parser.parse_args()

    found = [sentence for library in LIBRARIES for sentence in sentences_of(package_folder(library), library)]
    rows = choose(found, arguments.per_library)
    counts = Counter(row.library for row in rows)
    short = {library: counts[library] for library in LIBRARIES if counts[library] < arguments.per_library}
    if short:
        listed = ", ".join(f"{library} {count}" for library, count in short.items())
        print(f"error: --per-library {arguments.per_library} is more than there are: {listed}", file=sys.stderr)
        print("hint: ask for fewer", file=sys.stderr)
        return 2
    content = table(rows)
    same = arguments.out.is_file() and arguments.out.read_bytes() == content
    if not same:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_bytes(content)
    modules = len({row.module for row in rows})
    versions = ", ".join(f"{name} {version(distribution)}" for name, (distribution, _) in LIBRARIES.items())
    print(f"from {versions}")
    print(
        f"{arguments.out}: {len(rows)} sentences of {len(counts)} libraries, {modules} modules"
        f"{'; was there already' if same else ''} (sha256 {hashlib.sha256(content).hexdigest()[:12]})"
    )
    return 0


def package_folder(name: str) -> Path:
    """Return an installed package's folder, without importing it."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        print(f"error: {name} is needed, but is not installed\nhint: pip install {LIBRARIES[name][0]}", file=sys.stderr)
        raise SystemExit(2)
    return Path(found.origin).parent


# --- reading ----------------------------------------------------------------------------------------


def sentences_of(folder: Path, library: str) -> Iterator[Sentence]:
    """Yield the cleaned first sentence of every public function's, class's and method's docstring, file by file."""
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if SKIPPED_FOLDERS.intersection(parts) or any(part.startswith(("test_", "conftest")) for part in parts):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # such as "\d" in a library's plain strings
            try:
                tree = ast.parse(path.read_bytes())
            except SyntaxError:
                continue  # a template of code, such as torch ships some: not Python
        module = ".".join((library, *(part for part in parts if part != "__init__")))
        for docstring in public_docstrings(tree):
            text = clean(first_sentence(docstring))
            if text is not None:
                yield Sentence(text, library, module)


def public_docstrings(tree: ast.Module | ast.ClassDef) -> Iterator[str]:
    """Yield docstrings of public functions and classes, and of classes' public methods; not of what is inside functions."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring
            if isinstance(node, ast.ClassDef):
                yield from public_docstrings(node)


def first_sentence(docstring: str) -> str:
    """Return the first sentence of a docstring on one line; empty where it begins with none, as with a list.

    Example:
        >>> first_sentence("Add two\\nnumbers, e.g. floats. Slow.\\n\\nArgs: ...")
        'Add two numbers, e.g. floats.'
    """
    lines: list[str] = []
    for line in docstring.strip().splitlines():
        stripped = line.strip()
        if not stripped or SECTION.match(stripped):
            break
        lines.append(stripped)
    paragraph = " ".join(" ".join(lines).split())
    for end in SENTENCE_END.finditer(paragraph):
        if not ABBREVIATION.search(paragraph[: end.start()]):
            return paragraph[: end.start()]
    return paragraph


# --- cleaning ---------------------------------------------------------------------------------------


def clean(sentence: str) -> str | None:
    """Return a sentence without markup and without any library's name, or None where too little, or too much, is left.

    What would give the library away at once goes: how it writes markup, `np.` before names, its own name. A name that is
    part of a longer word (`TorchScript`) cannot go; such a sentence is dropped.

    Example:
        >>> clean("Convert a :class:`~torch.Tensor` to a ``numpy.ndarray`` of NumPy.")
        'Convert a Tensor to a ndarray of library'
    """
    text = re.sub(r":(?:\w+:)*\w+:`~?([^`<]*?)(?:\s*<[^`]*>)?`", _role, sentence)  # :class:`~a.b.C`
    text = re.sub(r"`([^`<]+?)\s*<[^`]*>`_+", r"\1", text)  # `words <target>`_
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)  # [words](target)
    text = re.sub(r"\[`([^`]*)`\]", r"\1", text)  # [`Name`]
    text = re.sub(r"https?://\S+", "", text)
    text = re.sub(r"`+_*|\*\*|(?<!\w)\*(?=\w)|(?<=\w)\*(?!\w)|\|", "", text)
    text = LONE_NAME.sub("library", DOTTED_NAME.sub("", text))
    text = " ".join(text.split()).strip(" .:;,!")
    words = [word for word in text.split() if re.search(r"[^\W\d_]", word)]
    if not WORDS[0] <= len(words) <= WORDS[1] or PART_OF_WORD.search(text):
        return None
    return text


def _role(match: re.Match[str]) -> str:
    """Return what Sphinx would show for a role: the last part of a name after `~`, else all."""
    return match[1].rpartition(".")[2] if "`~" in match[0] else match[1]


# --- choosing ---------------------------------------------------------------------------------------


def choose(found: list[Sentence], per_library: int) -> list[Sentence]:
    """Return so many sentences of each library, as far as there are; the same ones for equal packages.

    Sentences are equal if they differ in case, digits or punctuation alone. Of equal ones in a library one stays, what is in
    several libraries goes altogether.
    """
    homes: dict[str, set[str]] = defaultdict(set)
    for sentence in found:
        homes[key(sentence.text)].add(sentence.library)
    seen: set[str] = set()
    of_library: Counter[str] = Counter()
    of_module: Counter[str] = Counter()
    chosen = []
    # By hash: a random order that the next release of a library changes little.
    for sentence in sorted(found, key=lambda each: (hashlib.sha256(each.text.encode()).digest(), each.module)):
        same = key(sentence.text)
        if len(homes[same]) > 1 or same in seen:
            continue
        if of_library[sentence.library] == per_library or of_module[sentence.module] == PER_MODULE:
            continue
        seen.add(same)
        of_library[sentence.library] += 1
        of_module[sentence.module] += 1
        chosen.append(sentence)
    return chosen


def key(text: str) -> str:
    """Return what equal sentences have in common: their letters."""
    return "".join(character for character in text.lower() if character.isalpha())


def table(rows: list[Sentence]) -> bytes:
    """Return the rows as CSV."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("text", "library", "module"))
    writer.writerows((row.text, row.library, row.module) for row in rows)
    return buffer.getvalue().encode()


if __name__ == "__main__":
    sys.exit(main())
