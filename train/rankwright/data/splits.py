"""Development queries taken out of the training queries, and what two splits share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rankwright.common.errors import UserError
from rankwright.common.hashing import stable_hash
from rankwright.data.collection import Collection
from rankwright.data.normalisation import normalised, normalised_key
from rankwright.data.store.views import read_some

MOST_EXAMPLES = 5
# (place of the set in a list of sets, query id)
QueryPlace = tuple[int, str]


def group_keys(collection: Collection, query_id: str) -> frozenset[str]:
    """The values of the group key for a query: its own, or else those of its relevant documents."""
    own = collection.query_groups.get(query_id)
    if own is not None:
        return frozenset((own,))
    groups = collection.document_groups
    return frozenset(groups[d] for d in collection.positives(query_id) if d in groups) if groups else frozenset()


def dev_size(count: int, fraction: float) -> int:
    """How many of a set's queries dev should have: at least one on each side."""
    return min(max(round(count * fraction), 1), count - 1)


def split_devs(
    train: Sequence[Collection], *, fraction: float, seed: int, alike: Iterable[Sequence[QueryPlace]] = ()
) -> list[tuple[Collection, Collection]]:
    """(train, dev) of each set by query; queries that belong together, even across sets, go to one side.

    Queries belong together, in one bundle, when they have the same normalised text or value of the group key, or when
    `alike` names them together (near duplicates, for instance). Bundles are ordered by their smallest hash of (seed,
    query id), whatever the order of the files; dev takes the first ones that make up its size (`dev_size`) exactly, or
    as nearly as bundles allow.
    Both sides keep the files' order, and the corpus is the same object on both.
    Raises UserError for a fraction that is not between 0 and 1, fewer than two queries, and a set in one bundle.
    """
    if not 0 < fraction < 1:
        raise UserError(f"dev fraction {fraction:g}: must be above 0 and below 1")
    for collection in train:
        if (count := len(collection.queries)) < 2:
            raise UserError(
                f"set {collection.name!r} has {count} training query: two are needed to take one for dev, "
                "give more or name a dev set"
            )
    bundles = _bundles(train, alike, seed)
    dev: set[QueryPlace] = set()
    decided: set[int] = set()
    # By name: the order of the sets in a recipe decides nothing.
    for number in sorted(range(len(train)), key=lambda n: train[n].name):
        count = len(train[number].queries)
        own = [(k, sum(n == number for n, _ in bundle)) for k, bundle in enumerate(bundles)]
        # A bundle with queries of an earlier set stays where that set put it.
        taken = sum(n == number for n, _ in dev)
        free = [(k, size) for k, size in own if size and k not in decided]
        sizes = [size for _, size in free]
        most = sum(sizes) - (taken + sum(sizes) == count)
        chosen = _first_of_size(sizes, dev_size(count, fraction) - taken, range(not taken, most + 1))
        dev.update(place for c in chosen for place in bundles[free[c][0]])
        decided.update(k for k, size in own if size)
        in_dev = sum(n == number for n, _ in dev)
        # A set gets no query for dev when all its queries follow those of other sets into train.
        if in_dev == count or (free and not in_dev):
            raise UserError(
                f"set {train[number].name!r}: its {count:,} queries belong together (one group key value, or the same "
                "text), so that none can be taken for dev: name a dev set"
            )
    return [
        (
            collection.subset(q for q in collection.queries if (number, q) not in dev),
            collection.subset(q for q in collection.queries if (number, q) in dev),
        )
        for number, collection in enumerate(train)
    ]


def _bundles(train: Sequence[Collection], alike: Iterable[Sequence[QueryPlace]], seed: int) -> list[list[QueryPlace]]:
    """The queries of all sets, those that belong together in one list, by smallest hash."""
    # Seconds to import, and only needed here.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    every = [(number, q) for number, collection in enumerate(train) for q in collection.queries]
    places = {place: n for n, place in enumerate(every)}
    first: dict[tuple[str, str], int] = {}
    links = [(places[place], places[together[0]]) for together in alike for place in together[1:]]
    for (number, q), n in places.items():
        keys = [("text", normalised(train[number].queries[q]))]
        keys += [("group", value) for value in group_keys(train[number], q)]
        links += [(n, first.setdefault(key, n)) for key in keys]
    ends = np.array(links).T
    graph = coo_array((np.ones(len(links), dtype=bool), (ends[0], ends[1])), shape=(len(places), len(places)))
    found: dict[int, list[QueryPlace]] = {}
    for place, label in zip(places, connected_components(graph, directed=False)[1].tolist(), strict=True):
        found.setdefault(label, []).append(place)
    hashes = {place: (stable_hash("dev", seed, place[1]), place[1], train[place[0]].name) for place in places}
    return sorted(found.values(), key=lambda bundle: min(hashes[place] for place in bundle))


