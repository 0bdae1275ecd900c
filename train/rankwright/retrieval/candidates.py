"""Candidate lists of queries: the order of documents with equal scores, and candidates.jsonl."""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rankwright.common.errors import UserError
from rankwright.common.files import json_line, write_lines_atomic
from rankwright.common.hashing import stable_hash
from rankwright.data.collection import Qrels
from rankwright.data.store.rows import read_query_rows


@dataclass(frozen=True, slots=True)
class Candidate:
    """A retrieved document: its score (on the retriever's own scale) and its rank, from 1."""

    document_id: str
    score: float
    rank: int


# Query id -> candidates, best first.
Candidates = Mapping[str, Sequence[Candidate]]
# Query id -> document id -> score.
Run = Mapping[str, Mapping[str, float]]


def tie_order(query_id: str, document_id: str) -> int:
    """The place of a document among those of equal score: smaller comes first.

    The rule: descending score, then ascending SHA-256 based hash of query id and document id. Neither the order
    of the input nor the name of a document decides (trec_eval lets the id decide, which moves nDCG from 0.5 to 1.0
    on one tied pair).
    """
    return stable_hash(query_id, document_id)


def ranked(query_id: str, scores: Mapping[str, float]) -> list[tuple[str, float]]:
    """(document id, score) of one query, best first, ties by tie_order. Raises UserError for a score that is NaN."""
    for document_id, score in scores.items():
        if math.isnan(score):
            raise UserError(
                f"query {query_id!r}: the score of document {document_id!r} is not a number: "
                "the model or the run file that gave it is broken"
            )
    # The id itself comes last, for the case that two hashes collide.
    return sorted(scores.items(), key=lambda pair: (-pair[1], tie_order(query_id, pair[0]), pair[0]))


def best_candidates(query_id: str, scores: Mapping[str, float], depth: int) -> list[Candidate]:
    """The `depth` best documents of one query, in the order of `ranked`."""
    best = ranked(query_id, scores)[:depth]
    return [Candidate(document_id, score, rank) for rank, (document_id, score) in enumerate(best, start=1)]


def own_documents(queries: Iterable[str], corpus: Mapping[str, str], qrels: Qrels) -> frozenset[str]:
    """The ids that stand for a query and for a document which is not judged for it: most often the query's own text.

    Source: BEIR leaves such documents out of every result (`ignore_identical_ids`), for ArguAna and Quora.
    """
    return frozenset(q for q in queries if q in corpus and q not in qrels.get(q, {}))


def without_own(candidates: Candidates, own: Container[str], depth: int) -> dict[str, list[Candidate]]:
    """The `depth` best of each list without the query's own document, ranked anew."""
    return {
        q: [
            Candidate(c.document_id, c.score, rank)
            for rank, c in enumerate((c for c in found if c.document_id != q or q not in own), start=1)
        ][:depth]
        for q, found in candidates.items()
    }


def tie_rate(run: Run) -> float:
    """Share (0 to 1) of neighbours in the ranked lists that have the same score; 0 when no list has two documents."""
    ties = pairs = 0
    for scores in run.values():
        values = sorted(scores.values())
        ties += sum(a == b for a, b in itertools.pairwise(values))
        pairs += max(0, len(values) - 1)
    return ties / pairs if pairs else 0.0


def write_candidates(path: Path, candidates: Candidates) -> None:
    """JSONL, one line per query, sorted by query id: `query_id, candidates: [{document_id, score, rank}]`."""
    write_lines_atomic(path, (candidates_line(q, candidates[q]) for q in sorted(candidates)))


def candidates_line(query_id: str, candidates: Sequence[Candidate]) -> str:
    """A row of candidates.jsonl."""
    rows = [{"document_id": c.document_id, "score": c.score, "rank": c.rank} for c in candidates]
    return json_line({"query_id": query_id, "candidates": rows})


def prefixed(lists: Candidates, prefix: str) -> dict[str, list[Candidate]]:
    """The lists with `prefix` before every id."""
    return {
        prefix + query_id: [Candidate(prefix + c.document_id, c.score, c.rank) for c in found]
        for query_id, found in lists.items()
    }


def read_candidates(path: Path) -> Candidates:
    """The lists of write_candidates; a large file is read row by row when asked. Raises UserError for a damaged one."""
    return read_query_rows(path, "candidates", lambda rows: [Candidate(**row) for row in rows])
