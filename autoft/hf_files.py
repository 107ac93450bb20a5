"""What the files of a transformers model say: its configuration, tokenizer, pooling and image processor."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from autoft.errors import BackboneError, first_line, nearest
from autoft.hub import Source
from autoft.images import ImagePreprocessing
from autoft.runtime.image_classification import INTERPOLATIONS

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
UNSAFE = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")
CONVERT = (
    "convert the weights once: `transformers.AutoModel.from_pretrained(MODEL).save_pretrained(FOLDER)`, then copy the "
    "tokenizer's files there and name the folder"
)
# what a tokenizer without tokenizer.json is made of
VOCABULARIES = (
    *("vocab.txt", "vocab.json", "merges.txt", "spiece.model", "spm.model", "sentencepiece.bpe.model", "tokenizer.model"),
)
TOKENIZER_EXTRAS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
UNLIMITED = 1_000_000  # transformers writes 1e30 where a tokenizer knows of no limit


# --- configuration and weights ------------------------------------------------------------------------


# Above any model there is: building what asks for more would fill memory or never end, before its weights are looked at.
MOST = {
    "num_hidden_layers": 1000,
    "num_layers": 1000,
    "num_attention_heads": 10_000,
    "hidden_size": 1_000_000,
    "intermediate_size": 10_000_000,
    "vocab_size": 10_000_000,
    "image_size": 100_000,
}


def read_json(file: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        BackboneError: It cannot be read.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # the last for what nests too deep
        raise BackboneError(
            f"{file} is not readable JSON: {first_line(error)}", "save or download the model again"
        ) from error


def read_config(source: Source) -> dict[str, Any]:
    """Return the content of a model's `config.json`, of a type that transformers itself knows.

    Raises:
        BackboneError: There is none, the type is unknown or needs code of the model's own, or the weights are quantized.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    file = source.find("config.json")
    if file is None:
        if source.find("adapter_config.json", optional=True):
            raise BackboneError(
                f"{source.name} holds an adapter, not a model", "merge it into its model first (peft's `merge_and_unload`)"
            )
        raise BackboneError(f"{source.name} has no config.json", "name a model as `save_pretrained` writes it")
    content = read_json(file)
    kind = content.get("model_type") if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        if isinstance(content, dict) and "auto_map" in content:
            raise BackboneError(
                f"{source.name} needs code of its own (model_type {kind!r}), which autoft never runs",
                "choose a model whose code is part of transformers",
            )
        near = nearest(kind, CONFIG_MAPPING) if isinstance(kind, str) else []
        hint = f"did you mean {', '.join(near)}?" if near else "a newer transformers may know it"
        raise BackboneError(f"`model_type` in {file} must be one that transformers knows, but is {kind!r}", hint)
    for name, most in MOST.items():
        value = content.get(name)
        if isinstance(value, int) and value > most:
            raise BackboneError(
                f"`{name}` in {file} must be at most {most}, but is {value}",
                "no known model is so large; get its files again",
            )
    if "quantization_config" in content:
        raise BackboneError(f"the weights of {source.name} are quantized, and cannot be trained", "name the original model")
    return {key: value for key, value in content.items() if key != "auto_map"}


def find_weights(source: Source) -> tuple[Path, ...]:
    """Return a model's safetensors files.

    Raises:
        BackboneError: There are none, or some of several are missing.
    """
    first = source.find(WEIGHTS, INDEX)
    if first is None:
        unsafe = source.find(*UNSAFE, optional=True)
        if unsafe is not None:
            raise BackboneError(
                f"weights must be safetensors, but {source.name} has only {unsafe.name}, which could run code when read",
                CONVERT,
            )
        raise BackboneError(
            f"{source.name} has neither {WEIGHTS} nor {INDEX}",
            "give `weights: PATH`, or `weights: none` to train from scratch",
        )
    if first.name == WEIGHTS:
        return (first,)
    names = sorted(set(read_json(first).get("weight_map", {}).values()))
    shards = [source.find(name) for name in names]
    missing = [name for name, shard in zip(names, shards, strict=True) if shard is None]
    if missing or not names:
        raise BackboneError(f"{source.name} lacks {missing[0] if missing else 'the files'} that its {INDEX} lists")
    return tuple(shard for shard in shards if shard is not None)


