"""Target `causal`: the yes/no form, a language model whose last logits are the score."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rankwright.export.proof.runtimes.torch import RANKWRIGHT, SENTENCE_TRANSFORMERS, TRANSFORMERS_CAUSAL
from rankwright.export.proof.settings import (
    architecture_of,
    dtype_of_older_libraries,
    pad_token,
    rope_of_older_libraries,
)
from rankwright.export.target import TARGETS, Card, Figures, Target, Trained
from rankwright.export.tokenizer import TEMPLATE_FILE
from rankwright.export.weights import (
    ACTIVATION,
    SHARD_SIZE,
    Dtype,
    ShardSize,
    transplant,
    without_adapters,
    write_folder,
)
from rankwright.model.heads import head_factor
from rankwright.model.prompt import PromptContract
from rankwright.model.rank_model import RankModel, scored_rows

LOGIT_SCORE = "1_LogitScore"
MODULES = [
    ("", "sentence_transformers.base.modules.transformer.Transformer"),
    (LOGIT_SCORE, "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"),
]


def causal(trained: Trained, folder: Path, *, shard_size: ShardSize = SHARD_SIZE, dtype: Dtype = "fp32") -> Figures:
    """The yes/no form: transformers, sentence-transformers (LogitScore), vLLM with launch flags.

    shard_size: of a file of weights, e.g. 2GB. dtype: fp32, bf16, or auto for the type of the base's files.
    """
    # The scale goes into the written rows: whoever reads logits does not know of it.
    contract = trained.contract.replace(scale=1.0)
    merged = merge_causal(trained.model, trained.contract)
    figures = write_folder(trained, merged, contract, folder, dtype, shard_size)
    write_modules(contract, folder)
    return {**figures, "tied": bool(merged.causal_lm.config.tie_word_embeddings)}


def why_no_causal(config: Any, tokenizer: Any, contract: PromptContract) -> list[str]:
    """Why merge_causal() cannot give such a base's head the score; empty where it can."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return [f"{config.model_type} has no causal form in transformers: use hf"]
    with torch.device("meta"):
        head = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).get_output_embeddings()
    biased = getattr(head, "bias", None) is not None
    return ["the head of this base has a bias, which the score leaves out: use hf"] if biased else []


def merge_causal(model: RankModel, contract: PromptContract) -> RankModel:
    """A copy in fp32, adapters merged, whose language-model head gives the trained score.

    Where the head's own rows do not (embeddings that were trained and tied to it, a scaled score, a one-label base),
    it is untied and its rows are replaced by those of the score. Raises KeyError for a base that why_no_causal()
    refuses.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    merged = without_adapters(model)
    head = merged.causal_lm.get_output_embeddings()
    own = contract.replace(scale=1.0)
    if head is not None and torch.equal(scored_rows(head.weight, own, merged.head_factor), merged.rows_2H):
        return merged
    config = copy.deepcopy(merged.causal_lm.config)
    config.tie_word_embeddings = False
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    lm = transplant(kind, config, merged.decoder)
    # Some families multiply their logits by a factor, which the rows must not hold twice.
    factor = head_factor(kind.__name__, config, kind)
    embeddings_VH = merged.causal_lm.get_input_embeddings().weight
    weight_VH = torch.zeros_like(embeddings_VH) if head is None else head.weight.detach().clone()
    weight_VH[contract.yes_id] = merged.rows_2H[1] / factor
    if contract.no_id is not None:
        weight_VH[contract.no_id] = merged.rows_2H[0] / factor
    lm.lm_head.weight = nn.Parameter(weight_VH.detach())
    made = RankModel(lm, merged.rows_2H, merged.pad_id).eval()
    made.head_factor = factor
    return made


def write_modules(contract: PromptContract, folder: Path) -> None:
    """The files by which sentence-transformers 6 reads a language model as a CrossEncoder."""
    (folder / LOGIT_SCORE).mkdir()
    forward: dict[str, Any] = {"method": "forward", "method_output_name": "logits"}
    # Without it sentence-transformers does not read the chat template.
    modalities = {"text": forward}
    if (folder / TEMPLATE_FILE).is_file():
        modalities["message"] = {**forward, "format": "flat"}
    files: dict[str, Any] = {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(MODULES)
        ],
        "sentence_bert_config.json": {
            "transformer_task": "text-generation",
            "module_output_name": "causal_logits",
            "modality_config": modalities,
        },
        "config_sentence_transformers.json": {
            "model_type": "CrossEncoder",
            "activation_fn": ACTIVATION,
            "prompts": {},
            "default_prompt_name": None,
        },
        f"{LOGIT_SCORE}/config.json": {
            "true_token_id": contract.yes_id,
            "false_token_id": contract.no_id,
            "module_input_name": "causal_logits",
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def vllm_overrides(folder: Path, contract: PromptContract) -> str:
    """JSON for vLLM's --hf-overrides, which makes a classifier of the scored rows.

    It stays a flag: in config.json it would name a head that transformers does not find. Source: vLLM's
    documentation of score models; the order is [no, yes].
    """
    classifier = str(architecture_of(folder)).replace("ForCausalLM", "ForSequenceClassification")
    tokens = [t for t in (contract.no_token, contract.yes_token) if t is not None]
    overrides: dict[str, Any] = {"architectures": [classifier], "classifier_from_token": tokens}
    if contract.no_token is None:
        overrides["method"] = "no_post_processing"
    elif classifier.startswith("Qwen3"):
        overrides["is_original_qwen3_reranker"] = True
    else:
        overrides["method"] = "from_2_way_softmax"
    return json.dumps(overrides)


TARGETS.add(
    Target(
        "causal",
        causal,
        recognises=lambda folder: (architecture_of(folder) or "").endswith("ForCausalLM"),
        runtimes=(RANKWRIGHT, TRANSFORMERS_CAUSAL, SENTENCE_TRANSFORMERS),
        card=Card(
            library="sentence-transformers",
            holds="; this folder holds the language model in its yes/no form",
            use="use_causal.md.j2",
            serve="serve_causal.md.j2",
            values=lambda folder, contract: {"vllm_overrides": vllm_overrides(folder, contract)},
        ),
        settings=(pad_token, rope_of_older_libraries, dtype_of_older_libraries),
        refusals=why_no_causal,
    ),
    __name__,
)
