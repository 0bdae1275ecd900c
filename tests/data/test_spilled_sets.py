"""Every reader gives the same set, and every look at a set finds the same, when its texts lie in files."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from format_fixtures import ROWS, write_beir, write_rows, write_trec
from jobs import TOPICS

from rankwright.common.errors import UserError
from rankwright.data.cards import Hub, Nested
from rankwright.data.collection import Collection
from rankwright.data.duplicates import QUERY, find_duplicates, find_shared
from rankwright.data.formats.hub import read_hub, read_nested
from rankwright.data.formats.read import read_collection
from rankwright.data.formats.reading import Dropped, Faults, Reading
from rankwright.data.formats.writers import HOLDS, losses, without_ids
from rankwright.data.leakage import find_leaks, take_out
from rankwright.data.splits import overlap
from rankwright.data.store import id_index
from rankwright.data.store import texts as text_store
from rankwright.data.store.texts import TextStore, write_texts
from rankwright.evaluation.slices import seen_in_training
from rankwright.model import lengths as token_lengths
from rankwright.model.loading import load_tokenizer
from rankwright.model.prompt import PromptEncoder, make_contract

Read = Callable[[Faults], Collection]


def both_ways(read: Read, on_fault: str = "stop") -> tuple[Collection, list[Dropped]]:
    """What is read with the corpus in memory, after it was shown to be what is read with all texts in a file."""
    found = []
    for most in (text_store.IN_MEMORY_BYTES, -1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(text_store, "IN_MEMORY_BYTES", most)
            patch.setattr(id_index, "RECENT_IDS", 3)
            faults = Faults("drop" if on_fault == "drop" else "stop")
            found.append((read(faults), faults.dropped))
    (held, dropped), (mapped, also) = found
    assert isinstance(held.corpus, dict) and isinstance(mapped.corpus, TextStore)
    assert mapped == held and list(mapped.corpus.items()) == list(held.corpus.items())
    assert list(mapped.queries) == list(held.queries)
    assert also == dropped
    return held, dropped


def of_files(path: Path, **options: object) -> Read:
    return lambda faults: read_collection(path, name="set", faults=faults, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ROWS)
def test_rows(tmp_path: Path, name: str) -> None:
    both_ways(of_files(write_rows(tmp_path / "set.jsonl", ROWS[name]())))
    both_ways(of_files(write_rows(tmp_path / "set.parquet", ROWS[name]())))


def test_folders(tmp_path: Path) -> None:
    found, _ = both_ways(of_files(write_beir(tmp_path / "beir"), group_key="group"))
    assert found.document_groups and found.query_groups
    both_ways(of_files(write_trec(tmp_path / "trec", corpus="doc")))


def test_sets_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    home = tmp_path / "hub"
    for name, rows in {
        "corpus/corpus": [{"_id": f"d{n}", "title": "", "text": f"text {n}", "case": f"c{n % 2}"} for n in range(9)],
        "queries/queries": [{"_id": "q", "text": "which?"}, {"_id": "other", "text": "who?"}],
        "qrels/test": [{"query-id": "q", "corpus-id": "d3", "score": 1}],
    }.items():
        (home / name).parent.mkdir(parents=True)
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def hub(faults: Faults) -> Collection:
        place = Hub.at(str(home), None).model_copy(update={"qrels": "qrels"})
        return read_hub(place, Reading("set", "test", faults, group_key="case"))

    found, _ = both_ways(hub)
    assert found.document_groups["d3"] == "c1" and list(found.queries) == ["q"]
    nested = tmp_path / "nested"
    nested.mkdir()
    for split, texts in {"train": ["a", "b"], "test": ["b", "c"]}.items():
        questions = [{"id": f"{split}{t}", "q": f"{t}?", "case": "c", "of": [{"n": "", "t": t}]} for t in texts]
        (nested / f"{split}.json").write_text(json.dumps(questions))
    columns = Nested(query="q", query_id="id", passages="of", title="n", text="t")

    def read(faults: Faults) -> Collection:
        place = Hub.at(str(nested), None).model_copy(update={"nested": columns})
        return read_nested(place, Reading("set", "test", faults, group_key="case"))

    found, _ = both_ways(read)
    assert len(found.corpus) == 3 and set(found.query_groups.values()) == {"c"}


def test_dropped_rows(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    rows = [
        {"query": "one", "positives": [{"text": "a", "id": "d1"}]},
        {"query": "two", "positives": [{"text": "other", "id": "d1"}, {"text": "never kept", "id": "d2"}]},
        {"query": "three", "positives": ["half \ud83d"]},
        {"query": "four", "positives": [{"text": "", "id": "d3"}], "negatives": [{"text": "a", "id": "d1"}]},
        {"query": "five", "positives": [{"text": "x", "id": "d3"}]},
        {"query": "six", "positives": ["y"], "group": "\ud83d"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, dropped = both_ways(of_files(path), "drop")
    assert dict(found.corpus) == {"d1": "a", "d3": ""} and list(found.queries.values()) == ["one", "four"]
    assert [row.examples[0].split(":")[1] for row in dropped] == ["2", "3", "6"]
    folder = write_beir(tmp_path / "beir")
    with (folder / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "d1", "text": "again"}\n{"_id": "g", "text": "t", "metadata": {"group": "\\ud83d"}}\n')
    found, dropped = both_ways(of_files(folder, group_key="group"), "drop")
    assert [row.kind for row in dropped] == ["id ... appears a second time", "`group` holds half of a character"]
    assert "g" not in found.corpus
    with pytest.raises(UserError, match=r"`group` holds half of a character \(\\ud83d\)"):
        read_collection(folder, name="set", group_key="group")


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[dict[str, str]], TextStore]:
    """Texts as a file of them."""

    def store(texts: dict[str, str]) -> TextStore:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.arrow"
        write_texts(path, texts, {})
        return TextStore(path)

    return store


def made(seed: int) -> Collection:
    drawn = random.Random(seed)
    corpus = {f"d{n}": " ".join(drawn.choices(TOPICS, k=30)) for n in range(40)}
    for n in range(10):
        corpus[f"e{n}"] = corpus[f"d{n}"].upper()
        corpus[f"n{n}"] = corpus[f"d{n + 10}"].replace(" ", " really ", 1)
    queries = {f"q{n}": " ".join(corpus[f"d{n % 30}"].split()[:12]) for n in range(40)}
    return Collection("set", corpus, queries, {q: {f"d{n}": 1.0} for n, q in enumerate(queries)})


def test_looks_at_sets(stored: Callable[[dict[str, str]], TextStore]) -> None:
    def mapped(of: Collection) -> Collection:
        return dataclasses.replace(of, corpus=stored(dict(of.corpus)), queries=stored(dict(of.queries)))

    one = made(0)
    other = made(1).subset(["q0", "q1", "q2"])
    other = dataclasses.replace(other, corpus={**one.corpus}, queries={**other.queries, "q1": one.queries["q1"]})
    one_mapped, other_mapped = mapped(one), mapped(other)
    held = find_duplicates(one.corpus, code=False)
    assert held.exact and held.near and find_duplicates(one_mapped.corpus, code=False) == held
    shared = find_shared(one.queries, other.queries, kind=QUERY)
    assert shared.exact and find_shared(one_mapped.queries, other_mapped.queries, kind=QUERY) == shared
    leaks = find_leaks([one], [other])
    assert leaks and find_leaks([one_mapped], [other_mapped]) == leaks
    report = overlap(one, other)
    assert report.same_pairs and report.same_positives and overlap(one_mapped, other_mapped) == report
    assert seen_in_training([one_mapped]) == seen_in_training([one])
    devs = [take_out("dev", [c], fraction=0.3, seed=1, say=lambda _: None)[1][0] for c in (one, one_mapped)]
    assert devs[0].queries == devs[1].queries and devs[1].corpus is one_mapped.corpus
    for name in HOLDS:
        found = [losses(c, name) for c in (one, one_mapped)]
        assert found[0] == found[1]
    assert without_ids(one_mapped, losses(one, "pairs")) == without_ids(one, losses(one, "pairs"))


@pytest.mark.parametrize("most", [10, 1000])
def test_lengths_in_tokens(
    stored: Callable[[dict[str, str]], TextStore], tiny_qwen3: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(token_lengths, "MOST_DOCUMENTS", most)
    tokenizer = load_tokenizer(str(tiny_qwen3))
    encoder = PromptEncoder(make_contract(tokenizer, mode="portable", max_tokens=160), tokenizer)
    one = made(0)
    lengths = token_lengths.document_lengths(one.corpus, encoder, lambda _: None)
    assert len(lengths) == min(most, len(one.corpus))
    assert token_lengths.document_lengths(stored(dict(one.corpus)), encoder, lambda _: None) == lengths
