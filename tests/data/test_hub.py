"""Sets in the form of the hub, read from local folders that stand for one; no network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from format_fixtures import ROWS, expected, plain, write_rows

from rankwright.common.errors import UserError
from rankwright.data.cards import Card, Hub, load_card
from rankwright.data.collection import Collection
from rankwright.data.formats.hub import read_hub
from rankwright.data.formats.reading import Faults, Reading, Say, log_say
from rankwright.data.sources import Located
from rankwright.data.sources import read as read_source
from rankwright.recipe.sources import Source

CORPUS = [
    {"_id": "d1", "title": "Alpha", "text": "first", "language": "en"},
    {"_id": "d2", "title": "", "text": "second", "language": "en"},
]
QUERIES = [{"_id": "q1", "text": "one"}, {"_id": "q2", "text": "two"}]
QRELS = [{"query-id": "q1", "corpus-id": "d1", "score": 1.0}, {"query-id": "q1", "corpus-id": "d2", "score": 0.0}]
README = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: qrels/train.{end}
  - split: test
    path: qrels/test.{end}
- config_name: corpus
  data_files:
  - split: corpus
    path: corpus.{end}
- config_name: queries
  data_files:
  - split: queries
    path: queries.{end}
---
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import datasets

    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def hub_folder(root: Path, end: str, *, corpus: list[dict[str, Any]] = CORPUS) -> Path:
    write(root / f"corpus.{end}", corpus)
    write(root / f"queries.{end}", QUERIES)
    write(root / "qrels" / f"test.{end}", QRELS)
    write(root / "qrels" / f"train.{end}", [{"query-id": "q2", "corpus-id": "d2", "score": 2.0}])
    (root / "README.md").write_text(README.format(end=end))
    return root


def read(root: Path | str, split: str = "test", say: Say = log_say, **stated: Any) -> Collection:
    return read_hub(Hub.at(str(root), None).model_copy(update=stated), Reading("set", split, say=say))


@pytest.mark.parametrize("end", ["parquet", "jsonl"])
def test_configurations_of_a_readme(tmp_path: Path, end: str) -> None:
    said: list[str] = []
    found = read(hub_folder(tmp_path, end), say=said.append)
    assert found.corpus == {"d1": "Alpha\nfirst", "d2": "second"}
    assert found.queries == {"q1": "one"}
    assert found.qrels == {"q1": {"d1": 1.0, "d2": 0.0}}
    assert said == [f"{tmp_path}/default/test: 1 of 2 queries is of this split"]
    assert read(tmp_path, split="train").qrels == {"q2": {"d2": 2.0}}


def test_a_folder_a_configuration_and_columns_named_id(tmp_path: Path) -> None:
    write(tmp_path / "corpus" / "corpus.jsonl", [{"id": "d1", "text": "first"}, {"id": "d2", "text": "second"}])
    write(tmp_path / "queries" / "queries.jsonl", [{"id": "q1", "text": "one"}])
    write(tmp_path / "default" / "test.jsonl", QRELS)
    assert read(tmp_path).corpus == {"d1": "first", "d2": "second"}


def test_judgements_of_another_set(tmp_path: Path) -> None:
    root = hub_folder(tmp_path / "texts", "jsonl")
    other = tmp_path / "judgements"
    write(other / "validation.jsonl", [{"query-id": "q2", "corpus-id": "d1", "score": 1}])
    found = read(root, qrels_repo=str(other), split="validation")
    assert found.qrels == {"q2": {"d1": 1.0}}


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"default: unknown split 'tests', did you mean 'test'\? \(known: test, train\)"
    ):
        read(hub_folder(tmp_path, "jsonl"), split="tests")


def test_a_configuration_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"unknown configuration 'corpu', did you mean 'corpus'\? \(known: corpus, default"
    ):
        read(hub_folder(tmp_path, "jsonl"), corpus="corpu")


def test_faults_name_their_row(tmp_path: Path) -> None:
    root = hub_folder(tmp_path, "jsonl", corpus=[*CORPUS, CORPUS[0]])
    with pytest.raises(UserError, match=r"corpus/corpus: row 3: id 'd1' appears a second time"):
        read(root)


def test_missing_columns_list_all_that_are_there(tmp_path: Path) -> None:
    root = hub_folder(tmp_path, "jsonl", corpus=[{"_id": "d1", "body": "x", "url": "y"}])
    with pytest.raises(UserError, match=r"no column `text`; columns found: _id, body, url"):
        read(root)


def located(source: Source, card: Card | None = None) -> Located:
    return Located(source, "set", source.split or "test", None, card, source.hub, source.revision)


def from_recipe(card: Card | None = None, **source: Any) -> Collection:
    told = {"card": "c"} if card is not None else {}
    return read_source(located(Source(**told, **source), card), lambda line: None, Faults())


@pytest.mark.parametrize("end", ["parquet", "jsonl", "csv"])
@pytest.mark.parametrize("name", ["groups", "triplets", "labelled-lists"])
def test_sets_of_rows(tmp_path: Path, name: str, end: str) -> None:
    if end == "csv" and name != "triplets":
        pytest.skip("lists stand in CSV as JSON text, which `datasets` reads as text")
    write_rows(tmp_path / f"train.{end}", ROWS[name]())
    write_rows(tmp_path / f"test.{end}", ROWS[name]()[:1])
    assert plain(from_recipe(hub=str(tmp_path), split="train")) == expected(name)
    assert len(from_recipe(hub=str(tmp_path)).queries) == 1


def test_rows_of_a_configuration_with_a_column_map_and_a_group_key(tmp_path: Path) -> None:
    for config in ("large", "small"):
        write(tmp_path / config / "train.jsonl", [{"q": config, "good": "a", "case": 7, "bad": ["b"]}])
    configs = [{"config_name": c, "data_files": f"{c}/train.jsonl"} for c in ("large", "small")]
    (tmp_path / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    columns = {"query": "q", "positives": "good", "negatives": "bad"}
    told: dict[str, Any] = {"hub": str(tmp_path), "split": "train", "columns": columns, "group_key": "case"}
    found = from_recipe(config="small", **told)
    assert list(found.queries.values()) == ["small"] and sorted(found.corpus.values()) == ["a", "b"]
    assert list(found.query_groups.values()) == ["7"]
    with pytest.raises(UserError, match=r"give config: NAME \(known: large, small\)"):
        from_recipe(**told)
    with pytest.raises(UserError, match=r"small: unknown split 'trian', did you mean 'train'\?"):
        from_recipe(config="small", **(told | {"split": "trian"}))
    with pytest.raises(UserError, match=r"no column 'goood' for positives, did you mean 'good'\?"):
        from_recipe(config="small", **(told | {"columns": columns | {"positives": "goood"}}))
    hub = Hub(id="owner/name", layout="rows", config="small", columns=columns).model_copy(update={"id": str(tmp_path)})
    card = load_card("fiqa").model_copy(update={"hub": hub, "group_key": "case"})
    assert from_recipe(card, split="train") == found


def test_rows_with_faults_name_their_row(tmp_path: Path) -> None:
    write(tmp_path / "test.parquet", [{"anchor": "a", "positive": "b"}, {"anchor": "", "positive": "c"}])
    with pytest.raises(UserError, match=r"/default/test: row 2: the query is empty"):
        from_recipe(hub=str(tmp_path))


def test_beir_sets_are_still_read_as_such_and_take_no_columns(tmp_path: Path) -> None:
    root = hub_folder(tmp_path, "jsonl")
    assert from_recipe(hub=str(root)).qrels == {"q1": {"d1": 1.0, "d2": 0.0}}
    assert from_recipe(hub=str(root), group_key="language").document_groups == {"d1": "en", "d2": "en"}
    card = load_card("fiqa")
    with pytest.raises(UserError, match="columns: the layout of this set is known"):
        from_recipe(card, columns={"query": "q"})


def test_layouts_of_cards() -> None:
    with pytest.raises(ValueError, match="config, columns: only with layout: rows"):
        Hub(id="owner/name", config="c")
    with pytest.raises(ValueError, match="unknown column name 'querry', did you mean 'query'"):
        Hub(id="owner/name", layout="rows", columns={"querry": "q"})


def test_a_set_that_cannot_be_fetched_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"nobody/nothing: cannot load .*HF_HUB_OFFLINE forbids.*`path`"):
        read("nobody/nothing")
