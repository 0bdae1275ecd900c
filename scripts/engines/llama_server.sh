#!/usr/bin/env bash
# Scores the golden pairs of exported `gguf` folders with llama.cpp's server over HTTP, built in the wheel of xllamacpp.
#     scripts/engines/llama_server.sh WORK FOLDER...
# WORK keeps the package (102 MB). PYTHON: of an environment with rankwright (else .venv/bin/python).
# Prints one line of JSON for each file; exit code 1 when one is too far off.
set -euo pipefail

[ $# -ge 2 ] || { echo "usage: $0 WORK FOLDER..." >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-$here/../../.venv/bin/python}
version=2026.10.11549
mkdir -p "$1/xllamacpp"
packages=$(cd "$1/xllamacpp" && pwd)
shift
if [ ! -f "$packages/installed-$version" ]; then
    "$python" -m pip install -q --no-deps --target "$packages" "xllamacpp==$version" >&2
    touch "$packages/installed-$version"
fi
PYTHONPATH="$here/../../train:$packages${PYTHONPATH:+:$PYTHONPATH}" \
    "$python" "$here/from_parity.py" llama-server "xllamacpp $version" "$@"
