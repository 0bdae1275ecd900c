"""Norms and activations that the backward pass computes again: the same gradients, and what plan says is kept."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from step_worker import build, groups
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rankwright.model.kernels import gated, remade, rms_norm
from rankwright.model.loading import load_model, load_tokenizer
from rankwright.model.prompt import make_contract
from rankwright.model.rank_model import RankModel
from rankwright.model.trainable import add_lora, enable_checkpointing
from rankwright.recipe.schema import Model
from rankwright.training.estimate.cost import INDEX_BYTES, Types, last_layer_bytes, layer_bytes
from rankwright.training.estimate.shapes import Target, architecture_of, row_work, rows_of


class Norm(torch.nn.Module):
    variance_epsilon = 1e-6

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(0.5, 2, 8))


def test_views_of_a_tensor_are_made_again_with_its_values() -> None:
    norm, x = Norm(), torch.randn(6, 8, requires_grad=True)
    matrix = torch.randn(4, 3, requires_grad=True)
    found = []
    for cheap in (False, True):
        calls = []
        normed = rms_norm(norm, x)
        again: Callable[[], Tensor] = lambda: (calls.append(1), rms_norm(norm, x.detach()))[1]  # noqa: B023, E731
        with remade([(normed, again)] if cheap else []):
            # A part of it, and the whole of it turned.
            out = (normed[1:5, 4:] @ matrix).sum() + (normed.T @ normed.detach()).square().sum()
        out.backward()
        found.append([t.grad.clone() for t in (x, matrix, norm.weight) if t.grad is not None])
        for tensor in (x, matrix, norm.weight):
            tensor.grad = None
        assert bool(calls) == cheap
    assert len(found[0]) == 3 and all(map(torch.equal, *found))


def test_what_is_remade_is_not_kept() -> None:
    gate, up, matrix = (torch.randn(5, 5, requires_grad=True) for _ in range(3))
    product = gated(gate, up)
    with remade([(product, lambda: gated(gate.detach(), up.detach()))]):
        out = product @ matrix
    gone = weakref.ref(product.untyped_storage())
    del product
    assert gone() is None and out.requires_grad


CASES: list[dict[str, Any]] = [
    {"method": "lora"},
    {"method": "full"},
    {"method": "lora", "bf16": True},
    {"method": "full", "bf16": True},
    {"method": "lora", "family": "llama", "dropout": 0.1},
    {"method": "lora", "attention": "dense"},
]


def passed(case: dict[str, Any], mode: str) -> tuple[Tensor, dict[str, Tensor]]:
    """(scores, gradients) of a pass with fresh weights of a seed."""
    model = build(case | {"checkpointing": {"cheap": "cheap", "full": True}.get(mode)}, 128, 3)
    torch.manual_seed(5)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bool(case.get("bf16"))):
        scores = model(groups(2, 3, 40))
    scores.square().sum().backward()
    return scores.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_gradients_are_the_same_bit_for_bit(case: dict[str, Any]) -> None:
    scores, expected = passed(case, "none")
    for mode in ("cheap", "full"):
        again, found = passed(case, mode)
        assert torch.equal(scores, again) and found.keys() == expected.keys()
        assert [n for n, gradient in found.items() if not torch.equal(gradient, expected[n])] == []


class Alive(TorchDispatchMode):
    """Storages made inside; `bytes`: of those that still live."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        found = operation(*arguments, **(keywords or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.sizes.pop, storage._cdata, None)
        return found

    @property
    def bytes(self) -> int:
        return sum(self.sizes.values())


# What `full` keeps is measured in a step of its own process: test_plan.py.
@pytest.mark.parametrize("mode", ["none", "cheap"])
@pytest.mark.parametrize("case", CASES[:3], ids=lambda case: "-".join(map(str, case.values())))
def test_plan_knows_what_is_kept(case: dict[str, Any], mode: str) -> None:
    model = build(case | {"checkpointing": "cheap" if mode == "cheap" else None}, 256, 4)
    drawn, bits16 = groups(2, 6, 200), bool(case.get("bf16"))
    with torch.no_grad():
        # Masks that are kept for all passes.
        model(drawn)
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    with Alive() as alive:
        scores = model(drawn)
    real = sum(size for place, size in alive.sizes.items() if place not in weights)
    shape, types = architecture_of(model), Types.of(full=case["method"] == "full", bits16=bits16)
    target = Target(model.route()[0], True, bits16)
    plan = 0
    for work in (row_work(row, target) for row in rows_of(drawn, target)):
        # Rotations, ids and positions, which all layers share.
        plan += work.tokens * (2 * shape.head_size * types.hidden + INDEX_BYTES)
        plan += (shape.layers - 1) * layer_bytes(shape, work, target, types)
        plan += last_layer_bytes(shape, work, target, types)
        if not shape.full and not shape.cheap:
            # The first layer's input, whose norm is frozen.
            plan -= shape.hidden * types.hidden * work.tokens
    assert scores.requires_grad and real == pytest.approx(plan, rel=0.06)
    assert shape.cheap == (mode == "cheap") and not shape.recompute


def test_a_base_of_another_forward_pass_recomputes_everything(tiny_qwen3: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_qwen3))
    contract = make_contract(tokenizer, mode="portable", max_tokens=160)
    model: RankModel = load_model(str(tiny_qwen3), contract, tokenizer).requires_grad_(False)
    model = add_lora(model, rank=4, alpha=8, dropout=0.0, seed=1).train()
    model.attention = "plain"
    enable_checkpointing(model, cheap=True)
    assert architecture_of(model).recompute and not architecture_of(model).cheap


@pytest.mark.parametrize(
    ("value", "meant"), [(True, "full"), (False, "none"), ("full", "full"), ("cheap", "cheap"), ("none", "none")]
)
def test_the_key_takes_three_words_and_what_it_took_before(value: bool | str, meant: str) -> None:
    assert Model.model_validate({"base": "x", "gradient_checkpointing": value}).recomputes == meant
