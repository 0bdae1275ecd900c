"""The model: a decoder and a yes/no two-row head in fp32.

score = (W[yes] - W[no]) . h_last: the two rows are a detached copy taken at load time, so no new head is trained
and logits over the vocabulary are never computed. With one scored token the row of "no" is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from rankwright.attention import PLAIN, choose_route
from rankwright.base_files import adapter_base, find_file, refuse_other_kinds, refuse_pickles
from rankwright.batching import CHUNK_TOKENS, Chunk, pad_chunks
from rankwright.blocks import Block, score_states, why_not
from rankwright.errors import UserError
from rankwright.frames import choose_pad_token
from rankwright.layout import CPU_ROW_TOKENS, SHAPE_MULTIPLE, Row, pack
from rankwright.prompts import EncodedGroup, PromptContract
from rankwright.resources import resolve_base

# B rows, T tokens, N scored prompts, H hidden size.
UNLIMITED = 10**30
Precision = Literal["fp32", "bf16"]


class RankModel(nn.Module):
    """Scores prompts; the one module that Accelerate prepares.

    lm: a transformers decoder with a language-model or a one-label classification head, or a PeftModel around it.
    rows_2H: fp32 buffer, the rows of "no" and "yes", scaled; one scored token or a one-label head w is (0, w).
    attention: a route of attention.ROUTES, `plain`, or `auto`: see route().
    sharded: this rank has a part of the weights only: see sharding.shard.
    """

    rows_2H: Tensor
    attention = "auto"
    sharded = False

    def __init__(self, lm: nn.Module, rows_2H: Tensor, pad_id: int) -> None:
        super().__init__()
        self.lm = lm
        self.pad_id = pad_id
        self.register_buffer("rows_2H", rows_2H.detach().clone().float(), persistent=False)
        # A tuple, so that the layers are not registered a second time.
        self._blocks: tuple[Block, ...] = ()

    @property
    def causal_lm(self) -> Any:
        """The transformers model with its head, without the PEFT wrapper."""
        lm = cast(Any, self.lm)
        return lm.get_base_model() if hasattr(lm, "peft_config") else lm

    @property
    def decoder(self) -> nn.Module:
        """Embeddings, layers and final norm."""
        lm = self.causal_lm
        return cast(nn.Module, getattr(lm, lm.base_model_prefix))

    @property
    def score_weight_H(self) -> Tensor:
        """fp32 weight of the equivalent one-label head."""
        return self.rows_2H[1] - self.rows_2H[0]

    @property
    def device(self) -> torch.device:
        return self.rows_2H.device

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The decoder's layers, each as a module of its own."""
        if not self._blocks:
            self._blocks = tuple(map(Block, cast(Any, self.decoder).layers))
        return self._blocks

    def route(self) -> tuple[str, str]:
        """(route of the attention on this device, why). Raises UserError for a route that cannot run here."""
        reason = why_not(self.causal_lm.config)
        if reason is None or self.attention == PLAIN:
            return choose_route(self.attention, self.device, self.compute_dtype)
        if self.attention != "auto":
            raise UserError(f"model.attention: {self.attention} cannot run: {reason}: use `auto` or `{PLAIN}`")
        return PLAIN, reason

    @property
    def compute_dtype(self) -> torch.dtype:
        """The type that products are computed in: autocast's where it is on."""
        if torch.is_autocast_enabled(self.device.type):
            return torch.get_autocast_dtype(self.device.type)
        return cast(Any, self.decoder).embed_tokens.weight.dtype  # type: ignore[no-any-return]

    @property
    def has_dropout(self) -> bool:
        """Whether training draws random masks."""
        return any(isinstance(m, nn.Dropout) and m.p > 0 for m in self.modules())

    def forward(self, groups: Sequence[EncodedGroup]) -> Tensor:
        """scores_N fp32 of all documents of all groups, in order; every group has at least one."""
        route, _ = self.route()
        # Every row or chunk gathers sharded weights, and all ranks have to gather equally often.
        at_once = self.sharded and self.training
        if route == PLAIN:
            prompts = [g.head_ids + tail for g in groups for tail in g.tail_ids]
            limit = UNLIMITED if at_once else CHUNK_TOKENS
            chunks = pad_chunks(prompts, pad_id=self.pad_id, chunk_tokens=limit)
            order = torch.tensor([i for chunk in chunks for i in chunk.indices], device=self.device)
            return torch.cat([self._score(self._padded_states(chunk)) for chunk in chunks])[torch.argsort(order)]
        on_cpu = self.device.type == "cpu"
        multiple = 1 if on_cpu and self.compute_dtype == torch.float32 else SHAPE_MULTIPLE
        rows = pack(groups, CPU_ROW_TOKENS if on_cpu and not at_once else None, multiple)
        return torch.cat([self._score(self._packed_states(row, route)) for row in rows])

    def _packed_states(self, row: Row, route: str) -> Tensor:
        return score_states(self.decoder, self.blocks, row, route)

    def _padded_states(self, chunk: Chunk) -> Tensor:
        """Rows are padded on the right: under a causal mask padding then comes after every scored token and
        needs no mask, and positions are those of the unpadded prompt.
        """
        ids_BT, last_B = chunk.ids_BT.to(self.device), chunk.last_B.to(self.device)
        hidden_BTH = self.decoder(input_ids=ids_BT, use_cache=False).last_hidden_state
        return cast(Tensor, hidden_BTH[torch.arange(len(last_B), device=self.device), last_B])

    def _score(self, states_NH: Tensor) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
            return states_NH.float() @ self.score_weight_H


