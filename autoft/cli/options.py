"""Options that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

VariantName = Annotated[
    str, typer.Option("--variant", metavar="NAME", help="Graph of the bundle to run, such as int8.", show_default=True)
]
NoPlugins = Annotated[bool, typer.Option("--no-plugins", help="Use autoft's own plugins alone.  [default: off]")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.  [default: off]")]
