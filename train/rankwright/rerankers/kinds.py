"""Other rerankers, as rows of an evaluation or as teacher: their kinds, what their scores depend on, mistakes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from rankwright.common import console
from rankwright.common.errors import UserError, no_such, one_line
from rankwright.common.hashing import content_hash, files_hash
from rankwright.common.registry import Registry
from rankwright.common.resources import resolve_base
from rankwright.model.bases import ADAPTER_FILE, adapter_base, refuse_other_kinds, refuse_pickles, refuse_unread
from rankwright.model.frames import FRAMES
from rankwright.model.loading import empty_model, load_model, load_tokenizer
from rankwright.model.long_documents import CUT_OFF, LongDocuments
from rankwright.model.prompt import CONTRACT_FILE, PromptContract, make_contract
from rankwright.recipe.pretrain import CONTROL, PRETRAINED
from rankwright.recipe.schema import COMBINED, DEFAULT_INSTRUCTION, EXPORTED, Baseline, Bm25, Prompt, Recipe
from rankwright.rerankers.bi_encoder import BiEncoderScorer, check_bi_encoder
from rankwright.rerankers.client import Limits
from rankwright.rerankers.cross_encoder import CrossEncoderScorer, check_cross_encoder
from rankwright.rerankers.endpoints import SHAPES
from rankwright.rerankers.reranker import Own, Reranker, compares_only, native_contract, saved_contract
from rankwright.rerankers.scorer import Scorer
from rankwright.rerankers.served import ServedReranker
from rankwright.retrieval.dense import check_installed
from rankwright.retrieval.first_stages import stage_names

Precision = Literal["auto", "fp32", "bf16"]
# Takes the baseline, the recipe's prompt section and a folder for scores that were paid for.
Kind = Callable[..., Scorer]
BASELINES: Registry[Kind] = Registry("baseline", hyphens=True)
# Kinds that our engine scores in the frame of their vendor.
KIND_FRAMES = {"qwen3-reranker": "official", "zerank": "zerank", "mxbai": "mxbai", "bge": "bge"}
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


def vendor_contract(baseline: Baseline, prompt: Prompt, mode: str) -> tuple[str, Any, PromptContract]:
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
        long_documents=LongDocuments.of(prompt, Bm25()),
    )
    return folder, tokenizer, contract


def _in_frame(baseline: Baseline, prompt: Prompt, precision: Precision) -> Reranker:
    folder, tokenizer, contract = vendor_contract(baseline, prompt, KIND_FRAMES[baseline.kind])
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
    batch: Annotated[int, Field(ge=1)] = 32,
    precision: Precision = "auto",
) -> Scorer:
    """Any one-label CrossEncoder of sentence-transformers: BGE-reranker base to v2-m3, MiniLM, gte, ModernBERT ...

    Raw logits. Query and document together are cut to prompt.max_tokens, or to the model's own limit if lower.
    """
    if remote_code and baseline.revision is None:
        raise UserError("options.remote_code runs the code of the repository: name the revision that you have read")
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
def bi_encoder(
    baseline: Baseline,
    prompt: Prompt,
    cache: Path,
    *,
    query_prompt: str = "",
    document_prompt: str = "",
    scale: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = 20.0,
) -> Scorer:
    """Any bi-encoder of sentence-transformers: the similarity of query and document times `scale`.

    Cosines differ by tenths where logits differ by units, so a loss would take them for nearly equal: contrastive
    training multiplies them too. The model's own limit of tokens counts.
    """
    prompts = {"query": query_prompt, "document": document_prompt}
    folder = resolve_base(baseline.model, "model")
    return BiEncoderScorer(folder, revision=baseline.revision, prompts=prompts, scale=scale)


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
    """Raises UserError for rerankers of BGE, by name, that are not plain causal language models."""
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
    refuse_unread(folder)
    tokenizer, contract = _own_contract(baseline, prompt)
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
    extra: dict[str, Any] | None = None,
    batch: int | None = None,
    requests_per_minute: float | None = None,
    timeout_seconds: float = 60.0,
    retries: int = 6,
    backoff_seconds: float = 1.0,
    longest_wait_seconds: float = 120.0,
) -> Scorer:
    """A model behind HTTP, see served.ServedReranker and served.Limits. `model` is its name on the server.

    The server cuts texts. Answers are kept in `cache`, so that a killed evaluation asks for no score twice.
    """
    limits = Limits(requests_per_minute, timeout_seconds, retries, backoff_seconds, longest_wait_seconds)
    file = cache / f"served-{baseline.name}.jsonl"
    return ServedReranker(
        url,
        shape=shape,
        model=baseline.model,
        key_variable=key_variable,
        extra=extra,
        cache=file,
        batch=batch,
        limits=limits,
    )


def _own_contract(baseline: Baseline, prompt: Prompt) -> tuple[Any, PromptContract]:
    """(tokenizer, the contract that the model carries, or else the one of its native frame)."""
    folder = resolve_base(baseline.model, "model")
    tokenizer = load_tokenizer(folder, baseline.revision)
    contract = saved_contract(folder, baseline.revision) or native_contract(
        folder,
        tokenizer,
        name=baseline.model,
        own=Own(_instruction(prompt), prompt.max_tokens, prompt.query_tokens, LongDocuments.of(prompt, Bm25())),
        revision=baseline.revision,
    )
    if contract.is_pairwise:
        raise UserError(compares_only(baseline.model))
    return tokenizer, contract


ROWS, TEACHER = "evaluate.baselines", "mine.teacher"
OF_SENTENCE_TRANSFORMERS = ("cross-encoder", "bi-encoder")
# How a server is asked, which changes no score.
LIMITS = {field.name for field in dataclasses.fields(Limits)}
UNSCORED = {"key_variable", "batch", *LIMITS}
# What a kind reads of the recipe's prompt section, where that is less than budgets and instruction.
BUDGETS = ("max_tokens", "query_tokens")
READS: dict[str, tuple[str, ...]] = {
    "cross-encoder": ("max_tokens",),
    "bi-encoder": (),
    "zerank": BUDGETS,
    "bge": BUDGETS,
}


def load_baseline(
    baseline: Baseline, prompt: Prompt, *, cache: Path, key: str = ROWS, bm25: Bm25 | None = None
) -> Scorer:
    """The scorer of a baseline, ready to use.

    prompt: the recipe's section. Its budgets hold for every local kind; its instruction, where it is not the default,
    holds for the frames that have a place for one. cache: folder for scores that were paid for. key: the recipe's key
    that holds the baseline. bm25: the recipe's section, for the words of prompt.long_documents. Raises UserError naming
    key and row.
    """
    with _named(baseline, key):
        scorer: Scorer = BASELINES.bind(baseline.kind, baseline.options)(baseline, prompt, cache)
        if prompt.long_documents != CUT_OFF:
            scorer = _reading(scorer, baseline, LongDocuments.of(prompt, bm25 or Bm25()))
    if isinstance(scorer, ServedReranker):
        # A row counts such documents and goes on; a teacher's scores are learned from.
        scorer.refused_last = key == ROWS
    return scorer


def _reading(scorer: Scorer, baseline: Baseline, long_documents: LongDocuments) -> Scorer:
    """The scorer that reads long documents as the recipe states, where it is of our engine and has no own contract."""
    if isinstance(scorer, Reranker):
        return scorer if _has_contract(baseline) else scorer.reading(long_documents)
    console.say(f"{baseline.name}: kind {baseline.kind} cuts documents, whatever prompt.long_documents is")
    return scorer


def _has_contract(baseline: Baseline) -> bool:
    return saved_contract(resolve_base(baseline.model, "model"), baseline.revision) is not None


def baseline_under(baseline: Baseline, scorer: Scorer, instruction: str | None) -> Scorer:
    """The scorer under a test set's own instruction, where its kind reads the recipe's; None: the recipe's."""
    if instruction is None or scorer.mode is None or READS.get(baseline.kind) is not None:
        return scorer
    if baseline.kind == "rankwright" and _has_contract(baseline):
        # It is scored under its own.
        return scorer
    # The default is that of one family: each frame then has its own.
    own = FRAMES[scorer.mode].instruction
    return scorer.under(own if instruction == DEFAULT_INSTRUCTION else instruction)


