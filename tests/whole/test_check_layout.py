"""scripts/check_layout.py on small trees: each rule finds what breaks it and passes what does not."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_layout", ROOT / "scripts" / "check_layout.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


layout = _script()
PACKAGE = "train/rankwright"


def findings(root: Path, files: dict[str, str]) -> list[str]:
    """What is found in a tree of `files` (path -> text), as printed. Python files get a first line that fits."""
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        heading = '"""What it is for."""\n' if path.endswith(".py") and path.startswith(("train/", "scripts/")) else ""
        (root / path).write_text(heading + text, encoding="utf-8")
    return [str(finding) for finding in layout.check(root)]


def in_package(root: Path, files: dict[str, str]) -> list[str]:
    """The same for files of the package, the paths without its folder."""
    found = findings(root, {f"{PACKAGE}/{path}": text for path, text in files.items()})
    return [finding.removeprefix(f"{PACKAGE}/") for finding in found]


@pytest.mark.parametrize(
    "path",
    [
        "README.md",
        ".editorconfig",
        "train/README.md",
        "train/rankwright/__init__.py",
        "train/rankwright/__main__.py",
        "train/rankwright/py.typed",
        "train/rankwright/data/formats/beir.py",
        "train/rankwright/report/templates/page.html.j2",
        "recipes/quickstart.yaml",
        "recipes/mining.md",
        "recipes/schema.json",
        "recipes/reports/finance.html",
        "data/fixtures/code/corpus.jsonl",
        "tests/conftest.py",
        "tests/data/test_splits.py",
        "tests/export/verify/test_server.py",
        "tests/whole/test_packaging.py",
        "tests/support/tiny.py",
        "tests/support/words.txt",
        "scripts/setup.sh",
        "scripts/check_layout.py",
        "scripts/README.md",
        "scripts/bench/data.py",
        "scripts/cluster/slurm/train.sbatch",
    ],
)
def test_files_in_their_place(path: str) -> None:
    assert list(layout.check_place(path)) == []


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("notes.txt", "top level"),
        ("src/rankwright/data/splits.py", "top level"),
        ("train/__init__.py", "train/ holds only"),
        ("train/other/splits.py", "train/ holds only"),
        ("train/rankwright/splits.py", "lies in no room"),
        ("train/rankwright/README.md", "lies in no room"),
        ("train/rankwright/utils/splits.py", "unknown room utils"),
        ("train/rankwright/templates/report.html.j2", "unknown room templates"),
        ("recipes/quickstart.py", "recipes/ holds"),
        ("recipes/finance.html", "recipes/ holds"),
        ("recipes/offline/schema.json", "recipes/ holds"),
        ("data/fixtures/make.py", "data/ holds no Python"),
        ("data/look.ipynb", "data/ holds no Python"),
        ("tests/test_splits.py", "tests/ holds"),
        ("tests/tiny.py", "tests/ holds"),
        ("tests/data/conftest.py", "tests/ holds"),
        ("tests/data/helper.py", "tests/ holds"),
        ("tests/support/test_splits.py", "tests/ holds"),
        ("tests/kitchen/test_splits.py", "tests/ holds"),
        ("scripts/bench.py", "scripts/ holds only"),
        ("scripts/slurm/train.sbatch", "scripts/ holds only"),
    ],
)
def test_files_out_of_place(path: str, rule: str) -> None:
    (finding,) = layout.check_place(path)
    assert rule in finding.rule


def test_a_folder_without_git_is_walked_without_what_was_made(tmp_path: Path) -> None:
    made = {"runs/a/notes.txt": "", "dist/a.whl": "", ".venv/a.py": "", "train/rankwright.egg-info/PKG-INFO": ""}
    assert findings(tmp_path, {**made, "stray.txt": ""})[0].startswith("stray.txt:1: top level")
    assert len(findings(tmp_path, {})) == 1


def test_rooms_import_only_what_the_table_allows(tmp_path: Path) -> None:
    assert in_package(
        tmp_path,
        {
            "__init__.py": "from rankwright.pipeline.stages import Pipeline\n",
            "__main__.py": "from rankwright.cli.main import main\n",
            "data/splits.py": "import json\nfrom rankwright.common import errors\nimport rankwright.recipe.schema\n",
            "pipeline/stages.py": "from rankwright.report import page\n",
            "cli/main.py": "from ..pipeline.stages import Pipeline\n",
        },
    ) == []  # fmt: skip
    assert in_package(
        tmp_path,
        {
            "data/splits.py": "import rankwright.model.prompt\n",
            "common/errors.py": "from rankwright.recipe.schema import Recipe\n",
            "pipeline/stages.py": "from ..cli import main\n",
        },
    ) == [
        "common/errors.py:2: room common imports recipe: it may import no other room",
        "data/splits.py:2: room data imports model: it may import common, recipe",
        "pipeline/stages.py:2: room pipeline imports cli: it may import common, recipe, data, model, retrieval,"
        " rerankers, supervision, mining, training, evaluation, export, report",
    ]


def test_imports_in_functions_and_for_type_checking_count(tmp_path: Path) -> None:
    code = """from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from rankwright.training import loop
