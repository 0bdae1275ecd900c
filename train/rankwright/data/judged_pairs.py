"""The pairs that the judges of another run compared, as a set: what a pairwise student is trained with.

Each pair is a query of its own with two "documents": the two texts in either order (pair_texts.py). Its label is the
probability that the document shown first is better, so the labels of both orders sum up to 1. Queries with one text
stay on one side of a split, as in any set.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rankwright.common.errors import UserError
from rankwright.common.files import read_json_object, read_jsonl
from rankwright.common.lineage import lineage
from rankwright.common.plurals import counted
from rankwright.common.run_folder import RunFolder
from rankwright.data.collection import Collection
from rankwright.data.formats.reading import Say
from rankwright.data.normalisation import normalised
from rankwright.data.pair_texts import ORDERS, pair_text
from rankwright.data.split_files import qualified, read_split
from rankwright.data.store.texts import TextBuilder

# Nearer to 0 and 1 than this no probability is taken to be, and nearer to a half it is a tie.
LEAST = 1e-6


@dataclass(frozen=True, slots=True)
class _Judge:
    """weight: what its answers count. bias: that of its answers, on the scale of the fit."""

    weight: float
    bias: float


@dataclass(frozen=True, slots=True)
class _Answer:
    """t: the probability that `first` is better than `second`, without the judge's bias."""

    query_id: str
    first: str
    second: str
    t: float
    weight: float


def pair_files(folder: Path) -> list[Path]:
    """What the set of a run's pairs depends on: its pairs, the report on its judges, and its training texts.

    Raises UserError for a folder that is not a run, whose judges have not finished, or whose pairs are stale.
    """
    run = RunFolder(folder)
    if not run.is_run():
        raise UserError(f"pairs: {folder} is not the folder of a run: give one with the section teacher.pairs")
    again = run.command("judge")
    if not run.facts("judge"):
        raise UserError(f"pairs: {folder}: its judges have not finished: `{again}` goes on")
    if (line := lineage(run).line_of("judge")) is not None:
        raise UserError(f"pairs: {folder} is stale: {line}")
    changed = {**run.changed("judge", keep_times=False), **run.changed("data", keep_times=False)}
    for path in (run.judge_pairs, run.judge_report, run.split("train")):
        state = changed.get(str(path.relative_to(run.path)), "" if path.is_file() else "gone")
        if state:
            raise UserError(f"pairs: {path} is {state}, and not as the run wrote it: `{again}` makes it again")
    corpora = sorted((run.data / "corpora").glob("*.arrow"))
    return [run.judge_pairs, run.judge_report, run.split("train"), run.split("test"), *corpora]


def read_pairs(folder: Path, name: str, say: Say) -> Collection:
    """The pairs of a run as a set. Raises UserError as pair_files, for damaged rows, and for a query of the run's test.

    Answers about one pair, of several judges or in both orders, are one probability: their mean by the judges' weights,
    each without the bias towards the first document that the run's fit found. Comparisons across queries, and calls
    without an answer, are left out.
    """
    pair_files(folder)
    run = RunFolder(folder)
    answers = _answers(run, say)
    sets = {c.name: c for c in map(qualified, read_split(run.data, "train"))}
    held = {normalised(text) for c in read_split(run.data, "test") for text in c.queries.values()}
    corpus = TextBuilder()
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, float]] = {}
    groups: dict[str, str] = {}
    numbers: dict[str, int] = {}
    for (query_id, first, second), t in _together(answers):
        source = sets.get(query_id.split("/", 1)[0])
        if source is None or query_id not in source.queries or not {first, second} <= source.corpus.keys():
            raise UserError(
                f"{run.judge_pairs}: {query_id}, {first}, {second}: not in {run.split('train')}: "
                f"judge again: `{run.command('judge')}`"
            )
        if normalised(source.queries[query_id]) in held:
            raise UserError(
                f"{run.judge_pairs}: query {query_id} is a test query of {folder}: a student must not see "
                f"it: remove it from the training set there, and run `{run.command('judge')}`"
            )
        number = numbers[query_id] = numbers.get(query_id, 0) + 1
        key = f"{query_id}/{number}"
        texts = source.corpus[first], source.corpus[second]
        for order, label, shown in zip(ORDERS, (t, 1 - t), (texts, texts[::-1]), strict=True):
            corpus.add(key + order, pair_text(*shown))
            qrels.setdefault(key, {})[key + order] = label
        queries[key] = source.queries[query_id]
        if query_id in source.query_groups:
            groups[key] = source.query_groups[query_id]
    if not numbers:
        raise UserError(f"{run.judge_pairs}: no pair has an answer: judge again: `{run.command('judge')}`")
    say(f"  {name}: {counted(len(queries), 'pair')} of {counted(len(numbers), 'query')}, in both orders each")
    return Collection(name, corpus.finish(), queries, qrels, query_groups=groups)


