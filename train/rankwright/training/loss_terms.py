"""A recipe's loss: one loss or a weighted sum, what each term of it learns from, and all mistakes in it at once."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from rankwright.common.errors import UserError, UserErrors
from rankwright.mining.samplers import reads_scores
from rankwright.recipe.schema import Loss as LossSettings
from rankwright.recipe.schema import LossTerm, Recipe
from rankwright.training.losses import LOSSES, NEED_POSITIVE, OF_PAIR, OF_TEACHER, Loss

# The values of the option `targets` with which a loss learns from a teacher's scores.
PROBABILITIES = "teacher_probabilities"
OF_SCORES = ("teacher", PROBABILITIES)


class RecipeLoss(Protocol):
    """A recipe's whole loss, see bind_loss. teacher_QD: a teacher's raw scores, NaN where it has none."""

    def __call__(
        self, scores_QD: Tensor, labels_QD: Tensor, mask_QD: Tensor, teacher_QD: Tensor | None = None
    ) -> Tensor: ...


class AffineMatch(NamedTuple):
    """A teacher's scores on the scale of the model's: (score - intercept) / slope; slope above 0."""

    slope: float
    intercept: float

    def of(self, teacher_QD: Tensor) -> Tensor:
        """The matched scores."""
        return (teacher_QD - self.intercept) / self.slope


def bind_loss(settings: LossSettings, match: AffineMatch | None = None) -> RecipeLoss:
    """The recipe's loss with its options: loss + the sum of weight * loss over `plus`, one value per group.

    A term that learns from a teacher sees the documents that have a teacher's score, and this in place of the label;
    without teacher_QD it takes labels for scores. Any other term sees the documents whose label is known (not NaN);
    with teacher_QD it is 0 for a group without a relevant document where it learns nothing from one.
    match: what terms with `match: affine` see of a teacher's scores; None: the scores as they are.
    Raises UserErrors, one line per term with a mistake, led by its key (`loss.plus.0.options.temperature`).
    """
    faults: list[str] = []
    terms: list[tuple[LossTerm, AffineMatch | None, Loss]] = []
    for key, term in _terms(settings):
        try:
            bound = _bind_term(key, term.name, term.options)
            terms.append((term, match if _is_matched(term) else None, bound))
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserErrors(faults)

    def weighted_sum(scores_QD: Tensor, labels_QD: Tensor, mask_QD: Tensor, teacher_QD: Tensor | None = None) -> Tensor:
        losses = []
        for term, matched, loss in terms:
            targets_QD, seen_QD = labels_QD, mask_QD
            if learns_from_teacher(term):
                if teacher_QD is not None:
                    targets_QD = teacher_QD if matched is None else matched.of(teacher_QD)
            elif term.name in NEED_POSITIVE and teacher_QD is not None:
                # Another term learns from such a group: see needs_positive.
                seen_QD = mask_QD & (mask_QD & (labels_QD > 0)).any(dim=1, keepdim=True)
            loss_Q = loss(scores_QD, targets_QD, seen_QD & ~targets_QD.isnan())
            losses.append(loss_Q if term.weight == 1 else term.weight * loss_Q)
        return functools.reduce(torch.add, losses)

    return weighted_sum


def learns_from_teacher(term: LossTerm) -> bool:
    """Whether a term's targets are a teacher's scores: a loss that is of_teacher, or one that `targets` makes so."""
    return term.name in OF_TEACHER or term.options.get("targets") in OF_SCORES


def reads_teacher(settings: LossSettings) -> bool:
    """Whether a term learns from a teacher's scores."""
    return any(learns_from_teacher(term) for _, term in _terms(settings))


def only_teacher(settings: LossSettings) -> bool:
    """Whether all terms learn from a teacher's scores, so that a query without any teaches nothing."""
    return all(learns_from_teacher(term) for _, term in _terms(settings))


def needs_positive(settings: LossSettings) -> bool:
    """Whether the sampler leaves out groups without a relevant document.

    It does where a term learns nothing from them, unless another one learns from a teacher's scores of them.
    """
    labelled = [term for _, term in _terms(settings) if not learns_from_teacher(term)]
    return not reads_teacher(settings) and any(term.name in NEED_POSITIVE for term in labelled)


def needs_match(settings: LossSettings) -> bool:
    """Whether a term asks for a teacher's scores on the scale of the model's, see distillation.affine_match."""
    return any(_is_matched(term) for _, term in _terms(settings))


def _is_matched(term: LossTerm) -> bool:
    return term.name == "mse" and term.options.get("match", "affine") == "affine"


def expecting_logits(settings: LossSettings) -> list[str]:
    """Names of the terms to which a teacher's scores between 0 and 1 would be nearly equal."""
    return [t.name for _, t in _terms(settings) if learns_from_teacher(t) and not _takes_any_scale(t)]


def _takes_any_scale(term: LossTerm) -> bool:
    options = term.options
    only_order = options.get("margin") == 0 and options.get("temperature") is None
    zscores, probabilities = options.get("normalise") == "zscore", options.get("targets") == PROBABILITIES
    return term.name == "adr_mse" or only_order or zscores or probabilities


def probability_scales(settings: LossSettings, *, of_teacher: bool) -> list[tuple[str, float]]:
    """(key of the scale, its value) of terms whose targets must lie from 0 to it: people's labels, or a teacher's."""
    wanted = PROBABILITIES if of_teacher else "labels"
    return [
        (f"{key}.options.scale", float(term.options.get("scale", 1.0)))
        for key, term in _terms(settings)
        if term.name == "soft_bce" and term.options.get("targets", "labels") == wanted
    ]


def targets_of_teacher(settings: LossSettings) -> list[tuple[str, str]]:
    """(key, value) of the options `targets` that ask for mine.teacher."""
    asked = ((f"{key}.options.targets", term.options.get("targets")) for key, term in _terms(settings))
    return [(key, value) for key, value in asked if value in OF_SCORES]


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
    used = "teacher" in mine.filters or reads_teacher(recipe.loss) or reads_scores(mine.sampler)
    return mine.teacher is not None and mine.refresh_steps is not None and used
