"""The training loop: `fit(model, data, config, on_epoch) -> FitResult`; it knows neither Optuna nor pluggy."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoft import checkpoint as checkpoints
from autoft.averaging import Average
from autoft.batching import draw_order
from autoft.freezing import parameter_groups
from autoft.gradients import Gradients, Part
from autoft.layers import batch_norms, word_embeddings
from autoft.loading import Batch, SplitData
from autoft.mixing import mix
from autoft.model import FineTuneModel
from autoft.ragged import Ragged, Rows
from autoft.regularize import L2SP, SAM, Adversary
from autoft.schedule import depth_at, rate_at
from autoft.specs import IGNORED, Direction, Head, Targets, is_better

USUAL_EPOCHS = {"image": 10, "text": 4}
LEAST_STEPS = 400  # that `auto` epochs make of few images
MOST_EPOCHS = 4  # times the usual number, at most


class NonFiniteError(ArithmeticError):
    """The loss or the outputs became NaN or infinite; the configuration does not train."""


class Interrupted(Exception):  # noqa: N818 - a request, not an error
    """Training was asked to stop between two steps; the last finished epoch is in the checkpoint."""


@dataclass(frozen=True)
class Objective:
    """What is optimized: a head's loss on the training split, one of its metrics on the validation split.

    Attributes:
        head: The task.
        targets: Its targets.
        metric: Name of the metric that selects the best epoch.
    """

    head: Head
    targets: Targets
    metric: str

    @property
    def direction(self) -> Direction:
        """Whether the metric is to be maximized or minimized."""
        return self.head.directions[self.metric]


@dataclass(frozen=True)
class TrainConfig:
    """One way to fine-tune.

    Attributes:
        learning_rate: Peak rate of the backbone's last stage, before `layer_decay`.
        epochs: Passes over the training split.
        batch_size: Samples an optimizer step.
        micro_batch: Samples a forward pass; gradients accumulate up to `batch_size`. None: the whole batch at once.
        freeze_depth: Stages frozen, counted from the input.
        head_multiplier: The head's learning rate over the backbone's.
        layer_decay: Factor on the learning rate from each stage to the one before it.
        weight_decay: Decoupled weight decay of AdamW, L2 for SGD; not for norms and biases.
        warmup: Share of all steps in which the rate rises linearly; the schedule takes the rest.
        schedule: One of `schedule.SCHEDULES`.
        gradient_clip: Largest norm of the gradient; 0 for no limit.
        optimizer: `adamw` or `sgd`.
        momentum: Of SGD.
        precision: `fp32`, `bf16` or `fp16` autocast; weights and optimizer stay float32.
        patience: Epochs without a better validation metric before stopping, or None.
        seed: Seeds initialization, order, dropout and augmentation.
        knobs: Values of the head's knobs.
        group_by_length: Whether samples of similar length share a step, so that little is padding; without effect on images.
        compile: Whether training steps run as code compiled for the model by `torch.compile`; evaluation never does.
        views: How many random variants of each sample there are: epoch e trains on number (e - 1) % `views`. None: a new one
            every epoch.
        head_start: Name of the file that the head's weights come from, among those of the probes; None: random ones. Whoever
            builds the model heeds it.
        l2_sp: Pull toward the pretrained weights (`regularize.L2SP`).
        stochastic_depth: How often the backbone's last residual branch is left out, earlier ones less. Whoever builds the
            model heeds it.
        batch_norm: `train`, or `frozen`: running statistics of trained stages stay as pretrained too.
        averaging: Which weights are scored and kept: `none` for the trained ones, `ema`, or `swa`.
        ema_decay: Of `ema`, a step.
        swa_share: Of the epochs, the last ones, over which `swa` averages, at the learning rate with which they begin.
        r_drop: Weight of the divergence between two passes with different dropout; 0 for one pass.
        adversarial: Size of the perturbation of the word embeddings (`regularize.Adversary`); 0 for none.
        sam: Length of the step uphill (`regularize.SAM`); 0 for none.
        unfreeze: Share of the epochs over which stages are unfrozen, from the output to the input; 0 for all at once.
        mixup: Alpha of mixup; 0 for none.
        cutmix: Alpha of cutmix; 0 for none.
        erasing: How often a part of an image is erased.
        strategy: How the stages that are not frozen are trained: `full`, or the name of a plugin's `Strategy`, whose knobs
            are among `knobs`. Whoever builds the model heeds it.
        adapter_multiplier: With a strategy, the learning rate of what it adds over that of the backbone.
        keep_last: Whether the last epoch counts as the best, whatever it scores.
    """

    learning_rate: float
    epochs: int
    batch_size: int
    micro_batch: int | None = None
    freeze_depth: int = 0
    head_multiplier: float = 1.0
    layer_decay: float = 1.0
    weight_decay: float = 0.0
    warmup: float = 0.1
    schedule: str = "cosine"
    gradient_clip: float = 1.0
    optimizer: str = "adamw"
    momentum: float = 0.9
    precision: str = "fp32"
    patience: int | None = None
    seed: int = 0
    knobs: Mapping[str, Any] = field(default_factory=dict)
    group_by_length: bool = True
    compile: bool = False
    views: int | None = None
    head_start: str | None = None
    l2_sp: float = 0.0
    stochastic_depth: float = 0.0
    batch_norm: str = "train"
    averaging: str = "none"
    ema_decay: float = 0.99
    swa_share: float = 0.25
    r_drop: float = 0.0
    adversarial: float = 0.0
    sam: float = 0.0
    unfreeze: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    erasing: float = 0.0
    strategy: str = "full"
    adapter_multiplier: float = 10.0
    keep_last: bool = False

    @property
    def passes(self) -> int:
        """Forward and backward passes that a step makes over its samples."""
        return (1 + (self.r_drop > 0) + (self.adversarial > 0)) * (1 + (self.sam > 0))

    @property
    def changes_inputs(self) -> bool:
        """Whether steps change what the backbone takes, or its first layer gives, beyond the augmentation of samples."""
        return any((self.mixup, self.cutmix, self.erasing, self.adversarial))

    @property
    def averaged_from(self) -> int:
        """The epoch after which `swa` first takes the weights into its mean, counted from 1."""
        return self.epochs - max(1, round(self.swa_share * self.epochs)) + 1


@dataclass(frozen=True)
class EpochReport:
    """What one epoch gave.

    Attributes:
        epoch: Counted from 1.
        train_loss: Mean over the epoch's samples.
        metrics: All the head's metrics on the validation split.
        value: The objective's metric.
        seconds: Training and validation together.
    """

    epoch: int
    train_loss: float
    metrics: dict[str, float]
    value: float
    seconds: float


@dataclass(frozen=True)
class FitResult:
    """The best epoch of a training run.

    Attributes:
        best: Its report.
        history: All epochs, in order.
        weights: The model's `finished_state` at that epoch, on the CPU.
        stopped: Why training ended: `finished` or `patience`.
    """

    best: EpochReport
    history: tuple[EpochReport, ...]
    weights: dict[str, Tensor]
    stopped: str


def fit(
    model: FineTuneModel,
    train: SplitData,
    validation: SplitData,
    objective: Objective,
    config: TrainConfig,
    *,
    device: torch.device,
    no_weight_decay: frozenset[str] = frozenset(),
    checkpoint: Path | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    run: Callable[..., Tensor] | None = None,
) -> FitResult:
    """Train, keep the best epoch's weights, and go on from a checkpoint where there is one.

    Args:
        model: Trained in place, moved to `device`.
        train: Training split.
        validation: Validation split, scored after every epoch.
        objective: Loss and metric.
        config: How to train.
        device: CUDA, MPS or CPU.
        no_weight_decay: Backbone parameters not to be decayed.
        checkpoint: Folder for checkpoints, or None for none. After a kill, the same call continues exactly.
        on_epoch: Called after each epoch, once its checkpoint is safe; what it raises ends the training.
        should_stop: Asked before every step; True ends the training with `Interrupted`.
        run: Gives the model's outputs for the splits' batches, where these hold something else than the model's inputs. It
            is never compiled: it replaces parts of the model from call to call, which compiled code would not see.

    Raises:
        NonFiniteError: The loss or the outputs are not finite.
        Interrupted: `should_stop` said so.
    """
    head, targets = objective.head, objective.targets
    statistics = config.batch_norm == "frozen"
    model.freeze(config.freeze_depth, statistics=statistics)
    model.to(device)
    channels_last = device.type == "cuda"  # tensor cores want it; oneDNN and MPS choose layouts themselves
    if channels_last:
        model.to(memory_format=torch.channels_last)
    plain = run is not None or not config.compile or config.adversarial  # an attack hooks into a layer, anew in each step
    forward = (run or model) if plain else compiled(model, dynamic=train.preprocessing.ragged)
    optimizer = make_optimizer(model, config, no_weight_decay, device)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    weights = head.draw_weights(train.targets, targets, config.knobs)
    steps_an_epoch = math.ceil(len(train) / config.batch_size)
    total_steps = steps_an_epoch * config.epochs
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    pull = L2SP(optimizer.param_groups, config.l2_sp) if config.l2_sp else None
    average = _make_average(model, config)
    gradients = Gradients(
        forward,
        head,
        targets,
        config.knobs,
        autocast=partial(autocast, device, config.precision),
        scaler=scaler,
        r_drop=config.r_drop,
        adversary=_make_adversary(model, config),
        sam=SAM(trainable, config.sam) if config.sam else None,
        batch_norms=batch_norms(model.backbone),
    )
    state = checkpoints.State(model, optimizer, scaler, average)

    history: list[EpochReport] = []
    best: EpochReport | None = None
    best_weights: dict[str, Tensor] = {}
    adapter: Mapping[str, bytes] = {}
    stopped = "finished"
    resumed = checkpoints.load(checkpoint, state) if checkpoint else None
    if resumed is not None:
        history, best_weights = [EpochReport(**report) for report in resumed[0]], resumed[1]
        best = history[-1] if config.keep_last else _best(history, objective.direction)
        if on_epoch is not None:
            on_epoch(history[-1])  # the kill may have come between its checkpoint and its report

    for epoch in range(len(history) + 1, config.epochs + 1):
        if _exhausted(history, best, config.patience):
            stopped = "patience"
            break
        started = time.monotonic()
        if config.unfreeze:
            depth = depth_at(epoch, config.epochs, len(model.stages), config.freeze_depth, config.unfreeze)
            model.freeze(depth, statistics=statistics)
        # Reseeded every epoch, so that a checkpoint at an epoch's end needs no random state to be continued exactly.
        seed_everything(config.seed, epoch)
        rng = np.random.default_rng((config.seed, epoch))
        order = draw_order(len(train), rng, weights)
        steps = train.steps(
            order,
            config.batch_size,
            config.micro_batch,
            rng=rng,
            device=device,
            group_by_length=config.group_by_length,
        )
        micro = [part for parts in steps for part in parts]
        feed = train.batches(micro, device=device, seed=(config.seed, _view(config, epoch)), pin=device.type == "cuda")
        model.train()
        loss_sum = torch.zeros((), device=device)  # summed on the device: reading it every step would stall a GPU
        for step, parts in enumerate(steps):
            if should_stop is not None and should_stop():
                feed.close()  # type: ignore[attr-defined]
                raise Interrupted
            rate = _rate((epoch - 1) * steps_an_epoch + step, total_steps, steps_an_epoch, config)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * rate
            units = [int(train.units(part).sum()) for part in parts]
            gradients.of_step(_parts(feed, units, config, channels_last=channels_last), sum(units), loss_sum)
            if config.gradient_clip:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(trainable, config.gradient_clip)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            if pull is not None:
                pull.pull()
            if average is not None and config.averaging == "ema":
                average.update()
        train_loss = loss_sum.item() / int(train.units(order).sum())
        if not math.isfinite(train_loss):
            raise NonFiniteError(f"the training loss became {train_loss} in epoch {epoch}")

        batch_size = _evaluation_batch(config)
        if average is not None and config.averaging == "swa" and epoch >= config.averaged_from:
            average.update()
        with average.applied() if average is not None and average.count else nullcontext():
            if average is not None and average.count and config.averaging == "swa":
                _count_statistics(model, train, device=device, config=config, run=run)
            outputs = predict(model, validation, device=device, batch_size=batch_size, precision=config.precision, run=run)
            if not bool(torch.isfinite(outputs.values if isinstance(outputs, Ragged) else outputs).all()):
                raise NonFiniteError(f"the validation outputs are not finite after epoch {epoch}")
            metrics = head.metrics(outputs, validation.targets, targets)
            report = EpochReport(epoch, train_loss, metrics, metrics[objective.metric], time.monotonic() - started)
            history.append(report)
            if best is None or config.keep_last or _surpasses(report, best, objective.direction):
                best = report
                best_weights, adapter = model.finished_state(), model.adapter_files()
        if checkpoint is not None:
            checkpoints.save(checkpoint, state, [asdict(each) for each in history], best.epoch, best_weights, adapter)
        if on_epoch is not None:
            on_epoch(report)

    if best is None:
        raise ValueError(f"`epochs` must be at least 1, but got {config.epochs}")
    return FitResult(best, tuple(history), best_weights, stopped)


def _parts(feed: Iterator[Batch], units: list[int], config: TrainConfig, *, channels_last: bool) -> Iterator[Part]:
    """Yield a step's parts as they are asked for, with images mixed where that is wanted."""
    for unit in units:
        inputs, wanted = next(feed)
        if channels_last:
            inputs = tuple(to_channels_last(item) for item in inputs)
        yield Part(mix(inputs, mixup=config.mixup, cutmix=config.cutmix, erasing=config.erasing), wanted, unit)


