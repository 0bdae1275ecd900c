"""Run by test_loop.py, alone or under torchrun: accumulate one global step and save its gradient."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from safetensors.torch import save_file

from rankwright.gradients import accumulate
from rankwright.losses import LOSSES
from rankwright.model import load_model, load_tokenizer
from rankwright.prompts import PromptEncoder, make_contract
from rankwright.recipe import Data as RecipeData
from rankwright.recipe import Mine, Model, Recipe
from rankwright.sampling import TrainGroup
from rankwright.train_stage import make_accelerator
from tiny import PAIRS, add_random_lora


def main(base: str, out: str, groups: int = 5, budget_tokens: int = 100_000, **_: Any) -> None:
    """Groups of unequal size from the test pairs; a random LoRA; dropout off."""
    recipe = Recipe(name="gradient", model=Model(base=base), data=RecipeData(), mine=Mine())
    accelerator = make_accelerator(recipe)
    tokenizer = load_tokenizer(base)
    contract = make_contract(tokenizer, mode="portable")
    model = add_random_lora(load_model(base, contract, tokenizer))
    encoder = PromptEncoder(contract, tokenizer)
    drawn = []
    for number in range(groups):
        documents = [d for _, d in PAIRS[number : number + 3 + number]]
        encoded = encoder.encode(PAIRS[number][0], documents)
        drawn.append(TrainGroup(f"q{number}", (1.0, *[0.0] * (len(documents) - 1)), encoded))
    module = accelerator.prepare(model)
    loss = LOSSES.bind("listwise_softmax", {})
    options = {"budget_tokens": budget_tokens, "one_by_one": False}
    accumulate(module, drawn, loss, **options, seed=0, step=1, accelerator=accelerator)
    if accelerator.is_main_process:
        found = {n: p.grad for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
        save_file({**found, "processes": torch.tensor(accelerator.num_processes)}, out)
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
