"""Objectives of a language model: transformers' own losses and gradients, nothing at the start, one process or two."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from accelerate import Accelerator
from language_jobs import collection, random_blocks, random_draws
from safetensors.torch import load_file
from tiny import PAIRS, add_random_lora
from torch import Tensor

from rankwright.common.errors import UserError
from rankwright.data.collection import Collection
from rankwright.model.loading import load_model, load_tokenizer
from rankwright.model.prompt import PromptEncoder, make_contract
from rankwright.model.rank_model import RankModel
from rankwright.model.text_blocks import Texts
from rankwright.model.trainable import add_lora, train_all
from rankwright.training.language import (
    FrozenBase,
    KeepAnswers,
    LanguageObjectives,
    Objective,
    QueryLikelihood,
    TextObjective,
    answer_divergence,
    perplexity,
)
from rankwright.training.sampling import TrainGroup
from rankwright.training.token_losses import head_weight

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
HUGE = 10**6
ROUTES = ("auto", "dense", "flex", "plain")


def make_model(folder: Path, dtype: torch.dtype = torch.float32) -> RankModel:
    tokenizer = load_tokenizer(str(folder))
    return load_model(str(folder), make_contract(tokenizer, mode="portable", max_tokens=160), tokenizer, dtype=dtype)


def make_groups(folder: Path) -> list[TrainGroup]:
    tokenizer = load_tokenizer(str(folder))
    encoder = PromptEncoder(make_contract(tokenizer, mode="portable", max_tokens=160), tokenizer)
    found = []
    for number in range(4):
        encoded = encoder.encode(PAIRS[number][0], [d for _, d in PAIRS[number : number + 4]])
        found.append(TrainGroup(f"q{number}", (1.0, 0.0, 0.0, 0.0), encoded, weight=1.0 + number))
    return found


def language(objectives: Sequence[Objective], seed: int = 0) -> LanguageObjectives:
    return LanguageObjectives(objectives, held_out={}, seed=seed, budget_tokens=HUGE)


def step(
    model: RankModel,
    objectives: Sequence[Objective],
    groups: Sequence[TrainGroup] = (),
    *,
    number: int = 1,
    budget: int = HUGE,
    seed: int = 0,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The gradients of one step alone, and the values that it logs."""
    model.zero_grad(set_to_none=True)
    values = language(objectives, seed).accumulate(
        model.train(), number, groups, accelerator=Accelerator(cpu=True), budget_tokens=budget
    )
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, values


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    a, b = (torch.cat([g[n].double().flatten() for n in sorted(one)]) for g in (one, other))
    return float((a - b).norm() / b.norm())


def own_losses(lm: Any, texts: Texts) -> Tensor:
    """transformers' own loss of each text alone, times the tokens that it predicts."""
    found = []
    for text in texts:
        ids = torch.tensor([text])
        found.append(lm(input_ids=ids, labels=ids, use_cache=False).loss * (len(text) - 1))
    return torch.stack(found)


# FlexAttention has no backward pass on a CPU.
@pytest.mark.parametrize("attention", [route for route in ROUTES if route != "flex"])
@pytest.mark.parametrize("family", ["tiny_qwen3", "tiny_llama"])
def test_packed_texts_have_the_loss_and_the_gradient_of_transformers(
    request: pytest.FixtureRequest, family: str, attention: str
) -> None:
    from transformers import AutoModelForCausalLM

    folder = request.getfixturevalue(family)
    draws = random_draws(a_step=3)
    texts = [text for block in draws.step(1) for text in block]
    own = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    losses = own_losses(own, texts)
    predicted = sum(len(text) - 1 for text in texts)
    (losses.sum() / predicted).backward()
    model = train_all(make_model(folder))
    model.attention = attention
    # A budget of one block or of all: the same means.
    for budget in (60, HUGE):
        gradients, values = step(model, [TextObjective(1.0, draws)], budget=budget)
        assert values["text_loss"] == pytest.approx(float(losses.sum().detach()) / predicted, rel=1e-5)
        named = dict(own.named_parameters())
        wanted = {name: named[name.removeprefix("lm.")].grad for name in gradients}
        assert all(gradient is not None for gradient in wanted.values())
        assert distance(gradients, {name: g for name, g in wanted.items() if g is not None}) < 1e-4
    assert perplexity(model, draws.step(1), budget_tokens=99) == pytest.approx(math.exp(values["text_loss"]), rel=1e-5)


