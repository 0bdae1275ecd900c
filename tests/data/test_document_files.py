"""Documents of every kind of file, and the passages that they are split into."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rankwright.common.errors import UserError
from rankwright.data.documents import Document, html_text, read_documents
from rankwright.data.formats.reading import Faults, Reading
from rankwright.data.passages import Passage, askable, heading_of, held_out_groups, passages_of, unit_starts


def reading(said: list[str] | None = None, **options: object) -> Reading:
    say = (lambda line: None) if said is None else said.append
    return Reading("docs", None, Faults(), say, **{"columns": {}, **options})  # type: ignore[arg-type]


def one(folder: Path, name: str, content: str | bytes) -> Document:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    (found,) = read_documents(path, reading())
    return found


def pdf(*pages: str) -> bytes:
    """A PDF with one page per text, written by hand; a line of the text is a line of the page."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", ""]
    kids = []
    objects.append("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    for text in pages:
        lines = " ".join(f"({line}) Tj T*" for line in text.split("\n"))
        stream = f"BT /F1 12 Tf 14 TL 72 720 Td {lines} ET"
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
        resources = "/Resources << /Font << /F1 3 0 R >> >>"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] {resources} /Contents {len(objects)} 0 R >>"
        )
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    out, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{content}\nendobj\n".encode()
    start = len(out)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    out += b"".join(f"{place:010d} 00000 n \n".encode() for place in places)
    return out + f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n".encode()


def test_each_kind_of_file_gives_its_title_and_its_text(tmp_path: Path) -> None:
    plain = one(tmp_path, "a.txt", "Notes on bonds\n\nA bond is a loan.\nIt pays interest.")
    assert (plain.id, plain.title, plain.text) == (
        "a.txt",
        "Notes on bonds",
        "A bond is a loan.\nIt pays interest.",
    )
    assert one(tmp_path, "b.txt", "A bond is a loan.\nIt pays.").title == "", "a sentence is not a title"
    front = one(tmp_path, "c.md", "---\ntitle: 'The bonds'\n---\n<!-- hidden -->\nBonds\n=====\n\nText.\n")
    assert (front.title, front.text) == ("The bonds", "# Bonds\n\nText.")
    assert one(tmp_path, "d.md", "# Bonds #\n\n## What they are\nLoans.").text == "## What they are\nLoans."
    latin = one(tmp_path, "e.txt", "Gebühren\n\nDie Gebühr beträgt fünf Euro.".encode("cp1252"))
    assert latin.title == "Gebühren"
    assert one(tmp_path, "f.py", "def f():\n    return 1\n").text.startswith("def f")


def test_a_page_loses_its_menus_and_keeps_its_headings() -> None:
    title, text = html_text(
        "<html><head><title>Bonds &amp; more</title><script>var x = '<p>no</p>'</script></head><body>"
        "<nav><a>Home</a></nav><h1>All bonds</h1><p>A bond\n is a <b>loan</b>.</p><ul><li>one<li>two</ul>"
        "<h2>Rates</h2><table><tr><td>5</td><td>%</td></tr></table><pre>a\n  b</pre><footer>(c)</footer></body></html>"
    )
    assert title == "All bonds"
    assert text.startswith("A bond is a loan.") and "Home" not in text and "var x" not in text and "(c)" not in text
    assert "\n- one\n- two" in text and "\n## Rates\n" in text and "5\t%" in text
    assert html_text("<title>Only  this</title><p>Text") == ("Only this", "Text")


def test_a_pdf_is_read_without_its_headers_and_footers(tmp_path: Path) -> None:
    pytest.importorskip("pypdf")
    pages = [
        f"Annual report\nOn {word}.\nThe guaran-\ntee number {word} ends.\nSo {word}.\nPage {n}"
        for n, word in enumerate("abcd")
    ]
    found = one(tmp_path, "r.pdf", pdf(*pages))
    assert "Annual report" not in found.text and "Page" not in found.text
    assert "The guarantee number a ends." in found.text and "number d ends" in found.text
    for name, content, why in (
        ("broken.pdf", b"%PDF-1.4\nnothing", "cannot be read as a PDF"),
        ("empty.pdf", pdf(""), "holds no text, only images"),
    ):
        with pytest.raises(UserError, match=why):
            one(tmp_path, name, content)


