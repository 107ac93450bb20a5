"""Things that break one promise each: for every check of the kit, a toy that only this check needs to catch."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoft.images import ImagePreprocessing
from autoft.plugin_record import PluginInfo
from autoft.ragged import Ragged
from autoft.specs import Adapted, Backbone, BackboneRequest, Knob, Range, RawData, Sample, Targets
from autoft.tasks import classification, tagging
from autoft.testing import toy
from autoft.testing.bound import BoundCheck
from autoft.testing.suite import checks_for, of_plugin
from autoft.text import TextPreprocessing

HEAD = classification.head("image-classification", "image", "")
IMAGE: Backbone = toy.resolve(BackboneRequest("convnet", "none"))
TEXT: Backbone = toy.resolve(BackboneRequest("text", "none"))
WORDS: Backbone = toy.resolve(BackboneRequest("text", "none", features="sequence"))
FAMILY = toy.autoft_backbones()[0]
FORMAT = toy.autoft_data()[0]
(STRATEGY,) = toy.autoft_strategies()


@dataclass(frozen=True)
class Broken:
    """A thing that breaks a promise.

    Attributes:
        of: What kind of thing it is.
        check: The check that must catch it.
        how: What is wrong with it, in a line.
        checks: Gives all checks of the thing.
    """

    of: str
    check: str
    how: str
    checks: Callable[[], list[BoundCheck]]


# --- backbones --------------------------------------------------------------------------------------


def built(backbone: Backbone, mend: Callable[[Any], object]) -> Backbone:
    """Return a backbone whose module is altered after it was built."""

    def build() -> nn.Module:
        module = backbone.build()
        mend(module)
        return module

    return replace(backbone, build=build)


def forwarding(backbone: Backbone, change: Callable[..., Tensor]) -> Backbone:
    """Return a backbone whose forward is changed by a function of its module, the real forward, and the inputs."""

    def mend(module: Any) -> None:
        real = module.forward
        module.forward = lambda *inputs: change(module, real, *inputs)

    return built(backbone, mend)


def reading(backbone: Backbone, kind: Any) -> Backbone:
    """Return a backbone that reads samples by a kind of preprocessing."""
    own = TextPreprocessing if backbone.modality == "text" else ImagePreprocessing
    given = {field.name: getattr(backbone.preprocessing, field.name) for field in fields(own)}
    return replace(backbone, preprocessing=kind(**given))


class AlwaysTraining(nn.BatchNorm2d):
    """Updates its statistics in evaluation too."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalize by the batch."""
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, training=True)


class Silent(TextPreprocessing):
    """Does not tell which texts it cut."""

    def decode_many(self, sources: Sequence[Any]) -> tuple[Ragged, np.ndarray]:
        """Decode."""
        return super().decode_many(sources)[0], np.zeros(len(sources), bool)


class TwoWays(TextPreprocessing):
    """Decodes a text alone otherwise than among others."""

    def decode(self, source: Any, *, augmented: bool) -> Tensor:
        """Decode."""
        return super().decode(source, augmented=augmented)[:1]


class Miscounting(TextPreprocessing):
    """Counts a word too few in each text."""

    def count_parts(self, batch: Ragged) -> np.ndarray:
        """Count."""
        return super().count_parts(batch) - 1


class Brighter(ImagePreprocessing):
    """Does more than it declares."""

    def inputs(self, batch: Tensor) -> tuple[Tensor, ...]:
        """Normalize."""
        return (super().inputs(batch)[0] * 1.01,)


class Unseeded(ImagePreprocessing):
    """Draws random numbers of its own."""

    def augment(self, item: Tensor, policy: str, rng: np.random.Generator) -> Tensor:
        """Augment."""
        return torch.randint(0, 255, (3, *self.size), dtype=torch.uint8)


def local() -> Any:
    """Return a class that no other process can find."""

    class Local(ImagePreprocessing):
        pass

    return Local


def ask(module: Any) -> None:
    """Look for a newer version of the model, and go on without."""
    try:
        socket.getaddrinfo("models.invalid", 443)
    except OSError:
        return


def count_steps(module: Any, real: Any, pixels: Tensor) -> Tensor:
    """Scale features by how often the module was trained."""
    if module.training:
        module.steps += 1
    return real(pixels) * (1 + 0.1 * module.steps)


def bake(module: Any, real: Any, pixels: Tensor) -> Tensor:
    """Add a constant of the batch's size."""
    return real(pixels) + torch.from_numpy(np.zeros((int(pixels.shape[0]), 16), np.float32))


