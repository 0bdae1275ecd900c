"""Losses of differences between two documents' scores. A group of one document gives 0."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rankwright.errors import UserError
from rankwright.losses.base import (
    LOSSES,
    difference,
    gains_of_ndcg,
    higher_label,
    mean_where,
    other_document,
    without_padding,
)


@LOSSES.register
def ranknet(scores_QD: Tensor, labels_QD: Tensor, mask_QD: Tensor) -> Tensor:
    """Logistic loss of each pair with different labels, averaged over the group's pairs: loss_Q.

    | labels | range of a label | paper |
    |---|---|---|
    | graded or binary, at least two different ones | any number: only their order counts | Burges et al. 2005 |

    -log sigmoid(score of the higher label - score of the lower one); equal labels are not compared.
    sentence-transformers' RankNetLoss is the same with its reduction_log="natural" (it has log2 by default); it
    averages over all pairs of a batch, so that a long list outweighs a short one.
    """
    scores_QD, labels_QD = without_padding(scores_QD, labels_QD, mask_QD)
    return mean_where(higher_label(labels_QD, mask_QD), F.softplus(-difference(scores_QD)))


@LOSSES.register
def lambda_rank(scores_QD: Tensor, labels_QD: Tensor, mask_QD: Tensor, *, k: int = 10) -> Tensor:
    """RankNet's pairs, each weighted by what swapping the two documents would change in nDCG@k, summed: loss_Q.

    | labels | range of a label | paper |
    |---|---|---|
    | graded or binary, at least one above 0 | gain is max(label, 0) | Burges et al. 2006; as a loss, Wang et al. 2018 |

    Weight = |1/log2(1 + place of i) - 1/log2(1 + place of j)| * |gain i - gain j| / ideal DCG@k, without gradient, over
    pairs of which at least one document is among the model's first k. Places among equal scores: lower labels first,
    so that a tie is never free; equal labels share the mean place, whatever their order in the input.

    sentence-transformers' LambdaLoss with LambdaRankScheme() and reduction_log="natural" has the same weights and
    pairs, but for its gain of 2^label - 1 (ours is the evaluation's linear one: the same for labels 0 and 1), its
    order of equal scores (the input's), and its mean over a batch's pairs (the paper has the sum).

    Raises UserError for k below 1.
    """
    if k < 1:
        raise UserError(f"options.k: {k}, must be at least 1: 10 trains for nDCG@10")
    scores_QD, labels_QD = without_padding(scores_QD, labels_QD, mask_QD)
    places_QD, first_places_QD = _places(scores_QD, labels_QD, mask_QD)
    discounts_QD = 1 / torch.log2(1 + places_QD)
    weights_QDD = (difference(discounts_QD) * difference(gains_of_ndcg(labels_QD, k))).abs()
    among_first_QD = first_places_QD <= k
    counted_QDD = among_first_QD.unsqueeze(2) | among_first_QD.unsqueeze(1)
    weights_QDD = weights_QDD.masked_fill(~(counted_QDD & higher_label(labels_QD, mask_QD)), 0.0)
    return (weights_QDD * F.softplus(-difference(scores_QD))).sum(dim=(1, 2))


def _places(scores_QD: Tensor, labels_QD: Tensor, mask_QD: Tensor) -> tuple[Tensor, Tensor]:
    """(mean place, first place) of each document among those with its score and label, from 1."""
    equal_QDD = scores_QD.unsqueeze(2) == scores_QD.unsqueeze(1)
    others_QDD = other_document(mask_QD)
    after_QDD = (scores_QD.unsqueeze(2) < scores_QD.unsqueeze(1)) | (equal_QDD & higher_label(labels_QD, mask_QD))
    alike_QDD = equal_QDD & (labels_QD.unsqueeze(2) == labels_QD.unsqueeze(1))
    first_QD = 1 + (after_QDD & others_QDD).sum(dim=2)
    alike_QD = (alike_QDD & others_QDD).sum(dim=2).to(scores_QD.dtype)
    return first_QD + alike_QD / 2, first_QD


@LOSSES.register
def margin_mse(scores_QD: Tensor, labels_QD: Tensor, mask_QD: Tensor) -> Tensor:
    """Squared error of the margins between the best document and every other one, averaged over these: loss_Q.

    | labels | range of a label | paper |
    |---|---|---|
    | a teacher's raw scores | any number: only their differences count | Hofstätter et al. 2020 (2010.02666) |

    The best document is the one with the highest label, relevant or not; with several, their mean.
    sentence-transformers' MarginMSELoss is the same when its positive is the best document: it takes the first column.
    """
    scores_QD, labels_QD = without_padding(scores_QD, labels_QD, mask_QD)
    highest_Q1 = labels_QD.masked_fill(~mask_QD, -torch.inf).amax(dim=1, keepdim=True)
    best_QD = mask_QD & (labels_QD == highest_Q1)
    # (s_i - s_j) - (y_i - y_j) = (s_i - y_i) - (s_j - y_j)
    errors_QDD = difference(scores_QD - labels_QD)
    return mean_where(best_QD.unsqueeze(2) & other_document(mask_QD), errors_QDD.square())
