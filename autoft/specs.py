"""The contracts between plugins and the engine: frozen values, no base classes, no torch at import time.

A plugin returns these from its hooks (`autoft/hookspecs.py`); the engine reads them and never asks who made them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from autoft.events import Event
    from autoft.ragged import Ragged

Direction = Literal["maximize", "minimize"]
Split = Literal["train", "validation", "test"]
Answer = Literal["label", "labels", "values", "entities", "mask"]
# Where the places of a changed image come from: `x', y' = warp @ (x, y, 1)`, a row for x' and one for y'. (x, y) is a place
# of the variant and (x', y') the place that it shows, both in 0..1 from the upper left corner, whatever the sizes.
Warp = tuple[tuple[float, float, float], tuple[float, float, float]]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
WHOLE = "full"  # in place of a strategy's name: all weights of the stages that are not frozen are trained
IGNORED = -100  # in aligned targets: a position that has none, such as a sub-token inside a word


# --- the search space -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Range:
    """A number to search.

    Attributes:
        low: Smallest value, included.
        high: Largest value, included.
        log: Sample the logarithm uniformly; needs `low > 0`.
        integer: Sample whole numbers.
        or_zero: 0 may be chosen too, which turns the setting off: the scale is made longer below `low`, and whatever is
            sampled there stands for 0. So "whether" and "how much" stay one parameter that a model of the search can learn.
    """

    low: float
    high: float
    log: bool = False
    integer: bool = False
    or_zero: bool = False


@dataclass(frozen=True)
class Choice:
    """One of a few values to search, each a string, number or boolean."""

    values: tuple[str | int | float | bool, ...]


@dataclass(frozen=True)
class Knob:
    """A setting that a head adds to training, and to the search.

    Attributes:
        name: The word used in `space:` of a study file.
        default: The preset's value.
        search: What is searched when the study says nothing; None keeps the default fixed.
        help: One line for the documentation.
        allowed: What a study may ask for: the limits of a number, or the words of a choice.
        when: Another setting, and the values of it with which this one has an effect; None for always.
    """

    name: str
    default: str | int | float | bool
    search: Range | Choice | None
    help: str
    allowed: Range | Choice
    when: tuple[str, tuple[str | int | float | bool, ...]] | None = None


# --- data -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One labelled example, not yet decoded.

    Attributes:
        id: Stable name within the data, such as a path relative to its root.
        source: What the backbone's preprocessing decodes. For images a `Path`, or the bytes of a file. For texts a string, a
            tuple of two strings for a pair, or a list of strings: the words of a text whose tags are the target.
        target: The raw target: for classification the label's text, for several labels a tuple of texts, for regression a
            tuple of numbers, for tagged words a tuple with a tag for each word.
        content: Hash of the raw content; equal hashes are duplicates.
        split: The split that the data itself declares, or None where autoft is to choose.
        group: Samples of one group, such as a patient or an author, stay in one split; None where it is alone.
    """

    id: str
    source: Any
    target: Any
    content: str
    split: Split | None = None
    group: str | None = None


@dataclass(frozen=True)
class Rejected:
    """A sample that could not be read, and why; it takes no part in the search."""

    id: str
    reason: str


@dataclass(frozen=True)
class RawData:
    """Labelled samples as a data plugin found them.

    Attributes:
        modality: `image`, `text`, ...: which backbones can take them.
        task: Name of the head that fits the targets.
        samples: Every readable sample. A sequence may make them as they are asked for, which keeps data larger than memory
            out of it; one pass from the first to the last must be cheap, and so must any ascending choice of them.
        rejected: The quarantine list: samples that could not be read.
        fingerprint: Hash of all contents, targets and declared splits; equal fingerprints mean equal data.
        typical_size: For images, the 95th percentile of the longer side in pixels; None where it means nothing.
        found: The options that describe what was read, such as the names of its columns, whether given or found out;
            the same options read other data in the same way, so they travel in the bundle.
        notes: What people should know of the data, such as missing values; each a sentence.
    """

    modality: str
    task: str
    samples: Sequence[Sample]
    rejected: tuple[Rejected, ...]
    fingerprint: str
    typical_size: int | None = None
    found: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataFormat:
    """A kind of data that autoft can read.

    Attributes:
        name: Such as `image-folder`.
        modality: What it holds: `image`, `text`, ...; None where only the data can tell.
        detect: Cheap check whether a path is of this kind; must not read samples.
        load: Reads a path and options into samples. Raises `DataError` where nothing can be learned from it. The options
            are `max_rejected`, the share of samples that may be unreadable, and `for_training`: False where a finished
            model is scored, so that one class, or one sample of it, is enough. Both must be accepted and may be ignored.
        options: Names of the settings of a study's `data` section that it takes beyond those of every format, such as
            `text` and `label`; `load` finds those that were given among its options.
        before: Names of looser formats whose claim on a path gives way to this one's, such as `image-folder`, for which any
            folders with images will do.
        help: One line for `autoft plugins`.
    """

    name: str
    modality: str | None
    detect: Callable[[Path], bool]
    load: Callable[[Path, Mapping[str, Any]], RawData]
    options: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    help: str = ""


