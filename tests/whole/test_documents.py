"""The documents agree with the code: links, files, commands, rooms and the import rule that they name."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer.main

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "train" / "rankwright"
DOCUMENTS = [ROOT / "README.md", *(ROOT / d / "README.md" for d in ("recipes", "data", "train", "scripts"))]
DOCUMENTS.append(ROOT / "recipes" / "RESULTS.md")


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as forges make them."""
    titles = re.findall(r"^#+ (.+)$", without_code(text_of(path)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def layout_rules() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_layout", ROOT / "scripts" / "check_layout.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_layout"] = module
    spec.loader.exec_module(module)
    return module


def commands() -> set[str]:
    """Every command of the command line, as it is typed: `run`, `data check`."""
    from rankwright.cli.main import app

    group = typer.main.get_command(app)
    found = set()
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        below = {f"{name} {inner}" for inner in getattr(command, "commands", {})}
        # A group may itself be a command, as `recipes` is.
        found |= below | ({name} if not below or command.invoke_without_command else set())
    return found


def section(path: Path, title: str) -> str:
    _, _, after = text_of(path).partition(f"\n## {title}\n")
    return after.partition("\n## ")[0]


def test_the_first_page_is_short() -> None:
    assert len(text_of(ROOT / "README.md").splitlines()) <= 130


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_to_files_and_headings(path: Path) -> None:
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(text_of(path))):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    assert lost == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_scripts_and_modules_that_are_named_exist(path: Path) -> None:
    named = re.findall(
        r"(?<![\w/])((?:scripts|train/rankwright|recipes|data|tests)/[\w./-]+\.(?:py|sh|yaml|sbatch))", text_of(path)
    )
    assert [file for file in named if not (ROOT / file).is_file()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_commands_that_are_typed_exist(path: Path) -> None:
    known = commands()
    typed = re.findall(
        r"\brankwright ((?:(?:data|audit) )?[a-z]+)(?![\w/.:-])",
        "\n".join(re.findall(r"`[^`\n]+`|^    .+$", text_of(path), re.MULTILINE)),
    )
    assert {command for command in typed if command not in known and command.split()[0] not in known} - {
        "data",
        "audit",
    } == set()


def test_the_table_of_commands_is_complete() -> None:
    table = section(ROOT / "README.md", "Commands")
    first_cells = "\n".join(line.split(" | ")[0] for line in table.splitlines() if line.startswith("|"))
    named = set(re.findall(r"`rankwright ((?:(?:data|audit|recipes(?= show)) )?[a-z]+)", first_cells))
    assert named == commands()


def test_the_tree_of_the_package_is_complete() -> None:
    """Each file stands in train/README.md below its room, and nothing stands there that is no file."""
    listed: set[str] = set()
    folders: list[tuple[int, str]] = []
    for line in section(ROOT / "train" / "README.md", "The rooms").splitlines():
        found = re.match(r"( {6,20})([\w/]+(?:, \w+)*)  ", line)
        if found is None:
            continue
        depth, names = len(found[1]), found[2].split(", ")
        folders = [(d, f) for d, f in folders if d < depth]
        above = "".join(f for _, f in folders)
        for name in names:
            if name.endswith("/"):
                folders.append((depth, name))
            else:
                listed.add(f"{above}{name}.py")
    files = {f.relative_to(PACKAGE).as_posix() for f in PACKAGE.rglob("*.py") if not f.name.startswith("__")}
    assert files - listed == set() and listed - files == set()


def test_the_import_rule_is_the_checked_one() -> None:
    rules = layout_rules()
    table = section(ROOT / "train" / "README.md", "Which room may import which")
    told = {}
    for rooms, allowed in re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|$", table, re.MULTILINE):
        for room in re.findall(r"`(\w+)`", rooms):
            told[room] = set(re.findall(r"`(\w+)`", allowed)) if "all rooms" not in allowed else None
    assert set(told) == set(rules.MAY_IMPORT)
    assert {r: a for r, a in told.items() if a is not None} == {
        r: set(rules.may_import(r)) for r, a in told.items() if a is not None
    }
