"""Weights of an export: merged in fp32, cast once, in safetensors shards, with a config.json for older libraries."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import AfterValidator
from torch import nn

from rankwright.common.errors import UserError
from rankwright.common.resources import resolve_base
from rankwright.export.golden import golden_texts, make_golden, write_golden
from rankwright.export.target import Figures, Trained
from rankwright.export.tokenizer import write_tokenizer
from rankwright.model.loading import load_model
from rankwright.model.prompt import PromptContract, PromptEncoder
from rankwright.model.rank_model import RankModel
from rankwright.rerankers.reranker import Reranker


def _checked_size(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d*[KMG]B", text):
        raise ValueError(f"{text!r}: must be a whole number with KB, MB or GB, e.g. 5GB")
    return text


# The largest file of weights; a tensor that is larger gets a file of its own.
ShardSize = Annotated[str, AfterValidator(_checked_size)]
SHARD_SIZE = "5GB"
Dtype = Literal["fp32", "bf16", "auto"]
ACTIVATION = "torch.nn.modules.activation.Sigmoid"


def has_adapter(model: RankModel) -> bool:
    """Whether the model carries LoRA adapters."""
    return hasattr(model.lm, "peft_config")


def in_fp32(model: RankModel) -> RankModel:
    """The model itself where it is in fp32 on the CPU already, else a copy: to score with, not to change."""
    weights = (*model.parameters(), *model.buffers())
    if not model.training and all(w.device.type == "cpu" and w.dtype == torch.float32 for w in weights):
        return model
    return copy.deepcopy(model).float().cpu().eval()


def without_adapters(model: RankModel) -> RankModel:
    """A copy in fp32 on the CPU, which every machine has, whose adapters are merged; the head is as it was."""
    model = copy.deepcopy(model).float().cpu().eval()
    if has_adapter(model):
        model.lm = cast(Any, model.lm).merge_and_unload()
    model.causal_lm.config.use_cache = True
    model.causal_lm.config.pad_token_id = model.pad_id
    return model


def why_no_classifier(config: Any, tokenizer: Any, contract: PromptContract) -> list[str]:
    """Why merge() cannot put a one-label head on the decoder of such a base; empty where it can."""
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    if type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return []
    return [f"{config.model_type} has no sequence-classification form in transformers: export it as causal or adapter"]


def merge(model: RankModel) -> RankModel:
    """A copy in fp32 whose adapters are merged and whose decoder has a one-label head.

    Raises KeyError for a base that why_no_classifier() refuses.
    """
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    model = without_adapters(model)
    config = copy.deepcopy(model.causal_lm.config)
    config.num_labels = 1
    classifier = transplant(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)], config, model.decoder)
    assert classifier.score.bias is None, "a score head with a bias"
    classifier.score.weight = nn.Parameter(model.score_weight_H[None].clone())
    return RankModel(classifier, model.rows_2H, model.pad_id).eval()


def merge_figures(trained: Trained, merged: RankModel) -> Figures:
    """How far the merged scores are from those of the trained model and of its base, all in fp32 on golden texts.

    Raises UserError when training changed no score, or when merging changed one by `tolerance` or more.
    """
    model = in_fp32(trained.model)
    encoder = PromptEncoder(trained.contract, trained.tokenizer)
    groups = [encoder.encode(query, [d]) for _, query, d in golden_texts(encoder, trained.golden_pairs)]
    # The same groups for all: equal weights then give equal scores, bit for bit.
    with torch.inference_mode():
        own = merged(groups)
        from_trained = (own - model(groups)).abs().max().item()
        from_base = None
        if has_adapter(model):
            with cast(Any, model.lm).disable_adapter():
                from_base = (own - model(groups)).abs().max().item()
    if from_base == 0:
        raise UserError("export: the merged model scores exactly like its base: training changed nothing")
    if not from_trained < trained.tolerance:
        raise UserError(
            f"export: merged weights score up to {from_trained:.2e} away from the trained model "
            f"(tolerance {trained.tolerance:.0e}): merging is not exact for this base"
        )
    return {"max_d_merged_trained": from_trained, "max_d_merged_base": from_base}


def dtype_of(dtype: Dtype, trained: Trained) -> torch.dtype:
    """The type that weights are written in; `auto` is the type of the base's own files."""
    from transformers import AutoConfig

    if dtype != "auto":
        return torch.float32 if dtype == "fp32" else torch.bfloat16
    base = resolve_base(trained.base_name)
    config = AutoConfig.from_pretrained(base, revision=trained.revision, trust_remote_code=False)
    return cast(torch.dtype, config.dtype or torch.float32)


def patch_config(folder: Path, more: Mapping[str, Any] | None = None) -> None:
    """What transformers 4, sentence-transformers and vLLM look for; last, since save_pretrained drops it again."""
    path = folder / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) | (more or {})
    for key in ("_name_or_path", "auto_map"):
        settings.pop(key, None)
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


def write_folder(
    trained: Trained, merged: RankModel, contract: PromptContract, folder: Path, dtype: Dtype, shard_size: str
) -> Figures:
    """Everything of a folder of safetensors, golden pairs included; the merged model is cast in place."""
    written_in = dtype_of(dtype, trained)
    figures = merge_figures(trained, merged)
    # Above shard_size as numbered files with an index.
    cast(Any, merged.lm.to(written_in)).save_pretrained(folder, max_shard_size=shard_size)
    write_tokenizer(trained.tokenizer, contract, folder)
    patch_config(folder)
    # Read back: a 16-bit file has its own, rounded weights, and its golden scores come from these.
    written = load_model(str(folder), contract, trained.tokenizer)
    rows = make_golden(Reranker(written, trained.tokenizer, contract), trained.golden_pairs)
    write_golden(folder, rows)
    figures["dtype"] = str(written_in).removeprefix("torch.")
    figures["weight_files"] = len(list(folder.glob("*.safetensors")))
    if written_in != torch.float32:
        # How far golden scores moved by rounding.
        own = Reranker(in_fp32(trained.model), trained.tokenizer, trained.contract)
        exact = own.score_groups([(row["query"], [row["document"]]) for row in rows])
        figures["max_d_rounded"] = max(abs(row["logit"] - s[0]) for row, s in zip(rows, exact, strict=True))
    return figures


def transplant(kind: Any, config: Any, decoder: nn.Module) -> Any:
    """A model of the class `kind` around a decoder that is there already; its head is on the meta device."""
    with torch.device("meta"):
        model = kind(config)
    prefix = model.base_model_prefix
    assert type(getattr(model, prefix)) is type(decoder), f"{kind.__name__} has another decoder"
    setattr(model, prefix, decoder)
    return model
