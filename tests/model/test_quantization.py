"""NF4 weights against a reference of 16 levels; what runs on them; their size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import PAIRS
from torch import Tensor, nn

from rankwright.common.errors import UserError
from rankwright.model.loading import load_model, load_tokenizer
from rankwright.model.prompt import PromptEncoder, make_contract
from rankwright.model.quantization import (
    NF4Linear,
    dequantize,
    is_quantized,
    numbers_of,
    quantize,
    why_not_installed,
)
from rankwright.model.rank_model import RankModel
from rankwright.model.trainable import (
    add_lora,
    enable_checkpointing,
    merge_adapters,
    parameter_counts,
    quantize_base,
    trainable_state,
)

pytest.importorskip("bitsandbytes")

# Quantiles of a normal distribution, Dettmers et al. 2023, appendix E.
LEVELS = torch.tensor(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)


def linear_of(outputs: int, inputs: int, dtype: torch.dtype = torch.float32) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, bias=True)
    with torch.no_grad():
        # Blocks of different sizes.
        linear.weight.copy_(torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(3)))
        linear.weight.mul_(torch.linspace(0.01, 2, outputs)[:, None])
    return linear.to(dtype)


def reference(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(levels of each block of 64, their largest absolute values)."""
    blocks = weight.float().reshape(-1, 64)
    largest = blocks.abs().amax(dim=1, keepdim=True)
    nearest = ((blocks / largest)[..., None] - LEVELS).abs().argmin(dim=-1)
    return LEVELS[nearest], largest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_those_of_sixteen_levels(dtype: torch.dtype) -> None:
    linear = linear_of(96, 192, dtype)
    found = NF4Linear(linear).dequantized()
    assert found.dtype == dtype and found.shape == linear.weight.shape
    levels, largest = reference(linear.weight.detach())
    blocks = found.float().reshape(-1, 64)
    # The block's own scale, in 8 bits: nothing else than it may differ from the reference.
    scale = blocks.abs().amax(dim=1, keepdim=True)
    torch.testing.assert_close(blocks, levels * scale, rtol=2**-7 if dtype == torch.bfloat16 else 1e-6, atol=1e-7)
    # 256 scales are coded together, relative to their mean, with steps of at most 1/64 of the largest of them.
    assert (scale - largest).abs().max() < (largest - largest.mean()).abs().max() / 64
    assert not torch.equal(scale, largest), "no double quantisation"


def test_products_and_gradients_are_those_of_the_dequantised_weight() -> None:
    linear = linear_of(64, 128)
    layer = NF4Linear(linear)
    plain = nn.Linear(128, 64)
    plain.weight, plain.bias = nn.Parameter(layer.dequantized()), linear.bias
    x = torch.randn(7, 128, generator=torch.Generator().manual_seed(1))
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    assert torch.equal(layer(ours), plain(theirs))
    layer(ours).square().sum().backward()
    plain(theirs).square().sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-6)
    # Casts of the model leave the 4 bits alone.
    assert torch.equal(layer.to(torch.bfloat16).float().dequantized(), plain.weight)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer("data/fixtures/tiny-base")


def load(tokenizer: Any, dtype: torch.dtype = torch.float32) -> RankModel:
    contract = make_contract(tokenizer, mode="portable", max_tokens=160)
    return load_model("data/fixtures/tiny-base", contract, tokenizer, dtype=dtype)


