# ruff: noqa: RUF001 (scripts of the world)
"""The normal form of texts and their words: each script and kind of writing with words that a reader would name."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwright.data.normalisation import folded, is_blank, normalised, plain, words
from rankwright.data.shingles import query_words, same_question

# (what, text, its words)
WORDS = [
    ("ASCII", "it's snake_case x2 -- A.B!", "it s snake_case x2 A B"),
    ("Devanagari", "किला, काला कुल साफ़ करें।", "किला काला कुल साफ़ करें"),
    ("Tamil", "தமிழ் மொழியின் வரலாறு", "தமிழ் மொழியின் வரலாறு"),
    ("Nepali", "नेपालीको साँचो", "नेपालीको साँचो"),
    ("Arabic with vowels", "كِتَابٌ، مُدَرِّسٌ", "كِتَابٌ مُدَرِّسٌ"),
    ("Hebrew with points", "שָׁלוֹם־עוֹלָם", "שָׁלוֹם עוֹלָם"),
    ("Persian with a zero-width non-joiner", "می\u200cخواهم", "میخواهم"),
    ("Chinese", "修理iPhone15，水壶。", "修 理 iPhone15 水 壶"),
    ("Japanese, half-width letters too", "ｺｰﾋｰを飲む々", "コ ー ヒ ー を 飲 む 々"),
    ("Thai", "กาน้ำ ๑๒", "ก า น้ํ า ๑๒"),
    ("Lao", "ກະຕ່າ", "ກ ະ ຕ່ າ"),
    ("Khmer", "ភាសា", "ភា សា"),
    ("Burmese", "မြန်မာ", "မြ န် မာ"),
    ("Korean, decomposed", unicodedata.normalize("NFD", "한국어 조사"), "한국어 조사"),
    ("Vietnamese, decomposed", unicodedata.normalize("NFD", "tiếng Việt"), "tiếng Việt"),
    (
        "soft hyphen, zero-width space, word joiner",
        "cle\u00adan win\u200bter sp\u2060ring \ufeffend",
        "clean winter spring end",
    ),
    ("ligatures and full-width letters", "ﬁne ﬂow Ｆｕｌｌ１２", "fine flow Full12"),
    ("mathematical letters", "𝐁𝐨𝐥𝐝", "Bold"),
    ("a trade mark, a fraction, a unit", "Windows™ 1½ 5㎏ m²", "Windows 1 1 2 5kg m2"),
    ("an acute accent for an apostrophe", "don´t don’t", "don t don t"),
    ("stress marks of Cyrillic", "Москва́ за́мок ёлка край", "Москва замок ёлка край"),
    ("signs of several characters", "1\ufe0f\u20e3 👨\u200d👩\u200d👧 ok", "1 ok"),
    ("nothing", " \u200b…", ""),
]


@pytest.mark.parametrize(("text", "expected"), [row[1:] for row in WORDS], ids=[row[0] for row in WORDS])
def test_words(text: str, expected: str) -> None:
    assert words(text) == [unicodedata.normalize("NFC", word) for word in expected.split()]


def test_pairs_of_neighbours_in_scripts_without_spaces() -> None:
    assert words("烤面包, 机 x", pairs=True) == ["烤", "面", "包", "烤面", "面包", "机", "x"]
    assert words("กินน้ํา", pairs=True) == ["กิ", "น", "น้ํ", "า", "กิน", "นน้ํ", "น้ํา"]


@given(st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "Z", "S", "C"]), max_size=30))
def test_without_marks_the_words_are_those_of_python(text: str) -> None:
    """Outside the scripts without spaces, and of what Unicode leaves as it is, `words` finds what `\\w+` finds."""
    joined = "".join(c for c in text if unicodedata.normalize("NFKC", c) == c and plain(c) == c and len(words(c)) < 2)
    if any(len(words(c + c)) > 1 or (words(c) and not re.fullmatch(r"\w", c)) for c in joined):
        return
    assert words(joined) == re.findall(r"\w+", joined)


LETTERS = st.text(st.sampled_from("aéñüÅçöжёйक्षिகாあぁ한ﬁ①Ａ ß"), max_size=12)


@given(LETTERS, st.lists(st.tuples(st.integers(0, 12), st.sampled_from("\u00ad\u200b\u200d\u2060\ufeff\ufe0f"))))
def test_what_nobody_sees_changes_no_word(text: str, invisible: list[tuple[int, str]]) -> None:
    written = text
    for place, mark in invisible:
        written = written[:place] + mark + written[place:]
    assert words(written) == words(text) and normalised(written) == normalised(text)
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert words(unicodedata.normalize(form, text)) == words(text)
        assert normalised(unicodedata.normalize(form, text)) == normalised(text)


@given(st.text(max_size=20))
def test_a_normal_form_is_its_own_normal_form(text: str) -> None:
    assert plain(plain(text)) == plain(text)
    assert normalised(normalised(text)) == normalised(text)


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_stays_as_it_is(text: str) -> None:
    assert plain(text) == text and folded(text) == text.casefold() and words(text) == re.findall(r"\w+", text)
    assert normalised(text) == " ".join(text.casefold().split())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (" Ｆull\u00a0WIDTH\n\tStraße ", "full width strasse"),
        ("“don’t” – 2018–2019", '"don\'t" - 2018-2019'),
        ("İSTANBUL", "istanbul"),
        ("ΟΔΟΣ", "οδος"),
        ("\u0958", "\u0915\u093c"),
    ],
)
def test_equal_texts(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(
    "text", ["", " \t\n", "\u200b", "\ufeff\u00a0\u2800", "\u3164\u115f", "\x00\x1b", "\u00ad\u200f"]
)
def test_blank(text: str) -> None:
    assert is_blank(text) and words(text) == []


@pytest.mark.parametrize("text", ["a", "\u200b.", "水", "👍", "\U00020000", "़", "\ufffd", "\ue000"])
def test_not_blank(text: str) -> None:
    assert not is_blank(text)


def test_words_with_marks_are_words_of_queries_too() -> None:
    assert query_words("दिल्ली में साफ़ पानी") == [(w, False) for w in ("दिल्ली", "में", "साफ़", "पानी")]
    question = "गिटार को साफ करने के लिए गीले कपड़े से पोंछें और गुनगुने पानी से धोएँ फिर धूप में सुखाएँ"
    assert same_question(question, question.replace("गीले", "सूखे"))
    assert not same_question(question, question.replace("गिटार", "3"))
