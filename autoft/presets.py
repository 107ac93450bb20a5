"""The presets of backbones `fast`, `balanced` and `best`: which there are, and their place in a study.

Which models a preset holds is for the backbone families to say; `Member` helps them, and anyone's plugin, to list theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autoft.catalog import Catalog
from autoft.config import BackboneConfig, Objection, StudyConfig
from autoft.errors import AutoftError, ConfigError, Problem, nearest


@dataclass(frozen=True)
class Preset:
    """A short word for a list of backbones.

    Attributes:
        name: Stands in a study where the name of a backbone may stand.
        trials: Of a search with it, where the study does not say: more candidates need more trials to be told apart.
        help: What it is for.
    """

    name: str
    trials: int
    help: str


PRESETS: tuple[Preset, ...] = (
    Preset("fast", 10, "small models, for a CPU"),
    Preset("balanced", 20, "models of 20 to 120 million parameters, for a GPU, or for patience on a CPU"),
    Preset("best", 40, "strong models of about 100 million parameters and more, for a GPU"),
)
NAMES: tuple[str, ...] = tuple(preset.name for preset in PRESETS)


@dataclass(frozen=True)
class Member:
    """A model that a backbone family offers to presets.

    Attributes:
        name: Full name, `FAMILY/MODEL`.
        millions: Its parameters in millions, without a classifier.
        licence: Of its weights, as SPDX names it.
        presets: The presets that hold it.
        why: The reason why.
    """

    name: str
    millions: float
    licence: str
    presets: tuple[str, ...]
    why: str


def members_of(members: Sequence[Member], preset: str) -> list[str]:
    """Return the names of the members that a preset holds, in their order; none of a preset that is not known.

    Example:
        >>> members_of([Member("toy/mlp", 0.01, "apache-2.0", ("fast", "best"), "tiny")], "fast")
        ['toy/mlp']
    """
    return [member.name for member in members if preset in member.presets]


def is_preset(name: str) -> bool:
    """Return whether a name in a study's `backbones` means a preset: backbones are named FAMILY/MODEL."""
    return "/" not in name


def objection(name: str, weights: str = "pretrained") -> Objection | None:
    """Return why a study cannot name a preset, with these weights; None where it can."""
    if name not in NAMES:
        near = nearest(name, NAMES, 1)
        listed = ", ".join(f"`{each}`" for each in NAMES)
        return Objection(
            f"must be FAMILY/MODEL, such as timm/resnet18, or a preset ({listed}), but got {name!r}",
            f"did you mean `{near[0]}`?" if near else "`autoft plugins presets` lists the backbones of each preset",
        )
    if weights not in ("pretrained", "none"):
        return Objection(
            f"is a preset, which holds several models: its weights must be `pretrained` or `none`, but got {weights!r}",
            "name the backbone that these weights are of",
        )
    return None


def require_preset(name: str) -> str:
    """Return a preset's name; raises `AutoftError` with the nearest for any other."""
    if name in NAMES:
        return name
    near = nearest(name, NAMES, 1)
    hint = f"did you mean `{near[0]}`?" if near else "`--backbone` takes the name of a backbone"
    raise AutoftError(f"a preset must be one of {', '.join(NAMES)}, but got {name!r}", hint)


@dataclass(frozen=True)
class Wanted:
    """A backbone that a study asks for, by its name or through a preset.

    Attributes:
        where: The place in the study that asks for it, such as `backbones.0`.
        settings: What is asked.
        preset: The preset that holds it, or None.
    """

    where: str
    settings: BackboneConfig
    preset: str | None = None


def expand(config: StudyConfig, catalog: Catalog, modality: str, task: str) -> tuple[Wanted, ...]:
    """Put the models of each preset in its place among a study's backbones; settings of the preset go to each of them.

    A model that the study asks for several times stays where it stands by its own name, else where it comes first.

    Args:
        config: The study.
        catalog: What the plugins offer.
        modality: Of the data.
        task: Name of the head.

    Raises:
        ConfigError: No plugin offers a model to a preset.
        PluginError: A plugin fails to say what it offers.
    """
    wanted: list[Wanted] = []
    problems: list[Problem] = []
    for index, entry in enumerate(config.backbones):
        where = f"backbones.{index}"
        if not is_preset(entry.name):
            wanted.append(Wanted(where, entry))
            continue
        offered = catalog.offered(entry.name, modality, task)
        wanted += [Wanted(where, entry.model_copy(update={"name": name}), entry.name) for name in offered]
        if not offered:
            message = f"must hold a backbone, but no plugin offers one for {modality} data to the preset {entry.name}"
            problems.append(config.problem(where, message, "name backbones instead; `autoft plugins` lists the families"))
    if problems:
        raise ConfigError(config.source, problems)
    named = {_key(each) for each in wanted if each.preset is None}
    kept: list[Wanted] = []
    for each in wanted:
        if each.preset is None or _key(each) not in named:
            kept.append(each)
            named |= {_key(each)} if each.preset is not None else set()
    return tuple(kept)


def _key(wanted: Wanted) -> tuple[object, ...]:
    settings = wanted.settings
    return (settings.name, settings.weights, settings.image_size)


def resolved(config: StudyConfig, wanted: Sequence[Wanted]) -> StudyConfig:
    """Return a study that names what its presets hold, with their number of trials unless it has its own."""
    used = {each.preset for each in wanted if each.preset is not None}
    if not used:
        return config
    search = config.search
    if "trials" not in search.model_fields_set:
        search = search.model_copy(update={"trials": max(preset.trials for preset in PRESETS if preset.name in used)})
    return config.model_copy(update={"backbones": tuple(each.settings for each in wanted), "search": search})


# --- for people -----------------------------------------------------------------------------------------------------

# What presets may hold different backbones for: a modality, and a task where that matters.
KINDS: tuple[tuple[str, str, str], ...] = (
    ("images", "image", "image-classification"),
    ("texts", "text", "text-classification"),
    ("texts, to tag words", "text", "token-classification"),
)


@dataclass(frozen=True)
class Listed:
    """What a preset holds for one kind of data; see `KINDS`."""

    preset: str
    data: str
    backbones: tuple[str, ...]


def listed(catalog: Catalog) -> list[Listed]:
    """Return what each preset holds, as the installed plugins offer it."""
    return [
        Listed(preset, data, catalog.offered(preset, modality, task)) for preset in NAMES for data, modality, task in KINDS
    ]
