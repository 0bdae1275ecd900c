"""Temperature, reliability, thresholds and alarm, against independent ways to compute them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from rankwright.common.errors import UserError
from rankwright.evaluation.calibration import (
    PROBABILITIES,
    SATURATED,
    fit_temperature,
    reliability,
    spread_alarm,
    summary,
    thresholds,
)

# Scores on a grid, so that ties occur.
SCORES = st.integers(-40, 40).map(lambda n: n / 4)
PAIRS = st.lists(st.tuples(SCORES, st.booleans()), min_size=1, max_size=60)


def split(pairs: list[tuple[float, bool]]) -> tuple[list[float], list[bool]]:
    return [s for s, _ in pairs], [r for _, r in pairs]


def drawn(count: int, *, temperature: float, seed: int = 0) -> tuple[list[float], list[bool]]:
    """Scores whose sigmoid(score / temperature) is the truth."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(-1.0, 2.0, count)
    relevant = generator.random(count) < 1 / (1 + np.exp(-logits))
    return (logits * temperature).tolist(), relevant.tolist()


def log_loss(scores: list[float], relevant: list[bool], temperature: float) -> float:
    """Torch's mean of -log of the probability of what is true, under sigmoid(score / temperature)."""
    logits, labels = (torch.tensor(values, dtype=torch.float64) for values in (scores, relevant))
    return float(torch.nn.functional.binary_cross_entropy_with_logits(logits / temperature, labels))


@given(PAIRS)
def test_the_fitted_temperature_is_the_minimum(pairs: list[tuple[float, bool]]) -> None:
    scores, relevant = split(pairs)
    fitted = fit_temperature(scores, relevant)
    assume(fitted.note is None)
    loss = log_loss(scores, relevant, fitted.temperature)
    for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0):
        assert log_loss(scores, relevant, fitted.temperature * factor) > loss
    # The gradient there, by autograd.
    t = torch.tensor(fitted.temperature, dtype=torch.float64, requires_grad=True)
    logits, labels = (torch.tensor(values, dtype=torch.float64) for values in (scores, relevant))
    torch.nn.functional.binary_cross_entropy_with_logits(logits / t, labels.double()).backward()
    assert t.grad is not None and abs(float(t.grad)) * fitted.temperature < 1e-8


@given(PAIRS)
def test_without_a_fit_no_temperature_is_best(pairs: list[tuple[float, bool]]) -> None:
    scores, relevant = split(pairs)
    fitted = fit_temperature(scores, relevant)
    assume(fitted.note is not None and len(set(relevant)) == 2)
    assert fitted.temperature == 1
    # The loss only falls, or never changes, towards one end.
    losses = [log_loss(scores, relevant, t) for t in (0.01, 0.1, 1.0, 10.0, 100.0)]
    assert losses == sorted(losses) or losses == sorted(losses, reverse=True)


@given(PAIRS, st.sampled_from([0.01, 0.5, 3.0, 1000.0]), st.randoms(use_true_random=False))
def test_scaling_scores_scales_the_temperature_and_order_does_not_matter(
    pairs: list[tuple[float, bool]], scale: float, random: object
) -> None:
    fitted = fit_temperature(*split(pairs))
    assume(fitted.note is None)
    random.shuffle(pairs)  # type: ignore[attr-defined]
    scores, relevant = split(pairs)
    again = fit_temperature([scale * s for s in scores], relevant)
    assert again.note is None and again.temperature == pytest.approx(scale * fitted.temperature, rel=1e-6)


def test_the_temperature_of_a_known_draw_is_found() -> None:
    scores, relevant = drawn(40_000, temperature=2.5)
    assert fit_temperature(scores, relevant).temperature == pytest.approx(2.5, rel=0.05)


@pytest.mark.parametrize(
    ("scores", "relevant", "said"),
    [
        ([], [], "no pair"),
        ([1.0, -1.0], [True, True], "every pair is relevant"),
        ([1.0, -1.0], [False, False], "no pair is relevant"),
        ([2.0, -1.0, -3.0], [True, False, False], "right for every pair"),
        ([0.0, 0.0], [True, False], "level of the scores is off"),
        # In the right order, and all above 0: what losses of lists leave.
        ([9.0, 8.0, 8.0, 8.0], [True, False, False, False], "level of the scores is off"),
    ],
)
def test_cases_without_a_temperature_are_said(scores: list[float], relevant: list[bool], said: str) -> None:
    fitted = fit_temperature(scores, relevant)
    assert fitted.temperature == 1 and fitted.note is not None and said in fitted.note and "\n" not in fitted.note


def test_a_score_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(UserError, match="not a finite number"):
        fit_temperature([1.0, math.nan], [True, False])