def f():
    from ...export.target import Target
"""
    assert in_package(tmp_path, {"data/formats/beir.py": code}) == [
        "data/formats/beir.py:4: room data imports training: it may import common, recipe",
        "data/formats/beir.py:6: room data imports export: it may import common, recipe",
    ]


def test_rooms_import_neither_the_entrance_nor_a_room_that_is_not_there(tmp_path: Path) -> None:
    code = "from rankwright import Pipeline\nfrom rankwright.kitchen import pans\n"
    assert in_package(tmp_path, {"cli/main.py": code}) == [
        "cli/main.py:2: imports rankwright.Pipeline, which is not a room: import names from their room",
        "cli/main.py:3: imports rankwright.kitchen, which is not a room: import names from their room",
    ]


def test_the_report_imports_no_torch(tmp_path: Path) -> None:
    code = "def f():\n    import torch.nn\n    from torch import Tensor\n    import torchless\n"
    assert in_package(tmp_path, {"report/page.py": code, "evaluation/gate.py": code}) == [
        "report/page.py:3: report/ imports no torch",
        "report/page.py:4: report/ imports no torch",
    ]


def test_the_tables_rooms_come_from_the_ground_floor_up() -> None:
    rooms = list(layout.MAY_IMPORT)
    for room in rooms:
        assert all(rooms.index(other) < rooms.index(room) for other in layout.may_import(room))


def test_files_of_a_room_that_import_one_another_in_a_circle(tmp_path: Path) -> None:
    assert in_package(
        tmp_path,
        {
            "data/a.py": "from rankwright.data.formats import b\n",
            "data/formats/b.py": "def f():\n    from ..c import name\n",
            "data/c.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import rankwright.data.a\n",
            "data/above.py": "from rankwright.data.a import name\n",
            "data/itself.py": "from rankwright.data.itself import name\n",
        },
    ) == [
        "data/a.py:2: files import one another in a circle: data/a.py, data/c.py, data/formats/b.py",
        "data/itself.py:2: files import one another in a circle: data/itself.py",
    ]


def test_files_that_import_each_other_in_an_order(tmp_path: Path) -> None:
    assert in_package(
        tmp_path,
        {
            "data/__init__.py": "",
            "data/a.py": "from rankwright.data import b, c\n",
            "data/b.py": "from rankwright.data.c import name\nfrom rankwright.data.formats.d import name\n",
            "data/c.py": "",
            "data/formats/__init__.py": "",
            "data/formats/d.py": "from rankwright.data.c import name\n",
            "export/targets/__init__.py": "from rankwright.export.targets import hf\n",
            "export/targets/hf.py": "from rankwright.export import target\n",
            "export/target.py": "",
        },
    ) == []  # fmt: skip


def test_a_registering_init_and_its_member_are_a_circle_when_both_import(tmp_path: Path) -> None:
    (finding,) = in_package(
        tmp_path,
        {
            "export/targets/__init__.py": "from rankwright.export.targets import hf\n",
            "export/targets/hf.py": "from rankwright.export.targets import TARGETS\n",
        },
    )
    assert finding.endswith("in a circle: export/targets/__init__.py, export/targets/hf.py")


def test_an_init_holds_a_docstring_only(tmp_path: Path) -> None:
    code = "from __future__ import annotations\nfrom rankwright.common import errors\nX = 1\n"
    rule = "an __init__ holds only a docstring: import names from where they are"
    assert in_package(
        tmp_path,
        {
            "__init__.py": code,
            "export/targets/__init__.py": code,
            "model/__init__.py": "from __future__ import annotations\n",
            "data/__init__.py": code,
            "data/formats/__init__.py": "X = 1\n",
        },
    ) == [f"data/__init__.py:3: {rule}", f"data/formats/__init__.py:2: {rule}"]


def test_lengths_of_files_and_functions(tmp_path: Path) -> None:
    def function(name: str, lines: int) -> str:
        return f"def {name}():\n" + "    pass\n" * (lines - 1)

    assert in_package(
        tmp_path,
        {
            "common/long.py": "x = 1\n" * 499,
            "common/longer.py": "x = 1\n" * 500,
            "common/functions.py": function("f", 60) + "@cache\n" + function("g", 61),
            "training/loop.py": function("fit", 90) + function("step", 61),
            "mining/loop.py": function("fit", 61),
        },
    ) == [
        "common/functions.py:63: function g: 61 lines, at most 60",
        "common/longer.py:501: 501 lines, at most 500: split it by concept",
        "mining/loop.py:2: function fit: 61 lines, at most 60",
        "training/loop.py:92: function step: 61 lines, at most 60",
    ]
    assert findings(tmp_path / "scripts", {"scripts/bench/data.py": "x = 1\n" * 500})[0].startswith(
        "scripts/bench/data.py:501"
    )


def test_parameters_of_functions(tmp_path: Path) -> None:
    eight, nine = "a, b, c, d, /, e, f, *, g, h", "a, b, c, d, e=1, *args, f, g, h, i=2, **kwargs"
    code = f"""def eight({eight}): ...
