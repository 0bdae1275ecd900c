"""What can be read from a base's files: the prompt it was trained in, and why it cannot be a base of ours."""

from __future__ import annotations

import dataclasses
import filecmp
import functools
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rankwright.common import console
from rankwright.common.errors import UserError, one_line
from rankwright.common.resources import resolve_base
from rankwright.model.chat_templates import rendered
from rankwright.model.frames import CUT, FRAMES, FrameTexts, known_frame, single_token_id

QUERY, DOCUMENT = "what is a bond?", "A bond is a loan."
README = "README.md"
TRANSFORMER, LOGIT_SCORE = "Transformer", "LogitScore"
ADAPTER_FILE, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Numbers of a decoder's config; the deepest have about 130 layers, and building very many would not end.
SIZES = (
    *("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "vocab_size", "max_position_embeddings"),
)
MOST_LAYERS, MOST_SIZE = 1000, 100_000_000
# Weights whose loading may run code.
PICKLES = ("pytorch_model*.bin", "adapter_model.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# How long the hub may take to answer at all.
HUB_SECONDS = 10
INSTEAD = "choose another base (as a row of an evaluation: kind: cross-encoder)"


@dataclass(frozen=True, slots=True)
class Origin:
    """A frame, the instruction that the base's own files put into it (None: they name none), and how it was found.

    max_tokens: the limit of prompts that the files state, as an export of ours does that another library saved again.
    """

    mode: str
    instruction: str | None = None
    why: str = ""
    max_tokens: int | None = None


def find_origin(name: str, folder: str, tokenizer: Any, revision: str | None = None) -> Origin:
    """The frame of a base without a contract of its own.

    name: what the base is called, when `folder` is a copy of it. Raises UserError, which asks for the frame, where none
    is found.
    """
    settings = read_json(folder, ADAPTER_FILE, revision)
    if settings is not None:
        # Adapters read the prompt of their base, unless their own tokenizer or README names another one.
        frame = known_frame(str(settings.get("base_model_name_or_path")))
        found = _written(tokenizer) or _named(name, folder, None) or (Origin(frame.name) if frame else None)
        if found is None:
            raise UserError(_question(name, tokenizer, None))
        return found
    logit_score = _logit_score(folder, revision)
    origin = _written(tokenizer)
    if origin is not None and (limit := _limit(folder, revision)) is not None:
        origin = dataclasses.replace(origin, max_tokens=limit)
    origin = origin or _named(name, folder, revision)
    if origin is None:
        if logit_score is None and not _is_reranker(folder, revision):
            return Origin("portable", why="a plain language model")
        raise UserError(_question(name, tokenizer, logit_score))
    if logit_score is not None:
        _check_tokens(name, tokenizer, origin.mode, logit_score)
    if origin.why:
        _say_once(f"{name}: prompt frame {origin.mode}, {origin.why}")
    return origin


@functools.cache
def _say_once(text: str) -> None:
    console.say(text)


def _written(tokenizer: Any) -> Origin | None:
    """The frame whose text the chat template (roles query and document) or the tokenizer's own pair makes."""
    frames = dict.fromkeys(_frames(tokenizer))
    for text in _texts(tokenizer):
        for mode, texts in frames:
            instruction = _instruction_in(text, texts)
            if instruction is not None:
                return Origin(mode, instruction if "{instruction}" in texts.prefix else None)
    return None


def _frames(tokenizer: Any) -> Iterator[tuple[str, FrameTexts]]:
    for frame in FRAMES.values():
        # With and without a line for an instruction, where that is a choice.
        for told in ("", "x"):
            try:
                yield frame.name, frame.build(tokenizer, told)
            except UserError:
                continue


def _texts(tokenizer: Any) -> Iterator[str]:
    messages = [{"role": "query", "content": QUERY}, {"role": "document", "content": DOCUMENT}]
    for ends_with_answer in (False, True):
        if (text := rendered(tokenizer, messages, ends_with_answer=ends_with_answer)) is not None:
            yield text
    yield tokenizer.decode(tokenizer(QUERY, DOCUMENT)["input_ids"], skip_special_tokens=False)


def _instruction_in(text: str, frame: FrameTexts) -> str | None:
    """The text at the place of the instruction if `text` is the frame around the two texts, else None."""
    start, place, rest = frame.prefix.replace(CUT, "").partition("{instruction}")
    end = rest + QUERY + (frame.middle + frame.document_prefix + DOCUMENT + frame.suffix).replace(CUT, "")
    if not (text.startswith(start) and text.endswith(end) and len(text) >= len(start) + len(end)):
        return None
    between = text[len(start) : len(text) - len(end)]
    return between if place or not between else None


def _limit(folder: str, revision: str | None) -> int | None:
    """model_max_length, where it is fewer tokens than the model has positions: somebody chose it for the prompt."""
    limit = (read_json(folder, "tokenizer_config.json", revision) or {}).get("model_max_length")
    positions = (read_json(folder, "config.json", revision) or {}).get("max_position_embeddings")
    chosen = isinstance(limit, int) and isinstance(positions, int) and 0 < limit < positions
    return limit if chosen else None


def _named(name: str, folder: str, revision: str | None) -> Origin | None:
    """The frame by the base's own name, or by the name of the model that its files say it was made from."""
    if (frame := known_frame(name)) is not None:
        return Origin(frame.name)
    for place, other in _relatives(folder, revision):
        if (frame := known_frame(other)) is not None:
            why = f"since its {place} names {other}; if that is wrong, state it: prompt.mode=..."
            return Origin(frame.name, why=why)
    return None


def _relatives(folder: str, revision: str | None) -> Iterator[tuple[str, str]]:
    readme = read_text(folder, README, revision) or ""
    stated = _front_matter(readme).get("base_model")
    for one in stated if isinstance(stated, list) else [stated]:
        if isinstance(one, str):
            yield README, one
    title = re.search(r"^#\s+([\w./-]+)\s*$", readme, re.MULTILINE)
    if title is not None:
        yield README, title.group(1)
    config = read_json(folder, "config.json", revision) or {}
    if isinstance(config.get("_name_or_path"), str):
        yield "config.json", config["_name_or_path"]


def _front_matter(readme: str) -> dict[str, Any]:
    found = re.match(r"---\n(.*?)\n---\s*\n", readme, re.DOTALL)
    try:
        values = yaml.safe_load(found.group(1)) if found else None
    except (yaml.YAMLError, ValueError, RecursionError):
        # Also for a date that is none, and brackets without an end.
        return {}
    return values if isinstance(values, dict) else {}


def _is_reranker(folder: str, revision: str | None) -> bool:
    """Whether it was trained to score, in some prompt: a classifier, or by its card."""
    config = read_json(folder, "config.json", revision) or {}
    if architecture(config).endswith("ForSequenceClassification"):
        return True
    card = _front_matter(read_text(folder, README, revision) or "")
    tags = card.get("tags")
    tags = tags if isinstance(tags, list) else []
    return card.get("pipeline_tag") == "text-ranking" or bool({"reranker", "cross-encoder"} & set(map(str, tags)))


def _logit_score(folder: str, revision: str | None) -> tuple[int, int | None] | None:
    """(yes, no) token ids of sentence-transformers' LogitScore, or None where there is none."""
    for module in modules(folder, revision):
        if module["type"].endswith(f".{LOGIT_SCORE}"):
            settings = read_json(folder, f"{module['path']}/config.json", revision) or {}
            yes, no = settings.get("true_token_id"), settings.get("false_token_id")
            if not isinstance(yes, int) or not isinstance(no, int | None):
                raise UserError(f"model.base: {folder}: {module['path']}/config.json names no true_token_id")
            return yes, no
    return None


def _check_tokens(name: str, tokenizer: Any, mode: str, logit_score: tuple[int, int | None]) -> None:
    frame = FRAMES[mode].build(tokenizer, "")
    no = None if frame.no is None else single_token_id(tokenizer, frame.no)
    if (single_token_id(tokenizer, frame.yes), no) != logit_score:
        raise UserError(
            f"model.base: {name}: scores the tokens {_words(tokenizer, logit_score)} by its LogitScore, the frame "
            f"{mode} scores {frame.yes}{'' if frame.no is None else f' and {frame.no}'}: choose another base"
        )


def _words(tokenizer: Any, ids: Sequence[int | None]) -> str:
    return " and ".join(repr(tokenizer.decode([number])) for number in ids if number is not None)


def _question(name: str, tokenizer: Any, logit_score: tuple[int, int | None] | None) -> str:
    scored = "" if logit_score is None else f" (it scores {_words(tokenizer, logit_score)})"
    chosen = "|".join(frame.name for frame in FRAMES.values() if frame.trainable)
    return (
        f"model.base: {name}: a reranker{scored} whose files and name do not show which prompt it was trained in: look "
        f"it up and state it: prompt.mode={chosen} (score: --mode, Reranker.load: mode={'|'.join(FRAMES)})"
    )


def refuse_other_kinds(name: str, folder: str, revision: str | None = None) -> None:
    """Raises UserError for a base that is not a decoder with one score: an encoder, several labels, code of its own."""
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


def refuse_damaged(folder: str) -> None:
    """Raises UserError for a local config.json that is not one, before any library reads it."""
    if not Path(folder).is_dir():
        return
    config = read_json(folder, "config.json") or {}
    where = f"model.base: {folder}: config.json"
    if not isinstance(config.get("model_type"), str | None):
        raise UserError(f"{where}: model_type {config['model_type']!r}: must be the name of an architecture")
    if type(config.get("num_labels", 1)) is not int or not isinstance(config.get("id2label") or {}, dict):
        raise UserError(f"{where}: num_labels must be a number, and id2label an object")
    architecture(config)


def check_values(folder: str, config: Any) -> None:
    """Raises UserError for sizes and other numbers of a decoder's config that cannot be, or that no model has."""
    where = f"model.base: {folder}: config.json"
    for key in SIZES:
        value, most = config_value(config, key), MOST_LAYERS if key == "num_hidden_layers" else MOST_SIZE
        if value is not None and not (type(value) is int and 0 < value <= most):
            raise UserError(f"{where}: {key} {value!r}: must be a whole number from 1 to {most:,}")
    for key, value in vars(config).items():
        if key.endswith(("_eps", "_epsilon")) and isinstance(value, float | int) and not 0 <= value <= 1:
            raise UserError(f"{where}: {key} {value!r}: must be a small number above 0")
    positions = config_value(config, "rope_parameters")
    theta = positions.get("rope_theta") if isinstance(positions, dict) else None
    if theta is not None and not (isinstance(theta, float | int) and 0 < theta < math.inf):
        raise UserError(f"{where}: rope_theta {theta!r}: must be a number above 0")


def config_value(config: Any, key: str) -> Any:
    """A value of a config of transformers; None where it has none, or where the value differs by layer."""
    try:
        return getattr(config, key, None)
    except Exception:
        # transformers' own error for such a value is not an AttributeError.
        return None


def _refuse_config(name: str, config: dict[str, Any]) -> None:
    import transformers
    from transformers import CONFIG_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    kind, family = architecture(config), config.get("model_type")
    if kind and not hasattr(transformers, kind):
        raise UserError(
            f"model.base: {name}: {kind} is not a class of transformers, and code of a repository is never run for a "
            f"base: {INSTEAD}, or serve it (kind: served)"
        )
    is_encoder = family in CONFIG_MAPPING and CONFIG_MAPPING[family] in MODEL_FOR_MASKED_LM_MAPPING
    if is_encoder or config.get("is_encoder_decoder"):
        raise UserError(f"model.base: {name}: {kind or family} is an encoder, must be a decoder: {INSTEAD}")
    if kind.endswith("ForSequenceClassification"):
        names = config.get("id2label")
        # transformers' own default is two.
        labels = config.get("num_labels") or len(names if isinstance(names, dict) else ()) or 2
        if labels != 1:
            raise UserError(f"model.base: {name}: {kind} has {labels} labels, must have 1: {INSTEAD}")


def refuse_unread(folder: str) -> None:
    """Raises UserError for an export of ours that only other libraries read (onnx, gguf)."""
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
    """Raises UserError for a local folder that has pickled weights and no safetensors file."""
    path = Path(folder)
    found = [file.name for pattern in PICKLES for file in sorted(path.glob(pattern))] if path.is_dir() else []
    if found and not any(path.glob("*.safetensors")):
        raise UserError(
            f"model.base: {folder}: its weights are in {found[0]}, a pickle, which may run code when it is loaded: "
            "take a revision with safetensors, or convert it where you trust it (from_pretrained, then save_pretrained)"
        )


def architecture(config: dict[str, Any]) -> str:
    """The class that wrote the weights, \"\" if the config names none. Raises UserError if it is not a name."""
    named = config.get("architectures") or [""]
    if not isinstance(named, list) or not isinstance(named[0], str):
        raise UserError(f"model.base: config.json: architectures {named!r}: must be a list with the name of a class")
    return named[0]


def adapter_base(folder: str, revision: str | None = None) -> tuple[str, str | None] | None:
    """(base, revision) of a folder or hub repository of adapters as it names them; None for any other.

    Raises UserError for adapters that name no base.
    """
    settings = read_json(folder, ADAPTER_FILE, revision)
    if settings is None:
        return None
    base, own = settings.get("base_model_name_or_path"), settings.get("revision")
    if not isinstance(base, str) or not base.strip() or not isinstance(own, str | None):
        raise UserError(
            f"model.base: {folder}: {ADAPTER_FILE} names no base: write its folder or hub id there, as "
            "base_model_name_or_path"
        )
    return base, own


def below_adapters(folder: str, revision: str | None = None, base: str | None = None) -> tuple[str, str | None]:
    """(folder or hub id, revision) of the base below adapters, which may lie on others; a base itself is returned.

    base: where the base of the first adapters lies, in place of what they name. Raises UserError for a circle.
    """
    seen = [folder]
    while (named := adapter_base(folder, revision)) is not None:
        folder, revision = (resolve_base(named[0]), named[1]) if base is None else (resolve_base(base), None)
        base = None
        if any(_is_same(folder, other) for other in seen):
            raise UserError(
                f"model.base: {folder}: these adapters lie on themselves (by their base_model_name_or_path, or by "
                "base=FOLDER): name the folder of the base that they were trained on"
            )
        seen.append(folder)
    return folder, revision


def _is_same(one: str, other: str) -> bool:
    """Whether two places hold the same adapters; a copy under another name does too."""
    if one == other or Path(one).resolve() == Path(other).resolve():
        return True
    mine, theirs = (Path(folder) / ADAPTER_WEIGHTS for folder in (one, other))
    return mine.is_file() and theirs.is_file() and filecmp.cmp(mine, theirs, shallow=False)


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
    except (ValueError, RecursionError) as error:
        raise UserError(f"model.base: {folder}: {file} is not JSON ({one_line(str(error))}): write it again") from None
    if not isinstance(found, kind):
        wanted = "an object" if kind is dict else "a list"
        raise UserError(f"model.base: {folder}: {file}: must hold {wanted} of JSON: write it again")
    return found


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
        local_files_only=why_no_hub() is not None,
        # A repository that cannot be reached was reported before: the tokenizer is read first.
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def why_no_hub() -> str | None:
    """Why the hub does not answer, None where it does, or where HF_HUB_OFFLINE forbids to ask.

    Asked once in a process: huggingface_hub itself tries six times for each file, half a minute each.
    """
    from huggingface_hub import constants

    return None if constants.HF_HUB_OFFLINE else _why_silent(constants.ENDPOINT)


@functools.cache
def _why_silent(endpoint: str) -> str | None:
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    try:
        # Any answer will do: what is missing or forbidden is reported for its file.
        get_session().head(endpoint, timeout=HUB_SECONDS)
    except Exception as error:  # of the HTTP library, which differs by the version of huggingface_hub
        return f"{endpoint} does not answer: {one_line(str(error)) or type(error).__name__}"
    return None
