"""audit.html: negatives of some training queries next to their relevant documents, for a person to judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwright.common.errors import UserError
from rankwright.common.files import read_jsonl, write_text_atomic
from rankwright.common.hashing import stable_hash
from rankwright.common.run_folder import RunFolder
from rankwright.data.collection import Collection
from rankwright.data.split_files import qualified, read_split
from rankwright.mining.false_negatives import NONE_ABOVE, leaves_none_above
from rankwright.mining.filters import FILTERS
from rankwright.mining.pools import JUDGED, reasons
from rankwright.report import gather
from rankwright.report.cases import cut
from rankwright.report.page import environment

QUERY_CHARACTERS = 600
DOCUMENT_CHARACTERS = 700
# How many documents of a query are shown.
NEGATIVES_SHOWN, REMOVED_SHOWN, POSITIVES_SHOWN = 10, 6, 4


@dataclass(frozen=True, slots=True)
class Shown:
    """A document on the page.

    kind: positive, negative, soft, promoted or removed
    rank, score: of the retriever, None where it did not return the document; notes: (what a filter noted, number)
    """

    document_id: str
    text: str
    rest: int
    kind: str
    label: float | None
    rank: int | None
    score: float | None
    teacher: float | None
    source: str
    reason: str
    notes: tuple[tuple[str, float], ...] = ()

    @property
    def asked(self) -> bool:
        """Whether the page asks about it. What is judged needs no question."""
        return self.kind != "positive" and self.source != JUDGED


@dataclass(frozen=True, slots=True)
class Case:
    """A query with the documents that it is trained on. more_*: how many are not shown."""

    query_id: str
    query: str
    rest: int
    positives: tuple[Shown, ...]
    negatives: tuple[Shown, ...]
    removed: tuple[Shown, ...]
    more_positives: int
    more_negatives: int
    more_removed: int


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
    page = (
        environment()
        .get_template("audit.html.j2")
        .render(
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
        )
    )
    path = output or run.audit
    write_text_atomic(path, page)
    return path


def _cases(run: RunFolder, owners: Mapping[str, Collection], *, has_teacher: bool) -> Iterator[Case]:
    pools = _rows(run.negatives, "negatives", owners)
    removed = _rows(run.removed, None, owners)
    retrieved = _rows(run.candidates, "candidates", owners)
    teacher = _rows(run.teacher_scores, "scores", owners) if has_teacher else {}
    for query_id, collection in owners.items():
        places = {c["document_id"]: c for c in retrieved.get(query_id, ())}
        scores = {row["document_id"]: row["score"] for row in teacher.get(query_id, ())}
        labels = collection.positives(query_id)
        positives = [
            _shown(collection, scores, {"document_id": d, "label": label, **places.get(d, {})}, "positive")
            for d, label in sorted(labels.items(), key=lambda pair: (-pair[1], pair[0]))
        ]
        negatives = [_shown(collection, scores, row, _kind(row)) for row in pools.get(query_id, ())]
        negatives.sort(key=lambda n: (n.source == JUDGED, n.rank or len(places) + 1))
        shown = _first(negatives)
        gone = removed.get(query_id, {"removed": [], "more": 0})
        others = [_shown(collection, scores, row, "removed") for row in gone["removed"]]
        query, rest = cut(collection.queries[query_id], QUERY_CHARACTERS)
        yield Case(
            query_id,
            query,
            rest,
            tuple(positives[:POSITIVES_SHOWN]),
            shown,
            tuple(others[:REMOVED_SHOWN]),
            max(0, len(positives) - POSITIVES_SHOWN),
            len(negatives) - len(shown),
            max(0, len(others) - REMOVED_SHOWN) + int(gone["more"]),
        )


def _first(negatives: Sequence[Shown]) -> tuple[Shown, ...]:
    """At most NEGATIVES_SHOWN of them.

    Documents that a filter promoted or left soft come first, but take at most half of the places while there are plain
    negatives. The answers about plain negatives tell how many negatives are false.
    """
    changed = [n for n in negatives if n.kind != "negative"]
    plain = [n for n in negatives if n.kind == "negative"]
    places = max(NEGATIVES_SHOWN // 2, NEGATIVES_SHOWN - len(plain))
    changed = changed[:places]
    return (*changed, *plain[: NEGATIVES_SHOWN - len(changed)])


def _kind(row: Mapping[str, Any]) -> str:
    label = row.get("label", 0.0)
    return "soft" if label is None else "promoted" if label > 0 else "negative"


def _shown(collection: Collection, scores: Mapping[str, float], row: Mapping[str, Any], kind: str) -> Shown:
    document_id = row["document_id"]
    text, rest = cut(collection.corpus[document_id], DOCUMENT_CHARACTERS)
    notes: dict[str, float] = dict(row.get("decisions", {}))
    teacher = notes.pop("teacher", scores.get(document_id))
    return Shown(
        document_id,
        text,
        rest,
        kind,
        row.get("label", 0.0),
        row.get("rank"),
        row.get("score"),
        teacher,
        row.get("source", row.get("filter", "")),
        row.get("reason", ""),
        tuple((_noted(name), number) for name, number in notes.items()),
    )


def _noted(name: str) -> str:
    """What the number means that a filter notes."""
    return (FILTERS[name].noted if name in FILTERS else "") or name


def _rows(path: Path, key: str | None, chosen: Mapping[str, object]) -> dict[str, Any]:
    """Query id -> its row, or the value of `key` in it, for the chosen queries; the file is not held as a whole."""
    if not path.is_file():
        raise UserError(f"{path}: no such file: give `rankwright mine` again")

    def chosen_row(row: dict[str, Any]) -> tuple[str, Any] | None:
        return (row["query_id"], row if key is None else row[key]) if row["query_id"] in chosen else None

    return dict(filter(None, read_jsonl(path, chosen_row, "a row of this file, mine again")))
