"""Packed rows through transformers' own forward of a decoder, with our attention in place of its own.

For decoders without blocks of ours. Their layers call the attention that the config names, and ask for a mask by name
too: both names are ours while a row is computed. So what else a family does (norms, experts, rotations, scales) is its
own code. What it asks of attention is followed exactly, or refused: see Unfit.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from rankwright.common.errors import UserError, one_line
from rankwright.model.attention import ROUTES, weighed
from rankwright.model.layout import Chunk, Row, pack, pad_chunks
from rankwright.model.prompt import EncodedGroup

# T tokens, N scored tokens, C hidden size, H query heads, K key heads, D head size.
NAME = "rankwright"
# Kinds of layers (config.layer_types) in which tokens meet by attention, or not at all.
KINDS = {"full_attention", "sliding_attention", "attention", "dense", "sparse", "moe", "mlp"}
# FlashAttention has no kernel for larger heads.
LARGEST_HEAD = 256
# Heads and documents of the row that is compared, in tokens; every document but the first would see a mistake.
TRIAL: tuple[tuple[int, tuple[int, ...]], ...] = ((7, (3, 1, 12)), (4, (6, 9)))
# How far apart hidden states may be, as a share of their length. In 16 bits a token may go to another expert, so that
# most prompts decide there, not the worst.
EXACT, ROUNDED = 1e-3, 0.1


class Unfit(UserError):
    """A decoder asks for an attention that packed rows do not have here."""

    def __init__(self, what: str) -> None:
        super().__init__(f"model.attention: packed rows do not fit this base: {what}: set it to plain")
        self.what = what


@dataclass(frozen=True, slots=True)
class Mask:
    """What a layer's attention sees, in place of a mask's tensor: the last `window` positions, None for all."""

    window: int | None


@dataclass
class Call:
    """A row on its way through a decoder; a context in which the decoder's configs name our attention.

    It may be entered again: a layer that is recomputed in the backward pass needs it there.
    """

    row: Row
    route: str
    configs: tuple[Any, ...]
    layers: int = 0
    _before: list[tuple[Token[Call | None], list[Any]]] = field(default_factory=list)

    def __enter__(self) -> Call:
        # Two threads may score with one model, whose configs they share.
        _LOCK.acquire()
        self._before.append((_CALL.set(self), [config._attn_implementation for config in self.configs]))
        for config in self.configs:
            config._attn_implementation = NAME
        return self

    def __exit__(self, *_: object) -> None:
        token, names = self._before.pop()
        for config, name in zip(self.configs, names, strict=True):
            config._attn_implementation = name
        _CALL.reset(token)
        _LOCK.release()


_CALL: ContextVar[Call | None] = ContextVar("call", default=None)
_LOCK = threading.RLock()


def checkpoint_contexts() -> tuple[Any, Any]:
    """For torch's checkpoint: contexts of a layer's forward pass, and of its second one."""
    return contextlib.nullcontext(), _CALL.get() or contextlib.nullcontext()


def states(decoder: nn.Module, row: Row, route: str) -> Tensor:
    """Normed hidden states (N, C) of the row's scored tokens. Raises Unfit."""
    return _scored(token_states(decoder, row, route), row)


def token_states(decoder: nn.Module, row: Row, route: str) -> Tensor:
    """Normed hidden states (T, C) of all tokens of the row. Raises Unfit."""
    return _through(decoder, Call(row, route, _configs(decoder)))


def _scored(hidden_TC: Tensor, row: Row) -> Tensor:
    return hidden_TC[row.scored_N.to(hidden_TC.device)][: len(row.documents)]


def _through(decoder: nn.Module, call: Call) -> Tensor:
    _register()
    row, device = call.row, cast(Any, decoder).get_input_embeddings().weight.device
    ids_1T, positions_1T = row.ids_T.to(device)[None], row.positions_T.to(device)[None]
    with call:
        # A mask of the whole row, so that transformers does not look for the prompts of the row by itself.
        found = cast(Any, decoder)(
            input_ids=ids_1T, position_ids=positions_1T, attention_mask=torch.ones_like(ids_1T), use_cache=False
        )
    return cast(Tensor, found.last_hidden_state[0])


def padded_states(decoder: nn.Module, chunk: Chunk) -> Tensor:
    """Normed hidden states (B, C) of the last tokens of padded prompts, without any of our attention."""
    hidden_BTC = padded_token_states(decoder, chunk)
    last_B = chunk.last_B.to(hidden_BTC.device)
    return hidden_BTC[torch.arange(len(last_B), device=last_B.device), last_B]


def padded_token_states(decoder: nn.Module, chunk: Chunk) -> Tensor:
    """Normed hidden states (B, T, C) of all tokens of padded texts.

    Rows are padded on the right: under a causal mask padding then comes after every token and needs no mask, and
    positions are those of the unpadded text.
    """
    ids_BT = chunk.ids_BT.to(cast(Any, decoder).get_input_embeddings().weight.device)
    return cast(Tensor, cast(Any, decoder)(input_ids=ids_BT, use_cache=False).last_hidden_state)


def _configs(decoder: nn.Module) -> tuple[Any, ...]:
    configs = (getattr(module, "config", None) for module in decoder.modules())
    return tuple({id(c): c for c in configs if hasattr(c, "_attn_implementation")}.values())


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    if NAME not in AttentionInterface():
        AttentionMaskInterface.register(NAME, _mask)
        AttentionInterface.register(NAME, _attend)


