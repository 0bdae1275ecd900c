"""Attention over packed rows: the same result by several routes, chosen by what the device can do.

A route is `(q_HTD, k_KTD, v_KTD, row, scale, window) -> out_THD`: H query heads, K key heads (H is a multiple of K), T
tokens, D head size. All routes are exact: heads see themselves, a document sees its head and itself, causally; with a
`window` of w a token sees no more than the last w positions, its own among them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from rankwright.common.errors import UserError
from rankwright.common.registry import Registry
from rankwright.model.kernels import short_attention
from rankwright.model.layout import HEAD, Row, Segment


class Route(Protocol):
    """See above."""

    def __call__(
        self, q_HTD: Tensor, k_KTD: Tensor, v_KTD: Tensor, row: Row, scale: float, window: int | None = None, /
    ) -> Tensor: ...


ROUTES: Registry[Route] = Registry("attention")
# transformers' own forward over padded prompts, without any of the routes below.
PLAIN = "plain"
# Up to this many keys, plain products beat the fused kernel's backward pass in bf16 on a CPU.
SHORT_KEYS = 512
FEW_SHAPES = 32
# Beyond this many keys a CPU needs no causal square, whose memory grows with the square of the keys.
LONG_KEYS = 4096
# Queries of a long document that are computed at once where its layer has a window.
WINDOW_QUERIES = 512
# Documents whose scored tokens share one product in the last layer, except on a CPU, where rows are short.
SCORED_AT_ONCE = 16
# Tokens of a block of FlexAttention, and what our call of torch's FlashAttention needs.
FLEX_BLOCK = 128
VARLEN_OPTIONS = {"scale", "window_size", "enable_gqa"}


def check_attention(name: str) -> None:
    """Raises UserError for an unknown route."""
    if name not in ("auto", PLAIN):
        # An unknown name lists the known ones.
        ROUTES[name]


def choose_route(wanted: str, device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """(route, why): `wanted`, or for `auto` the fastest that this device and type can do.

    Raises UserError for a route that cannot run here.
    """
    of_type = device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)
    has_kernel = of_type and torch.cuda.get_device_capability(device) >= (8, 0)
    return route_for(wanted, device.type, dtype, has_kernel=has_kernel)


@functools.lru_cache(maxsize=1)
def has_varlen() -> bool:
    """Whether this torch has FlashAttention over segments as `varlen` calls it; old ones lack it, or its options."""
    try:
        from torch.nn.attention.varlen import varlen_attn

        return set(inspect.signature(varlen_attn).parameters) >= VARLEN_OPTIONS
    except (ImportError, ValueError, TypeError):
        return False


def route_for(wanted: str, device_type: str, dtype: torch.dtype, *, has_kernel: bool) -> tuple[str, str]:
    """choose_route() for a device that this machine may not have. has_kernel: whether it runs FlashAttention."""
    if wanted == PLAIN:
        return PLAIN, "chosen in the recipe"
    if wanted != "auto":
        if wanted == "varlen" and not has_kernel:
            raise UserError(
                f"model.attention: varlen needs a CUDA device and bf16, here {device_type} and "
                f"{str(dtype).removeprefix('torch.')}: use `auto`"
            )
        if wanted == "varlen" and not has_varlen():
            raise UserError(
                f"model.attention: varlen needs a newer torch, whose varlen_attn takes "
                f"{', '.join(sorted(VARLEN_OPTIONS))}; here is {torch.__version__}: use `auto`"
            )
        return wanted, "chosen in the recipe"
    if device_type == "cpu":
        return "documents", "fastest on a CPU"
    if has_kernel and has_varlen():
        return "varlen", "FlashAttention in bf16"
    if has_kernel:
        return "flex", f"FlexAttention, since torch {torch.__version__} has no FlashAttention over segments"
    return "flex", "FlexAttention where FlashAttention has no kernel for this type"


@ROUTES.register
def documents(q_HTD: Tensor, k_KTD: Tensor, v_KTD: Tensor, row: Row, scale: float, window: int | None = None) -> Tensor:
    """Segment by segment: no token is multiplied with one that it does not see. For CPUs."""
    found = []
    for segment, q_HLD, k_KSD, v_KSD, head_q_HPD in _segments(q_HTD, k_KTD, v_KTD, row):
        if segment.keys <= LONG_KEYS:
            found.append(_attend(q_HLD, k_KSD, v_KSD, scale, window))
        elif window is not None and window < segment.keys:
            found.append(_attend_windows(q_HLD, k_KSD, v_KSD, scale, window))
        else:
            queries = torch.cat((head_q_HPD, q_HLD), dim=1)
            found.append(_attend_long(queries, k_KSD, v_KSD, scale)[:, segment.keys - segment.tokens :])
    return torch.cat(found, dim=1).transpose(0, 1)


def weighed(
    q_HTD: Tensor,
    k_KTD: Tensor,
    v_KTD: Tensor,
    row: Row,
    scale: float,
    window: int | None = None,
    *,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """documents() for families whose weights are more than a softmax, on any device; fused kernels know neither.

    softcap: scores s become c * tanh(s / c). sinks_H: for each head a score of a key without a value.
    """
    found = []
    for segment, q_HLD, k_KSD, v_KSD, _ in _segments(q_HTD, k_KTD, v_KTD, row):
        keys, tokens = segment.keys, segment.tokens
        q_KXD = q_HLD.reshape(len(k_KSD), -1, q_HLD.shape[-1])
        scores_HLS = (q_KXD @ k_KSD.transpose(1, 2)).view(len(q_HLD), tokens, keys).float() * scale
        if softcap is not None:
            scores_HLS = softcap * torch.tanh(scores_HLS / softcap)
        scores_HLS = scores_HLS + _causal(keys, torch.float32, q_HTD.device, window)[keys - tokens : keys, :keys]
        if sinks_H is not None:
            sinks_HL1 = sinks_H.float()[:, None, None].expand(-1, tokens, 1)
            scores_HLS = torch.cat((scores_HLS, sinks_HL1), dim=-1)
        p_HLS = torch.softmax(scores_HLS, dim=-1)[..., :keys].to(v_KSD.dtype)
        out_KXD = p_HLS.view(len(k_KSD), -1, keys) @ v_KSD
        found.append(out_KXD.view(len(q_HLD), tokens, -1))
    return torch.cat(found, dim=1).transpose(0, 1)


def _segments(
    q_HTD: Tensor, k_KTD: Tensor, v_KTD: Tensor, row: Row
) -> Iterator[tuple[Segment, Tensor, Tensor, Tensor, Tensor]]:
    """Each segment with its queries, with the keys and values that these see, and with the queries of its head."""
    sizes = [s.tokens for s in row.segments]
    q, k, v = (torch.split(x, sizes, dim=1) for x in (q_HTD, k_KTD, v_KTD))
    place = {segment.start: number for number, segment in enumerate(row.segments)}
    for number, segment in enumerate(row.segments):
        if segment.head_end == segment.head_start:
            yield segment, q[number], k[number], v[number], q[number][:, :0]
            continue
        head = place[segment.head_start]
        keys, values = torch.cat((k[head], k[number]), dim=1), torch.cat((v[head], v[number]), dim=1)
        yield segment, q[number], keys, values, q[head]


def _attend_long(q_HSD: Tensor, k_KSD: Tensor, v_KSD: Tensor, scale: float) -> Tensor:
    """Causal attention of as many queries as keys, without a mask in memory.

    The kernel's own causal mask counts from the first query and the first key, so a document comes with the queries of
    its head, which cost little beside those of so long a document.
    """
    out_1HSD: Tensor = F.scaled_dot_product_attention(
        q_HSD[None], k_KSD[None], v_KSD[None], is_causal=True, scale=scale, enable_gqa=True
    )
    return out_1HSD[0]


def _attend_windows(q_HLD: Tensor, k_KSD: Tensor, v_KSD: Tensor, scale: float, window: int) -> Tensor:
    """Causal attention within a window, WINDOW_QUERIES at a time, each over the keys that they see."""
    queries, keys = q_HLD.shape[1], k_KSD.shape[1]
    found = []
    for start in range(0, queries, WINDOW_QUERIES):
        end = min(start + WINDOW_QUERIES, queries)
        first, last = max(0, keys - queries + start - window + 1), keys - queries + end
        query_L1 = torch.arange(keys - queries + start, last, device=q_HLD.device)[:, None]
        key_S = torch.arange(first, last, device=q_HLD.device)
        mask_LS = (key_S <= query_L1) & (key_S > query_L1 - window)
        found.append(_fused(q_HLD[:, start:end], k_KSD[:, first:last], v_KSD[:, first:last], mask_LS, scale))
    return torch.cat(found, dim=1)


def _attend(q_HLD: Tensor, k_KSD: Tensor, v_KSD: Tensor, scale: float, window: int | None = None) -> Tensor:
    """Causal attention whose last query sees the last key (bottom-right)."""
    queries, keys = q_HLD.shape[1], k_KSD.shape[1]
    if q_HLD.dtype == torch.float32:
        mask_LS = _causal(keys, q_HLD.dtype, q_HLD.device, window)[keys - queries : keys, :keys]
        return _fused(q_HLD, k_KSD, v_KSD, mask_LS, scale)
    # In 16 bits every new shape costs a compilation, so sizes are rounded up. Only added queries see added keys.
    more_queries, more_keys = -queries % FEW_SHAPES, -keys % FEW_SHAPES
    q, k, v = (F.pad(x, (0, 0, 0, more)) for x, more in ((q_HLD, more_queries), (k_KSD, more_keys), (v_KSD, more_keys)))
    short = torch.is_grad_enabled() and keys <= SHORT_KEYS and q.shape[-1] == v.shape[-1]
    mask_SS = _causal(keys + FEW_SHAPES, torch.float32 if short else q_HLD.dtype, q_HLD.device, window)
    mask_LS = mask_SS[keys - queries : keys + more_queries, : keys + more_keys]
    if window is not None:
        # An added query may be more than a window beyond the last key, and no softmax may be empty.
        mask_LS = mask_LS.index_fill(0, torch.arange(queries, queries + more_queries, device=q.device), 0.0)
    return (short_attention if short else _fused)(q, k, v, mask_LS, scale)[:, :queries]


def _fused(q_HLD: Tensor, k_KSD: Tensor, v_KSD: Tensor, mask_LS: Tensor, scale: float) -> Tensor:
    out_1HLD: Tensor = F.scaled_dot_product_attention(
        q_HLD[None], k_KSD[None], v_KSD[None], attn_mask=mask_LS, scale=scale, enable_gqa=True
    )
    return out_1HLD[0]


def _causal(size: int, dtype: torch.dtype, device: torch.device, window: int | None = None) -> Tensor:
    """A causal mask of at least `size` x `size`, within a window if there is one; smaller ones are cut from it."""
    side = 1 << (size - 1).bit_length()
    return _square(side, dtype, device, None if window is None or window >= side else window)


@functools.lru_cache(maxsize=8)
def _square(size: int, dtype: torch.dtype, device: torch.device, window: int | None = None) -> Tensor:
    # Kept for later calls: one made while scoring must still serve training.
    with torch.inference_mode(False):
        mask = torch.full((size, size), -torch.inf, dtype=dtype, device=device).triu(1)
        if window is not None:
            mask += torch.full((size, size), -torch.inf, dtype=dtype, device=device).tril(-window)
        return mask


@ROUTES.register
def dense(q_HTD: Tensor, k_KTD: Tensor, v_KTD: Tensor, row: Row, scale: float, window: int | None = None) -> Tensor:
    """One masked product over the whole row: quadratic in its tokens, runs everywhere."""
    places_T = torch.arange(q_HTD.shape[1], device=q_HTD.device)
    mask_TT = row.allowed(places_T[:, None], places_T[None, :])
    if window is not None:
        positions_T = row.positions_T.to(q_HTD.device)
        mask_TT &= positions_T[:, None] - positions_T < window
    return _fused(q_HTD, k_KTD, v_KTD, mask_TT, scale).transpose(0, 1)


@ROUTES.register
def flex(q_HTD: Tensor, k_KTD: Tensor, v_KTD: Tensor, row: Row, scale: float, window: int | None = None) -> Tensor:
    """FlexAttention under a block mask: blocks that no token sees are skipped. Compiled on a GPU."""
    attend = _flex_attention(q_HTD.is_cuda)
    mask = _block_mask(row, q_HTD.device, window)
    out = attend(q_HTD[None], k_KTD[None], v_KTD[None], block_mask=mask, scale=scale)
    return cast(Tensor, out)[0].transpose(0, 1)


@functools.lru_cache(maxsize=2)
def _flex_attention(compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    attend = functools.partial(flex_attention, enable_gqa=True)
    return torch.compile(attend, dynamic=True) if compiled else attend


@functools.lru_cache(maxsize=4)
def _block_mask(row: Row, device: torch.device, window: int | None = None) -> Any:
    """The block mask of a row, which all layers with this window share in a forward pass.

    torch's create_block_mask asks for every pair of tokens (10 GiB at 32k tokens); segments tell which blocks meet.
    """
    from torch.nn.attention.flex_attention import BlockMask

    tokens = len(row.ids_T)
    group_T, document_T = row.owner_2T.to(device)
    positions_T = row.positions_T.to(device)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen: Tensor = (document_T[key] == HEAD) | (document_T[key] == document_T[query])
        seen = seen & (group_T[key] == group_T[query])
        seen = seen & (key <= query)
        return seen if window is None else seen & (positions_T[query] - positions_T[key] < window)

    some_QK, whole_QK = _blocks_that_meet(row.segments, tokens)
    if window is not None:
        # The mask decides about every block: those beyond the window cost time, but change nothing.
        whole_QK = torch.zeros_like(whole_QK)
    lists = []
    for meet_QK in (some_QK & ~whole_QK, whole_QK):
        lists.append(meet_QK.sum(dim=1, dtype=torch.int32)[None, None].to(device))
        # The numbers of the blocks that meet come first, in their order.
        order = torch.argsort(meet_QK.to(torch.int8), dim=1, descending=True, stable=True)
        lists.append(order.to(torch.int32)[None, None].to(device))
    found, lengths = cast(Any, BlockMask), (tokens, tokens)
    return found.from_kv_blocks(*lists, BLOCK_SIZE=FLEX_BLOCK, mask_mod=visible, seq_lengths=lengths)


def _blocks_that_meet(segments: Sequence[Segment], tokens: int) -> tuple[Tensor, Tensor]:
    """(some_QK, whole_QK): whether some token, and whether every token, of a block of queries sees one of keys."""
    count = -(-tokens // FLEX_BLOCK)
    some_QK, whole_QK = (torch.zeros(count, count, dtype=torch.bool) for _ in range(2))
    for s in segments:
        first, last = s.start // FLEX_BLOCK, (s.end - 1) // FLEX_BLOCK
        own = torch.ones(last + 1 - first, last + 1 - first, dtype=torch.bool).tril()
        some_QK[first : last + 1, first : last + 1] |= own
        # Blocks that lie wholly in the segment: below the diagonal all of their tokens see each other's.
        inner, end = -(-s.start // FLEX_BLOCK), s.end // FLEX_BLOCK
        if inner < end:
            whole_QK[inner:end, inner:end] = torch.ones(end - inner, end - inner, dtype=torch.bool).tril(-1)
        if s.head_end > s.head_start:
            some_QK[first : last + 1, s.head_start // FLEX_BLOCK : (s.head_end - 1) // FLEX_BLOCK + 1] = True
            whole_QK[inner:end, -(-s.head_start // FLEX_BLOCK) : s.head_end // FLEX_BLOCK] = True
    return some_QK, whole_QK


@ROUTES.register
def varlen(q_HTD: Tensor, k_KTD: Tensor, v_KTD: Tensor, row: Row, scale: float, window: int | None = None) -> Tensor:
    """FlashAttention over segments of unequal length; keys of a head are gathered for each of its documents."""
    from torch.nn.attention.varlen import varlen_attn

    places_S, ends_q, ends_k = _gathered(row, q_HTD.device)
    q_THD, k_TKD, v_TKD = (x.transpose(0, 1) for x in (q_HTD, k_KTD, v_KTD))
    out = varlen_attn(
        q_THD.contiguous(),
        k_TKD.index_select(0, places_S),
        v_TKD.index_select(0, places_S),
        ends_q,
        ends_k,
        max(s.tokens for s in row.segments),
        max(s.keys for s in row.segments),
        scale=scale,
        # Everything to the left or a window, nothing to the right, counted from the last query and the last key.
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=q_HTD.shape[0] != k_KTD.shape[0],
    )
    return cast(Tensor, out)


@functools.lru_cache(maxsize=4)
def _gathered(row: Row, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Places of the keys of all segments one after another, and where queries and keys of each end (int32)."""
    places: list[Tensor] = []
    queries, keys = [0], [0]
    for s in row.segments:
        places += [torch.arange(s.head_start, s.head_end), torch.arange(s.start, s.end)]
        queries.append(s.end)
        keys.append(keys[-1] + s.keys)
    ends_q, ends_k = (torch.tensor(ends, dtype=torch.int32, device=device) for ends in (queries, keys))
    return torch.cat(places).to(device), ends_q, ends_k


