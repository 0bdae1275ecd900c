#!/usr/bin/env bash
# Scores the golden pairs of exported `gguf` folders with node-llama-cpp, whose llama.cpp comes built.
#     scripts/engines/node_llama_cpp.sh WORK FOLDER...
# WORK keeps the packages (730 MB). Prints one line of JSON for each file; exit code 1 when one is too far off.
set -euo pipefail

[ $# -ge 2 ] || { echo "usage: $0 WORK FOLDER..." >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
version=3.21.1
mkdir -p "$1/node-llama-cpp"
modules=$(cd "$1/node-llama-cpp" && pwd)/node_modules
shift
if [ ! -f "$modules/node-llama-cpp/package.json" ]; then
    npm install --prefix "$(dirname "$modules")" --no-audit --no-fund --loglevel=error "node-llama-cpp@$version" >&2
fi
failed=0
for folder in "$@"; do
    node "$here/node_llama_cpp.mjs" "$folder" "$modules" || failed=1
done
exit $failed
