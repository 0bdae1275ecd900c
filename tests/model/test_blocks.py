"""Our forward over packed rows gives the scores and the gradients of transformers' own over padded prompts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import PAIRS, add_random_lora
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rankwright.common.errors import UserError
from rankwright.model import attention, layout
from rankwright.model.attention import (
    PLAIN,
    ROUTES,
    _square,
    attend_scored,
    attend_scored_in_parts,
    check_attention,
    choose_route,
    has_varlen,
    route_for,
)
from rankwright.model.blocks import project, why_not
from rankwright.model.layout import CPU_ROW_TOKENS, pack
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
@pytest.mark.parametrize("route", ["documents", "dense"])
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("base", BASES)
def test_scores_and_gradients_are_those_of_the_plain_forward(
    base: str, method: str, route: str, checkpointing: bool, request: pytest.FixtureRequest
) -> None:
    model, groups = load(request.getfixturevalue(base), method)
    model.attention = PLAIN
    plain_scores, plain = scores_and_gradients(model, groups)
    assert plain_scores.std() > 1, "scores too alike for this test to see anything"
    model.attention = route
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
    rows: list[int] = []
    model.blocks[0].register_forward_pre_hook(lambda _, arguments: rows.append(len(arguments[0])))
    for row_tokens in (1, 150, 400):
        monkeypatch.setattr(layout, "CPU_ROW_TOKENS", row_tokens)
        rows.clear()
        scores, gradients = scores_and_gradients(model, groups)
        assert len(rows) > 1 and (max(rows) <= row_tokens or row_tokens == 1)
        torch.testing.assert_close(scores, whole_scores, **CLOSE)
        assert distance(gradients, whole) < 1e-5


class Sizes(TorchDispatchMode):
    """The numbers of every tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[int] = []

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        found = operation(*arguments, **(keywords or {}))
        self.numbers += [t.numel() for t in tree_leaves(found) if isinstance(t, Tensor)]
        return found


def of_lengths(head: int, documents: list[int]) -> EncodedGroup:
    return EncodedGroup([1] * head, [[2] * length for length in documents], False, 0)


