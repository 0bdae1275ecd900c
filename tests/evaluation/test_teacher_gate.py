"""The verdict on a teacher: a table of cases, and its numbers against those of the statistics."""

from __future__ import annotations

import random

import pytest

from rankwright.common.stats import mean_interval, paired_difference
from rankwright.evaluation.teacher_gate import CONFIDENCE, Verdict, judge_teacher, not_judged


def judged(gain: float, noise: float = 0.3, queries: int = 80) -> Verdict:
    """Of a teacher that is `gain` above the base on average, give or take noise; the prior is at 0.4 everywhere."""
    chance = random.Random(3)
    base = {f"q{i}": 0.3 + 0.4 * chance.random() for i in range(queries)}
    noises = [noise * (chance.random() - 0.5) for _ in base]
    middle = sum(noises) / queries
    teacher = {q: v + gain + n - middle for (q, v), n in zip(base.items(), noises, strict=True)}
    return judge_teacher("big", "BM25", (teacher, dict.fromkeys(base, 0.4), base), measure="nDCG@10", seed=5)


@pytest.mark.parametrize(
    ("gain", "verdict", "words"),
    [
        (0.05, "accepted", "orders dev better than the base: nDCG@10 0."),
        (-0.05, "refused", "orders dev worse than the base: nDCG@10 0."),
        (0.005, "refused", "is not shown to order dev better than the base: nDCG@10 0."),
        (-0.005, "refused", "is not shown to order dev better than the base: nDCG@10 0."),
    ],
)
def test_a_teacher_must_be_better_beyond_doubt(gain: float, verdict: str, words: str) -> None:
    found = judged(gain)
    assert found.verdict == verdict and words in found.sentence and "80 queries" in found.sentence
    assert f"difference {gain:+.3f} [" in found.sentence and "90 % interval" in found.sentence
    assert found.may_train == (verdict == "accepted") and ("harm" in found.sentence) == (verdict == "refused")


def test_one_that_changes_nothing_is_refused_and_a_sure_one_of_few_queries_too() -> None:
    assert judged(0.0, noise=0.0).verdict == "refused"
    base = {f"q{i}": 0.5 for i in range(60)}
    few = {q: v + 0.3 * (n < 4) for n, (q, v) in enumerate(base.items())}
    # Four queries cannot tell it from chance at 90 %; with five, they can.
    assert judge_teacher("big", "BM25", (few, base, base), measure="nDCG@10", seed=0).verdict == "refused"


def test_the_numbers_are_those_of_the_paired_interval() -> None:
    found = judged(0.02)
    teacher, prior, base = found.rows
    assert [row.system for row in found.rows] == ["big", "BM25", "base"] and base.difference is None
    assert teacher.difference is not None and prior.difference is not None
    assert teacher.difference.mean == pytest.approx(0.02) == pytest.approx(teacher.value - base.value)
    assert (prior.value, prior.low, prior.high) == pytest.approx((0.4, 0.4, 0.4))
    assert base.low < base.value < base.high and prior.difference.mean == pytest.approx(0.4 - base.value)
    values = {f"q{i}": float(i % 7) / 7 for i in range(60)}
    other = {q: 1 - v for q, v in values.items()}
    row, _, last = judge_teacher("a", "b", (other, values, values), measure="nDCG@10", seed=2).rows
    assert row.difference == paired_difference(values, other, confidence=CONFIDENCE, seed=2)
    assert (last.low, last.high) == mean_interval([values[q] for q in sorted(values)], confidence=CONFIDENCE, seed=2)


def test_too_few_queries_are_no_verdict() -> None:
    found = not_judged("big", 1, measure="nDCG@10")
    assert found.verdict == "not judged" and found.may_train and found.rows == ()
    assert "dev has 1 query with a relevant document, and at least 50 are needed" in found.sentence
