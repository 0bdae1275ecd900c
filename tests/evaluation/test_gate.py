"""The accept gate: a table of cases, faults of the section, and real runs that are refused, overridden and accepted."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import stdev
from typing import Any

import jobs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwright.cli.models import show_ranking
from rankwright.common.stats import paired_difference, randomisation_test
from rankwright.evaluation.gate import GUARD_MARGIN, check_gate, check_override, judge
from rankwright.model.prompt import PromptContract
from rankwright.recipe.export import Gate
from rankwright.recipe.loading import load_recipe
from rankwright.recipe.schema import Baseline
from rankwright.rerankers.reranker import Reranker


def pair(
    gain: float, noise: float = 0.0, queries: int = 40, seed: int = 0
) -> tuple[dict[str, float], dict[str, float]]:
    """base of 0.5 everywhere, and tuned `gain` above it on average, give or take noise."""
    chance = random.Random(seed)
    deltas = [noise * (chance.random() - 0.5) for _ in range(queries)]
    middle = sum(deltas) / len(deltas)
    base = {f"q{i}": 0.5 for i in range(queries)}
    return base, {f"q{i}": 0.5 + gain + delta - middle for i, delta in enumerate(deltas)}


@pytest.mark.parametrize(
    ("section", "values", "passed"),
    [
        ({}, {"a": pair(0.1, 0.2)}, [True]),
        # A mean above 0 whose interval reaches below it.
        ({}, {"a": pair(0.01, 0.4)}, [False]),
        # Above, not equal: a model that changes nothing gains nothing.
        ({}, {"a": pair(0.0)}, [False]),
        ({"min_gain": 0.08}, {"a": pair(0.1, 0.02)}, [True]),
        ({"min_gain": 0.1}, {"a": pair(0.1, 0.02)}, [False]),
        ({"min_gain": -0.05}, {"a": pair(0.0)}, [True]),
        # Pooled over all sets that are no guards: one may lose.
        ({}, {"a": pair(0.2, 0.1), "b": pair(-0.02, 0.1)}, [True]),
        ({"guard": ("b",)}, {"a": pair(0.2, 0.1), "b": pair(-0.02, 0.1)}, [True, False]),
        ({"guard": ("b",)}, {"a": pair(0.2, 0.1), "b": pair(-0.008, 0.3)}, [True, True]),
        ({"guard": ("b",)}, {"a": pair(0.2, 0.1), "b": pair(0.0)}, [True, True]),
        # A small loss that is certain; a large one that is not.
        ({"guard": ("b",)}, {"a": pair(0.2, 0.1), "b": pair(-0.005, 0.001)}, [True, False]),
        ({"guard": ("b",)}, {"a": pair(0.2, 0.1), "b": pair(-0.02, 0.9)}, [True, False]),
        # A guard makes nothing easier: its queries are not in the pool.
        ({"guard": ("b",)}, {"a": pair(-0.2, 0.1), "b": pair(0.4, 0.1)}, [False, True]),
        # One query says nothing about others.
        ({}, {"a": pair(0.4, queries=1)}, [False]),
        # Of five that all gain a sign test has p 1/16, of six 1/32; at 90 % five are enough.
        ({}, {"a": pair(0.4, 0.1, queries=5)}, [False]),
        ({}, {"a": pair(0.4, 0.1, queries=6)}, [True]),
        ({"confidence": 0.9}, {"a": pair(0.4, 0.1, queries=5)}, [True]),
    ],
)
def test_cases(section: dict[str, Any], values: dict[str, Any], passed: list[bool]) -> None:
    rules = judge(Gate(**section), values, seed=0)
    assert [rule.passed for rule in rules] == passed
    assert all("\n" not in rule.sentence for rule in rules)


def test_the_first_stage_is_a_rule_of_its_own() -> None:
    values, first = {"a": pair(0.1, 0.2)}, {"a": pair(-0.1, 0.2)}
    both = Gate(against=("base", "first_stage"))
    gain, over_first = judge(both, values, seed=0, first=first, first_stage="bm25")
    assert gain.passed and not over_first.passed and over_first.rule == "gain over first stage"
    assert over_first.sentence.startswith("nDCG@10 of tuned - BM25 -0.1000 over 40 queries of a, ")
    assert all(rule.passed for rule in judge(both, values, seed=0, first=values))
    (alone,) = judge(Gate(against=("first_stage",)), values, seed=0, first=first, first_stage="run")
    assert not alone.passed
    assert judge(Gate(), values, seed=0, first=first) == (gain,)


def test_at_least_allows_one_standard_error() -> None:
    values = [-0.2, 0.1, 0.1, -0.1]
    pairs = {"a": ({f"q{i}": 0.5 for i in range(4)}, {f"q{i}": 0.5 + x for i, x in enumerate(values)})}
    error = stdev(values) / 2
    for system in ("tuned", "combined"):
        gate = Gate(system=system, against=(), at_least=("base",))
        (rule,) = judge(gate, pairs, seed=0)
        assert (rule.rule, rule.passed, rule.value, rule.low) == pytest.approx(
            ("at least base", True, -0.025, -0.025 - error)
        )
        assert rule.sentence == (
            f"nDCG@10 of {system} - base -0.0250 over 4 queries of a: at most one standard error, {error:.4f}, below"
        )
    # The same loss of many queries is more than that.
    many = {"a": tuple({f"{n}{q}": v for n in range(50) for q, v in side.items()} for side in pairs["a"])}
    gate = Gate(system="combined", against=("first_stage",), at_least=("base", "first_stage"))
    rules = judge(gate, many, seed=0, first=many, first_stage="bm25")
    assert [(rule.rule, rule.passed) for rule in rules] == [
        ("gain over first stage", False),
        ("at least base", False),
        ("at least first stage", False),
    ]
    # An equal result is no loss.
    same = {"a": (pairs["a"][0], pairs["a"][0])}
    assert all(rule.passed for rule in judge(Gate(against=(), at_least=("base",)), same, seed=0))


def changed(differences: Sequence[float], queries: int) -> tuple[dict[str, float], dict[str, float]]:
    """base of 0.5 everywhere, and tuned with these differences on the first queries and none on the others."""
    base = {f"q{i:04}": 0.5 for i in range(queries)}
    return base, {q: 0.5 + (differences[i] if i < len(differences) else 0.0) for i, q in enumerate(base)}


@pytest.mark.parametrize("queries", [20, 100, 1000])
def test_few_queries_that_differ_do_not_pass(queries: int) -> None:
    for improved, passed in ((3, False), (5, False), (6, True)):
        (rule,) = judge(Gate(), {"a": changed([0.5] * improved, queries)}, seed=0)
        assert rule.passed == passed, rule.sentence
        # Two of all sign patterns are as far from 0.
        p = 2 / 2**improved
        assert f"over {queries:,} queries of a, {improved} of which differ" in rule.sentence
        assert f"has p = {p:.3g}, {'at most' if passed else 'above'} 0.05" in rule.sentence
    # The same of a difference to a gain that is asked for.
    (rule,) = judge(Gate(min_gain=-0.1), {"a": changed([0.5] * 3, 3)}, seed=0)
    assert not rule.passed and "p = 0.25" in rule.sentence
    # A sure loss is no matter of p.
    (rule,) = judge(Gate(), {"a": pair(-0.1, 0.2)}, seed=0)
    assert not rule.passed and "p = " not in rule.sentence
    assert "the mean itself is not above 0 (95 % interval -0.1" in rule.sentence


def null_cells() -> list[Any]:
    """Symmetric differences without a gain: what a metric of two equal systems may look like."""
    cells: list[Any] = []
    for n in (6, 10, 15, 30, 60, 100):
        cells.append(pytest.param(n, lambda rng, n=n: rng.normal(0, 0.2, n), id=f"normal {n}"))
        # One relevant document, at places that are equally likely for both: differences of 1 / log2(1 + place).
        cells.append(pytest.param(n, lambda rng, n=n: one_relevant(rng, n, 1.0), id=f"one relevant {n}"))
    for n in (30, 60, 100):
        cells.append(pytest.param(n, lambda rng, n=n: one_relevant(rng, n, 0.1), id=f"a tenth differs {n}"))
        cells.append(
            pytest.param(
                n, lambda rng, n=n: rng.normal(0, 0.2, n) * (rng.random(n) < 0.1), id=f"a tenth differs, normal {n}"
            )
        )
    return cells


def one_relevant(rng: np.random.Generator, queries: int, share: float) -> np.ndarray:
    gains = np.append(1 / np.log2(1 + np.arange(1, 11)), 0.0)
    found: np.ndarray = np.subtract(*gains[rng.integers(0, 11, (2, queries))]) * (rng.random(queries) < share)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("queries", "draw"), null_cells())
def test_false_passes_of_models_that_gain_nothing(queries: int, draw: Callable[[np.random.Generator], Any]) -> None:
    rng, draws, passed = np.random.default_rng(queries), 3000, 0
    for seed in range(draws):
        differences = draw(rng)
        # A sum of random signs is at least its standard deviation from 0 in more than a tenth of all cases
        # (Oleszkiewicz 1996), so that p is above .1 for all others.
        if abs(differences.sum()) > np.sqrt(np.square(differences).sum()):
            # The same draw with the other signs is as likely, and one of the two can pass.
            values = changed(np.sign(differences.sum()) * differences, queries)
            # What is asked last, because the whole rule takes longer.
            if randomisation_test(*values, seed=seed) <= 0.05:
                passed += judge(Gate(), {"a": values}, seed=seed)[0].passed
    assert passed / (2 * draws) <= 0.03


def test_the_numbers_are_those_of_the_pooled_interval() -> None:
    values = {name: pair(0.05, 0.3, queries=20, seed=n) for n, name in enumerate(("a", "b", "c"))}
    gain, guard = judge(Gate(guard=("b",), confidence=0.9), values, seed=3)
    base, tuned = ({f"{n}/{q}": v for n in ("a", "c") for q, v in values[n][side].items()} for side in (0, 1))
    wanted = paired_difference(base, tuned, confidence=0.9, seed=3)
    assert (gain.value, gain.low) == (wanted.mean, wanted.low) and "40 queries of a, c" in gain.sentence
    assert (gain.rule, guard.rule) == ("gain", "guard b") and "90 % interval" in gain.sentence
    # A higher confidence asks for more.
    assert judge(Gate(confidence=0.99), values, seed=3)[0].low < judge(Gate(confidence=0.8), values, seed=3)[0].low


def test_a_query_of_two_sets_counts_once() -> None:
    whole = pair(0.1, 0.6, queries=30)
    part = (dict(list(side.items())[:20]) for side in whole)
    values = {"whole": whole, "part": tuple(part)}
    (alone,), (twice,) = (judge(Gate(), v, seed=0) for v in ({"whole": whole}, values))
    repeated = {"part": {q: f"whole/{q}" for q in values["part"][0]}}
    (once,) = judge(Gate(), values, seed=0, repeated=repeated)
    assert (once.value, once.low) == (alone.value, alone.low) != (twice.value, twice.low)
    assert "30 queries of whole, part (20 queries that are in several sets count once)" in once.sentence


@settings(max_examples=25, deadline=None)
@given(st.floats(-0.3, 0.3), st.floats(0, 0.5), st.floats(-0.2, 0.2))
def test_a_guard_never_turns_a_refused_model_into_an_accepted_one(gain: float, noise: float, other: float) -> None:
    values = {"a": pair(gain, noise), "b": pair(other, 0.1)}
    alone = judge(Gate(), {"a": values["a"]}, seed=0)[0]
    first, guard = judge(Gate(guard=("b",)), values, seed=0)
    assert (first.value, first.low, first.passed) == (alone.value, alone.low, alone.passed)
    if other < -GUARD_MARGIN - 1e-9:
        assert not guard.passed


def test_faults_of_the_section() -> None:
    assert check_gate(Gate(guard=("b",)), ["RR"], ["a", "b"]) == []
    assert check_gate(Gate(metric="RR"), ["RR"], None) == []
    metric, twice, unknown = check_gate(Gate(metric="nDGC@10", guard=("b", "b", "legla")), ["RR"], ["b", "legal"])
    assert metric.startswith("gate.metric: 'nDGC@10' is not measured, did you mean 'nDCG@10'?") and "RR" in metric
    assert twice == "gate.guard: 'b' is named twice"
    assert unknown.startswith("gate.guard: unknown test set 'legla', did you mean 'legal'?")
    (never,) = check_gate(Gate(min_gain=5), [], None)
    assert never == "gate.min_gain: 5, must be below 1: nDCG@10 is from 0 to 1"
    assert check_gate(Gate(metric="NumRelRet", min_gain=5), ["NumRelRet"], None) == []
    (every,) = check_gate(Gate(guard=("a", "b")), [], ["a", "b"])
    assert every.startswith("gate.guard: all test sets are guards")
    recipe = load_recipe("quickstart").recipe
    plain, gated = recipe.model_copy(update={"gate": None}), recipe.model_copy(update={"gate": Gate()})
    teacher = Baseline(name="big", kind="served", model="m")
    taught = plain.model_copy(update={"mine": plain.mine.model_copy(update={"teacher": teacher})})
    assert check_override(None, plain) == check_override("why", gated) == check_override("why", taught) == []
    assert "neither `gate` nor a teacher" in check_override("why", plain)[0]
    assert "reason" in check_override("  ", gated)[0]


@pytest.fixture(scope="module")
def refused(
    tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A whole run that the gate refuses: (folder, what the command said)."""
    folder = tmp_path_factory.mktemp("refused")
    recipe = jobs.job(folder, tiny_qwen3, gate={"min_gain": 0.99, "guard": []}, export={"targets": ["adapter"]})
    return folder, jobs.rankwright("run", recipe)


