"""Scores of a test set in blocks of queries: kept as they come, by any number of processes, and made only once."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwright.common.errors import UserError
from rankwright.common.files import append_lines, write_lines_atomic
from rankwright.common.outputs import sealed, unsealed
from rankwright.data.collection import Collection
from rankwright.rerankers.scorer import Reranked, Scorer, rerank, windows
from rankwright.retrieval.candidates import Candidates

# Pairs after which a block ends: about what a GPU scores at once, and what a kill can lose.
BLOCK_PAIRS = 256

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class BlockScores:
    """The files of one system on one test set.

    folder/scores.jsonl holds all blocks once they are done, folder/scores-RANK.jsonl what each process has done
    before that: one line per block, `inputs, block, scores, seconds` and how much was cut. inputs: hash of what the
    scores and the lists depend on; lines of other inputs are ignored.
    """

    folder: Path
    inputs: str
    candidates: Candidates
    query_ids: tuple[str, ...]

    @property
    def blocks(self) -> list[tuple[str, ...]]:
        """The queries that have candidates, in blocks: a function of the lists alone.

        Each block is scored by one call, so that no score depends on how many processes there are.
        """
        asked = [q for q in self.query_ids if self.candidates.get(q)]
        return [tuple(block) for block in windows(asked, lambda q: len(self.candidates[q]), BLOCK_PAIRS)]

    def done(self) -> dict[int, Row]:
        """Number of a block -> its row, from whichever process."""
        blocks = self.blocks
        found: dict[int, Row] = {}
        for path in [self.folder / "scores.jsonl", *sorted(self.folder.glob("scores-*.jsonl"))]:
            for row in _rows(path):
                if self._is_whole(row, blocks):
                    found.setdefault(row["block"], row)
        return found

    def _is_whole(self, row: Any, blocks: Sequence[tuple[str, ...]]) -> bool:
        try:
            lengths = [len(scores) for scores in row["scores"]]
            good: bool = row["inputs"] == self.inputs and 0 <= row["block"] < len(blocks)
            return good and lengths == [len(self.candidates[q]) for q in blocks[row["block"]]]
        except (TypeError, KeyError):
            return False

    def score(
        self,
        numbers: Sequence[int],
        scorer: Scorer,
        collection: Collection,
        *,
        rank: int,
        advance: Callable[..., None],
        look: Callable[[], None],
        lists: Candidates | None = None,
    ) -> None:
        """Score these blocks and keep each as it is done; look() is called before each. lists: see rerank.

        Raises UserError for a score that is not finite.
        """
        blocks = self.blocks
        path = self.folder / f"scores-{rank}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        for number in numbers:
            look()
            before = _counts(scorer)
            started = time.perf_counter()
            run = rerank(scorer, collection, self.candidates, blocks[number], advance, lists)
            seconds = time.perf_counter() - started
            scores = [[run[q][c.document_id] for c in self.candidates[q]] for q in blocks[number]]
            _refuse_not_finite(scores, blocks[number])
            row: Row = {"inputs": self.inputs, "block": number, "scores": scores, "seconds": round(seconds, 4)}
            row |= {name: count - before.get(name, 0) for name, count in _counts(scorer).items()}
            if scorer.mode is not None:
                row["prompt_mode"] = scorer.mode
            append_lines(path, [json.dumps(sealed(row))])

    def gather(self) -> tuple[Reranked, Row]:
        """(run with a list, maybe empty, for every query; facts of the scoring), once all blocks are done.

        One file replaces those of the processes.
        """
        done = self.done()
        blocks = self.blocks
        assert len(done) == len(blocks), f"{self.folder}: {len(blocks) - len(done)} blocks are not scored"
        rows = [done[number] for number in range(len(blocks))]
        parts = sorted(self.folder.glob("scores-*.jsonl"))
        if parts:
            write_lines_atomic(self.folder / "scores.jsonl", (json.dumps(sealed(row)) for row in rows))
            for part in parts:
                part.unlink(missing_ok=True)
        run: Reranked = {query_id: {} for query_id in self.query_ids}
        for block, row in zip(blocks, rows, strict=True):
            for query_id, scores in zip(block, row["scores"], strict=True):
                ids = [c.document_id for c in self.candidates[query_id]]
                run[query_id] = dict(zip(ids, scores, strict=True))
        return run, _facts(rows)


def _counts(scorer: Scorer) -> dict[str, int]:
    """Texts that the scorer cut, and documents whose scores it knew, as far as it counts them."""
    return {**scorer.cut, **({} if scorer.cached is None else {"documents_cached": scorer.cached})}


def _facts(rows: Sequence[Row]) -> Row:
    """Counts and times over all blocks; seconds and pairs_per_s as if one process had done all.

    Blocks with a cached score do not count for pairs_per_s, which is left out where no block remains.
    """
    facts: Row = {"pairs": sum(map(_pairs, rows))}
    timed = [row for row in rows if not row.get("documents_cached")]
    if timed or not rows:
        seconds = sum(row["seconds"] for row in timed)
        facts["pairs_per_s"] = round(sum(map(_pairs, timed)) / seconds, 1) if seconds else 0.0
    facts["seconds"] = round(sum(row["seconds"] for row in rows), 2)
    for name in ("documents_cut", "queries_cut", "documents_cached", "documents_refused", "windows"):
        if any(name in row for row in rows):
            facts[name] = sum(row.get(name, 0) for row in rows)
    modes = {row["prompt_mode"] for row in rows if "prompt_mode" in row}
    return facts | ({"prompt_mode": modes.pop()} if len(modes) == 1 else {})


def _pairs(row: Row) -> int:
    return sum(map(len, row["scores"]))


def _refuse_not_finite(scores: Sequence[Sequence[float]], query_ids: Sequence[str]) -> None:
    bad = next((q for q, row in zip(query_ids, scores, strict=True) if not all(map(math.isfinite, row))), None)
    if bad is not None:
        raise UserError(f"query {bad!r}: a score is not finite: the model is broken, or fp32 is needed")


def _rows(path: Path) -> Iterator[Row]:
    """The rows of a file; a line that a kill cut short, or that was changed since, is skipped."""
    # A pipe in its place would never end.
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                yield unsealed(json.loads(line))
            except (ValueError, AttributeError):
                continue
