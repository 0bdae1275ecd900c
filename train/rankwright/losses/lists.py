"""Losses of all documents of a group together. A group of one document gives 0."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rankwright.losses.base import (
    LOSSES,
    at_least_tiny,
    difference,
    gains_of_ndcg,
    higher_label,
    other_document,
    refuse_temperature,
    without_padding,
)


def _log_softmax(scores_QD: Tensor, mask_QD: Tensor) -> Tensor:
    """Over the real documents; 0 at padded places."""
    # Not -inf: a group without any document would be NaN.
    lowest = torch.finfo(scores_QD.dtype).min
    return F.log_softmax(scores_QD.masked_fill(~mask_QD, lowest), dim=1).masked_fill(~mask_QD, 0.0)


@LOSSES.register
def listwise_softmax(scores_QD: Tensor, labels_QD: Tensor, mask_QD: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Cross-entropy between the gains, scaled to sum 1, and softmax(scores / temperature): loss_Q.

    | labels | range of a label | paper |
    |---|---|---|
    | graded or binary, at least one above 0 | >= 0 | ListNet top-1, Cao et al. 2007; InfoNCE with one positive |

    sentence-transformers' ListNetLoss takes softmax(labels) for the target, which gives irrelevant documents a share;
    given log(labels) it is the same.

    Raises UserError for a temperature that is not above 0.
    """
    refuse_temperature(temperature, "leaves scores as they are")
    scores_QD, labels_QD = without_padding(scores_QD, labels_QD, mask_QD)
    gains_QD = labels_QD.clamp(min=0)
    targets_QD = gains_QD / at_least_tiny(gains_QD.sum(dim=1, keepdim=True))
    return -(targets_QD * _log_softmax(scores_QD / temperature, mask_QD)).sum(dim=1)


@LOSSES.register
def kl_distil(scores_QD: Tensor, labels_QD: Tensor, mask_QD: Tensor, *, temperature: float = 1.0) -> Tensor:
    """KL divergence from the teacher's softmax(labels / temperature) to the model's softmax(scores): loss_Q.

    | labels | range of a label | paper |
    |---|---|---|
    | a teacher's raw scores | any number: only their differences count | Hinton et al. 2015 (1503.02531) |

    The temperature is the teacher's alone (Hinton et al. have it on both sides): the best scores are labels /
    temperature. For a teacher that gives probabilities take one well below 1. sentence-transformers' ListNetLoss is the
    same plus the teacher's entropy, which has no gradient.

    Raises UserError for a temperature that is not above 0.
    """
    refuse_temperature(temperature, "leaves the teacher's scores as they are")
    scores_QD, labels_QD = without_padding(scores_QD, labels_QD, mask_QD)
    teacher_QD = _log_softmax(labels_QD / temperature, mask_QD)
    difference_QD = teacher_QD - _log_softmax(scores_QD, mask_QD)
    return (teacher_QD.exp() * difference_QD).sum(dim=1)


@LOSSES.register
def list_mle(scores_QD: Tensor, labels_QD: Tensor, mask_QD: Tensor) -> Tensor:
    """-log likelihood that documents are picked in the order of their labels (Plackett-Luce), summed: loss_Q.

    | labels | range of a label | paper |
    |---|---|---|
    | graded or binary, at least two different ones | any number: only their order counts | ListMLE, Xia et al. 2008 |

    Each document is picked among itself and all with a lower label. Equal labels are never compared, whatever their
    order in the input; with one relevant document among irrelevant ones this is the listwise softmax.
    sentence-transformers' ListMLELoss(respect_input_order=False) is the same for labels that all differ; it orders
    equal ones arbitrarily.
    """
    scores_QD, labels_QD = without_padding(scores_QD, labels_QD, mask_QD)
    itself_DD = torch.eye(mask_QD.shape[1], dtype=torch.bool, device=mask_QD.device)
    among_QDD = higher_label(labels_QD, mask_QD) | itself_DD
    normaliser_QD = scores_QD.unsqueeze(1).masked_fill(~among_QDD, -torch.inf).logsumexp(dim=2)
    return (normaliser_QD - scores_QD).sum(dim=1)


@LOSSES.register
def approx_ndcg(scores_QD: Tensor, labels_QD: Tensor, mask_QD: Tensor, *, temperature: float = 1.0) -> Tensor:
    """1 - nDCG with smooth places, 1 + the sum of sigmoid((their score - its score) / temperature): loss_Q.

    | labels | range of a label | paper |
    |---|---|---|
    | graded or binary, at least one above 0 | gain is max(label, 0) | ApproxNDCG, Qin et al. 2010; Bruch et al. 2019 |

    Over the whole list, without a cut; the gain is the evaluation's linear one (the papers have 2^label - 1). A low
    temperature is nearer to nDCG, but pairs that lie much further apart give no gradient: the usual 0.1 is for scores
    that differ by tenths, 1.0 for logits. sentence-transformers has no such loss.

    Raises UserError for a temperature that is not above 0.
    """
    refuse_temperature(temperature, "suits scores that differ by whole units")
    scores_QD, labels_QD = without_padding(scores_QD, labels_QD, mask_QD)
    ahead_QDD = torch.sigmoid(-difference(scores_QD) / temperature)
    places_QD = 1 + ahead_QDD.masked_fill(~other_document(mask_QD), 0.0).sum(dim=2)
    ndcg_Q = (gains_of_ndcg(labels_QD) / torch.log2(1 + places_QD)).sum(dim=1)
    # 0 for a group without a relevant document.
    return (labels_QD > 0).any(dim=1).to(ndcg_Q.dtype) - ndcg_Q
