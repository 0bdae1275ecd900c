"""audit.html: negatives of some training queries next to their relevant documents, for a person to judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rankwright.common.errors import UserError
from rankwright.common.files import read_jsonl
from rankwright.common.hashing import stable_hash
from rankwright.common.run_folder import RunFolder
from rankwright.data.collection import Collection
from rankwright.data.split_files import qualified, read_split
from rankwright.mining.false_negatives import NONE_ABOVE, leaves_none_above
from rankwright.mining.filters import FILTERS
from rankwright.mining.pools import JUDGED, reasons
from rankwright.report import gather
from rankwright.report.answers import NOT_RELEVANT, RELEVANT, UNSURE, texts_hash
from rankwright.report.cases import cut
from rankwright.report.page import write_page

QUERY_CHARACTERS = 600
DOCUMENT_CHARACTERS = 700
# How many documents of a query are shown.
NEGATIVES_SHOWN, REMOVED_SHOWN, POSITIVES_SHOWN = 10, 6, 4


def write_audit(run: RunFolder, count: int, output: Path | None = None) -> Path:
    """Write audit.html (or `output`) from the files of the mine stage, for `count` queries chosen by the recipe's seed.

    Raises UserError where nothing is mined yet, and for damaged files.
    """
    recipe = gather.read_recipe(run.path)
    facts = run.facts("mine")
    if not facts:
        raise UserError(f"{run.path}: nothing is mined yet: give `rankwright mine` first")
    train = [qualified(c) for c in read_split(run.data, "train")]
    owners = {q: c for c in train for q in c.queries if c.positives(q)}
    order = sorted(owners, key=lambda q: (stable_hash("audit", recipe.seed, q), q))
    cases = list(_cases(run, {q: owners[q] for q in order[:count]}, has_teacher=recipe.mine.teacher is not None))
    path = output or run.audit
    write_page(
        path,
        "audit.html.j2",
        recipe=recipe,
        mine=recipe.mine,
        facts=facts,
        cases=cases,
        queries=len(owners),
        mined=gather.read_mining(run),
        none_above=NONE_ABOVE if leaves_none_above(recipe) else None,
        reasons=reasons(),
        most=NEGATIVES_SHOWN,
        # The name under which the browser keeps answers. It belongs to this mining only.
        name=f"{recipe.name}-{facts['inputs']}-{recipe.seed}",
        answers=(RELEVANT, NOT_RELEVANT, UNSURE),
    )
    return path


def _cases(run: RunFolder, owners: Mapping[str, Collection], *, has_teacher: bool) -> Iterator[dict[str, Any]]:
    """Each query with the documents that it is trained on. more_*: how many are not shown."""
    pools = _rows(run.negatives, "negatives", owners)
    removed = _rows(run.removed, None, owners)
    retrieved = _rows(run.candidates, "candidates", owners)
    teacher = _rows(run.teacher_scores, "scores", owners) if has_teacher else {}
    for query_id, collection in owners.items():
        places = {c["document_id"]: c for c in retrieved.get(query_id, ())}
        scores = {row["document_id"]: row["score"] for row in teacher.get(query_id, ())}
        labels = collection.positives(query_id)
        positives = [
            _shown(collection, query_id, scores, {"document_id": d, "label": label, **places.get(d, {})}, "positive")
            for d, label in sorted(labels.items(), key=lambda pair: (-pair[1], pair[0]))
        ]
        negatives = [_shown(collection, query_id, scores, row, _kind(row)) for row in pools.get(query_id, ())]
        negatives.sort(key=lambda n: (n["source"] == JUDGED, n["rank"] or len(places) + 1))
        shown = _first(negatives)
        gone = removed.get(query_id, {"removed": [], "more": 0})
        others = [_shown(collection, query_id, scores, row, "removed") for row in gone["removed"]]
        query, rest = cut(collection.queries[query_id], QUERY_CHARACTERS)
        yield {
            "query_id": query_id,
            "query": query,
            "rest": rest,
            "positives": positives[:POSITIVES_SHOWN],
            "negatives": shown,
            "removed": others[:REMOVED_SHOWN],
            "more_positives": max(0, len(positives) - POSITIVES_SHOWN),
            "more_negatives": len(negatives) - len(shown),
            "more_removed": max(0, len(others) - REMOVED_SHOWN) + int(gone["more"]),
        }


def _first(negatives: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most NEGATIVES_SHOWN of them.

    Documents that a filter promoted or left soft come first, but take at most half of the places while there are plain
    negatives. The answers about plain negatives tell how many negatives are false.
    """
    changed = [n for n in negatives if n["kind"] != "negative"]
    plain = [n for n in negatives if n["kind"] == "negative"]
    changed = changed[: max(NEGATIVES_SHOWN // 2, NEGATIVES_SHOWN - len(plain))]
    return [*changed, *plain[: NEGATIVES_SHOWN - len(changed)]]


def _kind(row: Mapping[str, Any]) -> str:
    label = row.get("label", 0.0)
    return "soft" if label is None else "promoted" if label > 0 else "negative"


def _shown(
    collection: Collection, query_id: str, scores: Mapping[str, float], row: Mapping[str, Any], kind: str
) -> dict[str, Any]:
    """A document on the page.

    kind: positive, negative, soft, promoted or removed
    rank, score: of the retriever, None where it did not return the document; notes: (what a filter noted, number)
    """
    document_id = row["document_id"]
    text, rest = cut(collection.corpus[document_id], DOCUMENT_CHARACTERS)
    notes: dict[str, float] = dict(row.get("decisions", {}))
    teacher = notes.pop("teacher", scores.get(document_id))
    source = row.get("source", row.get("filter", ""))
    return {
        "document_id": document_id,
        "text": text,
        # The answers come back with it: they are about these texts.
        "texts": texts_hash(collection.queries[query_id], collection.corpus[document_id]),
        "rest": rest,
        "kind": kind,
        "label": row.get("label", 0.0),
        "rank": row.get("rank"),
        "score": row.get("score"),
        "teacher": teacher,
        "source": source,
        "reason": row.get("reason", ""),
        "notes": [((FILTERS[n].noted if n in FILTERS else "") or n, number) for n, number in notes.items()],
        # What is judged needs no question.
        "asked": kind != "positive" and source != JUDGED,
    }


def _rows(path: Path, key: str | None, chosen: Mapping[str, object]) -> dict[str, Any]:
    """Query id -> its row, or the value of `key` in it, for the chosen queries; the file is not held as a whole."""
    if not path.is_file():
        raise UserError(f"{path}: no such file: give `rankwright mine` again")

    def chosen_row(row: dict[str, Any]) -> tuple[str, Any] | None:
        return (row["query_id"], row if key is None else row[key]) if row["query_id"] in chosen else None

    return dict(filter(None, read_jsonl(path, chosen_row, "a row of this file, mine again")))
