"""Bases of all families: the score is the base's own difference of logits and trains with its gradient, or one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import make_base
from tiny import PAIRS
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rankwright.common.errors import UserError
from rankwright.model.prompt import EncodedGroup
from rankwright.pipeline.checks import check_targets
from rankwright.recipe.schema import Data, Export, Model, Prompt, Recipe
from rankwright.training.estimate.shapes import Architecture, architecture_of
from rankwright.training.setup import base_reranker, build_trainable, describe, recipe_prompt

QUERY, DOCUMENTS = PAIRS[0][0], [document for _, document in PAIRS[:4]]
EXACT = 1e-4
# Family -> what `check` reports, or the head's factor.
FEW: dict[str, str | float] = {
    "cohere2": 0.0625,
    "falcon_h1": 0.5,
    "gemma3": 1.0,
    "gpt2": 1.0,
    "granite": 0.125,
    "llama4_text": 1.0,
    "minicpm3": 0.25,
    "mixtral": 1.0,
    "modernbert-decoder": "does more than one product",
    "phi": r"adds an offset \(bias\)",
    "seed_oss": 1.0,
}


def recipe_on(folder: Path, **model: Any) -> Recipe:
    settings = Model(base=str(folder), rank=2, alpha=4, **model)
    prompt = Prompt(mode="portable", max_tokens=160)
    return Recipe(name="r", model=settings, data=Data(), prompt=prompt, export=Export(targets={}))


def own_scores(lm: Any, groups: list[EncodedGroup], yes: int, no: int) -> Tensor:
    """Differences of the logits of transformers' own forward, one prompt at a time."""
    found = []
    for group in groups:
        for tail in group.tail_ids:
            logits = lm(input_ids=torch.tensor([group.head_ids + tail]), use_cache=False).logits[0, -1].float()
            found.append(logits[yes] - logits[no])
    return torch.stack(found)


def check_exact(folder: Path) -> float:
    """Load, score, one step of LoRA, estimate; everything against transformers' own forward. Returns the factor."""
    recipe = recipe_on(folder)
    reranker = base_reranker(recipe)
    base, tokenizer, contract = recipe_prompt(recipe)
    assert contract.no_id is not None
    groups = [reranker.encoder.encode(QUERY, DOCUMENTS)]
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = own_scores(lm, groups, contract.yes_id, contract.no_id)
    assert wanted.std() > 1e-3, "too close together to show a mistake"
    assert reranker.score(QUERY, DOCUMENTS) == pytest.approx(wanted.tolist(), abs=EXACT)
    model = build_trainable(recipe, base, tokenizer, contract).train()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in trained.items():
            if "lora_B" in name:
                parameter.normal_(0, 0.02, generator=torch.Generator().manual_seed(len(name)))
    scores = model(groups)
    scores.square().sum().backward()
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in trained.items()}
    # Without dropout of its own, and in training as in scoring.
    with torch.no_grad():
        assert torch.equal(model.eval()(groups), scores)
    model.zero_grad()
    own = own_scores(model.lm, groups, contract.yes_id, contract.no_id)
    torch.testing.assert_close(scores, own, rtol=0, atol=EXACT)
    own.square().sum().backward()
    largest = max(float(g.abs().max()) for g in gradients.values())
    assert largest > 0
    for name, parameter in trained.items():
        theirs = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(gradients[name], theirs, rtol=1e-3, atol=1e-4 * largest, msg=name)
    described: list[str] = []
    describe(recipe, model, contract, described.append)
    try:
        assert isinstance(architecture_of(model), Architecture)
    except UserError as error:
        assert str(error).isprintable()
    return reranker.model.head_factor


def outcome(folder: Path) -> str | float:
    """The head's factor of a base that is exact, or what `check` reports."""
    if faults := check_targets(recipe_on(folder)):
        [fault] = faults
        assert fault.startswith("model.") and fault.isprintable()
        return fault
    return check_exact(folder)


@pytest.mark.parametrize("family", FEW)
def test_a_base_is_exact_or_refused_by_check(family: str, tiny_qwen3: Path, tmp_path: Path) -> None:
    make_base(tmp_path / "base", family, tiny_qwen3)
    found, wanted = outcome(tmp_path / "base"), FEW[family]
    if isinstance(wanted, str):
        assert isinstance(found, str)
        with pytest.raises(UserError, match=wanted):
            base_reranker(recipe_on(tmp_path / "base"))
    else:
        assert found == pytest.approx(wanted, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("family", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
def test_every_family_is_exact_or_refused_by_check(family: str, tiny_qwen3: Path, tmp_path: Path) -> None:
    try:
        make_base(tmp_path / "base", family, tiny_qwen3)
    except Exception as error:
        pytest.skip(f"no tiny model of it is made here: {type(error).__name__}: {str(error)[:200]}")
    outcome(tmp_path / "base")
