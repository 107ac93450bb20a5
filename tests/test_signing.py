"""A signature holds for the files that were signed, by the key that signed them, and for nothing else."""

from __future__ import annotations

import builtins
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from commands import command
from test_verify import honest  # noqa: F401 - a fixture

from autoft.errors import BundleError, PluginError
from autoft.signing import SIGNATURE, check_signature, sign_bundle


@pytest.fixture
def package() -> Any:
    """The package that signs; it is optional."""
    return pytest.importorskip("model_signing")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "bundle"
    (made / "onnx").mkdir(parents=True)
    (made / "autoft.json").write_text("{}")
    (made / "onnx" / "model.onnx").write_bytes(bytes(range(100)))
    return made


def write_keys(folder: Path, name: str, password: str | None = None) -> tuple[Path, Path]:
    """Write a pair of keys, as `openssl` would."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    encryption: Any = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password.encode())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.mark.usefixtures("package")
def test_signature_holds_and_is_renewed(folder: Path, tmp_path: Path) -> None:
    private, public = write_keys(tmp_path, "mine")
    assert sign_bundle(folder, private) == folder / SIGNATURE
    assert "all files as they were signed" in check_signature(folder, public)
    sign_bundle(folder, private)  # the earlier signature is not signed
    assert sorted(path.name for path in folder.iterdir()) == ["autoft.json", SIGNATURE, "onnx"]
    check_signature(Path(shutil.copytree(folder, tmp_path / "elsewhere")), public)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("fault", ["altered", "removed", "added", "added for git", "other key", "no key", "broken"])
def test_what_was_not_signed_is_refused(fault: str, folder: Path, tmp_path: Path) -> None:
    private, public = write_keys(tmp_path, "mine")
    sign_bundle(folder, private)
    if fault == "altered":
        (folder / "onnx" / "model.onnx").write_bytes(bytes(100))
    elif fault == "removed":
        (folder / "onnx" / "model.onnx").unlink()
    elif fault == "added":
        (folder / "onnx" / "other.onnx").write_bytes(b"")
    elif fault == "added for git":
        (folder / ".gitattributes").write_text("x")
    elif fault == "other key":
        public = write_keys(tmp_path, "theirs")[1]
    elif fault == "no key":
        public = tmp_path / "missing.pub"
    else:
        (folder / SIGNATURE).write_text("{}")
    with pytest.raises(BundleError, match=r"model\.sig must be of .* and of these files"):
        check_signature(folder, public)


@pytest.mark.usefixtures("package")
def test_key_may_have_a_password(folder: Path, tmp_path: Path) -> None:
    private, public = write_keys(tmp_path, "mine", password="secret")
    for wrong in (None, "other"):
        with pytest.raises(BundleError, match="cannot be signed with"):
            sign_bundle(folder, private, password=wrong)
    assert not (folder / SIGNATURE).exists()
    sign_bundle(folder, private, password="secret")
    check_signature(folder, public)


def test_missing_signature_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"must be signed, but has no model\.sig"):
        check_signature(folder, tmp_path / "mine.pub")


def test_missing_package_is_named_with_what_to_install(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name == "model_signing":
            raise ImportError("No module named 'model_signing'")
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(PluginError, match="need the package model-signing") as caught:
        sign_bundle(folder, tmp_path / "mine.pem")
    assert "pip install 'autoft[sign]'" in str(caught.value)


@pytest.mark.usefixtures("package")
def test_commands_sign_and_verify(honest: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:  # noqa: F811
    bundle = Path(shutil.copytree(honest, tmp_path / "bundle"))
    private, public = write_keys(tmp_path, "mine")
    unsigned = command(monkeypatch, capsys, "verify", bundle, "--no-plugins", "--public-key", public)
    assert unsigned.code == 2
    assert "FAIL  signature" in unsigned.out
    assert "--    golden vectors" in unsigned.out  # what is not trusted is not run
    signed = command(monkeypatch, capsys, "sign", bundle, "--key", private)
    assert signed.out.strip() == str(bundle / SIGNATURE)
    untold = command(monkeypatch, capsys, "verify", bundle, "--no-plugins")
    assert untold.code == 0
    assert "--    signature       model.sig is there" in untold.out
    assert command(monkeypatch, capsys, "verify", bundle, "--no-plugins", "--public-key", public).code == 0


@pytest.mark.usefixtures("package")
@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here")
def test_keys_of_the_documented_commands_fit(folder: Path, tmp_path: Path) -> None:
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    make = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(private)]
    subprocess.run(make, check=True, capture_output=True, timeout=30)
    give = ["openssl", "ec", "-in", str(private), "-pubout", "-out", str(public)]
    subprocess.run(give, check=True, capture_output=True, timeout=30)
    sign_bundle(folder, private)
    check_signature(folder, public)
