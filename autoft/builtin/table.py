"""The data format `table`: texts or images with labels in CSV, JSON, Parquet, Arrow or CoNLL files, or on the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoft.hookspecs import hookimpl
from autoft.specs import DataFormat, RawData
from autoft.tables.sources import OPTIONS, is_table


@hookimpl
def autoft_data() -> list[DataFormat]:
    """Return the format `table`."""
    return [
        DataFormat(
            name="table",
            modality=None,
            detect=is_table,
            load=load,
            options=OPTIONS,
            help="CSV, TSV, JSON, Parquet, Arrow or CoNLL files, folders of them by split, or hf://datasets/OWNER/NAME.",
        )
    ]


def load(path: Path, options: Mapping[str, Any]) -> RawData:
    """Read labelled texts or images from tables; columns and task are found by name and content where not given.

    Args:
        path: A file; a folder with files named by split, or saved by `datasets`; or `hf://datasets/OWNER/NAME`.
        options: `max_rejected` and `for_training` as of every format. `text`: column of the texts, or two of pairs. `label`:
            column of the labels, or several. `image`: column of image paths. `delimiter`: what separates labels in a cell.
            `group` and `split`: columns for dividing the rows. `validation`, `test`: further files. `subset`: configuration
            of a data set on the hub. `task`: name of the head that the labels are for.

    Raises:
        DataError: There is nothing to learn from, or it is not clear what.
    """
    from autoft.tables.load import load_table  # the readers take a second to import

    return load_table(path, options)
