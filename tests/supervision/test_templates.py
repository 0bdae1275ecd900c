"""Queries by templates: each kind with what it takes out, what it leaves alone, and that order does not matter."""

from __future__ import annotations

import pytest

from rankwright.data.documents import Document
from rankwright.data.passages import Passage, passages_of
from rankwright.supervision.queries.templates import (
    TEMPLATES,
    Places,
    citation,
    definition,
    docstring,
    draw,
    heading,
    sentence,
    sentences,
    title,
    writable,
    write_by_templates,
)

REST = "It pays interest twice a year, and the issuer gives the money back at the end of the term."
NOWHERE = Places([])


def passage(text: str, **about: object) -> Passage:
    values = {"id": "d", "title": "", "heading": "", "number": "", "starts": False, "document": "d", "group": "g"}
    return Passage(text=text, **{**values, **about})  # type: ignore[arg-type]


def test_a_title_asks_for_the_first_passage_of_its_document() -> None:
    found = title(passage(REST, title="## 4. Interest on Bonds."), NOWHERE)
    assert found is not None and (found.text, found.left, found.passage) == ("Interest on Bonds", REST, "")
    assert title(passage(REST, title="Interest on Bonds", id="d#2"), NOWHERE) is None
    for empty in (
        "",
        "4.2.1",
        "Introduction",
        "Overview and Summary",
        "Bonds",
        "Part 19.Chapter 1.229.(2)",
        "SECTION IX.E.1",
    ):
        assert title(passage(REST, title=empty), NOWHERE) is None, empty
    again = title(passage(f"Interest on bonds\n{REST}", title="Interest on Bonds"), NOWHERE)
    assert again is not None and again.left == REST, "the title's line is not left in the passage"


def test_a_heading_asks_for_the_first_passage_below_it() -> None:
    found = heading(passage(REST, heading="Interest on Bonds", starts=True, title="Loans"), NOWHERE)
    assert found is not None and found.text == "Interest on Bonds" and found.left == REST
    short = heading(passage(REST, heading="Interest", starts=True, title="3 Loans of firms"), NOWHERE)
    assert short is not None and short.text == "Loans of firms Interest"
    assert heading(passage(REST, heading="Interest on Bonds", starts=False), NOWHERE) is None
    assert heading(passage(REST, heading="Scope", starts=True, title="Loans of firms"), NOWHERE) is None


def test_a_sentence_is_taken_out_of_its_passage() -> None:
    found = sentence(passage(f"A bond of a firm is a loan.  {REST}"), NOWHERE)
    assert found is not None and (found.text, found.left) == ("A bond of a firm is a loan", REST)
    assert sentence(passage(f"A bond. {REST}"), NOWHERE) is None, "too short to find anything"
    assert sentence(passage("A bond of a firm is a loan. It pays."), NOWHERE) is None, "nothing is left"
    assert sentence(passage(f"{'word ' * 41}. {REST}"), NOWHERE) is None
    assert sentence(passage(f"A firm must send the following to:\n(a) {REST}"), NOWHERE) is None, "it begins a list"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One ends. Two goes on!  Three?", ["One ends.", "Two goes on!", "Three?"]),
        ("See Art. 5 and e.g. No. 7 of Mr. Smith. Then on.", ["See Art. 5 and e.g. No. 7 of Mr. Smith.", "Then on."]),
        ("A line\n\nAnother (one.) Third", ["A line", "Another (one.)", "Third"]),
        ("これは一つ。二つ。", ["これは一つ。", "二つ。"]),
        (
            "THE FEES\nEach firm\npays:\n(a) a fee; or\n(b) none.",
            ["THE FEES", "Each firm\npays:", "(a) a fee; or", "(b) none."],
        ),
        ("costs 3.5 percent. at most", ["costs 3.5 percent. at most"]),
    ],
)
def test_sentences_end_where_a_reader_sees_it(text: str, expected: list[str]) -> None:
    assert list(sentences(text)) == expected


