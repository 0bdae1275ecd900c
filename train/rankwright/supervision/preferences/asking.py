"""Calls to models in a fixed order, by several threads: what is kept and where it ends depends on the order alone."""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from rankwright.common.errors import UserError
from rankwright.common.plurals import counted
from rankwright.rerankers.client import Refused
from rankwright.supervision.preferences.answers import AnswerFile, judged_row
from rankwright.supervision.preferences.judges import Judge, Reply
from rankwright.supervision.preferences.students import Batch, Student

# Calls, for each thread, that may be answered before the one whose turn it is: what a kill can lose.
AHEAD = 2
# A judge that answers nothing usable to more than this share of its calls is not asked on: from LEAST_CALLS on, and at
# the end of a round. Two standard deviations more are taken for chance.
MOST_UNUSABLE = 0.2
LEAST_CALLS = 20
EXAMPLES = 3


class Budget(Protocol):
    """What calls may cost, None for any number."""

    @property
    def calls(self) -> int | None: ...
    @property
    def tokens(self) -> int | None: ...
    @property
    def money(self) -> float | None: ...


class Answer(Protocol):
    """What a model answered. value: what is made of it, None of a malformed answer; said: its words then.

    tokens: of prompt and answer, None where they are not known.
    """

    @property
    def value(self) -> Any: ...
    @property
    def tokens(self) -> tuple[int, int] | None: ...
    @property
    def said(self) -> str: ...


A = TypeVar("A", bound=Answer)
# Gives an answer, or the words of a refusal in its place.
Later = Callable[[], A | str]
A_co = TypeVar("A_co", bound=Answer, covariant=True)


class Asked(Protocol[A_co]):
    """A model that is asked. Threads may call `ask` at the same time, which raises as Judge.ask does."""

    @property
    def name(self) -> str: ...
    def ask(self, prompt: str) -> A_co: ...
    def most_tokens(self, prompt: str) -> tuple[int, int]: ...
    def price(self, tokens: tuple[int, int]) -> float: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Call:
    """One question. judge: the number of the model that is asked. prompt, key: see Judge.

    query: the id; order: ids of the documents in the order in which they are shown. A writer's: the passage, "", "".
    """

    judge: int
    query: str
    order: tuple[str, str]
    prompt: str
    key: str


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


@dataclass(frozen=True, slots=True)
class Words(Generic[A]):
    """How messages and files name what is asked. who: `judge`; budget: its key; row: what the file keeps of an answer;

    wanted: what a usable answer is; mend: what to do about a model that gives none.
    """

    who: str
    budget: str
    row: Callable[[str, Call, A], Mapping[str, Any]]
    wanted: Callable[[Any], str]
    mend: str = (
        "take another model, or switch off its thinking (extra: {chat_template_kwargs: {enable_thinking: false}})"
    )


def _letters(judge: Judge) -> str:
    return "A or B" if judge.entry.logprobs else "A, B or tie"


def _judged(name: str, call: Call, reply: Reply) -> dict[str, Any]:
    return judged_row(name, call.query, call.order, reply)


OF_JUDGES: Words[Reply] = Words("judge", "teacher.pairs.budget", _judged, _letters)


