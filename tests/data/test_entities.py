"""Entities by rules: what is one, what is none, which ways of writing are the same thing; placeholders of a group."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwright.data.entities.placeholders import KINDS, abstracted, counted_mentions, find

# <kind text> marks what must be found; all else must not be.
MARKED = {
    "company": [
        "<company Acme Inc.> was sold",
        "Does <company Acme Holdings, Inc.> pay a dividend?",
        "In <company Deutsche Telekom AG> nothing changed.",
        "The <company Procter & Gamble Company> and the Company",
        "a plant of <company Robert Bosch GmbH & Co. KG>",
        "<company J.P. Morgan Securities LLC> acted for <company Rio Tinto plc>.",
        "shares of <company Société Générale S.A.> and <company Eni S.p.A.>",
        "<company AMERICAN TOWER CORPORATION> filed it",
        "We sold it to <company Woolworths Custodian Pty Ltd>, our tenant",
        "<company Angie's Artisan Treats, LLC> is a subsidiary",
        "<company Amazon.com, Inc.> and <company eBay Inc.>",
        "<company Mærsk A/S> sails",
        "<company Bank of America Corp> lends",
        "However, <company Altera Corp.> did not.",
        # Traps.
        "an Apple pie and the Apple store",
        "The Company is a Limited Liability Partnership",
        "a limited company, incorporated in Delaware",
        "The Public Company has Inc in no place: Inc.",
        "Economic Co-operation and Development",
        "It was cold in Dallas. The Company moved.",
        "the Insurance Company of the Holding Company",
    ],
    "date": [
        "on <date 31 December 2019> and <date December 31, 2019>",
        "by the <date 3rd of May 2020>",
        "due <date May 5>, or <date 5 May>",
        "in <date May 2019>",
        "since <date 2019-12-31>, <date 31/12/2019> and <date 12/31/2019> and <date 31.12.2019>",
        "am <date 31. Dezember 2019>, le <date 1 août 2020>, el <date 3 de marzo de 2021>",
        "as of <date Dec. 31, 2018>.",
        "revenue in <date 2019> and <date 2018>",
        "fiscal <date 2017> compared to <date FY18>",
        "the <date third quarter of 2018> against <date Q2 2019>",
        "for the year ended <date September 30>",
        "before <date january 2020> and on <date march 3, 2021>",
        "from <date 1 January> to <date 1 November>",
        # Traps.
        "You may 5 times ask; May I? Customers May apply.",
        "may 10 people march 5 miles?",
        "May 10 percent of them, and may ten more",
        "In 2000 shares and 2019 units",
        "open 24/7/365, version 1.2.2019.4, 1/2",
        "the mayor's decision, augustly, in junk, Marching 12",
        "Decide 12 cases; a sept of seven",
        "call 2019-55 or 0800 2019",
    ],
    "amount": [
        "<amount $1.2 million> or <amount US$1,200,000>",
        "<amount €5m>, <amount EUR 1.000.000,50> and <amount 1,000 euros>",
        "<amount £12.50> for 30 of them",
        "a loss of <amount $(1,234)> and a gain",
        "<amount 12%>, <amount 12.5 per cent>, <amount 150 basis points> and <amount 25 bps>",
        "<amount 3.4 million> people",
        "<amount five million dollars>, <amount ten percent>",
        "<amount 5 billion yen> for <amount 3.2 MW> and <amount 10,000 square feet>",
        "<amount 20 Mio. Euro> im Jahr",
        "sales of <amount $  1,452.4> | <amount $5>",
        "<amount two hundred and fifty thousand dollars>",
        # Traps.
        "Form 10-K and the 401k, a 5G net, 3 of 4",
        "one of five members, two-thirds, one hundred people",
        "a table: 1,234 | 2,345 and page 12",
        "2019 €, 2018 €",
        "IPv4, ISO 9001 and Covid-19",
        "the dollar fell; percent of all",
    ],
    "party": [
        "the <party Licensee> shall pay the <party Licensor>",
        "<party Plaintiff> sued; <party Defendants> answered",
        "The <party Company> agrees with the <party Bank>.",
        'Acme Trading (the "<party Supplier>") delivers; ',
        "with Jane Roe (“<party Consultant>”)",
        "John Doe (hereinafter referred to as the '<party Author>')",
        # Traps.
        "a licensee, the plaintiff and any company",
        "Employees and Customers of a Company",
        'this License Agreement (the "Agreement") of ten years (the "Term")',
        "Bank of England and the Company House",
        "earnings (“EBITDA”) of the “Board”",
    ],
    "statute": [
        "<statute Section 12(3)> and <statute Sections 12> and 13",
        "<statute Article 5> of the <statute Regulation (EU) 2016/679>",
        "under <statute Rule 3.2.1> and <statute Rule \u200e8.3.3(2)>",
        "<statute Art. 6(1)(f)> of <statute Directive 95/46/EC>",
        "see <statute § 12>, <statute 17 U.S.C. § 107>, <statute 17 CFR 240.10b-5>",
        "<statute Rule 10b-5>, <statute Rule 144A>, <statute Regulation S-K> and <statute Regulation D>",
        "the <statute Companies Act 2006> and the <statute Securities Exchange Act of 1934>",
        "The <statute Sarbanes-Oxley Act of 2002>",
        "<statute section 12(3)> and <statute rule 4.1>",
        "as in <statute section 258> of the <statute Internal Revenue Code>",
        "the <statute Financial Services and Markets Regulations 2015>",
        # Traps.
        "This Section and the next article are rules, as a rule.",
        "I read the article 5 minutes ago, in section 8",
        "the Act, a Second Act, Rule of law, Regulation is good",
        "Section leaders; Articles of association",
        "Regulations 2015",
    ],
}
CASES = [(kind, text) for kind, texts in MARKED.items() for text in texts]


def plain(marked: str) -> tuple[str, list[tuple[str, str]]]:
    found = re.findall(r"<(\w+) ([^>]*)>", marked)
    return re.sub(r"<\w+ ([^>]*)>", r"\1", marked), found


@pytest.mark.parametrize(("kind", "marked"), CASES)
def test_what_is_an_entity_and_what_is_none(kind: str, marked: str) -> None:
    text, wanted = plain(marked)
    assert [(e.kind, text[e.start : e.end]) for e in find(text) if e.kind == kind] == wanted


def test_there_are_enough_cases_of_every_kind() -> None:
    assert Counter(kind for kind, _ in CASES).keys() == set(KINDS)
    assert len(CASES) >= 60


@pytest.mark.parametrize(
    ("kind", "forms"),
    [
        ("company", ["Acme Holdings Ltd", "Acme Holdings, Limited", "ACME HOLDINGS LTD", "Acme Ltd."]),
        (
            "date",
            ["31 December 2019", "December 31, 2019", "2019-12-31", "31/12/2019", "12/31/2019", "Dec. 31st, 2019"],
        ),
        ("date", ["FY19", "FY2019"]),
        ("date", ["Q3 2019", "the third quarter of 2019"]),
        ("amount", ["$1.2 million", "US$ 1,200,000", "USD 1.2m", "1.2 million dollars", "1,200,000 US dollars"]),
        ("amount", ["five million euros", "€5m", "EUR 5.000.000", "5,000,000 euros"]),
        ("amount", ["5%", "5 per cent", "five percent", "5.0 percent"]),
        ("statute", ["Section 12(3)", "Sec. 12(3)", "section 12(3)", "§ 12(3)"]),
        ("statute", ["Article 5", "Art. 5"]),
    ],
)
def test_one_thing_has_one_key(kind: str, forms: list[str]) -> None:
    keys = {tuple(e.key for e in find(f"It is {form} here") if e.kind == kind) for form in forms}
    assert len(keys) == 1
    assert len(keys.pop()) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Acme Ltd", "Acme Bank Ltd"),
        ("5%", "5 bps"),
        ("$5", "€5"),
        ("3 May 2019", "3 May 2020"),
        ("Rule 3.2", "Rule 3.2.1"),
    ],
)
def test_other_things_have_other_keys(one: str, other: str) -> None:
    assert {e.key for e in find(f"It is {one} here")}.isdisjoint({e.key for e in find(f"It is {other} here")})


def test_placeholders_are_numbered_from_the_query_on_and_are_the_same_in_the_group() -> None:
    query = "what did beta corp pay apple in 2019?"
    documents = ["Apple Inc. got $5 million in 2019 and 2018.", "Beta Corp. paid USD 5,000,000 | 2018 | 2017", "none"]
    changed, mentions = abstracted(query, documents, KINDS)
    assert changed == [
        "what did [COMPANY_1] pay [COMPANY_2] in [DATE_1]?",
        "[COMPANY_2] got [AMOUNT_1] in [DATE_1] and [DATE_2].",
        # A year is a date where the group has it as one.
        "[COMPANY_1] paid [AMOUNT_1] | [DATE_2] | 2017",
        "none",
    ]
    assert mentions == {"company": 4, "date": 4, "amount": 2}
    assert counted_mentions(mentions) == "4 company, 4 date, 2 amount"


def test_kinds_that_are_not_asked_for_stay_and_give_no_pieces_of_themselves() -> None:
    documents = ["The Companies Act 2006 in 2006; Acme Ltd pays $2006."]
    changed, mentions = abstracted("in 2006?", documents, ["date"])
    assert changed == ["in [DATE_1]?", "The Companies Act 2006 in [DATE_1]; Acme Ltd pays $2006."]
    assert mentions == {"date": 2}


def test_roles_are_asked_about_in_small_letters() -> None:
    changed, _ = abstracted("What must the licensee and its company pay?", ["The Licensee. The Company."], KINDS)
    assert changed == ["What must the [PARTY_1] and its company pay?", "The [PARTY_1]. The [PARTY_2]."]


def test_a_name_that_a_contract_shortens_is_the_company() -> None:
    changed, _ = abstracted("Cloudmark?", ["Cloudmark, Inc. (“Cloudmark”) sold it."], ["company", "party"])
    assert changed == ["[COMPANY_1]?", "[COMPANY_1] (“[COMPANY_1]”) sold it."]


def test_a_placeholder_that_stands_in_a_text_is_no_other_thing() -> None:
    changed, _ = abstracted("[DATE_1] and [COMPANY_2]", ["In May 2019 and May 2020 Acme Inc. and Beta Inc."], KINDS)
    assert changed == [
        "[DATE_1] and [COMPANY_2]",
        "In [DATE_2] and [DATE_3] [COMPANY_1] and [COMPANY_3]",
    ]


PIECES = st.sampled_from(
    ["Acme Ltd", "Acme", "Beta Bank plc", "in 2019", "2019", "$5m", "USD 5,000,000", "the Licensee", "Licensee",
     "May 5", "Section 3(1)", "§ 3(1)", "[COMPANY_1]", "[DATE_2]", "and", ".", "may", "1,234", "\n", "é"]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=8).map(" ".join)


@given(query=TEXTS, documents=st.lists(TEXTS, max_size=4), kinds=st.sets(st.sampled_from(KINDS)))
def test_groups_are_consistent(query: str, documents: list[str], kinds: set[str]) -> None:
    changed, mentions = abstracted(query, documents, kinds)
    assert set(mentions) <= kinds
    assert len(changed) == 1 + len(documents)
    texts = [query, *documents]
    # What stands between placeholders stands in the text, in its order; a text without an entity is the same bytes.
    for text, new in zip(texts, changed, strict=True):
        pieces = re.split(r"\[[A-Z]+_\d+\]", new)
        assert re.fullmatch(".*".join(map(re.escape, pieces)), text, re.DOTALL)
        if not any(e.kind in kinds for e in find(text)) and not mentions:
            assert new == text
    # Another order of documents gives other numbers, and the same things the same ones.
    turned, again = abstracted(query, documents[::-1], kinds)
    assert again == mentions

    def shape(found: list[str]) -> list[tuple[int, ...]]:
        seen: dict[str, int] = {}
        return [tuple(seen.setdefault(p, len(seen)) for p in re.findall(r"\[[A-Z]+_\d+\]", text)) for text in found]

    assert shape([turned[0], *turned[:0:-1]]) == shape(changed)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=80))
def test_any_text_can_be_read(text: str) -> None:
    entities = find(text)
    assert all(0 <= e.start < e.end <= len(text) for e in entities)
    assert all(one.end <= other.start for one, other in itertools.pairwise(entities))
    if not entities:
        assert abstracted(text, [text], KINDS) == ([text, text], Counter())
