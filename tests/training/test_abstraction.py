"""data.train[].abstract: placeholders until a step, exact over a stop; dev and mining see the texts."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any, get_args

import jobs
import pytest
import torch
import yaml
from safetensors.torch import load

from rankwright.common.errors import UserErrors
from rankwright.common.run_folder import RunFolder
from rankwright.data.collection import Collection, Group
from rankwright.data.entities.placeholders import KINDS, abstracted
from rankwright.mining.pools import Negative
from rankwright.model.loading import load_tokenizer
from rankwright.model.long_documents import LongDocuments
from rankwright.model.prompt import PromptEncoder, make_contract
from rankwright.model.score_line import ScoreLine
from rankwright.model.token_store import token_store
from rankwright.pipeline.stages import Pipeline
from rankwright.recipe.loading import load_recipe
from rankwright.recipe.schema import Mine
from rankwright.recipe.sources import EntityKind
from rankwright.recipe.sweep_runs import load_sweep
from rankwright.retrieval.candidates import Candidate
from rankwright.training.abstraction import Abstraction, describe_abstraction
from rankwright.training.sampling import GroupSource, Pools, write_mix

TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
NAMES = "Acme Bravo Calder Dorset Elgin Fulham Grange Harrow Irvine Jarrow".split()
CORPUS = {
    f"d{n}": f"{name} Holdings Ltd paid ${n + 2} million in {2000 + n} under Section {n + 1}(2), said the Licensee."
    for n, name in enumerate(NAMES)
}
QUERIES = {f"q{n}": f"What did {name} Holdings pay in {2000 + n}?" for n, name in enumerate(NAMES)}
QRELS = {f"q{n}": {f"d{n}": 1.0} for n in range(len(NAMES))}
SET = Collection("one", CORPUS, QUERIES, QRELS)
PLAIN = Collection("plain", {"p0": "a bond is a loan", "p1": "a river"}, {"p": "what is a bond"}, {"p": {"p0": 1.0}})


def pools() -> dict[str, tuple[Negative, ...]]:
    found = {
        q: tuple(Negative(d, "bm25", rank, 1.0, "unjudged") for rank, d in enumerate(CORPUS, start=1) if d[1:] != q[1:])
        for q in QUERIES
    }
    return found | {"p": (Negative("p1", "bm25", 1, 1.0, "unjudged"),)}


def recipe_of(*abstract: str) -> Any:
    return load_recipe("quickstart", ["data.train=[" + ", ".join(f"{{path: x{a}}}" for a in abstract) + "]"]).recipe


@pytest.fixture(scope="module")
def tokenizer(tiny_qwen3: Path) -> Any:
    return load_tokenizer(str(tiny_qwen3))


def source_of(encoder: PromptEncoder, abstract: str = "{}", *, steps: int = 10) -> GroupSource:
    settings = Mine(negatives=3, positives=1)
    source = GroupSource([SET, PLAIN], Pools(pools(), "p"), encoder, settings=settings, seed=0, need_positive=True)
    recipe = recipe_of(f", abstract: {abstract}", "")
    source.abstraction = Abstraction(recipe, ["one", "plain"], steps)
    return source


def test_the_first_steps_see_placeholders_and_the_others_the_texts(tokenizer: Any) -> None:
    encoder = PromptEncoder(make_contract(tokenizer, mode="portable", max_tokens=160), tokenizer)
    source = source_of(encoder, "{until: 0.7}")
    assert source.abstraction is not None
    assert source.abstraction.last_step == {"one": 7}
    for step in range(1, 11):
        for (query_id, draw), trained in zip(source.mixture.step(step, 4), source.step(step, 4), strict=True):
            group = source.group(query_id, draw)
            plain = encoder.encode(group.query, group.documents)
            assert trained.labels == group.labels
            assert (trained.encoded == plain) == (step > 7 or query_id == "p")
            if step <= 7 and query_id != "p":
                prompt = tokenizer.decode(trained.encoded.head_ids)
                assert "What did [COMPANY_1] pay in [DATE_1]?" in prompt
                first = tokenizer.decode(trained.encoded.tail_ids[0])
                assert "[COMPANY_1] paid [AMOUNT_" in first and "in [DATE_1] under [STATUTE_" in first
                others = [tokenizer.decode(ids) for ids in trained.encoded.tail_ids[1:]]
                assert all("[COMPANY_1]" not in text and "the [PARTY_1]" in text for text in others)
    # A step is made from nothing but its number.
    again = source_of(encoder, "{until: 0.7}")
    assert [again.step(step, 4) for step in (7, 3, 8)] == [source.step(step, 4) for step in (7, 3, 8)]


def test_numbers_do_not_tell_which_document_is_relevant(tokenizer: Any) -> None:
    contract = make_contract(tokenizer, mode="portable", max_tokens=160)
    abstraction = Abstraction(recipe_of(", abstract: {}"), ["one"], 10)
    ids = [f"d{n}" for n in range(6)]
    firsts = set()
    for query_id in QUERIES:

        def shown(order: list[str], query_id: str = query_id) -> dict[str, str]:
            texts = tuple(CORPUS[d] for d in order)
            group = Group(query_id, "who paid?", tuple(order), texts, (1.0,) * 6, ("bm25",) * 6)
            return dict(zip(order, abstraction.applied("one", group, contract).documents, strict=True))

        found = shown(ids)
        assert shown(ids[::-1]) == shown(ids[3:] + ids[:3]) == found
        firsts |= {d for d, text in found.items() if text.startswith("[COMPANY_1] ")}
    # Whichever comes first in a group, any of them may be the first company.
    assert len(firsts) > 2


def test_the_store_of_tokens_gives_the_ids_of_the_encoder(tokenizer: Any, tmp_path: Path) -> None:
    for options in ({}, {"first_stage_score": ScoreLine(20)}):
        encoder = PromptEncoder(make_contract(tokenizer, mode="portable", max_tokens=160, **options), tokenizer)
        texts = [*CORPUS.values(), *PLAIN.corpus.values()]
        store = token_store(tmp_path, encoder, {None: [*QUERIES.values(), "what is a bond"]}, texts, lambda _: None)
        found = [source_of(one) for one in (encoder, store)]
        for source in found:
            source.lists = {q: [Candidate(f"d{n}", float(n), n) for n in range(1, 9)] for q in QUERIES}
        assert [found[0].step(step, 6) for step in (1, 9)] == [found[1].step(step, 6) for step in (1, 9)]
    text = tokenizer.decode(found[1].step(1, 6)[0].encoded.tail_ids[0])
    assert re.search(r"First-stage score: \d+\n\[COMPANY_1\] paid", text)


@pytest.mark.parametrize("strategy", ["cut", "blocks", "max"])
def test_long_documents_are_read_with_placeholders(tokenizer: Any, strategy: str) -> None:
    long = "\n\n".join(f"{CORPUS['d0']} Bond {n} is a loan to a town." for n in range(40))
    collection = dataclasses.replace(SET, corpus={**CORPUS, "d0": long})
    reading = LongDocuments(strategy)
    contract = make_contract(tokenizer, mode="portable", max_tokens=256, long_documents=reading)
    encoder = PromptEncoder(contract, tokenizer)
    settings = Mine(negatives=2, positives=1)
    source = GroupSource([collection], Pools(pools(), "p"), encoder, settings=settings, seed=0, need_positive=True)
    source.abstraction = Abstraction(recipe_of(", abstract: {}"), ["one"], 2)
    (group,) = [g for g in source.step(1, 10) if g.query_id == "q0"]
    own = source.group("q0", 0)
    texts, _ = abstracted(own.query, own.documents, KINDS)
    text = tokenizer.decode(group.encoded.tail_ids[0])
    assert "[COMPANY_1] paid" in text and "Acme" not in text
    assert len(group.encoded.tail_ids) == 3 and group.encoded.documents_cut == 1
    assert texts[0] == "What did [COMPANY_1] pay in [DATE_1]?"


def test_what_is_replaced_is_counted_once_and_said(tokenizer: Any, tmp_path: Path) -> None:
    encoder = PromptEncoder(make_contract(tokenizer, mode="portable", max_tokens=160), tokenizer)
    source = source_of(encoder, "{entities: [date, party], until: 0.5}")
    mix = write_mix(RunFolder(tmp_path), source, 4, 10, None)
    facts = mix["sets"][0]["abstract"]
    assert facts == {
        "entities": ["date", "party"],
        "last_step": 5,
        "counted_groups": 10,
        # A query and four documents of each group, each with a year, all but the query with a party.
        "texts": 50,
        "changed_texts": 50,
        "mentions": {"date": 50, "party": 40},
    }
    assert "abstract" not in mix["sets"][1]
    # Another pool by the end changes no count.
    source.use(Pools({q: pool[:1] for q, pool in pools().items()}, "later"))
    assert write_mix(RunFolder(tmp_path), source, 4, 10, 10)["sets"][0]["abstract"] == facts
    assert describe_abstraction("one", facts, 10) == (
        "one: placeholders for date, party until step 5 of 10; in the first groups of 10 queries they replace 50 date, "
        "40 party in 50 of 50 texts"
    )
    nothing = source_of(encoder, "{entities: [amount]}")
    nothing.abstraction = Abstraction(recipe_of("", ", abstract: {entities: [amount]}"), ["one", "plain"], 10)
    found = nothing.abstraction_facts("plain")
    assert found is not None
    assert describe_abstraction("plain", found, 10) == (
        "WARNING: plain: abstract finds no amount in the first groups of 1 query: training sees the texts as they are"
    )
    early = source_of(encoder, "{until: 0.01}").abstraction_facts("one")
    assert early is not None
    assert describe_abstraction("one", early, 10).startswith("WARNING: one: abstract.until ends before step 1 of 10")


def test_the_schema_names_the_kinds_of_the_rules() -> None:
    assert get_args(EntityKind) == KINDS


def write_sets(folder: Path) -> None:
    for name, split, first in (("one", "train", 0), ("held-out", "test", 30)):
        place = folder / "sets" / name
        shutil.rmtree(place)
        (place / "qrels").mkdir(parents=True)
        rows = range(first, first + (24 if split == "train" else 8))
        names = {n: f"{NAMES[n % 10]} {jobs.TOPICS[n % 25].title()}" for n in rows}
        corpus = [{"_id": f"d{n}", "text": f"{names[n]} Ltd paid ${n} million in {1950 + n}."} for n in rows]
        queries = [{"_id": f"q{n}", "text": f"What did {names[n]} pay in {1950 + n}?"} for n in rows]
        for file, found in (("corpus", corpus), ("queries", queries)):
            (place / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
        lines = ["query-id\tcorpus-id\tscore", *(f"q{n}\td{n}\t1" for n in rows)]
        (place / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")


def job(folder: Path, base: Path, abstract: dict[str, Any] | None = None) -> Path:
    train = {"path": "one", "split": "train"} | ({} if abstract is None else {"abstract": abstract})
    recipe = jobs.job(folder, base, train={"max_steps": 4, "save_every": 1}, data={"train": [train]})
    write_sets(folder)
    return recipe


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> dict[str, Pipeline]:
    """Of `until`: 0 without placeholders."""
    found = {}
    for name, abstract in (("none", None), ("half", {"until": 0.5}), ("whole", {"until": 1.0})):
        recipe = job(tmp_path_factory.mktemp(name), tiny_qwen3, abstract)
        found[name] = Pipeline(load_recipe(str(recipe), ["export.targets=[]"]), progress=False)
        found[name].train()
    return found


def test_only_training_sees_placeholders(runs: dict[str, Pipeline]) -> None:
    none, half, whole = (jobs.metrics(runs[name].folder.path) for name in ("none", "half", "whole"))
    losses = [[row["loss"] for row in rows if "loss" in row] for rows in (none, half, whole)]
    assert losses[1][:2] == losses[2][:2]
    assert losses[1][2] != losses[2][2]
    assert losses[0][0] != losses[1][0]
    # The base on dev, before a step: the same texts in all runs.
    assert none[0]["dev_nDCG@10"] == half[0]["dev_nDCG@10"] == whole[0]["dev_nDCG@10"]
    for name in ("negatives.jsonl", "candidates.jsonl", "data/train.jsonl", "data/dev.jsonl"):
        assert len({(run.folder.path / name).read_bytes() for run in runs.values()}) == 1, name
    mix = json.loads(runs["half"].folder.mix.read_text())
    assert mix["sets"][0]["abstract"]["last_step"] == 2
    assert mix["sets"][0]["abstract"]["mentions"]["company"] > 0


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_continued_before_at_and_after_the_switch_it_gives_the_same_bits(
    runs: dict[str, Pipeline], tmp_path: Path, kept: int
) -> None:
    half = runs["half"]
    shutil.copytree(half.folder.path, tmp_path / "run")
    (tmp_path / "run" / "stages" / "train.json").unlink()
    for step in range(kept + 1, 5):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{step}", ignore_errors=True)
    recipe = str(half.folder.path.parent / "recipe.yaml")
    again = Pipeline(load_recipe(recipe, [f"run_dir={tmp_path / 'run'}", "export.targets=[]"]), progress=False)
    again.train()
    weights = [load((p.folder.checkpoint(4) / "model.safetensors").read_bytes()) for p in (again, half)]
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())
    assert again.folder.mix.read_bytes() == half.folder.mix.read_bytes()


def test_another_share_trains_again_and_mines_no_more(runs: dict[str, Pipeline], tmp_path: Path) -> None:
    shutil.copytree(runs["half"].folder.path, tmp_path / "run")
    recipe = str(runs["half"].folder.path.parent / "recipe.yaml")
    stated = [f"run_dir={tmp_path / 'run'}", "export.targets=[]", "data.train.0.abstract.until=1.0"]
    again = Pipeline(load_recipe(recipe, stated), progress=False)
    before = {name: (tmp_path / "run" / "stages" / f"{name}.json").read_bytes() for name in ("data", "mine", "train")}
    again.train()
    after = {name: (tmp_path / "run" / "stages" / f"{name}.json").read_bytes() for name in ("data", "mine", "train")}
    assert [name for name in before if before[name] != after[name]] == ["train"]
    weights = [load((p.folder.checkpoint(4) / "model.safetensors").read_bytes()) for p in (again, runs["whole"])]
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())


@pytest.mark.slow
def test_two_processes_train_as_one(runs: dict[str, Pipeline], tiny_qwen3: Path, tmp_path: Path) -> None:
    recipe = job(tmp_path, tiny_qwen3, {"until": 0.5})
    done = jobs.rankwright("train", recipe, launcher=TWO, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    assert "placeholders for company, date, amount, party, statute until step 2 of 4" in done.stdout
    rows = [jobs.metrics(folder) for folder in (tmp_path / "run", runs["half"].folder.path)]
    losses = [[row["loss"] for row in found if "loss" in row] for found in rows]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    mixes = [(folder / "mix.json").read_bytes() for folder in (tmp_path / "run", runs["half"].folder.path)]
    assert mixes[0] == mixes[1]


def test_what_does_not_fit_is_refused_with_its_key(tmp_path: Path, tiny_qwen3: Path) -> None:
    recipe = str(job(tmp_path, tiny_qwen3))
    with pytest.raises(UserErrors) as error:
        Pipeline(load_recipe(recipe, ["data.test.0.abstract={}"]), progress=False).check(data=False)
    assert "data.test.0.abstract: of training alone: remove it here, dev and test are read as they are" in (
        error.value.messages
    )
    for wrong in (
        "{until: 0}",
        "{until: 1.5}",
        "{entities: []}",
        "{entities: [person]}",
        "{entities: [date, date]}",
        "1",
    ):
        with pytest.raises(UserErrors, match=r"data\.train\.0\.abstract"):
            load_recipe(recipe, [f"data.train.0.abstract={wrong}"])
    with pytest.raises(UserErrors, match="abstract: not with pairs"):
        load_recipe(recipe, ["data.train=[{pairs: runs/x, abstract: {}}]"])


def test_a_sweep_over_placeholders_keeps_the_dev_queries_that_are_taken_out_of_train(tmp_path: Path) -> None:
    loaded = load_sweep("ablations/entity-abstraction", ["data.root=x"])
    found = [one.recipe.data.train[0].abstract for one in loaded.configurations]
    assert [one and (one.until, len(one.entities)) for one in found] == [None, (0.5, 5), (1.0, 5), (0.5, 2)]
    file = tmp_path / "sweep.yaml"
    base = {"name": "s", "extends": "offline/finance"}
    for other in ({"limit": 9, "abstract": {}}, {"weight": 2.0}):
        sets = [[{"card": "tatqa", "split": "train", **other}]]
        file.write_text(yaml.safe_dump({**base, "over": {"data.train": sets}}))
        with pytest.raises(UserErrors, match="dev is taken out of train and would change"):
            load_sweep(str(file), ["data.root=x"])
