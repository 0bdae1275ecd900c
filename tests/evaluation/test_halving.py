"""Successive halving on scripted curves: what is promoted, what it costs, and that it loses no best one to noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwright.evaluation.halving import Progress, Values, promoted, standing
from rankwright.recipe.sweep import Asha

QUERIES, EVALUATIONS = 200, 20


def named(values_Q: np.ndarray) -> dict[str, float]:
    return {f"q{n}": float(value) for n, value in enumerate(values_Q)}


class Curves:
    """Runs whose evaluations are written before: c configurations, s seeds, e evaluations, q queries."""

    def __init__(self, values_CSEQ: np.ndarray) -> None:
        self.values = values_CSEQ
        self.done = {f"c{c}-s{s}": 0 for c in range(values_CSEQ.shape[0]) for s in range(values_CSEQ.shape[1])}

    def progress(self, name: str) -> Progress:
        c, s = (int(part[1:]) for part in name.split("-"))
        return Progress(
            f"c{c}", [named(row) for row in self.values[c, s, : self.done[name]]], self.done[name] == EVALUATIONS
        )

    def train(self, rule: Asha) -> tuple[set[str], float]:
        """Do what the rule asks for: the configurations that were trained to their end, and the share of the cost."""
        while (now := standing(rule, {name: self.progress(name) for name in self.done}, "c0")).pending:
            assert now.evaluations is not None
            for name in now.pending:
                self.done[name] = min(now.evaluations, EVALUATIONS)
        ended = {name.split("-")[0] for name, done in self.done.items() if done == EVALUATIONS}
        return ended, sum(self.done.values()) / (len(self.done) * EVALUATIONS)


def scripted(rng: np.random.Generator, configurations: int, seeds: int) -> Curves:
    """Curves that rise to the quality of their configuration; noise of queries, of configurations and of seeds."""
    quality = rng.normal(0.5, 0.06, configurations)
    rise = 1 - 0.5 * np.exp(-np.arange(1, EVALUATIONS + 1) / 2)
    values = quality[:, None, None, None] * rise[None, None, :, None] + rng.normal(0, 0.25, QUERIES)
    values = values + rng.normal(0, 0.08, (configurations, 1, 1, QUERIES))
    return Curves(values + rng.normal(0, 0.05, (configurations, seeds, EVALUATIONS, QUERIES)))


@pytest.mark.parametrize("seed", range(8))
def test_the_best_is_never_lost_while_it_is_within_one_error_of_the_cut(seed: int) -> None:
    """By an independent look at each rung: the standard error of paired differences from the last of the best third."""
    rng = np.random.default_rng(seed)
    curves = scripted(rng, 18, 2)
    best = int(np.argmax(curves.values[:, :, -1].mean(axis=(1, 2))))
    so_far = np.maximum.accumulate(curves.values.mean(axis=3), axis=2)
    near, alive = True, set(range(18))
    for rung in (1, 3, 9):
        means = np.zeros((18, QUERIES))
        for c in alive:
            for s in range(2):
                taken = int(np.argmax(curves.values[c, s, :rung].mean(axis=1)))
                assert curves.values[c, s, taken].mean() == so_far[c, s, rung - 1]
                means[c] += curves.values[c, s, taken] / 2
        cut = sorted(alive, key=lambda c: -means[c].mean())[max(1, len(alive) // 3) - 1]
        d = means[cut] - means
        error = d.std(axis=1, ddof=1) / QUERIES**0.5
        kept = {c for c in alive if d[c].mean() <= error[c]} | {0}
        near &= best in kept
        alive = kept & alive
    ended, cost = curves.train(Asha())
    assert ended == {f"c{c}" for c in alive}
    assert (f"c{best}" in ended) == (near or best == 0)
    assert cost <= 0.45


def test_it_rarely_loses_the_best_and_costs_less_than_half() -> None:
    lost, costs = 0, []
    for seed in range(100, 112):
        curves = scripted(np.random.default_rng(seed), 27, 2)
        quality = curves.values[:, :, -1].mean(axis=(1, 2))
        ended, cost = curves.train(Asha())
        lost += f"c{int(np.argmax(quality))}" not in ended
        costs.append(cost)
    assert max(costs) <= 0.45 and lost <= 1


def test_the_default_goes_on_however_bad_it_is() -> None:
    curves = scripted(np.random.default_rng(3), 9, 1)
    curves.values[0] -= 0.4
    ended, _ = curves.train(Asha())
    assert "c0" in ended and len(ended) < 9


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(2, 5), st.floats(0, 3))
def test_what_is_promoted(seed: int, count: int, eta: int, within: float) -> None:
    rng = np.random.default_rng(seed)
    reached: dict[str, list[Values]] = {f"c{n}": [named(rng.normal(0.5, 0.2, 30))] for n in range(count)}
    kept = promoted(Asha(eta=eta, keep_within_se=within), reached)
    means = {name: np.mean(list(seeds[0].values())) for name, seeds in reached.items()}
    ranked = sorted(means, key=lambda name: -means[name])
    least = max(1, count // eta)
    assert set(ranked[:least]) <= set(kept) <= set(reached)
    more = promoted(Asha(eta=eta, keep_within_se=within + 1), reached)
    assert set(kept) <= set(more), "a wider margin keeps all that a narrower one keeps"
    assert promoted(Asha(eta=eta, keep_within_se=0), reached) == [n for n in reached if n in ranked[:least]]


def test_seeds_that_failed_and_runs_that_ended_early() -> None:
    good, bad = named(np.full(9, 0.9)), named(np.full(9, 0.1))
    rule = Asha(eta=2)
    runs = {
        "a-0": Progress("a", [good]),
        "a-1": Progress("a", [], failed=True),
        "b-0": Progress("b", [bad]),
        "c-0": Progress("c", [], failed=True),
    }
    now = standing(rule, runs, "a")
    assert now.evaluations == 2 and now.pending == ("a-0",) and now.pruned == {"b-0"}
    # Out of patience: it is finished, whatever the rung says of it.
    runs["b-0"] = Progress("b", [bad], ended=True)
    assert standing(rule, runs, "a").pruned == frozenset()
    runs["a-0"] = Progress("a", [good, bad], ended=True)
    assert standing(rule, runs, "a") == standing(rule, runs, "b")
    assert standing(rule, runs, "a").evaluations is None


def test_a_rung_is_decided_by_the_best_evaluation_so_far() -> None:
    rising, falling = [named(np.full(9, v)) for v in (0.2, 0.3)], [named(np.full(9, v)) for v in (0.8, 0.1)]
    now = standing(
        Asha(first=2), {"a": Progress("a", rising), "b": Progress("b", falling), "d": Progress("d", rising)}, "d"
    )
    assert now.pruned == {"a"} and now.pending == ("b", "d")
