"""Takes a bundle's backbone out as weights that timm reads: python take_weights.py BUNDLE FILE.safetensors."""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

OWNER = "backbone.model."


def main(bundle: Path, file: Path) -> None:
    """Write the parameters of the model below the spectrogram."""
    state = load_file(bundle / "model.safetensors")
    kept = {name.removeprefix(OWNER): value for name, value in state.items() if name.startswith(OWNER)}
    if not kept:
        raise SystemExit(f"{bundle} holds no backbone of audio-timm")
    save_file(kept, file)
    print(f"{file.name}: {len(kept)} tensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
