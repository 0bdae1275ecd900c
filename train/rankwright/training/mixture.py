"""Sets mixed for training: which query each place of the training draws, as a pure function of the seed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from rankwright.common.hashing import stable_hash

# (query id, how often the query was drawn before): at a weight of 1 the second is the epoch.
Draw = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Part:
    """One set of a mixture. query_ids: ordered by hash; weight: draws per query and epoch, exact.

    Up to the end of epoch E the query at place i of n is drawn floor(E * weight + (i + 1/2) / n) times. These sum up
    to n * E * weight, rounded, at the end of every epoch: a weight of 1.3 draws 30 % of the queries twice, in each
    epoch others, and no query waits longer than its weight implies.
    """

    name: str
    query_ids: tuple[str, ...]
    weight: Fraction

    def drawn(self, epochs: int) -> int:
        """Draws of all its queries in the first `epochs` epochs."""
        above, below = self.weight.as_integer_ratio()
        return (2 * len(self.query_ids) * epochs * above + below) // (2 * below)

    def draws(self, epoch: int) -> Iterator[tuple[str, range]]:
        """Each query with its draws of one epoch, numbered over the whole training."""
        above, below = self.weight.as_integer_ratio()
        if below == 1:
            yield from ((query_id, range(epoch * above, (epoch + 1) * above)) for query_id in self.query_ids)
            return
        one = 2 * len(self.query_ids) * below
        before = epoch * above * one // below
        for place, query_id in enumerate(self.query_ids):
            start = before + (2 * place + 1) * below
            yield query_id, range(start // one, (start + above * one // below) // one)


class Mixture:
    """The order in which training draws queries. A step may take the end of one epoch and the start of the next."""

    def __init__(self, sets: Iterable[tuple[str, Sequence[str], float]], *, seed: int) -> None:
        """sets: (name, query ids, weight) of each; a query id belongs to one set only."""
        self._seed = seed
        self.parts = [
            # The weight as it is written in the recipe: a float's 0.1 is not a tenth.
            Part(name, _placed(ids, Fraction(str(weight)), seed), Fraction(str(weight)))
            for name, ids, weight in sets
        ]
        self._orders: dict[int, list[Draw]] = {}

    @property
    def draws_an_epoch(self) -> float:
        """Sum of the weights of all queries; an epoch draws this many, rounded for each set."""
        return float(sum(len(part.query_ids) * part.weight for part in self.parts))

    def drawn(self, epochs: int) -> int:
        """Draws in the first `epochs` epochs."""
        return sum(part.drawn(epochs) for part in self.parts)

    def order(self, epoch: int) -> list[Draw]:
        """The draws of one epoch in their order, whatever the order of the input."""
        if epoch not in self._orders:
            # A step may straddle two epochs.
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1} | {epoch: self._order(epoch)}
        return self._orders[epoch]

    def _order(self, epoch: int) -> list[Draw]:
        keyed = []
        for part in self.parts:
            for query_id, draws in part.draws(epoch):
                for draw in draws:
                    again = (draw,) if draw > draws.start else ()
                    keyed.append((stable_hash("order", self._seed, epoch, query_id, *again), query_id, draw))
        return [(query_id, draw) for _, query_id, draw in sorted(keyed)]

    def step(self, step: int, groups_per_step: int) -> list[Draw]:
        """The draws of step `step` (from 1)."""
        first = (step - 1) * groups_per_step
        return [self.at(place) for place in range(first, first + groups_per_step)]

    def at(self, place: int) -> Draw:
        """The draw at a place of the whole training, from 0."""
        epoch = self.epoch_at(place)
        return self.order(epoch)[place - self.drawn(epoch)]

    def epoch_at(self, place: int) -> int:
        """The epoch that a place belongs to; an epoch may be empty where few queries have a weight below 1."""
        epoch = int(place / self.draws_an_epoch)
        while self.drawn(epoch) > place:
            epoch -= 1
        while self.drawn(epoch + 1) <= place:
            epoch += 1
        return epoch

    def counts(self, draws: int) -> dict[str, int]:
        """Set -> how many of the first `draws` draws are its own."""
        epoch = self.epoch_at(draws)
        found = {part.name: part.drawn(epoch) for part in self.parts}
        rest = draws - self.drawn(epoch)
        if rest:
            owner = {q: part.name for part in self.parts for q in part.query_ids}
            for query_id, _ in self.order(epoch)[:rest]:
                found[owner[query_id]] += 1
        return found


def _placed(query_ids: Sequence[str], weight: Fraction, seed: int) -> tuple[str, ...]:
    """The queries ordered by hash; with a whole weight the order is irrelevant, all are drawn equally often."""
    if weight.denominator == 1:
        return tuple(query_ids)
    return tuple(sorted(query_ids, key=lambda q: (stable_hash("place", seed, q), q)))