def read_licence(source: Source) -> str | None:
    """Return the licence that a model's card declares, if any."""
    card = source.find("README.md", optional=True)
    if card is None:
        return None
    matter = re.match(r"---\s*\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        declared = yaml.safe_load(matter[1]) if matter else None
    except yaml.YAMLError:  # a card is written by people; a damaged one declares nothing
        return None
    licence = declared.get("license") if isinstance(declared, dict) else None
    return licence if isinstance(licence, str) else None


# --- tokenizers ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer, as `autoft.text.TextPreprocessing` takes it.

    Attributes:
        content: Of a `tokenizer.json`.
        special: Names of the special tokens, for `tokenizer_config.json`.
        pad_id: What fills shorter rows.
        limit: The most tokens that it says the model takes, or None.
    """

    content: str
    special: Mapping[str, str]
    pad_id: int
    limit: int | None


def read_tokenizer(source: Source, *, words: bool, vocabulary: int) -> Tokenizer:
    """Return a model's fast tokenizer.

    A `tokenizer.json` is taken as it stands. Without one, transformers makes it of the older vocabulary files.

    Args:
        source: The model's files.
        words: Whether texts will come as words: byte-level tokenizers then begin each of them with a space.
        vocabulary: How many tokens the model knows.

    Raises:
        BackboneError: There is none, it has no fast form, or it is of a model with more tokens.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    file = source.find("tokenizer.json")
    for name in TOKENIZER_EXTRAS:
        source.find(name, optional=True)
    if file is None:
        found = [source.find(name, optional=True) for name in VOCABULARIES]
        file = next((each for each in found if each is not None), None)
    if file is None:
        raise BackboneError(f"{source.name} has no tokenizer.json", "save the model's tokenizer beside it")
    loader = PreTrainedTokenizerFast if file.name == "tokenizer.json" else AutoTokenizer
    try:
        with quiet():
            tokenizer: Any = loader.from_pretrained(file.parent, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises plain exceptions
        raise BackboneError(
            f"the tokenizer of {source.name} cannot be read: {first_line(error)}", "save it again with `save_pretrained`"
        ) from error
    if not tokenizer.is_fast:
        raise BackboneError(
            f"the tokenizer of {source.name} has no fast form, which bundles need",
            "choose a model with a tokenizer.json",
        )
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    largest = max(tokenizer.backend_tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if largest >= vocabulary:
        raise BackboneError(
            f"the tokenizer of {source.name} has tokens up to number {largest}, but the model knows {vocabulary}",
            "tokenizer and model do not belong together",
        )
    if words:
        _begin_words_with_space(content)
    special = {name: str(getattr(tokenizer, name)) for name in SPECIAL_TOKENS if getattr(tokenizer, name) is not None}
    # decoders have no padding: what fills a row is masked, and any token will do
    pad = next((name for name in ("pad_token", "eos_token", "unk_token") if name in special), None)
    pad_id = tokenizer.convert_tokens_to_ids(special[pad]) if pad is not None else 0
    if pad is not None:
        special["pad_token"] = special[pad]
    limit = tokenizer.model_max_length
    return Tokenizer(json.dumps(content), special, int(pad_id or 0), int(limit) if limit and limit < UNLIMITED else None)


def _begin_words_with_space(content: dict[str, Any]) -> None:
    """Let a byte-level tokenizer see words as they are inside a text, with a space before them.

    Other kinds mark the beginning of each word by themselves. A normalizer does it for all byte-level ones; the option
    `add_prefix_space` of their pre-tokenizer would put a space before each part of a word where another cuts words first.
    """
    step = content.get("pre_tokenizer") or {}
    steps = step.get("pretokenizers", [step])
    if not any(each.get("type") == "ByteLevel" and not each.get("add_prefix_space") for each in steps):
        return
    before = content.get("normalizer")
    normalizers = [] if before is None else before["normalizers"] if before["type"] == "Sequence" else [before]
    content["normalizer"] = {"type": "Sequence", "normalizers": [*normalizers, {"type": "Prepend", "prepend": " "}]}


# --- sentence-transformers ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Dense:
    """A dense layer that sentence-transformers puts behind the pooling.

    Attributes:
        size: Width of its output.
        bias: Whether it adds a bias.
        activation: One of `ACTIVATIONS`.
        folder: Where its weights lie.
    """

    size: int
    bias: bool
    activation: str
    folder: Source


@dataclass(frozen=True)
class SentenceModel:
    """What `modules.json` of sentence-transformers says.

    Attributes:
        transformer: The folder of the model proper, relative to the root; often empty.
        poolings: Some of `POOLINGS`.
        dense: What follows after them.
        limit: The tokens that it was meant for, or None.
    """

    transformer: str
    poolings: tuple[str, ...]
    dense: tuple[Dense, ...]
    limit: int | None


ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid")  # of dense layers
POOLINGS = ("cls", "max", "mean", "mean_sqrt_len", "lasttoken")  # of tokens, in the order in which they are joined
_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def read_sentence_model(source: Source) -> SentenceModel | None:
    """Return what a model's `modules.json` says, or None where it has none.

    `Normalize` is left out: scaling all features to length one takes something from a head that is trained on them, and
    similarities by angle are the same without.

    Raises:
        BackboneError: It has a module, or a pooling, that autoft does not know.
    """
    file = source.find("modules.json", optional=True)
    if file is None:
        return None
    transformer, limit = "", None
    poolings: tuple[str, ...] = ()
    dense: list[Dense] = []
    for module in read_json(file):
        kind, path = str(module.get("type", "")).rpartition(".")[2], str(module.get("path", ""))
        if kind == "Transformer":
            transformer = path
            settings = source.below(path).find("sentence_bert_config.json", optional=True)
            limit = read_json(settings).get("max_seq_length") if settings is not None else None
        elif kind == "Pooling":
            settings = _required(source, path, "config.json")
            poolings = _poolings(read_json(settings))
            unknown = [name for name in poolings if name not in POOLINGS]
            if unknown or not poolings:
                known = ", ".join(POOLINGS)
                raise BackboneError(
                    f"pooling must be some of {known}, but {settings} asks for {unknown[0] if unknown else 'none'}",
                    "choose another model",
                )
        elif kind == "Dense":
            dense.append(_dense(source, path))
        elif kind not in ("Normalize", "Dropout"):
            raise BackboneError(
                f"modules of {source.name} must be Transformer, Pooling, Dense, Normalize or Dropout, but one is {kind!r}",
                "choose another model, or name a copy of it without modules.json",
            )
    return SentenceModel(transformer, poolings, tuple(dense), limit if isinstance(limit, int) else None)


def _dense(source: Source, path: str) -> Dense:
    file = _required(source, path, "config.json")
    settings = read_json(file)
    activation = str(settings.get("activation_function", "Tanh")).rpartition(".")[2]
    size = settings.get("out_features")
    if activation not in ACTIVATIONS or not isinstance(size, int):
        raise BackboneError(
            f"a dense layer must have out_features and one of {', '.join(ACTIVATIONS)}, but {file} has {size}, {activation}",
            "choose another model",
        )
    return Dense(size, bool(settings.get("bias", True)), activation, source.below(path))


def _poolings(settings: Mapping[str, Any]) -> tuple[str, ...]:
    named = settings.get("pooling_mode")  # newer files name the modes
    if named is not None:
        return tuple([named] if isinstance(named, str) else named)
    return tuple(name for key, name in _MODES.items() if settings.get(key))


def _required(source: Source, folder: str, name: str) -> Path:
    found = source.below(folder).find(name)
    if found is None:
        raise BackboneError(f"{source.name} lacks {folder}/{name}, which its modules.json needs", "download the model again")
    return found


# --- images -------------------------------------------------------------------------------------------


def read_image_processor(source: Source) -> Any:
    """Return a model's image processor.

    Raises:
        BackboneError: There is none, or transformers cannot make it.
    """
    from transformers import AutoImageProcessor

    file = source.find("preprocessor_config.json")
    if file is None:
        raise BackboneError(f"{source.name} has no preprocessor_config.json", "save the model's image processor beside it")
    try:
        with quiet():
            return AutoImageProcessor.from_pretrained(file.parent, local_files_only=True, trust_remote_code=False)
    except (ValueError, TypeError, KeyError, OSError, ImportError, AttributeError) as error:
        raise BackboneError(f"the image processor of {source.name} cannot be made: {first_line(error)}") from error


def image_preprocessing(processor: Any, size: int | None) -> ImagePreprocessing:
    """Declare what an image processor of transformers does.

    Args:
        processor: From `read_image_processor`.
        size: Side of the input in pixels, or None for the processor's own; what surrounds a crop grows or shrinks with it.

    Raises:
        BackboneError: It does what a declaration cannot say.
    """

    def get(name: str) -> Any:
        return getattr(processor, name, None)

    kind = type(processor).__name__
    steps = ("do_pad", "do_thumbnail", "do_align_long_axis", "do_crop_margin", "do_flip_channel_order")
    found = [name for name in steps if get(name)]
    if found or not get("do_resize") or not get("do_rescale") or get("rescale_offset"):
        what = found[0] if found else "no do_resize" if not get("do_resize") else "another scale than 0..1"
        raise BackboneError(f"image preprocessing must be resize, crop and normalize, but {kind} has {what}")
    if abs(float(get("rescale_factor")) * 255 - 1) > 1e-6:
        raise BackboneError(f"pixels must be scaled by 1/255, but {kind} scales by {get('rescale_factor')}")
    sides = dict(get("size") or {})
    sides = {name: value for name, value in sides.items() if value is not None}
    resize: int | tuple[int, int]
    crop: tuple[int, int]
    if set(sides) == {"height", "width"}:
        resize = crop = (int(sides["height"]), int(sides["width"]))
    elif set(sides) == {"shortest_edge"}:
        edge = int(sides["shortest_edge"])
        resize, crop = edge, (edge, edge)
        share = get("crop_pct")
        if share is not None:  # ConvNext: from 384 pixels on, the whole image is squeezed
            resize = int(edge / share) if edge < 384 else (edge, edge)
        elif not get("do_center_crop"):
            raise BackboneError(f"images must come out in one size, but {kind} sets the shorter side alone")
    else:
        raise BackboneError(f"the size of {kind} must be height and width, or the shortest edge, but is {sides}")
    if get("do_center_crop") and get("crop_size"):
        crop = (int(get("crop_size")["height"]), int(get("crop_size")["width"]))
    if size is not None:
        grown = tuple(round(side * size / min(crop)) for side in (resize if isinstance(resize, tuple) else (resize,)))
        resize = (grown[0], grown[1]) if len(grown) == 2 else grown[0]
        crop = (size, size)
    names = {int(value): name for name, value in INTERPOLATIONS.items()}
    normalize = bool(get("do_normalize"))
    red, green, blue = (float(value) for value in (get("image_mean") if normalize else (0, 0, 0)))
    by_red, by_green, by_blue = (float(value) for value in (get("image_std") if normalize else (1, 1, 1)))
    return ImagePreprocessing(
        size=crop,
        resize=resize,
        interpolation=names.get(int(get("resample")), str(get("resample"))),
        mean=(red, green, blue),
        std=(by_red, by_green, by_blue),
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what transformers logs off the user's terminal: what matters in it is raised."""
    from transformers.utils import logging as theirs

    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity(logging.CRITICAL)
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()
