"""A recipe's loss section -> one function: the weighted sum of its terms, all mistakes in them told at once."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from rankwright.errors import UserError, UserErrors
from rankwright.losses.base import LOSSES, NEED_POSITIVE, OF_TEACHER, Loss, RecipeLoss
from rankwright.recipe import Loss as LossSettings
from rankwright.recipe import LossTerm


def bind_loss(settings: LossSettings) -> RecipeLoss:
    """The recipe's loss with its options: loss + the sum of weight * loss over `plus`, one value a group.

    A term of OF_TEACHER sees the documents that have a teacher's score, and that in place of their label; without
    teacher_QD it takes labels for scores. Any other term sees the documents whose label is known (not NaN).
    Raises UserErrors, a line for each term with a mistake, led by its key (`loss.plus.0.options.temperature`).
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
