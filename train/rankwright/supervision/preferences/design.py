"""Which pairs of documents a judge is asked about next. Pure functions of a generator that is made from content.

A pair is (first, second): numbers of two candidates of one query, in the order in which they are shown.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from rankwright.common.hashing import stable_hash
from rankwright.supervision.preferences.fit import Fit

Pair = tuple[int, int]
# How often pairs are drawn for a call before the rest of a round is filled in order.
DRAWS = 20


def generator(seed: int, query_id: str, round_number: int) -> np.random.Generator:
    """The random numbers of one round of one query: the same in any thread, in any order, and after a kill."""
    return np.random.Generator(np.random.PCG64(stable_hash("pairs of documents", seed, query_id, round_number)))


def first_cycle(count: int, rng: np.random.Generator) -> list[Pair]:
    """A random cycle through all `count` candidates: `count` pairs; 1 for two candidates, none for fewer.

    Every candidate is in two pairs, and is shown first in one and second in the other, so the bias of a judge towards
    the document shown first cannot be mistaken for a difference of scores.
    """
    return [pair for cycle in cycles(count, 1, rng) for pair in cycle]


def cycles(count: int, number: int, rng: np.random.Generator) -> list[list[Pair]]:
    """`number` random cycles as in first_cycle, in which no two documents meet twice, in either order.

    `count` candidates have (count - 1) // 2 such cycles at most (one for two candidates); no more are returned.
    Cycles are drawn one after the other; where one meets a pair of an earlier cycle, a part of it is reversed. Where
    the candidates are too few for that, all cycles are taken from Walecki's decomposition of a complete graph, with
    the candidates in random order. Source: zELO (arXiv 2509.12541), whose cycles may repeat pairs; Lucas 1892, vol. 2.
    """
    if count < 2 or number < 1:
        return []
    if count == 2:
        order_N = rng.permutation(2).tolist()
        return [[(order_N[0], order_N[1])]]
    number = min(number, (count - 1) // 2)
    if count >= 4 * number - 2:
        used: set[Pair] = set()
        orders = []
        for _ in range(number):
            orders.append(_without(rng.permutation(count).tolist(), used, rng))
            used |= {tuple(sorted(pair)) for pair in _closed(orders[-1])}  # type: ignore[misc]
    else:
        names_N = rng.permutation(count).tolist()
        chosen = rng.permutation((count - 1) // 2)[:number].tolist()
        orders = [[names_N[place] for place in _walecki(count, number)] for number in chosen]
        orders = [order[::-1] if rng.random() < 0.5 else order for order in orders]
    return [_closed(order) for order in orders]


def _closed(order: Sequence[int]) -> list[Pair]:
    return list(zip(order, [*order[1:], order[0]], strict=True))


def _without(order: list[int], used: Collection[Pair], rng: np.random.Generator) -> list[int]:
    """The cycle with parts reversed until none of its pairs is used. Each reversal removes one at least.

    A used pair (u, v) becomes (u, x) and (v, y), for a pair (x, y) further on. With k earlier cycles at most 4k + 1 of
    the pairs do not serve, so one does while count >= 4k + 2.
    """
    count = len(order)

    def known(one: int, other: int) -> bool:
        return (min(one, other), max(one, other)) in used

    while True:
        bad = [place for place in range(count) if known(order[place], order[(place + 1) % count])]
        if not bad:
            return order
        # Starts with v, ends with u.
        order = order[bad[0] + 1 :] + order[: bad[0] + 1]
        serve = [p for p in range(count - 1) if not known(order[-1], order[p]) and not known(order[0], order[p + 1])]
        end = serve[int(rng.integers(len(serve)))] + 1
        order = order[:end][::-1] + order[end:]


def _walecki(count: int, number: int) -> list[int]:
    """Cycle `number`, below (count - 1) // 2, of a decomposition: a zigzag over a ring of count - 1, and its hub."""
    ring = count - 1
    zigzag = [(number + (step + 1) // 2 * (1 if step % 2 else -1)) % ring for step in range(ring)]
    return [ring, *zigzag]


def next_round(
    fit: Fit, asked: Collection[Pair], calls: int, rng: np.random.Generator, mean_place: float = 6.0
) -> list[Pair]:
    """Up to `calls` pairs that tell most about the top of the order, none of them in `asked` in this order.

    For each pair scores are drawn from N(fit.scores, fit.covariance) (Thompson sampling) and sorted; the documents at
    places r and r + 1 from the top are compared, where r, from 0, is the whole part of an exponential number with mean
    mean_place. They are shown in random order. Where drawing finds too few new pairs, those that are closest in the
    fitted order follow, the top first. Fewer than `calls` only when every pair was asked in both orders.
    Source: Thompson 1933.
    """
    count = len(fit.scores)
    known = set(asked)
    pairs: list[Pair] = []
    if count < 2:
        return pairs

    def take(pair: Pair) -> None:
        if pair not in known:
            known.add(pair)
            pairs.append(pair)

    root_NN = np.linalg.cholesky(fit.covariance)
    for _ in range(DRAWS):
        if len(pairs) >= calls:
            break
        drawn_DN = fit.scores + rng.standard_normal((calls, count)) @ root_NN.T
        order_DN = np.argsort(-drawn_DN, axis=1, kind="stable")
        # Beyond the last pair there is none: these draws are left out.
        places_D = np.floor(rng.exponential(mean_place, calls))
        turned_D = rng.random(calls) < 0.5
        for order_N, place, turned in zip(order_DN, places_D, turned_D, strict=True):
            if place < count - 1 and len(pairs) < calls:
                upper, lower = int(order_N[int(place)]), int(order_N[int(place) + 1])
                take((lower, upper) if turned else (upper, lower))
    order_N = np.argsort(-fit.scores, kind="stable").tolist()
    for gap in range(1, count if len(pairs) < calls else 0):
        for place in range(count - gap):
            both = [(order_N[place], order_N[place + gap]), (order_N[place + gap], order_N[place])]
            for pair in both if rng.random() < 0.5 else both[::-1]:
                if len(pairs) < calls:
                    take(pair)
    return pairs
