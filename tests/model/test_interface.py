"""Packed rows through transformers' own layers: scores and gradients of padded prompts, in every family that fits."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from families import make_base
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import PAIRS, add_random_lora
from torch import Tensor, nn
from transformers.masking_utils import (
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)

from rankwright.common.errors import UserError
from rankwright.model import attention, interface
from rankwright.model.attention import PLAIN, ROUTES, weighed
from rankwright.model.interface import Unfit, window_of
from rankwright.model.layout import Row, pack
from rankwright.model.loading import load_model, load_tokenizer
from rankwright.model.prompt import EncodedGroup, PromptEncoder, make_contract
from rankwright.model.rank_model import RankModel
from rankwright.model.trainable import enable_checkpointing, train_all

# Experts; norms around every part, and windows; one matrix of queries, keys and values; windows and sinks.
FEW = ("qwen3_moe", "gemma3_text", "phi3", "gpt_oss")
MANY = (
    "mistral mixtral ministral gemma gemma2 gemma3 gemma4_text smollm3 olmo olmo2 olmo3 olmoe granite granitemoe glm "
    "glm4 glm4_moe ernie4_5 ernie4_5_moe hunyuan_v1_dense hunyuan_v1_moe nemotron exaone4 cohere cohere2 deepseek_v2 "
    "deepseek_v3 phimoe qwen2_moe starcoder2 stablelm gpt2 gpt_neox seed_oss apertus arcee helium dots1"
).split()
PLAIN_ONLY = {
    "qwen3_next": "layers of the kind linear_attention",
    "falcon_h1": "layers of the kind hybrid",
    "lfm2_moe": "layers of the kind conv",
    "llama4_text": "layers of the kind chunked_attention",
    "bloom": "call no attention that can be replaced",
}


def load(folder: Path, family: str, tokenizer: Path, method: str = "lora") -> tuple[RankModel, list[EncodedGroup]]:
    """A tiny base of the family that trains by `method`, and groups of 1 to 4 documents, lengths mixed."""
    if not folder.exists():
        make_base(folder, family, tokenizer)
        # A cap on the logits is refused whatever the layers are.
        config = folder / "config.json"
        config.write_text(
            re.sub(r'"final_logit_softcapping": [0-9.]+', '"final_logit_softcapping": null', config.read_text())
        )
    own = load_tokenizer(str(folder))
    contract = make_contract(own, mode="portable", max_tokens=160)
    model = load_model(str(folder), contract, own)
    model = add_random_lora(model) if method == "lora" else train_all(model)
    encoder = PromptEncoder(contract, own)
    groups = [encoder.encode(PAIRS[i][0], [d * (1 + i % 2) for _, d in PAIRS[i : 2 * i + 1]]) for i in range(4)]
    return model.train(), groups


def scores_and_gradients(model: RankModel, groups: list[EncodedGroup]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    scores = model(groups)
    (scores * torch.linspace(-1, 1, len(scores))).sum().backward()
    return scores.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def check_equal(model: RankModel, groups: list[EncodedGroup], wanted: tuple[Tensor, dict[str, Tensor]]) -> None:
    scores, gradients = scores_and_gradients(model, groups)
    plain, theirs = wanted
    torch.testing.assert_close(scores, plain, rtol=0, atol=1e-5 * max(1.0, float(plain.abs().max())))
    assert gradients.keys() == theirs.keys()
    one, other = (torch.cat([g[n].double().flatten() for n in sorted(g)]) for g in (gradients, theirs))
    assert float((one - other).norm() / other.norm()) < 1e-4


def check_family(folder: Path, family: str, tokenizer: Path) -> None:
    for method in ("lora", "full"):
        model, groups = load(folder, family, tokenizer, method)
        model.attention = PLAIN
        wanted = scores_and_gradients(model, groups)
        assert wanted[0].std() > 0.01, "scores too alike for this test to see anything"
        model.attention = "auto"
        route, why = model.route()
        assert route == "documents" and "in transformers' own layers" in why and not model.has_own_layers
        check_equal(model, groups, wanted)
    enable_checkpointing(model)
    check_equal(model, groups, wanted)


@pytest.mark.parametrize("family", FEW)
def test_packed_scores_and_gradients_are_those_of_padded_prompts(family: str, tiny_qwen3: Path, tmp_path: Path) -> None:
    check_family(tmp_path / "base", family, tiny_qwen3)


@pytest.mark.slow
@pytest.mark.parametrize("family", MANY)
def test_most_families_run_packed(family: str, tiny_qwen3: Path, tmp_path: Path) -> None:
    check_family(tmp_path / "base", family, tiny_qwen3)


@pytest.mark.parametrize("family", PLAIN_ONLY)
def test_what_carries_a_state_or_has_masks_of_its_own_runs_plain_and_says_why(
    family: str, tiny_qwen3: Path, tmp_path: Path
) -> None:
    model, groups = load(tmp_path / "base", family, tiny_qwen3)
    route, why = model.route()
    assert route == PLAIN and PLAIN_ONLY[family] in why and why.isprintable()
    scores = model(groups)
    model.attention = PLAIN
    assert torch.equal(model(groups), scores)
    model.attention = "dense"
    with pytest.raises(UserError, match=r"^model\.attention: dense cannot run: .*: use `auto` or `plain`$"):
        model.route()


def test_a_convolution_runs_plain_whatever_the_config_says(tiny_qwen3: Path, tmp_path: Path) -> None:
    model, _ = load(tmp_path / "base", "mistral", tiny_qwen3)
    model.blocks[0].layer.add_module("conv", nn.Conv1d(2, 2, 3))
    fresh = RankModel(model.lm, model.rows_2H, model.pad_id)
    assert fresh.route()[0] == PLAIN and "carry a state from token to token (convolution" in fresh.route()[1]


def test_a_querys_head_is_computed_once_and_a_layer_again_under_checkpointing(tiny_qwen3: Path, tmp_path: Path) -> None:
    model, groups = load(tmp_path / "base", "mistral", tiny_qwen3)
    tokens: list[int] = []
    first: Any = model.blocks[0].layer
    first.self_attn.q_proj.register_forward_pre_hook(lambda _, arguments: tokens.append(arguments[0].shape[1]))
    scores_and_gradients(model, groups)
    assert tokens == [sum(g.tokens for g in groups)]
    tokens.clear()
    enable_checkpointing(model)
    scores_and_gradients(model, groups)
    assert tokens == [sum(g.tokens for g in groups)] * 2


@pytest.mark.parametrize("route", ["dense", "flex"])
def test_other_routes_give_the_same(route: str, tiny_qwen3: Path, tmp_path: Path) -> None:
    model, groups = load(tmp_path / "base", "gemma3_text", tiny_qwen3)
    model.eval()
    with torch.no_grad():
        wanted = model(groups)
        model.attention = route
        assert model.route()[0] == route
        torch.testing.assert_close(model(groups), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("family", ["gemma3_text", "deepseek_v3"])
def test_bf16_is_as_near_as_padded_prompts_are(family: str, tiny_qwen3: Path, tmp_path: Path) -> None:
    """Shapes are rounded up there, which no document sees; heads of values may be smaller than those of keys."""
    model, groups = load(tmp_path / "base", family, tiny_qwen3, "full")
    with torch.no_grad():
        exact = model(groups)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        packed, gradients = scores_and_gradients(model, groups)
        assert model.route()[0] == "documents"
        model.attention = PLAIN
        with torch.no_grad():
            plain = model(groups)
    assert (packed - exact).abs().mean() < 2 * (plain - exact).abs().mean() + 0.05
    assert all(g.isfinite().all() for g in gradients.values())
    # The trial of the route, which has no graph, left none of its casts behind.
    assert gradients.keys() == {n for n, p in model.named_parameters() if p.requires_grad}


def test_a_family_whose_rows_are_not_exact_runs_plain(
    tiny_qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a family had a detail that our attention does not know."""
    monkeypatch.setattr(
        interface, "ROUTES", {"documents": lambda q, k, v, row, scale, window: ROUTES["documents"](q, k, v, row, scale)}
    )
    model, _ = load(tmp_path / "base", "gemma3_text", tiny_qwen3)
    route, why = model.route()
    assert route == PLAIN and why.startswith("packed rows give other hidden states than its own forward (by ")