# --- backbones ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """One freezable step of a backbone; stages are ordered from input to output.

    Attributes:
        name: A short name shown to people, such as `blocks.3`.
        parameters: Names of its parameters in the backbone's module. All stages together hold every parameter once.
    """

    name: str
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class FeatureMap:
    """One of the maps that a backbone of `maps` features gives.

    Attributes:
        channels: C of `(N, C, H / stride, W / stride)`.
        stride: Pixels of the input to a place of the map, in height and width.
    """

    channels: int
    stride: int


class Preprocessing(Protocol):
    """Turns a raw sample into what a backbone takes; declared as data, so that the bundle can repeat it exactly."""

    def fit(self, sources: Sequence[Any]) -> Preprocessing:
        """Return it adapted to some training samples, such as to texts' length; itself where nothing is to adapt."""

    def decode(self, source: Any, *, augmented: bool) -> Tensor:
        """Return one sample as a compact tensor of fixed shape, worth keeping in memory (images: uint8 `(C, H, W)`).

        Args:
            source: The sample's `source`.
            augmented: Whether `augment` will follow; it may then leave a margin to cut from.
        """

    def augment(self, item: Tensor, policy: str, rng: np.random.Generator) -> Tensor:
        """Return a random variant of a decoded training sample, of the shape that `decode(augmented=False)` gives.

        Args:
            item: A decoded sample, from `decode(augmented=True)`; not changed in place.
            policy: One of `policies`.
            rng: The only source of randomness, so that a trial can be repeated.
        """

    def inputs(self, batch: Any) -> tuple[Tensor, ...]:
        """Return the backbone's inputs for a batch of decoded samples, on the batch's device.

        Args:
            batch: A tensor with a row a sample; a `Ragged` where the preprocessing is ragged.
        """

    def to_dict(self) -> dict[str, Any]:
        """Return the whole declaration, JSON-ready; equal dictionaries mean equal preprocessing."""

    def files(self) -> dict[str, str]:
        """Return the declaration as the Hugging Face ecosystem's files, such as `preprocessor_config.json`: text by name."""

    @property
    def policies(self) -> tuple[str, ...]:
        """Augmentation policies, weakest first; the first is `none`."""

    @property
    def ragged(self) -> bool:
        """Whether decoded samples differ in their first axis; it is then a `RaggedPreprocessing`."""

    @property
    def runtime(self) -> Path:
        """The script that repeats it in a bundle without autoft, and answers; copied as `predict.py`.

        It holds a class `Bundle` with `load(folder)`, `outputs(sources)`, `vectors(sources)`, `answers(sources)` and
        `check()`, and `main()`.
        """


class RaggedPreprocessing(Preprocessing, Protocol):
    """Preprocessing of samples that differ in length, such as texts: decoded, each is `(T, ...)` with a T of its own."""

    def decode_many(self, sources: Sequence[Any]) -> tuple[Ragged, np.ndarray]:
        """Return many decoded samples, as `decode` gives them one by one; and which were too long and so cut, `(N,)`."""

    def count_parts(self, batch: Ragged) -> np.ndarray:
        """Return how many parts (words) of each decoded sample can have a target, `(N,)`; zeros where samples are whole."""

    def align(self, batch: Ragged, targets: Ragged) -> Tensor:
        """Return targets of parts (words) as one row a sample `(N, T)`, `IGNORED` where a position has none.

        Args:
            batch: Decoded samples.
            targets: For each sample, a number for each of its parts.
        """


class SpatialPreprocessing(Preprocessing, Protocol):
    """Preprocessing of images for tasks whose targets lie in the image, such as masks: it tells how places move."""

    def vary(self, item: Tensor, policy: str, rng: np.random.Generator) -> tuple[Tensor, tuple[Warp, ...]]:
        """Return what `augment` returns, and where its places come from: a warp for each change, the item's first."""

    @property
    def whole(self) -> bool:
        """Whether the inputs show all of each image, so that places in 0..1 are the same before and after."""


