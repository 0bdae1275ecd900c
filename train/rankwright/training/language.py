"""Objectives of a language model, beside the loss over lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from rankwright.model.rank_model import RankModel
from rankwright.training.sampling import TrainGroup


class Auxiliary(Protocol):
    """Further objectives, whose gradients are added to those of the lists."""

    def accumulate(
        self, model: RankModel, step: int, groups: Sequence[TrainGroup], *, accelerator: Any, budget_tokens: int
    ) -> dict[str, float]:
        """Add the weighted gradients of a step, the same on every rank; returns the values to log."""

    def evaluate(self, model: RankModel) -> dict[str, float]:
        """Perplexity of held-out text: `perplexity_domain`, and `perplexity_general` with replay."""
