"""What is trained: kinds of LoRA against formulas written out here, chosen layers, weights between tuned and base."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tiny import PAIRS
from torch import Tensor, nn

from rankwright.common.errors import UserError
from rankwright.export.weights import merge
from rankwright.model.attention import PLAIN
from rankwright.model.loading import load_model, load_tokenizer
from rankwright.model.prompt import EncodedGroup, PromptEncoder, make_contract
from rankwright.model.rank_model import RankModel
from rankwright.model.trainable import add_lora, linear_names, load_trainable_state, train_all, trainable_state

ALL = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
# fp32 logits of about ten.
CLOSE: dict[str, Any] = {"rtol": 0.0, "atol": 5e-5}


def load(folder: Path, dtype: torch.dtype = torch.float32) -> RankModel:
    tokenizer = load_tokenizer(str(folder))
    contract = make_contract(tokenizer, mode="portable", max_tokens=160)
    return load_model(str(folder), contract, tokenizer, dtype=dtype).eval()


@pytest.fixture(scope="module")
def groups(tiny_qwen3: Path) -> list[EncodedGroup]:
    tokenizer = load_tokenizer(str(tiny_qwen3))
    encoder = PromptEncoder(make_contract(tokenizer, mode="portable", max_tokens=160), tokenizer)
    return [encoder.encode(query, [document]) for query, document in PAIRS]


def scores(model: RankModel, groups: list[EncodedGroup]) -> Tensor:
    with torch.no_grad():
        return cast(Tensor, model(groups))


def lora(folder: Path, **options: Any) -> RankModel:
    """A model whose adapters change the scores."""
    model = add_lora(load(folder), **{"rank": 4, "alpha": 8, "dropout": 0.0, "seed": 0} | options).eval()
    return moved(model)


def moved(model: RankModel) -> RankModel:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "lora_magnitude" in name:
                parameter.mul_(1 + 0.1 * noise)
            elif parameter.requires_grad and "lora_A" not in name:
                parameter.add_(0.1 * noise)
    return model


def linears(model: RankModel) -> dict[str, nn.Linear]:
    """Place in the decoder -> linear layer of a model without adapters."""
    return {name: m for name, m in model.decoder.named_modules() if isinstance(m, nn.Linear)}


def parts(model: RankModel, place: str) -> dict[str, Tensor]:
    """lora_A, lora_B and lora_magnitude_vector of a layer."""
    found = {}
    for name, value in trainable_state(model).items():
        before, _, rest = name.partition(".lora_")
        if before.endswith(f".{place}"):
            found["lora_" + rest.split(".")[0]] = value
    return found


def test_rslora_divides_by_the_root_of_the_rank(tiny_qwen3: Path, groups: list[EncodedGroup]) -> None:
    root, plain = lora(tiny_qwen3, rslora=True), lora(tiny_qwen3)
    # 8 / sqrt(4) = 16 / 4
    twice = lora(tiny_qwen3, alpha=16)
    assert torch.equal(scores(root, groups), scores(twice, groups))
    assert not torch.allclose(scores(root, groups), scores(plain, groups), **CLOSE)


@pytest.mark.parametrize("rslora", [False, True])
def test_dora_by_its_formula(tiny_qwen3: Path, groups: list[EncodedGroup], rslora: bool) -> None:
    model, written_out = lora(tiny_qwen3, dora=True, rslora=rslora), load(tiny_qwen3)
    scale = 8 / math.sqrt(4) if rslora else 8 / 4
    for place, linear in linears(written_out).items():
        part = parts(model, place)
        direction = linear.weight.detach() + scale * part["lora_B"] @ part["lora_A"]
        length = part["lora_magnitude_vector"][:, None]
        linear.weight = nn.Parameter(length * direction / direction.square().sum(1, keepdim=True).sqrt())
    assert not torch.allclose(scores(model, groups), scores(load(tiny_qwen3), groups), rtol=0, atol=1)
    torch.testing.assert_close(scores(model, groups), scores(written_out, groups), **CLOSE)
    torch.testing.assert_close(scores(merge(model), groups), scores(model, groups), **CLOSE)


def test_fresh_dora_changes_nothing_and_all_of_it_is_trained(tiny_qwen3: Path, groups: list[EncodedGroup]) -> None:
    model = load(tiny_qwen3)
    before = scores(model, groups)
    model = add_lora(model, rank=4, alpha=8, dropout=0.0, seed=0, dora=True)
    torch.testing.assert_close(scores(model, groups), before, **CLOSE)
    state = trainable_state(model)
    assert len(state) == 3 * 2 * len(ALL) and all("lora_" in name for name in state)
    moved(model).train()
    model(groups[:2]).square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(g is not None and g.any() for g in gradients.values())


@pytest.mark.parametrize("options", [{"dora": True}, {"targets": ["q_proj", "down_proj"]}])
def test_every_route_of_the_attention_sees_the_adapters(
    tiny_qwen3: Path, groups: list[EncodedGroup], options: dict[str, Any]
) -> None:
    model = lora(tiny_qwen3, **options)
    shared = scores(model, groups)
    model.attention = PLAIN
    torch.testing.assert_close(shared, scores(model, groups), **CLOSE)


@pytest.mark.parametrize("options", [{}, {"dora": True}, {"rslora": True}])
def test_adapters_are_fp32_on_a_bf16_base(tiny_qwen3: Path, options: dict[str, Any]) -> None:
    model = add_lora(load(tiny_qwen3, torch.bfloat16), rank=4, alpha=8, dropout=0.0, seed=0, **options)
    model.lm.requires_grad_(True)
    types = {("lora_" in name, parameter.dtype) for name, parameter in model.named_parameters()}
    assert types == {(True, torch.float32), (False, torch.bfloat16)}


def test_state_of_dora_comes_back_bit_for_bit(tiny_qwen3: Path, groups: list[EncodedGroup]) -> None:
    trained = lora(tiny_qwen3, dora=True)
    fresh = add_lora(load(tiny_qwen3), rank=4, alpha=8, dropout=0.0, seed=5, dora=True).eval()
    load_trainable_state(fresh, trainable_state(trained))
    assert torch.equal(scores(fresh, groups), scores(trained, groups))
    with pytest.raises(UserError, match="not those of this recipe"):
        load_trainable_state(lora(tiny_qwen3), trainable_state(trained))


def test_only_the_targets_are_trained(tiny_qwen3: Path) -> None:
    assert sorted(linear_names(load(tiny_qwen3))) == ALL
    names = trainable_state(lora(tiny_qwen3, targets=["v_proj", "q_proj", "q_proj"]))
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in names} == {"q_proj", "v_proj"}
    assert len(names) == 2 * 2 * 2


def test_unknown_targets_are_told_all_at_once(tiny_qwen3: Path) -> None:
    with pytest.raises(UserError) as caught:
        lora(tiny_qwen3, targets=["q_prj", "v_proj", "lm_head", "q_prj"])
    assert str(caught.value) == (
        "model.targets: no linear layer of this base is named 'q_prj' (did you mean 'q_proj'?) or 'lm_head': "
        f"choose from {', '.join(ALL)}"
    )


def weights(model: RankModel) -> dict[str, Tensor]:
    """The decoder's weights, adapters merged."""
    return {name: p.detach().double() for name, p in merge(model).decoder.named_parameters()}


