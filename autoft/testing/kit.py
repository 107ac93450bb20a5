"""What the conformance checks share: the verdict, generated samples as a backbone's inputs, and a little training."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from autoft.errors import AutoftError
from autoft.specs import Backbone, Head, RaggedPreprocessing, Sample

if TYPE_CHECKING:
    from torch import Tensor, nn

    from autoft.model import FineTuneModel

TOLERANCE = 1e-3  # largest difference of any output between torch and ONNX Runtime: the gate's own default
CLASSES = ("a", "b", "c")
STEPS = 2
# of the generated texts: neighbours differ much, the first is the shortest that can be, and the longest comes late, so that
# few texts are short and many are of several lengths
LONG = 1500  # words: more tokens than autoft lets any model have unless a study says so
WORDS = (1, 9, 4, 23, 2, 6, 40, 3, 15, 5, 30)


class CheckFailed(AutoftError):  # noqa: N818 - a verdict on a plugin, not an error of autoft
    """A backbone or head breaks a rule of the contract; the message says which, and by what."""


class CheckWarning(AutoftError):  # noqa: N818 - a verdict on a plugin, not an error of autoft
    """A plugin breaks no rule, but its author should know something."""


# --- samples ----------------------------------------------------------------------------------------


def make_sources(backbone: Backbone, count: int) -> list[Any]:
    """Generate samples as a backbone's preprocessing takes them.

    The backbone's own `examples`, where it has some. Images of three classes. For `pooled` features of texts, every third is
    a pair of texts; for `sequence` features, each is a list of words.
    """
    from autoft.testing.toy import paint_png

    if backbone.examples is not None:
        return list(backbone.examples(count))
    if backbone.modality == "image":
        size = max(backbone.image_size or (32, 32)) + 3  # not the input's own size: decoding must resize
        return [paint_png(number % 3, 3, seed=(number,), size=size) for number in range(count)]
    if backbone.modality != "text":
        raise CheckFailed(
            f"the kit can make samples for image and text backbones, but {backbone.name} takes {backbone.modality}",
            "give the backbone `examples`",
        )
    texts = [write_text(WORDS[number % len(WORDS)], seed=number) for number in range(count)]
    if backbone.features == "sequence":
        return [text.split() for text in texts]
    return [(text, write_text(4, seed=-number)) if number % 3 == 2 else text for number, text in enumerate(texts)]


def write_text(words: int, *, seed: int) -> str:
    """Return a text of so many words; a longer one of the same seed begins alike."""
    from autoft.testing.toy_text import FILLERS, TOPICS

    rng = random.Random(seed)
    known = [*FILLERS, *(word for topic in TOPICS for word in topic)]
    return " ".join(rng.choice(known) for _ in range(words))


def fit_ragged(backbone: Backbone, sources: Sequence[Any]) -> RaggedPreprocessing:
    """Return a text backbone's preprocessing, adapted to some sources.

    Raises:
        CheckFailed: It is not for samples of different lengths.
    """
    fitted = backbone.preprocessing.fit(sources)
    if not fitted.ragged:
        raise CheckFailed(
            f"{backbone.name}: the preprocessing of texts must be ragged, but is not",
            "declare an `autoft.text.TextPreprocessing`",
        )
    return cast(RaggedPreprocessing, fitted)


def make_inputs(backbone: Backbone, count: int) -> tuple[Tensor, ...]:
    """Make a backbone's inputs for generated samples, through its own preprocessing; texts are padded to the longest.

    Raises:
        CheckFailed: They are not those that the backbone names, or have not a row a sample.
    """
    import torch

    sources = make_sources(backbone, count)
    if backbone.modality == "text":
        ragged = fit_ragged(backbone, make_sources(backbone, len(WORDS)))
        inputs = ragged.inputs(ragged.decode_many(sources)[0])
    else:
        fitted = backbone.preprocessing.fit(sources)
        inputs = fitted.inputs(torch.stack([fitted.decode(source, augmented=False) for source in sources]))
    if len(inputs) != len(backbone.inputs):
        raise CheckFailed(f"{backbone.name} names {len(backbone.inputs)} inputs, but its preprocessing gives {len(inputs)}")
    for name, item in zip(backbone.inputs, inputs, strict=True):
        if len(item) != count:
            raise CheckFailed(f"{backbone.name}: {name} of {count} samples must have {count} rows, but has {len(item)}")
    return inputs


def make_longest(backbone: Backbone) -> tuple[Tensor, ...]:
    """Make the inputs of a text backbone for one text as long as its preprocessing lets through at all."""
    text = write_text(LONG, seed=0)
    source = text.split() if backbone.features == "sequence" else text
    fitted = fit_ragged(backbone, [source])
    return fitted.inputs(fitted.decode_many([source])[0])


def make_targets(head: Head) -> list[Any]:
    """Return raw targets of three samples: the head's own examples, or those of the kind that its answers need."""
    if head.examples is not None:
        return list(head.examples())
    targets: dict[str, list[Any]] = {
        "label": list(CLASSES),
        "labels": [(CLASSES[0],), CLASSES[:2], CLASSES[2:]],
        "values": [(0.0,), (1.0,), (2.5,)],
        "entities": [("B-a", "I-a", "O"), ("O",), ("B-b", "O")],
    }
    if head.answer not in targets:
        raise CheckFailed(
            f"the kit cannot make targets of {head.name}, whose answer is {head.answer}", "give the head `examples`"
        )
    return targets[head.answer]


