"""From a path to labelled samples: tables found and converted, columns and task found out, every row read once."""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autoft.errors import DataError
from autoft.imagefiles import verify_images
from autoft.quarantine import check_rejected, common_options
from autoft.specs import SPLITS, RawData, Rejected
from autoft.splits import SPLIT_NAMES
from autoft.tables.cells import MISSING, is_missing, read_cells
from autoft.tables.columns import LABELS, TEXTS, Roles, as_names, find_roles
from autoft.tables.lazy import Kept, TableSamples, row_name, sources_of
from autoft.tables.parsing import FAULT
from autoft.tables.profile import Profile, profile
from autoft.tables.sniff import DELIMITERS
from autoft.tables.sources import OPTIONS, find_sources
from autoft.tables.store import Store, open_stores
from autoft.tables.targets import Plan, TargetColumn, plan_targets

IN_MEMORY = 32 << 20  # characters of texts that are held, rather than read again
IN_MEMORY_ROWS = 100_000
SEPARATORS = "|;,"  # that people write between several labels in a cell
_UTF8 = ("utf-8", "utf-8-sig")


def load_table(path: Path, options: Mapping[str, Any]) -> RawData:
    """Read labelled samples from tables.

    Args:
        path: A file, a folder, or `hf://datasets/OWNER/NAME`.
        options: `max_rejected` and `for_training` of every format, and those of `OPTIONS`.

    Raises:
        DataError: There is nothing to learn from, or it is not clear what.
    """
    max_rejected, for_training = common_options(options, "table", OPTIONS)
    sources, notes = find_sources(path, options)
    stores = open_stores(sources)
    notes += _how_read(stores)
    profiles = profile(stores)
    _check_same_columns(stores, profiles, options)
    declared = any(source.split is not None for source in sources)
    _check_header(profiles, options, stores)
    if all(seen.kind == "empty" for seen in profiles.values()):
        faults = _faults(stores)
        check_rejected(faults, sum(map(len, stores)), max_rejected, "rows", path)
    roles = find_roles(profiles, options, for_training=for_training, declared=declared)
    plan = plan_targets(roles, profiles, options)
    reader = _Reader(stores, roles, plan)
    reader.read()
    total = len(reader.rows) + len(reader.rejected)
    check_rejected(reader.rejected, total, max_rejected, "rows", path)
    kept = reader.kept()
    _check(kept, plan, roles, path, for_training)
    samples: Sequence[Any] = TableSamples(stores, roles, kept)
    if len(samples) <= IN_MEMORY_ROWS and reader.characters <= IN_MEMORY:
        samples = tuple(samples)
    return RawData(
        modality="text" if roles.image is None else "image",
        task=plan.task,
        samples=samples,
        rejected=tuple(reader.rejected),
        fingerprint=_fingerprint(kept),
        typical_size=math.ceil(np.percentile(reader.sizes, 95)) if len(reader.sizes) else None,
        found=_found(roles, options),
        notes=(
            *notes,
            *roles.notes,
            _choice(roles, plan, options),
            *_odd_labels(plan, profiles[roles.label[0]]),
            *reader.notes(),
        ),
    )


