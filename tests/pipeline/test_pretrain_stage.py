"""The pretrain stage through the whole: the same bytes from the saved base, kills, leaks, bad pairs, the control."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from kill_points import drive

from rankwright.common.errors import UserError
from rankwright.common.run_folder import RunFolder
from rankwright.data.licences.ledger import make_inputs
from rankwright.data.split_files import read_split
from rankwright.evaluation.results import ResultRow, read_results, rows_of
from rankwright.pipeline.context import roles
from rankwright.pipeline.control import cost
from rankwright.pipeline.overview import preview, summary
from rankwright.pipeline.pretrain_recipes import control_recipe
from rankwright.pipeline.stages import Pipeline
from rankwright.recipe.loading import load_recipe
from rankwright.recipe.pretrain import CONTROL_LABEL
from rankwright.recipe.schema import Recipe
from rankwright.training.setup import total_steps

FIXTURES = Path(__file__).parents[2] / "data" / "fixtures"


def documents(name: str = "finance") -> list[dict[str, str]]:
    lines = (FIXTURES / name / "train" / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def recipe(folder: Path, base: Path, rows: list[dict[str, str]] | None = None, **section: Any) -> Path:
    """A recipe with title -> body of the fixtures' documents as weak pairs."""
    folder.mkdir(exist_ok=True)
    pairs = folder / "pairs.jsonl"
    made = [{"title": d["title"], "body": d["text"]} for d in documents()] if rows is None else rows
    pairs.write_text("".join(json.dumps(row) + "\n" for row in made))
    objective = {"query_likelihood": 0.0, "keep_answers": 0.0}
    weak = {"path": str(pairs), "name": "titles", "from": "title", "to": "body", "licence": "own"}
    whole = {
        "name": "adapted",
        "run_dir": str(folder / "run"),
        "model": {"base": str(base), "rank": 4, "alpha": 8},
        "pretrain": {"pairs": [weak], "objective": objective, "rank": 16, "steps": 4, "groups_per_step": 4, **section},
        "data": {
            "train": [{"path": str(FIXTURES / "finance" / "train"), "split": "train", "name": "finance", "limit": 60}],
            "test": [{"path": str(FIXTURES / "finance" / "test"), "split": "test", "name": "held-out", "limit": 20}],
        },
        "prompt": {"max_tokens": 96},
        "mine": {"depth": 10, "negatives": 3},
        "train": {"max_steps": 4, "groups_per_step": 4, "dev_queries": 6, "learning_rate": 1e-3, "save_every": 1},
        "evaluate": {"depth": 5, "combine": False},
        "export": {"targets": ["hf"]},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(whole))
    return path


def pipeline(path: Path, *overrides: str) -> Pipeline:
    return Pipeline(load_recipe(str(path), overrides), progress=False)


def weights(run: RunFolder) -> bytes:
    """The trained weights of a run's best checkpoint."""
    return (run.checkpoint(run.facts("train")["best_step"]) / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> Pipeline:
    path = recipe(tmp_path_factory.mktemp("pretrain"), tiny_qwen3, control="equal_compute")
    return pipeline(path).run()


def test_training_from_the_merged_base_is_training_from_the_saved_one(finished: Pipeline, tmp_path: Path) -> None:
    run = finished.folder
    plain = pipeline(finished.loaded.path, "pretrain=null", f"model.base={run.pretrained}", f"run_dir={tmp_path / 'r'}")
    plain.train()
    assert weights(plain.folder) == weights(run)


def text_of(folder: Path, name: str, extra: str = "") -> dict[str, Any]:
    """A file of texts: the fixtures' documents of a domain."""
    path = folder / f"{name}.jsonl"
    rows = [{"document": d["text"]} for d in documents(name)]
    rows += [{"document": extra}] if extra else []
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"path": str(path), "licence": "own"}


TEXT = {"block_tokens": 64, "blocks_per_step": 2}
ALL_PARTS = {"query_likelihood": 0.1, "text": 1.0, "keep_answers": 0.1}


