"""The `transformers` backbone family: encoders and decoders of texts, and image models, by hub name or local folder.

Safetensors only, never code from a repository. How files are read is in `autoft/hf_files.py`, how models are built and
divided into stages in `autoft/hf_models.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoft.errors import BackboneError, first_line, nearest
from autoft.hookspecs import hookimpl
from autoft.presets import Member, members_of
from autoft.specs import Backbone, BackboneFamily, BackboneRequest, Stage

if TYPE_CHECKING:
    from torch import nn

    from autoft.hf_files import Dense, SentenceModel
    from autoft.hf_models import Plan
    from autoft.hub import Source

# Name on the hub and size in millions of parameters; the best known trade first.
TEXT_SUGGESTIONS: tuple[tuple[str, float], ...] = (
    ("transformers/answerdotai/ModernBERT-base", 149.0),
    ("transformers/sentence-transformers/all-MiniLM-L6-v2", 22.7),
)
IMAGE_SUGGESTIONS: tuple[tuple[str, float], ...] = (
    ("transformers/facebook/dinov2-base", 86.6),
    ("transformers/facebook/dinov2-small", 22.1),
)
# The strongest come first in each preset; all have safetensors and a licence for commercial use.
TEXT_PRESETS: tuple[Member, ...] = (
    Member(
        "transformers/answerdotai/ModernBERT-base", 149.0, "apache-2.0", ("best",),
        "the newest: English and code, up to 8192 tokens",
    ),
    Member(
        "transformers/FacebookAI/roberta-base", 124.6, "mit", ("best",),
        "well proven in fine-tuning; English, up to 512 tokens",
    ),
    Member(
        "transformers/sentence-transformers/all-mpnet-base-v2", 109.5, "apache-2.0", ("best",),
        "trained on a billion pairs of sentences: strong with little data",
    ),
    Member(
        "transformers/FacebookAI/xlm-roberta-base", 278.0, "mit", ("best",),
        "100 languages; two thirds of it are the vocabulary, which costs memory and no time",
    ),
    Member(
        "transformers/BAAI/bge-small-en-v1.5", 33.4, "mit", ("balanced",),
        "12 narrow layers trained for retrieval: strong for its size; English",
    ),
    Member(
        "transformers/distilbert/distilroberta-base", 82.1, "apache-2.0", ("balanced",),
        "half of RoBERTa's layers at most of its quality; English",
    ),
    Member(
        "transformers/intfloat/multilingual-e5-small", 117.7, "mit", ("balanced",),
        "100 languages at the cost of a small model: 96 million parameters are the vocabulary",
    ),
    Member(
        "transformers/sentence-transformers/all-MiniLM-L6-v2", 22.7, "apache-2.0", ("fast", "balanced"),
        "6 narrow layers trained on a billion pairs of sentences; English",
    ),
)  # fmt: skip
# For tags of words: encoders of words in their case, and none that was trained to give a text one vector.
TAG_PRESETS: tuple[Member, ...] = (
    Member(
        "transformers/FacebookAI/roberta-base", 124.6, "mit", ("best",),
        "keeps upper case, well proven on entities; English",
    ),
    Member(
        "transformers/FacebookAI/xlm-roberta-base", 278.0, "mit", ("best",),
        "keeps upper case, 100 languages",
    ),
    Member(
        "transformers/google-bert/bert-base-cased", 107.7, "apache-2.0", ("balanced", "best"),
        "keeps upper case, whole words of news and books; English",
    ),
    Member(
        "transformers/distilbert/distilbert-base-cased", 65.2, "apache-2.0", ("fast", "balanced"),
        "half of BERT's layers, keeps upper case; English",
    ),
)  # fmt: skip
TAGGING = "token-classification"
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", re.ASCII)
LOCAL_PREFIXES = ("/", "~", "./", "../")

# Types whose positions are counted from behind the padding token's number, so that as many fewer tokens fit.
COUNTED_FROM_PADDING = frozenset(
    {
        *("camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "markuplm", "mpnet"),
        *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
    }
)
# Types that see where tokens stand relative to each other alone, for which any length will do.
RELATIVE = frozenset({"t5", "mt5", "umt5", "bloom", "mpt", "xlnet"})
MEAN_POOLED = frozenset({"mpnet", "nomic_bert"})

# What a type's own ForImageClassification takes of its output; a type that is not here is refused.
IMAGE_POOLING = {
    **dict.fromkeys(("vit", "deit", "vit_msn", "pvt", "dinov3_vit"), "cls"),
    **dict.fromkeys(("dinov2", "dinov2_with_registers"), "cls+patches"),
    **dict.fromkeys(("clip_vision_model", "metaclip_2_vision_model"), "patches"),
    **dict.fromkeys(("siglip_vision_model", "ijepa", "levit"), "mean"),
    **dict.fromkeys(("beit", "data2vec-vision", "swin", "swinv2", "donut-swin", "focalnet", "hiera", "dinat"), "pooler"),
    **dict.fromkeys(("convnext", "convnextv2", "dinov3_convnext", "resnet", "regnet", "efficientnet", "bit"), "pooler"),
    **dict.fromkeys(("mobilenet_v1", "mobilenet_v2", "mobilevit", "mobilevitv2"), "pooler"),
}
# Types of convolutions alone, which take small images as they are.
CONVOLUTIONAL = frozenset(
    ("convnext", "convnextv2", "dinov3_convnext", "resnet", "regnet", "efficientnet", "bit", "mobilenet_v1", "mobilenet_v2")
)
# Types that adapt their positions to any size without being told.
ADAPTING = frozenset({"dinov2", "dinov2_with_registers", "dinov3_vit"})
SMALLEST_SIZE = 32
# Of a configuration, what says nothing of the model that is made of it here.
STALE = frozenset(
    {
        *("_name_or_path", "architectures", "auto_map", "custom_pipelines", "dtype", "torch_dtype", "transformers_version"),
        *("finetuning_task", "id2label", "label2id", "num_labels", "problem_type", "task_specific_params"),
    }
)


@hookimpl
def autoft_backbones() -> list[BackboneFamily]:
    """Offer every model of transformers that encodes texts or images."""
    return [
        BackboneFamily(
            name="transformers",
            modality=None,
            resolve=resolve,
            models=models,
            suggest=suggest,
            help="models of transformers, by hub name or folder: transformers/OWNER/NAME, transformers/./FOLDER",
            presets=presets,
        )
    ]


def models() -> list[str]:
    """Return the suggested models, without the family's prefix; what the hub has cannot be listed."""
    return [name.removeprefix("transformers/") for name, _ in (*TEXT_SUGGESTIONS, *IMAGE_SUGGESTIONS)]


