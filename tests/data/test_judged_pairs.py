"""The pairs of a run's judges as a set: labels without bias, splits by query, and every file that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy.special import expit, logit, ndtr, ndtri

from rankwright.common.errors import UserError, UserErrors
from rankwright.common.run_folder import RunFolder
from rankwright.data.collection import Collection
from rankwright.data.judged_pairs import decided, pair_files, read_pairs, unbiased
from rankwright.data.leakage import keep_apart, take_out
from rankwright.data.pair_texts import pair_text
from rankwright.data.sources import locate_all, read_all
from rankwright.data.split_files import write_split
from rankwright.recipe.sources import Data, Source

BIAS = {"one": 0.8, "two": -0.3}


def row(query: int, first: int, second: int, t: float | None, judge: str = "one", number: int = 0) -> dict[str, Any]:
    ids = {"query_id": f"set/q{query}", "first": f"set/d{first}", "second": f"set/d{second}"}
    return {**ids, "judge": judge, "round": number, "t": t}


def a_run(folder: Path, rows: list[dict[str, Any]], model: str = "bradley_terry", queries: int = 12) -> RunFolder:
    """A run whose judges have finished, by its files alone."""
    run = RunFolder(folder)
    run.create()
    texts = {f"q{n}": f"question number {'abcdefghijklmnop'[n] * 5}" for n in range(queries)}
    corpus = {f"d{n}": f"passage {n} about it" for n in range(9)}
    qrels = {q: {"d0": 1.0} for q in texts}
    groups = {q: f"case {int(q[1:]) // 2}" for q in texts}
    files = write_split(run.data, "train", [Collection("set", corpus, texts, qrels, query_groups=groups)])
    files += write_split(run.data, "test", [Collection("held", corpus, {"t": "a test question"}, {"t": {"d1": 1.0}})])
    run.judge_pairs.parent.mkdir(parents=True)
    run.judge_pairs.write_text("".join(json.dumps(one) + "\n" for one in rows))
    judges = [{"name": name, "weight": 1 + 2 * (name == "two"), "bias": bias} for name, bias in BIAS.items()]
    run.write_json(run.judge_report, {"judges": judges})
    run.write_json(run.recipe_json, {"teacher": {"pairs": {"fit": {"model": model}}}})
    data = [run.split("train"), run.split("test"), *(run.data / name for name in files)]
    run.finish("data", "x", seconds=0, outputs=data)
    run.finish("judge", "x", seconds=0, outputs=[run.judge_pairs, run.judge_report])
    return run


ROWS = [row(q, a, b, 0.9) for q in range(12) for a, b in ((0, 1), (2, 1), (3, 4))]


def test_labels_are_the_judges_probabilities_without_their_bias(tmp_path: Path) -> None:
    rows = [
        row(0, 1, 2, 0.9),
        row(0, 2, 1, 0.4),
        row(0, 2, 1, 0.3, "two"),
        row(0, 5, 3, 1.0),
        row(0, 3, 4, None),
        row(1, 1, 2, 0.5, "two"),
        {**row(0, 1, 2, 0.1), "second_query_id": "set/q1"},
    ]
    said: list[str] = []
    found = read_pairs(a_run(tmp_path / "run", rows).path, "pairs", said.append)
    assert found.queries == {
        "set/q0/1": "question number aaaaa",
        "set/q0/2": "question number aaaaa",
        "set/q1/1": "question number bbbbb",
    }
    one, other, third = expit(logit(0.9) - 0.8), 1 - expit(logit(0.4) - 0.8), 1 - expit(logit(0.3) + 0.3)
    mean = (one + other + 3 * third) / 5
    assert found.qrels["set/q0/1"] == pytest.approx({"set/q0/1/ab": mean, "set/q0/1/ba": 1 - mean})
    assert found.qrels["set/q1/1"]["set/q1/1/ab"] == pytest.approx(expit(0.3))
    assert found.qrels["set/q0/2"]["set/q0/2/ba"] == pytest.approx(1, abs=1e-5), "the smaller id is shown first in /ab"
    assert found.corpus["set/q0/1/ba"] == pair_text("passage 2 about it", "passage 1 about it")
    assert found.query_groups["set/q0/2"] == "case 0"
    assert said == [
        f"  {tmp_path / 'run' / 'judge' / 'pairs.jsonl'}: 2 rows without an answer, or across queries: left out",
        "  pairs: 3 pairs of 2 queries, in both orders each",
    ]
    normal = read_pairs(a_run(tmp_path / "normal", rows, "thurstone").path, "pairs", said.append)
    assert normal.qrels["set/q1/1"]["set/q1/1/ab"] == pytest.approx(ndtr(0.3))
    assert unbiased([0.25], [0.5], is_normal=True) == pytest.approx([ndtr(ndtri(0.25) - 0.5)])


def test_a_student_that_was_asked_in_both_orders_has_no_bias_left(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", [row(0, 1, 2, 0.9), row(0, 3, 4, 0.9, "two")])
    report = json.loads(run.judge_report.read_text())
    report["judges"][0]["both_orders"] = True
    run.write_json(run.judge_report, report)
    run.finish("judge", "x", seconds=0, outputs=[run.judge_pairs, run.judge_report])
    found = read_pairs(run.path, "pairs", lambda _: None)
    assert found.qrels["set/q0/1"]["set/q0/1/ab"] == pytest.approx(0.9)
    assert found.qrels["set/q0/2"]["set/q0/2/ab"] == pytest.approx(expit(logit(0.9) + 0.3))


def test_dev_and_test_have_decisions_and_ties_have_none(tmp_path: Path) -> None:
    found = decided(Collection("c", {}, {"q": "x", "r": "y"}, {"q": {"a": 0.3, "b": 0.7}, "r": {"a": 0.5, "b": 0.5}}))
    assert found.qrels == {"q": {"a": 0.0, "b": 1.0}, "r": {"a": 0.0, "b": 0.0}} and not found.positives("r")
    assert found.teacher_scores["q"] == {"a": 0.3, "b": 0.7}


def test_no_query_and_no_group_is_on_two_sides(tmp_path: Path) -> None:
    whole = read_pairs(a_run(tmp_path / "run", ROWS).path, "pairs", lambda _: None)
    train, dev = take_out("dev", [whole], fraction=0.3, seed=0, say=lambda _: None)
    sides = [{found.query_groups[q] for found in side for q in found.queries} for side in (train, dev)]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    assert len(train[0].queries) + len(dev[0].queries) == len(ROWS) and len(dev[0].queries) % 6 == 0
    with pytest.raises(UserErrors, match=r"data\.train: \d+ of 36 queries are in test too: same query"):
        keep_apart([whole], [], [dev[0]], on_leak="stop", say=lambda _: None)
    alone = read_pairs(a_run(tmp_path / "alone", ROWS[:3], queries=1).path, "pairs", lambda _: None)
    with pytest.raises(UserError, match=r"its 3 queries belong together .* none can be taken for dev"):
        take_out("dev", [alone], fraction=0.3, seed=0, say=lambda _: None)


def test_an_entry_of_a_recipe(tmp_path: Path) -> None:
    run = a_run(tmp_path / "judged", ROWS)
    data = Data(train=(Source(pairs=str(run.path), limit=4),), test=(Source(pairs=str(run.path), name="held"),))
    located = locate_all(data)
    assert [one.name for one in (*located["train"], *located["test"])] == ["judged", "held"]
    (found,) = read_all(located["train"], lambda _: None)
    assert len(found.queries) == len(ROWS) and found.name == "judged"
    assert run.judge_pairs in pair_files(run.path)


def damaged(change: Callable[[RunFolder], object]) -> Callable[[RunFolder], object]:
    """A change that keeps the record, as of a file that somebody has written by hand before the record was made."""

    def apply(run: RunFolder) -> None:
        change(run)
        outputs = [run.judge_pairs, run.judge_report]
        run.finish("judge", "x", seconds=0, outputs=outputs)

    return apply


BROKEN: dict[str, tuple[Callable[[RunFolder], object], str]] = {
    "no run": (lambda run: run.recipe_json.unlink(), "is not the folder of a run: give one with the section teacher"),
    "judges that did not finish": (lambda run: run.forget("judge"), "its judges have not finished: `rankwright judge"),
    "no pairs": (lambda run: run.judge_pairs.unlink(), r"pairs\.jsonl is gone, and not as the run wrote it"),
    "changed pairs": (lambda run: run.judge_pairs.write_text("{}\n"), r"pairs\.jsonl is changed, and not as the run"),
    "changed texts": (lambda run: run.split("train").write_text("{}\n"), r"train\.jsonl is changed"),
    "a damaged row": (
        damaged(lambda run: run.judge_pairs.write_text('{"query_id": 1\n')),
        r"pairs\.jsonl:1: not a pair",
    ),
    "no probability": (
        damaged(lambda run: run.judge_pairs.write_text(json.dumps(row(0, 1, 2, 1.5)) + "\n")),
        r"pairs\.jsonl:1: not a pair .*t is not from 0 to 1",
    ),
    "one document twice": (
        damaged(lambda run: run.judge_pairs.write_text(json.dumps(row(0, 1, 1, 0.5)) + "\n")),
        r"pairs\.jsonl:1: not a pair of judges: damaged",
    ),
    "a strange judge": (
        damaged(lambda run: run.judge_pairs.write_text(json.dumps(row(0, 1, 2, 0.5, "three")) + "\n")),
        r"pairs\.jsonl:1: not a pair of judges: damaged: `.*` makes the file again \(KeyError: 'three'\)",
    ),
    "a strange query": (
        damaged(lambda run: run.judge_pairs.write_text(json.dumps(row(99, 1, 2, 0.5)) + "\n")),
        r"set/q99, set/d1, set/d2: not in .*train\.jsonl: judge again",
    ),
    "no answers": (
        damaged(lambda run: run.judge_pairs.write_text(json.dumps(row(0, 1, 2, None)) + "\n")),
        r"no pair has an answer: judge again",
    ),
    "a damaged report": (damaged(lambda run: run.judge_report.write_text("{}")), r"report\.json: damaged: `"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, name: str) -> None:
    change, expected = BROKEN[name]
    run = a_run(tmp_path / "run", ROWS)
    change(run)
    with pytest.raises(UserError, match=expected) as found:
        read_pairs(run.path, "pairs", lambda _: None)
    assert "\n" not in str(found.value)


def test_a_test_query_among_the_pairs_is_refused(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", ROWS)
    train = run.split("train")
    train.write_text(train.read_text().replace("question number ccccc", " A  test QUESTION"))
    run.finish("data", "x", seconds=0, outputs=[train, run.split("test")])
    with pytest.raises(UserError, match=r"query set/q2 is a test query of .*: a student must not see it: remove it"):
        read_pairs(run.path, "pairs", lambda _: None)