ONE_MODULE = IMAGE.build()
STRANGE = random.Random()


def backbones() -> list[Broken]:
    """Return a broken backbone for each check of backbones."""
    words = tagging.head("tagging", "text", "")

    def one(check: str, how: str, backbone: Backbone, head: Any = HEAD) -> Broken:
        return Broken("backbone", check, how, lambda: checks_for(backbone, head=head))

    plain = classification.head("text-classification", "text", "")
    return [
        one(
            "stages-partition", "`stages` leaves the stem out", replace(IMAGE, stages=lambda module: toy.stages(module)[1:])
        ),
        one(
            "frozen-stages-do-not-change",
            "a BatchNorm updates its statistics in evaluation too",
            built(IMAGE, lambda module: setattr(module.stem, "norm", AlwaysTraining(8))),
        ),
        one("builds-share-nothing", "`build` returns the same module each time", replace(IMAGE, build=lambda: ONE_MODULE)),
        one("feature-shape", "`feature_size` is another", replace(IMAGE, feature_size=lambda module: 24)),
        one(
            "batch-order",
            "a sample's place in the batch is added",
            forwarding(IMAGE, lambda module, real, pixels: real(pixels) + torch.arange(len(pixels))[:, None]),
        ),
        one(
            "padding",
            "attention sees the padding",
            forwarding(TEXT, lambda module, real, ids, mask, kinds: real(ids, torch.ones_like(mask), kinds)),
            plain,
        ),
        one("truncation", "does not tell which texts were cut", reading(TEXT, Silent), plain),
        one("decoding", "decodes a text alone otherwise than among others", reading(TEXT, TwoWays), plain),
        one("bundle-inputs", "`inputs` does more than `to_dict` declares", reading(IMAGE, Brighter)),
        one(
            "words",
            "counts a word too few in each text",
            reading(WORDS, Miscounting),
            words,
        ),
        one("augmentation", "draws random numbers of its own", reading(IMAGE, Unseeded)),
        one("no-network", "looks for a newer version, and hides that it fails", built(IMAGE, ask)),
        one("worker", "the preprocessing's class is local to a function", reading(IMAGE, local())),
        one("learns", "features hold nothing of the image", forwarding(IMAGE, lambda module, real, x: real(x) * 0 + 1e-4)),
        one(
            "repeats",
            "noise that no seed reaches",
            forwarding(IMAGE, lambda module, real, x: real(x) * (1 + 0.1 * STRANGE.random() * module.training)),
        ),
        one(
            "continues",
            "counts its steps where no state is saved",
            forwarding(built(IMAGE, lambda module: setattr(module, "steps", 0.0)), count_steps),
        ),
        one(
            "cuts",
            "`stages` lists them from output to input",
            replace(IMAGE, stages=lambda module: toy.stages(module)[::-1]),
        ),
        one("export-parity", "a constant of the batch's size is added in `forward`", forwarding(IMAGE, bake)),
    ]


# --- heads, data, families, strategies, plugins -----------------------------------------------------


def heads() -> list[Broken]:
    """Return a broken head for each check of heads alone; the others are those of backbones."""

    def one(check: str, how: str, **changes: Any) -> Broken:
        return Broken("head", check, how, lambda: checks_for(replace(HEAD, **changes)))

    def by_appearance(targets: Sequence[str]) -> Targets:
        return Targets(tuple(dict.fromkeys(targets)), (8, 8, 8))

    def constant(outputs: Tensor, encoded: Tensor, targets: Targets) -> dict[str, float]:
        return {**HEAD.metrics(outputs, encoded, targets), "accuracy": 0.99}

    taken = Knob("learning_rate", 0.1, None, "", Range(0.0, 1.0))
    return [
        one("targets", "labels are in the order of appearance", describe=by_appearance),
        one(
            "loss", "the loss is a sum over the batch", loss=lambda outputs, *rest: HEAD.loss(outputs, *rest) * len(outputs)
        ),
        one("metrics", "accuracy is 0.99, whatever the outputs", metrics=constant),
        one("report", "the report holds NaN", report=lambda *_: {"f1": float("nan")}),
        one("knobs", "a knob has the name of a setting", knobs=(*HEAD.knobs, taken)),
    ]


