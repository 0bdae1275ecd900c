"""From a recipe to a model: base, contract, precision, trained part; and the tuned model of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rankwright.common import console
from rankwright.common.errors import UserError, UserErrors, in_one_line
from rankwright.common.files import cache_folder
from rankwright.common.hashing import content_hash
from rankwright.common.processes import Processes
from rankwright.common.resources import resolve_base
from rankwright.model.attention import PLAIN
from rankwright.model.bases import INSTEAD, Origin, find_origin, refuse_other_kinds, refuse_unread
from rankwright.model.blocks import FAMILIES
from rankwright.model.heads import TRIED
from rankwright.model.instructions import stated_instruction, stated_instructions
from rankwright.model.layout import CPU_ROW_TOKENS
from rankwright.model.loading import Precision, check_files, load_merged, load_model, load_tokenizer
from rankwright.model.long_documents import LongDocuments
from rankwright.model.prompt import PromptContract, PromptEncoder, make_contract
from rankwright.model.quantization import dequantize, why_not_installed
from rankwright.model.rank_model import RankModel
from rankwright.model.score_line import ScoreLine
from rankwright.model.sharding import is_wanted
from rankwright.model.trainable import (
    add_lora,
    enable_checkpointing,
    expert_weights,
    merge_adapters,
    parameter_counts,
    quantize_base,
    target_names,
    train_all,
)
from rankwright.recipe.schema import Model, Recipe
from rankwright.rerankers.kept_scorer import KeptScorer
from rankwright.rerankers.reranker import Own, Reranker, compares_only, native_contract, saved_contract
from rankwright.rerankers.scorer import Scorer
from rankwright.training.checkpoint import load_checkpoint
from rankwright.training.token_losses import head_weight


def device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision(recipe: Recipe, on_gpu: bool | None = None) -> Precision:
    """`auto` is bf16 on a GPU that has it, else fp32; on_gpu None: whether this machine has such a one."""
    if recipe.train.precision == "auto":
        return "bf16" if (_has_bf16() if on_gpu is None else on_gpu) else "fp32"
    return recipe.train.precision


def _has_bf16() -> bool:
    """Not by emulation, with which GPUs before Ampere, such as the T4, are slower than in fp32."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def stored_dtype(recipe: Recipe, on_gpu: bool | None = None) -> torch.dtype:
    """Frozen weights are stored in the compute type once; weights that are trained stay fp32 under autocast."""
    in_bf16 = precision(recipe, on_gpu) == "bf16" and recipe.model.method == "lora"
    return torch.bfloat16 if in_bf16 else torch.float32


def budget_tokens(recipe: Recipe, on_gpu: bool | None = None) -> int:
    """Tokens of a micro-batch, counting a query's head once; they bound the memory of a step.

    on_gpu None: whether this machine has one.
    """
    default = 16384 if (torch.cuda.is_available() if on_gpu is None else on_gpu) else CPU_ROW_TOKENS
    return recipe.train.budget_tokens or default


def total_steps(recipe: Recipe, draws: float) -> int:
    """Steps for the recipe's epochs, at most most_steps(). draws: those of one epoch, queries times weights."""
    steps = math.ceil(recipe.train.epochs * draws / recipe.train.groups_per_step)
    return min(steps, most_steps(recipe) or steps)


def most_steps(recipe: Recipe) -> int | None:
    """max_steps, and of a share of the queries the same share of it: as many epochs as all queries would get."""
    most, share = recipe.train.max_steps, recipe.train.queries_share
    # A float's 0.1 is not a tenth.
    return most and math.ceil(round(most * share, 6))


def load_base_tokenizer(recipe: Recipe) -> tuple[str, Any]:
    """(folder or hub id, tokenizer)."""
    base = resolve_base(recipe.model.base)
    refuse_unread(base)
    return base, load_tokenizer(base, recipe.model.revision)


