"""Losses: pure functions of (scores_QD, labels_QD, mask_QD), one value per group, in fp32."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rankwright.common.errors import UserError
from rankwright.common.registry import Registry

# A registered loss with its options bound: (scores_QD, labels_QD, mask_QD) -> loss_Q.
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
# What a loss with the option `targets` is given as its labels: people's, or a teacher's scores.
Targets = Literal["labels", "teacher"]
SoftTargets = Literal["labels", "teacher", "teacher_probabilities"]
# The margin between a teacher's raw scores (logits) below which their order is taken for noise.
TEACHER_MARGIN = 0.5


L = TypeVar("L", bound=Loss)
LOSSES: Registry[Loss] = Registry("loss")
OF_TEACHER: set[str] = set()
NEED_POSITIVE: set[str] = set()
OF_PAIR: set[str] = set()


def of_teacher(loss: L) -> L:
    """Decorator: a loss of a teacher's raw scores, which take the place of labels where training has any.

    A loss of either has an option `targets` instead: see loss_terms.learns_from_teacher.
    """
    OF_TEACHER.add(loss.__name__)
    return loss


def of_relevant(loss: L) -> L:
    """Decorator: a loss that learns nothing from a group without a relevant document.

    The sampler leaves such groups out and counts them, unless another term learns from a teacher's scores of them: then
    this one is 0 there. Losses of a teacher's scores are not among them: a score below 0 tells as much as one above.
    """
    NEED_POSITIVE.add(loss.__name__)
    return loss


def of_pair(loss: L) -> L:
    """Decorator: a loss that sets the score of a pair by itself, to a target of its own.

    train.first_stage_offset refuses it: what is added there depends on the query's whole list.
    """
    OF_PAIR.add(loss.__name__)
    return loss


def without_padding(scores_QD: Tensor, labels_QD: Tensor, mask_QD: Tensor) -> tuple[Tensor, Tensor]:
    """(scores_QD, labels_QD) in the scores' type, at least fp32, with 0 at padded places.

    Call it before any other computation: a gradient of 0 times the derivative at NaN would be NaN.
    """
    dtype = torch.promote_types(scores_QD.dtype, torch.float32)
    return scores_QD.to(dtype).masked_fill(~mask_QD, 0.0), labels_QD.to(dtype).masked_fill(~mask_QD, 0.0)


def mean_where(chosen: Tensor, values: Tensor) -> Tensor:
    """Mean of a group's values at the chosen places, 0 where none is chosen: (Q, ...) -> Q."""
    total_Q = values.masked_fill(~chosen, 0.0).flatten(1).sum(dim=1)
    return total_Q / chosen.flatten(1).sum(dim=1).clamp(min=1)


def difference(values_QD: Tensor) -> Tensor:
    """values[i] - values[j] of every pair: QDD."""
    return values_QD.unsqueeze(2) - values_QD.unsqueeze(1)


def higher_label(labels_QD: Tensor, mask_QD: Tensor, margin: float = 0.0) -> Tensor:
    """QDD: True where both documents are real and i's label is more than `margin` above j's; equal ones never are."""
    both_QDD = mask_QD.unsqueeze(2) & mask_QD.unsqueeze(1)
    return both_QDD & (labels_QD.unsqueeze(2) > labels_QD.unsqueeze(1) + margin)


def other_document(mask_QD: Tensor) -> Tensor:
    """QDD: True where both documents are real and differ."""
    same_DD = torch.eye(mask_QD.shape[1], dtype=torch.bool, device=mask_QD.device)
    return mask_QD.unsqueeze(2) & mask_QD.unsqueeze(1) & ~same_DD


def gains_of_ndcg(labels_QD: Tensor, k: int | None = None) -> Tensor:
    """Gains divided by the ideal DCG (@k): their discounted sum is nDCG. All 0 without a relevant document.

    Gain is linear, max(label, 0), as in the evaluation. Padded labels must be 0.
    """
    gains_QD = labels_QD.clamp(min=0)
    best_first_QD = gains_QD.sort(dim=1, descending=True).values[:, :k]
    places_D = torch.arange(1, best_first_QD.shape[1] + 1, device=gains_QD.device, dtype=gains_QD.dtype)
    ideal_Q = (best_first_QD / torch.log2(1 + places_D)).sum(dim=1)
    return gains_QD / at_least_tiny(ideal_Q).unsqueeze(1)


def at_least_tiny(totals: Tensor) -> Tensor:
    """Totals of values that are not below 0, safe to divide these values by: 0 / 0 becomes 0."""
    return totals.clamp(min=torch.finfo(totals.dtype).tiny)


