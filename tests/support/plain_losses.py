"""The losses in plain Python: one group as a list of (score, label), loops in place of tensors, for tests."""

from __future__ import annotations

import math
from collections.abc import Callable

Documents = list[tuple[float, float]]


def softplus(x: float) -> float:
    return max(0.0, x) + math.log1p(math.exp(-abs(x)))


def log_sum_exp(values: list[float]) -> float:
    return max(values) + math.log(math.fsum(math.exp(v - max(values)) for v in values))


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def ideal_dcg(group: Documents, k: int) -> float:
    gains = sorted((max(y, 0.0) for _, y in group), reverse=True)[:k]
    return math.fsum(g / math.log2(1 + place) for place, g in enumerate(gains, start=1))


def listwise_softmax(group: Documents, temperature: float = 1.0) -> float:
    total = math.fsum(max(y, 0.0) for _, y in group)
    log_sum = log_sum_exp([s / temperature for s, _ in group])
    return math.fsum(max(y, 0.0) / total * (log_sum - s / temperature) for s, y in group) if total else 0.0


def lambda_rank(group: Documents, k: int = 10) -> float:
    best_first = sorted((-s, y) for s, y in group)

    def first(s: float, y: float) -> int:
        return 1 + best_first.index((-s, y))

    def discount(s: float, y: float) -> float:
        return 1 / math.log2(1 + first(s, y) + (best_first.count((-s, y)) - 1) / 2)

    # A label below 0 gains as little as 0.
    gain = {y: max(y, 0.0) / (ideal_dcg(group, k) or 1.0) for _, y in group}
    return math.fsum(
        abs(discount(s, y) - discount(t, z)) * (gain[y] - gain[z]) * softplus(t - s)
        for s, y in group
        for t, z in group
        if y > z and (first(s, y) <= k or first(t, z) <= k)
    )


def margin_mse(group: Documents) -> float:
    best = [i for i, (_, y) in enumerate(group) if y == max(z for _, z in group)]
    margins = [(i, j) for i in best for j in range(len(group)) if j != i]
    return mean([((group[i][0] - group[j][0]) - (group[i][1] - group[j][1])) ** 2 for i, j in margins])


def kl_distil(group: Documents, temperature: float = 1.0) -> float:
    teacher, model = [y / temperature for _, y in group], [s for s, _ in group]
    log_p, log_q = ([x - log_sum_exp(side) for x in side] for side in (teacher, model))
    return math.fsum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True))


def approx_ndcg(group: Documents, temperature: float = 1.0) -> float:
    if ideal_dcg(group, len(group)) == 0:
        return 0.0
    places = [0.5 + math.fsum(1 / (1 + math.exp((s - t) / temperature)) for t, _ in group) for s, _ in group]
    dcg = math.fsum(max(y, 0.0) / math.log2(1 + place) for place, (_, y) in zip(places, group, strict=True))
    return 1 - dcg / ideal_dcg(group, len(group))


BY_HAND: dict[str, Callable[..., float]] = {
    # -log sigmoid(s) of a relevant document, -log sigmoid(-s) of another.
    "bce": lambda group: mean([softplus(-s if y > 0 else s) for s, y in group]),
    "mse": lambda group: mean([(s - y) ** 2 for s, y in group]),
    "ranknet": lambda group: mean([softplus(t - s) for s, y in group for t, z in group if y > z]),
    "list_mle": lambda group: math.fsum(log_sum_exp([s] + [t for t, z in group if z < y]) - s for s, y in group),
    **{f.__name__: f for f in (listwise_softmax, lambda_rank, margin_mse, kl_distil, approx_ndcg)},
}
