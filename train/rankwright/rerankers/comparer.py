"""A pairwise student: our model that compares two documents of a query, in both orders with the query shared."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import expit, logit

from rankwright.common.errors import UserError
from rankwright.common.hashing import content_hash, files_hash
from rankwright.common.lineage import loaded_export
from rankwright.common.resources import resolve_base
from rankwright.data.pair_texts import pair_text
from rankwright.rerankers.reranker import Reranker, saved_contract

# What a probability is rounded to before it is stored: what a batch may change lies far below.
DIGITS = 4
# Pairs that share a packed query; a fixed number, so that what a pair is computed with depends on its query alone.
TOGETHER = 32


class Compared(NamedTuple):
    """The probability that the first document of a pair is better: shown first, and shown second. Both rounded.

    They are equal for a model without a bias towards the document shown first.
    """

    shown_first: float
    shown_second: float

    @property
    def first_wins(self) -> float:
        """The probability that the first is better, without the bias: the mean of both on the scale of logits."""
        return _rounded(float(expit((logit(self.shown_first) + logit(self.shown_second)) / 2)))


def _rounded(value: float) -> float:
    # Never quite certain: a logit is taken of it.
    step = 10.0**-DIGITS
    return round(min(max(value, step), 1 - step), DIGITS)


@dataclass
class Comparer:
    """A trained student. folder: an export, as student_folder gives it; it is loaded when it is first asked."""

    folder: str

    @functools.cached_property
    def reranker(self) -> Reranker:
        """The model, in bf16 on a GPU as it was trained, else in fp32."""
        dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
        return Reranker.load(self.folder, dtype=dtype, pairwise=True)

    def compare(self, query: str, pairs: Sequence[tuple[str, str]]) -> list[Compared]:
        """Compare the documents of each pair, those of TOGETHER pairs in one group that shares the query."""
        orders = [[pair_text(first, second), pair_text(second, first)] for first, second in pairs]
        groups = [
            (query, list(itertools.chain(*orders[start : start + TOGETHER])))
            for start in range(0, len(orders), TOGETHER)
        ]
        scores = list(itertools.chain.from_iterable(self.reranker.score_groups(groups)))
        wins_N2 = expit(np.array(scores, np.float64)).reshape(len(pairs), 2)
        return [Compared(_rounded(float(ab)), _rounded(1 - float(ba))) for ab, ba in wins_N2]


def student_folder(model: str) -> str:
    """The folder of a student's export: `model` itself, or the export of the run folder that it is.

    Raises UserError where nothing is there, for a hub id, and for a model that scores single documents.
    """
    found = resolve_base(model, "model")
    try:
        folder = loaded_export(found)
    except UserError as error:
        raise UserError(f"model: {error}") from None
    if not Path(folder).is_dir():
        raise UserError(f"model: {model}: no such folder: give a run folder of a student, or its export")
    contract = saved_contract(folder)
    if contract is None or not contract.is_pairwise:
        raise UserError(
            f"model: {model}: scores single documents, and compares none: train a student with data.train: "
            "[{pairs: RUN}] (recipes/zelo-student.yaml)"
        )
    return folder


def student_hash(folder: str) -> str:
    """What a student's answers depend on beside the texts: its weights and settings, not cards and proofs."""
    files = [path for path in Path(folder).iterdir() if path.suffix in (".safetensors", ".json")]
    return content_hash(files_hash(path for path in files if path.name != "parity.json"), DIGITS)