def refuse_temperature(temperature: float, neutral: str, option: str = "temperature") -> None:
    """Raises UserError for a temperature that is not above 0; neutral: what 1.0 does, for the message."""
    if not 0 < temperature < math.inf:
        raise UserError(f"options.{option}: {temperature:g}, must be above 0: 1.0 {neutral}")


def margin_of(margin: float | None, default: float) -> float:
    """The margin, or the default without one. Raises UserError for one below 0."""
    if margin is not None and not 0 <= margin < math.inf:
        raise UserError(f"options.margin: {margin:g}, must be at least 0: 0 compares all that differ")
    return default if margin is None else margin


def smooth_places(scores_QD: Tensor, mask_QD: Tensor, temperature: float) -> Tensor:
    """Places from 1 that have a gradient: 1 + the sum of sigmoid((their score - its score) / temperature)."""
    ahead_QDD = torch.sigmoid(-difference(scores_QD) / temperature)
    return 1 + ahead_QDD.masked_fill(~other_document(mask_QD), 0.0).sum(dim=2)


def _log_softmax(scores_QD: Tensor, mask_QD: Tensor) -> Tensor:
    """Over the real documents; 0 at padded places."""
    # Not -inf, which gives NaN for a group without documents.
    lowest = torch.finfo(scores_QD.dtype).min
    return F.log_softmax(scores_QD.masked_fill(~mask_QD, lowest), dim=1).masked_fill(~mask_QD, 0.0)


@LOSSES.register
@of_relevant
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
@of_teacher
def kl_distil(
    scores_QD: Tensor,
    labels_QD: Tensor,
    mask_QD: Tensor,
    *,
    temperature: float = 1.0,
    student_temperature: float = 1.0,
    normalise: Literal["none", "zscore"] = "none",
) -> Tensor:
    """KL divergence from softmax(labels / temperature) to softmax(scores / student_temperature): loss_Q.

    | labels | range of a label | paper |
    |---|---|---|
    | a teacher's raw scores | any number: only their differences count | Hinton et al. 2015 (1503.02531) |

    The temperature is the teacher's alone unless the student has one too, as in Hinton et al.: the best scores are
    labels * student_temperature / temperature. Nothing is multiplied by a square of it: a term has a weight. For a
    teacher that gives probabilities take a temperature well below 1. normalise: `zscore` takes the teacher's z-scores
    within the list in place of its scores, so that its scale no longer matters; zeros where all are equal.
    sentence-transformers' ListNetLoss is the same plus the teacher's entropy, which has no gradient.

    Raises UserError for a temperature that is not above 0.
    """
    refuse_temperature(temperature, "leaves the teacher's scores as they are")
    refuse_temperature(student_temperature, "leaves the model's scores as they are", "student_temperature")
    scores_QD, labels_QD = without_padding(scores_QD, labels_QD, mask_QD)
    labels_QD = labels_QD if normalise == "none" else _zscores(labels_QD, mask_QD)
    teacher_QD = _log_softmax(labels_QD / temperature, mask_QD)
    difference_QD = teacher_QD - _log_softmax(scores_QD / student_temperature, mask_QD)
    return (teacher_QD.exp() * difference_QD).sum(dim=1)


def _zscores(labels_QD: Tensor, mask_QD: Tensor) -> Tensor:
    """(label - mean) / standard deviation (of the population) of a list; 0 at padded places and in constant lists."""
    # Above the lowest: a large constant part would take the digits of the squares.
    above_QD = _above_lowest(labels_QD, mask_QD)
    centred_QD = (above_QD - mean_where(mask_QD, above_QD).unsqueeze(1)).masked_fill(~mask_QD, 0.0)
    deviation_Q1 = mean_where(mask_QD, centred_QD.square()).sqrt().unsqueeze(1)
    # Not by the deviation: that of a constant list may be a rounding error.
    varies_Q1 = above_QD.amax(dim=1, keepdim=True) > 0
    return (centred_QD / at_least_tiny(deviation_Q1)).masked_fill(~varies_Q1, 0.0)


def _above_lowest(labels_QD: Tensor, mask_QD: Tensor) -> Tensor:
    """How far each label is above the lowest of its list; 0 at padded places."""
    lowest_Q1 = labels_QD.masked_fill(~mask_QD, torch.inf).amin(dim=1, keepdim=True)
    return (labels_QD - lowest_Q1).masked_fill(~mask_QD, 0.0)


@LOSSES.register
@of_relevant
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
@of_relevant
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
    places_QD = smooth_places(scores_QD, mask_QD, temperature)
    ndcg_Q = (gains_of_ndcg(labels_QD) / torch.log2(1 + places_QD)).sum(dim=1)
    # 0 for a group without a relevant document.
    return (labels_QD > 0).any(dim=1).to(ndcg_Q.dtype) - ndcg_Q


