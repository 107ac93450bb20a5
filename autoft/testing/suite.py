"""Which checks hold for what: `checks_for` gives them for pytest and the command; the rules themselves are beside this."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoft.errors import AutoftError, BackboneError, PluginError, nearest
from autoft.specs import Backbone, BackboneFamily, DataFormat, Head, Logger, Strategy
from autoft.testing.bound import BoundCheck, CheckResult, run_all
from autoft.testing.checks import kinds_to_check, of_backbone
from autoft.testing.kit import CheckFailed, CheckWarning

if TYPE_CHECKING:
    from autoft.catalog import Catalog
    from autoft.plugin_record import PluginInfo

__all__ = ["BoundCheck", "CheckResult", "checks_for", "of_data", "of_family", "of_head", "of_logger", "of_plugin", "run_all"]

Subject = Backbone | Head | DataFormat | BackboneFamily | Logger


def checks_for(
    subject: str | Subject,
    *,
    head: Head | None = None,
    backbone: Backbone | None = None,
    strategies: Iterable[Strategy] = (),
    example: str | Path | None = None,
    references: Mapping[str, Callable[[Any, Any, Any], float]] | None = None,
    waive: Mapping[str, str] | None = None,
    catalog: Catalog | None = None,
) -> list[BoundCheck]:
    """Return the conformance checks of what a plugin provides, to be run or to parametrize a test with.

    >>> import pytest
    >>> from autoft.testing import checks_for
    >>> @pytest.mark.parametrize("check", checks_for("hello/tiny"), ids=str)
    ... def test_conformance(check):
    ...     check()

    Args:
        subject: A name: a backbone `FAMILY/MODEL`, checked with every installed strategy that fits; a family, head, data
            format, strategy or logger; or a plugin or package, whose checks are those of all that it provides. Or one of
            these things itself.
        head: With a backbone itself: the task on top; a plain classification where it is left out.
        backbone: With a head: what it is put on; a toy where it is left out.
        strategies: With a backbone itself: those to check on it.
        example: Data that a format can read; a data format is checked on it.
        references: For a head's metrics, functions that compute them plainly (`head_checks.check_metrics`).
        waive: By the id of a check, the reason why it is known to fail.
        catalog: What the plugins offer; the installed ones where it is left out.

    Raises:
        AutoftError: The name is unknown, a waiver names no check, or a data format comes without an example.
    """
    found: list[BoundCheck]
    if isinstance(subject, str):
        if catalog is None:
            from autoft.discovery import discover

            catalog = discover()
        found = _by_name(subject, catalog, Path(example) if example else None, references)
    elif isinstance(subject, Backbone):
        found = of_backbone(subject, head or _plain_head(), strategies)
    elif isinstance(subject, Head):
        found = of_head(subject, backbone, references)
    elif isinstance(subject, DataFormat):
        found = of_data(subject, Path(example) if example else None)
    elif isinstance(subject, Logger):
        found = of_logger(subject)
    else:
        found = of_family(subject)
    return _waived(found, waive or {})


def of_head(
    head: Head, backbone: Backbone | None = None, references: Mapping[str, Callable[[Any, Any, Any], float]] | None = None
) -> list[BoundCheck]:
    """Return the checks of a head on a backbone, a toy where none is given."""
    from autoft.testing import checks, head_checks, training_checks

    backbone = backbone or head_checks.toy_for(head)
    rules = [
        *((name, about, run) for name, about, run in head_checks.CHECKS if name != "metrics"),
        *((name, about, run) for name, about, run in head_checks.CHECKS if name == "metrics"),
        *training_checks.CHECKS,
        ("export-parity", "the exported graph gives torch's outputs", checks.check_export_parity),
    ]
    return [
        BoundCheck(
            head.name,
            name,
            about,
            partial(run, backbone, head, references) if name == "metrics" else partial(run, backbone, head),  # type: ignore[call-arg]
        )
        for name, about, run in rules
    ]


def of_data(format: DataFormat, example: Path | None) -> list[BoundCheck]:
    """Return the checks of a data format on an example.

    Raises:
        PluginError: There is no example.
    """
    from autoft.testing.data_checks import DATA_CHECKS

    if example is None or not example.exists():
        raise PluginError(
            f"a data format is checked on data that it can read, but {format.name} got {example or 'none'}",
            "name some: `autoft plugins check NAME --example PATH`, `checks_for(NAME, example=PATH)`",
        )
    return [BoundCheck(format.name, name, about, partial(run, format, example)) for name, about, run in DATA_CHECKS]


def of_logger(logger: Logger) -> list[BoundCheck]:
    """Return the checks of a logger, which writes where it does without options, from a temporary folder."""
    from autoft.testing.logger_checks import CHECKS

    return [BoundCheck(logger.name, name, about, partial(run, logger)) for name, about, run in CHECKS]


def of_family(family: BackboneFamily) -> list[BoundCheck]:
    """Return the checks of a family's own functions; its backbones have theirs."""
    from autoft.testing.data_checks import FAMILY_CHECKS

    return [BoundCheck(family.name, name, about, partial(run, family)) for name, about, run in FAMILY_CHECKS]


