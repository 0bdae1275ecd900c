"""Writers of queries: what is asked, how answers are read, styles, a model on this machine, planted repairs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from rankwright.common.errors import UserError
from rankwright.data.passages import Passage
from rankwright.recipe.synthesize import Writer, WriterBudget
from rankwright.supervision.preferences.answers import AnswerFile
from rankwright.supervision.preferences.asking import AskerOf
from rankwright.supervision.queries.writers import (
    KINDS,
    OF_WRITERS,
    LocalWriter,
    Order,
    Reply,
    kept_reply,
    parsed,
    write_by_model,
    writer_of,
)


@pytest.mark.parametrize(
    ("text", "queries"),
    [
        ('{"queries": ["a  b", "c"]}', ["a b", "c"]),
        ('Sure:\n```json\n{"queries": [{"text": "a"}, {"query": "b"}]}\n```', ["a", "b"]),
        ('{"queries": []}', None),
        ('{"queries": [""]}', None),
        ('{"queries": [1]}', None),
        ('{"other": ["a"]}', None),
        ('["a"]', None),
        ("prose", None),
        ("", None),
        ('{"queries": ["a"', None),
    ],
)
def test_answers_are_read_or_are_malformed(text: str, queries: list[str] | None) -> None:
    assert parsed(text) == queries and Reply(text, None).value == queries


def passages(count: int) -> list[Passage]:
    return [Passage(f"p{n}", f"text {n}", "Rules", "Fees", "", True, "d", "g") for n in range(count)]


def order(**about: object) -> Order:
    values = {"kinds": dict.fromkeys(KINDS["legal"], 1.0), "domain": "legal", "each": 2, "examples": (), "seed": 0}
    return Order(**{**values, **about})  # type: ignore[arg-type]


def test_a_prompt_shows_the_passage_the_styles_and_the_examples() -> None:
    (one,) = passages(1)
    prompt = order(examples=["who pays?"]).prompt(one)
    assert "<passage>\ntext 0\n</passage>" in prompt and ", from Rules, Fees." in prompt
    assert "- who pays?" in prompt and '{"queries": ["...", "..."]}' in prompt and "never an instruction" in prompt
    for style in order().styles(one):
        assert KINDS["legal"][style["kind"]] in prompt and style["persona"] in prompt and style["length"] in prompt
    assert "is of the kind riddle" in order(kinds={"riddle": 1.0}).prompt(one)
    assert "style" not in order().prompt(one)


def test_styles_vary_and_kinds_follow_their_weights() -> None:
    kinds = {"scope": 3.0, "deadline": 1.0}
    found = [order(kinds=kinds, each=1).styles(p)[0] for p in passages(2000)]
    assert abs(Counter(s["kind"] for s in found)["scope"] / 2000 - 0.75) < 0.04
    assert all(len(Counter(s[name] for s in found)) > 1 for name in ("persona", "length", "wording"))
    both = order(kinds=kinds).styles(passages(1)[0])
    assert {s["kind"] for s in both} == {"scope", "deadline"}, "the queries of a passage are of different kinds"


def test_a_model_on_this_machine_writes_the_same_for_the_same_passage(tmp_path: Path, tiny_qwen3: Path) -> None:
    writer = LocalWriter(Writer(model=str(tiny_qwen3), max_tokens=16, temperature=1.0))
    prompts = [order().prompt(p) for p in passages(2)]
    replies = [writer.ask(prompt) for prompt in prompts]
    assert [writer.ask(prompt).text for prompt in prompts[::-1]] == [r.text for r in replies[::-1]]
    assert replies[0].text != replies[1].text and replies[0].tokens is not None and replies[0].tokens[1] <= 16
    asker = AskerOf([writer], AnswerFile(tmp_path / "a.jsonl", kept_reply), WriterBudget(), 1, OF_WRITERS)
    # A random model writes no JSON.
    with pytest.raises(UserError, match="2 of 2 calls gave no list of queries"):
        write_by_model(passages(2), order(), asker, writer.entry)
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and rows[0]["text"] == replies[0].text and rows[0]["writer"] == tiny_qwen3.name
    with pytest.raises(UserError, match=r"synthesize\.writer\.model: .*nowhere"):
        writer_of(Writer(model=str(tmp_path / "nowhere"))).ask("x")
