"""Slices of the test queries: attributes of each query, and the gain of tuned over base in fixed bins of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rankwright.common import console
from rankwright.common.files import read_jsonl
from rankwright.common.stats import Difference, holm, paired_difference, randomisation_test
from rankwright.data.collection import Collection
from rankwright.data.normalisation import normalised_key
from rankwright.data.store.views import get_many
from rankwright.data.words import Words
from rankwright.retrieval.candidates import Candidate

if TYPE_CHECKING:
    from rankwright.model.prompt import PromptEncoder

FILE = "queries.jsonl"
# Documents handed to the tokenizer at once. Only their lengths are kept.
BATCH = 512
# A mean over fewer queries tells nothing. It is shown without an interval.
SMALL = 10
# For intervals and tests. There are many slices, and each is only a hint.
RESAMPLES = 1999
ALPHA = 0.05

Seen = Literal["unseen", "partly", "seen"]
# Query id -> value of one measure.
Values = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class QueryAttributes:
    """One test query with its candidates and its relevant documents.

    query_tokens, document_tokens_*: tokens of the texts alone, before any cut; None without candidates
    candidates_cut: number of candidates beyond the prompt's budget, whatever prompt.long_documents reads of them;
        relevant_cut: of relevant ones among them
    overlap: share of the query's distinct BM25 words that a relevant document has; None for a query without words
    domain: from the set's card, or the set's name where there is no card
    relevant: number of relevant documents; relevant_found: of those among the candidates; relevant_seen: of those
        whose text (as normalisation.normalised compares it) is relevant to a train query; seen: the latter in one word
    """

    query_id: str
    query_tokens: int
    query_cut: bool
    document_tokens_mean: float | None
    document_tokens_max: int | None
    candidates: int
    candidates_cut: int
    relevant_cut: int
    overlap: float | None
    domain: str
    relevant: int
    relevant_found: int
    relevant_seen: int
    seen: Seen


def attributes(
    collection: Collection,
    candidates: Mapping[str, Sequence[Candidate]],
    encoder: PromptEncoder,
    words: Words,
    seen_texts: frozenset[bytes],
    domain: str,
    level: int = 1,
) -> list[QueryAttributes]:
    """The attributes of each query that has a list of candidates, which may be empty; sorted by query id.

    level: the lowest label that is relevant, see metrics.Scale.
    """
    ids = sorted({c.document_id for found in candidates.values() for c in found})
    lengths = _document_tokens(ids, collection.corpus, encoder)
    rows = []
    for query_id in sorted(q for q in candidates if q in collection.queries):
        query, listed = collection.queries[query_id], [c.document_id for c in candidates[query_id]]
        head, query_cut = encoder.encode_head(query)
        budget = encoder.contract.max_tokens - len(head) - encoder.line_tokens - len(encoder.suffix_ids)
        cut = {d for d in listed if lengths[d] > budget}
        relevant = sorted(collection.positives(query_id, level))
        query_words = set(words(query))
        document_words = {word for d in relevant for word in words(collection.corpus[d])}
        seen = sum(normalised_key(collection.corpus[d]) in seen_texts for d in relevant)
        tokens = [lengths[d] for d in listed]
        rows.append(
            QueryAttributes(
                query_id=query_id,
                query_tokens=len(encoder.tokenizer(encoder.clean(query), add_special_tokens=False)["input_ids"]),
                query_cut=query_cut,
                document_tokens_mean=round(sum(tokens) / len(tokens), 2) if tokens else None,
                document_tokens_max=max(tokens, default=None),
                candidates=len(listed),
                candidates_cut=len(cut),
                relevant_cut=len(cut & set(relevant)),
                overlap=round(len(query_words & document_words) / len(query_words), 4) if query_words else None,
                domain=domain,
                relevant=len(relevant),
                relevant_found=len(set(listed) & set(relevant)),
                relevant_seen=seen,
                seen="unseen" if seen == 0 else "seen" if seen == len(relevant) else "partly",
            )
        )
    return rows


def seen_in_training(train: Sequence[Collection]) -> frozenset[bytes]:
    """The normalisation.normalised_key of all texts that are relevant to some train query."""
    return frozenset(normalised_key(c.corpus[d]) for c in train for q in c.queries for d in c.positives(q))


def read_attributes(path: Path) -> list[QueryAttributes]:
    """What write_attributes wrote. Raises UserError with file and line for anything else."""
    what = "a row of query attributes, delete the file and give `rankwright run` again"
    return list(read_jsonl(path, lambda row: QueryAttributes(**row), what))


def _document_tokens(ids: Sequence[str], corpus: Mapping[str, str], encoder: PromptEncoder) -> dict[str, int]:
    """Document id -> number of tokens before any cut, as the prompt counts them."""
    lengths: dict[str, int] = {}
    with console.progress("lengths of the candidates", len(ids)) as advance:
        for start in range(0, len(ids), BATCH):
            batch = ids[start : start + BATCH]
            found = encoder.encode_documents(get_many(corpus, batch))
            lengths |= {d: len(tokens) for d, tokens in zip(batch, found, strict=True)}
            advance(len(batch))
    return lengths


@dataclass(frozen=True, slots=True)
class Attribute:
    """What queries are divided by. bins: labels in the order of the table; bin_of: None where the value is unknown."""

    name: str
    bins: tuple[str, ...]
    bin_of: Callable[[QueryAttributes], str | None]


@dataclass(frozen=True, slots=True)
class Slice:
    """The queries of one bin. means: system -> mean; difference, p: of tuned - base, None below SMALL queries."""

    attribute: str
    label: str
    queries: int
    means: Mapping[str, float]
    gain: float | None
    difference: Difference | None
    p: float | None
    p_holm: float | None


@dataclass(frozen=True, slots=True)
class SliceTable:
    """All slices of some queries.

    one_bin: attribute -> the bin that holds every query, for attributes that divide nothing
    comparisons: how many p values were adjusted together; standing: how many are still <= ALPHA after that
    """

    slices: tuple[Slice, ...]
    one_bin: Mapping[str, str]
    comparisons: int
    standing: int


def ranges(edges: Sequence[int]) -> tuple[tuple[str, ...], Callable[[float | None], str | None]]:
    """Labels of bins of whole numbers, and the function from number to label: (8, 16) -> `1 to 8`, `9 to 16`, ..."""
    starts = [1, *(edge + 1 for edge in edges[:-1])]
    labels = [f"{a} to {b}" if a < b else str(a) for a, b in zip(starts, edges, strict=True)]
    labels.append(f"more than {edges[-1]}")

    def bin_of(value: float | None) -> str | None:
        if value is None:
            return None
        return labels[next((n for n, edge in enumerate(edges) if value <= edge), len(edges))]

    return tuple(labels), bin_of


_QUERY, _query = ranges((8, 16, 32, 64))
_DOCUMENT, _document = ranges((64, 128, 256, 512))
_RELEVANT, _relevant = ranges((1, 3, 9))
_CUT = ("no candidate", "some candidates, none of them relevant", "a relevant one")
_OVERLAP = ("below 25 %", "25 to 50 %", "50 to 75 %", "75 % or more")
_SEEN = {"unseen": "none seen", "partly": "some seen", "seen": "all seen"}
_FOUND = ("none found", "some found", "all found")


def _cut(row: QueryAttributes) -> str:
    return _CUT[2 if row.relevant_cut else 1 if row.candidates_cut else 0]


def _overlap(row: QueryAttributes) -> str | None:
    return None if row.overlap is None else _OVERLAP[min(3, int(row.overlap * 4))]


def _found(row: QueryAttributes) -> str:
    return _FOUND[0 if row.relevant_found == 0 else 2 if row.relevant_found == row.relevant else 1]


ATTRIBUTES = (
    Attribute("query length, tokens", _QUERY, lambda row: _query(row.query_tokens)),
    Attribute("mean length of the candidates, tokens", _DOCUMENT, lambda row: _document(row.document_tokens_mean)),
    Attribute("documents beyond the prompt's budget", _CUT, _cut),
    Attribute("query words found in its relevant documents", _OVERLAP, _overlap),
    Attribute("relevant documents seen in training", tuple(_SEEN.values()), lambda row: _SEEN[row.seen]),
    Attribute("number of relevant documents", _RELEVANT, lambda row: _relevant(row.relevant)),
    Attribute("relevant documents found by the first stage", _FOUND, _found),
)


def domain_attribute(rows: Iterable[QueryAttributes]) -> Attribute:
    """The domain. Its bins are the domains that occur."""
    return Attribute("domain", tuple(dict.fromkeys(row.domain for row in rows)), lambda row: row.domain)


def set_attribute(sets: Mapping[str, str]) -> Attribute:
    """The test set. sets: query id -> its set."""
    return Attribute("test set", tuple(dict.fromkeys(sets.values())), lambda row: sets[row.query_id])


def divide(rows: Sequence[QueryAttributes], attribute: Attribute) -> dict[str, list[str]]:
    """Bin -> its query ids, in the order of the bins, without empty bins. Unknown values have a bin of their own."""
    found: dict[str, list[str]] = {label: [] for label in (*attribute.bins, "not known")}
    for row in rows:
        found[attribute.bin_of(row) or "not known"].append(row.query_id)
    return {label: ids for label, ids in found.items() if ids}


def slice_table(
    rows: Sequence[QueryAttributes],
    systems: Mapping[str, Values],
    *,
    attributes: Sequence[Attribute] = ATTRIBUTES,
    seed: int = 0,
) -> SliceTable:
    """Every slice of the queries that all systems have. systems: system -> query id -> value of one measure.

    The p values of tuned - base (paired randomisation test) are adjusted by Holm's method over all slices of the
    table. Queries without attributes, and attributes without values, are left out.
    """
    known = [row for row in rows if all(row.query_id in values for values in systems.values())]
    one_bin: dict[str, str] = {}
    drafts: list[tuple[str, str, list[str]]] = []
    for attribute in attributes:
        bins = divide(known, attribute)
        if len(bins) == 1:
            one_bin[attribute.name] = next(iter(bins))
        elif bins:
            drafts += [(attribute.name, label, ids) for label, ids in bins.items()]
    both = "base" in systems and "tuned" in systems
    compared: dict[tuple[str, str], tuple[Difference, float]] = {}
    for name, label, ids in drafts:
        if both and len(ids) >= SMALL:
            before, after = ({q: systems[s][q] for q in ids} for s in ("base", "tuned"))
            difference = paired_difference(before, after, resamples=RESAMPLES, seed=seed)
            compared[name, label] = difference, randomisation_test(before, after, resamples=RESAMPLES, seed=seed)
    adjusted = holm({key: p for key, (_, p) in compared.items()})
    slices = []
    for name, label, ids in drafts:
        means = {s: sum(values[q] for q in ids) / len(ids) for s, values in systems.items()}
        gain = means["tuned"] - means["base"] if both else None
        interval, p = compared.get((name, label), (None, None))
        slices.append(Slice(name, label, len(ids), means, gain, interval, p, adjusted.get((name, label))))
    standing = sum(p <= ALPHA for p in adjusted.values())
    return SliceTable(tuple(slices), one_bin, len(adjusted), standing)
