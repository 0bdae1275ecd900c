"""Would more data help: the fit on curves that are known, its interval for other queries and seeds, its words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares
from sweeps import loaded_sweep, simulated

from rankwright.evaluation.learning_curve import LearningCurve, learning_curve
from rankwright.evaluation.sweep_table import build_table

SHARES = np.array([0.1, 0.25, 0.5, 1.0])
Runs = dict[int, list[dict[str, float]]]


def curve_of(exponent: float, gain: float, shares: np.ndarray = SHARES) -> np.ndarray:
    """Means of these shares on a power law, a line in log n for 0, that gains `gain` from all to twice all; .6 at 1."""
    powers = np.log(shares) if exponent == 0 else (1 - shares**-exponent) / exponent
    twice = np.log(2) if exponent == 0 else (1 - 2.0**-exponent) / exponent
    found: np.ndarray = 0.6 + gain / twice * powers
    return found


def runs_of(means: np.ndarray, values_KSQ: np.ndarray, shares: np.ndarray = SHARES, most: int = 2000) -> Runs:
    drawn = zip(shares, means[:, None, None] + values_KSQ, strict=True)
    return {round(most * s): [{f"q{n}": float(v) for n, v in enumerate(row)} for row in of] for s, of in drawn}


def noise(
    rng: np.random.Generator, sizes: int, *, seeds: int = 3, seed_sd: float = 0.01, queries: int = 250
) -> np.ndarray:
    """Deviations of queries .25, of query by size .08, of seeds, and of the rest .10."""
    shared = rng.normal(0, 0.25, queries) + rng.normal(0, 0.08, (sizes, 1, queries))
    found: np.ndarray = shared + rng.normal(0, seed_sd, (sizes, seeds, 1)) + rng.normal(0, 0.1, (sizes, seeds, queries))
    return found


def found_of(runs: Runs, resamples: int = 500) -> LearningCurve:
    found = learning_curve(runs, resamples=resamples)
    assert found is not None
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("exponent", "gain", "seed_sd"),
    [
        (0.5, 0.012, 0.01),
        (0.3, 0.012, 0.01),
        (1.0, 0.012, 0.01),
        (0.5, 0.012, 0.04),
        (0.5, 0.0, 0.01),
        (0.0, 0.012, 0.01),
    ],
)
def test_the_interval_holds_the_true_gain_about_as_often_as_promised(
    exponent: float, gain: float, seed_sd: float
) -> None:
    rng, trials = np.random.default_rng(0), 120
    found = [found_of(runs_of(curve_of(exponent, gain), noise(rng, 4, seed_sd=seed_sd))) for _ in range(trials)]
    assert sum(one.low <= gain <= one.high for one in found) / trials >= 0.88
    if gain == 0:
        assert sum(one.answer == "yes" for one in found) / trials <= 0.05
        # Not so wide that it would hold everything.
        assert np.median([one.high - one.low for one in found]) < 0.03


def test_what_is_clear_is_said_and_what_is_not_is_not() -> None:
    rng = np.random.default_rng(1)
    steep = found_of(runs_of(curve_of(0.2, 0.03), noise(rng, 4, seed_sd=0.003)))
    assert steep.answer == "yes" and steep.sentence.startswith("More data would help: with twice the training queries")
    assert "4,000 for 2,000" in steep.sentence and f"{steep.gain:+.3f}" in steep.sentence
    flat = found_of(runs_of(curve_of(0.5, 0.0), noise(rng, 4, seed_sd=0.001, queries=2000)))
    assert flat.answer == "hardly" and flat.sentence.startswith("More data would hardly help")
    loud = found_of(runs_of(curve_of(0.2, 0.01), noise(rng, 4, seed_sd=0.08)))
    assert loud.answer == "cannot tell" and loud.sentence.startswith("Cannot tell whether more data would help")


def test_large_noise_hardly_ever_gives_an_answer() -> None:
    rng = np.random.default_rng(2)
    answers = [
        found_of(runs_of(curve_of(0.3, 0.01), noise(rng, 4, seed_sd=0.08, queries=60)), 200).answer for _ in range(60)
    ]
    assert answers.count("cannot tell") >= 45


def test_without_noise_it_is_the_curve_itself() -> None:
    for exponent in (0.0, 0.25, 0.5, 1.0, 1.5):
        found = found_of(runs_of(curve_of(exponent, 0.01), np.zeros((4, 2, 5))))
        assert (found.kind, found.exponent) == ("power", pytest.approx(exponent))
        assert (found.gain, found.low, found.high) == (pytest.approx(0.01),) * 3
        sizes, values, _, _ = zip(*found.drawn, strict=True)
        assert sizes[-1] == 4000 and values[-1] == pytest.approx(0.61) and list(sizes) == sorted(sizes)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**16))
def test_it_agrees_with_scipy(seed: int) -> None:
    """The fit of the means, against least squares in all three parameters with the same bounds."""
    means = curve_of(0.8, 0.015) + np.random.default_rng(seed).normal(0, 0.002, 4)
    found = found_of(runs_of(means, np.zeros((4, 2, 3))), 10)

    def off(p: np.ndarray) -> np.ndarray:
        return p[0] + p[1] * (1 - SHARES ** -p[2]) / p[2] - means

    starts = [least_squares(off, (0.6, 0.02, c), bounds=((-2, -2, 1e-3), (2, 2, 2.0))) for c in (0.1, 0.5, 1.0, 1.9)]
    start, slope, exponent = min(starts, key=lambda one: one.cost).x
    assert start + slope / exponent <= 1, "the bound is not reached here"
    assert found.gain == pytest.approx(slope * (1 - 2**-exponent) / exponent, abs=1e-3)
    assert found.exponent == pytest.approx(exponent, abs=0.05)


def test_no_curve_ends_above_one() -> None:
    means = np.array([0.90, 0.93, 0.955, 0.985])
    found = found_of(runs_of(means, np.zeros((4, 2, 3))), 10)
    assert found.drawn[-1][1] <= 1 and 0 < found.gain < 0.02


def test_few_sizes_and_one_seed() -> None:
    rng = np.random.default_rng(3)
    two = found_of(runs_of(curve_of(0.5, 0.01)[2:], noise(rng, 2), SHARES[2:]))
    assert two.kind == "line" and two.exponent == 0 and "two sizes" in two.sentence
    one = found_of(runs_of(curve_of(0.2, 0.05), noise(rng, 4, seeds=1)))
    assert not one.seeds_known and one.answer == "cannot tell" and "seed variance unknown" in one.sentence
    assert learning_curve({100: [{"q": 0.5, "r": 0.6}]}) is None and learning_curve({}) is None


def test_other_seeds_count_too() -> None:
    """The same means of queries: where seeds differ more, the interval is wider."""
    rng = np.random.default_rng(4)
    widths = []
    for seed_sd in (0.002, 0.03):
        found = found_of(runs_of(curve_of(0.3, 0.01), noise(rng, 4, seed_sd=seed_sd)))
        widths.append(found.high - found.low)
    assert widths[1] > 1.5 * widths[0]


def test_a_sweep_has_its_curve_in_the_table(tmp_path: Path) -> None:
    loaded = loaded_sweep(tmp_path, {}, design={"learning_curve": [0.25, 0.5, 1]})
    means = {"queries_share-0.25": -0.06, "queries_share-0.5": -0.02}
    rows = simulated(loaded, np.random.default_rng(0), means, train_queries=400)
    table = build_table(loaded, rows)
    assert table.learning_curve is not None
    assert [(size.queries, len(size.values)) for size in table.learning_curve.sizes] == [(100, 3), (200, 3), (400, 3)]
    assert table.learning_curve.sizes[-1].mean == pytest.approx(table.of("default").dev)
    other = loaded_sweep(tmp_path)
    assert build_table(other, simulated(other, np.random.default_rng(0), {})).learning_curve is None
