"""Checks what the linters cannot: where files lie, how long they are, that imports only go down the ladder.

Prints `file:line: rule` for each finding and exits with 1 when there is one. Standard library only.
Usage: python scripts/check_layout.py [ROOT]
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

TOP_LEVEL = {
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "train",
    "recipes",
    "data",
    "tests",
    "scripts",
}
PACKAGE = "train/rankwright"
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
# The training loop is meant to be read from top to bottom.
LONGER_FUNCTIONS = {("loop", "fit"): 90}

# Lowest rung first. A module imports only from rungs below its own; a folder counts as one module.
LADDER = (
    "errors console exits",
    "registry atomic kernels processes compressed json_text spill text_files",
    "recipe resources examples ranking frames calibration control text_store keyed_texts row_file kept_files",
    "prefixed recipe_keys",
    "rows prompts batching mixture yaml_file retrieve losses optim metrics stats tracking run_folder endpoints",
    "score_cache vectors run_file pair_scores instructions servable base_files reading json_array csv_rows arrow_rows",
    "containers group_builder table_files origin",
    "row_fields row_writers",
    "row_formats",
    "tuple_formats",
    "formats",
    "dense",
    "fusion",
    "first_stages licences",
    "licence_files",
    "loading cards splits layout tokens token_lengths data_files data_places",
    "shingles",
    "duplicates",
    "leakage",
    "pooling attention data_statistics text_traits taken_out filters",
    "blocks",
    "model",
    "sharding",
    "methods",
    "readers beir trec hub hub_nested reranker served mining checkpoint cross_encoder",
    "convert shapes samplers sift",
    "memory flops gpus fill mine_shards",
    "sources sampling",
    "ledger",
    "derived_licence",
    "export",
    "setup_model",
    "data_report user_files",
    "gradients mix_file",
    "plan",
    "checking evaluate",
    "baseline_kinds",
    "baselines",
    "guards evaluated stage_inputs query_attributes score_blocks teacher results speed gate",
    "loop compare slices false_negatives refresh",
    "prepare_stage mine_stage compare_output",
    "train_stage evaluate_stage",
    "export_stage calibrate_stage licence_stage push",
    "report names run_start",
    "pipeline",
    "recipe_text",
    "data_check init_recipe",
    "data_check_output",
    "data_commands model_commands",
    "cli",
)
# Members of one family may import one another, whatever their rungs.
FAMILIES = ("readers beir trec hub hub_nested",)
# These only hand on: `__init__` offers the public names lazily, `__main__` starts the command line.
ENTRANCES = {"__init__", "__main__"}

# The pieces are apart so that this file does not find itself.
MACHINE_PATH = re.compile(r"(?<![\w.~}\-])/(?:work|root|home)/|/tmp/" + r"w\b")
REGISTRY_HOST = re.compile(
    r"\b(?:pypi\.(?:org|python)|pythonhosted\.|download\.pytorch\.|anaconda\.|conda-forge\.org|registry\.npmjs)"
    r"|--(?:extra-)?index-" + r"url|\bindex-" + r"url\s*="
)
UNFINISHED = re.compile(r"\b(?:Not" + r"ImplementedError|TO" + r"DO|FIX" + r"ME)\b")

# Without git, these are not walked into (with git, .gitignore says it).
NOT_OURS = {"runs", "wandb", "dist", "build", "__pycache__", "PKG-INFO"}


class Finding(NamedTuple):
    """One broken rule; prints as `file:line: rule`."""

    path: str
    line: int
    rule: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}"


def repository_files(root: Path) -> list[str]:
    """Files that are tracked or would be on `git add .`; without git, all but hidden and made ones."""
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        answer = subprocess.run(command, capture_output=True, check=False)
        if answer.returncode == 0:
            names = answer.stdout.decode().split("\0")
            return sorted({name for name in names if name and (root / name).is_file()})
    return sorted(_walk(root))


def _walk(root: Path) -> Iterator[str]:
    for folder, folders, names in os.walk(root):
        folders[:] = [f for f in folders if f not in NOT_OURS and not f.startswith(".") and not f.endswith(".egg-info")]
        for name in names:
            if name not in NOT_OURS:
                yield (Path(folder) / name).relative_to(root).as_posix()


def check(root: Path) -> list[Finding]:
    """All findings of the repository at `root`, by file and line."""
    findings: list[Finding] = []
    for path in repository_files(root):
        findings += check_place(path)
        text = read_text(root / path)
        if text is None:
            continue
        findings += check_text(path, text)
        if path.endswith(".py") and path.startswith(("train/", "scripts/")):
            findings += check_python(path, text)
    return sorted(set(findings))


def read_text(path: Path) -> str | None:
    """The file's text; None for a binary file."""
    content = path.read_bytes()
    if b"\0" in content[:8192]:
        return None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None


