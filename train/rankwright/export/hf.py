"""Target `hf`: a one-label sequence classifier in safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch

from rankwright.export.bake import write_tokenizer
from rankwright.export.golden import make_golden, write_golden
from rankwright.export.merging import merge, merge_figures
from rankwright.export.trained import TARGETS, Figures, Trained
from rankwright.model import RankModel, load_model
from rankwright.prompts import PromptContract
from rankwright.reranker import Reranker

ACTIVATION = "torch.nn.modules.activation.Sigmoid"


@TARGETS.register
def hf(trained: Trained, folder: Path) -> Figures:
    """One-label sequence classifier: transformers, sentence-transformers, vLLM, Infinity and others."""
    merged = merge(trained.model)
    figures = merge_figures(trained, merged)
    write_hf(merged, trained.tokenizer, trained.contract, folder, dtype=trained.dtype)
    # Read back: a 16-bit file has its own, rounded weights, and its golden scores are theirs.
    written = load_model(str(folder), trained.contract, trained.tokenizer)
    rows = make_golden(Reranker(written, trained.tokenizer, trained.contract), trained.golden_pairs)
    write_golden(folder, rows)
    return {**figures, "dtype": str(trained.dtype).removeprefix("torch.")}


def export_hf(
    model: RankModel, tokenizer: Any, contract: PromptContract, folder: Path, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write config, weights (merged in fp32, cast once to `dtype`), tokenizer and contract into `folder`.

    Raises UserError for a base that has no sequence-classification form.
    """
    write_hf(merge(model), tokenizer, contract, folder, dtype=dtype)


def write_hf(merged: RankModel, tokenizer: Any, contract: PromptContract, folder: Path, *, dtype: torch.dtype) -> None:
    """Write what merge() returned, which is cast in place."""
    cast(Any, merged.lm).to(dtype).save_pretrained(folder)
    write_tokenizer(tokenizer, contract, folder)
    # Last: save_pretrained would drop these again.
    patch_config(folder / "config.json")


def patch_config(path: Path) -> None:
    """What other libraries and older versions need to find in config.json."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings.pop("_name_or_path", None)
    settings["sentence_transformers"] = {"activation_fn": ACTIVATION}
    # transformers 4 knows these names only, and would go on with its defaults in silence.
    settings["torch_dtype"] = settings["dtype"]
    rope = settings.get("rope_parameters") or {}
    if "rope_theta" in rope:
        settings["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            settings["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"}
    assert settings["pad_token_id"] is not None and settings["pad_token_id"] != settings.get("eos_token_id")
    path.write_text(json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
