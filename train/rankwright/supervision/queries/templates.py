"""Queries that need no language model: titles, headings, sentences, docstrings, defined terms and citations.

What becomes the query is taken out of the passage: otherwise a model would learn to find equal words. Sources: Lee et
al. 2019, arXiv 1906.00300 (a sentence finds the rest of its passage); Husain et al. 2019, arXiv 1909.09436 (code by its
docstring).
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from rankwright.common.hashing import stable_hash
from rankwright.common.registry import Records
from rankwright.data.normalisation import words
from rankwright.data.passages import Passage, heading_of
from rankwright.supervision.queries.written import Written

# Words of a query: shorter ones find anything, and nobody asks longer ones.
LEAST_WORDS, MOST_WORDS = 2, 40
# Words of a sentence that is taken out, and of what must be left of the passage.
SENTENCE_WORDS, LEFT_WORDS = 6, 12
# Headings that stand in every document, and name nothing in it.
GENERAL = frozenset(
    "abstract appendix background changelog conclusion contents definitions description details discussion example "
    "examples faq further general glossary index information interpretation introduction licence license links misc "
    "miscellaneous notes other overview parameters preamble preface purpose references related remarks requirements "
    "app part chapter section article rule schedule annex item clause guidance resources results returns scope see "
    "summary table title usage the a an and of to in on for with also".split()
)
_SENTENCE_END = re.compile(
    r"(?<=[.!?\u2026])[\"'\u201d\u2019)\]]*\s+(?=[\"'\u201c\u2018(\[]?[A-Z0-9\u00c0-\u024f])|[\u3002\uff01\uff1f]"
)
# A sentence ends with a paragraph, and before a list; a short line above one with a capital letter is a heading.
_LINE_END = re.compile(
    r"\n\s*\n|\n(?=[ \t]*(?:\(?\w{1,4}[.)]|[-*\u2022])[ \t])|(?<![^\n]{60})\n(?=[ \t]*[A-Z\u00c0-\u00de])"
)
# A sentence that ends so only begins a list.
_LEADS = re.compile(
    r"(?:[:\u2014\u2013-]|\b(?:and|or|either|that|the|of|to|if|when|where|which|who|by|with|for|in|includes?|following))$"
)
# A point after these, or after a single letter or a number, ends no sentence.
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|cf|vs|etc|no|nos|art|sec|para|pp?|fig|eq|ch|dr|mr|mrs|ms|st|inc|ltd|co)|\b\w|\b\d+)\.$", re.I
)
_QUOTED = r"[\"\u201c'\u2018*_`]{1,3}(?P<term>[A-Z0-9][^\"\u201d'\u2019*_`\n]{1,60}?)[\"\u201d'\u2019*_`]{1,3}"
_DEFINED = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        _QUOTED + r",?\s+(?:shall\s+)?(?:means?|refers?\s+to|has\s+the\s+meaning|is\s+defined\s+as|denotes?)\b",
        r"(?:^|(?<=[.;:]\s))(?P<term>[A-Z][\w-]*(?:\s+[\w-]+){0,4}?)\s+(?:means|is\s+defined\s+as|refers\s+to)\s",
        r"^[-*]?\s*\*\*(?P<term>[^*\n]{2,60}?)\*\*\s*[:\u2013\u2014-]\s+\S",
    )
)
# Words that only point at what stands before them.
_POINTING = frozenset("this that these those it its he she they which what who there here each such".split())
_ASKED = ("what is {}", "what does {} mean", "definition of {}", "meaning of {}")
_PLACE = r"(?:article|section|rule|chapter|clause|paragraph|regulation|schedule|annex|appendix|part|\u00a7)s?\s*"
_NUMBER_OF = r"\d+(?:\.\d+)*[A-Za-z]?(?:\.?\(\w{1,4}\))*"
_CITED = re.compile(
    r"[,(]?\s*\(?(?:(?:as\s+)?(?:set\s+out|specified|described|defined|referred\s+to|provided|required|mentioned)\s+)?"
    r"(?:(?:in|under|by|of|to|with|see|per)\s+)?(?:(?:accordance|compliance|line)\s+with\s+|pursuant\s+to\s+|subject\s+to\s+)?"
    rf"(?:the\s+)?{_PLACE}(?P<number>{_NUMBER_OF})(?:\s*(?:to|and|or|,|-|\u2013)\s*{_NUMBER_OF})*\)?",
    re.IGNORECASE,
)
_NUMBERED = re.compile(rf"{_PLACE}\d", re.IGNORECASE)
_COMMENT = re.compile(
    r"\s*(?:/\*+(?P<block>.*?)\*/|(?P<lines>(?:[ \t]*(?://+!?|#+|--)[^\n]*\n)+))(?P<code>.*)", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Draft:
    """What a template makes of a passage. text: the query; left: what is left of the passage's text.

    passage: id of the passage that answers the query, where that is another one.
    """

    text: str
    left: str
    passage: str = ""


class Places:
    """Passages by the number of their section: in a group, and where a number stands in one group only, in all."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._of_group: dict[tuple[str, str], str] = {}
        groups: dict[str, set[str]] = {}
        for passage in passages:
            for number in _outer(passage.number):
                self._of_group.setdefault((passage.group, number), passage.id)
                groups.setdefault(number, set()).add(passage.group)
        self._only = {number: min(of) for number, of in groups.items() if len(of) == 1}

    def find(self, passage: Passage, number: str) -> str | None:
        """The passage with a number that another passage cites; None where none has it, or only the passage itself."""
        found = self._of_group.get((passage.group, number))
        if found is None and number in self._only:
            found = self._of_group[self._only[number], number]
        return None if found == passage.id else found