def make_raw(backbone: Backbone, head: Head, count: int) -> list[Sample]:
    """Generate samples for a backbone with targets for a head; each class comes with images of its own."""
    sources, targets = make_sources(backbone, count), make_targets(head)
    samples = []
    for number, source in enumerate(sources):
        target = targets[number % len(targets)]
        if head.answer == "entities":  # a tag for each word
            target = tuple(target[place % len(target)] for place in range(len(source)))
        samples.append(Sample(str(number), source, target, content=str(number)))
    return samples


# --- models -----------------------------------------------------------------------------------------


def with_linear(backbone: Backbone, module: nn.Module) -> FineTuneModel:
    """Put a linear layer on top of a built backbone; of `maps`, on the means of all of them."""
    import torch
    from torch import nn

    from autoft.model import FineTuneModel

    class Means(nn.Module):
        def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
            return torch.cat([item.mean(dim=(2, 3)) for item in maps], dim=1)

    size = backbone.feature_size(module)
    if not isinstance(size, tuple):
        return FineTuneModel(module, nn.Linear(size, len(CLASSES)), backbone.stages(module))
    linear = nn.Linear(sum(each.channels for each in size), len(CLASSES))
    return FineTuneModel(module, nn.Sequential(Means(), linear), backbone.stages(module))


def feature_tensors(features: Any) -> list[Tensor]:
    """Return features as a list of tensors: each of the `maps`, or the only one."""
    return list(features) if isinstance(features, tuple) else [features]


def train(model: FineTuneModel, inputs: tuple[Tensor, ...]) -> list[str]:
    """Take a few optimizer steps in training mode; return the backbone's trainable parameters that got no gradient."""
    import torch
    from torch.nn import functional as F

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.1)
    model.train()
    for _ in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        outputs = model(*inputs)
        # of answers for places, the places are rows as those of texts are
        outputs = outputs.movedim(1, -1).flatten(0, -2) if outputs.dim() == 4 else outputs.flatten(0, -2)
        wanted = torch.arange(len(outputs)) % outputs.shape[-1]
        F.cross_entropy(outputs, wanted).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    without = [name for name, p in model.backbone.named_parameters() if p.requires_grad and p.grad is None]
    optimizer.zero_grad(set_to_none=True)
    return without


def state_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers, also buffers that are not saved: they change the outputs all the same."""
    for name, parameter in module.named_parameters(remove_duplicate=False):
        yield name, parameter.detach()
    yield from module.named_buffers(remove_duplicate=False)


# --- comparing --------------------------------------------------------------------------------------


def identical(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors hold the same bits; equal NaNs count as equal, 0.0 and -0.0 do not."""
    import torch

    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    flat = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(*flat)


def distance(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference, in units of the largest value where that is above 1; infinite for other shapes.

    Of whole numbers, such as classes, it is the share that differs.
    """
    if found.shape != wanted.shape:
        return float("inf")
    if not found.is_floating_point():
        return float((found != wanted).double().mean())
    return float((found - wanted).abs().max()) / max(1.0, float(wanted.abs().max()))


def real_rows(outputs: Tensor, backbone: Backbone, inputs: Sequence[Tensor]) -> Tensor:
    """Return outputs `(N, T, K)` without the positions that only pad, `(M, K)`; others as they are."""
    if outputs.dim() < 3 or "attention_mask" not in backbone.inputs:
        return outputs
    return outputs[inputs[backbone.inputs.index("attention_mask")].bool()]
