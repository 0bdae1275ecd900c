"""Scores fitted to answers: the optimum and the evidence found independently, symmetries, and what queries share."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize
from scipy.special import erfc
from scipy.stats import norm

from rankwright.supervision.preferences.across_queries import across_pairs, fit_offsets
from rankwright.supervision.preferences.fit import Fit, Query, fit, fit_pooled, standardised, top_overlap
from rankwright.supervision.preferences.likelihood import LINKS, Answers, Settings

MODELS = {name: Settings(model=name) for name in ("bradley_terry", "thurstone")}  # type: ignore[arg-type]
# Written once more, without derivatives.
LOG_P: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "bradley_terry": lambda z: -np.logaddexp(0, -z),
    "thurstone": lambda z: np.log(0.5 * erfc(-z / np.sqrt(2))),
}
each_model = pytest.mark.parametrize("model", MODELS)


def drawn(rng: np.random.Generator, count: int, calls: int, judges: int = 1) -> Answers:
    """Answers of all kinds: probabilities, votes and ties, weights of all sizes."""
    pairs = np.array([rng.permutation(count)[:2] for _ in range(calls)], dtype=np.int64).reshape(calls, 2)
    wins = np.where(rng.random(calls) < 0.5, rng.random(calls), rng.integers(0, 3, calls) / 2)
    return Answers(pairs[:, 0], pairs[:, 1], wins, rng.integers(0, judges, calls), rng.uniform(0.2, 2, calls))


def objective(
    x: np.ndarray, a: Answers, mean: np.ndarray, ridge: float, log_p: Callable[[np.ndarray], np.ndarray]
) -> float:
    """Minus the penalised log likelihood of scores and biases."""
    scores, biases = x[: len(mean)], x[len(mean) :]
    z = scores[a.first] - scores[a.second] + biases[a.judge]
    total = (a.weight * (a.first_wins * log_p(z) + (1 - a.first_wins) * log_p(-z))).sum()
    return float(-total + ridge / 2 * ((scores - mean) ** 2).sum() + (biases**2).sum() / 2)


@each_model
@pytest.mark.parametrize("judges", [1, 3])
def test_the_optimum_is_that_of_a_general_optimiser(model: str, judges: int) -> None:
    rng = np.random.default_rng(judges)
    count, a = 7, drawn(rng, 7, 25, judges)
    mean = rng.standard_normal(count)
    arguments = (a, mean, 0.25, LOG_P[model])
    best = optimize.minimize(objective, np.zeros(count + judges), arguments, method="BFGS", options={"gtol": 1e-9})
    found = fit(a, count, mean, MODELS[model])
    x = np.concatenate([found.scores, found.biases])
    # BFGS ends where rounding hides the slope: the last digits depend on the CPU.
    np.testing.assert_allclose(x, best.x, atol=1e-5)
    slope = optimize.approx_fprime(x, objective, 1e-6, *arguments)
    assert np.abs(slope).max() < 2e-5
    assert objective(x, *arguments) <= best.fun + 1e-12


@each_model
def test_the_covariance_inverts_the_hessian_by_finite_differences(model: str) -> None:
    rng = np.random.default_rng(3)
    count, a = 6, drawn(rng, 6, 20, 2)
    mean, step = rng.standard_normal(count), 1e-3
    found = fit(a, count, mean, MODELS[model])
    x = np.concatenate([found.scores, found.biases])
    size = len(x)
    hessian = np.zeros((size, size))
    for i, j in itertools.product(range(size), repeat=2):
        ends = [
            sign_i
            * sign_j
            * objective(x + step * (sign_i * np.eye(size)[i] + sign_j * np.eye(size)[j]), a, mean, 0.25, LOG_P[model])
            for sign_i, sign_j in itertools.product((1, -1), repeat=2)
        ]
        hessian[i, j] = sum(ends) / (4 * step**2)
    np.testing.assert_allclose(found.covariance, np.linalg.inv(hessian)[:count, :count], atol=1e-5)
    np.testing.assert_allclose(found.deviations**2, np.diag(found.covariance))
    fixed = fit(a, count, mean, MODELS[model], found.biases)
    np.testing.assert_allclose(fixed.scores, found.scores, atol=1e-9)
    np.testing.assert_allclose(fixed.covariance, np.linalg.inv(hessian[:count, :count]), atol=1e-5)


@each_model
@pytest.mark.parametrize("wins", [[0.7], [1.0, 0.5], [0.0, 0.2, 0.4]])
def test_the_derivatives_of_the_likelihood_are_those_of_its_values(model: str, wins: list[float]) -> None:
    z = np.linspace(-30, 30, len(wins) * 20)
    t = np.array(wins * 20)
    value, slope, curvature = LINKS[model](z, t)
    np.testing.assert_allclose(value, t * LOG_P[model](z) + (1 - t) * LOG_P[model](-z), rtol=1e-9, atol=1e-15)
    up, down = LINKS[model](z + 1e-5, t), LINKS[model](z - 1e-5, t)
    np.testing.assert_allclose(slope, (up[0] - down[0]) / 2e-5, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(curvature, -(up[1] - down[1]) / 2e-5, rtol=1e-5, atol=1e-7)
    assert (curvature >= 0).all()


@each_model
def test_the_evidence_is_the_integral_where_that_can_be_computed(model: str) -> None:
    """Two documents: the answers depend on the difference alone, whose prior is N(mean, 2 / ridge)."""
    a = Answers(np.array([0, 1, 0]), np.array([1, 0, 1]), np.array([0.8, 0.4, 1.0]))
    mean, ridge = np.array([0.6, -0.2]), 4.0
    options = dataclasses.replace(MODELS[model], ridge=ridge)
    log_p = LOG_P[model]

    grid = np.linspace(-9, 9, 1201)

    def joint(difference: np.ndarray, bias: np.ndarray) -> np.ndarray:
        total = norm.logpdf(difference, 0.8, np.sqrt(2 / ridge))
        for first, t in zip(a.first, a.first_wins, strict=True):
            z = (difference if first == 0 else -difference) + bias
            total = total + t * log_p(z) + (1 - t) * log_p(-z)
        return np.exp(total)

    inner = integrate.trapezoid(joint(grid[:, None], grid[None, :]) * norm.pdf(grid)[None, :], grid, axis=1)
    two = integrate.trapezoid(inner, grid)
    assert fit(a, 2, mean, options).log_evidence == pytest.approx(np.log(two), abs=0.02)
    one = integrate.trapezoid(joint(grid, np.array(0.3)), grid)
    assert fit(a, 2, mean, options, np.array([0.3])).log_evidence == pytest.approx(np.log(one), abs=0.01)
    # Without answers nothing is approximated.
    nothing = Answers(np.zeros(0), np.zeros(0), np.zeros(0))
    assert fit(nothing, 2, mean, options).log_evidence == pytest.approx(0, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), model=st.sampled_from(sorted(MODELS)), count=st.integers(2, 12))
def test_symmetries_of_the_fit(seed: int, model: str, count: int) -> None:
    rng = np.random.default_rng(seed)
    a, mean, options = drawn(rng, count, 20, 2), rng.standard_normal(count), MODELS[model]
    plain = fit(a, count, mean, options)
    # The mean is that of the prior, and a constant passes through.
    assert plain.scores.mean() == pytest.approx(mean.mean(), abs=1e-9)
    shifted = fit(a, count, mean + 5, options)
    np.testing.assert_allclose(shifted.scores, plain.scores + 5, atol=1e-8)
    np.testing.assert_allclose(shifted.covariance, plain.covariance, atol=1e-8)
    assert shifted.log_evidence == pytest.approx(plain.log_evidence)
    # Shown in the other order with the other answer, only the sign of the biases changes.
    turned = fit(Answers(a.second, a.first, 1 - a.first_wins, a.judge, a.weight), count, mean, options)
    np.testing.assert_allclose(turned.scores, plain.scores, atol=1e-8)
    np.testing.assert_allclose(turned.biases, -plain.biases, atol=1e-8)
    # Every answer the other way round turns all.
    other = fit(Answers(a.first, a.second, 1 - a.first_wins, a.judge, a.weight), count, -mean, options)
    np.testing.assert_allclose(other.scores, -plain.scores, atol=1e-8)
    # Numbering the documents differently renumbers the scores.
    names = rng.permutation(count)
    renamed_mean = np.empty(count)
    renamed_mean[names] = mean
    renamed = fit(
        Answers(names[a.first], names[a.second], a.first_wins, a.judge, a.weight), count, renamed_mean, options
    )
    np.testing.assert_allclose(renamed.scores[names], plain.scores, atol=1e-8)
    # The order of the answers changes no bit; a weight of 2 is the answer twice; a weight of 0 is none.
    order = rng.permutation(len(a))
    shuffled = Answers(*(getattr(a, f.name)[order] for f in dataclasses.fields(a)))
    assert np.array_equal(fit(shuffled, count, mean, options).scores, plain.scores)
    assert fit(shuffled, count, mean, options).log_evidence == plain.log_evidence
    twice = Answers(*(np.concatenate([v, v]) for v in (a.first, a.second, a.first_wins, a.judge, a.weight)))
    double = Answers(a.first, a.second, a.first_wins, a.judge, 2 * a.weight)
    np.testing.assert_allclose(
        fit(twice, count, mean, options).scores, fit(double, count, mean, options).scores, atol=1e-8
    )
    less = Answers(a.first[:9], a.second[:9], a.first_wins[:9], a.judge[:9], a.weight[:9])
    zero = Answers(a.first, a.second, a.first_wins, a.judge, np.where(np.arange(len(a)) < 9, a.weight, 0))
    np.testing.assert_allclose(
        fit(less, count, mean, options).scores, fit(zero, count, mean, options).scores, atol=1e-8
    )


@each_model
def test_the_ridge_keeps_separable_answers_finite(model: str) -> None:
    pairs = np.array(list(itertools.combinations(range(30), 2)))
    a = Answers(pairs[:, 0], pairs[:, 1], np.ones(len(pairs)))
    found = fit(a, 30, settings=MODELS[model], biases=np.zeros(1))
    assert (np.diff(found.scores) < 0).all()
    assert np.ptp(found.scores) < 30
    weaker = fit(a, 30, settings=dataclasses.replace(MODELS[model], ridge=1e-6), biases=np.zeros(1))
    assert np.ptp(weaker.scores) > 2 * np.ptp(found.scores)
    # Extreme weights, priors and biases still find the maximum.
    heavy = fit(Answers(a.first, a.second, a.first_wins, weight=np.full(len(a), 1e4)), 30, settings=MODELS[model])
    assert np.isfinite(heavy.scores).all()
    far = fit(a, 30, np.linspace(-500, 500, 30), MODELS[model], np.array([50.0]))
    assert np.isfinite(far.scores).all()
    assert np.isfinite(far.log_evidence)


def test_one_document_and_no_answers() -> None:
    nothing = Answers(np.zeros(0), np.zeros(0), np.zeros(0))
    for count in (0, 1, 3):
        found = fit(nothing, count, np.arange(count))
        np.testing.assert_allclose(found.scores, np.arange(count))
        np.testing.assert_allclose(found.covariance, 4 * np.eye(count))


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (([0], [0], [1.0]), "compared with itself"),
        (([0], [1], [1.1]), "from 0 to 1"),
        (([0], [1], [np.nan]), "from 0 to 1"),
        (([0], [-1], [1.0]), "below 0"),
        (([0], [1, 2], [1.0]), "shape"),
        (([0], [1], [1.0], [0], [-1.0]), "at least 0"),
        (([0], [1], [1.0], [0], [np.inf]), "finite"),
    ],
)
def test_impossible_answers_are_refused(answers: tuple[list[float], ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Answers(*map(np.array, answers))


def test_numbers_out_of_range_are_refused() -> None:
    a = Answers(np.array([0]), np.array([5]), np.array([1.0]), np.array([1]))
    with pytest.raises(ValueError, match="a document's number is 5 or more"):
        fit(a, 5)
    with pytest.raises(ValueError, match="prior_mean"):
        fit(a, 6, np.zeros(5))
    with pytest.raises(ValueError, match="biases"):
        fit(a, 6, biases=np.zeros(1))
    with pytest.raises(ValueError, match="a query's number"):
        fit_offsets(a, 5)
    with pytest.raises(ValueError, match="ridge"):
        Settings(ridge=0.0)
    with pytest.raises(ValueError, match="must grow"):
        Settings(prior_weights=(1.0, 0.0))


def test_a_fit_of_100_candidates_takes_milliseconds() -> None:
    rng = np.random.default_rng(0)
    a = drawn(rng, 100, 200)
    taken = []
    for _ in range(30):
        started = time.perf_counter()
        fit(a, 100)
        taken.append(time.perf_counter() - started)
    # The fastest of many: a busy machine takes longer, never less. Several Newton steps and the inverse.
    assert min(taken) < 0.02


def test_standardised_scores() -> None:
    found = standardised([3.0, 1.0, 8.0, 8.0])
    assert found.mean() == pytest.approx(0)
    assert found.std() == pytest.approx(1)
    assert standardised([0.1 + 0.2, 0.3]).tolist() == [0, 0]
    assert standardised([]).tolist() == []
    with pytest.raises(ValueError, match="not finite"):
        standardised([1.0, np.nan])


def pool(rng: np.random.Generator, queries: int, biases: np.ndarray, count: int = 12) -> list[Query]:
    found = []
    for _ in range(queries):
        latent = 1.5 * rng.standard_normal(count)
        a = drawn(rng, count, 30, len(biases))
        z = latent[a.first] - latent[a.second] + biases[a.judge]
        votes = (z + rng.logistic(size=len(a)) > 0).astype(float)
        prior = standardised(latent + 0.5 * rng.standard_normal(count))
        found.append(Query(Answers(a.first, a.second, votes, a.judge), count, prior))
    return found


@each_model
def test_pooled_biases_maximise_the_joint_likelihood(model: str) -> None:
    queries = pool(np.random.default_rng(4), 3, np.array([0.8, -0.4]), 5)
    options = dataclasses.replace(MODELS[model], prior_weights=(0.5,))

    def joint(x: np.ndarray) -> float:
        """Each query's objective with the shared biases, whose penalty counts once."""
        biases = x[15:]
        parts = [
            objective(np.concatenate([x[5 * k : 5 * k + 5], biases]), q.answers, 0.5 * q.prior, 0.25, LOG_P[model])
            for k, q in enumerate(queries)
            if q.prior is not None
        ]
        return sum(parts) - (len(queries) - 1) * float((biases**2).sum()) / 2

    best = optimize.minimize(joint, np.zeros(17), method="BFGS", options={"gtol": 1e-9})
    pooled = fit_pooled(queries, options)
    np.testing.assert_allclose(pooled.biases, best.x[15:], atol=1e-6)
    size, step = 17, 1e-3
    hessian = np.zeros((size, size))
    for i, j in itertools.product(range(size), repeat=2):
        hessian[i, j] = sum(
            si * sj * joint(best.x + step * (si * np.eye(size)[i] + sj * np.eye(size)[j]))
            for si, sj in itertools.product((1, -1), repeat=2)
        ) / (4 * step**2)
    np.testing.assert_allclose(pooled.deviations, np.sqrt(np.diag(np.linalg.inv(hessian))[15:]), rtol=1e-4)
    evidence = -best.fun + 15 / 2 * np.log(0.25) - np.linalg.slogdet(hessian)[1] / 2
    assert pooled.evidence[0.5] == pytest.approx(evidence, abs=1e-4)
    # One query alone is fit() itself.
    (query,) = queries[:1]
    assert query.prior is not None
    alone, plain = fit_pooled([query], options), fit(query.answers, 5, 0.5 * query.prior, options)
    np.testing.assert_allclose(alone.biases, plain.biases, atol=1e-9)
    assert alone.evidence[0.5] == pytest.approx(plain.log_evidence, abs=1e-9)


