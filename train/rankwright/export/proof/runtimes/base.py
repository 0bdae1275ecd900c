"""What a runtime is: it reads a folder as its users would, raw texts in, ids, logits and probabilities out."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rankwright.model.prompt import PromptContract

Row = dict[str, Any]
# Pairs of a mixed batch.
BATCH = 8


@dataclass(frozen=True, slots=True)
class Exported:
    """A folder to be proven. kind: the target that wrote it; base: where an adapter's base lies."""

    path: Path
    kind: str
    rows: list[Row]
    contract: PromptContract
    base: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a runtime made of the golden rows: ids and logits of each row alone, logits in batches, probabilities.

    ids: None where the runtime does not show them. logits: None where it gives probabilities only; batched then holds
    probabilities. batched: one list for each way to batch (padding side, order of the rows), in the rows' order.
    """

    ids: list[list[int]] | None
    logits: list[float] | None
    batched: list[list[float]]
    probabilities: list[float]


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a runtime may be from the golden rows, in absolute numbers; None: does not decide.

    logit: `relative` times the size of the golden logit is added to it. spearman: the least rank correlation with the
    golden logits over the rows that decide, for weights of few bits. batch: the largest difference of a row's logit
    alone and in a batch, for a runtime whose other limits are loose.
    """

    logit: float | None
    probability: float | None
    relative: float = 1e-5
    spearman: float | None = None
    batch: float | None = None


def exact(tolerance: float) -> Limits:
    """For a runtime that computes in fp32 with the written weights: the recipe's tolerance of a logit."""
    return Limits(logit=tolerance, probability=tolerance / 10)


@dataclass(frozen=True, slots=True)
class Runtime:
    """A library that reads exported folders. name: as in reports; module: what must be installed for it.

    limits: made from the recipe's tolerance. every_row: it reads texts as the trainer does, so rows that do not decide
    for others decide for it. file: a pattern of the one file that it reads, where a folder may have several or none.
    """

    name: str
    module: str
    run: Callable[[Exported], Answer]
    limits: Callable[[float], Limits] = exact
    every_row: bool = False
    file: str | None = None

    def reads(self, folder: Path) -> bool:
        """Whether the folder has its file."""
        return self.file is None or any(folder.glob(self.file))


def cut_to_suffix(ids: list[int], limit: int, suffix_ids: list[int]) -> list[int]:
    """A long prompt as a caller must cut it where the runtime does not: the document is cut, the prompt's end kept."""
    return ids if len(ids) <= limit else ids[: limit - len(suffix_ids)] + suffix_ids


def in_both_orders(count: int, score: Callable[[list[int]], list[float]]) -> list[list[float]]:
    """score(places of the rows) in the rows' own order and in a shuffled one, both returned in the rows' order.

    The two have different batches, so a score that depends on its batch, or that belongs to another row, shows.
    """
    shuffled = random.Random(0).sample(range(count), count)
    given = dict(zip(shuffled, score(shuffled), strict=True))
    return [score(list(range(count))), [given[place] for place in range(count)]]


def sigmoid(logits: Sequence[float]) -> list[float]:
    """Probabilities in double precision, as the golden ones are."""
    found: list[float] = torch.sigmoid(torch.tensor(logits, dtype=torch.float64)).tolist()
    return found
