"""Wins and losses: the queries whose value rose or fell most, with their top documents before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rankwright.common.hashing import stable_hash
from rankwright.common.run_folder import RunFolder
from rankwright.data.collection import Collection
from rankwright.evaluation.results import SetResults
from rankwright.retrieval.candidates import ranked
from rankwright.retrieval.run_file import read_trec_run, trec_column

# Queries shown on each side of a test set.
SHOWN = 4
TOP = 3
DOCUMENT_CHARACTERS = 280
QUERY_CHARACTERS = 400


@dataclass(frozen=True, slots=True)
class ShownDocument:
    """A document at its rank. label: its judgement, None if unjudged; rest: how many characters of the text are cut.

    level: the lowest label that is relevant.
    """

    rank: int
    document_id: str
    score: float
    label: float | None
    text: str
    rest: int
    level: int = 1

    @property
    def relevant(self) -> bool:
        return self.label is not None and self.label > self.level - 1


@dataclass(frozen=True, slots=True)
class Case:
    """A query with its value and list before and after. best_*: rank of its best relevant document, or None."""

    query_id: str
    query: str
    rest: int
    before: float
    after: float
    best_before: int | None
    best_after: int | None
    candidates: int
    top_before: tuple[ShownDocument, ...]
    top_after: tuple[ShownDocument, ...]


@dataclass(frozen=True, slots=True)
class Cases:
    """The changes between two systems on one test set. better, worse, equal: counts over all its queries."""

    test_set: str
    before: str
    after: str
    gained: tuple[Case, ...]
    lost: tuple[Case, ...]
    better: int
    worse: int
    equal: int


def read_cases(folder: Path, row: SetResults, collection: Collection, level: int = 1) -> list[Cases]:
    """The cases of base -> tuned and of first stage -> tuned on one test set, as far as they are evaluated.

    level: the lowest label that is relevant.
    """
    runs: dict[str, Mapping[str, Mapping[str, float]]] = {}
    found = []
    for before in ("base", row.first_stage):
        if before not in row.values or "tuned" not in row.values:
            continue
        for system in (before, "tuned"):
            if system not in runs:
                path = RunFolder(folder).eval_folder(row.name, system) / "run.trec"
                runs[system] = read_trec_run(path) if path.is_file() else {}
        found.append(_cases(row, collection, before, runs, level))
    return found


def _cases(
    row: SetResults,
    collection: Collection,
    before: str,
    runs: Mapping[str, Mapping[str, Mapping[str, float]]],
    level: int,
) -> Cases:
    old, new = row.values[before], row.values["tuned"]
    change = {q: new[q] - old[q] for q in new if q in old}
    # Many queries change by the same amount. A hash chooses among them, so that the form of an id does not matter.
    order = sorted(change, key=lambda q: (change[q], stable_hash("case", q)))
    lost = [q for q in order[:SHOWN] if change[q] < 0 and q in collection.queries]
    gained = [q for q in reversed(order[-SHOWN:]) if change[q] > 0 and q in collection.queries]

    # A run file writes white space in ids as %20.
    id_of = {trec_column(d): d for d in collection.corpus if trec_column(d) != d}

    def case(query_id: str) -> Case:
        query, rest = cut(collection.queries[query_id], QUERY_CHARACTERS)
        lists = [
            _documents(collection, query_id, runs[system].get(trec_column(query_id), {}), id_of, level)
            for system in (before, "tuned")
        ]
        best = [next((d.rank for d in documents if d.relevant), None) for documents in lists]
        tops = [tuple(d for d in ds if d.rank <= TOP or d.rank == b) for ds, b in zip(lists, best, strict=True)]
        most = max(map(len, lists))
        return Case(query_id, query, rest, old[query_id], new[query_id], best[0], best[1], most, tops[0], tops[1])

    return Cases(
        row.name,
        before,
        "tuned",
        gained=tuple(map(case, gained)),
        lost=tuple(map(case, lost)),
        better=sum(v > 0 for v in change.values()),
        worse=sum(v < 0 for v in change.values()),
        equal=sum(v == 0 for v in change.values()),
    )


def _documents(
    collection: Collection, query_id: str, scores: Mapping[str, float], id_of: Mapping[str, str], level: int
) -> list[ShownDocument]:
    scores = {id_of.get(d, d): s for d, s in scores.items()}
    judged = collection.qrels.get(query_id, {})
    documents = []
    for rank, (document_id, score) in enumerate(ranked(query_id, scores), start=1):
        text, rest = cut(collection.corpus.get(document_id, ""), DOCUMENT_CHARACTERS)
        documents.append(ShownDocument(rank, document_id, score, judged.get(document_id), text, rest, level))
    return documents


def cut(text: str, most: int) -> tuple[str, int]:
    """The text cut to at most `most` characters, between words if possible; and how many characters are left out."""
    text = text.strip()
    if len(text) <= most:
        return text, 0
    kept = text[:most]
    at_word = kept.rsplit(None, 1)[0] if len(kept.split()) > 1 and not text[most].isspace() else kept.rstrip()
    # A word longer than a third of the limit is cut in the middle.
    kept = at_word if len(at_word) > 2 * most // 3 else kept
    return kept, len(text) - len(kept)
