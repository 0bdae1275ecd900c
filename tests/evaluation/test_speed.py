"""speed.json: latency of one query with its candidates, the same queries every time, and no time for it twice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest
from tiny import PAIRS

from rankwright.common.run_folder import RunFolder
from rankwright.data.collection import Collection
from rankwright.evaluation import speed
from rankwright.rerankers.reranker import Reranker
from rankwright.rerankers.scorer import Scorer
from rankwright.retrieval.candidates import Candidate

CORPUS = {f"d{i}": document for i, (_, document) in enumerate(PAIRS)}
QUERIES = {f"q{i}": query for i, (query, _) in enumerate(PAIRS)}
SET = Collection("set", CORPUS, QUERIES, {})
LISTS = {q: [Candidate(f"d{n}", 1.0, n + 1) for n in range(5 + i % 3)] for i, q in enumerate(QUERIES)} | {"q0": []}
KEYS = "device threads precision lists documents p50_ms p95_ms pairs_per_s peak_memory_mb note inputs".split()


def test_what_is_written_about_a_real_model(
    tmp_path: Path, tiny_qwen3: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(tmp_path)
    reranker = Reranker.load(str(tiny_qwen3), max_tokens=128, device="cpu")
    assert not speed.speed_is_known(run, "now")
    speed.measure_speed(run, [(reranker, SET, LISTS)], seed=0, inputs="now")
    values = json.loads((tmp_path / "speed.json").read_text())["tuned"]
    assert list(values) == KEYS
    assert (values["lists"], values["documents"], values["precision"]) == (20, 7, "fp32")
    assert 0 < values["p50_ms"] <= values["p95_ms"] and values["pairs_per_s"] > 0
    assert 50 < values["peak_memory_mb"] < 20000
    assert "lists of 5 to 7 documents" in values["note"]
    assert "speed of tuned: 1 query x 7 documents p50" in capsys.readouterr().out
    assert speed.speed_is_known(run, "now") and not speed.speed_is_known(run, "then")
    speed.forget_other_speed(run, "now")
    assert speed.speed_is_known(run, "now")
    speed.forget_other_speed(run, "then")
    assert not (tmp_path / "speed.json").exists()


class Seen(Scorer):
    """A scorer that remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def score_groups(self, groups: Iterable[tuple[str, Sequence[str]]]) -> Iterator[list[float]]:
        for query, documents in groups:
            self.asked.append((query, len(documents)))
            yield [0.0] * len(documents)


def test_the_lists_are_chosen_by_seed_and_time_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(lists: dict[str, list[Candidate]], seed: int) -> list[tuple[str, int]]:
        scorer = Seen()
        speed.measure_speed(RunFolder(tmp_path), [(scorer, SET, lists)], seed=seed, inputs="x")
        return scorer.asked

    monkeypatch.setattr(speed, "LISTS", 6)
    backwards = dict(reversed(LISTS.items()))
    assert asked(LISTS, 0) == asked(backwards, 0) != asked(LISTS, 1)
    # The first one is scored once more, before the clock starts.
    assert len(asked(LISTS, 0)) == 7 and asked(LISTS, 0)[0] == asked(LISTS, 0)[1]
    monkeypatch.setattr(speed, "SECONDS", 0.0)
    assert len(asked(LISTS, 0)) == 2
    note = json.loads((tmp_path / "speed.json").read_text())["tuned"]["note"]
    assert note.startswith("stopped after 0 s: 1 of 6 lists")


def test_nothing_to_measure_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speed.measure_speed(RunFolder(tmp_path), [(Seen(), SET, {"q0": []})], seed=0, inputs="x")
    assert "no query has candidates, not measured" in capsys.readouterr().out
    assert not (tmp_path / "speed.json").exists()
