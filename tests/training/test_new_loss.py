"""A loss is one function in one file: here in a module outside the package."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rankwright.pipeline.checks import check_names
from rankwright.recipe.schema import Loss, Model, Recipe
from rankwright.recipe.sources import Data
from rankwright.training.loss_terms import bind_loss, needs_positive, reads_teacher
from rankwright.training.losses import LOSSES, NEED_POSITIVE, OF_TEACHER

MODULE = '''
from rankwright.training.losses import LOSSES, mean_where, of_relevant, of_teacher, without_padding


@LOSSES.register
@of_relevant
def hinge(scores_QD, labels_QD, mask_QD, *, margin: float = 1.0):
    """max(0, margin - score) of the relevant documents: loss_Q."""
    scores_QD, labels_QD = without_padding(scores_QD, labels_QD, mask_QD)
    return mean_where(mask_QD & (labels_QD > 0), (margin - scores_QD).clamp(min=0))


@LOSSES.register
@of_teacher
def mae(scores_QD, labels_QD, mask_QD):
    """|score - teacher's score|: loss_Q."""
    scores_QD, labels_QD = without_padding(scores_QD, labels_QD, mask_QD)
    return mean_where(mask_QD, (scores_QD - labels_QD).abs())
'''


@pytest.fixture
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "my_losses.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("my_losses")
    yield
    for name in ("hinge", "mae"):
        del LOSSES._known[name]
        NEED_POSITIVE.discard(name)
        OF_TEACHER.discard(name)
    LOSSES.extensions.remove("my_losses")


def recipe_with(loss: Loss) -> Recipe:
    return Recipe(name="r", model=Model(base="base"), data=Data(), loss=loss)


@pytest.mark.usefixtures("_module")
def test_a_loss_of_another_module_is_checked_bound_and_known_to_the_sampler() -> None:
    assert LOSSES.extensions == ["my_losses"]
    hinge, mae = Loss(name="hinge", options={"margin": 2.0}), Loss(name="mae")
    assert not [fault for fault in check_names(recipe_with(hinge)) if fault.startswith("loss")]
    wrong = recipe_with(Loss(name="hinge", options={"margn": 2.0}))
    assert any("no parameter 'margn', did you mean 'margin'?" in fault for fault in check_names(wrong))
    assert (needs_positive(hinge), reads_teacher(hinge)) == (True, False)
    assert (needs_positive(mae), reads_teacher(mae)) == (False, True)
    scores, labels, mask = torch.tensor([[0.5, 3.0]]), torch.tensor([[1.0, 0.0]]), torch.ones(1, 2, dtype=torch.bool)
    assert bind_loss(hinge)(scores, labels, mask).tolist() == [1.5]
    assert bind_loss(mae)(scores, labels, mask, torch.tensor([[0.0, 1.0]])).tolist() == [1.25]
