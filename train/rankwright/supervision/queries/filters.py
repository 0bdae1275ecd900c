"""Filters of written queries, one function each, in a fixed order: what is left is worth training on.

Sources: Bonifacio et al. 2022, arXiv 2202.05144 and Dai et al. 2022, arXiv 2209.11755 (the round trip; theirs asks for
rank 1, which keeps only what words alone find); Wang et al. 2022, arXiv 2112.07577 (a teacher's view of candidates).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from rankwright.common.errors import UserError
from rankwright.common.registry import Records, bind
from rankwright.data.duplicates import CODE, QUERY, TEXT, find_duplicates, find_shared
from rankwright.data.normalisation import folded, words
from rankwright.retrieval.candidates import Candidate
from rankwright.supervision.queries.languages import difference
from rankwright.supervision.queries.written import Written

# Query -> candidates of the passages on its own side of the split, best first.
Search = Callable[[Mapping[int, Written], int], Mapping[int, Sequence[Candidate]]]
# Query -> passages, to query -> passage -> raw score.
Scores = Callable[[Mapping[int, Written], Mapping[int, Sequence[str]]], Mapping[int, Mapping[str, float]]]
# A run of so few words is in any passage about the same thing.
LEAST_RUN = 4
MOST_WORDS, MOST_CHARACTERS = 64, 400
_NO_QUERY = re.compile(
    r"[{}<>\[\]|]{2}|```|^\s*(?:query|question|answer|q|a)\s*\d*\s*[:.)]"
    r"|^(?:sure|certainly|of course|here (?:is|are))\b"
    r"|\bas an ai\b|\bi(?: a|')m sorry\b|\bi cannot\b",
    re.IGNORECASE,
)
_MENTIONS = re.compile(
    r"\b(?:the|this|that|given|provided|above|following) (?:passage|document|text|excerpt|snippet|context|extract)\b"
    r"|\b(?:this|given|provided|above|following) (?:article|section|paragraph|chapter|page|report|code)\b"
    r"|\b(?:mentioned|described|stated|discussed|listed) (?:above|below|here)\b|\bthe author\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class QueryView:
    """What a filter may look at. Queries have numbers, those of the order in which they were written.

    queries: those that are still in. texts: passage id -> text, as it is trained with; changed passages included.
    held: "SET/ID" -> text of the queries of dev and test, and held_passages: of the documents relevant to them.
    search, scores: of the queries' own side; scores is None without a teacher. code: bm25.code.
    """

    queries: Mapping[int, Written]
    texts: Mapping[str, str]
    held: Mapping[str, str]
    held_passages: Mapping[str, str]
    search: Search
    scores: Scores | None = None
    code: bool = False


@dataclass(frozen=True, slots=True)
class Rejections:
    """removed: query -> (reason code, what is behind it, in words); notes: query -> what its verdict keeps."""

    removed: Mapping[int, tuple[str, str]]
    notes: Mapping[int, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class QueryFilter:
    """name: a key of `synthesize.filters`; decide: called as decide(view, **options); reasons: code -> its sentence."""

    name: str
    decide: Callable[..., Rejections]
    reasons: Mapping[str, str]
    needs_teacher: bool = False


F = TypeVar("F", bound=Callable[..., Rejections])


class _QueryFilters(Records[QueryFilter]):
    def register(self, *, needs_teacher: bool = False, **reasons: str) -> Callable[[F], F]:
        """Decorator: the function's own name is its name in recipes. The order of registration is that of filtering."""

        def add(decide: F) -> F:
            self.add(QueryFilter(decide.__name__, decide, reasons, needs_teacher), decide.__module__)
            return decide

        return add

    def bind(self, name: str, options: Mapping[str, object]) -> Callable[[QueryView], Rejections]:
        """A filter with its options fixed. Raises UserError for an unknown one, and for options that are wrong."""
        return bind(f"filter {name!r}", self[name].decide, options)


QUERY_FILTERS = _QueryFilters("filter of queries")


def chosen_filters(
    options: Mapping[str, Mapping[str, object] | None], *, has_teacher: bool
) -> dict[str, Callable[[QueryView], Rejections]]:
    """All filters in their order with the recipe's options, without those that it sets to null.

    The filter `teacher` is there where there is a teacher, unless the recipe names it. Raises UserError for wrong ones.
    """
    for name in options:
        QUERY_FILTERS.bind(name, options[name] or {})
        if options[name] is not None and QUERY_FILTERS[name].needs_teacher and not has_teacher:
            raise UserError(f"filter {name!r}: needs mine.teacher: {{name, kind, model}}")
    known = [one for one in QUERY_FILTERS.values() if has_teacher or not one.needs_teacher]
    names = [one.name for one in known if options.get(one.name, {}) is not None]
    return {name: QUERY_FILTERS.bind(name, options.get(name) or {}) for name in names}


