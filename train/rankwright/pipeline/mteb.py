"""`rankwright mteb`: mteb's own evaluation of the exported model on lists of ours, compared with our figures."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from rankwright.common import console
from rankwright.common.errors import UserError, one_line
from rankwright.common.files import read_json_object, read_jsonl, write_lines_atomic, write_text_atomic
from rankwright.common.folder_lock import folder_lock
from rankwright.common.foreign_code import refuse_foreign_modules
from rankwright.common.hashing import content_hash, file_sha256, files_hash
from rankwright.common.outputs import read_sealed, sealed
from rankwright.common.plurals import counted
from rankwright.common.run_folder import PACKAGE, SUMS_FILE, RunFolder
from rankwright.data.collection import Collection
from rankwright.data.normalisation import normalised
from rankwright.data.split_files import read_split
from rankwright.evaluation.metrics import LINEAR, Scale, falling, measure_run
from rankwright.evaluation.mteb_results import MEASURES, PartResult, exported_model, read_records
from rankwright.evaluation.mteb_tasks import INFO
from rankwright.export.card import CARD, Benchmark, add_benchmarks
from rankwright.export.proof.sums import changes
from rankwright.model.prompt import CONTRACT_FILE, PromptContract
from rankwright.recipe.schema import Recipe
from rankwright.report.gather import read_recipe
from rankwright.report.page import write_report
from rankwright.rerankers.reranker import Reranker
from rankwright.retrieval.candidates import Candidate, read_candidates, tie_rate
from rankwright.retrieval.first_stages import retrieve, stage_label
from rankwright.retrieval.retriever import retrievers
from rankwright.retrieval.run_file import columns_of, read_lists, read_trec_run

# How lists are reranked whose scores the model could read in its prompts (prompt.first_stage_score).
UNREAD = "without their scores in the prompt"
BATCH = 32
Lists = Mapping[str, Sequence[Candidate]]
Scores = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for. folder: that of sets which are tasks; lists: a TREC run file in place of the run's own."""

    tasks: tuple[str, ...]
    folder: Path | None = None
    lists: Path | None = None
    top_k: int = 100


def run_mteb(folder: Path, wanted: Wanted, command: Sequence[str] = ()) -> list[PartResult]:
    """Run the tasks one after the other, keeping finished ones. Their figures go into the export's card and the report.

    Raises UserError where mteb is missing, for a run without the export `hf`, for unknown tasks and wrong lists.
    """
    recipe, run = read_recipe(folder), RunFolder(folder)
    _check(wanted, recipe, run)
    found: list[PartResult] = []
    with folder_lock(run.path, command, console.say):
        (run.mteb / "scores").mkdir(parents=True, exist_ok=True)
        for name in wanted.tasks:
            console.heading(name)
            task = Task(name, wanted, recipe, run)
            results = task.read()
            if results is None:
                results = task.run()
            else:
                console.say("unchanged, kept")
            found += results
            # After each of them: a later one may fail.
            add_benchmarks(run.export("hf") / CARD, benchmarks(run))
        if run.report.is_file():
            console.say(f"report: {write_report(run.path)}")
    return found


def benchmarks(run: RunFolder) -> list[Benchmark]:
    """The figures of mteb that are of the model now in export/hf, for its card."""
    return [
        Benchmark(
            task=part.task,
            hub=record["hub"] or part.task,
            revision=record["revision"],
            subset=part.subset,
            split=part.split,
            queries=part.queries,
            value=part.theirs["nDCG@10"],
            first_stage=part.first_stage,
            lists=part.lists,
            version=record["mteb"],
        )
        for record, part in read_records(run)
    ]


