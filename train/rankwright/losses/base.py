"""What all losses share: the registry, fp32, and nothing of the padding in value or gradient.

Q groups, D documents (padded), DD pairs of documents: [q, i, j] is document i beside document j. mask_QD is True for
real documents; padded scores and labels are ignored, NaN included. Scores of a smaller type are taken to fp32
first; fp64 stays, for checks of gradients. A group in which a loss finds nothing to learn gives 0, with gradient 0.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from rankwright.errors import UserError
from rankwright.registry import Registry


class Loss(Protocol):
    """A registered loss with its options bound."""

    def __call__(self, scores_QD: Tensor, labels_QD: Tensor, mask_QD: Tensor) -> Tensor: ...


class RecipeLoss(Protocol):
    """A recipe's whole loss: terms.bind_loss. teacher_QD: a teacher's raw scores, NaN where it has none."""

    def __call__(
        self, scores_QD: Tensor, labels_QD: Tensor, mask_QD: Tensor, teacher_QD: Tensor | None = None
    ) -> Tensor: ...


LOSSES: Registry[Loss] = Registry("loss")
# Losses of a teacher's raw scores, which take the place of labels where training has any.
OF_TEACHER = frozenset({"kl_distil", "margin_mse", "mse"})
# These learn nothing from a group without a relevant document: the sampler leaves such groups out and counts them.
# The losses of a teacher's scores are not among them: a score below 0 says as much as one above.
NEED_POSITIVE = frozenset({"approx_ndcg", "lambda_rank", "list_mle", "listwise_softmax", "ranknet"})


def without_padding(scores_QD: Tensor, labels_QD: Tensor, mask_QD: Tensor) -> tuple[Tensor, Tensor]:
    """(scores_QD, labels_QD) in the scores' type, at least fp32, with 0 at padded places.

    Before anything is computed from them: a gradient of 0 times the derivative at NaN would be NaN.
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
    """Raises UserError for a temperature that is not above 0; `neutral` says what 1.0 does."""
    if not 0 < temperature < math.inf:
        raise UserError(f"options.temperature: {temperature:g}, must be above 0: 1.0 {neutral}")