def of_plugin(plugin: PluginInfo) -> list[BoundCheck]:
    """Return the checks of an installed plugin itself: that it loads, and how fast."""
    from autoft.testing.process_checks import check_import

    def loads() -> None:
        if plugin.state != "ok":
            raise CheckFailed(f"plugin {plugin.name} must load, but is {plugin.status}")

    module = plugin.value.partition("[")[0].partition(":")[0].strip()
    return [
        BoundCheck(plugin.name, "loads", "the plugin is loaded, and its hooks give what they must", loads),
        BoundCheck(plugin.name, "imports-fast", "its module is imported within a second", partial(check_import, module)),
    ]


# --- by name ----------------------------------------------------------------------------------------


def _by_name(
    name: str, catalog: Catalog, example: Path | None, references: Mapping[str, Callable[[Any, Any, Any], float]] | None
) -> list[BoundCheck]:
    """Return the checks of whatever has a name, of everything that a plugin or package of that name provides."""
    from autoft.plugin_record import canonical

    if "/" in name:
        return _named_backbone(name, catalog, catalog.strategies.values())
    plugins = [plugin for plugin in catalog.plugins if name == plugin.name or canonical(name) == canonical(plugin.package)]
    found: list[BoundCheck] = []
    for plugin in plugins:
        found += of_plugin(plugin)
        for given in plugin.provides if plugin.state == "ok" else ():
            try:
                found += _provided(given.kind, given.name, catalog, example, references)
            except AutoftError as error:  # such as a format without an example: the rest is checked all the same
                found.append(_left_out(given.name, error))
    if plugins:
        return found
    kinds: tuple[tuple[str, Mapping[str, Any]], ...] = (
        ("family", catalog.families),
        ("head", catalog.heads),
        ("data", catalog.data),
        ("strategy", catalog.strategies),
        ("logger", catalog.loggers),
    )
    for kind, known in kinds:
        if name in known:
            found += _provided(kind, name, catalog, example, references)
    if not found:
        known_names = [each for _, known in kinds for each in known]
        known_names += [word for plugin in catalog.plugins for word in (plugin.name, plugin.package)]
        near = nearest(name, known_names)
        raise PluginError(
            f"no plugin, package or thing that one provides is named {name!r}",
            f"did you mean {' or '.join(near)}?" if near else "`autoft plugins --load` lists what there is",
        )
    return found


def _provided(
    kind: str,
    name: str,
    catalog: Catalog,
    example: Path | None,
    references: Mapping[str, Callable[[Any, Any, Any], float]] | None,
) -> list[BoundCheck]:
    """Return the checks of one thing; of a family, also those of the least of its suggested models."""
    from autoft.testing.data_checks import smallest

    if kind == "family":
        family = catalog.families[name]
        found = of_family(family)
        for model in smallest(family):
            try:
                found += _named_backbone(model, catalog)
            except BackboneError as error:  # such as one whose description is on a hub that cannot be reached
                found.append(_left_out(model, error))
        return found
    if kind == "head":
        return of_head(catalog.heads[name], None, references)
    if kind == "data":
        return of_data(catalog.data[name], example)
    if kind == "logger":
        return of_logger(catalog.loggers[name])
    return _of_strategy(catalog.strategies[name])


def _left_out(subject: str, reason: AutoftError) -> BoundCheck:
    """Return a check that says why a thing has no others."""

    def tell() -> None:
        raise CheckWarning(f"{subject} is not checked: {reason.message}", reason.hint)

    return BoundCheck(subject, "can-be-checked", "the kit can make what its checks need", tell)


def _named_backbone(name: str, catalog: Catalog, strategies: Iterable[Strategy] = ()) -> list[BoundCheck]:
    """Return the checks of a backbone with each kind of features that it gives and an installed head can use."""
    kinds = kinds_to_check(
        lambda features: catalog.resolve_backbone(name, weights="none", features=features), catalog.heads.values()
    )
    return [
        check
        for backbone, head in kinds
        for check in of_backbone(backbone, head, strategies, f"{name} {backbone.features}" if len(kinds) > 1 else name)
    ]


def _of_strategy(strategy: Strategy) -> list[BoundCheck]:
    """Return the checks of a strategy on the toys that it fits.

    Raises:
        PluginError: It fits none.
    """
    from autoft.specs import BackboneRequest
    from autoft.testing import toy
    from autoft.testing.strategy_checks import CHECKS

    head, found = _plain_head(), []
    for model in toy.MODELS:
        backbone = toy.resolve(BackboneRequest(model, "none"))
        if strategy.check(backbone, backbone.build()) is None:
            found += [
                BoundCheck(
                    f"{strategy.name} on {backbone.name}", id, id.replace("-", " "), partial(run, backbone, head, strategy)
                )
                for id, run in CHECKS
            ]
    if not found:
        raise PluginError(
            f"a strategy is checked on autoft's toys, but {strategy.name} fits none of {', '.join(toy.MODELS)}",
            "check a backbone that it fits: `autoft plugins check FAMILY/MODEL` runs its checks too",
        )
    return found


def _plain_head() -> Head:
    from autoft.tasks import classification

    return classification.head("classification", None, "one label a sample")


def _waived(checks: list[BoundCheck], waive: Mapping[str, str]) -> list[BoundCheck]:
    ids = {check.id for check in checks}
    for name, reason in waive.items():
        if name not in ids:
            near = nearest(name, ids)
            raise PluginError(
                f"a waiver must name a check, but {name!r} is none of {len(ids)}",
                f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(sorted(ids))}",
            )
        if not reason.strip():
            raise PluginError(
                f"a waiver must give its reason, but that of {name} is empty", "say what does not work, and why"
            )
    return [replace(check, waiver=waive.get(check.id)) for check in checks]
