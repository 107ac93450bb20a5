#!/bin/sh
# Loads bundles in every runtime that is to take them as they are, and prints the table of docs/deployers.md.
#
#     sh tests/loaders/run.sh [FOLDER]      FOLDER (default: autoft-loaders in the temporary folder) keeps what is installed
#
# Needs Node 20 with npm, and Chromium (CHROMIUM names it where it is not /usr/bin/chromium). Optimum pins an older
# transformers, so it has an environment of its own; it and torch take some 6 GB. ONLY=python leaves out Optimum, Node and
# the browser: two minutes, and no other program is needed.
set -eu
cd "$(dirname "$0")/../.."
home=${1:-${TMPDIR:-/tmp}/autoft-loaders}
mkdir -p "$home/node"
only=${ONLY:-all}

[ -x .venv/bin/python ] || python3 -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
[ -x "$home/python/bin/python" ] || python3 -m venv "$home/python"
"$home/python/bin/python" -m pip install --quiet --disable-pip-version-check \
    onnxruntime openvino onnx tokenizers pillow numpy mlflow 'tritonclient[grpc]'
if [ "$only" = all ]; then
    [ -x "$home/optimum/bin/python" ] || python3 -m venv "$home/optimum"
    "$home/optimum/bin/python" -m pip install --quiet --disable-pip-version-check \
        'optimum-onnx[onnxruntime]' torchvision pillow
    # without scripts: that of onnxruntime-node would fetch what only CUDA needs
    (cd "$home/node" && npm install --silent --ignore-scripts --no-audit --no-fund --no-save \
        onnxruntime-node onnxruntime-web @huggingface/transformers puppeteer-core)
fi
AUTOFT_LOADERS="$home" OMP_NUM_THREADS=1 .venv/bin/python -m pytest tests/loaders -m loaders -q -s -rs
