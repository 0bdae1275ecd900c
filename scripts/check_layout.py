"""Checks what the linters cannot: where files lie, which room imports which, lengths, plain English.

Prints `file:line: rule` for each finding and exits with 1 when there is one. Standard library only.
Usage: python scripts/check_layout.py [ROOT]
"""

from __future__ import annotations

import ast
import bisect
import io
import os
import re
import subprocess
import sys
import tokenize
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
# What a user or CI calls lies on top of scripts/; the rest in folders.
SCRIPTS = set("setup.sh quickstart.sh test.sh check.sh check_layout.py constraints.txt Dockerfile README.md".split())
SCRIPT_FOLDERS = set("bench engines cluster tiny_base tools".split())

# Room (folder of the package) -> rooms that it may import, itself always. From the ground floor up.
MAY_IMPORT = {
    "common": "",
    "recipe": "common",
    "data": "common recipe",
    "model": "common recipe data",
    "retrieval": "common recipe data",
    "rerankers": "common recipe data model retrieval",
    "supervision": "common recipe data retrieval rerankers",
    "mining": "common recipe data retrieval rerankers supervision",
    "training": "common recipe data model retrieval rerankers supervision mining",
    "evaluation": "common recipe data model retrieval rerankers",
    "export": "common data model rerankers",
    "report": "common recipe data retrieval mining training evaluation",
    "pipeline": "all above",
    "cli": "all above",
}
# Rooms whose own files import no torch: a page is drawn where no model can be loaded.
WITHOUT_TORCH = {"report"}
# `__init__` offers the public names lazily, `__main__` starts the command line; `py.typed` tells type checkers.
ENTRANCES = {"__init__.py", "__main__.py", "py.typed"}
# Packages whose `__init__` holds more than a docstring.
REGISTERS = {"export/targets/__init__.py"}

MAX_FILE_LINES = 500
MAX_FUNCTION = {"lines": 60, "parameters": 8}
# (file of the package, function, what) -> its own limit. Each entry states why.
OWN_LIMITS = {
    # The training loop is meant to be read from top to bottom.
    ("training/loop.py", "fit", "lines"): 90,
}
# Keywords of a function with one of these decorators are keys of a recipe or options of a command.
KEYWORDS_ARE_KEYS = {"register", "command"}
MAX_SENTENCE_WORDS = 35

# The pieces are apart so that this file does not find itself.
MACHINE_PATH = re.compile(r"(?<![\w.~}\-])/(?:work|root|home)/|/tmp/" + r"w\b")
REGISTRY_HOST = re.compile(
    r"\b(?:pypi\.(?:org|python)|pythonhosted\.|download\.pytorch\.|anaconda\.|conda-forge\.org|registry\.npmjs)"
    r"|--(?:extra-)?index-" + r"url|\bindex-" + r"url\s*="
)
UNFINISHED = re.compile(r"\b(?:Not" + r"ImplementedError|TO" + r"DO|FIX" + r"ME)\b")

# Without git, these are not walked into (with git, .gitignore says it).
NOT_OURS = {"runs", "wandb", "dist", "build", "__pycache__", "PKG-INFO"}


class Wording(NamedTuple):
    """A pattern that stops a native reader, over text with single spaces; and what to write instead."""

    pattern: re.Pattern[str]
    advice: str


