"""In which prompt a base was trained: found in its files or its name, or asked for.

The frame of a base that no export of ours wrote is, in this order: the one that its own chat template or tokenizer
writes; that of its family, by name; that of the model which its README or config names. A plain language model was
trained in none: portable. Anything else is asked for, since a wrong frame gives wrong scores without a word.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import yaml

from rankwright import console
from rankwright.base_files import ADAPTER_FILE, LOGIT_SCORE, architecture, modules, read_json, read_text
from rankwright.errors import UserError
from rankwright.frames import CUT, Frame, Mode, frame_of, known_frame, single_token_id

QUERY, DOCUMENT = "what is a bond?", "A bond is a loan."
README = "README.md"


@dataclass(frozen=True, slots=True)
class Origin:
    """A frame, the instruction that the base's own files put into it (None: they do not say), and how it was found."""

    mode: Mode
    instruction: str | None = None
    why: str = ""


def find_origin(name: str, folder: str, tokenizer: Any, revision: str | None = None) -> Origin:
    """The frame of a base without a contract of its own.

    name: what the base is called, when `folder` is a copy of it. Raises UserError asking for the frame where nothing
    says it.
    """
    settings = read_json(folder, ADAPTER_FILE, revision)
    if settings is not None:
        base = str(settings.get("base_model_name_or_path"))
        return _of_adapter(name, folder, base, tokenizer)
    logit_score = _logit_score(folder, revision)
    origin = _written(tokenizer) or _named(name, folder, revision)
    if origin is None:
        if logit_score is None and not _is_reranker(folder, revision):
            return Origin("portable", why="a plain language model")
        raise UserError(_question(name, tokenizer, logit_score))
    if logit_score is not None:
        _check_tokens(name, tokenizer, origin.mode, logit_score)
    if origin.why:
        _say_once(f"{name}: prompt frame {origin.mode}, {origin.why}")
    return origin


def _of_adapter(name: str, folder: str, base: str, tokenizer: Any) -> Origin:
    """Adapters read the prompt of their base, unless their own tokenizer or README says another one."""
    mode = known_frame(base)
    found = _written(tokenizer) or _named(name, folder, None)
    if found is None and mode is not None:
        found = Origin(mode)
    if found is None:
        raise UserError(_question(name, tokenizer, None))
    return found


@functools.cache
def _say_once(text: str) -> None:
    console.say(text)


def _written(tokenizer: Any) -> Origin | None:
    """The frame whose text the chat template (roles query and document) or the tokenizer's own pair makes."""
    frames = dict.fromkeys((mode, frame) for mode, frame in _frames(tokenizer))
    for text in _texts(tokenizer):
        for mode, frame in frames:
            instruction = _instruction_in(text, frame)
            if instruction is not None:
                return Origin(mode, instruction if "{instruction}" in frame.prefix else None)
    return None


def _frames(tokenizer: Any) -> Iterator[tuple[Mode, Frame]]:
    for mode in get_args(Mode):
        # With and without a line for an instruction, where that is a choice.
        for told in ("", "x"):
            try:
                yield mode, frame_of(mode, tokenizer, told)
            except UserError:
                continue


def _texts(tokenizer: Any) -> Iterator[str]:
    from jinja2 import TemplateError

    messages = [{"role": "query", "content": QUERY}, {"role": "document", "content": DOCUMENT}]
    for ends_with_answer in (False, True) if tokenizer.chat_template else ():
        try:
            yield tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ends_with_answer)
        except (TemplateError, TypeError, ValueError, KeyError):
            # Of another task: these roles are not its own.
            continue
    yield tokenizer.decode(tokenizer(QUERY, DOCUMENT)["input_ids"], skip_special_tokens=False)


def _instruction_in(text: str, frame: Frame) -> str | None:
    """What stands in the place of the instruction, where `text` is the frame around the two texts; else None."""
    start, place, rest = frame.prefix.replace(CUT, "").partition("{instruction}")
    end = rest + QUERY + (frame.middle + frame.document_prefix + DOCUMENT + frame.suffix).replace(CUT, "")
    if not (text.startswith(start) and text.endswith(end) and len(text) >= len(start) + len(end)):
        return None
    between = text[len(start) : len(text) - len(end)]
    return between if place or not between else None


def _named(name: str, folder: str, revision: str | None) -> Origin | None:
    """By the base's own name, or by the model that its files name as the one they were made from."""
    mode = known_frame(name)
    if mode is not None:
        return Origin(mode)
    for place, other in _relatives(folder, revision):
        mode = known_frame(other)
        if mode is not None:
            return Origin(mode, why=f"since its {place} names {other}; if that is wrong, state it: prompt.mode=...")
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
    except yaml.YAMLError:
        return {}
    return values if isinstance(values, dict) else {}


def _is_reranker(folder: str, revision: str | None) -> bool:
    """Whether it was trained to score, in some prompt: a classifier, or a card that says so."""
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


def _check_tokens(name: str, tokenizer: Any, mode: Mode, logit_score: tuple[int, int | None]) -> None:
    frame = frame_of(mode, tokenizer, "")
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
    return (
        f"model.base: {name}: a reranker{scored} whose files and name do not say in which prompt it was trained: look "
        f"it up and state it: prompt.mode={'|'.join(get_args(Mode))} (score: --mode, Reranker.load: mode=)"
    )
