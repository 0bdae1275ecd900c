"""The teacher gate: whether a teacher orders dev better than the base does, by queries that people judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rankwright.common.errors import UserError
from rankwright.common.outputs import read_sealed
from rankwright.common.plurals import counted
from rankwright.common.run_folder import RunFolder
from rankwright.common.stats import Difference, mean_interval, paired_difference

# With fewer judged dev queries hardly any teacher could be told from the base.
LEAST_QUERIES = 50
CONFIDENCE = 0.9
# Query id -> value of the measure.
Values = Mapping[str, float]


class TeacherRefused(UserError):
    """The teacher is not shown to order dev better than the base: nothing is trained with it."""


@dataclass(frozen=True, slots=True)
class Row:
    """The mean of one system with its interval, and its difference from the base; None for the base itself."""

    system: str
    value: float
    low: float
    high: float
    difference: Difference | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """rows: of the teacher, of the prior (the lists as the first stage has them) and of the base, in this order.

    override: why training goes on although the teacher is refused, or None. queries: those that people judged.
    """

    teacher: str
    verdict: Literal["accepted", "refused", "not judged"]
    sentence: str
    measure: str
    queries: int
    rows: tuple[Row, ...] = ()
    confidence: float = CONFIDENCE
    override: str | None = None

    @property
    def may_train(self) -> bool:
        return self.verdict != "refused" or self.override is not None

    def as_json(self) -> dict[str, Any]:
        """What teacher_gate.json holds besides its inputs."""
        return dataclasses.asdict(self)


def judge_teacher(
    teacher: str, prior: str, values: tuple[Values, Values, Values], *, measure: str, seed: int
) -> Verdict:
    """Refuse a teacher that is not shown to order dev better than the base.

    prior: what the first stage is called. values: of the teacher, the prior and the base, of the same queries.
    The lower end of the two-sided BCa interval of teacher - base must be above 0: a student learns the teacher's order,
    so one that is no better than the base's own has nothing to teach, and may take from it.
    """
    base = values[-1]
    rows = []
    for system, own in zip((teacher, prior, "base"), values, strict=True):
        low, high = mean_interval([own[q] for q in sorted(own)], confidence=CONFIDENCE, seed=seed)
        d = None if own is base else paired_difference(base, own, confidence=CONFIDENCE, seed=seed)
        rows.append(Row(system, sum(own.values()) / len(own), low, high, d))
    d = rows[0].difference
    assert d is not None
    numbers = (
        f"{measure} {rows[0].value:.3f} against {rows[-1].value:.3f}, difference {d.mean:+.3f} [{d.low:+.3f}, "
        f"{d.high:+.3f}] ({100 * CONFIDENCE:g} % interval, {counted(d.queries, 'query')})"
    )
    if d.low > 0:
        sentence = f"The teacher {teacher} orders dev better than the base: {numbers}"
    elif d.high < 0:
        sentence = f"The teacher {teacher} orders dev worse than the base: {numbers}: training with it would harm"
    else:
        found = f"The teacher {teacher} is not shown to order dev better than the base: {numbers}"
        sentence = f"{found}: training with it may harm"
    return Verdict(teacher, "accepted" if d.low > 0 else "refused", sentence, measure, d.queries, tuple(rows))


def not_judged(teacher: str, queries: int, *, measure: str) -> Verdict:
    """The verdict where dev has too few judged queries, on which nothing is scored."""
    sentence = (
        f"The teacher {teacher} is not compared with the base: dev has {counted(queries, 'query')} with a relevant "
        f"document, and at least {LEAST_QUERIES} are needed"
    )
    return Verdict(teacher, "not judged", sentence, measure, queries)


def recorded_verdict(run: RunFolder, inputs: str | None = None) -> dict[str, Any] | None:
    """teacher_gate.json; None without one, where it was changed, or where it was made from other inputs than these."""
    found = read_sealed(run.teacher_gate)
    return found if found is not None and inputs in (None, found.get("inputs")) else None