def _mask(*, mask_function: Callable[..., Any], attention_mask: Tensor | None = None, **_: Any) -> Mask:
    """What transformers would make a mask of, over positions of a prompt in place of places in a batch."""
    call = _CALL.get()
    assert call is not None
    return Mask(window_of(mask_function, int(call.row.positions_T.max()) + 1))


def window_of(mask_function: Callable[..., Any], tokens: int) -> int | None:
    """How many positions a token sees in a prompt of so many tokens, None for all before it; or raises Unfit.

    mask_function: of transformers: (batch, head, query, key) -> whether the query sees the key.
    """
    places_T, zero = torch.arange(tokens), torch.tensor(0)

    def seen(query: int) -> Tensor:
        return torch.as_tensor(mask_function(zero, zero, torch.tensor(query), places_T)).expand(tokens)

    window = int(seen(tokens - 1).sum())
    for query in {0, tokens // 3, tokens // 2, max(window - 1, 0), min(window, tokens - 1), tokens - 1}:
        if not torch.equal(seen(query), (places_T <= query) & (places_T > query - window)):
            raise Unfit("a token sees others than the last ones before it")
    return window if window < tokens else None


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers' layers call it: (1, H, T, D) in, (1, T, H, D) out.

    options: those that change what it computes are softcap, s_aux (sinks), position_bias and is_causal.
    """
    call = _CALL.get()
    assert call is not None
    row, tokens = call.row, len(call.row.ids_T)
    if not isinstance(attention_mask, Mask):
        raise Unfit("its layers have masks of their own")
    if (
        options.get("position_bias") is not None
        or options.get("is_causal") is False
        or not getattr(module, "is_causal", True)
    ):
        raise Unfit("its attention has a bias of positions, or sees what comes later")
    if any(x.shape[0] != 1 or x.shape[2] != tokens for x in (query, key, value)):
        raise Unfit("its attention is not one of all tokens of a row with each other")
    call.layers += 1
    # Under autocast a normalisation gives fp32 again.
    on = query.device.type
    dtype = torch.get_autocast_dtype(on) if torch.is_autocast_enabled(on) else value.dtype
    q_HTD, k_KTD, v_KTD = (x[0].to(dtype) for x in (query, key, value))
    scale = q_HTD.shape[-1] ** -0.5 if scaling is None else float(scaling)
    window = attention_mask.window
    softcap, sinks_H = options.get("softcap"), options.get("s_aux")
    if softcap is not None or sinks_H is not None:
        out_THD = weighed(q_HTD, k_KTD, v_KTD, row, scale, window, softcap=softcap, sinks_H=sinks_H)
        return out_THD.contiguous()[None], None
    sizes = {q_HTD.shape[-1], v_KTD.shape[-1]}
    route = "flex" if call.route == "varlen" and (len(sizes) > 1 or max(sizes) > LARGEST_HEAD) else call.route
    # Contiguous, since some layers take a view of it.
    return ROUTES[route](q_HTD, k_KTD, v_KTD, row, scale, window).contiguous()[None], None


def why_not_packed(lm: Any, decoder: nn.Module) -> str | None:
    """Why a decoder cannot be given packed rows, as its config and its layers tell; None where it may.

    lm: the model of transformers that the decoder is of.
    """
    config = lm.config.get_text_config()
    if not all(m._can_set_attn_implementation() for m in (lm, cast(Any, decoder))):
        return f"the layers of {config.model_type} call no attention that can be replaced"
    kinds = sorted(set(getattr(config, "layer_types", None) or ()) - KINDS)
    if kinds:
        return f"the base has layers of the kind {' and '.join(kinds)}"
    if any(isinstance(m, nn.Conv1d) or hasattr(m, "A_log") for m in decoder.modules()):
        return "the base has layers that carry a state from token to token (convolution, Mamba or linear attention)"
    return None


def why_not_exact(decoder: nn.Module, route: str) -> str | None:
    """Why packed rows of few tokens do not give the states of padded prompts; None where they do."""
    rows = cast(Any, decoder).get_input_embeddings().weight.shape[0]
    # Last tokens of a vocabulary are often not those of texts.
    ids = iter((7919 * place + 13) % max(rows // 2, 1) for place in range(1000))

    def drawn(count: int) -> list[int]:
        return [next(ids) for _ in range(count)]

    groups = [EncodedGroup(drawn(head), list(map(drawn, tails)), False, 0) for head, tails in TRIAL]
    prompts = [g.head_ids + tail for g in groups for tail in g.tail_ids]
    was_training = decoder.training
    decoder.eval()
    try:
        with torch.no_grad():
            [row] = pack(groups, None)
            call = Call(row, route, _configs(decoder))
            packed_NC = _scored(_through(decoder, call), row)
            [chunk] = pad_chunks(prompts, pad_id=0)
            plain_NC = padded_states(decoder, chunk)[torch.argsort(torch.tensor(chunk.indices))]
    except Unfit as error:
        return error.what
    except Exception as error:
        # Classes differ in what they do with a mask, and there are many.
        return f"its layers take no packed rows ({type(error).__name__}: {one_line(str(error))[:100]})"
    finally:
        decoder.train(was_training)
    if not call.layers:
        return "its layers never call the attention that they are given"
    apart_N = (packed_NC.float() - plain_NC.float()).norm(dim=-1) / plain_NC.float().norm(dim=-1)
    is_exact = packed_NC.dtype == torch.float32 and not torch.is_autocast_enabled(packed_NC.device.type)
    apart = float(apart_N.max() if is_exact else apart_N.median())
    if apart <= (EXACT if is_exact else ROUNDED):
        return None
    return f"packed rows give other hidden states than its own forward (by {apart:.2g})"
