"""Adapters merged in fp32 below a one-label head, and how far the merged scores are from the trained ones."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import nn

from rankwright.errors import UserError
from rankwright.export.golden import golden_texts
from rankwright.export.trained import Figures, Trained, fp32_copy, has_adapter, in_fp32
from rankwright.export.weights import transplant
from rankwright.model import RankModel
from rankwright.prompts import PromptContract, PromptEncoder


def without_adapters(model: RankModel) -> RankModel:
    """A copy in fp32 whose adapters are merged; the head is as it was."""
    model = fp32_copy(model)
    if has_adapter(model):
        model.lm = cast(Any, model.lm).merge_and_unload()
    model.causal_lm.config.use_cache = True
    model.causal_lm.config.pad_token_id = model.pad_id
    return model


def why_no_classifier(config: Any, tokenizer: Any, contract: PromptContract) -> list[str]:
    """Why merge() cannot put the decoder of such a base below a one-label head; empty where it can."""
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    if type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return []
    return [f"{config.model_type} has no sequence-classification form in transformers: export it as causal or adapter"]


def merge(model: RankModel) -> RankModel:
    """A copy in fp32 whose adapters are merged and whose decoder stands below a one-label head."""
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    model = without_adapters(model)
    config = copy.deepcopy(model.causal_lm.config)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UserError(f"export: {config.model_type} has no sequence-classification form in transformers")
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
