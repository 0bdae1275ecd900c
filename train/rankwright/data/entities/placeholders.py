"""Placeholders for entities: the same for one thing in all texts of a group, such as [COMPANY_1]."""

from __future__ import annotations

import bisect
import functools
import re
from collections import Counter
from collections.abc import Collection as Container
from collections.abc import Iterable, Mapping, Sequence

from rankwright.data.entities import names, quantities
from rankwright.data.entities.names import COMPANY, FORM_IN_SMALL, PARTY, SURE_PARTIES
from rankwright.data.entities.quantities import DATE, Entity

FINDERS = {**names.FINDERS, **quantities.FINDERS}
KINDS = ("company", "date", "amount", "party", "statute")
# Texts whose entities are kept: the documents of some steps.
KEPT_TEXTS, KEPT_CHARACTERS = 2048, 20_000
_PLACEHOLDER = re.compile(rf"\[({'|'.join(kind.upper() for kind in KINDS)})_(\d+)\]")
# Names of one word that are words too: "First Inc." makes no entity of every "First".
_COMMON = frozenset(
    "first second third new national general american international global united public private north south east "
    "west central group bank capital financial energy health home best better one all big smart total target gap "
    "visa express direct standard advanced applied digital data service services world life common".split()
)


def find(text: str) -> tuple[Entity, ...]:
    """The entities of a text in its order, none inside another: of several at one place the longest counts."""
    # A long text would hold memory for the time of the training.
    return _find_kept(text) if len(text) <= KEPT_CHARACTERS else _find(text)


def _find(text: str) -> tuple[Entity, ...]:
    found = sorted({e for finder in FINDERS.values() for e in finder(text)}, key=lambda e: (e.start - e.end, e))
    kept: list[Entity] = []
    for entity in found:
        place = bisect.bisect(kept, entity)
        before, after = kept[place - 1 : place], kept[place : place + 1]
        if not (before and before[0].end > entity.start) and not (after and after[0].start < entity.end):
            kept.insert(place, entity)
    return tuple(kept)


_find_kept = functools.lru_cache(maxsize=KEPT_TEXTS)(_find)


def abstracted(query: str, documents: Sequence[str], kinds: Container[str]) -> tuple[list[str], Counter[str]]:
    """(query and documents with placeholders, mentions that were replaced by kind).

    One thing has one placeholder in all of them. They are numbered by kind, in the order in which things first appear
    in the query, then in the documents as they are given. A number whose placeholder stands in a text already is left
    out. A company's name without its legal form, a year and a party count wherever the group has them in full.
    """
    texts = [query, *documents]
    every = [find(text) for text in texts]
    found = [[e for e in of if e.kind in kinds] for of in every]
    # A name that a contract gives to a company is the company's where both are the same words.
    named = {e.key for own in found for e in own if e.kind == COMPANY}
    found = [[e._replace(kind=COMPANY) if e.kind == PARTY and e.key in named else e for e in own] for own in found]
    short = _ShortForms(texts, found)
    taken = {(kind.lower(), int(number)) for text in texts for kind, number in _PLACEHOLDER.findall(text)}
    numbers: dict[tuple[str, str], str] = {}
    counters: Counter[str] = Counter()
    mentions: Counter[str] = Counter()
    changed = []
    for place, (text, own) in enumerate(zip(texts, found, strict=True)):
        pieces, end = [], 0
        for entity in sorted([*own, *short.in_text(text, every[place], is_query=place == 0)]):
            thing = (entity.kind, entity.key)
            if thing not in numbers:
                counters[entity.kind] += 1
                while (entity.kind, counters[entity.kind]) in taken:
                    counters[entity.kind] += 1
                numbers[thing] = f"[{entity.kind.upper()}_{counters[entity.kind]}]"
            pieces += [text[end : entity.start], numbers[thing]]
            end = entity.end
            mentions[entity.kind] += 1
        changed.append("".join([*pieces, text[end:]]))
    return changed, mentions


class _ShortForms:
    """Short forms of what a group has in full: "Acme" beside "Acme Ltd", 2019 beside "in 2019"."""

    def __init__(self, texts: Sequence[str], found: Sequence[Iterable[Entity]]) -> None:
        # The form -> what it stands for; a form without capitals where it is the key.
        exact: dict[str, Entity] = {}
        roles: dict[str, Entity] = {}
        for text, own in zip(texts, found, strict=True):
            for entity in own:
                if entity.kind == COMPANY and _is_telling(entity.key):
                    exact.setdefault(_name(text[entity.start : entity.end], entity.key), entity)
                elif entity.kind == DATE and re.fullmatch(r"\d{4}", entity.key):
                    exact.setdefault(entity.key, entity)
                elif entity.kind == PARTY:
                    roles.setdefault(entity.key, entity)
        exact |= {text: entity for key, entity in roles.items() for text in (_capitalised(key), key.upper())}
        self._exact = _any_of(exact)
        # People who ask write roles in small letters, and names too where they write no capitals at all.
        sure = {key: entity for key, entity in roles.items() if key in SURE_PARTIES}
        self._roles = _any_of(sure, any_case=True, after="s?")
        companies = {text: entity for text, entity in exact.items() if entity.kind == COMPANY}
        self._small = _any_of(companies, any_case=True, after=FORM_IN_SMALL)

    def in_text(self, text: str, full: Sequence[Entity], *, is_query: bool) -> list[Entity]:
        """Short forms in the text, outside of what is there in full, whatever its kind."""
        forms = [self._exact]
        if is_query:
            forms += [self._roles, *([self._small] if text[1:] == text[1:].lower() else [])]
        kept: list[Entity] = []
        for pattern, things in forms:
            for match in pattern.finditer(text):
                if not any(e.start < match.end() and match.start() < e.end for e in (*full, *kept)):
                    thing = things[_plain(match[1])]
                    kept.append(Entity(*match.span(), thing.kind, thing.key))
        return kept


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _is_telling(key: str) -> bool:
    words = key.split()
    return len(words) > 1 or (len(key) > 2 and key not in _COMMON and not key.isdigit())


def _name(text: str, key: str) -> str:
    """The name as it stands in a text, as far as its key goes."""
    count = len(key.split())
    ends = [found.end() for found in re.finditer(r"\w+", text)]
    return text[: ends[min(count, len(ends)) - 1]]


def _capitalised(key: str) -> str:
    return " ".join(word[:1].upper() + word[1:] for word in key.split())


def _any_of(
    forms: Mapping[str, Entity], *, any_case: bool = False, after: str = ""
) -> tuple[re.Pattern[str], dict[str, Entity]]:
    """(any of the forms as whole words, the longest first; form without capitals -> what it stands for)."""
    ordered = sorted(forms, key=lambda text: (-len(text), text))
    one = "|".join(r"\s+".join(map(re.escape, text.split())) for text in ordered) or r"(?!)"
    pattern = rf"(?<![\w$€£.,])({one}){after}(?![\w%]|[.,]\d)"
    return re.compile(pattern, re.IGNORECASE if any_case else 0), {_plain(text): e for text, e in forms.items()}


def counted_mentions(counts: Mapping[str, int]) -> str:
    """The counts in words, in the order of KINDS: 12 company, 3 date."""
    return ", ".join(f"{counts[kind]:,} {kind}" for kind in KINDS if counts.get(kind))
