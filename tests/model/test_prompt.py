"""The prompt contract: exact text and ids in both frames, budgets, control tokens, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import make_tiny_llama

from rankwright.common.errors import UserError
from rankwright.model.control_tokens import control_tokens, neutralise
from rankwright.model.frames import choose_pad_token, single_token_id
from rankwright.model.loading import load_tokenizer
from rankwright.model.prompt import (
    CONTRACT_FILE,
    PromptContract,
    PromptEncoder,
    make_contract,
)

PIECES = ["<|im_end|>", "<|im_start|>", "<think>", "</think>", "<|eot_id|>", "<", "|im_end|>", "<|im_<|im_end|>end|>"]
PIECES += ["\n", "\r\n", "\n\n", " ", "  ", "\t", "\u00a0", "\u2028", "\x1f", "?", "...", "'s", "yes", "no", "query"]
PIECES += [
    "é",
    "e\u0301",
    "\u0301",
    "東京",
    "🎉",
    "👩\u200d🚀",
    "ﬁ",
    "123",
    "f(x):",
    "def f():\n    return 1",
    ":",
    "-",
]
TEXT = st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=8).map("".join)
FRAMES = [("qwen3", "official"), ("qwen3", "portable"), ("llama", "portable")]
SLOW_FIXTURES = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def tokenizers(tiny_qwen3: Path, tiny_llama: Path) -> dict[str, Any]:
    return {"qwen3": load_tokenizer(str(tiny_qwen3)), "llama": load_tokenizer(str(tiny_llama))}


def encoder_of(tokenizers: dict[str, Any], base: str, mode: Any, **options: Any) -> PromptEncoder:
    return PromptEncoder(make_contract(tokenizers[base], mode=mode, **options), tokenizers[base])


def test_official_text_is_that_of_the_vendor_byte_for_byte(tokenizers: dict[str, Any]) -> None:
    encoder = encoder_of(tokenizers, "qwen3", "official")
    assert encoder.render("what is a bond?", "A loan.") == (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
        "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
        "<Query>: what is a bond?\n<Document>: A loan.<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_portable_text_byte_for_byte(tokenizers: dict[str, Any]) -> None:
    task = 'Judge whether the document answers the query. Answer "yes" or "no".\nfind it'
    chatml = encoder_of(tokenizers, "qwen3", "portable", instruction=" find it ")
    assert chatml.render(" q ", "\nd\n") == (
        f"<|im_start|>system\n{task}<|im_end|>\n<|im_start|>query\nq<|im_end|>\n<|im_start|>document\nd<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    llama = encoder_of(tokenizers, "llama", "portable", instruction="find it")
    assert llama.render("q", "d") == (
        f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{task}<|eot_id|>"
        "<|start_header_id|>query<|end_header_id|>\n\nq<|eot_id|>"
        "<|start_header_id|>document<|end_header_id|>\n\nd<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


@pytest.mark.parametrize(("base", "mode"), FRAMES)
@SLOW_FIXTURES
@given(query=TEXT, document=TEXT)
def test_pieces_and_whole_string_give_the_same_ids(
    tokenizers: dict[str, Any], base: str, mode: str, query: str, document: str
) -> None:
    encoder = encoder_of(tokenizers, base, mode)
    assert encoder.encode(query, [document], cut=False) == encoder.encode_whole(query, document)


@pytest.mark.parametrize(("base", "mode"), FRAMES)
@SLOW_FIXTURES
@given(query=TEXT, documents=st.lists(TEXT.map(lambda t: t * 40), max_size=3))
def test_budgets_cut_only_the_document_and_the_query(
    tokenizers: dict[str, Any], base: str, mode: str, query: str, documents: list[str]
) -> None:
    encoder = encoder_of(tokenizers, base, mode, max_tokens=120, query_tokens=20)
    group = encoder.encode(query * 20, documents)
    whole = encoder.encode(query * 20, documents, cut=False)
    frame = tokenizers[base](encoder.contract.head_text(""), add_special_tokens=False)["input_ids"]
    assert len(group.head_ids) <= len(frame) + 20
    before = tokenizers[base](
        encoder.contract.prefix.replace("{instruction}", encoder.contract.instruction), add_special_tokens=False
    )["input_ids"]
    assert group.head_ids[: len(before) - 1] == before[:-1]
    for tail, full in zip(group.tail_ids, whole.tail_ids, strict=True):
        assert len(group.head_ids) + len(tail) <= 120
        assert tail[-len(encoder.suffix_ids) :] == encoder.suffix_ids
        body = tail[: -len(encoder.suffix_ids)]
        assert body == full[: len(body)]
        assert tail == full or len(group.head_ids) + len(tail) == 120
    assert group.documents_cut == sum(t != f for t, f in zip(group.tail_ids, whole.tail_ids, strict=True))
    assert group.query_cut == (encoder.cut_query(encoder.clean(query * 20))[0] != encoder.clean(query * 20))


@pytest.mark.parametrize("base", ["qwen3", "llama"])
@SLOW_FIXTURES
@given(text=TEXT)
def test_neutralised_text_holds_no_control_token_and_stays(tokenizers: dict[str, Any], base: str, text: str) -> None:
    tokens = control_tokens(tokenizers[base])
    clean = neutralise(text, tokens)
    assert not any(token in clean for token in tokens)
    assert neutralise(clean, tokens) == clean
    special = {tokenizers[base].convert_tokens_to_ids(token) for token in tokens}
    assert not special & set(tokenizers[base](clean, add_special_tokens=False)["input_ids"])


def test_neutralise_breaks_a_token_after_its_first_character(tokenizers: dict[str, Any]) -> None:
    tokens = control_tokens(tokenizers["qwen3"])
    assert "<think>" in tokens
    assert neutralise("a<|im_end|>b<think>", tokens) == "a< |im_end|>b< think>"
    # An instruction is text too.
    contract = make_contract(tokenizers["qwen3"], mode="portable", instruction="x<|im_end|>")
    assert contract.instruction == "x< |im_end|>"


def test_pad_token_is_never_the_end_token(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = load_tokenizer(str(make_tiny_llama(tmp_path, pad_is_eos=True)))
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|finetune_right_pad_id|>", "<|eot_id|>")
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="<e>", pad_token="<e>")
    with pytest.raises(UserError, match="pad token"):
        choose_pad_token(bare)


def test_scored_words_must_be_single_tokens(tokenizers: dict[str, Any]) -> None:
    assert single_token_id(tokenizers["qwen3"], "yes") != single_token_id(tokenizers["qwen3"], "no")
    # Llama's tokenizer puts a token in front of bare texts: it must not count.
    assert isinstance(single_token_id(tokenizers["llama"], "yes"), int)
    with pytest.raises(UserError, match="must be one"):
        single_token_id(tokenizers["qwen3"], "maybe yes")


def test_contract_survives_its_file(tokenizers: dict[str, Any], tmp_path: Path) -> None:
    contract = make_contract(tokenizers["qwen3"], mode="official", instruction='où ?\n"x"', max_tokens=200)
    assert PromptContract.load(tmp_path) is None
    contract.save(tmp_path)
    assert PromptContract.load(tmp_path) == contract
    for text in ('{"mode": "official"}', "not json"):
        (tmp_path / CONTRACT_FILE).write_text(text)
        with pytest.raises(UserError, match="export it again"):
            PromptContract.load(tmp_path)
    contract.replace(version=99).save(tmp_path)
    with pytest.raises(UserError, match="version 99"):
        PromptContract.load(tmp_path)


def test_too_small_a_budget_is_refused_with_one_that_fits(tokenizers: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="use at least") as caught:
        make_contract(tokenizers["qwen3"], mode="portable", max_tokens=64)
    least = int(str(caught.value).split("use at least ")[1].split(",")[0])
    contract = make_contract(tokenizers["qwen3"], mode="portable", max_tokens=least, query_tokens=16)
    # A longer instruction put in later must not push the document out in silence.
    with pytest.raises(UserError, match="no room"):
        PromptEncoder(contract.replace(instruction="word " * 40), tokenizers["qwen3"])


def test_a_tokenizer_without_turn_tokens_is_refused(tokenizers: dict[str, Any]) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="<e>")
    with pytest.raises(UserError, match="turn"):
        make_contract(bare, mode="portable")
