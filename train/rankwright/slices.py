"""Slices of the test queries: fixed bins of what is known of them, with the gain of tuned over base in each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rankwright.query_attributes import QueryAttributes
from rankwright.stats import Difference, holm, paired_difference, randomisation_test

# Fewer queries say nothing about a mean: they are shown without an interval.
SMALL = 10
# Of the intervals and tests: there are many slices, and each is only a hint.
RESAMPLES = 1999
ALPHA = 0.05

Values = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Attribute:
    """What queries are divided by. bins: labels in the order of the table; bin_of: None where nothing is known."""

    name: str
    bins: tuple[str, ...]
    bin_of: Callable[[QueryAttributes], str | None]


@dataclass(frozen=True, slots=True)
class Slice:
    """The queries of one bin. means: system -> mean; difference, p: tuned - base, None for fewer than SMALL queries."""

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
    """All slices of some queries. one_bin: attribute -> the bin that holds every query: it divides nothing.

    comparisons: how many p values were adjusted together; standing: those still <= ALPHA after that.
    """

    slices: tuple[Slice, ...]
    one_bin: Mapping[str, str]
    comparisons: int
    standing: int


def ranges(edges: Sequence[int]) -> tuple[tuple[str, ...], Callable[[float | None], str | None]]:
    """Labels and their function for whole numbers: (8, 16) -> `1 to 8`, `9 to 16`, `more than 16`."""
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
_CUT = ("no candidate cut", "cut, but no relevant one", "a relevant one cut")
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
    Attribute("cut at the prompt's budget", _CUT, _cut),
    Attribute("query words found in its relevant documents", _OVERLAP, _overlap),
    Attribute("relevant documents seen in training", tuple(_SEEN.values()), lambda row: _SEEN[row.seen]),
    Attribute("number of relevant documents", _RELEVANT, lambda row: _relevant(row.relevant)),
    Attribute("relevant documents found by the first stage", _FOUND, _found),
)


def domain_attribute(rows: Iterable[QueryAttributes]) -> Attribute:
    """The domain tag, whose bins are the tags that occur."""
    return Attribute("domain", tuple(dict.fromkeys(row.domain for row in rows)), lambda row: row.domain)


def set_attribute(sets: Mapping[str, str]) -> Attribute:
    """The test set. sets: query -> its set."""
    return Attribute("test set", tuple(dict.fromkeys(sets.values())), lambda row: sets[row.query_id])


def divide(rows: Sequence[QueryAttributes], attribute: Attribute) -> dict[str, list[str]]:
    """Bin -> its query ids, in the order of the bins, without empty ones; unknown values are a bin of their own."""
    found: dict[str, list[str]] = {label: [] for label in (*attribute.bins, "not known")}
    for row in rows:
        found[attribute.bin_of(row) or "not known"].append(row.query_id)
    return {label: ids for label, ids in found.items() if ids}


def slice_table(
    rows: Sequence[QueryAttributes],
    systems: Mapping[str, Values],
    *,
    attributes: Sequence[Attribute] = ATTRIBUTES,
    base: str = "base",
    tuned: str = "tuned",
    seed: int = 0,
) -> SliceTable:
    """Every slice of the queries that all systems have; system -> query id -> value of one measure.

    The p values of tuned - base (paired randomisation test) are adjusted by Holm's method over all slices of
    the table. Queries without attributes, and attributes without values, are left out.
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
    both = base in systems and tuned in systems
    compared: dict[tuple[str, str], tuple[Difference, float]] = {}
    for name, label, ids in drafts:
        if both and len(ids) >= SMALL:
            before, after = ({q: systems[s][q] for q in ids} for s in (base, tuned))
            difference = paired_difference(before, after, resamples=RESAMPLES, seed=seed)
            compared[name, label] = difference, randomisation_test(before, after, resamples=RESAMPLES, seed=seed)
    adjusted = holm({key: p for key, (_, p) in compared.items()})
    slices = []
    for name, label, ids in drafts:
        means = {s: sum(values[q] for q in ids) / len(ids) for s, values in systems.items()}
        gain = means[tuned] - means[base] if both else None
        interval, p = compared.get((name, label), (None, None))
        slices.append(Slice(name, label, len(ids), means, gain, interval, p, adjusted.get((name, label))))
    standing = sum(p <= ALPHA for p in adjusted.values())
    return SliceTable(tuple(slices), one_bin, len(adjusted), standing)
