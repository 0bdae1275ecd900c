"""Exports of models that read long documents in windows or blocks: the strategy travels, and clients can repeat it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from rankwright import Reranker
from rankwright.export.card import CardFacts, write_card
from rankwright.export.golden import read_golden
from rankwright.export.proof.parity import measure
from rankwright.export.targets import TARGETS
from rankwright.model.loading import load_encoder
from rankwright.model.long_documents import AS_CUT, LongDocuments

FILLER = "The river rises in the mountains in spring. 東京は日本の首都です。 "
QUERIES = ["what pays interest?", "void contract", "où est la bibliothèque"]
DOCUMENTS = [
    FILLER * 30 + "A bond pays interest until it matures. " + FILLER * 30,
    "The court held that the contract was void.\n\n" + FILLER * 60,
    "word" * 900 + " la bibliothèque",
    "🎉👩\u200d🚀" * 300,
    "A bond is a loan.",
    " \n",
]
CASES = [("qwen3-portable", "max"), ("qwen3-official", "max"), ("qwen3-portable", "blocks")]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def export(request: pytest.FixtureRequest, trained: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(what was trained, its `hf` folder with both cards)."""
    name, strategy = request.param
    one = trained[name]
    # Room for some blocks in both.
    contract = one.contract.replace(max_tokens=420, query_tokens=40, long_documents=LongDocuments(strategy))
    pairs = [*one.golden_pairs, *((query, document) for query in QUERIES for document in DOCUMENTS[:4])]
    one = dataclasses.replace(one, contract=contract, golden_pairs=pairs)
    folder = tmp_path_factory.mktemp(name)
    TARGETS["hf"].write(one, folder)
    write_card(folder, CardFacts(), contract, {"rows": 1, "engines": {}}, base_name="base", revision=None)
    return one, folder


def test_a_loaded_export_scores_long_documents_as_the_trainer_and_as_a_slow_client(export: Any) -> None:
    one, folder = export
    reranker = Reranker.load(folder)
    assert reranker.contract == one.contract
    trainer = Reranker(one.model, one.tokenizer, one.contract)
    cutting = reranker.reading(AS_CUT)
    encoder = load_encoder(folder)
    for query in QUERIES:
        scores = reranker.score(query, DOCUMENTS)
        assert scores == pytest.approx(trainer.score(query, DOCUMENTS), abs=1e-4)
        # One prompt at a time, cut, the largest by hand.
        slow = [max(cutting.score(query, [text])[0] for text in encoder.texts(query, d)) for d in DOCUMENTS]
        assert scores == pytest.approx(slow, abs=1e-4)
        assert [row.score for row in reranker.rank(query, DOCUMENTS)] == sorted(scores, reverse=True)
        whole = cutting.score(query, DOCUMENTS)
        assert whole[4:] == pytest.approx(scores[4:], abs=1e-5)
        assert whole[:3] != pytest.approx(scores[:3], abs=1e-3)
    in_windows = one.contract.long_documents.strategy == "max"
    assert (reranker.cut.get("windows", 0) > len(QUERIES) * len(DOCUMENTS)) == in_windows
    assert (reranker.cut["documents_cut"] == 0) == in_windows


def test_the_code_of_serve_makes_the_texts_that_our_reranker_scores(export: Any) -> None:
    _, folder = export
    text = (folder / "SERVE.md").read_text(encoding="utf-8")
    section = text.split("## Long documents\n", 1)[1].split("\n## ", 1)[0]
    (snippet,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    shown: list[Any] = []
    names: dict[str, Any] = {"print": shown.append}
    exec(snippet.replace("FOLDER", str(folder)), names)
    assert len(shown) == 1 and len(shown[0]) == 1
    encoder = load_encoder(folder)
    made = names["windows"] if "windows" in names else names["encoder"].texts
    for query in QUERIES:
        assert [made(query, d) for d in DOCUMENTS[:5]] == [encoder.texts(query, d) for d in DOCUMENTS[:5]]
    if "score" in names:
        cutting = Reranker.load(folder).reading(AS_CUT)
        by_client = [names["score"](cutting.score, QUERIES[0], d) for d in DOCUMENTS]
        assert by_client == pytest.approx(Reranker.load(folder).score(QUERIES[0], DOCUMENTS), abs=1e-5)
    assert "SERVE.md" in (folder / "README.md").read_text(encoding="utf-8")


def test_golden_rows_are_prompts_that_every_runtime_can_repeat(export: Any) -> None:
    one, folder = export
    rows, encoder = read_golden(folder), load_encoder(folder)
    long = [row for row in rows if row["kind"] == "real" and "rises in the mountains" in row["document"]]
    assert long
    # What is read of real documents, and not the whole of them.
    assert all(len(row["token_ids"]) <= one.contract.max_tokens for row in rows)
    assert all(len(row["document"]) < len(DOCUMENTS[0]) for row in long)
    assert any(len(row["token_ids"]) == one.contract.max_tokens for row in rows if row["kind"] == "long")
    own = Reranker(one.model, one.tokenizer, one.contract)
    pair = (QUERIES[0], encoder.texts(QUERIES[0], DOCUMENTS[0], every=False)[0])
    (row,) = [row for row in rows if (row["query"], row["document"]) == pair]
    assert row["logit"] == pytest.approx(own.reading(AS_CUT).score(pair[0], [pair[1]])[0], abs=1e-4)


@pytest.mark.slow
def test_the_export_is_proven_by_every_runtime(trained: dict[str, Any], tmp_path: Path) -> None:
    one = trained["qwen3-portable"]
    contract = one.contract.replace(max_tokens=420, query_tokens=40, long_documents=LongDocuments("max"))
    TARGETS["hf"].write(dataclasses.replace(one, contract=contract), tmp_path)
    report = measure(tmp_path, 1e-4)
    assert report["failures"] == [] and report["cut_rows"] > 0


def test_an_export_that_cuts_has_no_section_for_long_documents(trained: dict[str, Any], tmp_path: Path) -> None:
    one = trained["qwen3-portable"]
    TARGETS["hf"].write(one, tmp_path)
    write_card(tmp_path, CardFacts(), one.contract, {"rows": 1, "engines": {}}, base_name="base", revision=None)
    assert "Long documents" not in (tmp_path / "SERVE.md").read_text()
    assert "A longer document is cut; the rest" in (tmp_path / "README.md").read_text()