def recipe_contract(recipe: Recipe, base: str, tokenizer: Any) -> PromptContract:
    """The contract that the recipe trains under; `mode: auto` is the base's own frame."""
    revision = recipe.model.revision
    refuse_other_kinds(recipe.model.base, base, revision)
    own: Origin | PromptContract | None = saved_contract(base, revision)
    if isinstance(own, PromptContract) and own.is_pairwise and not recipe.is_pairwise:
        raise UserError(f"model.base: {compares_only(recipe.model.base)}")
    if recipe.prompt.mode == "auto":
        own = own or find_origin(recipe.model.base, base, tokenizer, revision)
        mode = own.mode
    else:
        mode = recipe.prompt.mode
    stated, told = stated_instruction(recipe), recipe.prompt.first_stage_score
    contract = make_contract(
        tokenizer,
        mode=mode,
        # A frame's own where neither the recipe nor the base has one.
        instruction=stated if stated is not None or own is None else own.instruction,
        max_tokens=recipe.prompt.max_tokens,
        query_tokens=recipe.prompt.query_tokens,
        long_documents=_reading(recipe),
        first_stage_score=None if told is None else ScoreLine(told.levels),
    )
    _check_instructions(recipe, contract, tokenizer)
    return contract


def _reading(recipe: Recipe) -> LongDocuments:
    """What is read of a document beyond the budget, and whether a document is two."""
    return LongDocuments.of(recipe.prompt, recipe.bm25, is_pairwise=recipe.is_pairwise)


def recipe_prompt(recipe: Recipe) -> tuple[str, Any, PromptContract]:
    """(folder or hub id of the base, tokenizer, contract). Raises UserError when the tokenizer cannot be had."""
    base, tokenizer = load_base_tokenizer(recipe)
    return base, tokenizer, recipe_contract(recipe, base, tokenizer)


def recipe_encoder(recipe: Recipe) -> PromptEncoder:
    """The encoder that tuned is trained and scored with; raises as recipe_prompt does."""
    _, tokenizer, contract = recipe_prompt(recipe)
    return PromptEncoder(contract, tokenizer)


def _check_instructions(recipe: Recipe, contract: PromptContract, tokenizer: Any) -> None:
    """Raises UserErrors for instructions that the frame has no place for, or that leave no room for a document."""
    faults = []
    for key, text in stated_instructions(recipe).items():
        under = contract.under(text, tokenizer)
        if text and not under.takes_instruction:
            instead = "write prompt.instruction=''" if key == "prompt.instruction" else "remove it"
            faults.append(
                f"{key}: the frame {contract.mode} has no place for one: {instead}, or train in another frame, "
                "e.g. prompt.mode=portable"
            )
            continue
        try:
            PromptEncoder(under, tokenizer)
        except UserError as error:
            faults.append(f"{key}: {error}")
    if faults:
        raise UserErrors(faults)


def build_trainable(
    recipe: Recipe, base: str, tokenizer: Any, contract: PromptContract, place: torch.device | None = None
) -> RankModel:
    """The base with LoRA adapters, or with all but its embeddings trainable; on device() or another place."""
    dtype = stored_dtype(recipe)
    model = load_merged(base, contract, tokenizer, revision=recipe.model.revision, dtype=dtype)
    return make_trainable(recipe, model).to(place or device())


def make_trainable(recipe: Recipe, model: RankModel) -> RankModel:
    """The model with its trained part, attention route and gradient checkpointing as in the recipe."""
    settings = recipe.model
    if settings.quantize:
        model = quantize_base(model)
    if settings.method == "lora":
        model.requires_grad_(False)
        model = add_lora(
            model,
            rank=settings.rank,
            alpha=settings.alpha,
            dropout=settings.dropout,
            seed=recipe.training_seed,
            rslora=settings.rslora,
            dora=settings.dora,
            targets=settings.targets,
        )
    else:
        model = train_all(model)
    model.attention = settings.attention
    if settings.recomputes != "none":
        enable_checkpointing(model, cheap=settings.recomputes == "cheap")
    return model