def attend_scored(q_HND: Tensor, k_KTD: Tensor, v_KTD: Tensor, row: Row, scale: float) -> Tensor:
    """out_NHD of the scored tokens alone, each over its head and its document: N is small beside T.

    On a CPU one product over all keys of the row, under a mask, since rows are short there. Elsewhere a product for
    each few documents, over what these can see, so that memory grows with the tokens and not with their square.
    """
    if q_HND.device.type == "cpu":
        scored_N = row.scored_N.to(q_HND.device)
        places_T = torch.arange(k_KTD.shape[1], device=q_HND.device)
        mask_NT = row.allowed(scored_N[:, None], places_T[None, :])
        return _fused(q_HND, k_KTD, v_KTD, mask_NT, scale).transpose(0, 1)
    return attend_scored_in_parts(q_HND, k_KTD, v_KTD, row, scale)


def attend_scored_in_parts(q_HND: Tensor, k_KTD: Tensor, v_KTD: Tensor, row: Row, scale: float) -> Tensor:
    """attend_scored() for long rows, SCORED_AT_ONCE documents at a time."""
    device, found = q_HND.device, []
    # What each scored token sees: its head from : to, and its document from : to. What fills N up sees the first token.
    sees = [(d.head_start, d.head_end, d.start, d.end) for d in row.documents]
    sees += [(0, 0, 0, 1)] * (q_HND.shape[1] - len(sees))
    sees_N4 = torch.tensor(sees, device=device)
    places_T = torch.arange(k_KTD.shape[1], device=device)
    for start, end, runs in scored_parts(row.documents, q_HND.shape[1]):
        places_S = torch.cat([places_T[first:last] for first, last in runs])
        head_N1, head_end_N1, own_N1, own_end_N1 = sees_N4[start:end, :, None].unbind(dim=1)
        mask_NS = (places_S >= own_N1) & (places_S < own_end_N1)
        mask_NS |= (places_S >= head_N1) & (places_S < head_end_N1)
        k_KSD, v_KSD = (torch.cat([x[:, first:last] for first, last in runs], dim=1) for x in (k_KTD, v_KTD))
        found.append(_fused(q_HND[:, start:end], k_KSD, v_KSD, mask_NS, scale))
    return torch.cat(found, dim=1).transpose(0, 1)


def scored_parts(documents: Sequence[Segment], scored: int) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """(first, end, runs of keys) for every few of a row's documents, then for the places that fill `scored` up."""
    for start in range(0, len(documents), SCORED_AT_ONCE):
        some = documents[start : start + SCORED_AT_ONCE]
        # Heads of later groups lie between their documents.
        head, own = (some[0].head_start, some[0].head_end), (some[0].start, some[-1].end)
        yield start, start + len(some), [head, own]
    if len(documents) < scored:
        yield len(documents), scored, [(0, 1)]