@dataclass(frozen=True)
class Backbone:
    """A pretrained model to be fine-tuned, resolved but not yet built.

    Attributes:
        name: Full name, `FAMILY/MODEL`.
        modality: `image`, `text`, ...
        weights: Where its weights come from: `pretrained`, `none`, or a path.
        features: The kind of features its module returns: `pooled` is `(N, C)`, `sequence` is `(N, T, C)`, `maps` is a
            tuple of tensors `(N, C, h, w)`, finest first, each with its own C, h and w.
        inputs: Names of the module's positional inputs, as they appear in the exported graph.
        preprocessing: How raw samples become inputs.
        build: Returns a new module with its weights loaded, sharing nothing with any other. Raises `BackboneError`.
        stages: Orders the module's parameters into stages, input to output.
        feature_size: C of the features that the module returns; for `maps` a `FeatureMap` for each.
        no_weight_decay: Names of parameters that must not be decayed, beyond norms and biases.
        licence: The weights' licence, where known; goes into the model card.
        citation: Where the weights come from, in words or as an identifier.
        config: What the bundle's `config.json` says of the architecture, in the Hugging Face ecosystem's words.
        image_size: For images, height and width of the input in pixels.
        request: What it was resolved from. The engine sets it, to resolve it again in other processes.
        fetch: Brings the weights to this machine where they are not, without building anything; raises `BackboneError` where
            they cannot be had. Called for the backbones of a preset, so that all that are missing are named together.
        examples: Makes so many raw samples' sources, all different, for the conformance kit, which has its own for images
            and texts.
    """

    name: str
    modality: str
    weights: str
    features: str
    inputs: tuple[str, ...]
    preprocessing: Preprocessing
    build: Callable[[], nn.Module]
    stages: Callable[[nn.Module], tuple[Stage, ...]]
    feature_size: Callable[[nn.Module], int | tuple[FeatureMap, ...]]
    no_weight_decay: Callable[[nn.Module], frozenset[str]] = lambda module: frozenset()
    licence: str | None = None
    citation: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    image_size: tuple[int, int] | None = None
    request: BackboneRequest | None = None
    fetch: Callable[[], object] = lambda: None
    examples: Callable[[int], Sequence[Any]] | None = None

    @property
    def public_name(self) -> str:
        """The name without the folders above a local model: they tell strangers about the machine, and may be moved."""
        family, _, model = self.name.partition("/")
        return f"{family}/{PurePath(model).name}" if PurePath(model).is_absolute() else self.name


@dataclass(frozen=True)
class BackboneRequest:
    """What a study asks of a backbone family.

    Attributes:
        model: The name after the family's, such as `resnet18`.
        weights: `pretrained` (hub or cache), `none` (random), or a path to a local file or folder.
        image_size: Side of the square input in pixels, or None to choose by the model and the data.
        typical_size: `RawData.typical_size`: lets a family avoid blowing small images up.
        features: The kind of features that the task needs. A family that has several gives this one; the engine refuses a
            backbone of another kind.
        max_length: For texts, the most tokens a sample may have, or None to choose by the data and the model.
    """

    model: str
    weights: str = "pretrained"
    image_size: int | None = None
    typical_size: int | None = None
    features: str = "pooled"
    max_length: int | None = None


@dataclass(frozen=True)
class BackboneFamily:
    """A source of backbones, such as timm.

    Attributes:
        name: The part before the slash in `timm/resnet18`.
        modality: What its backbones take; None where they differ.
        resolve: Turns a request into a backbone without loading weights. Raises `BackboneError` for unknown names.
        models: All model names, for nearest-name hints; may be slow.
        suggest: Good models for a modality of at most so many million parameters, best first; a study naming none gets the
            first.
        help: One line for `autoft plugins`.
        presets: Full names of the models for a modality, a preset (`fast`, `balanced`, `best`) and a task, best first; none
            where there is nothing to offer, or the preset is not known.
        runtimes: Scripts that run the bundles of its backbones, by the `kind` that their preprocessing declares, where that
            is not one of autoft's own kinds; `autoft predict`, `evaluate` and `verify` use them, never the bundle's copy.
    """

    name: str
    modality: str | None
    resolve: Callable[[BackboneRequest], Backbone]
    models: Callable[[], Sequence[str]]
    suggest: Callable[[str, float], Sequence[str]]
    help: str = ""
    presets: Callable[[str, str, str], Sequence[str]] = lambda modality, preset, task: ()
    runtimes: Mapping[str, Path] = field(default_factory=dict)


