"""How negatives are drawn for a training group: registered samplers, pure in (seed, draw, query id, pool id)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field

from rankwright.common.hashing import stable_hash
from rankwright.common.registry import Registry
from rankwright.mining.pools import Negative


class DrawKey(NamedTuple):
    """What a draw depends on, beside the pool. draw: how often the query was drawn before."""

    seed: int
    draw: int
    query_id: str
    pool_id: str


Sampler = Callable[[Sequence[Negative], int, DrawKey], list[Negative]]
# A sampler is called as name(pool, count, key, **options) and returns `count` different negatives of the pool, all of
# them when the pool is shorter. Neither the order of the pool nor anything but the arguments matters.
SAMPLERS: Registry[Callable[..., list[Negative]]] = Registry("sampler")


def bind_sampler(choice: Mapping[str, Mapping[str, object]]) -> Sampler:
    """The one of `mine.sampler` with its options fixed. Raises UserError for an unknown one."""
    ((name, options),) = choice.items()
    return SAMPLERS.bind(name, options)


def _hash(key: DrawKey, document_id: str) -> int:
    return stable_hash("draw", "negatives", *key, document_id)


def _shuffled(pool: Sequence[Negative], key: DrawKey) -> list[Negative]:
    return sorted(pool, key=lambda n: (_hash(key, n.document_id), n.document_id))


@SAMPLERS.register
def uniform(pool: Sequence[Negative], count: int, key: DrawKey) -> list[Negative]:
    """Every set of `count` negatives with the same probability, judged ones among them."""
    return _shuffled(pool, key)[:count]


@SAMPLERS.register
def top(pool: Sequence[Negative], count: int, key: DrawKey) -> list[Negative]:
    """The best-ranked ones, the same in every epoch; those without a rank (judged or filled in) after them, drawn."""
    return sorted(_shuffled(pool, key), key=lambda n: math.inf if n.rank is None else n.rank)[:count]


def _growing(bands: tuple[int, ...]) -> tuple[int, ...]:
    if list(bands) != sorted(set(bands)):
        raise ValueError(f"{list(bands)}: must grow, such as [10, 30, 100]")
    return bands


@SAMPLERS.register
def stratified(
    pool: Sequence[Negative],
    count: int,
    key: DrawKey,
    *,
    bands: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1), AfterValidator(_growing)] = (10, 30),
) -> list[Negative]:
    """The same number from every band of ranks, drawn uniformly within it.

    bands: the last rank of each, growing; all that comes after them, or has no rank, is one more band. Bands take
    turns, the best ranks first, so the first ones get what does not divide evenly; when one is used up, the others fill
    its place.
    """
    found: list[list[Negative]] = [[] for _ in range(len(bands) + 1)]
    for negative in _shuffled(pool, key):
        rank = math.inf if negative.rank is None else negative.rank
        found[sum(rank > last for last in bands)].append(negative)
    turns = [(turn, band, negative) for band, own in enumerate(found) for turn, negative in enumerate(own)]
    return [negative for _, _, negative in sorted(turns, key=lambda entry: entry[:2])[:count]]


@SAMPLERS.register
def proportional(
    pool: Sequence[Negative],
    count: int,
    key: DrawKey,
    *,
    by: Literal["score", "rank"] = "rank",
    temperature: Annotated[float, Field(gt=0)] = 1.0,
) -> list[Negative]:
    """Harder negatives more often: one after another, each with a probability proportional to its weight.

    by score: weight = exp(score / temperature), in the retriever's own scores (a fusion's are about 0.01 apart: give
    a temperature of that size); by rank: weight = rank ** (-1 / temperature). A negative without a score or rank
    weighs as the least of the pool. Source: Gumbel-top-k, Vieira 2014; Kool et al. 2019 (arXiv 1903.06059).
    """
    logs = [_log_weight(n, by) for n in pool]
    least = min((w for w in logs if w is not None), default=0.0)

    def order(place: int) -> tuple[float, str]:
        weight = logs[place]
        # Inside (0, 1), whatever the hash.
        share = (_hash(key, pool[place].document_id) + 0.5) / 2**64
        share = min(max(share, 2**-54), 1 - 2**-53)
        gumbel = -math.log(-math.log(share))
        return -((least if weight is None else weight) / temperature + gumbel), pool[place].document_id

    return [pool[place] for place in sorted(range(len(pool)), key=order)[:count]]


def _log_weight(negative: Negative, by: str) -> float | None:
    if by == "score":
        return negative.score
    return None if negative.rank is None else -math.log(negative.rank)
