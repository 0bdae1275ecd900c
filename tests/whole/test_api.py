"""The Python API, as a notebook uses it: one process, every stage, plain objects, errors that can be caught."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import jobs
import pytest

from rankwright import Pipeline, UserError, load_recipe
from rankwright.common.errors import UserErrors


def test_a_run_stage_by_stage(tmp_path: Path, tiny_qwen3: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = load_recipe(str(jobs.job(tmp_path, tiny_qwen3)), ["train.max_steps=4"])
    run = Pipeline(recipe, progress=False)
    assert run.check() == {"train": ["one"], "test": ["held-out"]}
    assert run.data()["test"] == 12
    assert run.mine()["counts"]["kept"] > 0
    trained = run.train()
    assert trained["checkpoint"].is_dir() and trained["best_value"] >= trained["base_value"]
    rows = run.evaluate()
    assert run.calibrate()["temperature"] > 0
    exports = run.export()
    assert set(exports) == {"hf", "adapter"}
    assert (exports["hf"]["folder"] / "model.safetensors").is_file() and exports["hf"]["parity"]["engines"]
    assert run.report().read_text(encoding="utf-8").startswith("<!doctype html>")
    assert capfd.readouterr().out == ""

    assert [row["system"] for row in rows] == ["bm25", "base", "tuned", "combined"]
    for row in rows:
        metrics = json.loads((run.folder.eval_folder("held-out", row["system"]) / "metrics.json").read_text())
        assert row["value"] == metrics["nDCG@10"] and row["queries"] == 12 and row["test_set"] == "held-out"
    base, tuned = rows[1:3]
    assert base["difference"] is None
    assert tuned["difference"] == pytest.approx(tuned["value"] - base["value"])
    assert tuned["low"] <= tuned["difference"] <= tuned["high"]
    if find_spec("pandas"):
        import pandas

        frame = pandas.DataFrame(run.results())
        assert {"test_set", "system", "measure", "value", "difference", "low", "high", "queries"} <= set(frame.columns)
        assert len(frame) == 4

    # The next cell, or another day: nothing is done twice, and it can be watched.
    weights = exports["hf"]["folder"] / "model.safetensors"
    before = weights.stat().st_mtime_ns
    again = Pipeline(recipe)
    assert again.run() is again and again.results() == rows
    assert capfd.readouterr().out.count("unchanged, skipped") == 5
    assert weights.stat().st_mtime_ns == before
    command = json.loads((tmp_path / "run" / "provenance.json").read_text())["command"]
    assert command[:2] == ["rankwright", "run"] and command[-1] == "train.max_steps=4"


def test_mistakes_are_user_errors(tmp_path: Path, tiny_qwen3: Path) -> None:
    path = jobs.job(tmp_path, tiny_qwen3)
    with pytest.raises(UserError, match="did you mean 'quickstart'"):
        load_recipe("quickstar")
    with pytest.raises(UserErrors, match=r"train\.learning_rate"):
        load_recipe(str(path), ["train.learning_rate=fast"])
    with pytest.raises(UserErrors, match="did you mean 'listwise_softmax'"):
        Pipeline(load_recipe(str(path), ["loss.name=listwise_softmaxx"]), progress=False).run()
    with pytest.raises(UserError, match="unknown system 'fusion'"):
        Pipeline(load_recipe(str(path)), progress=False).evaluate(["fusion"])
    assert not (tmp_path / "run" / "data").exists()


def test_a_gate_that_refuses_raises_after_the_report(tmp_path: Path, tiny_qwen3: Path) -> None:
    recipe = load_recipe(str(jobs.job(tmp_path, tiny_qwen3)), ["gate={min_gain: 0.9}"])
    run = Pipeline(recipe, progress=False)
    with pytest.raises(UserError, match="gate: refused"):
        run.run()
    assert run.folder.report.is_file() and not run.folder.exports.exists()
    assert len(run.results()) == 4


def test_the_package_is_light_and_offers_its_names() -> None:
    code = """
import sys, rankwright
assert not {"torch", "transformers", "pydantic", "numpy"} & set(sys.modules)
from rankwright import Recipe, UserError, load_recipe, read_collection
assert not {"torch", "transformers"} & set(sys.modules)
for name in rankwright.__all__:
    assert getattr(rankwright, name) is not None, name
