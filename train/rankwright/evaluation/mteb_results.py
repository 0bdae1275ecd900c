"""What `rankwright mteb` found: mteb's figures beside ours, and their records in a run folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rankwright.common.hashing import file_sha256
from rankwright.common.outputs import read_sealed
from rankwright.common.plurals import counted
from rankwright.common.run_folder import SUMS_FILE, RunFolder

# Ours -> mteb's.
MEASURES = {"nDCG@10": "ndcg_at_10", "AP@10": "map_at_10", "R@10": "recall_at_10"}
# Where no scores tie, the figures of both may differ by this.
AGREE = 1e-3


@dataclass(frozen=True, slots=True)
class PartResult:
    """One split of one subset of a task, with each measure's mean over the queries that mteb counts.

    ours: of our scores, ties by our rule; ours_trec: of these as probabilities of 32 bits, ties as in trec_eval (larger
        ids first)
    theirs: what mteb found; first_stage: of the lists as they came
    labelled: nDCG@10 by the labels of the run's recipe, where they mean something else there than to mteb
    ties: share of neighbours in our lists with equal probabilities
    queries_cut: queries that are longer than the prompt allows: Rankwright cuts them, sentence-transformers does not
    """

    task: str
    subset: str
    split: str
    queries: int
    without_relevant: int
    lists: str
    ours: Mapping[str, float]
    ours_trec: Mapping[str, float]
    theirs: Mapping[str, float]
    first_stage: float
    labelled: Mapping[str, float]
    ties: float
    queries_cut: int

    @property
    def difference(self) -> float:
        """The largest difference of a measure that ties do not explain."""
        return max(abs(self.ours_trec[m] - self.theirs[m]) for m in MEASURES)


def exported_model(run: RunFolder) -> str | None:
    """What tells the model in export/hf from others: the SHA-256 of the sums of its files; None without an export."""
    path = run.export("hf") / SUMS_FILE
    return file_sha256(path) if path.is_file() else None


def read_records(run: RunFolder) -> Iterator[tuple[Mapping[str, Any], PartResult]]:
    """(record of a task, one of its parts), of all tasks that were run with the model now in export/hf."""
    model = exported_model(run)
    for path in sorted(run.mteb.glob("*/record.json")):
        record = read_sealed(path)
        if record is not None and record["model"] == model:
            yield from ((record, PartResult(**part)) for part in record["parts"])


def falls_apart(results: Sequence[PartResult]) -> list[str]:
    """A sentence for each part whose figures differ by more than ties explain."""
    found = []
    for row in results:
        why = "rankwright verify checks the export"
        if row.queries_cut:
            why = (
                f"Rankwright cuts {counted(row.queries_cut, 'query, which is', 'queries, which are')} "
                "beyond prompt.query_tokens, and mteb does not"
            )
        if row.difference > AGREE:
            found.append(
                f"{row.task} ({row.subset}, {row.split}): the figures differ by {row.difference:.4f}, more than "
                f"{AGREE:g}: the scores are not the same ({why})"
            )
    return found
