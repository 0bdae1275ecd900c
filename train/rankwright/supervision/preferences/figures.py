"""What the answers of judges show of the judges: agreement, intransitive triples, the effect of length."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy.special import expit, logit, ndtr

from rankwright.supervision.preferences.asking import Asker
from rankwright.supervision.preferences.judging import Across, JudgedList, Judging

# How much longer the longer document is: from this ratio of lengths on.
RATIOS = (1.0, 1.25, 2.0, 4.0)


def figures(found: Judging, across: Across | None, asker: Asker, model: str) -> dict[str, Any]:
    """report.json, without what the stage knows: see its keys in `report.html`. model: teacher.pairs.fit.model.

    Nothing in it depends on threads, on the clock, or on what an earlier start had asked already.
    """
    wins = expit if model == "bradley_terry" else ndtr
    judges = []
    for number, (judge, tally) in enumerate(zip(asker.judges, asker.tallies, strict=True)):
        bias = float(found.pooled.biases[number])
        own: dict[str, Any] = {"name": judge.entry.name, "model": judge.entry.model, "weight": judge.entry.weight}
        own |= {name: getattr(tally, name) for name in ("calls", "answers", "malformed", "refused")}
        own |= {"bias": bias, "bias_sd": float(found.pooled.deviations[number]), "first_wins": float(wins(bias))}
        own |= {"same_in_both_orders": _share(_both_orders(found.lists, number))}
        own |= _of_student(tally.orders) if tally.orders else {}
        own |= {name: getattr(tally, name) for name in ("prompt_tokens", "answer_tokens", "uncounted")}
        money = None if judge.entry.price_per_million is None else tally.money
        judges.append(own | {"money": money, "examples": tally.examples})
    priced = [row["money"] for row in judges if row["money"] is not None]
    overlaps = [one.overlap for one in found.scored]
    return {
        "queries": len(found.lists),
        "documents": sum(len(one.ids) for one in found.lists),
        "queries_left_out": found.left_out,
        "judges": judges,
        "rounds": list(found.rounds),
        "across_queries": None if across is None else _of_across(across),
        "calls": sum(row["calls"] for row in judges),
        "tokens": sum(row["prompt_tokens"] + row["answer_tokens"] for row in judges),
        "money": sum(priced) if priced else None,
        "ended_by": asker.over,
        "prior_weight": found.first.prior_weight,
        "prior_evidence": {f"{weight:g}": value for weight, value in found.first.evidence.items()},
        "prior_note": found.first.note,
        "agreement": _agreement(found.lists, [row["name"] for row in judges]),
        "triples": _triples(found.lists),
        "length": _length(found.lists),
        "top_overlap": sum(overlaps) / len(overlaps),
    }


def _of_across(across: Across) -> dict[str, Any]:
    """calls; answers; the biases of the judges there; sd: how far the scales of the queries lay apart."""
    answers = sum(row[3] is not None for row in across.rows)
    biases, sd = across.biases.tolist(), float(across.offsets.std()) if len(across.offsets) else 0.0
    return {"calls": len(across.rows), "answers": answers, "biases": biases, "sd": sd}


def _of_student(orders: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """What a judge was seen to do that is asked in both orders, and whose bias its answers no longer have."""
    wins_N2 = np.array(orders)
    biases_N = (logit(wins_N2[:, 0]) - logit(wins_N2[:, 1])) / 2
    bias, decided_N2 = float(biases_N.mean()), wins_N2 > 0.5
    found = {
        "both_orders": True,
        "bias": bias,
        "bias_sd": float(biases_N.std() / math.sqrt(len(orders))),
        "first_wins": float(expit(bias)),
    }
    return found | {"same_in_both_orders": _share((decided_N2[:, 0] == decided_N2[:, 1]).tolist())}


def _share(same: Sequence[bool]) -> dict[str, Any]:
    return {"pairs": len(same), "share": sum(same) / len(same) if same else None}


def _sides(one: JudgedList, judge: int | None = None) -> dict[tuple[int, int], float]:
    """(lower number, higher number) -> mean probability that the lower one wins; of one judge, or of all."""
    seen: dict[tuple[int, int], list[float]] = {}
    for first, second, by, value, _ in one.rows:
        if value is not None and judge in (None, by):
            pair = min(first, second), max(first, second)
            seen.setdefault(pair, []).append(value if first < second else 1 - value)
    return {pair: sum(values) / len(values) for pair, values in seen.items()}


def _both_orders(lists: Sequence[JudgedList], judge: int) -> list[bool]:
    """For each pair that a judge decided in both orders: whether the same document won."""
    same = []
    for one in lists:
        decided = {row[:2]: row[3] > 0.5 for row in one.rows if row[2] == judge and row[3] not in (None, 0.5)}
        same += [
            won != decided[second, first]
            for (first, second), won in decided.items()
            if (second, first) in decided and first < second
        ]
    return same


def _agreement(lists: Sequence[JudgedList], names: Sequence[str]) -> list[dict[str, Any]]:
    """Share of the pairs that two judges decided for the same document."""
    found = []
    for a, b in itertools.combinations(range(len(names)), 2):
        same = []
        for one in lists:
            ours, theirs = _sides(one, a), _sides(one, b)
            both = [pair for pair in ours if pair in theirs and 0.5 not in (ours[pair], theirs[pair])]
            same += [(ours[pair] > 0.5) == (theirs[pair] > 0.5) for pair in both]
        found.append({"judges": [names[a], names[b]], **_share(same)})
    return found


def _triples(lists: Sequence[JudgedList]) -> dict[str, Any]:
    """Triples of documents of which all three pairs were decided, and how many go round in a circle.

    A judge that tosses a coin has 0.25 of them in a circle, one with a scale of its own none.
    """
    triples = circles = 0
    for one in lists:
        beaten: dict[int, set[int]] = {}
        for (low, high), value in _sides(one).items():
            if value != 0.5:
                winner, loser = (low, high) if value > 0.5 else (high, low)
                beaten.setdefault(winner, set()).add(loser)
        edges = [(winner, loser) for winner, losers in beaten.items() for loser in losers]
        for winner, loser in edges:
            # A chain winner > loser > last, closed the one way or the other.
            for last in beaten.get(loser, ()):
                triples += last in beaten[winner]
                circles += winner in beaten.get(last, ())
    # Each circle was met from each of its three edges.
    triples, circles = triples + circles // 3, circles // 3
    return {"triples": triples, "circles": circles, "share": circles / triples if triples else None}


def _length(lists: Sequence[JudgedList]) -> list[dict[str, Any]]:
    """How often the longer of two documents wins, by how much longer it is; relevance may go with length."""
    wins: list[list[float]] = [[] for _ in RATIOS]
    for one in lists:
        for ratio, value in _by_length(one):
            wins[sum(ratio >= least for least in RATIOS) - 1].append(value)
    return [
        {"from": least, "answers": len(values), "longer_wins": sum(values) / len(values) if values else None}
        for least, values in zip(RATIOS, wins, strict=True)
    ]


def _by_length(one: JudgedList) -> Iterator[tuple[float, float]]:
    """(ratio of the lengths, probability that the longer one wins) of each answer about texts of different lengths."""
    lengths = [len(one.text(document)) for document in one.ids]
    for first, second, _, value, _ in one.rows:
        if value is not None and lengths[first] != lengths[second]:
            longer = lengths[first] > lengths[second]
            least, most = sorted((lengths[first], lengths[second]))
            yield most / max(least, 1), value if longer else 1 - value
