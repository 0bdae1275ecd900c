"""A runtime's answer compared with the golden rows: figures, the worst pair, and the likely cause."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rankwright.export.proof.runtimes.base import Answer, Limits, Row, sigmoid

# How near a value must be to the one that a fault would give, in units of a probability or a logit.
NEAR = 1e-3


@dataclass(frozen=True, slots=True)
class Differences:
    """|golden - found| of one row's logit and probability, alone and in the worst batch; NaN counts as infinite.

    ids: whether the token ids differ. own_batch: |alone - in the worst batch| of the found values.
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
    """Figures of one runtime, and its failure in one line or None; rows with gate false do not decide."""
    found = [_differences(row, answer, i) for i, row in enumerate(rows)]
    decides = [i for i, row in enumerate(rows) if row["gate"] or every_row]
    others = [i for i in range(len(rows)) if i not in set(decides)]
    figures = _largest(answer, [found[i] for i in decides])
    if others:
        figures["other_rows"] = _largest(answer, [found[i] for i in others])
    if limits.batch is not None:
        figures["max_d_alone_batch"] = max(found[i].own_batch for i in decides)
    failure = _worst_pair(rows, answer, found, decides, limits)
    if limits.spearman is not None:
        values = answer.probabilities if answer.logits is None else answer.logits
        figures["spearman"] = spearman([rows[i]["logit"] for i in decides], [values[i] for i in decides])
        if failure is None and not figures["spearman"] >= limits.spearman:
            failure = (
                f"rank correlation with the golden scores {figures['spearman']:.3f}, must be {limits.spearman:g} or "
                "more -> too few bits for these weights"
            )
    return figures, failure


def _differences(row: Row, answer: Answer, at: int) -> Differences:
    probability = _distance(row["probability"], answer.probabilities[at])
    ids = answer.ids is not None and row["token_ids"] != list(answer.ids[at])
    scale, alone = ("probability", answer.probabilities) if answer.logits is None else ("logit", answer.logits)
    batched = max(_distance(row[scale], b[at]) for b in answer.batched)
    own = max(_distance(alone[at], b[at]) for b in answer.batched)
    if answer.logits is None:
        return Differences(ids, 0.0, 0.0, probability, batched, own)
    return Differences(ids, _distance(row["logit"], alone[at]), batched, probability, 0.0, own)


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
        assert answer.logits is not None
        start = "same token ids, " if answer.ids is not None else ""
        if all(abs(answer.logits[i] + rows[i]["logit"]) < NEAR for i in decides):
            return f"{start}every logit is negated -> yes and no are swapped in the score head"
        return f"{start}other logit -> the weights, the score head, or the rope settings of config.json"
    if limits.batch is not None and not found.own_batch < limits.batch:
        return (
            f"{found.own_batch:.1e} apart alone and in a batch -> activations that are quantised together, or padding"
        )
    alone_is_equal = answer.logits is None and limits.probability is not None and found.probability < limits.probability
    if not found.batched_logit < allowed or alone_is_equal:
        return "equal alone, other in a batch -> pad_token_id or padding"
    return cause_of_probabilities(rows, answer, decides, limits)


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Rank correlation; 0 where one of the two is constant or holds a NaN."""
    from scipy.stats import spearmanr

    if len(set(one)) < 2 or len(set(other)) < 2:
        return 0.0
    correlation = float(spearmanr(one, other).statistic)
    return correlation if correlation == correlation else 0.0


def short(text: str, most: int = 60) -> str:
    """A text as messages quote it: on one line, its beginning."""
    return repr(text if len(text) <= most else text[:most] + "...")


def cause_of_ids(rows: Sequence[Row], answer: Answer, at: int) -> str:
    """Why row `at` got other ids: which part of the prompt differs."""
    assert answer.ids is not None
    expected, ids = rows[at]["token_ids"], list(answer.ids[at])
    same = [a == b for a, b in zip(expected, ids, strict=False)]
    first = [*same, False].index(False)
    return (
        f"token ids differ from place {first} on ({len(expected)} expected, {len(ids)} found) "
        f"-> the prompt or its template, not the weights: {_part_of_prompt(rows, answer, at)}"
    )


def _part_of_prompt(rows: Sequence[Row], answer: Answer, at: int) -> str:
    assert answer.ids is not None
    golden: list[list[int]] = [row["token_ids"] for row in rows]
    # The frame is what all prompts have in common at their beginning and end.
    begin = _common(golden)
    end = _common([ids[::-1] for ids in golden])[::-1]
    ids, expected = list(answer.ids[at]), golden[at]
    # Without common ids at the end of all prompts, there is no end of a frame that could be lost.
    begins, ends = ids[: len(begin)] == begin, not end or ids[-len(end) :] == end
    longest = max(map(len, golden))
    if not begins and not ends:
        return "neither its beginning nor its end is there: no template (tokenizer.json, chat_template.jinja)"
    if not begins:
        return "its beginning differs: the template (tokenizer.json, chat_template.jinja)"
    if len(expected) == longest < len(ids):
        return f"a long document is not cut to {longest} tokens: model_max_length in tokenizer_config.json"
    if not ends and len(expected) == len(ids) == longest:
        return "its end is lost where a long document is cut: truncation that does not keep the suffix"
    if not ends:
        return "its end differs (a lost line break is enough): the end of the template"
    return "texts are tokenised differently: the normalizer, white space around them, or control tokens in them"


def _common(sequences: Sequence[Sequence[int]]) -> list[int]:
    shared = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*sequences, strict=False))
    return [column[0] for column in shared]


def cause_of_probabilities(rows: Sequence[Row], answer: Answer, decides: Sequence[int], limits: Limits) -> str:
    """Why probabilities differ that no logits explain: what was done to the logits."""
    near = max(limits.probability or NEAR, NEAR)
    logits = [rows[i]["logit"] for i in decides]

    def explains(values: Sequence[float]) -> bool:
        return all(abs(answer.probabilities[i] - e) <= near for i, e in zip(decides, values, strict=True))

    found = next((wrong for wrong, expected in ACTIVATIONS if explains(expected(logits))), "")
    if answer.logits is not None:
        return f"same logits, other probability -> the activation function in config.json{found and f': {found}'}"
    start = "other probability" if answer.ids is None else "same token ids, other probability"
    return f"{start} -> {found or 'the weights, the classifier rows, or the rope settings'}"


# (name of a fault, what it makes of golden logits).
ACTIVATIONS: tuple[tuple[str, Callable[[Sequence[float]], list[float]]], ...] = (
    ("softmax over one label, which is 1 for every pair", lambda logits: [1.0] * len(logits)),
    ("none: these are logits", list),
    ("sigmoid is applied twice", lambda logits: sigmoid(sigmoid(logits))),
    ("yes and no are swapped: these are probabilities of no", lambda logits: sigmoid([-x for x in logits])),
)
