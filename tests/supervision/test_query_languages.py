# ruff: noqa: RUF001, E501 - texts in many scripts
"""The language filter: what matches its passage passes in any language; what does not is told where it can be."""

from __future__ import annotations

import itertools

import pytest

from rankwright.supervision.queries.filters import QUERY_FILTERS, QueryView
from rankwright.supervision.queries.languages import difference
from rankwright.supervision.queries.written import Written

# Language -> (passage, queries that a person could ask about it).
TEXTS = {
    "English": (
        "The tenant may end the lease with a notice of three months, and the landlord must return the deposit to him.",
        ["What is the notice period of the lease?", "who returns the deposit", "lease notice months"],
    ),
    "German": (
        "Der Mieter kann den Mietvertrag mit einer Frist von drei Monaten kündigen, und der Vermieter muss die Kaution "
        "an ihn zurückzahlen.",
        ["Wie lang ist die Frist, mit der der Mieter kündigen kann?", "Kaution Rückzahlung", "was muss der Vermieter tun"],
    ),
    "French": (
        "Le locataire peut résilier le bail avec un préavis de trois mois, et le bailleur doit rendre le dépôt de "
        "garantie à la fin du bail.",
        ["Quel est le préavis pour résilier le bail ?", "qui doit rendre le dépôt de garantie", "préavis bail"],
    ),
    "Spanish": (
        "El inquilino puede terminar el contrato con un aviso de tres meses, y el arrendador debe devolver la fianza "
        "al final del contrato.",
        ["¿Cuál es el plazo de aviso para terminar el contrato?", "quién debe devolver la fianza", "fianza contrato"],
    ),
    "Italian": (
        "Il conduttore può recedere dal contratto con un preavviso di tre mesi, e il locatore deve restituire la "
        "cauzione alla fine del contratto.",
        ["Qual è il preavviso per recedere dal contratto?", "chi deve restituire la cauzione", "cauzione contratto"],
    ),
    "Portuguese": (
        "O inquilino pode terminar o contrato com um aviso de três meses, e o senhorio deve devolver a caução no fim "
        "do contrato.",
        ["Qual é o prazo de aviso para terminar o contrato?", "quem deve devolver a caução", "caução contrato"],
    ),
    "Dutch": (
        "De huurder kan de huur met een termijn van drie maanden opzeggen, en de verhuurder moet de waarborg aan hem "
        "teruggeven.",
        ["Wat is de termijn om de huur op te zeggen?", "wie moet de waarborg teruggeven", "waarborg huur"],
    ),
    "Russian": ("Арендатор может расторгнуть договор за три месяца.", ["какой срок расторжения договора", "аренда срок"]),
    "Greek": ("Ο ενοικιαστής μπορεί να λύσει τη μίσθωση σε τρεις μήνες.", ["πότε μπορεί να λύσει τη μίσθωση"]),
    "Chinese": ("承租人可以提前三个月通知解除租赁合同，出租人应当返还押金。", ["租赁合同的通知期限是多久", "谁返还押金"]),
    "Japanese": ("借主は三か月前に通知して賃貸借契約を解約できる。貸主は敷金を返す。", ["賃貸借契約の解約はいつできますか", "敷金返還"]),
    "Korean": ("임차인은 3개월 전에 통지하여 임대차 계약을 해지할 수 있다.", ["임대차 계약 해지 기간은 얼마인가"]),
    "Arabic": ("يجوز للمستأجر إنهاء العقد بإشعار قبل ثلاثة أشهر.", ["ما هي مدة الإشعار لإنهاء العقد"]),
    "Hindi": ("किरायेदार तीन महीने की सूचना देकर अनुबंध समाप्त कर सकता है।", ["अनुबंध समाप्त करने की सूचना अवधि क्या है"]),
}  # fmt: skip


@pytest.mark.parametrize("language", TEXTS)
def test_queries_in_the_language_of_their_passage_pass(language: str) -> None:
    passage, queries = TEXTS[language]
    assert [difference(query, passage) for query in queries] == [""] * len(queries)


@pytest.mark.parametrize(("asked", "said"), list(itertools.permutations(TEXTS, 2)))
def test_a_whole_question_in_another_language_is_told(asked: str, said: str) -> None:
    # Chinese and Japanese share characters: of those, only kana beside none tells it.
    if (asked, said) == ("Chinese", "Japanese"):
        return
    found = difference(TEXTS[asked][1][0], TEXTS[said][0])
    scripts = {"Russian": "Cyrillic", "Chinese": "Han", "Korean": "Hangul", "Hindi": "Devanagari", "Japanese": "Kana"}
    latin = list(TEXTS)[:7]
    if asked in latin and said in latin:
        assert found == f"{asked}, its passage {said}"
    else:
        assert found.startswith(f"{scripts.get(asked, 'Latin' if asked in latin else asked)}, its passage ")


@pytest.mark.parametrize(
    ("query", "passage"),
    [
        # Names, numbers, code and mixed texts can be in any language.
        ("Toyota Yaris 2019", "借主は三か月前に通知して賃貸借契約を解約できる。Toyota の車。"),
        ("pandas.read_csv encoding", "def read_csv(path):\n    return open(path).read()"),
        ("how do I read a file", "def read_csv(path):\n    return open(path).read()"),
        ("What is a Kündigungsfrist under the BGB?", "The Kündigungsfrist of the BGB is the notice period of a lease."),
        ("2019", "Der Mieter kann mit einer Frist kündigen."),
        ("", "text"),
        ("what is it", ""),
    ],
)
def test_what_cannot_be_told_passes(query: str, passage: str) -> None:
    assert difference(query, passage) == ""


def test_the_filter_names_both_languages() -> None:
    passage = TEXTS["German"][0]
    queries = dict(enumerate(Written(text, "lookup", "p", "p", "g") for text in (TEXTS["English"][1][0], "Kaution")))
    seen = QueryView(queries, {"p": passage}, {}, {}, lambda queries, top: {})
    found = QUERY_FILTERS.bind("language", {})(seen)
    assert found.removed == {0: ("other_language", "English, its passage German")}
