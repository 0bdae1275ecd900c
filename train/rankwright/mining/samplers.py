"""How negatives are drawn for a training group: registered samplers, pure in (seed, draw, query id, pool id)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field

from rankwright.common.errors import UserError
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
    """The one of `mine.sampler` with its options fixed. Raises UserError for an unknown one, and for wrong options."""
    ((name, options),) = choice.items()
    sampler = SAMPLERS.bind(name, options)
    # Tried here, so that options that exclude each other are found before anything is read.
    sampler([], 0, DrawKey(0, 0, "", ""))
    return sampler


def reads_scores(choice: Mapping[str, Mapping[str, object]]) -> bool:
    """Whether the one of `mine.sampler` draws by a teacher's scores."""
    return any(options.get("by") == "teacher" for options in choice.values())


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
    by: Literal["rank", "teacher"] = "rank",
    bands: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1), AfterValidator(_growing)]
    | None = None,
    strata: Annotated[int, Field(ge=2, le=1000)] | None = None,
) -> list[Negative]:
    """The same number from every stratum of ranks or of a teacher's scores, drawn uniformly within it.

    bands: the last rank of each stratum, growing, by default 10 and 30. strata: how many parts of equal width the range
    of the pool's scores has, by default 8, so that draws cover all of it however many documents a part holds; after the
    idea of 2604.04734, whose cuts were not at hand. What comes after the bands, or has no rank or score, is one more
    stratum. Strata take turns, the best first, so the first ones get what does not divide evenly; when one is used up,
    the others fill its place.

    Raises UserError for bands of a teacher's scores, and for strata of ranks.
    """
    if (unused := strata if by == "rank" else bands) is not None:
        own, other = ("bands", "strata") if by == "rank" else ("strata", "bands")
        raise UserError(f"stratified.{other}: {unused} is not for by: {by}, which has {own}: remove it")
    place = _band(bands or (10, 30)) if by == "rank" else _stratum(pool, strata or 8)
    strata_of: dict[int, list[Negative]] = {}
    for negative in _shuffled(pool, key):
        strata_of.setdefault(place(negative), []).append(negative)
    found = [strata_of[stratum] for stratum in sorted(strata_of)]
    turns = [(turn, band, negative) for band, own in enumerate(found) for turn, negative in enumerate(own)]
    return [negative for _, _, negative in sorted(turns, key=lambda entry: entry[:2])[:count]]


def _band(bands: tuple[int, ...]) -> Callable[[Negative], int]:
    return lambda n: sum((math.inf if n.rank is None else n.rank) > last for last in bands)


def _stratum(pool: Sequence[Negative], strata: int) -> Callable[[Negative], int]:
    """The part of the range of the pool's scores that a negative lies in, 0 the highest; after all without a score."""
    scores = [n.teacher for n in pool if n.teacher is not None]
    highest, width = (max(scores), max(scores) - min(scores)) if scores else (0.0, 0.0)

    def place(negative: Negative) -> int:
        if negative.teacher is None:
            return strata
        # The lowest score ends the last part.
        return min(int((highest - negative.teacher) / width * strata), strata - 1) if width else 0

    return place


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