# --- strategies -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Adapted:
    """A backbone's module as a strategy trains it.

    Attributes:
        module: The module, changed in place or wrapped.
        stages: A partition of all its parameters; what a strategy adds belongs to the stage of the layer that it adapts.
        trained: Names of the parameters that may be trained; all others stay as they are.
    """

    module: nn.Module
    stages: tuple[Stage, ...]
    trained: frozenset[str]


@dataclass(frozen=True)
class Strategy:
    """A way to train the stages that are not frozen with few parameters, such as LoRA.

    Attributes:
        name: The word in `space.strategy` of a study.
        check: Returns why a backbone's built module cannot be trained so, or None where it can.
        apply: Adds what is trained, `(module, stages, depth, knobs) -> Adapted`; only in stages from `depth` on, so that the
            outputs of the stages before stay what they were. Drawn from torch's generator, which is seeded.
        merge: Returns the module that is scored and exported, from a trained one; may change what it is given. Where the
            strategy can be merged into the weights, it is a module with the backbone's own parameters.
        files: The adapter alone, as files by name; called before `merge`.
        knobs: Settings that it adds to the search; they have an effect on its trials alone.
        help: One line for `autoft plugins`.
    """

    name: str
    check: Callable[[Backbone, nn.Module], str | None]
    apply: Callable[[nn.Module, tuple[Stage, ...], int, Mapping[str, Any]], Adapted]
    merge: Callable[[nn.Module], nn.Module]
    files: Callable[[nn.Module], Mapping[str, bytes]]
    knobs: tuple[Knob, ...] = ()
    help: str = ""


# --- heads ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Targets:
    """What a head learned about the training targets.

    Attributes:
        labels: Names of the outputs, in their order: classes, tags, or the numbers to predict.
        counts: Training samples of each class, in the same order; empty where there are no classes.
        values: Numbers that answers need beside the names, such as `thresholds`, each a list; they travel in the bundle.
    """

    labels: tuple[str, ...]
    counts: tuple[int, ...] = ()
    values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def imbalance(self) -> float:
        """Size of the largest class over that of the smallest; 1 where all are equal, or there are none."""
        return max(self.counts) / max(1, min(self.counts)) if self.counts else 1.0


