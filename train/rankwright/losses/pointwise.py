"""Losses of each document alone: no comparison inside a group, so that one judged document is enough."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from rankwright.losses.base import LOSSES, mean_where, without_padding


@LOSSES.register
def bce(scores_QD: Tensor, labels_QD: Tensor, mask_QD: Tensor) -> Tensor:
    """Binary cross-entropy of each document, averaged over the group's documents: loss_Q.

    | labels | range of a label | paper |
    |---|---|---|
    | graded or binary, none needed | above 0 counts as relevant | pointwise yes/no, Nogueira & Cho 2019 (1901.04085) |

    sentence-transformers' BinaryCrossEntropyLoss is the same for labels 0 and 1; it takes a label between them as a
    probability, and averages over all pairs of a batch, whatever their group.
    """
    scores_QD, labels_QD = without_padding(scores_QD, labels_QD, mask_QD)
    targets_QD = (labels_QD > 0).to(scores_QD.dtype)
    return mean_where(mask_QD, F.binary_cross_entropy_with_logits(scores_QD, targets_QD, reduction="none"))


@LOSSES.register
def mse(scores_QD: Tensor, labels_QD: Tensor, mask_QD: Tensor) -> Tensor:
    """Squared error between a teacher's raw score and ours, averaged over the group's documents: loss_Q.

    | labels | range of a label | paper |
    |---|---|---|
    | a teacher's raw scores (logits, not probabilities) | any number | pointwise MSE in Hofstätter et al. 2020 |

    sentence-transformers' MSELoss is the same, averaged over all pairs of a batch, whatever their group.
    """
    scores_QD, labels_QD = without_padding(scores_QD, labels_QD, mask_QD)
    return mean_where(mask_QD, (scores_QD - labels_QD).square())
