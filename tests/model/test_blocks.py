"""Our forward over packed rows gives the scores and the gradients of transformers' own over padded prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import PAIRS, add_random_lora
from torch import Tensor

from rankwright.common.errors import UserError
from rankwright.model.attention import PLAIN, ROUTES, _square, check_attention, choose_route
from rankwright.model.blocks import project, why_not
from rankwright.model.layout import CPU_ROW_TOKENS
from rankwright.model.loading import load_model, load_tokenizer
from rankwright.model.prompt import EncodedGroup, PromptEncoder, make_contract
from rankwright.model.rank_model import RankModel
from rankwright.model.trainable import add_lora, enable_checkpointing, train_all

BASES = ["tiny_qwen3", "tiny_llama"]
# fp32 logits of about ten.
CLOSE = {"rtol": 0.0, "atol": 3e-5}


def load(folder: Path, method: str, dtype: torch.dtype = torch.float32) -> tuple[RankModel, list[EncodedGroup]]:
    """A model that trains by `method`, and groups of 1 to 6 documents, lengths mixed."""
    tokenizer = load_tokenizer(str(folder))
    contract = make_contract(tokenizer, mode="portable", max_tokens=160)
    model = load_model(str(folder), contract, tokenizer, dtype=dtype)
    model = add_random_lora(model) if method == "lora" else train_all(model)
    encoder = PromptEncoder(contract, tokenizer)
    groups = [encoder.encode(PAIRS[i][0], [d * (1 + i % 2) for _, d in PAIRS[i : 2 * i + 1]]) for i in range(6)]
    return model.train(), [g for g in groups if g.tail_ids]


def scores_and_gradients(model: RankModel, groups: list[EncodedGroup]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    scores = model(groups)
    weights = torch.linspace(-1, 1, len(scores))
    (scores * weights).sum().backward()
    return scores.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def distance(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    one, other = (torch.cat([g[n].double().flatten() for n in sorted(g)]) for g in (ours, theirs))
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("attention", ["documents", "dense"])
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("base", BASES)
def test_scores_and_gradients_are_those_of_the_plain_forward(
    base: str, method: str, attention: str, checkpointing: bool, request: pytest.FixtureRequest
) -> None:
    model, groups = load(request.getfixturevalue(base), method)
    model.attention = PLAIN
    plain_scores, plain = scores_and_gradients(model, groups)
    assert plain_scores.std() > 1, "scores too alike for this test to see anything"
    model.attention = attention
    if checkpointing:
        enable_checkpointing(model)
    calls: list[int] = []
    model.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    ours_scores, ours = scores_and_gradients(model, groups)
    assert len(calls) == 1 + checkpointing, "recomputed exactly where it was asked for"
    torch.testing.assert_close(ours_scores, plain_scores, **CLOSE)
    assert distance(ours, plain) < 1e-5


def test_rows_of_any_length_give_the_same(tiny_qwen3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, groups = load(tiny_qwen3, "lora")
    assert sum(g.tokens for g in groups) < CPU_ROW_TOKENS
    whole_scores, whole = scores_and_gradients(model, groups)
    for row_tokens in (1, 150, 400):
        monkeypatch.setattr("rankwright.model.layout.CPU_ROW_TOKENS", row_tokens)
        scores, gradients = scores_and_gradients(model, groups)
        torch.testing.assert_close(scores, whole_scores, **CLOSE)
        assert distance(gradients, whole) < 1e-5


def test_training_after_scoring_in_inference_mode(tiny_qwen3: Path) -> None:
    """Masks are kept between calls: tensors made in inference mode would stop the backward pass."""
    model, groups = load(tiny_qwen3, "lora")
    _square.cache_clear()
    with torch.inference_mode():
        expected = model(groups)
    scores, _ = scores_and_gradients(model, groups)
    torch.testing.assert_close(scores, expected.clone(), **CLOSE)


def test_flex_attention_sees_what_the_others_see(tiny_qwen3: Path) -> None:
    """On a CPU it has no backward pass: scores only."""
    model, groups = load(tiny_qwen3, "lora")
    with torch.no_grad():
        expected = model(groups)
        model.attention = "flex"
        torch.testing.assert_close(model(groups), expected, **CLOSE)


def test_bf16_is_close_to_fp32_and_trains(tiny_qwen3: Path) -> None:
    model, groups = load(tiny_qwen3, "lora")
    expected, gradients = scores_and_gradients(model, groups)
    short, _ = load(tiny_qwen3, "lora", torch.bfloat16)
    assert all(p.dtype == torch.float32 for p in short.parameters() if p.requires_grad)
    scores, found = scores_and_gradients(short, groups)
    assert scores.dtype == torch.float32
    # Random large weights are hard on 16 bits: the plain forward in bf16 is as far away.
    short.attention = PLAIN
    plain, plain_gradients = scores_and_gradients(short, groups)
    assert (scores - expected).abs().mean() < 1.5 * (plain - expected).abs().mean() + 0.05
    assert distance(found, gradients) < 1.5 * distance(plain_gradients, gradients) + 0.05


def test_full_training_in_bf16_runs_under_autocast(tiny_qwen3: Path) -> None:
    model, groups = load(tiny_qwen3, "full")
    expected, gradients = scores_and_gradients(model, groups)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.compute_dtype == torch.bfloat16
        scores, found = scores_and_gradients(model, groups)
    assert all(g.dtype == torch.float32 for g in found.values())
    assert not torch.equal(scores, expected)
    assert (scores - expected).abs().mean() < 0.5
    assert distance(found, gradients) < 0.3


def test_a_cache_under_checkpointing_is_wrong(tiny_qwen3: Path) -> None:
    """The negative control: why heads are not shared through a transformers Cache. The layer drops it in silence."""
    from transformers import DynamicCache

    model, groups = load(tiny_qwen3, "lora")
    group = groups[0]
    (expected,) = model([EncodedGroup(group.head_ids, group.tail_ids[:1], False, 0)]).detach()

    def through_cache() -> Tensor:
        cache = DynamicCache(config=model.causal_lm.config)
        decoder: Any = model.decoder
        decoder(input_ids=torch.tensor([group.head_ids]), cache=cache, use_cache=True)
        tail = torch.tensor([group.tail_ids[0]])
        positions = torch.arange(len(group.head_ids), len(group.head_ids) + tail.shape[1])[None]
        hidden = decoder(input_ids=tail, position_ids=positions, cache=cache, use_cache=True)
        return (hidden.last_hidden_state[0, -1].float() @ model.score_weight_H).detach()

    torch.testing.assert_close(through_cache(), expected, **CLOSE)
    enable_checkpointing(model)
    assert (through_cache() - expected).abs() > 0.1


def test_adapters_with_dropout_go_through_peft(tiny_qwen3: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_qwen3))
    contract = make_contract(tokenizer, mode="portable", max_tokens=160)
    model = add_lora(load_model(str(tiny_qwen3), contract, tokenizer), rank=4, alpha=8, dropout=0.5, seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    assert model.has_dropout
    linear = model.blocks[0].layer.self_attn.q_proj
    x = torch.randn(50, 64)
    (evaluated,) = project(x, [linear.eval()])
    torch.testing.assert_close(evaluated, linear(x), rtol=1e-5, atol=1e-5)
    torch.manual_seed(0)
    (dropped,) = project(x, [linear.train()])
    torch.manual_seed(0)
    assert torch.equal(dropped, linear(x))
    assert not torch.allclose(dropped, evaluated)


def test_what_cannot_run_packed_runs_plain_and_says_why(tiny_qwen3: Path) -> None:
    model, _ = load(tiny_qwen3, "lora")
    assert model.route()[0] == "documents"
    model.causal_lm.config.layer_types = ["sliding_attention", "full_attention"]
    assert model.route() == (PLAIN, "the base has sliding-window layers")
    model.attention = "dense"
    with pytest.raises(UserError, match=r"model\.attention: dense cannot run: the base has sliding"):
        model.route()
    model.attention = PLAIN
    assert model.route()[0] == PLAIN


@pytest.mark.parametrize(("change", "reason"), [({"model_type": "gemma"}, "gemma"), ({"hidden_act": "gelu"}, "gelu")])
def test_other_architectures_are_left_to_transformers(tiny_qwen3: Path, change: dict[str, str], reason: str) -> None:
    model, _ = load(tiny_qwen3, "lora")
    config = model.causal_lm.config
    assert why_not(config) is None
    for key, value in change.items():
        object.__setattr__(config, key, value)
    assert reason in str(why_not(config))


def test_routes_by_device() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert choose_route("auto", cpu, torch.float32)[0] == "documents"
    assert choose_route("auto", gpu, torch.float32)[0] == "flex"
    assert choose_route("dense", cpu, torch.float32) == ("dense", "chosen in the recipe")
    with pytest.raises(UserError, match="varlen needs a CUDA device and bf16, here cpu and float32"):
        choose_route("varlen", cpu, torch.float32)
    for name in ("auto", PLAIN, *ROUTES):
        check_attention(name)
    with pytest.raises(UserError, match=r"unknown attention 'flash'.*documents"):
        check_attention("flash")
