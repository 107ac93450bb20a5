"""Writes and reads where a training stands after an epoch, so that a kill at any time loses at most the epoch in flight.

`last.safetensors` commits; it names the file with the best weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoft.averaging import Average
from autoft.errors import first_line
from autoft.files import checksum, load_tensors, remove_tree, save_tensors, write_bytes

LAST = "last.safetensors"
ADAPTER = "adapter"  # folders with the adapter alone, one for each best epoch


class DamagedCheckpointError(Exception):
    """A checkpoint, or a part of it, is gone or not what was written: the training can only begin again."""


@dataclass(frozen=True)
class State:
    """What changes in a training, beside the reports of its epochs.

    Attributes:
        model: With its weights.
        optimizer: With its moments; its groups have `names`.
        scaler: Of the gradients.
        average: Of the weights, or None.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: Average | None = None


def save(
    folder: Path,
    state: State,
    history: list[dict[str, Any]],
    best_epoch: int,
    best_weights: Mapping[str, Tensor],
    adapter: Mapping[str, bytes] | None = None,
) -> None:
    """Write a checkpoint.

    Args:
        folder: Made where it is not there.
        state: Of the training.
        history: The epochs' reports, JSON-ready.
        best_epoch: Which of them is the best, counted from 1.
        best_weights: Of that epoch.
        adapter: Files of the adapter alone at that epoch, where there is one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    best_file = folder / f"best-{best_epoch}.safetensors"
    if best_epoch == history[-1]["epoch"]:
        # files of its own for each best epoch: after a kill before the commit below, the older ones are still there
        for name, content in (adapter or {}).items():
            write_bytes(folder / f"{ADAPTER}-{best_epoch}" / name, content)
        save_tensors(best_file, best_weights)
    tensors = {f"model/{name}": value for name, value in state.model.state_dict().items()}
    for group in state.optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in state.optimizer.state.get(parameter, {}).items():
                if value is not None:
                    tensors[f"optimizer/{name}/{key}"] = value
    described: dict[str, Any] = {"history": history, "best": best_file.name, "scaler": state.scaler.state_dict()}
    kept = folder / f"{ADAPTER}-{best_epoch}"
    described["adapter"] = {
        file.name: checksum(file.read_bytes()) for file in sorted(kept.glob("*"), key=lambda path: path.name)
    }
    if state.average is not None:
        tensors |= {f"average/{name}": value for name, value in state.average.values.items()}
        described["averaged"] = state.average.count
    save_tensors(folder / LAST, tensors, described)
    for stale in folder.glob("best-*.safetensors"):
        if stale != best_file:
            stale.unlink()
    for old in folder.glob(f"{ADAPTER}-*"):
        if old.name != f"{ADAPTER}-{best_epoch}":
            remove_tree(old)


def load(folder: Path, state: State) -> tuple[list[dict[str, Any]], dict[str, Tensor]] | None:
    """Bring a training to where a checkpoint left it.

    Returns:
        The epochs' reports, and the best epoch's weights; None where there is no checkpoint.

    Raises:
        DamagedCheckpointError: It is not what was written.
    """
    if not (folder / LAST).exists():
        return None
    tensors, described = _read(folder / LAST)
    best_weights, _ = _read(folder / described["best"])
    read_adapter(folder, described)

    def below(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    state.model.load_state_dict(below("model/"))
    for group in state.optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            moments = below(f"optimizer/{name}/")
            if moments:  # what was not trained yet has none, and an optimizer makes them where there is no entry
                # AdamW's step counter is a scalar that fused kernels want on the parameter's device, like the moments
                state.optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in moments.items()}
    if described["scaler"]:
        state.scaler.load_state_dict(described["scaler"])
    if state.average is not None:
        state.average.restore(below("average/"), described["averaged"])
    return described["history"], best_weights


def read_best(folder: Path) -> tuple[dict[str, Any], Path, dict[str, bytes]]:
    """Return what a checkpoint says, the file of the best epoch's weights, and the files of its adapter; all were compared.

    Raises:
        DamagedCheckpointError: It is gone, or not what was written.
    """
    _, described = _read(folder / LAST)
    best = folder / described["best"]
    _read(best)
    return described, best, read_adapter(folder, described)


def read_adapter(folder: Path, described: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the files of the best epoch's adapter; empty where there is none.

    Args:
        folder: Of the checkpoint.
        described: What `last.safetensors` says.

    Raises:
        DamagedCheckpointError: They are not what was written.
    """
    kept = folder / f"{ADAPTER}-{Path(described['best']).stem.removeprefix('best-')}"
    found = {file.name: file.read_bytes() for file in sorted(kept.glob("*"), key=lambda path: path.name)}
    wanted = described.get("adapter")  # None in checkpoints of an earlier autoft
    if wanted is not None and wanted != {name: checksum(content) for name, content in found.items()}:
        raise DamagedCheckpointError(f"the files in {kept} are altered: they do not match their checksums")
    return found


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        return load_tensors(file)
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{file} is gone") from error
    except ValueError as error:
        raise DamagedCheckpointError(first_line(error)) from error
