"""A runtime's answer held against the golden rows: figures, the worst pair, and the likely cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rankwright.export.causes import cause_of_ids, cause_of_logits, cause_of_probabilities
from rankwright.export.runtimes import Answer, Limits, Row


@dataclass(frozen=True, slots=True)
class Differences:
    """One row: |golden - found| of its logit and probability, alone and in the worst batch; NaN counts as infinite.

    own_batch: |alone - in the worst batch| of what was found.
    """

    ids: bool
    logit: float
    batched_logit: float
    probability: float
    batched_probability: float
    own_batch: float


def compare(
    rows: Sequence[Row], answer: Answer, limits: Limits, *, every_row: bool = False
) -> tuple[dict[str, Any], str | None]:
    """Figures of one runtime, and what is wrong in one line or None; rows with gate false do not decide."""
    found = [_differences(row, answer, i) for i, row in enumerate(rows)]
    decides = [i for i, row in enumerate(rows) if row["gate"] or every_row]
    others = [i for i in range(len(rows)) if i not in set(decides)]
    figures = {**_largest(answer, [found[i] for i in decides])}
    if others:
        figures["other_rows"] = _largest(answer, [found[i] for i in others])
    if limits.batch is not None:
        figures["max_d_alone_batch"] = max(found[i].own_batch for i in decides)
    failure = _worst_pair(rows, answer, found, decides, limits)
    if limits.spearman is not None:
        figures["spearman"] = _spearman(rows, answer, decides)
        if failure is None and not figures["spearman"] >= limits.spearman:
            failure = (
                f"rank correlation with the golden scores {figures['spearman']:.3f}, must be {limits.spearman:g} or "
                "more -> too few bits for these weights"
            )
    return figures, failure


def _differences(row: Row, answer: Answer, at: int) -> Differences:
    probability = _distance(row["probability"], answer.probabilities[at])
    ids = answer.ids is not None and row["token_ids"] != list(answer.ids[at])
    if answer.logits is None:
        batched = max(_distance(row["probability"], b[at]) for b in answer.batched)
        own = max(_distance(answer.probabilities[at], b[at]) for b in answer.batched)
        return Differences(ids, 0.0, 0.0, probability, batched, own)
    batched = max(_distance(row["logit"], b[at]) for b in answer.batched)
    alone = answer.logits[at]
    own = max(_distance(alone, b[at]) for b in answer.batched)
    return Differences(ids, _distance(row["logit"], alone), batched, probability, 0.0, own)


def _distance(golden: float, found: float) -> float:
    """Infinite for NaN, so that it never passes."""
    difference = abs(golden - found)
    return difference if difference == difference else float("inf")


def _largest(answer: Answer, found: Sequence[Differences]) -> dict[str, Any]:
    figures: dict[str, Any] = {"rows": len(found)}
    if answer.ids is not None:
        figures["ids_differ"] = sum(d.ids for d in found)
    if answer.logits is not None:
        figures["max_d_logit"] = max(d.logit for d in found)
        figures["max_d_logit_batch"] = max(d.batched_logit for d in found)
    figures["max_d_probability"] = max(max(d.probability, d.batched_probability) for d in found)
    return figures


def _excess(row: Row, found: Differences, limits: Limits) -> float:
    """The largest difference in units of its limit: below 1 passes."""
    parts = [0.0]
    if limits.logit is not None:
        allowed = limits.logit + limits.relative * abs(row["logit"])
        parts.append(max(found.logit, found.batched_logit) / allowed)
    if limits.probability is not None:
        parts.append(max(found.probability, found.batched_probability) / limits.probability)
    if limits.batch is not None:
        parts.append(found.own_batch / limits.batch)
    return max(parts)


def _worst_pair(
    rows: Sequence[Row], answer: Answer, found: Sequence[Differences], decides: Sequence[int], limits: Limits
) -> str | None:
    worst = max(decides, key=lambda i: (found[i].ids, _excess(rows[i], found[i], limits)))
    if not found[worst].ids and _excess(rows[worst], found[worst], limits) < 1:
        return None
    row = rows[worst]
    shown = f"(probability {row['probability']:.6f}), got "
    if answer.logits is not None:
        seen = [answer.logits[worst], *(b[worst] for b in answer.batched)]
        got = max(seen, key=lambda logit: _distance(logit, row["logit"]))
        shown += f"{got:.6f} ({answer.probabilities[worst]:.6f})"
    else:
        shown += f"the probability {answer.probabilities[worst]:.6f}"
    return (
        f"query {short(row['query'])}, document {short(row['document'])}: expected the logit "
        f"{row['logit']:.6f} {shown}; {_cause(rows, answer, found[worst], worst, decides, limits)}"
    )


def _cause(
    rows: Sequence[Row], answer: Answer, found: Differences, at: int, decides: Sequence[int], limits: Limits
) -> str:
    if found.ids:
        return cause_of_ids(rows, answer, at)
    allowed = float("inf") if limits.logit is None else limits.logit + limits.relative * abs(rows[at]["logit"])
    if not found.logit < allowed:
        return f"{'same token ids, ' if answer.ids is not None else ''}{cause_of_logits(rows, answer, decides)}"
    if limits.batch is not None and not found.own_batch < limits.batch:
        return (
            f"{found.own_batch:.1e} apart alone and in a batch -> activations that are quantised together, or padding"
        )
    alone_is_equal = answer.logits is None and limits.probability is not None and found.probability < limits.probability
    if not found.batched_logit < allowed or alone_is_equal:
        return "equal alone, other in a batch -> pad_token_id or padding"
    return cause_of_probabilities(rows, answer, decides, limits)


def _spearman(rows: Sequence[Row], answer: Answer, decides: Sequence[int]) -> float:
    values = answer.probabilities if answer.logits is None else answer.logits
    return spearman([rows[i]["logit"] for i in decides], [values[i] for i in decides])


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Rank correlation; 0 where one of the two is constant, or holds what is no number."""
    from scipy.stats import spearmanr

    if len(set(one)) < 2 or len(set(other)) < 2:
        return 0.0
    correlation = float(spearmanr(one, other).statistic)
    return correlation if correlation == correlation else 0.0


def short(text: str, most: int = 60) -> str:
    """A text as messages quote it: on one line, its beginning."""
    return repr(text if len(text) <= most else text[:most] + "...")