def suggest(modality: str, max_millions: float) -> Sequence[str]:
    """Return suggested backbones of a modality of at most `max_millions` million parameters, best first."""
    listed = {"text": TEXT_SUGGESTIONS, "image": IMAGE_SUGGESTIONS}.get(modality, ())
    return [name for name, millions in listed if millions <= max_millions]


def presets(modality: str, preset: str, task: str) -> Sequence[str]:
    """Return the models of a preset: for texts alone, and others where words are tagged; those of images are timm's."""
    return members_of(TAG_PRESETS if task == TAGGING else TEXT_PRESETS, preset) if modality == "text" else []


def resolve(request: BackboneRequest) -> Backbone:
    """Turn a hub name or a folder into a backbone, reading its configuration and tokenizer or image processor.

    Raises:
        BackboneError: There is no such model, it is none that autoft can train, or what is asked of it is impossible.
    """
    from autoft.hf_files import find_weights, read_config, read_sentence_model
    from autoft.hub import Folder

    root, file = _source(request)
    try:
        sentence = read_sentence_model(root)
        source = root.below(sentence.transformer) if sentence is not None else root
        content = read_config(source)
    except BackboneError as error:
        raise _with_near_names(root, error) from error
    if request.weights != "none" and file is None and isinstance(source, Folder):
        file = find_weights(source)[0]
    config, model_class = _classes(f"transformers/{request.model}", content)
    asked = _Asked(request, root, source, file, content, config, model_class)
    if model_class.main_input_name == "pixel_values":
        return _image_backbone(asked)
    if model_class.main_input_name == "input_ids" and isinstance(getattr(config, "vocab_size", None), int):
        return _text_backbone(asked, sentence)
    raise BackboneError(
        f"autoft trains models of texts and images, but {asked.name} takes {model_class.main_input_name}",
        "choose another model",
    )


def stages(module: nn.Module) -> tuple[Stage, ...]:
    """Return the stages that were found when the module was built: embeddings, then layers."""
    found: tuple[Stage, ...] = module.stages  # type: ignore[assignment]
    return found


