"""Prompt templates ("frames"), ours and those of other rerankers: one record each; scored words and pad token."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwright.common.errors import UserError, no_such
from rankwright.common.registry import Records
from rankwright.model.chat_templates import rendered
from rankwright.recipe.schema import DEFAULT_INSTRUCTION

# Marks a place where a frame's vendor tokenises what stands before and behind it separately. Only texts of frames are
# searched for it, never those of users.
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
class FrameTexts:
    """The texts around a query and a document, and the scored words.

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


@dataclass(frozen=True, slots=True)
class Frame:
    """A prompt template and all that is known about it. prompt.mode and stored contracts hold its name.

    build: (tokenizer, instruction) -> texts; raises UserError for a tokenizer that the template does not suit.
    families: parts of the names of models that were trained in it, in lower case; the first frame that has one wins.
    instruction: the default, "" for none.
    line_for_instruction: the texts have a place for an instruction only where there is one.
    trainable: a recipe may choose it for any base; other frames are only found by the base (`auto`).
    rendered: the prompt is one text, which a chat template can render; false for a frame that its vendor tokenises in
    pieces, which no runtime of an export repeats.
    baked: rendered, and query and document stand alone between special tokens, so that tokenizer.json can hold the
    frame.
    """

    name: str
    build: Callable[[Any, str], FrameTexts]
    families: tuple[str, ...] = ()
    instruction: str = ""
    line_for_instruction: bool = False
    trainable: bool = False
    rendered: bool = False
    baked: bool = False

    def __post_init__(self) -> None:
        assert self.rendered or not self.baked, f"frame {self.name}: baked, so rendered too"


FRAMES: Records[Frame] = Records("prompt frame")


def official_frame(tokenizer: Any, instruction: str) -> FrameTexts:
    """Qwen3-Reranker, README form.

    Source: https://huggingface.co/Qwen/Qwen3-Reranker-0.6B (README, transformers usage).
    """
    prefix = (
        f"<|im_start|>system\n{OFFICIAL_SYSTEM}<|im_end|>\n<|im_start|>user\n<Instruct>: {{instruction}}\n<Query>: "
    )
    return FrameTexts(prefix, "\n<Document>:", " ", "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")


FRAMES.add(
    Frame(
        "official",
        official_frame,
        families=("qwen3-reranker",),
        instruction=DEFAULT_INSTRUCTION,
        trainable=True,
        rendered=True,
    ),
    __name__,
)


def portable_frame(tokenizer: Any, instruction: str = "") -> FrameTexts:
    """The turn tokens that the base was trained on, with roles system, query, document and assistant.

    Knows ChatML (Qwen, SmolLM2 and others), with a begin-of-sequence token in front where the base was trained with
    one, and Llama 3. Raises UserError for any other tokenizer.
    """
    vocabulary = tokenizer.get_added_vocab()
    if "<|im_start|>" in vocabulary and "<|im_end|>" in vocabulary:
        opening, closing = "<|im_start|>{role}\n", "<|im_end|>\n"
        start = _first_token(tokenizer, "<|im_start|>")
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
    return FrameTexts(prefix, f"{closing}{turn('document')}", "", f"{closing}{turn('assistant')}{thought}")


def _first_token(tokenizer: Any, turn: str) -> str:
    """The begin-of-sequence token where the base's chat template has it in front, or its tokenizer if there is none."""
    bos = tokenizer.bos_token
    if bos is None or bos == turn:
        return ""
    text = rendered(tokenizer, [{"role": "user", "content": "x"}])
    if text is not None:
        return str(bos) if text.startswith(bos + turn) else ""
    ids = tokenizer("x")["input_ids"]
    return str(bos) if ids and ids[0] == tokenizer.bos_token_id else ""


FRAMES.add(
    Frame("portable", portable_frame, instruction=DEFAULT_INSTRUCTION, trainable=True, rendered=True, baked=True),
    __name__,
)


