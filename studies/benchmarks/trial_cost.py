"""Compares the fixed cost of a trial, all but its training, with transformers' search; and looks for growing memory.

    pip install -r studies/benchmarks/requirements.txt
    python studies/benchmarks/trial_cost.py

Trials of nearly no training: a transformer of some ten thousand weights, 64 short texts, one epoch. autoft trains in the
process of its search, with `search.prune`, `probe` and `reuse` off and one seed; the peer is
`Trainer.hyperparameter_search` (Optuna) over the same numbers, with the same texts, weights, batch size and threads, and
keeps the weights of each trial, as autoft does. Each search has a process of its own, and gives 2N+1 trials; from the start
of trial N to that of trial 2N nothing counts that a search does once, such as imports, export, and first calls. What the
epochs themselves took, training and validation, is subtracted on either side. autoft stores its study in SQLite, the peer
in memory, as is each one's default.

Before that, 200 trials of autoft; after it, 200 tasks of one warm worker process, with the memory after 20, 100 and 200.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GOAL_MS = 50.0  # of a worker process, once it is warm
RATES = (1e-4, 1e-2)
DECAYS = (1e-5, 1e-1)
SMOOTHINGS = (0.0, 0.1)
BATCH_SIZE = 32
TOPICS = ("red green blue white black grey pink brown", "cat dog fish bird horse cow sheep mouse")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CHECKPOINTS = (20, 100, 200)
MIB = 1 << 20


@dataclass(frozen=True)
class Stretch:
    """Trials one after another.

    Attributes:
        wall: Seconds a trial.
        trained: Seconds of that in its epochs.
        cpu: Seconds of the processor a trial, its epochs included.
    """

    wall: float
    trained: float
    cpu: float

    @property
    def fixed(self) -> float:
        """Seconds a trial that are not training."""
        return self.wall - self.trained


class Watch:
    """Notes when each trial starts, what its epochs take, and how much memory there is."""

    def __init__(self) -> None:
        self.starts: list[float] = []
        self.cpu: list[float] = []
        self.trained: list[float] = []
        self.memory: list[int] = []

    def start(self) -> None:
        self.starts.append(time.perf_counter())
        self.cpu.append(time.process_time())
        self.trained.append(0.0)
        self.memory.append(resident(os.getpid()))

    def train(self, seconds: float) -> None:
        self.trained[-1] += seconds

    def save(self, file: Path) -> None:
        file.write_text(json.dumps(vars(self)), encoding="utf-8")

    @classmethod
    def load(cls, file: Path) -> Watch:
        watch = cls()
        vars(watch).update(json.loads(file.read_text(encoding="utf-8")))
        return watch

    def stretch(self, first: int, last: int) -> Stretch:
        """Return the mean from the start of trial `first` to that of trial `last`."""
        count = last - first
        return Stretch(
            (self.starts[last] - self.starts[first]) / count,
            sum(self.trained[first:last]) / count,
            (self.cpu[last] - self.cpu[first]) / count,
        )


def resident(process: int) -> int:
    import psutil

    return int(psutil.Process(process).memory_info().rss)


# --- data and model ---------------------------------------------------------------------------------------------------


def write_data(folder: Path) -> Path:
    """Write 64 texts to train on, 32 for validation and 16 for the test, of two topics."""
    rng = random.Random(0)
    with (folder / "texts.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("text", "label", "split"))
        for split, count in (("train", 64), ("validation", 32), ("test", 16)):
            for number in range(count):
                topic, other = TOPICS[number % 2].split(), TOPICS[1 - number % 2].split()
                words = rng.choices(topic, k=5) + rng.choices(other, k=3)
                table.writerow((" ".join(words) + f" {'abcdefgh'[number % 8]}", f"topic{number % 2}", split))
    return folder / "texts.csv"


def write_model(folder: Path) -> Path:
    """Write a transformer of two layers, with random weights, and its tokenizer."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    transformers.utils.logging.disable_progress_bar()
    words = [*SPECIAL, *(word for topic in TOPICS for word in topic.split()), *"abcdefgh"]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", words.index("[CLS]")), ("[SEP]", words.index("[SEP]"))],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    target = folder / "tiny"
    PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=64, **names).save_pretrained(target)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(target)
    return target


def write_study(folder: Path, data: Path, model: Path, trials: int) -> Path:
    import yaml

    study = {
        "name": "trial-cost",
        "data": {"path": str(data), "text": "text", "label": "label", "split": "split"},
        "task": "text-classification",
        "backbones": [{"name": "transformers/tiny", "weights": str(model)}],
        "space": {
            "learning_rate": {"low": RATES[0], "high": RATES[1], "log": True},
            "weight_decay": {"low": DECAYS[0], "high": DECAYS[1], "log": True},
            "label_smoothing": {"low": SMOOTHINGS[0], "high": SMOOTHINGS[1]},
            "freeze_depth": 0,
            "layer_decay": 1.0,
            "head_multiplier": 1.0,
            "dropout": 0.1,
        },
        "search": {
            "trials": trials,
            "metric": "accuracy",
            "seed": 0,
            "prune": False,
            "probe": False,
            "reuse": False,
            "seeds": 1,
            "soup": False,
            "workers": 0,
        },
        "trainer": {"epochs": 1, "batch_size": BATCH_SIZE, "device": "cpu", "precision": "fp32"},
    }
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(study), encoding="utf-8")
    return file


