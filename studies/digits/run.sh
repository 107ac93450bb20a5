#!/bin/sh
# From a clean checkout to a checked bundle: installs autoft, writes the scans, pretrains on letters, searches, evaluates.
# Takes minutes on 2 cores; may be typed again at any time, and goes on where it was.
#
#     sh studies/digits/run.sh
set -eu
cd "$(dirname "$0")/../.."

[ -x .venv/bin/python ] || python3 -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check . -r studies/digits/requirements.txt
.venv/bin/python studies/digits/make_data.py
.venv/bin/python studies/digits/pretrain.py
.venv/bin/autoft search studies/digits/study.yaml
.venv/bin/autoft evaluate runs/digits/bundle studies/digits/data
