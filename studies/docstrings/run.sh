#!/bin/sh
# From a clean checkout to the answer: installs autoft, writes the sentences, fetches MiniLM, searches, compares.
# Some 40 minutes on 2 cores; may be typed again at any time, and goes on where it was.
#
#     sh studies/docstrings/run.sh
set -eu
cd "$(dirname "$0")/../.."

[ -x .venv/bin/python ] || python3 -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check .
.venv/bin/python studies/docstrings/make_data.py
.venv/bin/python studies/docstrings/fetch_model.py
.venv/bin/autoft search studies/docstrings/study.yaml
.venv/bin/python studies/docstrings/compare.py --runs runs/docstrings-compare
