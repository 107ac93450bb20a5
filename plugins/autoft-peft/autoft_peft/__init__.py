"""An autoft plugin: strategies that train few parameters, by Hugging Face's `peft`, imported only when one is used."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from autoft import hookimpl
from autoft.specs import Knob, Range, Strategy

AUTOFT_HOOKS = 1

RANK = Knob("lora_rank", 8, Range(2, 64, log=True, integer=True), "rank of the added matrices", Range(1, 1024, integer=True))
ALPHA = Knob(
    "lora_alpha", 16.0, Range(4.0, 128.0, log=True), "what they are multiplied by, over the rank", Range(0.01, 10000.0)
)
DROPOUT = Knob("lora_dropout", 0.0, Range(0.0, 0.2), "dropout of what they are given", Range(0.0, 0.9))
PROMPT = Knob(
    "prompt_tokens", 16, Range(4, 64, log=True, integer=True), "tokens put before each text", Range(1, 512, integer=True)
)


@hookimpl
def autoft_strategies() -> list[Strategy]:
    """Offer what peft can do to backbones of any library, and prompt tuning for texts."""
    added = (
        ("lora", (RANK, ALPHA, DROPOUT), "low-rank matrices beside linear and convolutional layers (arXiv:2106.09685)"),
        ("dora", (RANK, ALPHA, DROPOUT), "LoRA for directions, and a length for each output (arXiv:2402.09353)"),
        ("ia3", (), "a factor for each output of linear and convolutional layers (arXiv:2205.05638)"),
        ("layer-norm", (), "the LayerNorms alone (arXiv:2312.11420)"),
    )
    return [
        *(
            Strategy(
                name=name,
                check=_later("layers", "check", name),
                apply=_later("layers", "adapt", name),
                merge=_later("layers", "merge"),
                files=_later("layers", "files"),
                knobs=knobs,
                help=help,
            )
            for name, knobs, help in added
        ),
        Strategy(
            name="prompt-tuning",
            check=_later("prompts", "check"),
            apply=_later("prompts", "adapt"),
            merge=lambda module: module,  # prompts cannot be merged into weights: they stay, as constants of the graph
            files=_later("prompts", "files"),
            knobs=(PROMPT,),
            help="trained tokens before each text, with the whole backbone as it is (arXiv:2104.08691)",
        ),
    ]


def _later(module: str, function: str, *first: Any) -> Callable[..., Any]:
    """Return a function of this package whose module, and torch with it, is imported when it is called: listing is fast."""

    def call(*arguments: Any) -> Any:
        return getattr(import_module(f"autoft_peft.{module}"), function)(*first, *arguments)

    return call