def _outer(number: str) -> Iterator[str]:
    """A number and those of the sections around it: 3.2.1.(2), 3.2.1, 3.2; a section is found by its first passage."""
    while number:
        yield number
        shorter = re.sub(r"\.?(?:\([^()]*\)|[.][^.()]+)$", "", number)
        # The whole of a chapter is not what somebody cites.
        number = "" if shorter == number or "." not in shorter else shorter


@dataclass(frozen=True, slots=True)
class Template:
    """name: the kind of query, a key of `kinds`; weight: its default. reads: whether its query is about the words that
    the passage has now, none of which may be taken out afterwards.
    """

    name: str
    write: Callable[[Passage, Places], Draft | None]
    weight: float
    reads: bool = False


TEMPLATES: Records[Template] = Records("template")


def _template(
    weight: float, *, reads: bool = False
) -> Callable[[Callable[[Passage, Places], Draft | None]], Callable[[Passage, Places], Draft | None]]:
    """Decorator: the function's own name is the kind."""

    def add(write: Callable[[Passage, Places], Draft | None]) -> Callable[[Passage, Places], Draft | None]:
        TEMPLATES.add(Template(write.__name__, write, weight, reads), write.__module__)
        return write

    return add


@_template(2.0)
def title(passage: Passage, places: Places) -> Draft | None:
    """The document's title, for its first passage; not a key such as `APP 4.Guidance.3`."""
    if passage.id not in (passage.document, f"{passage.document}#1") or re.search(r"\w\.\w", passage.title):
        return None
    return _named(heading_of(passage.title)[0], passage.text)


@_template(2.0)
def heading(passage: Passage, places: Places) -> Draft | None:
    """The heading of a section, for its first passage; a heading of one or two words after the document's title."""
    if not passage.starts or not passage.heading:
        return None
    found = passage.heading
    if len(words(found)) < 3 and _says_something(found):
        found = f"{heading_of(passage.title)[0]} {found}".strip()
    return _named(found, passage.text) if _says_something(passage.heading) else None


@_template(4.0)
def sentence(passage: Passage, places: Places) -> Draft | None:
    """The first sentence, for the rest of its passage."""
    first = next(iter(sentences(passage.text)), "")
    left = passage.text.strip().removeprefix(first).strip()
    if not SENTENCE_WORDS <= len(words(first)) <= MOST_WORDS or len(words(left)) < LEFT_WORDS or _LEADS.search(first):
        return None
    return Draft(_query(first), left)


@_template(4.0)
def docstring(passage: Passage, places: Places) -> Draft | None:
    """The first sentence of what a function's docstring or the comment above it states, for the code without it."""
    found = _python_docstring(passage.text) or _comment(passage.text)
    if found is None:
        return None
    text, code = found
    text = next(iter(sentences(" ".join(text.split()))), "")
    if not 3 <= len(words(text)) <= MOST_WORDS or len(words(code)) < 3:
        return None
    return Draft(_query(text), code)


@_template(2.0, reads=True)
def definition(passage: Passage, places: Places) -> Draft | None:
    """A question for the meaning of a term, for the passage that defines it."""
    for pattern in _DEFINED:
        if (match := pattern.search(passage.text)) is None:
            continue
        term = re.sub(r"^(?:An?|The) ", "", " ".join(match["term"].split()).strip(" .,:;"))
        if 0 < len(words(term)) <= 6 and _says_something(term) and words(term)[0].lower() not in _POINTING:
            form = _ASKED[stable_hash("definition", passage.id, term) % len(_ASKED)]
            return Draft(form.format(term), passage.text)
    return None


@_template(3.0)
def citation(passage: Passage, places: Places) -> Draft | None:
    """A sentence that cites a section, without the reference, for the passage that it cites."""
    for one in sentences(passage.text) if _NUMBERED.search(passage.text) else ():
        for match in _CITED.finditer(one):
            cited = places.find(passage, match["number"])
            text = _query(re.sub(r"\s+(?=[,;.:])", "", " ".join((one[: match.start()], one[match.end() :]))))
            if cited is None or not SENTENCE_WORDS <= len(words(text)) <= MOST_WORDS or re.search(r"\d\.\d|,,", text):
                continue
            return Draft(text, passage.text.replace(one, "", 1).strip(), cited)
    return None