def _first_of_size(sizes: Sequence[int], target: int, allowed: range) -> list[int]:
    """Places of sizes that sum up to the target, or to the nearest allowed sum; among several ways, of the first sizes.

    Subset sum: each total keeps the first size that reaches it, so that no way to it needs a later one.
    """
    whole = sum(sizes)
    if target <= 0 or not sizes:
        return []
    sums = np.cumsum(sizes)
    exact = np.searchsorted(sums, target)
    if exact < len(sums) and sums[exact] == target:
        return list(range(int(exact) + 1))
    by = np.full(whole + 1, -1, dtype=np.int64)
    reached = np.zeros(whole + 1, dtype=bool)
    reached[0] = True
    for place, size in enumerate(sizes):
        new = reached[:-size] & ~reached[size:]
        by[size:][new] = place
        reached[size:] |= new
        if target <= whole and reached[target]:
            break
    totals = np.flatnonzero(reached)
    totals = totals[(totals >= allowed.start) & (totals < allowed.stop)]
    if not len(totals):
        return []
    total = int(totals[np.argmin(np.abs(totals - target))])
    chosen = []
    while total:
        chosen.append(int(by[total]))
        total -= sizes[chosen[-1]]
    return sorted(chosen)


@dataclass(frozen=True, slots=True)
class OverlapReport:
    """What a test split shares with a train split; texts are compared as normalisation.normalised makes them.

    same_queries: test queries whose text is a training query
    same_pairs: relevant (query, document) pairs of test that are relevant pairs of train
    same_positives: distinct texts that are relevant somewhere in both
    queries_with_seen_positive: test queries with a relevant document that is relevant in train
    The examples are ids: (test query, train query); (test query, test document); (test document, train
    document); test queries.
    """

    same_queries: int
    same_pairs: int
    same_positives: int
    queries_with_seen_positive: int
    query_examples: tuple[tuple[str, str], ...]
    pair_examples: tuple[tuple[str, str], ...]
    positive_examples: tuple[tuple[str, str], ...]
    seen_query_examples: tuple[str, ...]


def overlap(train: Collection, test: Collection) -> OverlapReport:
    """Queries, relevant pairs and relevant documents of `test` that `train` also has."""
    # Reversed, so that the smallest id among duplicates is the example, whatever the order of the file.
    train_queries = {normalised_key(train.queries[q]): q for q in sorted(train.queries, reverse=True)}
    train_positives = _positive_texts(train)
    by_text = {train_positives[d]: d for d in reversed(train_positives)}
    train_pairs = {
        (normalised_key(train.queries[q]), train_positives[d]) for q in train.queries for d in train.positives(q)
    }
    queries, pairs, seen = [], [], []
    test_positives = _positive_texts(test)
    for query_id, query in test.queries.items():
        text = normalised_key(query)
        if text in train_queries:
            queries.append((query_id, train_queries[text]))
        positives = test.positives(query_id)
        pairs += [(query_id, d) for d in positives if (text, test_positives[d]) in train_pairs]
        if any(test_positives[d] in by_text for d in positives):
            seen.append(query_id)
    shared = {test_positives[d]: d for d in reversed(test_positives) if test_positives[d] in by_text}
    documents = [(d, by_text[text]) for text, d in shared.items()]
    return OverlapReport(
        same_queries=len(queries),
        same_pairs=len(pairs),
        same_positives=len(documents),
        queries_with_seen_positive=len(seen),
        query_examples=tuple(sorted(queries)[:MOST_EXAMPLES]),
        pair_examples=tuple(sorted(pairs)[:MOST_EXAMPLES]),
        positive_examples=tuple(sorted(documents)[:MOST_EXAMPLES]),
        seen_query_examples=tuple(sorted(seen)[:MOST_EXAMPLES]),
    )


def _positive_texts(collection: Collection) -> dict[str, bytes]:
    """Id -> normalised_key of the documents that are relevant to any query, in the order of their ids."""
    ids = sorted({d for q in collection.queries for d in collection.positives(q)})
    return {d: normalised_key(text) for d, text in read_some(collection.corpus, ids)}
