"""scripts/engines/run_snippet.py: every library has pins and a snippet, which is run as it stands."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from rankwright.export.card import EXAMPLE

ROOT = Path(__file__).resolve().parents[2]
ENGINES = ROOT / "scripts" / "engines"
TEMPLATES = ROOT / "train" / "rankwright" / "export" / "templates"
sys.path.insert(0, str(ENGINES))

from run_snippet import LIBRARIES, Snippet, find_snippet  # noqa: E402

LISTED = f"""
import math

loads = []
model = ("PATH", "FOLDER", loads.append(1))
scores = [math.floor(len(text) + len("{EXAMPLE[0]}")) for text in [{EXAMPLE[1]!r}]]
print(scores)
"""
SORTED = f"""
kept = model = "PATH"
print(sorted([(text, len(text + "{EXAMPLE[0]}")) for text in [{EXAMPLE[1]!r}]], key=lambda pair: -pair[1]))
"""


def test_every_library_has_pins_of_its_package_and_a_snippet() -> None:
    pins = {path.stem: path.read_text(encoding="utf-8") for path in (ENGINES / "libraries").glob("*.txt")}
    assert set(pins) == set(LIBRARIES)
    printed = "\n".join(path.read_text(encoding="utf-8") for path in TEMPLATES.glob("*.j2"))
    table = (ROOT / "scripts" / "README.md").read_text(encoding="utf-8")
    for name, (package, module, _) in LIBRARIES.items():
        [version] = re.findall(rf"^{package}==(\S+)$", pins[name], re.M)
        assert re.search(rf"^(import|from) {re.escape(module)}\b", printed, re.M), name
        row = next(line for line in table.splitlines() if package.lower() in line.lower() and f"| {version} |" in line)
        assert re.search(r"\de-\d", row), name


@pytest.mark.parametrize("text", [LISTED, SORTED], ids=["scores", "pairs, best first"])
def test_query_documents_and_folder_take_the_place_of_the_example(text: str, tmp_path: Path) -> None:
    snippet = Snippet(text, tmp_path)
    assert snippet.scores("four", ["a", "ccc"]) == [5.0, 7.0]
    assert snippet.scores("", ["bb"]) == [2.0]
    assert str(tmp_path) in str(snippet._names["model"])
    # The model is loaded once.
    assert snippet._names.get("loads", [1]) == [1]


def test_the_block_that_imports_the_library_is_found(tmp_path: Path) -> None:
    blocks = "```python\nfrom rerankers import Reranker\n```\n\n```bash\nimport mteb\n```\n```python\nimport x\n```\n"
    (tmp_path / "SERVE.md").write_text(blocks)
    (tmp_path / "README.md").write_text("")
    assert find_snippet(tmp_path, "rerankers") == "from rerankers import Reranker\n"
    assert find_snippet(tmp_path, "mteb") is None
