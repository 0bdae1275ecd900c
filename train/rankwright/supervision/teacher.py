"""The teacher of mine.teacher: a reranker that scores (query, document) pairs, each pair once for the same weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rankwright.common.errors import UserError
from rankwright.common.files import cache_folder, write_lines_atomic
from rankwright.common.hashing import content_hash
from rankwright.common.plurals import counted
from rankwright.common.processes import Processes, launched
from rankwright.common.resources import resolve_base
from rankwright.data.collection import Collection
from rankwright.recipe.schema import Baseline, Bm25, Prompt
from rankwright.rerankers.kept_scorer import KeptScorer, Wanted, score_together
from rankwright.rerankers.kinds import TEACHER, baseline_inputs, baseline_under, load_baseline
from rankwright.rerankers.pair_scores import teacher_line
from rankwright.rerankers.scorer import Scorer


class Teacher(KeptScorer):
    """Raw scores of any kind of reranker that an evaluation can hold (see rerankers.kinds), each made once.

    They are kept under `cache` (by default files.cache_folder) by the content of weights, options, prompt and pair.
    """

    def __init__(
        self,
        baseline: Baseline,
        prompt: Prompt,
        *,
        bm25: Bm25 | None = None,
        cache: Path | None = None,
        key: str = TEACHER,
    ) -> None:
        """key: of the recipe, where the reranker is named.

        Raises UserError for a served teacher among several processes, whose limits are those of one client.
        """
        if baseline.kind == "served" and launched() > 1:
            raise UserError(
                f"{key}: {baseline.name} is served, and asked by one process: `rankwright mine` alone first"
            )
        self.baseline = baseline
        self._named_by = key
        self._prompt = prompt
        self._bm25 = bm25
        self._cache = cache or cache_folder()
        label = f"teacher {baseline.name}" if key == TEACHER else baseline.name
        super().__init__(label, baseline.model, self._cache / "teacher", key=f"{key}: {baseline.name}")

    def _load(self) -> Scorer:
        scorer: Scorer = load_baseline(
            self.baseline, self._prompt, cache=self._cache, key=self._named_by, bm25=self._bm25
        )
        return scorer

    def _under(self, scorer: Scorer, stated: str | None) -> Scorer:
        return baseline_under(self.baseline, scorer, stated)

    def _inputs(self, stated: str | None) -> str:
        """kinds.baseline_inputs, and what the machine and the hub decide."""
        commit = None
        if self.baseline.kind != "served" and not Path(resolve_base(self.baseline.model, self._named_by)).is_dir():
            # A branch of a hub repository moves: what counts is the commit that was loaded.
            self._scorer(stated)
            commit = _commit(self.baseline)
        # Here, since the report reads a teacher's scores and loads no torch.
        import torch

        prompt = self._prompt if stated is None else self._prompt.model_copy(update={"instruction": stated})
        inputs = baseline_inputs(self.baseline, prompt, key=self._named_by, bm25=self._bm25)
        return content_hash(inputs, commit, torch.cuda.is_available())

    def describe(self, kept: int) -> str:
        """What this process did, in one line; kept: how many pairs teacher.jsonl holds."""
        cut = "".join(f", {name.replace('_', ' ')} {count:,}" for name, count in self.cut.items() if count)
        here = " by this process" if launched() > 1 else ""
        return f"{self.label}: {counted(self.scored, 'pair')} scored{here}, {kept:,} in teacher.jsonl{cut}"


def write_teacher_scores(
    path: Path,
    teacher: Teacher,
    collections: Sequence[Collection],
    wanted: Callable[[Collection], Wanted],
    processes: Processes,
) -> int:
    """Write teacher.jsonl: raw scores of all wanted pairs, one line per query, by query id; returns how many pairs.

    Every process of the group calls this, and the first one writes. The ids of the collections are qualified.
    """
    asked = [(collection, wanted(collection)) for collection in collections]
    scores = score_together(teacher, asked, processes)
    if processes.is_first:
        write_lines_atomic(path, (teacher_line(q, scores[q]) for q in sorted(scores)))
    return sum(len(set(documents)) for _, pairs in asked for documents in pairs.values())


def _commit(baseline: Baseline) -> str | None:
    """The commit of a hub model that was loaded, by the folder where huggingface_hub keeps its files."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(baseline.model, "config.json", revision=baseline.revision)
    return Path(found).parent.name if isinstance(found, str) else None