@pytest.mark.parametrize("attention", ROUTES)
def test_a_text_does_not_depend_on_its_neighbours(tiny_qwen3: Path, attention: str) -> None:
    model = make_model(tiny_qwen3).eval()
    model.attention = attention
    block = random_blocks(2)[1]
    with torch.no_grad():
        together = torch.split(model([], block), [len(text) for text in block])
        for text, states in zip(block, together, strict=True):
            torch.testing.assert_close(model([], [text]), states, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(model([], [[7] * 5, text])[5:], states, rtol=1e-5, atol=1e-5)


def test_in_bf16_rows_are_filled_up_and_the_loss_is_that_of_fp32(tiny_qwen3: Path) -> None:
    wide, narrow = make_model(tiny_qwen3), make_model(tiny_qwen3, torch.bfloat16)
    blocks = random_blocks(3)
    assert perplexity(narrow, blocks, budget_tokens=99) == pytest.approx(
        perplexity(wide, blocks, budget_tokens=99), rel=0.05
    )


def test_the_value_of_a_step_depends_on_step_and_seed_alone(tiny_qwen3: Path) -> None:
    model = add_random_lora(make_model(tiny_qwen3).requires_grad_(False), dropout=0.3)
    frozen = FrozenBase(model, torch.float32)
    groups = make_groups(tiny_qwen3)
    tokenizer = load_tokenizer(str(tiny_qwen3))

    def objectives() -> list[Objective]:
        return [
            TextObjective(1.0, random_draws(a_step=2), divergence=0.3, base=frozen),
            QueryLikelihood(0.2, [collection()], tokenizer, max_tokens=40),
            KeepAnswers(0.1, frozen, share=0.2),
        ]

    first, values = step(model, objectives(), groups, number=2)
    torch.manual_seed(5)
    again, other = step(model, objectives(), groups, number=2)
    assert values == other
    assert all(torch.equal(gradient, again[name]) for name, gradient in first.items())
    # Dropout is drawn for each example: neighbours do not matter.
    assert distance(step(model, objectives(), groups, number=2, budget=1)[0], first) < 1e-6
    assert distance(step(model, objectives(), groups, number=3)[0], first) > 0.1
    assert distance(step(model, objectives(), groups, number=2, seed=1)[0], first) > 0.1


def test_weights_scale_gradients_and_not_the_logged_values(tiny_qwen3: Path) -> None:
    model = add_random_lora(make_model(tiny_qwen3).requires_grad_(False))
    frozen = FrozenBase(model, torch.float32)
    groups = make_groups(tiny_qwen3)
    tokenizer = load_tokenizer(str(tiny_qwen3))
    made = {
        "text_loss": lambda weight: TextObjective(weight, random_draws(a_step=2), divergence=0.5, base=frozen),
        "query_likelihood": lambda weight: QueryLikelihood(weight, [collection()], tokenizer, max_tokens=40),
        "keep_answers": lambda weight: KeepAnswers(weight, frozen, share=1.0),
    }
    alone = {}
    for name, make in made.items():
        one, values = step(model, [make(1.0)], groups)
        three, same = step(model, [make(3.0)], groups)
        assert distance(three, {n: 3 * g for n, g in one.items()}) < 1e-4
        assert same == pytest.approx(values, rel=1e-5) and values[name] > 0
        alone[name] = one
    # Together they add up, on top of the gradient that was there.
    weights = {"text_loss": 1.0, "query_likelihood": 0.5, "keep_answers": 2.0}
    found, values = step(model, [make(weights[name]) for name, make in made.items()], groups)
    wanted = {n: sum(weight * alone[name][n] for name, weight in weights.items()) for n in found}
    assert distance(found, {n: torch.as_tensor(g) for n, g in wanted.items()}) < 1e-5
    assert values.keys() == {*made, "text_loss_divergence"}
    language([made["text_loss"](1.0)]).accumulate(
        model, 1, groups, accelerator=Accelerator(cpu=True), budget_tokens=HUGE
    )
    total = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert distance(total, {n: g + alone["text_loss"][n] for n, g in found.items()}) < 1e-5
    assert step(model, [make(0.0) for make in made.values()], groups) == ({}, {})


def test_a_fresh_adapter_has_no_divergence_from_the_base_and_no_gradient_of_it(tiny_qwen3: Path) -> None:
    groups = make_groups(tiny_qwen3)
    model = add_lora(make_model(tiny_qwen3).requires_grad_(False), rank=4, alpha=8, dropout=0.0, seed=0)
    frozen = FrozenBase(model, torch.float32)
    gradients, values = step(model, [KeepAnswers(1.0, frozen, share=1.0)], groups)
    assert values["keep_answers"] == pytest.approx(0.0, abs=1e-6)
    assert max(float(g.abs().max()) for g in gradients.values()) < 1e-5
    plain, _ = step(model, [TextObjective(1.0, random_draws(a_step=2))])
    held, values = step(model, [TextObjective(1.0, random_draws(a_step=2), divergence=1.0, base=frozen)])
    assert values["text_loss_divergence"] == pytest.approx(0.0, abs=1e-6)
    assert distance(held, plain) < 1e-5
    # Adapters are on and trained again after the base was asked.
    assert all(p.requires_grad for n, p in model.named_parameters() if "lora_" in n)
    assert float(model([groups[0].encoded]).detach().std()) > 0


def test_the_frozen_base_stays_what_the_model_was(tiny_qwen3: Path) -> None:
    groups = make_groups(tiny_qwen3)
    for full in (False, True):
        model = make_model(tiny_qwen3)
        before = model([groups[0].encoded]).detach()
        model = (
            train_all(model) if full else add_lora(model.requires_grad_(False), rank=4, alpha=8, dropout=0.0, seed=0)
        )
        frozen = FrozenBase(model, torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05)
        with frozen.within(model) as base:
            torch.testing.assert_close(base([groups[0].encoded]), before)
        changed = model([groups[0].encoded])
        assert not torch.allclose(changed, before, atol=1e-2) and changed.requires_grad
        _, values = step(model, [KeepAnswers(1.0, frozen, share=1.0)], groups)
        assert values["keep_answers"] > 1e-4


def test_the_divergence_of_answers_is_that_of_two_probabilities() -> None:
    base, scores = torch.tensor([-3.0, 0.0, 2.0, 40.0]).double(), torch.tensor([-1.0, 0.5, 2.0, -40.0]).double()
    of_base, ours = (torch.distributions.Bernoulli(logits=x) for x in (base, scores))
    wanted = torch.distributions.kl_divergence(of_base, ours)
    torch.testing.assert_close(answer_divergence(base, scores), wanted)
    assert float(answer_divergence(base, base).abs().max()) == 0


def test_a_share_of_the_prompts_keeps_its_answers_and_one_at_least(tiny_qwen3: Path) -> None:
    groups = make_groups(tiny_qwen3)
    model = add_random_lora(make_model(tiny_qwen3).requires_grad_(False))
    frozen = FrozenBase(model, torch.float32)
    with torch.no_grad():
        scores = model([g.encoded for g in groups])
        with frozen.within(model) as base:
            wanted = answer_divergence(base([g.encoded for g in groups]), scores)
    _, values = step(model, [KeepAnswers(1.0, frozen, share=1.0)], groups)
    assert values["keep_answers"] == pytest.approx(float(wanted.mean()), rel=1e-4)
    seen = set()
    for number in range(1, 40):
        _, values = step(model, [KeepAnswers(1.0, frozen, share=0.01)], groups, number=number)
        (nearest,) = wanted[(wanted - values["keep_answers"]).abs().argmin()][None].tolist()
        assert values["keep_answers"] == pytest.approx(nearest, rel=1e-3)
        seen.add(nearest)
    assert len(seen) > 8
    assert step(model, [KeepAnswers(1.0, frozen)], []) == ({}, {"loss": 0})


@pytest.mark.parametrize("family", ["tiny_qwen3", "tiny_llama"])
def test_the_likelihood_of_queries_is_transformers_own_with_the_document_masked(
    request: pytest.FixtureRequest, family: str
) -> None:
    from transformers import AutoModelForCausalLM

    folder = request.getfixturevalue(family)
    tokenizer, groups = load_tokenizer(str(folder)), make_groups(folder)
    queries = collection()
    queries.qrels["q0"].pop("d3")  # type: ignore[attr-defined]
    own = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    total = weight = torch.zeros(())
    for group in groups:
        number = int(group.query_id[1:])
        query, document = PAIRS[number]
        ids = tokenizer(f"Document: {document}\nQuery: {query}")["input_ids"]
        queried = len(tokenizer(f" {query}", add_special_tokens=False)["input_ids"])
        labels = torch.tensor([[-100] * (len(ids) - queried) + ids[-queried:]])
        loss = own(input_ids=torch.tensor([ids]), labels=labels, use_cache=False).loss
        total, weight = total + group.weight * queried * loss, weight + group.weight * queried
    (total / weight).backward()
    model = train_all(make_model(folder))
    gradients, values = step(model, [QueryLikelihood(1.0, [queries], tokenizer, max_tokens=160)], groups)
    assert values["query_likelihood"] == pytest.approx(float((total / weight).detach()), rel=1e-5)
    named = dict(own.named_parameters())
    assert distance(gradients, {n: named[n.removeprefix("lm.")].grad for n in gradients}) < 1e-4  # type: ignore[misc]


def test_prompts_of_queries_are_cut_to_the_budget_and_groups_without_a_relevant_document_have_none(
    tiny_qwen3: Path,
) -> None:
    tokenizer, groups = load_tokenizer(str(tiny_qwen3)), make_groups(tiny_qwen3)
    objective = QueryLikelihood(1.0, [collection()], tokenizer, max_tokens=40)
    long, query = "The court held that. " * 40, "who pays interest on a bond"
    ids, start = objective.prompt(query, long)
    assert len(ids) == 40
    assert tokenizer.decode(ids[start:]) == " " + query
    assert tokenizer.decode(ids[:start]).startswith("Document: The court held that.")
    assert tokenizer.decode(ids[:start]).endswith("\nQuery:")
    ids, start = objective.prompt(query * 40, "A bond.")
    assert len(ids) <= 40 and start < len(ids) < start + 20
    ids, _ = objective.prompt("end <|im_end|>", "of <|endoftext|> text")
    assert not set(ids) & set(tokenizer.all_special_ids)
    without = Collection("none", *(getattr(collection(), name) for name in ("corpus", "queries")), qrels={})
    model = add_random_lora(make_model(tiny_qwen3).requires_grad_(False))
    assert step(model, [QueryLikelihood(1.0, [without], tokenizer, max_tokens=40)], groups) == ({}, {})


def test_a_head_of_one_label_predicts_no_tokens(tiny_qwen3: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    AutoModelForSequenceClassification.from_pretrained(tiny_qwen3, num_labels=1).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tiny_qwen3))
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no head that predicts tokens: take the language model"):
        head_weight(make_model(tmp_path))


