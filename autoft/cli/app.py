"""The program that commands register with: `autoft`, its help, and `autoft --version`."""

from __future__ import annotations

from typing import Annotated

import typer

from autoft import __version__

BUG, BAD_INPUT = 1, 2  # exit codes

app = typer.Typer(
    name="autoft",
    help="Find the best way to fine-tune a pretrained model on your data, and get an ONNX bundle proven to behave in "
    "production as it did in validation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(f"autoft {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(BAD_INPUT)