def test_pooled_biases_of_two_judges_are_recovered_within_their_deviations() -> None:
    true = np.array([0.8, -0.4])
    pooled = fit_pooled(pool(np.random.default_rng(1), 60, true))
    assert (np.abs(pooled.biases - true) < 3 * pooled.deviations).all()
    assert (pooled.deviations < 0.15).all()
    assert pooled.queries == 60
    assert pooled.note is None
    assert pooled.prior_weight > 0
    # A third judge who has not answered has the prior.
    more = fit_pooled(pool(np.random.default_rng(1), 60, true), judges=3)
    np.testing.assert_allclose(more.biases[:2], pooled.biases, atol=1e-9)
    assert (more.biases[2], more.deviations[2]) == (0, pytest.approx(1))
    none = fit_pooled(pool(np.random.default_rng(1), 60, true), Settings(order_bias=False))
    assert none.biases.tolist() == [0, 0]


def test_few_queries_use_the_prior_only_with_a_clear_lead() -> None:
    rng = np.random.default_rng(2)
    queries = pool(rng, 10, np.array([0.5]))
    clear = fit_pooled(queries)
    assert clear.prior_weight > 0
    assert clear.note == "the weight of the prior rests on 10 queries, fewer than 30"
    # One comparison in each of two queries, as the prior says: the evidence grows, but hardly.
    single = Query(Answers(np.array([0]), np.array([1]), np.array([1.0])), 2, np.array([1.0, -1.0]))
    unclear = fit_pooled([single] * 2)
    assert 0 < max(unclear.evidence.values()) - unclear.evidence[0.0] < 3
    assert unclear.prior_weight == 0
    assert unclear.note == (
        "the weight of the prior rests on 2 queries, fewer than 30: 2 is not clearly better than 0, which is used"
    )
    assert fit_pooled([single] * 40).prior_weight == 2
    nothing = fit_pooled([Query(Answers(np.zeros(0), np.zeros(0), np.zeros(0)), 2, np.zeros(2))])
    assert (nothing.prior_weight, nothing.biases.tolist(), nothing.queries) == (0, [0], 0)
    assert nothing.note is not None
    # Without priors there is no choice to note.
    plain = fit_pooled([dataclasses.replace(query, prior=None) for query in queries])
    assert (plain.prior_weight, list(plain.evidence), plain.note) == (0, [0.0], None)


