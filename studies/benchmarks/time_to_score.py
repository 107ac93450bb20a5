"""How long autoft takes to reach the score of a peer's whole search, and what it reaches in the peer's time.

    python studies/benchmarks/time_to_score.py text       # peer: transformers' Trainer.hyperparameter_search with Optuna
    python studies/benchmarks/time_to_score.py images     # peer: a torch loop and Optuna

Both get the same data, splits, pretrained weights, seed, class of sampler, batch size, number format, threads and, unless
`--no-pin`, the same cores. Each runs in a process of its own, and its seconds count from that process's start, so imports
count. The peer's end with the search: scoring its winner on the test split is not counted. autoft's first moment is that of
the first epoch in its log whose validation score is at least the peer's best; the other rows are whole searches, from the
table or folder to the checked bundle, with `search.time_limit` at the peer's seconds and at the goal's share of them.

`text` needs studies/docstrings/fetch_model.py, `images` studies/digits/pretrain.py; both say so.
"""

import argparse
import csv
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
STUDIES = HERE.parent
DATA = HERE / "data" / "time_to_score"
MINILM = STUDIES / "docstrings" / "data" / "minilm"
DIGITS_WEIGHTS = STUDIES / "digits" / "weights"
MAX_LENGTH = 256  # tokens; no first sentence of a docstring has as many
EVALUATION_BATCH = 64
WARMUP = 0.1  # the share of the steps that autoft's preset takes; its default space does not search it
GOALS = {"text": 1 / 8, "images": 1 / 3}
TASKS = {"text": "text-classification", "images": "image-classification"}
PEERS = {"text": "Trainer.hyperparameter_search", "images": "torch loop + Optuna"}
MANY_TRIALS = 1000  # of autoft: more than fit into the time, which alone ends its searches


@dataclass(frozen=True)
class Peer:
    """What the peer's search gave: seconds to its end, best validation accuracy, its winner's test accuracy."""

    seconds: float
    validation: float
    test: float
    pruned: int


@dataclass(frozen=True)
class Mine:
    """What one search of autoft gave; `reached` is None where no epoch was as good as the peer's best."""

    reached: float | None
    seconds: float
    validation: float
    test: float


# --- the peer for texts -----------------------------------------------------------------------------------------------