def check_base(recipe: Recipe, base: str, tokenizer: Any, contract: PromptContract, *, weights: bool = True) -> Any:
    """config.json of the base, or of the one below adapters. Raises UserError for what its files tell to be wrong.

    Files that do not fit config.json, layers that adapters cannot be on, a head whose logits the scored rows cannot
    give, or none where `pretrain` predicts tokens. Weights are read for architectures that were never tried.
    weights=False: the weights need not be there.
    """
    if (saved := saved_contract(base, recipe.model.revision)) is not None:
        # The base's own row is scored under it.
        saved.check_tokens(tokenizer)
    model = check_files(base, contract, tokenizer, recipe.model.revision, weights=weights)
    config = model.causal_lm.config
    if recipe.pretrain is not None and recipe.pretrain.predicts_tokens:
        head_weight(model)
    with torch.device("meta"):
        if config.model_type not in FAMILIES:
            with in_one_line(f"model.base: {base}: {config.model_type} cannot be trained here", INSTEAD):
                make_trainable(recipe, model)
        elif recipe.model.method == "lora":
            # All that can be wrong, without the seconds that peft takes to be imported.
            target_names(model, recipe.model.targets)
            if recipe.model.quantize:
                quantize_base(model)
    if weights and config.model_type not in TRIED and Path(base).is_dir():
        # Nothing but a forward pass tells whether such a base can be scored.
        load_model(base, contract, tokenizer, revision=recipe.model.revision, dtype=stored_dtype(recipe))
    return config


def check_quantization(recipe: Recipe) -> list[str]:
    """Why model.quantize cannot be done here: the library is missing, or processes are to share the weights."""
    if recipe.model.quantize is None:
        return []
    faults = [] if (fault := why_not_installed()) is None else [fault]
    if is_wanted():
        faults.append(
            f"model.quantize: {recipe.model.quantize} weights are not sharded (FSDP2): start the processes without it, "
            "or remove the key"
        )
    return faults


def describe(recipe: Recipe, model: RankModel, contract: PromptContract, say: Callable[[str], None]) -> None:
    """Report what was decided and why."""
    trained, total = parameter_counts(model)
    layers = sum(1 for n, _ in model.named_modules() if n.endswith("lora_A"))
    what = f"{lora_name(recipe.model)} on {layers} linear layers" if layers else "full, embeddings frozen"
    what += f" ({', '.join(recipe.model.targets)})" if recipe.model.targets else ""
    say(
        f"model {recipe.model.base}: {what}, {trained:,} of {total:,} parameters trained, "
        f"{precision(recipe)} on {device().type}, gradient checkpointing {_recomputed(recipe, model)}, "
        f"{f'sharded over {Processes.of_group().count} processes, ' if model.sharded else ''}"
        f"micro-batches of at most {budget_tokens(recipe):,} tokens"
    )
    with torch.autocast(device().type, torch.bfloat16, enabled=precision(recipe) == "bf16"):
        route, reason = model.route()
    say(f"attention {route}: {reason}" + ("" if route == PLAIN else "; a query's head is computed once a row"))
    if layers and (experts := expert_weights(model)):
        say(
            f"experts: {len(experts)} tensors with {sum(experts.values()) / total:.0%} of the parameters have no "
            "adapters and stay as they are (model.method=full trains them)"
        )
    if model.own_dropout:
        values = ", ".join(f"{key} {value:g}" for key, value in model.own_dropout.items())
        say(f"the base's own dropout is off ({values}); model.dropout is that of the adapters")
    say(
        f"prompt {contract.mode}: at most {contract.max_tokens} tokens, the query at most {contract.query_tokens}; "
        + (f"instruction {contract.instruction!r}" if contract.takes_instruction else "no place for an instruction")
    )


def _recomputed(recipe: Recipe, model: RankModel) -> str:
    """model.gradient_checkpointing as it is done."""
    wanted = recipe.model.recomputes
    return (
        "full (cheap is for families with layers of ours)" if wanted == "cheap" and not model.has_own_layers else wanted
    )


def lora_name(settings: Model) -> str:
    """The kind of LoRA in words, with its rank."""
    kind = "DoRA" if settings.dora else f"QLoRA ({settings.quantize})" if settings.quantize else "LoRA"
    return f"{kind} rank {settings.rank}" + (" (scaled by its square root)" if settings.rslora else "")


