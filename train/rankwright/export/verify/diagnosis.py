"""Finds the fault that explains a server's scores: its expected scores are the observed ones, on all rows."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rankwright.export.proof.comparing import spearman
from rankwright.export.proof.runtimes.base import Exported, Limits, Row
from rankwright.export.verify.asking import Observed
from rankwright.export.verify.faults import RIGHT, VIEWS, Hypothesis, View, hypotheses, of_cut_rows
from rankwright.export.verify.local_model import Known

# Rows on which a hypothesis must hold before all rows are scored under it.
PROBES = 10
# A hypothesis this near on average, in probabilities, with a rank correlation this high, is the cause in fewer bits.
NEAR_PROBABILITY, NEAR_SPEARMAN = 0.05, 0.95
SWAPPED = "yes and no are swapped: every logit is negated"
SWAPPED_FIX = "the score is logit(yes) - logit(no), label order [no, yes]: serve this export's score head"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """key: the fault's name in JSON; cause and fix in words. exact: explains all rows within the limits."""

    key: str
    cause: str
    fix: str
    exact: bool = True


@dataclass(frozen=True, slots=True)
class _Fault:
    """A hypothesis (None: the right prompt and weights), a sign of the logits, and what is done to them afterwards."""

    hypothesis: Hypothesis | None
    sign: int
    view: View

    @property
    def count(self) -> int:
        return (self.hypothesis is not None) + (self.sign < 0) + (self.view is not RIGHT)

    def diagnosis(self, *, exact: bool = True, more: str = "") -> Diagnosis:
        one, view = self.hypothesis, self.view
        parts = [] if one is None else [(one.key, one.cause, one.fix)]
        parts += [("swapped yes and no", SWAPPED, SWAPPED_FIX)] if self.sign < 0 else []
        parts += [(f"wrong activation: {view.key}", view.cause, view.fix)] if view is not RIGHT else []
        keys, causes, fixes = zip(*parts, strict=True)
        words = "; and ".join(causes) + more
        return Diagnosis(" + ".join(keys), words, "; ".join(dict.fromkeys(fixes)), exact)


def excess(row: Row, observed: Observed, found: float, limits: Limits, expected: float | None = None) -> float:
    """|found - expected| on the observed scale, in units of its limit; expected None: the golden value."""
    if expected is None:
        expected = row[observed.scale]
    if observed.scale == "probability":
        assert limits.probability is not None
        return abs(found - expected) / limits.probability
    allowed = (limits.logit or 0.0) + limits.relative * abs(expected)
    return abs(found - expected) / allowed if limits.logit is not None else 0.0