class _Reader:
    """Reads every row once, and keeps a few bytes of each that can be learned from."""

    def __init__(self, stores: Sequence[Store], roles: Roles, plan: Plan) -> None:
        self.stores = stores
        self.roles = roles
        self.plan = plan
        self.targets = TargetColumn(plan.kind)
        self.rows, self.contents = array("q"), array("Q")
        self.splits, self.groups = array("b"), array("i")
        self.group_codes: dict[str, int] = {}
        self.rejected: list[Rejected] = []
        self.left_out: Counter[str] = Counter()
        self.sizes = array("i")
        self.characters = 0

    def read(self) -> None:
        """Read all tables."""
        first = 0
        for store in self.stores:
            for number, batch in store.batches():
                self._read_batch(store, store.starts[number], batch, first)
            first += len(store)

    def _read_batch(self, store: Store, start: int, batch: Any, first: int) -> None:
        roles = self.roles
        sources = sources_of(store, batch, roles)
        cells = [read_cells(batch.column(name), store.features[name]) for name in roles.label]
        group = None if roles.group is None else read_cells(batch.column(roles.group), store.features[roles.group])
        split = None if roles.split is None else read_cells(batch.column(roles.split), store.features[roles.split])
        faults: list[str | None] = batch.column(FAULT).to_pylist() if FAULT in store.features else [None] * len(sources)
        checked = _verified(sources) if roles.image is not None else None
        declared = -1 if store.source.split is None else SPLITS.index(store.source.split)
        for place, source in enumerate(sources):
            row = start + place
            if (fault := faults[place]) is not None:
                self.rejected.append(Rejected(row_name(store, row), fault))
                continue
            if source is None:
                self.left_out["image" if roles.image is not None else "text"] += 1
                continue
            try:
                target = self.plan.read([column[place] for column in cells])
                self._check_parts(source, target)
            except ValueError as error:
                self.rejected.append(Rejected(row_name(store, row), str(error)))
                continue
            if target is None:
                self.left_out["label"] += 1
                continue
            code = declared if split is None else _split_code(split[place], roles.split, row_name(store, row))
            if checked is not None:
                result = checked[place]
                if isinstance(result, str):
                    self.rejected.append(Rejected(row_name(store, row), _about(source, result)))
                    continue
                content = int(result[0][:16], 16)
                self.sizes.append(result[1])
            else:
                content = self._content(source)
            self.rows.append(first + row)
            self.contents.append(content)
            self.splits.append(code)
            self.groups.append(-1 if group is None else self._group(group[place]))
            self.targets.append(target)

    def _check_parts(self, source: Any, target: Any) -> None:
        if self.plan.kind == "tags" and target is not None and len(source) != len(target):
            raise ValueError(f"each word must have a tag, but there are {len(source)} words and {len(target)} tags")

    def _content(self, source: Any) -> int:
        text = source if isinstance(source, str) else json.dumps(source, ensure_ascii=False)
        self.characters += len(text)
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "big")

    def _group(self, cell: Any) -> int:
        return -1 if is_missing(cell) else self.group_codes.setdefault(str(cell).strip(), len(self.group_codes))

    def kept(self) -> Kept:
        """Return what is held of each sample."""
        return Kept(
            np.asarray(self.rows, np.int64),
            np.asarray(self.contents, np.uint64),
            np.asarray(self.splits, np.int8),
            np.asarray(self.groups, np.int32),
            list(self.group_codes),
            self.targets,
        )

    def notes(self) -> list[str]:
        """Return what people should know of the rows that were left out."""
        columns = {
            "label": self.roles.label,
            "text": self.roles.text,
            "image": () if self.roles.image is None else (self.roles.image,),
        }
        return [
            f"{count} {'row was' if count == 1 else 'rows were'} left out: nothing is in {_names(columns[what], 'or')}"
            for what, count in sorted(self.left_out.items())
        ]


def _verified(sources: Sequence[Any]) -> list[tuple[str, int] | str]:
    there = iter(list(verify_images([source for source in sources if source is not None])))
    return [next(there) if source is not None else "" for source in sources]


def _about(source: Any, fault: str) -> str:
    return f"the image {source.name if isinstance(source, Path) else ''} {fault}".replace("  ", " ")


def _split_code(cell: Any, column: str | None, name: str) -> int:
    if is_missing(cell):
        return -1
    split = SPLIT_NAMES.get(str(cell).strip().lower())
    if split is None:
        raise DataError(
            f"the column {column!r} must name a split, train, validation or test, but {name} has {str(cell)[:40]!r}",
            "mend it, or name another column: --set data.split=NAME",
        )
    return SPLITS.index(split)


# --- checks and words ---------------------------------------------------------------------------------


def _check_same_columns(stores: Sequence[Store], profiles: Mapping[str, Profile], options: Mapping[str, Any]) -> None:
    wanted = {name for option in ("text", "image", "label", "group", "split") for name in as_names(options.get(option))}
    for store in stores:
        if not len(store) and len(stores) > 1:
            continue
        lacking = [name for name in profiles if name not in store.features]
        known = {*TEXTS, *LABELS}
        needed = [name for name in lacking if name in wanted or (not wanted and name.lower() in known)] or (
            lacking if not set(store.features) & set(profiles) else []
        )
        if needed:
            raise DataError(
                f"the tables of all splits must have the same columns, but {store.source.name} lacks {_names(needed)}",
                "add the column to it, or leave the file out (name the one to learn from)",
            )
    if not profiles or not any(len(store) for store in stores):
        names = ", ".join(store.source.name for store in stores)
        raise DataError(f"a table must have rows, but {names} has none", "look at the file")


def _check_header(profiles: Mapping[str, Profile], options: Mapping[str, Any], stores: Sequence[Store]) -> None:
    """Refuse a first line that looks like a row: a column of few values whose name is one of them."""
    if "label" in options or "text" in options or not any(store.about.get("kind") == "csv" for store in stores):
        return
    for name, seen in profiles.items():
        if seen.kind == "text" and seen.values and name in seen.values and seen.distinct <= seen.rows / 2:
            raise DataError(
                f"the first line must name the columns, but {name!r} in it is also a value below it",
                "put a line before it that names the columns, such as `text,label`; or name them by --text and --label",
            )


