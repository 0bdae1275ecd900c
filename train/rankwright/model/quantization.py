"""Frozen linear layers in 4 bits: NF4 with double quantisation, by bitsandbytes.

Dettmers et al. 2023 (QLoRA), arXiv 2305.14314: each block of 64 weights is divided by its largest absolute value, and
each quotient becomes the nearest of 16 levels; the largest values are kept in 8 bits themselves. Numbers are quantised
on the CPU, so that they are the same whatever device they are used on.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from rankwright.common.errors import UserError

KEY = "model.quantize"
NF4 = "nf4"
# Weights of a block, and blocks whose largest values are quantised together.
BLOCK, BLOCKS = 64, 256
# The tables of 16 and of 256 levels, and the mean of the largest values, in fp32.
TABLES_BYTES = 4 * (16 + 256 + 1)


def why_not_installed() -> str | None:
    """The line for a user who lacks the library, or None."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return f"{KEY}: {NF4} needs bitsandbytes: pip install 'rankwright[gpu]', or remove the key"
    return None


class _Product(Function):
    """x W^T, where W is dequantised anew in each pass: only its 4 bits are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: NF4Linear) -> Tensor:
        ctx.layer, ctx.dtype = layer, x.dtype
        return F.linear(x, layer.dequantized().to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return (gradient @ ctx.layer.dequantized().to(gradient.dtype)).to(ctx.dtype), None


class NF4Linear(nn.Linear):
    """A frozen linear layer with its weight in 4 bits, made of a linear layer with a weight of 16 or 32 bits.

    weight: uint8, two numbers a byte. On the meta device it has its shape only. Dequantised weights have the type that
    the weight had.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        weight = linear.weight.detach()
        self.bias = linear.bias
        self.dtype = weight.dtype
        self.state: Any = None
        if weight.device.type == "meta":
            packed = torch.empty(weight.numel() // 2, 1, dtype=torch.uint8, device="meta")
        else:
            from bitsandbytes.functional import quantize_4bit

            packed, self.state = quantize_4bit(
                weight.contiguous(), blocksize=BLOCK, compress_statistics=True, quant_type=NF4
            )
        self.weight = nn.Parameter(packed, requires_grad=False)

    @property
    def bytes(self) -> int:
        """Bytes of the weight with its statistics: about 0.52 a number."""
        numbers = self.in_features * self.out_features
        blocks = -(-numbers // BLOCK)
        return numbers // 2 + blocks + 4 * -(-blocks // BLOCKS) + TABLES_BYTES

    def dequantized(self) -> Tensor:
        """The weight as the products see it."""
        from bitsandbytes.functional import dequantize_4bit

        return cast(Tensor, dequantize_4bit(self.weight.detach(), self.state))

    def forward(self, x: Tensor) -> Tensor:
        product = cast(Tensor, cast(Any, _Product).apply(x, self))
        return product if self.bias is None else product + self.bias.to(product.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NF4Linear:
        # Casts to another float type leave uint8 and these statistics as they are; moves take both.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.state is not None:
            self.state.to(self.weight.device)
        return self


def quantize(decoder: nn.Module, names: Iterable[str]) -> int:
    """Put NF4Linear in the place of the linear layers of these names, one by one; returns how many.

    Layers whose inputs are not a multiple of BLOCK stay as they are. Raises UserError where none is left, and where
    bitsandbytes is missing. On the meta device it is not needed.
    """
    wanted, done = set(names), 0
    for parent in list(decoder.modules()):
        for name, child in list(parent.named_children()):
            if name not in wanted or type(child) is not nn.Linear or child.in_features % BLOCK:
                continue
            if child.weight.device.type != "meta" and (fault := why_not_installed()):
                raise UserError(fault)
            setattr(parent, name, NF4Linear(child))
            done += 1
    if not done:
        raise UserError(f"{KEY}: the base has no linear layer whose inputs are a multiple of {BLOCK}: remove the key")
    return done


def dequantize(model: nn.Module) -> None:
    """Put ordinary linear layers with the dequantised weights in the place of all NF4Linear, one by one."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, NF4Linear):
                plain = nn.Linear(child.in_features, child.out_features, bias=False, device="meta")
                plain.weight = nn.Parameter(child.dequantized(), requires_grad=False)
                plain.bias = child.bias
                setattr(parent, name, plain)


def is_quantized(model: nn.Module) -> bool:
    """Whether layers of the model are in 4 bits."""
    return any(isinstance(module, NF4Linear) for module in model.modules())


def numbers_of(parameter: Tensor) -> int:
    """Numbers in a parameter: two in each byte of one in 4 bits."""
    return parameter.numel() * (2 if parameter.dtype == torch.uint8 else 1)