def written(run: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / name).read_text())
    return found


def test_a_refused_run_keeps_all_but_the_export(refused: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = refused
    run = folder / "run"
    assert done.returncode == 3 and "Traceback" not in done.stderr
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert line.startswith("error: gate: refused, nothing is exported") and "0.99" in line
    assert line.endswith(f"export it anyway: rankwright export {folder / 'recipe.yaml'} --override 'why'")
    assert "tuned - base [95 %]" in done.stdout and "FAILED: nDCG@10" in done.stdout
    assert (run / "report.html").is_file() and not (run / "export").exists()
    verdict = written(run, "gate.json")
    assert verdict["accepted"] is False and verdict["override"] is None
    rule, dev = verdict["rules"]
    assert dev["rule"] == "dev" and dev["value"] == pytest.approx(
        written(run, "stages/train.json")["best_value"] - written(run, "stages/train.json")["base_value"]
    )
    assert set(rule) == {"rule", "value", "low", "wanted", "passed", "sentence"} and rule["passed"] is False


def test_calibration_json_is_complete(refused: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    run = refused[0] / "run"
    found = written(run, "calibration.json")
    assert found["temperature"] > 0 and found["fitted_on"] == "dev" and list(found["test"]) == ["held-out"]
    lines = [line.split() for line in (run / "eval" / "held-out" / "tuned" / "run.trec").read_text().splitlines()]
    test = found["test"]["held-out"]
    assert (test["pairs"], test["queries"]) == (len(lines), len({line[0] for line in lines}))
    # Every query's own document is relevant, and in these lists where BM25 found it.
    assert test["relevant"] == sum(query[1:] == document[1:] for query, _, document, *_ in lines)
    for part in (found["dev"], test):
        assert (
            sum(row["pairs"] for row in part["bins"]) == sum(r["pairs"] for r in part["bins_fitted"]) == part["pairs"]
        )
    assert found["dev"]["pairs"] == sum(len(json.loads(row)["scores"]) for row in dev_rows(run)[1:])


def dev_rows(run: Path) -> list[str]:
    return (run / "dev_scores.jsonl").read_text().splitlines()


@pytest.mark.slow
def test_override_exports_with_its_reason_and_holds_for_the_same_model_only(
    refused: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(refused[0] / "run", run)
    # A process that was killed while it scored dev: half of it is there, and a part of a line.
    rows = dev_rows(run)
    (run / "dev_scores.jsonl").write_text("\n".join([*rows[:2], rows[2][:9]]))
    (run / "stages" / "calibrate.json").unlink()
    before = written(run, "calibration.json")
    command = ("export", refused[0] / "recipe.yaml", f"run_dir={run}")
    done = jobs.rankwright(*command, "--override", " agreed  with\n the team ")
    assert done.returncode == 0, done.stderr
    assert written(run, "calibration.json")["dev"]["pairs"] == before["dev"]["pairs"]
    assert written(run, "calibration.json")["temperature"] == pytest.approx(before["temperature"], rel=1e-4)
    verdict = written(run, "gate.json")
    assert verdict["accepted"] is False and verdict["override"] == "agreed with the team"
    card = (run / "export" / "adapter" / "README.md").read_text()
    assert "agreed with the team" in card and "**Not passed.**" in card and verdict["rules"][0]["sentence"] in card
    contract = PromptContract.load(run / "export" / "adapter")
    assert contract is not None and contract.temperature == written(run, "calibration.json")["temperature"]
    # The same command without it: the same model, whose reason is on record.
    again = jobs.rankwright(*command)
    assert again.returncode == 0 and "exported although a rule failed: agreed with the team" in again.stdout
    # Another gate is another verdict: refused, and what was exported is put away with it.
    other = jobs.rankwright(*command, "gate.min_gain=0.98")
    assert other.returncode == 3 and not (run / "export").exists()
    put_away = run / "export-withdrawn-1"
    assert (put_away / "adapter" / "README.md").is_file() and written(put_away, "gate.json")["accepted"] is False
    assert written(run, "gate.json")["override"] is None


def test_an_accepted_model_says_so_and_the_api_gives_calibrated_probabilities(
    refused: tuple[Path, subprocess.CompletedProcess[str]],
    tmp_path: Path,
    tiny_qwen3: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    shutil.copytree(refused[0] / "run", run)
    command = (refused[0] / "recipe.yaml", f"run_dir={run}", "gate.min_gain=-2", "--override", "not needed")
    done = jobs.rankwright("export", *command)
    assert done.returncode == 0, done.stderr
    assert "not recorded, because every rule passed" in done.stdout
    assert written(run, "gate.json")["accepted"] is True and written(run, "gate.json")["override"] is None
    folder = run / "export" / "adapter"
    assert "Passed. Every rule" in (folder / "README.md").read_text()
    reranker = Reranker.load(str(folder), base=str(tiny_qwen3))
    temperature = reranker.contract.temperature
    ranked = reranker.rank("bond loan", ["bond loan court", "river town", "music"])
    for row in ranked:
        assert row.probability == pytest.approx(sigmoid(row.score), rel=1e-12)
        assert row.calibrated == pytest.approx(sigmoid(row.score / temperature), rel=1e-12)
    # Another instruction has other scores, to which nothing was fitted.
    other = Reranker.load(str(folder), base=str(tiny_qwen3), instruction="Find the clause")
    assert other.contract.temperature == 1
    for calibrated in (True, False):
        show_ranking(ranked, calibrated=calibrated)
        shown = capsys.readouterr().out
        assert ("calibrated" in shown) == (f"{ranked[0].calibrated:.4f}" in shown) == calibrated


def sigmoid(value: float) -> float:
    import math

    return 1 / (1 + math.exp(-value))


def test_without_a_gate_there_is_no_verdict_and_an_old_one_goes(
    refused: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(refused[0] / "run", run)
    # Other lists, so another evaluation: what was said about the first one must not stay, even if this one ends early.
    shutil.rmtree(run / "eval" / "held-out" / "bm25")
    (run / "eval" / "held-out" / "bm25").write_text("no folder")
    command = ("evaluate", refused[0] / "recipe.yaml", f"run_dir={run}", "evaluate.depth=3", "--only", "bm25")
    done = jobs.rankwright(*command)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert not (run / "gate.json").exists() and not (run / "calibration.json").exists()


def test_mistakes_are_found_before_any_work(tmp_path: Path, tiny_qwen3: Path) -> None:
    recipe = jobs.job(tmp_path, tiny_qwen3)
    done = jobs.rankwright("run", recipe, "gate={metric: RR@10, guard: [held-uot]}", "--override", " ")
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 3, done.stderr
    assert "gate.metric" in lines[0] and "did you mean 'held-out'" in lines[1] and "--override" in lines[2]


def test_contracts_without_a_temperature_load_and_a_broken_one_is_said(tmp_path: Path, tiny_qwen3: Path) -> None:
    from rankwright.common.errors import UserError
    from rankwright.model.loading import load_tokenizer
    from rankwright.model.prompt import CONTRACT_FILE, make_contract

    make_contract(load_tokenizer(str(tiny_qwen3)), mode="portable").save(tmp_path)
    values = json.loads((tmp_path / CONTRACT_FILE).read_text())
    del values["temperature"]
    (tmp_path / CONTRACT_FILE).write_text(json.dumps(values))
    loaded = PromptContract.load(tmp_path)
    assert loaded is not None and loaded.temperature == 1
    for broken in (0, -1.5, "warm", float("nan")):
        (tmp_path / CONTRACT_FILE).write_text(json.dumps({**values, "temperature": broken}))
        with pytest.raises(UserError, match=r"rankwright\.json: temperature"):
            PromptContract.load(tmp_path)
