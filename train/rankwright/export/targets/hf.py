"""Target `hf`: a one-label sequence classifier in safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rankwright.export.golden import make_golden, write_golden
from rankwright.export.target import REFUSALS, TARGETS, Figures, Trained
from rankwright.export.tokenizer import write_tokenizer
from rankwright.export.weights import (
    Dtype,
    ShardSize,
    dtype_of,
    merge,
    merge_figures,
    patch_config,
    weight_figures,
    why_no_classifier,
    write_weights,
)
from rankwright.model.loading import load_model
from rankwright.model.prompt import PromptContract
from rankwright.model.rank_model import RankModel
from rankwright.rerankers.reranker import Reranker

SHARD_SIZE = "5GB"
REFUSALS["hf"] = why_no_classifier


@TARGETS.register
def hf(trained: Trained, folder: Path, *, shard_size: ShardSize = SHARD_SIZE, dtype: Dtype = "fp32") -> Figures:
    """One-label sequence classifier: transformers, sentence-transformers, vLLM, Infinity and others.

    shard_size: of a file of weights, e.g. 2GB. dtype: fp32, bf16, or auto, which is that of the base's files.
    """
    merged, written_in = merge(trained.model), dtype_of(dtype, trained)
    figures = merge_figures(trained, merged)
    write_hf(merged, trained.tokenizer, trained.contract, folder, dtype=written_in, shard_size=shard_size)
    # Read back: a 16-bit file has its own, rounded weights, and its golden scores are theirs.
    written = load_model(str(folder), trained.contract, trained.tokenizer)
    rows = make_golden(Reranker(written, trained.tokenizer, trained.contract), trained.golden_pairs)
    write_golden(folder, rows)
    return figures | weight_figures(trained, folder, rows, written_in)


def export_hf(
    model: RankModel, tokenizer: Any, contract: PromptContract, folder: Path, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write config, weights (merged in fp32, cast once to `dtype`), tokenizer and contract into `folder`.

    Raises UserError for a base that has no sequence-classification form.
    """
    write_hf(merge(model), tokenizer, contract, folder, dtype=dtype)


def write_hf(
    merged: RankModel,
    tokenizer: Any,
    contract: PromptContract,
    folder: Path,
    *,
    dtype: torch.dtype,
    shard_size: str = SHARD_SIZE,
) -> None:
    """Write what merge() returned, which is cast in place."""
    write_weights(merged.lm, folder, dtype=dtype, shard_size=shard_size)
    write_tokenizer(tokenizer, contract, folder)
    patch_config(folder)