def test_a_docstring_is_taken_out_of_its_code() -> None:
    code = 'def pay(bond, *, year=1):\n    """Pay the interest of a bond. Once.\n\n    More.\n    """\n    return bond'
    found = docstring(passage(code), NOWHERE)
    assert found is not None
    assert (found.text, found.left) == (
        "Pay the interest of a bond",
        "def pay(bond, *, year=1):\n    return bond",
    )
    java = "/**\n * Returns the interest of a bond.\n * @param b the bond\n */\nint pay(Bond b) { return b.rate; }"
    found = docstring(passage(java), NOWHERE)
    assert found is not None and found.text == "Returns the interest of a bond" and found.left.startswith("int pay")
    go = "// Pay returns the interest.\n// Slowly.\nfunc Pay(b Bond) int { return 1 }"
    found = docstring(passage(go), NOWHERE)
    assert found is not None and found.text == "Pay returns the interest"
    for other in ("def f():\n    return 1", "# A heading\n\nText (with) brackets = more", REST, "def f(:"):
        assert docstring(passage(other), NOWHERE) is None, other


@pytest.mark.parametrize(
    ("text", "term"),
    [
        ("“Relevant Person” means a firm that is authorised.", "Relevant Person"),
        ('The term "Bond" shall mean a loan.', "Bond"),
        ("Subject to that. Senior Manager means somebody who decides.", "Senior Manager"),
        ("- **Coupon rate**: what is paid each year", "Coupon rate"),
        ("A zero-coupon bond is defined as one without interest.", "zero-coupon bond"),
        ("An Issuer is defined as whoever borrows.", "Issuer"),
        ("This means that nothing is paid. It means a lot.", None),
        ("Nothing is defined here.", None),
    ],
)
def test_a_defined_term_is_asked_for(text: str, term: str | None) -> None:
    found = definition(passage(text), NOWHERE)
    if term is None:
        assert found is None
    else:
        assert found is not None and term in found.text and found.left == text


def test_a_citing_sentence_asks_for_what_it_cites() -> None:
    citing = passage(f"A firm must keep enough own funds in accordance with Rule 3.2.1(b). {REST}", id="a", number="9")
    cited = passage("Own funds are at least eight per cent.", id="b", number="3.2.1(b)")
    found = citation(citing, Places([citing, cited]))
    assert found is not None
    assert (found.text, found.left, found.passage) == ("A firm must keep enough own funds", REST, "b")
    around = citation(passage(f"A firm must keep enough own funds (see section 3.2.1). {REST}"), Places([cited]))
    assert around is not None and around.passage == "b" and around.text == "A firm must keep enough own funds"
    assert citation(citing, Places([citing])) is None, "nobody has that number"
    others = [passage("x", id=f"o{n}", number="3.2.1(b)", group=f"g{n}") for n in range(2)]
    assert citation(passage(citing.text, id="a", group="another"), Places(others)) is None, (
        "two of other groups have it"
    )
    itself = passage(citing.text, id="a", number="3.2.1(b)")
    assert citation(itself, Places([itself])) is None


def test_kinds_are_drawn_by_weight() -> None:
    kinds = {"title": 3.0, "sentence": 1.0}
    first = [draw(kinds, 0, n)[0] for n in range(2000)]
    assert abs(first.count("title") / 2000 - 0.75) < 0.03 and draw(kinds, 0, 1) == draw(kinds, 0, 1)


def test_templates_write_the_same_whatever_the_order_and_take_out_what_they_use() -> None:
    text = "\n\n".join(
        f"## {n}.1 The rate of bond {n}\nBonds of kind {n} pay {n} per cent. “Rate {n}” means interest. {REST}"
        for n in range(1, 30)
    )
    found = passages_of(Document("d", "All about bonds of firms", text, "g"), 200)
    weights = {name: TEMPLATES[name].weight for name in TEMPLATES}
    made, changed = write_by_templates(found, Places(found), weights, 2, 0)
    assert (made, changed) == write_by_templates(found[::-1], Places(found), weights, 2, 0)
    assert made != write_by_templates(found, Places(found), weights, 2, 1)[0]
    assert len(made) == 2 * len(found) and len({q.id for q in made}) == len(made)
    assert {q.kind for q in made} >= {"heading", "sentence", "definition"}
    texts = {p.id: changed.get(p.id, p.text) for p in found}
    for query in made:
        if query.kind == "sentence":
            assert query.text not in texts[query.passage] and query.passage in changed
        if query.kind == "definition":
            assert query.text.split("Rate ")[1].split()[0] + "”" in texts[query.passage], (
                "the definition is still there"
            )
    bare = passage("Nothing here.")
    assert writable([*found, bare], Places(found), weights) == found, "no template makes a query of it"
    alone, _ = write_by_templates(found[:3], Places(found), weights, 2, 0)
    assert [q for q in made if q.source in {p.id for p in found[:3]}] == alone, "each passage is decided alone"
