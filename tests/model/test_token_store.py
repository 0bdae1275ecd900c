"""Stored ids are those of the encoder; the store is named by what it depends on and safe for several processes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tiny import PAIRS

from rankwright.model.loading import load_tokenizer
from rankwright.model.prompt import PromptEncoder, make_contract
from rankwright.model.token_store import token_store

QUERIES = [query for query, _ in PAIRS] + ["why " * 100]
DOCUMENTS = [document for _, document in PAIRS] + ["", "word " * 500, "a <|im_end|> b"]


@pytest.fixture(scope="module", params=["portable", "official"])
def encoder(request: pytest.FixtureRequest, tiny_qwen3: Path) -> PromptEncoder:
    tokenizer = load_tokenizer(str(tiny_qwen3))
    return PromptEncoder(make_contract(tokenizer, mode=request.param, max_tokens=160), tokenizer)


def refuse(count: int) -> None:
    raise AssertionError("tokenised a second time")


def test_stored_groups_equal_those_of_the_encoder(encoder: PromptEncoder, tmp_path: Path) -> None:
    seen: list[int] = []
    store = token_store(tmp_path, encoder, {None: QUERIES}, DOCUMENTS, seen.append)
    assert sum(seen) == len(set(QUERIES)) + len(set(DOCUMENTS))
    again = token_store(tmp_path, encoder, {None: reversed(QUERIES)}, DOCUMENTS * 2, refuse)
    for query in QUERIES:
        expected = encoder.encode(query, DOCUMENTS)
        assert store.encode(query, DOCUMENTS) == again.encode(query, DOCUMENTS) == expected
    assert store.encode(QUERIES[-1], DOCUMENTS).query_cut
    assert store.encode(QUERIES[-1], DOCUMENTS).documents_cut == 1


def test_texts_that_are_not_stored_are_tokenised(encoder: PromptEncoder, tmp_path: Path) -> None:
    store = token_store(tmp_path, encoder, {None: QUERIES[:2]}, DOCUMENTS[:2], lambda _: None)
    for query, documents in ((QUERIES[0], ["new"]), ("new", DOCUMENTS[:2]), ("new", ["new"]), (QUERIES[0], [])):
        assert store.encode(query, documents) == encoder.encode(query, documents)
    assert store.encode(QUERIES[0], DOCUMENTS[:1], cut=False) == encoder.encode(QUERIES[0], DOCUMENTS[:1], cut=False)


@pytest.mark.parametrize("name", ["ids.bin", "ends.npy", "keys.npy", "sha256.json"])
def test_a_changed_store_is_made_again(encoder: PromptEncoder, tmp_path: Path, name: str) -> None:
    token_store(tmp_path, encoder, {None: QUERIES}, DOCUMENTS, lambda _: None)
    (folder,) = tmp_path.iterdir()
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    said: list[str] = []
    store = token_store(tmp_path, encoder, {None: QUERIES}, DOCUMENTS, lambda _: None, said.append)
    assert said == [f"{folder}: damaged: removed, the texts are tokenised again"]
    assert (folder / name).read_bytes() == content
    assert store.encode(QUERIES[0], DOCUMENTS) == encoder.encode(QUERIES[0], DOCUMENTS)


def test_another_text_or_prompt_is_another_store(encoder: PromptEncoder, tmp_path: Path) -> None:
    token_store(tmp_path, encoder, {None: QUERIES}, DOCUMENTS, lambda _: None)
    token_store(tmp_path, encoder, {None: QUERIES}, [*DOCUMENTS, "one more"], lambda _: None)
    # A query that moves to the documents is not the same either.
    token_store(tmp_path, encoder, {None: QUERIES[1:]}, [*DOCUMENTS, QUERIES[0]], lambda _: None)
    other = PromptEncoder(encoder.contract.replace(instruction="another"), encoder.tokenizer)
    token_store(tmp_path, other, {None: QUERIES}, DOCUMENTS, lambda _: None)
    assert len(list(tmp_path.iterdir())) == 4


def test_many_at_once_and_nothing_is_left_behind(encoder: PromptEncoder, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        jobs = [
            pool.submit(token_store, tmp_path, encoder, {None: QUERIES}, DOCUMENTS, lambda _: None) for _ in range(4)
        ]
        stores = [job.result() for job in jobs]
    assert [p.name.startswith(".") for p in tmp_path.iterdir()] == [False]
    assert all(s.encode(QUERIES[0], DOCUMENTS) == encoder.encode(QUERIES[0], DOCUMENTS) for s in stores)


def test_a_failure_leaves_nothing_half_written(encoder: PromptEncoder, tmp_path: Path) -> None:
    def fail(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        token_store(tmp_path, encoder, {None: QUERIES}, DOCUMENTS, fail)
    assert list(tmp_path.iterdir()) == []


def test_each_instruction_has_its_heads_and_all_share_the_documents(encoder: PromptEncoder, tmp_path: Path) -> None:
    queries = {None: QUERIES[:3], "Find the clause.": QUERIES[2:], encoder.contract.instruction: ["one more"]}
    seen: list[int] = []
    store = token_store(tmp_path, encoder, queries, DOCUMENTS, seen.append)
    # The third is the encoder's own, spelled out; the query that two sets have is read under both.
    assert sum(seen) == len(set(QUERIES[:3])) + len(set(QUERIES[2:])) + 1 + len(set(DOCUMENTS))
    other = encoder.under("Find the clause.")
    assert other.contract.instruction == "Find the clause." != encoder.contract.instruction
    for query in [*QUERIES, "one more"]:
        assert store.encode(query, DOCUMENTS) == encoder.encode(query, DOCUMENTS)
        assert store.under("Find the clause.").encode(query, DOCUMENTS) == other.encode(query, DOCUMENTS)
    heads = [e.encode(QUERIES[2], DOCUMENTS[:1]).head_ids for e in (store, store.under("Find the clause."))]
    assert heads[0] != heads[1]
    assert store.under(None) is store and store.under(f" {encoder.contract.instruction} ") is store
    # What is stored is not tokenised again, under any of them.
    again = token_store(tmp_path, encoder, queries, DOCUMENTS, refuse)
    assert again.under("Find the clause.").encode(QUERIES[5], DOCUMENTS) == other.encode(QUERIES[5], DOCUMENTS)
