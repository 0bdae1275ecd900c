#!/usr/bin/env bash
# Runs tests/pipeline/test_mteb.py where mteb is installed: mteb's own evaluation of an export against ours.
#     scripts/engines/mteb.sh WORK [PYTEST ARGUMENTS]
# WORK keeps the packages (300 MB). PYTHON: of an environment with rankwright[dev] (else .venv/bin/python).
set -euo pipefail

[ $# -ge 1 ] || { echo "usage: $0 WORK [PYTEST ARGUMENTS]" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
mkdir -p "$1/mteb"
packages=$(cd "$1/mteb" && pwd)
shift
wanted=$(grep -E "^(mteb|polars|polars-runtime-32)==" "$root/scripts/constraints.txt")
if [ ! -f "$packages/installed" ] || [ "$(cat "$packages/installed")" != "$wanted" ]; then
    # Its other dependencies are rankwright[dev]'s.
    # shellcheck disable=SC2086
    "$python" -m pip install -q --no-deps --upgrade --target "$packages" $wanted >&2
    echo "$wanted" > "$packages/installed"
fi
export HF_HUB_OFFLINE=1
cd "$root"
PYTHONPATH="$root/train:$packages${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -m pytest tests/pipeline/test_mteb.py "$@"
