"""The losses in plain Python: one group as a list of (score, label), loops in place of tensors, for tests."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

from scipy.stats import rankdata

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


def lambda_rank(group: Documents, k: int = 10, targets: str = "labels", margin: float | None = None) -> float:
    wide = margin_by_default(targets) if margin is None else margin
    best_first = sorted((-s, y) for s, y in group)

    def first(s: float, y: float) -> int:
        return 1 + best_first.index((-s, y))

    def discount(s: float, y: float) -> float:
        return 1 / math.log2(1 + first(s, y) + (best_first.count((-s, y)) - 1) / 2)

    # A label below 0 gains as little as 0; a teacher's lowest score gains nothing.
    lowest = 0.0 if targets == "labels" else min(y for _, y in group)
    ideal = ideal_dcg([(s, y - lowest) for s, y in group], k) or 1.0
    gain = {y: max(y - lowest, 0.0) / ideal for _, y in group}
    return math.fsum(
        abs(discount(s, y) - discount(t, z)) * (gain[y] - gain[z]) * softplus(t - s)
        for s, y in group
        for t, z in group
        if y - z > wide and (first(s, y) <= k or first(t, z) <= k)
    )


def margin_mse(group: Documents) -> float:
    best = [i for i, (_, y) in enumerate(group) if y == max(z for _, z in group)]
    margins = [(i, j) for i in best for j in range(len(group)) if j != i]
    return mean([((group[i][0] - group[j][0]) - (group[i][1] - group[j][1])) ** 2 for i, j in margins])


def kl_distil(
    group: Documents, temperature: float = 1.0, student_temperature: float = 1.0, normalise: str = "none"
) -> float:
    labels = [y for _, y in group]
    if normalise == "zscore":
        spread = statistics.pstdev(labels)
        labels = [(y - mean(labels)) / spread if spread else 0.0 for y in labels]
    teacher, model = [y / temperature for y in labels], [s / student_temperature for s, _ in group]
    log_p, log_q = ([x - log_sum_exp(side) for x in side] for side in (teacher, model))
    return math.fsum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True))


def approx_ndcg(group: Documents, temperature: float = 1.0) -> float:
    if ideal_dcg(group, len(group)) == 0:
        return 0.0
    places = [0.5 + math.fsum(1 / (1 + math.exp((s - t) / temperature)) for t, _ in group) for s, _ in group]
    dcg = math.fsum(max(y, 0.0) / math.log2(1 + place) for place, (_, y) in zip(places, group, strict=True))
    return 1 - dcg / ideal_dcg(group, len(group))


def margin_by_default(targets: str) -> float:
    return 0.5 if targets == "teacher" else 0.0


def ranknet(
    group: Documents, targets: str = "labels", margin: float | None = None, temperature: float | None = None
) -> float:
    wide = margin_by_default(targets) if margin is None and temperature is None else margin or 0.0
    losses = []
    for s, y in group:
        for t, z in group:
            if y - z > wide:
                p = 1.0 if temperature is None else 1 / (1 + math.exp(-(y - z) / temperature))
                losses.append(p * softplus(t - s) + (1 - p) * softplus(s - t))
    return mean(losses)


def soft_bce(group: Documents, targets: str = "labels", scale: float = 1.0, offset: float = 0.0) -> float:
    def target(y: float) -> float:
        return 1 / (1 + math.exp(-y / scale)) if targets == "teacher" else min(max(y / scale, 0.0), 1.0)

    return mean([target(y) * softplus(offset - s) + (1 - target(y)) * softplus(s - offset) for s, y in group])


def adr_mse(group: Documents, temperature: float = 1.0, discount: str = "log2") -> float:
    """The places by the teacher are scipy's: equal labels share their mean place."""
    weight = {"log2": lambda p: 1 / math.log2(1 + p), "reciprocal": lambda p: 1 / p, "none": lambda p: 1.0}[discount]
    places = rankdata([-y for _, y in group]) if group else []
    found = [0.5 + math.fsum(1 / (1 + math.exp((s - t) / temperature)) for t, _ in group) for s, _ in group]
    return mean([weight(p) * (p - f) ** 2 for p, f in zip(places, found, strict=True)])


BY_HAND: dict[str, Callable[..., float]] = {
    # -log sigmoid(s) of a relevant document, -log sigmoid(-s) of another.
    "bce": lambda group: mean([softplus(-s if y > 0 else s) for s, y in group]),
    "mse": lambda group: mean([(s - y) ** 2 for s, y in group]),
    "list_mle": lambda group: math.fsum(log_sum_exp([s] + [t for t, z in group if z < y]) - s for s, y in group),
    **{f.__name__: f for f in (listwise_softmax, ranknet, lambda_rank, margin_mse, kl_distil, approx_ndcg)},
    **{f.__name__: f for f in (soft_bce, adr_mse)},
}
