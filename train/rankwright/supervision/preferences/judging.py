"""Judging: a first cycle of pairs for every query, rounds of pairs that tell most, and scores fitted to the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rankwright.common.errors import UserError
from rankwright.common.registry import Registry
from rankwright.recipe.teacher import Pairs
from rankwright.supervision.preferences import design
from rankwright.supervision.preferences.across_queries import across_pairs, fit_offsets
from rankwright.supervision.preferences.asking import Asker, Call
from rankwright.supervision.preferences.design import Pair, generator, next_round
from rankwright.supervision.preferences.fit import Fit, Pooled, Query, fit, fit_pooled, top_overlap
from rankwright.supervision.preferences.likelihood import Answers, Settings

# The documents at the top whose order counts, as for nDCG@10.
TOP = 10
# A call and what came of it: see JudgedList.rows.
Row = tuple[int, int, int, float | None, int]


@dataclass(frozen=True, slots=True)
class Design:
    """Which pairs of a query are compared. cycles: of the first round. round: pairs of each later one, None: half of
    the candidates, 0: there is none. mean_place: see design.next_round."""

    cycles: int
    round: int | None
    mean_place: float = 6.0


DESIGNS: Registry[Callable[..., Design]] = Registry("design")


@DESIGNS.register
def top_heavy(*, cycles: int = 1, round: int | None = None, mean_place: float = 6.0) -> Design:
    """Random cycles, in which each document meets two others; then rounds of pairs near the top of the order so far.

    Raises UserError for numbers out of range.
    """
    _check("cycles", cycles, 1, 100)
    _check("mean_place", mean_place, 0.1, 1000)
    if round is not None:
        _check("round", round, 1, 10_000)
    return Design(cycles, round, mean_place)


@DESIGNS.register
def cycles(*, count: int = 4) -> Design:
    """Random cycles alone: every document is compared equally often, as in zELO (arXiv 2509.12541).

    Raises UserError for a number out of range.
    """
    _check("count", count, 1, 100)
    return Design(count, 0)


def _check(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise UserError(f"{name}: must be from {least:g} to {most:g}, found {value:g}")


def bind_design(settings: Pairs) -> Design:
    """The design of a recipe. Raises UserError for an unknown one, and for wrong options."""
    ((name, options),) = settings.design.items()
    bound: Design = DESIGNS.bind(name, options)()
    return bound


def calls_per_query(settings: Pairs, count: int | None = None) -> int:
    """Calls for a query with `count` candidates, of all judges together; count: by default teacher.pairs.depth.

    Without a budget two for each candidate and judge, or the cycles of a design that has no more.
    """
    plan = bind_design(settings)
    each = plan.cycles if plan.round == 0 else max(2, plan.cycles)
    candidates = settings.depth if count is None else count
    return settings.budget.calls_per_query or each * candidates * len(settings.judges)


@dataclass(slots=True)
class JudgedList:
    """One query with the documents that are compared, N of them, all of different texts.

    text: document id -> what judges are shown. prior: standardised scores that the fit starts from, fp64_N, or None.
    first_calls: of the first round, as many as must come back before the query has scores. asked: the pairs so far, by
    numbers. rows: (number of the document shown first, of the other, judge, probability that the first wins or None
    without an answer, round) of each call.
    """

    query_id: str
    query: str
    instruction: str
    ids: Sequence[str]
    text: Callable[[str], str]
    prior: np.ndarray | None
    asked: set[Pair] = field(default_factory=set)
    first_calls: int = 0
    rows: list[Row] = field(default_factory=list)

    @property
    def is_covered(self) -> bool:
        """Whether the whole first round was answered, or refused."""
        return 0 < self.first_calls <= len(self.rows)

    def answers(self, weights: Sequence[float], *, first_round: bool = False) -> Answers:
        """The observations for the fit, all of them or those of the first round; weights: of the judges."""
        seen = [row for row in self.rows if row[3] is not None and not (first_round and row[4])]
        first, second, judge = (np.array([row[n] for row in seen], np.int64) for n in range(3))
        wins = np.array([row[3] for row in seen], np.float64)
        return Answers(first, second, wins, judge, np.array(weights, np.float64)[judge])

    def calls_of(self) -> np.ndarray:
        """The observations in which each document is shown, int_N."""
        seen = [number for row in self.rows if row[3] is not None for number in row[:2]]
        counts_N: np.ndarray = np.bincount(np.array(seen, np.int64), minlength=len(self.ids))
        return counts_N


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """scores, deviations: fp64_N, those of Fit. overlap: how much of the ten best is expected to be right, 0 to 1."""

    scores: np.ndarray
    deviations: np.ndarray
    overlap: float


@dataclass(frozen=True, slots=True, eq=False)
class Judging:
    """What came of it.

    lists: the queries that have scores, in order; scored: theirs; left_out: how many have none, since the budget ended.
    first: what the queries shared after the first round, with the evidence for each weight of the prior; pooled: at
    the end. rounds: calls of each round.
    """

    lists: Sequence[JudgedList]
    scored: Sequence[Scored]
    left_out: int
    first: Pooled
    pooled: Pooled
    rounds: Sequence[int]


@dataclass(frozen=True, slots=True, eq=False)
class Across:
    """Answers across queries. rows: (numbers of the two queries as shown, their documents, judge, probability that the
    first wins or None). offsets: fp64_Q, to add to all scores of a query; biases: fp64_J, of this question."""

    rows: Sequence[tuple[Pair, tuple[str, str], int, float | None]]
    offsets: np.ndarray
    biases: np.ndarray


def judge_lists(
    lists: Sequence[JudgedList], settings: Pairs, asker: Asker, seed: int, advance: Callable[[int], object]
) -> Judging:
    """Ask the judges, round by round, and fit. lists: in the order of their ids, which is that of the calls.

    A pair is shown to every judge, to every other one in turned order. Biases of the judges and the weight of the
    prior are those with the highest evidence over all queries after the first round; the biases are fitted again to all
    answers at the end. Raises UserError where the budget ends before any query has had its first round.
    """
    plan, judges = bind_design(settings), len(settings.judges)
    most = {one.query_id: calls_per_query(settings, len(one.ids)) // judges for one in lists}
    first_rounds = []
    for one in lists:
        drawn = design.cycles(len(one.ids), plan.cycles, generator(seed, one.query_id, 0))
        pairs = [pair for cycle in drawn for pair in cycle][: most[one.query_id]]
        one.first_calls = len(pairs) * judges
        first_rounds.append(pairs)
    rounds = [_round(lists, first_rounds, asker, 0, advance)]
    covered = [one for one in lists if one.is_covered]
    if not covered:
        raise UserError(f"{asker.over}: no query has had its first round: raise it")
    first = pooled_first(covered, settings)
    if plan.round != 0:
        rounds += further_rounds(covered, first, most, settings, asker, advance, seed=seed, number=1)
    return concluded(covered, len(lists) - len(covered), first, settings, rounds, seed=seed)


def pooled_first(covered: Sequence[JudgedList], settings: Pairs) -> Pooled:
    """What queries that have had their first round share, by the answers of that round alone."""
    weights = [judge.weight for judge in settings.judges]
    queries = [Query(one.answers(weights, first_round=True), len(one.ids), one.prior) for one in covered]
    return fit_pooled(queries, _fit_settings(settings), len(weights))


def further_rounds(
    covered: Sequence[JudgedList],
    first: Pooled,
    most: Mapping[str, int],
    settings: Pairs,
    asker: Asker,
    advance: Callable[[int], object],
    *,
    seed: int,
    number: int,
) -> list[int]:
    """Ask rounds of pairs near the top of each order so far, until budgets or pairs end; returns the calls of each.

    most: query id -> pairs in all, with those asked already. number: of the next round.
    """
    plan, rounds = bind_design(settings), list[int]()
    while asker.over is None:
        pairs_of: list[list[Pair]] = []
        for one in covered:
            calls = min(plan.round or max(len(one.ids) // 2, 1), most[one.query_id] - len(one.asked))
            rng = generator(seed, one.query_id, number + len(rounds))
            so_far = _fitted(one, first.prior_weight, first.biases, settings) if calls > 0 else None
            pairs_of.append([] if so_far is None else next_round(so_far, one.asked, calls, rng, plan.mean_place))
        if not any(pairs_of):
            break
        rounds.append(_round(covered, pairs_of, asker, number + len(rounds), advance))
    return rounds


def concluded(
    covered: Sequence[JudgedList], left_out: int, first: Pooled, settings: Pairs, rounds: Sequence[int], *, seed: int
) -> Judging:
    """Fit the scores to all answers, with the biases that these show. left_out, first, rounds: see Judging."""
    own, weights = _fit_settings(settings), [judge.weight for judge in settings.judges]
    chosen = Settings(model=own.model, ridge=own.ridge, prior_weights=(first.prior_weight,))
    queries = [Query(one.answers(weights), len(one.ids), one.prior) for one in covered]
    pooled = fit_pooled(queries, chosen, len(weights))
    scored = []
    for one in covered:
        found = _fitted(one, first.prior_weight, pooled.biases, settings)
        overlap = top_overlap(found, TOP, generator(seed, one.query_id, len(rounds)))
        scored.append(Scored(found.scores, found.deviations, overlap))
    return Judging(covered, scored, left_out, first, pooled, rounds)


def _fitted(one: JudgedList, prior_weight: float, biases_J: np.ndarray, settings: Pairs) -> Fit:
    mean_N = None if one.prior is None else prior_weight * one.prior
    weights = [judge.weight for judge in settings.judges]
    return fit(one.answers(weights), len(one.ids), mean_N, _fit_settings(settings), biases_J)


def _round(
    lists: Sequence[JudgedList],
    pairs_of: Iterable[Sequence[Pair]],
    asker: Asker,
    number: int,
    advance: Callable[[int], object],
) -> int:
    """Ask one round, and add what comes back to the lists; returns how many calls were made."""
    by_id = {one.query_id: one for one in lists}
    places = {one.query_id: {d: n for n, d in enumerate(one.ids)} for one in lists}

    def calls() -> Iterator[Call]:
        for one, pairs in zip(lists, pairs_of, strict=True):
            for first, second in pairs:
                one.asked.add((first, second))
                for judge in range(len(asker.judges)):
                    shown = (second, first) if judge % 2 else (first, second)
                    yield call_of(asker, judge, one, shown)

    made = 0
    for call, value in asker.ask(calls()):
        of = places[call.query]
        by_id[call.query].rows.append((of[call.order[0]], of[call.order[1]], call.judge, value, number))
        made += 1
        advance(1)
    return made


def ask_across(found: Judging, settings: Pairs, asker: Asker, seed: int, advance: Callable[[int], object]) -> Across:
    """Ask which document answers its own query better, and fit what puts all queries on one scale.

    A query of which the budget has left no answer has the offset 0.
    """
    lists, weights = found.lists, [judge.weight for judge in settings.judges]
    best = [np.argsort(-one.scores, kind="stable").tolist() for one in found.scored]
    pairs = across_pairs([len(one.ids) for one in lists], settings.across_queries or 0, generator(seed, "", 0))
    shown: list[tuple[tuple[int, int], tuple[int, int], int]] = []
    for pair in pairs:
        places = (pair.first_query, pair.first_place), (pair.second_query, pair.second_place)
        ours, theirs = ((query, int(best[query][place])) for query, place in places)
        for judge in range(len(settings.judges)):
            shown.append((theirs, ours, judge) if judge % 2 else (ours, theirs, judge))

    def calls() -> Iterator[Call]:
        for (query, document), (other, its_document), judge in shown:
            a, b, asked = lists[query], lists[other], asker.judges[judge]
            order = a.ids[document], b.ids[its_document]
            prompt = asked.prompt(a.query, a.text(order[0]), b.text(order[1]), a.instruction, b.query)
            yield Call(judge, f"{a.query_id} {b.query_id}", order, prompt, asked.key(prompt))

    rows: list[tuple[Pair, tuple[str, str], int, float | None]] = []
    answers: list[tuple[int, int, float, int, float, float]] = []
    for number, (call, value) in enumerate(asker.ask(calls())):
        (query, document), (other, its_document), judge = shown[number]
        rows.append(((query, other), call.order, judge, value))
        lead = found.scored[query].scores[document] - found.scored[other].scores[its_document]
        if value is not None:
            answers.append((query, other, value, judge, weights[judge], float(lead)))
        advance(1)
    columns = [np.array(column) for column in zip(*answers, strict=True)] or [np.zeros(0)] * 6
    fitted = fit_offsets(Answers(*columns), len(lists), _fit_settings(settings))
    return Across(rows, fitted.offsets, fitted.biases)


def _fit_settings(settings: Pairs) -> Settings:
    return Settings(model=settings.fit.model, ridge=settings.fit.ridge)


def call_of(asker: Asker, judge: int, one: JudgedList, shown: Pair) -> Call:
    """The call that shows a judge two documents of a query, in this order."""
    order = one.ids[shown[0]], one.ids[shown[1]]
    asked = asker.judges[judge]
    prompt = asked.prompt(one.query, one.text(order[0]), one.text(order[1]), one.instruction)
    return Call(judge, one.query_id, order, prompt, asked.key(prompt))
