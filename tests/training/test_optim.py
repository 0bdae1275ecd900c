"""Schedules, warm-up, and which parameters decay."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rankwright.common.errors import UserError
from rankwright.training.optim import SCHEDULES, learning_rate_factor, make_optimizer


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("cosine", {0.0: 1.0, 1 / 3: 0.75, 0.5: 0.5, 2 / 3: 0.25, 1.0: 0.0}),
        ("linear", {0.0: 1.0, 0.25: 0.75, 1.0: 0.0}),
        ("wsd", {0.0: 1.0, 0.5: 1.0, 0.9: 1.0, 0.95: 0.5, 0.975: 0.25, 1.0: 0.0}),
        ("constant", {0.0: 1.0, 0.5: 1.0, 1.0: 1.0}),
    ],
)
def test_schedules(name: str, values: dict[float, float]) -> None:
    assert [SCHEDULES[name](p) for p in values] == pytest.approx(list(values.values()), abs=1e-12)


def factors(total: int, warmup: float, name: str) -> list[float]:
    schedule = SCHEDULES[name]
    return [learning_rate_factor(s, total, warmup_fraction=warmup, schedule=schedule) for s in range(1, total + 1)]


def test_warm_up_then_schedule_by_hand() -> None:
    assert factors(8, 0.5, "linear") == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25])
    assert factors(4, 0.0, "linear") == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert factors(4, 0.25, "cosine") == pytest.approx([1.0, 1.0, 0.75, 0.25])
    assert factors(1, 0.1, "cosine") == [1.0]
    # 4 warm up; of the other 40 the last 4 decay, of which the first has the whole rate as every schedule's first has.
    assert factors(44, 4 / 44, "wsd")[2:] == pytest.approx([0.75, *[1.0] * 38, 0.75, 0.5, 0.25])


def test_warm_up_steps_are_rounded_up_once() -> None:
    # 0.07 * 100 is 7.000000000000001 in floating point.
    assert factors(100, 0.07, "constant")[5:8] == pytest.approx([6 / 7, 1.0, 1.0])
    assert factors(10, 0.11, "constant")[:3] == pytest.approx([0.5, 1.0, 1.0])


@given(st.integers(1, 300), st.floats(0, 0.99), st.sampled_from(sorted(SCHEDULES)))
def test_every_step_learns(total: int, warmup: float, name: str) -> None:
    values = factors(total, warmup, name)
    assert all(0 < v <= 1 for v in values)
    top = values.index(max(values))
    assert values[: top + 1] == sorted(values[: top + 1])
    assert values[top:] == sorted(values[top:], reverse=True)
    assert math.isclose(max(values), 1.0)


def test_matrices_decay_and_vectors_do_not() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    model[2].requires_grad_(False)
    optimizer = make_optimizer(model.named_parameters(), learning_rate=0.5, weight_decay=0.1)
    groups = {g["weight_decay"]: g["params"] for g in optimizer.param_groups}
    assert [tuple(p.shape) for p in groups[0.1]] == [(2, 3)]
    assert [tuple(p.shape) for p in groups[0.0]] == [(2,), (2,), (2,)]
    # With gradients of zero, what is left of a step is the decay: 1 - 0.5 * 0.1.
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        kept = 0.95 if name == "0.weight" else 1.0
        torch.testing.assert_close(parameter.detach(), kept * before[name])


def test_only_vectors_may_be_trained() -> None:
    optimizer = make_optimizer([("b", nn.Parameter(torch.zeros(3)))], learning_rate=0.1, weight_decay=0.1)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.0]


@pytest.mark.parametrize("parameters", [[], [("w", nn.Parameter(torch.zeros(2, 2), requires_grad=False))]])
def test_nothing_to_train_is_an_error_for_the_user(parameters: list[tuple[str, nn.Parameter]]) -> None:
    with pytest.raises(UserError, match=r"model\.method: no parameter of the model is trained"):
        make_optimizer(iter(parameters), learning_rate=0.1, weight_decay=0.0)
