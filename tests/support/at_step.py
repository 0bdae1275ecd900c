"""The model of a run's recipe as it was after a step of training."""

from __future__ import annotations

import torch

from rankwright import Reranker
from rankwright.pipeline.stages import Pipeline
from rankwright.training.checkpoint import load_checkpoint
from rankwright.training.setup import build_trainable, load_base_tokenizer, recipe_contract


def reranker(pipeline: Pipeline, step: int) -> Reranker:
    """With the weights of the checkpoint of this step; 0: untrained."""
    recipe = pipeline.recipe
    base, tokenizer = load_base_tokenizer(recipe)
    contract = recipe_contract(recipe, base, tokenizer)
    model = build_trainable(recipe, base, tokenizer, contract, torch.device("cpu"))
    if step:
        load_checkpoint(pipeline.folder.checkpoint(step), model)
    return Reranker(model.eval(), tokenizer, contract)