def _make_average(model: FineTuneModel, config: TrainConfig) -> Average | None:
    if config.averaging == "none":
        return None
    return Average(model, config.ema_decay if config.averaging == "ema" else None)


def _make_adversary(model: FineTuneModel, config: TrainConfig) -> Adversary | None:
    if not config.adversarial:
        return None
    embeddings = word_embeddings(model.backbone)
    if embeddings is None:
        raise ValueError("`adversarial` must be 0 for a backbone without word embeddings")
    return Adversary(embeddings, config.adversarial)


def _rate(step: int, total: int, steps_an_epoch: int, config: TrainConfig) -> float:
    """Return the learning rate's factor; weights that are averaged (SWA) are gathered at a constant rate."""
    hold_from = (config.averaged_from - 1) * steps_an_epoch if config.averaging == "swa" else None
    return rate_at(step, total, config.warmup, config.schedule, hold_from)


@torch.no_grad()
def _count_statistics(
    model: FineTuneModel,
    train: SplitData,
    *,
    device: torch.device,
    config: TrainConfig,
    run: Callable[..., Tensor] | None,
) -> None:
    """Count BatchNorm's running statistics anew over the training split: a mean of weights has none of its own.

    As torch's `swa_utils.update_bn`, but without dropout, with which the statistics would not be those of evaluation. Layers
    whose statistics are frozen keep them.
    """
    model.train()
    layers = [layer for layer in batch_norms(model) if layer.training]
    if not layers:
        return
    model.eval()
    for layer in layers:
        layer.training = True
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()  # type: ignore[operator]
        layer.momentum = None  # type: ignore[assignment]  # a plain mean over all batches
    batches = train.evaluation_batches(config.micro_batch or config.batch_size, device=device)
    for inputs, _ in train.batches(batches, device=device, seed=(config.seed, 1)):
        with autocast(device, config.precision):
            (run or model)(*inputs)
    for layer, momentum in zip(layers, before, strict=True):
        layer.momentum = momentum


