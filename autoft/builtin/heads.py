"""The heads that ship with autoft: which tasks there are, and for what; `autoft/tasks/` holds what they are made of."""

from __future__ import annotations

from autoft.hookspecs import hookimpl
from autoft.specs import Head
from autoft.tasks import classification, multi_label, regression, tagging


@hookimpl
def autoft_heads() -> list[Head]:
    """Offer classification, multi-label classification, regression, similarity and token classification."""
    measures = "cross-entropy; accuracy, macro F1, log-loss, AUROC"
    return [
        classification.head("image-classification", "image", f"one label an image: {measures}"),
        classification.head("text-classification", "text", f"one label a text or a pair of texts: {measures}"),
        classification.head("classification", None, f"one label a sample, whatever the data: {measures}"),
        multi_label.head(
            "multi-label", None, "any number of labels a sample, thresholds tuned: average precision, F1, AUROC"
        ),
        regression.head("regression", None, "one or more numbers a sample, scaled in the graph: R2, MAE, RMSE, Spearman"),
        regression.head(
            "similarity",
            "text",
            "a number a pair of texts, within the training range: Spearman, Pearson, MAE, RMSE",
            bounded=True,
        ),
        tagging.head("token-classification", "text", "a tag a word: F1 of entities by seqeval's rules, words' accuracy"),
    ]
