"""Losses: pure functions of (scores_QD, labels_QD, mask_QD), one value per group, in fp32."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rankwright.common.errors import UserError, UserErrors
from rankwright.common.registry import Registry
from rankwright.recipe.schema import Loss as LossSettings
from rankwright.recipe.schema import LossTerm, Recipe

# A registered loss with its options bound: (scores_QD, labels_QD, mask_QD) -> loss_Q.
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


class RecipeLoss(Protocol):
    """A recipe's whole loss, see bind_loss. teacher_QD: a teacher's raw scores, NaN where it has none."""

    def __call__(
        self, scores_QD: Tensor, labels_QD: Tensor, mask_QD: Tensor, teacher_QD: Tensor | None = None
    ) -> Tensor: ...


L = TypeVar("L", bound=Loss)
LOSSES: Registry[Loss] = Registry("loss")
OF_TEACHER: set[str] = set()
NEED_POSITIVE: set[str] = set()
OF_PAIR: set[str] = set()


def of_teacher(loss: L) -> L:
    """Decorator: a loss of a teacher's raw scores, which take the place of labels where training has any."""
    OF_TEACHER.add(loss.__name__)
    return loss


def of_relevant(loss: L) -> L:
    """Decorator: a loss that learns nothing from a group without a relevant document.

    The sampler leaves such groups out and counts them. Losses of a teacher's scores are not among them: a score below 0
    tells the model as much as one above.
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


def higher_label(labels_QD: Tensor, mask_QD: Tensor) -> Tensor:
    """QDD: True where both documents are real and i has a higher label than j; equal labels are never a pair."""
    both_QDD = mask_QD.unsqueeze(2) & mask_QD.unsqueeze(1)
    return both_QDD & (labels_QD.unsqueeze(2) > labels_QD.unsqueeze(1))


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


def refuse_temperature(temperature: float, neutral: str) -> None:
    """Raises UserError for a temperature that is not above 0; neutral: what 1.0 does, for the message."""
    if not 0 < temperature < math.inf:
        raise UserError(f"options.temperature: {temperature:g}, must be above 0: 1.0 {neutral}")


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
    ahead_QDD = torch.sigmoid(-difference(scores_QD) / temperature)
    places_QD = 1 + ahead_QDD.masked_fill(~other_document(mask_QD), 0.0).sum(dim=2)
    ndcg_Q = (gains_of_ndcg(labels_QD) / torch.log2(1 + places_QD)).sum(dim=1)
    # 0 for a group without a relevant document.
    return (labels_QD > 0).any(dim=1).to(ndcg_Q.dtype) - ndcg_Q


@LOSSES.register
@of_relevant
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
@of_relevant
def lambda_rank(scores_QD: Tensor, labels_QD: Tensor, mask_QD: Tensor, *, k: int = 10) -> Tensor:
    """RankNet's pairs, each weighted by what swapping the two documents would change in nDCG, summed: loss_Q.

    | labels | range of a label | paper |
    |---|---|---|
    | graded or binary, at least one above 0 | gain is max(label, 0) | Burges et al. 2006; as a loss, Wang et al. 2018 |

    Weight = |1/log2(1 + place of i) - 1/log2(1 + place of j)| * |gain i - gain j| / ideal DCG@k, without gradient, over
    pairs of which at least one document is among the model's first k. Within these places that is the change of nDCG@k.
    Across the cut it is less: the discount of the lower place counts too, as in a list that is not cut. Places among
    equal scores: lower labels first, so that a tie is never free; equal labels share the mean place, whatever their
    order in the input.

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
@of_teacher
@of_pair
def mse(scores_QD: Tensor, labels_QD: Tensor, mask_QD: Tensor) -> Tensor:
    """Squared error between a teacher's raw score and ours, averaged over the group's documents: loss_Q.

    | labels | range of a label | paper |
    |---|---|---|
    | a teacher's raw scores (logits, not probabilities) | any number | pointwise MSE in Hofstätter et al. 2020 |

    sentence-transformers' MSELoss is the same, averaged over all pairs of a batch, whatever their group.
    """
    scores_QD, labels_QD = without_padding(scores_QD, labels_QD, mask_QD)
    return mean_where(mask_QD, (scores_QD - labels_QD).square())


def bind_loss(settings: LossSettings) -> RecipeLoss:
    """The recipe's loss with its options: loss + the sum of weight * loss over `plus`, one value per group.

    A term that is `of_teacher` sees the documents that have a teacher's score, and this in place of the label; without
    teacher_QD it takes labels for scores. Any other term sees the documents whose label is known (not NaN).
    Raises UserErrors, one line per term with a mistake, led by its key (`loss.plus.0.options.temperature`).
    """
    faults: list[str] = []
    terms: list[tuple[float, bool, Loss]] = []
    for key, term in _terms(settings):
        try:
            terms.append((term.weight, term.name in OF_TEACHER, _bind_term(key, term.name, term.options)))
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserErrors(faults)

    def weighted_sum(scores_QD: Tensor, labels_QD: Tensor, mask_QD: Tensor, teacher_QD: Tensor | None = None) -> Tensor:
        losses = []
        for weight, of_teacher, loss in terms:
            targets_QD = teacher_QD if of_teacher and teacher_QD is not None else labels_QD
            loss_Q = loss(scores_QD, targets_QD, mask_QD & ~targets_QD.isnan())
            losses.append(loss_Q if weight == 1 else weight * loss_Q)
        return functools.reduce(torch.add, losses)

    return weighted_sum


def needs_positive(settings: LossSettings) -> bool:
    """Whether a term learns nothing from a group without a relevant document, so that the sampler leaves it out."""
    return any(term.name in NEED_POSITIVE for _, term in _terms(settings))


def reads_teacher(settings: LossSettings) -> bool:
    """Whether a term learns from a teacher's scores."""
    return any(term.name in OF_TEACHER for _, term in _terms(settings))


def only_teacher(settings: LossSettings) -> bool:
    """Whether all terms learn from a teacher's scores, so that a query without any teaches nothing."""
    return all(term.name in OF_TEACHER for _, term in _terms(settings))


def refusing_offset(settings: LossSettings) -> list[tuple[str, str]]:
    """(key, name) of the terms that cannot be trained with train.first_stage_offset: see of_pair."""
    return [(f"{key}.name", term.name) for key, term in _terms(settings) if term.name in OF_PAIR]


def _terms(settings: LossSettings) -> Iterator[tuple[str, LossTerm]]:
    """(key, term), the first of weight 1."""
    yield "loss", LossTerm(name=settings.name, options=settings.options)
    for number, term in enumerate(settings.plus):
        yield f"loss.plus.{number}", term


def _bind_term(key: str, name: str, options: Mapping[str, Any]) -> Loss:
    try:
        LOSSES[name]
    except UserError as error:
        raise UserError(f"{key}.name: {error}") from None
    try:
        loss: Loss = LOSSES.bind(name, options)
    except UserError as error:
        raise UserError(f"{key}.options: {error}") from None
    try:
        # Tried here, so that a value out of range is found before anything is read or written.
        loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.ones(1, 2, dtype=torch.bool))
    except UserError as error:
        raise UserError(f"{key}.{error}") from None
    return loss


def scores_candidates(recipe: Recipe) -> bool:
    """Whether the teacher scores everything that was retrieved: a refresh may draw or filter any of it."""
    mine = recipe.mine
    used = "teacher" in mine.filters or reads_teacher(recipe.loss)
    return mine.teacher is not None and mine.refresh_steps is not None and used