def test_the_overlap_of_the_top_grows_with_certainty() -> None:
    scores = np.arange(20, dtype=float)
    for width, low, high in ((1e-6, 1, 1), (3.0, 0.6, 0.95), (1e4, 0.4, 0.6)):
        found = Fit(scores, width**2 * np.eye(20), np.zeros(1), 0.0)
        assert low <= top_overlap(found, 10, np.random.default_rng(0)) <= high
    assert top_overlap(Fit(scores[:5], np.eye(5), np.zeros(1), 0.0), 10, np.random.default_rng(0)) == 1


@each_model
def test_offsets_of_queries_are_the_optimum_and_sum_to_zero(model: str) -> None:
    rng = np.random.default_rng(8)
    queries, drawn_answers = 6, drawn(rng, 6, 15, 2)
    a = dataclasses.replace(drawn_answers, lead=rng.standard_normal(15))

    def minus(x: np.ndarray) -> float:
        z = x[a.first] - x[a.second] + x[queries + a.judge] + a.lead
        log_p = LOG_P[model]
        total = (a.weight * (a.first_wins * log_p(z) + (1 - a.first_wins) * log_p(-z))).sum()
        return float(-total + 0.125 * (x[:queries] ** 2).sum() + (x[queries:] ** 2).sum() / 2)

    best = optimize.minimize(minus, np.zeros(queries + 2), method="BFGS", options={"gtol": 1e-9})
    found = fit_offsets(a, queries, MODELS[model])
    np.testing.assert_allclose(np.concatenate([found.offsets, found.biases]), best.x, atol=1e-6)
    assert found.offsets.sum() == pytest.approx(0, abs=1e-12)
    fixed = fit_offsets(a, queries, MODELS[model], found.biases)
    np.testing.assert_allclose(fixed.offsets, found.offsets, atol=1e-8)
    assert np.array_equal(fixed.biases, found.biases)
    # A query without answers, and none at all.
    assert fit_offsets(a, queries + 1, MODELS[model]).offsets[-1] == pytest.approx(0, abs=1e-12)
    assert fit_offsets(Answers(np.zeros(0), np.zeros(0), np.zeros(0)), 3).offsets.tolist() == [0, 0, 0]


