"""Refinement: more answers about the queries in which a trained student and the scores that taught it disagree most."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rankwright.common.errors import UserError
from rankwright.recipe.teacher import Pairs, Refine
from rankwright.supervision.preferences.asking import Asker, Call
from rankwright.supervision.preferences.judging import (
    TOP,
    JudgedList,
    Judging,
    Row,
    Scored,
    call_of,
    concluded,
    further_rounds,
    pooled_first,
)

# What disagreement is, for reports.
MEASURE = f"1 - average overlap of the {TOP} best by the student and by the scores; 1 where people's documents are low"


@dataclass(frozen=True, slots=True)
class Doubt:
    """How far a student and the scores disagree about a query.

    overlap: see average_overlap. place: the place, from 1, of the best document that people found relevant, by the
    scores, where it is below Refine.positives_below; else None.
    """

    query_id: str
    overlap: float
    place: int | None

    @property
    def disagreement(self) -> float:
        """0 where the orders are the same, 1 where they share nothing or the scores contradict people."""
        return 1 - self.overlap if self.place is None else 1.0


def average_overlap(one: Sequence[int], other: Sequence[int], depth: int = TOP) -> float:
    """How similar the tops of two orders of the same documents are, from 0 to 1.

    The mean over k = 1 ... depth, or the length of the lists, of the share of the k best that both have. So the first
    places count most, and lists that are shorter than `depth` are compared too. Source: Fagin, Kumar and Sivakumar
    2003; called average overlap by Webber, Moffat and Zobel 2010.
    """
    depth = min(depth, len(one))
    ours, theirs = set[int](), set[int]()
    shares = []
    for k in range(depth):
        ours.add(one[k])
        theirs.add(other[k])
        shares.append(len(ours & theirs) / (k + 1))
    return sum(shares) / depth


def replay(
    lists: Sequence[JudgedList],
    shown: Mapping[str, Sequence[Row]],
    settings: Pairs,
    asker: Asker,
    advance: Callable[[int], object],
    *,
    left_out: int,
    seed: int,
) -> Judging:
    """An earlier judging, from its calls: each is asked for again, and is answered by what is kept.

    shown: query id -> rows of JudgedList, as the earlier run recorded them. left_out: see Judging. Raises UserError for
    a call that was answered, and whose answer is not kept: it was about another text, or of another model. Also where
    the budget is less than what these answers cost.
    """

    def calls() -> Iterator[Call]:
        for one in lists:
            for first, second, judge, value, _ in shown[one.query_id]:
                call = call_of(asker, judge, one, (first, second))
                if value is not None and asker.answers.find(call.key) is None:
                    raise UserError(
                        f"teacher.pairs.refine.student: query {one.query_id} and two of its documents were shown to "
                        f"{asker.judges[judge].entry.name} in other words there: give the same data, prompt and judges"
                    )
                yield call

    places = ((one, row) for one in lists for row in shown[one.query_id])
    for (_, value), (one, (first, second, judge, _, number)) in zip(asker.ask(calls()), places, strict=False):
        one.rows.append((first, second, judge, value, number))
        one.asked.add((second, first) if judge % 2 else (first, second))
        advance(1)
    _refuse_ended(asker)
    counts = Counter(row[4] for one in lists for row in one.rows)
    rounds = [counts[number] for number in range(max(counts) + 1)]
    return concluded(lists, left_out, pooled_first(lists, settings), settings, rounds, seed=seed)


def _refuse_ended(asker: Asker) -> None:
    if asker.over is not None:
        raise UserError(f"{asker.over}, and nothing is asked yet: answers of the student's run count too: raise it")


def doubts(
    found: Judging, student: Mapping[str, Sequence[float]], relevant: Mapping[str, Collection[str]], refine: Refine
) -> list[Doubt]:
    """The queries in which the student and the scores disagree, most first, as many as refine.share of all.

    student: query id -> its scores of the documents, in the order of the list. relevant: query id -> the documents
    that people found relevant.
    """
    seen = []
    for one, scored in zip(found.lists, found.scored, strict=True):
        ours = _order(scored.scores)
        wanted = relevant.get(one.query_id, ())
        places = [place for place, number in enumerate(ours, start=1) if one.ids[number] in wanted]
        low = refine.positives_below is not None and bool(places) and places[0] > refine.positives_below
        overlap = average_overlap(_order(np.array(student[one.query_id])), ours)
        seen.append(Doubt(one.query_id, overlap, places[0] if low else None))
    seen = sorted(
        (doubt for doubt in seen if doubt.disagreement > 0),
        key=lambda doubt: (-doubt.disagreement, -(doubt.place or 0), doubt.query_id),
    )
    return seen[: most_queries(refine, len(found.lists))]


def most_queries(refine: Refine, count: int) -> int:
    """How many of `count` queries are refined at most."""
    return math.ceil(refine.share * count)


def most_calls(settings: Pairs, count: int) -> int:
    """The calls that refine `count` judged queries, at most."""
    refine, judges = settings.refine, len(settings.judges)
    assert refine is not None
    return most_queries(refine, count) * (refine.calls_per_query // judges) * judges


def refined(
    before: Judging,
    chosen: Sequence[Doubt],
    settings: Pairs,
    asker: Asker,
    advance: Callable[[int], object],
    *,
    seed: int,
) -> Judging:
    """Ask further rounds about the chosen queries, near the top of their orders, and fit all queries again.

    The lists are those of `before`, and hold the new answers too. The weight of the prior stays: it was chosen by the
    first round. Raises UserError where the budget ends before the first call.
    """
    assert settings.refine is not None
    pairs = settings.refine.calls_per_query // len(settings.judges)
    more = {doubt.query_id: pairs for doubt in chosen}
    most = {one.query_id: len(one.asked) + more.get(one.query_id, 0) for one in before.lists}
    number = len(before.rounds)
    rounds = further_rounds(before.lists, before.first, most, settings, asker, advance, seed=seed, number=number)
    if not sum(rounds):
        _refuse_ended(asker)
    return concluded(before.lists, before.left_out, before.first, settings, [*before.rounds, *rounds], seed=seed)


def refinement_figures(
    before: Judging, after: Judging, chosen: Sequence[Doubt], student: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """What the further answers changed: the part `refinement` of report.json.

    overlap: of the student's order and that of the scores; sd: mean standard deviation of the ten best; top_overlap:
    see Scored. Each [before, after], as a mean over the chosen queries and for each of them.
    """
    place = {one.query_id: number for number, one in enumerate(before.lists)}
    rows = []
    for doubt in chosen:
        number = place[doubt.query_id]
        one, both = before.lists[number], (before.scored[number], after.scored[number])
        theirs = _order(np.array(student[doubt.query_id]))
        row: dict[str, Any] = {"query_id": doubt.query_id, "disagreement": doubt.disagreement}
        row |= {"relevant_at": doubt.place, "calls": sum(call[4] >= len(before.rounds) for call in one.rows)}
        row |= {"overlap": [average_overlap(theirs, _order(scored.scores)) for scored in both]}
        row |= {"sd": [_top_deviation(scored) for scored in both], "top_overlap": [scored.overlap for scored in both]}
        rows.append(row)
    means = {
        name: [sum(row[name][when] for row in rows) / len(rows) for when in range(2)] if rows else None
        for name in ("overlap", "sd", "top_overlap")
    }
    calls = sum(row["calls"] for row in rows)
    low = sum(doubt.place is not None for doubt in chosen)
    return {"measure": MEASURE, "queries": len(rows), "relevant_low": low, "calls": calls, **means, "chosen": rows}


def _order(scores_N: np.ndarray) -> list[int]:
    order_N: list[int] = np.argsort(-scores_N, kind="stable").tolist()
    return order_N


def _top_deviation(scored: Scored) -> float:
    return float(scored.deviations[_order(scored.scores)[:TOP]].mean())
