"""The table of what every training has, whatever its head: presets, ranges, sources; `space.py` makes a space of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from autoft.averaging import AVERAGES
from autoft.layers import Trait
from autoft.schedule import SCHEDULES
from autoft.specs import WHOLE, Choice, Range

Value = str | int | float | bool
Level = Literal["small", "full", "asked"]

FRESH, PROBE = "fresh", "probe"  # values of `head_start`


@dataclass(frozen=True)
class Setting:
    """A setting that every training has, whatever its head.

    Attributes:
        name: The word in `space:` of a study file.
        preset: The value that trial 0 uses.
        search: What is searched where it is searched and the study says no more.
        help: One line for the documentation.
        allowed: What a study may ask for: the limits of a number; None where only the backbone can tell.
        source: Where it is from: a paper, or the library whose behaviour is matched.
        level: In which space it is searched when the study does not name it: in the `small` and the `full` one, in the
            `full` one alone, or only where it is `asked` for.
        modality: The only data that it is for; None for all.
        needs: What the backbone must have; or `divergence`, of the head.
        when: Another setting, and the values of it with which this one has an effect; None for always.
        trainer: Whether the study's `trainer` section has it too: then that gives the preset, and fixes it where it says
            anything but the default.
        scratch: The preset when every backbone starts from random weights; None changes nothing.
        scratch_fixed: Whether it is fixed then: freezing random features, say, would keep noise.
        text: For texts, the preset and what is searched instead; None for the same.
    """

    name: str
    preset: Value
    search: Range | Choice
    help: str
    allowed: Range | Choice | None
    source: str = ""
    level: Level = "small"
    modality: str | None = None
    needs: Trait | Literal["divergence"] | None = None
    when: tuple[str, tuple[Value, ...]] | None = None
    trainer: bool = False
    scratch: Value | None = None
    scratch_fixed: bool = False
    text: tuple[Value, Range] | None = None

    def of(self, modality: str) -> Setting:
        """Return the setting as it is for a modality."""
        if modality != "text" or self.text is None:
            return self
        return replace(self, preset=self.text[0], search=self.text[1])


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "learning_rate",
        3e-4,
        Range(1e-5, 1e-2, log=True),
        "peak learning rate of the backbone",
        Range(1e-8, 10.0),
        "BERT's 2e-5 to 5e-5 for texts, arXiv:1810.04805",
        scratch=1e-3,
        # BERT's own advice is 2e-5 to 5e-5 for all layers; here the layers below the last get less, by `layer_decay`
        text=(1e-4, Range(5e-6, 5e-4, log=True)),
    ),
    Setting(
        "head_multiplier",
        10.0,
        Range(1.0, 30.0, log=True),
        "the head's learning rate over the backbone's",
        Range(1e-3, 1e4),
        "fast.ai's discriminative rates, arXiv:1801.06146",
        scratch=1.0,
        scratch_fixed=True,
    ),
    Setting(
        "freeze_depth",
        0,
        Range(0, math.inf, integer=True),
        "stages frozen, counted from the input",
        None,
        "arXiv:1411.1792",
        scratch=0,
        scratch_fixed=True,
    ),
    Setting(
        "layer_decay",
        0.9,
        Range(0.6, 1.0),
        "factor on the learning rate from each stage to the one before it",
        Range(0.0, 1.0),
        "BEiT, arXiv:2106.08254; timm",
        scratch=1.0,
        scratch_fixed=True,
    ),
    Setting(
        "weight_decay",
        1e-2,
        Range(1e-5, 1e-1, log=True),
        "decoupled weight decay, not on norms and biases",
        Range(0.0, 1.0),
        "AdamW, arXiv:1711.05101",
    ),
    Setting(
        "head_start",
        FRESH,
        Choice((FRESH, PROBE)),
        "what the head starts from: random weights, or those of the linear probe; `fresh` where there is no probe",
        Choice((FRESH, PROBE)),
        "LP-FT, arXiv:2202.10054",
        scratch=FRESH,
        scratch_fixed=True,
    ),
    Setting(
        "l2_sp",
        0.0,
        Range(0.1, 100.0, log=True, or_zero=True),
        "pull of the backbone toward its pretrained weights, decoupled like weight decay",
        Range(0.0, 1e4),
        "L2-SP, arXiv:1802.01483",
        level="full",
        scratch=0.0,
        scratch_fixed=True,
    ),
    Setting(
        "stochastic_depth",
        0.0,
        Range(0.05, 0.3, or_zero=True),
        "how often the last residual branch is left out, earlier ones less",
        Range(0.0, 0.9),
        "arXiv:1603.09382; timm's drop path",
        level="full",
        needs="stochastic_depth",
    ),
    Setting(
        "batch_norm",
        "train",
        Choice(("train", "frozen")),
        "whether trained stages keep the pretrained running statistics of BatchNorm",
        Choice(("train", "frozen")),
        "torchvision's and Detectron's frozen BatchNorm",
        level="full",
        needs="batch_norm",
        scratch="train",
        scratch_fixed=True,
    ),
    Setting(
        "averaging",
        "none",
        Choice(AVERAGES),
        "which weights count: those trained, an exponential average of them (EMA), or the last epochs' mean (SWA)",
        Choice(AVERAGES),
        "EMA: arXiv:1503.01780, timm; SWA: arXiv:1803.05407",
        level="full",
    ),
    Setting(
        "ema_decay",
        0.99,
        Range(0.9, 0.999),
        "of EMA, a step; less in the first steps",
        Range(0.0, 0.99999),
        "TensorFlow's ExponentialMovingAverage",
        level="asked",
        when=("averaging", ("ema",)),
    ),
    Setting(
        "swa_share",
        0.25,
        Range(0.1, 0.5),
        "share of the epochs, the last ones, that SWA averages, at a constant learning rate",
        Range(0.0, 1.0),
        "arXiv:1803.05407",
        level="asked",
        when=("averaging", ("swa",)),
    ),
    Setting(
        "warmup",
        0.1,
        Range(0.0, 0.2),
        "share of the steps over which the learning rate rises",
        Range(0.0, 0.5),
        "arXiv:1706.02677",
        level="full",
        trainer=True,
    ),
    Setting(
        "schedule",
        "cosine",
        Choice(("cosine", "linear", "constant")),
        "shape of the learning rate after warm-up; `wsd` stays at the peak and falls in the last fifth",
        Choice(SCHEDULES),
        "cosine: arXiv:1608.03983; linear: arXiv:1810.04805; wsd: arXiv:2404.06395",
        level="full",
    ),
    Setting(
        "gradient_clip",
        1.0,
        Range(0.1, 10.0, log=True),
        "largest norm of the gradient; 0 for no limit",
        Range(0.0, 1e6),
        "arXiv:1211.5063",
        level="full",
        trainer=True,
    ),
    Setting(
        "batch_size",
        32,
        Range(16, 64, log=True, integer=True),
        "samples an optimizer step; from half the automatic size to twice that",
        Range(1, 1e6, integer=True),
        "arXiv:1706.02677",
        level="full",
        trainer=True,
    ),
    Setting(
        "unfreeze",
        0.0,
        Range(0.1, 0.6, or_zero=True),
        "share of the epochs over which stages are unfrozen, from the head to the input",
        Range(0.0, 1.0),
        "ULMFiT, arXiv:1801.06146",
        level="full",
        scratch=0.0,
        scratch_fixed=True,
    ),
    Setting(
        "augmentation",
        "light",
        Choice(("none", "light", "standard", "trivial")),
        "policy of random variants of each image, of those that the backbones have",
        None,
        "light and standard: see `autoft/augment.py`; trivial: TrivialAugment, arXiv:2103.10158",
        level="full",
        trainer=True,
    ),
    Setting(
        "mixup",
        0.0,
        Range(0.1, 1.0, or_zero=True),
        "alpha of mixup: each image becomes a weighted sum of two",
        Range(0.0, 100.0),
        "arXiv:1710.09412",
        level="full",
        modality="image",
    ),
    Setting(
        "cutmix",
        0.0,
        Range(0.1, 1.0, or_zero=True),
        "alpha of cutmix: each image gets a box of another",
        Range(0.0, 100.0),
        "arXiv:1905.04899",
        level="full",
        modality="image",
    ),
    Setting(
        "erasing",
        0.0,
        Range(0.1, 0.5, or_zero=True),
        "how often a box of an image is replaced by noise",
        Range(0.0, 1.0),
        "random erasing, arXiv:1708.04896",
        level="full",
        modality="image",
    ),
    Setting(
        "r_drop",
        0.0,
        Range(0.3, 5.0, log=True, or_zero=True),
        "weight of the difference between two passes with different dropout; a step takes twice as long",
        Range(0.0, 100.0),
        "R-Drop, arXiv:2106.14448",
        level="asked",
        needs="divergence",
    ),
    Setting(
        "adversarial",
        0.0,
        Range(0.1, 2.0, log=True, or_zero=True),
        "size of a perturbation of the word embeddings against the model; a step takes twice as long",
        Range(0.0, 100.0),
        "FGM, arXiv:1605.07725",
        level="asked",
        modality="text",
        needs="embeddings",
    ),
    Setting(
        "sam",
        0.0,
        Range(0.01, 0.2, log=True, or_zero=True),
        "radius of sharpness-aware minimization; a step takes twice as long",
        Range(0.0, 10.0),
        "SAM, arXiv:2010.01412",
        level="asked",
    ),
    Setting(
        "strategy",
        WHOLE,
        Choice((WHOLE,)),
        "what is trained of the stages that are not frozen: `full` for all of it, or a plugin's, such as `lora`",
        None,
        "see `autoft plugins`",
        level="asked",
    ),
    Setting(
        "adapter_multiplier",
        10.0,
        Range(1.0, 30.0, log=True),
        "with a strategy, the learning rate of what it adds over the backbone's",
        Range(1e-3, 1e4),
        "LoRA's rates are some ten times those of full fine-tuning, arXiv:2106.09685",
        level="asked",
        when=("strategy", ()),
    ),
    Setting(
        "optimizer",
        "adamw",
        Choice(("adamw", "sgd")),
        "AdamW, or SGD with Nesterov's momentum, which wants some hundred times the learning rate",
        Choice(("adamw", "sgd")),
        "arXiv:1711.05101; torch",
        level="asked",
        trainer=True,
    ),
    Setting(
        "momentum",
        0.9,
        Range(0.8, 0.99),
        "of SGD",
        Range(0.0, 0.999),
        "torch",
        level="asked",
        when=("optimizer", ("sgd",)),
        trainer=True,
    ),
)
BY_NAME = {setting.name: setting for setting in SETTINGS}
