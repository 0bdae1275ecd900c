"""Texts of others on every surface that shows them: they are seen as they are, and nothing in them acts.

FOREIGN: kind -> (the text, how it is shown). The second is written by hand, so that it does not depend on our code.
"""

from __future__ import annotations

import io
import json
import logging
import shutil
import unicodedata
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import report_runs
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.table import Column, Table

from rankwright.cli import main as cli
from rankwright.cli.exits import complain
from rankwright.cli.models import show_ranking
from rankwright.cli.show import results_tables, show
from rankwright.common import console
from rankwright.common.run_folder import RunFolder
from rankwright.data.formats.reading import log_say
from rankwright.evaluation.compare import compare
from rankwright.evaluation.results import ResultRow
from rankwright.export.card import CardFacts, write_card
from rankwright.model.prompt import PromptContract
from rankwright.pipeline.evaluate import write_attributes
from rankwright.report.gather import read_recipe
from rankwright.report.page import write_report
from rankwright.report.side_by_side import write_comparison
from rankwright.rerankers.reranker import Ranked

FOREIGN = {
    "markup": ("a[i] [bold]x[/bold] [/INST] //div[/span]",) * 2,
    "markup escaped": (r"\[x] [a-z]+ [link=x]y [/]",) * 2,
    "emoji codes": ("a:smile:b :warning:",) * 2,
    "colour": ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
    "title": ("\x1b]0;owned\x07 after", r"\x1b]0;owned\x07 after"),
    "c1": ("\x9b31m \x85 \x90", r"\x9b31m \x85 \x90"),
    "overwritten": ("good\rbad\b\x00\x7f", r"good\rbad\x08\x00\x7f"),
    "bidi": ("abc\u202edcb \u2066x\u2069 \u200f", r"abc\u202edcb \u2066x\u2069 \u200f"),
    "separators": ("one\u2028two\u2029three", r"one\u2028two\u2029three"),
    "surrogate": ("half \ud800 pair", r"half \ud800 pair"),
    "tag characters": ("flag\U000e0067\U000e007f", r"flag\U000e0067\U000e007f"),
    "html": ("<script>alert('x')</script> <b>b</b> & \"q\" &lt; {{ 7 * 7 }} $x_1$",) * 2,
    "bars": ("a | b || c",) * 2,
    "emphasis": ("*a* __init__ a_b `code` ~~gone~~ \\* \\\\",) * 2,
    "markdown": ("![x](http://example.org/x.png) [l](javascript:alert(1))",) * 2,
    "scripts": ("क़िला می‌خواهم שָׁלוֹם 東京 ไทย 👩‍👩‍👧 ab",) * 2,
}
ACTING = {"Cc", "Cs", "Zl", "Zp"}


