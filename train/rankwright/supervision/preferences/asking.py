"""Calls to judges in a fixed order, by several threads: what is kept and where it ends depends on the order alone."""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from rankwright.common.errors import UserError
from rankwright.common.plurals import counted
from rankwright.recipe.teacher import Budget
from rankwright.rerankers.client import Refused
from rankwright.supervision.preferences.answers import AnswerFile
from rankwright.supervision.preferences.judges import Judge, Reply
from rankwright.supervision.preferences.students import Batch, Student

# Calls, for each thread, that may be answered before the one whose turn it is: what a kill can lose.
AHEAD = 2
# A judge that answers nothing usable to more than this share of its calls is not asked on: from LEAST_CALLS on, and at
# the end of a round. Two standard deviations more are taken for chance.
MOST_UNUSABLE = 0.2
LEAST_CALLS = 20
EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Call:
    """One question. judge: its number. query: the id; order: ids of the documents in the order in which they are shown.

    prompt, key: see Judge.
    """

    judge: int
    query: str
    order: tuple[str, str]
    prompt: str
    key: str


# A reply that is kept, or what gives one: the words of a refusal in its place.
Found = Reply | Callable[[], Reply | str]


@dataclass(slots=True)
class Tally:
    """What came of the calls of one judge, those of an earlier start too.

    calls = answers + malformed + refused. tokens: of prompts and answers; uncounted: answers whose tokens the server
    did not count, which count as the most they can be. money: 0 without prices. examples: of malformed answers and
    refusals. orders: those of a student's answers.
    """

    calls: int = 0
    answers: int = 0
    malformed: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    uncounted: int = 0
    money: float = 0.0
    examples: list[str] = field(default_factory=list)
    orders: list[tuple[float, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Cost:
    calls: int = 0
    tokens: int = 0
    money: float = 0.0


class Asker:
    """Asks judges, and keeps each answer in its turn.

    Whether a call may still be made is decided from what all calls before it cost, and from the most that it can cost
    itself. So budgets are never exceeded, and neither the number of threads nor a kill changes where they end.
    A student is asked about all pairs of a query that follow each other at once.
    over: the key of the budget that has ended, and why; None while there is some left.
    """

    def __init__(self, judges: Sequence[Judge | Student], answers: AnswerFile, budget: Budget, parallel: int) -> None:
        self.judges = judges
        self.answers = answers
        self.tallies = [Tally() for _ in judges]
        self.over: str | None = None
        self.sent = 0
        self._budget = budget
        self._parallel = parallel
        # Judge -> the pairs that a student is asked about next.
        self._batches: dict[int, Batch] = {}

    def ask(self, calls: Iterable[Call]) -> Iterator[tuple[Call, float | None]]:
        """(call, the probability that the document shown first is better, None without an answer), in the order given.

        Ends early where the budget does. Raises UserError where a judge fails, or answers too little that is usable.
        """
        waiting: deque[tuple[Call, Found]] = deque()
        reserved: deque[_Cost] = deque()
        threads = ThreadPoolExecutor(self._parallel, "judge")

        def deliver() -> tuple[Call, float | None]:
            call, found = waiting.popleft()
            reserved.popleft()
            if (batch := self._batches.get(call.judge)) is not None and batch.query == call.query:
                # What follows is another batch, whether this one had to be asked or was kept.
                del self._batches[call.judge]
            return call, self._settle(call, found)

        try:
            for call in calls if self.over is None else ():
                while len(waiting) >= AHEAD * self._parallel and not self._is_gathered(waiting[0][0], call):
                    yield deliver()
                cost = self._most(call)
                if not self._may([*reserved, cost]):
                    # What those under way really cost may leave room.
                    while waiting:
                        yield deliver()
                    self.over = self._why_not(cost)
                    if self.over is not None:
                        break
                waiting.append((call, self._found(call, threads)))
                reserved.append(cost)
            while waiting:
                yield deliver()
            for judge, tally in zip(self.judges, self.tallies, strict=True):
                _refuse_unusable(judge, tally, is_round=True)
        except BaseException:
            for judge in self.judges:
                judge.close()
            raise
        finally:
            threads.shutdown(wait=True, cancel_futures=True)

    def _is_gathered(self, oldest: Call, call: Call) -> bool:
        """Whether the oldest call waits for others about its query, which a student is asked about with it."""
        return isinstance(self.judges[oldest.judge], Student) and oldest.query == call.query

    def _found(self, call: Call, threads: ThreadPoolExecutor) -> Found:
        """The answer that is kept, or what gives it."""
        known, judge = self.answers.find(call.key), self.judges[call.judge]
        if not isinstance(judge, Student):
            return threads.submit(self._send, judge, call.prompt).result if known is None else known
        batch = self._batches.get(call.judge)
        if batch is None or batch.query != call.query:
            batch = self._batches[call.judge] = Batch(judge, call.query)
        place = batch.add(call.prompt)
        return functools.partial(batch.reply, place) if known is None else known

    def _send(self, judge: Judge, prompt: str) -> Reply | str:
        """The reply, or the words of a refusal. Runs in a thread."""
        try:
            return judge.ask(prompt)
        except Refused as error:
            if error.gave_up:
                raise
            return str(error)

    def _settle(self, call: Call, found: Found) -> float | None:
        """Count a call whose turn it is, and keep its answer."""
        judge, tally = self.judges[call.judge], self.tallies[call.judge]
        reply: Reply | str
        if not isinstance(found, Reply):
            try:
                reply = found()
            except UserError as error:
                kept = f"{counted(len(self.answers), 'answer')} kept in {self.answers.path}"
                raise UserError(f"judge {judge.entry.name}: {error}; {kept}: the same command continues") from None
            self.sent += 1
            if isinstance(reply, Reply):
                self.answers.add(call.key, reply, judge=judge.entry.name, query=call.query, order=call.order)
        else:
            reply = found
        tally.calls += 1
        if isinstance(reply, str):
            # Nothing is kept: the server may take the same text after it was started with a larger context.
            tally.refused += 1
            said = reply
        else:
            tokens = reply.tokens or judge.most_tokens(call.prompt)
            tally.uncounted += reply.tokens is None
            tally.prompt_tokens += tokens[0]
            tally.answer_tokens += tokens[1]
            tally.money += judge.price(tokens)
            tally.answers += reply.first_wins is not None
            tally.malformed += reply.first_wins is None
            tally.orders += [] if reply.orders is None else [reply.orders]
            said = reply.said
        if isinstance(reply, str) or reply.first_wins is None:
            if len(tally.examples) < EXAMPLES:
                tally.examples.append(said)
            _refuse_unusable(judge, tally, is_round=False)
            return None
        return reply.first_wins

    def _most(self, call: Call) -> _Cost:
        judge = self.judges[call.judge]
        tokens = judge.most_tokens(call.prompt)
        return _Cost(1, sum(tokens), judge.price(tokens))

    def _may(self, costs: Sequence[_Cost]) -> bool:
        return self._why_not(*costs) is None

    def _why_not(self, *costs: _Cost) -> str | None:
        """The budget that these costs would exceed."""
        spent = {
            "calls": sum(t.calls for t in self.tallies),
            "tokens": sum(t.prompt_tokens + t.answer_tokens for t in self.tallies),
            "money": sum(t.money for t in self.tallies),
        }
        for name, value in spent.items():
            most = getattr(self._budget, name)
            if most is not None and value + sum(getattr(cost, name) for cost in costs) > most:
                return f"teacher.pairs.budget.{name}: {value:,.6g} of {most:,.6g} spent: one more call may exceed it"
        return None


def _refuse_unusable(judge: Judge | Student, tally: Tally, *, is_round: bool) -> None:
    unusable, most = tally.malformed + tally.refused, MOST_UNUSABLE * tally.calls
    if unusable <= most + 2 * math.sqrt(most * (1 - MOST_UNUSABLE)) or not (is_round or tally.calls >= LEAST_CALLS):
        return
    shown = "; ".join(repr(text) for text in tally.examples)
    asked = "A or B" if judge.entry.logprobs else "A, B or tie"
    raise UserError(
        f"judge {judge.entry.name}: {unusable:,} of {counted(tally.calls, 'call')} gave no {asked}, such as {shown}: "
        "take another model, or switch off its thinking (extra: {chat_template_kwargs: {enable_thinking: false}})"
    )
