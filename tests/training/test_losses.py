"""Losses: every registered one equals plain Python, and keeps the properties that all of them promise.

The properties run over the registry: a new loss is tested by being registered, and by its few lines in BY_HAND of
plain_losses.py.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_losses import BY_HAND, Documents, softplus
from torch import Tensor

from rankwright.common.errors import UserErrors
from rankwright.common.registry import parameters
from rankwright.recipe.schema import Loss
from rankwright.training.loss_terms import bind_loss
from rankwright.training.losses import LOSSES, NEED_POSITIVE

ALL = sorted(LOSSES)
# All others compare documents: one alone gives them nothing.
POINTWISE = {"bce", "mse", "soft_bce"}
# Equal scores and equal labels are common, labels may be negative, and no document need be relevant.
SCORE = st.sampled_from([0.0, 1.0, -1.5]) | st.floats(-30, 30, width=32)
GROUP = st.lists(st.tuples(SCORE, st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0])), min_size=1, max_size=6)
few = settings(max_examples=40, deadline=None)


def tensors(*groups: Documents, junk: float = 0.0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """(scores_QD, labels_QD, mask_QD), shorter groups padded with `junk`."""
    width = max(1, *map(len, groups))
    rows = [[*group, *[(junk, junk)] * (width - len(group))] for group in groups]
    scores, labels = (torch.tensor([[pair[i] for pair in row] for row in rows], dtype=dtype) for i in (0, 1))
    mask = torch.tensor([[place < len(group) for place in range(width)] for group in groups])
    return scores, labels, mask


def value_and_gradient(
    name: str, scores: Tensor, labels: Tensor, mask: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    scores = scores.clone().requires_grad_()
    value_Q = LOSSES.bind(name, options)(scores, labels, mask)
    (gradient_QD,) = torch.autograd.grad(value_Q.sum(), scores)
    return value_Q.detach(), gradient_QD


# Losses with the options that a teacher's scores ask for: they promise what every loss does.
OF_TEACHERS: list[tuple[str, dict[str, Any]]] = [
    ("kl_distil", {"student_temperature": 2.0}),
    ("kl_distil", {"normalise": "zscore", "temperature": 0.5}),
    ("ranknet", {"targets": "teacher"}),
    ("ranknet", {"margin": 0.75}),
    ("ranknet", {"targets": "teacher", "temperature": 0.5}),
    ("ranknet", {"targets": "teacher", "temperature": 2.0, "margin": 0.6}),
    ("lambda_rank", {"targets": "teacher", "k": 2}),
    ("lambda_rank", {"targets": "teacher", "margin": 0.0}),
    ("soft_bce", {"scale": 2.0, "offset": -0.5}),
    ("soft_bce", {"targets": "teacher", "scale": 2.0}),
    ("soft_bce", {"targets": "teacher_probabilities"}),
    *(("adr_mse", {"discount": discount}) for discount in ("reciprocal", "none")),
    ("adr_mse", {"temperature": 0.5}),
]
WITH_OPTIONS: list[tuple[str, dict[str, Any]]] = [*((name, {}) for name in ALL), *OF_TEACHERS]
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ALL),
    *(("lambda_rank", {"k": k}) for k in (1, 3)),
    *((name, {"temperature": t}) for name in ("listwise_softmax", "kl_distil", "approx_ndcg") for t in (0.5, 3.0)),
    *OF_TEACHERS,
]


@pytest.mark.parametrize(("name", "options"), OPTIONS)
@given(groups=st.lists(GROUP, min_size=1, max_size=4))
@few
def test_equal_to_plain_python(name: str, options: dict[str, Any], groups: list[Documents]) -> None:
    ours = bind_loss(Loss(name=name, options=options))(*tensors(*groups))
    assert ours.dtype == torch.float32
    assert ours.tolist() == pytest.approx([BY_HAND[name](group, **options) for group in groups], rel=1e-4, abs=2e-5)


# What every registered loss promises


def test_a_loss_says_what_it_takes_and_where_it_is_from() -> None:
    for name in ALL:
        function: Any = LOSSES[name]
        assert "    | labels | range of a label | paper |\n    |---|---|---|\n    | " in function.__doc__, name
        first, *options = inspect.signature(function).parameters.values(), *parameters(LOSSES[name]).values()
        assert [p.name for p in first][:3] == ["scores_QD", "labels_QD", "mask_QD"]
        assert len(first) == 3 + len(options), f"{name}: options are keyword-only"
        assert all(p.default is not p.empty for p in options), f"{name}: options have defaults"
        assert not options or "Raises UserError for " in function.__doc__, name


@pytest.mark.parametrize(("name", "options"), WITH_OPTIONS)
def test_gradcheck(name: str, options: dict[str, Any]) -> None:
    groups = [(0.3, 1.0), (-1.2, 0.0), (2.0, 2.0), (1.1, 0.5)], [(0.1, 1.0), (0.4, 0.0)], [(0.2, 0.0)], [], [(1.0, 1.0)]
    scores, labels, mask = tensors(*groups, junk=math.nan, dtype=torch.float64)
    scores.requires_grad_()
    assert LOSSES.bind(name, options)(scores, labels, mask).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda s: LOSSES.bind(name, options)(s, labels, mask), (scores,))


@pytest.mark.parametrize(("name", "options"), WITH_OPTIONS)
@given(group=GROUP, neighbour=GROUP, junk=st.sampled_from([1e4, -1e4, math.nan, math.inf, -math.inf]))
@few
def test_padding_and_neighbours_reach_neither_value_nor_gradient(
    name: str, options: dict[str, Any], group: Documents, neighbour: Documents, junk: float
) -> None:
    value, gradient = value_and_gradient(name, *tensors(group, dtype=torch.float64), **options)
    longer = [*neighbour, *group]
    padded, its_gradient = value_and_gradient(name, *tensors(group, longer, junk=junk, dtype=torch.float64), **options)
    torch.testing.assert_close(padded[:1], value)
    torch.testing.assert_close(its_gradient[:1, : len(group)], gradient)
    assert its_gradient[0, len(group) :].eq(0).all()


@pytest.mark.parametrize(("name", "options"), WITH_OPTIONS)
@given(group=GROUP, random=st.randoms(use_true_random=False))
@few
def test_the_order_of_the_documents_does_not_matter(
    name: str, options: dict[str, Any], group: Documents, random: Any
) -> None:
    order = list(range(len(group)))
    random.shuffle(order)
    value, gradient = value_and_gradient(name, *tensors(group, dtype=torch.float64), **options)
    shuffled, its_gradient = value_and_gradient(
        name, *tensors([group[i] for i in order], dtype=torch.float64), **options
    )
    torch.testing.assert_close(shuffled, value)
    torch.testing.assert_close(its_gradient, gradient[:, order])


@pytest.mark.parametrize(("name", "options"), WITH_OPTIONS)
@given(group=GROUP, scale=st.sampled_from([1.0, 100.0, 1e4]))
@few
def test_never_below_zero_and_always_finite(name: str, options: dict[str, Any], group: Documents, scale: float) -> None:
    value, gradient = value_and_gradient(name, *tensors([(scale * s, scale * y) for s, y in group]), **options)
    assert value.isfinite().all() and gradient.isfinite().all()
    # Rounding of a sum that is 0.
    assert float(value) >= -1e-6 * scale


@pytest.mark.parametrize(("name", "options"), WITH_OPTIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_types_are_computed_in_fp32(name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    scores, labels, mask = tensors([(0.3, 1.0), (-1.2, 0.0), (7.7, 2.0)], [(0.1, 1.0), (0.4, 0.0)])
    scores = scores.to(dtype)
    value, gradient = value_and_gradient(name, scores, labels.to(dtype), mask, **options)
    expected, its_gradient = value_and_gradient(name, scores.float(), labels, mask, **options)
    assert value.dtype == torch.float32
    assert value.equal(expected)
    assert gradient.equal(its_gradient.to(dtype))


@pytest.mark.parametrize(("name", "options"), WITH_OPTIONS)
def test_a_group_without_documents_is_nothing(name: str, options: dict[str, Any]) -> None:
    value, gradient = value_and_gradient(name, *tensors([], [(0.3, 1.0), (2.0, 0.0)], junk=math.nan), **options)
    assert value[0] == 0 and value[1] > 0
    assert gradient[0].eq(0).all()


@pytest.mark.parametrize(("name", "options"), WITH_OPTIONS)
@pytest.mark.parametrize("label", [0.0, 1.0, 3.0])
def test_one_document_alone_is_nothing_to_compare(name: str, options: dict[str, Any], label: float) -> None:
    value, gradient = value_and_gradient(name, *tensors([(0.7, label)]), **options)
    assert (bool(value == 0), bool(gradient == 0)) == (name not in POINTWISE,) * 2


@pytest.mark.parametrize("name", ALL)
def test_those_that_need_a_relevant_document_are_those_that_learn_nothing_without(name: str) -> None:
    value, gradient = value_and_gradient(name, *tensors([(0.3, 0.0), (-1.2, 0.0), (2.0, 0.0)]))
    assert (bool(value == 0), bool(gradient.eq(0).all())) == (name in NEED_POSITIVE,) * 2
    assert set(ALL) >= NEED_POSITIVE


@pytest.mark.parametrize(("name", "options"), WITH_OPTIONS)
@pytest.mark.parametrize("start", [[0.0] * 6, [1.0, -1.0, 0.5, 0.0, 2.0, 3.0]])
def test_descent_puts_relevant_documents_first(name: str, options: dict[str, Any], start: list[float]) -> None:
    labels = torch.tensor([[3.0, 1.0, 1.0, 0.0, 0.0, 0.0]])
    scores = torch.tensor([start], requires_grad=True)
    optimizer = torch.optim.Adam([scores], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        LOSSES.bind(name, options)(scores, labels, torch.ones(1, 6, dtype=torch.bool)).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    found = scores.detach()[0]
    assert found[:3].min() > found[3:].max()
    graded = name not in ("bce", "soft_bce") or options.get("targets") == "teacher"
    assert not graded or found[0] > found[1:].max(), "graded labels have an order"


# A margin may be 0, an offset any number.
ALLOWED = {"margin": [0], "offset": [0, -1]}


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [(n, p, v) for n in ALL for p in parameters(LOSSES[n]) for v in (0, -1, math.nan) if v not in ALLOWED.get(p, [])],
)
def test_an_option_out_of_range_is_told_to_the_user(name: str, option: str, value: float) -> None:
    with pytest.raises(UserErrors, match=rf"^loss\.options.*{option}: "):
        bind_loss(Loss(name=name, options={option: value}))


# Values that are known, and what sets each loss apart


def test_listwise_softmax_of_known_values() -> None:
    # Softmax of (ln 3, 0) is (3/4, 1/4); of three equal scores a third each.
    scores, labels, mask = tensors([(math.log(3), 1.0), (0.0, 0.0)], [(5.0, 1.0), (5.0, 2.0), (5.0, 0.0)])
    expected = torch.tensor([math.log(4 / 3), math.log(3)])
    torch.testing.assert_close(LOSSES["listwise_softmax"](scores, labels, mask), expected)
    # Gains 1 and 3: a quarter and three quarters of the target.
    scores, labels, mask = tensors([(math.log(3), 1.0), (0.0, 3.0)])
    expected = torch.tensor([0.25 * math.log(4 / 3) + 0.75 * math.log(4)])
    torch.testing.assert_close(LOSSES["listwise_softmax"](scores, labels, mask), expected)


@pytest.mark.parametrize("name", ["listwise_softmax", "list_mle"])
def test_one_positive_is_cross_entropy(name: str) -> None:
    scores = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    which = torch.tensor([0, 3, 6, 2])
    labels = torch.nn.functional.one_hot(which, 7).float()
    ours = LOSSES[name](scores, labels, torch.ones(4, 7, dtype=torch.bool))
    torch.testing.assert_close(ours, torch.nn.functional.cross_entropy(scores, which, reduction="none"))


def test_bce_of_known_values() -> None:
    # sigmoid(ln 3) = 3/4; at a score of 0 either label costs ln 2.
    scores, labels, mask = tensors([(math.log(3), 2.0), (math.log(3), 0.0)], [(0.0, 0.0)])
    expected = torch.tensor([(math.log(4 / 3) + math.log(4)) / 2, math.log(2)])
    torch.testing.assert_close(LOSSES["bce"](scores, labels, mask), expected)


def test_lambda_rank_weighs_a_pair_by_its_change_of_ndcg() -> None:
    # Swapping places 1 and 2 changes nDCG from 1 / log2 3 to 1; -log sigmoid(-ln 3) is ln 4.
    value, _ = value_and_gradient("lambda_rank", *tensors([(0.0, 1.0), (math.log(3), 0.0)]))
    assert float(value) == pytest.approx((1 - 1 / math.log2(3)) * math.log(4))
    # Neither of places 2 and 3 is among the first one; both are pairs with the document in place 1.
    group = [(2.0, 0.0), (1.0, 0.0), (0.0, 1.0)]
    (only,) = LOSSES.bind("lambda_rank", {"k": 1})(*tensors(group))
    assert float(only) == pytest.approx((1 - 1 / 2) * softplus(2.0))


def test_lambda_rank_learns_from_a_list_of_equal_scores_longer_than_k() -> None:
    value, gradient = value_and_gradient("lambda_rank", *tensors([(0.0, 0.0)] * 30 + [(0.0, 1.0)]))
    assert value > 0 and gradient[0, -1] < 0 and gradient[0, :-1].gt(0).all()


def test_list_mle_is_the_likelihood_of_the_order_of_labels() -> None:
    # Picked first with 6/9, then 2/3.
    value, _ = value_and_gradient("list_mle", *tensors([(math.log(2), 1.0), (0.0, 0.0), (math.log(6), 4.0)]))
    assert float(value) == pytest.approx(-math.log(6 / 9) - math.log(2 / 3))


def test_approx_ndcg_nears_ndcg_at_a_low_temperature() -> None:
    scores, labels, mask = tensors([(3.0, 0.0), (2.0, 2.0), (1.0, 1.0)])
    ndcg = (2 / math.log2(3) + 1 / 2) / (2 + 1 / math.log2(3))
    (value,) = LOSSES.bind("approx_ndcg", {"temperature": 0.01})(scores, labels, mask)
    assert float(value) == pytest.approx(1 - ndcg, abs=1e-6)


@pytest.mark.parametrize("name", ["ranknet", "list_mle", "margin_mse", "kl_distil", "adr_mse"])
def test_only_differences_of_labels_count(name: str) -> None:
    scores, labels, mask = tensors([(0.3, 1.0), (-1.2, 0.0), (2.0, 2.0)], [(0.1, 1.0), (0.4, 0.0)])
    torch.testing.assert_close(LOSSES[name](scores, labels - 7, mask), LOSSES[name](scores, labels, mask))


@pytest.mark.parametrize(("name", "constant"), [("mse", 0.0), ("margin_mse", 5.0), ("kl_distil", 5.0)])
def test_a_teachers_scores_are_the_minimum_of_distillation(name: str, constant: float) -> None:
    _, labels, mask = tensors([(0.0, -3.0), (0.0, 8.5), (0.0, 0.1)], [(0.0, -1.0), (0.0, -2.0)])
    value, gradient = value_and_gradient(name, labels + constant, labels, mask)
    torch.testing.assert_close(value, torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(gradient, torch.zeros_like(labels), atol=1e-5, rtol=0)
