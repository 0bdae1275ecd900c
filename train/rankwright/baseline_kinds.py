"""The kinds of other rerankers that an evaluation can hold; a kind's keyword-only parameters are its options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from rankwright import console
from rankwright.base_files import refuse_other_kinds
from rankwright.cross_encoder import CrossEncoderScorer
from rankwright.errors import UserError
from rankwright.evaluate import Scorer
from rankwright.frames import Mode
from rankwright.model import load_model, load_tokenizer
from rankwright.prompts import DEFAULT_INSTRUCTION, PromptContract, make_contract
from rankwright.recipe import Baseline, Prompt
from rankwright.registry import Registry
from rankwright.reranker import Reranker, native_contract, saved_contract
from rankwright.resources import resolve_base
from rankwright.served import ServedReranker

Precision = Literal["auto", "fp32", "bf16"]
# Takes the baseline, the recipe's prompt section and a folder for what was paid for.
Kind = Callable[..., Scorer]
BASELINES: Registry[Kind] = Registry("baseline", hyphens=True)
# Kinds that our engine scores in the frame of their vendor.
FRAMES: dict[str, Mode] = {"qwen3-reranker": "official", "zerank": "zerank", "mxbai": "mxbai", "bge": "bge"}
NEEDS_OWN_CODE = ("layerwise", "lightweight", "minicpm", "v2.5")
SEQUENCE_CLASSIFIERS = ("bge-reranker-base", "bge-reranker-large", "bge-reranker-v2-m3")


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _dtype(precision: Precision) -> torch.dtype:
    """`auto` is bf16 on a GPU and fp32 on a CPU, as for base and tuned."""
    in_bf16 = torch.cuda.is_available() if precision == "auto" else precision == "bf16"
    return torch.bfloat16 if in_bf16 else torch.float32


def _instruction(prompt: Prompt) -> str | None:
    """The recipe's instruction, or None for each frame's own: the default is that of one family."""
    return None if prompt.instruction == DEFAULT_INSTRUCTION else prompt.instruction


def vendor_contract(baseline: Baseline, prompt: Prompt, mode: Mode) -> tuple[str, Any, PromptContract]:
    """(folder or hub id, tokenizer, contract) of a language model in the frame of its vendor.

    Raises UserError for one that carries a contract of its own, and where the frame does not fit into the budget.
    """
    folder = resolve_base(baseline.model, "model")
    refuse_other_kinds(baseline.model, folder, baseline.revision)
    if saved_contract(folder, baseline.revision) is not None:
        raise UserError(f"{baseline.model} carries its own prompt contract: use kind: rankwright")
    tokenizer = load_tokenizer(folder, baseline.revision)
    contract = make_contract(
        tokenizer,
        mode=mode,
        instruction=_instruction(prompt),
        max_tokens=prompt.max_tokens,
        query_tokens=prompt.query_tokens,
    )
    return folder, tokenizer, contract


def _in_frame(baseline: Baseline, prompt: Prompt, precision: Precision) -> Reranker:
    folder, tokenizer, contract = vendor_contract(baseline, prompt, FRAMES[baseline.kind])
    if _instruction(prompt) and not contract.takes_instruction:
        console.say(f"{baseline.name}: its frame {contract.mode} has no place for prompt.instruction: scored without")
    model = load_model(folder, contract, tokenizer, revision=baseline.revision, dtype=_dtype(precision))
    return Reranker(model.to(_device()).eval(), tokenizer, contract)


@BASELINES.register
def cross_encoder(
    baseline: Baseline,
    prompt: Prompt,
    cache: Path,
    *,
    remote_code: bool = False,
    batch: int = 32,
    precision: Precision = "auto",
) -> Scorer:
    """Any one-label CrossEncoder of sentence-transformers: BGE-reranker base to v2-m3, MiniLM, gte, ModernBERT ...

    Raw logits. Query and document together are cut to prompt.max_tokens, or to the model's own limit if lower.
    """
    if remote_code and baseline.revision is None:
        raise UserError("options.remote_code runs the code of the repository: name the revision that you have read")
    if batch < 1:
        raise UserError(f"options.batch: {batch}, must be at least 1")
    return CrossEncoderScorer(
        resolve_base(baseline.model, "model"),
        revision=baseline.revision,
        max_tokens=prompt.max_tokens,
        batch=batch,
        remote_code=remote_code,
        dtype=_dtype(precision),
        device=_device(),
    )


@BASELINES.register
def qwen3_reranker(baseline: Baseline, prompt: Prompt, cache: Path, *, precision: Precision = "auto") -> Scorer:
    """Qwen3-Reranker in its own frame: frames.official_frame."""
    return _in_frame(baseline, prompt, precision)


@BASELINES.register
def zerank(baseline: Baseline, prompt: Prompt, cache: Path, *, precision: Precision = "auto") -> Scorer:
    """zerank-1, -1-small, -2: frames.zerank_frame."""
    return _in_frame(baseline, prompt, precision)


@BASELINES.register
def mxbai(baseline: Baseline, prompt: Prompt, cache: Path, *, precision: Precision = "auto") -> Scorer:
    """mxbai-rerank-base-v2 and -large-v2: frames.mxbai_frame. Those of version 1 are cross-encoders."""
    return _in_frame(baseline, prompt, precision)


@BASELINES.register
def bge(baseline: Baseline, prompt: Prompt, cache: Path, *, precision: Precision = "auto") -> Scorer:
    """bge-reranker-v2-gemma and fine-tuned models of its kind: frames.bge_frame."""
    refuse_other_bge(baseline.model)
    return _in_frame(baseline, prompt, precision)


def refuse_other_bge(model: str) -> None:
    """Raises UserError for those of BGE's rerankers, by name, that are no plain causal language models."""
    name = Path(model).name.lower()
    if any(part in name for part in NEEDS_OWN_CODE):
        raise UserError(
            f"{model}: its layers are scored by code of its own repository, which is not run here: serve it and use "
            "kind: served, or take bge-reranker-v2-gemma"
        )
    if name in SEQUENCE_CLASSIFIERS:
        raise UserError(f"{model}: a sequence classifier, not a language model: use kind: cross-encoder")


