"""A pairwise student: what its recipe must hold, how often it agrees with its judges, and which tests it has seen."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import entr, expit

from rankwright.common import console
from rankwright.common.errors import UserError
from rankwright.common.files import read_jsonl
from rankwright.common.lineage import LOADED, run_around, stale_export
from rankwright.common.plurals import counted
from rankwright.common.run_folder import RunFolder
from rankwright.data.collection import Collection
from rankwright.data.normalisation import normalised
from rankwright.data.pair_texts import ORDERS
from rankwright.data.split_files import read_split
from rankwright.model.instructions import entries
from rankwright.model.long_documents import CUT_OFF
from rankwright.recipe.schema import Recipe
from rankwright.recipe.teacher import Judge
from rankwright.rerankers.comparer import student_folder
from rankwright.retrieval.candidates import Run
from rankwright.retrieval.pairs import PAIRS
from rankwright.retrieval.run_file import read_trec_run, trec_column

KEY = "teacher.pairs"
HELD_OUT = ("test", "dev")
# Dev chose the student's checkpoint.
SEEN = ("train", "dev")
# A probability from which on judges are clear about a pair.
CLEAR = 0.75
QUESTION = "Does document A answer the query better than document B?"


def check_student(recipe: Recipe) -> list[str]:
    """All faults of a recipe that trains on the pairs of a run, each as `key: what`; none for other recipes."""
    if not recipe.is_pairwise:
        return []
    why = "this recipe trains a student that compares two documents"
    faults = [
        f"{key}: {why}, and this set is not pairs: write pairs: RUN, or remove it"
        for key, source in entries(recipe)
        if source.pairs is None
    ]
    return faults + [f"{key}: {why}: {wanted}" for key, is_right, wanted in _rules(recipe) if not is_right]


def _rules(recipe: Recipe) -> Iterator[tuple[str, bool, str]]:
    """(key, whether its value is right, what it must be)."""
    mine, evaluation, loss = recipe.mine, recipe.evaluate, recipe.loss
    plain = loss.name == "soft_bce" and loss.options.get("targets", "labels") == "labels" and not loss.plus
    yield "loss", plain, "its labels are probabilities: write {name: soft_bce}, with no other term"
    instructed = "instruction" in recipe.prompt.model_fields_set and bool(recipe.prompt.instruction.strip())
    yield "prompt.instruction", instructed, f'write what is asked of a pair, such as "{QUESTION}"'
    for key, name in (("mine.retriever", mine.retriever), ("evaluate.first_stage", evaluation.first_stage)):
        yield key, name == PAIRS.name, f"no search finds pairs: write {PAIRS.name}"
    yield "mine.positives", mine.positives >= len(ORDERS), "both orders of a pair are trained on: write at least 2"
    unused = {
        "mine.filters": bool(mine.filters),
        "mine.refresh_steps": mine.refresh_steps is not None,
        "mine.teacher": mine.teacher is not None,
        "teacher.pairs": recipe.pairs is not None,
        "train.first_stage_offset": bool(recipe.train.first_stage_offset),
        "prompt.first_stage_score": recipe.prompt.first_stage_score is not None,
        "evaluate.baselines": bool(evaluation.baselines),
        "evaluate.gains": bool(evaluation.gains),
    }
    for key, given in unused.items():
        yield key, not given, "it has no use for this: remove it"
    yield "mine.fill", mine.fill == "none", "pairs have no other documents: write none"
    yield "prompt.long_documents", recipe.prompt.long_documents == CUT_OFF, "both are cut to their share: remove it"
    yield "evaluate.relevance_level", evaluation.relevance_level == 1, "one of two documents is better: write 1"
    yield "evaluate.combine", evaluation.combine is None, "there is no first stage to combine it with: write false"
    others = [name for name in recipe.export_targets if name not in LOADED]
    yield "export.targets", not others, f"a server scores single documents: remove {', '.join(others)}"


def agreement(collection: Collection, run: Run) -> dict[str, Any]:
    """How a system's scores of held-out pairs agree with the judges. run: columns of run.trec.

    agreement: the share of the pairs for which it prefers the same document, over both orders; equal scores count half;
    ties of the judges are left out. clear: the same of the pairs with a probability of CLEAR or more. log_loss: of its
    probabilities with those of the judges as targets, log 2 for a coin; least_log_loss: that of the judges' own.
    bias: in nats, towards the document shown first; first_wins: the probability with which it prefers the first of two
    equal documents. same_in_both_orders: the share of pairs for which the same document wins, however they are shown.
    """
    rows: list[tuple[float, float, float]] = []
    for query_id in collection.queries:
        scores, targets = run.get(trec_column(query_id), {}), collection.teacher_scores[query_id]
        shown = [query_id + order for order in ORDERS]
        if any(collection.qrels[query_id].values()) and all(trec_column(d) in scores for d in shown):
            ab, ba = (scores[trec_column(d)] for d in shown)
            rows.append((ab, ba, targets[shown[0]]))
    if not rows:
        return {"pairs": 0}
    ab_N, ba_N, t_N = np.array(rows, np.float64).T
    lead_N = (ab_N - ba_N) / 2
    hits_N = np.where(lead_N == 0, 0.5, (lead_N > 0) == (t_N > 0.5))
    clear_N = np.abs(t_N - 0.5) >= CLEAR - 0.5
    bias = float(((ab_N + ba_N) / 2).mean())
    return {
        "pairs": len(rows),
        "agreement": float(hits_N.mean()),
        "clear": {"pairs": int(clear_N.sum()), "agreement": float(hits_N[clear_N].mean()) if clear_N.any() else None},
        "log_loss": float((np.logaddexp(0, -lead_N) * t_N + np.logaddexp(0, lead_N) * (1 - t_N)).mean()),
        "least_log_loss": float((entr(t_N) + entr(1 - t_N)).mean()),
        "bias": bias,
        "first_wins": float(expit(bias)),
        "same_in_both_orders": float(((ab_N > 0) != (ba_N > 0)).mean()),
    }


def write_agreement(run: RunFolder, systems: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Write student.json, test set -> system -> agreement(), and print it; returns it."""
    found: dict[str, dict[str, Any]] = {}
    for collection in read_split(run.data, "test"):
        own = found[collection.name] = {}
        for system in systems:
            path = run.eval_folder(collection.name, system) / "run.trec"
            if path.is_file():
                own[system] = agreement(collection, read_trec_run(path))
                console.say(f"{collection.name}: {system}: {in_words(own[system])}")
    run.write_json(run.student, found)
    return found


