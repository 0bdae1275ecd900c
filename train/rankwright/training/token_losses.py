"""Losses of a language model's next tokens, whose logits never stand whole in memory.

The head is frozen, so that the gradient of the hidden states is all that the backward pass needs: it is made beside the
loss, a few tokens at a time, and the logits are gone before the next few.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from rankwright.common.errors import UserError
from rankwright.model.rank_model import RankModel
from rankwright.model.sharding import is_shard

# T predicted tokens, H hidden size, V rows of the head, C tokens of a chunk.
# The logits of a chunk are at most so many numbers for each token of a micro-batch: less than what its layers hold.
LOGITS_A_TOKEN = 2048


def head_weight(model: RankModel) -> Tensor:
    """weight_VH of the head over the whole vocabulary; for a sharded model all ranks must ask, and all get it.

    Raises UserError for a base that has none, such as an export for sentence-transformers.
    """
    head = model.causal_lm.get_output_embeddings()
    if getattr(head, "weight", None) is None:
        raise UserError(
            f"model.base: {type(model.causal_lm).__name__} has no head that predicts tokens: take the language model "
            "that it was made of, or the export `causal`"
        )
    weight_VH = cast(Tensor, head.weight).detach()
    return cast(Tensor, cast(Any, weight_VH).full_tensor()) if is_shard(weight_VH) else weight_VH


def chunk_rows(budget_tokens: int, vocabulary: int) -> int:
    """Tokens whose logits are in memory at once, under the budget of a micro-batch."""
    return max(1, budget_tokens * LOGITS_A_TOKEN // vocabulary)


def token_loss(
    states_TH: Tensor,
    head_VH: Tensor,
    targets_T: Tensor,
    cross_T: Tensor,
    *,
    rows: int,
    base_TH: Tensor | None = None,
    divergence_T: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(loss, parts_2): a weighted sum of cross-entropies and divergences over the tokens, and both sums, detached.

    head_VH: frozen, times the model's head_factor. targets_T: the tokens that follow. cross_T: weight of each token's
    cross-entropy, in nats. base_TH: another model's states; divergence_T: weight of each KL(its next token || ours).
    rows: tokens whose logits are in memory at once. Products are taken in the type of head_VH, the rest in fp32 at
    least.
    """
    loss, parts_2 = cast(Any, _TokenLoss).apply(states_TH, head_VH, targets_T, cross_T, base_TH, divergence_T, rows)
    return loss, parts_2


class _TokenLoss(Function):
    @staticmethod
    def forward(
        ctx: Any,
        states_TH: Tensor,
        head_VH: Tensor,
        targets_T: Tensor,
        cross_T: Tensor,
        base_TH: Tensor | None,
        divergence_T: Tensor | None,
        rows: int,
    ) -> tuple[Tensor, Tensor]:
        gradient_TH = torch.empty_like(states_TH)
        parts_2 = torch.zeros(2, dtype=torch.float64, device=states_TH.device)
        for start in range(0, len(states_TH), rows):
            own = slice(start, start + rows)
            targets_C1, cross_C = targets_T[own, None], cross_T[own]
            log_CV = _log_probabilities(states_TH[own], head_VH)
            cross_C = cross_C.to(log_CV)
            parts_2[0] -= (cross_C * log_CV.gather(1, targets_C1)[:, 0]).sum()
            # The derivative by the logits, in place of what it is made from.
            weight_C = cross_C
            toward_CV = None
            if base_TH is not None and divergence_T is not None:
                divergence_C = divergence_T[own].to(log_CV)
                base_CV = _log_probabilities(base_TH[own], head_VH)
                toward_CV = base_CV.exp()
                parts_2[1] += (divergence_C * (toward_CV * base_CV.sub_(log_CV)).sum(dim=1)).sum()
                toward_CV.mul_(divergence_C[:, None])
                weight_C = cross_C + divergence_C
            by_logits_CV = log_CV.exp_().mul_(weight_C[:, None])
            by_logits_CV.scatter_add_(1, targets_C1, -cross_C[:, None])
            if toward_CV is not None:
                by_logits_CV -= toward_CV
            gradient_TH[own] = (by_logits_CV.to(head_VH.dtype) @ head_VH).to(states_TH.dtype)
        ctx.save_for_backward(gradient_TH)
        ctx.mark_non_differentiable(parts_2)
        return parts_2.sum().to(cross_T.dtype), parts_2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None, None, None, None, None]:
        (gradient_TH,) = ctx.saved_tensors
        return gradient_TH * gradient.to(gradient_TH), None, None, None, None, None, None


def _log_probabilities(states_CH: Tensor, head_VH: Tensor) -> Tensor:
    """log of the probability of each token of the vocabulary, (C, V)."""
    logits_CV = states_CH.to(head_VH.dtype) @ head_VH.T
    wide = logits_CV if logits_CV.dtype == torch.float64 else logits_CV.float()
    return torch.log_softmax(wide, dim=1)