@torch.inference_mode()
def predict(
    model: torch.nn.Module,
    data: SplitData,
    *,
    device: torch.device,
    batch_size: int,
    precision: str = "fp32",
    run: Callable[..., Tensor] | None = None,
) -> Rows:
    """Return the model's outputs for a whole split, float32 on the CPU, in the split's order.

    Args:
        model: Put into evaluation mode.
        data: The split.
        device: Where the model is.
        batch_size: Samples of a batch, at most.
        precision: As in `TrainConfig`.
        run: As in `fit`.

    Returns:
        `(N, K)`; or, where the parts of a sample have targets, a row `(K,)` for each part that was not cut off, as `Ragged`.
    """
    model.eval()
    forward = run or model
    collected = []
    batches = data.evaluation_batches(batch_size, device=device)
    for inputs, wanted in data.batches(batches, device=device, pin=device.type == "cuda"):
        with autocast(device, precision):
            outputs = forward(*inputs)
        if isinstance(data.targets, Ragged):
            outputs = outputs[wanted != IGNORED]
        collected.append(outputs.float())
    together = torch.cat(collected).cpu()  # one copy at the end, not one a batch
    order = np.concatenate(batches)
    back = torch.from_numpy(np.argsort(order))
    if not isinstance(data.targets, Ragged):
        return together[back]
    offsets = np.concatenate([[0], np.cumsum(data.units(order))])
    return Ragged(together, torch.from_numpy(offsets))[back]


