"""The judge stage: preferences of language models between the candidates of training queries, made into scores."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rankwright.common import console
from rankwright.common.errors import UserError, no_such
from rankwright.common.files import json_line, write_lines_atomic
from rankwright.common.plurals import counted
from rankwright.common.processes import launched
from rankwright.common.run_folder import RunFolder
from rankwright.data.collection import Collection
from rankwright.data.split_files import read_split
from rankwright.evaluation.evaluate import first_stage_run, measure
from rankwright.evaluation.metrics import HEADLINE, Scale
from rankwright.evaluation.teacher_gate import LEAST_QUERIES, Verdict
from rankwright.pipeline.inputs import StageInputs
from rankwright.pipeline.judged_lists import (
    KEY,
    LETTERS_A_TOKEN,
    chosen_queries,
    make_lists,
    prior_scorer,
    retrieved_lists,
)
from rankwright.pipeline.refine import check_student, judged_queries, read_earlier, refine
from rankwright.pipeline.student import refuse_seen
from rankwright.pipeline.teacher import conclude, forget_other_verdict, judged_dev, verdict_on_dev
from rankwright.pipeline.train import dev_queries
from rankwright.recipe.schema import Recipe
from rankwright.recipe.teacher import Pairs
from rankwright.rerankers.pair_scores import teacher_line
from rankwright.rerankers.scorer import Reranked
from rankwright.retrieval.candidates import read_candidates
from rankwright.supervision.preferences.answers import AnswerFile, judged_reply
from rankwright.supervision.preferences.asking import Asker
from rankwright.supervision.preferences.figures import figures
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
from rankwright.supervision.preferences.refinement import most_calls
from rankwright.supervision.preferences.students import PAIRWISE, judge_of
from rankwright.training.loss_terms import reads_teacher
from rankwright.training.losses import OF_TEACHER
from rankwright.training.setup import BaseScorer

# Documents of a set whose lengths are looked at for the bill.
BILLED = 2000


def judge(recipe: Recipe, run: RunFolder, inputs: StageInputs, *, override: str | None, command: str) -> dict[str, Any]:
    """The whole stage: judge/pairs.jsonl, judge/scores.jsonl, judge/report.json and teacher.jsonl; returns its facts.

    First the judges order dev, and are refused where they do it no better than the base. override, command: see
    teacher.check_teacher. With teacher.pairs.refine, an earlier run is judged further, see pipeline/refine.py.
    What was answered is in judge/answers.jsonl, and is never asked again. Raises UserError where a judge fails.
    """
    settings = _settings(recipe)
    if launched() > 1:
        raise UserError(f"{KEY}: judges are asked by one process: give `rankwright judge` alone first")
    judges = [judge_of(entry) for entry in settings.judges]
    refuse_seen(run, settings.judges)
    answers = AnswerFile(run.judge_answers, judged_reply)
    if answers.damaged:
        console.say(f"{answers.path}: {counted(answers.damaged, 'damaged row')}: asked again")
    earlier = None if settings.refine is None else read_earlier(recipe, settings, run, answers)
    chosen = chosen_queries(recipe, settings, run) if earlier is None else earlier.chosen
    asker = Asker(judges, answers, settings.budget, settings.parallel)
    verdict = _judge_dev(recipe, run, inputs, asker)
    conclude(run, verdict, KEY, inputs=str(inputs.judge), override=override, command=command)
    if earlier is None:
        retrieved = retrieved_lists(recipe, settings, run, chosen.collections, inputs.run_files("train"))
        prior = prior_scorer(recipe, settings, inputs)
        lists, twins = make_lists(recipe, settings, chosen.collections, retrieved, prior)
        planned = _planned(settings, [len(one.ids) for one in lists])
    else:
        lists, twins, planned = earlier.lists, earlier.copies, earlier.most_calls(settings)
    console.say(
        f"  {counted(len(lists), 'query')} with {counted(sum(len(one.ids) for one in lists), 'document')}: at most "
        f"{counted(planned, 'call')} of {counted(len(judges), 'judge')}; answered before: {len(answers):,}"
    )
    refinement = None
    with console.progress("judge", planned) as advance:
        advance(0)
        if earlier is None:
            found = judge_lists(lists, settings, asker, recipe.seed, advance)
        else:
            found, refinement = refine(recipe, settings, earlier, asker, advance)
        across = None if settings.across_queries is None else ask_across(found, settings, asker, recipe.seed, advance)
    _write(run, found, across, twins, settings)
    report = {
        **figures(found, across, asker, settings.fit.model),
        "prior": settings.fit.prior,
        "refinement": refinement,
        "left_out": chosen.left_out,
        "against_people": _against_people(recipe, chosen.collections, found),
        "equal_texts": sum(map(len, twins.values())),
    }
    run.write_json(run.judge_report, report)
    _describe(report, asker, sum(judge.requests_sent for judge in judges))
    made = {name: report[name] for name in ("queries", "calls", "prior_weight")}
    return {**made, "verdict": verdict.verdict}


def _gate_queries(recipe: Recipe) -> int:
    """How many dev queries are judged: those of training, but at most a tenth of what is judged to train with."""
    return max(LEAST_QUERIES, min(recipe.train.dev_queries, _settings(recipe).queries // 10))


def _judge_dev(recipe: Recipe, run: RunFolder, inputs: StageInputs, asker: Asker) -> Verdict:
    """Whether the judges order dev better than the base does, by queries that people judged; asks them about these."""
    settings = _settings(recipe)
    name = " and ".join(entry.name for entry in settings.judges)
    forget_other_verdict(run, str(inputs.judge))
    asked, verdict = judged_dev(recipe, run, name, most=_gate_queries(recipe))
    if verdict is not None:
        return verdict
    count = sum(len(ids) for _, ids in asked)
    kept = read_candidates(run.dev_candidates)
    candidates = {q: kept.get(q, [])[: settings.depth] for _, ids in asked for q in ids}
    console.say(f"  dev, before anything else is asked: {counted(count, 'query')} that people judged")
    sets = [c.subset(ids) for c, ids in asked]
    lists, twins = make_lists(recipe, settings, sets, candidates, prior_scorer(recipe, settings, inputs))
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
    baselines = [one.name for one in recipe.evaluate.baselines]
    if (prior := settings.fit.prior_baseline) is not None and prior not in baselines:
        faults.append(f"{KEY}.fit.prior: {no_such('baseline', prior, baselines, 'add it to evaluate.baselines')}")
    for number, entry in enumerate(settings.judges):
        try:
            judge_of(entry)
        except UserError as error:
            faults.append(f"{KEY}.judges.{number}.{error}")
        if entry.kind == PAIRWISE:
            if settings.across_queries is not None:
                faults.append(
                    f"{KEY}.across_queries: judges.{number} compares documents of one query: remove one of them"
                )
        elif settings.budget.money is not None and entry.price_per_million is None:
            faults.append(
                f"{KEY}.judges.{number}.price_per_million: missing, and budget.money is counted by it: write "
                "{input: 0, output: 0} for a model of your own"
            )
    if settings.refine is not None:
        faults += check_student(recipe, settings)
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
        columns = {
            "document_id": one.ids,
            "e": (scored.scores + offset).tolist(),
            "sd": scored.deviations.tolist(),
            "calls": one.calls_of().tolist(),
            "prior": [None] * len(one.ids) if one.prior is None else one.prior.tolist(),
        }
        for values in zip(*columns.values(), strict=True):
            row = {"query_id": one.query_id, **dict(zip(columns, values, strict=True))}
            lines.append(json_line(row))
            scores.setdefault(one.query_id, {})[row["document_id"]] = row["e"]
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
    if (changed := report["refinement"]) is not None:
        console.say(
            f"refined {counted(changed['queries'], 'query')} of {report['queries']:,} in which the student and the "
            f"scores disagreed, with {counted(changed['calls'], 'call')}" + _moved(changed)
        )
    people = report["against_people"]
    if people is not None:
        console.say(
            f"nDCG@10 on {counted(people['queries'], 'judged training query')}: {people['scores']:.3f}, first stage "
            f"{people['first_stage']:.3f}"
        )


def _moved(changed: Mapping[str, Any]) -> str:
    if not changed["queries"]:
        return ""
    (overlap, later), (sd, less) = changed["overlap"], changed["sd"]
    return f": overlap of their tops {overlap:.2f} -> {later:.2f}, deviation of the best {sd:.2f} -> {less:.2f}"


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
        return Bill(_most_new(settings, settings.queries, _gate_queries(recipe), settings.depth), None, None)
    room = LETTERS_A_TOKEN * recipe.prompt.max_tokens
    train = read_split(run.data, "train")
    queries = [len(text) for c in train for text in itertools.islice(c.queries.values(), BILLED)]
    documents = [min(len(text), room) for c in train for text in itertools.islice(c.corpus.values(), BILLED)]
    count = min(settings.queries, sum(len(c.queries) for c in train))
    depth = min(settings.depth, max((len(c.corpus) for c in train), default=0))
    dev = sum(len(ids) for _, ids in dev_queries(recipe, read_split(run.data, "dev"), most=_gate_queries(recipe)))
    calls = _most_new(settings, count, dev * (dev >= LEAST_QUERIES), depth)
    letters = len(TEMPLATE) + len(recipe.prompt.instruction) + _mean(queries) + 2 * _mean(documents)
    each = round(letters / LETTERS_A_TOKEN)
    money = None
    # A student costs nothing.
    served = [judge for judge in settings.judges if judge.kind != PAIRWISE]
    if served and all(judge.price_per_million is not None for judge in served):
        money = sum(Judge.cost(judge, (each, 1)) for judge in served) * calls / len(settings.judges)
    tokens, budget = calls * len(served) // len(settings.judges) * (each + 1), settings.budget
    tokens = tokens if budget.tokens is None else min(tokens, budget.tokens)
    money = money if money is None or budget.money is None else min(money, budget.money)
    return Bill(calls, tokens, money)


def _most_new(settings: Pairs, queries: int, dev: int, depth: int) -> int:
    """Calls for so many training and dev queries; of a refinement those beyond what the student's run asked."""
    if settings.refine is None:
        return _planned(settings, [depth] * (queries + dev))
    judged = judged_queries(settings)
    across = judged * len(settings.judges) * (settings.across_queries or 0)
    return _planned(settings, [depth] * dev) + most_calls(settings, judged) + across


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values) if values else 0.0
