"""Runs the command line as `python -m autoft`."""

from autoft.cli import main

main()