def seed_everything(seed: int, epoch: int = 0) -> None:
    """Seed torch's generators, on the CPU and all devices, for one epoch."""
    mixed = int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0]) >> 1  # torch takes 63 bits
    torch.manual_seed(mixed)
    torch.backends.cudnn.benchmark = False  # picks kernels by timing, which no seed repeats
    torch.backends.cudnn.deterministic = True


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the autocast context for `fp32` (off), `bf16` or `fp16`."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


def choose_device(wanted: str) -> torch.device:
    """Return the device for `auto` (CUDA, then MPS, then CPU) or a name.

    Raises:
        RuntimeError: The named device is not there.
    """
    if wanted != "auto":
        device = torch.device(wanted)
        torch.zeros(1, device=device)  # fails here, with torch's own words, rather than in the first trial
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def choose_precision(wanted: str, device: torch.device) -> str:
    """Return the precision for `auto`: bf16 on GPUs that have it, fp16 on older ones, fp32 elsewhere.

    `autoft.tuning` then measures whether it pays; `probe` is the same choice, measured elsewhere too.
    """
    if wanted not in ("auto", "probe"):
        return wanted
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def choose_batch_size(wanted: str | int, samples: int, modality: str = "image") -> int:
    """Return the batch size for `auto`: the largest power of two that still gives a good number of steps an epoch.

    For images from 8 to 64, with some 16 steps; for texts, which get few epochs, from 8 to 32, with some 100.
    """
    if wanted != "auto":
        return int(wanted)
    steps, most = (100, 32) if modality == "text" else (16, 64)
    return min(most, max(8, 1 << int(math.log2(max(1, samples / steps)))), samples)


