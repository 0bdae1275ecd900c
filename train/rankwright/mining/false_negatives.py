"""How many negatives may be relevant after all: estimated from a teacher's scores and from judgements."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rankwright.common import console
from rankwright.common.errors import UserError
from rankwright.common.hashing import stable_hash
from rankwright.common.plurals import counted
from rankwright.common.run_folder import RunFolder
from rankwright.common.stats import Share, clustered_share
from rankwright.data.collection import Collection
from rankwright.mining.filters import Filter, MiningView, bind_filters, known_scores, recipe_view, split_filters
from rankwright.mining.pools import JUDGED, UNLABELLED, Negative, Removed, Sifted, apply, read_negatives, sift
from rankwright.recipe.schema import Recipe
from rankwright.rerankers.pair_scores import read_teacher_scores
from rankwright.retrieval.candidates import Candidate, read_candidates

# Relevant documents of a query that are left out in turn: a fourth adds little to the estimate.
MOST_HELD_OUT = 3
Lists = Mapping[str, Sequence[Candidate]]
Pools = Mapping[str, Sequence[Negative]]
Scores = Mapping[str, Mapping[str, float]]
Counts = tuple[list[int], list[int]]
# Name of an estimate -> what it is a share of, in the order in which they are shown.
MEANINGS = {
    "above_positive": "negatives that the teacher scores above the query's best relevant document",
    "held_out": "relevant documents, each left out in turn, that would be negatives if they were unjudged "
    "(what the filters miss, not a share of the negatives)",
    "judged": "retrieved and judged documents that are relevant",
}
NONE_ABOVE = (
    "negatives that the teacher scores above the relevant document: no estimate, its filter left none by these scores"
)


def above_teacher(collections: Sequence[Collection], pools: Pools, scores: Scores) -> Counts:
    """Per query: (negatives that the teacher scores above the query's best relevant document, negatives).

    Only unjudged negatives with label 0 count, and only queries with a relevant document.
    """
    parts, wholes = [], []
    for collection in collections:
        for query_id in collection.queries:
            positives = collection.positives(query_id)
            kept = [n.document_id for n in pools.get(query_id, ()) if n.source != JUDGED and n.label == 0]
            if positives and kept:
                known = scores[query_id]
                best = max(known[d] for d in positives)
                parts.append(sum(known[d] > best for d in kept))
                wholes.append(len(kept))
    return parts, wholes


def relevant_among_judged(collections: Sequence[Collection], candidates: Lists) -> Counts:
    """Per query: (relevant documents, judged documents) among those that were retrieved.

    Only sets with documents judged not relevant count: in the others every judged document is relevant.
    """
    parts, wholes = [], []
    for collection in collections:
        if not any(label <= 0 for judged in collection.qrels.values() for label in judged.values()):
            continue
        for query_id in collection.queries:
            judged = collection.qrels.get(query_id, {})
            found = [judged[c.document_id] for c in candidates.get(query_id, ()) if c.document_id in judged]
            if found:
                parts.append(sum(label > 0 for label in found))
                wholes.append(len(found))
    return parts, wholes


def kept_when_held_out(
    collections: Sequence[Collection], candidates: Lists, filters: Mapping[str, Filter], view: MiningView
) -> Counts:
    """Per query: (relevant documents that the filters would keep as negatives, relevant documents tried).

    Only queries with two or more relevant documents count. Each relevant document that was retrieved, at most
    MOST_HELD_OUT by seed, is taken for unjudged in turn; exact duplicates and `filters` then decide about it. filters:
    those that decide each query alone. view: retriever, seed, code and teacher; its collection is not used.
    """
    parts: dict[str, int] = {}
    wholes: dict[str, int] = {}
    for collection in collections:
        held_out = _held_out(collection, candidates, view.seed)
        for turn in range(MOST_HELD_OUT):
            left_out = {q: chosen[turn] for q, chosen in held_out.items() if len(chosen) > turn}
            if left_out:
                for query_id, kept in _would_keep(collection, left_out, candidates, filters, view).items():
                    parts[query_id] = parts.get(query_id, 0) + kept
                    wholes[query_id] = wholes.get(query_id, 0) + 1
    return [parts[q] for q in wholes], list(wholes.values())


def _held_out(collection: Collection, candidates: Lists, seed: int) -> dict[str, list[Candidate]]:
    found = {}
    for query_id in collection.queries:
        positives = collection.positives(query_id)
        if len(positives) > 1:
            retrieved = [c for c in candidates.get(query_id, ()) if c.document_id in positives]
            retrieved.sort(key=lambda c: (stable_hash("held out", seed, query_id, c.document_id), c.document_id))
            found[query_id] = retrieved[:MOST_HELD_OUT]
    return found


def _would_keep(
    collection: Collection,
    left_out: Mapping[str, Candidate],
    candidates: Lists,
    filters: Mapping[str, Filter],
    view: MiningView,
) -> dict[str, bool]:
    qrels = {
        q: {d: label for d, label in collection.qrels[q].items() if d != c.document_id} for q, c in left_out.items()
    }
    known = dataclasses.replace(collection.subset(left_out), qrels=qrels)
    removed = sift(known, {q: [c] for q, c in left_out.items()}).removed
    for query_id, candidate in left_out.items():
        # The filters see all that was retrieved, and decide about this one only.
        others = (c.document_id for c in candidates[query_id] if c.document_id != candidate.document_id)
        removed[query_id] |= dict.fromkeys(others, Removed("", "not in question"))
    sifted = Sifted({q: list(candidates[q]) for q in left_out}, removed)
    apply(sifted, filters, dataclasses.replace(view, collection=known))
    return {
        q: bool(sifted.left(q)) and sifted.labels.get(q, {}).get(c.document_id, UNLABELLED).value == 0
        for q, c in left_out.items()
    }


def estimate(recipe: Recipe, run: RunFolder, train: Sequence[Collection]) -> dict[str, Any]:
    """Print the estimates that the files of the mine stage allow; returns name -> Share as a dictionary.

    train: the training sets, with qualified ids.
    """
    candidates = read_candidates(run.candidates)
    pools = read_negatives(run.negatives)
    scores = {} if recipe.mine.teacher is None else read_teacher_scores(run.teacher_scores)
    counts: dict[str, Counts] = {"judged": relevant_among_judged(train, candidates)}
    sifted = leaves_none_above(recipe)
    if scores and not sifted:
        counts["above_positive"] = above_teacher(train, pools, scores)
    filters = bind_filters(recipe.mine.filters)
    alone, _ = split_filters(filters)
    teacher = known_scores(scores) if scores else None
    view = recipe_view(recipe, Collection("", {}, {}, {}), recipe.mine.retriever, teacher)
    counts["held_out"] = kept_when_held_out(train, candidates, {name: filters[name] for name in alone}, view)
    found = {}
    for name, words in MEANINGS.items():
        if counts.get(name, ([], []))[1]:
            share = clustered_share(*counts[name], seed=recipe.seed)
            found[name] = dataclasses.asdict(share)
            console.say(f"{words}: {share_text(share)}")
    if sifted:
        console.say(NONE_ABOVE)
    elif not found:
        console.say(
            "false negatives: no estimate, which needs mine.teacher, documents judged not relevant, or queries with "
            "several relevant documents"
        )
    return found


def leaves_none_above(recipe: Recipe) -> bool:
    """Whether the filter `teacher` removes all that above_teacher counts: a share of 0 would then show nothing.

    Documents that fill a short pool do not pass through it.
    """
    options = recipe.mine.filters.get("teacher")
    return options is not None and options.get("margin", 0.0) >= 0 and recipe.mine.fill == "none"


def share_text(share: Share) -> str:
    """`3.1 % [2.0, 4.4] (31 of 1,000, of 140 queries)`."""
    value, low, high = (f"{100 * number:.1f}" for number in (share.share, share.low, share.high))
    return f"{value} % [{low}, {high}] ({share.part:,} of {share.whole:,}, of {counted(share.groups, 'query')})"


def read_estimate(facts: Mapping[str, Any]) -> list[tuple[str, Share]]:
    """(what it is a share of, share) from the facts of `estimate`. Raises UserError for facts of another form."""
    try:
        return [(words, Share(**facts[name])) for name, words in MEANINGS.items() if name in facts]
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"stages/mine.json: false_negatives: not an estimate ({error}): mine again") from None
