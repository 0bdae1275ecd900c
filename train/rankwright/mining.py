"""Hard negatives: pools with a source and a reason for each, and the groups drawn from them."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rankwright import row_file
from rankwright.atomic import file_sha256, write_lines_atomic
from rankwright.errors import UserError
from rankwright.examples import Collection, Group
from rankwright.ranking import stable_hash
from rankwright.retrieve import Candidate
from rankwright.row_file import RowFile, RowValues
from rankwright.splits import normalised

T = TypeVar("T")
JUDGED = "judged"


@dataclass(frozen=True, slots=True)
class Negative:
    """A document taken as not relevant to a query.

    source: the retriever, or "judged"; reason: `unjudged` (retrieved, nobody judged it) or `judged_not_relevant`.
    rank (from 1) and score are the retriever's; None for a judged document that it did not return.
    """

    document_id: str
    source: str
    rank: int | None
    score: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class MinedPools:
    """pools: query id -> negatives, judged ones first, then by rank; counts: what was kept and removed, and why.

    counts: `kept` + `positive` + `judged` + `outside_window` + `duplicate_of_positive` = all candidates, where
    `judged` ones moved to the front of the pool; `kept_judged` and `judged_duplicate_of_positive` are all
    documents judged not relevant.
    """

    pools: dict[str, tuple[Negative, ...]]
    counts: dict[str, int]


def mine_pools(
    collection: Collection,
    candidates: Mapping[str, Sequence[Candidate]],
    *,
    source: str,
    first_rank: int,
    depth: int,
) -> MinedPools:
    """A pool for every query of the collection, out of the candidates with first_rank <= rank <= depth.

    Removed: relevant documents, documents whose text equals a relevant one's (as splits.normalised compares),
    and ranks outside of the window. A filter can only remove: no pool is filled up.
    Raises UserError for a candidate that is not in the corpus.
    """
    counts: Counter[str] = Counter()
    pools: dict[str, tuple[Negative, ...]] = {}
    for query_id in collection.queries:
        pools[query_id] = tuple(
            _pool(collection, query_id, candidates.get(query_id, ()), source, range(first_rank, depth + 1), counts)
        )
    return MinedPools(pools, dict(counts))


def _pool(
    collection: Collection,
    query_id: str,
    candidates: Sequence[Candidate],
    source: str,
    window: range,
    counts: Counter[str],
) -> Iterator[Negative]:
    positives = collection.positives(query_id)
    relevant_texts = {normalised(collection.corpus[d]) for d in positives}
    judged = [d for d in collection.qrels.get(query_id, {}) if d not in positives]
    found = {c.document_id: c for c in candidates}
    for document_id in sorted(judged):
        if normalised(collection.corpus[document_id]) in relevant_texts:
            counts["judged_duplicate_of_positive"] += 1
            continue
        counts["kept_judged"] += 1
        by_retriever = found.get(document_id)
        rank, score = (by_retriever.rank, by_retriever.score) if by_retriever else (None, None)
        yield Negative(document_id, JUDGED, rank, score, "judged_not_relevant")
    for candidate in sorted(found.values(), key=lambda c: c.rank):
        if candidate.document_id not in collection.corpus:
            raise UserError(
                f"query {query_id!r}: candidate {candidate.document_id!r} is not in the corpus of "
                f"{collection.name!r}: retrieve again from this corpus"
            )
        if candidate.document_id in positives:
            counts["positive"] += 1
        elif candidate.document_id in judged:
            counts["judged"] += 1
        elif candidate.rank not in window:
            counts["outside_window"] += 1
        elif normalised(collection.corpus[candidate.document_id]) in relevant_texts:
            counts["duplicate_of_positive"] += 1
        else:
            counts["kept"] += 1
            yield Negative(candidate.document_id, source, candidate.rank, candidate.score, "unjudged")


def draw_negatives(
    pool: Sequence[Negative], count: int, *, seed: int, draw: int, query_id: str, pool_id: str
) -> tuple[Negative, ...]:
    """`count` negatives of the pool, uniform and without replacement; all of them when the pool is shorter.

    A pure function of the arguments: the order of the pool does not matter. draw: how often the query was drawn before.
    """
    return tuple(_drawn(pool, count, lambda n: n.document_id, "negatives", seed, draw, query_id, pool_id))


def _drawn(items: Sequence[T], count: int, name: Callable[[T], str], *key: object) -> list[T]:
    return sorted(items, key=lambda item: (stable_hash("draw", *key, name(item)), name(item)))[:count]


def build_group(
    collection: Collection,
    pool: Sequence[Negative],
    query_id: str,
    *,
    negatives: int,
    positives: int,
    seed: int,
    draw: int,
    pool_id: str,
) -> Group:
    """A query with up to `positives` relevant documents (labels kept) and up to `negatives` of its pool (label 0).

    Both are drawn as `draw_negatives` does, judged negatives along with the rest; relevant documents come first.
    """
    labels = collection.positives(query_id)
    relevant = _drawn(list(labels), positives, str, "positives", seed, draw, query_id, pool_id)
    others = draw_negatives(pool, negatives, seed=seed, draw=draw, query_id=query_id, pool_id=pool_id)
    assert not {n.document_id for n in others} & set(labels), f"query {query_id}: a relevant document in the pool"
    ids = [*relevant, *(n.document_id for n in others)]
    return Group(
        query_id,
        collection.queries[query_id],
        tuple(ids),
        tuple(collection.corpus[d] for d in ids),
        tuple([float(labels[d]) for d in relevant] + [0.0] * len(others)),
        tuple(["positive"] * len(relevant) + [n.source for n in others]),
        collection.weight(query_id),
    )


def write_negatives(path: Path, pools: Mapping[str, Sequence[Negative]]) -> None:
    """JSONL, a query a line: `query_id, negatives: [{document_id, source, rank, score, reason}]`."""
    _write(path, "negatives", pools)


def read_negatives(path: Path) -> Mapping[str, Sequence[Negative]]:
    """What write_negatives wrote, left in its file where that is large. Raises UserError for anything else."""
    return _read(path, "negatives", _negatives)


def write_candidates(path: Path, candidates: Mapping[str, Sequence[Candidate]]) -> None:
    """JSONL, a query a line: `query_id, candidates: [{document_id, score, rank}]`."""
    _write(path, "candidates", candidates)


def read_candidates(path: Path) -> Mapping[str, Sequence[Candidate]]:
    """What write_candidates wrote, left in its file where that is large. Raises UserError for anything else."""
    return _read(path, "candidates", _candidates)


def pool_id(path: Path) -> str:
    """The name of a pool file: the first 16 hexadecimal digits of its SHA-256."""
    return file_sha256(path)[:16]


def _write(path: Path, key: str, lists: Mapping[str, Sequence[Any]]) -> None:
    # Sorted, so that the file and its hash depend on the content only.
    rows = ({"query_id": q, key: [dataclasses.asdict(item) for item in lists[q]]} for q in sorted(lists))
    write_lines_atomic(path, (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows))


def _read(path: Path, key: str, convert: Callable[[Any], T]) -> Mapping[str, T]:
    large = path.exists() and path.stat().st_size > row_file.IN_MEMORY_BYTES
    file = RowFile(path, "query_id") if large else None
    found: dict[str, T] = {}
    start = 0
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    row = json.loads(line)
                    query_id, items = row["query_id"], convert(row[key])
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(
                        f"{path}:{number}: not a row of {key} ({type(error).__name__}: {error}): mine again"
                    ) from None
                if file is None:
                    found[query_id] = items
                else:
                    file.add(start, query_id)
                start += len(line)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: run the mining stage first") from None
    return found if file is None else RowValues(file, key, len(file), convert)


def _negatives(rows: Sequence[Mapping[str, Any]]) -> tuple[Negative, ...]:
    return tuple(Negative(**row) for row in rows)


def _candidates(rows: Sequence[Mapping[str, Any]]) -> list[Candidate]:
    return [Candidate(**row) for row in rows]
