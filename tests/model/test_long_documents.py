"""What is read of long documents: windows that cover them, blocks in order, budgets kept, short documents unchanged."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import PAIRS, TEXTS, make_tiny_gemma

from rankwright.common.errors import UserError
from rankwright.data.blocks import blocks
from rankwright.data.words import Words
from rankwright.model.loading import load_tokenizer
from rankwright.model.long_documents import (
    BLOCK_TOKENS,
    OVERLAP,
    STRATEGIES,
    LongDocuments,
    bm25_scores,
    window_spans,
)
from rankwright.model.prompt import CONTRACT_FILE, PromptContract, PromptEncoder, make_contract
from rankwright.model.token_store import token_store
from rankwright.retrieval.bm25 import bm25

PIECES = [
    *TEXTS,
    "# A heading\n",
    "2.1 Scope of it\n",
    "\n\n",
    "\n",
    " ",
    ". ",
    "。",
    "東京",
    "🎉👩\u200d🚀",
    "e\u0301\u0301",
]
PIECES += ["<|im_end|>", "x" * 90, "ﷺ" * 5, "\t", "Section 4\n", "What is a bond? A loan! ", "\u00a0", "bond "]
TEXT = st.lists(st.sampled_from(PIECES) | st.text(max_size=12), max_size=25).map("".join)
# Beyond any budget of these tests.
LONG = st.tuples(TEXT, st.integers(3, 12)).map(lambda of: of[0] * of[1] + " the end of it")
FRAMES = [("qwen3", "official"), ("qwen3", "portable"), ("llama", "portable"), ("gemma", "bge")]
SLOW = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
QUERY = "what pays interest?"


@pytest.fixture(scope="module")
def tokenizers(tiny_qwen3: Path, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    gemma = make_tiny_gemma(tmp_path_factory.mktemp("bases") / "gemma")
    folders = {"qwen3": tiny_qwen3, "llama": tiny_llama, "gemma": gemma}
    return {name: load_tokenizer(str(folder)) for name, folder in folders.items()}


def encoder_of(
    tokenizers: dict[str, Any], strategy: str, base: str = "qwen3", mode: str = "portable", room: int = 200
) -> PromptEncoder:
    """An encoder whose documents have `room` tokens beside a query of 20."""
    plain = PromptEncoder(make_contract(tokenizers[base], mode=mode, query_tokens=20), tokenizers[base])
    frame = len(plain.encode_head("")[0]) + len(plain.suffix_ids)
    contract = plain.contract.replace(max_tokens=frame + 20 + room, long_documents=LongDocuments(strategy))
    return PromptEncoder(contract, tokenizers[base])


def squeezed(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize(("base", "mode"), FRAMES)
@SLOW
@given(document=LONG, room=st.sampled_from([8, 31, 150]))
def test_windows_cover_the_document_with_the_overlap_and_keep_the_budget(
    tokenizers: dict[str, Any], base: str, mode: str, document: str, room: int
) -> None:
    encoder = encoder_of(tokenizers, "max", base, mode, room)
    group = encoder.encode_scored(QUERY, [document])
    room = encoder.contract.max_tokens - len(group.head_ids) - len(encoder.suffix_ids)
    texts, clean = encoder.texts(QUERY, document), encoder.clean(document)
    assert group.windows is not None and sum(group.windows) == len(group.tail_ids) == len(texts)
    assert group.documents_cut == 0
    assert all(len(group.head_ids) + len(tail) <= encoder.contract.max_tokens for tail in group.tail_ids)
    if len(encoder.encode_documents([document])[0]) <= room:
        assert texts == [document]
        return
    spans = list(window_spans(clean, encoder.tokens(clean).starts, room, encoder.tokens))
    assert [text for begin, end in spans if (text := clean[begin:end].strip())] == texts
    assert spans[0][0] == 0 and spans[-1][1] == len(clean)
    for (begin, end), (following, _) in itertools.pairwise(spans):
        assert begin < following <= end
        # One character alone may be as long as a window.
        assert following < end or end - begin == 1 or room == 8
    # A runtime that cuts gets the very prompts.
    cutting = encoder.reading(LongDocuments())
    assert cutting.encode(QUERY, texts).tail_ids == group.tail_ids


def test_windows_of_plain_words_are_full_and_overlap_by_the_share(tokenizers: dict[str, Any]) -> None:
    """Words of one token each, so that places can be counted by hand."""
    words = [f"item {number % 10}" for number in range(2000)]
    encoder = encoder_of(tokenizers, "max", room=100)
    room = encoder.contract.max_tokens - len(encoder.encode_head(QUERY)[0]) - len(encoder.suffix_ids)
    texts = encoder.texts(QUERY, " ".join(words))
    counts = [len(ids) for ids in encoder.encode_documents(texts)]
    whole = len(encoder.encode_documents([" ".join(words)])[0])
    assert all(room - 3 <= count <= room for count in counts[:-1])
    step = room - math.ceil(OVERLAP * room)
    assert len(texts) == pytest.approx((whole - room) / step + 1, abs=2)


@pytest.mark.parametrize(("base", "mode"), FRAMES)
@SLOW
@given(document=LONG)
def test_blocks_keep_the_budget_the_order_and_the_first_block(
    tokenizers: dict[str, Any], base: str, mode: str, document: str
) -> None:
    encoder = encoder_of(tokenizers, "blocks", base, mode)
    group, clean = encoder.encode_scored(QUERY, [document]), encoder.clean(document)
    (tail,), (text,) = group.tail_ids, encoder.texts(QUERY, document)
    assert len(group.head_ids) + len(tail) <= encoder.contract.max_tokens
    assert encoder.reading(LongDocuments()).encode(QUERY, [text]).tail_ids == [tail]
    room = encoder.contract.max_tokens - len(group.head_ids) - len(encoder.suffix_ids)
    if len(encoder.encode_documents([document])[0]) <= room:
        assert (text, group.documents_cut) == (document, 0)
        return
    assert group.documents_cut == 1
    spans = blocks(clean, encoder.tokens(clean).starts, BLOCK_TOKENS)
    assert text.startswith(clean[slice(*spans[0])].strip())
    # What is kept is in the text in this order.
    place = 0
    for part in text.split("\n\n"):
        place = clean.find(part.strip(), place)
        assert place >= 0
    # No tail or head of a block: the packed text is some of the blocks, nothing else.
    rest = squeezed(text)
    for begin, end in spans:
        rest = rest.removeprefix(squeezed(clean[begin:end]))
    assert not rest or len(spans) != len({squeezed(clean[slice(*s)]) for s in spans})


@SLOW
@given(document=LONG)
def test_blocks_are_the_whole_text_and_at_most_so_long(tokenizers: dict[str, Any], document: str) -> None:
    encoder = encoder_of(tokenizers, "blocks")
    clean = encoder.clean(document)
    starts = encoder.tokens(clean).starts
    spans = blocks(clean, starts, BLOCK_TOKENS)
    assert "".join(clean[slice(*span)] for span in spans) == clean
    for begin, end in spans:
        assert (begin < end and sum(begin <= start < end for start in starts) <= BLOCK_TOKENS) or end - begin == 1


def test_blocks_begin_at_headings_then_paragraphs_then_sentences(tokenizers: dict[str, Any]) -> None:
    encoder = encoder_of(tokenizers, "blocks")
    sentence = "The court held that the contract was void. "
    paragraph = (sentence * 5).strip()
    text = f"# First\n\n{paragraph}\n\n{paragraph}\n\n## Second\n{sentence * 30}\nArticle 3\n{'word' * 400}"
    spans = blocks(text, encoder.tokens(text).starts, BLOCK_TOKENS)
    found = [text[slice(*span)] for span in spans]
    assert found[0].startswith("# First") and any(one.startswith("## Second") for one in found)
    assert any(one.startswith("Article 3") for one in found)
    for one in found:
        if "wordword" not in one:
            # No sentence is torn.
            assert one.strip().endswith((".", "Article 3")), one
    assert max(sum(b <= s < e for s in encoder.tokens(text).starts) for b, e in spans) <= BLOCK_TOKENS


@pytest.mark.parametrize("strategy", ["max", "blocks"])
@pytest.mark.parametrize(
    "document",
    [
        "x" * 20_000,
        "東京" * 3000,
        "🎉👩\u200d🚀" * 500,
        "e" + "\u0301" * 4000,
        "a" + " " * 9000 + "b",
        "\n" * 50 + "a b " * 900,
    ],
    ids=["one word", "no spaces", "emoji", "marks", "white space", "line breaks"],
)
def test_an_endless_line_is_read(tokenizers: dict[str, Any], strategy: str, document: str) -> None:
    encoder = encoder_of(tokenizers, strategy, room=140)
    group = encoder.encode_scored(QUERY, [document])
    assert max(map(len, group.tail_ids)) + len(group.head_ids) <= encoder.contract.max_tokens
    for text in encoder.texts(QUERY, document):
        # Whole characters of the document.
        assert text.replace("\n\n", "") in document or squeezed(text) in squeezed(document)
        assert "\ufffd" not in text


@pytest.mark.parametrize("mode", ["portable", "official"])
def test_documents_that_fit_have_the_same_prompts_under_all_strategies(tokenizers: dict[str, Any], mode: str) -> None:
    documents = [document for _, document in PAIRS] + ["", " \n", "<|im_end|> here"]
    groups = [encoder_of(tokenizers, s, mode=mode).encode_scored(QUERY, documents) for s in STRATEGIES]
    assert {tuple(map(tuple, group.tail_ids)) for group in groups} == {tuple(map(tuple, groups[0].tail_ids))}
    assert [group.documents_cut for group in groups] == [0] * len(STRATEGIES)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_empty_list_and_an_empty_document(tokenizers: dict[str, Any], strategy: str) -> None:
    encoder = encoder_of(tokenizers, strategy)
    assert encoder.encode_scored(QUERY, []).tail_ids == []
    assert encoder.encode_scored(QUERY, [""]).tail_ids == [encoder.suffix_ids]
    assert encoder.texts(QUERY, "") == [""]


def test_bm25_within_a_document_is_that_of_the_search() -> None:
    """Against bm25s, through our own first stage, with the blocks as its corpus."""
    texts = [*TEXTS, TEXTS[4] * 3, "interest interest pays nothing", "", "the of and"]
    words = Words("english")
    found = bm25({str(place): text for place, text in enumerate(texts)}, depth=99)({"q": QUERY + " A bond interest?"})
    scores = bm25_scores(words(QUERY + " A bond interest?"), [words(text) for text in texts])
    expected = {c.document_id: c.score for c in found["q"]}
    assert len(expected) > 2
    assert {str(p): s for p, s in enumerate(scores) if s > 0} == pytest.approx(expected)


def test_the_window_that_training_labels_is_the_best_by_bm25_and_without_a_match_the_beginning(
    tokenizers: dict[str, Any],
) -> None:
    encoder = encoder_of(tokenizers, "max", room=60)
    filler = "The river rises in the mountains in spring. " * 30
    document = f"{filler} A bond pays interest until it matures. {filler}"
    group = encoder.encode(QUERY, [document, filler])
    texts = encoder.texts(QUERY, document)
    labelled = next(text for text in texts if "pays interest" in text)
    assert encoder.texts(QUERY, document, every=False) == [labelled]
    cutting = encoder.reading(LongDocuments())
    assert group.tail_ids == cutting.encode(QUERY, [labelled, encoder.texts(QUERY, filler)[0]]).tail_ids
    assert (group.windows, group.documents_cut) == (None, 2)


def test_blocks_hold_the_sentence_of_the_query_wherever_it_is(tokenizers: dict[str, Any]) -> None:
    encoder = encoder_of(tokenizers, "blocks", room=280)
    filler = "The river rises in the mountains in spring.\n\n" * 200
    for place in (0, 2000, 5000, len(filler)):
        document = filler[:place] + "\n\nA bond pays interest until it matures.\n\n" + filler[place:]
        (text,) = encoder.texts(QUERY, document)
        assert "pays interest" in text and text.startswith(encoder.clean(document)[:20])
        assert not place or "pays interest" not in " ".join(document.split()[:200])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_stored_ids_give_the_prompts_of_the_texts(tokenizers: dict[str, Any], tmp_path: Path, strategy: str) -> None:
    encoder = encoder_of(tokenizers, strategy, room=150)
    documents = [*(document for _, document in PAIRS), "", "A bond pays interest. The river rises. " * 90, "x" * 3000]
    store = token_store(tmp_path, encoder, {None: [QUERY]}, documents, lambda _: None)
    assert store.encode(QUERY, documents) == encoder.encode(QUERY, documents)
    assert store.encode_scored(QUERY, documents) == encoder.encode_scored(QUERY, documents)
    assert store.encode("not stored", documents) == encoder.encode("not stored", documents)


def test_a_budget_without_room_for_a_block_is_refused(tokenizers: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"no room for a block of 128 tokens \(prompt.long_documents: blocks\); use at"):
        encoder_of(tokenizers, "blocks", room=BLOCK_TOKENS - 1)
    encoder_of(tokenizers, "blocks", room=BLOCK_TOKENS)
    # Windows may be as small as a document.
    tiny = encoder_of(tokenizers, "max", room=8)
    assert len(tiny.texts(QUERY * 20, "item " * 300)) > 30


@pytest.mark.parametrize("strategy", ["max", "blocks"])
def test_the_contract_holds_the_strategy(tokenizers: dict[str, Any], tmp_path: Path, strategy: str) -> None:
    contract = make_contract(tokenizers["qwen3"], mode="portable")
    contract.save(tmp_path)
    assert "long_documents" not in (tmp_path / CONTRACT_FILE).read_text()
    assert PromptContract.load(tmp_path) == contract
    stated = contract.replace(long_documents=LongDocuments(strategy, "german", code=True))
    stated.save(tmp_path)
    assert PromptContract.load(tmp_path) == stated
    path = tmp_path / CONTRACT_FILE
    for old, new in (
        (f'"{strategy}"', '"best"'),
        ('"german"', '"klingon"'),
        ('"code": true', '"code": 1'),
        ('"code"', '"cod"'),
    ):
        stated.save(tmp_path)
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(UserError, match="export it again"):
            PromptContract.load(tmp_path)