def baseline_inputs(baseline: Baseline, prompt: Prompt, *, key: str = ROWS, bm25: Bm25 | None = None) -> str:
    """Hash of what the scores depend on beside the lists; an API key never counts.

    A local model counts by the content of its files, one of the hub by its id and revision; the prompt counts as far
    as this kind reads it.
    """
    options = {k: v for k, v in baseline.options.items() if k not in UNSCORED}
    if baseline.kind == "served":
        # The server makes the prompt.
        return content_hash("served", baseline.model, options)
    with _named(baseline, key):
        model = _content(baseline.model, baseline.revision)
        # A folder of ours is scored under its own contract. A repository of the hub is not asked.
        contract = Path(resolve_base(baseline.model, "model")) / CONTRACT_FILE
        has_contract = baseline.kind == "rankwright" and contract.is_file()
        read = () if has_contract else READS.get(baseline.kind, (*BUDGETS, "instruction"))
        if options.get("base") is not None:
            options["base"] = _content(str(options["base"]), None)
    # The name, because an own frame is found by it.
    name = Path(baseline.model).name
    stated = [getattr(prompt, key) for key in read]
    if prompt.long_documents != CUT_OFF and read and baseline.kind != "cross-encoder":
        stated.append(dataclasses.astuple(LongDocuments.of(prompt, bm25 or Bm25())))
    return content_hash(baseline.kind, name, model, options, stated)


def _content(model: str, revision: str | None) -> object:
    folder = Path(resolve_base(model, "model"))
    return files_hash([folder]) if folder.is_dir() else (model, revision)


