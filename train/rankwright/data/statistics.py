"""Statistics of a set, and findings for a person to look at: labels, duplicates, conflicts, encoding."""

from __future__ import annotations

import heapq
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rankwright.common.hashing import stable_hash
from rankwright.data.collection import Collection
from rankwright.data.normalisation import is_blank, normalised_key

Level = Literal["error", "warning", "note"]
Of = Literal["documents", "queries", "judgements"]
Advance = Callable[[int], None]
# Drawn by hash: enough for the percentiles from which a budget is rounded up.
MOST_TEXTS = 5000
# At least two signs of code in at least half of the documents: of the sets measured, prose (TAT-QA, ObliQA) had 24 %
# and 11 % of such documents, code (CoSQA, NL2Bash) 100 % and 70 %.
SIGNS_OF_CODE, SHARE_OF_CODE = 2, 0.5
_CODE = re.compile(
    r"""(?mx)
    ^[^\S\n]*(?:def\ |class\ \w+[:({]|import\ \w|from\ \w+\ import\ |\#include|public\ |private\ |static\ |function\ |
        const\ |let\ |var\ |return\b|package\ \w+;|func\ |fn\ )
    | [{}]\s*$ | \ =>\  | \bself\. | \w::\w | </\w+> | \w\([^()\n]*\)\s*[:{;] | \$\{?[A-Za-z_]
    | \b[a-z0-9]+_[a-z0-9_]+\b | \b[a-z]+[A-Z]\w*\( | \b\w+\.\w+\( | (?:^|\s)--?[a-zA-Z][\w-]*\b
    | \|\s*(?:grep|sort|xargs|awk|sed|head|tail|wc|uniq|cut|tee)\b | [=!]= | \w\[\w+\]
    """
)
# Tab and the two characters of a line break are text; every other control character comes from a broken conversion.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something noteworthy in one set. level: an error stops a run, a note needs no action.

    ids: of the texts, or (query, document) of the judgements; for duplicates one tuple per group.
    """

    level: Level
    of: Of
    kind: str
    what: str
    ids: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class TextFacts:
    """Facts of a corpus, or of the queries of a split: ids in the order of the texts, groups as in duplicates.py.

    encoding: kind of fault -> ids.
    """

    count: int
    empty: tuple[str, ...]
    exact: tuple[tuple[str, ...], ...]
    near: tuple[tuple[str, ...], ...]
    encoding: Mapping[str, tuple[str, ...]]


def text_facts(texts: Mapping[str, str], *, queries: bool, code: bool, advance: Advance | None = None) -> TextFacts:
    """Look at every text, and for duplicates; advance is called with the number of texts done, len(texts) in all."""
    # Seconds to import: datasketch brings scipy.
    from rankwright.data.duplicates import QUERY, find_duplicates

    empty = tuple(i for i, text in texts.items() if is_blank(text))
    faults: dict[str, list[str]] = {}
    for i, text in texts.items():
        for kind in encoding_faults(text):
            faults.setdefault(kind, []).append(i)
    found = find_duplicates(texts, code=code and not queries, kind=QUERY if queries else None, advance=advance)
    encoding = {kind: tuple(ids) for kind, ids in sorted(faults.items())}
    return TextFacts(len(texts), empty, tuple(found.exact), tuple(found.near), encoding)


def encoding_faults(text: str) -> Iterator[str]:
    """The kinds of damage from a wrong encoding in a text."""
    if text.isascii() and text.isprintable():
        return
    if "\ufffd" in text:
        yield "replacement characters (U+FFFD)"
    if _SURROGATE.search(text):
        yield "lone surrogates"
    if _CONTROL.search(text):
        yield "control characters"
    if not text.isascii() and _mojibake(text):
        yield "mojibake"


def _mojibake(text: str) -> bool:
    # ftfy distinguishes â€™ from the letters of languages that have them.
    from ftfy.badness import is_bad

    return is_bad(text.replace("\ufffd", ""))


def conflicts(collection: Collection) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """Pairs of judgements, (query id, document id) each, of equal texts with unequal labels; ids differ, texts do not.

    Texts are compared in their normal form. Each later judgement is paired with the first of its texts.
    """
    queries = {q: normalised_key(text) for q, text in collection.queries.items()}
    judged = {d for row in collection.qrels.values() for d in row}
    documents = {d: normalised_key(collection.corpus[d]) for d in judged if d in collection.corpus}
    first: dict[bytes, tuple[tuple[str, str], float]] = {}
    found = []
    for query_id, row in collection.qrels.items():
        for document_id, label in row.items():
            if query_id in queries and document_id in documents:
                pair = (query_id, document_id)
                before, label_before = first.setdefault(queries[query_id] + documents[document_id], (pair, label))
                if label_before != label:
                    found.append((before, pair))
    return found


def lowest_above_zero(collection: Collection) -> float | None:
    """The lowest label of a set without any at or below 0, where some query has several: all count as relevant."""
    by_query = [set(judged.values()) for judged in collection.qrels.values()]
    labels = set().union(*by_query)
    return min(labels) if any(len(own) > 1 for own in by_query) and min(labels) > 0 else None


def every_label_relevant(lowest: float) -> str:
    """What to do about `lowest_above_zero`."""
    return (
        f"every label is above 0, and so every judged document is relevant: if {lowest:g} means not relevant, give the "
        f"set `relevant_from: {int(lowest) + 1}`"
    )


def counts(collection: Collection, documents: TextFacts, queries: TextFacts) -> dict[str, Any]:
    """The numbers of one split of one set, as data_report.json has them."""
    relevant = [len(collection.positives(q)) for q in collection.queries]
    judgements = [(d, label) for row in collection.qrels.values() for d, label in row.items()]
    judged = {d for d, _ in judgements}
    return {
        "set": collection.name,
        "documents": len(collection.corpus),
        "queries": len(collection.queries),
        "judgements": len(judgements),
        "positives": sum(relevant),
        "queries_without_positive": sum(n == 0 for n in relevant),
        "empty_documents": len(documents.empty),
        "unused_documents": sum(d not in judged for d in collection.corpus),
        "labels": _histogram(label for _, label in judgements),
        "positives_per_query": _histogram(relevant),
        "conflicting_labels": len(conflicts(collection)),
        "duplicate_documents": _duplicate_counts(documents),
        "duplicate_queries": _duplicate_counts(queries),
        "encoding_faults": {
            "documents": {kind: len(ids) for kind, ids in documents.encoding.items()},
            "queries": {kind: len(ids) for kind, ids in queries.encoding.items()},
        },
    }


def _histogram(values: Iterable[float]) -> dict[str, int]:
    """Value -> how often, in the order of the values."""
    return {f"{value:g}": count for value, count in sorted(Counter(values).items())}


def _duplicate_counts(facts: TextFacts) -> dict[str, int]:
    """exact, near: texts that are in a group with others; exact_more: those beyond the first of their group."""
    exact = sum(map(len, facts.exact))
    return {"exact": exact, "exact_more": exact - len(facts.exact), "near": sum(map(len, facts.near))}


def findings(collection: Collection, documents: TextFacts, queries: TextFacts) -> list[Finding]:
    """What a person should look at, worst first; the run's own checks find what stops it."""
    found: list[Finding] = []

    def note(level: Level, of: Of, kind: str, what: str, ids: Sequence[tuple[str, ...]]) -> None:
        if ids:
            found.append(Finding(level, of, kind, what, tuple(ids)))

    pairs = [tuple(itertools.chain(*pair)) for pair in conflicts(collection)]
    if lowest := lowest_above_zero(collection):
        judged = ((q, d, label) for q, row in collection.qrels.items() for d, label in row.items())
        low = [
            (q, d) for q, d, label in judged if label == lowest and q in collection.queries and d in collection.corpus
        ]
        note("warning", "judgements", "no label at or below 0", every_label_relevant(lowest), low)
    note("warning", "judgements", "conflicting labels", "the same texts have another label elsewhere", pairs)
    bare = [q for q in collection.queries if not collection.positives(q)]
    unjudged = [(q,) for q in bare if not collection.qrels.get(q)]
    negative = [(q,) for q in bare if collection.qrels.get(q)]
    note("warning", "queries", "no judgement", "all their documents are unjudged", unjudged)
    note("warning", "queries", "no positive", "all judged documents are not relevant", negative)
    note("warning", "documents", "empty", "have no text", [(d,) for d in documents.empty])
    both: tuple[tuple[Of, TextFacts], ...] = (("documents", documents), ("queries", queries))
    for of, facts in both:
        for kind, ids in facts.encoding.items():
            note("warning", of, kind, f"hold {kind}: save them anew from a clean source", [(i,) for i in ids])
        note("warning", of, "exact duplicates", "groups of equal texts under several ids", facts.exact)
        note("note", of, "near duplicates", "groups of almost equal texts", facts.near)
    return found


def drawn(texts: Mapping[str, str]) -> list[str]:
    """At most MOST_TEXTS of the texts, chosen by a hash of their ids."""
    if len(texts) <= MOST_TEXTS:
        return list(texts.values())
    return [texts[i] for i in heapq.nsmallest(MOST_TEXTS, texts, key=lambda i: stable_hash("look", i))]


def share_of_code(documents: Sequence[str]) -> float:
    """The share of the documents with signs of code."""
    if not documents:
        return 0.0
    return sum(len(_CODE.findall(text)) >= SIGNS_OF_CODE for text in documents) / len(documents)
