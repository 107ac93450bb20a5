"""What a run is made of, for its `lock.json`: what decides whether it is the same study, and what it was run with."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from autoft.config import DataConfig, StudyConfig
from autoft.export.bundle import RECORDED_PACKAGES
from autoft.files import read_json, sha256
from autoft.prepare import Prepared


def identity(prepared: Prepared) -> dict[str, Any]:
    """Return what makes a run this study's: its settings, the data's content, and the weights it starts from."""
    made_of = prepared.config.identity()
    for name in ("path", "validation", "test"):
        made_of["data"].pop(name)  # the data's content counts, not where it lies
    made_of["data"]["fingerprint"] = prepared.raw.fingerprint
    made_of["backbones"] = [
        {
            "name": backbone.public_name,
            "weights": weights_identity(backbone.weights),
            "preprocessing": backbone.preprocessing.to_dict(),
        }
        for backbone in prepared.backbones
    ]
    return made_of


def defaults() -> dict[str, Any]:
    """Return the settings of `identity` that nobody has to set, as they are then.

    A folder of an older autoft lacks those that came later: it trained as their defaults do, since a new setting's default
    changes nothing. Where one must, `runfolder.FORMAT` is raised.
    """
    usual = StudyConfig(name="any", data=DataConfig(path=Path("any"))).identity()
    del usual["name"], usual["data"]["path"]
    return usual


def weights_identity(weights: str) -> str:
    """Return what tells weights from others: the hash of their files, or their name where they are no file."""
    file = Path(weights)
    if not file.is_file():
        return weights
    # an index names the files that the weights are divided into, and says nothing of their content
    shards = sorted(set(read_json(file)["weight_map"].values())) if file.name.endswith(".index.json") else []
    return " ".join(["sha256:" + sha256(part) for part in (file, *(file.parent / shard for shard in shards))])


def facts(prepared: Prepared) -> dict[str, Any]:
    """Return what else `lock.json` records: versions, the machine, plugins."""
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in RECORDED_PACKAGES}},
        "platform": platform.platform(),
        "device": str(prepared.device),
        "plugins": [
            {"name": plugin.name, "package": plugin.package, "version": plugin.version, "state": plugin.state}
            for plugin in prepared.catalog.plugins
        ],
    }