@LOSSES.register
@of_relevant
def ranknet(
    scores_QD: Tensor,
    labels_QD: Tensor,
    mask_QD: Tensor,
    *,
    targets: Targets = "labels",
    margin: float | None = None,
    temperature: float | None = None,
) -> Tensor:
    """Logistic loss of each pair with different labels, averaged over the group's pairs: loss_Q.

    | labels | range of a label | paper |
    |---|---|---|
    | graded or binary, at least two different ones; or a teacher's scores | any number | Burges et al. 2005 |

    -log sigmoid(score of the higher label - score of the lower one); equal labels are not compared, nor those that
    differ by no more than `margin`. targets: `teacher` takes a teacher's raw scores for the labels; the margin is then
    0.5 by default, and 0 for labels. temperature: makes the targets soft, P = sigmoid(difference of the labels /
    temperature) that the higher one is better: -P log sigmoid(d) - (1 - P) log sigmoid(-d) of the scores' difference d,
    with a margin of 0 by default (PRP distillation, Qin et al. 2023, arXiv 2306.17563). sentence-transformers'
    RankNetLoss is the same with its reduction_log="natural" (it has log2 by default); it averages over all pairs of a
    batch, so that a long list outweighs a short one.

    Raises UserError for a margin below 0 and for a temperature that is not above 0.
    """
    hard_default = TEACHER_MARGIN if targets == "teacher" else 0.0
    margin = margin_of(margin, hard_default if temperature is None else 0.0)
    scores_QD, labels_QD = without_padding(scores_QD, labels_QD, mask_QD)
    losses_QDD = F.softplus(-difference(scores_QD))
    if temperature is not None:
        refuse_temperature(temperature, "leaves differences of the labels as they are")
        # -log sigmoid(-d) = d - log sigmoid(d)
        losses_QDD = losses_QDD + torch.sigmoid(-difference(labels_QD) / temperature) * difference(scores_QD)
    return mean_where(higher_label(labels_QD, mask_QD, margin), losses_QDD)


@LOSSES.register
@of_relevant
def lambda_rank(
    scores_QD: Tensor,
    labels_QD: Tensor,
    mask_QD: Tensor,
    *,
    k: int = 10,
    targets: Targets = "labels",
    margin: float | None = None,
) -> Tensor:
    """RankNet's pairs, each weighted by what swapping the two documents would change in nDCG, summed: loss_Q.

    | labels | range of a label | paper |
    |---|---|---|
    | graded or binary, at least one above 0; or a teacher's scores | gain is max(label, 0) | Burges et al. 2006 |

    Weight = |1/log2(1 + place of i) - 1/log2(1 + place of j)| * |gain i - gain j| / ideal DCG@k, without gradient, over
    pairs of which at least one document is among the model's first k. Within these places that is the change of nDCG@k.
    Across the cut it is less: the discount of the lower place counts too, as in a list that is not cut. Places among
    equal scores: lower labels first, so that a tie is never free; equal labels share the mean place, whatever their
    order in the input. As a loss: Wang et al. 2018.

    targets: `teacher` takes a teacher's raw scores for the labels, and how far each is above the lowest of its list for
    the gains, so that the weights do not depend on its scale. margin: pairs that differ by no more are not compared; by
    default 0.5 for a teacher's scores, 0 for labels.

    sentence-transformers' LambdaLoss with LambdaRankScheme() and reduction_log="natural" has the same weights and
    pairs, but for its gain of 2^label - 1 (ours is the evaluation's linear one: the same for labels 0 and 1), its
    order of equal scores (the input's), and its mean over a batch's pairs (the paper has the sum).

    Raises UserError for k below 1 and for a margin below 0.
    """
    if k < 1:
        raise UserError(f"options.k: {k}, must be at least 1: 10 trains for nDCG@10")
    margin = margin_of(margin, TEACHER_MARGIN if targets == "teacher" else 0.0)
    scores_QD, labels_QD = without_padding(scores_QD, labels_QD, mask_QD)
    worth_QD = labels_QD if targets == "labels" else _above_lowest(labels_QD, mask_QD)
    places_QD, first_places_QD = _places(scores_QD, labels_QD, mask_QD)
    discounts_QD = 1 / torch.log2(1 + places_QD)
    weights_QDD = (difference(discounts_QD) * difference(gains_of_ndcg(worth_QD, k))).abs()
    among_first_QD = first_places_QD <= k
    counted_QDD = among_first_QD.unsqueeze(2) | among_first_QD.unsqueeze(1)
    weights_QDD = weights_QDD.masked_fill(~(counted_QDD & higher_label(labels_QD, mask_QD, margin)), 0.0)
    return (weights_QDD * F.softplus(-difference(scores_QD))).sum(dim=(1, 2))