def nine({nine}): ...
class C:
    def eight(self, {eight}): ...
    @classmethod
    def nine(cls, {nine}): ...
@LOSSES.register("listwise")
def loss({nine}): ...
@registry.LOSSES.register
def loss({nine}): ...
@app.command
def train({nine}): ...
@app.command("evaluate")
def evaluate({nine}): ...
@register
def other({nine}): ...
@dataclass
class Row:
    a: int; b: int; c: int; d: int; e: int; f: int; g: int; h: int; i: int
"""
    assert in_package(tmp_path, {"common/errors.py": code}) == [
        f"common/errors.py:{line}: function {name}: 9 parameters, at most 8"
        for line, name in ((3, "nine"), (7, "nine"), (17, "other"))
    ]


def test_a_function_with_a_limit_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"common/errors.py": "def f(a, b, c, d, e, f, g, h, i): ...\n"}
    assert len(in_package(tmp_path, files)) == 1
    monkeypatch.setitem(layout.OWN_LIMITS, ("common/errors.py", "f", "parameters"), 9)
    assert in_package(tmp_path, files) == []


@pytest.mark.parametrize(
    "text",
    [
        "Prints a line a fault.",
        "It writes a row a query.",
        "'x' is no whole number",
        "Sets that are no guards",
        "`x` is no `y`",
        "documents that nobody judged",
        "documents that nobody had judged",
        "How often it is told",
        "The stage says how many.",
        "Of each set, one row.",
        "It is: Of {n} rows, one.",
        "Rows are read alike.",
        "Alike, they are one.",
        "no twins",
        "as the file spelled it",
        "a file spells it",
        "dev is kept apart from train",
        "texts are read otherwise",
        "otherwise than before",
    ],
)
def test_english_that_has_to_be_read_twice(text: str) -> None:
    assert len(list(layout.check_wording("README.md", [layout.Passage(1, text)]))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "One line per fault; a line and a row; a line a few words long.",
        "It is no longer there and there is no such file. There is no column.",
        "There is no difference, it is no more than 3 and is no larger than that. It is no better.",
        "'x' is not a whole number",
        "unjudged documents, which a person judged later",
        "They are told apart by their text; he told us.",
        "The licence says so, and the recipe says 2. He said so.",
        "the row of each set. A set of `Of the`. OF THESE",
        "a share-alike licence; `alike`; likely",
        "between; twinkle",
        "spelling; the spell checker; misspelled",
        "It is kept. Apart from that, kinds are apart.",
        "Otherwise it stops. Private, unless set otherwise. It would otherwise read on.",
    ],
)
def test_english_that_reads_well(text: str) -> None:
    assert list(layout.check_wording("README.md", [layout.Passage(1, text)])) == []


def test_english_of_the_package(tmp_path: Path) -> None:
    code = '''"""Reads
rows, a line
    a row.
"""

# What the stage
# says.
x = 1  # as the stage says
y = {"alike": 1, "says": 2}
raise UserError(f"{x!r} is no {kind}")
raise UserError(
    "one piece, "
    "twins in another"
)
says = alike = spelled = y
'''
    found = in_package(tmp_path, {"common/errors.py": code})
    places = [finding.split(": English: ")[0] for finding in found]
    assert places == [f"common/errors.py:{line}" for line in (3, 8, 9, 11, 13)]
    assert found[0].endswith("'a line a row' in 'Reads rows, a line a row.': write `one line per fault`")


def test_english_of_documents_and_templates(tmp_path: Path) -> None:
    template = """<p>{{ value | spelled }} rows, {{ "read alike" if alike else 'apart' }}</p>
{% for row in
   twins %}
