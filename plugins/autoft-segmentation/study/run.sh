#!/bin/sh
# The whole study from the repository's root, with autoft and this plugin installed: data, weights, search, masks.
set -eu
here=plugins/autoft-segmentation/study
python -m pip install --quiet --disable-pip-version-check -r studies/digits/requirements.txt
python studies/digits/pretrain.py
python $here/make_data.py
autoft search $here/study.yaml -o runs/digit-masks
autoft evaluate runs/digit-masks/bundle $here/data
python runs/digit-masks/bundle/predict.py --out runs/digit-masks/masks $here/data/test/images/00*.jpg
