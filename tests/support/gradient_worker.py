"""Run by test_loop.py and test_sharding.py, alone or under torchrun: save the gradient of one global step."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from tiny import PAIRS, add_random_lora

from rankwright.model.loading import load_model, load_tokenizer
from rankwright.model.prompt import PromptEncoder, make_contract
from rankwright.model.sharding import gathered, shard, whole
from rankwright.model.trainable import enable_checkpointing, train_all
from rankwright.pipeline.train import make_accelerator
from rankwright.recipe.schema import Data as RecipeData
from rankwright.recipe.schema import Mine, Model, Recipe, Train
from rankwright.training.gradients import accumulate, clip, prepare
from rankwright.training.losses import LOSSES
from rankwright.training.sampling import TrainGroup


def main(
    base: str,
    out: str,
    groups: int = 5,
    budget_tokens: int = 100_000,
    full: bool = False,
    attention: str = "auto",
    checkpointing: bool = False,
    bf16: bool = False,
    dropout: float = 0.0,
    sharded: bool = False,
    **_: Any,
) -> None:
    """Groups of unequal size from the test pairs; a random LoRA, or all weights trained."""
    precision = Train(precision="bf16" if bf16 else "fp32")
    recipe = Recipe(name="gradient", model=Model(base=base), data=RecipeData(), mine=Mine(), train=precision)
    accelerator = make_accelerator(recipe)
    tokenizer = load_tokenizer(base)
    contract = make_contract(tokenizer, mode="portable")
    model = load_model(base, contract, tokenizer, dtype=torch.bfloat16 if bf16 and not full else torch.float32)
    model = train_all(model) if full else add_random_lora(model.requires_grad_(False), dropout=dropout)
    model.attention = attention
    if checkpointing:
        enable_checkpointing(model)
    encoder = PromptEncoder(contract, tokenizer)
    drawn = []
    for number in range(groups):
        documents = [d for _, d in PAIRS[number : number + 3 + number]]
        encoded = encoder.encode(PAIRS[number][0], documents)
        drawn.append(TrainGroup(f"q{number}", (1.0, *[0.0] * (len(documents) - 1)), encoded))
    if sharded:
        shard(model, accelerator)
    else:
        prepare(model, accelerator)
    model.eval()
    with gathered(model), torch.inference_mode():
        # As in an evaluation every rank scores what is its own, the last one nothing.
        if accelerator.process_index < max(1, accelerator.num_processes - 1):
            score = model([drawn[accelerator.process_index].encoded])[0]
    model.train()
    loss = LOSSES.bind("listwise_softmax", {})
    accumulate(model, drawn, loss, budget_tokens=budget_tokens, seed=0, step=1, accelerator=accelerator)
    found = {n: p.grad for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    found = {n: whole(gradient).clone() for n, gradient in found.items()}
    norm = clip(model.parameters(), 0.5)
    clipped = {n: whole(p.grad) for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    if accelerator.is_main_process:
        assert all((clipped[n] - g * min(1.0, 0.5 / norm)).norm() <= 1e-5 for n, g in found.items())
        facts = {"processes": torch.tensor(accelerator.num_processes), "norm": torch.tensor(norm), "score": score}
        save_file({**found, **facts}, out)
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    for case in json.loads(sys.argv[1]):
        main(**case)
    if dist.is_initialized():
        dist.destroy_process_group()
