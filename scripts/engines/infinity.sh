#!/usr/bin/env bash
# Serves exported `hf` folders with Infinity, in an environment of its own, and verifies the scores it answers.
#     scripts/engines/infinity.sh WORK FOLDER...
# WORK keeps the environment (1.4 GB). PYTHON: of an environment with rankwright (else .venv/bin/python).
# Prints one line of JSON for each folder; exit code 1 when one differs. Its transformers is of version 4: the canary for
# settings that only older libraries read.
set -euo pipefail

[ $# -ge 2 ] || { echo "usage: $0 WORK FOLDER..." >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-$here/../../.venv/bin/python}
version=0.0.78
mkdir -p "$1/infinity"
environment=$(cd "$1/infinity" && pwd)
shift
if [ ! -f "$environment/installed-$version" ]; then
    "$python" -m venv "$environment"
    # Its extras ask for any torch.
    "$environment/bin/pip" install -q "infinity-emb[torch,server]==$version" torch==2.13.0 >&2
    touch "$environment/installed-$version"
fi
# Nothing is fetched, and nobody is told.
export HF_HUB_OFFLINE=1 DO_NOT_TRACK=1 INFINITY_ANONYMOUS_USAGE_STATS=0
failed=0
for folder in "$@"; do
    # bettertransformer needs optimum, and knows no Qwen3.
    "$python" "$here/serve_and_verify.py" --engine infinity --version "$version" --api infinity \
        --log "$environment/server.log" "$folder" -- \
        "$environment/bin/infinity_emb" v2 --model-id "{folder}" --port "{port}" --host 127.0.0.1 \
        --engine torch --device cpu --dtype float32 --no-bettertransformer --no-model-warmup || failed=1
done
exit $failed
