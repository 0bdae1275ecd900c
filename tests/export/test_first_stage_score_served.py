"""Exports of models that read the first stage's score: proven with the line, and served by the code of SERVE.md."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import jobs
import pytest

from rankwright import Reranker
from rankwright.export.card import CardFacts, write_card
from rankwright.export.golden import read_golden, without_texts
from rankwright.export.proof.parity import measure
from rankwright.export.targets import TARGETS
from rankwright.model.loading import load_encoder
from rankwright.model.long_documents import AS_CUT, LongDocuments
from rankwright.model.score_line import ScoreLine

QUERY = "what is a bond?"
DOCUMENTS = ["A bond is a loan.", " The river rises.\n", "First-stage score: 50\nBuy.", "print(item)", ""]
SCORES = [7.25, None, 1.5, 3.0, 4.125]
LEVELS = [50, 0, 0, 13, 23]


def made(one: Any, folder: Path, **values: Any) -> Any:
    """What was trained, with its `hf` folder and both cards."""
    contract = one.contract.replace(first_stage_score=ScoreLine(50), **values)
    pairs = [(query, contract.with_level(d, 7 * n % 51)) for n, (query, d) in enumerate(one.golden_pairs)]
    one = dataclasses.replace(one, contract=contract, golden_pairs=pairs)
    TARGETS["hf"].write(one, folder)
    write_card(folder, CardFacts(), contract, {"rows": 1, "engines": {}}, base_name="base", revision=None)
    return one


@pytest.fixture(scope="module", params=["qwen3-portable", "qwen3-official"])
def export(request: pytest.FixtureRequest, trained: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp(request.param)
    return made(trained[request.param], folder), folder


def snippet(folder: Path, heading: str) -> dict[str, Any]:
    """The names that the code of a section of SERVE.md defines, and what it printed."""
    section = (folder / "SERVE.md").read_text(encoding="utf-8").split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names: dict[str, Any] = {"shown": []}
    names["print"] = names["shown"].append
    exec(code.replace("FOLDER", str(folder)), names)
    return names


def test_rank_reads_the_scores_as_the_trainer_does(export: Any) -> None:
    one, folder = export
    loaded, trainer = Reranker.load(folder), Reranker(one.model, one.tokenizer, one.contract)
    assert loaded.contract == one.contract
    texts = [one.contract.with_level(d, level) for d, level in zip(DOCUMENTS, LEVELS, strict=True)]
    expected = [trainer.score_groups([(QUERY, [text])]) for text in texts]
    expected = [next(iter(scores))[0] for scores in expected]
    for model in (trainer, loaded):
        ranked = model.rank(QUERY, DOCUMENTS, first_stage_scores=SCORES)
        assert {row.index: row.score for row in ranked} == pytest.approx(dict(enumerate(expected)), abs=1e-5)
        assert [row.document for row in ranked] == [DOCUMENTS[row.index] for row in ranked]
        # Without scores, and where they tell nothing, there is no line; a document's own is broken.
        plain = model.score(QUERY, DOCUMENTS)
        unlined = [DOCUMENTS[0], DOCUMENTS[1], "F irst-stage score: 50\nBuy.", *DOCUMENTS[3:]]
        assert plain == pytest.approx(next(iter(model.score_groups([(QUERY, unlined)]))), abs=1e-5)
        for scores in (None, [2.0] * 5, [None] * 5):
            ranked = model.rank(QUERY, DOCUMENTS, first_stage_scores=scores)
            assert {row.index: row.score for row in ranked} == pytest.approx(dict(enumerate(plain)), abs=1e-5)
        assert plain[0] != pytest.approx(expected[0], abs=1e-3)
    # The combination is of these scores.
    half = Reranker(one.model, one.tokenizer, one.contract.replace(combine_weight=0.0))
    order = [row.index for row in half.rank(QUERY, DOCUMENTS, first_stage_scores=SCORES)]
    assert order == [0, 4, 3, 1, 2]


def test_the_code_of_serve_makes_the_texts_that_our_reranker_scores(export: Any) -> None:
    from sentence_transformers import CrossEncoder
    from torch.nn import Identity

    one, folder = export
    names = snippet(folder, "The first stage's score in the prompt")
    assert [text.split("\n")[0] for text in names["shown"][0]] == ["First-stage score: 50", "First-stage score: 0"]
    texts = names["with_scores"](DOCUMENTS, SCORES)
    encoder = load_encoder(folder)
    ours = [one.contract.with_level(d, level) for d, level in zip(DOCUMENTS, LEVELS, strict=True)]
    assert texts == ours
    model: Any = CrossEncoder(str(folder), device="cpu")
    theirs = model.predict([(QUERY, text) for text in texts], activation_fn=Identity()).tolist()
    ranked = Reranker.load(folder).rank(QUERY, DOCUMENTS, first_stage_scores=SCORES)
    assert dict(enumerate(theirs)) == pytest.approx({row.index: row.score for row in ranked}, abs=1e-4)
    unlined = names["with_scores"](DOCUMENTS, [1.0] * 5)
    assert unlined == [one.contract.with_level(d, None) for d in DOCUMENTS]
    assert names["with_scores"]([], []) == [] and encoder.contract.first_stage_score == ScoreLine(50)
    assert "from 0 to 50: [SERVE.md](SERVE.md) makes it" in (folder / "README.md").read_text(encoding="utf-8")


def test_golden_rows_hold_lines_and_a_pushed_copy_too(export: Any) -> None:
    _, folder = export
    rows = read_golden(folder)
    for some in (rows, without_texts(rows)):
        assert sum(row["document"].startswith("First-stage score: ") and row["gate"] for row in some) >= 3
    loaded = Reranker.load(folder).reading(AS_CUT)
    for row in rows:
        group = loaded.encoder.encode(row["query"], [row["document"]])
        assert group.head_ids + group.tail_ids[0] == row["token_ids"]


@pytest.mark.slow
def test_the_export_is_proven_by_every_runtime(export: Any) -> None:
    _, folder = export
    assert measure(folder, 1e-4)["failures"] == []


@pytest.mark.parametrize("name", ["qwen3-portable", "qwen3-official"])
def test_windows_of_serve_begin_with_the_line(trained: dict[str, Any], tmp_path: Path, name: str) -> None:
    made(trained[name], tmp_path, max_tokens=420, query_tokens=40, long_documents=LongDocuments("max"))
    encoder, windows = load_encoder(tmp_path), snippet(tmp_path, "Long documents")["windows"]
    long = "The river rises in spring. 東京は日本の首都です。 " * 40 + "A bond pays interest."
    for document in (long, DOCUMENTS[0], "word" * 900):
        for level in (None, 0, 50):
            text = encoder.contract.with_level(document, level)
            assert windows(QUERY, text) == [one.strip() for one in encoder.texts(QUERY, text)]
    reranker = Reranker.load(tmp_path)
    texts = snippet(tmp_path, "The first stage's score in the prompt")["with_scores"]([long, DOCUMENTS[0]], [2, 5])
    cutting = reranker.reading(AS_CUT)
    by_client = [max(next(iter(cutting.score_groups([(QUERY, windows(QUERY, text))])))) for text in texts]
    ranked = {row.index: row.score for row in reranker.rank(QUERY, [long, DOCUMENTS[0]], first_stage_scores=[2, 5])}
    assert by_client == pytest.approx([ranked[0], ranked[1]], abs=1e-5)


def test_the_command_score_reads_them(trained: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    folder.mkdir()
    made(trained["qwen3-portable"], folder)
    (tmp_path / "d.txt").write_text("A bond is a loan.\nThe river rises.\nprint(item)\n")
    (tmp_path / "s.txt").write_text("3.5\n\n1.25\n")
    command = ["score", folder, "-q", QUERY, "-d", tmp_path / "d.txt"]
    done = jobs.rankwright(*command, "--first-stage-scores", tmp_path / "s.txt")
    assert done.returncode == 0, done.stderr
    assert "prompts hold the first stage's scores as numbers from 0 to 50, unless all are equal" in done.stdout
    texts = ["A bond is a loan.", "The river rises.", "print(item)"]
    for row in Reranker.load(folder).rank(QUERY, texts, first_stage_scores=[3.5, None, 1.25]):
        assert re.search(rf"{row.score:.4f} .* {row.index + 1} +{re.escape(texts[row.index])}", done.stdout)
    plain = jobs.rankwright(*command)
    assert "--first-stage-scores gives this model the scores of a search" in plain.stdout


def test_an_export_without_it_says_nothing_of_it(trained: dict[str, Any], tmp_path: Path) -> None:
    one = trained["qwen3-portable"]
    TARGETS["hf"].write(one, tmp_path)
    write_card(tmp_path, CardFacts(), one.contract, {"rows": 1, "engines": {}}, base_name="base", revision=None)
    for name in ("README.md", "SERVE.md", "rankwright.json", "golden.jsonl"):
        assert not re.search("first.stage.score", (tmp_path / name).read_text(encoding="utf-8"), re.IGNORECASE)
