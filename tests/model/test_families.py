"""Bases of all families: the score is the base's own difference of logits and trains with its gradient, or one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from families import ROWS, make_base
from tiny import PAIRS, add_random_lora
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rankwright.common.errors import UserError
from rankwright.export.target import Trained
from rankwright.export.targets import TARGETS
from rankwright.model.heads import TRIED
from rankwright.model.loading import load_model, load_tokenizer
from rankwright.model.prompt import EncodedGroup, make_contract
from rankwright.model.rank_model import RankModel
from rankwright.pipeline.checks import check_targets
from rankwright.recipe.export import Export
from rankwright.recipe.schema import Model, Prompt, Recipe
from rankwright.recipe.sources import Data
from rankwright.rerankers.reranker import Reranker
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
        torch.testing.assert_close(model.eval()(groups), scores, rtol=0, atol=EXACT / 10)
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
    found = outcome(tmp_path / "base")
    named = json.loads((tmp_path / "base" / "config.json").read_text())["model_type"]
    assert (named in TRIED) is isinstance(found, float), "the table of what was tried"


def describe_of(folder: Path, **model: Any) -> tuple[RankModel, list[str]]:
    recipe = recipe_on(folder, **model)
    base, tokenizer, contract = recipe_prompt(recipe)
    found, described = build_trainable(recipe, base, tokenizer, contract), list[str]()
    describe(recipe, found, contract, described.append)
    return found, described


def test_what_no_text_goes_through_is_not_trained(tiny_qwen3: Path, tmp_path: Path) -> None:
    """A vision tower has layers of the same names; in full training weight decay would move it."""
    make_base(tmp_path / "base", "gemma3", tiny_qwen3)
    for method in ("lora", "full"):
        model, _ = describe_of(tmp_path / "base", method=method)
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        assert any("vision_tower" in n and "q_proj" in n for n, _ in model.named_parameters())
        assert trained and all(".language_model." in name for name in trained)
        assert any("q_proj" in name for name in trained)


def test_experts_are_reported_where_they_have_no_adapters(tiny_qwen3: Path, tmp_path: Path) -> None:
    make_base(tmp_path / "base", "mixtral", tiny_qwen3)
    model, described = describe_of(tmp_path / "base")
    experts = [p for n, p in model.named_parameters() if n.endswith((".gate_up_proj", ".down_proj"))]
    share = sum(p.numel() for p in experts) / sum(p.numel() for p in model.parameters())
    [line] = [text for text in described if text.startswith("experts: ")]
    assert line.startswith(f"experts: 4 tensors with {share:.0%} of the parameters have no adapters")
    model, described = describe_of(tmp_path / "base", method="full")
    assert not any(text.startswith("experts: ") for text in described)
    assert all(p.requires_grad for n, p in model.named_parameters() if ".experts." in n)


def test_a_router_that_is_not_one_product_gets_no_adapter(tiny_qwen3: Path, tmp_path: Path) -> None:
    make_base(tmp_path / "base", "phimoe", tiny_qwen3)
    model, described = describe_of(tmp_path / "base")
    trained = {n.split(".lora_")[0].rsplit(".", 1)[-1] for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert any("dropout is off (router_jitter_noise 0.01)" in text for text in described)


def test_a_bases_own_dropout_is_off_and_gradients_do_not_depend_on_the_budget(tiny_qwen3: Path, tmp_path: Path) -> None:
    make_base(tmp_path / "base", "seed_oss", tiny_qwen3)
    model, described = describe_of(tmp_path / "base")
    assert any("dropout is off (attention_dropout 0.1, residual_dropout 0.1)" in text for text in described)
    encoder = base_reranker(recipe_on(tmp_path / "base")).encoder
    groups = [encoder.encode(QUERY, [document]) for document in DOCUMENTS]
    model.train()
    together = model(groups)
    alone = torch.cat([model([group]) for group in groups])
    torch.testing.assert_close(together, alone, rtol=0, atol=EXACT / 10)
    assert not model.has_dropout


def test_layers_that_are_not_counted_whole_are_refused_by_the_estimate(tiny_qwen3: Path, tmp_path: Path) -> None:
    """falcon_h1 has the layers of a Llama, and a state space beside them."""
    for family, is_counted in (("falcon_h1", False), ("mixtral", False), ("gpt2", False), ("olmo2", True)):
        make_base(tmp_path / family, family, tiny_qwen3)
        model, _ = describe_of(tmp_path / family)
        if is_counted:
            assert architecture_of(model).heads == 4
        else:
            with pytest.raises(UserError, match=rf"layers of the architecture {family} are not counted here"):
                architecture_of(model)


def test_a_tokenizer_with_more_tokens_than_rows(tiny_qwen3: Path, tmp_path: Path) -> None:
    """Refused where a prompt can hold such a token; those that only images make are harmless."""
    folder = tmp_path / "base"
    make_base(folder, "llama", tiny_qwen3)
    wanted = base_reranker(recipe_on(folder)).score(QUERY, DOCUMENTS)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<image_{n}>" for n in range(ROWS)]})
    assert max(tokenizer.get_vocab().values()) >= ROWS
    tokenizer.save_pretrained(folder)
    assert check_targets(recipe_on(folder)) == []
    assert base_reranker(recipe_on(folder)).score(QUERY, [*DOCUMENTS, "<image_13>"])[:-1] == pytest.approx(wanted)
    tokenizer.add_tokens(["bond"])
    tokenizer.save_pretrained(folder)
    [fault] = check_targets(recipe_on(folder))
    assert "tokens beyond the 704 rows of the embeddings (such as 'bond')" in fault and fault.isprintable()
    with pytest.raises(UserError, match="such as 'bond'"):
        base_reranker(recipe_on(folder))


@pytest.mark.parametrize("family", ["granite", "cohere"])
def test_the_causal_export_of_a_scaled_head_is_exact(family: str, tiny_qwen3: Path, tmp_path: Path) -> None:
    """Its rows stay as they are where they can; with a scale of our own they are not multiplied twice."""
    make_base(tmp_path / "base", family, tiny_qwen3)
    for scale in (1.0, 0.2):
        tokenizer = load_tokenizer(str(tmp_path / "base"))
        contract = make_contract(tokenizer, mode="portable", max_tokens=160).replace(scale=scale)
        model = add_random_lora(load_model(str(tmp_path / "base"), contract, tokenizer)).eval()
        one = Trained(model, tokenizer, contract, str(tmp_path / "base"), None, PAIRS, 1e-4)
        folder = tmp_path / f"causal-{scale}"
        folder.mkdir()
        TARGETS["causal"].write(one, folder)
        reranker = Reranker(model, tokenizer, contract)
        scores = reranker.score(QUERY, DOCUMENTS)
        lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        assert contract.no_id is not None
        with torch.no_grad():
            own = own_scores(lm, [reranker.encoder.encode(QUERY, DOCUMENTS)], contract.yes_id, contract.no_id)
        assert own.tolist() == pytest.approx(scores, abs=EXACT)
        assert Reranker.load(str(folder)).score(QUERY, DOCUMENTS) == pytest.approx(scores, abs=EXACT)


def test_unknown_targets_are_refused_by_check(tiny_qwen3: Path, tmp_path: Path) -> None:
    make_base(tmp_path / "base", "mixtral", tiny_qwen3)
    for folder in (tiny_qwen3, tmp_path / "base"):
        [fault] = check_targets(recipe_on(folder, targets=("nope",)))
        assert re.match(r"model\.targets: no linear layer of this base is named 'nope': choose from", fault)
        assert check_targets(recipe_on(folder, targets=("q_proj",))) == []
