"""The hooks a plugin can implement, and the marker to implement them with.

Each is collecting: all plugins' lists are joined, never first-result. Building must be lazy: a hook only describes.
"""

from __future__ import annotations

import pluggy

from autoft.specs import BackboneFamily, DataFormat, Head, Logger, Strategy

PROJECT = "autoft"
# What plugins declare as `AUTOFT_HOOKS` in the module that their entry point names. It goes up when a plugin that was sound
# would break: a field without a default is added, or a hook or field is removed or means something else.
HOOKS_VERSION = 1
OLDEST_HOOKS = 1  # what this autoft can still work with

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def autoft_backbones() -> list[BackboneFamily]:  # type: ignore[empty-body]
    """Return backbone families: sources of pretrained models to fine-tune."""


@hookspec
def autoft_heads() -> list[Head]:  # type: ignore[empty-body]
    """Return heads: tasks, with their output module, loss and metrics."""


@hookspec
def autoft_data() -> list[DataFormat]:  # type: ignore[empty-body]
    """Return data formats: kinds of files or folders that hold labelled samples."""


@hookspec
def autoft_strategies() -> list[Strategy]:  # type: ignore[empty-body]
    """Return strategies: ways to train a backbone by few parameters, such as LoRA."""


@hookspec
def autoft_loggers() -> list[Logger]:  # type: ignore[empty-body]
    """Return loggers: services and files that follow a search's trials, such as MLflow."""