def check_baselines(recipe: Recipe) -> list[str]:
    """All faults of evaluate.baselines, each as `evaluate.baselines.N.key: what`."""
    faults: list[str] = []
    seen: dict[str, int] = {}
    for number, baseline in enumerate(recipe.evaluate.baselines):
        key = f"{ROWS}.{number}"
        ours = ("base", "tuned", EXPORTED, COMBINED, *((PRETRAINED, CONTROL) if recipe.pretrain is not None else ()))
        if baseline.name.lower() in (*stage_names(), *ours):
            faults.append(f"{key}.name: {baseline.name!r} is a row of every evaluation: choose another name")
        # Names are names of folders, and some disks take no notice of capitals.
        first = seen.setdefault(baseline.name.lower(), number)
        if first != number:
            faults.append(f"{key}.name: {baseline.name!r} is also that of {ROWS}.{first}: rename one")
        faults += [f"{key}.{fault}" for fault in _faults(baseline, recipe.prompt)]
    return faults


def check_teacher(recipe: Recipe) -> list[str]:
    """All faults of mine.teacher, each as `mine.teacher.key: what`."""
    teacher = recipe.mine.teacher
    return [] if teacher is None else [f"{TEACHER}.{fault}" for fault in _faults(teacher, recipe.prompt)]


def _faults(baseline: Baseline, prompt: Prompt) -> Iterator[str]:
    if baseline.kind not in BASELINES:
        yield f"kind: {no_such(BASELINES.kind, baseline.kind, BASELINES)}"
        return
    checks: list[tuple[str, Callable[[], object]]] = [
        ("options", lambda: BASELINES.bind(baseline.kind, baseline.options)),
        ("model", lambda: _check_model(baseline, prompt)),
    ]
    for key, check in checks:
        try:
            check()
        except UserError as error:
            yield f"{key}: {_own_words(error)}"
    if baseline.kind == "served":
        yield from _served_faults(baseline)
    elif baseline.kind in OF_SENTENCE_TRANSFORMERS:
        yield from _library_faults(baseline)


def _check_model(baseline: Baseline, prompt: Prompt) -> None:
    if baseline.kind == "bge":
        refuse_other_bge(baseline.model)
    if baseline.kind == "served" or not Path(folder := resolve_base(baseline.model, "model")).is_dir():
        return
    # What the files of a local folder show is known now, and not only after training.
    if baseline.kind == "cross-encoder":
        check_cross_encoder(folder, remote_code=baseline.options.get("remote_code") is True)
        return
    if baseline.kind == "bi-encoder":
        check_bi_encoder(folder)
        return
    refuse_no_model(folder)
    if baseline.kind in KIND_FRAMES:
        _, tokenizer, contract = vendor_contract(baseline, prompt, KIND_FRAMES[baseline.kind])
    else:
        tokenizer, contract = _own_contract(baseline, prompt)
    below = adapter_base(folder)
    base = baseline.options.get("base") or (None if below is None else below[0])
    if base is not None and not Path(resolve_base(str(base), "options.base")).is_dir():
        # `check` does not ask the hub for a base.
        return
    with torch.device("meta"):
        empty_model(folder if base is None else resolve_base(str(base)), contract, tokenizer, dtype=torch.float32)


def refuse_no_model(folder: str) -> None:
    """Raises UserError for a local folder that no language model, and no adapters of one, can be loaded from."""
    refuse_unread(folder)
    refuse_pickles(folder)
    path = Path(folder)
    if not any((path / name).is_file() for name in ("config.json", ADAPTER_FILE)):
        raise UserError(f"{folder}: has no config.json: give a folder with config.json, weights and tokenizer")
    if not any(path.glob("*.safetensors")):
        raise UserError(f"{folder}: has no weights (*.safetensors): copy them there, or name another folder")


def _served_faults(baseline: Baseline) -> Iterator[str]:
    if baseline.revision is not None:
        yield "revision: a served model has none: leave it out"
    try:
        BASELINES.bind("served", baseline.options)
    except UserError:
        # A wrong key or type is reported for every kind; the shape may be wrong besides.
        if isinstance(shape := baseline.options.get("shape"), str) and shape not in SHAPES:
            yield f"options: {no_such(SHAPES.kind, shape, SHAPES)}"
        return
    limits = {k: v for k, v in baseline.options.items() if k in LIMITS}
    others = {k: v for k, v in baseline.options.items() if k not in LIMITS}
    try:
        # It asks nothing yet: address, shape, numbers and the key's variable are checked.
        ServedReranker(**others, model=baseline.model, limits=Limits(**limits))
    except UserError as error:
        yield f"options: {one_line(str(error))}"


def _library_faults(baseline: Baseline) -> Iterator[str]:
    try:
        check_installed(f"a {baseline.kind}")
    except UserError as error:
        yield f"kind: {error}"
    if baseline.options.get("remote_code") is True and baseline.revision is None:
        yield "revision: options.remote_code runs the code of the repository: name the revision that you have read"


@contextmanager
def _named(baseline: Baseline, key: str) -> Iterator[None]:
    """Adds key and name to an error: a recipe may hold several baselines."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}: {baseline.name}: {_own_words(error)}") from None


def _own_words(error: UserError) -> str:
    """What is wrong, without the key of the recipe's own base."""
    return one_line(str(error)).removeprefix("model.base: ").removeprefix("model: ").removeprefix("options: ")
