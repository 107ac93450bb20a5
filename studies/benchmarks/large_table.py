"""Trains on a table larger than the memory it may use, and prints the peak of resident memory.

    python studies/benchmarks/large_table.py --gigabytes 2

Writes a CSV of random sentences (a keyword decides the label), searches it with a small BERT whose weights are random, and
compares the process's peak resident memory, mapped files included, with the size of the table. Needs about three times the
table's size on disk: the table, Arrow's copy of it, and the tokens.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

LABELS = {"refund": "billing", "crash": "technical", "password": "account", "thanks": "praise"}
SYLLABLES = ("ka", "lo", "mi", "ne", "ru", "sa", "to", "vi", "ze", "bo", "da", "fe", "gu", "hi", "jo", "pa")


def words(count: int, rng: np.random.Generator) -> list[str]:
    """Made-up words of two to four syllables."""
    return ["".join(rng.choice(SYLLABLES, rng.integers(2, 5))) for _ in range(count)]


def write_table(path: Path, size: int, row: int, seed: int = 0) -> int:
    """Write a CSV of about `size` bytes with texts of about `row` bytes; return its rows."""
    rng = np.random.default_rng(seed)
    vocabulary = words(3000, rng)
    # texts are cut from a few long ones, at random places: writing gigabytes word by word would take longer than training
    pool = [" ".join(rng.choice(vocabulary, 20_000)) for _ in range(20)]
    keywords = list(LABELS)
    rows = 0
    with path.open("w", encoding="utf-8", buffering=1 << 20) as file:
        file.write("text,label\n")
        while file.tell() < size:
            for _ in range(1000):
                source = pool[rng.integers(len(pool))]
                length = int(row * rng.uniform(0.5, 1.5))
                start = int(rng.integers(0, len(source) - length))
                keyword = keywords[rng.integers(len(keywords))]
                file.write(f"{source[start : start + 12].strip()} {keyword} {source[start + 12 : start + length].strip()},")
                file.write(f"{LABELS[keyword]}\n")
            rows += 1000
    return rows


def write_model(folder: Path) -> None:
    """Write a BERT of two layers without weights, and a tokenizer trained on some of the words."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertTokenizerFast

    rng = np.random.default_rng(0)
    tokenizer = BertWordPieceTokenizer()
    tokenizer.train_from_iterator([" ".join([*words(3000, rng), *LABELS])] * 2, vocab_size=2000)
    folder.mkdir()
    tokenizer.save_model(str(folder))
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=128).save_pretrained(folder)
    config = BertConfig(
        vocab_size=2000, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=128,
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config.to_dict()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the table (default: 2)")
    parser.add_argument("--row", type=int, default=2000, help="bytes of a text (default: 2000)")
    parser.add_argument("--max-length", type=int, default=32, help="tokens of a text (default: 32)")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = Path(scratch)
        table, model = folder / "messages.csv", folder / "model"
        rows = write_table(table, int(options.gigabytes * 1e9), options.row)
        write_model(model)
        size = table.stat().st_size
        print(f"table     {rows} rows, {size / 1e9:.2f} GB", flush=True)
        backbone = {"name": f"transformers/{model}", "weights": "none", "max_length": options.max_length}
        command = [
            *(sys.executable, "-m", "autoft", "search", str(table), "-o", str(folder / "run")),
            *("--trials", "1", "--epochs", "1", "--set", f"backbones={json.dumps([backbone])}"),
            *("--set", "trainer.batch_size=256", "--set", "space={learning_rate: 0.001}"),
        ]
        started = time.monotonic()
        done = subprocess.run(command, env={**os.environ, "HF_DATASETS_CACHE": str(folder / "cache")}, check=False)
        seconds = time.monotonic() - started
        if done.returncode:
            sys.exit(done.returncode)
        # of the children that have ended, the largest; the search is the only one that is large
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(f"peak      {peak / 1e9:.2f} GB resident, {peak / size:.2f} of the table; {seconds:.0f} s in all")


if __name__ == "__main__":
    main()
