"""A reranker's scores combined with those of the search that found the documents, so that neither is thrown away."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rankwright.common.errors import UserError, no_such
from rankwright.model.prompt import COMBINE_NORMALISERS, RECIPROCAL_RANK, ZSCORE, PromptContract
from rankwright.retrieval.candidates import Candidate

# Scores that differ by less than this share of their size are equal: what is left is rounding.
SAME = 1e-12
# A score this little below the middle of two levels is in the middle, for the same reason.
MIDDLE = 1e-9


@dataclass(frozen=True, slots=True)
class Combination:
    """How a list is ordered: weight * z(reranker) + (1 - weight) * z(first stage), over its first `depth` documents.

    weight: of the reranker, 0 to 1. normaliser: `zscore`, or `reciprocal_rank` for a first stage whose scores are
    nothing but ranks: these are turned into 1/rank first. depth: documents below it keep the first stage's order, after
    the others; None: all are reranked.
    """

    weight: float = 1.0
    normaliser: str = ZSCORE
    depth: int | None = None

    @classmethod
    def of(cls, contract: PromptContract) -> Combination:
        """What a contract states."""
        return cls(contract.combine_weight, contract.combine_normaliser, contract.combine_depth)


def zscores(scores: Sequence[float] | np.ndarray) -> np.ndarray:
    """(score - mean) / standard deviation (of the population) of one list; zeros where all scores are equal.

    Raises UserError for a score that is not finite.
    """
    score_N = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(score_N).all():
        raise UserError("combine: a score is not a finite number: the model or the search that gave it is broken")
    size = float(np.abs(score_N).max(initial=0.0))
    if not size or float(np.ptp(score_N / size)) <= SAME:
        return np.zeros_like(score_N)
    # By its size first, or the squares of very large or small scores would leave the range.
    part_N = score_N / size
    standard_N: np.ndarray = (part_N - part_N.mean()) / part_N.std()
    return standard_N


def reciprocal_ranks(scores: Sequence[float] | np.ndarray) -> np.ndarray:
    """1/rank of each score in its list, the highest has rank 1; equal scores share the mean of their ranks."""
    # scipy.stats takes a second to import, which scoring without ranks does not need.
    from scipy.stats import rankdata

    ranks_N: np.ndarray = 1.0 / rankdata(-np.asarray(scores, dtype=np.float64))
    return ranks_N


def first_stage_order(first_stage: Sequence[float | None]) -> list[int]:
    """Places in the input by descending score, ties in input order; documents without a score come last."""
    return sorted(range(len(first_stage)), key=lambda i: (-_lowest(first_stage[i]), i))


def _lowest(score: float | None) -> float:
    return -math.inf if score is None else score


def standardised(first_stage: Sequence[float | None], normaliser: str) -> np.ndarray:
    """z-scores of one list of a first stage; a document without a score counts as the list's lowest."""
    known = [score for score in first_stage if score is not None]
    if not known:
        return np.zeros(len(first_stage))
    values = dict(zip(known, reciprocal_ranks(known).tolist() if normaliser == RECIPROCAL_RANK else known, strict=True))
    lowest = min(values.values())
    return zscores([lowest if score is None else values[score] for score in first_stage])


def combined_scores(
    reranker: Sequence[float], first_stage: Sequence[float | None], combination: Combination
) -> list[float]:
    """The scores that order a list, in the order of the input; see Combination.

    reranker, first_stage: scores of the same documents; None: the first stage did not find the document. An affine
    change of all scores of either, with a factor above 0, changes nothing but rounding. Documents below the depth get
    scores that fall by 1 from the lowest of the others. Raises UserError for scores that are not finite, and for an
    unknown normaliser.
    """
    if combination.normaliser not in COMBINE_NORMALISERS:
        raise UserError(f"combine: {no_such('normaliser', combination.normaliser, COMBINE_NORMALISERS)}")
    order = first_stage_order(first_stage)
    head, tail = order[: combination.depth], order[combination.depth :] if combination.depth is not None else []
    # Refuses what is not finite, also below the depth.
    for scores in (reranker, [score for score in first_stage if score is not None]):
        zscores(scores)
    reranker_N = zscores([reranker[place] for place in head])
    first_N = standardised([first_stage[place] for place in head], combination.normaliser)
    score_N = combination.weight * reranker_N + (1 - combination.weight) * first_N
    found = dict(zip(head, score_N.tolist(), strict=True))
    lowest = min(found.values(), default=0.0)
    found |= {place: lowest - number for number, place in enumerate(tail, start=1)}
    return [found[place] for place in range(len(order))]


