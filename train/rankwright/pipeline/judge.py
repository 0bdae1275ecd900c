"""The judge stage: preferences of language models between the candidates of training queries, made into scores."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwright.common import console
from rankwright.common.errors import UserError
from rankwright.common.files import json_line, write_lines_atomic
from rankwright.common.hashing import stable_hash, text_key
from rankwright.common.plurals import counted
from rankwright.common.processes import launched
from rankwright.common.run_folder import RunFolder
from rankwright.data.collection import Collection
from rankwright.data.normalisation import normalised
from rankwright.data.sources import of_people
from rankwright.data.split_files import qualified, read_split
from rankwright.evaluation.evaluate import first_stage_run, measure
from rankwright.evaluation.metrics import HEADLINE, Scale
from rankwright.evaluation.teacher_gate import LEAST_QUERIES, Verdict, not_judged
from rankwright.pipeline.inputs import StageInputs
from rankwright.pipeline.teacher import conclude, forget_other_verdict, verdict_on_dev
from rankwright.pipeline.train import dev_queries
from rankwright.recipe.schema import Recipe
from rankwright.recipe.teacher import Pairs
from rankwright.rerankers.pair_scores import teacher_line
from rankwright.rerankers.scorer import Reranked
from rankwright.retrieval.candidates import Candidate, prefixed, read_candidates
from rankwright.retrieval.first_stages import reads_run_file, retrieve, training_stage
from rankwright.supervision.preferences.answers import AnswerFile, judged_reply
from rankwright.supervision.preferences.asking import Asker
from rankwright.supervision.preferences.figures import figures
from rankwright.supervision.preferences.fit import standardised
from rankwright.supervision.preferences.judges import TEMPLATE, Judge
from rankwright.supervision.preferences.judging import (
    Across,
    JudgedList,
    Judging,
    ask_across,
    bind_design,
    calls_per_query,
    judge_lists,
)
from rankwright.training.loss_terms import reads_teacher
from rankwright.training.losses import OF_TEACHER
from rankwright.training.setup import BaseScorer

KEY = "teacher.pairs"
# Letters of a document that judges are shown for a token that the student reads: English has about four in a token.
LETTERS_A_TOKEN = 4
# Documents of a set whose lengths are looked at for the bill.
BILLED = 2000


def judge(recipe: Recipe, run: RunFolder, inputs: StageInputs, *, override: str | None, command: str) -> dict[str, Any]:
    """The whole stage: judge/pairs.jsonl, judge/scores.jsonl, judge/report.json and teacher.jsonl; returns its facts.

    First the judges order dev, and are refused where they do it no better than the base. override, command: see
    teacher.check_teacher.
    What was answered is in judge/answers.jsonl, and is never asked again. Raises UserError where a judge fails.
    """
    settings = _settings(recipe)
    if launched() > 1:
        raise UserError(f"{KEY}: judges are asked by one process: give `rankwright judge` alone first")
    judges = [Judge(entry) for entry in settings.judges]
    answers = AnswerFile(run.judge_answers, judged_reply)
    if answers.damaged:
        console.say(f"{answers.path}: {counted(answers.damaged, 'damaged row')}: asked again")
    chosen = _chosen(recipe, run)
    asker = Asker(judges, answers, settings.budget, settings.parallel)
    verdict = _judge_dev(recipe, run, inputs, asker)
    conclude(run, verdict, KEY, inputs=str(inputs.judge), override=override, command=command)
    lists, twins = _lists(recipe, chosen, _retrieved(recipe, run, chosen, inputs.run_files("train")))
    planned = _planned(settings, [len(one.ids) for one in lists])
    console.say(
        f"  {counted(len(lists), 'query')} with {counted(sum(len(one.ids) for one in lists), 'document')}: at most "
        f"{counted(planned, 'call')} of {counted(len(judges), 'judge')}; answered before: {len(answers):,}"
    )
    with console.progress("judge", planned) as advance:
        advance(0)
        found = judge_lists(lists, settings, asker, recipe.seed, advance)
        across = None if settings.across_queries is None else ask_across(found, settings, asker, recipe.seed, advance)
    _write(run, found, across, twins, settings)
    report = {
        **figures(found, across, asker, settings.fit.model),
        "against_people": _against_people(recipe, chosen, found),
        "equal_texts": sum(map(len, twins.values())),
    }
    run.write_json(run.judge_report, report)
    _describe(report, asker, sum(judge.client.requests_sent for judge in judges))
    made = {name: report[name] for name in ("queries", "calls", "prior_weight")}
    return {**made, "verdict": verdict.verdict}


def _gate_queries(recipe: Recipe) -> int:
    """How many dev queries are judged: those of training, but at most a tenth of what is judged to train with."""
    return max(LEAST_QUERIES, min(recipe.train.dev_queries, _settings(recipe).queries // 10))


def _judge_dev(recipe: Recipe, run: RunFolder, inputs: StageInputs, asker: Asker) -> Verdict:
    """Whether the judges order dev better than the base does, by queries that people judged; asks them about these."""
    settings, scale = _settings(recipe), Scale.of(recipe.evaluate)
    name = " and ".join(entry.name for entry in settings.judges)
    forget_other_verdict(run, str(inputs.judge))
    sets = [qualified(c) for c in of_people(read_split(run.data, "dev"))]
    asked = [(c, ids) for c, ids in dev_queries(recipe, sets, most=_gate_queries(recipe)) if ids]
    count = sum(len(ids) for _, ids in asked)
    if count < LEAST_QUERIES:
        return not_judged(name, count, measure=scale.name(HEADLINE))
    kept = read_candidates(run.dev_candidates)
    candidates = {q: kept.get(q, [])[: settings.depth] for _, ids in asked for q in ids}
    console.say(f"  dev, before anything else is asked: {counted(count, 'query')} that people judged")
    lists, twins = _lists(recipe, [c.subset(ids) for c, ids in asked], candidates)
    with console.progress("judge dev", _planned(settings, [len(one.ids) for one in lists])) as advance:
        advance(0)
        found = judge_lists(lists, settings, asker, recipe.seed, advance)
    if asker.over is not None:
        raise UserError(f"{asker.over}, and no training query is judged yet: raise it")
    # What the judges leave as it is: a list of one document.
    taught = first_stage_run(candidates, list(candidates))
    for one, scored in zip(found.lists, found.scored, strict=True):
        own = dict(zip(one.ids, scored.scores.tolist(), strict=True))
        taught[one.query_id] = own | {d: own[first] for d, first in twins.get(one.query_id, {}).items()}
    base = BaseScorer(recipe, inputs.base)
    untrained: Reranked = {}
    for collection, ids in asked:
        untrained |= base.score_pairs(collection, {q: [c.document_id for c in candidates[q]] for q in ids})
    return verdict_on_dev(recipe, name, taught, untrained, asked, candidates)


def check_pairs(recipe: Recipe) -> list[str]:
    """All faults of teacher.pairs, each as `key: what`."""
    settings, faults = _settings(recipe), []
    if recipe.mine.teacher is not None:
        faults.append(f"{KEY}: mine.teacher gives scores too: leave one of the two out")
    if not reads_teacher(recipe.loss):
        known = ", ".join(sorted(OF_TEACHER))
        faults.append(f"{KEY}: no loss learns from the scores: take one of {known}, or ranknet with targets: teacher")
    for name in ("name", "model"):
        given = [getattr(judge, name) for judge in settings.judges]
        faults += [
            f"{KEY}.judges.{n}.{name}: {value!r} is also that of judges.{given.index(value)}: each judge needs its own"
            for n, value in enumerate(given)
            if given.index(value) < n
        ]
    for number, entry in enumerate(settings.judges):
        try:
            Judge(entry)
        except UserError as error:
            faults.append(f"{KEY}.judges.{number}.{error}")
        if settings.budget.money is not None and entry.price_per_million is None:
            faults.append(
                f"{KEY}.judges.{number}.price_per_million: missing, and budget.money is counted by it: write "
                "{input: 0, output: 0} for a model of your own"
            )
    try:
        design = bind_design(settings)
    except UserError as error:
        return [*faults, f"{KEY}.design: {error}"]
    cycle = design.cycles * settings.depth * len(settings.judges)
    needed = f"depth {settings.depth} x {counted(len(settings.judges), 'judge')} x {counted(design.cycles, 'cycle')}"
    if calls_per_query(settings) < cycle:
        faults.append(
            f"{KEY}.budget.calls_per_query: {calls_per_query(settings):,} are less than the first round needs: at "
            f"least {cycle:,} ({needed})"
        )
    if settings.budget.calls is not None and settings.budget.calls < cycle * settings.queries:
        faults.append(
            f"{KEY}.budget.calls: {settings.budget.calls:,} are less than the first round of every query needs: at "
            f"least {cycle * settings.queries:,} ({needed} x {settings.queries:,} queries), or fewer queries"
        )
    return faults


def _settings(recipe: Recipe) -> Pairs:
    assert recipe.pairs is not None, "the stage is wanted only where the recipe has the section"
    return recipe.pairs


def _chosen(recipe: Recipe, run: RunFolder) -> list[Collection]:
    """The training sets with the queries that are judged, their ids qualified.

    Each text is judged once, and none that dev has too. Raises UserError where a test set has one: the data stage
    refuses such queries, or drops them, so the files are not as it wrote them.
    """
    train = [qualified(c) for c in read_split(run.data, "train")]
    held = {split: _texts(read_split(run.data, split)) for split in ("test", "dev")}
    places = sorted(
        ((c, q) for c in train for q in c.queries), key=lambda place: stable_hash("judge", recipe.seed, place[1])
    )
    seen: set[str] = set()
    wanted: dict[str, list[str]] = {c.name: [] for c in train}
    again = in_dev = 0
    for collection, query_id in places:
        if sum(map(len, wanted.values())) == _settings(recipe).queries:
            break
        text = normalised(collection.queries[query_id])
        if text in held["test"]:
            raise UserError(
                f"{KEY}: training query {query_id} is a test query too: judges must not see it: remove it from "
                "data.train, or set data.on_leak: drop"
            )
        in_dev += text in held["dev"]
        again += text in seen
        if text not in held["dev"] and text not in seen:
            wanted[collection.name].append(query_id)
        seen.add(text)
    for count, why in ((again, "have the text of another one"), (in_dev, "are dev queries too")):
        if count:
            console.say(f"  {counted(count, 'training query')} left out: they {why}")
    if not any(wanted.values()):
        raise UserError(f"{KEY}: no training query is left to judge: add queries to data.train")
    return [c.subset(sorted(wanted[c.name])) for c in train if wanted[c.name]]


def _texts(collections: Sequence[Collection]) -> set[str]:
    return {normalised(text) for c in collections for text in c.queries.values()}


def _retrieved(
    recipe: Recipe, run: RunFolder, chosen: Sequence[Collection], run_files: Mapping[str, Path | None]
) -> dict[str, list[Candidate]]:
    """The candidates of the chosen queries: those of evaluate.first_stage."""
    depth, stage = _settings(recipe).depth, training_stage(recipe)
    found: dict[str, list[Candidate]] = {}
    # A run file has the ids of the set's files.
    plain = {c.name: c for c in read_split(run.data, "train")} if reads_run_file(stage) else {}
    for collection in chosen:
        console.say(f"  {collection.name}: {stage} top {depth}")
        if collection.name in plain:
            prefix = f"{collection.name}/"
            asked = plain[collection.name].subset(q.removeprefix(prefix) for q in collection.queries)
            found |= prefixed(retrieve(recipe, stage, asked, depth, run_files[collection.name]), prefix)
        else:
            found |= retrieve(recipe, stage, collection, depth)
    return found


def _lists(
    recipe: Recipe, chosen: Sequence[Collection], retrieved: Mapping[str, Sequence[Candidate]]
) -> tuple[list[JudgedList], dict[str, dict[str, str]]]:
    """The lists to judge, by query id; and query id -> document that is not judged -> the one with its text that is."""
    settings, stage = _settings(recipe), training_stage(recipe)
    room = LETTERS_A_TOKEN * recipe.prompt.max_tokens
    found: list[JudgedList] = []
    twins: dict[str, dict[str, str]] = {}
    short = cut = 0
    for collection in chosen:
        for query_id in sorted(collection.queries):
            candidates = retrieved[query_id]
            by_text: dict[bytes, str] = {}
            scores: list[float] = []
            for candidate in candidates:
                text = collection.corpus[candidate.document_id]
                first = by_text.setdefault(text_key(text[:room]), candidate.document_id)
                if first != candidate.document_id:
                    twins.setdefault(query_id, {})[candidate.document_id] = first
                else:
                    scores.append(candidate.score)
                    cut += len(text) > room
            if len(by_text) < 2:
                short += 1
                continue
            found.append(
                JudgedList(
                    query_id,
                    collection.queries[query_id],
                    collection.instruction or recipe.prompt.instruction,
                    list(by_text.values()),
                    _Shown(collection.corpus, room),
                    standardised(scores) if settings.fit.prior == "first_stage" else None,
                )
            )
    equal = sum(map(len, twins.values()))
    for count, words in (
        (short, f"{counted(short, 'query')} with fewer than two documents: not judged"),
        (equal, f"{counted(equal, 'document')} with the text of another one of the list: judged once"),
        (cut, f"{counted(cut, 'document')} cut to {room:,} letters for the judges (4 for each of prompt.max_tokens)"),
    ):
        if count:
            console.say(f"  {words}")
    if not found:
        raise UserError(f"{KEY}: {stage} finds less than two documents for every query: there is no pair to judge")
    return sorted(found, key=lambda one: one.query_id), twins


@dataclass(frozen=True, slots=True)
class _Shown:
    """What judges are shown of a document: its first letters, read when they are asked for."""

    corpus: Mapping[str, str]
    room: int

    def __call__(self, document_id: str) -> str:
        return self.corpus[document_id][: self.room]


def _planned(settings: Pairs, lengths: Sequence[int]) -> int:
    """Calls for lists of these lengths, at most."""
    judges, design = len(settings.judges), bind_design(settings)
    calls = 0
    for n in lengths:
        each = calls_per_query(settings, n) // judges
        # In both orders, or what the cycles have.
        most = n * (n - 1) if design.round != 0 else max((n - 1) // 2, 1) * n
        rounds = each if design.round != 0 else min(each, design.cycles * n)
        calls += judges * (min(rounds, most) + (settings.across_queries or 0))
    return calls if settings.budget.calls is None else min(calls, settings.budget.calls)


def _write(
    run: RunFolder, found: Judging, across: Across | None, twins: Mapping[str, Mapping[str, str]], settings: Pairs
) -> None:
    names = [judge.name for judge in settings.judges]
    pairs = itertools.chain.from_iterable(_pair_lines(one, names) for one in found.lists)
    others = [] if across is None else _across_lines(found, across, names)
    write_lines_atomic(run.judge_pairs, itertools.chain(pairs, others))
    offsets = [0.0] * len(found.lists) if across is None else across.offsets.tolist()
    scores: dict[str, dict[str, float]] = {}
    lines: list[str] = []
    for one, scored, offset in zip(found.lists, found.scored, offsets, strict=True):
        calls = one.calls_of().tolist()
        for document, e, sd, count in zip(
            one.ids, (scored.scores + offset).tolist(), scored.deviations.tolist(), calls, strict=True
        ):
            lines.append(
                json_line({"query_id": one.query_id, "document_id": document, "e": e, "sd": sd, "calls": count})
            )
            scores.setdefault(one.query_id, {})[document] = e
        own = scores[one.query_id]
        own |= {document: own[first] for document, first in twins.get(one.query_id, {}).items()}
    write_lines_atomic(run.judge_scores, lines)
    write_lines_atomic(run.teacher_scores, (teacher_line(q, scores[q]) for q in sorted(scores)))


def _pair_lines(one: JudgedList, names: Sequence[str]) -> Iterator[str]:
    for first, second, judge, value, number in one.rows:
        row = {"query_id": one.query_id, "first": one.ids[first], "second": one.ids[second]}
        yield json_line(row | {"judge": names[judge], "round": number, "t": value})


def _across_lines(found: Judging, across: Across, names: Sequence[str]) -> Iterator[str]:
    for (query, other), (first, second), judge, value in across.rows:
        row = {"query_id": found.lists[query].query_id, "second_query_id": found.lists[other].query_id}
        row |= {"first": first, "second": second, "judge": names[judge]}
        yield json_line(row | {"round": "across queries", "t": value})


def _against_people(recipe: Recipe, chosen: Sequence[Collection], found: Judging) -> dict[str, Any] | None:
    """nDCG@10 of the scores and of the first stage's order, on the judged queries that people judged; None without any.

    On training queries: a sanity check, not a test.
    """
    ours = {
        o.query_id: dict(zip(o.ids, s.scores.tolist(), strict=True))
        for o, s in zip(found.lists, found.scored, strict=True)
    }
    first = {o.query_id: {d: -float(rank) for rank, d in enumerate(o.ids)} for o in found.lists}
    scale = Scale.of(recipe.evaluate)
    values: dict[str, list[float]] = {"scores": [], "first_stage": []}
    for collection in chosen:
        asked = [q for q in collection.queries if q in ours and collection.positives(q, scale.level)]
        for name, run in (("scores", ours), ("first_stage", first)) if asked else ():
            values[name] += measure(run, collection.qrels, asked, [HEADLINE], scale).per_query[HEADLINE].values()
    count = len(values["scores"])
    return {"queries": count, **{name: sum(of) / count for name, of in values.items()}} if count else None


def _describe(report: Mapping[str, Any], asker: Asker, requests: int) -> None:
    for row in report["judges"]:
        unusable = "".join(f", {row[name]:,} {name}" for name in ("malformed", "refused") if row[name])
        console.say(
            f"judge {row['name']}: {counted(row['answers'], 'answer')}{unusable}; it prefers the first of two equal "
            f"documents with a probability of {row['first_wins']:.2f}"
        )
    money = "" if report["money"] is None else f", {report['money']:,.4g} of money"
    console.say(
        f"{counted(report['calls'], 'call')}, {counted(asker.sent, 'call')} of them in this start "
        f"({counted(requests, 'request')}); {counted(report['tokens'], 'token')}{money}"
    )
    if report["ended_by"] is not None:
        left = report["queries_left_out"]
        console.say(f"WARNING: {report['ended_by']}" + (f"; {counted(left, 'query')} without scores" if left else ""))
    if report["prior_note"]:
        console.say(f"WARNING: {report['prior_note']}")
    people = report["against_people"]
    if people is not None:
        console.say(
            f"nDCG@10 on {counted(people['queries'], 'judged training query')}: {people['scores']:.3f}, first stage "
            f"{people['first_stage']:.3f}"
        )


@dataclass(frozen=True, slots=True)
class Bill:
    """What judging costs at most, beforehand. tokens, money: None where texts or prices are not known."""

    calls: int
    tokens: int | None
    money: float | None

    @property
    def words(self) -> str:
        """`at most 200,000 calls, about 180,000,000 tokens, 27 of money`."""
        tokens = "tokens unknown before the data is read" if self.tokens is None else f"about {self.tokens:,} tokens"
        money = "" if self.money is None else f", about {self.money:,.4g} of money"
        return f"at most {counted(self.calls, 'call')}, {tokens}{money}"


def bill(recipe: Recipe, run: RunFolder) -> Bill:
    """The bill of the judge stage, from the lengths of the texts where the run has read its data.

    Tokens are estimated at four letters each; answers that are kept already cost nothing again.
    """
    settings = _settings(recipe)
    if not run.split("train").is_file():
        count = settings.queries + _gate_queries(recipe)
        return Bill(_planned(settings, [settings.depth] * count), None, None)
    room = LETTERS_A_TOKEN * recipe.prompt.max_tokens
    train = read_split(run.data, "train")
    queries = [len(text) for c in train for text in itertools.islice(c.queries.values(), BILLED)]
    documents = [min(len(text), room) for c in train for text in itertools.islice(c.corpus.values(), BILLED)]
    count = min(settings.queries, sum(len(c.queries) for c in train))
    depth = min(settings.depth, max((len(c.corpus) for c in train), default=0))
    dev = sum(len(ids) for _, ids in dev_queries(recipe, read_split(run.data, "dev"), most=_gate_queries(recipe)))
    calls = _planned(settings, [depth] * (count + dev * (dev >= LEAST_QUERIES)))
    letters = len(TEMPLATE) + len(recipe.prompt.instruction) + _mean(queries) + 2 * _mean(documents)
    each = round(letters / LETTERS_A_TOKEN)
    money = None
    if all(judge.price_per_million is not None for judge in settings.judges):
        money = sum(Judge.cost(judge, (each, 1)) for judge in settings.judges) * calls / len(settings.judges)
    tokens, budget = calls * (each + 1), settings.budget
    tokens = tokens if budget.tokens is None else min(tokens, budget.tokens)
    money = money if money is None or budget.money is None else min(money, budget.money)
    return Bill(calls, tokens, money)


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values) if values else 0.0
