#!/usr/bin/env bash
# From a fresh checkout to a trained, measured and exported reranker on a laptop CPU: `rankwright run quickstart`.
# Arguments go on to that command, e.g. scripts/quickstart.sh run_dir=/somewhere/else
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
"$root/scripts/setup.sh"
exec "$root/.venv/bin/rankwright" run quickstart "$@"
