"""teacher.pairs.refine: what an earlier run judged is judged further where the student that it trained disagrees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rankwright.common.errors import UserError
from rankwright.common.files import read_json_object, read_jsonl
from rankwright.common.hashing import text_key
from rankwright.common.lineage import export_to_load, model_folder
from rankwright.common.plurals import counted
from rankwright.common.resources import expand, is_there, kind_of_path, nearby
from rankwright.common.run_folder import RunFolder
from rankwright.data.collection import Collection
from rankwright.data.normalisation import normalised
from rankwright.data.split_files import qualified, read_split
from rankwright.evaluation.metrics import Scale
from rankwright.pipeline.judged_lists import KEY, Chosen, judged_list, refuse_test_query, test_texts
from rankwright.recipe.schema import Baseline, Recipe
from rankwright.recipe.teacher import Pairs
from rankwright.rerankers.pair_scores import read_teacher_scores
from rankwright.supervision.preferences.answers import AnswerFile
from rankwright.supervision.preferences.asking import Asker
from rankwright.supervision.preferences.judges import Reply
from rankwright.supervision.preferences.judging import JudgedList, Judging, Row
from rankwright.supervision.preferences.refinement import (
    doubts,
    most_calls,
    refined,
    refinement_figures,
    replay,
)
from rankwright.supervision.teacher import Teacher

STUDENT = f"{KEY}.refine.student"
SAME = "give the data and the seed of that run"


@dataclass(frozen=True, slots=True, eq=False)
class Earlier:
    """What the student's run judged, and what the student makes of it.

    chosen: its queries. lists: their documents, without answers. copies: see judged_lists.Copies. shown: its calls, for
    replay(). report: its judge/report.json. student: query id -> scores of the documents of the list.
    """

    chosen: Chosen
    lists: list[JudgedList]
    copies: dict[str, dict[str, str]]
    shown: Mapping[str, Sequence[Row]]
    report: Mapping[str, Any]
    student: Mapping[str, Sequence[float]]

    def most_calls(self, settings: Pairs) -> int:
        """Its calls and those of the refinement, at most."""
        return sum(map(len, self.shown.values())) + most_calls(settings, len(self.lists))


def student_run(settings: Pairs) -> RunFolder:
    """The run that is refined."""
    assert settings.refine is not None
    return RunFolder(expand(settings.refine.student))


def judged_queries(settings: Pairs) -> int:
    """How many queries the student's run has judged."""
    return int((read_json_object(student_run(settings).judge_report) or {}).get("queries", 0))


def check_student(recipe: Recipe, settings: Pairs) -> list[str]:
    """All faults of teacher.pairs.refine, each as `key: what`."""
    refine, run = settings.refine, student_run(settings)
    assert refine is not None
    faults = [
        f"{key}: such a student orders by more than its own scores, which are all that {KEY}.refine reads: remove one"
        for key in recipe.keys_of_lists
    ]
    if refine.calls_per_query < len(settings.judges):
        faults.append(
            f"{KEY}.refine.calls_per_query: {refine.calls_per_query} are less than one for each of "
            f"{counted(len(settings.judges), 'judge')}"
        )
    if kind_of_path(run.path) != "folder" or not run.is_run():
        why = "not a run folder" if is_there(run.path) else f"no such folder{nearby(run.path)}"
        return [*faults, f"{STUDENT}: {refine.student}: {why}: name the folder of a run that was judged and trained"]
    if expand(recipe.run_dir or f"runs/{recipe.name}").resolve() == run.path.resolve():
        faults.append(f"{STUDENT}: {refine.student} is the folder of this run: give another one, e.g. run_dir=PATH")
    report = read_json_object(run.judge_report)
    if report is None or "prior" not in report or not (run.facts("judge") and run.judge_answers.is_file()):
        is_what = "it was not judged to the end, by this version"
        return [*faults, f"{STUDENT}: {refine.student}: {is_what}: give `{run.command('judge')}` first"]
    if changed := run.changed("judge", keep_times=False):
        is_what = f"{min(changed)} is not as the judge stage wrote it"
        return [*faults, f"{STUDENT}: {refine.student}: {is_what}: give `{run.command('judge')}` first"]
    if export_to_load(run) is None:
        faults.append(f"{STUDENT}: {refine.student}: has no export to load: give `{run.command('export')}` first")
    asked = [(judge["name"], judge["model"]) for judge in report["judges"]]
    if asked != [(judge.name, judge.model) for judge in settings.judges]:
        names = ", ".join(f"{name} ({model})" for name, model in asked)
        faults.append(f"{KEY}.judges: {refine.student} was judged by {names}: name the same ones in the same order")
    if report["prior"] != settings.fit.prior:
        faults.append(f"{KEY}.fit.prior: the scores of {refine.student} start from {report['prior']}: give the same")
    for name in ("calls", "tokens", "money"):
        most, spent = getattr(settings.budget, name), report[name]
        if most is not None and spent is not None and spent >= most:
            faults.append(
                f"{KEY}.budget.{name}: {most:,.6g} are spent: answers of {refine.student} count too, and took "
                f"{spent:,.6g}: raise it"
            )
    return faults