assert set(rankwright.__all__) <= set(dir(rankwright))
try:
    rankwright.Pipelin
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=jobs.environment())
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "module 'rankwright' has no attribute 'Pipelin'"


def test_what_a_notebook_passes_is_right_or_one_line(
    tmp_path: Path, tiny_qwen3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths of pathlib and columns are taken; one text in place of a list, NaN and other types are one line."""
    import numpy
    import pandas

    from rankwright import Recipe, compare, read_collection, write_trec_run
    from rankwright.retrieval.run_file import read_trec_run

    monkeypatch.chdir(tmp_path)
    jobs.job(tmp_path, tiny_qwen3)
    loaded = load_recipe(Path("recipe.yaml"), pandas.Series(["train.max_steps=4"], index=[7]))
    assert loaded == load_recipe("./recipe.yaml", ("train.max_steps=4",))
    assert Pipeline(loaded, "elsewhere").folder.path == Pipeline(loaded, Path("elsewhere")).folder.path
    (tmp_path / "pairs.jsonl").write_text('{"query": "q", "positive": "p"}\n')
    assert (
        read_collection("pairs.jsonl", name="one").queries == read_collection(Path("pairs.jsonl"), name="one").queries
    )
    scores = {"d 1": numpy.float32(0.1), "d2": 2, "d3": numpy.float64(-1.5)}
    write_trec_run("a.trec", {"q": scores}, "tag")
    assert read_trec_run(tmp_path / "a.trec") == {"q": {"d%201": float(numpy.float32(0.1)), "d2": 2.0, "d3": -1.5}}

    half = "half \ud800 a pair"
    mistakes: list[Callable[[], object]] = [
        *(lambda value=value: load_recipe(value) for value in (None, 3, "", b"r.yaml", half)),
        *(
            lambda value=value: load_recipe("quickstart", value)
            for value in ("seed=1", [3], [None], {"seed": 1}, [half])
        ),
        *(lambda value=value: Pipeline(value) for value in (None, "recipe.yaml", loaded.recipe, Recipe)),
        *(lambda value=value: Pipeline(loaded, value) for value in (3, "", b"x")),
        *(
            lambda value=value: Pipeline(loaded, progress=False).evaluate(value)
            for value in ("bm25", [], [3], {"bm25"})
        ),
        *(lambda value=value: compare(value) for value in (".", Path(), [], [3], None, ["a\0b"], [half])),
        *(
            lambda value=value: read_collection(value, name="n")
            for value in (None, 3, "", "a\0b", half, ["pairs.jsonl"])
        ),
        *(lambda value=value: read_collection("pairs.jsonl", name=value) for value in (None, 3)),
        *(lambda value=value: read_collection("pairs.jsonl", name="n", split=value) for value in (3, ["train"])),
        lambda: read_collection("pairs.jsonl", name="n", columns=["query"]),
        *(
            lambda run=run, tag=tag: write_trec_run("b.trec", run, tag)
            for run, tag in (
                ({"q": {"d": float("nan")}}, "t"),
                ({"q": {"d": float("inf")}}, "t"),
                ({"q": {"d": None}}, "t"),
                ({"q": {"d": "1"}}, "t"),
                ({"q": {1: 1.0}}, "t"),
                ({"q": {"": 1.0}}, "t"),
                ({1: {"d": 1.0}, "q": {"d": 1.0}}, "t"),
                ({"": {"d": 1.0}}, "t"),
                ({half: {"d": 1.0}}, "t"),
                ({"q": [("d", 1.0)]}, "t"),
                ([("q", {"d": 1.0})], "t"),
                ({"q": {"d": 1.0}}, ""),
                ({"q": {"d": 1.0}}, None),
            )
        ),
        lambda: write_trec_run(None, {"q": {"d": 1.0}}, "t"),
    ]
    for number, mistake in enumerate(mistakes):
        with pytest.raises(UserError) as caught:
            mistake()
            pytest.fail(f"mistake {number} was taken")
        assert "\n" not in str(caught.value), number
    assert not (tmp_path / "b.trec").exists() and not (tmp_path / "runs").exists()