def in_processes(folder: Path, base: Path, processes: int, **case: Any) -> tuple[dict[str, Tensor], dict[str, float]]:
    out = folder / f"{processes}-{len(list(folder.iterdir()))}.safetensors"
    worker = str(Path(__file__).parents[1] / "support" / "language_worker.py")
    arguments = json.dumps([{"base": str(base), "out": str(out), **case}])
    command = [sys.executable, *(TORCHRUN if processes > 1 else []), worker, arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=jobs.environment(), timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    found = load_file(out)
    values = {n.removeprefix("value."): float(found.pop(n)) for n in list(found) if n.startswith("value.")}
    return found, values


@pytest.mark.slow
@pytest.mark.parametrize("case", [{}, {"dropout": 0.2}, {"sharded": True}], ids=["whole", "dropout", "sharded"])
def test_two_processes_have_the_gradient_and_the_values_of_one(
    tmp_path: Path, tiny_qwen3: Path, case: dict[str, Any]
) -> None:
    one, values = in_processes(tmp_path, tiny_qwen3, 1, **{**case, "sharded": False})
    two, others = in_processes(tmp_path, tiny_qwen3, 2, **case)
    assert distance(two, one) < 1e-5
    assert others == pytest.approx(values, rel=1e-5)
    assert values.keys() == {
        *("text_loss", "text_loss_divergence", "query_likelihood", "keep_answers", "domain_perplexity")
    }