def feature_size(module: nn.Module) -> int:
    """Return the width C of the features."""
    size: int = module.feature_size  # type: ignore[assignment]
    return size


@dataclass(frozen=True)
class _Asked:
    """What was asked for, and what was found.

    Attributes:
        request: The study's.
        root: The model's files, with its card.
        source: Those of the transformer, which sentence-transformers may keep in a folder below.
        file: A local weights file, the first where there are several; None for the hub's or random weights.
        content: Of `config.json`.
        config: The same as an object of transformers; of a model of images and texts, the images' part.
        model_class: The class of transformers.
    """

    request: BackboneRequest
    root: Source
    source: Source
    file: Path | None
    content: dict[str, Any]
    config: Any
    model_class: Any

    @property
    def name(self) -> str:
        return f"transformers/{self.request.model}"

    @property
    def kind(self) -> str:
        return str(self.config.model_type)

    def backbone(self, plan: Plan, dense: Sequence[Dense] = (), **fields: Any) -> Backbone:
        """Return a backbone that builds a plan with the weights that were asked for."""
        from autoft.hf_files import read_licence
        from autoft.hf_models import no_weight_decay
        from autoft.hub import Folder

        random = self.request.weights == "none"
        return Backbone(
            name=self.name,
            weights=str(self.file) if self.file is not None else self.request.weights,
            inputs=plan.inputs,
            build=lambda: self._build(plan, dense),
            fetch=self._fetch,
            stages=stages,
            feature_size=feature_size,
            no_weight_decay=no_weight_decay,
            licence=None if random else read_licence(self.root),
            # a folder's path would tell strangers about the machine
            citation=None if random else self.root.path.name if isinstance(self.root, Folder) else self.root.name,
            **fields,
        )

    def _fetch(self) -> None:
        """Bring the hub's weights into the local cache."""
        from autoft.hf_files import find_weights

        if self.request.weights == "pretrained":
            find_weights(self.source)

    def _build(self, plan: Plan, dense: Sequence[Dense]) -> nn.Module:
        """Build with the weights, which are downloaded only now where the hub alone has them."""
        from autoft.hf_files import WEIGHTS, find_weights
        from autoft.hf_models import Projection, build

        random = self.request.weights == "none"
        files: tuple[Path, ...] = ()
        if not random:
            named = Path(self.request.weights).expanduser()
            files = (named,) if named.is_file() else find_weights(self.source)
        projections = []
        for layer in dense:
            file = None if random else layer.folder.find(WEIGHTS)
            if file is None and not random:
                raise BackboneError(f"{self.name} lacks the {WEIGHTS} of a dense layer", "download the model again")
            projections.append(Projection(layer.size, layer.bias, layer.activation, file))
        return build(replace(plan, weights=files, projections=tuple(projections)))


# --- names and classes --------------------------------------------------------------------------------


def _source(request: BackboneRequest) -> tuple[Source, Path | None]:
    """Return where the model's files are, and the weights file that was named, if any."""
    from autoft.hf_files import CONVERT
    from autoft.hub import Folder, Repository

    named: Path | None = None
    if request.weights not in ("pretrained", "none"):
        given = Path(request.weights).expanduser().resolve()
        if not given.is_dir():
            if not given.is_file() or given.suffix != ".safetensors":
                found = "is another file" if given.exists() else "does not exist"
                raise BackboneError(f"weights must be a .safetensors file or a folder, but {given} {found}", CONVERT)
            named = given
        folder = given if named is None else given.parent
        if any((folder / name).is_file() for name in ("config.json", "modules.json")):
            return Folder(folder), named
        if named is None:
            raise BackboneError(f"the weights folder {given} has no config.json", "name the .safetensors file itself")
    path = Path(request.model).expanduser()
    if path.is_dir():
        return Folder(path.resolve()), named
    if request.model.startswith(LOCAL_PREFIXES) or not HUB_NAME.fullmatch(request.model):
        parent = path.parent
        near = nearest(path.name, [each.name for each in parent.iterdir() if each.is_dir()]) if parent.is_dir() else []
        raise BackboneError(
            f"transformers/{request.model} must be a folder, or OWNER/NAME on the hub, but {path} "
            + ("is a file" if path.is_file() else "does not exist"),
            f"did you mean transformers/{parent / near[0]}?" if near else "name a folder as `save_pretrained` writes it",
        )
    repository, _, revision = request.model.partition("@")
    return Repository(repository, revision or None), named


