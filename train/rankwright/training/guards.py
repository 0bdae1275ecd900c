"""What stops a training run or warns: a signal, values that are not finite, collapsing scores, a wrong fast path."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from rankwright.common.errors import UserError
from rankwright.common.files import write_text_atomic
from rankwright.common.plurals import counted
from rankwright.model.attention import PLAIN
from rankwright.model.layout import split_group
from rankwright.model.prompt import EncodedGroup
from rankwright.model.rank_model import RankModel
from rankwright.training.gradients import StepSums
from rankwright.training.sampling import TrainGroup

NOT_FINITE_FILE = "not_finite.json"
# The first group is compared on at most this many tokens: the forward of transformers pads, and may be slow.
COMPARED_TOKENS = 2048
# Scores of a correct fast path may differ by this many units in the last place of |row| * |state|. SmolLM2-135M in
# bf16 differs by up to 0.25, and by 4 if positions are not rotated.
ROUNDED_SHARE = 0.5
# Standard deviations of a group's scores (logits) that are odd beyond these limits, and for how many steps.
LEAST_SPREAD, MOST_SPREAD, WATCHED_STEPS = 0.01, 50.0, 20


class StopSignal:
    """`requested` becomes true on SIGTERM (schedulers send it before they kill) and on the first Ctrl-C."""

    requested = False
    interrupted = False

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The signal handler. A second Ctrl-C stops at once."""
        if number == signal.SIGINT:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True
            self._say("stopping after this step; press Ctrl-C again to stop at once")
        self.requested = True


@contextlib.contextmanager
def stop_on_signals(say: Callable[[str], None]) -> Iterator[StopSignal]:
    """Listen for SIGTERM and Ctrl-C inside the block. Only a main thread can; in other threads nothing is requested."""
    stop = StopSignal(say)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_first_group(model: RankModel, group: EncodedGroup, accelerator: Any) -> None:
    """Compare packed and plain forward on the first group. Raises UserError when they disagree.

    They do if a new version of transformers, or a base, has a detail that the packed forward lacks.
    accelerator: the one of the training. Its autocast decides the route and the type of products, and with it how far
    apart two right results may be.
    """
    with accelerator.autocast():
        _compare_first_group(model, group)


def _compare_first_group(model: RankModel, group: EncodedGroup) -> None:
    route, _ = model.route()
    if route == PLAIN:
        return
    part = next(split_group(group, COMPARED_TOKENS))
    was_training, wanted = model.training, model.attention
    model.eval()
    try:
        with torch.no_grad():
            packed_NH = model.states([part]).float() * model.score_weight_H
            model.attention = PLAIN
            states_NH = model.states([part]).float()
    finally:
        model.attention = wanted
        model.train(was_training)
    # Sums, not products, which autocast would round.
    packed, plain = packed_NH.sum(dim=-1), (states_NH * model.score_weight_H).sum(dim=-1)
    parts = float(states_NH.norm(dim=-1).mean() * model.score_weight_H.norm())
    tolerance = model.rounding(plain, ROUNDED_SHARE * parts)
    worst = float((packed - plain).abs().max())
    if not worst <= tolerance:
        raise UserError(
            f"train: attention {route} scores up to {worst:.3g} away from the plain forward on the first group "
            f"(tolerance {tolerance:.3g}): set model.attention: {PLAIN}, and please report the base"
        )


def refuse_not_finite(
    sums: StepSums, norm: float, groups: Sequence[TrainGroup], step: int, path: Path, write: bool
) -> None:
    """Stop on all ranks when a loss or the gradient is not a finite number; its queries, if any, go to `path`."""
    if not sums.not_finite and math.isfinite(norm):
        return
    query_ids = list(sums.not_finite) or sorted(g.query_id for g in groups)
    what = f"the loss of {counted(len(query_ids), 'group')}" if sums.not_finite else "the gradient"
    if not query_ids:
        # Text alone is trained on.
        raise UserError(
            f"pretrain: step {step}: {what} is not a finite number: lower pretrain.learning_rate; earlier checkpoints "
            "are kept"
        )
    if write:
        write_text_atomic(path, json.dumps({"step": step, "what": what, "query_ids": query_ids}, indent=2) + "\n")
    raise UserError(
        f"train: step {step}: {what} is not a finite number (queries {', '.join(query_ids[:5])}"
        f"{', ...' if len(query_ids) > 5 else ''}; all in {path.name}): lower train.learning_rate, or look at these "
        "rows; earlier checkpoints are kept"
    )


class SpreadWatch:
    """Warns once when the scores within a group have been too close together, or too far apart, for some steps."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._steps, self._said = say, 0, False

    def look(self, spread: float, step: int) -> None:
        """spread: mean over the step's groups of the standard deviation of their scores."""
        odd = not LEAST_SPREAD <= spread <= MOST_SPREAD
        self._steps = self._steps + 1 if odd else 0
        if self._steps < WATCHED_STEPS or self._said:
            return
        self._said = True
        what = "scores of a group are almost equal" if spread < LEAST_SPREAD else "scores run away from each other"
        self._say(
            f"WARNING: step {step}: {what} (standard deviation {spread:.3g} for {WATCHED_STEPS} steps): "
            "look at train.learning_rate and the labels"
        )
