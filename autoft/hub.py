"""Files of the Hugging Face hub: from the local cache, else downloaded, with a quick and clear error where neither works."""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from autoft.errors import BackboneError, first_line

logger = logging.getLogger("autoft")

SECONDS = 5  # to wait for the hub's host; the hub's client alone would retry for most of a minute


def find_file(repository: str, *names: str, what: str, revision: str | None = None) -> Path | None:
    """Return the first of some files that a repository has, from the local cache or downloaded into it.

    Args:
        repository: Its name on the hub, such as `timm/resnet18.a1_in1k`.
        names: Paths in the repository, the preferred one first.
        what: What the files are, in the plural, for errors: `the pretrained weights of timm/resnet18`.
        revision: A branch, tag or commit; None is the main branch.

    Returns:
        A path in the cache; None where the repository has none of the files.

    Raises:
        BackboneError: They are not in the cache and cannot be downloaded.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    asked = []
    for name in names:
        found = cached_file(repository, name, revision=revision)
        if isinstance(found, Path):
            return found
        if found is None:
            asked.append(name)
    if not asked:
        return None
    require_network(what, constants.ENDPOINT)
    for name in asked:
        try:
            return Path(hf_hub_download(repository, name, revision=revision))
        except LocalEntryNotFoundError as error:
            raise no_network(what, constants.ENDPOINT) from error
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise BackboneError(
                f"{what} could not be downloaded: {first_line(error)}",
                "check the name, or try again, or download them elsewhere and give `weights: PATH`",
            ) from error
    return None


def cached_file(repository: str, name: str, *, revision: str | None = None) -> Path | bool | None:
    """Return a file's path in the local cache, False where the cache knows that there is none, else None."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        found = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision)
    except HFValidationError as error:
        raise BackboneError(f"{first_line(error)}", "a name on the hub is OWNER/NAME") from error
    if isinstance(found, str):
        return Path(found)
    return None if found is None else False


def cached_repositories() -> list[str]:
    """Return the names of the models that the local cache has files of."""
    from huggingface_hub import constants

    folders = sorted(Path(constants.HF_HUB_CACHE).glob("models--*"))
    return [folder.name.removeprefix("models--").replace("--", "/") for folder in folders]


def require_network(what: str, address: str) -> None:
    """Fail at once where a download of `what` from `address` cannot work.

    Raises:
        BackboneError: The host does not answer, or the hub's offline switch is set.
    """
    reason = unreachable(address)
    if reason is not None:
        raise no_network(what, address, reason)


def require_torch_file(what: str, address: str) -> None:
    """Fail at once where `torch.hub` would have to download a file and cannot; one in its cache is enough.

    Raises:
        BackboneError: The file is not in torch's cache, and its host does not answer, or the offline switch is set.
    """
    from torch.hub import get_dir

    if not address or not (Path(get_dir()) / "checkpoints" / Path(urlsplit(address).path).name).is_file():
        require_network(what, address)


def unreachable(address: str) -> str | None:
    """Return why a host cannot be reached, or None where it answers or a proxy stands before it."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY")):
        return None  # behind a proxy the host's name need not resolve here
    try:
        socket.create_connection((urlsplit(address).hostname or "", urlsplit(address).port or 443), timeout=SECONDS).close()
    except OSError as error:
        return str(error)
    return None


def no_network(what: str, address: str, reason: str = "no answer") -> BackboneError:
    """Return the error for files that are not in the cache where the hub cannot be reached."""
    return BackboneError(
        f"{what} are not in the local cache, and {address} cannot be reached ({reason})",
        "connect once, or copy the Hugging Face cache here (HF_HOME), or give `weights: PATH` (--weights PATH) of a local "
        "safetensors file or folder, or `weights: none` to train from scratch",
    )


# --- a model's files, wherever they are -----------------------------------------------------------------


@dataclass(frozen=True)
class Folder:
    """A local folder with a model's files."""

    path: Path

    @property
    def name(self) -> str:
        """The folder's path."""
        return str(self.path)

    def find(self, *names: str, optional: bool = False) -> Path | None:
        """Return the first of some files that exists, or None; `optional` means nothing here."""
        return next((self.path / name for name in names if (self.path / name).is_file()), None)

    def below(self, folder: str) -> Folder:
        """Return a folder in it."""
        return Folder(self.path / folder) if folder else self


@dataclass
class Repository:
    """A model on the Hugging Face hub, or in the local cache of it.

    Attributes:
        id: Its name there.
        revision: A branch, tag or commit, or None. The first file that is found fixes it, so that all are of one commit.
        prefix: A folder in it, with a slash behind, or nothing.
    """

    id: str
    revision: str | None = None
    prefix: str = ""
    _offline: str | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The name on the hub."""
        return self.id

    def find(self, *names: str, optional: bool = False) -> Path | None:
        """Return the first of some files that exists, from the cache or downloaded, or None.

        Args:
            names: Paths relative to the prefix, the preferred one first.
            optional: Whether the model can do without, so that a hub which cannot be reached is no error.

        Raises:
            BackboneError: They are not in the cache, cannot be downloaded, and are not optional.
        """
        names = tuple(self.prefix + name for name in names)
        if optional and not self._known(names):
            from huggingface_hub import constants

            self._offline = self._offline or unreachable(constants.ENDPOINT)
            if self._offline is not None:
                logger.info("%s of %s: not in the cache, and the hub cannot be reached; done without", names[0], self.id)
                return None
        found = find_file(self.id, *names, what=f"the files of transformers/{self.id}", revision=self.revision)
        if found is not None and "snapshots" in found.parts:
            self.revision = found.parts[len(found.parts) - found.parts[::-1].index("snapshots")]
        return found

    def below(self, folder: str) -> Repository:
        """Return a folder in it."""
        return replace(self, prefix=f"{self.prefix}{folder.strip('/')}/") if folder else self

    def _known(self, names: tuple[str, ...]) -> bool:
        """Return whether the cache alone can answer: it has one of the files, or knows that there is none."""
        found = [cached_file(self.id, name, revision=self.revision) for name in names]
        return any(isinstance(each, Path) for each in found) or all(each is False for each in found)


Source = Folder | Repository