def zerank_frame(tokenizer: Any, instruction: str) -> FrameTexts:
    """zerank-1, -1-small and -2: Qwen3's chat template with system = query, user = document; logit of "Yes" / 5.

    Source: modeling_zeranker.py of https://huggingface.co/zeroentropy/zerank-1-small (2025-08), and the README of
    zerank-2 since 2026-05, whose model gives the logit and has sigmoid(logit / 5) as the probability. The vendor cuts
    a query to 2,000 and a document to 10,000 characters; here both are cut to the contract's tokens. Its tokenizer
    strips both texts, as the contract does. There is no place for an instruction.
    """
    middle = "<|im_end|>\n<|im_start|>user\n"
    return FrameTexts("<|im_start|>system\n", middle, "", "<|im_end|>\n<|im_start|>assistant\n", "Yes", None, 0.2)


FRAMES.add(Frame("zerank", zerank_frame, families=("zerank-",), rendered=True, baked=True), __name__)


def mxbai_frame(tokenizer: Any, instruction: str) -> FrameTexts:
    """mxbai-rerank-base-v2 and -large-v2: logit of "1" - logit of "0".

    The line for an instruction is left out without one. Source: mxbai_rerank/mxbai_rerank_v2.py of
    https://github.com/mixedbread-ai/mxbai-rerank (commit 03324ea, 2025), which tokenises its pieces one by one. There
    query and document together fill 8,192 tokens beside the frame, and the query up to 3/4 of them; here max_tokens
    bounds the whole prompt and query_tokens the query.
    """
    start = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    told = "instruction: {instruction}\n" if instruction else ""
    prefix = f"{start}<|im_start|>user\n{CUT}{told}query: "
    suffix = f"{CUT}\n{CUT}{MXBAI_TASK}{CUT}<|im_end|>\n<|im_start|>assistant\n"
    return FrameTexts(prefix, f"{CUT}\n{CUT}", "document: ", suffix, "1", "0")


MXBAI = ("mxbai-rerank-base-v2", "mxbai-rerank-large-v2")
FRAMES.add(Frame("mxbai", mxbai_frame, families=MXBAI, line_for_instruction=True), __name__)


def bge_frame(tokenizer: Any, instruction: str) -> FrameTexts:
    """bge-reranker-v2-gemma and its like (a plain causal model): logit of "Yes" after a trailing task.

    Source: FlagEmbedding/inference/reranker/decoder_only/base.py of https://github.com/FlagOpen/FlagEmbedding
    (commit 0dff36c, 2025), which tokenises its pieces one by one and puts the begin-of-sequence token in front
    unless it pads with it. There the query is cut to 3/4 of max_length and the task is not counted; here max_tokens
    bounds the whole prompt. There is no place for an instruction.
    """
    bos = tokenizer.bos_token
    start = f"{bos}{CUT}" if bos is not None and bos != tokenizer.pad_token else ""
    return FrameTexts(f"{start}A: ", f"{CUT}\n{CUT}", "B: ", f"{CUT}\n{CUT}{BGE_TASK}", "Yes", None)


FRAMES.add(Frame("bge", bge_frame, families=("bge-reranker-v2-gemma",)), __name__)


def check_prompt_mode(mode: str) -> None:
    """Raises UserError for a prompt.mode that is neither `auto` nor a frame that a recipe may choose."""
    known = ["auto", *(frame.name for frame in FRAMES.values() if frame.trainable)]
    if mode not in known:
        advice = "`auto` finds this frame for bases that were trained in it" if mode in FRAMES else ""
        raise UserError(no_such(FRAMES.kind, mode, known, advice))


def known_frame(name: str) -> Frame | None:
    """The frame of a family by the last part of a folder's name or hub id, or None."""
    last = Path(name).name.lower()
    return next((frame for frame in FRAMES.values() if any(part in last for part in frame.families)), None)


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
