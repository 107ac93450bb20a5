"""Parquet and Arrow files as plain Arrow tables, checked: what a file says of itself may be wrong, and Arrow trusts it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from autoft.errors import DataError, first_line
from autoft.tables.sniff import MOST_COLUMNS

ROWS = 1000  # rows of a batch, at most
LARGEST_BATCH = 1 << 30  # bytes that the dictionaries of a batch may unpack to
_SLICE = 1 << 26  # and bytes that are unpacked at once


def schema_of(path: Path, kind: str) -> pa.Schema:
    """Return the columns of a Parquet or Arrow file.

    Raises:
        DataError: It is none, or has too many columns.
    """
    try:
        if kind == "parquet":
            schema = _plain(pq.read_schema(path))
        else:
            with _open_arrow(path) as reader:
                schema = _plain(reader.schema)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path} must be a {kind} file, but cannot be read: {first_line(error)}", "look at the file"
        ) from error
    if len(schema) > MOST_COLUMNS:
        raise DataError(f"a table may have {MOST_COLUMNS} columns, but {path} has {len(schema)}", "leave some out")
    return schema


def features_of(path: Path, kind: str) -> datasets.Features:
    """Return the columns of a Parquet or Arrow file as `datasets` has them, with the names of classes in its metadata.

    Raises:
        DataError: It is none, or its metadata are of something else.
    """
    schema = schema_of(path, kind)
    try:
        return datasets.Features.from_arrow_schema(schema)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, NotImplementedError) as error:
        raise DataError(
            f"{path} must say of what types its columns are, but that cannot be read: {first_line(error)}",
            "write the file again, without the metadata named `huggingface` and with plain types",
        ) from error


def read_typed(path: Path, kind: str) -> Iterator[pa.Table]:
    """Yield a file's rows as tables of at most `ROWS`.

    Raises:
        DataError: A part of it does not hold what it says.
    """
    if kind == "parquet":
        schema = pq.read_schema(path)
        # one value in a dictionary may stand in a thousand rows: these are unpacked here, where it is counted
        texts = [item.name for item in schema if pa.types.is_string(item.type) or pa.types.is_binary(item.type)]
        with pq.ParquetFile(path, read_dictionary=texts) as file:
            for batch in file.iter_batches(batch_size=ROWS):
                yield from _decoded(batch, path)
        return
    with _open_arrow(path) as reader:
        if isinstance(reader, pa.RecordBatchFileReader):
            batches: Iterable[pa.RecordBatch] = (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            batches = reader
        for batch in batches:
            check_batch(batch, path)
            for start in range(0, batch.num_rows, ROWS):
                yield from _decoded(batch.slice(start, ROWS), path)


def check_batch(batch: pa.RecordBatch, path: Path) -> None:
    """Check that the parts of a batch fit together: reading one whose offsets lead outside would end the process.

    Raises:
        DataError: They do not, or a text is not UTF-8.
    """
    try:
        batch.validate(full=True)
    except pa.ArrowException as error:
        raise DataError(
            f"the rows of {path} must be as its header says, but are not: {first_line(error)}", "write the file again"
        ) from error


def _open_arrow(path: Path) -> Any:
    with path.open("rb") as file:
        is_file = file.read(6) == b"ARROW1"
    opened = pa.OSFile(str(path))
    return pa.ipc.open_file(opened) if is_file else pa.ipc.open_stream(opened)


def _plain(schema: pa.Schema) -> pa.Schema:
    """Return a schema whose dictionary-encoded columns, such as categories of pandas, are plain."""
    fields = [item.with_type(item.type.value_type) if pa.types.is_dictionary(item.type) else item for item in schema]
    metadata: Mapping[bytes, bytes] = schema.metadata or {}
    return pa.schema(fields, metadata={key: value for key, value in metadata.items() if key == b"huggingface"})


def _decoded(batch: pa.RecordBatch, path: Path) -> Iterator[pa.Table]:
    """Yield a batch without dictionaries, in pieces where it would be large."""
    check_batch(batch, path)
    size = sum(_unpacked(column) for column in batch.columns)
    if size > LARGEST_BATCH:
        raise DataError(
            f"{ROWS} rows may have {LARGEST_BATCH} bytes of text, but in {path} {batch.num_rows} have {size}",
            "leave out the column of long texts, or shorten them",
        )
    rows = max(1, batch.num_rows * _SLICE // size) if size > _SLICE else max(1, batch.num_rows)
    plain = _plain(batch.schema)
    for start in range(0, batch.num_rows, rows):
        table = pa.Table.from_batches([batch.slice(start, rows)])
        yield table.cast(plain).replace_schema_metadata(plain.metadata)


def _unpacked(column: pa.Array) -> int:
    """Return the bytes of a dictionary's values, each counted as often as it stands in the column."""
    if not pa.types.is_dictionary(column.type) or not len(column):
        return 0
    values = column.dictionary
    if not (
        pa.types.is_string(values.type)
        or pa.types.is_large_string(values.type)
        or pa.types.is_binary(values.type)
        or pa.types.is_large_binary(values.type)
    ):
        return 0
    lengths = pc.cast(pc.binary_length(values), pa.int64())
    return int(pc.sum(lengths.take(column.indices)).as_py() or 0)
