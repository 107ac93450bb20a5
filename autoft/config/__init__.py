"""Reads a study file and options into a validated `StudyConfig`, and reports all problems together, each with its line.

Reading goes in four steps, one a module: YAML to plain values that remember their lines (`document`), options laid over
them (`options`), the settings and their limits (`schema`), and all checks in one pass, with the names that the installed
plugins must know (`check`). Looking into the data and the models is left to the search.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from autoft.config.check import Known, KnownSource, Objection, check
from autoft.config.document import Document, read_file
from autoft.config.options import HUB, expand, override, resolve_paths
from autoft.config.schema import (
    ALL,
    BackboneConfig,
    ConstraintsConfig,
    DataConfig,
    ExportConfig,
    PluginsConfig,
    SearchConfig,
    SpaceEntry,
    StudyConfig,
    TrainerConfig,
)

__all__ = [
    "ALL",
    "HUB",
    "BackboneConfig",
    "ConstraintsConfig",
    "DataConfig",
    "ExportConfig",
    "Known",
    "KnownSource",
    "Objection",
    "PluginsConfig",
    "SearchConfig",
    "SpaceEntry",
    "StudyConfig",
    "TrainerConfig",
    "load_study",
    "study_from_data",
]


def load_study(
    path: Path,
    overrides: Sequence[str] = (),
    known: KnownSource | None = None,
) -> StudyConfig:
    """Return the validated study of a file.

    Relative paths in the file start from its folder, those in overrides from the current folder.

    Args:
        path: The study file.
        overrides: Options `a.b=value` that win over the file; the value is YAML, as in `backbones=[timm/resnet18]`.
        known: What the installed plugins offer; or a function that finds it, called with the study's `plugins`
            section unless that is wrong itself. None checks no names.

    Raises:
        ConfigError: If anything is wrong; it lists every problem, in file order, then those of the overrides.
    """
    return _load(read_file(path), overrides, known)


def study_from_data(
    path: Path,
    overrides: Sequence[str] = (),
    known: KnownSource | None = None,
) -> StudyConfig:
    """Return the validated study of a bare data path: everything else has its default, or is in the overrides.

    Args:
        path: File or folder of the data; a relative one starts from the current folder.
        overrides: As for `load_study`.
        known: As for `load_study`.

    Raises:
        ConfigError: If anything is wrong; it lists every problem.
    """
    return _load(Document("options", os.getcwd(), {"data": {"path": str(path)}}), overrides, known)


def _load(document: Document, overrides: Sequence[str], known: KnownSource | None) -> StudyConfig:
    expand(document)
    for number, option in enumerate(overrides):
        override(document, option, number)
    resolve_paths(document)
    return check(document, known)
