"""Losses: hand-computed values, an independent implementation, and nothing of the padding in value or gradient."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rankwright.errors import UserError
from rankwright.losses import LOSSES, NEED_POSITIVE

ALL = sorted(LOSSES)
REAL = st.floats(-30, 30, width=32)
# (score, label) of each document; the first is relevant, so that every loss is defined.
GROUP = st.lists(st.tuples(REAL, st.sampled_from([0.0, 1.0, 2.0])), min_size=1, max_size=6).map(
    lambda documents: [(documents[0][0], 1.0), *documents[1:]]
)


def tensors(*groups: list[tuple[float, float]], width: int = 0, junk: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """(scores_QD, labels_QD, mask_QD) padded to at least `width` with `junk`."""
    width = max(width, *map(len, groups))
    rows = [[*group, *[(junk, junk)] * (width - len(group))] for group in groups]
    scores, labels = (torch.tensor([[pair[i] for pair in row] for row in rows]) for i in (0, 1))
    mask = torch.tensor([[place < len(group) for place in range(width)] for group in groups])
    return scores, labels, mask


def value_and_gradient(name: str, scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    scores = scores.clone().requires_grad_()
    value_Q = LOSSES[name](scores, labels, mask)
    (gradient_QD,) = torch.autograd.grad(value_Q.sum(), scores)
    return value_Q.detach(), gradient_QD


def by_hand(name: str, group: list[tuple[float, float]]) -> float:
    """The same in plain Python."""
    scores = [s for s, _ in group]
    if name == "bce":
        # -log sigmoid(s) of a relevant document, -log sigmoid(-s) of another.
        logits = [s if label > 0 else -s for s, label in group]
        return math.fsum(max(0.0, -x) + math.log1p(math.exp(-abs(x))) for x in logits) / len(group)
    top = max(scores)
    log_sum = top + math.log(math.fsum(math.exp(s - top) for s in scores))
    total = math.fsum(label for _, label in group)
    return math.fsum(label / total * (log_sum - s) for s, label in group)


def test_the_registry_is_what_these_tests_know() -> None:
    assert ALL == ["bce", "listwise_softmax"]
    assert set(ALL) >= NEED_POSITIVE


def test_listwise_softmax_of_known_values() -> None:
    # Softmax of (ln 3, 0) is (3/4, 1/4); of three equal scores a third each.
    scores, labels, mask = tensors([(math.log(3), 1.0), (0.0, 0.0)], [(5.0, 1.0), (5.0, 2.0), (5.0, 0.0)])
    expected = torch.tensor([math.log(4 / 3), math.log(3)])
    torch.testing.assert_close(LOSSES["listwise_softmax"](scores, labels, mask), expected)
    # Gains 1 and 3: a quarter and three quarters of the target.
    scores, labels, mask = tensors([(math.log(3), 1.0), (0.0, 3.0)])
    expected = torch.tensor([0.25 * math.log(4 / 3) + 0.75 * math.log(4)])
    torch.testing.assert_close(LOSSES["listwise_softmax"](scores, labels, mask), expected)


def test_one_positive_is_cross_entropy() -> None:
    scores = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    which = torch.tensor([0, 3, 6, 2])
    labels = torch.nn.functional.one_hot(which, 7).float()
    ours = LOSSES["listwise_softmax"](scores, labels, torch.ones(4, 7, dtype=torch.bool))
    torch.testing.assert_close(ours, torch.nn.functional.cross_entropy(scores, which, reduction="none"))


def test_temperature_divides_the_scores() -> None:
    scores, labels, mask = tensors([(1.0, 1.0), (-2.0, 0.0)])
    half = LOSSES.bind("listwise_softmax", {"temperature": 0.5})
    torch.testing.assert_close(half(scores, labels, mask), LOSSES["listwise_softmax"](2 * scores, labels, mask))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_above_zero_is_refused(temperature: float) -> None:
    with pytest.raises(UserError, match=r"loss\.options\.temperature"):
        LOSSES.bind("listwise_softmax", {"temperature": temperature})(*tensors([(1.0, 1.0)]))


def test_bce_of_known_values() -> None:
    # sigmoid(ln 3) = 3/4; at a score of 0 either label costs ln 2.
    scores, labels, mask = tensors([(math.log(3), 2.0), (math.log(3), 0.0)], [(0.0, 0.0)])
    expected = torch.tensor([(math.log(4 / 3) + math.log(4)) / 2, math.log(2)])
    torch.testing.assert_close(LOSSES["bce"](scores, labels, mask), expected)


def test_bce_takes_groups_without_a_relevant_document() -> None:
    value, gradient = value_and_gradient("bce", *tensors([(0.0, 0.0), (0.0, -1.0)]))
    torch.testing.assert_close(value, torch.tensor([math.log(2)]))
    torch.testing.assert_close(gradient, torch.tensor([[0.25, 0.25]]))


@pytest.mark.parametrize("name", ALL)
@given(groups=st.lists(GROUP, min_size=1, max_size=4))
def test_equal_to_plain_python(name: str, groups: list[list[tuple[float, float]]]) -> None:
    ours = LOSSES[name](*tensors(*groups))
    assert ours.dtype == torch.float32
    assert ours.tolist() == pytest.approx([by_hand(name, group) for group in groups], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_gradcheck(name: str) -> None:
    scores, labels, mask = tensors([(0.3, 1.0), (-1.2, 0.0), (2.0, 2.0)], [(0.1, 1.0), (0.4, 0.0)])
    scores = scores.double().requires_grad_()
    assert LOSSES[name](scores, labels, mask).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda s: LOSSES[name](s, labels, mask), (scores,))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("junk", [1e4, math.nan, math.inf, -math.inf])
@given(group=GROUP, extra=st.integers(1, 4))
def test_padding_reaches_neither_value_nor_gradient(
    name: str, junk: float, group: list[tuple[float, float]], extra: int
) -> None:
    value, gradient = value_and_gradient(name, *tensors(group))
    padded, its_gradient = value_and_gradient(name, *tensors(group, width=len(group) + extra, junk=junk))
    torch.testing.assert_close(padded, value)
    torch.testing.assert_close(its_gradient[:, : len(group)], gradient)
    assert its_gradient[:, len(group) :].eq(0).all()


@pytest.mark.parametrize("name", ALL)
@given(group=GROUP, random=st.randoms(use_true_random=False))
def test_the_order_of_the_documents_does_not_matter(name: str, group: list[tuple[float, float]], random: Any) -> None:
    order = list(range(len(group)))
    random.shuffle(order)
    value, gradient = value_and_gradient(name, *tensors(group))
    shuffled, its_gradient = value_and_gradient(name, *tensors([group[i] for i in order]))
    torch.testing.assert_close(shuffled, value, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(its_gradient, gradient[:, order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_types_are_computed_in_fp32(name: str, dtype: torch.dtype) -> None:
    scores, labels, mask = tensors([(0.3, 1.0), (-1.2, 0.0), (7.7, 2.0)], [(0.1, 1.0), (0.4, 0.0)])
    scores = scores.to(dtype)
    value, gradient = value_and_gradient(name, scores, labels.to(dtype), mask)
    expected, its_gradient = value_and_gradient(name, scores.float(), labels, mask)
    assert value.dtype == torch.float32
    assert value.equal(expected)
    assert gradient.equal(its_gradient.to(dtype))


@pytest.mark.parametrize("name", ALL)
def test_large_scores_stay_finite(name: str) -> None:
    value, gradient = value_and_gradient(name, *tensors([(1e4, 0.0), (-1e4, 1.0)]))
    assert value.isfinite().all() and gradient.isfinite().all()
    assert float(value) == pytest.approx(2e4 if name == "listwise_softmax" else 1e4)
