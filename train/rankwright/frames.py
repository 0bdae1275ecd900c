"""What a tokenizer offers a prompt: the two frames, scored words that are one token, a pad token."""

from __future__ import annotations

import functools
from typing import Any

from rankwright.errors import UserError

PORTABLE_TASK = 'Judge whether the document answers the query. Answer "yes" or "no".'
OFFICIAL_SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)


def portable_frame(tokenizer: Any) -> tuple[str, str, str, str]:
    """(prefix, middle, document_prefix, suffix) from the turn tokens that the base was trained on.

    Knows ChatML (Qwen, SmolLM2 and others) and Llama 3. Raises UserError for any other tokenizer.
    """
    vocabulary = tokenizer.get_added_vocab()
    if "<|im_start|>" in vocabulary and "<|im_end|>" in vocabulary:
        opening, closing, start = "<|im_start|>{role}\n", "<|im_end|>\n", ""
        thought = "<think>\n\n</think>\n\n" if "<think>" in vocabulary else ""
    elif "<|start_header_id|>" in vocabulary and "<|eot_id|>" in vocabulary:
        opening, closing = "<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>"
        start, thought = "<|begin_of_text|>", ""
    else:
        raise UserError(
            "prompt.mode: portable needs a tokenizer with ChatML (<|im_start|>, <|im_end|>) or Llama 3 "
            "(<|start_header_id|>, <|eot_id|>) turn tokens: choose a base that has them"
        )
    turn = functools.partial(opening.replace, "{role}")
    prefix = f"{start}{turn('system')}{PORTABLE_TASK}\n{{instruction}}{closing}{turn('query')}"
    return prefix, f"{closing}{turn('document')}", "", f"{closing}{turn('assistant')}{thought}"


def official_frame() -> tuple[str, str, str, str]:
    """(prefix, middle, document_prefix, suffix) of Qwen3-Reranker, README form.

    Source: https://huggingface.co/Qwen/Qwen3-Reranker-0.6B (README, transformers usage).
    """
    prefix = (
        f"<|im_start|>system\n{OFFICIAL_SYSTEM}<|im_end|>\n<|im_start|>user\n<Instruct>: {{instruction}}\n<Query>: "
    )
    return prefix, "\n<Document>:", " ", "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def single_token_id(tokenizer: Any, token: str) -> int:
    """The id of `token`, which must be one token. Raises UserError otherwise."""
    ids = tokenizer(token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise UserError(f"prompt: {token!r} is {len(ids)} tokens in this tokenizer, must be one: choose another base")
    return int(ids[0])


def choose_pad_token(tokenizer: Any) -> str:
    """A pad token that is not eos, from those the tokenizer has. Raises UserError when there is none.

    A pooled position is the last token that is not padding: with pad = eos it would be the wrong one.
    """
    known = tokenizer.get_vocab()
    candidates = [
        tokenizer.pad_token,
        "<|endoftext|>",
        "<|finetune_right_pad_id|>",
        "<|pad|>",
        "<pad>",
        "[PAD]",
        tokenizer.unk_token,
    ]
    for token in candidates:
        if token is not None and token in known and token != tokenizer.eos_token:
            return str(token)
    raise UserError(
        "model.base: the tokenizer has no pad token that differs from its end-of-sequence token "
        f"({tokenizer.eos_token!r}): add one, e.g. '<|pad|>', and resize the embeddings"
    )
