"""TREC run files: candidate lists from another search engine, and the ones that an evaluation writes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from rankwright.common import console
from rankwright.common.errors import UserError
from rankwright.common.files import write_lines_atomic
from rankwright.common.plurals import counted
from rankwright.common.values import finite_number, one_text, path_text
from rankwright.data.formats.compression import check_place
from rankwright.data.formats.fields import number_of
from rankwright.recipe.schema import Recipe
from rankwright.retrieval.candidates import Candidate, Run, best_candidates, ranked
from rankwright.retrieval.retriever import RETRIEVERS, Options, Retriever, Searcher


def run(corpus: Mapping[str, str], *, depth: int = 100, path: Path) -> Searcher:
    """The lists of a TREC run file: at most `depth` candidates per query.

    The file's scores decide, not its ranks or the order of its lines, as in trec_eval; ties by candidates.tie_order.
    White space inside an id is written there as %20 and the like. The search reports how many queries and documents
    are not in the set, how many queries the file lacks (their lists are empty), and how many lists are shorter than
    `depth`. It raises UserError for a file that is damaged or has nothing in common with the set.
    """

    def search(queries: Mapping[str, str]) -> dict[str, list[Candidate]]:
        lists, facts = read_lists(path, corpus, queries, depth)
        console.say(f"run file {path}: {facts}")
        return lists

    return search


def read_lists(
    path: Path, corpus: Mapping[str, str], queries: Mapping[str, str], depth: int
) -> tuple[dict[str, list[Candidate]], str]:
    """(lists, what was left out and what is missing, in words). Raises UserError as `run` does."""
    if depth < 1:
        raise UserError(f"run: depth {depth}: needs depth >= 1")
    found = read_trec_run(path)
    query_ids = columns_of(queries, str(path))
    document_ids = columns_of(corpus, str(path))
    lists: dict[str, list[Candidate]] = {query_id: [] for query_id in queries}
    unknown = 0
    for column, scores in found.items():
        query_id = query_ids.get(column)
        if query_id is None:
            continue
        known = {document_ids[d]: score for d, score in scores.items() if d in document_ids}
        unknown += len(scores) - len(known)
        lists[query_id] = best_candidates(query_id, known, depth)
    if not any(lists.values()):
        why = _nothing(set(found), set(query_ids))
        raise UserError(f"{path}: has nothing in common with the set ({why}): give the run file of this set")
    facts = [
        ("queries of other sets or not evaluated, left out", sum(q not in query_ids for q in found)),
        ("documents that are not in the corpus, left out", unknown),
        ("queries that are not in the file", sum(q not in found for q in query_ids)),
        (f"lists shorter than {depth}", sum(0 < len(candidates) < depth for candidates in lists.values())),
    ]
    return lists, "; ".join([f"queries {len(found):,}", *(f"{what} {count:,}" for what, count in facts if count)])


def _nothing(found: set[str], queries: set[str]) -> str:
    if not found:
        return "it is empty"
    return "none of its documents" if found & queries else f"none of its queries, such as {min(found)!r}"


class Columns(Mapping[str, str]):
    """An id as a column of a run file -> the id. Only the ids that differ from their column are held."""

    def __init__(self, ids: Mapping[str, object], changed: Mapping[str, str]) -> None:
        self._ids, self._changed = ids, changed

    def __getitem__(self, column: str) -> str:
        if column in self._changed:
            return self._changed[column]
        if column in self._ids and trec_column(column) == column:
            return column
        raise KeyError(column)

    def __iter__(self) -> Iterator[str]:
        return map(trec_column, self._ids)

    def __len__(self) -> int:
        return len(self._ids)


def columns_of(ids: Mapping[str, object], where: str) -> Columns:
    """The columns of a run file that stand for ids. Raises UserError for two ids with one column; where: the set."""
    changed: dict[str, str] = {}
    for identifier in ids:
        column = trec_column(identifier)
        if column == identifier:
            continue
        other = changed.setdefault(column, identifier)
        if other == identifier and column in ids:
            other = column
        if other != identifier:
            first, second = sorted((other, identifier))
            raise UserError(f"{where}: the ids {first!r} and {second!r} are the same text in a run file: rename one")
    return Columns(ids, changed)


# What surrogateescape makes of bytes that are not UTF-8.
UNREADABLE_RUN = re.compile("[\udc80-\udcff]")


def write_trec_run(path: str | Path, run: Run, tag: str) -> None:
    """A TREC run file, `query Q0 document rank score tag`, best first by candidates.ranked; scores are exact.

    White space inside an id is written as %20 and the like, because it separates the columns.
    Raises UserError for ids and a tag that are not text or are empty, and for scores that are not finite numbers.
    """
    if not isinstance(run, Mapping) or not all(isinstance(scores, Mapping) for scores in run.values()):
        raise UserError("run: must be a mapping: query id -> document id -> score")
    last = _written("tag", tag)
    query_ids = sorted(run, key=lambda q: _written("run: a query id", q))

    def lines() -> Iterator[str]:
        for q in query_ids:
            scores = {d: finite_number(f"run: query {q!r}, document {d!r}", score) for d, score in run[q].items()}
            first = _written("run: a query id", q)
            for document_id in scores:
                _written(f"run: query {q!r}: a document id", document_id)
            for rank, (d, score) in enumerate(ranked(q, scores), start=1):
                yield f"{first} Q0 {trec_column(d)} {rank} {score!r} {last}"

    write_lines_atomic(Path(path_text("path", path)), lines())


def _written(name: str, text: object) -> str:
    """An id as a column. Raises UserError for one that no reader would find again."""
    column = trec_column(one_text(name, text))
    if not column:
        raise UserError(f"{name}: must not be empty")
    return column


def trec_column(text: str) -> str:
    """An id as it stands in a column of a TREC run file."""
    return re.sub(r"\s", lambda match: "".join(f"%{byte:02X}" for byte in match.group().encode()), text)


def read_trec_run(path: Path) -> dict[str, dict[str, float]]:
    """Query id -> document id -> score of a TREC run file; the ids are its columns (see trec_column).

    Raises UserError with file and line of the first fault.
    """
    run: dict[str, dict[str, float]] = {}
    check_place(path)
    # UTF-8 with or without a byte order mark; anything else (a packed file, say) fails at its first line.
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            if not line.isascii() and UNREADABLE_RUN.search(line):
                raise UserError(f"{path}:{number}: not UTF-8 text: unpack or convert the file")
            cells = line.split()
            if not cells:
                continue
            if len(cells) != 6:
                raise UserError(
                    f"{path}:{number}: {counted(len(cells), 'column')}, needs 6: query Q0 document rank score tag"
                )
            query_id, _, document_id, _, score, _ = cells
            scores = run.setdefault(query_id, {})
            if document_id in scores:
                raise UserError(f"{path}:{number}: document {document_id!r} appears twice for query {query_id!r}")
            value = number_of(score)
            if value is None:
                comma = (
                    ": write a point in place of the comma" if number_of(score.replace(",", ".")) is not None else ""
                )
                raise UserError(f"{path}:{number}: score {score!r} is not a finite number{comma}")
            scores[document_id] = value
    return run


def _options(recipe: Recipe, run_file: Path | None) -> Options:
    return {"path": run_file}


def _needs(recipe: Recipe) -> str | None:
    given = any(source.run is not None for source in recipe.data.test_sources)
    return None if given else "run files: add run: FILE to each set of data.test"


RETRIEVERS.add(Retriever("run", "run file", run, _options, needs=_needs, reads_run_file=True, place=4), __name__)
