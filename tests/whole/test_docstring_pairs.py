"""scripts/tools/docstring_pairs.py: pairs of docstring and code without it, each once, with their licences."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

from rankwright.data.formats.read import read_collection

TOOL = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "tools" / "docstring_pairs.py"))
CODE = '''
class Box:
    def area(self, scale):
        """Return the area of this box in square metres. It is never below zero."""
        return self.width * self.height * scale

    def bare(self):
        return self.width

def twice(a, b):
    """Return the area of this box in square metres."""
    return a * b

async def fetch(url, session):
    """Fetch a page and decode its text."""
    async with session.get(url) as answer:
        return await answer.text()
'''


def test_pairs_hold_code_without_its_docstring_and_occur_once(tmp_path: Path) -> None:
    source = tmp_path / "mine"
    (source / "tests").mkdir(parents=True)
    (source / "shapes.py").write_text(CODE)
    (source / "broken.py").write_text("def f(:\n")
    (source / "tests" / "shapes.py").write_text(CODE.replace("Fetch", "Get"))
    target = tmp_path / "pairs.jsonl"
    made = TOOL["write"](str(source), target, "MIT")
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    said = {row["docstring"] for row in rows}
    assert said == {"Return the area of this box in square metres", "Fetch a page and decode its text"}
    assert all('"""' not in row["code"] and row["code"].startswith(("def ", "async def ")) for row in rows)
    assert made == {"mine": {"version": "", "licence": "MIT", "pairs": 2}}
    assert json.loads((tmp_path / "pairs.jsonl.provenance.json").read_text()) == made
    first = target.read_bytes()
    TOOL["write"](str(source), target, "MIT")
    assert target.read_bytes() == first


def test_the_file_is_read_as_pairs(tmp_path: Path) -> None:
    (tmp_path / "shapes.py").write_text(CODE)
    target = tmp_path / "pairs.jsonl"
    TOOL["write"](str(tmp_path), target, "MIT")
    found = read_collection(target, name="code", columns={"query": "docstring", "document": "code"})
    assert len(found.queries) == 2 == len(found.corpus)


def test_an_installed_package_states_its_licence() -> None:
    name, version, licence = TOOL["about"]("yaml", None)
    assert (name.lower(), licence) == ("pyyaml", "MIT") and version
    assert TOOL["about"]("no_such_module", None) == ("no_such_module", "", "unknown")