def test_configs_are_as_before_whatever_happens(
    tiny_qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, groups = load(tmp_path / "base", "mistral", tiny_qwen3)
    assert model.route()[0] == "documents", model.route()
    before = model.causal_lm.config._attn_implementation
    model(groups)
    assert model.causal_lm.config._attn_implementation == before
    monkeypatch.setattr(interface, "window_of", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(groups)
    assert model.causal_lm.config._attn_implementation == before
    model.attention = PLAIN
    assert model(groups).isfinite().all()


def test_threads_may_score_with_one_model(tiny_qwen3: Path, tmp_path: Path) -> None:
    """They share its configs, which name our attention while a row is computed."""
    model, groups = load(tmp_path / "base", "mistral", tiny_qwen3)
    model.eval()

    def score(group: EncodedGroup) -> Tensor:
        with torch.no_grad():
            return model([group])

    wanted = torch.cat([score(group) for group in groups])
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert torch.equal(torch.cat(list(pool.map(score, groups))), wanted)
    assert model.causal_lm.config._attn_implementation != interface.NAME


@pytest.mark.parametrize("tokens", [1, 2, 7, 8, 9, 40])
def test_the_window_of_a_mask(tokens: int) -> None:
    assert window_of(causal_mask_function, tokens) is None
    assert window_of(sliding_window_causal_mask_function(8), tokens) == (None if tokens <= 8 else 8)
    chunks = chunked_causal_mask_function(8, torch.zeros(1, dtype=torch.long))
    if tokens <= 8:
        assert window_of(chunks, tokens) is None
    else:
        with pytest.raises(Unfit, match=r"^model\.attention: packed rows do not fit this base: a token sees others"):
            window_of(chunks, tokens)
    if tokens > 1:
        with pytest.raises(Unfit):
            window_of(lambda batch, head, query, key: key <= query + 1, tokens)


LENGTHS = st.lists(
    st.tuples(st.integers(1, 9), st.lists(st.integers(1, 9), min_size=1, max_size=3)), min_size=1, max_size=3
)


def drawn(row: Row, value_size: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = len(row.ids_T)
    return [
        torch.randn(heads, tokens, size, generator=generator)
        for heads, size in zip((4, 2, 2), (8, 8, value_size), strict=True)
    ]


def by_hand(
    q: Tensor, k: Tensor, v: Tensor, row: Row, window: int | None, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """Token by token and head by head."""
    out = torch.zeros(q.shape[1], q.shape[0], v.shape[-1])
    places = torch.arange(q.shape[1])
    for place in range(q.shape[1]):
        seen = row.allowed(torch.tensor(place), places)
        if window is not None:
            seen &= row.positions_T > row.positions_T[place] - window
        for head in range(q.shape[0]):
            scores = (k[head // 2][seen] @ q[head, place]) * 0.3
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            weights = torch.exp(scores)
            rest = torch.exp(sinks[head]) if sinks is not None else 0.0
            out[place, head] = (weights / (weights.sum() + rest)) @ v[head // 2][seen]
    return out


@settings(max_examples=15)
@given(LENGTHS, st.sampled_from([None, 1, 3, 8]), st.integers(0, 9))
def test_windows_and_weights_are_those_computed_by_hand(
    lengths: list[tuple[int, list[int]]], window: int | None, seed: int
) -> None:
    groups = [EncodedGroup([1] * head, [[1] * tail for tail in tails], False, 0) for head, tails in lengths]
    [row] = pack(groups, None)
    q, k, v = drawn(row, 6, seed)
    wanted = by_hand(q, k, v, row, window, None, None)
    for name in ("documents", "dense"):
        torch.testing.assert_close(ROUTES[name](q, k, v, row, 0.3, window), wanted, rtol=0, atol=1e-5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "LONG_KEYS", 2)
        patch.setattr(attention, "WINDOW_QUERIES", 3)
        torch.testing.assert_close(ROUTES["documents"](q, k, v, row, 0.3, window), wanted, rtol=0, atol=1e-5)
    sinks = torch.linspace(-1, 1, 4)
    for softcap, sinks_H in ((2.0, None), (None, sinks), (0.5, sinks)):
        found = weighed(q, k, v, row, 0.3, window, softcap=softcap, sinks_H=sinks_H)
        torch.testing.assert_close(found, by_hand(q, k, v, row, window, softcap, sinks_H), rtol=0, atol=1e-5)


def own_states(model: RankModel, texts: list[list[int]]) -> Tensor:
    """transformers' states of each text alone, one after the other."""
    decoder: Any = model.text_decoder
    return torch.cat([decoder(input_ids=torch.tensor([t]), use_cache=False).last_hidden_state[0] for t in texts])


@pytest.mark.parametrize("family", ["mistral", *FEW[1:]])
def test_packed_texts_have_the_states_and_gradients_of_transformers(
    family: str, tiny_qwen3: Path, tmp_path: Path
) -> None:
    """Texts are rows of heads alone; some are longer than a window."""
    model, groups = load(tmp_path / "base", family, tiny_qwen3)
    lengths = (1, 7, 90, 64)
    texts = [(g.head_ids + tail)[:n] for g, n in zip(groups, lengths, strict=True) for tail in g.tail_ids]
    model(groups)  # which tries the route
    found = []
    for kept in ("none", "cheap"):
        if kept == "cheap":
            # Transformers' own layers recompute everything.
            enable_checkpointing(model, cheap=True)
        for states in (lambda: model([], texts), lambda: own_states(model, texts)):
            model.zero_grad()
            made = states()
            (made * torch.linspace(-1, 1, made.numel()).view_as(made)).sum().backward()
            gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            found.append((made.detach(), torch.cat([gradients[n].flatten() for n in sorted(gradients)])))
    wanted, by = found[1]
    for made, gradient in found:
        torch.testing.assert_close(made, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
        assert float((gradient - by).norm() / by.norm()) < 1e-4
    assert model.route()[0] == "documents" and not model.has_own_layers
    model.eval()
    for route in ("dense", "flex"):
        model.attention = route
        with torch.no_grad():
            torch.testing.assert_close(model([], texts), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
