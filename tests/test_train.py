"""The loop equals a plain one written out here; the best epoch is kept; a run continues as if it had never stopped."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from toy_training import (
    CONVNET,
    CPU,
    HEAD,
    KNOBS,
    MLP,
    TRAIN,
    VALIDATION,
    assert_equal_tensors,
    build,
    config,
    encode,
    objective,
    run,
    split,
    state,
)

from autoft.schedule import rate_at
from autoft.specs import Backbone
from autoft.train import (
    EpochReport,
    FitResult,
    Interrupted,
    NonFiniteError,
    TrainConfig,
    choose_batch_size,
    choose_device,
    choose_epochs,
    choose_precision,
    fit,
    predict,
    seed_everything,
)

DROPOUT = {**KNOBS, "dropout": 0.3}


def told(result: FitResult) -> list[dict[str, Any]]:
    """The history without what no repetition gives again."""
    return [{name: value for name, value in asdict(report).items() if name != "seconds"} for report in result.history]


# --- against a loop of its own ----------------------------------------------------------------------


def reference(settings: TrainConfig, backbone: Backbone) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """Train in plain torch: the same model and order of samples; everything else by hand."""
    model = build(backbone, settings.knobs, settings.seed)
    pixels = torch.stack([backbone.preprocessing.decode(sample.source, augmented=False) for sample in (*TRAIN, *VALIDATION)])
    pixels = (pixels.float() / 255 - 0.5) / 0.25
    truth = encode((*TRAIN, *VALIDATION))
    count = len(TRAIN)
    stages = [name for name, child in model.backbone.named_children() if list(child.parameters())]
    groups = []
    for name, parameter in model.named_parameters():
        owner = name.split(".")
        if owner[0] == "head":
            rate = settings.learning_rate * settings.head_multiplier
        else:
            index = stages.index(owner[1])
            if index < settings.freeze_depth:
                continue
            rate = settings.learning_rate * settings.layer_decay ** (len(stages) - index)
        decay = settings.weight_decay if parameter.ndim > 1 else 0.0
        groups.append({"params": [parameter], "lr": rate, "weight_decay": decay})
    optimizer = torch.optim.AdamW(groups, fused=False, foreach=False)
    steps = math.ceil(count / settings.batch_size)
    total, rising = steps * settings.epochs, round(settings.warmup * steps * settings.epochs)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        return 0.01 + 0.99 * (1 + math.cos(math.pi * (step - rising) / (total - rising))) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    losses, scores = [], []
    for epoch in range(1, settings.epochs + 1):
        order = np.random.default_rng((settings.seed, epoch)).permutation(count)
        model.train()
        for name in stages[: settings.freeze_depth]:
            model.backbone.get_submodule(name).eval()
        summed = 0.0
        for rows in np.array_split(order, steps):
            loss = F.cross_entropy(model(pixels[rows]), truth[rows], label_smoothing=0.0)
            optimizer.zero_grad()
            loss.backward()
            for name, parameter in model.named_parameters():
                if name.split(".")[1] in stages[: settings.freeze_depth]:
                    parameter.grad = None
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            summed += loss.item() * len(rows)
        losses.append(summed / count)
        model.eval()
        with torch.no_grad():
            scores.append(float(F.cross_entropy(model(pixels[count:]).double(), truth[count:])))
    return losses, scores, state(model)


@pytest.mark.parametrize("freeze_depth", [0, 2])
def test_losses_equal_those_of_a_plain_loop(freeze_depth: int) -> None:
    settings = config(epochs=5, layer_decay=0.8, head_multiplier=4.0, weight_decay=0.1, freeze_depth=freeze_depth, seed=3)
    result, model = run(settings, MLP)
    losses, scores, weights = reference(settings, MLP)
    assert [report.train_loss for report in result.history] == pytest.approx(losses, abs=1e-6)
    assert [report.value for report in result.history] == pytest.approx(scores, abs=1e-6)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, weights[name], atol=1e-5, rtol=1e-5)
    assert losses[-1] < 0.8 * losses[0], "the comparison must see learning"


def test_toy_learns_the_stripes() -> None:
    result, _ = run(config(epochs=12, learning_rate=1e-2), metric="accuracy")
    assert result.best.value >= 0.9


# --- accumulation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batch", [1, 3, 8, 100])
def test_accumulated_micro_batches_equal_the_whole_batch(micro_batch: int) -> None:
    whole, _ = run(config(), MLP)
    parts, _ = run(config(micro_batch=micro_batch), MLP)
    assert [report.train_loss for report in parts.history] == pytest.approx(
        [report.train_loss for report in whole.history], abs=1e-5
    )
    for name, value in whole.weights.items():
        torch.testing.assert_close(parts.weights[name], value, atol=1e-4, rtol=1e-4)


def test_micro_batches_of_unequal_size_weigh_by_their_samples() -> None:
    # 12 in parts of 5: 4, 4, 4; 11 in parts of 5: 4, 4, 3
    whole, _ = run(config(batch_size=11, epochs=1), MLP)
    parts, _ = run(config(batch_size=11, epochs=1, micro_batch=5), MLP)
    assert parts.history[0].train_loss == pytest.approx(whole.history[0].train_loss, abs=1e-5)


# --- the best epoch ---------------------------------------------------------------------------------


def scripted(values: list[float]) -> Any:
    """An objective whose metric follows a script."""
    waiting = iter(values)
    return replace(
        objective(),
        metric="script",
        head=replace(HEAD, directions={"script": "maximize"}, metrics=lambda *_: {"script": next(waiting)}),
    )


def fit_scripted(values: list[float], **changes: Any) -> FitResult:
    settings = config(epochs=len(values), **changes)
    return fit(build(MLP), split(TRAIN, MLP), split(VALIDATION, MLP), scripted(values), settings, device=CPU)


def test_best_weights_are_kept_not_the_last() -> None:
    model = build(MLP)
    after: list[dict[str, torch.Tensor]] = []
    result = fit(
        model,
        split(TRAIN, MLP),
        split(VALIDATION, MLP),
        scripted([0.3, 0.8, 0.6, 0.7]),
        config(),
        device=CPU,
        on_epoch=lambda report: after.append(state(model)),
    )
    assert result.best == result.history[1]
    assert_equal_tensors(result.weights, after[1])
    assert not torch.equal(result.weights["head.1.weight"], after[3]["head.1.weight"])


def test_lower_is_better_where_the_metric_is_to_be_minimized() -> None:
    result, _ = run(config(epochs=6))
    assert result.best.value == min(report.value for report in result.history) != result.history[0].value


def test_first_of_equal_epochs_is_the_best() -> None:
    assert fit_scripted([0.1, 0.5, 0.5, 0.2]).best.epoch == 2


@pytest.mark.parametrize(
    ("patience", "epochs", "stopped"),
    [(1, 3, "patience"), (2, 6, "patience"), (3, 7, "finished"), (None, 7, "finished")],
)
def test_training_stops_after_patience_epochs_without_a_better_one(patience: int | None, epochs: int, stopped: str) -> None:
    result = fit_scripted([0.1, 0.5, 0.4, 0.6, 0.6, 0.5, 0.5], patience=patience)
    assert (len(result.history), result.stopped) == (epochs, stopped)


def test_reports_come_in_order_with_every_metric() -> None:
    seen: list[EpochReport] = []
    result, _ = run(config(), on_epoch=seen.append)
    assert tuple(seen) == result.history
    assert [report.epoch for report in seen] == [1, 2, 3, 4]
    assert set(seen[0].metrics) == {"accuracy", "balanced_accuracy", "f1_macro", "log_loss", "auroc"}
    assert all(report.value == report.metrics["log_loss"] and report.seconds > 0 for report in seen)


# --- going on from a checkpoint ---------------------------------------------------------------------


class Cut(Exception):  # noqa: N818
    pass


def cut_after(epoch: int) -> Callable[[EpochReport], None]:
    def on_epoch(report: EpochReport) -> None:
        if report.epoch == epoch:
            raise Cut

    return on_epoch


CASES = {
    "adamw": {},
    "dropout and augmentation": {"policy": "standard", "knobs": DROPOUT},
    "sgd": {"optimizer": "sgd", "learning_rate": 3e-2},
    "frozen, bf16, micro-batches": {"freeze_depth": 2, "precision": "bf16", "micro_batch": 3},
    "fp16": {"precision": "fp16"},
}


@pytest.mark.parametrize("case", CASES)
def test_run_continued_at_every_epoch_equals_one_that_never_stopped(case: str, tmp_path: Path) -> None:
    changes = dict(CASES[case])
    policy = changes.pop("policy", "none")
    settings = config(epochs=4, **changes)
    wanted, wanted_model = run(settings, policy=policy)
    for epoch in range(1, 4):
        with pytest.raises(Cut):
            run(settings, policy=policy, checkpoint=tmp_path, on_epoch=cut_after(epoch))
    result, model = run(settings, policy=policy, checkpoint=tmp_path)
    assert told(result) == told(wanted)
    assert_equal_tensors(result.weights, wanted.weights)
    assert_equal_tensors(state(model), state(wanted_model))


def test_run_that_is_not_continued_would_differ() -> None:
    wanted, _ = run(config(epochs=2, knobs=DROPOUT), policy="standard")
    other, _ = run(config(epochs=2, knobs=DROPOUT, seed=1), policy="standard")
    assert told(other) != told(wanted)


def test_finished_run_is_told_again_without_training(tmp_path: Path) -> None:
    wanted, _ = run(config(), checkpoint=tmp_path)
    seen: list[EpochReport] = []
    result, _ = run(config(), checkpoint=tmp_path, on_epoch=seen.append, should_stop=lambda: True)
    assert told(result) == told(wanted)
    assert_equal_tensors(result.weights, wanted.weights)
    assert [report.epoch for report in seen] == [4], "the last report may have been lost with the kill"


def test_patience_survives_a_restart(tmp_path: Path) -> None:
    settings = config(epochs=6, patience=1, learning_rate=1e-12)  # too small to change an answer
    wanted, _ = run(settings, MLP, metric="accuracy")
    assert (len(wanted.history), wanted.stopped) == (2, "patience")
    with pytest.raises(Cut):
        run(settings, MLP, metric="accuracy", checkpoint=tmp_path, on_epoch=cut_after(2))
    result, _ = run(settings, MLP, metric="accuracy", checkpoint=tmp_path, should_stop=lambda: True)
    assert (told(result), result.stopped) == (told(wanted), "patience")


def test_only_the_best_and_the_last_are_kept_on_disk(tmp_path: Path) -> None:
    def on_epoch(report: EpochReport) -> None:
        names = sorted(path.name for path in tmp_path.iterdir())
        assert len(names) == 2
        assert names[0].startswith("best-")
        assert names[1] == "last.safetensors"

    run(config(), checkpoint=tmp_path, on_epoch=on_epoch)


def test_interruption_comes_between_steps_and_loses_only_the_epoch_in_flight(tmp_path: Path) -> None:
    steps = iter(range(1000))
    asked: list[int] = []

    def should_stop() -> bool:
        asked.append(next(steps))
        return len(asked) == 8  # 5 steps an epoch: in the second

    settings = config(knobs=DROPOUT)
    with pytest.raises(Interrupted):
        run(settings, policy="light", checkpoint=tmp_path, should_stop=should_stop)
    assert len(asked) == 8
    result, _ = run(settings, policy="light", checkpoint=tmp_path)
    wanted, _ = run(settings, policy="light")
    assert told(result) == told(wanted)
    assert_equal_tensors(result.weights, wanted.weights)


KILLED = """
    import os, signal, sys
    from pathlib import Path
    import torch
    torch.set_num_threads({threads})
    sys.path.insert(0, {tests!r})
    import toy_training as toy
    from autoft import checkpoint, train

    {when}
    settings = toy.config(epochs=4, knobs=dict(toy.KNOBS, dropout=0.3))
    toy.run(settings, policy="standard", checkpoint=Path({folder!r}))
    raise SystemExit("must have been killed")
