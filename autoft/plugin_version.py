"""Whether a plugin was written for this autoft: what its package requires, and which version of the hooks it declares."""

from __future__ import annotations

from importlib import metadata

from autoft import __version__, hookspecs
from autoft.plugin_record import OWN_PACKAGE, PluginInfo, canonical

ATTRIBUTE = "AUTOFT_HOOKS"  # in the module or object that an entry point names


def requirement_problem(plugin: PluginInfo) -> str | None:
    """Return how its package's requirement on autoft is not met, or None; pip may have been told not to look.

    It is read from metadata: a plugin for another autoft may not even be importable.
    """
    if plugin.own:
        return None
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        lines = metadata.distribution(plugin.package).requires or []
    except metadata.PackageNotFoundError:
        return None  # found by a name that its own metadata does not have
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue  # of something else: pip would not have installed what it cannot read
        wanted = canonical(requirement.name) == OWN_PACKAGE and (requirement.marker is None or requirement.marker.evaluate())
        if wanted and not requirement.specifier.contains(__version__, prereleases=True):
            return (
                f"it requires autoft{requirement.specifier}, but autoft {__version__} is installed; "
                f"install versions that fit: `pip install --upgrade autoft {plugin.package}`"
            )
    return None


def version_problem(plugin: PluginInfo, target: object) -> str | None:
    """Return why the version of the hooks that a plugin's target declares cannot be worked with, or None."""
    found = getattr(target, ATTRIBUTE, None)
    if found is None:
        return None
    oldest, newest = hookspecs.OLDEST_HOOKS, hookspecs.HOOKS_VERSION
    if not isinstance(found, int) or isinstance(found, bool):
        return f"`{ATTRIBUTE}` must be a whole number, as {newest} is, but is {found!r}"
    if oldest <= found <= newest:
        return None
    known = str(newest) if oldest == newest else f"{oldest} to {newest}"
    upgrade = "autoft" if found > newest else plugin.package
    return f"it is written for version {found} of the hooks, but autoft {__version__} knows {known}; upgrade {upgrade}"
