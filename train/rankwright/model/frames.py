"""The frames of prompts, ours and those of other rerankers; scored words that are one token, a pad token."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rankwright.common.errors import UserError

Mode = Literal["official", "portable", "zerank", "mxbai", "bge"]
# Marks a place at which a frame's vendor tokenises apart; no text of a user is looked at for it.
CUT = "{cut}"

PORTABLE_TASK = 'Judge whether the document answers the query. Answer "yes" or "no".'
OFFICIAL_SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
MXBAI_TASK = (
    "You are a search relevance expert who evaluates how well documents match search queries. For each query-document "
    "pair, carefully analyze the semantic relationship between them, then provide your binary relevance judgment "
    "(0 for not relevant, 1 for relevant).\nRelevance:"
)
BGE_TASK = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
    "prediction of either 'Yes' or 'No'."
)


@dataclass(frozen=True, slots=True)
class Frame:
    """The texts around query and document, and the scored words.

    prefix may hold `{instruction}` once; prefix, middle and suffix may hold CUT. The score is scale * (logit of yes -
    logit of no), or without a `no` scale * (logit of yes).
    """

    prefix: str
    middle: str
    document_prefix: str
    suffix: str
    yes: str = "yes"
    no: str | None = "no"
    scale: float = 1.0


def portable_frame(tokenizer: Any) -> Frame:
    """A frame of the turn tokens that the base was trained on.

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
    return Frame(prefix, f"{closing}{turn('document')}", "", f"{closing}{turn('assistant')}{thought}")


def official_frame() -> Frame:
    """Qwen3-Reranker, README form.

    Source: https://huggingface.co/Qwen/Qwen3-Reranker-0.6B (README, transformers usage).
    """
    prefix = (
        f"<|im_start|>system\n{OFFICIAL_SYSTEM}<|im_end|>\n<|im_start|>user\n<Instruct>: {{instruction}}\n<Query>: "
    )
    return Frame(prefix, "\n<Document>:", " ", "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")


def zerank_frame() -> Frame:
    """zerank-1, -1-small and -2: Qwen3's chat template with system = query, user = document; logit of "Yes" / 5.

    Source: modeling_zeranker.py of https://huggingface.co/zeroentropy/zerank-1-small (2025-08), and the README of
    zerank-2 since 2026-05, whose model gives the logit and has sigmoid(logit / 5) as the probability. The vendor cuts
    a query to 2,000 and a document to 10,000 characters; here both are cut to the contract's tokens. Its tokenizer
    strips both texts, as the contract does. There is no place for an instruction.
    """
    middle = "<|im_end|>\n<|im_start|>user\n"
    return Frame("<|im_start|>system\n", middle, "", "<|im_end|>\n<|im_start|>assistant\n", "Yes", None, 0.2)


def mxbai_frame(instruction: str) -> Frame:
    """mxbai-rerank-base-v2 and -large-v2: logit of "1" - logit of "0".

    The line of the instruction is there only where there is one. Source: mxbai_rerank/mxbai_rerank_v2.py of
    https://github.com/mixedbread-ai/mxbai-rerank (commit 03324ea, 2025), which tokenises its pieces one by one. There
    query and document together fill 8,192 tokens beside the frame, and the query up to 3/4 of them; here max_tokens
    bounds the whole prompt and query_tokens the query.
    """
    start = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    told = "instruction: {instruction}\n" if instruction else ""
    prefix = f"{start}<|im_start|>user\n{CUT}{told}query: "
    suffix = f"{CUT}\n{CUT}{MXBAI_TASK}{CUT}<|im_end|>\n<|im_start|>assistant\n"
    return Frame(prefix, f"{CUT}\n{CUT}", "document: ", suffix, "1", "0")


def bge_frame(tokenizer: Any) -> Frame:
    """bge-reranker-v2-gemma and its like (a plain causal model): logit of "Yes" after a trailing task.

    Source: FlagEmbedding/inference/reranker/decoder_only/base.py of https://github.com/FlagOpen/FlagEmbedding
    (commit 0dff36c, 2025), which tokenises its pieces one by one and puts the begin-of-sequence token in front
    unless it pads with it. There the query is cut to 3/4 of max_length and the task is not counted; here max_tokens
    bounds the whole prompt. There is no place for an instruction.
    """
    bos = tokenizer.bos_token
    start = f"{bos}{CUT}" if bos is not None and bos != tokenizer.pad_token else ""
    return Frame(f"{start}A: ", f"{CUT}\n{CUT}", "B: ", f"{CUT}\n{CUT}{BGE_TASK}", "Yes", None)


def frame_of(mode: Mode, tokenizer: Any, instruction: str) -> Frame:
    """The frame that a mode stands for, with this tokenizer. Raises UserError when the tokenizer has none."""
    frames: dict[str, Callable[[], Frame]] = {
        "official": official_frame,
        "portable": lambda: portable_frame(tokenizer),
        "zerank": zerank_frame,
        "mxbai": lambda: mxbai_frame(instruction),
        "bge": lambda: bge_frame(tokenizer),
    }
    assert set(frames) == set(get_args(Mode)), "every mode has a frame"
    return frames[mode]()


def known_frame(name: str) -> Mode | None:
    """The frame of a family by the last part of a folder's name or hub id, or None."""
    last = Path(name).name.lower()
    known: dict[str, Mode] = {
        "qwen3-reranker": "official",
        "zerank-": "zerank",
        "mxbai-rerank-base-v2": "mxbai",
        "mxbai-rerank-large-v2": "mxbai",
        "bge-reranker-v2-gemma": "bge",
    }
    return next((mode for part, mode in known.items() if part in last), None)


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
