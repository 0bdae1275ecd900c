"""What no score of today's libraries shows: settings of config.json that older or other readers go by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rankwright.export.runtimes import Kind

CONFIG = "config.json"


def wrong_settings(folder: Path, kind: Kind) -> list[str]:
    """One line a setting that would make some reader score otherwise; none for kinds without a config of their own."""
    if kind not in ("hf", "causal", "onnx") or not (folder / CONFIG).is_file():
        return []
    settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    found = [*_pad(folder, settings)]
    if kind != "onnx":
        found += [*_rope(settings), *_types(settings)]
    if kind == "hf":
        found += _labels(settings)
    return [f"{CONFIG}: {line}" for line in found]


def _rope(settings: dict[str, Any]) -> Iterator[str]:
    theta = (settings.get("rope_parameters") or {}).get("rope_theta")
    if theta is not None and settings.get("rope_theta") != theta:
        yield (
            f"rope_theta is {settings.get('rope_theta', 'missing')}, rope_parameters has {theta:g}: transformers 4, "
            "and servers built on it, read the first and else take 10000 in silence"
        )


def _types(settings: dict[str, Any]) -> Iterator[str]:
    if settings.get("dtype") and settings.get("torch_dtype") != settings["dtype"]:
        yield (
            f"torch_dtype is {settings.get('torch_dtype', 'missing')}, dtype is {settings['dtype']}: transformers 4 "
            "reads the first"
        )


def _pad(folder: Path, settings: dict[str, Any]) -> Iterator[str]:
    pad, eos = settings.get("pad_token_id"), settings.get("eos_token_id")
    own = _pad_of_tokenizer(folder)
    if pad is None:
        yield "pad_token_id is missing: batches of several pairs fail or are read at a wrong place"
    elif own is not None and pad != own:
        yield f"pad_token_id is {pad}, the tokenizer pads with {own}: padded pairs are read at a wrong place"
    elif pad == eos:
        yield f"pad_token_id is eos_token_id ({pad}): texts that end in it are read at a wrong place"


def _pad_of_tokenizer(folder: Path) -> int | None:
    try:
        name = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("pad_token")
        added = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")).get("added_tokens", [])
    except (OSError, ValueError):
        return None
    name = name.get("content") if isinstance(name, dict) else name
    return next((token["id"] for token in added if token["content"] == name), None)


def _labels(settings: dict[str, Any]) -> Iterator[str]:
    if len(settings.get("id2label") or {}) != 1:
        yield "id2label must have one entry: servers take a model with one label for a reranker"
    if not (settings.get("sentence_transformers") or {}).get("activation_fn"):
        yield "sentence_transformers.activation_fn is missing: readers choose an activation themselves"
