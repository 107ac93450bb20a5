#!/bin/sh
# From a clean checkout to scores in unseen languages: installs autoft, writes the dates, fetches MiniLM, searches, compares.
# Minutes on 2 cores; may be typed again at any time, and goes on where it was.
#
#     sh studies/dates/run.sh
set -eu
cd "$(dirname "$0")/../.."

[ -x .venv/bin/python ] || python3 -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check . -r studies/dates/requirements.txt
.venv/bin/python studies/dates/make_data.py
.venv/bin/python studies/docstrings/fetch_model.py
.venv/bin/python studies/dates/baselines.py
.venv/bin/autoft search studies/dates/study.yaml
.venv/bin/python studies/dates/check_seqeval.py