def base_contract(recipe: Recipe, base: str, tokenizer: Any) -> PromptContract:
    """The contract of the base in its own native frame, under the recipe's instruction and budgets.

    Without the line of prompt.first_stage_score, which it was not trained with: as it would be served.
    """
    return native_contract(
        base,
        tokenizer,
        name=recipe.model.base,
        unknown=None if recipe.prompt.mode == "auto" else recipe.prompt.mode,
        own=Own(
            stated_instruction(recipe),
            recipe.prompt.max_tokens,
            recipe.prompt.query_tokens,
            _reading(recipe),
        ),
        revision=recipe.model.revision,
    )


def base_reranker(recipe: Recipe) -> Reranker:
    """The base under base_contract."""
    base, tokenizer = load_base_tokenizer(recipe)
    contract = base_contract(recipe, base, tokenizer)
    # Only test sets have a row for it.
    stated = {k: t for k, t in stated_instructions(recipe).items() if k.startswith(("prompt.", "data.test.")) and t}
    if lost := [key for key, text in stated.items() if not contract.under(text, tokenizer).takes_instruction]:
        console.say(f"base: its frame {contract.mode} has no place for {', '.join(lost)}: scored without")
    dtype = torch.bfloat16 if precision(recipe) == "bf16" else torch.float32
    model = load_model(base, contract, tokenizer, revision=recipe.model.revision, dtype=dtype)
    model.attention = recipe.model.attention
    return Reranker(model.to(device()).eval(), tokenizer, contract)


class BaseScorer(KeptScorer):
    """The base's raw scores, each made once for the same weights and prompt. inputs: hash of these, with the code.

    loaded: has these weights already.
    """

    def __init__(self, recipe: Recipe, inputs: str, *, loaded: Reranker | None = None) -> None:
        self._recipe, self._hash = recipe, inputs
        super().__init__("base", recipe.model.base, cache_folder() / "base", key="model.base")
        if loaded is not None:
            self._scorers[None] = loaded

    def _load(self) -> Scorer:
        return base_reranker(self._recipe)

    def _under(self, scorer: Scorer, stated: str | None) -> Scorer:
        return scorer.under(stated)

    def _inputs(self, stated: str | None) -> str:
        return content_hash(self._hash, stated, device().type)


def tuned_reranker(
    recipe: Recipe, checkpoint: Path, *, inputs: str | None = None, fp32: bool = False, as_trained: bool = False
) -> Reranker:
    """The recipe's model with the weights of a checkpoint; fp32: for exports, which merge adapters in fp32.

    inputs: of the training that the checkpoint must be of (TrainState), else UserError; None: of any.
    model.merge_with_base moves the weights back towards the base's, which keeps more of the base's abilities; Wortsman
    et al. 2021, arXiv 2109.01903.
    Under model.quantize it is the model that is served: its adapters, which were trained over the 4-bit weights, are
    merged into these, dequantised; over the base's own weights they would be another model. For exports they lie
    beside the dequantised weights. as_trained: with the 4-bit weights instead.
    """
    quantized = recipe.model.quantize is not None
    # Weights are quantised in the type that they were trained in, and cast afterwards.
    if fp32 and not quantized:
        train = recipe.train.model_copy(update={"precision": "fp32"})
        recipe = recipe.model_copy(update={"train": train})
    base, tokenizer, contract = recipe_prompt(recipe)
    model = build_trainable(recipe, base, tokenizer, contract, torch.device("cpu") if quantized else None)
    base_share = recipe.model.merge_with_base
    load_checkpoint(checkpoint, model, inputs=inputs, base_share=base_share)
    if quantized:
        if not as_trained:
            dequantize(model)
            model = model.float() if fp32 else merge_adapters(model)
        # Exports stay where they are made: in fp32 they may be too large for a GPU on which 4 bits were trained.
        model = model if fp32 else model.to(device())
    if base_share:
        console.say(f"model.merge_with_base {base_share:g}: tuned is base + {1 - base_share:g} * (trained - base)")
    if recipe.model.method == "full" and precision(recipe) == "bf16":
        # Trained in fp32 under autocast; scored as the base is, so that no difference is one of precision.
        model.lm.to(torch.bfloat16)
    return Reranker(model.eval(), tokenizer, contract)
