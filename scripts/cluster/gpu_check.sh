#!/usr/bin/env bash
# What only a GPU can show, on one GPU in under 10 minutes, with random weights of the 0.6B's shape: all attention
# routes give the same scores and gradients, bf16 is close to fp32, memory and speed. Arguments go to gpu_check.py.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
python=${PYTHON:-$root/.venv/bin/python}
[[ -x $python ]] || "$root/scripts/setup.sh"
exec "$python" "$root/scripts/cluster/gpu_check.py" "$@"
