#!/usr/bin/env bash
# Scores the golden pairs of exported `gguf` folders with llama-cpp-python, which builds llama.cpp (15 minutes and more).
#     scripts/engines/llama_cpp_python.sh WORK FOLDER...
# WORK keeps the packages. PYTHON: of an environment with rankwright (else .venv/bin/python).
# Prints one line of JSON for each file; exit code 1 when one is too far off.
set -euo pipefail

[ $# -ge 2 ] || { echo "usage: $0 WORK FOLDER..." >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-$here/../../.venv/bin/python}
version=0.3.36
mkdir -p "$1/llama-cpp-python"
packages=$(cd "$1/llama-cpp-python" && pwd)
shift
if [ ! -f "$packages/installed-$version" ]; then
    # GGML_NATIVE: what it builds for this CPU can end in a fault on q8_0. Without --no-cache-dir an earlier wheel
    # would be taken, whatever it was built with. Its other dependencies are rankwright's.
    CMAKE_ARGS=-DGGML_NATIVE=OFF "$python" -m pip install -q --no-cache-dir --no-deps --target "$packages" \
        "llama-cpp-python==$version" diskcache==5.6.3 >&2
    touch "$packages/installed-$version"
fi
PYTHONPATH="$here/../../train:$packages${PYTHONPATH:+:$PYTHONPATH}" \
    "$python" "$here/from_parity.py" llama.cpp "llama-cpp-python $version" "$@"
