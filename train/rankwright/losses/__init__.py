"""Losses: pure functions of (scores_QD, labels_QD, mask_QD), one value a group, in fp32.

A loss is one function, whose keyword-only parameters are its recipe keys:

    base.py         the registry, what all losses share, and which of them need a relevant document
    pointwise.py    each document alone: bce, mse
    pairs.py        differences of two documents' scores: ranknet, lambda_rank, margin_mse
    lists.py        all documents of a group together: listwise_softmax, kl_distil, list_mle, approx_ndcg
    terms.py        a recipe's loss section -> one function, the weighted sum of its terms
"""

from __future__ import annotations

# Imported for what they register.
from rankwright.losses import lists, pairs, pointwise  # noqa: F401
from rankwright.losses.base import LOSSES, NEED_POSITIVE, OF_TEACHER, Loss, RecipeLoss
from rankwright.losses.terms import bind_loss, needs_positive, reads_teacher

__all__ = [
    "LOSSES",
    "NEED_POSITIVE",
    "OF_TEACHER",
    "Loss",
    "RecipeLoss",
    "bind_loss",
    "needs_positive",
    "reads_teacher",
]