@BASELINES.register
def rankwright(
    baseline: Baseline, prompt: Prompt, cache: Path, *, base: str | None = None, precision: Precision = "auto"
) -> Scorer:
    """A folder that Rankwright wrote (hf or adapter), under its own contract; any other base in its native frame.

    base: where the base of an adapter folder lies, when its settings do not name a hub id.
    """
    folder = resolve_base(baseline.model, "model")
    tokenizer = load_tokenizer(folder, baseline.revision)
    own = saved_contract(folder, baseline.revision)
    contract = own or native_contract(
        folder,
        tokenizer,
        name=baseline.model,
        instruction=_instruction(prompt),
        max_tokens=prompt.max_tokens,
        query_tokens=prompt.query_tokens,
        revision=baseline.revision,
    )
    if contract.max_tokens != prompt.max_tokens:
        console.say(
            f"{baseline.name}: its contract allows {contract.max_tokens} tokens, base and tuned {prompt.max_tokens}"
        )
    model = load_model(folder, contract, tokenizer, revision=baseline.revision, dtype=_dtype(precision), base=base)
    return Reranker(model.to(_device()).eval(), tokenizer, contract)


@BASELINES.register
def served(
    baseline: Baseline,
    prompt: Prompt,
    cache: Path,
    *,
    url: str,
    shape: str,
    key_variable: str | None = None,
    batch: int | None = None,
    requests_per_minute: float | None = None,
    timeout_seconds: float = 60.0,
    retries: int = 6,
    backoff_seconds: float = 1.0,
    longest_wait_seconds: float = 120.0,
) -> Scorer:
    """A model behind HTTP: see served.ServedReranker. `model` is its name on the server; the server cuts texts.

    Answers are kept in `cache`, so that a killed evaluation asks for no score twice.
    """
    return ServedReranker(
        url,
        shape=shape,
        model=baseline.model,
        key_variable=key_variable,
        cache=cache / f"served-{baseline.name}.jsonl",
        batch=batch,
        requests_per_minute=requests_per_minute,
        timeout_seconds=timeout_seconds,
        retries=retries,
        backoff_seconds=backoff_seconds,
        longest_wait_seconds=longest_wait_seconds,
    )