Of {{ n }} rows{# the page says #}
{% endfor %}
"""
    found = findings(
        tmp_path,
        {
            f"{PACKAGE}/report/templates/page.html.j2": template,
            "data/README.md": "# Data\n\n- x\n- Of the\n  rows\n\n`twins`\n",
            "CHANGELOG.md": "Of the rows, read alike.\n",
            "tests/support/notes.txt": "Of the rows, read alike.\n",
            "scripts/bench/data.py": "# Of the rows, read alike.\n",
        },
    )
    assert [finding.split(": English: ")[0] for finding in found] == [
        "data/README.md:4",
        f"{PACKAGE}/report/templates/page.html.j2:1",
        f"{PACKAGE}/report/templates/page.html.j2:4",
        f"{PACKAGE}/report/templates/page.html.j2:4",
    ]


WORDS = " ".join(["word"] * 20)


@pytest.mark.parametrize(
    "text",
    [
        f"{WORDS}\n{' '.join(['word'] * 15)}.\n",
        f"A {WORDS}. A {WORDS}! (A {WORDS}?) `code` {WORDS}.\n",
        f"- {WORDS}\n- {WORDS}\n1. {WORDS}\n",
        f"{WORDS}\n\n{WORDS}\n",
        f"# {WORDS} {WORDS}\n",
        f"| {WORDS} | {WORDS} |\n",
        f"<text>{WORDS} {WORDS}</text>\n",
        f"```text\n{WORDS} {WORDS}\n```\n",
        f"Run:\n\n    {WORDS} {WORDS}\n",
        f"{WORDS} [link]({'x' * 20}) `{WORDS}`.\n",
        f"{WORDS} - + = {'- ' * 30}\n",
    ],
)
def test_sentences_that_are_short_enough(text: str) -> None:
    assert list(layout.check_sentences("README.md", text)) == []


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"{WORDS}\n{WORDS}.\n", 1),
        (f"A word. A {WORDS}\n{WORDS}.\n", 1),
        (f"A word.\nA {WORDS}\n{WORDS}.\n", 2),
        (f"# Heading\n\n- {WORDS} e.g. {WORDS}\n", 3),
        (f"```text\nx\n```\n{WORDS} v. {WORDS}\n", 4),
    ],
)
def test_sentences_that_are_too_long(text: str, line: int) -> None:
    (finding,) = layout.check_sentences("README.md", text)
    assert finding.line == line
    assert "at most 35" in finding.rule


def test_only_the_readme_on_top_is_asked_for_short_sentences(tmp_path: Path) -> None:
    text = f"A {WORDS} {WORDS}.\n"
    assert findings(tmp_path, {"README.md": text, "data/README.md": text, "recipes/README.md": text}) == [
        "README.md:1: a sentence of 41 words, at most 35: A word word word word ..."
    ]


def test_words_that_no_file_holds(tmp_path: Path) -> None:
    machine, registry, unfinished = "/ho" + "me/me/x", "https://pypi" + ".org/simple", "TO" + "DO"
    found = findings(
        tmp_path,
        {
            "README.md": f"In {machine}.\n",
            "scripts/setup.sh": f"pip install x # {registry}\n",
            f"{PACKAGE}/common/errors.py": f"# {unfinished}\n",
            "scripts/bench/data.py": f"# {unfinished}; home/x, ~/work{'/x'}\n",
        },
    )
    assert [finding.rpartition(": ")[0] for finding in found] == [
        "README.md:1: absolute path of one machine",
        "scripts/setup.sh:1: address of a package registry: the user's own pip settings say where packages come from",
        "train/rankwright/common/errors.py:2: unfinished work",
    ]


def test_the_first_line_and_broken_python(tmp_path: Path) -> None:
    for path, text in {
        "scripts/bench/a.py": "#!/usr/bin/env python\n# What it is for.\n",
        "scripts/bench/b.py": "import json\n",
        "scripts/bench/c.py": '"""What it is for."""\ndef\n',
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert [str(finding) for finding in layout.check(tmp_path)] == [
        "scripts/bench/b.py:1: the first line must be a docstring or comment that says what the file is for",
        "scripts/bench/c.py:2: not Python: invalid syntax",
    ]


def test_it_prints_the_findings_and_exits_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["check_layout.py", str(tmp_path)])
    assert layout.main() == 0
    assert capsys.readouterr().out == "layout: nothing found\n"
    (tmp_path / "stray.txt").write_text("")
    assert layout.main() == 1
    assert capsys.readouterr().out.endswith("layout: 1 findings\n")
