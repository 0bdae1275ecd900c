#!/usr/bin/env bash
# Scores the golden pairs of exported `onnx` folders with transformers.js in Node.
#     scripts/engines/transformers_js.sh WORK FOLDER...
# WORK keeps the packages (470 MB). Prints one line of JSON for each graph; exit code 1 when one is too far off.
set -euo pipefail

[ $# -ge 2 ] || { echo "usage: $0 WORK FOLDER..." >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
version=4.3.1
mkdir -p "$1/transformers-js"
modules=$(cd "$1/transformers-js" && pwd)/node_modules
shift
if [ ! -f "$modules/@huggingface/transformers/package.json" ]; then
    # The script of onnxruntime-node fetches GPU libraries from elsewhere; those for the CPU are in the package.
    npm install --prefix "$(dirname "$modules")" --ignore-scripts --no-audit --no-fund --loglevel=error \
        "@huggingface/transformers@$version" >&2
fi
failed=0
for folder in "$@"; do
    node "$here/transformers_js.mjs" "$folder" "$modules" || failed=1
done
exit $failed
