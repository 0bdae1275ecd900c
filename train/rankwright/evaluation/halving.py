"""Successive halving: which configurations of a sweep are trained on after each rung. Pure functions of dev values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rankwright.recipe.sweep import Asha

# Query id -> value.
Values = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is. values: of each dev query, by evaluation. ended: trained to its end; failed: with an error."""

    configuration: str
    values: Sequence[Values]
    ended: bool = False
    failed: bool = False

    def best(self, evaluations: int) -> Values:
        """The values of the best of the first so many evaluations, as that checkpoint would be taken at the end."""
        return max(self.values[:evaluations], key=_mean)


@dataclass(frozen=True, slots=True)
class Standing:
    """What is to be done next. evaluations: the rung, None after the last one; pending: runs to train up to it.

    pruned: runs that are not trained on.
    """

    evaluations: int | None
    pending: tuple[str, ...]
    pruned: frozenset[str]


def standing(rule: Asha, runs: Mapping[str, Progress], always: str) -> Standing:
    """Where the runs (name -> progress) stand. always: a configuration that goes on at every rung.

    A rung is decided when all runs that are left have reached it, so that the order of the runs, and how many workers
    there are, change nothing. A configuration stands there with the mean over its seeds that reached it. A run that
    ended before a rung stands there as it ended; one that failed before it is left out.
    """
    alive, pruned = dict(runs), set[str]()
    rung = rule.first
    while True:
        pending = tuple(n for n, run in alive.items() if not (run.ended or run.failed) and len(run.values) < rung)
        if pending:
            return Standing(rung, pending, frozenset(pruned))
        alive = {n: run for n, run in alive.items() if run.values and (run.ended or len(run.values) >= rung)}
        if all(run.ended for run in alive.values()):
            return Standing(None, (), frozenset(pruned))
        reached: dict[str, list[Values]] = {}
        for run in alive.values():
            reached.setdefault(run.configuration, []).append(run.best(rung))
        kept = {*promoted(rule, reached), always}
        pruned |= {n for n, run in alive.items() if run.configuration not in kept and not run.ended}
        # What failed after this rung is not tried again by this command.
        alive = {n: run for n, run in alive.items() if run.configuration in kept}
        rung *= rule.eta


def promoted(rule: Asha, reached: Mapping[str, Sequence[Values]]) -> list[str]:
    """The configurations that a rung promotes: the best of every eta, and all that are too near to tell.

    reached: configuration -> values of its seeds. Near: at most keep_within_se standard errors below the last of the
    best, of the difference paired over the dev queries that both have.
    """
    means = {name: _over_seeds(seeds) for name, seeds in reached.items()}
    ranked = sorted(means, key=lambda name: -_mean(means[name]))
    cut = means[ranked[max(1, len(ranked) // rule.eta) - 1]]
    return [name for name in reached if _is_near(cut, means[name], rule.keep_within_se)]


def _is_near(cut: Values, other: Values, within: float) -> bool:
    if _mean(other) >= _mean(cut):
        return True
    shared = [query for query in cut if query in other]
    if len(shared) < 2:
        return False
    differences_Q = np.array([cut[query] - other[query] for query in shared])
    error = float(differences_Q.std(ddof=1)) / math.sqrt(len(shared))
    return float(differences_Q.mean()) <= within * error


def _over_seeds(seeds: Sequence[Values]) -> dict[str, float]:
    return {
        query: sum(one[query] for one in seeds) / len(seeds) for query in seeds[0] if all(query in o for o in seeds)
    }


def _mean(values: Values) -> float:
    return sum(values.values()) / len(values) if values else -math.inf
