"""The first stage's scores as fixed offsets of a model's scores: training adds to what the first stage knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rankwright.rerankers.combination import standardised
from rankwright.retrieval.candidates import Candidates


@dataclass(frozen=True, slots=True)
class FirstStageOffset:
    """gamma * z(first stage) of documents, with z-scores within the list of their query.

    gamma: above 0, in units of the model's scores. lists: query id -> the first stage's candidates, as many as are
    reranked; normaliser: see Combination. A document that the list lacks counts as its lowest: judged, mined from
    elsewhere or drawn at random. Source: an offset is a term of a generalised linear model whose coefficient is fixed,
    Nelder & Wedderburn 1972.
    """

    gamma: float
    lists: Candidates
    normaliser: str

    def of(self, query_id: str, document_ids: Sequence[str]) -> tuple[float, ...]:
        """The offsets of these documents; zeros where the list is empty. Raises UserError for scores not finite."""
        found = self.lists.get(query_id, ())
        z_N = self.gamma * standardised([c.score for c in found], self.normaliser)
        known = dict(zip((c.document_id for c in found), z_N.tolist(), strict=True))
        lowest = min(known.values(), default=0.0)
        return tuple(known.get(document_id, lowest) for document_id in document_ids)

    def added(self, run: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
        """Query id -> document id -> score + offset."""
        return {
            q: {d: s + one for (d, s), one in zip(scores.items(), self.of(q, list(scores)), strict=True)}
            for q, scores in run.items()
        }
