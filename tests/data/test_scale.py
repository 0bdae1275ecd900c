"""A run whose texts and rows stay in files gives what one in memory gives; what is held is bounded."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import jobs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwright.common import console
from rankwright.common.errors import UserError
from rankwright.common.hashing import text_key
from rankwright.common.processes import Processes
from rankwright.common.run_folder import RunFolder
from rankwright.data.split_files import qualified, read_split
from rankwright.data.store import id_index
from rankwright.data.store import rows as row_file
from rankwright.data.store import texts as spill
from rankwright.data.store import texts as text_store
from rankwright.data.store.rows import RowFile, RowValues
from rankwright.data.store.texts import TextStore
from rankwright.data.store.views import Joined, KeyedTexts
from rankwright.mining import pools as mining
from rankwright.mining.filters import known_scores
from rankwright.mining.samplers import DrawKey
from rankwright.model.prompt import PromptEncoder, make_contract
from rankwright.model.token_store import token_store
from rankwright.pipeline.data import prepare_data
from rankwright.pipeline.mine import mine
from rankwright.recipe.loading import load_recipe
from rankwright.rerankers.pair_scores import read_teacher_scores, teacher_line
from rankwright.retrieval.run_file import columns_of
from rankwright.training.sampling import build_group


@pytest.fixture
def large() -> Iterator[None]:
    """Nothing fits into memory, and a batch is some rows."""
    with pytest.MonkeyPatch.context() as patch:
        leave_in_files(patch)
        yield


def leave_in_files(patch: pytest.MonkeyPatch) -> None:
    for module in (text_store, row_file):
        patch.setattr(module, "IN_MEMORY_BYTES", -1)
    patch.setattr(id_index, "RECENT_IDS", 11)


def run_of(folder: Path, name: str, **sections: dict[str, object]) -> Path:
    """The data and mine stages of a recipe with a BEIR set and a file of groups with repeated documents.

    One set has an instruction and a weight, the other a limit and a group key.
    """
    recipe_path = folder / "recipe.yaml"
    if not recipe_path.exists():
        drawn = random.Random(0)
        texts = [" ".join(drawn.choices(jobs.TOPICS, k=6)) for _ in range(40)]
        rows = [
            {
                "query": " ".join(drawn.choices(jobs.TOPICS, k=3)) + f" {n}",
                "positives": [texts[n]],
                "negatives": drawn.sample(texts[30:], 4),
                "positive_scores": [2.5],
                "weight": 1 + n % 3,
                "of": f"case {n // 2}",
            }
            for n in range(30)
        ]
        train = [
            {"path": "one", "split": "train", "weight": 1.5, "instruction": "Find the sale."},
            {"path": "groups.jsonl", "group_key": "of", "limit": 25},
        ]
        filters = {"near_duplicate": {}, "same_group": {}, "max_reuse": {"most": 9}}
        jobs.job(folder, "base", data={"train": train}, mine={"filters": filters, "fill": "random", "negatives": 19})
        (folder / "sets" / "groups.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = load_recipe(str(recipe_path)).recipe
    run = RunFolder(folder / name)
    run.create()
    console.say(name)
    prepare_data(recipe, run)
    mine(recipe, run, inputs="all", run_files={}, processes=Processes())
    return run.path


def files(run: Path) -> dict[str, bytes]:
    """All but the records of the stages, which hold times."""
    found = [path for path in sorted(run.rglob("*")) if path.is_file() and path.parent.name != "stages"]
    return {str(path.relative_to(run)): path.read_bytes() for path in found}


def test_a_run_with_everything_in_files_is_the_same_run(tmp_path: Path) -> None:
    plain = files(run_of(tmp_path, "plain"))
    with pytest.MonkeyPatch.context() as patch:
        leave_in_files(patch)
        other = run_of(tmp_path, "other")
        train = read_split(other / "data", "train")
        assert all(isinstance(c.corpus, TextStore) and isinstance(c.qrels, RowValues) for c in train)
        pools = mining.read_negatives(other / "negatives.jsonl")
        assert isinstance(pools, RowValues) and any(n.reason == "fill" for pool in pools.values() for n in pool)
        (tmp_path / "teacher.jsonl").write_text(teacher_line("q", {"a": -1.5, "b": 2}) + "\n")
        scores = read_teacher_scores(tmp_path / "teacher.jsonl")
        assert isinstance(scores, RowValues) and dict(scores) == {"q": {"a": -1.5, "b": 2.0}}
        assert known_scores(scores)({"q": ["b"]}) == {"q": {"b": 2.0}}
    assert files(other).keys() == plain.keys()
    assert files(other) == plain
    assert pools == mining.read_negatives(tmp_path / "plain" / "negatives.jsonl")
    assert not [path for path in other.rglob("*") if path.name.startswith(spill.PREFIX)]
    for mapped, held in zip(train, read_split(tmp_path / "plain" / "data", "train"), strict=True):
        assert mapped == held
        assert (held.instruction, held.draws) == (("Find the sale.", 1.5) if held.name == "one" else (None, 1.0))
        assert bool(held.query_groups) == (held.name == "groups")
        for query_id in qualified(held).queries:
            groups = [
                build_group(qualified(c), pools[query_id], DrawKey(1, 0, query_id, "p"), negatives=3, positives=2)
                for c in (mapped, held)
            ]
            assert groups[0] == groups[1]


def test_a_set_that_comes_three_times_lies_on_the_disk_once(tmp_path: Path, large: None) -> None:
    run = run_of(tmp_path, "run")
    (run / "data" / f"{spill.PREFIX}99999999-left").mkdir()
    prepare_data(load_recipe(str(tmp_path / "recipe.yaml")).recipe, RunFolder(run))
    assert not list((run / "data").glob(f"{spill.PREFIX}*"))
    assert len(list((run / "data" / "corpora").glob("*.arrow"))) == 3


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=20), st.data())
def test_keyed_texts_are_the_distinct_texts(texts: dict[str, str], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(sorted(texts)), unique=True)) if texts else []
    for found, wanted in (
        (KeyedTexts(texts), texts),
        (KeyedTexts(texts, chosen), {d: texts[d] for d in chosen}),
        (KeyedTexts(Joined([{}, texts]), [f"1/{d}" for d in chosen]), {f"1/{d}": texts[d] for d in chosen}),
    ):
        assert list(found) == sorted(set(wanted.values()), key=text_key)
        assert [sorted(ids) for ids in found.ids] == [sorted(d for d in wanted if wanted[d] == t) for t in found]
        assert found.lengths.tolist() == [len(text) for text in found]
        assert found[: len(found) // 2] == list(found)[: len(found) // 2]
        assert list(KeyedTexts.of(wanted.values())) == list(found)


def test_corpora_that_are_joined_keep_their_ids_apart() -> None:
    both = Joined([{"a/b": "one"}, {"a/b": "two", "c": "three"}])
    assert dict(both) == {"0/a/b": "one", "1/a/b": "two", "1/c": "three"} and len(both) == 3
    assert both.get_many(["1/c", "0/a/b", "1/a/b"]) == ["three", "one", "two"]


def test_tokens_of_texts_in_files_are_those_of_texts_in_memory(tmp_path: Path, tiny_qwen3: Path, large: None) -> None:
    from rankwright.model.loading import load_tokenizer

    texts = {f"d{n}": f"text {n // 2} " + "word " * n for n in range(30)}
    text_store.write_texts(tmp_path / "t.arrow", texts, {})
    store, _ = text_store.read_texts(tmp_path / "t.arrow")
    assert isinstance(store, TextStore)
    tokenizer = load_tokenizer(str(tiny_qwen3))
    encoder = PromptEncoder(make_contract(tokenizer, mode="portable", max_tokens=160), tokenizer)
    seen: list[int] = []
    found = token_store(tmp_path / "tokens", encoder, {None: ["why?"]}, KeyedTexts(store), seen.append)
    assert sum(seen) == 31
    again = token_store(tmp_path / "tokens", encoder, {None: ["why?"]}, list(texts.values()), seen.append)
    assert sum(seen) == 31 and len(list((tmp_path / "tokens").iterdir())) == 1
    documents = list(texts.values())
    assert found.encode("why?", documents) == again.encode("why?", documents) == encoder.encode("why?", documents)
    empty = token_store(tmp_path / "none", encoder, {}, [], seen.append)
    assert empty.encode("why?", documents) == encoder.encode("why?", documents)


@given(st.sets(st.text(alphabet="a %20\t", max_size=5)))
def test_run_files_spell_ids_as_ever(ids: set[str]) -> None:
    from rankwright.retrieval.run_file import trec_column

    by_spelling: dict[str, list[str]] = {}
    for identifier in sorted(ids):
        by_spelling.setdefault(trec_column(identifier), []).append(identifier)
    texts: Mapping[str, str] = dict.fromkeys(sorted(ids), "")
    if any(len(same) > 1 for same in by_spelling.values()):
        with pytest.raises(UserError, match="the same text in a run file: rename one"):
            columns_of(texts, "here")
        return
    found = columns_of(texts, "here")
    assert dict(found) == {spelling: same[0] for spelling, same in by_spelling.items()}
    assert [s in found for s in ids] == [s in by_spelling for s in ids]


def test_a_file_that_changes_under_a_process_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = ['{"id": "a", "x": 1}\n', '{"id": "b"}\n']
    path.write_text("".join(lines))
    file = RowFile(path, "id")
    file.add(0, "a")
    file.add(len(lines[0]), "b")
    values = RowValues(file, "x", 1, float)
    assert dict(values) == {"a": 1.0} and "b" not in values and values.get("c") is None
    assert pickle.loads(pickle.dumps(values)) == {"a": 1.0}
    with path.open("r+") as other:
        other.write("no JSON")
    with pytest.raises(UserError, match=r"rows\.jsonl: changed while it was in use"):
        values["a"]
