"""Files of a base, in a local folder or on the hub, and what they say that no base of ours can be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rankwright.errors import UserError

TRANSFORMER, LOGIT_SCORE = "Transformer", "LogitScore"
ADAPTER_FILE = "adapter_config.json"
# Weights whose loading may run code.
PICKLES = ("pytorch_model*.bin", "adapter_model.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
INSTEAD = "choose another base (as a row of an evaluation: kind: cross-encoder)"


def refuse_other_kinds(name: str, folder: str, revision: str | None = None) -> None:
    """Raises UserError for what no decoder with one score is: encoders, several labels, own code, other modules."""
    for module in modules(folder, revision):
        kind = module["type"].rsplit(".", 1)[-1]
        if kind not in (TRANSFORMER, LOGIT_SCORE):
            raise UserError(
                f"model.base: {name}: its score comes from a module {kind} of sentence-transformers, which is not read "
                f"here: {INSTEAD}"
            )
        if kind == TRANSFORMER and module["path"]:
            raise UserError(f"model.base: {name}: its weights lie in {module['path']}: write {name}/{module['path']}")
    config = read_json(folder, "config.json", revision)
    if config is not None:
        _refuse_config(name, config)


def _refuse_config(name: str, config: dict[str, Any]) -> None:
    import transformers
    from transformers import CONFIG_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    kind, family = architecture(config), config.get("model_type")
    if kind and not hasattr(transformers, kind):
        raise UserError(
            f"model.base: {name}: {kind} is no class of transformers, and code of a repository is never run for a "
            f"base: {INSTEAD}, or serve it (kind: served)"
        )
    is_encoder = family in CONFIG_MAPPING and CONFIG_MAPPING[family] in MODEL_FOR_MASKED_LM_MAPPING
    if is_encoder or config.get("is_encoder_decoder"):
        raise UserError(f"model.base: {name}: {kind or family} is an encoder, must be a decoder: {INSTEAD}")
    if kind.endswith("ForSequenceClassification"):
        # transformers' own default is two.
        labels = config.get("num_labels") or len(config.get("id2label") or ()) or 2
        if labels != 1:
            raise UserError(f"model.base: {name}: {kind} has {labels} labels, must have 1: {INSTEAD}")


def refuse_unread(folder: str) -> None:
    """Raises UserError for a folder of one of our exports that other libraries read, and this one does not."""
    path = Path(folder)
    if not path.is_dir() or any(path.glob("*.safetensors")):
        return
    kind = "gguf" if any(path.glob("*.gguf")) else "onnx" if (path / "onnx").is_dir() else None
    if kind is not None:
        raise UserError(
            f"{folder}: an export for other libraries ({kind}), which is not read here: take the target hf of the same "
            f"run; `rankwright verify {folder}` repeats the proof of this one"
        )


def refuse_pickles(folder: str) -> None:
    """Raises UserError for a local folder whose weights are in no safetensors file."""
    path = Path(folder)
    found = [file.name for pattern in PICKLES for file in sorted(path.glob(pattern))] if path.is_dir() else []
    if found and not any(path.glob("*.safetensors")):
        raise UserError(
            f"model.base: {folder}: its weights are in {found[0]}, a pickle, which may run code when it is loaded: "
            "take a revision with safetensors, or convert it where you trust it (from_pretrained, then save_pretrained)"
        )


def architecture(config: dict[str, Any]) -> str:
    """The class that wrote the weights, or an empty text."""
    return str((config.get("architectures") or [""])[0])


def adapter_base(folder: str, revision: str | None = None) -> tuple[str, str | None] | None:
    """(base, revision) of a folder or hub repository of adapters as it names them; None for any other."""
    settings = read_json(folder, ADAPTER_FILE, revision)
    return None if settings is None else (str(settings["base_model_name_or_path"]), settings.get("revision"))


def modules(folder: str, revision: str | None = None) -> list[dict[str, str]]:
    """modules.json of sentence-transformers: `type` and `path` of each; empty where there is none."""
    found = read_json(folder, "modules.json", revision, kind=list) or []
    return [{"type": str(m.get("type", "")), "path": str(m.get("path", ""))} for m in found if isinstance(m, dict)]


def read_json(folder: str, file: str, revision: str | None = None, *, kind: type = dict) -> Any:
    """A JSON file of a local folder or a hub repository, or None. Raises UserError for one that is broken."""
    text = read_text(folder, file, revision)
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UserError(f"model.base: {folder}: {file} is no JSON ({error}): write it again") from None
    return found if isinstance(found, kind) else None


def read_text(folder: str, file: str, revision: str | None = None) -> str | None:
    """A text file of a local folder or a hub repository, or None."""
    path = find_file(folder, file, revision)
    return None if path is None else path.read_text(encoding="utf-8", errors="replace")


def find_file(folder: str, file: str, revision: str | None = None) -> Path | None:
    """Where a file of a local folder or a hub repository lies, or None."""
    from transformers.utils import cached_file

    if Path(folder).is_dir():
        path = Path(folder) / file
        return path if path.is_file() else None
    found = cached_file(
        folder,
        file,
        revision=revision,
        # What cannot be reached at all has been said by then: the tokenizer is read first.
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)
