#!/usr/bin/env bash
# Format, lint, types and layout: all four are run, so that one go shows every finding. What CI runs, with test.sh.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
"$root/scripts/setup.sh" dev
cd -- "$root"

failed=()
check() {
    local name=$1
    shift
    printf '\ncheck: %s\n' "$name"
    .venv/bin/python "$@" || failed+=("$name")
}

check "format (mend with: .venv/bin/python -m ruff format)" -m ruff format --check train tests scripts
check "lint" -m ruff check train tests scripts
check "types" -m mypy --strict -p rankwright
check "layout" scripts/check_layout.py

if ((${#failed[@]})); then
    printf '\n' >&2
    printf 'check: failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
printf '\ncheck: all passed\n'