class Explaining:
    """Compares hypotheses with the scores observed on the deciding rows, each pair alone."""

    def __init__(
        self,
        exported: Exported,
        observed: Sequence[Observed],
        decides: Sequence[int],
        limits: Limits,
        say: Callable[[str], None],
    ) -> None:
        self.exported, self.rows, self.observed = exported, exported.rows, observed
        self.decides, self.limits, self.say = list(decides), limits, say
        self.cut = [p for p in decides if len(self.rows[p]["token_ids"]) == exported.contract.max_tokens]
        self.uncut = [p for p in decides if p not in set(self.cut)]
        self.known: Known | None = None

    def diagnose(self) -> Diagnosis:
        """The fault with the fewest parts that explains every row, or else the nearest one."""
        right = [_Fault(None, sign, view) for sign, view in itertools.product((1, -1), VIEWS)]
        golden = {p: self.rows[p]["logit"] for p in self.decides}
        # What needs no model is tried first, unless it takes two faults.
        simple = self._explain([(f, golden) for f in right if f.count == 1])
        if simple is not None:
            return simple
        self.say("scores differ: known faults are scored with the folder's own model, minutes for a large one")
        self.known = Known.load(self.exported)
        right_here = _Fault(None, 1, RIGHT)
        failing = {p for p in self.decides if not self._holds(p, golden, right_here)}
        if self.known is not None and failing <= set(self.cut):
            return self._truncation(self.known)
        candidates = [(f, golden) for f in right]
        for hypothesis, logits in self._probed():
            candidates += [(_Fault(hypothesis, s, v), logits) for s, v in itertools.product((1, -1), VIEWS)]
        candidates.sort(key=lambda candidate: candidate[0].count)
        found = self._explain([c for c in candidates if c[0].count])
        return found or self._nearest(candidates)

    def _holds(self, place: int, logits: dict[int, float], fault: _Fault) -> bool:
        for one in self.observed:
            found = one.alone[place]
            [expected] = fault.view.expected(one.scale, [fault.sign * logits[place]])
            if found is None or not excess(self.rows[place], one, found, self.limits, expected) < 1:
                return False
        return True

    def _explain(self, candidates: Sequence[tuple[_Fault, dict[int, float]]]) -> Diagnosis | None:
        """The first that holds on all rows, else the first on all that are not cut; probed ones are completed first."""
        partly: Diagnosis | None = None
        for fault, logits in candidates:
            if not all(self._holds(p, logits, fault) for p in logits if p not in set(self.cut)):
                continue
            whole = self._completed(fault, logits)
            if not all(self._holds(p, whole, fault) for p in self.uncut if p in whole):
                continue
            if all(p in whole and self._holds(p, whole, fault) for p in self.cut):
                return fault.diagnosis()
            partly = partly or fault.diagnosis(more="; and documents that are too long are cut differently")
        return partly

    def _completed(self, fault: _Fault, logits: dict[int, float]) -> dict[int, float]:
        missing = [p for p in self.decides if p not in logits]
        if not missing or fault.hypothesis is None or self.known is None:
            return logits
        more = fault.hypothesis.logits(self.known, missing)
        return logits if more is None else {**logits, **dict(zip(missing, more, strict=True))}

    def _probed(self) -> Iterator[tuple[Hypothesis, dict[int, float]]]:
        if self.known is None:
            return
        probes = self.probes()
        for hypothesis in hypotheses(self.known):
            logits = hypothesis.logits(self.known, probes)
            if logits is not None:
                yield hypothesis, dict(zip(probes, logits, strict=True))

    def probes(self) -> list[int]:
        """One row of every kind, and others up to PROBES; no cut ones."""
        firsts = list({self.rows[p]["kind"]: p for p in reversed(self.uncut)}.values())
        return sorted(dict.fromkeys([*firsts, *self.uncut][: max(PROBES, len(firsts))]))

    def _truncation(self, known: Known) -> Diagnosis:
        """Only rows that are cut differ."""
        for hypothesis in of_cut_rows(known):
            logits = hypothesis.logits(known, self.cut)
            found = dict(zip(self.cut, logits or (), strict=False))
            fault = _Fault(hypothesis, 1, RIGHT)
            if found and all(self._holds(p, found, fault) for p in self.cut):
                return fault.diagnosis()
        cause = "truncation: only pairs with a document that is cut differ"
        return Diagnosis("truncation", cause, hypothesis.fix, False)

    def _nearest(self, candidates: Sequence[tuple[_Fault, dict[int, float]]]) -> Diagnosis:
        probability = next((o for o in self.observed if o.scale == "probability"), self.observed[0])
        probes = self.probes()

        def distance(candidate: tuple[_Fault, dict[int, float]]) -> float:
            fault, logits = candidate
            expected = fault.view.expected(probability.scale, [fault.sign * logits[p] for p in probes])
            return statistics.fmean(abs(self._seen(probability, p) - e) for p, e in zip(probes, expected, strict=True))

        fault, logits = min(candidates, key=lambda c: (round(distance(c), 2), c[0].count))
        alike = spearman([fault.sign * logits[p] for p in probes], [self._seen(probability, p) for p in probes])
        if distance((fault, logits)) < NEAR_PROBABILITY and alike >= NEAR_SPEARMAN:
            return self._fewer_bits(fault, alike)
        overall = spearman(
            [self.rows[p]["logit"] for p in self.decides], [self._seen(probability, p) for p in self.decides]
        )
        said = f"rank correlation with the golden scores {overall:+.2f}"
        if self.known is None:
            nothing = "this folder has no weights that can be scored here to tell"
            fix = f"compare with the hf export of the same run: {nothing}"
            return Diagnosis("unknown", f"wrong model, or wrong prompt ({said})", fix, False)
        fix = "serve this very folder, and name it with --model where the server has several"
        return Diagnosis("wrong model", f"wrong model: no known fault explains its scores ({said})", fix, False)

    def _fewer_bits(self, fault: _Fault, alike: float) -> Diagnosis:
        near = f"scores are near, not equal (rank correlation {alike:.3f}): the server computes in fewer bits"
        if fault.count:
            return fault.diagnosis(exact=False, more=f"; {near} besides")
        needed = self.tolerance_needed()
        fix = (
            f"serve in float32 (vLLM: --dtype float32; llama.cpp: an f32 file), or accept it: --tolerance {needed:.2g}"
        )
        return Diagnosis("fewer bits", near, fix, False)

    def tolerance_needed(self) -> float:
        """The least --tolerance that the deciding rows would pass, alone and in lists."""
        worst = 0.0
        for one in self.observed:
            scale = 1.0 if one.scale == "logit" else 10.0
            for values in (one.alone, *one.lists.values()):
                found = [(values[p], self.rows[p][one.scale]) for p in self.decides]
                worst = max([worst, *(scale * abs(value - golden) for value, golden in found if value is not None)])
        return 1.05 * worst

    def _seen(self, observed: Observed, place: int) -> float:
        found = observed.alone[place]
        return float("nan") if found is None else found
