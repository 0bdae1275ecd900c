"""Bases and tokenizers from a folder or the hub; every model gets a two-row yes/no head in fp32."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError

from rankwright.common.errors import UserError
from rankwright.common.resources import resolve_base
from rankwright.model.bases import adapter_base, find_file, refuse_other_kinds, refuse_pickles
from rankwright.model.frames import choose_pad_token
from rankwright.model.prompt import PromptContract
from rankwright.model.rank_model import UNLIMITED, RankModel, scored_rows

Precision = Literal["fp32", "bf16"]


def load_tokenizer(folder: str, revision: str | None = None) -> Any:
    """The base's tokenizer with a pad token that differs from eos. Raises UserError if it cannot be loaded."""
    from transformers import AutoTokenizer

    tokenizer = _from_pretrained(AutoTokenizer, folder, revision=revision)
    _keep_line_breaks(tokenizer)
    # The contract has the budgets; the tokenizer's own limit would only warn about texts that are cut later.
    tokenizer.model_max_length = UNLIMITED
    tokenizer.pad_token = choose_pad_token(tokenizer)
    return tokenizer


def _keep_line_breaks(tokenizer: Any) -> None:
    """Remove the Strip that our exports put first: it serves callers who tokenise bare texts, and would harm frames."""
    from tokenizers import normalizers

    steps = tokenizer.backend_tokenizer.normalizer
    if isinstance(steps, normalizers.Sequence) and len(steps) and isinstance(steps[0], normalizers.Strip):
        rest = [steps[i] for i in range(1, len(steps))]
        tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(rest)


def load_model(
    folder: str,
    contract: PromptContract,
    tokenizer: Any,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    base: str | None = None,
) -> RankModel:
    """A base from a local folder or hub id, in `dtype`. Raises UserError for weights that the files lack.

    Reads causal language models, one-label sequence classifiers (our own exports) and PEFT adapter folders.
    base: where the base of adapters lies, if their own settings do not name a hub id.
    """
    refuse_pickles(folder)
    if (named := adapter_base(folder, revision)) is not None:
        return _load_adapter(folder, named, contract, tokenizer, revision=revision, dtype=dtype, base=base)
    config, auto = _config(folder, contract, tokenizer, revision)
    options = {"revision": revision, "config": config, "dtype": dtype, "output_loading_info": True}
    # A pickle may run code when it is loaded.
    lm, info = _from_pretrained(auto, folder, use_safetensors=True, **options)
    _refuse_missing(folder, lm, info)
    if hasattr(lm, "score"):
        weight_H = lm.score.weight[0]
        return RankModel(lm, torch.stack([torch.zeros_like(weight_H), weight_H]), tokenizer.pad_token_id)
    return RankModel(lm, scored_rows(lm.get_output_embeddings().weight, contract), tokenizer.pad_token_id)


def load_merged(
    folder: str, contract: PromptContract, tokenizer: Any, *, revision: str | None = None, dtype: torch.dtype
) -> RankModel:
    """load_model() with adapters merged, in fp32 and cast once, so that new adapters can be trained on it."""
    if adapter_base(folder, revision) is None:
        return load_model(folder, contract, tokenizer, revision=revision, dtype=dtype)
    model = load_model(folder, contract, tokenizer, revision=revision)
    model.lm = cast(Any, model.lm).merge_and_unload().to(dtype)
    return model


def empty_model(
    folder: str, contract: PromptContract, tokenizer: Any, *, revision: str | None = None, dtype: torch.dtype
) -> RankModel:
    """A model with the shapes and types of load_model(), from config.json alone, and with arbitrary weights.

    Under `torch.device("meta")` it takes neither memory nor time.
    """
    config, auto = _config(folder, contract, tokenizer, revision)
    lm = auto.from_config(config, dtype=dtype)
    return RankModel(lm, torch.zeros(2, config.hidden_size), tokenizer.pad_token_id)


def base_config(folder: str, contract: PromptContract, tokenizer: Any, revision: str | None = None) -> Any:
    """config.json of a base, or of the base below adapters, with the checks that come before weights are read."""
    try:
        return _config(folder, contract, tokenizer, revision)[0]
    except UserError as error:
        if (named := adapter_base(folder, revision)) is None:
            raise
        raise UserError(f"{folder}: adapters of the base {named[0]!r}: {error}; or start where it lies") from None


def _config(folder: str, contract: PromptContract, tokenizer: Any, revision: str | None) -> tuple[Any, Any]:
    """The base's config, checked, and the class of transformers that its weights are of."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    while (named := adapter_base(folder, revision)) is not None:
        folder, revision = resolve_base(named[0]), named[1]
    refuse_other_kinds(folder, folder, revision)
    config = _from_pretrained(AutoConfig, folder, revision=revision)
    config.pad_token_id = tokenizer.pad_token_id
    if getattr(config, "final_logit_softcapping", None):
        raise UserError(f"model.base: {folder}: its logits are capped, which our head does not do: choose another base")
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and contract.max_tokens > positions:
        raise UserError(f"prompt.max_tokens: {contract.max_tokens}, but {folder} has {positions} positions: lower it")
    is_classifier = (config.architectures or ["?"])[0].endswith("ForSequenceClassification")
    return config, AutoModelForSequenceClassification if is_classifier else AutoModelForCausalLM


def _load_adapter(
    folder: str,
    named: tuple[str, str | None],
    contract: PromptContract,
    tokenizer: Any,
    *,
    revision: str | None,
    dtype: torch.dtype,
    base: str | None,
) -> RankModel:
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    name, base_revision = named if base is None else (named[0], None)
    weights = find_file(folder, "adapter_model.safetensors", revision)
    if weights is None:
        raise UserError(f"model.base: {folder}: no adapter_model.safetensors: write the adapters again, as safetensors")
    try:
        model = load_merged(resolve_base(base or name), contract, tokenizer, revision=base_revision, dtype=dtype)
    except UserError as error:
        raise UserError(
            f"{folder}: adapters of the base {name!r}: {error}; or name its folder: base=FOLDER (--base FOLDER), "
            f"or start where a folder {name!r} lies"
        ) from None
    model.lm = PeftModel.from_pretrained(model.lm, folder, revision=revision)
    with safe_open(weights, "pt") as file:
        stored = set(file.keys())
    # peft only warns about these, and the adapter then has no effect there.
    missing = sorted(set(get_peft_model_state_dict(model.lm, save_embedding_layers=False)) ^ stored)
    if missing:
        raise UserError(f"{folder}: {len(missing)} adapter weights do not fit (first: {missing[0]}): write it again")
    return model


def _from_pretrained(auto: Any, folder: str, **options: Any) -> Any:
    """`auto.from_pretrained` whose failures are one line for the user."""
    try:
        return auto.from_pretrained(folder, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"model.base: cannot load {folder!r} ({first}): give a folder with config.json, safetensors and tokenizer, "
            "or a hub id that this machine can reach"
        ) from None


def _refuse_missing(folder: str, lm: Any, info: dict[str, Any]) -> None:
    """transformers only warns about weights it had to invent; a reranker with such weights scores noise."""
    tied = set(getattr(lm, "_tied_weights_keys", None) or ()) if lm.config.tie_word_embeddings else set()
    bad = sorted(k for k in info["missing_keys"] if k not in tied)
    bad += sorted(str(k) for k in info.get("mismatched_keys", ()))
    if bad:
        raise UserError(
            f"model.base: {folder}: {len(bad)} weights are missing or of another shape (first: {bad[0]}): "
            "the files are incomplete or belong to another architecture"
        )
