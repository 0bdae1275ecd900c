"""Training data that a held-out set also has: an error, or dropped from the training side and counted."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rankwright.common.errors import UserErrors
from rankwright.common.hashing import content_hash
from rankwright.common.plurals import counted
from rankwright.data import duplicates
from rankwright.data.collection import Collection
from rankwright.data.duplicates import QUERY
from rankwright.data.formats.reading import Say
from rankwright.data.normalisation import normalised
from rankwright.data.shingles import words
from rankwright.data.splits import MOST_EXAMPLES, QueryPlace, dev_size, group_keys, split_devs

# What stops a run, in the order of the report. A query may have several kinds; "same pair" are the queries of "same
# query" that also share the text of a relevant document.
KINDS = ("same query", "same pair", "near-duplicate query", "same group")

# A query of fewer words is not looked for inside texts: the size of a shingle of prose.
LEAST_WORDS = 5


@dataclass(frozen=True, slots=True)
class Leak:
    """One kind of leak between two sides. ours: "SET/ID" of each of our queries -> its first counterpart in theirs;
    theirs: all counterparts. group: for the kind "same group", our query -> value of the group key.
    """

    kind: str
    ours: Mapping[str, str]
    theirs: frozenset[str]
    group: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def example(self, query: str) -> str:
        """One of our queries with its counterpart, by ids alone: texts may be long, or not be meant for a log."""
        value = f" (group {self.group[query]!r})" if query in self.group else ""
        return f"{query} = {self.ours[query]}{value}"


def find_leaks(ours: Sequence[Collection], theirs: Sequence[Collection]) -> list[Leak]:
    """What both sides have, by kind; kinds without any are left out. Symmetric but for the sides' names.

    The order of sets and of files does not matter. A relevant document that both sides have is not a leak (see
    `splits.overlap`), nor is an unjudged document: a mined negative may be relevant to a test query.
    """
    our_queries, their_queries = _queries(ours), _queries(theirs)
    shared = duplicates.find_shared(
        {key: c.queries[q] for key, (c, q) in our_queries.items()},
        {key: c.queries[q] for key, (c, q) in their_queries.items()},
        kind=QUERY,
    )
    positives: dict[tuple[str, str], frozenset[str]] = {}

    def texts(side: str, key: str) -> frozenset[str]:
        if (side, key) not in positives:
            c, q = (our_queries if side == "ours" else their_queries)[key]
            positives[side, key] = frozenset(normalised(c.corpus[d]) for d in c.positives(q))
        return positives[side, key]

    pairs = [(a, b) for a, b in shared.exact if texts("ours", a) & texts("theirs", b)]
    found = dict(zip(KINDS, (shared.exact, pairs, shared.near), strict=False))
    # In reverse order the last pair of a query wins: its smallest counterpart.
    leaks = [
        Leak(kind, dict(sorted(rows, reverse=True)), frozenset(b for _, b in rows)) for kind, rows in found.items()
    ]
    return [leak for leak in [*leaks, _groups(our_queries, their_queries)] if leak.ours]


def _queries(collections: Sequence[Collection]) -> dict[str, tuple[Collection, str]]:
    """SET/ID -> set and id of every query."""
    return {f"{c.name}/{q}": (c, q) for c in collections for q in c.queries}


def _groups(ours: Mapping[str, tuple[Collection, str]], theirs: Mapping[str, tuple[Collection, str]]) -> Leak:
    """Values of the group key are compared as they are, whatever their set."""
    by_value: dict[str, list[str]] = {}
    for key in sorted(theirs):
        for value in group_keys(*theirs[key]):
            by_value.setdefault(value, []).append(key)
    found: dict[str, str] = {}
    values: dict[str, str] = {}
    for key in sorted(ours):
        if met := sorted(value for value in group_keys(*ours[key]) if value in by_value):
            found[key], values[key] = by_value[met[0]][0], met[0]
    met_values = {value for key in found for value in group_keys(*ours[key])}
    return Leak("same group", found, frozenset(k for v in met_values for k in by_value.get(v, ())), values)


def drop_leaks(ours: Sequence[Collection], leaks: Iterable[Leak]) -> list[Collection]:
    """Our sets without the queries that leak."""
    dropped = {key for leak in leaks for key in leak.ours}
    return [c.subset(q for q in c.queries if f"{c.name}/{q}" not in dropped) for c in ours]


def keep_apart(
    train: Sequence[Collection],
    dev: Sequence[Collection],
    test: Sequence[Collection],
    *,
    on_leak: Literal["stop", "drop"],
    say: Say,
) -> tuple[list[Collection], list[Collection], list[dict[str, Any]]]:
    """(train, dev, rows of data_report.json) with train separate from dev and test, and dev from test.

    on_leak: stop raises UserErrors with all that was found; drop leaves queries out of dev, then of train.
    """
    rows: list[dict[str, Any]] = []
    faults: list[str] = []

    def apart(name: str, ours: Sequence[Collection], against: str, theirs: Sequence[Collection]) -> list[Collection]:
        leaks = find_leaks(ours, theirs) if ours and theirs else []
        if not leaks:
            return list(ours)
        row = _row(name, ours, against, theirs, leaks)
        rows.append(row)
        if on_leak == "stop":
            faults.append(
                f"data.{name}: {row['leaking']:,} of {counted(row['queries'], 'query')} "
                f"{'is' if row['leaking'] == 1 else 'are'} in {against} too: "
                f"{_told(row)}: set data.on_leak: drop to leave them out of {name}, or give other splits"
            )
            return list(ours)
        kept = drop_leaks(ours, leaks)
        say(f"leakage: {row['leaking']:,} of {counted(row['queries'], f'{name} query')} dropped: {_told(row)}")
        faults.extend(
            f"data.{name}: set {was.name!r}: {_all(len(was.queries))} in {against} too: give other splits"
            for was, now in zip(ours, kept, strict=True)
            if was.queries and not now.queries
        )
        return kept

    dev = apart("dev", dev, "test", test)
    train = apart("train", train, "dev", dev)
    train = apart("train", train, "test", test)
    if faults:
        raise UserErrors(faults)
    if not rows:
        say("leakage: no query, pair or group of a training split is in a held-out one")
    return list(train), list(dev), rows


def _row(
    name: str, ours: Sequence[Collection], against: str, theirs: Sequence[Collection], leaks: Sequence[Leak]
) -> dict[str, Any]:
    """Counts of queries: `leaking` each once, `kinds` those of each kind, which overlap."""
    kinds = {
        leak.kind: {
            "queries": len(leak.ours),
            "held_out_queries": len(leak.theirs),
            "examples": [leak.example(query) for query in sorted(leak.ours)[:MOST_EXAMPLES]],
        }
        for leak in leaks
    }
    return {
        "split": name,
        "held_out": against,
        "queries": sum(len(c.queries) for c in ours),
        "held_out_queries": sum(len(c.queries) for c in theirs),
        "leaking": len({key for leak in leaks for key in leak.ours}),
        "held_out_leaking": len({key for leak in leaks for key in leak.theirs}),
        "kinds": kinds,
    }


def _all(queries: int) -> str:
    return "its only query is" if queries == 1 else f"all {queries:,} queries are"


def _told(row: Mapping[str, Any]) -> str:
    kinds = [f"{kind} {found['queries']:,} ({found['examples'][0]})" for kind, found in row["kinds"].items()]
    met = f"{row['held_out_leaking']:,} of {counted(row['held_out_queries'], row['held_out'] + ' query')}"
    return f"{', '.join(kinds)}; they meet {met}"


def split_apart(sets: Sequence[Collection], *, fraction: float, seed: int) -> list[tuple[Collection, Collection]]:
    """(the rest, what is taken out) of each set by `splits.split_devs`; near-duplicate queries stay on one side too."""
    places: dict[str, QueryPlace] = {f"{n}/{q}": (n, q) for n, c in enumerate(sets) for q in c.queries}
    texts = {key: sets[n].queries[q] for key, (n, q) in places.items()}
    near = duplicates.find_duplicates(texts, code=False, kind=QUERY).near
    return split_devs(sets, fraction=fraction, seed=seed, alike=[[places[key] for key in group] for group in near])


def take_out(
    split: str, train: Sequence[Collection], *, fraction: float, seed: int, say: Say
) -> tuple[list[Collection], list[Collection]]:
    """(train, `split`) of all sets by `split_apart`; reports how many queries, and where the fraction is not met."""
    parts = split_apart(train, fraction=fraction, seed=seed)
    taken = sum(len(out.queries) for _, out in parts)
    say(f"{split}: {counted(taken, 'query')} taken out of train (fraction {fraction:g})")
    for whole, (_, out) in zip(train, parts, strict=True):
        wanted = dev_size(len(whole.queries), fraction)
        if len(out.queries) != wanted:
            say(
                f"{split} of {whole.name}: {counted(len(out.queries), 'query')} where {fraction:g} is "
                f"{wanted:,}: queries that "
                "belong together (group key, same or nearly the same text) stay on one side"
            )
    # They are evaluated, not drawn.
    return [kept for kept, _ in parts], [dataclasses.replace(out, draws=1.0) for _, out in parts]


class QueriesInTexts:
    """Queries of dev and test, to be found in texts that a language model reads: normalised, word by word.

    A query of fewer than LEAST_WORDS words is not looked for: any text may hold `net income 2023`. too_short: how many.
    key: stands for the queries.
    """

    def __init__(self, queries: Iterable[str]) -> None:
        found = {tuple(words(query)) for query in queries}
        self._by_start: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
        for query in sorted(found):
            if len(query) >= LEAST_WORDS:
                self._by_start.setdefault(query[:LEAST_WORDS], []).append(query)
        self.too_short = sum(len(query) < LEAST_WORDS for query in found)
        self.key = content_hash(LEAST_WORDS, sorted(query for of in self._by_start.values() for query in of))

    def within(self, text: str) -> set[str]:
        """The queries that stand in a text, in their normal form."""
        if not self._by_start:
            return set()
        own = words(text)
        found = set()
        for start, run in enumerate(zip(*(own[n:] for n in range(LEAST_WORDS)), strict=False)):
            for query in self._by_start.get(run, ()):
                if tuple(own[start : start + len(query)]) == query:
                    found.add(" ".join(query))
        return found

    def removal(self) -> Removal:
        """Takes paragraphs that hold a query out of texts, and counts them."""
        return Removal(self)


class Removal:
    """What was taken out of texts so far. paragraphs, documents: of which some or all was; queries: that were met."""

    def __init__(self, queries: QueriesInTexts) -> None:
        self._queries = queries
        self.paragraphs = self.documents = 0
        self.queries: set[str] = set()

    def of(self, text: str) -> str:
        """The text without paragraphs (between empty lines) that hold a query; "" where one lies across several."""
        met = self._queries.within(text)
        if not met:
            return text
        self.queries |= met
        self.documents += 1
        paragraphs = re.split(r"(?:[ \t]*\n){2,}", text)
        kept = [paragraph for paragraph in paragraphs if not self._queries.within(paragraph)]
        rest = "\n\n".join(kept)
        if self._queries.within(rest):
            kept, rest = [], ""
        self.paragraphs += len(paragraphs) - len(kept)
        return rest

    def told(self) -> str:
        """What was removed as a line, "" for nothing."""
        if not self.paragraphs:
            return ""
        return (
            f"{counted(self.paragraphs, 'paragraph')} of {counted(self.documents, 'document')} left out: they hold "
            f"{counted(len(self.queries), 'query')} of dev or test"
        )