def formats(folder: Path) -> list[Broken]:
    """Return a broken data format for each check of formats."""
    example = folder / "some.stripes.json"
    example.write_text('{"classes": 3, "per_class": 4}', encoding="utf-8")

    def one(check: str, how: str, **changes: Any) -> Broken:
        return Broken("data format", check, how, lambda: checks_for(replace(FORMAT, **changes), example=example))

    def changed(change: Callable[[RawData], RawData]) -> Callable[[Path, Mapping[str, Any]], RawData]:
        return lambda path, options: change(FORMAT.load(path, options))

    def first(raw: RawData, **changes: Any) -> RawData:
        sample: Sample = replace(raw.samples[0], **changes)
        return replace(raw, samples=(sample, *raw.samples[1:]))

    def hasty(path: Path, options: Mapping[str, Any]) -> RawData:
        path.read_text(encoding="utf-8").splitlines()[0]
        return FORMAT.load(path, options)

    return [
        one("detect", "claims any file", detect=lambda path: path.is_file()),
        one("samples", "two samples have one id", load=changed(lambda raw: first(raw, id=raw.samples[1].id))),
        one(
            "loads-again",
            "the fingerprint is drawn at random",
            load=changed(lambda raw: replace(raw, fingerprint=str(STRANGE.random()))),
        ),
        one("travels", "a sample's source is a function", load=changed(lambda raw: first(raw, source=lambda: None))),
        one("bad-data", "takes the first line of a file for granted", load=hasty),
    ]


def families() -> list[Broken]:
    """Return a broken family for each check of families."""

    def lookup(request: BackboneRequest) -> Backbone:
        return {"mlp": IMAGE}[request.model]

    unlimited = replace(FAMILY, suggest=lambda modality, limit: ("toy/mlp",))
    return [
        Broken("family", "names", "suggests whatever the limit is", lambda: checks_for(unlimited)),
        Broken("family", "unknown-model", "looks models up in a dict", lambda: checks_for(replace(FAMILY, resolve=lookup))),
    ]


def strategies() -> list[Broken]:
    """Return a broken strategy for each check of strategies."""

    def everywhere(module: nn.Module, stages: Any, depth: int, knobs: Mapping[str, Any]) -> Adapted:
        return STRATEGY.apply(module, stages, 0, knobs)

    def forget(module: Any) -> nn.Module:
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name.endswith(".scale"):
                    parameter.fill_(1.0)
        return STRATEGY.merge(module)

    def stiffen(module: Any) -> nn.Module:
        merged: Any = STRATEGY.merge(module)
        real = merged.forward
        merged.forward = lambda pixels: bake(merged, real, pixels)
        return merged  # type: ignore[no-any-return]

    def counting(module: nn.Module, stages: Any, depth: int, knobs: Mapping[str, Any]) -> Adapted:
        found = STRATEGY.apply(module, stages, depth, knobs)
        inner: Any = found.module
        inner.steps, real = 0.0, inner.forward
        inner.forward = lambda pixels: count_steps(inner, real, pixels)
        return found

    def one(check: str, how: str, **changes: Any) -> Broken:
        strategy = replace(STRATEGY, **changes)
        check = f"{strategy.name}: {check}"
        return Broken("strategy", check, how, lambda: checks_for(IMAGE, head=HEAD, strategies=[strategy]))

    return [
        one("trains-what-it-says", "adapts frozen stages too", apply=everywhere),
        one("merged-equals-trained", "merging forgets what was trained", merge=forget),
        one("merged-exports", "the merged module has a constant of the batch's size", merge=stiffen),
        one("goes-on-from-a-state", "counts its steps where no state is saved", apply=counting),
    ]


def plugins(folder: Path) -> list[Broken]:
    """Return a broken plugin for each check of plugins; their modules are written into a folder on the module path."""
    (folder / "autoft_conformance_slow.py").write_text("import time\n\nimport torch\n\ntime.sleep(1)\n", encoding="utf-8")
    torn = PluginInfo("torn", "autoft_conformance_gone", "autoft-torn", "1.0", "broken", "it implements no hook")
    slow = PluginInfo("slow", "autoft_conformance_slow", "autoft-slow", "1.0", "ok")
    return [
        Broken("plugin", "loads", "has no hook", lambda: of_plugin(torn)),
        Broken("plugin", "imports-fast", "imports torch at the top of its module", lambda: of_plugin(slow)),
    ]


def all_broken(folder: Path) -> list[Broken]:
    """Return a broken thing for every check; files that they need are written into a folder."""
    return [*backbones(), *heads(), *formats(folder), *families(), *strategies(), *plugins(folder)]
