"""Writes tiny models of transformers with random weights, and tokenizers trained on a few sentences, without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

VOCABULARY = 200
POSITIONS = 40  # tokens, where a model has positions
SENTENCES = (
    "the cat sat on the mat and looked at the moon",
    "a dog runs through the green park every morning",
    "numbers are added, subtracted and multiplied by the machine",
    "rain falls on the roof of the old house near the river",
    "she reads long letters from far away cities",
    "Berlin, Paris and Rome are capitals; Dr. Smith lives in London",
    "it isn't easy, but we'll try again tomorrow at 10:30",
)
TEXT = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "vocab_size": VOCABULARY,
}
BERT_LIKE = {**TEXT, "max_position_embeddings": POSITIONS, "type_vocab_size": 2, "pad_token_id": 0}
# two more positions than tokens fit: they are counted from behind the padding's number, 1
ROBERTA_LIKE = {**TEXT, "max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1, "pad_token_id": 1}
LLAMA_LIKE = {**TEXT, "num_key_value_heads": 1, "max_position_embeddings": POSITIONS, "bos_token_id": 0, "eos_token_id": 1}
IMAGE = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 3, "image_size": 32}

# tokenizer or image processor, and what the configuration says beyond its defaults
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("wordpiece", BERT_LIKE),
    "roberta": ("bytes", ROBERTA_LIKE),
    "distilbert": (
        "wordpiece",
        {
            "dim": 16,
            "n_heads": 2,
            "hidden_dim": 24,
            "n_layers": 3,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": POSITIONS,
        },
    ),
    "deberta-v2": (
        "unigram",
        {
            **BERT_LIKE,
            "type_vocab_size": 0,
            "relative_attention": True,
            "position_biased_input": False,
            "pos_att_type": ["p2c", "c2p"],
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "position_buckets": 8,
            "max_relative_positions": -1,
            "conv_kernel_size": 3,
        },
    ),
    "electra": ("wordpiece", {**BERT_LIKE, "embedding_size": 8}),
    "modernbert": (
        "bytes",
        {
            **TEXT,
            "max_position_embeddings": POSITIONS,
            "local_attention": 4,
            "classifier_pooling": "mean",
            "pad_token_id": 1,
            "bos_token_id": 0,
            "cls_token_id": 0,
            "eos_token_id": 2,
            "sep_token_id": 2,
        },
    ),
    "albert": ("unigram", {**BERT_LIKE, "embedding_size": 8}),
    "xlm-roberta": ("unigram", ROBERTA_LIKE),
    "mpnet": ("wordpiece", ROBERTA_LIKE),
    "llama": ("decoder", LLAMA_LIKE),
    "qwen2": ("decoder", LLAMA_LIKE),
    "gpt2": (
        "decoder",
        {
            "n_embd": 16,
            "n_head": 2,
            "n_layer": 3,
            "n_positions": POSITIONS,
            "vocab_size": VOCABULARY,
            "bos_token_id": 1,
            "eos_token_id": 1,
        },
    ),
    "vit": ("exact", {**IMAGE, "patch_size": 8}),
    "dinov2": ("crop", {**IMAGE, "patch_size": 8, "image_size": 48, "mlp_ratio": 2}),
    "swin": (
        "exact",
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 8,
            "depths": [1, 2],
            "num_heads": [1, 2],
            "window_size": 4,
            "mlp_ratio": 2,
        },
    ),
    "convnextv2": ("share", {"image_size": 32, "hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2, "patch_size": 4}),
}
TEXT_ARCHITECTURES = tuple(name for name, (reader, _) in ARCHITECTURES.items() if reader not in ("exact", "crop", "share"))
IMAGE_ARCHITECTURES = tuple(name for name in ARCHITECTURES if name not in TEXT_ARCHITECTURES)


def write_tiny(folder: Path, architecture: str, *, weights: bool = True) -> Path:
    """Write a tiny random model as transformers' `save_pretrained` would, and return its folder.

    Args:
        folder: Made if it is not there.
        architecture: One of `ARCHITECTURES`.
        weights: Whether to write `model.safetensors`, or the configuration and the tokenizer alone.
    """
    from transformers import AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    folder.mkdir(parents=True, exist_ok=True)
    reader, settings = ARCHITECTURES[architecture]
    # larger than usual, so that differences show
    config = CONFIG_MAPPING[architecture](**settings, initializer_range=0.2)
    if weights:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            AutoModel.from_config(config).save_pretrained(folder)
    else:
        config.save_pretrained(folder)
    if architecture in TEXT_ARCHITECTURES:
        _write_tokenizer(folder, reader)
    else:
        (folder / "preprocessor_config.json").write_text(json.dumps(_processor(reader)))
    return folder


def _processor(kind: str) -> dict[str, Any]:
    normalization = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]}
    if kind == "crop":
        size = {
            "size": {"shortest_edge": 40},
            "crop_size": {"height": 32, "width": 32},
            "do_center_crop": True,
            "resample": 3,
        }
        return {"image_processor_type": "BitImageProcessor", **size, **normalization}
    if kind == "share":
        return {
            "image_processor_type": "ConvNextImageProcessor",
            "size": {"shortest_edge": 32},
            "crop_pct": 0.8,
            **normalization,
        }
    return {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}, "resample": 2, **normalization}


def _write_tokenizer(folder: Path, kind: str) -> None:
    """Train a tokenizer of one of four kinds, and write its files."""
    if kind == "wordpiece":
        names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=list(names.values()))
    elif kind == "unigram":
        names = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=list(names.values()), unk_token="<unk>")
    elif kind == "bytes":
        names = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=list(names.values()))
    else:  # as Llama 3 and Qwen: words cut by a pattern, nothing put around a text, no padding
        names = {"bos": "<|begin|>", "eos": "<|end|>"}
        tokenizer = Tokenizer(models.BPE())
        cut = pre_tokenizers.Split(pattern=Regex(r" ?\w+| ?[^\s\w]+|\s+"), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=list(names.values()))
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if "cls" in names:
        cls, sep = names["cls"], names["sep"]
        segment = 1 if kind == "wordpiece" else 0
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}",
            pair=f"{cls} $A {sep} $B:{segment} {sep}:{segment}",
            special_tokens=[(name, tokenizer.token_to_id(name)) for name in (cls, sep)],
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {f"{name}_token": text for name, text in names.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "PreTrainedTokenizerFast"}))
