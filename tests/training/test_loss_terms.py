"""A recipe's loss section: one loss or a weighted sum, and all mistakes in it at once with their keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rankwright.common.errors import UserErrors
from rankwright.pipeline.checks import check_names
from rankwright.recipe.loading import load_recipe
from rankwright.recipe.schema import Loss, LossTerm
from rankwright.training.loss_terms import (
    bind_loss,
    expecting_logits,
    needs_positive,
    reads_teacher,
    targets_of_teacher,
)
from rankwright.training.losses import LOSSES, NEED_POSITIVE

SCORES = torch.tensor([[0.3, -1.2, 2.0], [0.1, 0.4, 0.0]])
LABELS = torch.tensor([[1.0, 0.0, 2.0], [1.0, 0.0, 0.0]])
MASK = torch.tensor([[True, True, True], [True, True, False]])


def test_one_loss_is_itself() -> None:
    found = bind_loss(Loss(name="listwise_softmax", options={"temperature": 0.5}))(SCORES, LABELS, MASK)
    assert found.equal(LOSSES.bind("listwise_softmax", {"temperature": 0.5})(SCORES, LABELS, MASK))


def test_terms_are_added_with_their_weights_a_group() -> None:
    terms = (LossTerm(name="bce", weight=0.2), LossTerm(name="lambda_rank", options={"k": 2}))
    found = bind_loss(Loss(plus=terms))(SCORES, LABELS, MASK)
    parts = [LOSSES[n](SCORES, LABELS, MASK) for n in ("listwise_softmax", "bce")]
    expected = parts[0] + 0.2 * parts[1] + LOSSES.bind("lambda_rank", {"k": 2})(SCORES, LABELS, MASK)
    assert found.shape == (2,)
    torch.testing.assert_close(found, expected)


def test_terms_of_a_teacher_read_its_scores_and_the_others_known_labels() -> None:
    """Each as if it were given the documents that it can use and no others."""
    nan = float("nan")
    teacher = torch.tensor([[2.0, nan, -1.0], [0.5, 3.0, 0.0]])
    labels = torch.tensor([[1.0, 0.0, nan], [1.0, 0.0, 0.0]])
    scores = SCORES.clone().requires_grad_()
    loss = bind_loss(Loss(plus=(LossTerm(name="kl_distil", weight=0.5), LossTerm(name="mse"))))
    found = loss(scores, labels, MASK, teacher)
    whole = torch.tensor([[True, True]])
    known = LOSSES["listwise_softmax"](SCORES[:, :2], labels[:, :2], torch.ones(2, 2, dtype=torch.bool))
    places = [[0, 2], [0, 1]]
    for row, chosen in enumerate(places):
        parts = SCORES[row, chosen][None], teacher[row, chosen][None], whole
        expected = known[row] + 0.5 * LOSSES["kl_distil"](*parts)[0] + LOSSES["mse"](*parts)[0]
        torch.testing.assert_close(found[row], expected)
    found.sum().backward()
    assert scores.grad is not None and scores.grad.isfinite().all() and scores.grad[1, 2] == 0
    # Without a teacher its terms take the labels, as scores that a file gives in their place.
    plain = bind_loss(Loss(name="mse"))(SCORES, LABELS, MASK)
    assert plain.equal(LOSSES["mse"](SCORES, LABELS, MASK))
    assert reads_teacher(Loss(name="mse")) and not reads_teacher(Loss())


def test_a_sum_needs_a_relevant_document_unless_a_term_learns_from_a_teacher() -> None:
    softmax, bce, mse = (LossTerm(name=n) for n in ("listwise_softmax", "bce", "mse"))
    assert needs_positive(Loss())
    assert not needs_positive(Loss(name="bce"))
    assert not needs_positive(Loss(name="bce", plus=(mse,)))
    assert not needs_positive(Loss(name="bce", plus=(mse, softmax)))
    assert not needs_positive(Loss(plus=(mse,))) and not needs_positive(Loss(name="mse", plus=(softmax,)))
    assert needs_positive(Loss(plus=(bce,)))
    assert needs_positive(Loss(name="bce", plus=(softmax,)))


@pytest.mark.parametrize("name", sorted(NEED_POSITIVE))
def test_a_term_of_labels_is_0_where_nothing_is_relevant_and_the_teacher_teaches_on(name: str) -> None:
    nan = float("nan")
    # Unlabelled but for a judged negative; judged negatives alone, of two labels; a group as any other.
    labels = torch.tensor([[nan, nan, 0.0], [0.0, -1.0, 0.0], [2.0, 0.0, 1.0]])
    teacher = torch.tensor([[2.0, 1.0, -1.0], [0.5, 3.0, 0.0], [0.0, 1.0, 2.0]])
    scores = torch.tensor([[0.3, -1.2, 2.0], [0.1, 0.4, 0.0], [1.0, 0.5, 0.2]], requires_grad=True)
    mask = torch.ones(3, 3, dtype=torch.bool)
    both = bind_loss(Loss(name="kl_distil", plus=(LossTerm(name=name, weight=0.5),)))(scores, labels, mask, teacher)
    alone = bind_loss(Loss(name="kl_distil"))(scores, labels, mask, teacher)
    assert both[:2].equal(alone[:2])
    torch.testing.assert_close(both[2], alone[2] + 0.5 * LOSSES[name](scores[2:], labels[2:], mask[2:])[0])
    assert both[2] > alone[2]
    slopes = [torch.autograd.grad(loss[:2].sum(), scores, retain_graph=True)[0] for loss in (both, alone)]
    assert slopes[0].isfinite().all() and slopes[0].equal(slopes[1])


OF_A_TEACHER = [
    ("ranknet", {"targets": "teacher"}),
    ("ranknet", {"targets": "teacher", "temperature": 2.0}),
    ("lambda_rank", {"targets": "teacher", "k": 1}),
    ("soft_bce", {"targets": "teacher"}),
    ("soft_bce", {"targets": "teacher_probabilities"}),
]


@pytest.mark.parametrize(("name", "options"), OF_A_TEACHER)
def test_targets_choose_whose_scores_a_term_learns_from(name: str, options: dict[str, Any]) -> None:
    nan = float("nan")
    teacher = torch.tensor([[2.0, nan, -1.0], [0.5, 3.0, 0.0]])
    labels = torch.tensor([[1.0, nan, 0.0], [1.0, 0.0, 0.0]])
    settings = Loss(name=name, options=options)
    found = bind_loss(settings)(SCORES, labels, MASK, teacher)
    places = MASK & ~teacher.isnan()
    torch.testing.assert_close(found, LOSSES.bind(name, options)(SCORES, teacher, places))
    # Its lists need no relevant document; with labels they do, as far as a loss needs one at all.
    assert reads_teacher(settings) and not needs_positive(settings)
    plain = Loss(name=name, options={k: v for k, v in options.items() if k != "targets"})
    assert not reads_teacher(plain) and needs_positive(plain) == (name in NEED_POSITIVE)
    of_labels = LOSSES.bind(name, plain.options)(SCORES, labels, MASK & ~labels.isnan())
    torch.testing.assert_close(bind_loss(plain)(SCORES, labels, MASK, teacher), of_labels)
    assert reads_teacher(Loss(plus=(LossTerm(name=name, options=options),)))
    assert not needs_positive(Loss(plus=(LossTerm(name=name, options=options),)))
    assert targets_of_teacher(settings) == [("loss.options.targets", options["targets"])]


def test_which_terms_a_teachers_probabilities_would_be_nearly_equal_to() -> None:
    any_scale = (
        LossTerm(name="adr_mse"),
        LossTerm(name="bce"),
        LossTerm(name="kl_distil", options={"normalise": "zscore"}),
        LossTerm(name="soft_bce", options={"targets": "teacher_probabilities"}),
        LossTerm(name="ranknet", options={"targets": "teacher", "margin": 0.0}),
    )
    assert expecting_logits(Loss(plus=any_scale)) == []
    logits = [LossTerm(name=n) for n in ("mse", "margin_mse", "kl_distil")]
    logits += [LossTerm(name=n, options={"targets": "teacher"}) for n in ("ranknet", "lambda_rank", "soft_bce")]
    logits.append(LossTerm(name="ranknet", options={"targets": "teacher", "temperature": 1.0, "margin": 0.0}))
    assert expecting_logits(Loss(plus=(*any_scale, *logits))) == [term.name for term in logits]


def test_all_mistakes_at_once_each_with_its_key() -> None:
    settings = Loss(
        options={"temprature": 1.0},
        plus=(
            LossTerm(name="bce"),
            LossTerm(name="rank_net"),
            LossTerm(name="lambda_rank", options={"k": 0}),
            LossTerm(name="kl_distil", options={"temperature": "warm"}),
        ),
    )
    with pytest.raises(UserErrors) as caught:
        bind_loss(settings)
    starts = [
        "loss.options: loss 'listwise_softmax' has no parameter 'temprature', did you mean 'temperature'?",
        "loss.plus.1.name: unknown loss 'rank_net', did you mean 'ranknet'?",
        "loss.plus.2.options.k: 0, must be at least 1: 10 trains for nDCG@10",
        "loss.plus.3.options: loss 'kl_distil': temperature: ",
    ]
    assert len(caught.value.messages) == len(starts)
    for message, start in zip(caught.value.messages, starts, strict=True):
        assert message.startswith(start)


def test_a_recipe_file_may_add_terms(tmp_path: Path) -> None:
    def write(loss: str) -> str:
        path = tmp_path / "a.yaml"
        path.write_text(f"extends: quickstart\nname: a\nloss: {loss}\n", encoding="utf-8")
        return str(path)

    good = load_recipe(write("{name: listwise_softmax, plus: [{name: bce, weight: 0.2}, {name: ranknet}]}")).recipe
    assert good.loss.plus == (LossTerm(name="bce", weight=0.2), LossTerm(name="ranknet"))
    assert check_names(good) == []
    for wrong, what in (
        ("[{name: bce, weight: 0}]", r"a\.yaml:3: loss\.plus\.0\.weight: must be greater than 0"),
        ("[{weight: 1}]", r"a\.yaml:3: loss\.plus\.0\.name: missing"),
        ("[{name: bce, wieght: 1}]", r"a\.yaml:3: loss\.plus\.0\.wieght: unknown key, did you mean 'weight'\?"),
    ):
        with pytest.raises(UserErrors, match=what):
            load_recipe(write(f"{{plus: {wrong}}}"))
    bad = load_recipe(write("{name: ranknett, plus: [{name: approx_ndcg, options: {temperature: -1}}]}")).recipe
    first, second = check_names(bad)
    assert first.startswith("loss.name: unknown loss 'ranknett', did you mean 'ranknet'?")
    assert second.startswith("loss.plus.0.options.temperature: -1, must be above 0")
