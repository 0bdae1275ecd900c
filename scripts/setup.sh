#!/usr/bin/env bash
# Makes .venv in the repository's root and installs rankwright there, under the pins of scripts/constraints.txt.
#
#     scripts/setup.sh              what training, evaluation and export need
#     scripts/setup.sh dev          and what the tests and checks need (any extras of pyproject.toml, space between)
#
# PYTHON=python3.12 chooses the interpreter. Nothing is installed when pyproject.toml, the pins, Python and the
# place of the checkout are those of the last time: .venv/rankwright-setup.txt remembers them.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
python=$venv/bin/python
stamp=$venv/rankwright-setup.txt
log=$venv/rankwright-setup.log

say() { printf 'setup: %s\n' "$*"; }
die() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}
is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

# The pins were frozen under 3.11, so that comes first.
find_python() {
    local candidate candidates=(python3.11 python3.12 python3.13 python3.14 python3 python)
    [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        if is_new_enough "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    if [[ -n ${PYTHON:-} ]]; then
        die "PYTHON=$PYTHON is missing or older than 3.11 (version: $("$PYTHON" --version 2>/dev/null || echo none))." \
            "Point PYTHON at Python 3.11 or newer."
    fi
    die "no Python 3.11 or newer here (python3: $(python3 --version 2>/dev/null || echo none))." \
        "Install one, or name it: PYTHON=/path/to/python3.11 scripts/setup.sh"
}

make_venv() {
    local base
    base=$(find_python)
    [[ ! -e $venv ]] || say ".venv holds no Python 3.11 or newer: making it anew"
    say "making .venv with $("$base" --version)"
    if ! "$base" -m venv --clear "$venv"; then
        rm -rf -- "$venv"
        die "$base could not make a virtual environment." \
            "Debian and Ubuntu need the package python3-venv; or name another interpreter with PYTHON=..."
    fi
}

# One line that changes whenever what is installed should change.
fingerprint() {
    (cd -- "$root" && "$python" -I - "$root" <<'PYTHON'
import hashlib, pathlib, sys
parts = [sys.argv[1].encode(), sys.version.encode()]
parts += [pathlib.Path(name).read_bytes() for name in ("pyproject.toml", "scripts/constraints.txt")]
print(hashlib.sha256(b"\0".join(parts)).hexdigest())
PYTHON
    )
}

# pip's own words go to the log; index addresses may hold passwords, so none is repeated here.
install() {
    local target=${*: -1}
    say "installing $target; the first time takes minutes and about 2 GB (words of pip: .venv/${log##*/})"
    if ! (cd -- "$root" && "$python" -m pip install --no-input --disable-pip-version-check --progress-bar off \
        -c scripts/constraints.txt "$@" 2>&1) | tee "$log" | progress; then
        sed -n -E 's#[a-z+]+://[^ ]*#(address)#g; /^ *(ERROR|error)/p' "$log" | tail -n 10 >&2
        die "pip could not install $target; all it said is in $log" \
            "Usual causes: no network or package index, a full disk, or a pin that this Python has no build of."
    fi
}

progress() {
    awk '/^ *Collecting / { n++; if (n % 20 == 0) { print "setup:   " n " packages found"; fflush() } }
         /^Installing collected/ { print "setup:   unpacking"; fflush() }'
}

extras=$(printf '%s\n' "$@" | sed '/^$/d' | sort -u)
is_new_enough "$python" || make_venv

now=$(fingerprint)
old=$(sed -n '1p' "$stamp" 2>/dev/null || true)
# Extras that are there already stay: quickstart.sh after test.sh must not undo it.
had=$(sed '1d' "$stamp" 2>/dev/null || true)
wanted=$(printf '%s\n%s\n' "$extras" "$had" | sed '/^$/d' | sort -u)

if [[ $now == "$old" && $wanted == "$had" ]]; then
    say ".venv is up to date"
    exit 0
fi
rm -f -- "$stamp"
list=$(printf '%s' "$wanted" | tr '\n' ',')
install -e ".${list:+[$list]}"
# FastEmbed asks for an older huggingface_hub than ours, to download models with; the tests read local folders only.
if grep -qx dev <<<"$wanted"; then install --no-deps fastembed; fi
printf '%s\n%s\n' "$now" "$wanted" | sed '/^$/d' >"$stamp"
say "done: .venv/bin/rankwright"