def load_tokenizer(folder: str, revision: str | None = None) -> Any:
    """The base's tokenizer with a pad token that differs from eos. Raises UserError when it cannot be had."""
    from transformers import AutoTokenizer

    tokenizer = _from_pretrained(AutoTokenizer, folder, revision=revision)
    _keep_line_breaks(tokenizer)
    # Budgets are the contract's; the tokenizer's own limit would only warn of texts that are cut later.
    tokenizer.model_max_length = UNLIMITED
    tokenizer.pad_token = choose_pad_token(tokenizer)
    return tokenizer


def _keep_line_breaks(tokenizer: Any) -> None:
    """Take off the Strip that our exports put first: it is for callers who tokenise bare texts, not for frames."""
    from tokenizers import normalizers

    steps = tokenizer.backend_tokenizer.normalizer
    if isinstance(steps, normalizers.Sequence) and len(steps) and isinstance(steps[0], normalizers.Strip):
        rest = [steps[i] for i in range(1, len(steps))]
        tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(rest)


def load_model(
    folder: str,
    contract: PromptContract,
    tokenizer: Any,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    base: str | None = None,
) -> RankModel:
    """A base from a local folder or hub id, in `dtype`; weights that the files lack are an error.

    Reads causal language models, one-label sequence classifiers (our own exports) and PEFT adapter folders;
    `base` is where an adapter's base lies, when its own settings do not name a hub id.
    """
    refuse_pickles(folder)
    if adapter_base(folder, revision) is not None:
        return _load_adapter(folder, contract, tokenizer, revision=revision, dtype=dtype, base=base)
    config, auto = _config(folder, contract, tokenizer, revision)
    options = {"revision": revision, "config": config, "dtype": dtype, "output_loading_info": True}
    # A pickle may run code when it is loaded.
    lm, info = _from_pretrained(auto, folder, use_safetensors=True, **options)
    _refuse_missing(folder, lm, info)
    if hasattr(lm, "score"):
        weight_H = lm.score.weight[0]
        return RankModel(lm, torch.stack([torch.zeros_like(weight_H), weight_H]), tokenizer.pad_token_id)
    return RankModel(lm, scored_rows(lm.get_output_embeddings().weight, contract), tokenizer.pad_token_id)


def load_merged(
    folder: str, contract: PromptContract, tokenizer: Any, *, revision: str | None = None, dtype: torch.dtype
) -> RankModel:
    """As load_model(), but adapters are merged, in fp32 and cast once: what new adapters are trained on."""
    if adapter_base(folder, revision) is None:
        return load_model(folder, contract, tokenizer, revision=revision, dtype=dtype)
    model = load_model(folder, contract, tokenizer, revision=revision)
    model.lm = cast(Any, model.lm).merge_and_unload().to(dtype)
    return model


def scored_rows(rows_VH: Tensor, contract: PromptContract) -> Tensor:
    """fp32 (2, H): the rows of "no" (zero where one token is scored) and "yes", times the contract's scale."""
    yes_H = rows_VH[contract.yes_id].detach().float()
    no_H = torch.zeros_like(yes_H) if contract.no_id is None else rows_VH[contract.no_id].detach().float()
    return torch.stack([no_H, yes_H]) * contract.scale


