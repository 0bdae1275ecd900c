"""A judge of our own: a pairwise student on this machine, asked about all pairs of a query at once."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence

from rankwright.common.hashing import content_hash
from rankwright.recipe import teacher as settings
from rankwright.rerankers.comparer import Comparer, student_folder, student_hash
from rankwright.supervision.preferences.judges import Judge, Reply

# What recipes call this kind of judge.
PAIRWISE = "pairwise"
# Its answers cost no money, and their tokens are not counted.
FREE = (0, 0)


class Student:
    """One entry of teacher.pairs.judges of the kind `pairwise`; to the asker as judges.Judge, but for `ask_all`."""

    # It is not asked by requests.
    requests_sent = 0

    def __init__(self, entry: settings.Judge) -> None:
        """Loads nothing yet. Raises UserError where no student is at `model`."""
        self.entry = entry
        self._comparer = Comparer(student_folder(entry.model))

    @functools.cached_property
    def _content(self) -> str:
        return student_hash(self._comparer.folder)

    @property
    def name(self) -> str:
        """As Judge.name."""
        return self.entry.name

    def key(self, prompt: str) -> str:
        """16 hexadecimal digits that stand for one question to these weights, wherever they lie."""
        return content_hash(PAIRWISE, self._content, prompt)

    def prompt(self, query: str, first: str, second: str, instruction: str, other: str | None = None) -> str:
        """What `ask_all` takes. The student has an instruction of its own, which it was trained under."""
        assert other is None, "check_pairs refuses comparisons across queries"
        return json.dumps([query, first, second])

    def most_tokens(self, prompt: str) -> tuple[int, int]:
        """As Judge.most_tokens: nothing that a budget counts."""
        return FREE

    def price(self, tokens: tuple[int, int]) -> float:
        """As Judge.price: no money."""
        return 0.0

    def close(self) -> None:
        """As Judge.close: there is nothing to end."""

    def ask(self, prompt: str) -> Reply:
        """The answer to one prompt."""
        return self.ask_all([prompt])[0]

    def ask_all(self, prompts: Sequence[str]) -> list[Reply]:
        """The answers to prompts about one query; they depend on no other batch."""
        asked = [json.loads(prompt) for prompt in prompts]
        found = self._comparer.compare(asked[0][0], [(first, second) for _, first, second in asked])
        return [Reply(one.first_wins, FREE, orders=(one.shown_first, one.shown_second)) for one in found]


class Batch:
    """The pairs of one query that a student is asked about together, when the first of the answers is wanted.

    Pairs whose answers are kept already are asked again with the others: an answer then has the same neighbours, and
    so the same digits, as if nothing had been kept.
    """

    def __init__(self, student: Student, query: str) -> None:
        self.query = query
        self._student = student
        self._prompts: list[str] = []
        self._replies: list[Reply] | None = None

    def add(self, prompt: str) -> int:
        """The place of the answer; not after a reply."""
        self._prompts.append(prompt)
        return len(self._prompts) - 1

    def reply(self, place: int) -> Reply:
        """The answer at a place."""
        if self._replies is None:
            self._replies = self._student.ask_all(self._prompts)
        return self._replies[place]


def judge_of(entry: settings.Judge) -> Judge | Student:
    """The judge of an entry, of either kind. Raises UserError as they do."""
    return Student(entry) if entry.kind == PAIRWISE else Judge(entry)
