"""Compares ways to batch texts: token slots, and seconds of one epoch of the same model, in one run.

    python studies/benchmarks/padding.py TABLE.csv MODEL_FOLDER --text text

The peers are transformers' own: random batches padded by `DataCollatorWithPadding`, as its Trainer makes them, and its
`LengthGroupedSampler` (`group_by_length`). All see the same tokens, the same model and the same optimizer. The last column
is how far the order of an epoch drifts with length: the correlation of a batch's length with its place within a
fiftieth of the epoch; 0 is what shuffling gives.
"""

import argparse
import csv
import random
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer, DataCollatorWithPadding
from transformers.trainer_pt_utils import LengthGroupedSampler

from autoft.batching import batches_by_length, even_batches, token_slots


def epoch(model: torch.nn.Module, batches: list[np.ndarray], texts: list[dict], collate: DataCollatorWithPadding) -> float:
    """Train one epoch to reproduce nothing in particular; return the seconds."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    model.train()
    started = time.perf_counter()
    for rows in batches:
        features = model(**collate([texts[row] for row in rows])).last_hidden_state
        features.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - started


def drift(batches: list[np.ndarray], lengths: np.ndarray) -> float:
    """Correlate the mean length of batches with their place in windows of the epoch."""
    means = np.log([lengths[rows].mean() for rows in batches])
    window = max(4, min(50, len(means) // 4))
    places = np.arange(len(means)) % window
    return float(np.corrcoef(means, places)[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", default="text", help="the column (default: text)")
    parser.add_argument("--texts", type=int, default=4000, help="how many (default: 4000)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=1, help="epochs timed for each; the fastest counts (default: 1)")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with options.table.open(newline="", encoding="utf-8") as file:
        rows = [row[options.text] for row in csv.DictReader(file)]
    random.Random(0).shuffle(rows)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    texts = [tokenizer(row, truncation=True, max_length=256) for row in rows[: options.texts]]
    lengths = np.array([len(item["input_ids"]) for item in texts])
    size, rng = options.batch_size, np.random.default_rng(0)
    order = rng.permutation(len(texts))
    sampler = LengthGroupedSampler(size, lengths=lengths.tolist(), generator=torch.Generator().manual_seed(0))
    ways = {
        "random batches": even_batches(order, size),
        "LengthGroupedSampler": np.split(np.array(list(sampler)), range(size, len(texts), size)),
        "autoft": batches_by_length(order, lengths, size, rng),
    }
    collate = DataCollatorWithPadding(tokenizer)
    model = AutoModel.from_pretrained(options.model)
    seconds = {name: float("inf") for name in ways}
    for _ in range(options.repeats):  # in turn: what else the machine does hits all alike
        for name, batches in ways.items():
            seconds[name] = min(seconds[name], epoch(model, batches, texts, collate))
    print(f"{len(texts)} texts, {lengths.mean():.1f} tokens on average, longest {lengths.max()}, batches of {size}\n")
    print(f"{'':22}  {'slots a token':>13}  {'slots':>6}  {'time':>6}  {'drift':>6}")
    first = ways["random batches"]
    for name, batches in ways.items():
        slots = token_slots(batches, lengths)
        print(
            f"{name:22}  {slots / lengths.sum():13.2f}  {slots / token_slots(first, lengths):6.2f}  "
            f"{seconds[name] / seconds['random batches']:6.2f}  {drift(batches, lengths):6.2f}"
        )


if __name__ == "__main__":
    main()
