"""How long reranking takes for one query: p50 and p95 of the latency, pairs per second, peak memory."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankwright.common import console
from rankwright.common.files import read_json_object
from rankwright.common.hashing import stable_hash
from rankwright.common.plurals import counted
from rankwright.common.run_folder import RunFolder
from rankwright.data.collection import Collection
from rankwright.rerankers.scorer import Scorer
from rankwright.retrieval.candidates import Candidates

LISTS = 20
DOCUMENTS = 100
# After this time no further list is started.
SECONDS = 60.0


def speed_is_known(run: RunFolder, inputs: str) -> bool:
    """Whether speed.json was measured with this tuned model."""
    tuned = (read_json_object(run.speed) or {}).get("tuned") or {}
    return bool(tuned.get("inputs") == inputs)


def forget_other_speed(run: RunFolder, inputs: str) -> None:
    """Remove a speed.json of another tuned model, so that a kill before the new measurement does not leave it there."""
    if not speed_is_known(run, inputs):
        run.speed.unlink(missing_ok=True)


def measure_speed(
    run: RunFolder, sets: Sequence[tuple[Scorer, Collection, Candidates]], *, seed: int, inputs: str
) -> None:
    """Rerank the lists of up to LISTS test queries one by one, each with the scorer of its set, and write speed.json.

    A list is one query with its first DOCUMENTS candidates. The time is from texts to scores, with tokenising and
    without loading the model. The first list is scored once before without being counted, since the first call also
    sets things up.
    """
    groups = _groups(sets, seed)
    if not groups:
        console.say("speed of tuned: no query has candidates, not measured")
        return
    on_gpu = torch.cuda.is_available()
    began = time.perf_counter()
    scorer, query, documents = groups[0]
    next(iter(scorer.score_groups([(query, documents)])))
    memory = _PeakMemory(on_gpu)
    seconds: list[float] = []
    windows = 0
    for scorer, query, documents in groups:
        if seconds and time.perf_counter() - began > SECONDS:
            break
        windows -= scorer.cut.get("windows", 0)
        started = time.perf_counter()
        # Scores come as numbers, so the GPU has finished when they are here.
        next(iter(scorer.score_groups([(query, documents)])))
        seconds.append(time.perf_counter() - started)
        windows += scorer.cut.get("windows", 0)
    sizes = [len(documents) for *_, documents in groups[: len(seconds)]]
    p50, p95 = np.percentile(seconds, [50, 95]).tolist()
    values: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "threads": torch.get_num_threads(),
        "precision": _precision(scorer),
        "lists": len(seconds),
        "documents": max(sizes),
        "p50_ms": round(1000 * p50, 2),
        "p95_ms": round(1000 * p95, 2),
        "pairs_per_s": round(sum(sizes) / sum(seconds), 1),
        **({"windows": windows} if windows else {}),
        "peak_memory_mb": memory.megabytes(),
        "note": "; ".join(_notes(sizes, len(groups), memory, windows)),
        "inputs": inputs,
    }
    run.write_json(run.speed, {"tuned": values})
    console.say(
        f"speed of tuned: 1 query x {counted(values['documents'], 'document')} p50 {values['p50_ms']:.0f} ms, "
        f"p95 {values['p95_ms']:.0f} ms, {values['pairs_per_s']:.0f} pairs/s, peak memory "
        f"{values['peak_memory_mb'] or '?'} MB ({values['device']}, {values['threads']} threads, "
        f"{values['precision']}, {values['lists']} lists; {values['note']})"
    )


def _groups(
    sets: Sequence[tuple[Scorer, Collection, Candidates]], seed: int
) -> list[tuple[Scorer, str, Sequence[str]]]:
    """Queries chosen by hash over all test sets, the same ones every time."""
    found = [(scorer, c, lists, q) for scorer, c, lists in sets for q in lists if lists[q]]
    found.sort(key=lambda item: (stable_hash("speed", seed, item[1].name, item[3]), item[1].name, item[3]))
    groups = []
    for scorer, collection, lists, query_id in found[:LISTS]:
        ids = [c.document_id for c in lists[query_id][:DOCUMENTS]]
        documents = scorer.listed([collection.corpus[d] for d in ids], ids, lists[query_id])
        groups.append((scorer, collection.queries[query_id], documents))
    return groups


def _notes(sizes: Sequence[int], wanted: int, memory: _PeakMemory, windows: int) -> list[str]:
    # Windows are more than documents under prompt.long_documents: max, and 0 where there are none.
    notes = [f"a pair is a document, {windows:,} windows for {sum(sizes):,} of them"] if windows else []
    if len(sizes) < wanted:
        notes.append(f"stopped after {SECONDS:.0f} s: {len(sizes)} of {wanted} lists")
    if min(sizes) < max(sizes):
        notes.append(f"lists of {min(sizes)} to {max(sizes)} documents")
    return [*notes, memory.what]


def _precision(scorer: Scorer) -> str:
    """The number type in which most weights are stored. Matrix products are computed in it."""
    model = getattr(scorer, "model", None)
    if not isinstance(model, torch.nn.Module):
        return "unknown"
    counts: Counter[torch.dtype] = Counter()
    for parameter in model.parameters():
        counts[parameter.dtype] += parameter.numel()
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    [(most, _)] = counts.most_common(1)
    return names.get(most, str(most).removeprefix("torch."))


class _PeakMemory:
    """Peak memory from now on: allocations on the GPU, or resident memory of this process on a CPU."""

    def __init__(self, on_gpu: bool) -> None:
        self._on_gpu = on_gpu
        self.what = "memory: the GPU's allocations"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
            return
        self.what = "memory: resident, libraries and data included"
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self.what += ", of the whole command (this system cannot restart the count)"

    def megabytes(self) -> int | None:
        if self._on_gpu:
            return round(torch.cuda.max_memory_allocated() / 2**20)
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
            return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024)
        except (OSError, StopIteration, ValueError):
            return _high_water_mark()


def _high_water_mark() -> int | None:
    """Without /proc: the peak of the whole command, which POSIX systems record (Linux in KB, macOS in bytes)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 1024))
