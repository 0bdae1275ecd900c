"""Scores fitted to the answers of judges, with their uncertainty; what the queries share.

Shapes: N candidates of one query, K answers, J judges, Q queries. Everything is fp64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import linalg

from rankwright.common.plurals import counted
from rankwright.supervision.preferences.likelihood import DEFAULT, LINKS, Answers, Settings, judge_count

# Newton's method stops where the slope promises less than GAIN nats for its next step. Up to CLOSE nats, full steps are
# taken unchecked: rounding of the value would decide.
GAIN, CLOSE = 1e-20, 1e-7
SHORTEST = 1e-9
MOST_STEPS = 200
# With fewer queries than Settings.least_queries, the prior must lead by so many nats to be used: strong evidence on the
# scale of Kass and Raftery 1995 (a Bayes factor of 20).
LEAD = 3.0


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """scores: fp64_N, in nats of the judge's answers; covariance: fp64_NN, the inverse Hessian (marginal in the biases
    where these were fitted); biases: fp64_J; log_evidence: Laplace's approximation, of this query alone."""

    scores: np.ndarray
    covariance: np.ndarray
    biases: np.ndarray
    log_evidence: float

    @property
    def deviations(self) -> np.ndarray:
        """Standard deviations of the scores, fp64_N."""
        deviations_N: np.ndarray = np.sqrt(np.diagonal(self.covariance))
        return deviations_N


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """The answers about one query's candidates and their prior scores (fp64_N, see standardised; None: no prior)."""

    answers: Answers
    count: int
    prior: np.ndarray | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Pooled:
    """What all queries share.

    biases, deviations: fp64_J, bias of each judge towards the document shown first, and its standard deviation.
    prior_weight: the weight of the prior scores with the highest evidence. evidence: weight -> log evidence of all
    queries. queries: those with an answer. note: a sentence where the choice rests on little or nothing.
    """

    biases: np.ndarray
    deviations: np.ndarray
    prior_weight: float
    evidence: Mapping[float, float] = field(default_factory=dict)
    queries: int = 0
    note: str | None = None


def standardised(scores: Sequence[float] | np.ndarray) -> np.ndarray:
    """Scores of mean 0 and standard deviation 1 (ddof 0), fp64_N, as a prior; all 0 where the scores are equal.

    Raises ValueError for a score that is not finite.
    """
    scores_N = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(scores_N).all():
        raise ValueError("prior: a score is not finite")
    # Equal scores would otherwise become rounding noise of size 1.
    if not len(scores_N) or np.ptp(scores_N) <= 1e-12 * np.abs(scores_N).max():
        return np.zeros(len(scores_N))
    centred_N = scores_N - scores_N.mean()
    standard_N: np.ndarray = centred_N / centred_N.std()
    return standard_N


