"""Loads a backbone's weights from a safetensors file of its own or of a bundle; what the module is, its family knows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from autoft.errors import BackboneError, first_line
from autoft.files import load_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

BUNDLED = "backbone."  # what the names of a backbone's weights begin with in a bundle's file, which holds the head too


def with_versions(module: nn.Module, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return weights as a state dict of the versions that a module's parts have.

    torch keeps them beside the tensors, in `_metadata`, which a safetensors file does not hold; without them parts such as
    those of torchvision's MNASNet cannot tell what they are given, and refuse it.

    Args:
        module: What the weights are for.
        tensors: By name, as a file holds them, or a state dict, whose own versions stay.
    """
    if hasattr(tensors, "_metadata"):
        return tensors
    state = OrderedDict(tensors)
    state._metadata = module.state_dict()._metadata  # type: ignore[attr-defined]
    return state


def load_weights(module: nn.Module, file: str | Path, name: str, *, without: Collection[str] = ()) -> None:
    """Load a safetensors file into a built module; every parameter and buffer must be there, and no other.

    Args:
        module: What is loaded into.
        file: Weights by name, or a bundle's `model.safetensors`.
        name: The backbone, for errors: `timm/resnet18`.
        without: Modules of the file that the backbone does not have, such as the `fc` of the classifier that it was.

    Raises:
        BackboneError: There is no such file, it is not whole, or it is of another model.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise BackboneError(
            f"the weights of {name} do not exist: {path}", "use `pretrained`, `none`, or the path of a safetensors file"
        )
    try:
        tensors, _ = load_tensors(path)
    except (OSError, ValueError) as error:
        raise BackboneError(
            f"the weights of {name} cannot be read: {first_line(error)}", "save them with safetensors.torch.save_file"
        ) from error
    if any(key.startswith(BUNDLED) for key in tensors):
        tensors = {key.removeprefix(BUNDLED): value for key, value in tensors.items() if key.startswith(BUNDLED)}
    prefixes = tuple(f"{owner}." for owner in without)
    tensors = {key: value for key, value in tensors.items() if not key.startswith(prefixes)}
    try:
        found = module.load_state_dict(with_versions(module, tensors), strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()  # the lines before only say that something did not fit
        raise BackboneError(f"the weights {path} are not of {name}: {reason}", "name the model that they are of") from error
    for what, keys in (("lack", found.missing_keys), ("have too many", found.unexpected_keys)):
        if keys:
            raise BackboneError(
                f"the weights {path} are not of {name}: they {what} {len(keys)} parameters, such as {keys[0]}",
                "name the model that they are of",
            )