def empty_model(
    folder: str, contract: PromptContract, tokenizer: Any, *, revision: str | None = None, dtype: torch.dtype
) -> RankModel:
    """What load_model() gives in shapes and types, from config.json alone, its weights left as they are made.

    Under `torch.device("meta")` they take neither memory nor time.
    """
    config, auto = _config(folder, contract, tokenizer, revision)
    lm = auto.from_config(config, dtype=dtype)
    return RankModel(lm, torch.zeros(2, config.hidden_size), tokenizer.pad_token_id)


def base_config(folder: str, contract: PromptContract, tokenizer: Any, revision: str | None = None) -> Any:
    """config.json of a base, or of the one below adapters, checked as it is before its weights are read."""
    try:
        return _config(folder, contract, tokenizer, revision)[0]
    except UserError as error:
        if (named := adapter_base(folder, revision)) is None:
            raise
        raise UserError(f"{folder}: adapters of the base {named[0]!r}: {error}; or start where it lies") from None


def _config(folder: str, contract: PromptContract, tokenizer: Any, revision: str | None) -> tuple[Any, Any]:
    """The base's config, checked, and the class of transformers that its weights are of."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    while (named := adapter_base(folder, revision)) is not None:
        folder, revision = resolve_base(named[0]), named[1]
    refuse_other_kinds(folder, folder, revision)
    config = _from_pretrained(AutoConfig, folder, revision=revision)
    config.pad_token_id = tokenizer.pad_token_id
    if getattr(config, "final_logit_softcapping", None):
        raise UserError(f"model.base: {folder}: its logits are capped, which our head does not do: choose another base")
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and contract.max_tokens > positions:
        raise UserError(f"prompt.max_tokens: {contract.max_tokens}, but {folder} has {positions} positions: lower it")
    is_classifier = (config.architectures or ["?"])[0].endswith("ForSequenceClassification")
    return config, AutoModelForSequenceClassification if is_classifier else AutoModelForCausalLM


def _load_adapter(
    folder: str,
    contract: PromptContract,
    tokenizer: Any,
    *,
    revision: str | None,
    dtype: torch.dtype,
    base: str | None,
) -> RankModel:
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    named = adapter_base(folder, revision)
    assert named is not None, "the caller has looked"
    name, base_revision = named if base is None else (named[0], None)
    weights = find_file(folder, "adapter_model.safetensors", revision)
    if weights is None:
        raise UserError(f"model.base: {folder}: no adapter_model.safetensors: write the adapters again, as safetensors")
    try:
        model = load_merged(resolve_base(base or name), contract, tokenizer, revision=base_revision, dtype=dtype)
    except UserError as error:
        raise UserError(
            f"{folder}: adapters of the base {name!r}: {error}; or say where it is: base=FOLDER (--base FOLDER), "
            f"or start where a folder {name!r} lies"
        ) from None
    model.lm = PeftModel.from_pretrained(model.lm, folder, revision=revision)
    with safe_open(weights, "pt") as file:
        stored = set(file.keys())
    # peft only warns of these, and the adapter then changes nothing there.
    missing = sorted(set(get_peft_model_state_dict(model.lm, save_embedding_layers=False)) ^ stored)
    if missing:
        raise UserError(f"{folder}: {len(missing)} adapter weights do not fit (first: {missing[0]}): write it again")
    return model


def _from_pretrained(auto: Any, folder: str, **options: Any) -> Any:
    """`auto.from_pretrained` whose failures are one line for the user."""
    try:
        return auto.from_pretrained(folder, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"model.base: cannot load {folder!r} ({first}): give a folder with config.json, safetensors and tokenizer, "
            "or a hub id that this machine can reach"
        ) from None


def _refuse_missing(folder: str, lm: Any, info: dict[str, Any]) -> None:
    """transformers only warns about weights it had to invent; a reranker with such weights scores noise."""
    tied = set(getattr(lm, "_tied_weights_keys", None) or ()) if lm.config.tie_word_embeddings else set()
    bad = sorted(k for k in info["missing_keys"] if k not in tied)
    bad += sorted(str(k) for k in info.get("mismatched_keys", ()))
    if bad:
        raise UserError(
            f"model.base: {folder}: {len(bad)} weights are missing or of another shape (first: {bad[0]}): "
            "the files are incomplete or belong to another architecture"
        )