def read_earlier(recipe: Recipe, settings: Pairs, run: RunFolder, answers: AnswerFile[Reply]) -> Earlier:
    """Read what the student's run judged, take its answers over, and have the student score the judged lists.

    Raises UserError for queries or documents that this run does not have, and for a query that test has too.
    """
    student = student_run(settings)
    answers.take(student.judge_answers)
    documents: dict[str, dict[str, float | None]] = {}
    for query_id, document_id, prior in read_jsonl(student.judge_scores, _scored, _again("a row of scores", student)):
        documents.setdefault(query_id, {})[document_id] = prior
    train, test = [qualified(c) for c in read_split(run.data, "train")], test_texts(run)
    taught = read_teacher_scores(student.teacher_scores)
    lists, copies, queries = [], dict[str, dict[str, str]](), {c.name: list[str]() for c in train}
    for query_id, priors in sorted(documents.items()):
        collection = next((c for c in train if query_id in c.queries), None)
        if collection is None:
            raise UserError(f"{STUDENT}: {query_id} was judged there and is not a training query here: {SAME}")
        if lacks := [d for d in priors if d not in collection.corpus]:
            raise UserError(f"{STUDENT}: {lacks[0]} was judged there and is not a document of its set here: {SAME}")
        refuse_test_query(query_id, normalised(collection.queries[query_id]), test)
        queries[collection.name].append(query_id)
        known = [value for value in priors.values() if value is not None]
        one = judged_list(recipe, collection, query_id, list(priors), np.array(known) if known else None)
        lists.append(one)
        by_text = {text_key(one.text(d)): d for d in priors}
        others = {d: text_key(one.text(d)) for d in taught[query_id] if d not in priors and d in collection.corpus}
        copies[query_id] = {d: by_text[key] for d, key in others.items() if key in by_text}
    report = read_json_object(student.judge_report) or {}
    chosen = Chosen([c.subset(queries[c.name]) for c in train if queries[c.name]], report["left_out"])
    scores = _scores(recipe, chosen.collections, lists, student)
    return Earlier(chosen, lists, copies, _shown(student, lists, settings), report, scores)


def _again(what: str, student: RunFolder) -> str:
    return f"{what}: give `{student.command('judge')}` again"


def _scored(row: Mapping[str, Any]) -> tuple[str, str, float | None]:
    return row["query_id"], row["document_id"], row["prior"]


def _shown(student: RunFolder, lists: Sequence[JudgedList], settings: Pairs) -> dict[str, list[Row]]:
    """The calls of pairs.jsonl about documents of one query, by query, in their order."""
    places = {one.query_id: {d: number for number, d in enumerate(one.ids)} for one in lists}
    numbers = {judge.name: number for number, judge in enumerate(settings.judges)}
    shown: dict[str, list[Row]] = {query_id: [] for query_id in places}

    def add(row: Mapping[str, Any]) -> None:
        if "second_query_id" not in row:
            of = places[row["query_id"]]
            call = of[row["first"]], of[row["second"]], numbers[row["judge"]], row["t"], row["round"]
            shown[row["query_id"]].append(call)

    for _ in read_jsonl(student.judge_pairs, add, _again("a row of pairs", student)):
        pass
    return shown


def _scores(
    recipe: Recipe, sets: Sequence[Collection], lists: Sequence[JudgedList], student: RunFolder
) -> dict[str, list[float]]:
    """The student's scores of all judged lists, each made once."""
    baseline = Baseline(name="student", kind="rankwright", model=model_folder(str(student.path)))
    scorer = Teacher(baseline, recipe.prompt, bm25=recipe.bm25, key=STUDENT)
    ids = {one.query_id: one.ids for one in lists}
    found: dict[str, list[float]] = {}
    for collection in sets:
        scores = scorer.score_pairs(collection, {q: ids[q] for q in collection.queries})
        found |= {q: [own[d] for d in ids[q]] for q, own in scores.items()}
    return found


def refine(
    recipe: Recipe, settings: Pairs, earlier: Earlier, asker: Asker, advance: Callable[[int], object]
) -> tuple[Judging, dict[str, Any]]:
    """Ask further where the student disagrees most, and fit again; returns the part of report.json about it, too."""
    assert settings.refine is not None
    left_out, seed = int(earlier.report["queries_left_out"]), recipe.seed
    before = replay(earlier.lists, earlier.shown, settings, asker, advance, left_out=left_out, seed=seed)
    level = Scale.of(recipe.evaluate).level
    relevant = {}
    for collection in earlier.chosen.collections:
        for query_id in collection.queries:
            judged_as = earlier.copies.get(query_id, {})
            relevant[query_id] = {judged_as.get(d, d) for d in collection.positives(query_id, level)}
    chosen = doubts(before, earlier.student, relevant, settings.refine)
    after = refined(before, chosen, settings, asker, advance, seed=seed)
    figures = refinement_figures(before, after, chosen, earlier.student)
    return after, {"student": settings.refine.student, **figures}