"""
WHEN = {
    "mid-epoch": """
    count = 0
    def rate_at(*arguments, original=train.rate_at):
        global count
        count += 1
        if count == 12:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)
    train.rate_at = rate_at
    """,
    "between the two files of a checkpoint": """
    count = 0
    def save(path, *arguments, original=checkpoint.save_tensors):
        global count
        count += path.name == "last.safetensors"
        if count == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        original(path, *arguments)
    checkpoint.save_tensors = save
    """,
}


@pytest.mark.parametrize("when", WHEN)
def test_kill_loses_at_most_the_epoch_in_flight(when: str, tmp_path: Path) -> None:
    script = textwrap.dedent(KILLED).format(
        threads=torch.get_num_threads(),
        tests=str(Path(__file__).parent),
        folder=str(tmp_path),
        when=textwrap.dedent(WHEN[when]).strip(),
    )
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    settings = config(epochs=4, knobs=DROPOUT)
    seen: list[EpochReport] = []
    result, _ = run(settings, policy="standard", checkpoint=tmp_path, on_epoch=seen.append)
    wanted, _ = run(settings, policy="standard")
    assert [report.epoch for report in seen] == [2, 3, 4]
    assert told(result) == told(wanted)
    assert_equal_tensors(result.weights, wanted.weights)


# --- failures ---------------------------------------------------------------------------------------


def test_loss_that_is_not_finite_is_an_error() -> None:
    broken = replace(HEAD, loss=lambda outputs, *_: outputs.sum() * math.nan)
    with pytest.raises(NonFiniteError, match="the training loss became nan in epoch 1"):
        fit(build(MLP), split(TRAIN, MLP), split(VALIDATION, MLP), objective(head=broken), config(), device=CPU)


def test_diverging_training_is_an_error_not_a_result() -> None:
    with pytest.raises(NonFiniteError):
        run(config(optimizer="sgd", learning_rate=1e30, gradient_clip=0.0, warmup=0.0, epochs=8), MLP)


def test_outputs_that_are_not_finite_are_an_error() -> None:
    model = build(MLP)

    class OnlyInEval(nn.Module):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return features if self.training else features / 0

    model.head.append(OnlyInEval())  # type: ignore[operator]
    with pytest.raises(NonFiniteError, match="validation outputs are not finite after epoch 1"):
        fit(model, split(TRAIN, MLP), split(VALIDATION, MLP), objective(), config(), device=CPU)


def test_no_epochs_are_refused() -> None:
    with pytest.raises(ValueError, match="`epochs` must be at least 1, but got 0"):
        run(config(epochs=0))


# --- precision, prediction, schedule ----------------------------------------------------------------


def test_bf16_computes_in_bf16_and_keeps_weights_in_float32() -> None:
    seen: set[torch.dtype] = set()
    model = build(CONVNET)
    model.backbone.get_submodule("stage1.conv").register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    result = fit(model, split(TRAIN), split(VALIDATION), objective(), config(precision="bf16"), device=CPU)
    assert seen == {torch.bfloat16}
    assert {value.dtype for value in result.weights.values()} == {torch.float32, torch.int64}
    exact, _ = run(config())
    assert result.best.value == pytest.approx(exact.best.value, rel=0.1)


def test_prediction_is_in_the_splits_order_whatever_the_batch() -> None:
    model = build()
    data = split(VALIDATION)
    whole = predict(model, data, device=CPU, batch_size=100)
    assert whole.shape == (len(VALIDATION), 3)
    assert not model.training
    torch.testing.assert_close(predict(model, data, device=CPU, batch_size=1), whole, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_rate_rises_linearly_then_falls_along_a_cosine(warmup: float) -> None:
    total = 200
    rates = [rate_at(step, total, warmup) for step in range(total)]
    rising = round(warmup * total)
    assert rates[rising] == max(rates) == 1.0
    assert all(0 < rate <= 1 for rate in rates)
    steps = np.diff([0.0, *rates[: rising + 1]])
    assert steps == pytest.approx([steps[0]] * len(steps))
    assert (np.diff(rates[rising:]) < 0).all()
    assert rates[-1] == pytest.approx(0.01, abs=1e-3)
    middle = rates[(rising + total) // 2]
    assert middle == pytest.approx(0.505, abs=0.01)


@given(st.integers(1, 50), st.floats(0, 1))
def test_rate_is_never_zero_nor_above_the_peak(total: int, warmup: float) -> None:
    assert all(0 < rate_at(step, total, warmup) <= 1 for step in range(total))


@given(st.integers(1, 1_000_000))
def test_automatic_batch_size_is_a_power_of_two_within_bounds(samples: int) -> None:
    size = choose_batch_size("auto", samples)
    assert 1 <= size <= min(64, samples)
    if samples >= 8:
        assert size >= 8
        assert size & (size - 1) == 0


@pytest.mark.parametrize(("samples", "size"), [(3, 3), (100, 8), (256, 16), (300, 16), (512, 32), (100_000, 64)])
def test_automatic_batch_size_gives_some_16_steps_an_epoch(samples: int, size: int) -> None:
    assert choose_batch_size("auto", samples) == size


@pytest.mark.parametrize(("samples", "size"), [(3, 3), (500, 8), (1600, 16), (2500, 16), (4000, 32), (100_000, 32)])
def test_automatic_batch_size_for_texts_gives_some_100_steps_an_epoch(samples: int, size: int) -> None:
    assert choose_batch_size("auto", samples, "text") == size


def test_wanted_batch_size_precision_and_device_win() -> None:
    assert choose_batch_size(7, 1000) == 7
    assert choose_precision("bf16", CPU) == "bf16"
    assert choose_precision("auto", CPU) == "fp32"
    assert choose_device("cpu") == CPU
    with pytest.raises(RuntimeError):
        choose_device("abacus")


def test_epochs_seeds_differ_and_repeat() -> None:
    drawn = []
    for seed, epoch in ((0, 1), (0, 2), (1, 1), (0, 1)):
        seed_everything(seed, epoch)
        drawn.append(torch.rand(1).item())
    assert drawn[0] == drawn[3]
    assert len(set(drawn)) == 3


@pytest.mark.parametrize(("log_loss", "best"), [([0.9, 0.5, 0.7], 2), ([0.5, 0.5, 0.5], 1), ([0.4, 0.5, 0.3], 3)])
def test_of_equally_good_epochs_the_surest_is_kept(log_loss: list[float], best: int) -> None:
    scores = iter(log_loss)
    head = replace(HEAD, metrics=lambda *arguments: {"accuracy": 1.0, "log_loss": next(scores)})
    model = build(head=head)
    train, validation = split(TRAIN), split(VALIDATION)
    result = fit(model, train, validation, objective("accuracy", head), config(epochs=3), device=CPU)
    assert result.best.epoch == best


@pytest.mark.parametrize(
    ("modality", "samples", "epochs"),
    [("image", 40, 40), ("image", 8, 40), ("image", 160, 20), ("image", 400, 16), ("image", 5000, 10), ("text", 40, 4)],
)
def test_few_images_get_more_epochs(modality: str, samples: int, epochs: int) -> None:
    assert choose_epochs("auto", modality, samples) == epochs
    assert choose_epochs("auto", modality) == (4 if modality == "text" else 10)
    assert choose_epochs(7, modality, samples) == 7
