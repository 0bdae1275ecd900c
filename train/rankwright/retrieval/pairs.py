"""The lists of a pairwise student: of each pair both orders, with equal scores, so that their order is chance."""

from __future__ import annotations

from collections.abc import Mapping

from rankwright.data.pair_texts import ORDERS
from rankwright.recipe.schema import Recipe
from rankwright.retrieval.candidates import Candidate, best_candidates
from rankwright.retrieval.retriever import RETRIEVERS, Retriever, Searcher


def pairs(corpus: Mapping[str, str], *, depth: int = 100) -> Searcher:
    """Both orders of the pair that a query stands for: see data/judged_pairs.py."""

    def search(queries: Mapping[str, str]) -> dict[str, list[Candidate]]:
        orders = {query_id: [query_id + order for order in ORDERS] for query_id in queries}
        return {q: best_candidates(q, {d: 0.0 for d in found if d in corpus}, depth) for q, found in orders.items()}

    return search


def _needs(recipe: Recipe) -> str | None:
    return None if recipe.is_pairwise else "the pairs of a run as training set: data.train: [{pairs: RUN}]"


PAIRS = RETRIEVERS.add(Retriever("pairs", "Chance", pairs, needs=_needs, nested=True, place=5), __name__)