def test_scores_of_all_queries_come_to_one_scale() -> None:
    rng = np.random.default_rng(9)
    queries = 400
    levels = 1.5 * rng.standard_normal(queries)
    levels -= levels.mean()
    scores = -np.sort(-rng.standard_normal((queries, 50)), axis=1)
    pairs = across_pairs([50] * queries, 4, rng)
    assert len(pairs) == 4 * queries
    first, second = (np.array([getattr(p, name) for p in pairs]) for name in ("first_query", "second_query"))
    places = [(p.first_place, p.second_place) for p in pairs]
    assert set(places) == {(0, 0), (4, 4), (19, 19)}
    lead = scores[first, [p for p, _ in places]] - scores[second, [p for _, p in places]]
    votes = lead + levels[first] - levels[second] + 0.6 + rng.logistic(size=len(pairs)) > 0
    found = fit_offsets(Answers(first, second, votes.astype(float), lead=lead), queries)
    assert np.corrcoef(found.offsets, levels)[0, 1] > 0.75
    assert abs(found.biases[0] - 0.6) < 0.2
    # The offsets bring the levels closer than leaving them out would.
    assert np.std(levels - found.offsets) < 0.75 * np.std(levels)


def test_pairs_across_queries_keep_to_the_candidates() -> None:
    rng = np.random.default_rng(1)
    counts = [0, 3, 1, 100, 0, 7]
    pairs = across_pairs(counts, 1, rng)
    assert {p.first_query for p in pairs} == {p.second_query for p in pairs} == {1, 2, 3, 5}
    assert all(p.first_place < counts[p.first_query] and p.second_place < counts[p.second_query] for p in pairs)
    assert across_pairs([5, 0], 2, rng) == []
