"""Dates and amounts in texts, by rules: each with a key that is the same for all ways of writing it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import NamedTuple


class Entity(NamedTuple):
    """A place in a text, text[start:end], and what it names; key: the same for all forms of one thing."""

    start: int
    end: int
    kind: str
    key: str


DATE, AMOUNT = "date", "amount"

# Month -> its names in English, German, French, Spanish and Italian, and English abbreviations.
_MONTHS = {
    1: "january januar janvier enero gennaio jan",
    2: "february februar février febrero febbraio feb",
    3: "march märz mars marzo mar",
    4: "april avril abril aprile apr",
    5: "may mai mayo maggio",
    6: "june juni juin junio giugno jun",
    7: "july juli juillet julio luglio jul",
    8: "august août agosto aug",
    9: "september septembre septiembre settembre sept sep",
    10: "october oktober octobre octubre ottobre oct",
    11: "november novembre noviembre nov",
    12: "december dezember décembre diciembre dicembre dec",
}
MONTHS = {name: number for number, names in _MONTHS.items() for name in names.split()}
# Words of other meanings too: in small letters they are months beside a year only.
_AMBIGUOUS = {"may", "march", "mars", "mar", "mai", "jan", "dec", "oct", "sep", "sept", "jun", "august"}
_MONTH = "|".join(sorted(MONTHS, key=lambda name: (-len(name), name)))
# Looked at before all names are tried.
_FIRST = "(?=" + "|".join(sorted({name[:2] for name in MONTHS})) + ")"
_DAY = r"(?:0?[1-9]|[12]\d|3[01])"
_YEAR = r"(?:1[89]|20)\d\d"
# What makes a number after a month a count: "March 10 miles", "May 5 percent", "May 5,000".
_NO_COUNT = (
    r"(?![\d.,:/-]*\d|\s*%|\s+(?:per\s?cent|percent|million|billion|thousand|hundred|people|persons|members|times|miles|"
    r"shares|units|days|weeks|months|years|hours|minutes)\b)"
)
_DAY_MONTH = re.compile(
    rf"(?<![\w.,/-])(?P<day>{_DAY})(?:st|nd|rd|th)?\.?\s+(?:of\s+|de\s+)?(?P<month>{_MONTH})\b\.?"
    rf"(?:,?\s+(?:de\s+|del\s+)?(?P<year>{_YEAR})\b)?",
    re.IGNORECASE,
)
_MONTH_DAY = re.compile(
    rf"\b{_FIRST}(?P<month>{_MONTH})\b\.?\s+(?P<day>{_DAY})(?:st|nd|rd|th)?\b"
    rf"(?:,?\s+(?P<year>{_YEAR})\b|{_NO_COUNT})",
    re.IGNORECASE,
)
_MONTH_YEAR = re.compile(rf"\b{_FIRST}(?P<month>{_MONTH})\b\.?,?\s+(?:of\s+|de\s+)?(?P<year>{_YEAR})\b", re.IGNORECASE)
_ISO = re.compile(rf"(?<![\w.-])(?P<year>{_YEAR})-(?P<month>0[1-9]|1[0-2])-(?P<day>0[1-9]|[12]\d|3[01])(?!\d|-\d)")
_NUMERIC = re.compile(rf"(?<![\w./-])(\d\d?)([/.])(\d\d?)\2({_YEAR})(?![\d/]|\.\d)")
_QUARTER = re.compile(
    rf"\b(?:Q(?P<number>[1-4])|(?P<word>first|second|third|fourth)\s+quarter)[\s,]*(?:of\s+)?(?:the\s+)?"
    rf"(?:FY\s?|fiscal\s+(?:year\s+)?)?(?P<year>{_YEAR})\b",
    re.IGNORECASE,
)
_ORDINALS = ("first", "second", "third", "fourth")
_FISCAL = re.compile(rf"\bFY\s?'?(?P<year>{_YEAR}|\d\d)\b")
# A year alone is a date where the words around it are those of a date.
_AFTER_YEAR = (
    r"(?=\s*(?:$|[.,;:?!)|\]]|['\u2019]s\b|[-\u2013]\s?(?:1[89]|20)\d\d\b|\s(?:and|or|to|was|were|is|are|had|has|did|compared|from|as|"
    r"due|by|of|the|in|with|versus|vs|when|that|which|for|through|over|than|on|at|annual|respectively|fiscal|under|per|into|"
    r"about|after|before|while|where|including|we|it|its|our|this|these|a|an|but|because|since|until|if|will|would|should|"
    r"may|can|could|increased|decreased|totall?ed|included|includes|reflects?|related|resulted|remained)\b))"
)
_YEARS = re.compile(
    rf"\b(?:in|during|since|until|before|after|for|between|through|early|late|mid|calendar|fiscal|years?|ended|"
    rf"ending|the end of|(?:19|20)\d\d\s?(?:and|or|to|[-\u2013,]|versus|vs\.?|through))\s+"
    rf"(?P<year>{_YEAR})(?!\d){_AFTER_YEAR}",
    re.IGNORECASE,
)

CURRENCIES = {
    "$": r"US\s?\$|\$|USD|dollars?|dollar",
    "€": r"€|EUR|euros?",
    "£": r"£|GBP|pounds?(?:\s+sterling)?",
    "¥": r"¥|JPY|yen",
    "₹": r"₹|INR|rupees?",
    "A$": r"A\$|AUD",
    "C$": r"C\$|CAD",
    "HK$": r"HK\$|HKD",
    "S$": r"S\$|SGD",
    "CHF": r"CHF|(?:Swiss\s+)?francs?",
    "CNY": r"CNY|RMB|yuan",
    "AED": r"AED|dirhams?",
    "cents": r"cents?",
}
_PERCENT = r"%|per\s?cent\b|percentage\s+points?\b"
_POINTS = r"basis\s+points?\b|bps\b"
_UNITS = (
    r"(?:kg|mg|tonnes?|tons?|km²?|m²|cm|mm|square\s+(?:feet|metres|meters|miles|kilomet(?:er|re)s)|sq\.?\s?ft|acres?|"
    r"hectares?|lit(?:er|re)s?|gallons?|barrels?|[kMGT]Wh?|miles?|met(?:er|re)s?|feet|kilomet(?:er|re)s?)(?![\w²])"
)
_SIZES = {
    "k": 3, "thousand": 3, "m": 6, "mn": 6, "mm": 6, "million": 6, "millions": 6, "mio": 6, "millionen": 6,
    "b": 9, "bn": 9, "billion": 9, "billions": 9, "mrd": 9, "milliarden": 9, "tn": 12, "trillion": 12, "trillions": 12,
}  # fmt: skip
_SIZE = r"(?:\s?(?P<size>" + "|".join(sorted(_SIZES, key=lambda s: (-len(s), s))) + r")(?!\w)\.?)"
_BIG = r"\s?(?P<size>millions?|billions?|trillions?|mn|bn|Millionen|Milliarden|Mio|Mrd)(?!\w)\.?"
_NUMBER = r"(?P<number>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,3}(?:\.\d{3})+(?:,\d+)?(?!\d)|\d+(?:[.,]\d+)?)"
_LEFT = r"(?<![\w.,])"
# Symbols and codes stand before or after a number, words after it alone.
_SIGNS = r"(?:US\s?|A|C|HK|S)?\$|[€£¥₹]"
_CODES = r"\b(?:USD|EUR|GBP|JPY|INR|AUD|CAD|HKD|SGD|CHF|CNY|RMB|AED)"
_MONEY_WORDS = (
    r"(?:US\s+)?dollars?|euros?|pounds?(?:\s+sterling)?|yen|rupees?|(?:Swiss\s+)?francs?|yuan|dirhams?|cents?|"
    r"USD|EUR|GBP|JPY|INR|AUD|CAD|HKD|SGD|CHF|CNY|RMB|AED"
)
_MONEY_BEFORE = re.compile(
    rf"(?<!\w)(?P<currency>{_SIGNS}|{_CODES})\s{{0,3}}(?:\({_NUMBER}\)|{_NUMBER.replace('<number>', '<plain>')}"
    rf"(?!\d){_SIZE}?)"
)
_MONEY_AFTER = re.compile(
    rf"{_LEFT}{_NUMBER}{_SIZE}?(?:\s?(?P<sign>[€£¥])|\s+(?P<word>{_MONEY_WORDS})\b)", re.IGNORECASE
)
_SHARE = re.compile(rf"{_LEFT}{_NUMBER}[\s-]?(?:(?P<percent>{_PERCENT})|(?P<points>{_POINTS}))", re.IGNORECASE)
_LARGE = re.compile(rf"{_LEFT}{_NUMBER}{_BIG}", re.IGNORECASE)
_MEASURE = re.compile(rf"{_LEFT}{_NUMBER}{_SIZE}?\s?(?P<unit>{_UNITS})")

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_WORDS = {w: n for n, w in enumerate(_ONES)} | {w: 10 * n for n, w in enumerate(_TENS, start=2)}
_POWERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_WORD = "|".join(sorted([*_WORDS, *_POWERS], key=lambda w: (-len(w), w)))
_IN_WORDS = re.compile(
    rf"\b(?=[zotfsenhmb])(?P<words>(?:{_WORD})\b(?:[\s-]+(?:and\s+)?(?:{_WORD})\b)*)"
    rf"(?:\s+(?:(?P<percent>per\s?cent\b|percentage\s+points?\b)|(?P<points>basis\s+points?\b)|(?P<word>{_MONEY_WORDS})\b))?",
    re.IGNORECASE,
)

# Without any of these no number in words is an amount.
_AFTER_WORDS = re.compile(rf"\b(?:[mbt]r?illion|per\s?cent|percentage|basis|{_MONEY_WORDS})\b", re.IGNORECASE)


def dates(text: str) -> Iterator[Entity]:
    """All dates in a text; they may overlap."""
    if not any(map(str.isdigit, text)):
        return
    for pattern in (_DAY_MONTH, _MONTH_DAY, _MONTH_YEAR):
        for found in pattern.finditer(text):
            parts = found.groupdict()
            year, name = parts["year"], parts["month"]
            if year is None and name.islower() and name in _AMBIGUOUS:
                continue
            month, day = MONTHS[name.lower()], parts.get("day")
            end = found.end() if year or text[found.end() - 1] != "." else found.end() - 1
            yield Entity(found.start(), end, DATE, _date_key(year, month, int(day) if day else None))
    for found in _ISO.finditer(text):
        yield Entity(*found.span(), DATE, found[0])
    for found in _NUMERIC.finditer(text):
        if (key := _numeric_key(int(found[1]), int(found[3]), found[4], found[0])) is not None:
            yield Entity(*found.span(), DATE, key)
    for found in _QUARTER.finditer(text):
        number = found["number"] or _ORDINALS.index(found["word"].lower()) + 1
        yield Entity(*found.span(), DATE, f"{found['year']}-Q{number}")
    for found in _FISCAL.finditer(text):
        year = found["year"]
        yield Entity(*found.span(), DATE, year if len(year) == 4 else f"20{year}")
    yield from _years(text)


def _years(text: str) -> Iterator[Entity]:
    place = 0
    # The last year of "2019 and" begins the next match.
    while (found := _YEARS.search(text, place)) is not None:
        yield Entity(*found.span("year"), DATE, found["year"])
        place = found.start("year")


def _date_key(year: str | None, month: int, day: int | None) -> str:
    return "-".join([year or "", f"{month:02}", *([] if day is None else [f"{day:02}"])])


def _numeric_key(one: int, two: int, year: str, text: str) -> str | None:
    """Day and month by what they can be; None for no date, the text itself where both orders are possible."""
    if not (1 <= min(one, two) <= 12 and max(one, two) <= 31):
        return None
    if one == two or max(one, two) > 12:
        return _date_key(year, min(one, two), max(one, two))
    return text


def amounts(text: str) -> Iterator[Entity]:
    """All amounts of money, shares of a hundred, large numbers and measures in a text; they may overlap."""
    if any(map(str.isdigit, text)):
        for found in _MONEY_BEFORE.finditer(text):
            number = found["number"] or found["plain"]
            yield _amount(found, _value(number, found["size"]), _currency(found["currency"]))
        for found in _MONEY_AFTER.finditer(text):
            # The head of a column: "2019 €".
            if found["sign"] and re.fullmatch(_YEAR, found["number"]):
                continue
            yield _amount(found, _value(found["number"], found["size"]), _currency(found["sign"] or found["word"]))
        for found in _SHARE.finditer(text):
            yield _amount(found, _value(found["number"]), "%" if found["percent"] else "bps")
        for found in _LARGE.finditer(text):
            yield _amount(found, _value(found["number"], found["size"]), "")
        for found in _MEASURE.finditer(text):
            yield _amount(found, _value(found["number"], found["size"]), " ".join(found["unit"].split()))
    for found in _IN_WORDS.finditer(text) if _AFTER_WORDS.search(text) else ():
        unit = "%" if found["percent"] else "bps" if found["points"] else found["word"] and _currency(found["word"])
        words = re.findall(r"\w+", found["words"].lower())
        # A word alone counts things: "five members".
        if unit is not None or (len(words) > 1 and _POWERS.get(words[-1], 0) >= 6):
            yield _amount(found, Decimal(_in_words(words)), unit or "")


def _amount(found: re.Match[str], value: Decimal, unit: str) -> Entity:
    return Entity(*found.span(), AMOUNT, f"{value.normalize():f} {unit}")


def _value(number: str, size: str | None = None) -> Decimal:
    """The number that is written with points and commas of any country."""
    last = max(number.rfind("."), number.rfind(","))
    marks = [c for c in number if c in ".,"]
    whole_groups = re.fullmatch(r"\d{1,3}(?:([.,])\d{3})(?:\1\d{3})*", number) is not None
    # 1,234 is a thousand, 1.234 is not; 1.234.567 is a million.
    if last < 0 or (whole_groups and (marks[0] == "," or len(marks) > 1)):
        digits = re.sub("[.,]", "", number)
    else:
        digits = re.sub("[.,]", "", number[:last]) + "." + number[last + 1 :]
    return Decimal(digits).scaleb(_SIZES[size.lower()] if size else 0)


def _currency(text: str) -> str:
    stripped = re.sub(r"^US\s+(?=d)", "", re.sub(r"\s+", " ", text.strip()), flags=re.IGNORECASE)
    return next((c for c, names in CURRENCIES.items() if re.fullmatch(names, stripped, re.IGNORECASE)), stripped)


def _in_words(words: list[str]) -> int:
    total = part = 0
    for word in words:
        if word in _WORDS:
            part += _WORDS[word]
        elif word == "hundred":
            part = (part or 1) * 100
        elif word in _POWERS:
            total += (part or 1) * 10 ** _POWERS[word]
            part = 0
    return total + part


FINDERS: dict[str, Callable[[str], Iterator[Entity]]] = {DATE: dates, AMOUNT: amounts}