@dataclass(frozen=True)
class Head:
    """A task: its output module, loss, metrics and answers.

    Encoded targets, and outputs over a whole split, are a tensor with one row a sample. For tasks that answer for parts of
    a sample (tagged words) both are a `Ragged` with a row a part; samples cut short have outputs for their first parts only.

    Attributes:
        name: Such as `image-classification`.
        modality: Which data it is for, or None for any.
        features: The kind of features it needs; `pooled` is `(N, C)`, `sequence` is `(N, T, C)`, `maps` is a tuple of
            `(N, C, h, w)`.
        describe: Reads the training targets. Raises `DataError` where they cannot be learned.
        encode: Turns raw targets into a tensor with one row a sample. Raises `DataError` for a target it does not know.
        build: Makes the output module from what `Backbone.feature_size` gives; takes the knobs' values.
        loss: Mean loss of a batch, `(outputs, encoded targets, targets, knobs) -> scalar tensor`. With `sequence` features
            the outputs are `(N, T, K)`, and the encoded targets `(N, T)` with `IGNORED` where there is none; with `maps`
            the outputs are `(N, K, h, w)`.
        activation: Turns outputs into scores inside the exported graph (classification: softmax).
        metrics: `(outputs, encoded targets, targets) -> values by name`, over a whole split, never averaged by batch.
            A metric that the split does not define (AUROC with one class) is left out.
        directions: Whether each metric is to be maximized or minimized.
        default_metric: The metric that the search optimizes when the study names none.
        report: A finer account of a split, JSON-ready (classification: one entry a class).
        answer: What an answer is: one `label` of all, any number of `labels` by threshold, `values` (numbers), `entities`
            (spans of a text), or a `mask` (a label for each pixel). The bundle's script makes it from the scores.
        scores: Name of the graph's second output, which `activation` gives, or None where the outputs are the answer.
        stratify: Gives each raw target a class for dividing the data, so that every split gets its share of each; None
            where the data is divided without regard to its targets.
        tune: Sets what answers need and training does not give, such as thresholds, from outputs and encoded targets of the
            validation split; returns the targets with them. None where there is nothing.
        draw_weights: How often each training sample is to be drawn in proportion to the others, `(encoded targets, targets,
            knobs) -> weights (N,)`, or None for every sample once an epoch.
        move: For targets that lie in the image: `(encoded target of one sample, warp) -> target`, as a change moved its
            image (of masks, `autoft.augment.move_map`); it keeps its shape. The backbone's preprocessing must then be a
            `SpatialPreprocessing`, and there is no mixup or cutmix. None where targets stay what they are.
        divergence: How far two outputs for the same batch are apart, `(outputs, outputs, encoded targets, targets) ->
            scalar tensor`, symmetric, its mean over the batch; what R-Drop makes small. None: there is no R-Drop.
        knobs: Settings it adds to training and to the search.
        runtime: The script of its bundles where that of the backbone's preprocessing does not know its answers; or None.
        examples: Raw targets of three samples, for the conformance kit, where the kind of answer does not say what they are.
        references: For the conformance kit: of each metric a function of what `metrics` is given that computes it plainly.
            The kit has its own for autoft's metrics of labels, values and entities.
        help: One line for `autoft plugins`.
    """

    name: str
    modality: str | None
    features: str
    describe: Callable[[Sequence[Any]], Targets]
    encode: Callable[[Sequence[Any], Targets], Tensor | Ragged]
    build: Callable[[Any, Targets, Mapping[str, Any]], nn.Module]
    loss: Callable[[Tensor, Tensor, Targets, Mapping[str, Any]], Tensor]
    activation: Callable[[Tensor], Tensor]
    metrics: Callable[[Any, Any, Targets], dict[str, float]]
    directions: Mapping[str, Direction]
    default_metric: Callable[[Targets], str]
    report: Callable[[Any, Any, Targets], dict[str, Any]]
    answer: Answer = "label"
    scores: str | None = "probabilities"
    stratify: Callable[[Sequence[Any]], Sequence[str]] | None = None
    tune: Callable[[Any, Any, Targets], Targets] | None = None
    draw_weights: Callable[[Any, Targets, Mapping[str, Any]], np.ndarray | None] = lambda encoded, targets, knobs: None
    move: Callable[[Tensor, Warp], Tensor] | None = None
    divergence: Callable[[Tensor, Tensor, Tensor, Targets], Tensor] | None = None
    knobs: tuple[Knob, ...] = field(default=())
    runtime: Path | None = None
    examples: Callable[[], Sequence[Any]] | None = None
    references: Mapping[str, Callable[[Any, Any, Targets], float]] = field(default_factory=dict)
    help: str = ""


# --- loggers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoggedSearch:
    """The search that a logger follows.

    Attributes:
        name: Of the study.
        id: Of the run folder: the same in all its sessions, and no other's.
        run: The run folder.
        metric: What is optimized.
        direction: Whether that is to be maximized or minimized.
        study: All settings, as a study file has them.
        options: What the study says for this logger.
        state: What the logger wants to know again when the search goes on, such as ids of its runs, JSON-ready; whatever it
            puts here is kept in the run folder after each event.
    """

    name: str
    id: str
    run: Path
    metric: str
    direction: Direction
    study: Mapping[str, Any]
    options: Mapping[str, str | int | float | bool]
    state: dict[str, Any]


class Log(Protocol):
    """What a logger has open for one search; called by one thread of its own, which may wait without holding up trials."""

    def hear(self, event: Event) -> None:
        """Take note of an event.

        The events come in their order, also those of earlier sessions that this logger has not heard. `trial` may come again
        for a trial that goes on; an epoch and an end come once, but for one that was told just before a kill.
        """

    def close(self) -> None:
        """Write what is still to be written; the search is over or interrupted."""


@dataclass(frozen=True)
class Logger:
    """Something that follows a search's trials, such as a tracking server.

    Attributes:
        name: The word in `logging` of a study.
        check: Returns why it cannot be used with some options, and what to do about it (such as `pip install ...`), or None
            where it can. Called before the search; imports little, and reaches no server.
        open: Begins to follow a search, or goes on. Whatever it raises, and whatever `Log.hear` raises, ends the logging of
            this session with a warning, never the search.
        options: What a study may set for it: by name, one line of help.
        help: One line for `autoft plugins`.
    """

    name: str
    check: Callable[[Mapping[str, str | int | float | bool]], str | None]
    open: Callable[[LoggedSearch], Log]
    options: Mapping[str, str] = field(default_factory=dict)
    help: str = ""


def is_better(direction: Direction, value: float, than: float | None) -> bool:
    """Return whether a metric's value beats another; anything beats None, ties do not win."""
    if than is None:
        return True
    return value > than if direction == "maximize" else value < than
