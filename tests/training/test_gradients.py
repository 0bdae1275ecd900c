"""The gradient of a step does not depend on budgets, passes or neighbours; weights and distances mean what they say."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import PAIRS, add_random_lora
from torch import Tensor

from rankwright.model.loading import load_model, load_tokenizer
from rankwright.model.prompt import PromptEncoder, make_contract
from rankwright.model.rank_model import RankModel
from rankwright.model.trainable import add_lora
from rankwright.training.gradients import StepSums, accumulate, score_distances, to_lists
from rankwright.training.losses import LOSSES
from rankwright.training.sampling import TrainGroup

HUGE = 10**9


@pytest.fixture(scope="module")
def groups(tiny_qwen3: Path) -> list[TrainGroup]:
    tokenizer = load_tokenizer(str(tiny_qwen3))
    encoder = PromptEncoder(make_contract(tokenizer, mode="portable", max_tokens=160), tokenizer)
    found = []
    for number in range(4):
        documents = [d for _, d in PAIRS[number : number + 3 + 2 * number]]
        encoded = encoder.encode(PAIRS[number][0], documents)
        found.append(TrainGroup(f"q{number}", (1.0, *[0.0] * (len(documents) - 1)), encoded))
    return found


def make_model(folder: Path, dropout: float = 0.0) -> RankModel:
    tokenizer = load_tokenizer(str(folder))
    model = load_model(str(folder), make_contract(tokenizer, mode="portable", max_tokens=160), tokenizer)
    if not dropout:
        return add_random_lora(model).train()
    model = add_lora(model, rank=4, alpha=8, dropout=dropout, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.train()


def step(model: RankModel, groups: list[TrainGroup], budget: int = HUGE, **options: Any) -> tuple[Tensor, StepSums]:
    """The flat gradient of one step, and its sums."""
    from accelerate import Accelerator

    model.zero_grad(set_to_none=True)
    defaults = {"seed": 0, "step": 1, "accelerator": Accelerator(cpu=True)}
    loss = LOSSES.bind("listwise_softmax", {})
    sums = accumulate(model, groups, loss, budget_tokens=budget, **{**defaults, **options})
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), sums


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("budget", [1, 100, 300, 900])
def test_any_budget_gives_the_same_gradient_in_one_pass_or_two(
    tiny_qwen3: Path, groups: list[TrainGroup], budget: int
) -> None:
    model = make_model(tiny_qwen3)
    whole, sums = step(model, groups)
    calls: list[tuple[int, bool]] = []
    hook = lambda module, inputs: calls.append((sum(g.tokens for g in inputs[0]), torch.is_grad_enabled()))  # noqa: E731
    model.register_forward_pre_hook(hook)
    other, other_sums = step(model, groups, budget)
    assert distance(other, whole) < 1e-5
    for name in ("loss", "margin", "spread"):
        assert getattr(other_sums, name) == pytest.approx(getattr(sums, name), rel=1e-5)
    # Memory: no forward that keeps a graph goes beyond the budget, unless one document alone does.
    longest = max(len(g.encoded.head_ids) + max(map(len, g.encoded.tail_ids)) for g in groups)
    assert all(tokens <= max(budget, longest) for tokens, keeps in calls if keeps)
    two_pass = [g for g in groups if g.encoded.tokens > budget]
    assert bool(two_pass) == any(not keeps for _, keeps in calls)


def test_a_list_of_200_trains_under_the_budget_of_8(tiny_qwen3: Path, groups: list[TrainGroup]) -> None:
    encoded = groups[3].encoded
    tails = [encoded.tail_ids[i % len(encoded.tail_ids)] for i in range(200)]
    long = TrainGroup("long", (1.0, *[0.0] * 199), dataclasses.replace(encoded, tail_ids=tails))
    budget = dataclasses.replace(encoded, tail_ids=tails[:8]).tokens
    model = make_model(tiny_qwen3)
    kept: list[int] = []
    model.register_forward_pre_hook(
        lambda _, inputs: kept.append(sum(g.tokens for g in inputs[0])) if torch.is_grad_enabled() else None
    )
    found, _ = step(model, [long], budget)
    assert len(kept) >= 200 / 9 and max(kept) <= budget
    whole, _ = step(model, [long])
    assert distance(found, whole) < 1e-5


def test_both_passes_see_the_same_dropout_and_neighbours_do_not_matter(
    tiny_qwen3: Path, groups: list[TrainGroup]
) -> None:
    model = make_model(tiny_qwen3, dropout=0.3)
    assert model.has_dropout
    budget = groups[3].encoded.tokens // 2
    one, _ = step(model, groups, budget)
    again, _ = step(model, groups, budget)
    assert torch.equal(one, again)
    other_step, _ = step(model, groups, budget, step=2)
    assert distance(other_step, one) > 0.01
    # Each group's part is what it would be alone: the sum over steps of a single group, each divided as here.
    parts = sum(step(model, [g], budget)[0] for g in groups) / len(groups)
    assert distance(parts, one) < 1e-5


def test_a_heavier_group_counts_as_if_it_came_several_times(tiny_qwen3: Path, groups: list[TrainGroup]) -> None:
    model = make_model(tiny_qwen3)
    heavy = [dataclasses.replace(groups[0], weight=3.0), *groups[1:]]
    weighted, sums = step(model, heavy)
    repeated, repeated_sums = step(model, [groups[0], groups[0], groups[0], *groups[1:]])
    assert distance(weighted, repeated) < 1e-5
    assert sums.loss == pytest.approx(repeated_sums.loss, rel=1e-5)
    assert distance(weighted, step(model, groups)[0]) > 0.01


def test_queries_with_a_loss_that_is_not_finite_are_named(tiny_qwen3: Path, groups: list[TrainGroup]) -> None:
    broken = dataclasses.replace(groups[1], labels=(float("nan"), *groups[1].labels[1:]))
    _, sums = step(make_model(tiny_qwen3), [groups[0], broken])
    assert sums.not_finite == ("q1",)
    assert step(make_model(tiny_qwen3), groups)[1].not_finite == ()


def test_margin_and_spread_of_the_scores() -> None:
    scores = torch.tensor([[3.0, 1.0, 0.0, 9.0], [2.0, 2.0, 9.0, 9.0]])
    labels = torch.tensor([[2.0, 1.0, 0.0, 5.0], [1.0, 1.0, 5.0, 5.0]])
    mask = torch.tensor([[True, True, True, False], [True, True, False, False]])
    margin, spread = score_distances(scores, labels, mask).tolist()
    # The second group has nothing to compare: margin 0; its scores are equal: spread 0.
    assert margin == pytest.approx(3.0 - 0.5)
    assert spread == pytest.approx(((5 / 3) ** 2 + (1 / 3) ** 2 + (4 / 3) ** 2) ** 0.5 / 3**0.5)


def test_lists_are_padded_and_masked(groups: list[TrainGroup]) -> None:
    lengths = [len(g.labels) for g in groups]
    scores, labels, mask = to_lists(torch.arange(float(sum(lengths))), groups)
    assert scores.shape == labels.shape == mask.shape == (4, max(lengths))
    assert mask.sum(dim=1).tolist() == lengths
    assert scores[mask].tolist() == list(range(sum(lengths)))
    assert labels[mask].tolist() == [label for g in groups for label in g.labels]