def choose_epochs(wanted: str | int, modality: str, samples: int | None = None) -> int:
    """Return the epochs for `auto`: 4 for texts, whose models overfit soon, and 10 for everything else.

    Of few images more, up to 4 times as many, so that there are some 400 steps of the automatic batch size: with 4, 16 or 40
    a class, twice the epochs gave more than any method of regularization (studies/how-to-finetune). Of texts that is not so.

    Args:
        wanted: What the study says.
        modality: Of the data.
        samples: Of the training split; None for many.
    """
    if wanted != "auto":
        return int(wanted)
    usual = USUAL_EPOCHS.get(modality, 10)
    if samples is None or modality == "text":
        return usual
    steps = math.ceil(samples / choose_batch_size("auto", samples, modality))
    return min(MOST_EPOCHS * usual, max(usual, math.ceil(LEAST_STEPS / steps)))


def _view(config: TrainConfig, epoch: int) -> int:
    """Return which variant of the samples an epoch trains on, counted from 1."""
    return epoch if config.views is None else (epoch - 1) % config.views + 1


def _evaluation_batch(config: TrainConfig) -> int:
    """Return a batch size without gradients: at least 64, as small ones waste time, unless memory has run out before."""
    return 2 * config.micro_batch if config.micro_batch else max(64, 2 * config.batch_size)


def compiled(model: FineTuneModel, *, dynamic: bool) -> Callable[..., Tensor]:
    """Return the model's forward as compiled code; the model itself, and the names of its weights, stay as they are.

    The compilation happens at the first call, and again at a shape that the code does not fit. What was compiled before is
    dropped: kept from trial to trial, torch would in the end give up compiling, and run the plain model in silence.

    Args:
        model: Frozen as it will be trained.
        dynamic: Whether batches differ in length, as those of texts do.
    """
    torch.compiler.reset()
    # random numbers as without compilation: else dropout would make two different trainings of one configuration
    forward: Callable[..., Tensor] = torch.compile(model.forward, dynamic=dynamic or None, options={"fallback_random": True})
    return forward


def make_optimizer(
    model: FineTuneModel, config: TrainConfig, no_weight_decay: frozenset[str], device: torch.device
) -> torch.optim.Optimizer:
    """Return the optimizer of what the model has trainable, with its groups' learning rates."""
    groups = parameter_groups(
        model.backbone,
        model.head,
        model.stages,
        learning_rate=config.learning_rate * (1.0 if model.trained is None else config.adapter_multiplier),
        head_multiplier=config.head_multiplier / (1.0 if model.trained is None else config.adapter_multiplier),
        layer_decay=config.layer_decay,
        weight_decay=config.weight_decay,
        no_weight_decay=no_weight_decay,
    )
    fused = device.type in ("cuda", "cpu", "mps")
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=True, fused=fused)
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=fused)


def to_channels_last(item: Tensor) -> Tensor:
    """Return images or maps `(N, C, H, W)` with their channels innermost in memory, and all else as it is."""
    return item.contiguous(memory_format=torch.channels_last) if item.ndim == 4 else item


def _best(history: list[EpochReport], direction: Direction) -> EpochReport:
    best = history[0]
    for report in history[1:]:
        if _surpasses(report, best, direction):
            best = report
    return best


def _surpasses(report: EpochReport, best: EpochReport, direction: Direction) -> bool:
    """Return whether an epoch is better than the best so far; of equally good ones, that with the lower log-loss.

    Small validation splits tie often, and the first epoch to get every answer right is the least sure of them.
    """
    if report.value == best.value:
        return report.metrics.get("log_loss", 0.0) < best.metrics.get("log_loss", 0.0)
    return is_better(direction, report.value, best.value)


def _exhausted(history: list[EpochReport], best: EpochReport | None, patience: int | None) -> bool:
    return patience is not None and best is not None and len(history) - best.epoch >= patience
