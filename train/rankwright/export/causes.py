"""The likely cause of a runtime's difference from the golden rows, from what differs and on which rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from rankwright.export.runtimes import Answer, Limits, Row, sigmoid

# How near a value must be to what a fault would give, in units of a probability or a logit.
NEAR = 1e-3
# Fewer ids than this at the end of all prompts are no frame that could be lost.
LEAST_FRAME = 1


def cause_of_ids(rows: Sequence[Row], answer: Answer, at: int) -> str:
    """Row `at` got other ids: which part of the prompt is another."""
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
    # What all prompts begin and end with is the frame.
    begin = _common(golden)
    end = _common([ids[::-1] for ids in golden])[::-1]
    ids, expected = list(answer.ids[at]), golden[at]
    begins, ends = ids[: len(begin)] == begin, ids[-len(end) :] == end if len(end) >= LEAST_FRAME else True
    longest = max(map(len, golden))
    if not begins and not ends:
        return "neither its beginning nor its end is there: no template (tokenizer.json, chat_template.jinja)"
    if not begins:
        return "its beginning is another: the template (tokenizer.json, chat_template.jinja)"
    if len(expected) == longest < len(ids):
        return f"a long document is not cut to {longest} tokens: model_max_length in tokenizer_config.json"
    if not ends and len(expected) == len(ids) == longest:
        return "its end is lost where a long document is cut: truncation that does not keep the suffix"
    if not ends:
        return "its end is another (a lost line break is enough): the end of the template"
    return "texts are tokenised otherwise: the normalizer, white space around them, or control tokens in them"


def _common(sequences: Sequence[Sequence[int]]) -> list[int]:
    shared = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*sequences, strict=False))
    return [column[0] for column in shared]


def cause_of_logits(rows: Sequence[Row], answer: Answer, decides: Sequence[int]) -> str:
    """The same ids, other logits."""
    assert answer.logits is not None
    logits = answer.logits
    if all(abs(logits[i] + rows[i]["logit"]) < NEAR for i in decides):
        return "every logit is negated -> yes and no are swapped in the score head"
    return "other logit -> the weights, the score head, or the rope settings of config.json"


def cause_of_probabilities(rows: Sequence[Row], answer: Answer, decides: Sequence[int], limits: Limits) -> str:
    """Probabilities that no logits explain: what was done to the logits."""
    found = activation_fault(
        [rows[i]["logit"] for i in decides], [answer.probabilities[i] for i in decides], limits.probability or NEAR
    )
    if answer.logits is not None:
        return f"same logits, other probability -> the activation function in config.json{found and f': {found}'}"
    start = "other probability" if answer.ids is None else "same token ids, other probability"
    return f"{start} -> {found or 'the weights, the classifier rows, or the rope settings'}"


def activation_fault(logits: Sequence[float], found: Sequence[float], near: float) -> str:
    """What turned the logits into the values found where probabilities are expected; "" for nothing known."""
    for wrong, expected in ACTIVATIONS:
        if all(abs(f - e) <= max(near, NEAR) for f, e in zip(found, expected(logits), strict=True)):
            return wrong
    return ""


# What a fault makes of golden logits, and its name.
ACTIVATIONS: tuple[tuple[str, Callable[[Sequence[float]], list[float]]], ...] = (
    ("softmax over one label, which is 1 for every pair", lambda logits: [1.0] * len(logits)),
    ("none: these are logits", list),
    ("sigmoid is applied twice", lambda logits: sigmoid(sigmoid(logits))),
    ("yes and no are swapped: these are probabilities of no", lambda logits: sigmoid([-x for x in logits])),
)