def check_place(path: str) -> Iterator[Finding]:
    """Rules about where a file lies."""
    top, *rest = path.split("/")
    name = PurePosixPath(path).name
    if top not in TOP_LEVEL and not top.startswith("."):
        yield Finding(path, 1, f"top level: `{top}` is not among {', '.join(sorted(TOP_LEVEL))} and dotfiles")
    if top == "train" and (len(rest) < 2 or rest[0] != "rankwright"):
        yield Finding(path, 1, "train/ holds only rankwright/ (and no __init__.py: it is a folder, not a package)")
    if top == "data" and path.endswith((".py", ".ipynb")):
        yield Finding(path, 1, "data/ holds no Python")
    if top == "recipes":
        html_report = "reports" in rest[:-1] and name.endswith(".html")
        if not (name.endswith((".yaml", ".yml")) or name == "README.md" or html_report):
            yield Finding(path, 1, "recipes/ holds YAML and README.md only (and HTML in a folder reports/)")


def check_text(path: str, text: str) -> Iterator[Finding]:
    """Rules about words that no text file may hold."""
    rules = [
        (MACHINE_PATH, "absolute path of one machine"),
        (
            REGISTRY_HOST,
            "address of a package registry: the user's own pip settings say where packages come from",
        ),
    ]
    if path.startswith(f"{PACKAGE}/"):
        rules.append((UNFINISHED, "unfinished work"))
    for number, line in enumerate(text.splitlines(), start=1):
        for pattern, rule in rules:
            if found := pattern.search(line):
                yield Finding(path, number, f"{rule}: {found.group().strip()!r}")


def check_python(path: str, text: str) -> Iterator[Finding]:
    """Rules about Python files under train/ and scripts/."""
    lines = text.splitlines()
    if len(lines) > MAX_FILE_LINES:
        yield Finding(path, MAX_FILE_LINES + 1, f"{len(lines)} lines, at most {MAX_FILE_LINES}: split it by concept")
    if not says_what_for(lines):
        yield Finding(path, 1, "the first line must be a docstring or comment that says what the file is for")
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        yield Finding(path, error.lineno or 1, f"not Python: {error.msg}")
        return
    if path.startswith(f"{PACKAGE}/"):
        yield from check_functions(path, tree)
        yield from check_imports(path, tree)


def says_what_for(lines: list[str]) -> bool:
    """Whether the first line (after a `#!`) is a docstring with text on it, or a comment."""
    first = lines[1:2] if lines and lines[0].startswith("#!") else lines[:1]
    return bool(first) and re.match(r'(?:[rR]?"""|#)\s*\w', first[0].replace("`", "")) is not None


def check_functions(path: str, tree: ast.Module) -> Iterator[Finding]:
    """Functions from `def` to their last line; decorators do not count."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            limit = LONGER_FUNCTIONS.get((module_of(path), node.name), MAX_FUNCTION_LINES)
            if length > limit:
                yield Finding(path, node.lineno, f"function {node.name}: {length} lines, at most {limit}")


def check_imports(path: str, tree: ast.Module) -> Iterator[Finding]:
    """Imports of our own modules, inside functions too: downwards only."""
    module = module_of(path)
    if module in ENTRANCES:
        return
    rung = rung_of(module)
    if rung is None:
        yield Finding(path, 1, f"module {module} has no rung: place it in LADDER of scripts/check_layout.py")
        return
    for line, target in own_imports(path, tree):
        below = rung_of(target)
        related = any({module, target} <= set(family.split()) for family in FAMILIES)
        if target == module or related or below is None:
            continue  # an unplaced target is reported at its own file
        if below >= rung:
            way = "sideways" if below == rung else "upwards"
            yield Finding(path, line, f"imports {way}: {module} (rung {rung}) <- {target} (rung {below})")


def own_imports(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, module) of each import of a rankwright module; `import rankwright` itself is nobody's module."""
    package = PurePosixPath(path).relative_to("train").parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names: Iterable[str] = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            start = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{start}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "rankwright" and len(parts) > 1:
                yield node.lineno, parts[1]


def module_of(path: str) -> str:
    """train/rankwright/loop.py -> loop; train/rankwright/export/onnx.py -> export."""
    return PurePosixPath(path).relative_to(PACKAGE).parts[0].removesuffix(".py")


def rung_of(module: str) -> int | None:
    """Place on the ladder, 0 the lowest; None for a name that is not a placed module."""
    return next((rung for rung, names in enumerate(LADDER) if module in names.split()), None)


def main() -> int:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent).resolve()
    findings = check(root)
    for finding in findings:
        print(finding)
    print(f"layout: {len(findings)} findings" if findings else "layout: nothing found")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