def sift(
    view: QueryView, filters: Mapping[str, Callable[[QueryView], Rejections]]
) -> tuple[dict[int, Written], dict[int, tuple[str, str, str]]]:
    """(the queries that pass all filters, with their verdicts; query -> (filter, reason, words) of the others)."""
    left = dict(view.queries)
    rejected: dict[int, tuple[str, str, str]] = {}
    for name, decide in filters.items():
        found = decide(replace(view, queries=left))
        rejected |= {n: (name, *why) for n, why in found.removed.items()}
        kept = {n: query for n, query in left.items() if n not in found.removed}
        left = {
            n: replace(query, verdicts={**query.verdicts, name: found.notes[n]}) if n in found.notes else query
            for n, query in kept.items()
        }
    return left, rejected


@QUERY_FILTERS.register(
    malformed="the writer's answer is not what it was asked for",
    too_short="too few words to find anything",
    too_long="longer than a query",
    not_a_query="an answer, a mark-up or a phrase of a chat, and not a query",
)
def format(view: QueryView, *, least_words: Annotated[int, Field(ge=1)] = 2) -> Rejections:
    """Rejects what is not a query by its form."""
    removed = {}
    for n, query in view.queries.items():
        count = len(words(query.text))
        if query.malformed:
            removed[n] = "malformed", query.malformed
        elif count < least_words:
            removed[n] = "too_short", f"{count} words"
        elif count > MOST_WORDS or len(query.text) > MOST_CHARACTERS:
            removed[n] = "too_long", f"{count} words"
        elif (match := _NO_QUERY.search(query.text)) is not None:
            removed[n] = "not_a_query", match[0]
    return Rejections(removed)


@QUERY_FILTERS.register(other_language="in another language or script than its passage")
def language(view: QueryView) -> Rejections:
    """Rejects a query in another language than its passage, as far as scripts and small words tell it."""
    found = {n: difference(query.text, view.texts[query.passage]) for n, query in view.queries.items()}
    return Rejections({n: ("other_language", words) for n, words in found.items() if words})


@QUERY_FILTERS.register(copies_passage="copied from its passage")
def copies(view: QueryView, *, share: Annotated[float, Field(gt=0, le=1)] = 0.6) -> Rejections:
    """Rejects a query of whose words more than a share stand in its passage in one run, of four words at least."""
    removed, notes = {}, {}
    for n, query in view.queries.items():
        own = [folded(word) for word in words(query.text)]
        run = longest_run(own, [folded(word) for word in words(view.texts[query.passage])])
        notes[n] = round(run / len(own), 3)
        if run >= LEAST_RUN and run > share * len(own):
            removed[n] = "copies_passage", f"{run} of {len(own)} words in one run"
    return Rejections(removed, notes)


