"""What helps where some classes are rare: the methods of `imbalance` on scans of digits with a long tail.

    python run.py

The commonest digit has 40 training scans, the rarest 2, the others lie between on a geometric scale; which digit is how
common changes from draw to draw. The test split is balanced, so macro F1 tells how the tail does. What is done is kept in
`data/`. Needs studies/digits (make_data.py, pretrain.py).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "how-to-finetune"))

import run as how  # noqa: E402 - of the study beside this one

from autoft.knobs import Value  # noqa: E402

MOST, RATIO, DRAWS, EPOCHS = 40, 20, 8, 20
METHODS: dict[str, dict[str, Value]] = {
    "none": {},
    "weights in the loss": {"imbalance": "weights"},
    "focal loss": {"imbalance": "focal"},
    "rare samples drawn more often": {"imbalance": "resample"},
    "label smoothing 0.1": {"label_smoothing": 0.1},
    "resampling and mixup": {"imbalance": "resample", "mixup": 0.4},
}


class LongTail(how.Study):
    """A study whose classes are rarer from one to the next.

    Args:
        draw: Turns the order of the classes.
    """

    def __init__(self, draw: int) -> None:
        super().__init__(f"draw-{draw}", how.CASES["digits"], home=HERE, epochs=EPOCHS)
        self.draw = draw

    def count(self, label: str, size: int) -> int:
        """Return how many training samples a class has."""
        rank = (int(label) + self.draw) % 10
        return round(size * RATIO ** (-rank / 9))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=DRAWS, help="divisions of the data")
    arguments = parser.parse_args()
    metrics = ("f1_macro", "balanced_accuracy", "log_loss")
    scores: dict[str, dict[str, list[float]]] = {name: {metric: [] for metric in metrics} for name in METHODS}
    for draw in range(arguments.draws):
        study = LongTail(draw)
        for name, changes in METHODS.items():
            found, _ = study.trained(MOST, draw, changes)
            for metric in metrics:
                scores[name][metric].append(found[metric])
        print(f"draw {draw}", file=sys.stderr, flush=True)
    print(f"| `imbalance` | {' | '.join(metrics)} | macro F1, minus none |")
    print("|---|" + "---|" * (len(metrics) + 1))
    for name, each in scores.items():
        apart = [one - other for one, other in zip(each["f1_macro"], scores["none"]["f1_macro"], strict=True)]
        cells = [f"{statistics.fmean(each[metric]):.4f}" for metric in metrics]
        print(f"| {name} | {' | '.join(cells)} | {how.mean_and_error(apart, signed=True)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