def in_words(figures: Mapping[str, Any]) -> str:
    """The figures of agreement() in one line."""
    if not figures["pairs"]:
        return "no held-out pair was decided"
    clear = figures["clear"]
    of_clear = f", {clear['agreement']:.1%} of the {clear['pairs']:,} clear ones" if clear["pairs"] else ""
    return (
        f"prefers the judges' document in {figures['agreement']:.1%} of {counted(figures['pairs'], 'held-out pair')}"
        f"{of_clear} (log loss {figures['log_loss']:.3f}; a coin {math.log(2):.3f}, the judges "
        f"{figures['least_log_loss']:.3f}); the same one in both orders in {figures['same_in_both_orders']:.1%}; the "
        f"first of two equal ones with a probability of {figures['first_wins']:.2f}"
    )


def read_agreement(run: RunFolder) -> dict[str, dict[str, Any]]:
    """student.json; empty without one."""
    return json.loads(run.student.read_text(encoding="utf-8")) if run.student.is_file() else {}


def refuse_seen(run: RunFolder, judges: Sequence[Judge]) -> None:
    """Raises UserError where a student among the judges was trained on a query of this run's test sets.

    What its run folder holds is compared; of an export that lies elsewhere nothing is known, which is printed, as are
    queries of dev: the verdict on the judges is then too good.
    """
    held = {
        split: {normalised(t) for c in read_split(run.data, split) for t in c.queries.values()} for split in HELD_OUT
    }
    for number, judge in enumerate(judges):
        if judge.kind != "pairwise":
            continue
        folder = Path(student_folder(judge.model))
        if line := stale_export(folder):
            console.say(f"WARNING: {folder} is stale: {line}")
        home = run_around(folder)
        if home is None or not home.split("train").is_file():
            console.say(
                f"  {judge.name}: its run folder is not here, so it is not known which queries it was trained on"
            )
            continue
        seen = {text for split in SEEN for text in _queries(home.split(split))}
        if shared := held["test"] & seen:
            raise UserError(
                f"{KEY}.judges.{number}.model: {judge.model} was trained on {counted(len(shared), 'query')} of the "
                "test sets, on which what it teaches is measured: train it on other queries, or take other test sets"
            )
        if shared := held["dev"] & seen:
            count = counted(len(shared), "dev query")
            console.say(f"WARNING: {judge.name} was trained on {count}: the verdict on it is too good")


def _queries(path: Path) -> set[str]:
    return set(read_jsonl(path, lambda row: normalised(row.get("query", "")), "a row of data: damaged"))
