"""Losses: pure functions of (scores_QD, labels_QD, mask_QD), one value a group, in fp32.

Q groups, D documents (padded). mask_QD is True for real documents; padded scores and labels are ignored, NaN
included. Scores of a smaller type are taken to fp32 first; fp64 stays, for checks of gradients.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from rankwright.errors import UserError
from rankwright.registry import Registry


class Loss(Protocol):
    """A registered loss with its options bound."""

    def __call__(self, scores_QD: Tensor, labels_QD: Tensor, mask_QD: Tensor) -> Tensor: ...


LOSSES: Registry[Loss] = Registry("loss")
# These are undefined for a group without a relevant document: the sampler leaves such groups out and counts them.
NEED_POSITIVE = frozenset({"listwise_softmax"})


@LOSSES.register
def listwise_softmax(scores_QD: Tensor, labels_QD: Tensor, mask_QD: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Cross-entropy between the gains, scaled to sum 1, and the softmax of the scores: loss_Q.

    | labels | range of a label | paper |
    |---|---|---|
    | graded or binary, at least one above 0 | >= 0 | ListNet top-1, Cao et al. 2007; InfoNCE with one positive |

    Raises UserError for a temperature that is not above 0.
    """
    if not temperature > 0:
        raise UserError(f"loss.options.temperature: {temperature:g}, must be above 0: 1.0 leaves scores as they are")
    scores_QD = (_at_least_fp32(scores_QD) / temperature).masked_fill(~mask_QD, -torch.inf)
    gains_QD = labels_QD.to(scores_QD.dtype).clamp(min=0).masked_fill(~mask_QD, 0.0)
    targets_QD = gains_QD / gains_QD.sum(dim=1, keepdim=True)
    log_probabilities_QD = F.log_softmax(scores_QD, dim=1).masked_fill(~mask_QD, 0.0)
    return -(targets_QD * log_probabilities_QD).sum(dim=1)


@LOSSES.register
def bce(scores_QD: Tensor, labels_QD: Tensor, mask_QD: Tensor) -> Tensor:
    """Binary cross-entropy of each document, averaged over the group's documents: loss_Q.

    | labels | range of a label | paper |
    |---|---|---|
    | graded or binary, none needed | above 0 counts as relevant | pointwise yes/no, Nogueira & Cho 2019 (1901.04085) |
    """
    # Before the loss: a gradient of 0 times the derivative at NaN would be NaN.
    scores_QD = _at_least_fp32(scores_QD).masked_fill(~mask_QD, 0.0)
    targets_QD = (labels_QD > 0).to(scores_QD.dtype)
    each_QD = F.binary_cross_entropy_with_logits(scores_QD, targets_QD, reduction="none")
    return each_QD.masked_fill(~mask_QD, 0.0).sum(dim=1) / mask_QD.sum(dim=1)


def _at_least_fp32(scores_QD: Tensor) -> Tensor:
    return scores_QD.to(torch.promote_types(scores_QD.dtype, torch.float32))