class _Problem:
    """The penalised log likelihood of one query as a function of its scores_N and of biases_J that may be shared."""

    def __init__(self, answers: Answers, prior_mean: np.ndarray, judges: int, settings: Settings) -> None:
        self.answers, self.mean_N, self.judges = answers, prior_mean, judges
        self.ridge, self.link = settings.ridge, LINKS[settings.model]
        count = len(prior_mean)
        if len(answers) and max(answers.first.max(), answers.second.max()) >= count:
            raise ValueError(f"answers: a document's number is {count} or more, of {counted(count, 'document')}")

    def _derivatives(self, scores_N: np.ndarray, biases_J: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        a = self.answers
        z_K = scores_N[a.first] - scores_N[a.second] + biases_J[a.judge] + a.lead
        value_K, slope_K, curvature_K = self.link(z_K, a.first_wins)
        return a.weight * value_K, a.weight * slope_K, a.weight * curvature_K

    def value(self, scores_N: np.ndarray, biases_J: np.ndarray) -> float:
        """The log likelihood minus the ridge."""
        off_N = scores_N - self.mean_N
        return float(self._derivatives(scores_N, biases_J)[0].sum() - 0.5 * self.ridge * off_N @ off_N)

    def expand(self, scores_N: np.ndarray, biases_J: np.ndarray) -> _Quadratic:
        """The second-order expansion of the value at a point."""
        a, count, judges = self.answers, len(scores_N), self.judges
        _, slope_K, curvature_K = self._derivatives(scores_N, biases_J)

        def summed(index_K: np.ndarray, values_K: np.ndarray, size: int) -> np.ndarray:
            sums: np.ndarray = np.bincount(index_K, weights=values_K, minlength=size)
            # Sums of nothing are whole numbers.
            return sums.astype(np.float64, copy=False)

        gradient_N = summed(a.first, slope_K, count) - summed(a.second, slope_K, count)
        gradient_N -= self.ridge * (scores_N - self.mean_N)
        pairs_NN = summed(a.first * count + a.second, curvature_K, count * count).reshape(count, count)
        hessian_NN = -(pairs_NN + pairs_NN.T)
        hessian_NN[np.diag_indices(count)] = pairs_NN.sum(axis=0) + pairs_NN.sum(axis=1) + self.ridge
        mixed_NJ = summed(a.first * judges + a.judge, curvature_K, count * judges)
        mixed_NJ = mixed_NJ - summed(a.second * judges + a.judge, curvature_K, count * judges)
        return _Quadratic(
            gradient_N,
            linalg.cho_factor(hessian_NN, lower=True, overwrite_a=True, check_finite=False),
            mixed_NJ.reshape(count, judges),
            summed(a.judge, slope_K, judges),
            summed(a.judge, curvature_K, judges),
        )


class _Quadratic:
    """One query's part of the gradient and of the Hessian (of minus the value), the scores eliminated."""

    def __init__(
        self,
        gradient_N: np.ndarray,
        factor: tuple[np.ndarray, bool],
        mixed_NJ: np.ndarray,
        bias_gradient_J: np.ndarray,
        bias_curvature_J: np.ndarray,
    ) -> None:
        self.gradient_N = gradient_N
        solved = linalg.cho_solve(factor, np.column_stack([gradient_N, mixed_NJ]), check_finite=False)
        self.step_N, self.per_bias_NJ = solved[:, 0], solved[:, 1:]
        # The Schur complement of the scores, and the gradient by the biases that is left once the scores follow.
        self.schur_JJ = np.diag(bias_curvature_J) - mixed_NJ.T @ self.per_bias_NJ
        self.rest_J = bias_gradient_J - mixed_NJ.T @ self.step_N
        self.log_determinant = 2 * float(np.log(np.diagonal(factor[0])).sum())
        self.bias_gradient_J, self.factor = bias_gradient_J, factor


@dataclass(frozen=True, slots=True, eq=False)
class _Optimum:
    scores: list[np.ndarray]
    biases_J: np.ndarray
    # Inverse of the Schur complement; zeros where the biases are fixed.
    bias_covariance_JJ: np.ndarray
    log_evidence: float


def _maximise(problems: Sequence[_Problem], biases_J: np.ndarray, free: bool) -> _Optimum:
    """Scores of every query and, where `free`, the biases that they share, at the one maximum of a concave function.

    Newton's method with halved steps. The Hessian has an arrow's shape: one block for each query, and the biases, which
    couple with all of them. So each query's scores are eliminated by the Cholesky factor of their own block.
    """
    scores = [problem.mean_N.copy() for problem in problems]
    judges = len(biases_J)

    def total(at: Sequence[np.ndarray], biases_J: np.ndarray) -> float:
        penalty = 0.5 * float(biases_J @ biases_J) if free else 0.0
        return float(sum(p.value(s, biases_J) for p, s in zip(problems, at, strict=True))) - penalty

    value, last_gain = total(scores, biases_J), np.inf
    for _ in range(MOST_STEPS):
        schur_JJ, rest_J, log_determinant = np.eye(judges), -biases_J, 0.0
        parts = []
        gain = 0.0
        for problem, scores_N in zip(problems, scores, strict=True):
            part = problem.expand(scores_N, biases_J)
            schur_JJ, rest_J = schur_JJ + part.schur_JJ, rest_J + part.rest_J
            log_determinant += part.log_determinant
            gain += float(part.gradient_N @ part.step_N)
            parts.append((part.step_N, part.per_bias_NJ))
        step_J = np.zeros(judges)
        if free:
            factor = linalg.cho_factor(schur_JJ, lower=True, check_finite=False)
            step_J = linalg.cho_solve(factor, rest_J, check_finite=False)
            gain += float(rest_J @ step_J)
            log_determinant += 2 * float(np.log(np.diagonal(factor[0])).sum())
        # Close to the maximum the gain squares itself at each step, until rounding is all that is left of it.
        close = gain <= CLOSE
        if gain <= GAIN or (close and gain >= last_gain / 4):
            break
        steps = [step_N - per_bias_NJ @ step_J for step_N, per_bias_NJ in parts]
        before, length = value, 1.0
        while True:
            moved = [s + length * d for s, d in zip(scores, steps, strict=True)]
            value = total(moved, biases_J + length * step_J)
            # A concave function gains half of what the slope promises, or nearly, on a step that is short enough.
            if close or value >= before + 1e-4 * length * gain or length < SHORTEST:
                break
            length /= 2
        scores, biases_J, last_gain = moved, biases_J + length * step_J, gain
    else:
        raise ArithmeticError(f"the scores of {counted(len(problems), 'query')} were not fitted in {MOST_STEPS} steps")
    priors = sum(0.5 * len(p.mean_N) * np.log(p.ridge) for p in problems)
    return _Optimum(
        scores,
        biases_J,
        linalg.inv(schur_JJ) if free else np.zeros((judges, judges)),
        float(value + priors - 0.5 * log_determinant),
    )


def fit(
    answers: Answers,
    count: int,
    prior_mean: np.ndarray | None = None,
    settings: Settings = DEFAULT,
    biases: np.ndarray | None = None,
) -> Fit:
    """The scores of one query's `count` candidates: the maximum a posteriori, and Laplace's approximation around it.

    For each answer, z = score of the first - score of the second + bias of the judge. Maximises the sum of
    weight * (t log P(z) + (1 - t) log P(-z)) - ridge / 2 * |scores - prior_mean|^2 - |biases|^2 / 2, with t the
    probability that the first wins and P the logistic or normal distribution function.
    prior_mean: fp64_N, the prior weight times the standardised prior scores, by default 0; the scores have its mean.
    biases: fp64_J, fixed, as fit_pooled gives them; by default they are fitted to this query alone, which is noisy.
    log_evidence: the maximum + N/2 log ridge - 1/2 log det of the Hessian.
    Raises ValueError for numbers out of range. Source: Bradley and Terry 1952; Davidson and Beaver 1977 (order
    effects); MacKay 1992 (evidence).
    """
    mean_N = np.zeros(count) if prior_mean is None else np.asarray(prior_mean, np.float64)
    if mean_N.shape != (count,) or not np.isfinite(mean_N).all():
        raise ValueError(f"prior_mean: {counted(count, 'finite number')} are needed")
    judges = judge_count([answers], biases)
    free = biases is None and settings.order_bias
    start_J = np.zeros(judges) if biases is None else np.asarray(biases, np.float64)
    problem = _Problem(answers, mean_N, judges, settings)
    found = _maximise([problem], start_J, free)
    part = problem.expand(found.scores[0], found.biases_J)
    covariance_NN = linalg.cho_solve(part.factor, np.eye(count), check_finite=False)
    if free:
        covariance_NN += part.per_bias_NJ @ found.bias_covariance_JJ @ part.per_bias_NJ.T
    return Fit(found.scores[0], (covariance_NN + covariance_NN.T) / 2, found.biases_J, found.log_evidence)


def fit_pooled(queries: Sequence[Query], settings: Settings = DEFAULT, judges: int = 1) -> Pooled:
    """The biases of the judges over all queries, and the weight of the prior scores with the highest evidence.

    The biases are fitted jointly with the scores of every query, for each of settings.prior_weights; their prior is
    N(0, 1) once, not for each query. A useless prior loses by its evidence, so its weight becomes 0. One cycle of
    answers for each query is enough. With fewer than settings.least_queries queries the weight is above 0 only where it
    leads that of 0 (or the smallest one) by LEAD nats. Queries without answers do not count; a judge without answers
    has the bias 0. judges: at least so many. Takes about 10 ms for a query of 100 candidates.
    Raises ValueError for numbers out of range, or priors of another length.
    """
    queries = [query for query in queries if len(query.answers)]
    judges = max(judges, judge_count([query.answers for query in queries], None))
    smallest = settings.prior_weights[0]
    if not queries:
        nothing = f"there are no answers: the prior has the weight {smallest:g} and no judge an order bias"
        return Pooled(np.zeros(judges), np.ones(judges), smallest, note=nothing)
    without = all(query.prior is None for query in queries)
    weights = settings.prior_weights[:1] if without else settings.prior_weights
    found: dict[float, _Optimum] = {}
    start_J = np.zeros(judges)
    for weight in weights:
        problems = []
        for query in queries:
            prior_N = np.zeros(query.count) if query.prior is None else np.asarray(query.prior, np.float64)
            if prior_N.shape != (query.count,) or not np.isfinite(prior_N).all():
                raise ValueError(f"prior: {counted(query.count, 'finite number')} are needed")
            problems.append(_Problem(query.answers, weight * prior_N, judges, settings))
        found[weight] = _maximise(problems, start_J, settings.order_bias)
        start_J = found[weight].biases_J
    evidence = {weight: optimum.log_evidence for weight, optimum in found.items()}
    best = max(weights, key=lambda weight: evidence[weight])
    note: str | None = None
    if len(queries) < settings.least_queries and len(weights) > 1:
        note = (
            f"the weight of the prior rests on {counted(len(queries), 'query', 'queries')}, fewer than "
            f"{settings.least_queries}"
        )
        if best != smallest and evidence[best] - evidence[smallest] < LEAD:
            note += f": {best:g} is not clearly better than {smallest:g}, which is used"
            best = smallest
    chosen = found[best]
    deviations_J = np.sqrt(np.diagonal(chosen.bias_covariance_JJ))
    return Pooled(chosen.biases_J, deviations_J, best, evidence, len(queries), note)


def top_overlap(found: Fit, depth: int, rng: np.random.Generator, draws: int = 200) -> float:
    """How much of the best `depth` of the fitted order is expected to be among the true best, from 0 to 1.

    The mean over draws from N(scores, covariance). A figure for reports: it need not decide when to stop asking.
    """
    count = len(found.scores)
    if count <= depth:
        return 1.0
    root_NN = linalg.cholesky(found.covariance, lower=True)
    drawn_DN = found.scores + rng.standard_normal((draws, count)) @ root_NN.T
    inside_DN = np.argsort(np.argsort(-drawn_DN, axis=1), axis=1) < depth
    best_N = np.argsort(-found.scores, kind="stable")[:depth]
    return float(inside_DN[:, best_N].mean())
