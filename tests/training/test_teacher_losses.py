"""Losses of a teacher's scores: what each is equal to in a case that is known, and what it does not depend on."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from test_losses import tensors, value_and_gradient
from torch import Tensor

from rankwright.recipe.schema import Loss, LossTerm
from rankwright.training.distillation import fit_match
from rankwright.training.loss_terms import AffineMatch, bind_loss
from rankwright.training.losses import LOSSES

few = settings(max_examples=40, deadline=None)
LIST = st.lists(st.tuples(st.floats(-8, 8), st.floats(-12, 22)), min_size=2, max_size=7)


def close(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], tolerance: float = 1e-9) -> None:
    for ours, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@given(st.lists(st.tuples(st.floats(-30, 30), st.sampled_from([0.0, 1.0])), min_size=1, max_size=6))
@few
def test_soft_bce_of_zeros_and_ones_is_bce(group: list[tuple[float, float]]) -> None:
    lists = tensors(group, dtype=torch.float64)
    close(value_and_gradient("soft_bce", *lists), value_and_gradient("bce", *lists))
    close(value_and_gradient("soft_bce", *lists, targets="teacher_probabilities"), value_and_gradient("bce", *lists))
    scores, labels, mask = lists
    close(
        value_and_gradient("soft_bce", scores, 4 * labels, mask, scale=4.0, offset=1.5),
        value_and_gradient("bce", scores - 1.5, labels, mask),
    )


@pytest.mark.parametrize(
    ("options", "best"),
    [
        ({}, [math.log(0.25 / 0.75), math.log(0.9 / 0.1)]),
        ({"offset": 2.0}, [math.log(0.25 / 0.75) + 2, math.log(0.9 / 0.1) + 2]),
        ({"scale": 2.0}, [math.log(0.125 / 0.875), math.log(0.45 / 0.55)]),
        ({"targets": "teacher"}, [0.25, 0.9]),
        ({"targets": "teacher", "scale": 0.5}, [0.5, 1.8]),
    ],
)
def test_soft_bce_is_lowest_at_the_probabilitys_own_logit(options: dict[str, Any], best: list[float]) -> None:
    targets, mask = torch.tensor([[0.25, 0.9]], dtype=torch.float64), torch.ones(1, 2, dtype=torch.bool)
    value, gradient = value_and_gradient("soft_bce", torch.tensor([best]).double(), targets, mask, **options)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-7, rtol=0)
    # The entropy of the targets is what is left.
    p = torch.sigmoid(torch.tensor(best).double() - options.get("offset", 0.0))
    assert float(value) == pytest.approx(float(torch.distributions.Bernoulli(p).entropy().mean()))


@given(LIST)
@few
def test_soft_ranknet_nears_ranknet_on_the_teachers_order(group: list[tuple[float, float]]) -> None:
    labels = [y for _, y in group]
    assume(all(a == b or abs(a - b) > 1e-3 for a in labels for b in labels))
    lists = tensors(group, dtype=torch.float64)
    soft = value_and_gradient("ranknet", *lists, targets="teacher", temperature=1e-5)
    close(soft, value_and_gradient("ranknet", *lists, targets="teacher", margin=0.0))
    # Of the teacher, its order is all that counts.
    ranks = torch.from_numpy(stats.rankdata(labels))[None]
    close(soft, value_and_gradient("ranknet", lists[0], ranks, lists[2]))


def test_soft_ranknet_is_lowest_at_the_teachers_own_margins() -> None:
    teacher, mask = torch.tensor([[3.0, -0.5, 1.2]], dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool)
    _, gradient = value_and_gradient("ranknet", teacher / 2 + 7, teacher, mask, temperature=2.0, targets="teacher")
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["ranknet", "lambda_rank"])
def test_pairs_within_the_margin_are_not_compared(name: str) -> None:
    mask = torch.ones(1, 2, dtype=torch.bool)
    scores, near = torch.tensor([[0.3, 1.0]]), torch.tensor([[2.0, 1.5]])

    def value(labels: Tensor, **options: Any) -> float:
        return float(value_and_gradient(name, scores, labels, mask, **options)[0])

    # Half a logit by default for a teacher's scores; labels always count.
    assert value(near, targets="teacher") == 0 < value(near)
    assert value(near + torch.tensor([[1e-3, 0.0]]), targets="teacher") > 0
    assert value(near, targets="teacher", margin=0.4) > 0 == value(near, margin=0.5)


@given(LIST, st.floats(0.1, 20), st.floats(-30, 30))
@few
def test_lambda_rank_of_a_teacher_does_not_depend_on_its_scale(
    group: list[tuple[float, float]], slope: float, intercept: float
) -> None:
    labels = [y for _, y in group]
    assume(all(a == b or abs(a - b) > 1e-3 for a in labels for b in labels))
    scores, teacher, mask = tensors(group, dtype=torch.float64)
    options: dict[str, Any] = {"targets": "teacher", "margin": 0.0, "k": 3}
    moved = value_and_gradient("lambda_rank", scores, slope * teacher + intercept, mask, **options)
    close(moved, value_and_gradient("lambda_rank", scores, teacher, mask, **options), 1e-7)
    # Its lowest document gains nothing, as a label of 0.
    own = value_and_gradient("lambda_rank", scores, teacher - min(labels), mask, k=3)
    close(own, value_and_gradient("lambda_rank", scores, teacher, mask, **options), 1e-7)


@pytest.mark.parametrize("discount", ["log2", "reciprocal", "none"])
def test_adr_mse_of_a_perfectly_separated_list_is_0(discount: str) -> None:
    teacher, mask = torch.tensor([[5.0, -1.0, 3.0, -9.0, 2.0]]), torch.ones(1, 5, dtype=torch.bool)
    value, _ = value_and_gradient("adr_mse", 100 * teacher, teacher, mask, discount=discount)
    assert float(value) == pytest.approx(0, abs=1e-9)
    # Equal documents share their mean place, which equal scores have: no order of the input is preferred.
    tied = torch.tensor([[5.0, 1.0, 1.0, 1.0, -2.0]])
    value, gradient = value_and_gradient("adr_mse", 100 * tied, tied, mask, discount=discount)
    assert float(value) == pytest.approx(0, abs=1e-9) and gradient.abs().max() < 1e-6


@given(st.lists(st.sampled_from([-2.0, 0.0, 1.0, 1.5]), min_size=1, max_size=8))
@few
def test_places_by_the_teacher_are_mean_ranks(labels: list[float]) -> None:
    # Equal scores have the middle place, so the loss shows the teacher's places alone.
    mask = torch.ones(1, len(labels), dtype=torch.bool)
    (value,) = LOSSES.bind("adr_mse", {"discount": "none"})(torch.zeros(1, len(labels)), torch.tensor([labels]), mask)
    places = stats.rankdata([-y for y in labels], method="average")
    assert float(value) == pytest.approx(((places - (len(labels) + 1) / 2) ** 2).mean(), abs=1e-5)


@given(LIST)
@few
def test_kl_distil_with_defaults_is_that_of_torch(group: list[tuple[float, float]]) -> None:
    scores, teacher, mask = tensors(group, dtype=torch.float64)
    kl = torch.nn.functional.kl_div(scores.log_softmax(1), teacher.log_softmax(1), reduction="sum", log_target=True)
    value, _ = value_and_gradient("kl_distil", scores, teacher, mask)
    assert float(value) == pytest.approx(float(kl), abs=1e-9)
    both = value_and_gradient("kl_distil", scores, teacher, mask, temperature=3.0, student_temperature=3.0)
    close(both, (value_and_gradient("kl_distil", scores / 3, teacher / 3, mask)[0], both[1]))


@given(LIST, st.floats(0.1, 30), st.floats(-50, 50))
@few
def test_zscores_of_a_teacher_do_not_depend_on_its_scale(
    group: list[tuple[float, float]], slope: float, intercept: float
) -> None:
    scores, teacher, mask = tensors(group, dtype=torch.float64)
    assume(float(teacher.std()) > 1e-3)
    options = {"normalise": "zscore", "temperature": 0.7}
    found = value_and_gradient("kl_distil", scores, teacher, mask, **options)
    close(value_and_gradient("kl_distil", scores, slope * teacher + intercept, mask, **options), found, 1e-7)
    expected = torch.tensor(stats.zscore(teacher[0].numpy()))[None]
    close(value_and_gradient("kl_distil", scores, expected, mask, temperature=0.7), found, 1e-7)


@pytest.mark.parametrize("constant", [0.0, 0.1, -7.3, 1e6])
def test_zscores_of_a_constant_list_are_zeros(constant: float) -> None:
    scores, mask = torch.tensor([[0.3, -1.2, 2.0]]), torch.ones(1, 3, dtype=torch.bool)
    found = value_and_gradient("kl_distil", scores, torch.full((1, 3), constant), mask, normalise="zscore")
    close(found, value_and_gradient("kl_distil", scores, torch.zeros(1, 3), mask))


TEACHER = torch.tensor([[11.0, -9.5, 2.25, 3.0], [7.5, 6.0, -4.0, 0.0]], dtype=torch.float64)
MODEL = torch.tensor([[0.3, -0.2, 0.6, 0.1], [0.9, 0.7, 0.2, -0.4]], dtype=torch.float64)


def matched_gradient(teacher: Tensor) -> tuple[Tensor, Tensor, AffineMatch]:
    """Value and gradient of mse under the match that is fitted on these very pairs."""
    match = fit_match(MODEL.flatten().numpy(), teacher.flatten().numpy())
    scores = MODEL.clone().requires_grad_()
    loss_Q = bind_loss(Loss(name="mse"), match)(scores, torch.zeros(2, 4), torch.ones(2, 4, dtype=torch.bool), teacher)
    (gradient,) = torch.autograd.grad(loss_Q.sum(), scores)
    return loss_Q.detach(), gradient, match


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (0.02, 3.0), (40.0, -250.0)])
def test_mse_of_a_matched_teacher_does_not_depend_on_its_scale(slope: float, intercept: float) -> None:
    value, gradient, match = matched_gradient(TEACHER)
    moved, its_gradient, _ = matched_gradient(slope * TEACHER + intercept)
    close((moved, its_gradient), (value, gradient), 1e-5)
    assert gradient.abs().max() > 0.1 and match.slope > 5
    # It has the model's mean and spread.
    other = match.of(TEACHER)
    assert (float(other.mean()), float(other.std())) == pytest.approx((float(MODEL.mean()), float(MODEL.std())))


def test_a_teacher_that_is_the_model_on_another_scale_teaches_nothing_more() -> None:
    value, gradient, match = matched_gradient(12 * MODEL - 5)
    assert match == pytest.approx((12, -5))
    close((value, gradient), (torch.zeros(2).double(), torch.zeros(2, 4).double()), 1e-9)


def test_a_match_never_turns_a_teacher_round() -> None:
    # A base that orders documents against the teacher: the slope of a regression would be below 0.
    assert matched_gradient(-30 * MODEL)[2].slope == pytest.approx(30)
    assert matched_gradient(torch.full((2, 4), 3.0))[2] == pytest.approx((1.0, 3.0 - float(MODEL.mean())))
    assert fit_match(torch.zeros(0).numpy(), torch.zeros(0).numpy()) == (1.0, 0.0)


def test_only_terms_that_are_matched_see_it() -> None:
    match, mask = AffineMatch(4.0, 1.0), torch.ones(2, 4, dtype=torch.bool)
    terms = (LossTerm(name="mse", options={"match": "none"}), LossTerm(name="kl_distil"))
    found = bind_loss(Loss(name="mse", plus=terms), match)(MODEL, torch.zeros(2, 4), mask, TEACHER)
    expected = LOSSES["mse"](MODEL, (TEACHER - 1) / 4, mask) + LOSSES["mse"](MODEL, TEACHER, mask)
    torch.testing.assert_close(found, expected + LOSSES["kl_distil"](MODEL, TEACHER, mask))
    # Labels in place of a teacher's scores stay as they are.
    plain = bind_loss(Loss(name="mse"), match)(MODEL, TEACHER, mask)
    torch.testing.assert_close(plain, LOSSES["mse"](MODEL, TEACHER, mask))
