"""Run by test_language.py, alone or under torchrun: save the gradient of one step of lists and language objectives."""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist
from language_jobs import collection, random_draws
from safetensors.torch import save_file
from tiny import PAIRS, add_random_lora

from rankwright.model.loading import load_model, load_tokenizer
from rankwright.model.prompt import PromptEncoder, make_contract
from rankwright.model.sharding import shard, whole
from rankwright.pipeline.train import make_accelerator
from rankwright.recipe.schema import Data as RecipeData
from rankwright.recipe.schema import Mine, Model, Recipe, Train
from rankwright.training.gradients import accumulate, prepare
from rankwright.training.language import (
    FrozenBase,
    KeepAnswers,
    LanguageObjectives,
    QueryLikelihood,
    TextObjective,
)
from rankwright.training.losses import LOSSES
from rankwright.training.sampling import TrainGroup


def main(base: str, out: str, *, sharded: bool = False, bf16: bool = False, dropout: float = 0.0) -> None:
    """Groups and blocks of unequal size; blocks are fewer than two processes could share evenly."""
    precision = Train(precision="bf16" if bf16 else "fp32")
    recipe = Recipe(name="language", model=Model(base=base), data=RecipeData(), mine=Mine(), train=precision)
    accelerator = make_accelerator(recipe)
    tokenizer = load_tokenizer(base)
    contract = make_contract(tokenizer, mode="portable")
    model = load_model(base, contract, tokenizer, dtype=torch.bfloat16 if bf16 else torch.float32)
    model = add_random_lora(model.requires_grad_(False), dropout=dropout).train()
    encoder = PromptEncoder(contract, tokenizer)
    groups = []
    for number in range(5):
        documents = [d for _, d in PAIRS[number : number + 3 + number]]
        encoded = encoder.encode(PAIRS[number][0], documents)
        groups.append(TrainGroup(f"q{number}", (1.0, *[0.0] * (len(documents) - 1)), encoded, 1.0 + number % 2))
    shard(model, accelerator) if sharded else prepare(model, accelerator)
    frozen = FrozenBase(model, torch.float32)
    objectives = [
        TextObjective(1.0, random_draws(a_step=3), divergence=0.5, base=frozen),
        QueryLikelihood(0.1, [collection()], tokenizer, max_tokens=60),
        KeepAnswers(0.1, frozen, share=0.2),
    ]
    language = LanguageObjectives(
        objectives, held_out={"domain": random_draws(a_step=3).domain}, seed=0, budget_tokens=100_000
    )
    loss = LOSSES.bind("listwise_softmax", {})
    accumulate(model, groups, loss, budget_tokens=100_000, seed=0, step=1, accelerator=accelerator)
    values = language.accumulate(model, 1, groups, accelerator=accelerator, budget_tokens=120)
    values |= language.evaluate(model)
    found = {n: whole(p.grad).clone() for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    if accelerator.is_main_process:
        save_file({**found, **{f"value.{name}": torch.tensor(value) for name, value in values.items()}}, out)
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    for case in json.loads(sys.argv[1]):
        main(**case)
    if dist.is_initialized():
        dist.destroy_process_group()