# --- the two searches -------------------------------------------------------------------------------------------------


def autoft_search(folder: Path, data: Path, model: Path, trials: int) -> Watch:
    """Search with autoft in this process."""
    from autoft.driver import search
    from autoft.events import Event

    watch = Watch()

    def hear(event: Event) -> None:
        if event.kind == "trial":
            watch.start()
        elif event.kind == "epoch":
            watch.train(event.data["seconds"])

    search(write_study(folder, data, model, trials), output=folder / "run", plugins=False, on_event=hear)
    shutil.rmtree(folder / "run")
    return watch


def peer_search(folder: Path, data: Path, model: Path, trials: int) -> Watch:
    """Search with transformers' Trainer and Optuna in this process."""
    import numpy as np
    import optuna
    import transformers
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, Trainer
    from transformers.trainer_callback import PrinterCallback

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(model)
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    with data.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            splits[row["split"]].append({**tokenizer(row["text"]), "label": int(row["label"] == "topic1")})
    watch = Watch()

    class Timing(transformers.TrainerCallback):
        """Adds up what the epochs take: their steps, and the validation as the Trainer itself times it."""

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            self.began = time.perf_counter()

        def on_epoch_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            watch.train(time.perf_counter() - self.began)

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **rest: Any) -> None:
            watch.train(metrics["eval_runtime"])

    def space(trial: optuna.Trial) -> dict[str, Any]:
        watch.start()
        return {
            "learning_rate": trial.suggest_float("learning_rate", *RATES, log=True),
            "weight_decay": trial.suggest_float("weight_decay", *DECAYS, log=True),
            "label_smoothing_factor": trial.suggest_float("label_smoothing_factor", *SMOOTHINGS),
        }

    trainer = Trainer(
        args=transformers.TrainingArguments(
            output_dir=str(folder / "peer"),
            num_train_epochs=1,
            per_device_train_batch_size=BATCH_SIZE,
            per_device_eval_batch_size=2 * BATCH_SIZE,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_only_model=True,
            save_total_limit=1,
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
            seed=0,
        ),
        model_init=lambda trial=None: AutoModelForSequenceClassification.from_pretrained(model, num_labels=2),
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda found: {"accuracy": float(np.mean(found.predictions.argmax(-1) == found.label_ids))},
        callbacks=[Timing()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.hyperparameter_search(
        hp_space=space,
        compute_objective=lambda metrics: metrics["eval_accuracy"],
        n_trials=trials,
        direction="maximize",
        backend="optuna",
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=optuna.pruners.NopPruner(),
    )
    shutil.rmtree(folder / "peer")
    return watch


# --- a worker process -------------------------------------------------------------------------------------------------


def worker_tasks(folder: Path, data: Path, model: Path, tasks: int) -> tuple[list[Stretch], list[int]]:
    """Give one worker process tasks, one after another; return what each took, and the process's memory after each."""
    from autoft.crew import Manning, make_setup
    from autoft.engine import Ended, Epoch, Ready, Task
    from autoft.identity import facts, identity
    from autoft.prepare import load_config, prepare
    from autoft.processes import ProcessEngine
    from autoft.runfolder import open_run
    from autoft.train import TrainConfig

    config, catalog = load_config(write_study(folder, data, model, tasks), plugins=False)
    prepared = prepare(config, catalog, lambda event: None)
    knobs = {knob.name: knob.default for knob in prepared.objective.head.knobs}
    settings = TrainConfig(learning_rate=1e-3, epochs=1, batch_size=BATCH_SIZE, knobs=knobs)
    engine = ProcessEngine()
    took: list[Stretch] = []
    memory: list[int] = []
    try:
        with open_run(folder / "worker", identity(prepared), facts(prepared), config.to_yaml()) as run:
            engine.start(make_setup(prepared, run, Manning(1, ("cpu",), 1), plugins=False, sharing=1), 1)
        while not any(isinstance(message, Ready) for message in engine.poll(1.0)):
            pass
        for number in range(tasks):
            target = folder / "worker" / "trials" / str(number)
            began, trained, ended = time.perf_counter(), 0.0, False
            engine.submit(0, Task(number, 0, settings, "none", str(target)))
            while not ended:
                for message in engine.poll(10.0):
                    if isinstance(message, Epoch):
                        trained += message.report.seconds
                    elif isinstance(message, Ended):
                        if message.outcome.failure is not None:
                            raise RuntimeError(message.outcome.failure.trace)
                        ended = True
                    else:
                        raise RuntimeError(f"the worker was to train, but told {message}")
            took.append(Stretch(time.perf_counter() - began, trained, 0.0))
            memory.append(resident(engine.pids[0]))
    finally:
        engine.stop(gracefully=False)
    return took, memory


# --- the comparison ---------------------------------------------------------------------------------------------------

SIDES = {"autoft": autoft_search, "Trainer": peer_search}


def in_process(side: str, folder: Path, trials: int, threads: int) -> Watch:
    """Run one side's search in a new process: what the other left in memory must not slow it down."""
    command = [sys.executable, __file__, "--threads", str(threads), "side", side, str(folder), str(trials)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return Watch.load(folder / "watch.json")


def compare(folder: Path, trials: int, rounds: int, threads: int) -> None:
    """Let both searches take turns, and print what a trial of each costs."""
    found: dict[str, list[Stretch]] = {side: [] for side in SIDES}
    for turn in range(rounds):
        for side in SIDES if turn % 2 == 0 else reversed(SIDES):
            found[side].append(in_process(side, folder, 2 * trials + 1, threads).stretch(trials, 2 * trials))
    print(f"{rounds} rounds of trials {trials} to {2 * trials}, ms a trial: median (lowest to highest)\n")
    print(f"{'':32}  {'in all':>20}  {'its epoch':>20}  {'fixed':>20}  {'CPU, in all':>20}")
    for name, label in (("autoft", "autoft"), ("Trainer", "Trainer.hyperparameter_search")):
        columns = [[each.wall for each in found[name]], [each.trained for each in found[name]]]
        columns += [[each.fixed for each in found[name]], [each.cpu for each in found[name]]]
        print(f"{label:32}  " + "  ".join(f"{shown(column):>20}" for column in columns))
    ratios = [one.fixed / other.fixed for one, other in zip(found["autoft"], found["Trainer"], strict=True)]
    middle = statistics.median(one.fixed for one in found["autoft"]) / statistics.median(
        one.fixed for one in found["Trainer"]
    )
    print(f"\nratio of the fixed cost: {middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f})\n", flush=True)


def shown(seconds: Sequence[float]) -> str:
    middle, low, high = (1000 * value for value in (statistics.median(seconds), min(seconds), max(seconds)))
    return f"{middle:.0f} ({low:.0f} to {high:.0f})"


def print_memory(memory: Sequence[int]) -> None:
    places = [place for place in CHECKPOINTS if place <= len(memory)]
    print("memory after " + ", ".join(f"{place}: {memory[place - 1] / MIB:.0f} MiB" for place in places), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20, help="N (default: 20)")
    parser.add_argument("--rounds", type=int, default=3, help="searches of each side (default: 3)")
    parser.add_argument("--many", type=int, default=200, help="trials, and tasks, while memory is watched (default: 200)")
    parser.add_argument("--threads", type=int, default=1)
    sides = parser.add_subparsers(dest="command", metavar="")
    side = sides.add_parser("side")  # what this script starts in a process of its own
    side.add_argument("name", choices=sorted(SIDES))
    side.add_argument("folder", type=Path)
    side.add_argument("trials", type=int, metavar="count")
    options = parser.parse_args()
    if importlib.util.find_spec("accelerate") is None:
        sys.exit("error: transformers' Trainer needs accelerate\nhint: pip install -r studies/benchmarks/requirements.txt")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch

    torch.set_num_threads(options.threads)
    if options.command == "side":
        folder = options.folder
        SIDES[options.name](folder, folder / "texts.csv", folder / "tiny", options.trials).save(folder / "watch.json")
        return
    with tempfile.TemporaryDirectory(prefix="autoft-trial-cost-") as name:
        folder = Path(name)
        data, model = write_data(folder), write_model(folder)
        many = in_process("autoft", folder, options.many, options.threads)
        quarter = options.many // 4
        early, late = many.stretch(quarter, 2 * quarter), many.stretch(3 * quarter, 4 * quarter - 1)
        print(
            f"autoft, {options.many} trials: fixed {1000 * early.fixed:.0f} ms a trial in the second quarter, "
            f"{1000 * late.fixed:.0f} ms in the last;"
        )
        print_memory(many.memory)
        print()
        compare(folder, options.trials, options.rounds, options.threads)
        took, memory = worker_tasks(folder, data, model, options.many)
        fixed = [each.fixed for each in took[5:]]
        print(
            f"one warm worker process, {options.many} tasks: fixed {1000 * statistics.median(fixed):.1f} ms a task, ", end=""
        )
        print(f"nine in ten under {1000 * statistics.quantiles(fixed, n=10)[-1]:.1f} ms;")
        print_memory(memory)
        met = 1000 * statistics.median(fixed) < GOAL_MS
        print(f"\ngoal: less than {GOAL_MS:.0f} ms a task: {'met' if met else 'missed'}")


if __name__ == "__main__":
    main()
