"""Prompt tuning: trained tokens before each text; they stay in the exported graph, as constants."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from autoft.hf_models import POOLINGS, TextModule
from autoft.specs import Adapted, Backbone, Stage

MASK, KINDS, TOKENS = "attention_mask", "token_type_ids", "input_ids"


def check(backbone: Backbone, module: nn.Module) -> str | None:
    """Return why a backbone cannot take prompts, or None where it can: they need a text model of transformers."""
    if not isinstance(module, TextModule):
        return "prompts need a text model of transformers"
    if getattr(module.model.config, "is_encoder_decoder", False):
        return "prompts need a model that is an encoder or a decoder alone"
    return None


class Prompted(nn.Module):
    """A text model that is given trained vectors before each text, and gives features of the text alone.

    Args:
        inner: The text model.
        prompt: peft's `PromptEmbedding`.
        count: How many vectors.
    """

    def __init__(self, inner: TextModule, prompt: nn.Module, count: int) -> None:
        super().__init__()
        self.inner = inner
        self.prompt = prompt
        self.count = count

    def get_input_embeddings(self) -> nn.Module:
        """Return the layer that turns tokens into vectors."""
        return self.inner.get_input_embeddings()

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the features of inputs given in the order of the text model's."""
        named = dict(zip(self.inner.inputs, inputs, strict=True))
        tokens = named.pop(TOKENS)
        rows = tokens.shape[0]  # not len(): exporting would make a constant of it
        texts = self.inner.get_input_embeddings()(tokens)
        prompt = self.prompt(torch.arange(self.count, device=tokens.device)[None]).to(texts.dtype)
        named["inputs_embeds"] = torch.cat([prompt.expand(rows, -1, -1), texts], dim=1)
        mask = named[MASK]
        named[MASK] = torch.cat([mask.new_ones(rows, self.count), mask], dim=1)
        if KINDS in named:
            named[KINDS] = torch.cat([named[KINDS].new_zeros(rows, self.count), named[KINDS]], dim=1)
        hidden: Tensor = self.inner.model(**named).last_hidden_state[:, self.count :].float()
        if not self.inner.poolings:
            return hidden
        pooled = [POOLINGS[name](hidden, mask) for name in self.inner.poolings]
        features: Tensor = self.inner.projections(torch.cat(pooled, 1) if len(pooled) > 1 else pooled[0])
        return features


def adapt(module: nn.Module, stages: tuple[Stage, ...], depth: int, knobs: Mapping[str, Any]) -> Adapted:
    """Put the prompt before the text model; of the model itself nothing is trained.

    The prompt belongs to the last stage; where that is frozen there is none.
    """
    if depth == len(stages):
        return Adapted(module, stages, frozenset())
    from peft import PromptTuningConfig
    from peft.tuners.prompt_tuning import PromptEmbedding

    assert isinstance(module, TextModule)
    count = int(knobs["prompt_tokens"])
    embeddings = cast(nn.Embedding, module.get_input_embeddings())
    config = PromptTuningConfig(
        task_type="FEATURE_EXTRACTION",
        num_virtual_tokens=count,
        num_transformer_submodules=1,
        token_dim=embeddings.weight.shape[1],
        prompt_tuning_init="SAMPLE_VOCAB",
    )
    prompted = Prompted(module, PromptEmbedding(config, embeddings), count)  # type: ignore[no-untyped-call]
    moved = [Stage(stage.name, tuple(f"inner.{name}" for name in stage.parameters)) for stage in stages]
    added = tuple(f"prompt.{name}" for name, _ in prompted.prompt.named_parameters())
    moved[-1] = Stage(moved[-1].name, (*moved[-1].parameters, *added))
    return Adapted(prompted, tuple(moved), frozenset(added))


def files(module: nn.Module) -> dict[str, bytes]:
    """Return the prompt's vectors and settings, under peft's names."""
    from safetensors.torch import save

    if not isinstance(module, Prompted):
        return {"adapter_config.json": b"{}\n"}  # all stages are frozen: there is nothing to keep
    weight = cast(nn.Embedding, module.prompt.embedding).weight.detach().cpu()
    config = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "FEATURE_EXTRACTION",
        "num_virtual_tokens": module.count,
        "num_transformer_submodules": 1,
        "token_dim": weight.shape[1],
        "prompt_tuning_init": "SAMPLE_VOCAB",
        "inference_mode": True,
    }
    return {
        "adapter_model.safetensors": save({"prompt_embeddings": weight.contiguous()}, {"format": "pt"}),
        "adapter_config.json": (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
    }
