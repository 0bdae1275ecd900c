#!/usr/bin/env bash
# Real inference engines against exports: each in an environment of its own under WORK, one after another.
#
#     scripts/engines/test_engines.sh                          all engines, on tiny models made for it
#     scripts/engines/test_engines.sh vllm infinity            some of them (names: scripts/engines/*.sh)
#     RUN=runs/NAME scripts/engines/test_engines.sh            on the exports of a run of yours
#     PYTHON=PATH scripts/engines/test_engines.sh              with this Python, which has rankwright's `dev` packages (else .venv)
#
# WORK (else ~/.cache/rankwright/engines) keeps environments and exports: up to 6 GB with all engines. Needs the package
# index, and node for two of them. Prints a table of engines, versions and largest differences, and writes it to
# WORK/results.jsonl; exit code 1 when an engine differs or does not run.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
work=${WORK:-${XDG_CACHE_HOME:-$HOME/.cache}/rankwright/engines}
mkdir -p "$work"
work=$(cd "$work" && pwd)
if [[ -z ${PYTHON:-} ]]; then
    "$root/scripts/setup.sh" dev
    PYTHON=$root/.venv/bin/python
fi
export PYTHON PYTHONPATH="$root/train${PYTHONPATH:+:$PYTHONPATH}"

if [[ -n ${RUN:-} ]]; then
    exports=$RUN/export
else
    exports=$work/exports
    rm -rf "$exports"
    "$PYTHON" "$root/tests/support/engine_folders.py" "$exports"
fi

# The exports that an engine reads, by their folders' names. Of an official prompt vLLM loses the end where a document is
# cut, and node-llama-cpp reads it in pieces: scripts/README.md.
reads() {
    case $1 in
        transformers_js) echo onnx ;;
        *llama*) echo gguf ;;
        libraries) echo hf onnx ;;
        *) echo hf ;;
    esac
}
names=("$@")
if [[ ${#names[@]} -eq 0 ]]; then
    for script in "$root"/scripts/engines/*.sh; do
        [[ $script -ef ${BASH_SOURCE[0]} ]] || names+=("$(basename "$script" .sh)")
    done
fi

failed=0 failures=
: > "$work/results.jsonl"
for name in "${names[@]}"; do
    script=$root/scripts/engines/$name.sh
    if [[ ! -f $script ]]; then
        echo "error: no engine $name: see scripts/engines" >&2
        exit 2
    fi
    folders=()
    for kind in $(reads "$name"); do [[ ! -d $exports/$kind ]] || folders+=("$exports/$kind"); done
    if [[ ${#folders[@]} -eq 0 ]]; then
        echo "$name: no export that it reads in $exports: left out"
        continue
    fi
    echo "$name: ${folders[*]}"
    "$script" "$work" "${folders[@]}" | tee -a "$work/results.jsonl" || { failed=1; failures+=" $name"; }
done
"$PYTHON" "$root/scripts/engines/table.py" "$work/results.jsonl"
if [[ ! -s $work/results.jsonl && $failed -eq 0 ]]; then
    echo "error: no engine was run: $exports has nothing for: ${names[*]}" >&2
    exit 1
fi
[[ $failed -eq 0 ]] || echo "FAILED:$failures" >&2
exit $failed
