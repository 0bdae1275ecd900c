"""Runtimes on torch: Rankwright itself, sentence-transformers, transformers and peft."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch

from rankwright.common.resources import resolve_base
from rankwright.export.proof.runtimes.base import (
    BATCH,
    Answer,
    Exported,
    Row,
    Runtime,
    cut_to_suffix,
    in_both_orders,
    sigmoid,
)
from rankwright.model.loading import load_tokenizer
from rankwright.model.long_documents import AS_CUT
from rankwright.model.prompt import PromptEncoder
from rankwright.rerankers.reranker import Reranker

# Code of a folder is never run, and a pickle, which may hold some, is never loaded.
TRUSTED: dict[str, Any] = {"trust_remote_code": False}
WEIGHTS: dict[str, Any] = {**TRUSTED, "use_safetensors": True, "dtype": torch.float32}


def rankwright(exported: Exported) -> Answer:
    """Reranker.load, as the model card tells users; golden rows are a prompt each, so long documents are cut."""
    rows = exported.rows
    loaded = Reranker.load(str(exported.path), device="cpu", base=exported.base, pairwise=True)
    reranker = loaded.reading(AS_CUT)
    encoded = [reranker.encoder.encode(row["query"], [row["document"]]) for row in rows]
    groups = [(row["query"], [row["document"]]) for row in rows]
    logits = [scores[0] for group in groups for scores in reranker.score_groups([group])]
    batched = in_both_orders(len(rows), lambda p: [s[0] for s in reranker.score_groups([groups[i] for i in p])])
    return Answer([e.head_ids + e.tail_ids[0] for e in encoded], logits, batched, sigmoid(logits))


def sentence_transformers(exported: Exported) -> Answer:
    """CrossEncoder.predict, in fp32; probabilities by the activation that the folder names."""
    from sentence_transformers import CrossEncoder

    weights = {"dtype": torch.float32, "use_safetensors": True}
    model: Any = CrossEncoder(str(exported.path), device="cpu", model_kwargs=weights, **TRUSTED)
    pairs = [(row["query"], row["document"]) for row in exported.rows]
    options = {"show_progress_bar": False, "batch_size": BATCH}
    ids = [model.preprocess([pair])["input_ids"][0].tolist() for pair in pairs]
    alone = [float(model.predict([pair], activation_fn=torch.nn.Identity(), **options)[0]) for pair in pairs]
    batched = in_both_orders(
        len(pairs),
        lambda places: model.predict([pairs[p] for p in places], activation_fn=torch.nn.Identity(), **options).tolist(),
    )
    return Answer(ids, alone, batched, model.predict(pairs, **options).tolist())


def transformers(exported: Exported) -> Answer:
    """AutoModelForSequenceClassification, in fp32."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(exported.path, **TRUSTED)
    model = AutoModelForSequenceClassification.from_pretrained(exported.path, **WEIGHTS).eval()
    return scores_of(tokenizer, exported, lambda batch: model(**batch).logits[:, 0], sides=("left", "right"))


def transformers_causal(exported: Exported) -> Answer:
    """AutoModelForCausalLM, in fp32: the scored tokens' logits at the last position."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(exported.path, **TRUSTED)
    model = AutoModelForCausalLM.from_pretrained(exported.path, **WEIGHTS).eval()
    return _last_logits(tokenizer, exported, model)


def _last_logits(tokenizer: Any, exported: Exported, model: Any) -> Answer:
    contract = exported.contract

    def score(batch: Any) -> torch.Tensor:
        last: torch.Tensor = model(**batch).logits[:, -1]
        no = 0.0 if contract.no_id is None else last[:, contract.no_id]
        return (last[:, contract.yes_id] - no) * contract.scale

    # A language model's last position is the scored one under left padding only.
    return scores_of(tokenizer, exported, score, sides=("left",))


def peft(exported: Exported) -> Answer:
    """PeftModel on the base; the scored tokens' logits at the last position."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    folder = exported.path
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    path = resolve_base(exported.base or settings["base_model_name_or_path"])
    # As in our own loader: a base that is named here is taken as it lies there.
    revision = settings.get("revision") if exported.base is None else None
    is_causal = settings["task_type"] == "CAUSAL_LM"
    auto = AutoModelForCausalLM if is_causal else AutoModelForSequenceClassification
    tokenizer = AutoTokenizer.from_pretrained(folder, **TRUSTED)
    base_model = auto.from_pretrained(path, revision=revision, **WEIGHTS)
    base_model.config.pad_token_id = tokenizer.pad_token_id
    model = PeftModel.from_pretrained(base_model, str(folder)).eval()
    if is_causal:
        return _last_logits(tokenizer, exported, model)
    return scores_of(tokenizer, exported, lambda batch: model(**batch).logits[:, 0], sides=("left",))


def scores_of(
    tokenizer: Any, exported: Exported, score: Callable[[Any], torch.Tensor], *, sides: Sequence[str]
) -> Answer:
    """The answer of score(batch) -> logits: each row alone, then in mixed batches padded on each of `sides`."""
    contract = exported.contract
    suffix_ids = PromptEncoder(contract, load_tokenizer(str(exported.path))).suffix_ids
    ids = [runtime_ids(tokenizer, row, contract.max_tokens, suffix_ids) for row in exported.rows]

    def scores(size: int, side: str, places: Sequence[int]) -> list[float]:
        found: list[float] = []
        for start in range(0, len(places), size):
            part = {"input_ids": [ids[place] for place in places[start : start + size]]}
            batch = tokenizer.pad(part, padding_side=side, return_tensors="pt")
            found += score(batch).tolist()
        return found

    alone = scores(1, sides[0], range(len(ids)))
    batched = [b for side in sides for b in in_both_orders(len(ids), functools.partial(scores, BATCH, side))]
    return Answer(ids, alone, batched, sigmoid(alone))


def runtime_ids(tokenizer: Any, row: Row, limit: int, suffix_ids: list[int]) -> list[int]:
    """Ids as the model card tells users to make them: the pair, or the chat template with its suffix kept."""
    if not tokenizer.chat_template:
        return list(tokenizer(row["query"], row["document"], truncation=True)["input_ids"])
    messages = [{"role": role, "content": row[role]} for role in ("query", "document")]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    return cut_to_suffix(list(tokenizer(text, add_special_tokens=False)["input_ids"]), limit, suffix_ids)


RANKWRIGHT = Runtime("rankwright", "rankwright", rankwright, every_row=True)
SENTENCE_TRANSFORMERS = Runtime("sentence-transformers", "sentence_transformers", sentence_transformers)
TRANSFORMERS = Runtime("transformers", "transformers", transformers)
TRANSFORMERS_CAUSAL = Runtime("transformers-causal", "transformers", transformers_causal)
PEFT = Runtime("peft", "peft", peft)