# Texts and people say things, code does not.
_SPEAKERS = "".join(
    rf"(?<!\b{who} )"
    for who in "README author card documentation licence license paper person recipe source user".split()
)
# Before an `otherwise` that means "differently"; after `if`, `unless`, `or` and `would` it is common English.
_TREATED = (
    "behaves? computed counted cut done formatted handled? named orders? ordered reads? said scores? scored sorts? "
    "sorted spell(?:s|ed) tokenis(?:es?|ed) treats? treated works? writes? written"
).replace(" ", "|")
# These, `there is no X` and `is no better than` are common English.
_NO = r"(?!(?:more|longer|less|fewer|need|difference|doubt|one|other|better|worse)\b|\w+er than\b)"
WORDINGS = [
    Wording(re.compile(pattern), advice)
    for pattern, advice in (
        (r"\ba (?:line|row|record|column|number) an? (?!few\b|little\b)\w+", "write `one line per fault`"),
        (rf"(?<!(?i:there) )\b(?:is|are|was|were|be) no {_NO}[a-z{{`]\w*", "write `is not a ...`"),
        (r"\b(?i:nobody|no one) (?:has |had )?judged\b", "write `unjudged`"),
        (r"\b(?:is|are|was|were) told\b(?! apart)", "write `is reported`, `is logged` or `is raised`"),
        (rf"{_SPEAKERS}\bsays\b", "write `reports`, `states`, `logs`, `raises` or `prints`"),
        (r"\bOf [a-z0-9{`]\S*", "begin the sentence with its subject"),
        (r"(?<!share-)\b(?i:alike)\b", "write `the same way`, `similar` or `equal`"),
        (r"\b(?i:twins?)\b", "write `duplicate`"),
        (r"\b(?i:spell(?:s|ed|t))\b", "write `formats` or `formatted`"),
        (r"\b(?:kept|keeps?|keeping|held) apart\b", "write `held out` or `separate`"),
        (rf"\b(?:{_TREATED}) otherwise\b|\botherwise than\b", "write `differently`"),
    )
]


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
    trees: dict[str, ast.Module] = {}
    for path in repository_files(root):
        findings += check_place(path)
        text = read_text(root / path)
        if text is None:
            continue
        findings += check_text(path, text)
        if path.endswith((".md", ".j2")) and path != "CHANGELOG.md":
            findings += check_wording(path, [Passage(1, prose_of_template(text) if path.endswith(".j2") else text)])
        if path == "README.md":
            findings += check_sentences(path, text)
        if path.endswith(".py") and path.startswith(("train/", "scripts/")):
            findings += check_file(path, text)
            try:
                tree = ast.parse(text)
            except SyntaxError as error:
                findings.append(Finding(path, error.lineno or 1, f"not Python: {error.msg}"))
                continue
            if path.startswith(f"{PACKAGE}/"):
                trees[path] = tree
                findings += check_functions(path, tree)
                findings += check_imports(path, tree)
                findings += check_init(path, tree)
                findings += check_wording(path, passages_of_python(text, tree))
    findings += check_circles(trees)
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
    if top == "train" and rest != ["README.md"]:
        if len(rest) < 2 or rest[0] != "rankwright":
            yield Finding(
                path, 1, "train/ holds only README.md and rankwright/ (no __init__.py: it is a folder, not a package)"
            )
        elif len(rest) == 2 and name not in ENTRANCES:
            yield Finding(path, 1, f"lies in no room: move it into one of {', '.join(MAY_IMPORT)}")
        elif len(rest) > 2 and rest[1] not in MAY_IMPORT:
            yield Finding(path, 1, f"unknown room {rest[1]}: place it in MAY_IMPORT of scripts/check_layout.py")
    if top == "data" and path.endswith((".py", ".ipynb")):
        yield Finding(path, 1, "data/ holds no Python")
    if top == "recipes":
        html_report = "reports" in rest[:-1] and name.endswith(".html")
        if not (name.endswith((".yaml", ".yml", ".md", ".ipynb")) or rest == ["schema.json"] or html_report):
            what = "YAML, Markdown, notebooks and schema.json only (and HTML in a folder reports/)"
            yield Finding(path, 1, f"recipes/ holds {what}")
    if top == "tests" and not (rest == ["conftest.py"] or lies_in_mirror(rest)):
        yield Finding(
            path, 1, "tests/ holds conftest.py, test_*.py in tests/<room>/ or tests/whole/, helpers in tests/support/"
        )
    if top == "scripts" and rest[0] not in (SCRIPTS if len(rest) == 1 else SCRIPT_FOLDERS):
        allowed = ", ".join(sorted(SCRIPTS) + [f"{folder}/" for folder in sorted(SCRIPT_FOLDERS)])
        yield Finding(path, 1, f"scripts/ holds only {allowed}")


def lies_in_mirror(rest: list[str]) -> bool:
    """Whether a path below tests/ is a test of a room or of the whole, or a helper."""
    a_test = rest[-1].startswith("test_") and rest[-1].endswith(".py")
    if len(rest) < 2:
        return False
    return not a_test if rest[0] == "support" else a_test and rest[0] in {*MAY_IMPORT, "whole"}


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


class Passage(NamedTuple):
    """Text for readers and the line of its file where it begins."""

    line: int
    text: str


def check_wording(path: str, passages: Iterable[Passage]) -> Iterator[Finding]:
    """The patterns of WORDINGS, over the ends of lines too; names between backticks are not read."""
    for passage in passages:
        words = words_with_lines(re.sub(r"`[^`\n]+`", "`x`", passage.text), passage.line)
        text = " ".join(word for word, _ in words)
        starts = [0]
        for word, _ in words:
            starts.append(starts[-1] + len(word) + 1)
        for pattern, advice in WORDINGS:
            for found in pattern.finditer(text):
                line = words[bisect.bisect_right(starts, found.start()) - 1][1]
                around = text[max(0, found.start() - 20) : found.end() + 20].strip()
                yield Finding(path, line, f"English: {found.group()!r} in {around!r}: {advice}")