def test_a_folder_a_table_and_a_set_are_read_by_their_content(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    (folder / "in" / ".git").mkdir(parents=True)
    for name in ("b.md", "in/a.txt", "in/.hidden.txt", "in/.git/x.md"):
        (folder / name).write_text(f"the text of {name}")
    rows = [
        {"heading": "T", "body": "first row", "filing": "x", "id": "r1"},
        {"heading": "", "body": "second", "filing": "y"},
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "again.txt").write_text("the text of b.md")
    (folder / "none.txt").write_text("  \n")
    said: list[str] = []
    found = read_documents(folder, reading(said))
    assert [d.id for d in found] == ["again.txt", "in/a.txt", "r1", "rows.jsonl#2"]
    assert [line.partition(": ")[2] for line in said] == [
        "1 document without text left out",
        "1 document with the text of another one left out",
    ]
    table = read_documents(folder / "rows.jsonl", reading(group_key="filing"))
    assert [(d.title, d.text, d.group) for d in table] == [("T", "first row", "x"), ("", "second", "y")]
    named = read_documents(folder / "rows.jsonl", reading(columns={"document": "heading", "document_id": "filing"}))
    assert [(d.id, d.text) for d in named] == [("x", "T")]
    # A set's corpus, whether or not anybody asked something of it.
    sets = tmp_path / "set"
    sets.mkdir()
    row = {"_id": "d", "title": "4.2", "text": "x y", "metadata": {"case": "c"}}
    (sets / "corpus.jsonl").write_text(json.dumps(row))
    assert read_documents(sets, reading(group_key="case")) == [Document("d", "4.2", "x y", "c")]


@pytest.mark.parametrize(
    ("name", "content", "options", "why"),
    [
        ("a.txt", b"good\n\xff\xfe\x81 bad \x81", {"encoding": "utf-8"}, "a.txt:2: not UTF-8"),
        ("a.jsonl", b'{"x": "y"}\n', {}, r"a.jsonl:1: no text of a document: .* columns found: x"),
        ("a.jsonl", b'{"text": "y"}\n', {"group_key": "case"}, "a.jsonl:1: no group key 'case'"),
        ("a.jsonl", b'{"text": "y", "id": 1}\n{"text": "z", "id": 1}\n', {}, "the id '1' appears a second time"),
        ("a.xyz", b"text", {}, "not a kind of file that is read"),
        ("a.txt", b" \n", {}, "no document found"),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: bytes, options: dict[str, object], why: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=why):
        read_documents(tmp_path / name, reading(**options))


def test_passages_begin_at_headings_and_keep_what_stands_above_them() -> None:
    sentence = "The issuer pays interest twice a year. "
    text = f"Before.\n\n# Part\n\n## 3.2 Capital requirements\n{sentence * 20}\n\n3.2.1 A firm must hold capital.\n"
    found = passages_of(Document("d", "Rules", text, "g"), 60)
    assert [p.id for p in found] == [f"d#{n}" for n in range(1, len(found) + 1)]
    assert all(len(unit_starts(p.text)) <= 60 and (p.title, p.group, p.document) == ("Rules", "g", "d") for p in found)
    assert (found[0].text, found[0].heading, found[0].starts) == ("Before.", "", False)
    below = [p for p in found if p.heading == "Capital requirements"]
    assert len(below) > 1 and [p.starts for p in below] == [True] + [False] * (len(below) - 1)
    assert {p.number for p in below} == {"3.2"} and not below[0].text.startswith("#")
    assert (found[-1].number, found[-1].heading) == ("3.2.1", "") and found[-1].text.endswith("hold capital.")
    (law,) = passages_of(Document("l", "", "Section 102(2) of the law\nprovides that nothing is paid.", "l"), 60)
    assert (law.heading, law.number) == ("", "102(2)") and law.text.startswith("Section"), "a sentence is not a heading"
    # Nothing of the text is lost but headings and white space.
    assert "".join("".join(p.text for p in found).split()).count("Theissuerpays") == 20
    # A rule in a table of rules.
    (rule,) = passages_of(Document("r", "1.1.1.(2)", "Nothing in it affects the law.", "r"), 60)
    assert (rule.id, rule.number, rule.heading) == ("r", "1.1.1.(2)", "")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("## 3.2 Capital requirements", ("Capital requirements", "3.2")),
        ("Article 5: Fees", ("Fees", "5")),
        ("CHAPTER IV", ("", "IV")),
        ("<h2>Rates</h2>", ("Rates", "")),
        ("2024 was a good year", ("was a good year", "2024")),
        ("Anything else", ("Anything else", "")),
    ],
)
def test_a_heading_is_its_words_and_its_number(line: str, expected: tuple[str, str]) -> None:
    assert heading_of(line) == expected


def test_code_is_split_into_functions_and_methods() -> None:
    text = (
        "import os\n\n\n@cache\ndef one(x):\n    def inner():\n        pass\n    return x\n\n\n"
        "class A:\n    async def two(self):\n        return 2\n"
    )
    found = [p.text for p in passages_of(Document("m.py", "", text, "m.py"), 100)]
    assert found[0].startswith("@cache\ndef one(x):") and found[0].endswith("return x")
    assert found[1] == "async def two(self):\n    return 2" and len(found) == 2
    assert [p.text for p in passages_of(Document("m.py", "", "x = (", "m.py"), 100)] == ["x = ("]


def passage(key: str, text: str, document: str = "") -> Passage:
    return Passage(key, text, "", "", "", False, document or key, document or key)


def test_short_repeated_and_boilerplate_passages_are_not_asked_about() -> None:
    notice = "This document is confidential and may not be passed on to anybody without consent of the firm."
    texts = {f"p{n}": " ".join(f"word{n}of{k}" for k in range(12)) for n in range(1, 9)}
    found = [passage(key, text) for key, text in texts.items()]
    found += [passage(f"n{n}", f"{notice} {n}", f"p{n}") for n in range(1, 9)]
    found += [passage("again", texts["p8"] + "!"), passage("short", "too short")]
    kept, why = askable(found, 5, code=False)
    assert {p.id for p in kept} == {*texts, "again"} - {"p8"}, "the first by id stays"
    assert why == {"short": 1, "boilerplate": 8, "near_duplicate": 1}


def test_whole_groups_are_held_out_whatever_the_order() -> None:
    found = [passage(f"p{n}", "x", f"g{n % 10}") for n in range(100)]
    held = held_out_groups(found, 0.2, 0)
    assert len(held) == 2 and held == held_out_groups(found[::-1], 0.2, 0) and held != held_out_groups(found, 0.2, 1)
    assert held_out_groups(found, 0, 0) == set() and len(held_out_groups(found, 0.999, 0)) == 9
    assert held_out_groups(found[:1], 0.5, 0) == set(), "one group stays for training"
