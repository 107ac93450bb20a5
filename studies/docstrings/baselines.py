"""Score what needs no fine-tuning on the very splits that autoft makes: TF-IDF, and a linear probe of frozen MiniLM.

    python baselines.py --seeds 3

Both are logistic regressions; their settings are chosen on the validation split, and the test split is scored once.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel, AutoTokenizer

from autoft.prepare import load_config, prepare
from autoft.specs import SPLITS

HERE = Path(__file__).parent
MODEL = HERE / "data" / "minilm"
STRENGTHS = tuple(float(f"{10**exponent:.3g}") for exponent in np.arange(-3, 4.1, 0.5))  # of C, the inverse of the penalty


@dataclass(frozen=True)
class Texts:
    """One split."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Scored:
    """What a baseline reached, and with which setting."""

    test: Mapping[str, float]
    validation: float
    setting: str


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="divisions of the data")
    parser.add_argument("--model", type=Path, default=MODEL, help="folder of MiniLM, made by fetch_model.py")
    arguments = parser.parse_args()
    embedder = Embedder(arguments.model)
    collected: dict[str, list[float]] = {"tfidf": [], "probe": []}
    for seed in range(arguments.seeds):
        splits = divide(seed)
        for name, scored in score_all(splits, embedder).items():
            collected[name].append(scored.test["accuracy"])
            print(line(seed, name, scored), flush=True)
    for name, values in collected.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{name:9} mean {statistics.mean(values):.4f}  sd {spread:.4f}  over {len(values)} divisions")
    return 0


def line(seed: int, name: str, scored: Scored) -> str:
    """Return one line of the account."""
    return (
        f"seed {seed}  {name:9}  test accuracy {scored.test['accuracy']:.4f}  macro F1 {scored.test['f1_macro']:.4f}  "
        f"(validation {scored.validation:.4f}, {scored.setting})"
    )


def divide(seed: int, overrides: Sequence[str] = ()) -> dict[str, Texts]:
    """Return the splits of study.yaml with that `split_seed`: autoft's own code reads and divides the table."""
    config, catalog = load_config(HERE / "study.yaml", [f"data.split_seed={seed}", *overrides], plugins=False)
    prepared = prepare(config, catalog, lambda event: None)
    return {
        split: Texts(
            tuple(sample.source for sample in prepared.samples[split]),
            tuple(sample.target for sample in prepared.samples[split]),
        )
        for split in SPLITS
    }


def score_all(splits: Mapping[str, Texts], embedder: Embedder) -> dict[str, Scored]:
    """Return the scores of each baseline."""
    return {"tfidf": tfidf(splits), "probe": probe(splits, embedder)}


# --- TF-IDF -----------------------------------------------------------------------------------------


def tfidf(splits: Mapping[str, Texts]) -> Scored:
    """Score a logistic regression on TF-IDF of words and pairs of words, and of 3 to 5 characters within words."""
    features: dict[str, list[Any]] = {split: [] for split in SPLITS}
    for vectorizer in (
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b"),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True),
    ):
        vectorizer.fit(splits["train"].texts)
        for split in SPLITS:
            features[split].append(vectorizer.transform(splits[split].texts))
    return choose([("tf-idf", {split: sparse.hstack(parts).tocsr() for split, parts in features.items()})], splits)


# --- the linear probe -------------------------------------------------------------------------------


class Embedder:
    """Mean-pooled features of the frozen model; remembers texts that it has seen, for splits share them."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "model.safetensors").is_file():
            print(f"error: no model in {folder}\nhint: python {HERE / 'fetch_model.py'}", file=sys.stderr)
            raise SystemExit(2)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModel.from_pretrained(folder, use_safetensors=True).eval()
        self._known: dict[str, np.ndarray] = {}

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return `(N, C)` float32."""
        new = sorted(set(texts) - set(self._known), key=lambda text: (len(text), text))
        for start in range(0, len(new), 64):
            batch = new[start : start + 64]
            inputs = self._tokenizer(batch, padding=True, truncation=True, max_length=256, return_tensors="pt")
            hidden = self._model(**inputs).last_hidden_state
            mask = inputs["attention_mask"][..., None].to(hidden.dtype)
            pooled = (hidden * mask).sum(1) / mask.sum(1)
            self._known |= dict(zip(batch, pooled.numpy(), strict=True))
        return np.stack([self._known[text] for text in texts])


def probe(splits: Mapping[str, Texts], embedder: Embedder) -> Scored:
    """Score a logistic regression on frozen features: as they are, of length 1 (as the model was trained), standardized."""
    plain = {split: embedder(splits[split].texts) for split in SPLITS}
    length = {split: values / np.linalg.norm(values, axis=1, keepdims=True) for split, values in plain.items()}
    scaler = StandardScaler().fit(plain["train"])
    standard = {split: scaler.transform(values) for split, values in plain.items()}
    return choose([("as they are", plain), ("of length 1", length), ("standardized", standard)], splits)


# --- both -------------------------------------------------------------------------------------------


def choose(kinds: Iterable[tuple[str, Mapping[str, Any]]], splits: Mapping[str, Texts]) -> Scored:
    """Train with each kind of features and each strength of the penalty; score the best on validation on the test split."""
    best: tuple[float, str, LogisticRegression, Any] | None = None
    for kind, features in kinds:
        for strength in STRENGTHS:
            model = LogisticRegression(C=strength, max_iter=300)
            with warnings.catch_warnings():
                # a weak penalty converges late; if that harms, validation chooses another one
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.fit(features["train"], splits["train"].labels)
            value = accuracy_score(splits["validation"].labels, model.predict(features["validation"]))
            if best is None or value > best[0]:
                best = (value, f"{kind}, C {strength:g}", model, features["test"])
    if best is None:
        raise ValueError("there must be features to choose from")
    value, setting, model, features_test = best
    predicted, expected = model.predict(features_test), splits["test"].labels
    test = {
        "accuracy": float(accuracy_score(expected, predicted)),
        "f1_macro": float(f1_score(expected, predicted, average="macro")),
    }
    return Scored(test, value, setting)


if __name__ == "__main__":
    started = time.monotonic()
    status = main()
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
    sys.exit(status)