def longest_run(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest run of words that both have."""
    best, before = 0, [0] * (len(one) + 1)
    wanted = set(one)
    for word in other:
        now = [0] * len(before)
        if word in wanted:
            for place, found in enumerate(one):
                if found == word:
                    now[place + 1] = before[place] + 1
        best, before = max(best, *now), now
    return best


@QUERY_FILTERS.register(mentions_document="speaks of the document, which nobody has before the search")
def mentions(view: QueryView) -> Rejections:
    """Rejects queries about "the passage", "this document" and the like."""
    found = {n: _MENTIONS.search(query.text) for n, query in view.queries.items()}
    return Rejections({n: ("mentions_document", match[0]) for n, match in found.items() if match is not None})


@QUERY_FILTERS.register(duplicate_query="nearly the words of another written query")
def duplicates(view: QueryView, *, jaccard: Annotated[float, Field(gt=0, le=1)] = QUERY.threshold) -> Rejections:
    """Leaves one of each group of near duplicates: the one that has most words in common with its passage."""
    kind = replace(QUERY, threshold=jaccard)
    found = find_duplicates({f"{n:09d}": q.text for n, q in view.queries.items()}, code=False, kind=kind)
    groups: dict[str, set[str]] = {}
    # A group of near ones names the first of each equal text.
    for ids in (*found.exact, *found.near):
        together = set(ids).union(*(groups.get(one, ()) for one in ids))
        for one in together:
            groups[one] = together
    removed: dict[int, tuple[str, str]] = {}
    for together in {id(group): group for group in groups.values()}.values():
        numbers = sorted(map(int, together))
        best = max(numbers, key=lambda n: (_common(view, n), view.queries[n].id))
        removed |= {n: ("duplicate_query", view.queries[best].id) for n in numbers if n != best}
    return Rejections(removed)


def _common(view: QueryView, n: int) -> float:
    """The share of a query's words that its passage has."""
    own = {folded(word) for word in words(view.queries[n].text)}
    return len(own & {folded(word) for word in words(view.texts[view.queries[n].passage])}) / max(len(own), 1)


@QUERY_FILTERS.register(
    leaks="nearly a query of dev or test", passage_leaks="its passage is nearly one that is relevant to dev or test"
)
def leak(view: QueryView, *, passages: bool = False) -> Rejections:
    """Rejects what dev or test asks too; with `passages`, also what is asked of a passage that they have relevant.

    Without it passages are not compared, as nowhere in the search for leaks: see data/leakage.py.
    """
    ours = {str(n): query.text for n, query in view.queries.items()}
    shared = find_shared(ours, view.held, kind=QUERY)
    removed = {int(one): ("leaks", other) for one, other in reversed([*shared.exact, *shared.near])}
    if passages and view.held_passages:
        kind = CODE if view.code else TEXT
        own = {query.passage: view.texts[query.passage] for query in view.queries.values()}
        met = find_shared(own, view.held_passages, kind=kind)
        near = dict(reversed([*met.exact, *met.near]))
        for n, query in view.queries.items():
            if query.passage in near:
                removed.setdefault(n, ("passage_leaks", near[query.passage]))
    return Rejections(removed)


@QUERY_FILTERS.register(not_found="the search does not find its passage")
def round_trip(view: QueryView, *, top: Annotated[int, Field(ge=1, le=1000)] = 20) -> Rejections:
    """Rejects a query whose passage is not among the first `top` that the search finds for it. Notes: its rank."""
    found = view.search(view.queries, top)
    ranks = {
        n: next((c.rank for c in found[n] if c.document_id == query.passage), None) for n, query in view.queries.items()
    }
    removed = {n: ("not_found", f"not in the first {top}") for n, rank in ranks.items() if rank is None}
    return Rejections(removed, {n: rank for n, rank in ranks.items() if rank is not None})


@QUERY_FILTERS.register(
    needs_teacher=True,
    teacher_low="the teacher puts other passages before it",
    teacher_prefers_other="the teacher scores another passage higher by more than the margin",
)
def teacher(
    view: QueryView,
    *,
    top: Annotated[int, Field(ge=1, le=1000)] = 3,
    depth: Annotated[int, Field(ge=1, le=1000)] = 20,
    margin: Annotated[float, Field(ge=0)] = 0.0,
    above: Literal["promote", "drop"] = "promote",
) -> Rejections:
    """Rejects a query whose passage the teacher does not put among its first `top` of the candidates.

    A passage that it scores higher by more than the margin is relevant as well (`promote`), or the query is dropped.
    depth: how many of the search's candidates it sees. Notes: rank, score, and what was promoted.
    """
    assert view.scores is not None, "chosen_filters leaves the filter out without a teacher"
    found = view.search(view.queries, depth)
    wanted = {
        n: list(dict.fromkeys([query.passage, *(c.document_id for c in found[n])])) for n, query in view.queries.items()
    }
    scores = view.scores(view.queries, wanted)
    removed: dict[int, tuple[str, str]] = {}
    notes: dict[int, Any] = {}
    for n, query in view.queries.items():
        own = scores[n][query.passage]
        others = sorted(((-score, d) for d, score in scores[n].items() if d != query.passage))
        rank = 1 + sum(-score > own for score, _ in others)
        notes[n] = {"rank": rank, "score": round(own, 4)}
        if rank > top:
            removed[n] = "teacher_low", f"rank {rank}"
        elif others and -others[0][0] > own + margin:
            best = others[0][1]
            if above == "drop":
                removed[n] = "teacher_prefers_other", best
            else:
                notes[n]["promoted"] = best
    return Rejections(removed, notes)


def relevant(query: Written) -> list[str]:
    """The passages that answer a query that passed the filters."""
    promoted = (query.verdicts.get("teacher") or {}).get("promoted")
    return [query.passage, *([promoted] if promoted is not None else [])]