def _places(scores_QD: Tensor, labels_QD: Tensor, mask_QD: Tensor) -> tuple[Tensor, Tensor]:
    """(mean place, first place) of each document among the documents with its score and label, from 1."""
    equal_QDD = scores_QD.unsqueeze(2) == scores_QD.unsqueeze(1)
    others_QDD = other_document(mask_QD)
    after_QDD = (scores_QD.unsqueeze(2) < scores_QD.unsqueeze(1)) | (equal_QDD & higher_label(labels_QD, mask_QD))
    equal_label_QDD = equal_QDD & (labels_QD.unsqueeze(2) == labels_QD.unsqueeze(1))
    first_QD = 1 + (after_QDD & others_QDD).sum(dim=2)
    tied_QD = (equal_label_QDD & others_QDD).sum(dim=2).to(scores_QD.dtype)
    return first_QD + tied_QD / 2, first_QD


@LOSSES.register
@of_teacher
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
@of_pair
def soft_bce(
    scores_QD: Tensor,
    labels_QD: Tensor,
    mask_QD: Tensor,
    *,
    targets: SoftTargets = "labels",
    scale: float = 1.0,
    offset: float = 0.0,
) -> Tensor:
    """Cross-entropy of each document with a probability for its target, averaged over the group's documents: loss_Q.

    | labels | range of a label | paper |
    |---|---|---|
    | probabilities or grades, or a teacher's scores | 0 to `scale` | BiXSE, Tsirigotis et al. 2025 (2508.06781) |

    -t log sigmoid(score - offset) - (1 - t) log sigmoid(offset - score). targets: `labels`, t = label / scale;
    `teacher_probabilities`, the same of a teacher's scores; `teacher`, t = sigmoid(its raw logit / scale). What lies
    outside 0 to `scale` is refused before training, and counts as the nearer end here. With labels 0 and 1 it is bce.

    Raises UserError for a scale that is not above 0.
    """
    refuse_temperature(scale, "is for labels from 0 to 1", "scale")
    scores_QD, labels_QD = without_padding(scores_QD, labels_QD, mask_QD)
    parts_QD = labels_QD / scale
    targets_QD = torch.sigmoid(parts_QD) if targets == "teacher" else parts_QD.clamp(0, 1)
    losses_QD = F.binary_cross_entropy_with_logits(scores_QD - offset, targets_QD, reduction="none")
    return mean_where(mask_QD, losses_QD)


@LOSSES.register
@of_teacher
@of_pair
def mse(
    scores_QD: Tensor, labels_QD: Tensor, mask_QD: Tensor, *, match: Literal["affine", "none"] = "affine"
) -> Tensor:
    """Squared error between a teacher's raw score and ours, averaged over the group's documents: loss_Q.

    | labels | range of a label | paper |
    |---|---|---|
    | a teacher's raw scores (logits, not probabilities) | any number | pointwise MSE in Hofstätter et al. 2020 |

    match: with `affine`, training gives it (teacher's score - b) / a, with a and b fitted before step 1 (see
    distillation.py); the function itself compares what it is given. sentence-transformers' MSELoss is the same,
    averaged over all pairs of a batch, whatever their group.

    Raises UserError for another value of match.
    """
    scores_QD, labels_QD = without_padding(scores_QD, labels_QD, mask_QD)
    return mean_where(mask_QD, (scores_QD - labels_QD).square())


@LOSSES.register
@of_teacher
def adr_mse(
    scores_QD: Tensor,
    labels_QD: Tensor,
    mask_QD: Tensor,
    *,
    temperature: float = 1.0,
    discount: Literal["log2", "reciprocal", "none"] = "log2",
) -> Tensor:
    """Squared error between a document's place by the teacher and its smooth place by our scores, weighted: loss_Q.

    | labels | range of a label | paper |
    |---|---|---|
    | a teacher's scores | any number: only their order counts | Schlatt et al. 2024 (2405.07920) |

    Averaged over the group's documents, each weighted by its place by the teacher: 1 / log2(1 + place), 1 / place, or
    1. Equal labels share their mean place. Smooth places are those of approx_ndcg, with the same temperature.

    Raises UserError for a temperature that is not above 0.
    """
    refuse_temperature(temperature, "suits scores that differ by whole units")
    scores_QD, labels_QD = without_padding(scores_QD, labels_QD, mask_QD)
    wanted_QD, _ = _places(labels_QD, labels_QD, mask_QD)
    errors_QD = (wanted_QD - smooth_places(scores_QD, mask_QD, temperature)).square()
    if discount != "none":
        errors_QD = errors_QD / (torch.log2(1 + wanted_QD) if discount == "log2" else wanted_QD)
    return mean_where(mask_QD, errors_QD)