def _check(kept: Kept, plan: Plan, roles: Roles, path: Path, for_training: bool) -> None:
    columns = _names(roles.label)
    if not len(kept.rows):
        raise DataError(f"there must be rows with a text and a label, but {path} has none", "check --text and --label")
    if plan.kind == "values" and len(np.unique(kept.targets.widths)) > 1:
        raise DataError(
            f"all rows must have as many numbers, but {columns} has from {kept.targets.widths.min()} to "
            f"{kept.targets.widths.max()}",
            "look at the column",
        )
    if not for_training:
        return
    train = np.flatnonzero(kept.splits <= 0)
    if not len(train):
        raise DataError(
            f"there must be rows to learn from, but all of {path} are validation or test", "name a table of train"
        )
    if plan.kind == "label":
        codes = np.unique(kept.targets.codes[train])
        if len(codes) < 2:
            raise DataError(
                f"there must be at least two classes, but {columns} has only {kept.targets.names[int(codes[0])]!r}",
                "add rows of another class, or name another column by --label",
            )
    elif plan.kind == "values" and len(train) > 1:
        targets = kept.targets
        first = targets[int(train[0])]
        if all(targets[int(row)] == first for row in train):
            raise DataError(f"numbers to learn must differ, but {columns} is always {first}", "name another by --label")


def _faults(stores: Sequence[Store]) -> list[Rejected]:
    """Return the rows that cannot be read."""
    return [
        Rejected(row_name(store, store.starts[number] + place), fault)
        for store in stores
        if FAULT in store.features
        for number, batch in store.batches()
        for place, fault in enumerate(batch.column(FAULT).to_pylist())
        if fault is not None
    ]


def _fingerprint(kept: Kept) -> str:
    hashed = hashlib.blake2b(digest_size=16)
    for part in (kept.rows, kept.contents, kept.splits, kept.groups):
        hashed.update(part.tobytes())
    for raw in (*kept.targets.parts(), json.dumps(kept.group_names).encode()):
        hashed.update(raw)
    return hashed.hexdigest()


def _found(roles: Roles, options: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"label": _one_or_more(roles.label)}
    if roles.image is not None:
        found["image"] = roles.image
    else:
        found["text"] = _one_or_more(roles.text)
    for name, value in (("group", roles.group), ("split", roles.split), ("delimiter", options.get("delimiter"))):
        if value is not None:
            found[name] = value
    return found


def _one_or_more(names: Sequence[str]) -> str | list[str]:
    return names[0] if len(names) == 1 else list(names)


def _odd_labels(plan: Plan, column: Profile) -> list[str]:
    """Tell of classes that may be meant otherwise: as nothing, or as several labels."""
    values = (column.values or set()) if plan.kind == "label" and column.kind == "text" else set()
    notes = [
        f"{name!r} is a class of its own in {column.name!r}; empty cells leave rows out"
        for name in sorted(values & MISSING)[:1]
    ]
    for mark in SEPARATORS:
        joined = sorted(name for name in values if mark in name)
        # the parts are labels elsewhere too, or come again in other cells
        parts = [part.strip() for name in joined for part in name.split(mark)]
        if joined and len(set(parts) | (values - set(joined))) < len(values):
            notes.append(f"classes such as {joined[0]!r} look like several labels; if so: --set 'data.delimiter={mark}'")
            break
    return notes


def _choice(roles: Roles, plan: Plan, options: Mapping[str, Any]) -> str:
    source = f"the images in {roles.image!r}" if roles.image is not None else f"the texts in {_names(roles.text)}"
    split = f"; splits are in {roles.split!r}" if roles.split is not None else ""
    group = f"; rows with the same {roles.group!r} stay in one split" if roles.group is not None else ""
    task = options.get("task") or plan.task
    return f"{source} and the labels in {_names(roles.label)} are read: {plan.reason}, so {task}{split}{group}"


def _names(names: Sequence[str], joined: str = "and") -> str:
    return f" {joined} ".join(repr(name) for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _how_read(stores: Sequence[Store]) -> list[str]:
    notes = []
    for store in stores:
        encoding, dialect = store.about.get("encoding", "utf-8"), store.about.get("dialect") or {}
        how = []
        if encoding not in _UTF8:
            how.append(f"in the encoding {encoding}")
        if dialect and dialect["delimiter"] != "," and Path(store.source.name).suffix.lower() not in (".tsv", ".tab"):
            how.append(f"as cells between {DELIMITERS[dialect['delimiter']]}")
        if dialect and not dialect["quoted"]:
            how.append("with quotes as plain characters")
        if dialect and dialect["escaped"]:
            how.append("with quotes escaped by backslashes")
        if how:
            notes.append(f"{store.source.name} is read {', '.join(how)}")
    return notes
