"""Rows of Arrow files, read from the disk batch by batch.

Not mapped into memory, as `datasets` itself does: every page once touched would count as this process's memory, and a table
larger than memory would seem to fill it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from autoft.errors import DataError, first_line
from autoft.tables.cells import names_of
from autoft.tables.conversion import convert
from autoft.tables.sources import Source
from autoft.tables.typed import check_batch


class Store:
    """A table on disk.

    Attributes:
        source: Where it came from.
        features: Type of each column, as `datasets` has them.
        about: How its file was written; empty where it has types of its own.
        starts: Number of each batch's first row, and of all rows, `(B + 1,)`.
    """

    def __init__(self, source: Source, dataset: Any, about: dict[str, Any]) -> None:
        self.source = source
        self.features: dict[str, Any] = dict(dataset.features)
        self.about = about
        _check_classes(self.features, source)
        self.starts = [0]
        self._schema: pa.Schema = None
        self._places: list[tuple[str, int]] = []
        if dataset._indices is not None:
            raise DataError(
                f"a saved data set must hold its rows in order, but {source.name} is a choice of others' rows",
                "call `flatten_indices()` on it, and save it again",
            )
        for entry in dataset.cache_files:
            self._index(Path(entry["filename"]))

    def __len__(self) -> int:
        return self.starts[-1]

    def _index(self, file: Path) -> None:
        """Note where the batches of a file begin."""
        try:
            with pa.OSFile(str(file)) as opened:
                reader = pa.ipc.open_stream(opened)
                self._schema = reader.schema
                while True:
                    place = opened.tell()
                    try:
                        rows = reader.read_next_batch().num_rows
                    except StopIteration:
                        return
                    if rows:
                        self._places.append((str(file), place))
                        self.starts.append(self.starts[-1] + rows)
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"the copy of {self.source.name} in {file.parent} is damaged: {first_line(error)}", "remove that folder"
            ) from error

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self.features)

    def number_of(self, row: int) -> int:
        """Return the number of the batch that holds a row."""
        return bisect_right(self.starts, row) - 1

    def batch(self, number: int) -> pa.RecordBatch:
        """Read one batch."""
        file, place = self._places[number]
        with pa.OSFile(file) as opened:
            opened.seek(place)
            return pa.ipc.read_record_batch(pa.ipc.read_message(opened), self._schema)

    def batches(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield every batch with its number, in order."""
        for number, (file, _) in enumerate(self._places):
            batch = self.batch(number)
            check_batch(batch, Path(file))  # a saved data set is as it was given
            yield number, batch


def _check_classes(features: Mapping[str, Any], source: Source) -> None:
    """Check the names of classes that a file's metadata declare."""
    for column, feature in features.items():
        strange = [name for name in names_of(feature) or () if not isinstance(name, str)]
        if strange:
            raise DataError(
                f"names of classes must be text, but {source.name} says of {column!r}: {str(strange[0])[:60]!r}",
                "write the file again",
            )


def open_stores(sources: Sequence[Source]) -> list[Store]:
    """Convert what has to be, and open all tables; those of one split that are empty are left in, and are empty.

    Raises:
        DataError: One cannot be read.
    """
    stores = []
    for source in sources:
        dataset, about = (source.dataset, {}) if source.file is None else convert(source.file)
        stores.append(Store(source, dataset, about))
    return stores