def plain_error(scores: list[float], relevant: list[bool], temperature: float, bins: int) -> float:
    """Expected calibration error, pair by pair."""
    members: dict[int, list[tuple[float, float]]] = {}
    for score, label in zip(scores, relevant, strict=True):
        smaller = len([s for s in scores if s < score])
        probability = 1 / (1 + math.exp(-score / temperature))
        members.setdefault(bins * smaller // len(scores), []).append((probability, float(label)))
    return sum(abs(sum(p for p, _ in rows) - sum(label for _, label in rows)) for rows in members.values()) / len(
        scores
    )


@given(PAIRS, st.floats(0.3, 3.0), st.integers(1, 12))
def test_the_error_is_that_of_a_plain_rewrite(pairs: list[tuple[float, bool]], temperature: float, bins: int) -> None:
    scores, relevant = split(pairs)
    error, _ = reliability(scores, relevant, temperature=temperature, bins=bins)
    assert error == pytest.approx(plain_error(scores, relevant, temperature, bins), abs=1e-12)
    assert 0 <= error <= 1


@given(PAIRS, st.integers(1, 12))
def test_bins_partition_the_pairs_and_keep_ties_together(pairs: list[tuple[float, bool]], bins: int) -> None:
    scores, relevant = split(pairs)
    _, rows = reliability(scores, relevant, bins=bins)
    assert sum(row["pairs"] for row in rows) == len(scores) and 1 <= len(rows) <= bins
    assert sum(row["pairs"] * row["relevant_share"] for row in rows) == pytest.approx(sum(relevant))
    assert all(one["high"] < two["low"] for one, two in itertools.pairwise(rows))
    assert all(
        row["low"] <= row["mean_probability"] + 1e-12 and row["mean_probability"] <= row["high"] + 1e-12 for row in rows
    )


def test_bins_hold_about_as_many_pairs_each() -> None:
    scores, relevant = drawn(1003, temperature=1.0)
    _, rows = reliability(scores, relevant)
    assert len(rows) == 10 and {row["pairs"] for row in rows} <= {100, 101}


def test_a_calibrated_draw_has_an_error_near_0_and_another_one_has_not() -> None:
    scores, relevant = drawn(200_000, temperature=1.0)
    assert reliability(scores, relevant)[0] < 0.005
    wide, relevant = drawn(200_000, temperature=3.0)
    assert reliability(wide, relevant)[0] > 0.05
    # The temperature mends it.
    assert reliability(wide, relevant, temperature=fit_temperature(wide, relevant).temperature)[0] < 0.005


@given(PAIRS, st.floats(0.3, 3.0))
def test_thresholds_count_what_is_kept(pairs: list[tuple[float, bool]], temperature: float) -> None:
    scores, relevant = split(pairs)
    rows = thresholds(scores, relevant, temperature=temperature)
    assert [row["probability"] for row in rows] == list(PROBABILITIES)
    for row in rows:
        kept = [r for s, r in pairs if s >= row["score"]]
        assert row["kept"] == len(kept) / len(pairs)
        assert row["precision"] == (sum(kept) / len(kept) if kept else None)
        assert row["recall"] == (sum(kept) / sum(relevant) if any(relevant) else None)
        if row["precision"] and row["recall"]:
            assert row["f1"] == pytest.approx(2 / (1 / row["precision"] + 1 / row["recall"]))
        assert 1 / (1 + math.exp(-row["score"] / temperature)) == pytest.approx(row["probability"])


@pytest.mark.parametrize(
    ("scores", "relevant", "said"),
    [
        ([1.5] * 8, [True, False] * 4, "all 8 scores are equal"),
        ([50.0, -60.0, 1.0, 2.0], [True, False, True, False], "50.0% of the scores are above 16.6"),
        ([17.0, -3.0, 1.0, 2.0], [True, False, True, False], "above 16.6"),
        ([16.0, -20.0, 1.0, 2.0], [True, False, True, False], None),
        ([1.0, 2.0, 3.0, 4.0] * 5, ([True, False] * 2) * 5, "nearly the same scores: a relevant one is above"),
        ([0.02 * (i % 2) for i in range(20)], [i % 2 == 1 for i in range(20)], "lie within"),
        ([2.0, -2.0, 3.0, -1.0], [True, False, True, False], None),
        ([], [], None),
    ],
)
def test_the_alarm(scores: list[float], relevant: list[bool], said: str | None) -> None:
    alarm = spread_alarm(scores, relevant)
    assert alarm is None if said is None else alarm is not None and said in alarm and "\n" not in alarm


def test_a_probability_is_exactly_1_from_the_scores_that_are_counted() -> None:
    types = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    assert set(SATURATED) == set(types)
    for name, dtype in types.items():
        grid = torch.linspace(0, 40, 100_001).to(dtype)
        least = float(grid[torch.sigmoid(grid) == 1].min())
        # Torch's own sigmoid; neighbouring numbers of bf16 are 0.03 apart there.
        assert SATURATED[name] == pytest.approx(least, abs=0.04)
    figures = summary([20.0, 7.0, 1.0, -1.0], [True] * 4, queries=1, temperature=1.0)
    assert figures["saturated"] == {"fp32": 0.25, "fp16": 0.25, "bf16": 0.5}


def test_a_set_with_nothing_relevant_has_figures_all_the_same() -> None:
    figures = summary([1.0, 2.0], [False, False], queries=1, temperature=1.0)
    assert figures["spread"]["relevant"] is None and len(figures["spread"]["others"]) == 3 and figures["relevant"] == 0
    empty = summary([], [], queries=0, temperature=1.0)
    assert empty["pairs"] == 0 and empty["bins"] == [] and empty["ece"] == 0