def acts(character: str) -> bool:
    """Whether a terminal or a browser would do something for a character in place of showing it."""
    isolates_or_overrides = unicodedata.bidirectional(character) in {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI"}
    return (
        (unicodedata.category(character) in ACTING and character not in "\n\t")
        or isolates_or_overrides
        or 0xE0000 <= ord(character) < 0xE0080
    )


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a wide terminal without colours is sent."""
    sent = io.StringIO()
    wide = console.VisibleConsole(
        file=sent, width=400, highlight=False, soft_wrap=True, emoji=False, markup=False, color_system=None
    )
    monkeypatch.setattr(console, "console", wide)
    return sent


def _table(text: str) -> None:
    table = Table(text, Column(text), title=text, caption=text)
    table.add_row(text, "1")
    console.show(table)


def _lines_of_progress(text: str) -> None:
    with console.progress(text, 3) as advance:
        advance(1)
        advance(1)


def _results(text: str) -> None:
    numbers = dict.fromkeys(ResultRow.__dataclass_fields__) | {"value": 0.5, "queries": 3, "first_stage": "bm25"}
    for table in results_tables([ResultRow(**{**numbers, "test_set": text, "system": s}) for s in ("base", text)]):
        console.show(table)


SURFACES: dict[str, Callable[[str], object]] = {
    "a line": lambda text: console.say(f"set {text}: read"),
    "a heading": console.heading,
    "a table": _table,
    "progress": _lines_of_progress,
    "a ranking": lambda text: show_ranking([Ranked(0, text, 1.0, 0.7, 0.7)], calibrated=False),
    "results": _results,
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("surface", SURFACES)
def test_the_screen(surface: str, kind: str, screen: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "LOG_EVERY_S", 0.0)
    text, shown = FOREIGN[kind]
    SURFACES[surface](text)
    # A ranking takes each text on one line: white space of any kind is one space.
    wanted = {"separators": "one two three", "overwritten": r"good bad\x08\x00\x7f", "c1": r"\x9b31m \x90"}
    assert (wanted.get(kind, shown) if surface == "a ranking" else shown) in screen.getvalue()
    assert not list(filter(acts, screen.getvalue()))


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_bar_on_a_terminal(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = io.StringIO()
    options: dict[str, Any] = {"highlight": False, "emoji": False, "markup": False, "color_system": None}
    terminal = console.VisibleConsole(file=sent, width=400, force_terminal=True, **options)
    monkeypatch.setattr(console, "console", terminal)
    text, shown = FOREIGN[kind]
    with console.progress(text, 2) as advance:
        advance(1)
    assert shown in sent.getvalue() and (text == shown or text not in sent.getvalue())


@pytest.mark.parametrize("kind", FOREIGN)
def test_lines_of_errors_and_of_the_log(
    kind: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    text, shown = FOREIGN[kind]
    complain(f"error: {text}\nsecond line: mend it")
    assert capsys.readouterr().err == f"error: {shown}\\nsecond line: mend it\n"
    with caplog.at_level(logging.INFO, logger="rankwright"):
        log_say(f"{text} %s left out")
    assert caplog.messages == [f"{shown} %s left out"]


@pytest.mark.parametrize(
    "command",
    [
        ["check", "./{}.yaml"],
        ["check", "quickstart", "{}=1"],
        ["score", "./{}", "-q", "q", "-d", "{}"],
        ["score", "quickstart", "-q", "{}", "-d", "./{}"],
        ["report", "{}"],
        ["compare", "{}"],
        ["data", "check", "{}"],
        ["{}"],
        ["run", "quickstart", "--{}"],
    ],
    ids=lambda command: " ".join(command),
)
def test_mistakes_on_the_command_line(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for text, _ in FOREIGN.values():
        argument = text.replace("\0", "").replace("\ud800", "\udc80").replace("/", "|")
        monkeypatch.setattr("sys.argv", ["rankwright", *(word.replace("{}", argument) for word in command)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        shown = capsys.readouterr()
        assert left.value.code == 2 and not shown.out
        assert not list(filter(acts, shown.err)) and "Traceback" not in shown.err
        assert len([line for line in shown.err.splitlines() if line.startswith("error")]) <= 1


class Tags(HTMLParser):
    """Names of all tags, the text of all elements, the cells of each row."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text, self.cells = "", 0
        self.rows: list[int] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append(0)
        elif tag in ("td", "th"):
            self.rows[-1] += 1

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_model_card(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    text, shown = FOREIGN[kind]
    if kind == "surrogate":
        pytest.skip("files hold UTF-8: such a text is refused where it is read")
    folder = Path(shutil.copytree(folders["qwen3-portable"], tmp_path / "model"))
    contract = PromptContract.load(folder)
    assert contract is not None
    contract = contract.replace(instruction=text)
    part = {"queries": 2, "pairs": 5, "relevant": 1, "ece": 0.1, "ece_fitted": 0.1}
    one = {"input": text, "kind": "data set", "place": text, "use": ["train"], "revision": text, "licence": text}
    one |= {"commercial": text, "stated_by": text, "hub": None, "trained_on_noncommercial": text}
    ledger = {"require": None, "licence": {"hub": "other", "name": text, "why": [text], "attribution": [text]}}
    facts = CardFacts(
        title=text,
        figures={text: text},
        calibration={"dev": part, "test": {text: part}, "alarm": text},
        gate={"accepted": False, "override": text, "rules": [{"passed": True, "sentence": text}]},
        ledger=ledger | {"inputs": [one | {"decision": {"why": text, "by": text}}]},
        training=[text],
    )
    parity = {"rows": 3, "engines": {text: text}}
    write_card(folder, facts, contract, parity, base_name=text, revision=text)
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert not list(filter(acts, readme))
    _, _, body = readme.split("---\n", 2)
    page = Tags(MarkdownIt("commonmark", {"html": True}).enable("table").render(body))
    assert page.tags <= {*"h1 h2 p ul li code pre table thead tbody tr th td strong a".split()}
    # Five tables: calibration, figures, licences and parity, each of one width.
    assert page.rows == [5, 5, 5, 2, 2, 6, 6, 5, 5]
    words = shown.replace("\r", " ")
    assert page.text.count(words) >= (15 if "`" not in text else 13)


@pytest.fixture(scope="module")
def runs(tiny_qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs whose documents, queries, sentences and folders hold all the texts."""
    texts = [text for kind, (text, _) in FOREIGN.items() if kind != "surrogate"]
    folder = tmp_path_factory.mktemp("runs")
    names = ["".join(texts).replace("\0", "").replace("/", "|")[n : n + 60] for n in (0, 60)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_runs, "HOSTILE", " ".join(texts))
        made = [
            report_runs.make_report_run(folder / name, tiny_qwen3, tuned=0.9 - n / 2, description="")
            for n, name in enumerate(names)
        ]
    for run in made:
        write_attributes(read_recipe(run), RunFolder(run))
    return made[0], made[1]


def test_reports_and_their_cases(runs: tuple[Path, Path], tmp_path: Path) -> None:
    allowed = Tags(write_report(runs[0], output=tmp_path / "page.html").read_text(encoding="utf-8"))
    both = Tags(write_comparison(runs, tmp_path / "both.html").read_text(encoding="utf-8"))
    for page, name in ((allowed, "page.html"), (both, "both.html")):
        source = (tmp_path / name).read_text(encoding="utf-8")
        assert not list(filter(acts, source))
        assert not {"script", "img", "a href"} & page.tags and "<b>b</b>" not in source
    for kind, (_, shown) in FOREIGN.items():
        assert kind == "surrogate" or allowed.text.count(shown) >= 3


def test_tables_of_several_runs(runs: tuple[Path, Path], screen: io.StringIO) -> None:
    comparison = compare(runs)
    show(comparison)
    assert not list(filter(acts, screen.getvalue()))
    for run in comparison.runs:
        assert console.visible(run.name) in screen.getvalue()


@given(st.text(st.characters(), max_size=20))
def test_a_visible_text_does_nothing_and_keeps_all_that_is_seen(text: str) -> None:
    shown = console.visible(text)
    assert not list(filter(acts, shown)) and console.visible(shown) == shown
    seen = [c for c in text if c.isprintable() or c in "\n\t" or unicodedata.category(c) in ("Zs", "Co", "Cn")]
    left = iter(shown)
    assert all(c in left for c in seen)
    assert (shown == text) == (len(shown) == len(text))


def test_what_is_visible_stays_as_it_is() -> None:
    for text, shown in FOREIGN.values():
        assert console.visible(text) == console.visible(shown) == shown
        assert json.loads(json.dumps(shown)) == shown
