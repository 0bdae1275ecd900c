"""Hand-written backward passes: the values of plain torch, gradients against finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck

from rankwright.model.kernels import gated, rms_norm, rotate, short_attention


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


class Norm(nn.Module):
    """Weights and the name of its epsilon as in transformers."""

    def __init__(self, weight: Tensor, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
        self.variance_epsilon = eps


def plain_rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(
        q[None], k[None], v[None], attn_mask=mask.to(q.dtype), scale=scale, enable_gqa=True
    )[0]


def test_rms_norm() -> None:
    # The kernel computes in fp32 inside, too coarse for finite differences: against autograd instead.
    weight, x, gradient = random(8, seed=1), random(5, 3, 8).float().detach(), random(5, 3, 8, seed=2).float().detach()
    results = []
    for function in (
        lambda module, x: rms_norm(module, x),
        lambda module, x: F.rms_norm(x, (8,), module.weight, 1e-6),
    ):
        module, leaf = Norm(weight.detach().float()), x.clone().requires_grad_()
        out = function(module, leaf)
        out.backward(gradient)
        results.append((out.detach(), leaf.grad, module.weight.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_rms_norm_is_that_of_transformers_in_16_bits() -> None:
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

    module = Qwen3RMSNorm(16).bfloat16()
    module.weight.data.normal_(1, 0.3)
    x = torch.randn(40, 16).bfloat16()
    torch.testing.assert_close(rms_norm(module, x), module(x), rtol=0, atol=2**-6)


@pytest.mark.parametrize("eps", [1e-6, 0.1])
def test_a_row_of_zeros_has_a_gradient(eps: float) -> None:
    x = torch.zeros(2, 4, requires_grad=True)
    rms_norm(Norm(torch.ones(4), eps), x).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_rotate() -> None:
    cos, sin = torch.cos(torch.arange(12.0).view(3, 4)).double(), torch.sin(torch.arange(12.0).view(3, 4)).double()
    # Halves that are not the same, as some position schemes have them.
    x = random(2, 3, 4)
    torch.testing.assert_close(rotate(x, cos, sin), plain_rotate(x, cos, sin))
    assert gradcheck(lambda x: rotate(x, cos, sin), (x,))


def test_gated() -> None:
    gate, up = random(5, 6), random(5, 6, seed=1)
    torch.testing.assert_close(gated(gate, up), F.silu(gate) * up)
    assert gradcheck(gated, (gate, up))


@pytest.mark.parametrize("queries", [1, 3, 5])
def test_short_attention(queries: int) -> None:
    q, k, v = random(4, queries, 6), random(2, 5, 6, seed=1), random(2, 5, 6, seed=2)
    mask = torch.full((queries, 5), -torch.inf).triu(5 - queries + 1)
    inputs: Any = (q, k, v)
    # The softmax is taken in fp32.
    ours, theirs = short_attention(*inputs, mask, 0.3), plain_attention(*inputs, mask, 0.3)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    gradient = torch.randn_like(ours)
    for one, other in zip(
        torch.autograd.grad(ours, inputs, gradient), torch.autograd.grad(theirs, inputs, gradient), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_short_attention_in_16_bits_is_close_to_fp32() -> None:
    q, k, v = (random(h, 40, 16, seed=h).detach().float() for h in (4, 2, 2))
    mask = torch.full((40, 40), -torch.inf).triu(1)
    ours = short_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), mask, 0.25)
    assert (ours.float() - plain_attention(q, k, v, mask, 0.25)).abs().max() < 0.05
