"""Checks of an exported config.json: one line for each setting that makes some reader score differently, silently."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rankwright.common.files import read_json_object

CONFIG = "config.json"
Settings = dict[str, Any]


def read_config(folder: Path) -> Settings:
    """The content of config.json; empty where there is none, or where it cannot be read."""
    return read_json_object(folder / CONFIG) or {}


def architecture_of(folder: Path) -> str | None:
    """The class in config.json, "" where it names none; None without a config.json that can be read."""
    settings = read_config(folder)
    names = settings.get("architectures")
    return (str(names[0]) if isinstance(names, list) and names else "") if settings else None


def rope_of_older_libraries(folder: Path, settings: Settings) -> Iterator[str]:
    """transformers 4 reads rope_theta at the top."""
    theta = (settings.get("rope_parameters") or {}).get("rope_theta")
    if theta is not None and settings.get("rope_theta") != theta:
        yield (
            f"rope_theta is {settings.get('rope_theta', 'missing')}, rope_parameters has {theta:g}: transformers 4, "
            "and servers built on it, read the first and else take 10000 in silence"
        )


def dtype_of_older_libraries(folder: Path, settings: Settings) -> Iterator[str]:
    """transformers 4 reads torch_dtype."""
    if settings.get("dtype") and settings.get("torch_dtype") != settings["dtype"]:
        yield (
            f"torch_dtype is {settings.get('torch_dtype', 'missing')}, dtype is {settings['dtype']}: transformers 4 "
            "reads the first"
        )


def pad_token(folder: Path, settings: Settings) -> Iterator[str]:
    """Readers find the scored position by pad_token_id."""
    pad, eos = settings.get("pad_token_id"), settings.get("eos_token_id")
    own = _pad_of_tokenizer(folder)
    if pad is None:
        yield "pad_token_id is missing: batches of several pairs fail or are read at a wrong place"
    elif own is not None and pad != own:
        yield f"pad_token_id is {pad}, the tokenizer pads with {own}: padded pairs are read at a wrong place"
    elif pad == eos:
        yield f"pad_token_id is eos_token_id ({pad}): texts that end in it are read at a wrong place"


def _pad_of_tokenizer(folder: Path) -> int | None:
    settings, tokenizer = (
        read_json_object(folder / name) or {} for name in ("tokenizer_config.json", "tokenizer.json")
    )
    name, added = settings.get("pad_token"), tokenizer.get("added_tokens", [])
    name = name.get("content") if isinstance(name, dict) else name
    return next((token["id"] for token in added if token["content"] == name), None)


def one_label(folder: Path, settings: Settings) -> Iterator[str]:
    """Servers and sentence-transformers tell a reranker by its label and activation."""
    if len(settings.get("id2label") or {}) != 1:
        yield "id2label must have one entry: servers take a model with one label for a reranker"
    if not (settings.get("sentence_transformers") or {}).get("activation_fn"):
        yield "sentence_transformers.activation_fn is missing: readers choose an activation themselves"
