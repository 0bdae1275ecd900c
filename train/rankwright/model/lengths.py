"""Lengths of texts in tokens under a prompt contract, and what the budgets cut from them."""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rankwright.common.hashing import stable_hash
from rankwright.data.collection import Collection
from rankwright.data.store.views import get_many
from rankwright.model.long_documents import Blocks, LongDocuments
from rankwright.model.prompt import PromptEncoder

if TYPE_CHECKING:
    from rankwright.data.words import Words

# Estimates without a tokenizer: UTF-8 bytes per token, and tokens of a frame with its instruction; on the safe side.
BYTES_PER_TOKEN, FRAME_TOKENS = 3.0, 110
LEAST_TOKENS, MOST_TOKENS, STEP_TOKENS = 128, 1024, 64
# At most this many documents of a corpus are measured, drawn by hash, so that the time has a bound.
MOST_DOCUMENTS = 300_000
# Relevant documents beyond the budget that are searched for what makes them relevant.
MOST_LOOKED = 500
BATCH = 512
PERCENTILES = (50, 90, 99)

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Budget:
    """The prompt's budgets, and why these. query_tokens None: the default, a quarter of max_tokens."""

    max_tokens: int
    query_tokens: int | None
    why: str


def choose_budget(
    queries: Sequence[str], corpus: Sequence[str], relevant: Sequence[str], encoder: PromptEncoder | None
) -> Budget:
    """The smallest budget, in steps of 64, that holds 95 % of the documents beside 95 % of the queries.

    The documents are those of the corpus, or the relevant ones where these are longer. The budget is at most
    MOST_TOKENS: longer prompts cost more than they bring; texts are then cut and counted. Without an encoder tokens are
    estimated from bytes.
    """
    if encoder is None:
        frame = FRAME_TOKENS
        of_queries, of_corpus, of_relevant = map(_estimated, (queries, corpus, relevant))
        how = f"ESTIMATED, {BYTES_PER_TOKEN:g} bytes a token, for want of the tokenizer"
    else:
        frame = len(encoder.encode_head("")[0]) + len(encoder.suffix_ids)
        of_queries, of_corpus, of_relevant = (
            list(map(len, encoder.encode_documents(texts))) for texts in (queries, corpus, relevant)
        )
        how = "counted"
    query = percentile(of_queries, 95)
    kinds = (("documents", of_corpus), ("relevant documents", of_relevant))
    kind, of_documents = max(kinds, key=lambda one: percentile(one[1], 95))
    document = percentile(of_documents, 95)
    wanted = frame + query + document
    size = min(max(_up(wanted), LEAST_TOKENS), MOST_TOKENS)
    longest = percentile(of_queries, 99)
    query_tokens = min(longest, size // 2) if longest > size // 4 else None
    # A query that is given more must leave room for the frame and a document.
    size = max(size, _up(frame + (query_tokens or size // 4) + STEP_TOKENS))
    why = (
        f"{how}: frame and instruction {frame}, 95 % of the queries {query} (longest {max(of_queries, default=0)}), "
        f"95 % of the {kind} {document} (longest {max(of_documents, default=0)}) tokens"
    )
    if wanted > size:
        why += (
            f"; together {wanted}, more than is usual to pay for: raise it if the ends of documents matter, or set "
            "prompt.long_documents"
        )
    return Budget(size, query_tokens, why)


def _up(tokens: int) -> int:
    return math.ceil(tokens / STEP_TOKENS) * STEP_TOKENS


def percentile(lengths: Sequence[int], percent: float) -> int:
    """The smallest length that this percentage of the lengths does not exceed; 0 without any."""
    return int(np.percentile(lengths, percent, method="inverted_cdf")) if lengths else 0


def _estimated(texts: Sequence[str]) -> list[int]:
    return [math.ceil(len(text.encode("utf-8", "surrogatepass")) / BYTES_PER_TOKEN) for text in texts]


def document_lengths(corpus: Mapping[str, str], encoder: PromptEncoder, advance: Advance) -> dict[str, int]:
    """Document id -> tokens as in a prompt, not cut; for at most MOST_DOCUMENTS, chosen by a hash of the id."""
    if len(corpus) > MOST_DOCUMENTS:
        ids = heapq.nsmallest(MOST_DOCUMENTS, corpus, key=lambda d: stable_hash("token lengths", d))
    else:
        ids = list(corpus)
    lengths: dict[str, int] = {}
    for start in range(0, len(ids), BATCH):
        part = ids[start : start + BATCH]
        lengths |= zip(part, map(len, encoder.encode_documents(get_many(corpus, part))), strict=True)
        advance(len(part))
    return lengths


def token_report(
    collection: Collection, encoder: PromptEncoder, lengths: Mapping[str, int], words: Words | None = None
) -> dict[str, Any]:
    """Percentiles of queries and documents, and what is cut and lost; lengths: those of the corpus's documents.

    A document's room is the budget beside the split's median query, and the line of prompt.first_stage_score; each
    judged pair is measured beside its own query.
    Under another prompt.long_documents than `cut` the same texts are beyond the budget, and none is simply cut.
    words: how BM25 reads texts (see relevant_report); None: as English.
    """
    encoder = encoder.under(collection.instruction)
    contract = encoder.contract
    heads: dict[str, int] = {}
    queries, lost = [], []
    for query_id, query in collection.queries.items():
        clean = encoder.clean(query)
        kept, was_cut = encoder.cut_query(clean)
        queries.append(_tokens(encoder, clean))
        if was_cut:
            lost.append(queries[-1] - _tokens(encoder, kept))
        heads[query_id] = len(encoder.encode_head(query)[0]) + encoder.line_tokens
    space = contract.max_tokens - len(encoder.suffix_ids)
    room = space - percentile(list(heads.values()), 50)
    over = [n - room for n in lengths.values() if n > room]
    judged = [(q, d) for q, row in collection.qrels.items() if q in heads for d in row if d in lengths]
    pairs = [n for q, d in judged if (n := lengths[d] - (space - heads[q])) > 0]
    whole = [heads[q] + lengths[d] + len(encoder.suffix_ids) for q, d in judged]
    return {
        "queries": {**percentiles(queries), **_cut(lost), "budget": contract.query_tokens},
        "documents": {**percentiles(list(lengths.values())), **_cut(over), "budget": room, "measured": len(lengths)},
        "judged_pairs": {
            "pairs": len(judged),
            **_cut(pairs),
            "budget": contract.max_tokens,
            # With this budget 1 % would be cut.
            "p99": percentile(whole, 99),
        },
        "relevant_pairs": relevant_report(collection, encoder, lengths, heads, words or LongDocuments().words),
        "long_documents": contract.long_documents.strategy,
    }


def relevant_report(
    collection: Collection,
    encoder: PromptEncoder,
    lengths: Mapping[str, int],
    heads: Mapping[str, int],
    words: Words,
) -> dict[str, int]:
    """How many relevant documents are beyond the budget, and whether what makes them relevant lies beyond a cut.

    heads: query id -> tokens before its documents. best_known, best_cut: in how many of them some block has a word of
    the query, and in how many the best block by BM25 ends beyond the budget. answers_known, answers_cut: the same for
    the query's own answer (Collection.answers) where the document has that text. Both of at most MOST_LOOKED documents,
    chosen by hash: `looked`.
    """
    space = encoder.contract.max_tokens - len(encoder.suffix_ids)
    relevant = [(q, d) for q in heads for d in collection.positives(q) if d in lengths]
    long = [(q, d) for q, d in relevant if lengths[d] > space - heads[q]]
    looked = heapq.nsmallest(MOST_LOOKED, long, key=lambda pair: stable_hash("long", *pair))
    known: Counter[str] = Counter()
    for query_id, document_id in looked:
        text, room = encoder.clean(collection.corpus[document_id]), space - heads[query_id]
        tokens = encoder.tokens(text)
        needed = Blocks(text, tokens, words).tokens_to_best(words(collection.queries[query_id]))
        known["best_known"] += needed is not None
        known["best_cut"] += needed is not None and needed > room
        answer = encoder.clean(collection.answers.get(query_id, ""))
        place = text.find(answer) if answer else -1
        known["answers_known"] += place >= 0
        known["answers_cut"] += place >= 0 and bisect_left(tokens.starts, place + len(answer)) > room
    names = ("best_known", "best_cut", "answers_known", "answers_cut")
    counts = {name: known[name] for name in names}
    return {"pairs": len(relevant), "beyond": len(long), "looked": len(looked), **counts}


def _tokens(encoder: PromptEncoder, text: str) -> int:
    return len(encoder.tokenizer(text, add_special_tokens=False)["input_ids"])


def _cut(lost: Sequence[int]) -> dict[str, int]:
    return {"cut": len(lost), "tokens_lost": sum(lost)}


def percentiles(lengths: Sequence[int]) -> dict[str, int | None]:
    """p50, p90, p99 (each a length that occurs, see percentile) and max; None without any lengths."""
    found = {f"p{p}": percentile(lengths, p) if lengths else None for p in PERCENTILES}
    return {**found, "max": max(lengths, default=None)}
