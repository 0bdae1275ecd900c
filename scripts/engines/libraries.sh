#!/usr/bin/env bash
# Runs the snippets of SERVE.md and README.md for libraries that load exports, on the golden pairs of exported folders.
#     scripts/engines/libraries.sh WORK FOLDER...                        all of scripts/engines/libraries/*.txt
#     LIBRARIES="langchain mteb" scripts/engines/libraries.sh WORK FOLDER...
# WORK keeps an environment for each (0.7 GB in all): each lies on top of the packages of PYTHON, an environment with
# rankwright's `dev` packages (else .venv/bin/python), so none brings a torch of its own. Prints one line of JSON for each
# library and folder that it reads; exit code 1 when one differs.
set -euo pipefail

[ $# -ge 2 ] || { echo "usage: $0 WORK FOLDER..." >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
work=$1
shift
# Nothing is fetched, and nobody is told.
export HF_HUB_OFFLINE=1 DO_NOT_TRACK=1 HAYSTACK_TELEMETRY_ENABLED=False PYTHONPATH="$root/train"
failed=0
for pins in "$here"/libraries/*.txt; do
    name=$(basename "$pins" .txt)
    [[ " ${LIBRARIES:-$name} " == *" $name "* ]] || continue
    environment=$work/libraries/$name
    if ! cmp -s "$pins" "$environment/installed.txt"; then
        rm -rf "$environment"
        mkdir -p "$work/libraries"
        "$python" -m venv "$environment"
        echo "$packages" > "$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/shared.pth"
        alone=
        [[ $name != fastembed ]] || alone=--no-deps
        "$environment/bin/pip" install -q $alone -c "$root/scripts/constraints.txt" -r "$pins" >&2
        cp "$pins" "$environment/installed.txt"
    fi
    for folder in "$@"; do
        "$environment/bin/python" "$here/run_snippet.py" "$name" "$folder" || failed=1
    done
done
exit $failed