def text_peer(job: dict[str, Any]) -> Peer:
    """Search as transformers' documentation shows it: a fresh model a trial, dynamic padding, Optuna's default pruner."""
    import numpy as np
    import optuna
    import transformers
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, Trainer
    from transformers import TrainingArguments as Arguments

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with open(job["data"], newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    labels = {label: number for number, label in enumerate(sorted({row["label"] for row in rows}))}
    tokenizer = AutoTokenizer.from_pretrained(job["weights"])
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    for row in rows:
        encoded = tokenizer(row["text"], truncation=True, max_length=MAX_LENGTH)
        splits[row["split"]].append({**encoded, "label": labels[row["label"]]})

    def accuracy(predicted: Any) -> dict[str, float]:
        return {"accuracy": float(np.mean(predicted.predictions.argmax(-1) == predicted.label_ids))}

    def new_model(trial: Any = None) -> Any:
        return AutoModelForSequenceClassification.from_pretrained(job["weights"], num_labels=len(labels), dtype="float32")

    def space(trial: optuna.Trial) -> dict[str, Any]:
        # autoft's default ranges, for what TrainingArguments has of them
        return {
            "learning_rate": trial.suggest_float("learning_rate", 5e-6, 5e-4, log=True),
            "weight_decay": trial.suggest_float("weight_decay", 1e-5, 1e-1, log=True),
            "label_smoothing_factor": trial.suggest_float("label_smoothing_factor", 0.0, 0.1),
        }

    found: list[tuple[float, str]] = []  # of each trial with a checkpoint: its best epoch's accuracy, and where that is
    pruned = 0

    class Noting(transformers.TrainerCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            nonlocal pruned
            pruned += round(state.epoch) < job["epochs"]
            if state.best_metric is not None:  # None where it was pruned after its first epoch
                found.append((state.best_metric, state.best_model_checkpoint))

    trainer = Trainer(
        args=Arguments(
            output_dir=job["folder"],
            num_train_epochs=job["epochs"],
            per_device_train_batch_size=job["batch_size"],
            per_device_eval_batch_size=EVALUATION_BATCH,
            train_sampling_strategy="group_by_length" if job["group_by_length"] else "random",
            warmup_steps=WARMUP,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_only_model=True,
            save_total_limit=1,
            load_best_model_at_end=True,
            metric_for_best_model="accuracy",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
            seed=job["seed"],
        ),
        model_init=new_model,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
        callbacks=[Noting()],
    )
    trainer.hyperparameter_search(
        hp_space=space,
        compute_objective=lambda metrics: metrics["eval_accuracy"],
        n_trials=job["trials"],
        direction="maximize",
        backend="optuna",
        sampler=optuna.samplers.TPESampler(seed=job["seed"]),
    )
    seconds = time.time() - job["started"]
    best, folder = max(found)
    trainer.model = AutoModelForSequenceClassification.from_pretrained(folder, dtype="float32")
    test = accuracy(trainer.predict(splits["test"]))["accuracy"]
    return Peer(seconds, best, test, pruned)


# --- the peer for images ----------------------------------------------------------------------------------------------


def images_peer(job: dict[str, Any]) -> Peer:
    """Search with a lean loop over autoft's default space: decoded data in memory, fused AdamW, Optuna's default pruner."""
    import math

    import numpy as np
    import optuna
    import timm
    import torch
    from PIL import Image
    from safetensors.torch import load_file
    from timm.models import group_parameters

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    state = {name: value for name, value in load_file(f"{job['weights']}/model.safetensors").items() if "fc." not in name}
    epochs, size = job["epochs"], job["batch_size"]

    def decode(split: str) -> tuple[torch.Tensor, torch.Tensor]:
        files = sorted(Path(job["data"], split).glob("*/*.png"))
        side = (job["image_size"], job["image_size"])
        pixels = [np.asarray(Image.open(file).convert("RGB").resize(side, Image.Resampling.BILINEAR)) for file in files]
        # the pretrained weights expect values from -1 to 1
        inputs = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0).contiguous()
        return inputs, torch.tensor([int(file.parent.name) for file in files])

    def new_model(dropout: float) -> torch.nn.Module:
        model = timm.create_model(job["architecture"], pretrained=False, num_classes=10, drop_rate=dropout)
        model.load_state_dict(state, strict=False)
        return model

    def accuracy(model: torch.nn.Module, inputs: torch.Tensor, wanted: torch.Tensor) -> float:
        model.eval()
        with torch.inference_mode():
            right = sum(
                int(
                    (model(inputs[at : at + 4 * EVALUATION_BATCH]).argmax(1) == wanted[at : at + 4 * EVALUATION_BATCH]).sum()
                )
                for at in range(0, len(inputs), 4 * EVALUATION_BATCH)
            )
        return right / len(wanted)

    train, validation, test = decode("train"), decode("val"), decode("test")
    steps_an_epoch = math.ceil(len(train[0]) / size)
    total, rising = steps_an_epoch * epochs, round(WARMUP * steps_an_epoch * epochs)
    example = new_model(0.0)
    head = {name for name, _ in example.named_parameters() if name.startswith("fc.")}
    matcher = example.group_matcher(coarse=False)
    stages = [names for _, names in sorted(group_parameters(example, matcher, reverse=False).items())]
    stages = [kept for names in stages if (kept := [name for name in names if name not in head])]
    best: tuple[float, dict[str, torch.Tensor]] = (-1.0, {})

    def objective(trial: optuna.Trial) -> float:
        nonlocal best
        rate = trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True)
        multiplier = trial.suggest_float("head_multiplier", 1.0, 30.0, log=True)
        depth = trial.suggest_int("freeze_depth", 0, len(stages))
        decay = trial.suggest_float("layer_decay", 0.6, 1.0)
        weight_decay = trial.suggest_float("weight_decay", 1e-5, 1e-1, log=True)
        dropout = trial.suggest_float("dropout", 0.0, 0.4)
        smoothing = trial.suggest_float("label_smoothing", 0.0, 0.1)
        torch.manual_seed(job["seed"])
        model = new_model(dropout)
        parameters = dict(model.named_parameters())
        rates = {name: rate * decay ** (len(stages) - index) for index, names in enumerate(stages) for name in names}
        rates |= dict.fromkeys(head, rate * multiplier)
        for name in (name for names in stages[:depth] for name in names):
            parameters[name].requires_grad = False
        groups = [
            {"params": [one], "lr": rates[name], "initial": rates[name], "weight_decay": weight_decay * (one.ndim > 1)}
            for name, one in parameters.items()
            if one.requires_grad
        ]
        trained = [group["params"][0] for group in groups]
        frozen = [
            module
            for module in model.modules()
            if (own := list(module.parameters())) and not any(one.requires_grad for one in own)
        ]
        optimizer = torch.optim.AdamW(groups, fused=True)
        loss = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)
        step, value = 0, -1.0
        for epoch in range(1, epochs + 1):
            model.train()
            for module in frozen:  # a frozen BatchNorm would keep drifting
                module.eval()
            for rows in torch.randperm(len(train[0])).tensor_split(steps_an_epoch):
                share = (step - rising) / max(1, total - rising)
                factor = (step + 1) / (rising + 1) if step < rising else 0.5 * (1 + math.cos(math.pi * share))
                for group in optimizer.param_groups:
                    group["lr"] = group["initial"] * factor
                loss(model(train[0][rows]), train[1][rows]).backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                step += 1
            now = accuracy(model, *validation)
            value = max(value, now)
            if now > best[0]:
                best = (now, {name: one.clone() for name, one in model.state_dict().items()})
            trial.report(now, epoch)
            if epoch < epochs and trial.should_prune():
                raise optuna.TrialPruned
        return value

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=job["seed"]))
    study.optimize(objective, n_trials=job["trials"])
    seconds = time.time() - job["started"]
    winner = new_model(0.0)
    winner.load_state_dict(best[1])
    pruned = sum(trial.state == optuna.trial.TrialState.PRUNED for trial in study.trials)
    return Peer(seconds, best[0], accuracy(winner, *test), pruned)


