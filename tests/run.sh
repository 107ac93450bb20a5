#!/bin/sh
# Installs autoft with what its tests need, then runs the linters and the tests. Takes some minutes on 2 cores.
#
#     sh tests/run.sh [PYTEST ARGUMENTS]
#     sh tests/run.sh -m slow     the long ones, which are left out otherwise
set -eu
cd "$(dirname "$0")/.."

[ -x .venv/bin/python ] || python3 -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test]' -e plugins/autoft-peft -e plugins/autoft-audio
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# one process a core, each of one thread: torch would give every process a thread a core
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto "$@"
