#!/usr/bin/env bash
# Runs the tests, two files at a time; arguments go on to pytest. Tests marked slow run only with --slow, one by one.
#
#     scripts/test.sh                             all but the slow ones
#     scripts/test.sh --slow                      all
#     scripts/test.sh tests/training/test_losses.py -x     part of them
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
select=(-m "not slow" --numprocesses 2 --dist loadfile)
arguments=()
for argument in "$@"; do
    if [[ $argument == --slow ]]; then select=(); else arguments+=("$argument"); fi
done

"$root/scripts/setup.sh" dev
cd -- "$root"
# ${name[@]+...}: bash 3.2 (macOS) takes an empty array for an unset name.
exec .venv/bin/python -m pytest ${select[@]+"${select[@]}"} ${arguments[@]+"${arguments[@]}"}