# --- running either side ----------------------------------------------------------------------------------------------


def run_peer(job: dict[str, Any], options: argparse.Namespace) -> Peer:
    """Run the peer in a process of its own; with `--reuse-peer`, take an earlier result of the same job if there is one."""
    known = DATA / f"peer-{job['name']}.json"
    described = {name: value for name, value in job.items() if name != "folder"} | {"pinned": options.pin}
    if options.reuse_peer and known.exists():
        stored = json.loads(known.read_text(encoding="utf-8"))
        if stored["job"] == described:
            return Peer(**stored["result"])
    file = DATA / f"job-{job['name']}.json"
    result = DATA / f"result-{job['name']}.json"
    result.unlink(missing_ok=True)
    started = time.time()
    file.write_text(json.dumps(job | {"started": started, "result": str(result)}), encoding="utf-8")
    run([sys.executable, str(Path(__file__).resolve()), "peer", str(file)], options)
    measured = json.loads(result.read_text(encoding="utf-8"))
    known.write_text(json.dumps({"job": described, "result": measured}), encoding="utf-8")
    return Peer(**measured)


def be_peer(path: Path) -> None:
    """Do the peer's job, in the process that `run_peer` started."""
    job = json.loads(path.read_text(encoding="utf-8"))
    peer = text_peer(job) if job["kind"] == "text" else images_peer(job)
    Path(job["result"]).write_text(json.dumps(asdict(peer)), encoding="utf-8")


