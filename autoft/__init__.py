"""autoft finds the best way to fine-tune a pretrained model on your data, and exports it proven.

Importing this package imports neither torch nor timm; `search`, `load` and `compare` do when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autoft.errors import AutoftError

if TYPE_CHECKING:
    from autoft.comparison import Comparison, compare
    from autoft.driver import search
    from autoft.finish import SearchResult
    from autoft.hookspecs import HOOKS_VERSION, hookimpl
    from autoft.loaded import Answer, Answers, Bundle, Scores, load
    from autoft.notebook import show_progress

__version__ = "0.1.0"
__all__ = [
    "HOOKS_VERSION",
    "Answer",
    "Answers",
    "AutoftError",
    "Bundle",
    "Comparison",
    "Scores",
    "SearchResult",
    "__version__",
    "compare",
    "hookimpl",
    "load",
    "search",
    "show_progress",
]

_LAZY = {
    "Answer": "autoft.loaded",
    "Answers": "autoft.loaded",
    "Bundle": "autoft.loaded",
    "Scores": "autoft.loaded",
    "load": "autoft.loaded",
    "Comparison": "autoft.comparison",
    "compare": "autoft.comparison",
    "search": "autoft.driver",
    "SearchResult": "autoft.finish",
    "hookimpl": "autoft.hookspecs",
    "HOOKS_VERSION": "autoft.hookspecs",
    "show_progress": "autoft.notebook",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib
        import warnings

        with warnings.catch_warnings():
            # libraries below load tqdm, which tells notebooks without ipywidgets of its bars; autoft shows none of them
            warnings.filterwarnings("ignore", message="IProgress not found")
            return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'autoft' has no attribute {name!r}")
