"""Short pools filled up from the corpus: only where the recipe says so, and marked as such."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rankwright.filters import MiningView
from rankwright.mining import Negative, count_negatives
from rankwright.ranking import stable_hash
from rankwright.retrieve import Candidate
from rankwright.sift import Filter
from rankwright.splits import normalised

RANDOM = "random"
# Filters that look at a document's text or group only, and so at one that was not retrieved too.
TEXT_FILTERS = ("near_duplicate", "same_group")


def filled(
    pool: Sequence[Negative],
    query_id: str,
    wanted: int,
    *,
    view: MiningView,
    filters: Mapping[str, Filter],
    document_ids: Sequence[str],
) -> tuple[Negative, ...]:
    """The pool, and as many documents of the corpus after it as it lacks of `wanted` negatives, by seed and query id.

    Never a relevant, judged or retrieved document, nor a text that equals a relevant one's, nor what those of
    TEXT_FILTERS that are among `filters` would remove. A query without a relevant document stays as it is: it is
    trained with judged documents only. document_ids: of the corpus, sorted. What is filled in has no rank or score.
    """
    collection = view.collection
    positives = collection.positives(query_id)
    missing = wanted - count_negatives(pool)
    if missing <= 0 or not positives:
        return tuple(pool)
    refused = set(collection.qrels[query_id]) | {c.document_id for c in view.retrieved[query_id]}
    relevant = {normalised(collection.corpus[d]) for d in positives}
    found: list[Negative] = []
    for document_id in _order(document_ids, view.seed, query_id):
        if len(found) == missing:
            break
        if document_id in refused or normalised(collection.corpus[document_id]) in relevant:
            continue
        alone = {query_id: [Candidate(document_id, 0.0, 1)]}
        of_text = [filters[name] for name in TEXT_FILTERS if name in filters]
        seen = MiningView(collection, RANDOM, alone, alone, view.seed, view.code)
        if not any(decide(seen).removed.get(query_id) for decide in of_text):
            found.append(Negative(document_id, RANDOM, None, None, "fill"))
    return (*pool, *found)


def _order(document_ids: Sequence[str], seed: int, query_id: str) -> Iterator[str]:
    """Every document once: draws by hash while they hit new ones, then the rest from a drawn place on."""
    count = len(document_ids)
    seen: set[int] = set()
    for draw in range(count // 2):
        place = stable_hash("fill", seed, query_id, draw) % count
        if place not in seen:
            seen.add(place)
            yield document_ids[place]
    first = stable_hash("fill", seed, query_id, "rest") % count if count else 0
    yield from (document_ids[place] for n in range(count) if (place := (first + n) % count) not in seen)
