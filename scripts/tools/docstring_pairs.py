"""Weak pairs for `pretrain.pairs`: what a function's docstring says first, and its code without the docstring.

python scripts/tools/docstring_pairs.py stdlib pairs.jsonl        the standard library of this Python
python scripts/tools/docstring_pairs.py packages pairs.jsonl      all packages of this environment
python scripts/tools/docstring_pairs.py FOLDER pairs.jsonl --licence MIT    files of your own

Each row is {docstring, code, package, place}. Beside it lies FILE.provenance.json: package -> version, licence and
number of pairs. Pairs whose docstring or code occurs before are left out. The same files give the same bytes.
"""

from __future__ import annotations

import argparse
import ast
import json
import platform
import sysconfig
import textwrap
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

from rankwright.common.files import json_line, write_lines_atomic, write_text_atomic
from rankwright.data.normalisation import normalised
from rankwright.data.passages import Passage
from rankwright.supervision.queries.templates import Places, docstring

# Functions beyond this are no answer that anyone would read.
MOST_LINES = 80
STDLIB, PACKAGES = "stdlib", "packages"
TESTS = {"test", "tests", "testing", "idlelib", "lib2to3", "site-packages", "__pycache__"}
UNKNOWN = "unknown"


def pairs_of(text: str) -> Iterator[tuple[str, str, int]]:
    """(docstring, code, line) of the functions of a Python file that say what they do; none for a broken file."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    lines = text.splitlines()
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.end_lineno is None:
            continue
        if node.end_lineno - node.lineno >= MOST_LINES:
            continue
        code = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
        found = docstring(Passage("", code, "", "", "", True, "", ""), Places([]))
        if found is not None:
            yield found.text, found.left, node.lineno


@cache
def _packages() -> dict[str, list[str]]:
    return {module: sorted(set(names)) for module, names in metadata.packages_distributions().items()}


def about(module: str, licence: str | None) -> tuple[str, str, str]:
    """(package, version, licence) of a top module; of the standard library, of an installed package, or as stated."""
    if licence is not None:
        return module, "", licence
    for name in _packages().get(module, ())[:1]:
        stated = metadata.metadata(name)
        words = stated.get("License-Expression") or stated.get("License") or ""
        classes = [c.rpartition("::")[2].strip() for c in stated.get_all("Classifier") or () if c.startswith("License")]
        first = words.strip().splitlines()[0][:100] if words.strip() else ""
        return name, metadata.version(name), first or ", ".join(classes) or UNKNOWN
    return module, "", UNKNOWN


def rows_of(folder: Path, licence: str | None, *, is_stdlib: bool = False) -> Iterator[tuple[dict[str, str], str, str]]:
    """(row, version, licence) of all pairs below a folder, in the order of paths."""
    for path in sorted(folder.rglob("*.py")):
        place = path.relative_to(folder)
        if TESTS & {*place.parts[:-1]} or place.name.startswith("test_"):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        module = place.parts[0].removesuffix(".py") if len(place.parts) > 1 or licence is None else folder.name
        if is_stdlib:
            name, version, terms = "python", platform.python_version(), "PSF-2.0"
        else:
            name, version, terms = about(module, licence)
        for said, code, line in pairs_of(text):
            row = {"docstring": said, "code": code, "package": name, "place": f"{place.as_posix()}:{line}"}
            yield row, version, terms


def write(source: str, target: Path, licence: str | None = None) -> dict[str, dict[str, object]]:
    """Write the pairs of a source and their provenance; returns the provenance."""
    folders = {STDLIB: Path(sysconfig.get_path("stdlib")), PACKAGES: Path(sysconfig.get_path("purelib"))}
    seen: set[str] = set()
    counts: Counter[str] = Counter()
    terms: dict[str, tuple[str, str]] = {}

    def lines() -> Iterator[str]:
        for row, version, stated in rows_of(folders.get(source, Path(source)), licence, is_stdlib=source == STDLIB):
            keys = {normalised(row["docstring"]), normalised(row["code"])}
            if keys & seen:
                continue
            seen.update(keys)
            counts[row["package"]] += 1
            terms[row["package"]] = (version, stated)
            yield json_line(row)

    write_lines_atomic(target, lines())
    made: dict[str, dict[str, object]] = {
        name: {"version": terms[name][0], "licence": terms[name][1], "pairs": counts[name]} for name in sorted(counts)
    }
    write_text_atomic(target.with_name(f"{target.name}.provenance.json"), json.dumps(made, indent=2) + "\n")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help=f"{STDLIB}, {PACKAGES}, or a folder of Python files")
    parser.add_argument("target", type=Path, help="the file of pairs, .jsonl")
    parser.add_argument("--licence", help="the licence of a folder's files; else that of each installed package")
    arguments = parser.parse_args()
    if arguments.source not in (STDLIB, PACKAGES) and not Path(arguments.source).is_dir():
        parser.error(f"{arguments.source}: no such folder: give {STDLIB}, {PACKAGES} or a folder")
    made = write(arguments.source, arguments.target, arguments.licence)
    total = sum(int(str(one["pairs"])) for one in made.values())
    unknown = [name for name, one in made.items() if one["licence"] == UNKNOWN]
    print(f"{arguments.target}: {total:,} pairs of {len(made):,} packages; licence unknown: {len(unknown):,}")


if __name__ == "__main__":
    main()
