"""Whether two texts are in different languages, as far as scripts and small words tell it."""

from __future__ import annotations

import re
from collections import Counter

# Script -> its letters. Others are not told apart, and count for none.
SCRIPTS = {
    "Latin": r"A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff",
    "Greek": r"\u0370-\u03ff\u1f00-\u1fff",
    "Cyrillic": r"\u0400-\u052f",
    "Hebrew": r"\u05d0-\u05ea",
    "Arabic": r"\u0621-\u064a\u0750-\u077f",
    "Devanagari": r"\u0900-\u097f",
    "Thai": r"\u0e01-\u0e5b",
    "Hangul": r"\u1100-\u11ff\uac00-\ud7a3",
    "Kana": r"\u3041-\u309f\u30a0-\u30ff",
    "Han": r"\u3400-\u4dbf\u4e00-\u9fff",
}
_SCRIPTS = {name: re.compile(f"[{letters}]") for name, letters in SCRIPTS.items()}
# Small words that are frequent in one language and rare in the others.
SMALL_WORDS = {
    "English": "the of to and is are does do what how which when who why where for with from that this it be by "
    "on or has have not can if at as was were must should under between there their they you your we",
    "German": "der die das und ist sind ein eine einer eines einem einen den dem des nicht mit von für auf wie "
    "was wer wann welche welcher welches wenn wird werden zu zum zur bei nach aus kann muss im am "
    "vom auch oder als sich durch",
    "French": "le la les des du un une et est sont que qui quoi quel quelle quels quelles comment pour dans "
    "sur avec par au aux ce cette ces il elle ne pas plus ou où peut doit d l qu s n quand combien "
    "de en",
    "Spanish": "el la los las del un una y es son que qué cuál cuáles cómo cuándo quién para por con en se su "
    "sus al lo no más o dónde puede debe este esta cuánto cuántos de a",
    "Italian": "il lo la gli le del della dei delle di un una e è sono che chi cosa come quando quale quali per "
    "con nel nella si non più o dove può deve questo questa al alla dal dalla dell nell quanto l a "
    "in",
    "Portuguese": "o a os as do da dos das um uma e é são que quem qual quais como quando para por com em no na "
    "nos nas se não mais ou onde pode deve este esta ao à pelo pela quanto de",
    "Dutch": "de het een en is zijn van voor met op aan dat die wat wie hoe wanneer welke waar niet naar bij "
    "uit kan moet worden wordt door ook of als er te om",
}
_WORDS = {language: frozenset(words.split()) for language, words in SMALL_WORDS.items()}
_WORD = re.compile(r"[^\W\d_]+")
# Small words of one language that a text must have more than of any other before its language is known.
LEAD = 2
# The share of small words above which a text has parts in a language, and the share of letters for a script.
PART_OF_WORDS, PART_OF_LETTERS = 0.05, 0.1


def difference(query: str, passage: str) -> str:
    """In which language or script a query is that its passage is not in; empty where that cannot be told.

    Scripts are told apart, of the languages in Latin letters those of SMALL_WORDS. Short queries without small words,
    names and code can be in any language.
    """
    ours, theirs = _scripts(query), _scripts(passage)
    if not ours or not theirs:
        return ""
    script, count = ours.most_common(1)[0]
    # Kanji alone may be Chinese or Japanese.
    known = {"Han", "Kana"} if script == "Han" else {script}
    if 2 * count > ours.total() and sum(theirs[name] for name in known) < PART_OF_LETTERS * theirs.total():
        return f"{script}, its passage {theirs.most_common(1)[0][0]}"
    if script != "Latin":
        return ""
    asked, said = _languages(query), _languages(passage)
    own = _leading(asked)
    other = _leading(said)
    if own is None or other is None or own == other or asked[own] - asked[other] < LEAD:
        return ""
    # Words that both languages have tell nothing.
    words = [word.lower() for word in _WORD.findall(passage)]
    if sum(word in _WORDS[own] - _WORDS[other] for word in words) > PART_OF_WORDS * len(words):
        return ""
    return f"{own}, its passage {other}"


def _scripts(text: str) -> Counter[str]:
    """Script -> letters of a text."""
    return +Counter({name: len(pattern.findall(text)) for name, pattern in _SCRIPTS.items()})


def _languages(text: str) -> Counter[str]:
    """Language -> small words of a text."""
    words = Counter(word.lower() for word in _WORD.findall(text))
    return Counter({name: sum(words[word] for word in small) for name, small in _WORDS.items()})


def _leading(counts: Counter[str]) -> str | None:
    """The language of which a text has clearly more small words than of any other, None where that is open."""
    (best, most), (_, second) = counts.most_common(2)
    return best if most - second >= LEAD else None
