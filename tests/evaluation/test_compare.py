"""`rankwright compare` on real evaluation files: rows, shared queries, grouped seeds, and one line a mistake."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jobs
import numpy as np
import pytest

import rankwright
from rankwright.cli import show as compare_output
from rankwright.common.components import difference_over_seeds
from rankwright.common.errors import UserError
from rankwright.common.hashing import content_hash
from rankwright.common.run_folder import RunFolder
from rankwright.common.stats import holm, paired_difference, randomisation_test
from rankwright.evaluation import compare as comparing
from rankwright.evaluation.compare import Comparison
from rankwright.evaluation.evaluate import first_stage_run, measure, write_evaluation
from rankwright.evaluation.metrics import LINEAR, Scale
from rankwright.evaluation.runs import experiment_of, run_names
from rankwright.recipe.loading import recipe_json
from rankwright.recipe.schema import Recipe
from rankwright.retrieval.candidates import Candidate, write_candidates

QUERIES = tuple(f"q{i}" for i in range(20))
MEASURES = ("nDCG@10", "RR")
COMMAND = ["rankwright", "run", "mine.yaml", "train.epochs=2", "--only", "bm25", "--override", "why not", "run_dir=x y"]


def make_run(
    folder: Path,
    *,
    skill: float,
    seed: int = 0,
    sets: Sequence[str] = ("one", "two"),
    queries: Sequence[str] = QUERIES,
    depth: int = 12,
    base_skill: float = 0.2,
    measures: Sequence[str] = MEASURES,
    relevant: str = "d7",
    scale: Scale = LINEAR,
    **sections: Any,
) -> Path:
    """A run folder as `rankwright evaluate` leaves it, of models that see a relevant document with some skill."""
    recipe = Recipe.model_validate({"name": "job", "seed": seed, "model": {"base": "b"}, "data": {}, **sections})
    run = RunFolder(folder)
    run.create()
    run.write_json(run.path / "recipe.json", json.loads(recipe_json(recipe)))
    run.write_json(run.path / "provenance.json", {"command": COMMAND})
    run.write_json(run.path / "data_report.json", {"splits": {"test": [{"set": name} for name in sets]}})
    inputs = {"bm25": "i-bm25", "base": "i-base", "tuned": f"i-{folder.name}"}
    for name in sets:
        place = folder / "eval" / name
        candidates = {q: _candidates(name, q, depth) for q in queries}
        write_candidates(place / "candidates.jsonl", candidates)
        first = first_stage_run(candidates, queries)
        runs = {
            "bm25": first,
            "base": _reranked(first, base_skill, relevant, "base"),
            "tuned": _reranked(first, skill, relevant, f"tuned {seed}"),
        }
        qrels = {q: {relevant: 1.0} for q in queries}
        for system, scores in runs.items():
            measured = measure(scores, qrels, queries, measures, scale)
            facts = {"depth": depth, "inputs": inputs[system], **scale.as_json()}
            write_evaluation(place / system, scores, measured, tag=system, facts=facts)
    made_with = {"experiment": experiment_of(json.loads(recipe_json(recipe))), "seed": seed}
    run.finish("evaluate", content_hash(inputs), seconds=1.0, systems=list(inputs), system_inputs=inputs, **made_with)
    return folder


def _candidates(name: str, query_id: str, depth: int) -> list[Candidate]:
    ids = [f"d{i}" for i in range(12)]
    random.Random(f"{name} {query_id}").shuffle(ids)
    return [Candidate(d, 10.0 - rank, rank) for rank, d in enumerate(ids[:depth], start=1)]


def _reranked(run: dict[str, dict[str, float]], skill: float, relevant: str, key: str) -> dict[str, dict[str, float]]:
    noise = {q: random.Random(f"{key} {q}") for q in run}
    return {q: {d: noise[q].random() + skill * (d == relevant) for d in scores} for q, scores in run.items()}


def compared(*folders: Path, against: str | None = None) -> Comparison:
    return comparing.compare(folders, against, resamples=499)


def names(comparison: Comparison) -> list[str]:
    return [system.name for system in comparison.systems]


def values_of(folder: Path, measure_name: str = "nDCG@10") -> dict[str, float]:
    rows = [json.loads(line) for line in (folder / "per_query.jsonl").read_text().splitlines()]
    return {row["query_id"]: row[measure_name] for row in rows}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return make_run(tmp_path / "good", skill=0.9)


@pytest.fixture
def weak(tmp_path: Path) -> Path:
    return make_run(tmp_path / "weak", skill=0.3, seed=1, loss={"name": "bce"})


def test_rows_and_numbers_are_those_of_the_files(good: Path, weak: Path) -> None:
    found = compared(good, weak)
    # The same first stage and base in both runs: shown once.
    assert names(found) == ["bm25", "base", "good/tuned", "weak/tuned"]
    assert list(found.sets) == ["one", "two"] and found.reference.name == "good/tuned"
    assert set(found.compared) == {(s, n) for s in ("one", "two") for n in ("bm25", "base", "weak/tuned")}
    reference, other = (values_of(f / "eval" / "one" / "tuned") for f in (good, weak))
    row = found.compared["one", "weak/tuned"]
    assert row.difference == paired_difference(reference, other, resamples=499)
    assert row.difference.mean < 0
    assert row.p == randomisation_test(reference, other, resamples=499)
    every = {**found.compared, **{("all", name): c for name, c in found.pooled.items()}}
    assert {k: c.p_holm for k, c in every.items()} == holm({k: c.p for k, c in every.items()})
    means = found.sets["one"].means(found.systems[2].values("one"))
    written = json.loads((good / "eval" / "one" / "tuned" / "metrics.json").read_text())
    assert means == pytest.approx({m: written[m] for m in MEASURES}, abs=1e-12)
    assert not found.notes and not found.over_seeds and not any(shared.notes for shared in found.sets.values())


def test_all_test_sets_together(good: Path, weak: Path) -> None:
    found = compared(good, weak)
    assert set(found.pooled) == {"bm25", "base", "weak/tuned"}
    reference, other = (
        {f"{name}/{q}": v for name in ("one", "two") for q, v in values_of(f / "eval" / name / "tuned").items()}
        for f in (good, weak)
    )
    row = found.pooled["weak/tuned"]
    assert row.difference == paired_difference(reference, other, resamples=499) and row.difference.queries == 40
    assert row.p == randomisation_test(reference, other, resamples=499)
    assert found.pooled_means(found.reference)["nDCG@10"] == pytest.approx(sum(reference.values()) / 40)
    assert list(found.pooled_means(found.reference)) == list(MEASURES)


def test_a_query_of_two_sets_counts_once_in_all_of_them(tmp_path: Path, good: Path, weak: Path) -> None:
    rows = [{"set": s, "corpus": s, "query_id": q, "query": f"{s} {q}"} for s in ("one", "two") for q in QUERIES]
    for row in rows[20:25]:
        row["query"] = f"ONE {row['query_id']} "
    (good / "data").mkdir()
    (good / "data" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = compared(good, weak)
    assert found.repeated == {"two": {q: f"one/{q}" for q in QUERIES[:5]}} and found.pooled_queries == 35
    assert {row.difference.queries for row in found.pooled.values()} == {35}
    assert found.compared["two", "base"].difference.queries == 20
    values = {(s, q): v for s in ("one", "two") for q, v in values_of(good / "eval" / s / "tuned").items()}
    weight = {(s, q): 0.5 if q in QUERIES[:5] else 1.0 for s, q in values}
    mean = sum(weight[key] * value for key, value in values.items()) / 35
    assert found.pooled_means(found.reference)["nDCG@10"] == pytest.approx(mean)
    assert "all test sets together: 5 queries that an earlier set has count once" in found.notes


def test_a_single_test_set_has_no_row_of_all(tmp_path: Path) -> None:
    assert not compared(make_run(tmp_path / "single", skill=0.9, sets=("one",))).pooled


def test_a_recipe_edited_after_its_evaluation_counts_as_it_was_evaluated(tmp_path: Path, good: Path) -> None:
    again = make_run(tmp_path / "again", skill=0.8, seed=4, loss={"name": "bce"})
    assert not compared(good, again).over_seeds
    # As if `rankwright mine` had come after the recipe was made equal, and its seed as well.
    for text in ((good / "recipe.json").read_text(), (good / "recipe.json").read_text().replace("bce", "other")):
        (again / "recipe.json").write_text(text)
        found = compared(good, again)
        assert not found.over_seeds and found.runs[1].seed == 4
        assert "recipe.json changed after the evaluation" in found.notes[0]


def test_another_reference(good: Path, weak: Path) -> None:
    there, back = compared(good, weak), compared(good, weak, against="weak")
    assert back.reference.name == "weak/tuned"
    one, other = there.compared["one", "weak/tuned"], back.compared["one", "good/tuned"]
    assert one.difference.mean == pytest.approx(-other.difference.mean) and one.p == other.p
    for spelled in ("base", "good/base", "weak/base"):
        assert compared(good, weak, against=spelled).reference.name == "base"
    assert compared(good, weak, against=f"{weak}/").reference.name == "weak/tuned"
    with pytest.raises(UserError, match=r"--against: unknown system 'bse', did you mean 'base'\? \(known: base, bm25"):
        compared(good, weak, against="bse")


def test_one_run_compares_its_own_systems(good: Path) -> None:
    assert names(compared(good)) == ["bm25", "base", "good/tuned"]


def test_other_numbers_are_shown_for_each_run(tmp_path: Path, good: Path) -> None:
    other = make_run(tmp_path / "other", skill=0.5, base_skill=0.4)
    third = make_run(tmp_path / "third", skill=0.6, base_skill=0.4)
    found = compared(good, other, third)
    assert names(found)[:3] == ["bm25", "good/base", "other/base"]
    assert [run.name for run in found.systems[2].runs] == ["other", "third"]
    assert compared(good, other, third, against="third/base").reference.name == "other/base"


def test_a_system_that_a_run_lacks(good: Path, weak: Path) -> None:
    shutil.rmtree(weak / "eval" / "one" / "base")
    found = compared(good, weak)
    assert names(found) == ["bm25", "good/base", "good/tuned", "weak/tuned"]
    assert found.notes == ("weak: not evaluated on all of these test sets, left out: base",)
    (weak / "eval" / "two" / "base" / "per_query.jsonl").unlink()
    assert compared(good, weak).notes == ("weak: not evaluated to the end on two, left out: base",)


def test_runs_that_differ_in_seed_are_grouped(tmp_path: Path, good: Path, weak: Path) -> None:
    again = make_run(tmp_path / "again", skill=0.8, seed=4, name="other-name", run_dir="elsewhere")
    found = compared(good, again, weak)
    assert list(found.over_seeds) == [("good", "again")]
    spread = found.over_seeds["good", "again"]["two"]
    means = [sum(values_of(f / "eval" / "two" / "tuned").values()) / 20 for f in (good, again)]
    assert spread.count == 2 and spread.mean == pytest.approx(sum(means) / 2)
    assert spread.deviation == pytest.approx(abs(means[0] - means[1]) / 2**0.5)
    assert (spread.low, spread.high) == (pytest.approx(min(means)), pytest.approx(max(means)))
    twice = make_run(tmp_path / "twice", skill=0.8, seed=4)
    assert "a seed occurs twice" in compared(good, again, twice).notes[0]
    # The same seed alone says nothing about seeds.
    assert not compared(again, twice).over_seeds


def test_differences_over_seeds_are_those_of_the_groups(tmp_path: Path, good: Path) -> None:
    again = make_run(tmp_path / "again", skill=0.8, seed=4)
    weaker: dict[str, Any] = {"base_skill": 0.3, "loss": {"name": "bce"}}
    weak = make_run(tmp_path / "weaker", skill=0.3, **weaker)
    weak_again = make_run(tmp_path / "weaker-again", skill=0.35, seed=4, **weaker)

    def tuned(*folders: Path) -> np.ndarray:
        found = [values_of(f / "eval" / "one" / "tuned") for f in folders]
        return np.array([[values[q] for q in sorted(found[0])] for values in found])

    found = compared(good, again, weak, weak_again)
    rows = {(row.runs, row.other, row.test_set): row for row in found.seed_differences}
    ours, theirs = ("good", "again"), ("weaker", "weaker-again")
    assert set(rows) == {
        (runs, other, name)
        for runs, other in ((theirs, ours), (ours, ("good/base",)), (theirs, ("weaker/base",)))
        for name in ("one", "two", None)
    }
    row = rows[theirs, ours, "one"]
    assert row.found == difference_over_seeds(tuned(good, again), tuned(weak, weak_again))
    assert row.found.mean < 0 and row.found.seeds == (2, 2) and row.p_holm >= row.found.p
    base = values_of(good / "eval" / "one" / "base")
    to_base = difference_over_seeds(np.array([[base[q] for q in sorted(base)]]), tuned(good, again))
    assert rows[ours, ("good/base",), "one"].found == to_base
    # Against a system that is not trained, each group is compared with it.
    others = {(row.runs, row.other) for row in compared(good, again, weak, weak_again, against="bm25").seed_differences}
    assert {(ours, ("bm25",)), (theirs, ("bm25",))} < others
    assert not compared(good, weak).seed_differences


def test_different_queries_are_compared_where_shared(tmp_path: Path, good: Path) -> None:
    part = make_run(tmp_path / "part", skill=0.3, queries=[*QUERIES[5:], "new", "newer"])
    found = compared(good, part)
    assert found.sets["one"].queries == tuple(sorted(QUERIES[5:]))
    assert found.sets["one"].notes == ("compared on the 15 queries that all have; left out: good 5, part 2",)
    assert found.compared["one", "part/tuned"].difference.queries == 15
    # On the shared queries first stage and base are the same.
    assert names(found) == ["bm25", "base", "good/tuned", "part/tuned"]
    none = make_run(tmp_path / "none", skill=0.3, queries=["x", "y"])
    with pytest.raises(UserError, match=r"test set 'one': no query is in all of good, none: .*limit_queries"):
        compared(good, none)


def test_sets_measures_depths_and_lists_that_differ_are_said(tmp_path: Path, good: Path) -> None:
    other = make_run(tmp_path / "other", skill=0.3, sets=("two", "three"), depth=6, measures=("nDCG@10", "P@5"))
    found = compared(good, other)
    assert list(found.sets) == ["two"]
    assert found.notes == ("test sets that not all runs have, left out: one, three",)
    assert found.sets["two"].measures == ("nDCG@10",)
    measures, depths, lists = found.sets["two"].notes
    assert measures == "measures that not all have, left out: RR, P@5"
    assert depths == "depths differ: good 12, other 6"
    assert lists == "candidate lists of other differ from good's for 20 queries"
    apart = make_run(tmp_path / "apart", skill=0.3, sets=("three",))
    with pytest.raises(UserError, match=r"no test set that all runs have \(good has one, two; apart has three\)"):
        compared(good, apart)


def test_runs_to_which_labels_mean_different_things_are_not_compared(tmp_path: Path, good: Path) -> None:
    scale = Scale(1, {0: 0, 1: 2})
    other = make_run(tmp_path / "gains", skill=0.9, scale=scale)
    with pytest.raises(UserError) as caught:
        compared(good, other)
    assert str(caught.value) == (
        "good and gains cannot be compared: labels mean different things to their measures (relevant from label 1, "
        "each label its own gain; relevant from label 1, gains {0: 0, 1: 2}): evaluate both with the same "
        "evaluate.relevance_level and evaluate.gains"
    )
    same = compared(other, make_run(tmp_path / "too", skill=0.1, scale=scale))
    assert same.measure == "nDCG(gains={1: 2})@10" == compare_output.as_json(same)["measure"]


def test_other_judgements_are_said(tmp_path: Path, good: Path) -> None:
    other = make_run(tmp_path / "other", skill=0.3, relevant="d3")
    (note,) = compared(good, other).sets["one"].notes
    assert note.startswith("judgements of other differ from good's")
    (other / "eval" / "one" / "candidates.jsonl").unlink()
    assert compared(good, other).sets["one"].notes == (
        "good and other: candidates.jsonl is missing, the lists may differ",
    )


def test_names_tell_runs_apart(tmp_path: Path, good: Path) -> None:
    folders = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "run"]
    assert run_names(folders[:1]) == ["run"]
    assert run_names(folders[:2]) == ["a/run", "b/run"]
    assert run_names(folders) == ["a/run", "b/run", f"{tmp_path.name}/run"]
    with pytest.raises(UserError, match="given twice"):
        run_names([good, good / ".." / "good"])


def _remove_metrics(run: Path) -> None:
    (run / "eval" / "two" / "tuned" / "metrics.json").unlink()


def _cut_metrics(run: Path) -> None:
    (run / "eval" / "two" / "tuned" / "metrics.json").write_text('{"nDCG@10": 0.')


def _other_settings(run: Path) -> None:
    path = run / "eval" / "two" / "base" / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "inputs": "before"}))


def _mixed_files(run: Path) -> None:
    shutil.copy(run / "eval" / "one" / "tuned" / "metrics.json", run / "eval" / "two" / "tuned" / "metrics.json")


def _spoil(name: str, **values: Any) -> Callable[[Path], None]:
    def spoil(run: Path) -> None:
        path = run / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return spoil


def _list(name: str) -> Callable[[Path], None]:
    return lambda run: (run / name).write_text("[1]") and None


TUNED = "eval/two/tuned/metrics.json"


def _odd_query(run: Path) -> None:
    path = run / "eval" / "two" / "tuned" / "per_query.jsonl"
    path.write_text(path.read_text().replace('"q0"', "[0]", 1))


def _no_evaluation(run: Path) -> None:
    shutil.rmtree(run / "eval")


def _no_run(run: Path) -> None:
    (run / "recipe.json").unlink()


def _no_values(run: Path) -> None:
    (run / "eval" / "two" / "tuned" / "per_query.jsonl").unlink()


def _broken_values(run: Path) -> None:
    path = run / "eval" / "two" / "tuned" / "per_query.jsonl"
    path.write_text(path.read_text().replace('"RR": ', '"RR": "', 1))


def _no_number(run: Path) -> None:
    path = run / "eval" / "two" / "tuned" / "per_query.jsonl"
    first, rest = path.read_text().split("\n", 1)
    path.write_text(json.dumps({**json.loads(first), "RR": float("nan")}) + "\n" + rest)


@pytest.mark.parametrize(
    ("spoil", "said", "command"),
    [
        (_remove_metrics, "tuned is not evaluated on test set 'two'", True),
        (_cut_metrics, "tuned is not evaluated on test set 'two'", True),
        (_other_settings, "different settings", True),
        (_mixed_files, "do not agree on nDCG@10", True),
        (_no_evaluation, "tuned is not evaluated on test set 'one'", True),
        (_no_run, "not a run folder", False),
        (_no_values, "tuned is not evaluated on test set 'two', or not to the end", True),
        (_broken_values, "per_query.jsonl:1: not a row of values", False),
        (_no_number, "per_query.jsonl:1: not a row of values, evaluate again (ValueError: a value is", False),
        (_odd_query, "per_query.jsonl:1: not a row of values, evaluate again (ValueError: query_id is", False),
        (_spoil(TUNED, **{"nDCG@10": [0.5]}), "metrics.json: nDCG@10: must be a number, found [0.5]", True),
        (_spoil(TUNED, **{"nDCG@10": "0.5"}), "metrics.json: nDCG@10: must be a number, found '0.5'", True),
        (_spoil(TUNED, **{"nDCG@10": True}), "metrics.json: nDCG@10: must be a number, found True", True),
        (_spoil(TUNED, **{"nDCG@10": None}), "do not agree on nDCG@10", True),
        (_spoil(TUNED, depth="deep"), "metrics.json: depth: must be a whole number, found 'deep'", True),
        (_list(TUNED), "tuned is not evaluated on test set 'two'", True),
        (_list("recipe.json"), "not a run folder", False),
        (_spoil("stages/evaluate.json", seed="x"), "stages/evaluate.json: seed: must be a whole number", True),
    ],
)
def test_an_unfinished_evaluation_is_one_line(
    good: Path, weak: Path, spoil: Callable[[Path], None], said: str, command: bool
) -> None:
    spoil(weak)
    with pytest.raises(UserError) as caught:
        compared(good, weak)
    message = str(caught.value)
    assert said in message and str(weak) in message and "\n" not in message
    # What belongs to other commands (--only bm25, --override) is not repeated.
    assert ("run `rankwright evaluate mine.yaml train.epochs=2 'run_dir=x y'`" in message) == command


def test_the_command_without_a_record(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).command("evaluate") == f"rankwright evaluate RECIPE run_dir={tmp_path}"


def test_the_command_line_prints_the_tables_and_writes_json(tmp_path: Path, good: Path, weak: Path) -> None:
    again = make_run(tmp_path / "again", skill=0.8, seed=4)
    done = jobs.rankwright("compare", good, weak, again, "--against", "base", "--json", tmp_path / "out" / "all.json")
    assert done.returncode == 0, done.stderr
    for words in (
        "one: 20 queries",
        "all test sets together: 40 queries",
        "good/tuned",
        "[95 %]",
        "reference",
        "Holm",
        "tuned nDCG@10 over seeds",
        "differences in nDCG@10 over seeds",
        "shows from",
    ):
        assert words in done.stdout
    written = json.loads((tmp_path / "out" / "all.json").read_text())
    found = comparing.compare([good, weak, again], "base")
    row = written["test_sets"]["one"]["systems"]["good/tuned"]
    assert row["p"] == found.compared["one", "good/tuned"].p
    assert row["p_holm"] == found.compared["one", "good/tuned"].p_holm
    assert row["difference"]["low"] == found.compared["one", "good/tuned"].difference.low
    assert written["pooled"]["good/tuned"]["p_holm"] == found.pooled["good/tuned"].p_holm
    assert written["against"] == "base" and written["comparisons"] == 12
    assert written["over_seeds"][0]["runs"] == ["good", "again"]
    assert [row["runs"] for row in written["seed_differences"]] == [["good", "again"]] * 3
    assert written == json.loads(json.dumps(compare_output.as_json(found)))
    assert "seed variance unknown" in jobs.rankwright("compare", good, weak).stdout


def test_a_mistake_is_a_line_and_exit_code_2(tmp_path: Path, good: Path) -> None:
    for arguments, said in (
        ([good, tmp_path / "nosuch"], "no such folder"),
        ([good, good], "given twice"),
        ([], "RUN"),
    ):
        done = jobs.rankwright("compare", *arguments)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_a_notebook_compares_run_folders_by_their_paths(good: Path, weak: Path) -> None:
    found = rankwright.compare([str(good), weak], against="base")
    assert [run.name for run in found.runs] == ["good", "weak"] and found.reference.name == "base"
    assert found.rows("one")["good/tuned"][1] == found.compared["one", "good/tuned"]
    with pytest.raises(UserError, match="not a run folder"):
        rankwright.compare([str(good), "runs/nosuch"])


def test_no_torch_is_imported() -> None:
    code = "import sys, rankwright.evaluation.compare; print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=jobs.environment())
    assert done.stdout.strip() == "set()", done.stderr


def test_a_seed_of_the_wrong_type_in_an_unrecorded_run_is_located(tmp_path: Path, good: Path) -> None:
    path = good / "stages" / "evaluate.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in record.items() if k not in ("seed", "experiment")}))
    assert not compared(good).notes
    _spoil("recipe.json", seed="x")(good)
    with pytest.raises(UserError, match=r"recipe\.json: seed: must be a whole number, found 'x': run `rankwright"):
        compared(good)
