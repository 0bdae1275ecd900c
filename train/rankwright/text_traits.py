"""What texts look like before anything is known of them: code or prose, and how long their prompts would be."""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rankwright.prompts import PromptEncoder
from rankwright.ranking import stable_hash

# Drawn by hash: enough for percentiles that a budget is rounded up from.
MOST_TEXTS = 5000
# At least two signs of code in at least half of the documents: of the sets measured, prose (TAT-QA, ObliQA) had 24 %
# and 11 % of such documents, code (CoSQA, NL2Bash) 100 % and 70 %.
SIGNS_OF_CODE, SHARE_OF_CODE = 2, 0.5
_CODE = re.compile(
    r"""(?mx)
    ^\s*(?:def\ |class\ \w+[:({]|import\ \w|from\ \w+\ import\ |\#include|public\ |private\ |static\ |function\ |
        const\ |let\ |var\ |return\b|package\ \w+;|func\ |fn\ )
    | [{}]\s*$ | \ =>\  | \bself\. | \w::\w | </\w+> | \w\([^()\n]*\)\s*[:{;] | \$\{?[A-Za-z_]
    | \b[a-z0-9]+_[a-z0-9_]+\b | \b[a-z]+[A-Z]\w*\( | \b\w+\.\w+\( | (?:^|\s)--?[a-zA-Z][\w-]*\b
    | \|\s*(?:grep|sort|xargs|awk|sed|head|tail|wc|uniq|cut|tee)\b | [=!]= | \w\[\w+\]
    """
)
# Without a tokenizer: bytes of UTF-8 a token, and tokens of a frame with its instruction. Both are on the safe side.
BYTES_PER_TOKEN, FRAME_TOKENS = 3.0, 110
LEAST_TOKENS, MOST_TOKENS, STEP_TOKENS = 128, 1024, 64


def drawn(texts: Mapping[str, str]) -> list[str]:
    """At most MOST_TEXTS of the texts, chosen by a hash of their ids."""
    if len(texts) <= MOST_TEXTS:
        return list(texts.values())
    return [texts[i] for i in heapq.nsmallest(MOST_TEXTS, texts, key=lambda i: stable_hash("look", i))]


def share_of_code(documents: Sequence[str]) -> float:
    """The share of the documents with signs of code."""
    if not documents:
        return 0.0
    return sum(len(_CODE.findall(text)) >= SIGNS_OF_CODE for text in documents) / len(documents)


@dataclass(frozen=True, slots=True)
class Budget:
    """The prompt's budgets, and how they came about. query_tokens None: the default, a quarter of max_tokens."""

    max_tokens: int
    query_tokens: int | None
    why: str


def choose_budget(
    queries: Sequence[str], corpus: Sequence[str], relevant: Sequence[str], encoder: PromptEncoder | None
) -> Budget:
    """The smallest budget, in steps of 64, that holds 95 % of the documents beside 95 % of the queries.

    Of the documents of the corpus, or of the relevant ones where those are longer. At most MOST_TOKENS: what is longer
    costs more than it brings, and is cut and counted. Without an encoder tokens are estimated from bytes.
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
    query = _percentile(of_queries, 0.95)
    kinds = (("documents", of_corpus), ("relevant documents", of_relevant))
    kind, of_documents = max(kinds, key=lambda one: _percentile(one[1], 0.95))
    document = _percentile(of_documents, 0.95)
    wanted = frame + query + document
    size = min(max(_up(wanted), LEAST_TOKENS), MOST_TOKENS)
    longest = _percentile(of_queries, 0.99)
    query_tokens = min(longest, size // 2) if longest > size // 4 else None
    # A query that is given more must leave room for the frame and a document.
    size = max(size, _up(frame + (query_tokens or size // 4) + STEP_TOKENS))
    why = (
        f"{how}: frame and instruction {frame}, 95 % of the queries {query} (longest {max(of_queries, default=0)}), "
        f"95 % of the {kind} {document} (longest {max(of_documents, default=0)}) tokens"
    )
    if wanted > size:
        why += f"; together {wanted}, more than is usual to pay for: raise it if the ends of documents matter"
    return Budget(size, query_tokens, why)


def _up(tokens: int) -> int:
    return math.ceil(tokens / STEP_TOKENS) * STEP_TOKENS


def _percentile(lengths: Sequence[int], share: float) -> int:
    """The smallest length that this share of them does not exceed."""
    return sorted(lengths)[math.ceil(share * len(lengths)) - 1] if lengths else 0


def _estimated(texts: Sequence[str]) -> list[int]:
    return [math.ceil(len(text.encode("utf-8", "surrogatepass")) / BYTES_PER_TOKEN) for text in texts]
