"""LoRA adapters in a folder of peft's format: what their files must hold, checked before peft reads them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from rankwright.common.bounded import OutOfBounds, Refusal, run_bounded
from rankwright.common.errors import UserError, in_one_line
from rankwright.model.bases import ADAPTER_WEIGHTS, find_file
from rankwright.model.rank_model import RankModel
from rankwright.model.weight_files import header, refuse_not_finite

AGAIN = "write the adapters again, or take another folder"
# Names of layers; anything else is a regular expression.
PLAIN_NAME = re.compile(r"[\w.-]+")
PATTERN_SECONDS = 5
# Matches patterns with names; one that is not a pattern is refused.
MATCH = """
import re
def ask(asked):
    patterns, names = asked
    for pattern in patterns:
        for name in names:
            re.fullmatch(pattern, name)
"""


def adapter_weights(folder: str, revision: str | None = None) -> Path:
    """The file of the adapters' weights. Raises UserError where there is none, as for pickled ones."""
    found = find_file(folder, ADAPTER_WEIGHTS, revision)
    if found is None:
        raise UserError(f"model.base: {folder}: no {ADAPTER_WEIGHTS}: write the adapters again, as safetensors")
    return found


def put_on(model: RankModel, folder: str, revision: str | None = None) -> RankModel:
    """The model with the adapters of a folder on it; on the meta device nothing but names and shapes is read.

    Raises UserError for adapters of another kind than LoRA, with weights that do not fit the base, or that train its
    head.
    """
    from peft import PeftConfig, PeftModel

    stored = header(adapter_weights(folder, revision))
    with in_one_line(f"model.base: {folder}: its adapter_config.json is damaged", AGAIN):
        config = cast(Any, PeftConfig.from_pretrained(folder, revision=revision))
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind != "LORA":
        raise UserError(f"model.base: {folder}: adapters of the kind {kind}, must be LORA: merge them with peft first")
    _refuse_head(folder, model, stored)
    _bound_patterns(folder, config, [name for name, _ in model.causal_lm.named_modules()])
    # Nothing is trained by it, and the type decides the class of peft's wrapper.
    config.inference_mode = True
    with in_one_line(f"model.base: {folder}: its adapters do not fit the base", AGAIN), warnings.catch_warnings():
        # Weights that are missing: an error, below.
        warnings.simplefilter("ignore")
        if model.device.type == "meta":
            model.lm = PeftModel(cast(Any, model.lm), config)
        else:
            _refuse_shapes(folder, model, config, stored)
            model.lm = PeftModel.from_pretrained(cast(Any, model.lm), folder, revision=revision, config=config)
    _refuse_other(folder, model, stored)
    refuse_not_finite(folder, ((n, p) for n, p in model.lm.named_parameters() if "lora_" in n))
    return model


def _refuse_shapes(folder: str, model: RankModel, config: Any, stored: Mapping[str, Tensor]) -> None:
    """By the headers, before peft makes adapters of the sizes that the settings name."""
    for name, tensor in stored.items():
        found = re.search(r"\.lora_([AB])(\.default)?\.weight$", name)
        rank = tensor.shape[0 if found and found[1] == "A" else -1] if found and tensor.ndim == 2 else None
        if rank is not None and not config.rank_pattern and not config.target_parameters and rank != config.r:
            raise UserError(
                f"model.base: {folder}: adapter_config.json has r {config.r!r}, and {name} the rank {rank}: {AGAIN}"
            )


def _refuse_other(folder: str, model: RankModel, stored: Mapping[str, Tensor]) -> None:
    """peft only warns about weights that hit nothing, and about layers without weights: no effect there."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(cast(Any, model.lm), save_embedding_layers=False)
    missing = sorted(set(state) ^ set(stored))
    if missing:
        raise UserError(f"{folder}: {len(missing)} adapter weights do not fit (first: {missing[0]}): write it again")
    for name, tensor in stored.items():
        if tensor.shape != state[name].shape:
            raise UserError(
                f"{folder}: adapter weights do not fit: {name} has shape {list(tensor.shape)}, for this base "
                f"{list(state[name].shape)}: they belong to another base or rank"
            )


def _refuse_head(folder: str, model: RankModel, stored: Iterable[str]) -> None:
    """The scored rows are copied from the base's head: adapters that change it would be left out."""
    lm = model.causal_lm
    heads = [lm.get_output_embeddings(), getattr(lm, "score", None)]
    if getattr(lm.config.get_text_config(), "tie_word_embeddings", False):
        heads.append(lm.get_input_embeddings())
    places = [name for name, module in lm.named_modules() if any(module is head for head in heads)]
    for name in stored:
        if any(name.startswith(f"base_model.model.{place}.") for place in places):
            raise UserError(
                f"model.base: {folder}: its adapters change the head ({name}), whose rows are the score: merge them "
                "into the base with peft (merge_and_unload), and name that folder"
            )


def _bound_patterns(folder: str, config: Any, names: list[str]) -> None:
    """Regular expressions of a stranger may take years: try them in a process that is ended in time."""
    wanted = [
        config.target_modules,
        config.exclude_modules,
        *(config.rank_pattern or {}),
        *(config.alpha_pattern or {}),
    ]
    patterns = [p for p in wanted if isinstance(p, str) and not PLAIN_NAME.fullmatch(p)]
    if not patterns:
        return
    # peft looks for these at the end of a name.
    asked = [[*patterns, *(rf"(.*\.)?({p})$" for p in patterns)], names]
    try:
        run_bounded(MATCH, asked, seconds=PATTERN_SECONDS)
    except (Refusal, OutOfBounds) as error:
        what = "takes too long" if isinstance(error, OutOfBounds) else "is not a regular expression"
        raise UserError(
            f"model.base: {folder}: adapter_config.json: a pattern {what} ({', '.join(map(repr, patterns))}): name the "
            "layers instead, e.g. target_modules: [q_proj, v_proj]"
        ) from None
