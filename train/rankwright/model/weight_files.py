"""Weights as the headers of their files name them: whether they are those of a config, before any is read."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from rankwright.common.errors import UserError, in_one_line
from rankwright.model.bases import config_value, read_json, refuse_pickles

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "BOOL": torch.bool,
}
# What older versions of transformers wrote beside the weights (positions, causal masks), and layers that predict
# further tokens, on which no logit depends.
UNUSED = re.compile(
    r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|position_ids|(attn|attention)\.(masked_)?bias"
    r"|mtp(_\w+)?\..*)$"
)
COPY = "copy the folder again"


def headers(folder: str) -> dict[str, Tensor]:
    """Name -> tensor on the meta device, of all safetensors files of a local base.

    Raises UserError for files that are missing or cut, and for an index that does not fit them.
    """
    path = Path(folder)
    refuse_pickles(folder)
    if (path / WEIGHTS).is_file():
        return header(path / WEIGHTS)
    index = read_json(folder, INDEX)
    if index is None:
        raise UserError(f"model.base: {folder}: neither {WEIGHTS} nor {INDEX} is there: {COPY}, or take another base")
    named = index.get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(file, str) for file in named.values()):
        raise UserError(f"model.base: {folder}: {INDEX}: weight_map must name the file of each weight: {COPY}")
    found: dict[str, Tensor] = {}
    for file in sorted(set(named.values())):
        if Path(file).name != file or not (path / file).is_file():
            raise UserError(f"model.base: {folder}: {INDEX} names the file {file!r}, which is not there: {COPY}")
        found |= header(path / file)
    lost = sorted(named.keys() - found.keys())
    if lost:
        raise UserError(
            f"model.base: {folder}: {INDEX} names {len(lost)} weights that are not in their files (first: {lost[0]}): "
            f"{COPY}"
        )
    return found


def header(path: Path) -> dict[str, Tensor]:
    """Name -> tensor on the meta device, of one safetensors file. Raises UserError for a damaged one."""
    with in_one_line(f"model.base: {path}: damaged", COPY), safe_open(path, "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {
            name: torch.empty(one.get_shape(), dtype=TYPES.get(one.get_dtype(), torch.float32), device="meta")
            for name, one in slices.items()
        }


def check_fit(folder: str, config: Any, kind: Any) -> None:
    """Raises UserError for a local base whose files are not those of `config`: what load_model() would find.

    kind: the class of transformers that reads them. A quantised base is left to its own loader.
    """
    if getattr(config, "quantization_config", None) is not None:
        return
    state = headers(folder)
    layers = config_value(config.get_text_config(), "num_hidden_layers") or 0
    if layers > len(state):
        raise UserError(f"model.base: {folder}: config.json has {layers} layers, and the files {len(state)} weights")
    options = {"config": copy.deepcopy(config), "state_dict": state, "device_map": {"": "meta"}}
    with in_one_line(f"model.base: {folder}: its weights do not fit config.json", COPY):
        lm, info = kind.from_pretrained(None, ignore_mismatched_sizes=True, output_loading_info=True, **options)
    refuse_unfit(folder, lm, info)


def refuse_unfit(folder: str, lm: Any, info: dict[str, Any]) -> None:
    """Raises UserError by what transformers only warns about: weights that it had to invent, and that it left out.

    A reranker with such weights scores noise.
    """
    tied = (
        set(getattr(lm, "_tied_weights_keys", None) or ())
        if getattr(lm.config, "tie_word_embeddings", False)
        else set()
    )
    bad = sorted(k for k in info["missing_keys"] if k not in tied)
    # (name, shape in the file, shape by the config).
    bad += sorted(f"{k[0]} {list(k[1])}, by config.json {list(k[2])}" for k in info.get("mismatched_keys", ()))
    if bad:
        raise UserError(
            f"model.base: {folder}: {len(bad)} weights are missing or of another shape (first: {bad[0]}): "
            "the files are incomplete or belong to another architecture"
        )
    if unused := sorted(k for k in info.get("unexpected_keys", ()) if not UNUSED.search(k)):
        raise UserError(
            f"model.base: {folder}: {len(unused)} weights have no place in {type(lm).__name__} (first: {unused[0]}): "
            "config.json has too few layers, or belongs to another architecture"
        )


def refuse_not_finite(folder: str, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Raises UserError, with their names, for weights that hold NaN or infinity: every score would be NaN."""
    bad = []
    for name, weight in weights:
        if weight.is_floating_point() and weight.numel() and weight.element_size() > 1 and not weight.is_meta:
            # Both ends are NaN where one number is: no copy of the weights is made.
            least, most = torch.aminmax(weight)
            bad += [] if least.isfinite() and most.isfinite() else [name]
    if bad:
        raise UserError(
            f"model.base: {folder}: {len(bad)} weights are not finite numbers (first: {bad[0]}): take an earlier "
            f"checkpoint, or {COPY}"
        )