@pytest.mark.parametrize("base_share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("method", ["lora", "rslora", "full"])
def test_weights_between_tuned_and_base(tiny_qwen3: Path, method: str, base_share: float) -> None:
    def fresh() -> RankModel:
        if method == "full":
            return train_all(load(tiny_qwen3))
        return add_lora(load(tiny_qwen3), rank=4, alpha=8, dropout=0.0, seed=7, rslora=method == "rslora")

    base, tuned, between = fresh(), moved(fresh()), fresh()
    state = trainable_state(tuned)
    load_trainable_state(between, state, base_share=base_share)
    if not base_share:
        assert all(value.equal(state[name]) for name, value in trainable_state(between).items())
    old, new, found = weights(base), weights(tuned), weights(between)
    assert max((new[name] - old[name]).abs().max().item() for name in old) > 0.1
    for name, value in found.items():
        expected = old[name] + (1 - base_share) * (new[name] - old[name])
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)
    assert torch.equal(between.rows_2H, base.rows_2H), "the head stays as it is"
    assert all(value.equal(state[name]) for name, value in trainable_state(tuned).items()), "and so does the other"


def test_dora_is_not_interpolated(tiny_qwen3: Path) -> None:
    model = lora(tiny_qwen3, dora=True)
    with pytest.raises(AssertionError, match="not linear"):
        load_trainable_state(model, trainable_state(model), base_share=0.5)