def adapted(tokenizer: Any, dtype: torch.dtype = torch.float32) -> RankModel:
    """The base in 4 bits with adapters that change its scores."""
    model = load(tokenizer, dtype).requires_grad_(False)
    model = add_lora(quantize_base(model), rank=4, alpha=8, dropout=0.0, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def groups_of(tokenizer: Any) -> list[Any]:
    encoder = PromptEncoder(make_contract(tokenizer, mode="portable", max_tokens=160), tokenizer)
    texts: dict[str, list[str]] = {}
    for query, document in PAIRS:
        texts.setdefault(query, []).append(document)
    return [encoder.encode(query, documents) for query, documents in texts.items()]


def gradients(model: RankModel, groups: list[Any], route: str) -> tuple[Tensor, dict[str, Tensor]]:
    model.attention = route
    model.zero_grad()
    scores = model(groups)
    scores.square().sum().backward()
    return scores.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("recompute", [False, True])
def test_packed_scores_and_gradients_are_the_plain_ones(tokenizer: Any, recompute: bool) -> None:
    model, groups = adapted(tokenizer).train(), groups_of(tokenizer)
    if recompute:
        enable_checkpointing(model)
    packed, own = gradients(model, groups, "documents")
    plain, others = gradients(model, groups, "plain")
    torch.testing.assert_close(packed, plain, rtol=0, atol=1e-5)
    assert own.keys() == others.keys() == trainable_state(model).keys()
    for name, gradient in own.items():
        torch.testing.assert_close(gradient, others[name], rtol=1e-3, atol=1e-4 * gradient.abs().max().item() + 1e-7)


def test_frozen_weights_take_little_more_than_half_a_byte(tokenizer: Any) -> None:
    whole = load(tokenizer)
    numbers = sum(p.numel() for p in whole.text_decoder.parameters() if p.ndim == 2) - 8192 * 192
    model = quantize_base(load(tokenizer))
    layers = [m for m in model.modules() if isinstance(m, NF4Linear)]
    assert len(layers) == 6 * 7
    states = [s for layer in layers for s in (layer.state, layer.state.state2)]
    tables = {id(s.code): s.code for s in states}
    tensors = [layer.weight for layer in layers] + [s.absmax for s in states] + [layer.state.offset for layer in layers]
    used = sum(t.numel() * t.element_size() for t in (*tensors, *tables.values()))
    assert used <= 0.56 * numbers
    counted = sum(layer.bytes for layer in layers)
    # Tables may be shared between layers; plan counts one for each.
    assert used <= counted <= used + len(layers) * 4 * 273
    assert sum(numbers_of(layer.weight) for layer in layers) == numbers
    assert parameter_counts(model)[1] == parameter_counts(whole)[1]
    # Embeddings and norms are as they were.
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.ndim < 2 or p.shape[0] == 8192)
    with torch.device("meta"):
        empty = NF4Linear(nn.Linear(192, 448))
    assert empty.bytes == NF4Linear(linear_of(448, 192)).bytes and empty.weight.shape == (448 * 96, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_scores_are_those_of_the_dequantised_model(tokenizer: Any, dtype: torch.dtype) -> None:
    groups = groups_of(tokenizer)
    with torch.no_grad():
        trained, base = adapted(tokenizer, dtype)(groups), load(tokenizer, dtype).eval()(groups)
        model = adapted(tokenizer, dtype)
        dequantize(model)
        beside = model(groups)
        merged = merge_adapters(model)(groups)
    assert not is_quantized(model) and not hasattr(model.lm, "peft_config")
    assert all(p.dtype == dtype for p in model.parameters())
    atol = 1e-4 if dtype == torch.float32 else 0.2
    torch.testing.assert_close(beside, trained, rtol=0, atol=atol)
    torch.testing.assert_close(merged, trained, rtol=0, atol=atol)
    assert (trained - base).abs().max() > 0.3


def losses_of(model: RankModel, groups: list[Any], steps: int) -> Tensor:
    """The loss of each step: the first document of each group before the others."""
    model = add_lora(model, rank=4, alpha=8, dropout=0.0, seed=1).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    found = []
    for _ in range(steps):
        of_groups = model(groups).split([len(g.tail_ids) for g in groups])
        loss = torch.stack([-torch.log_softmax(scores, 0)[0] for scores in of_groups]).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        found.append(loss.item())
    return torch.tensor(found)


def test_the_loss_falls_as_it_does_over_the_dequantised_base(tokenizer: Any) -> None:
    groups = [g for g in groups_of(tokenizer) if len(g.tail_ids) > 1]
    own = losses_of(load(tokenizer).requires_grad_(False), groups, 4)
    four_bits = losses_of(quantize_base(load(tokenizer)).requires_grad_(False), groups, 4)
    model = quantize_base(load(tokenizer)).requires_grad_(False)
    dequantize(model)
    torch.testing.assert_close(four_bits, losses_of(model, groups, 4), rtol=1e-5, atol=1e-5)
    assert four_bits[-1] < four_bits[0] and not torch.equal(four_bits, own)
    # So small a base loses more by 4 bits than large ones do.
    assert (four_bits - own).abs().max() < 0.1 * own.max()


def test_layers_that_blocks_do_not_fit_stay_as_they_are() -> None:
    both = nn.ModuleDict({"fits": nn.Linear(64, 5), "odd": nn.Linear(65, 64), "other": nn.Linear(64, 64)})
    assert quantize(both, {"fits", "odd"}) == 1
    assert [isinstance(both[name], NF4Linear) for name in ("fits", "odd", "other")] == [True, False, False]
    with pytest.raises(UserError, match=r"^model\.quantize: the base has no linear layer whose inputs are a multiple"):
        quantize(nn.ModuleDict({"odd": nn.Linear(65, 64)}), {"odd"})


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert why_not_installed() == (
        "model.quantize: nf4 needs bitsandbytes: pip install 'rankwright[gpu]', or remove the key"
    )
