"""RankModel: a decoder with a two-row yes/no head in fp32, which scores prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn

from rankwright.common.errors import UserError
from rankwright.model import blocks, interface
from rankwright.model.attention import PLAIN, choose_route
from rankwright.model.blocks import Block, score_states, why_not
from rankwright.model.interface import padded_states, padded_token_states, states, why_not_exact, why_not_packed
from rankwright.model.layout import SHAPE_MULTIPLE, Chunk, chunk_tokens, pack, pack_texts, pad_chunks, row_tokens
from rankwright.model.prompt import EncodedGroup, PromptContract

# B rows, T tokens, N scored prompts, H hidden size.
UNLIMITED = 10**30


class RankModel(nn.Module):
    """Scores prompts; the one module that Accelerate prepares.

    lm: a transformers decoder with a language-model or a one-label classification head, or a PeftModel around it.
    rows_2H: fp32 buffer with the scaled rows of "no" and "yes"; (0, w) for one scored token or a one-label head w.
    attention: a route of attention.ROUTES, `plain`, or `auto`: see route().
    sharded: this rank holds only a part of the weights, see sharding.shard.
    head_factor: logits of the language model are this times its head's rows times the hidden state; in rows_2H already.
    own_dropout: config keys of the base's own dropout and noise -> their values, all of which are off.
    """

    rows_2H: Tensor
    attention = "auto"
    sharded = False
    head_factor = 1.0
    own_dropout: Mapping[str, float] = MappingProxyType({})

    def __init__(self, lm: nn.Module, rows_2H: Tensor, pad_id: int) -> None:
        super().__init__()
        self.lm = lm
        self.pad_id = pad_id
        self.register_buffer("rows_2H", rows_2H.detach().clone().float(), persistent=False)
        # A tuple, so that the layers are not registered a second time.
        self._blocks: tuple[Block, ...] = ()
        # Device and type of products -> why packed rows do not fit a decoder without blocks of ours.
        self._unfit: dict[tuple[str, torch.dtype], str | None] = {}

    @property
    def causal_lm(self) -> Any:
        """The transformers model with its head, without the PEFT wrapper."""
        lm = cast(Any, self.lm)
        return lm.get_base_model() if hasattr(lm, "peft_config") else lm

    @property
    def decoder(self) -> nn.Module:
        """Embeddings, layers and final norm; for bases that see or hear, their towers too."""
        lm = self.causal_lm
        return cast(nn.Module, getattr(lm, trunk_name(lm)))

    @property
    def text_decoder(self) -> nn.Module:
        """The decoder without towers: what a text goes through."""
        decoder = cast(Any, self.decoder)
        return cast(nn.Module, decoder.get_decoder() if hasattr(decoder, "get_decoder") else decoder)

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
        unfit = self._why_plain()
        if unfit is None:
            route, why = choose_route(self.attention, self.device, self.compute_dtype)
            return route, f"{why}, in transformers' own layers ({reason})"
        if self.attention != "auto":
            raise UserError(f"model.attention: {self.attention} cannot run: {unfit}: use `auto` or `{PLAIN}`")
        return PLAIN, unfit

    @property
    def has_own_layers(self) -> bool:
        """Whether prompts go through Block, else through transformers' own layers: all tokens in the last one."""
        return self.attention != PLAIN and why_not(self.causal_lm.config) is None

    def _why_plain(self) -> str | None:
        """Why packed rows cannot go through transformers' own layers, tried once; None where they give the same."""
        place = (self.device.type, self.compute_dtype)
        if place not in self._unfit:
            unfit = why_not_packed(self.causal_lm, self.text_decoder)
            if self.device.type == "meta":
                return unfit
            if unfit is None and self.sharded:
                # Only all ranks together can try it: what was found before holds.
                return next(iter(self._unfit.values()), "it was not tried before it was sharded")
            if unfit is None:
                route, _ = choose_route(self.attention, self.device, self.compute_dtype)
                unfit = why_not_exact(self.text_decoder, route)
            self._unfit[place] = unfit
        return self._unfit[place]

    @property
    def compute_dtype(self) -> torch.dtype:
        """The type that products are computed in: autocast's where it is on."""
        if self.device.type != "meta" and torch.is_autocast_enabled(self.device.type):
            return torch.get_autocast_dtype(self.device.type)
        return cast(torch.dtype, self.causal_lm.get_input_embeddings().weight.dtype)

    def rounding(self, scores: Tensor, parts: float) -> float:
        """How far from `scores` another right computation of them may be, in the type that the model computes in.

        parts: the size of what is summed up to a score: one near zero is a sum of large parts, all of them rounded.
        """
        number = torch.finfo(self.compute_dtype)
        return max(max(1.0, float(scores.abs().max())) * (1e-3 if number.bits >= 32 else 0.1), number.eps * parts)

    @property
    def has_dropout(self) -> bool:
        """Whether training draws random masks."""
        return any(isinstance(m, nn.Dropout) and m.p > 0 for m in self.modules())

    def forward(self, groups: Sequence[EncodedGroup], texts: Sequence[Sequence[int]] = ()) -> Tensor:
        """scores_N fp32 of all documents of all groups, in order; every group has at least one.

        texts: token ids, in place of groups; then states_TH of all tokens of all texts, which do not see each other.
        """
        if texts:
            assert not groups, "either groups or texts"
            return self._text_states(texts)
        parts, order = self._states(groups)
        scores_N = torch.cat([self._score(states_NH) for states_NH in parts])
        return scores_N if order is None else scores_N[order]

    def states(self, groups: Sequence[EncodedGroup]) -> Tensor:
        """states_NH: the last hidden state of each prompt, in order, of which scores are products."""
        parts, order = self._states(groups)
        return torch.cat(parts) if order is None else torch.cat(parts)[order]

    def _states(self, groups: Sequence[EncodedGroup]) -> tuple[list[Tensor], Tensor | None]:
        """The states row by row or chunk by chunk, and the places of the prompts in them, None for their own order."""
        route, _ = self.route()
        if route == PLAIN:
            chunks = self._chunks([g.head_ids + tail for g in groups for tail in g.tail_ids])
            order = torch.tensor([i for chunk in chunks for i in chunk.indices], device=self.device)
            return [padded_states(self.text_decoder, chunk) for chunk in chunks], torch.argsort(order)
        rows = pack(groups, *self._row_limits())
        if self.has_own_layers:
            return [score_states(self.decoder, self.blocks, row, route) for row in rows], None
        return [states(self.text_decoder, row, route) for row in rows], None

    def _text_states(self, texts: Sequence[Sequence[int]]) -> Tensor:
        route, _ = self.route()
        if route != PLAIN:
            rows = pack_texts(texts, *self._row_limits())
            if self.has_own_layers:
                found = [blocks.token_states(self.decoder, self.blocks, row, route) for row in rows]
            else:
                found = [interface.token_states(self.text_decoder, row, route) for row in rows]
            return torch.cat([states_TH[: row.tokens] for states_TH, row in zip(found, rows, strict=True)])
        parts: dict[int, Tensor] = {}
        for chunk in self._chunks(texts):
            hidden_BTH = padded_token_states(self.text_decoder, chunk)
            parts |= {i: hidden_BTH[b, : len(texts[i])] for b, i in enumerate(chunk.indices)}
        return torch.cat([parts[i] for i in range(len(texts))])

    @property
    def _at_once(self) -> bool:
        """Every row or chunk gathers sharded weights, and all ranks must gather the same number of times."""
        return self.sharded and self.training

    def _row_limits(self) -> tuple[int | None, int]:
        """Tokens of a row at most, and a multiple that its tokens are filled up to."""
        on_cpu = self.device.type == "cpu"
        multiple = 1 if on_cpu and self.compute_dtype == torch.float32 else SHAPE_MULTIPLE
        return None if self._at_once else row_tokens(on_cpu), multiple

    def _chunks(self, prompts: Sequence[Sequence[int]]) -> list[Chunk]:
        limit = UNLIMITED if self._at_once else chunk_tokens(self.device.type == "cpu")
        return pad_chunks(prompts, pad_id=self.pad_id, chunk_tokens=limit)

    def _score(self, states_NH: Tensor) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
            return states_NH.float() @ self.score_weight_H


def scored_rows(rows_VH: Tensor, contract: PromptContract, factor: float = 1.0) -> Tensor:
    """fp32 (2, H): the rows of "no" (zero where one token is scored) and "yes", times the contract's scale.

    factor: the RankModel.head_factor of the head that the rows are of.
    """
    yes_H = rows_VH[contract.yes_id].detach().float()
    no_H = torch.zeros_like(yes_H) if contract.no_id is None else rows_VH[contract.no_id].detach().float()
    return torch.stack([no_H, yes_H]) * (contract.scale * factor)


def trunk_name(lm: Any) -> str:
    """The name under which a model of transformers holds its decoder. Raises UserError where there is none."""
    from transformers import PreTrainedModel

    if isinstance(getattr(lm, lm.base_model_prefix, None), nn.Module):
        return cast(str, lm.base_model_prefix)
    # Some classes are named for a part of a larger model: Llama 4's text model.
    found = [name for name, child in lm.named_children() if isinstance(child, PreTrainedModel)]
    if len(found) != 1:
        raise UserError(f"model.base: {type(lm).__name__} has no decoder that is read here: choose another base")
    return str(found[0])