def _answers(run: RunFolder, say: Say) -> Iterator[_Answer]:
    """The answers about pairs of one query, without the judges' biases."""
    judges, is_normal = _judges(run)

    def answer(row: Mapping[str, Any]) -> tuple[_Answer, _Judge] | None:
        if "second_query_id" in row:
            return None
        query_id, first, second, judge, t = (row[key] for key in ("query_id", "first", "second", "judge", "t"))
        if not all(isinstance(text, str) for text in (query_id, first, second)) or first == second:
            raise ValueError("two ids and a query")
        if t is None:
            return None
        if isinstance(t, bool) or not isinstance(t, int | float) or not 0 <= t <= 1:
            raise ValueError("t is not from 0 to 1")
        return _Answer(query_id, first, second, float(t), judges[judge].weight), judges[judge]

    what = f"a pair of judges: damaged: `{run.command('judge')}` makes the file again"
    found = list(read_jsonl(run.judge_pairs, answer, what))
    kept = [one for one in found if one is not None]
    if left := len(found) - len(kept):
        say(f"  {run.judge_pairs}: {counted(left, 'row')} without an answer, or across queries: left out")
    values = unbiased([one.t for one, _ in kept], [judge.bias for _, judge in kept], is_normal=is_normal)
    return (dataclasses.replace(one, t=t) for (one, _), t in zip(kept, values, strict=True))


def _judges(run: RunFolder) -> tuple[dict[str, _Judge], bool]:
    """(name -> judge, whether the run's fit is normal and not logistic). Raises UserError for damaged files."""
    report, recipe = (read_json_object(path) or {} for path in (run.judge_report, run.recipe_json))
    try:
        # The answers of a student are means of both orders: their bias is gone already.
        biases = {j["name"]: 0.0 if j.get("both_orders") else float(j["bias"]) for j in report["judges"]}
        judges = {j["name"]: _Judge(float(j["weight"]), biases[j["name"]]) for j in report["judges"]}
        return judges, recipe["teacher"]["pairs"]["fit"]["model"] == "thurstone"
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{run.judge_report}: damaged: `{run.command('judge')}` makes it again") from None


def unbiased(values: Sequence[float], biases: Sequence[float], *, is_normal: bool = False) -> list[float]:
    """Probabilities that the first document wins, had their judge no bias (in nats, or standard deviations)."""
    from scipy.special import expit, logit, ndtr, ndtri

    link, inverse = (ndtr, ndtri) if is_normal else (expit, logit)
    found: list[float] = link(inverse(np.clip(values, LEAST, 1 - LEAST)) - np.asarray(biases)).tolist()
    return found


def _together(answers: Iterator[_Answer]) -> Iterator[tuple[tuple[str, str, str], float]]:
    """((query, smaller id, larger id), the probability that the smaller one is better) of each pair, in order."""
    sums: dict[tuple[str, str, str], tuple[float, float]] = {}
    for one in answers:
        low, high = sorted((one.first, one.second))
        t = one.t if one.first == low else 1 - one.t
        total, weight = sums.get((one.query_id, low, high), (0.0, 0.0))
        sums[one.query_id, low, high] = total + one.weight * t, weight + one.weight
    for key in sorted(sums):
        total, weight = sums[key]
        yield key, total / weight


def decided(collection: Collection) -> Collection:
    """The same pairs with whole labels, which measures need: 1 for the order whose first document is better, else 0.

    A tie has 0 twice, and is not measured. The probabilities stay as the scores of a teacher.
    """
    decisions = {q: {d: float(t > 0.5 + LEAST) for d, t in own.items()} for q, own in collection.qrels.items()}
    return dataclasses.replace(collection, qrels=decisions, teacher_scores=collection.qrels)
