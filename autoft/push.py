"""Puts a bundle on the Hugging Face hub: its files as they are, after their hashes were checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoft.errors import BundleError, RunError, first_line
from autoft.export.contract import read_contract
from autoft.files import read_json, sha256
from autoft.hub import unreachable
from autoft.signing import SIGNATURE


@dataclass(frozen=True)
class Pushed:
    """What is on the hub now.

    Attributes:
        url: Of the repository.
        commit: Of the upload.
        files: How many were uploaded.
        samples: How many of them are real validation samples, kept to check any runtime with.
        private: Whether the repository was asked to be private.
    """

    url: str
    commit: str
    files: int
    samples: int
    private: bool


def push(bundle: Path, repository: str, *, public: bool = False, revision: str | None = None) -> Pushed:
    """Upload a bundle as a model repository, which is made where there is none.

    Only the files that `autoft.json` names go up, and only if each has the hash that stands there. The token is that of
    `hf auth login`, or `HF_TOKEN`.

    Args:
        bundle: The folder.
        repository: `OWNER/NAME`.
        public: Whether a new repository is for everybody to see; one that is there stays as it is.
        revision: A branch; None for the main one.

    Raises:
        BundleError: The folder is no bundle, or a file of it was changed.
        RunError: The hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    contract = read_contract(bundle)
    names = _checked(bundle, contract["files"])
    reason = unreachable(constants.ENDPOINT)
    if reason is not None:
        raise RunError(
            f"{bundle} cannot be uploaded: {constants.ENDPOINT} cannot be reached ({reason})",
            "try again with a network; HF_ENDPOINT names another hub",
        )
    api = HfApi()
    try:
        url = api.create_repo(repository, private=not public, exist_ok=True, repo_type="model")
        done = api.upload_folder(
            repo_id=url.repo_id,
            folder_path=bundle,
            allow_patterns=names,
            revision=revision,
            repo_type="model",
            commit_message=f"{contract['name']}: a bundle of autoft",
        )
    except HFValidationError as error:
        raise RunError(first_line(error), "a repository on the hub is OWNER/NAME") from error
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        raise RunError(
            f"{bundle} could not be uploaded to {repository}: {first_line(error)}",
            "`hf auth login` or HF_TOKEN gives the token, which must be allowed to write there",
        ) from error
    return Pushed(
        url=str(url),
        commit=done.oid,
        files=len(names),
        samples=_samples(bundle),
        private=not public,
    )


def _checked(bundle: Path, files: dict[str, str]) -> list[str]:
    """Return the names of a bundle's files, once each was seen to be as it was written."""
    for name, wanted in files.items():
        file = bundle / name
        if not file.is_file() or sha256(file) != wanted:
            raise BundleError(
                f"{name} must be as it was written, but it is {'not' if file.is_file() else 'missing'}",
                "export again; a card that you want to change is best changed on the hub",
            )
    signed = [SIGNATURE] if (bundle / SIGNATURE).is_file() else []  # of all the others, so that they cannot name it
    return ["autoft.json", *files, *signed]


def _samples(bundle: Path) -> int:
    file = bundle / "golden" / "golden.json"
    return len(read_json(file)["inputs"]) if file.is_file() else 0
