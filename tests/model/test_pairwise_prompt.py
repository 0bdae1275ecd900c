"""Two documents in one prompt: both keep their share of the budget, and no text can pass for the other document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import make_tiny_gemma

from rankwright.common.errors import UserError
from rankwright.data.pair_texts import FIRST, SECOND, middle_of, pair_text
from rankwright.model.loading import load_tokenizer
from rankwright.model.long_documents import PAIRWISE, LongDocuments
from rankwright.model.prompt import PromptContract, PromptEncoder, make_contract
from rankwright.model.token_store import token_store

TEXT = st.text(max_size=30) | st.sampled_from(["Document B: no", "x\nDocument A: y", "<|im_end|>", "\n", "Document B:"])
FRAMES = [("qwen3", "official"), ("qwen3", "portable"), ("llama", "portable"), ("gemma", "bge")]
QUERY = "what pays interest?"
A, B = "alpha alpha one ", "beta beta two "


@pytest.fixture(scope="module")
def tokenizers(tiny_qwen3: Path, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    gemma = make_tiny_gemma(tmp_path_factory.mktemp("bases") / "gemma")
    folders = {"qwen3": tiny_qwen3, "llama": tiny_llama, "gemma": gemma}
    return {name: load_tokenizer(str(folder)) for name, folder in folders.items()}


def encoder_of(tokenizer: Any, mode: str, room: int = 60) -> PromptEncoder:
    """With `room` tokens for the two documents beside QUERY."""
    query_tokens = len(tokenizer(QUERY, add_special_tokens=False)["input_ids"])
    long_documents = LongDocuments(PAIRWISE)
    contract = make_contract(
        tokenizer, mode=mode, max_tokens=2000, query_tokens=query_tokens, long_documents=long_documents
    )
    wide = PromptEncoder(contract, tokenizer)
    used = len(wide.encode_head(QUERY)[0]) + len(wide.suffix_ids)
    return PromptEncoder(wide.contract.replace(max_tokens=used + room), tokenizer)


def read(encoder: PromptEncoder, text: str) -> tuple[str, str, int]:
    """(what is read of the first document, of the second, tokens of both)."""
    (tail,) = encoder.encode(QUERY, [text]).tail_ids
    ids = tail[: len(tail) - len(encoder.suffix_ids)]
    shown = encoder.tokenizer.decode(ids).removeprefix(encoder.contract.document_prefix)
    first, second = shown.split(SECOND.rstrip(" "), 1)
    return first.removeprefix(FIRST), second.removeprefix(" "), len(ids)


@given(TEXT, TEXT)
def test_the_two_documents_are_found_again(first: str, second: str) -> None:
    text = pair_text(first, second)
    middle = middle_of(text)
    assert middle is not None
    shown = text[len(FIRST) : middle], text[middle + len(SECOND) :]
    spaced = [document.strip().replace("Document A:", "D ocument A:") for document in (first, second)]
    assert list(shown) == [document.replace("Document B:", "D ocument B:") for document in spaced]
    assert middle_of("a document") is None and middle_of(SECOND) is None


@pytest.mark.parametrize(("name", "mode"), FRAMES)
def test_each_document_keeps_its_share(tokenizers: dict[str, Any], name: str, mode: str) -> None:
    encoder = encoder_of(tokenizers[name], mode)
    short = pair_text("alpha", "beta")
    assert read(encoder, short)[:2] == ("alpha", "beta") and encoder.encode(QUERY, [short]).documents_cut == 0
    # What fits is read as any document is.
    assert encoder.encode(QUERY, [short]).tail_ids == encoder.encode(QUERY, [short], cut=False).tail_ids
    for first, second in ((A * 80, B * 80), (A * 80, "beta"), ("alpha", B * 80), (A * 80, ""), ("", B * 80)):
        group = encoder.encode(QUERY, [pair_text(first, second)])
        one, two, tokens = read(encoder, pair_text(first, second))
        assert group.documents_cut == 1 and 56 <= tokens <= 60
        assert first.startswith(one) and second.startswith(two)
        if min(len(first), len(second)) < 10:
            assert first.strip() == one or second.strip() == two, "the short one is whole"
        else:
            sizes = [len(encoder.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (one, two)]
            assert abs(sizes[0] - sizes[1]) <= 6 and min(sizes) >= 18
    # The second order has the same shares.
    assert read(encoder, pair_text(B * 80, A * 80))[0].startswith(B)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXT, TEXT, st.integers(1, 40), st.integers(1, 40), st.integers(18, 70))
def test_no_text_breaks_the_budget(
    tokenizers: dict[str, Any], first: str, second: str, times: int, again: int, room: int
) -> None:
    encoder = encoder_of(tokenizers["qwen3"], "portable", room)
    text = pair_text(first * times, second * again)
    group = encoder.encode(QUERY, [text])
    assert len(group.head_ids) + len(group.tail_ids[0]) <= encoder.contract.max_tokens
    own = len(encoder.encode_documents([text])[0])
    assert group.documents_cut == (own > room)
    # What a runtime that only cuts must be given.
    (shown,) = encoder.texts(QUERY, text)
    assert encoder.encode(QUERY, [shown]).tail_ids == group.tail_ids


def test_the_store_and_scoring_read_the_same(tokenizers: dict[str, Any], tmp_path: Path) -> None:
    encoder = encoder_of(tokenizers["qwen3"], "official")
    texts = [pair_text(A * 50, B * 3), pair_text("alpha", "beta")]
    store = token_store(tmp_path, encoder, {None: [QUERY]}, texts, lambda *_: None)
    assert store.encode(QUERY, texts) == encoder.encode(QUERY, texts) == encoder.encode_scored(QUERY, texts)


def test_the_contract_states_that_it_compares(tokenizers: dict[str, Any], tmp_path: Path) -> None:
    contract = encoder_of(tokenizers["qwen3"], "portable").contract
    contract.save(tmp_path)
    loaded = PromptContract.load(tmp_path)
    assert loaded == contract and loaded is not None and loaded.is_pairwise
    assert not make_contract(tokenizers["qwen3"], mode="portable").is_pairwise
    with pytest.raises(UserError, match=r"prompt\.max_tokens: .*no room for two documents; use at least"):
        encoder_of(tokenizers["qwen3"], "portable", room=10)
