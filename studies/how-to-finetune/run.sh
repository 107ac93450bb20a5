#!/bin/sh
# From a clean checkout to the tables: installs autoft, makes the data, fetches MiniLM, trains every variant.
# Some two hours on 2 cores; may be typed again at any time, and goes on where it was.
#
#     sh studies/how-to-finetune/run.sh
set -eu
cd "$(dirname "$0")/../.."

[ -x .venv/bin/python ] || python3 -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check . -r studies/digits/requirements.txt
.venv/bin/python studies/digits/make_data.py
.venv/bin/python studies/digits/pretrain.py
.venv/bin/python studies/docstrings/make_data.py
.venv/bin/python studies/docstrings/fetch_model.py
mkdir -p studies/how-to-finetune/data
export OMP_NUM_THREADS=1   # two processes of one thread take half the time of one with two
.venv/bin/python studies/how-to-finetune/run.py sentences > studies/how-to-finetune/data/sentences.md &
.venv/bin/python studies/how-to-finetune/run.py digits
wait
cat studies/how-to-finetune/data/sentences.md