def run_autoft(job: dict[str, Any], seconds: float, target: float, options: argparse.Namespace) -> Mine:
    """Search with autoft's command and its defaults, for so many seconds; return what it gave."""
    share = f"{seconds:.0f}s"
    folder = Path(job["folder"])
    study = folder / f"study-{share}.yaml"
    output = folder / f"run-{share}"
    columns = {} if job["kind"] == "images" else {"text": "text", "label": "label", "split": "split"}
    backbone = {"name": job["backbone"], "weights": job["weights"]}
    backbone |= {"image_size": job["image_size"]} if job["kind"] == "images" else {"max_length": MAX_LENGTH}
    written = {
        "name": job["name"],
        "data": {"path": job["data"], **columns},
        "task": TASKS[job["kind"]],
        "backbones": [backbone],
        "search": {"trials": MANY_TRIALS, "time_limit": share, "metric": "accuracy", "seed": job["seed"]},
        "trainer": {"precision": "fp32", "augmentation": "none", "device": "cpu"},
    }
    study.write_text(json.dumps(written), encoding="utf-8")  # YAML reads JSON
    started = time.time()
    run([sys.executable, "-m", "autoft", "search", str(study), "-o", str(output), *set_options(options)], options)
    ended = time.time()
    events = [json.loads(line) for line in (output / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    reached = [event["time"] for event in events if event["event"] == "epoch" and event["value"] >= target]
    result = json.loads((output / "result.json").read_text(encoding="utf-8"))
    return Mine(
        min(reached) - started if reached else None,
        ended - started,
        result["winner"]["value"],
        result["test"]["accuracy"],
    )


def set_options(options: argparse.Namespace) -> list[str]:
    return [part for setting in options.set for part in ("--set", setting)]


def run(command: list[str], options: argparse.Namespace) -> None:
    """Run a command on as many cores as it has threads; what it prints is shown only if it fails."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(options.threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    limit: Callable[[], None] | None = None
    if options.pin and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))[-options.threads :]

        def limit() -> None:
            os.sched_setaffinity(0, cores)

    done = subprocess.run(command, env=environment, cwd=DATA, preexec_fn=limit, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")


# --- the data ---------------------------------------------------------------------------------------------------------


def text_job(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Make the table of sentences, divided as studies/docstrings divides it, and describe the work."""
    from autoft.prepare import load_config, prepare
    from autoft.specs import SPLITS
    from autoft.train import choose_batch_size

    need(MINILM / "model.safetensors", STUDIES / "docstrings" / "fetch_model.py")
    if importlib.util.find_spec("accelerate") is None:
        sys.exit("error: transformers' Trainer needs accelerate\nhint: pip install -r studies/benchmarks/requirements.txt")
    table = DATA / f"docstrings-{options.samples}.csv"
    if not table.exists():
        make = [sys.executable, str(STUDIES / "docstrings" / "make_data.py"), str(table)]
        run([*make, "--per-library", str(options.samples // 10)], options)
    overrides = [f"data.path={table}", f"data.split_seed={seed}"]
    config, catalog = load_config(STUDIES / "docstrings" / "study.yaml", overrides, plugins=False)
    prepared = prepare(config, catalog, lambda event: None)
    divided = DATA / f"docstrings-{options.samples}-{seed}.csv"
    with divided.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label", "split"))
        for split in SPLITS:
            writer.writerows((sample.source, sample.target, split) for sample in prepared.samples[split])
    return {
        "data": str(divided),
        "weights": str(MINILM),
        "backbone": "transformers/sentence-transformers/all-MiniLM-L6-v2",
        "batch_size": choose_batch_size("auto", len(prepared.samples["train"]), "text"),
        "group_by_length": options.peer_group_by_length,
        "sizes": [len(prepared.samples[split]) for split in SPLITS],
    }


def images_job(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Make the folder of scans with more of them for training than the study has, and describe the work."""
    from autoft.train import choose_batch_size

    need(DIGITS_WEIGHTS / "model.safetensors", STUDIES / "digits" / "pretrain.py")
    folder = DATA / f"digits-{options.samples}"
    if not folder.exists():
        make = [sys.executable, str(STUDIES / "digits" / "make_data.py"), str(folder)]
        run([*make, "--train-per-class", str(options.samples // 10)], options)
    sizes = [len(list(Path(folder, split).glob("*/*.png"))) for split in ("train", "val", "test")]
    return {
        "data": str(folder),
        "weights": str(DIGITS_WEIGHTS),
        "architecture": "test_resnet",
        "backbone": "timm/test_resnet",
        "batch_size": choose_batch_size("auto", sizes[0], "image"),
        "image_size": options.image_size,
        "sizes": sizes,
    }


def need(file: Path, script: Path) -> None:
    """End with a hint where a file is missing that a study's script makes."""
    if not file.exists():
        sys.exit(f"error: {file} is missing\nhint: python {os.path.relpath(script)}")


# --- the comparison ---------------------------------------------------------------------------------------------------


def compare(options: argparse.Namespace) -> None:
    """Run the peer and autoft with each seed, and print a table of each, then means."""
    DATA.mkdir(parents=True, exist_ok=True)
    goal = GOALS[options.kind]
    ratios, gains = [], []
    for seed in range(options.seeds):
        made = text_job(options, seed) if options.kind == "text" else images_job(options, seed)
        name = f"{options.kind}-{options.samples}-{options.trials}x{options.epochs}-{options.threads}-{seed}"
        folder = DATA / f"{name}-{time.time():.0f}"
        folder.mkdir()
        job: dict[str, Any] = made | {
            "name": name,
            "kind": options.kind,
            "trials": options.trials,
            "epochs": options.epochs,
            "seed": seed,
            "threads": options.threads,
            "folder": str(folder),
        }
        peer = run_peer(job, options)
        whole = run_autoft(job, peer.seconds, peer.validation, options)
        part = run_autoft(job, peer.seconds * goal, peer.validation, options)
        sizes = "{} training, {} validation, {} test".format(*job["sizes"])
        print(
            f"{options.kind}: {sizes} samples; seed {seed}; batches of {job['batch_size']}; {options.threads} threads; "
            f"peer {options.trials} trials of {options.epochs} epochs, {peer.pruned} pruned\n"
        )
        print(f"{'':44}  seconds  ratio  validation    test")
        print(line(PEERS[options.kind], peer.seconds, peer, peer.validation, peer.test))
        if whole.reached is None:
            print(f"{'autoft, first epoch as good on validation':44}    never")
        else:
            print(line("autoft, first epoch as good on validation", whole.reached, peer, peer.validation, None))
        print(line("autoft, checked bundle, given all the time", whole.seconds, peer, whole.validation, whole.test))
        print(line(f"autoft, checked bundle, given {goal:.3f} of it", part.seconds, peer, part.validation, part.test))
        ratio = float("inf") if whole.reached is None else whole.reached / peer.seconds
        print(
            f"\ngoal: as good after {goal:.3f} of the time: {'met' if ratio <= goal else 'missed'} ({ratio:.3f}); "
            f"better on test given all the time: {'met' if whole.test > peer.test else 'missed'} "
            f"({whole.test - peer.test:+.4f})\n",
            flush=True,
        )
        ratios.append(ratio)
        gains.append(whole.test - peer.test)
    if options.seeds > 1:
        error = statistics.stdev(gains) / len(gains) ** 0.5
        print(
            f"over {options.seeds} seeds: median ratio {statistics.median(ratios):.3f}, test accuracy "
            f"{statistics.mean(gains):+.4f} ± {error:.4f} (standard error)"
        )


def line(name: str, seconds: float, peer: Peer, validation: float, test: float | None) -> str:
    shown = "" if test is None else f"{test:8.4f}"
    return f"{name:44}  {seconds:7.1f}  {seconds / peer.seconds:5.3f}      {validation:.4f}{shown}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="{text,images}")
    for kind, samples, epochs in (("text", 1000, 3), ("images", 200, 10)):
        one = kinds.add_parser(kind, help=f"against {PEERS[kind]}", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        how = "sentences, of which two fifths are for training" if kind == "text" else "scans to train on"
        one.add_argument("--samples", type=int, default=samples, help=f"{how}; a multiple of 10")
        one.add_argument("--trials", type=int, default=8, help="trials of the peer")
        one.add_argument("--epochs", type=int, default=epochs, help="epochs of each trial of the peer")
        one.add_argument("--threads", type=int, default=1, help="threads, and cores, of either side")
        one.add_argument("--seeds", type=int, default=1, help="repeat with seeds 0, 1, ...")
        one.add_argument("--reuse-peer", action="store_true", help="take the peer's result of an earlier equal run")
        one.add_argument(
            "--pin", action=argparse.BooleanOptionalAction, default=True, help="give each side only so many cores"
        )
        one.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="a setting for autoft's searches")
        if kind == "text":
            one.add_argument("--peer-group-by-length", action="store_true", help="let the peer group texts by length too")
        else:
            one.add_argument("--image-size", type=int, default=64, help="pixels a side that the scans are resized to")
    peer = kinds.add_parser("peer")  # what this script starts in a process of its own
    peer.add_argument("job", type=Path)
    options = parser.parse_args()
    if options.kind == "peer":
        be_peer(options.job)
    else:
        compare(options)


if __name__ == "__main__":
    main()