def _named(text: str, left: str) -> Draft | None:
    """A query that is a name, taken off the passage where it begins with it."""
    text = _query(text)
    if not LEAST_WORDS <= len(words(text)) <= MOST_WORDS or not _says_something(text):
        return None
    first, _, rest = left.strip().partition("\n")
    return Draft(text, rest.strip() if rest.strip() and heading_of(first)[0].lower() == text.lower() else left)


def _says_something(text: str) -> bool:
    """Whether a name has a word that is neither a number nor one that stands everywhere."""
    found = [word for word in words(text) if word.isalpha() and word.lower() not in GENERAL]
    # Letters such as those of a roman number say nothing; those of scripts without spaces do.
    return any(len(word) > 2 or not word.isascii() for word in found)


def _query(text: str) -> str:
    """A sentence as a query: on one line, without list marks before it and the point after it."""
    text = re.sub(r"^(?:[-*\u2022]|\(?\w{1,3}[.)])\s+|[;,]?\s+(?:and|or)$", "", " ".join(text.split()))
    text = re.sub(r"[*_`#]{1,3}(?=\w)|(?<=\w)[*_`]{1,3}", "", text)
    return text.strip(" .,;:\u3002").strip()


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text, without white space around them; a heading on a line of its own is one too."""
    begin = 0
    ends = [*_LINE_END.finditer(text), *_SENTENCE_END.finditer(text)]
    for match in sorted(ends, key=lambda found: found.end()):
        one = text[begin : match.end()].strip()
        if match.re is _SENTENCE_END and _ABBREVIATION.search(one):
            continue
        if one:
            yield one
        begin = match.end()
    if rest := text[begin:].strip():
        yield rest


def _python_docstring(text: str) -> tuple[str, str] | None:
    """(docstring, the code without it) of a Python function or class."""
    if re.match(r"(?:@|def |async |class )", text) is None:
        return None
    try:
        node = next(iter(ast.parse(text).body), None)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return None
    found = ast.get_docstring(node)
    if found is None:
        return None
    stated, lines = node.body[0], text.splitlines()
    return found, "\n".join([*lines[: stated.lineno - 1], *lines[stated.end_lineno :]]).strip()


def _comment(text: str) -> tuple[str, str] | None:
    """(comment, the code below it) of code in the manner of C, Java, Go, shell or SQL."""
    match = _COMMENT.fullmatch(text)
    # Markdown's headings begin with # too.
    if match is None or not re.search(r"[{};=()]", match["code"]) or re.match(r"\s*#+ [^\n]*\n\s*\n", text):
        return None
    lines = (match["block"] or match["lines"]).splitlines()
    found = "\n".join(re.sub(r"^\s*(?:\*+|//+!?|#+!?|--)\s?", "", line) for line in lines)
    # Tags of parameters are not what it does.
    return re.split(r"^\s*@\w+", found, maxsplit=1, flags=re.MULTILINE)[0].strip(), match["code"].strip()


def draw(kinds: Mapping[str, float], *key: object) -> list[str]:
    """All kinds in an order drawn by their weights, the same for the same key and seed in it.

    Source: Efraimidis and Spirakis 2006 (weighted sampling without replacement).
    """

    def place(kind: str) -> float:
        u = (stable_hash("kind", *key, kind) + 0.5) / 2**64
        return -math.log(u) / kinds[kind]

    return sorted(kinds, key=lambda kind: (place(kind), kind))


def writable(passages: Sequence[Passage], places: Places, kinds: Mapping[str, float]) -> list[Passage]:
    """The passages that one of the templates makes a query of: a rule of one sentence gives none."""
    return [p for p in passages if any(TEMPLATES[kind].write(p, places) is not None for kind in kinds)]


def write_by_templates(
    chosen: Sequence[Passage], places: Places, kinds: Mapping[str, float], each: int, seed: int
) -> tuple[list[Written], dict[str, str]]:
    """(at most `each` queries of every chosen passage, id -> text of the passages that something was taken out of).

    kinds: template -> weight. Each passage is decided alone: the order of `chosen` does not matter.
    """
    groups = {passage.id: passage.group for passage in chosen}
    found: list[Written] = []
    changed: dict[str, str] = {}
    for passage in sorted(chosen, key=lambda p: p.id):
        now, count, fixed = passage, 0, False
        for kind in draw(kinds, seed, passage.id):
            if count == each:
                break
            draft = TEMPLATES[kind].write(now, places)
            if draft is None or (fixed and draft.left != now.text):
                continue
            if draft.passage and draft.passage not in groups:
                # It is on the other side of the split, or nothing that can be asked about.
                continue
            answer = draft.passage or passage.id
            found.append(Written(draft.text, kind, answer, passage.id, groups[answer]))
            count += 1
            fixed = fixed or TEMPLATES[kind].reads
            now = replace(now, text=draft.left)
        if now.text != passage.text:
            changed[passage.id] = now.text
    return found, changed