def _with_near_names(source: Source, error: BackboneError) -> BackboneError:
    """Return an error of a repository with the names that might have been meant."""
    from autoft.hub import Repository, cached_repositories

    if not isinstance(source, Repository):
        return error
    known = {*models(), *cached_repositories()} - {source.name}
    near = ", ".join(f"transformers/{name}" for name in nearest(source.name, sorted(known)))
    folder = "a local folder is written transformers/./FOLDER"
    hints = [f"did you mean {near}?" if near else folder, *([error.hint] if error.hint else [])]
    return BackboneError(error.message, "; ".join(hints))


def _classes(name: str, content: dict[str, Any]) -> tuple[Any, Any]:
    """Return the configuration as an object, and the class of the model without a task's head.

    Raises:
        BackboneError: The configuration is wrong, or of a model that is not one encoder or decoder.
    """
    import transformers
    from huggingface_hub.errors import StrictDataclassError
    from transformers.models.auto import modeling_auto as auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from autoft.hf_files import quiet

    kind = content["model_type"]
    if kind == "timm_wrapper":
        raise BackboneError(f"{name} is a model of timm", f"name it timm/{content.get('architecture', 'MODEL')}")
    try:
        with quiet():
            config: Any = CONFIG_MAPPING[kind].from_dict(content)
    except (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        raise BackboneError(f"the config.json of {name} is not of a {kind}: {first_line(error)}") from error
    if hasattr(config, "vision_config") or hasattr(config, "audio_config"):
        if kind not in auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
            raise BackboneError(
                f"a backbone takes texts or images, but {name} ({kind}) takes several", "choose another model"
            )
        config = config.vision_config
    encoder = auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES.get(kind, "")
    if encoder.endswith("EncoderModel"):
        return config, getattr(transformers, encoder)
    if getattr(config, "is_encoder_decoder", False):
        raise BackboneError(
            f"a backbone must be an encoder or a decoder, but {name} ({kind}) is both",
            "choose an encoder such as transformers/answerdotai/ModernBERT-base",
        )
    if type(config) not in auto.MODEL_MAPPING:
        raise BackboneError(f"transformers has no model without a head for {kind}", "choose another model")
    found = auto.MODEL_MAPPING[type(config)]
    return config, found[0] if isinstance(found, (tuple, list)) else found


def _bundle_config(asked: _Asked, names: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """Return what a bundle's `config.json` says: the model's own, with the class that has the task's head."""
    found = names.get(asked.kind)
    heads = [found] if isinstance(found, str) else list(found or ())[:1]
    content = asked.content if asked.kind == asked.content["model_type"] else asked.config.to_dict()
    kept = {key: value for key, value in content.items() if key not in STALE}
    return {**kept, **({"architectures": heads} if heads else {}), **settings}


# --- texts --------------------------------------------------------------------------------------------


def _text_backbone(asked: _Asked, sentence: SentenceModel | None) -> Backbone:
    from transformers.models.auto import modeling_auto as auto

    from autoft.hf_files import read_tokenizer
    from autoft.hf_models import Plan, takes
    from autoft.text import TextPreprocessing

    request, config = asked.request, asked.config
    if request.features not in ("pooled", "sequence"):
        raise BackboneError(f"{asked.name} gives pooled or sequence features, but the task needs {request.features}")
    if request.image_size is not None:
        raise BackboneError(f"{asked.name} takes texts, which have no image_size", "leave image_size out")
    if not takes(asked.model_class, "attention_mask"):
        raise BackboneError(
            f"{asked.name} ({asked.kind}) has no attention mask, so a text's features would depend on its batch",
            "choose another model",
        )
    pooled = request.features == "pooled"
    tokenizer = read_tokenizer(asked.source, words=not pooled, vocabulary=config.vocab_size)
    segments = takes(asked.model_class, "token_type_ids") and (getattr(config, "type_vocab_size", None) or 0) > 1
    inputs = ("input_ids", "attention_mask", *(("token_type_ids",) if segments else ()))
    heads = (
        auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES if pooled else auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES
    )
    return asked.backbone(
        Plan(asked.name, config, asked.model_class, (), inputs, _poolings(config, sentence) if pooled else ()),
        sentence.dense if sentence is not None and pooled else (),
        modality="text",
        features=request.features,
        preprocessing=TextPreprocessing(
            tokenizer.content,
            tokenizer.special,
            tokenizer.pad_id,
            inputs,
            limit=_limit(config, tokenizer.limit, sentence, asked_for=request.max_length),
            max_length=request.max_length,
            words=not pooled,
        ),
        config=_bundle_config(asked, dict(heads), pad_token_id=tokenizer.pad_id),
    )


def _poolings(config: Any, sentence: SentenceModel | None) -> tuple[str, ...]:
    """Choose how tokens become one vector, as the model was trained for it.

    That is what sentence-transformers says of it. Otherwise a decoder's last token has seen all others; an encoder trained
    to fill masks has a first token for the whole text.
    """
    from transformers.models.auto import modeling_auto as auto

    if sentence is not None and sentence.poolings:
        return sentence.poolings
    kind = config.model_type
    own = getattr(config, "classifier_pooling", None)  # ModernBERT's
    if own in ("cls", "mean"):
        return (own,)
    fills_masks = kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if getattr(config, "is_decoder", False) or (not fills_masks and kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        return ("lasttoken",)
    return ("cls",) if fills_masks and kind not in MEAN_POOLED else ("mean",)


def _limit(config: Any, tokenizer: int | None, sentence: SentenceModel | None, *, asked_for: int | None) -> int | None:
    """Return the most tokens that a model takes, or None.

    What its tokenizer and sentence-transformers say is advice for a length that nobody asked for; the positions that it has
    hold always.
    """
    relative = config.model_type in RELATIVE or (
        getattr(config, "relative_attention", False) and not getattr(config, "position_biased_input", True)
    )
    positions = None if relative else getattr(config, "max_position_embeddings", None)
    hard = positions if isinstance(positions, int) and positions > 0 else None
    if hard is not None and config.model_type in COUNTED_FROM_PADDING:
        hard -= (config.pad_token_id or 0) + 1
    advice = () if asked_for is not None else (None if relative else tokenizer, sentence.limit if sentence else None)
    known = [limit for limit in (hard, *advice) if limit]
    return min(known, default=None)


# --- images -------------------------------------------------------------------------------------------


def _image_backbone(asked: _Asked) -> Backbone:
    from transformers.models.auto import modeling_auto as auto

    from autoft.hf_files import image_preprocessing, read_image_processor
    from autoft.hf_models import Plan, takes

    request, config = asked.request, asked.config
    if request.features != "pooled":
        raise BackboneError(f"{asked.name} gives pooled features of images, but the task needs {request.features}")
    if request.max_length is not None:
        raise BackboneError(f"{asked.name} takes images, which have no max_length", "leave max_length out")
    pooling = IMAGE_POOLING.get(asked.kind)
    if pooling is None:
        raise BackboneError(f"image models must be of {', '.join(sorted(IMAGE_POOLING))}, but {asked.name} is {asked.kind}")
    processor = read_image_processor(asked.source)
    preprocessing = image_preprocessing(processor, request.image_size)
    if request.image_size is None and request.typical_size is not None and asked.kind in CONVOLUTIONAL:
        # as for timm's: small images are not blown up more than four times
        enough = max(SMALLEST_SIZE, -(-4 * request.typical_size // 32) * 32)
        if enough < min(preprocessing.size):
            preprocessing = image_preprocessing(processor, enough)
    own = getattr(config, "image_size", None)
    own = (own, own) if isinstance(own, int) else tuple(own) if own else preprocessing.size
    any_size = asked.kind in CONVOLUTIONAL | ADAPTING or takes(asked.model_class, "interpolate_pos_encoding")
    if preprocessing.size != own and not any_size:
        raise BackboneError(
            f"{asked.name} takes only images of {own[0]}x{own[1]}, but would get "
            f"{preprocessing.size[0]}x{preprocessing.size[1]}",
            "leave image_size out" if request.image_size is not None else f"set image_size: {own[0]}",
        )
    return asked.backbone(
        Plan(asked.name, config, asked.model_class, (), ("pixel_values",), (pooling,), image_size=preprocessing.size),
        modality="image",
        features="pooled",
        preprocessing=preprocessing,
        config=_bundle_config(asked, dict(auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES)),
        image_size=preprocessing.size,
    )
