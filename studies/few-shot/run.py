"""How accuracy grows with the labelled samples of each class: fine-tuning, a linear probe, and training from scratch.

    python run.py

Scans of digits, from a network that has only seen printed letters (studies/digits: make_data.py, pretrain.py). Each point
is the mean over draws of the samples; the epoch is chosen on up to 10 validation samples a class, and the score is on 1,247
test scans. What is done is kept in `data/`. Writes `curve.svg`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "how-to-finetune"))

import run as how  # noqa: E402 - of the study beside this one

from autoft.knobs import Value  # noqa: E402
from autoft.train import choose_epochs  # noqa: E402

SIZES = (2, 4, 8, 16, 32)
DRAWS = 5
USUAL = 10  # epochs where there are enough samples


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=DRAWS, help="draws of the samples")
    arguments = parser.parse_args()
    study = how.Study("digits", how.CASES["digits"], home=HERE, epochs=USUAL)
    backbone = replace(study.backbone, weights="none", build=unpretrained(study))
    scratch = how.Study("scratch", how.CASES["digits"], home=HERE, epochs=USUAL, backbone=backbone)
    scores: dict[str, dict[int, list[float]]] = {}
    for size in SIZES:
        epochs = choose_epochs("auto", "image", 10 * size)
        for seed in range(arguments.draws):
            kinds: Mapping[str, tuple[how.Study, dict[str, Value]]] = {
                f"fine-tuned, {USUAL} epochs": (study, {}),
                "fine-tuned, automatic epochs": (study, {"epochs": epochs / USUAL}),
                "all stages frozen, automatic epochs": (study, {"freeze_depth": study.stages, "epochs": epochs / USUAL}),
                "from scratch, automatic epochs": (scratch, {"learning_rate": 1e-3 / 3e-4, "epochs": epochs / USUAL}),
            }
            for name, (trainer, changes) in kinds.items():
                accuracy = trainer.train(size, seed, changes)[0]
                scores.setdefault(name, {}).setdefault(size, []).append(accuracy)
            scores.setdefault("linear probe", {}).setdefault(size, []).append(study.probed(size, seed))
        print(f"{size} a class: {epochs} epochs", file=sys.stderr, flush=True)
    print(table(scores))
    (HERE / "curve.svg").write_text(curve(scores), encoding="utf-8")
    return 0


def unpretrained(study: how.Study) -> how.Build:
    """Return what builds the same network with random weights."""
    found = study.prepared.catalog.resolve_backbone(study.backbone.name, "none", (study.backbone.image_size or (32,))[0])
    return found.build


def table(scores: Mapping[str, Mapping[int, Sequence[float]]]) -> str:
    """Return mean and standard error of each kind at each size."""
    lines = ["| accuracy on test | " + " | ".join(f"{size} a class" for size in SIZES) + " |", "|---|" + "---|" * len(SIZES)]
    lines += [
        f"| {name} | {' | '.join(how.mean_and_error(each[size]) for size in SIZES)} |" for name, each in scores.items()
    ]
    return "\n".join(lines)


def curve(scores: Mapping[str, Mapping[int, Sequence[float]]]) -> str:
    """Return the means as an SVG, a line a kind, with a bar of one standard error."""
    width, height, left, top = 640, 360, 60, 20
    colors = ("#1f77b4", "#d62728", "#2ca02c", "#7f7f7f", "#9467bd")
    lowest = min(statistics.fmean(each) for kind in scores.values() for each in kind.values()) - 0.02

    def x(size: int) -> float:
        return left + SIZES.index(size) * (width - left - 20) / (len(SIZES) - 1)

    def y(value: float) -> float:
        return top + (1.0 - value) / (1.0 - lowest) * (height - top - 60)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + 20 * len(scores)}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
    ]
    for size in SIZES:
        parts.append(f'<text x="{x(size):.0f}" y="{height - 40}" text-anchor="middle">{size}</text>')
    parts.append(f'<text x="{width / 2:.0f}" y="{height - 20}" text-anchor="middle">labelled samples a class</text>')
    for step in range(11):
        value = step / 10
        if value >= lowest:
            parts.append(
                f'<line x1="{left}" x2="{width - 20}" y1="{y(value):.0f}" y2="{y(value):.0f}" stroke="#ddd"/>'
                f'<text x="{left - 8}" y="{y(value) + 4:.0f}" text-anchor="end">{value:.1f}</text>'
            )
    for row, (name, each) in enumerate(scores.items()):
        color = colors[row % len(colors)]
        points = " ".join(f"{x(size):.1f},{y(statistics.fmean(each[size])):.1f}" for size in SIZES)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        for size in SIZES:
            mean, error = statistics.fmean(each[size]), statistics.stdev(each[size]) / len(each[size]) ** 0.5
            parts.append(
                f'<line x1="{x(size):.1f}" x2="{x(size):.1f}" y1="{y(mean - error):.1f}" y2="{y(mean + error):.1f}" '
                f'stroke="{color}"/>'
            )
        parts.append(f'<text x="{left}" y="{height + 20 * row}" fill="{color}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
