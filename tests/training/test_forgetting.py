"""A planted language and a domain in other words: the domain is learned, and only replay or the base's nearness keeps
the language."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from rankwright.model.loading import load_model, load_tokenizer
from rankwright.model.prompt import make_contract
from rankwright.model.rank_model import RankModel
from rankwright.model.text_blocks import Draws, Texts
from rankwright.model.trainable import add_lora, train_all
from rankwright.training.language import FrozenBase, LanguageObjectives, TextObjective, perplexity
from rankwright.training.optim import make_optimizer

BUDGET, LENGTH, A_STEP = 4096, 128, 8
NOUNS = "bond court contract river town seller goods loan company government library bridge garden engine".split()
VERBS = "buys sells opens closes finds loses signs reads".split()


def general(draw: random.Random) -> str:
    """Who does what to what is drawn at random."""
    return f"The {draw.choice(NOUNS)} {draw.choice(VERBS)} the {draw.choice(NOUNS)}."


def domain(draw: random.Random) -> str:
    """The first noun decides the last."""
    noun, verb = draw.randrange(len(NOUNS)), draw.randrange(2)
    return f"By law the {NOUNS[noun]} {VERBS[(noun + verb) % 8]} the {NOUNS[(noun * 5 + 3) % len(NOUNS)]}."


def blocks(sentence: Any, count: int, seed: int, tokenizer: Any) -> list[Texts]:
    """Blocks of LENGTH tokens; a text has four sentences, and the last one of a block is cut."""
    draw, found = random.Random(seed), list[Texts]()
    while len(found) < count:
        texts: Texts = []
        room = LENGTH
        while room:
            text = " ".join(sentence(draw) for _ in range(4))
            ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id][:room]
            texts.append(ids)
            room -= len(ids)
        found.append(texts)
    return found


def train(model: RankModel, objective: TextObjective, steps: int, rate: float) -> None:
    optimizer = make_optimizer(model.named_parameters(), learning_rate=rate, weight_decay=0.0)
    language = LanguageObjectives([objective], held_out={}, seed=0, budget_tokens=BUDGET)
    accelerator = Accelerator(cpu=True)
    for step in range(1, steps + 1):
        optimizer.zero_grad(set_to_none=True)
        language.accumulate(model.train(), step, (), accelerator=accelerator, budget_tokens=BUDGET)
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - (step - 1) / steps)
        optimizer.step()


@pytest.mark.slow
def test_replay_and_the_base_keep_the_language_that_the_domain_alone_loses(tiny_qwen3: Path) -> None:
    folder, tokenizer = str(tiny_qwen3), load_tokenizer(str(tiny_qwen3))

    def loaded() -> RankModel:
        return load_model(folder, make_contract(tokenizer, mode="portable", max_tokens=160), tokenizer)

    spoken, of_law = blocks(general, 200, 1, tokenizer), blocks(domain, 200, 2, tokenizer)
    held_out = [blocks(general, 16, 3, tokenizer), blocks(domain, 16, 4, tokenizer)]

    def measured(model: RankModel) -> Sequence[float]:
        return [perplexity(model, found, budget_tokens=BUDGET) for found in held_out]

    base = train_all(loaded())
    train(base, TextObjective(1.0, Draws(spoken, a_step=A_STEP, seed=0)), steps=160, rate=1e-2)
    state = {name: tensor.clone() for name, tensor in base.lm.state_dict().items()}
    before = measured(base)

    def after(
        steps: int, rate: float, *, replay: list[Texts] | None = None, divergence: float = 0.0
    ) -> Sequence[float]:
        """Of how many times the perplexity before, of general and of domain text."""
        model = loaded()
        model.lm.load_state_dict(state)
        model = add_lora(model.requires_grad_(False), rank=16, alpha=32, dropout=0.0, seed=0)
        draws = Draws(of_law, replay, share=0.5, a_step=A_STEP, seed=0)
        frozen = FrozenBase(model, torch.float32)
        train(model, TextObjective(1.0, draws, divergence=divergence, base=frozen), steps, rate)
        return [one / other for one, other in zip(measured(model), before, strict=True)]

    long, short = (50, 1e-2), (20, 3e-3)
    lost = {"alone": after(*long), "alone, shorter": after(*short)}
    kept = {"replay": after(*long, replay=spoken), "near to the base, shorter": after(*short, divergence=5.0)}
    assert all(of_domain <= 0.9 for _, of_domain in (*lost.values(), *kept.values())), (lost, kept)
    assert all(of_general > 1.03 for of_general, _ in lost.values()), lost
    assert all(of_general <= 1.03 for of_general, _ in kept.values()), kept
