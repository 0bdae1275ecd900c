"""A recipe's tuned model: every method and every merge with the base is exported as it scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import PAIRS

from rankwright.common.errors import UserError
from rankwright.export.publish import export_targets
from rankwright.export.target import Trained
from rankwright.recipe.schema import Model, Prompt, Recipe, Train
from rankwright.recipe.sources import Data
from rankwright.rerankers.reranker import Reranker
from rankwright.training.checkpoint import Checkpoints, TrainState
from rankwright.training.optim import make_optimizer
from rankwright.training.setup import (
    base_reranker,
    build_trainable,
    describe,
    load_base_tokenizer,
    recipe_contract,
    total_steps,
    tuned_reranker,
)

METHODS: dict[str, dict[str, Any]] = {
    "rslora": {"rslora": True, "targets": ("q_proj", "v_proj")},
    "dora": {"dora": True},
    "rslora and dora": {"rslora": True, "dora": True, "targets": ("down_proj",)},
    "merged lora": {"merge_with_base": 0.4},
    "merged full": {"merge_with_base": 0.4, "method": "full"},
}


def recipe_of(base: Path, **model: Any) -> Recipe:
    settings = Model(base=str(base), **{"rank": 4, "alpha": 8} | model)
    return Recipe(name="one", model=settings, data=Data(), prompt=Prompt(max_tokens=160))


def checkpoint_of(recipe: Recipe, root: Path) -> Path:
    """A checkpoint whose weights are not the base's."""
    base, tokenizer = load_base_tokenizer(recipe)
    contract = recipe_contract(recipe, base, tokenizer)
    model = build_trainable(recipe, base, tokenizer, contract)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator).to(parameter))
    optimizer = make_optimizer(model.named_parameters(), learning_rate=0.1, weight_decay=0.0)
    return Checkpoints(root, "inputs", contract).save(TrainState(1, "inputs", 0.0), model, optimizer)


def scores_of(reranker: Reranker) -> torch.Tensor:
    return torch.tensor([reranker.score(query, [document])[0] for query, document in PAIRS])


# The others are of the same parts.
SLOW = ("rslora", "dora", "merged lora")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in METHODS])
def test_every_method_is_exported_as_it_scores(name: str, tiny_qwen3: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny_qwen3, **METHODS[name])
    checkpoint = checkpoint_of(recipe, tmp_path / "checkpoints")
    tuned = tuned_reranker(recipe, checkpoint, fp32=True)
    wanted = scores_of(tuned)
    assert (wanted - scores_of(base_reranker(recipe)).to(wanted)).abs().max() > 0.1
    trained = Trained(tuned.model, tuned.tokenizer, tuned.contract, str(tiny_qwen3), golden_pairs=PAIRS)
    figures = export_targets(trained, recipe.export_targets, tmp_path / "export")
    assert set(figures) == ({"hf"} if name == "merged full" else {"hf", "adapter"})
    for target, found in figures.items():
        assert found["failures"] == [] and found["engines"]
        again = Reranker.load(str(tmp_path / "export" / target), base=str(tiny_qwen3))
        torch.testing.assert_close(scores_of(again).to(wanted), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_merging_goes_from_the_tuned_model_to_its_base(tiny_qwen3: Path, tmp_path: Path, method: str) -> None:
    checkpoint = checkpoint_of(recipe_of(tiny_qwen3, method=method), tmp_path)

    def tuned(merge_with_base: float) -> torch.Tensor:
        recipe = recipe_of(tiny_qwen3, method=method, merge_with_base=merge_with_base)
        return scores_of(tuned_reranker(recipe, checkpoint, fp32=True))

    base = scores_of(base_reranker(recipe_of(tiny_qwen3)))
    distances = [(tuned(share) - base).abs().mean().item() for share in (0.0, 0.5, 0.999)]
    assert distances == sorted(distances, reverse=True) and distances[0] > 0.1 > distances[2]


def test_what_is_trained_is_said(tiny_qwen3: Path) -> None:
    recipe = recipe_of(tiny_qwen3, dora=True, rslora=True, targets=("q_proj", "v_proj"))
    base, tokenizer = load_base_tokenizer(recipe)
    contract = recipe_contract(recipe, base, tokenizer)
    said: list[str] = []
    describe(recipe, build_trainable(recipe, base, tokenizer, contract), contract, said.append)
    assert "DoRA rank 4 (scaled by its square root) on 4 linear layers (q_proj, v_proj), " in said[0]


def test_unknown_targets_are_refused_when_the_model_is_loaded(tiny_qwen3: Path) -> None:
    recipe = recipe_of(tiny_qwen3, targets=("query",))
    base, tokenizer = load_base_tokenizer(recipe)
    with pytest.raises(UserError, match=r"model\.targets: no linear layer of this base is named 'query': choose from"):
        build_trainable(recipe, base, tokenizer, recipe_contract(recipe, base, tokenizer))


@pytest.mark.parametrize("most", [None, 7, 30, 1000])
def test_a_share_of_the_queries_is_trained_for_as_many_epochs(most: int | None) -> None:
    def epochs(share: float) -> float:
        train = Train(epochs=2.5, max_steps=most, groups_per_step=4, queries_share=share)
        recipe = Recipe(name="one", model=Model(base="x"), data=Data(), train=train)
        return total_steps(recipe, 400 * share) * 4 / (400 * share)

    # Steps are whole.
    for share in (0.1, 0.25, 0.3, 0.5):
        assert epochs(1.0) <= epochs(share) <= epochs(1.0) + 4 / (400 * share)
    if most is None:
        assert epochs(0.1) == epochs(1.0) == 2.5
