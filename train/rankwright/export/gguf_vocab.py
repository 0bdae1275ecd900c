"""A tokenizer as llama.cpp reads it from a GGUF file, and why it cannot read others."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from rankwright.prompts import PromptContract

# The values of llama.cpp's token types.
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTES = "bytes"
# What a tokenizer does before it merges, and whether a word of the vocabulary needs no merges -> the name under which
# llama.cpp does the same (src/llama-vocab.cpp). Others that it has are close to their originals, not equal.
PRE_TOKENIZERS = {
    ((rf"{WORDS}|\p{{N}}|{REST}", BYTES), False): "qwen2",
    ((rf"{WORDS}|\p{{N}}{{1,3}}|{REST}", BYTES), True): "llama-bpe",
    ((rf"{WORDS}|\p{{N}}{{1,3}}|{REST}", BYTES), False): "smaug-bpe",
    (("gpt-2",), False): "gpt-2",
    (("digits", "gpt-2"), False): "smollm",
}
FAMILIES = "Qwen 2 and 3, Llama 3, GPT-2, SmolLM"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """tokens, types: one for each row of the embeddings; merges: "LEFT RIGHT", best first; pre: llama.cpp's name."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    pre: str


def vocabulary_of(tokenizer: Any, size: int) -> Vocabulary:
    """The vocabulary, padded to `size` tokens; for a tokenizer that why_no_vocabulary() has no fault with."""
    state = _state(tokenizer)
    special = {token["id"]: token["special"] for token in state["added_tokens"]}
    named = {number: token for token, number in tokenizer.get_vocab().items()}
    tokens = [named.get(i, f"[PAD{i}]") for i in range(size)]
    types = [
        UNUSED if i not in named else NORMAL if i not in special else CONTROL if special[i] else USER_DEFINED
        for i in range(size)
    ]
    pre = _pre_tokenizer(state)
    assert pre is not None, "why_no_vocabulary() is asked first"
    return Vocabulary(tokens, types, [" ".join(_pair(merge)) for merge in state["model"]["merges"]], pre)


def why_no_vocabulary(tokenizer: Any, size: int) -> list[str]:
    """What llama.cpp cannot read exactly as this tokenizer does; size: rows of the embeddings."""
    if not hasattr(tokenizer, "backend_tokenizer"):
        return ["its tokenizer has no tokenizer.json"]
    state = _state(tokenizer)
    model = state["model"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        return ["its tokenizer is no byte-level BPE (SentencePiece pieces or words): llama.cpp would split otherwise"]
    faults = []
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix") or model.get("dropout"):
        faults.append("its tokenizer marks the parts of words or drops merges at random, which llama.cpp does not")
    if _pre_tokenizer(state) is None:
        found = " + ".join(_steps(state["pre_tokenizer"])) or "none"
        ignored = ", whole words of the vocabulary without merges" if model.get("ignore_merges") else ""
        faults.append(
            f"its pre-tokenizer ({found}{ignored}) is none of those that llama.cpp does exactly (known: "
            f"{', '.join(PRE_TOKENIZERS.values())}: of {FAMILIES})"
        )
    changed = [step for step in _normalizers(state) if step != "NFC"]
    if changed:
        faults.append(f"its tokenizer normalises texts ({', '.join(changed)}), which llama.cpp does not")
    odd = [t["content"] for t in state["added_tokens"] if t["lstrip"] or t["rstrip"] or t["single_word"]]
    if odd:
        faults.append(f"its token {odd[0]!r} takes white space or whole words only, which llama.cpp does not")
    if any(" " in part for merge in model["merges"] for part in _pair(merge)):
        faults.append("its merges hold spaces, which separate them in the file")
    vocabulary = tokenizer.get_vocab()
    if max(vocabulary.values()) >= size:
        faults.append(f"its tokenizer has ids up to {max(vocabulary.values())}, its embeddings {size} rows")
    taken = set(range(size)) - set(vocabulary.values())
    if any(f"[PAD{i}]" in vocabulary for i in taken):
        faults.append("its vocabulary has tokens like [PAD0], which stand for rows without a token in the file")
    return faults


def rerank_template(contract: PromptContract) -> str:
    """tokenizer.chat_template.rerank: plain text with {query} and {document}, the instruction frozen in it."""
    return f"{contract.head_text('{query}')}{contract.document_prefix}{{document}}{contract.suffix}"


def why_no_template(contract: PromptContract) -> list[str]:
    """Why llama.cpp's plain text with two places cannot hold this prompt."""
    if contract.in_pieces:
        return [f"a prompt of the frame {contract.mode} is tokenised in pieces, llama.cpp tokenises one text"]
    template = rerank_template(contract)
    twice = [place for place in ("{query}", "{document}") if template.count(place) != 1]
    if twice:
        return [f"the instruction holds {twice[0]}, which llama.cpp would fill in: word it otherwise"]
    return []


def normalised(tokenizer: Any, text: str) -> str:
    """The text as the tokenizer reads it; llama.cpp reads it as it is."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    return text if normalizer is None else str(normalizer.normalize_str(text))


def _state(tokenizer: Any) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return state


def _pair(merge: Any) -> list[str]:
    """tokenizers wrote "LEFT RIGHT" before 0.20."""
    return merge.split(" ", 1) if isinstance(merge, str) else list(merge)


def _normalizers(state: dict[str, Any]) -> list[str]:
    own = state["normalizer"]
    steps = [] if own is None else own["normalizers"] if own["type"] == "Sequence" else [own]
    return [str(step["type"]) for step in steps]


def _pre_tokenizer(state: dict[str, Any]) -> str | None:
    key = (_steps(state["pre_tokenizer"]), bool(state["model"].get("ignore_merges")))
    return PRE_TOKENIZERS.get(key)


def _steps(pre: dict[str, Any] | None) -> tuple[str, ...]:
    """What a pre-tokenizer does, one word or regular expression a step."""
    steps = [] if pre is None else pre["pretokenizers"] if pre["type"] == "Sequence" else [pre]
    return tuple(map(_step, steps))


def _step(step: dict[str, Any]) -> str:
    kind = step["type"]
    if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"] and "Regex" in step["pattern"]:
        return str(step["pattern"]["Regex"])
    if kind == "ByteLevel" and not step["add_prefix_space"]:
        return "gpt-2" if step["use_regex"] else BYTES
    if kind == "Digits" and step["individual_digits"]:
        return "digits"
    return json.dumps(step, ensure_ascii=False)