@pytest.mark.parametrize("route", ["documents", PLAIN])
def test_a_list_of_any_length_is_scored_in_bounded_memory(
    tiny_qwen3: Path, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a GPU rows and chunks are bounded too, by more tokens.
    assert [layout.row_tokens(on_cpu) for on_cpu in (True, False)] == [4096, 32768]
    assert [layout.chunk_tokens(on_cpu) for on_cpu in (True, False)] == [4096, 16384]
    monkeypatch.setattr(layout, "CPU_ROW_TOKENS", 1000)
    model, _ = load(tiny_qwen3, "lora")
    model.eval().attention = route
    largest = []
    for documents in (20, 200):
        with torch.no_grad(), Sizes() as sizes:
            assert model([of_lengths(50, [100] * documents)]).shape == (documents,)
        largest.append(max(sizes.numbers))
    assert largest[1] <= 1.1 * largest[0]


@pytest.mark.parametrize(("head", "document"), [(40, 25), (300, 500)])
def test_the_last_layer_needs_memory_that_grows_with_the_tokens(head: int, document: int) -> None:
    totals = []
    for documents in (64, 512):
        (row,) = pack([of_lengths(head, [document] * documents)], None, layout.SHAPE_MULTIPLE)
        q_HND = torch.empty(16, len(row.scored_N), 128, device="meta")
        k_KTD = torch.empty(8, len(row.ids_T), 128, device="meta")
        with Sizes() as sizes:
            assert attend_scored_in_parts(q_HND, k_KTD, k_KTD, row, 0.1).shape == (len(row.scored_N), 16, 128)
        totals.append(sum(sizes.numbers))
    # Eight times the tokens; under one mask for all documents it would be 64 times.
    assert totals[1] < 9 * totals[0]


@pytest.mark.parametrize("multiple", [1, 128])
def test_scored_tokens_in_parts_are_those_under_one_mask(multiple: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "SCORED_AT_ONCE", 3)
    groups = [of_lengths(5 + i, [1 + (7 * i + j) % 9 for j in range(1 + 2 * i)]) for i in range(5)]
    (row,) = pack(groups, None, multiple)
    tokens, scored = len(row.ids_T), len(row.scored_N)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(h, t, 8, generator=generator) for h, t in ((4, scored), (2, tokens), (2, tokens))]
    found = []
    for attend in (attend_scored, attend_scored_in_parts):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out_NHD = attend(*leaves, row, 0.3)
        weights = torch.linspace(-1, 1, out_NHD[: len(row.documents)].numel()).view(-1, 4, 8)
        (out_NHD[: len(row.documents)] * weights).sum().backward()
        found.append([out_NHD.detach(), *(leaf.grad for leaf in leaves)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=1e-5)


def test_long_documents_need_no_square_of_their_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    (row,) = pack([of_lengths(30, [50, 4, 90]), of_lengths(70, [60])], None)
    inputs = [torch.randn(h, len(row.ids_T), 8, generator=generator) for h in (4, 2, 2)]
    expected = ROUTES["documents"](*inputs, row, 0.3)
    for long_keys in (1, 60, 100):
        monkeypatch.setattr(attention, "LONG_KEYS", long_keys)
        torch.testing.assert_close(ROUTES["documents"](*inputs, row, 0.3), expected, rtol=0.0, atol=1e-5)
    monkeypatch.undo()
    # 16,000 keys: a square has 256 million numbers.
    (row,) = pack([of_lengths(1000, [15000])], None)
    inputs = [torch.zeros(1, len(row.ids_T), 8) for _ in range(3)]
    with Sizes() as sizes:
        ROUTES["documents"](*inputs, row, 0.3)
    assert max(sizes.numbers) < 2**22


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.builds(of_lengths, st.integers(1, 400), st.lists(st.integers(1, 500), min_size=1, max_size=4)),
        min_size=1,
        max_size=4,
    )
)
def test_blocks_of_flex_attention_are_those_with_tokens_that_see_each_other(groups: list[EncodedGroup]) -> None:
    (row,) = pack(groups, None)
    places = torch.arange(len(row.ids_T))
    count = -(-len(row.ids_T) // attention.FLEX_BLOCK)
    pairs = torch.zeros(2 * [count * attention.FLEX_BLOCK], dtype=torch.bool)
    pairs[: len(places), : len(places)] = row.allowed(places[:, None], places[None, :])
    tiles = pairs.view(count, attention.FLEX_BLOCK, count, attention.FLEX_BLOCK).transpose(1, 2).flatten(2)
    some_QK, whole_QK = attention._blocks_that_meet(row.segments, len(row.ids_T))
    assert torch.equal(some_QK, tiles.any(dim=2))
    assert not (whole_QK & ~tiles.all(dim=2)).any()
    mask = attention._block_mask(row, torch.device("cpu"))
    assert torch.equal(mask.to_dense()[0, 0].bool(), some_QK)
    assert torch.equal(mask.full_kv_num_blocks[0, 0].long(), whole_QK.sum(dim=1))


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


def test_blocks_of_a_long_row_need_little_memory() -> None:
    (row,) = pack([of_lengths(500, [300] * 100)], None)
    with Sizes() as sizes:
        attention._block_mask(row, torch.device("cpu"))
    # Pairs of blocks of 128 tokens, not of tokens.
    assert max(sizes.numbers) <= max((len(row.ids_T) // 128 + 1) ** 2, 2 * len(row.ids_T))


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


def test_what_has_no_blocks_of_ours_runs_packed_in_transformers_layers(tiny_qwen3: Path) -> None:
    model, groups = load(tiny_qwen3, "lora")
    assert model.route()[0] == "documents" and model.has_own_layers
    expected, gradients = scores_and_gradients(model, groups)
    model.causal_lm.config.hidden_act = "gelu"
    why = "fastest on a CPU, in transformers' own layers (its activation is gelu, not silu)"
    assert model.route() == ("documents", why) and not model.has_own_layers
    # Only what the config says was changed, not what the layers do.
    scores, found = scores_and_gradients(model, groups)
    torch.testing.assert_close(scores, expected, **CLOSE)
    assert distance(found, gradients) < 1e-5
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
    assert route_for("auto", "cuda", torch.bfloat16, has_kernel=True)[0] == "varlen"
    assert route_for("auto", "cuda", torch.bfloat16, has_kernel=False)[0] == "flex"
    assert choose_route("dense", cpu, torch.float32) == ("dense", "chosen in the recipe")
    with pytest.raises(UserError, match="varlen needs a CUDA device and bf16, here cpu and float32"):
        choose_route("varlen", cpu, torch.float32)
    for name in ("auto", PLAIN, *ROUTES):
        check_attention(name)
    with pytest.raises(UserError, match=r"unknown attention 'flash'.*documents"):
        check_attention("flash")


def old_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
    return_aux: Any = None,
) -> Tensor:
    """The signature of torch 2.10."""
    raise AssertionError("must not be called as `varlen` calls it")


@pytest.mark.parametrize("version", ["2.9", "2.10"])
def test_a_torch_without_the_options_of_varlen_takes_flex(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.nn.attention.varlen as module

    if version == "2.9":
        # It has no such module.
        monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    else:
        monkeypatch.setattr(module, "varlen_attn", old_varlen)
    has_varlen.cache_clear()
    try:
        route, why = route_for("auto", "cuda", torch.bfloat16, has_kernel=True)
        assert route == "flex" and f"torch {torch.__version__} has no FlashAttention over segments" in why
        with pytest.raises(UserError, match="varlen needs a newer torch, whose varlen_attn takes enable_gqa"):
            route_for("varlen", "cuda", torch.bfloat16, has_kernel=True)
    finally:
        has_varlen.cache_clear()


@pytest.mark.parametrize("family", ["gpt_neox", "gpt2"])
def test_plain_attention_of_bases_whose_embeddings_have_another_name(tiny_qwen3: Path, family: str) -> None:
    from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig

    sizes = {"vocab_size": 1000, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = GPTNeoXConfig(**sizes, intermediate_size=64) if family == "gpt_neox" else GPT2Config(**sizes)
    lm = AutoModelForCausalLM.from_config(config).eval()
    rows_2H = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    model = RankModel(lm, rows_2H, pad_id=0).eval()
    group = EncodedGroup([5, 6, 7], [[8, 9], [10]], False, 0)
    for model.attention in ("auto", PLAIN):
        with torch.no_grad():
            scores = model([group])
            states = [lm(torch.tensor([group.head_ids + t]), output_hidden_states=True) for t in group.tail_ids]
        expected = torch.stack([s.hidden_states[-1][0, -1] @ (rows_2H[1] - rows_2H[0]) for s in states])
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
