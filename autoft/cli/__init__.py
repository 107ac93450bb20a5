"""The `autoft` command: parses, calls, prints; everything it does is a function elsewhere.

Results go to stdout, progress and messages to stderr. Exit codes: 0 fine, 1 a bug in autoft (with a trace) or a score that
`autoft reproduce` does not reach, 2 something that you can mend (with a hint), 130 and 143 stopped by Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys

from autoft.cli.app import BAD_INPUT, app
from autoft.cli.printing import log_to_stderr, print_error
from autoft.errors import AutoftError
from autoft.stopping import SIGNALLED

# isort: off
# these register their commands, in the order in which `autoft --help` lists them
from autoft.cli import searching, watching, comparing, bundles, runs, machine, plugins  # noqa: F401
# isort: on

__all__ = ["app", "main"]

STDOUT = 1  # its file descriptor


def main() -> None:
    """Run the command line; turn what the user can mend into a message, and leave bugs their trace."""
    log_to_stderr()
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except AutoftError as error:
        print_error(error)
        sys.exit(BAD_INPUT)
    except (BrokenPipeError, SystemExit) as leaving:
        if not isinstance(leaving, BrokenPipeError) and not isinstance(leaving.__context__, BrokenPipeError):
            raise  # typer leaves this way, with the exit code
        # the reader of a pipe, such as `head`, has seen enough; what is still buffered has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
        sys.exit(SIGNALLED + signal.SIGPIPE)
