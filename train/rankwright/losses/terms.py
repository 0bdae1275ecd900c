"""A recipe's loss section -> one function: the weighted sum of its terms, all mistakes in them told at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from rankwright.errors import UserError, UserErrors
from rankwright.losses.base import LOSSES, NEED_POSITIVE, Loss
from rankwright.recipe import Loss as LossSettings
from rankwright.recipe import LossTerm


def bind_loss(settings: LossSettings) -> Loss:
    """The recipe's loss with its options: loss + the sum of weight * loss over `plus`, one value a group.

    Raises UserErrors, a line for each term with a mistake, led by its key (`loss.plus.0.options.temperature`).
    """
    faults: list[str] = []
    terms: list[tuple[float, Loss]] = []
    for key, term in _terms(settings):
        try:
            terms.append((term.weight, _bind_term(key, term.name, term.options)))
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserErrors(faults)
    (_, first), *others = terms

    def weighted_sum(scores_QD: Tensor, labels_QD: Tensor, mask_QD: Tensor) -> Tensor:
        loss_Q = first(scores_QD, labels_QD, mask_QD)
        for weight, loss in others:
            loss_Q = loss_Q + weight * loss(scores_QD, labels_QD, mask_QD)
        return loss_Q

    return weighted_sum if others else first


def needs_positive(settings: LossSettings) -> bool:
    """Whether a term learns nothing from a group without a relevant document, so that the sampler leaves it out."""
    return any(term.name in NEED_POSITIVE for _, term in _terms(settings))


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
