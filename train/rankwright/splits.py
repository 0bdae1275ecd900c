"""Development queries taken out of the training queries, and what two splits share."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from rankwright.errors import UserError
from rankwright.examples import Collection
from rankwright.ranking import stable_hash

MOST_EXAMPLES = 5


def normalised(text: str) -> str:
    """A text without what does not make it another text: NFKC, casefold, white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def split_dev(train: Collection, *, fraction: float, seed: int) -> tuple[Collection, Collection]:
    """(train, dev) by query: round(n * fraction) queries go to dev, at least one on each side.

    The queries are those with the smallest hash of (seed, query id): a query's place does not depend on the
    order of the file, and both sides keep that order. The corpus is the same object on both sides.
    Raises UserError for a fraction that is not between 0 and 1, and for fewer than two queries.
    """
    if not 0 < fraction < 1:
        raise UserError(f"dev fraction {fraction:g}: must be above 0 and below 1")
    count = len(train.queries)
    if count < 2:
        raise UserError(
            f"set {train.name!r} has {count} training query: two are needed to take one for dev, "
            "give more or name a dev set"
        )
    size = min(max(round(count * fraction), 1), count - 1)
    order = sorted(train.queries, key=lambda q: (stable_hash("dev", seed, q), q))
    dev = set(order[:size])
    return (
        train.subset(q for q in train.queries if q not in dev),
        train.subset(q for q in train.queries if q in dev),
    )


@dataclass(frozen=True, slots=True)
class OverlapReport:
    """What a test split shares with a train split; texts are compared as `normalised` makes them.

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
    """Queries, relevant pairs and relevant documents of `test` that `train` has too."""
    # Reversed, so that of twins the smallest id is the example, whatever the order of the file.
    train_queries = {normalised(train.queries[q]): q for q in sorted(train.queries, reverse=True)}
    train_positives = _positive_texts(train)
    by_text = {train_positives[d]: d for d in reversed(train_positives)}
    train_pairs = {
        (normalised(train.queries[q]), train_positives[d]) for q in train.queries for d in train.positives(q)
    }
    queries, pairs, seen = [], [], []
    test_positives = _positive_texts(test)
    for query_id, query in test.queries.items():
        text = normalised(query)
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


def _positive_texts(collection: Collection) -> dict[str, str]:
    """Id -> normalised text of the documents that are relevant to any query, in the order of their ids."""
    ids = sorted({d for q in collection.queries for d in collection.positives(q)})
    return {d: normalised(collection.corpus[d]) for d in ids}
