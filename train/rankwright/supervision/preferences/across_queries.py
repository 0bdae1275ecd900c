"""One scale for the scores of all queries: which document answers its own query better? Q queries, K answers, J judges.

The scores of a query are fitted up to a constant. Losses within a query ignore it; thresholds, and losses on the scores
themselves, do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import cg

from rankwright.supervision.preferences.design import cycles
from rankwright.supervision.preferences.fit import CLOSE, MOST_STEPS, SHORTEST
from rankwright.supervision.preferences.likelihood import DEFAULT, LINKS, Answers, Settings, judge_count

# Ranks, from 1, of the documents that are compared.
RANKS = (1, 5, 20)
# The residual of a Newton step, relative to its right-hand side.
EXACT = 1e-12


@dataclass(frozen=True, slots=True)
class AcrossPair:
    """Numbers of two queries, in the order in which they are shown, and the place (from 0) of each one's document."""

    first_query: int
    first_place: int
    second_query: int
    second_place: int


@dataclass(frozen=True, slots=True, eq=False)
class Offsets:
    """offsets: fp64_Q with the sum 0, to add to every score of a query; biases: fp64_J, of this question."""

    offsets: np.ndarray
    biases: np.ndarray


def across_pairs(
    counts: Sequence[int], calls_per_query: int, rng: np.random.Generator, ranks: Sequence[int] = RANKS
) -> list[AcrossPair]:
    """Pairs of queries in calls_per_query random cycles, with documents near the same rank, each rank in turn.

    counts: the number of candidates of each query; the last one stands for a rank beyond it, and queries without
    candidates are left out. With few queries there are fewer cycles, as in design.cycles.
    """
    known = [query for query, count in enumerate(counts) if count]
    found = []
    for cycle in cycles(len(known), calls_per_query, rng):
        start = int(rng.integers(len(ranks)))
        for number, (one, other) in enumerate(cycle):
            rank = ranks[(start + number) % len(ranks)]
            first, second = known[one], known[other]
            found.append(AcrossPair(first, min(rank, counts[first]) - 1, second, min(rank, counts[second]) - 1))
    return found


def fit_offsets(
    answers: Answers, count: int, settings: Settings = DEFAULT, biases: np.ndarray | None = None
) -> Offsets:
    """The offsets of `count` queries. answers: about queries, with the difference of the fitted scores as `lead`.

    For each answer, z = lead + offset of the first query - offset of the second + bias of the judge; maximises what
    fit.fit does, with settings.ridge towards 0, so the offsets have the sum 0. A query without answers has the offset
    0. biases: fp64_J, fixed; by default they are fitted, since the bias of this question need not be that of the other.
    Memory grows with queries and answers, not with their squares: steps of Newton's method by conjugate gradients.
    Raises ValueError for numbers out of range.
    """
    if len(answers) and max(answers.first.max(), answers.second.max()) >= count:
        raise ValueError(f"answers: a query's number is not below {count}")
    judges = judge_count([answers], biases)
    free = biases is None and settings.order_bias
    fixed_J = np.zeros(judges) if biases is None else np.asarray(biases, np.float64)
    a, each_K = answers, np.arange(len(answers))
    ones_K = np.ones(len(a))
    columns = [(ones_K, a.first), (-ones_K, a.second), (ones_K if free else 0 * ones_K, count + a.judge)]
    design = sparse.csr_array(
        (
            np.concatenate([values for values, _ in columns]),
            (np.tile(each_K, 3), np.concatenate([places for _, places in columns])),
        ),
        shape=(len(a), count + judges),
    )
    fixed_K = a.lead + fixed_J[a.judge]
    penalty = np.concatenate([np.full(count, settings.ridge), np.ones(judges)])
    link = LINKS[settings.model]
    x = np.zeros(count + judges)

    def total(x: np.ndarray) -> float:
        return float((a.weight * link(design @ x + fixed_K, a.first_wins)[0]).sum() - 0.5 * (penalty * x) @ x)

    value, last_gain = total(x), np.inf
    for _ in range(MOST_STEPS):
        _, slope_K, curvature_K = link(design @ x + fixed_K, a.first_wins)
        gradient = design.T @ (a.weight * slope_K) - penalty * x
        hessian = design.T @ sparse.diags_array(a.weight * curvature_K) @ design + sparse.diags_array(penalty)
        step, _ = cg(hessian, gradient, rtol=EXACT, atol=0.0, M=sparse.diags_array(1 / hessian.diagonal()))
        gain = float(gradient @ step)
        close = gain <= CLOSE
        if gain <= 0 or (close and gain >= last_gain / 4):
            break
        before, length = value, 1.0
        while True:
            value = total(x + length * step)
            if close or value >= before + 1e-4 * length * gain or length < SHORTEST:
                break
            length /= 2
        x, last_gain = x + length * step, gain
    else:
        raise ArithmeticError(f"the offsets were not fitted in {MOST_STEPS} steps")
    offsets_Q = x[:count]
    return Offsets(offsets_Q - offsets_Q.mean() if count else offsets_Q, x[count:] + fixed_J)
