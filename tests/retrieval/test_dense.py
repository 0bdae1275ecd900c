"""Dense retrieval: equal to sentence-transformers' own search, in any order, and encoded once whatever is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jobs
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_encoder import WORDS, make_tiny_encoder

from rankwright.common.errors import UserError
from rankwright.retrieval import vectors
from rankwright.retrieval.candidates import ranked
from rankwright.retrieval.dense import BiEncoder, dense, nearest
from rankwright.retrieval.vectors import VectorStore, store_name


def texts(count: int, prefix: str, seed: int = 0) -> dict[str, str]:
    """Some texts twice, some longer than the model reads."""
    drawn = random.Random(seed)
    made = [" ".join(drawn.choices(WORDS, k=drawn.choice((2, 5, 9, 40)))) for _ in range(count)]
    return {f"{prefix}{i}": made[i - i % 7 if i % 7 == 1 else i] for i in range(count)}


CORPUS, QUERIES = texts(90, "d"), texts(9, "q", seed=1)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_encoder(tmp_path_factory.mktemp("encoders") / "cosine", query="find: ")


def shuffled(values: dict[str, str], seed: int) -> dict[str, str]:
    return dict(random.Random(seed).sample(list(values.items()), len(values)))


@pytest.mark.parametrize(("similarity", "chunk"), [("cosine", 16384), ("dot", 16384), ("dot", 7), ("euclidean", 13)])
def test_equal_to_the_search_of_sentence_transformers(
    tmp_path: Path, similarity: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import semantic_search

    monkeypatch.setattr(vectors, "CHUNK_TEXTS", chunk)
    folder = make_tiny_encoder(tmp_path / "encoder", similarity=similarity, query="find: ", document="text: ")
    found = dense(CORPUS, model=str(folder), depth=10, cache=tmp_path / "cache")(QUERIES)
    model = SentenceTransformer(str(folder), device="cpu")
    ids = list(CORPUS)
    hits = semantic_search(
        model.encode_query(list(QUERIES.values()), convert_to_tensor=True),
        model.encode_document(list(CORPUS.values()), convert_to_tensor=True),
        top_k=len(ids),
        score_function=model.similarity,
    )
    for query_id, theirs in zip(QUERIES, hits, strict=True):
        scores = {ids[int(hit["corpus_id"])]: float(hit["score"]) for hit in theirs}
        assert [c.rank for c in found[query_id]] == list(range(1, 11))
        for candidate, hit in zip(found[query_id], theirs, strict=False):
            assert candidate.score == pytest.approx(hit["score"], abs=2e-5)
            assert scores[candidate.document_id] == pytest.approx(candidate.score, abs=2e-5)


def test_the_order_of_corpus_and_queries_does_not_matter(tmp_path: Path, encoder: Path) -> None:
    lists = [
        dense(shuffled(CORPUS, seed), model=str(encoder), depth=20, cache=tmp_path / str(seed))(shuffled(QUERIES, seed))
        for seed in range(3)
    ]
    assert lists[0] == lists[1] == lists[2]
    # Equal texts tie exactly.
    scores = {
        c.document_id: c.score for c in dense(CORPUS, model=str(encoder), depth=90, cache=tmp_path)(QUERIES)["q0"]
    }
    assert len(scores) == 90
    assert all(scores[a] == scores[b] for a in CORPUS for b in CORPUS if CORPUS[a] == CORPUS[b])


def product(one: Any, two: Any) -> torch.Tensor:
    """Similarity as the product of vectors."""
    return torch.tensor(one) @ torch.tensor(two).T


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.integers(-2, 2), min_size=3, max_size=3), min_size=1, max_size=14),
    st.lists(st.lists(st.integers(-2, 2), min_size=3, max_size=3), min_size=1, max_size=4),
    st.integers(1, 6),
    st.integers(1, 5),
    st.randoms(use_true_random=False),
)
def test_chunks_and_ties_give_what_sorting_all_scores_gives(
    documents: list[list[int]], queries: list[list[int]], depth: int, chunk: int, drawn: random.Random
) -> None:
    # Small whole numbers: many exact ties, within texts and between them.
    document_texts, query_texts = [f"t{i}" for i in range(len(documents))], [f"t{i}" for i in range(len(queries))]
    corpus = {f"d{i}": drawn.choice(document_texts) for i in range(18)} | {f"e{t}": t for t in document_texts}
    asked = {f"q{i}": drawn.choice(query_texts) for i in range(5)} | {f"r{t}": t for t in query_texts}
    one, two = np.array(queries, dtype=np.float32), np.array(documents, dtype=np.float32)
    chunks = [(start, two[start : start + chunk]) for start in range(0, len(two), chunk)]
    ids = [[d for d, t in corpus.items() if t == text] for text in document_texts]
    asked_ids = [[q for q, t in asked.items() if t == text] for text in query_texts]
    lists = nearest(chunks, ids, one, asked_ids, product, depth)
    place = {t: i for i, t in enumerate(document_texts)}
    assert set(lists) == set(asked)
    for query_id, found in lists.items():
        query = one[int(asked[query_id][1:])]
        expected = ranked(query_id, {d: float(query @ two[place[t]]) for d, t in corpus.items()})[:depth]
        assert [(c.document_id, c.score) for c in found] == expected


def test_texts_are_encoded_once_and_anything_else_misses(
    tmp_path: Path, encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def encoded(model: Path, corpus: dict[str, str] = CORPUS, **options: Any) -> str:
        capsys.readouterr()
        dense(corpus, model=str(model), cache=tmp_path / "cache", **options)(QUERIES)
        return next(
            line for line in capsys.readouterr().out.splitlines() if "document texts" in line and "of them" in line
        )

    count = len(set(CORPUS.values()))
    assert f"{count} distinct document texts, 0 of them" in encoded(encoder)
    assert f"{count} of them encoded before" in encoded(encoder)
    assert "cut to the 24 tokens" in encoded(encoder)
    # The same weights somewhere else are the same; a prompt of the other side changes nothing here.
    copy = make_tiny_encoder(tmp_path / "copy", query="find: ")
    assert f"{count} of them encoded before" in encoded(copy, query_prompt="q: ")
    assert ", 0 of them" in encoded(encoder, document_prompt="d: ")
    assert f"{count + 1} distinct document texts, {count} of them" in encoded(encoder, {**CORPUS, "new": "a new text"})
    # Other weights under the same name miss.
    other = make_tiny_encoder(tmp_path / "other", seed=1, query="find: ")
    (copy / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    assert ", 0 of them" in encoded(copy)
    # And so does one weight of them.
    weights = load_file(other / "model.safetensors")
    name = next(n for n, tensor in weights.items() if tensor.is_floating_point())
    weights[name].view(-1)[0] += 1e-3
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert ", 0 of them" in encoded(copy)
    # The same weights compute something else with other heads; who wrote the file changes nothing.
    settings = json.loads((copy / "config.json").read_text())
    for changed, expected in (({"transformers_version": "0.0"}, count), ({"num_attention_heads": 4}, 0)):
        (copy / "config.json").write_text(json.dumps(settings | changed))
        assert f", {expected} of them" in encoded(copy)


def test_a_prompt_goes_in_front_and_the_models_own_is_the_default(tmp_path: Path, encoder: Path) -> None:
    plain = BiEncoder(str(encoder), None, {"query": "", "document": ""})
    assert plain.prompts == {"query": "find: ", "document": ""}
    own = BiEncoder(str(encoder), None, {"query": "ask: ", "document": "text: "})
    ours, _ = own.encode("document", ["a bond"])
    theirs, _ = plain.encode("document", ["text: a bond"])
    assert np.allclose(ours, theirs, atol=1e-6)
    assert plain.encode("document", ["a", " ".join(["bond"] * 22), " ".join(["bond"] * 23)])[1].tolist() == [
        False,
        False,
        True,
    ]


def test_a_file_that_the_disk_does_not_give_is_not_taken_for_damaged(tmp_path: Path) -> None:
    # As what a disk, or a limit of open files, may answer; root may read whatever its mode says.
    (tmp_path / "0.npy").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        VectorStore(tmp_path, print)
    assert (tmp_path / "0.npy").is_dir()


def test_a_file_that_another_process_removed_is_passed_over(tmp_path: Path) -> None:
    # Listed, and gone when it is read.
    (tmp_path / "0.npy").symlink_to(tmp_path / "gone")
    assert "a" not in VectorStore(tmp_path, pytest.fail)


def test_a_damaged_file_is_encoded_again(tmp_path: Path, encoder: Path) -> None:
    whole = dense(CORPUS, model=str(encoder), cache=tmp_path)(QUERIES)
    for path in (tmp_path / "vectors").rglob("*.npy"):
        path.write_bytes(path.read_bytes()[:-30])
    assert dense(CORPUS, model=str(encoder), cache=tmp_path)(QUERIES) == whole


def encode(some: Any) -> tuple[Any, Any]:
    return np.array([[len(t), hash(t) % 97] for t in some], dtype=np.float32), np.zeros(len(some), dtype=bool)


def test_a_store_gives_back_what_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "SHARD_TEXTS", 4)
    monkeypatch.setattr(vectors, "CHUNK_TEXTS", 3)
    some = [f"text {i} \ud800" for i in range(11)]
    store = VectorStore(tmp_path, print)
    assert store.encode_missing(some[:6], encode, lambda _: None) == 6
    assert store.encode_missing(some, encode, lambda _: None) == 5
    again = VectorStore(tmp_path, print)
    assert again.encode_missing(some, lambda _: pytest.fail("encoded twice"), lambda _: None) == 0
    read = np.concatenate([found for _, found in again.chunks(some)])
    assert (read == encode(some)[0]).all()
    assert [start for start, _ in again.chunks(some)] == [0, 3, 6, 9]
    with pytest.raises(UserError, match="not finite"):
        store.encode_missing(["bad"], lambda _: (np.array([[np.nan]]), [False]), lambda _: None)
    assert store_name("a", {"query": "x"}) != store_name("a", {"document": "x"})


SLOW = """
import sys, time
from pathlib import Path
import numpy as np
from rankwright.retrieval import vectors
vectors.SHARD_TEXTS = 5
def encode(some):
    time.sleep(0.05)
    return np.array([[len(t), 1.0] for t in some], dtype=np.float32), np.zeros(len(some), dtype=bool)
store = vectors.VectorStore(Path(sys.argv[1]), print)
print(store.encode_missing([f"text {i}" for i in range(100)], encode, lambda _: None))
assert store.read(["text 3"]).tolist() == [[6.0, 1.0]]
"""


def test_two_processes_and_a_kill_in_the_middle(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SLOW, str(tmp_path)]
    killed = subprocess.Popen(command, env=jobs.environment())
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*.npy"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    kept = len(list(tmp_path.glob("*.npy")))
    assert 3 <= kept < 20
    both = [subprocess.Popen(command, env=jobs.environment(), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert all(int(answer) <= 100 - 5 * kept for answer in answers)
    assert len(VectorStore(tmp_path, print).read([f"text {i}" for i in range(100)])) == 100


def test_mistakes_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"dense\.model.*no such folder"):
        dense(CORPUS, model=str(tmp_path / "nothing"))(QUERIES)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"dense\.model .*cannot be loaded") as caught:
        dense(CORPUS, model=str(tmp_path / "empty"))(QUERIES)
    assert "\n" not in str(caught.value)
    assert dense({}, model="x")(QUERIES) == {q: [] for q in QUERIES}
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'rankwright\[dense\]'"):
        dense(CORPUS, model="x")(QUERIES)
