"""TREC run files: candidate lists from another search engine, and the ones that an evaluation writes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from rankwright.common import console
from rankwright.common.errors import UserError
from rankwright.common.files import write_lines_atomic
from rankwright.retrieval.candidates import RETRIEVERS, Candidate, Run, Searcher, ranked


@RETRIEVERS.register
def run(corpus: Mapping[str, str], *, depth: int = 100, path: Path) -> Searcher:
    """The lists of a TREC run file: at most `depth` candidates a query.

    The file's scores decide, not its ranks or the order of its lines, as trec_eval has it; ties by
    ranking.tie_order. White space inside an id is %20 and the like there. Said and counted: queries and documents
    that are not in the set, queries that the file lacks (their lists are empty), lists shorter than `depth`.
    Its search raises UserError for a file that is damaged or has nothing in common with the set.
    """

    def search(queries: Mapping[str, str]) -> dict[str, list[Candidate]]:
        lists, told = read_lists(path, corpus, queries, depth)
        console.say(f"run file {path}: {told}")
        return lists

    return search


def read_lists(
    path: Path, corpus: Mapping[str, str], queries: Mapping[str, str], depth: int
) -> tuple[dict[str, list[Candidate]], str]:
    """(lists, what was left out and is missing, in words); raises as `run` does."""
    if depth < 1:
        raise UserError(f"run: depth {depth}: needs depth >= 1")
    found = read_trec_run(path)
    spelled_queries = spelled(queries, str(path))
    spelled_documents = spelled(corpus, str(path))
    lists: dict[str, list[Candidate]] = {query_id: [] for query_id in queries}
    unknown = 0
    for spelling, scores in found.items():
        query_id = spelled_queries.get(spelling)
        if query_id is None:
            continue
        known = {spelled_documents[d]: score for d, score in scores.items() if d in spelled_documents}
        unknown += len(scores) - len(known)
        best = ranked(query_id, known)[:depth]
        lists[query_id] = [Candidate(document_id, score, rank) for rank, (document_id, score) in enumerate(best, 1)]
    if not any(lists.values()):
        why = _nothing(set(found), set(spelled_queries))
        raise UserError(f"{path}: has nothing in common with the set ({why}): give the run file of this set")
    facts = [
        ("queries of other sets or not evaluated, left out", sum(q not in spelled_queries for q in found)),
        ("documents that are not in the corpus, left out", unknown),
        ("queries that are not in the file", sum(q not in found for q in spelled_queries)),
        (f"lists shorter than {depth}", sum(0 < len(candidates) < depth for candidates in lists.values())),
    ]
    return lists, "; ".join([f"queries {len(found):,}", *(f"{what} {count:,}" for what, count in facts if count)])


def _nothing(found: set[str], queries: set[str]) -> str:
    if not found:
        return "it is empty"
    return "none of its documents" if found & queries else f"none of its queries, such as {min(found)!r}"


class Spelled(Mapping[str, str]):
    """How a run file spells an id -> the id. What is held is the ids that it spells in another way."""

    def __init__(self, ids: Mapping[str, object], changed: Mapping[str, str]) -> None:
        self._ids, self._changed = ids, changed

    def __getitem__(self, spelling: str) -> str:
        if spelling in self._changed:
            return self._changed[spelling]
        if spelling in self._ids and trec_column(spelling) == spelling:
            return spelling
        raise KeyError(spelling)

    def __iter__(self) -> Iterator[str]:
        return map(trec_column, self._ids)

    def __len__(self) -> int:
        return len(self._ids)


def spelled(ids: Mapping[str, object], where: str) -> Spelled:
    """The run file's spelling of ids. Raises UserError for two ids that it spells alike; where: of the set."""
    changed: dict[str, str] = {}
    for identifier in ids:
        spelling = trec_column(identifier)
        if spelling == identifier:
            continue
        other = changed.setdefault(spelling, identifier)
        if other == identifier and spelling in ids:
            other = spelling
        if other != identifier:
            first, second = sorted((other, identifier))
            raise UserError(f"{where}: a run file spells the ids {first!r} and {second!r} alike: rename one")
    return Spelled(ids, changed)


# What surrogateescape makes of bytes that are no UTF-8.
UNREADABLE_RUN = re.compile("[\udc80-\udcff]")


def write_trec_run(path: Path, run: Run, tag: str) -> None:
    """A TREC run file, `query Q0 document rank score tag`, best first by ranking.ranked; scores are exact.

    White space inside an id is written as %20 and the like: the format has no other way.
    """
    write_lines_atomic(
        path,
        (
            f"{trec_column(q)} Q0 {trec_column(d)} {rank} {score!r} {trec_column(tag)}"
            for q in sorted(run)
            for rank, (d, score) in enumerate(ranked(q, run[q]), start=1)
        ),
    )


def trec_column(text: str) -> str:
    """An id as a TREC run file spells it."""
    return re.sub(r"\s", lambda match: "".join(f"%{byte:02X}" for byte in match.group().encode()), text)


def read_trec_run(path: Path) -> dict[str, dict[str, float]]:
    """Query id -> document id -> score of a TREC run file, ids as it spells them (see trec_column).

    Raises UserError with file and line of the first fault.
    """
    run: dict[str, dict[str, float]] = {}
    # A text of UTF-8 with or without a mark at its start; what is none (a packed file, say) fails at its first line.
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            if not line.isascii() and UNREADABLE_RUN.search(line):
                raise UserError(f"{path}:{number}: not UTF-8 text: unpack or convert the file")
            cells = line.split()
            if not cells:
                continue
            if len(cells) != 6:
                raise UserError(f"{path}:{number}: {len(cells)} columns, needs 6: query Q0 document rank score tag")
            query_id, _, document_id, _, score, _ = cells
            scores = run.setdefault(query_id, {})
            if document_id in scores:
                raise UserError(f"{path}:{number}: document {document_id!r} appears twice for query {query_id!r}")
            try:
                scores[document_id] = float(score)
            except ValueError:
                raise UserError(f"{path}:{number}: score {score!r} is not a number") from None
            if not math.isfinite(scores[document_id]):
                raise UserError(f"{path}:{number}: score {score!r} is not a finite number")
    return run