def levels_of(first_stage: Sequence[float | None], levels: int) -> list[int | None]:
    """Each score of one list as a whole number from 0, its lowest, to `levels`, its highest: min-max, then rounded.

    A document without a score counts as the lowest. None for all of a list whose scores are equal, or which has none:
    it tells nothing. An affine change of all scores with a factor above 0 changes nothing. Ranks as scores (100, 99,
    98) give levels that fall evenly, so that no first stage needs another rule. Raises UserError as zscores does.
    """
    known = [score for score in first_stage if score is not None]
    spread_N = zscores(known)
    if not spread_N.any():
        return [None] * len(first_stage)
    share_N = (spread_N - spread_N.min()) / np.ptp(spread_N)
    found = iter(np.floor(levels * share_N + 0.5 + MIDDLE).astype(int).tolist())
    return [0 if score is None else next(found) for score in first_stage]


def listed(
    contract: PromptContract, documents: Sequence[str], document_ids: Sequence[str], found: Sequence[Candidate]
) -> Sequence[str]:
    """What is scored in place of raw documents: under prompt.first_stage_score each with its level in `found`.

    found: the first stage's whole list of the query. A document that it lacks has level 0, as its lowest: judged, mined
    from elsewhere or drawn at random. No line where the list is empty, and where its scores are all equal.
    """
    if contract.first_stage_score is None:
        return documents
    levels = levels_of([c.score for c in found], contract.first_stage_score.levels)
    known = dict(zip((c.document_id for c in found), levels, strict=True))
    missing = 0 if any(level is not None for level in levels) else None
    own = [known.get(d, missing) for d in document_ids] if known else [None] * len(documents)
    return [contract.with_level(text, level) for text, level in zip(documents, own, strict=True)]


def only_ranks(lists: Iterable[Sequence[float]]) -> bool:
    """Whether the scores of a first stage, best first, are those of ranks and tell nothing else.

    They are where every list falls by one and the same step (100, 99, 98, or -1, -2, -3), or where all lists have the
    same score at the same rank (1, 1/2, 1/3). Lists of equal scores tell nothing at all, and are left out; one list
    alone is too little to know.
    """
    told = [np.asarray(scores, dtype=np.float64) for scores in lists if len(scores) > 1 and len(set(scores)) > 1]
    if len(told) < 2:
        return False
    steps = np.concatenate([np.diff(scores) for scores in told])
    if np.allclose(steps, steps[0], rtol=1e-6, atol=0):
        return True
    longest = max(told, key=len)
    return all(np.allclose(scores, longest[: len(scores)], rtol=1e-9, atol=0) for scores in told)


def normaliser_of(first_stage: Iterable[Sequence[float]]) -> str:
    """The normaliser that a first stage needs, by the scores of its lists, best first."""
    return RECIPROCAL_RANK if only_ranks(first_stage) else ZSCORE


def combined_run(
    reranked: Mapping[str, Mapping[str, float]],
    first_stage: Mapping[str, Mapping[str, float]],
    combination: Combination,
) -> dict[str, dict[str, float]]:
    """Query id -> document id -> combined score, for the documents of `reranked`, in its order."""
    run = {}
    for query_id, scores in reranked.items():
        found = first_stage.get(query_id, {})
        values = combined_scores(list(scores.values()), [found.get(d) for d in scores], combination)
        run[query_id] = dict(zip(scores, values, strict=True))
    return run
