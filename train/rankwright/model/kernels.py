"""Steps of a decoder layer with hand-written backward passes: the same values in fewer passes, with less memory.

Autograd keeps every intermediate of a normalisation, a rotation or a gate; these keep their inputs only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class RMSNorm(Function):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension; Zhang & Sennrich 2019 (1910.07467)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_C: Tensor, eps: float) -> Tensor:
        wide = x.float()
        size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = torch.rsqrt(size.square_().div_(x.shape[-1]).add_(eps))
        ctx.save_for_backward(x, weight_C, inverse)
        # As transformers has it: rounded to the type of x before the weight is applied.
        return (wide * inverse).to(x.dtype) * weight_C

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight_C, inverse = ctx.saved_tensors
        wide, gradient = x.float(), gradient.float()
        weight_gradient = None
        if ctx.needs_input_grad[1]:
            per_token = (gradient * wide).mul_(inverse)
            weight_gradient = per_token.flatten(0, -2).sum(0).to(weight_C.dtype)
        scaled = gradient * weight_C
        along = torch.linalg.vecdot(scaled, wide).unsqueeze(-1)
        along.mul_(inverse.pow(3)).div_(x.shape[-1])
        return scaled.mul_(inverse).addcmul_(wide, along, value=-1).to(x.dtype), weight_gradient, None


class Rotate(Function):
    """Rotary positions, x * cos + (-x2, x1) * sin for the halves of the last dimension; Su et al. 2021 (2104.09864)."""

    @staticmethod
    def forward(ctx: Any, x_HTD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        ctx.save_for_backward(cos_TD, sin_TD)
        half = x_HTD.shape[-1] // 2
        out = x_HTD * cos_TD
        out[..., :half].addcmul_(x_HTD[..., half:], sin_TD[..., :half], value=-1)
        out[..., half:].addcmul_(x_HTD[..., :half], sin_TD[..., half:])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos_TD, sin_TD = ctx.saved_tensors
        half = gradient.shape[-1] // 2
        out = gradient * cos_TD
        out[..., :half].addcmul_(gradient[..., half:], sin_TD[..., half:])
        out[..., half:].addcmul_(gradient[..., :half], sin_TD[..., :half], value=-1)
        return out, None, None


class Gate(Function):
    """silu(gate) * up; Shazeer 2020 (2002.05202)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        up_gradient = F.silu(gate).mul_(gradient)
        return torch.ops.aten.silu_backward(gradient * up, gate), up_gradient


class ShortAttention(Function):
    """softmax(q k^T * scale + mask) v with the probabilities kept: for short sequences in 16 bits on a CPU.

    There the backward pass of the fused kernel takes twice the time of these plain products. Scores are rounded to
    16 bits before the softmax, which is taken in fp32: what transformers calls eager attention.
    """

    @staticmethod
    def forward(ctx: Any, q_HLD: Tensor, k_KSD: Tensor, v_KSD: Tensor, mask_LS: Tensor, scale: float) -> Tensor:
        heads, queries, size = q_HLD.shape
        q_KXD = (q_HLD * scale).reshape(k_KSD.shape[0], -1, size)
        scores = torch.bmm(q_KXD, k_KSD.transpose(1, 2)).view(heads, queries, -1)
        p_KXS = torch.softmax(scores.float().add_(mask_LS), dim=-1).to(q_HLD.dtype).view(len(k_KSD), -1, k_KSD.shape[1])
        ctx.save_for_backward(q_KXD, k_KSD, v_KSD, p_KXS)
        ctx.scale = scale
        return torch.bmm(p_KXS, v_KSD).view(heads, queries, size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q_KXD, k_KSD, v_KSD, p_KXS = ctx.saved_tensors
        g_KXD = gradient.reshape(q_KXD.shape)
        dp_KXS = torch.bmm(g_KXD, v_KSD.transpose(1, 2))
        ds_KXS = torch._softmax_backward_data(dp_KXS, p_KXS, -1, p_KXS.dtype)
        dq_HLD = torch.bmm(ds_KXS, k_KSD).mul_(ctx.scale).view(gradient.shape)
        dk_KSD, dv_KSD = torch.bmm(ds_KXS.transpose(1, 2), q_KXD), torch.bmm(p_KXS.transpose(1, 2), g_KXD)
        return dq_HLD, dk_KSD, dv_KSD, None, None


@contextlib.contextmanager
def remade(made: Sequence[tuple[Tensor, Callable[[], Tensor]]]) -> Iterator[None]:
    """Inside, what autograd would keep of these tensors is computed again in the backward pass, by the function beside.

    The function must give the same values in the same layout; what it reads is kept. Each tensor must live while
    the context lasts: it is known by its place in memory.
    """
    again_of = {_place(tensor): again for tensor, again in made}

    def pack(kept: Tensor) -> Any:
        again = again_of.get(_place(kept))
        # Most are kept as views.
        return kept if again is None else (again, kept.size(), kept.stride(), kept.storage_offset())

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        again, size, stride, offset = packed
        with torch.no_grad():
            return cast(Tensor, again().as_strided(size, stride, offset))

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def _place(tensor: Tensor) -> int:
    # All views of a tensor share it; unlike the address of the data, a tensor without data has it too.
    return int(tensor.untyped_storage()._cdata)


def rms_norm(module: Any, x: Tensor) -> Tensor:
    """The module's own normalisation, which is one over the last dimension with `weight` and `variance_epsilon`."""
    return cast(Tensor, _call(RMSNorm, x, module.weight, module.variance_epsilon))


def rotate(x_HTD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Queries or keys at their positions."""
    return cast(Tensor, _call(Rotate, x_HTD, cos_TD, sin_TD))


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """The gated activation of the MLP."""
    return cast(Tensor, _call(Gate, gate, up))


def short_attention(q_HLD: Tensor, k_KSD: Tensor, v_KSD: Tensor, mask_LS: Tensor, scale: float) -> Tensor:
    """See ShortAttention; mask_LS is fp32, 0 or -inf."""
    return cast(Tensor, _call(ShortAttention, q_HLD, k_KSD, v_KSD, mask_LS, scale))


def _call(function: Any, *arguments: Any) -> Any:
    # torch's own `apply` has no types.
    return function.apply(*arguments)