class Task:
    """One task of one call, and its files in RUN/mteb."""

    def __init__(self, name: str, wanted: Wanted, recipe: Recipe, run: RunFolder) -> None:
        self.name, self.wanted, self.recipe, self.folder = name, wanted, recipe, run
        self.place = run.mteb / name
        self.local = None if wanted.folder is None else wanted.folder / name
        self.model = exported_model(run)
        # Without its lists: load() reads only the task.
        data = (name, metadata.version("mteb"), None if self.local is None else files_hash([self.local]))
        self.data = content_hash(*data)
        own = (recipe.evaluate.first_stage, recipe.bm25.model_dump(), recipe.dense and recipe.dense.model_dump())
        lists = own if wanted.lists is None else file_sha256(wanted.lists)
        scale = Scale.of(recipe.evaluate).as_json()
        self.inputs = content_hash(self.data, self.model, lists, wanted.top_k, scale)

    def read(self) -> list[PartResult] | None:
        """What an earlier call found, if everything it depends on is the same."""
        record = read_sealed(self.place / "record.json")
        if record is None or record["inputs"] != self.inputs or not (self.folder.mteb / f"{self.name}.json").is_file():
            return None
        return [PartResult(**part) for part in record["parts"]]

    def run(self) -> list[PartResult]:
        self._load()
        info = json.loads((self.place / INFO).read_text(encoding="utf-8"))
        self._warn(info)
        parts = [self._part(number, part) for number, part in enumerate(info["parts"])]
        depth = max((len(found) for _, lists, _ in parts for found in lists.values()), default=1)
        self._evaluate([(p, lists) for p, (_, lists, _) in zip(info["parts"], parts, strict=True)], depth)
        theirs = json.loads((self.folder.mteb / f"{self.name}.json").read_text(encoding="utf-8"))["scores"]
        reranker = Reranker.load(self.folder.export("hf"))
        results = []
        for part, (collection, lists, words) in zip(info["parts"], parts, strict=True):
            before = reranker.cut_queries
            scores = _score(reranker, collection, lists)
            cut = reranker.cut_queries - before
            if not info["own_documents_count"]:
                scores = {q: {d: s for d, s in found.items() if d != q} for q, found in scores.items()}
            figures = next(row for row in theirs[part["split"]] if row["hf_subset"] == part["subset"])
            if reranker.contract.first_stage_score is not None:
                words += f", {UNREAD}"
            found = self._compare(part, collection, lists, words, scores, figures)
            results.append(dataclasses.replace(found, queries_cut=cut))
        record = {
            "inputs": self.inputs,
            "model": self.model,
            "mteb": metadata.version("mteb"),
            "hub": info["hub"],
            "revision": info["revision"],
            "parts": [dataclasses.asdict(row) for row in results],
        }
        write_text_atomic(self.place / "record.json", json.dumps(sealed(record), indent=2) + "\n")
        return results

    def _load(self) -> None:
        made = self.place / "data.json"
        if (self.place / INFO).is_file() and (read_json_object(made) or {}).get("inputs") == self.data:
            return
        made.unlink(missing_ok=True)
        self._ask("load", {"out": str(self.place)}, "read", 0)
        write_text_atomic(made, json.dumps({"inputs": self.data}) + "\n")

    def _warn(self, info: Mapping[str, Any]) -> None:
        contract = PromptContract.load(self.folder.export("hf"))
        own = contract.instruction if contract is not None and contract.takes_instruction else None
        if own is not None and info["prompt"] and info["prompt"].strip() != own:
            console.say(f"instruction: that of the export ({own!r}), not that of the task ({info['prompt']!r})")
        if any(part["instructed"] for part in info["parts"]):
            console.say("instruction: mteb puts each query's own behind the query, the export's stays in the prompt")
        if any(part["titled"] for part in info["parts"]):
            console.say("titles: mteb joins title and text with a space, Rankwright with a line break; here a space")
        if contract is not None and contract.first_stage_score is not None:
            console.say(f"prompt.first_stage_score: mteb gives a model texts alone: both figures are {UNREAD}")
        if not info["first_counts"]:
            raise UserError(f"task {self.name}: mteb leaves out each list's first result: it cannot be compared")

    def _part(self, number: int, part: Mapping[str, Any]) -> tuple[Collection, Lists, str]:
        """(queries, documents and judgements of a part, the lists that are reranked, where these are from)."""
        folder = self.place
        rows = list(read_jsonl(folder / f"queries-{number}.jsonl", dict, "a query, delete the folder"))
        corpus = read_jsonl(folder / f"corpus-{number}.jsonl", lambda row: (row["id"], row["text"]), "a document")
        queries = {row["id"]: row["text"] for row in rows}
        qrels = {row["id"]: {d: float(label) for d, label in row["judged"].items()} for row in rows}
        collection = Collection(self.name, dict(corpus), queries, qrels)
        where, top_k = f"task {self.name}, {part['subset']}, {part['split']}", self.wanted.top_k
        if self.wanted.lists is not None:
            lists = _read_lists(self.wanted.lists, collection, top_k, where)
            return collection, lists, f"{self.wanted.lists.name}, best {top_k}"
        if any(row["listed"] for row in rows):
            listed = {row["id"]: row["listed"] or [] for row in rows}
            given = {q: [Candidate(d, float(-n), n) for n, d in enumerate(ds, 1)] for q, ds in listed.items()}
            return collection, given, "lists of the task"
        stage = self.recipe.evaluate.first_stage
        if (found := self._candidates(collection)) is not None:
            return collection, found, f"{stage_label(stage)}, best {top_k}"
        if retrievers()[stage].reads_run_file:
            raise UserError(f"{where}: no test set of the run has its queries, and the run file has none: give --lists")
        found = retrieve(self.recipe, stage, collection, top_k)
        return collection, found, f"{stage_label(stage)}, best {top_k}"

    def _candidates(self, task: Collection) -> dict[str, list[Candidate]] | None:
        """The lists of the run's test set that has the task's queries and documents, if they are deep enough."""
        recipe, top_k = self.recipe, self.wanted.top_k
        for test in read_split(self.folder.data, "test") if recipe.evaluate.depth >= top_k else ():
            path = self.folder.eval_folder(test.name) / "candidates.jsonl"
            texts = {q: normalised(text) for q, text in task.queries.items()}
            same = all(q in test.queries and normalised(test.queries[q]) == text for q, text in texts.items())
            if not same or not path.is_file() or len(test.corpus) != len(task.corpus):
                continue
            lists = read_candidates(path)
            kept = {q: list(lists.get(q, ()))[:top_k] for q in task.queries}
            known = all(c.document_id in task.corpus for found in kept.values() for c in found)
            if known and set(task.queries) <= set(lists):
                console.say(f"lists: those of the run's test set {test.name}")
                return kept
        return None

    def _evaluate(self, parts: Sequence[tuple[Mapping[str, Any], Lists]], depth: int) -> None:
        predictions: dict[str, Any] = {"mteb_model_meta": {"model_name": "rankwright/lists", "revision": "1"}}
        for part, lists in parts:
            # Falling values: mteb sorts by them, and the order of the lists is ours.
            predictions.setdefault(part["subset"], {})[part["split"]] = _in_order(lists)
        path = self.folder.mteb / f"{self.name}_predictions.json"
        write_lines_atomic(path, [json.dumps(predictions)])
        pairs = sum(len(found) for _, lists in parts for found in lists.values())
        request = {
            "lists": str(path),
            "top_k": depth,
            "model": str(self.folder.export("hf")),
            "result": str(self.folder.mteb / f"{self.name}.json"),
            "scores": str(self.folder.mteb / "scores"),
            "batch_size": BATCH,
        }
        self._ask("evaluate", request, "mteb reranks", pairs)

    def _ask(self, command: str, request: Mapping[str, Any], what: str, pairs: int) -> None:
        """Run mteb_tasks in a fresh process. Raises UserError with its own line, or with the last of its log."""
        self.place.mkdir(parents=True, exist_ok=True)
        request = {"task": self.name, "folder": None if self.local is None else str(self.local.resolve()), **request}
        asked, log = self.place / "request.json", self.place / "mteb.log"
        write_text_atomic(asked, json.dumps(request, indent=2) + "\n")
        paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH", "")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TOKENIZERS_PARALLELISM": "false"}
        module = "rankwright.evaluation.mteb_tasks"
        error = None
        with (
            log.open("w", encoding="utf-8") as errors,
            console.progress(f"{self.name}: {what}", pairs) as advance,
            subprocess.Popen(
                [sys.executable, "-m", module, command, str(asked)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            ) as process,
        ):
            assert process.stdout is not None
            # What comes first counts as done before, and not as speed.
            advance(0)
            try:
                for line in process.stdout:
                    row = json.loads(line)
                    error = row.get("error", error)
                    advance(row.get("done", 0))
            except BaseException:
                process.kill()
                raise
        if process.returncode != 0:
            last = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"])[-1]
            raise UserError(error or f"task {self.name}: mteb stopped ({one_line(last)}): all it printed is in {log}")

    def _compare(
        self,
        part: Mapping[str, Any],
        task: Collection,
        lists: Lists,
        words: str,
        scores: Scores,
        figures: Mapping[str, float],
    ) -> PartResult:
        relevant = {q for q, judged in task.qrels.items() if any(label > 0 for label in judged.values())}
        count = len(task.queries)

        def means(run: Scores, scale: Scale = LINEAR) -> dict[str, float]:
            """Over all queries of the task: to mteb, those without a relevant document count 0."""
            found = measure_run(run, task.qrels, list(MEASURES), scale)
            return {m: sum(values.values()) / count for m, values in found.per_query.items()}

        # mteb ranks by probabilities of 32 bits, which tie where scores do not.
        rounded = {q: dict(zip(found, _probabilities(found.values()), strict=True)) for q, found in scores.items()}
        trec = {q: sorted(found, key=lambda d: (found[d], d), reverse=True) for q, found in rounded.items()}
        scale = Scale.of(self.recipe.evaluate)
        labelled = {} if scale == LINEAR else measure_run(scores, task.qrels, ["nDCG@10"], scale).mean
        return PartResult(
            self.name,
            part["subset"],
            part["split"],
            count,
            count - len(relevant),
            words,
            means(scores),
            means({q: falling(order) for q, order in trec.items()}),
            {ours: float(figures[name]) for ours, name in MEASURES.items()},
            means(_in_order(lists))["nDCG@10"],
            {scale.name(measure): value for measure, value in labelled.items()},
            tie_rate(rounded),
            0,
        )


def _check(wanted: Wanted, recipe: Recipe, run: RunFolder) -> None:
    if importlib.util.find_spec("mteb") is None:
        raise UserError(
            "mteb is not installed: pip install 'rankwright[mteb]' (in an environment of its own where its versions "
            "do not fit)"
        )
    if not wanted.tasks:
        raise UserError("--tasks: names no task: give one or more, such as FiQA2018,SCIDOCS")
    if wanted.lists is not None and len(wanted.tasks) > 1:
        raise UserError("--lists: a run file is for one task: give one to --tasks")
    if odd := next((name for name in wanted.tasks if name.startswith(".") or set(name) & set("/\\\0")), None):
        raise UserError(f"--tasks: {odd!r}: is not the name of a task, which names files here")
    places = [] if wanted.folder is None else [wanted.folder / name for name in wanted.tasks]
    for place in places:
        if not place.exists():
            have = sorted(path.name for path in place.parent.glob("*")) if place.parent.is_dir() else []
            raise UserError(f"--task-folder: {place}: no such set: it has {', '.join(have[:20]) or 'nothing'}")
    folder = run.export("hf")
    if not (folder / CONTRACT_FILE).is_file() or not (folder / SUMS_FILE).is_file():
        raise UserError(
            f"{run.path}: has no export `hf`, which mteb loads: run `rankwright export {run.recipe_json}`, with hf in "
            "export.targets"
        )
    found = changes(folder)
    if found is not None and found.any:
        raise UserError(f"{folder}: {'; '.join(found.lines()) or 'holds new files'}: export it again")
    refuse_foreign_modules(folder)


def _read_lists(path: Path, collection: Collection, top_k: int, where: str) -> dict[str, list[Candidate]]:
    if not path.is_file():
        raise UserError(f"--lists: {path}: no such file")
    documents, queries = columns_of(collection.corpus, where), columns_of(collection.queries, where)
    unknown = [(q, d) for q, found in read_trec_run(path).items() if q in queries for d in found if d not in documents]
    if unknown:
        query, document = unknown[0]
        raise UserError(
            f"--lists: {path}: {counted(len(unknown), 'document is', 'documents are')} not in the corpus of "
            f"{where}, such as {document!r} of "
            f"query {query!r}: give lists of this task"
        )
    lists, facts = read_lists(path, collection.corpus, collection.queries, top_k)
    console.say(f"lists {path}: {facts}")
    return lists


def _score(reranker: Reranker, task: Collection, lists: Lists) -> dict[str, dict[str, float]]:
    """Our scores of the same texts."""
    groups = ((task.queries[q], [task.corpus[c.document_id] for c in found]) for q, found in lists.items())
    scores: dict[str, dict[str, float]] = {}
    with console.progress(f"{task.name}: Rankwright reranks", sum(map(len, lists.values()))) as advance:
        advance(0)
        for (q, found), values in zip(lists.items(), reranker.score_groups(groups), strict=True):
            scores[q] = {c.document_id: value for c, value in zip(found, values, strict=True)}
            advance(len(found))
    return scores


def _in_order(lists: Lists) -> dict[str, dict[str, float]]:
    """Scores that fall along each list, whose order they stand for."""
    return {q: falling(c.document_id for c in found) for q, found in lists.items()}


def _probabilities(scores: Iterable[float]) -> list[float]:
    found: list[float] = torch.tensor(list(scores), dtype=torch.float32).sigmoid().tolist()
    return found