def logged(run: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def test_pairs_and_text_are_trained_on_together(tmp_path: Path, tiny_qwen3: Path) -> None:
    section = {"text": [text_of(tmp_path, "legal")], "replay": {**text_of(tmp_path, "code"), "share": 0.25}}
    path = recipe(tmp_path, tiny_qwen3, objective=ALL_PARTS, **section, **TEXT)
    p = pipeline(path)
    p.train()
    facts = p.folder.facts("pretrain")
    steps = [row for row in logged(RunFolder(p.folder.pretraining)) if row["step"] > 0]
    assert all({"loss", "query_likelihood", "text_loss", "keep_answers", "tflop"} <= row.keys() for row in steps)
    assert set(facts["perplexity"]) == {"domain", "general"}
    # Far fewer steps than teach anything.
    assert all(0.5 < of["after"] / of["before"] < 1.1 for of in facts["perplexity"].values())
    assert facts["text"]["tokens"] == 64 * facts["text"]["blocks"]


def test_text_alone_lowers_its_perplexity(tmp_path: Path, tiny_qwen3: Path) -> None:
    section = {"text": [text_of(tmp_path, "legal")], "learning_rate": 5e-3, "steps": 12}
    path = recipe(tmp_path, tiny_qwen3, objective=ALL_PARTS, **section, **TEXT)
    p = pipeline(path, "pretrain.pairs=[]")
    p.train()
    facts, child = p.folder.facts("pretrain"), RunFolder(p.folder.pretraining)
    of = facts["perplexity"]["domain"]
    assert of["after"] < 0.9 * of["before"]
    assert facts["pairs"] == 0 and not child.negatives.exists()
    steps = logged(child)
    assert "dev_log_likelihood" in steps[0] and "dev_nDCG@10" not in steps[0]
    for row in steps[1:]:
        assert row["tflop"] > 0
        parts = (row["text_loss"], row["text_loss_divergence"], ALL_PARTS["keep_answers"] * row["keep_answers"])
        assert row["loss"] == pytest.approx(sum(parts))


def test_the_control_is_a_row_of_the_same_lists(finished: Pipeline) -> None:
    facts, run = finished.folder.facts("control"), finished.folder
    pretrained, trained = cost(RunFolder(run.pretraining)), cost(run)
    assert facts["further"] == math.ceil(pretrained["tflop"] / (trained["tflop"] / 4)) > 0
    assert facts["steps"] == 4 + facts["further"] == RunFolder(run.control).facts("train")["step"]
    # The control starts from the base as it was, with the same adapters and the same first groups.
    first = logged(RunFolder(run.control))[1]
    assert first["learning_rate"] > 0 and first["loss"] != logged(run)[1]["loss"]
    rows = {row.system: row for row in finished_rows(finished)}
    assert {"base", "pretrained", "tuned", "no-pretrain"} <= rows.keys()
    tuned = rows["tuned"]
    assert tuned.to_control == pytest.approx(tuned.value - rows["no-pretrain"].value)
    assert tuned.to_control_low is not None and tuned.to_control_high is not None
    assert tuned.to_control_low <= tuned.to_control <= tuned.to_control_high
    page = run.report.read_text()
    assert CONTROL_LABEL in page and 'id="pretraining"' in page and facts["unit"].upper() in page
    told = summary(finished)["pretrain"]
    assert told["control"]["steps"] == facts["steps"] and told["base_after"] == run.facts("pretrain")["base_after"]
    table = [one["system"] for one in summary(finished)["results"]]
    assert table.index("pretrained") < table.index("tuned") < table.index("no-pretrain")
    assert {one.name: one.state for one in preview(finished)}["pretrain"] == "done"


@given(steps=st.integers(1, 10**6), share=st.integers(1, 1000).map(lambda n: n / 1000))
def test_the_control_has_its_steps_whatever_share_of_the_queries_is_trained_on(steps: int, share: float) -> None:
    data = {"train": ({"path": "x"},), "test": ({"path": "y"},)}
    main = Recipe.model_validate({"name": "x", "model": {"base": "x"}, "data": data, "train": {"queries_share": share}})
    assert total_steps(control_recipe(main, RunFolder(Path()), steps), draws=100) == steps


def finished_rows(finished: Pipeline) -> list[ResultRow]:
    results, _ = read_results(finished.folder.path, finished.recipe, finished.test_sets, finished.inputs.systems)
    return rows_of(results)


def test_the_ledger_names_pairs_and_texts(tmp_path: Path, tiny_qwen3: Path) -> None:
    path = recipe(tmp_path, tiny_qwen3, text=[text_of(tmp_path, "legal")])
    p = pipeline(path)
    named = {one.name: one for one in make_inputs(p.recipe, p.located, roles(p.recipe))}
    assert named["titles"].uses == ("train",) and named["titles"].known.licence == "proprietary"
    [text] = [one for name, one in named.items() if name.startswith("text ")]
    assert text.taints and text.known.licence == "proprietary"


def test_nothing_is_done_again_when_a_later_key_changes(finished: Pipeline, tmp_path: Path, tiny_qwen3: Path) -> None:
    other = pipeline(finished.loaded.path, "train.learning_rate=2e-3")
    assert other.inputs.pretrain == finished.inputs.pretrain and other.inputs.train != finished.inputs.train
    for changed in ("pretrain.rank=32", "pretrain.objective.list=0.5", "seed=1", "prompt.max_tokens=100"):
        assert pipeline(finished.loaded.path, changed).inputs.pretrain != finished.inputs.pretrain, changed
        assert pipeline(finished.loaded.path, changed).inputs.train != finished.inputs.train, changed
    (tmp_path / "link").symlink_to(tiny_qwen3.resolve())
    for same in ("pretrain.control=none", f"model.base={tmp_path / 'link'}"):
        assert pipeline(finished.loaded.path, same).inputs.train == finished.inputs.train, same


def test_a_base_that_predicts_no_tokens_is_refused_before_anything_is_done(finished: Pipeline) -> None:
    labelled = f"model.base={finished.folder.export('hf')}"
    pipeline(finished.loaded.path, labelled).check()
    with pytest.raises(UserError, match=r"^model\.base: \w+ has no head that predicts tokens: take the language model"):
        pipeline(finished.loaded.path, labelled, "pretrain.objective.query_likelihood=0.1").check()


def faults_of(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as error:
        pipeline(path, *overrides).train()
    return str(error.value).splitlines()


def rows(count: int, **changes: dict[str, str]) -> list[dict[str, str]]:
    made = [{"title": d["title"], "body": d["text"]} for d in documents()[:count]]
    for number, change in changes.items():
        made[int(number[1:])] |= change
    return made


def test_bad_pairs_are_refused_or_counted(tmp_path: Path, tiny_qwen3: Path, capsys: pytest.CaptureFixture[str]) -> None:
    equal = rows(30, **{f"n{n}": {"body": documents()[n]["title"]} for n in range(3)}, n5={"title": "  "})
    path = recipe(tmp_path / "few", tiny_qwen3, equal, rank=8)
    Pipeline(load_recipe(str(path))).train()
    said = capsys.readouterr().out
    assert "3 pairs of two equal texts left out" in said and "WARNING: pretrain.rank: 8" in said
    run = RunFolder(tmp_path / "few" / "run")
    assert run.facts("pretrain")["equal_texts"] == 3 and run.facts("pretrain")["pairs"] == 26
    empty = recipe(tmp_path / "empty", tiny_qwen3, rows(30, **{f"n{n}": {"body": ""} for n in range(4)}))
    [line] = faults_of(empty)
    assert "pretrain.pairs.0" in line and "4 of 30 pairs" in line and "more than 10%" in line
    same = recipe(tmp_path / "same", tiny_qwen3, [{"title": "a title", "body": "A title"}] * 3)
    assert "no pair of two different texts" in faults_of(same)[0]


def test_a_query_of_test_is_no_weak_pair(tmp_path: Path, tiny_qwen3: Path) -> None:
    path = recipe(tmp_path, tiny_qwen3)
    p = pipeline(path)
    p.data()
    [held_out] = read_split(p.folder.data, "test")
    query = next(iter(held_out.queries.values()))
    path = recipe(tmp_path, tiny_qwen3, rows(20, n4={"title": query}))
    [line] = faults_of(path)
    assert line.startswith("pretrain.pairs: 1 query is in test too") and "data.on_leak: drop" in line
    p = pipeline(path, "data.on_leak=drop")
    p.train()
    assert p.folder.facts("pretrain")["leaking"] == 1 and p.folder.facts("pretrain")["pairs"] == 19
    assert query not in (p.folder.pretrain_pairs / "titles.jsonl").read_text()


def test_text_without_the_tokens_that_are_asked_is_refused_and_loses_queries_of_test(
    tmp_path: Path, tiny_qwen3: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path, tiny_qwen3, text=[{**text_of(tmp_path, "legal"), "tokens": 10**9}], **TEXT)
    p = pipeline(path)
    p.data()
    [held_out] = read_split(p.folder.data, "test")
    long = next(query for query in held_out.queries.values() if len(query.split()) > 7)
    text = text_of(tmp_path, "legal", extra=f"Somebody asked: {long}")
    with Path(text["path"]).open("a") as file:
        file.write('{"other": 1}\n')
    capsys.readouterr()
    with pytest.raises(UserError, match=r"pretrain\.text\.0: .*1,000,000,000 tokens asked"):
        Pipeline(load_recipe(str(path), ["data.on_fault=drop"])).train()
    said = capsys.readouterr().out
    assert "1 paragraph of 1 document left out: they hold 1 query of dev or test" in said and text["path"] in said
    assert "1 row dropped, no text of a document" in said
    assert re.search(r"are not \(\d+ quer(y|ies) of fewer than 5 words may be\)", said)


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["pretrain.text=[{path: nowhere}]"], "pretrain.text.0: "),
        (["export.targets=[adapter]"], "export.targets: adapter: with pretrain"),
        (["pretrain.pairs.0.path=nowhere.jsonl"], "pretrain.pairs.0: "),
        (["model.quantize=nf4"], "pretrain: its adapters are not merged into a quantised base"),
        (["pretrain.pairs=[]"], "has neither pairs nor text"),
        (["pretrain.replay={path: x}"], "replay: is mixed into text"),
        (["pretrain.objective={list: 0, query_likelihood: 0}"], "nothing is learned"),
        (["pretrain.pairs.0.columns={query: title}"], "columns.query: from and to state this already"),
        (["pretrain.pairs.0.run=x.run"], "run: not with weak pairs"),
        (["evaluate.baselines=[{name: pretrained, kind: rankwright, model: x}]"], "is a row of every evaluation"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_done(
    tmp_path: Path, tiny_qwen3: Path, overrides: list[str], wanted: str
) -> None:
    path = recipe(tmp_path, tiny_qwen3)
    with pytest.raises(UserError) as error:
        pipeline(path, *overrides).check()
    lines = [line for line in str(error.value).splitlines() if wanted in line]
    assert lines and all(len(line) < 400 for line in lines), error.value
    assert not (tmp_path / "run").exists()


POINTS = [
    *("/pretrain/pairs/", "/pretrain/checkpoints/.step-2.tmp", "/pretrain/stages/.train.json", "/pretrain/.base.tmp"),
    *("/run/stages/.pretrain.json", "/control/checkpoints/.step-3.tmp", "/pretrained/.metrics.json"),
]


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_bytes(tmp_path: Path, tiny_qwen3: Path) -> None:
    path = recipe(tmp_path, tiny_qwen3, control="equal_compute")
    path.write_text(path.read_text().replace("targets:\n  - hf", "targets: []"))
    run, whole = tmp_path / "run", tmp_path / "whole"
    ended, _ = drive(path, run, 9, POINTS)
    assert [point for point, code in ended[:-1] if code != "-9"] == [], ended
    drive(path, whole, 9, [])
    names = ["pretrain/base/model.safetensors", "pretrain/pairs/titles.jsonl", "checkpoints/step-4/model.safetensors"]
    for name in [*names, "eval/held-out/no-pretrain/run.trec", "eval/held-out/pretrained/run.trec"]:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    assert not [path for path in run.rglob(".*") if path.name not in (".lock", ".model", ".proven.json")]


def test_all_weights_are_trained_from_the_merged_base_too(tmp_path: Path, tiny_qwen3: Path) -> None:
    p = pipeline(recipe(tmp_path, tiny_qwen3), "model.method=full", "train.max_steps=2")
    found = p.train()
    assert found["step"] == 2 and p.folder.facts("pretrain")["base_after"]