def words_with_lines(text: str, first: int) -> list[tuple[str, int]]:
    """Words of a text whose first line has the number `first`, each with its line."""
    return [(word, number) for number, line in enumerate(text.split("\n"), start=first) for word in line.split()]


def passages_of_python(text: str, tree: ast.Module) -> Iterator[Passage]:
    """Comments (lines that follow each other are one passage), docstrings and strings with a space in them."""
    comments = [Passage(0, "")]
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        line, words, before = token.start[0], token.string.lstrip("#: "), comments[-1]
        if token.line.lstrip().startswith("#") and before.line + before.text.count("\n") + 1 == line:
            comments[-1] = Passage(before.line, f"{before.text}\n{words}")
        else:
            comments.append(Passage(line, words))
    yield from comments
    pieces = {id(piece) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for piece in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(piece.value) if isinstance(piece, ast.Constant) else "{}" for piece in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in pieces:
            text = node.value
        else:
            continue
        if " " in text:
            one_literal = text.count("\n") == (node.end_lineno or node.lineno) - node.lineno
            # Where the pieces of a string begin is not known: the first one's line stands for all.
            yield Passage(node.lineno, text if one_literal else text.replace("\n", " "))


def prose_of_template(text: str) -> str:
    """A Jinja template with the same lines; its expressions are reduced to their quoted strings."""

    def quoted(found: re.Match[str]) -> str:
        strings = re.findall(r"""["']([^"'\n]*)["']""", found.group())
        return "{" + " ".join(strings) + "}" + "\n" * found.group().count("\n")

    return re.sub(r"\{\{.*?\}\}|\{%.*?%\}", quoted, text, flags=re.DOTALL)


def check_sentences(path: str, text: str) -> Iterator[Finding]:
    """Sentences above MAX_SENTENCE_WORDS in a Markdown text; code within a line is one word, a link's target none."""
    for passage in paragraphs(text):
        prose = re.sub(r"\]\([^)\s]*\)", "]", re.sub(r"`[^`]+`", _one_word, passage.text))
        words = [(word, line) for word, line in words_with_lines(prose, passage.line) if re.search(r"\w", word)]
        begin = 0
        for place, (word, _) in enumerate(words, start=1):
            ends = re.search(r"[.!?][\"')\]*_]*$", word) and not re.match(r"\W*(?:e\.g|i\.e|cf|vs|etc|al)\.", word)
            if place == len(words) or (ends and not words[place][0].lstrip("\"'([*_")[:1].islower()):
                if place - begin > MAX_SENTENCE_WORDS:
                    start = " ".join(word for word, _ in words[begin : begin + 5])
                    rule = f"a sentence of {place - begin} words, at most {MAX_SENTENCE_WORDS}: {start} ..."
                    yield Finding(path, words[begin][1], rule)
                begin = place


def _one_word(code: re.Match[str]) -> str:
    return "Code" + "\n" * code.group().count("\n")


def paragraphs(text: str) -> Iterator[Passage]:
    """Paragraphs and list items of a Markdown text; not code, tables, headings and HTML."""
    lines: list[str] = []
    fenced = False
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        bare = line.strip()
        fence = bare.startswith("```")
        # Four spaces after an empty line are code, after text they continue it.
        skipped = fenced or fence or not bare or bare[0] in "|#<" or (not lines and line.startswith("    "))
        fenced = fenced != fence
        if lines and (skipped or re.match(r"(?:[-*+]|\d+\.) ", bare)):
            yield Passage(number - len(lines), "\n".join(lines))
            lines = []
        if not skipped:
            lines.append(line)


def check_file(path: str, text: str) -> Iterator[Finding]:
    """Length and first line of a Python file."""
    lines = text.splitlines()
    if len(lines) > MAX_FILE_LINES:
        yield Finding(path, MAX_FILE_LINES + 1, f"{len(lines)} lines, at most {MAX_FILE_LINES}: split it by concept")
    if not says_what_for(lines):
        yield Finding(path, 1, "the first line must be a docstring or comment that says what the file is for")


def says_what_for(lines: list[str]) -> bool:
    """Whether the first line (after a `#!`) is a docstring with text on it, or a comment."""
    first = lines[1:2] if lines and lines[0].startswith("#!") else lines[:1]
    return bool(first) and re.match(r'(?:[rR]?"""|#)\s*\w', first[0].replace("`", "")) is not None


def check_functions(path: str, tree: ast.Module) -> Iterator[Finding]:
    """Functions from `def` to their last line (decorators do not count) and their parameters."""
    file = str(PurePosixPath(path).relative_to(PACKAGE))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            measured = {"lines": (node.end_lineno or node.lineno) - node.lineno + 1, "parameters": parameters(node)}
            for what, limit in MAX_FUNCTION.items():
                limit = OWN_LIMITS.get((file, node.name, what), limit)
                if measured[what] > limit:
                    yield Finding(path, node.lineno, f"function {node.name}: {measured[what]} {what}, at most {limit}")


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Named parameters without self and cls; 0 where they are keys of a recipe or options of a command."""
    for decorator in function.decorator_list:
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        if isinstance(called, ast.Attribute) and called.attr in KEYWORDS_ARE_KEYS:
            return 0
    places = [*function.args.posonlyargs, *function.args.args]
    bound = bool(places) and places[0].arg in ("self", "cls")
    return len(places) - bound + len(function.args.kwonlyargs)


def check_init(path: str, tree: ast.Module) -> Iterator[Finding]:
    """The `__init__` of a room or a folder of it is a docstring: one import path a name."""
    file = PurePosixPath(path).relative_to(PACKAGE)
    if file.name != "__init__.py" or len(file.parts) == 1 or str(file) in REGISTERS:
        return
    for node in tree.body:
        docstring = node is tree.body[0] and ast.get_docstring(tree) is not None
        if not docstring and not (isinstance(node, ast.ImportFrom) and node.module == "__future__"):
            yield Finding(path, node.lineno, "an __init__ holds only a docstring: import names from where they are")
            return


def check_imports(path: str, tree: ast.Module) -> Iterator[Finding]:
    """Imports of other rooms, inside functions and under TYPE_CHECKING too: those of MAY_IMPORT only."""
    room = room_of(path)
    if room is None:
        return  # an entrance, or reported by its place
    allowed = may_import(room)
    for line, name in imported(path, tree):
        top, _, below = name.partition(".")
        target = below.partition(".")[0]
        if top == "torch" and room in WITHOUT_TORCH:
            yield Finding(path, line, f"{room}/ imports no torch")
        if top != "rankwright" or not target or target in (room, "__version__"):
            continue
        if target not in MAY_IMPORT:
            yield Finding(path, line, f"imports rankwright.{target}, which is not a room: import names from their room")
        elif target not in allowed:
            may = ", ".join(allowed) or "no other room"
            yield Finding(path, line, f"room {room} imports {target}: it may import {may}")


def may_import(room: str) -> list[str]:
    """Other rooms that a room may import."""
    if MAY_IMPORT[room] != "all above":
        return MAY_IMPORT[room].split()
    rooms = list(MAY_IMPORT)
    return rooms[: rooms.index(room)]


def room_of(path: str) -> str | None:
    """train/rankwright/data/formats/beir.py -> data; None for a file in no known room."""
    parts = PurePosixPath(path).relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 and parts[0] in MAY_IMPORT else None


def imported(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of each import; of `from a import b` the name is a.b."""
    package = PurePosixPath(path).relative_to("train").parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            start = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{start}.{alias.name}") for alias in node.names)


def check_circles(trees: dict[str, ast.Module]) -> Iterator[Finding]:
    """Files of one room that import one another in a circle; circles between rooms break MAY_IMPORT."""
    files = {str(PurePosixPath(path).relative_to("train").with_suffix("")): path for path in trees}
    files = {name.removesuffix("/__init__").replace("/", "."): path for name, path in files.items()}
    lines: dict[str, dict[str, int]] = {path: {} for path in trees}  # file -> file of the same room -> line
    for path, tree in trees.items():
        for line, name in imported(path, tree):
            while name and name not in files:
                name = name.rpartition(".")[0]
            target = files.get(name, "")
            if target and room_of(path) and room_of(path) == room_of(target):
                lines[path].setdefault(target, line)
    reached = {path: reachable(path, lines) for path in trees}
    done: set[str] = set()
    for path in sorted(trees):
        circle = {other for other in reached[path] if path in reached[other]} - done
        if circle:
            done |= circle
            line = min(number for target, number in lines[path].items() if target in circle)
            names = ", ".join(str(PurePosixPath(file).relative_to(PACKAGE)) for file in sorted(circle))
            yield Finding(path, line, f"files import one another in a circle: {names}")


def reachable(start: str, targets: dict[str, dict[str, int]]) -> set[str]:
    """All that one comes to from `start`; itself only where a way leads back."""
    found: set[str] = set()
    waiting = list(targets[start])
    while waiting:
        if (path := waiting.pop()) not in found:
            found.add(path)
            waiting += targets[path]
    return found


def main() -> int:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent).resolve()
    findings = check(root)
    for finding in findings:
        print(finding)
    print(f"layout: {len(findings)} findings" if findings else "layout: nothing found")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
