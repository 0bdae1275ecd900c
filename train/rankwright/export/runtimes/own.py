"""Rankwright itself: shared heads, packed rows."""

from __future__ import annotations

from rankwright.export.runtimes import Answer, Exported, in_both_orders, sigmoid
from rankwright.reranker import Reranker


def rankwright(exported: Exported) -> Answer:
    """Reranker.load, as the model card tells users."""
    rows = exported.rows
    reranker = Reranker.load(str(exported.path), device="cpu", base=exported.base)
    encoded = [reranker.encoder.encode(row["query"], [row["document"]]) for row in rows]
    logits = [reranker.score(row["query"], [row["document"]])[0] for row in rows]
    groups = [(row["query"], [row["document"]]) for row in rows]
    batched = in_both_orders(len(rows), lambda p: [s[0] for s in reranker.score_groups([groups[i] for i in p])])
    return Answer([e.head_ids + e.tail_ids[0] for e in encoded], logits, batched, sigmoid(logits))
