"""Signs bundles and checks their signatures with the package `model-signing` (OpenSSF), by elliptic keys in PEM files.

The signature is a file of the bundle that covers every other one, `autoft.json` included; it is not among the hashes there.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from autoft.errors import BundleError, PluginError, first_line
from autoft.files import write_bytes

SIGNATURE = "model.sig"


def sign_bundle(folder: Path, private_key: Path, *, password: str | None = None) -> Path:
    """Sign all files of a bundle, and return the signature's file, which replaces an earlier one.

    Args:
        folder: The bundle.
        private_key: PEM file of an elliptic key, as `openssl ecparam -name prime256v1 -genkey -noout` writes one.
        password: Of the key, where it has one.

    Raises:
        PluginError: The package is not installed.
        BundleError: The key cannot be used, or the bundle cannot be read.
    """
    signing = _package().signing
    file = folder / SIGNATURE
    try:
        secret = None if password is None else password.encode()  # it says str, but hands this to cryptography as it is
        config = signing.Config().use_elliptic_key_signer(private_key=private_key, password=secret)
        config.set_hashing_config(_hashing())
        with tempfile.TemporaryDirectory() as outside:  # a draft in the bundle would be signed too
            draft = Path(outside) / SIGNATURE
            config.sign(folder, draft)
            write_bytes(file, draft.read_bytes())
    except (OSError, ValueError, TypeError) as error:  # TypeError: cryptography's, of a password that is missing
        raise BundleError(
            f"{folder} cannot be signed with {private_key}: {first_line(error)}",
            "`openssl ecparam -name prime256v1 -genkey -noout -out key.pem` makes a key",
        ) from error
    return file


def check_signature(folder: Path, public_key: Path) -> str:
    """Check that a bundle is signed by a key, every file of it, and that none was added; return that in words.

    Args:
        folder: The bundle.
        public_key: PEM file.

    Raises:
        PluginError: The package is not installed.
        BundleError: There is no signature, it is of another key, or a file is not as it was signed.
    """
    file = folder / SIGNATURE
    if file.is_symlink() or not file.is_file():
        raise BundleError(f"{folder} must be signed, but has no {SIGNATURE}", "`autoft sign BUNDLE --key FILE` writes it")
    verifying = _package().verifying
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
        config.set_hashing_config(_hashing())
        config.verify(folder, file)
    except Exception as error:
        raise BundleError(f"{SIGNATURE} must be of {public_key} and of these files: {first_line(error)}") from error
    return f"of {public_key}, all files as they were signed"


def _hashing() -> Any:
    """Return what is hashed: everything but the signature itself; git's files too, which the package would leave out."""
    return _package().hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def _package() -> Any:
    try:
        import model_signing
    except ImportError as error:
        raise PluginError(
            f"signatures need the package model-signing, which cannot be imported: {error}", "pip install 'autoft[sign]'"
        ) from error
    return model_signing