class AskerOf(Generic[A]):
    """Asks models, and keeps each answer in its turn.

    Whether a call may still be made is decided from what all calls before it cost, and from the most that it can cost
    itself. So budgets are never exceeded, and neither the number of threads nor a kill changes where they end.
    over: the key of the budget that has ended, and why; None while there is some left.
    """

    def __init__(
        self,
        judges: Sequence[Asked[A]],
        answers: AnswerFile[A],
        budget: Budget,
        parallel: int,
        words: Words[A],
    ) -> None:
        self.judges = judges
        self.answers = answers
        self.tallies = [Tally() for _ in judges]
        self.over: str | None = None
        self.sent = 0
        self._budget = budget
        self._parallel = parallel
        self._words = words

    def ask(self, calls: Iterable[Call]) -> Iterator[tuple[Call, Any]]:
        """(call, the value of its answer, None without one), in the order given.


        Ends early where the budget does. Raises UserError where a judge fails, or answers too little that is usable.
        """
        waiting: deque[tuple[Call, A | None, Later[A] | None]] = deque()
        reserved: deque[_Cost] = deque()
        threads = ThreadPoolExecutor(self._parallel, self._words.who)

        def deliver() -> tuple[Call, Any]:
            call, known, later = waiting.popleft()
            reserved.popleft()
            self._delivered(call)
            return call, self._settle(call, known, later)

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
                waiting.append((call, *self._found(call, threads)))
                reserved.append(cost)
            while waiting:
                yield deliver()
            for judge, tally in zip(self.judges, self.tallies, strict=True):
                self._refuse_unusable(judge, tally, is_round=True)
        except BaseException:
            for judge in self.judges:
                judge.close()
            raise
        finally:
            threads.shutdown(wait=True, cancel_futures=True)

    def _is_gathered(self, oldest: Call, call: Call) -> bool:
        """Whether the oldest call waits for this one, with which it is asked."""
        return False

    def _found(self, call: Call, threads: ThreadPoolExecutor) -> tuple[A | None, Later[A] | None]:
        """(the answer that is kept, what gives it where none is)."""
        known = self.answers.find(call.key)
        return known, threads.submit(self._send, call).result if known is None else None

    def _delivered(self, call: Call) -> None:
        """Called when it is the turn of a call."""

    def _count(self, tally: Tally, reply: A) -> None:
        """Count what only some answers have."""

    def _send(self, call: Call) -> A | str:
        """The reply, or the words of a refusal. Runs in a thread."""
        try:
            return self.judges[call.judge].ask(call.prompt)
        except Refused as error:
            if error.gave_up:
                raise
            return str(error)

    def _settle(self, call: Call, known: A | None, later: Later[A] | None) -> Any:
        """Count a call whose turn it is, and keep its answer."""
        judge, tally = self.judges[call.judge], self.tallies[call.judge]
        reply: A | str
        if known is None:
            assert later is not None
            try:
                reply = later()
            except UserError as error:
                kept = f"{counted(len(self.answers), 'answer')} kept in {self.answers.path}"
                raise UserError(
                    f"{self._words.who} {judge.name}: {error}; {kept}: the same command continues"
                ) from None
            self.sent += 1
            if not isinstance(reply, str):
                self.answers.add(call.key, reply, self._words.row(judge.name, call, reply))
        else:
            reply = known
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
            tally.answers += reply.value is not None
            tally.malformed += reply.value is None
            self._count(tally, reply)
            said = reply.said
        if isinstance(reply, str) or reply.value is None:
            if len(tally.examples) < EXAMPLES:
                tally.examples.append(said)
            self._refuse_unusable(judge, tally, is_round=False)
            return None
        return reply.value

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
                return f"{self._words.budget}.{name}: {value:,.6g} of {most:,.6g} spent: one more call may exceed it"
        return None

    def _refuse_unusable(self, judge: Asked[A], tally: Tally, *, is_round: bool) -> None:
        unusable, most = tally.malformed + tally.refused, MOST_UNUSABLE * tally.calls
        enough = is_round or tally.calls >= LEAST_CALLS
        if unusable <= most + 2 * math.sqrt(most * (1 - MOST_UNUSABLE)) or not enough:
            return
        shown = "; ".join(repr(text) for text in tally.examples)
        raise UserError(
            f"{self._words.who} {judge.name}: {unusable:,} of {counted(tally.calls, 'call')} gave no "
            f"{self._words.wanted(judge)}, such as {shown}: {self._words.mend}"
        )


class Asker(AskerOf[Reply]):
    """Asks judges: a call's value is the probability that the document shown first is better.

    A student is asked about all pairs of a query that follow each other at once.
    """

    judges: Sequence[Judge | Student]

    def __init__(
        self, judges: Sequence[Judge | Student], answers: AnswerFile[Reply], budget: Budget, parallel: int
    ) -> None:
        super().__init__(judges, answers, budget, parallel, OF_JUDGES)
        # Judge -> the pairs that a student is asked about next.
        self._batches: dict[int, Batch] = {}

    def _is_gathered(self, oldest: Call, call: Call) -> bool:
        return isinstance(self.judges[oldest.judge], Student) and oldest.query == call.query

    def _found(self, call: Call, threads: ThreadPoolExecutor) -> tuple[Reply | None, Later[Reply] | None]:
        judge = self.judges[call.judge]
        if not isinstance(judge, Student):
            return super()._found(call, threads)
        known, batch = self.answers.find(call.key), self._batches.get(call.judge)
        if batch is None or batch.query != call.query:
            batch = self._batches[call.judge] = Batch(judge, call.query)
        place = batch.add(call.prompt)
        return known, functools.partial(batch.reply, place) if known is None else None

    def _delivered(self, call: Call) -> None:
        if (batch := self._batches.get(call.judge)) is not None and batch.query == call.query:
            # What follows is another batch, whether this one had to be asked or was kept.
            del self._batches[call.judge]

    def _count(self, tally: Tally, reply: Reply) -> None:
        tally.orders += [] if reply.orders is None else [reply.orders]
