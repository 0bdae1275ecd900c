"""Texts as blocks: every token once, no text beyond its document, and the same blocks wherever files lie."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwright.common.errors import UserError, UserErrors
from rankwright.data.formats.reading import Reading
from rankwright.data.leakage import QueriesInTexts
from rankwright.model.loading import load_tokenizer
from rankwright.model.text_blocks import Blocks, Draws, TextTokens, frame_ids, read_texts, split_blocks

NONE = QueriesInTexts([])
LENGTH = 16
WORDS = "bond court river python function interest contract town defect loan matures government investor".split()


def texts(count: int) -> list[str]:
    """Texts of unequal length; none is the start of another."""
    return [
        f"Number {n}. " + " ".join(WORDS[(n + i * i) % len(WORDS)] for i in range(5 + 7 * n % 40)) for n in range(count)
    ]


def write(folder: Path, found: list[str]) -> Path:
    folder.mkdir(parents=True)
    for number, text in enumerate(found):
        (folder / f"{number:03d}.txt").write_text(text, encoding="utf-8")
    return folder


def read(root: Path, path: Path, tokenizer: Any, held_out: QueriesInTexts = NONE) -> tuple[TextTokens, list[str]]:
    """The stream, and the lines that were reported."""
    said: list[str] = []
    return read_texts(root, path, tokenizer, Reading("text", None, say=said.append), held_out=held_out), said


@pytest.fixture(scope="module")
def tokenizer(tiny_qwen3: Path) -> Any:
    return load_tokenizer(str(tiny_qwen3))


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Iterator[TextTokens]:
    root = tmp_path_factory.mktemp("texts")
    yield read(root / "store", write(root / "texts", texts(60)), tokenizer)[0]


def test_a_stream_holds_each_document_once_with_its_end(stream: TextTokens, tokenizer: Any) -> None:
    found = stream.texts(0, stream.tokens)
    assert Counter(tokenizer.decode(ids[:-1]) for ids in found) == Counter(texts(60))
    assert {ids[-1] for ids in found} == {tokenizer.eos_token_id}


@given(data=st.data())
def test_any_part_of_a_stream_is_the_tokens_there_cut_at_documents(stream: TextTokens, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, stream.tokens))
    end = data.draw(st.integers(start, stream.tokens))
    whole = [number for ids in stream.texts(0, stream.tokens) for number in ids]
    parts = stream.texts(start, end)
    assert [number for part in parts for number in part] == whole[start:end]
    borders = {int(e) for e in stream.ends if start < e < end}
    places, place = set(), start
    for part in parts[:-1]:
        place += len(part)
        places.add(place)
    assert places == borders


def test_blocks_are_full_and_their_ends_are_the_ends_of_documents(stream: TextTokens, tokenizer: Any) -> None:
    blocks, held_out = split_blocks(stream, "text", length=LENGTH)
    assert len(blocks) > 20 and len(held_out) >= 1
    for block in [*blocks, *held_out]:
        assert sum(map(len, block)) == LENGTH
        # Within a block a text ends where its document does.
        assert all(part[-1] == tokenizer.eos_token_id for part in block[:-1])


def test_no_document_is_both_trained_on_and_held_out(stream: TextTokens, tokenizer: Any) -> None:
    blocks, held_out = split_blocks(stream, "text", length=LENGTH, held_out=0.2)

    def numbers(of: Blocks) -> set[str]:
        # A document is known by the number that it begins with.
        found = tokenizer.decode([number for block in of for text in block for number in text])
        return {part.split(".")[0] for part in found.split("Number ")[1:]}

    assert numbers(held_out)
    assert not numbers(blocks) & numbers(held_out)


def test_the_order_depends_on_the_contents_alone(tmp_path: Path, tokenizer: Any) -> None:
    found = texts(20)
    one, _ = read(tmp_path / "a", write(tmp_path / "one", found), tokenizer)
    other, _ = read(tmp_path / "b", write(tmp_path / "other" / "deep", found[::-1]).parent, tokenizer)
    assert one.texts(0, one.tokens) == other.texts(0, other.tokens)
    assert one.texts(0, one.tokens) != [[*tokenizer(t)["input_ids"], tokenizer.eos_token_id] for t in found]


def test_texts_are_tokenised_once_and_again_when_damaged(tmp_path: Path, tokenizer: Any) -> None:
    path, root = write(tmp_path / "texts", texts(9)), tmp_path / "store"
    first, said = read(root, path, tokenizer)
    tokens = first.texts(0, first.tokens)
    (folder,) = root.iterdir()
    changed = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    read(root, path, tokenizer)
    assert changed == {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    (folder / "ids.bin").write_bytes(b"\0" * 40)
    again, said = read(root, path, tokenizer)
    assert again.texts(0, again.tokens) == tokens
    assert [line for line in said if "damaged" in line]
    (path / "000.txt").write_text("Another text.", encoding="utf-8")
    other, _ = read(root, path, tokenizer)
    assert other.texts(0, other.tokens) != tokens
    assert len(list(root.iterdir())) == 2


def test_rows_of_tables_and_titles_are_read(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"_id": "a", "title": "Bonds", "text": "A bond is a loan."}, {"_id": "b", "text": "The court held."}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    stream, _ = read(tmp_path / "store", tmp_path / "t.jsonl", tokenizer)
    decoded = {tokenizer.decode(ids[:-1]) for ids in stream.texts(0, stream.tokens)}
    assert decoded == {"Bonds\n\nA bond is a loan.", "The court held."}


def test_control_tokens_in_texts_are_broken(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path / "texts", ["A user wrote <|im_end|> and <|endoftext|> here."])
    stream, _ = read(tmp_path / "store", tmp_path / "texts", tokenizer)
    ids = [number for part in stream.texts(0, stream.tokens) for number in part]
    special = {tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")}
    assert [number for number in ids if number in special] == [tokenizer.eos_token_id]


def test_a_first_token_stands_before_each_document_where_the_tokenizer_sets_one(
    tmp_path: Path, tiny_llama: Path
) -> None:
    tokenizer = load_tokenizer(str(tiny_llama))
    assert frame_ids(tokenizer) == ([tokenizer.bos_token_id], [tokenizer.eos_token_id])
    stream, _ = read(tmp_path / "store", write(tmp_path / "texts", texts(3)), tokenizer)
    assert [ids[0] for ids in stream.texts(0, stream.tokens)] == [tokenizer.bos_token_id] * 3


def test_a_document_beyond_one_call_is_tokenised_in_pieces_without_a_gap(tmp_path: Path, tokenizer: Any) -> None:
    text = "\n\n".join(f"Paragraph {n}: the court held that the contract was void." for n in range(4000))
    stream, _ = read(tmp_path / "store", write(tmp_path / "texts", [text]), tokenizer)
    (ids,) = stream.texts(0, stream.tokens)
    assert tokenizer.decode(ids[:-1]) == text


def test_paragraphs_that_hold_a_query_of_the_test_are_left_out_and_counted(tmp_path: Path, tokenizer: Any) -> None:
    held_out = QueriesInTexts(["Who must disclose a DEFECT of goods?", "net income"])
    leaks = "Title\n\nWe asked: who must disclose a defect of goods. So it goes.\n\nThe net income fell."
    path = write(tmp_path / "texts", [leaks, "The seller must disclose a defect of goods."])
    stream, said = read(tmp_path / "store", path, tokenizer, held_out)
    decoded = {tokenizer.decode(ids[:-1]) for ids in stream.texts(0, stream.tokens)}
    assert decoded == {"Title\n\nThe net income fell.", "The seller must disclose a defect of goods."}
    (line,) = said
    assert line == f"{path}: 1 paragraph of 1 document left out: they hold 1 query of dev or test"
    # Other queries: another store.
    assert read(tmp_path / "store", path, tokenizer)[0].tokens > stream.tokens


def test_more_tokens_than_there_are_is_one_line(stream: TextTokens) -> None:
    with pytest.raises(UserError) as error:
        split_blocks(stream, "pretrain.text[0] texts", length=LENGTH, tokens=50_000_000)
    there = len(split_blocks(stream, "", length=LENGTH)[0]) * LENGTH
    assert str(error.value) == (
        f"pretrain.text[0] texts: 50,000,000 tokens asked, {there:,} there (3 blocks of 16 held out): lower `tokens`, "
        "or give more text"
    )
    assert len(split_blocks(stream, "", length=LENGTH, tokens=there)[0]) * LENGTH == there


def test_too_little_text_is_one_line(tmp_path: Path, tokenizer: Any) -> None:
    stream, _ = read(tmp_path / "store", write(tmp_path / "texts", ["A bond."]), tokenizer)
    with pytest.raises(
        UserError, match=r"pretrain.text\[0\]: \d tokens, too few for a block of 1,024 .* give more text"
    ):
        split_blocks(stream, "pretrain.text[0]", length=1024)


def test_faults_of_rows_are_reported_as_everywhere(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "A bond."}\n{"txt": "no text"}\n', encoding="utf-8")
    with pytest.raises(UserErrors, match=r"t.jsonl:2: no text of a document"):
        read(tmp_path / "store", tmp_path / "t.jsonl", tokenizer)
    assert not list((tmp_path / "store").glob("*"))


def test_one_long_document_is_held_out_in_part(tmp_path: Path, tokenizer: Any) -> None:
    long = " ".join(f"{WORDS[i % 13]} {i}" for i in range(900))
    stream, _ = read(tmp_path / "store", write(tmp_path / "texts", [long]), tokenizer)
    blocks, held_out = split_blocks(stream, "", length=LENGTH)
    assert len(blocks) > 10 * len(held_out) > 0
    trained = {tuple(text) for block in blocks for text in block}
    assert all(tuple(text) not in trained for block in held_out for text in block)


def test_no_more_is_held_out_than_its_share_where_a_long_document_ends_early(tmp_path: Path, tokenizer: Any) -> None:
    long = [" ".join(f"{WORDS[i % 13]} {i}" for i in range(start, start + 900)) for start in (0, 950, 1900)]
    stream, _ = read(tmp_path / "store", write(tmp_path / "texts", long), tokenizer)
    blocks, held_out = split_blocks(stream, "", length=LENGTH)
    assert 0 < len(held_out) <= 0.02 * stream.tokens / LENGTH < len(blocks)


def test_each_block_is_drawn_once_a_round_in_another_order_each_round(stream: TextTokens) -> None:
    blocks, _ = split_blocks(stream, "", length=LENGTH, tokens=LENGTH * 12)
    draws = Draws(blocks, a_step=5, seed=3)
    drawn = [json.dumps(block) for step in range(1, 6) for block in draws.step(step)]
    assert Counter(drawn[:12]) == Counter(drawn[12:24]) == Counter(json.dumps(block) for block in blocks)
    assert drawn[:12] != drawn[12:24]
    assert draws.rounds(24) == 10
    # A pure function of the step and the seed.
    assert Draws(blocks, a_step=5, seed=3).step(4) == draws.step(4)
    assert Draws(blocks, a_step=5, seed=4).step(4) != draws.step(4)


@given(share=st.floats(0, 1), a_step=st.integers(1, 9))
def test_replayed_blocks_are_spread_evenly(stream: TextTokens, share: float, a_step: int) -> None:
    domain = Blocks(((stream, 0, 7),), LENGTH)
    replay = Blocks(((stream, 7 * LENGTH, 11),), LENGTH)
    of_replay = [json.dumps(block) for block in replay]
    draws, replayed = Draws(domain, replay, share=share, a_step=a_step, seed=0), 0
    for step in range(1, 30):
        replayed += sum(json.dumps(block) in of_replay for block in draws.step(step))
        assert abs(replayed - share * step * a_step) <= 1


def test_several_sources_are_one(stream: TextTokens) -> None:
    one, two = Blocks(((stream, 0, 3),), LENGTH), Blocks(((stream, 3 * LENGTH, 4),), LENGTH)
    assert list(Blocks.joined([one, two])) == list(Blocks(((stream, 0, 7),), LENGTH))
    with pytest.raises(IndexError):
        Blocks.joined([one, two])[7]
