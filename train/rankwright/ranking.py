"""The order of documents with scores: one documented rule for ties, everywhere."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping

from rankwright.errors import UserError


def stable_hash(*parts: object) -> int:
    """64 bits of SHA-256 over the parts' text: the same on every machine and in every process."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def tie_order(query_id: str, document_id: str) -> int:
    """The place of a document among those of equal score: smaller comes first.

    The rule: descending score, then ascending SHA-256 based hash of query id and document id. Neither the order
    of the input nor the spelling of an id helps a document (trec_eval lets the id decide, which moves nDCG
    from 0.5 to 1.0 on one tied pair).
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


def tie_rate(run: Mapping[str, Mapping[str, float]]) -> float:
    """Share (0 to 1) of neighbours in the ranked lists that have the same score; 0 when no list has two documents."""
    ties = pairs = 0
    for scores in run.values():
        values = sorted(scores.values())
        ties += sum(a == b for a, b in itertools.pairwise(values))
        pairs += max(0, len(values) - 1)
    return ties / pairs if pairs else 0.0
