"""Exact and near duplicates inside a set of texts and between two: MinHash LSH, every hit verified by true Jaccard."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from datasketch import LeanMinHash, MinHash, MinHashLSH

from rankwright.common.hashing import text_key
from rankwright.data import shingles
from rankwright.data.normalisation import normalised
from rankwright.data.shingles import Hashes, Vocabulary
from rankwright.data.store.views import read_some

# Jaccard similarity from which two documents' shingles make them near duplicates. Queries (see QUERY) need less, since
# one word more in twenty changes two of their shingles; the words that matter are compared as well.
NEAR = 0.8
NEAR_QUERY = 0.7
# Bands and rows of the signatures: two texts of similarity 0.8 share a band with a probability of 0.99995, of 0.7
# with 0.99; pairs below the threshold are thrown out. Bands are indexed a few at a time, to bound the memory.
BANDS, ROWS, BANDS_AT_ONCE = 25, 5, 5
SEED = 1
# The signature estimates the similarity with a standard deviation of 0.036 at 0.8: hits six of them below are not
# compared shingle by shingle.
MARGIN = 0.22

Signatures = npt.NDArray[np.uint32]
Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Kind:
    """What makes two texts duplicates: equal results of `exact`, or near shingles that `accept` confirms."""

    exact: Callable[[str], str]
    shingles: Callable[[str, Vocabulary], Hashes]
    threshold: float
    accept: Callable[[str, str], bool] | None = None


TEXT = Kind(normalised, shingles.prose_shingles, NEAR)
CODE = Kind(lambda text: "\n".join(shingles.code_tokens(text)), shingles.code_shingles, NEAR)
QUERY = Kind(normalised, shingles.query_shingles, NEAR_QUERY, shingles.same_question)


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Groups of at least two ids, in the order of ids; what is in no group has no duplicate.

    exact: texts that are equal once normalised; texts without content are in no group
    near: the first id of every different text; each is a near duplicate of at least one other in its group
    """

    exact: list[tuple[str, ...]]
    near: list[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Shared:
    """All pairs (id of ours, id of theirs), sorted; near ones are not exact ones."""

    exact: list[tuple[str, str]]
    near: list[tuple[str, str]]


def find_duplicates(
    texts: Mapping[str, str], *, code: bool, kind: Kind | None = None, advance: Advance | None = None
) -> Duplicates:
    """Duplicates among documents, by id; `kind=QUERY` for queries. The order of `texts` does not matter.

    advance: called with the number of texts done, len(texts) in all.
    """
    kind = kind or (CODE if code else TEXT)
    groups = _by_exact(texts, kind)
    sketches = _Sketches(texts, [ids[0] for ids in groups], kind, advance)
    joined = _Joined(len(sketches.ids))
    for same in sketches.equal_sets().values():
        for other in same[1:]:
            if _alike(sketches, same[0], sketches, other):
                joined.join(same[0], other)
    for bucket in _buckets(sketches):
        _join_bucket(bucket, sketches, joined)
    near = [tuple(sorted(sketches.ids[i] for i in members)) for members in joined.members.values()]
    return Duplicates(sorted(ids for ids in groups if len(ids) > 1), sorted(near))


def find_shared(ours: Mapping[str, str], theirs: Mapping[str, str], *, kind: Kind) -> Shared:
    """What two sets share; both may use the same ids. Symmetric, and independent of the order of either."""
    our_groups, their_groups = (_by_exact(texts, kind) for texts in (ours, theirs))
    by_key = {text_key(kind.exact(theirs[ids[0]])): ids for ids in their_groups}
    exact = []
    for ids in our_groups:
        exact += [(a, b) for a in ids for b in by_key.get(text_key(kind.exact(ours[ids[0]])), ())]
    ours_of, theirs_of = ({ids[0]: ids for ids in groups} for groups in (our_groups, their_groups))
    one = _Sketches(ours, ours_of, kind, None)
    other = _Sketches(theirs, theirs_of, kind, None)
    equal = set(exact)
    near = []
    for i, j in _meetings(one, other):
        a, b = one.ids[i], other.ids[j]
        if (a, b) not in equal and _alike(one, i, other, j):
            near += [(x, y) for x in ours_of[a] for y in theirs_of[b]]
    return Shared(sorted(exact), sorted(near))


def _by_exact(texts: Mapping[str, str], kind: Kind) -> list[tuple[str, ...]]:
    """Ids of equal texts together, sorted; texts without content are left out."""
    found: dict[bytes, list[str]] = {}
    for i, text in texts.items():
        if key := kind.exact(text):
            found.setdefault(text_key(key), []).append(i)
    return [tuple(sorted(ids)) for ids in found.values()]


class _Sketches:
    """The shingles of texts, one behind the other, and a MinHash signature for each text that has several.

    ids: those of `texts` that are compared. The texts are not copied; they may lie in a file.
    """

    def __init__(self, texts: Mapping[str, str], ids: Iterable[str], kind: Kind, advance: Advance | None) -> None:
        self.ids, self.texts, self.kind = sorted(ids), texts, kind
        vocabulary, empty = Vocabulary(), MinHash(BANDS * ROWS, seed=SEED, hashfunc=int)
        parts: list[Hashes] = []
        self.signatures: Signatures = np.zeros((len(self.ids), BANDS * ROWS), np.uint32)
        for row, (_, text) in enumerate(read_some(texts, self.ids)):
            parts.append(kind.shingles(text, vocabulary))
            if len(parts[-1]) > 1:
                sketch = empty.copy()
                # The lower half of a shingle's 64 bits, which datasketch mixes once more; the comparison takes all.
                sketch.update_batch((parts[-1] & np.uint64(0xFFFFFFFF)).tolist())
                self.signatures[row] = sketch.hashvalues
            if advance:
                advance(1)
        self.offsets = np.cumsum([0, *map(len, parts)])
        self.flat: Hashes = np.concatenate([*parts, np.empty(0, np.uint64)])

    def of(self, row: int) -> Hashes:
        return self.flat[self.offsets[row] : self.offsets[row + 1]]

    @property
    def several(self) -> list[int]:
        """Rows with more than one shingle: a text with one is a duplicate only of texts with the same set."""
        return [int(row) for row in np.flatnonzero(np.diff(self.offsets) > 1)]

    def equal_sets(self) -> dict[bytes, list[int]]:
        """Rows with the same set of shingles, together; there are many where texts differ in punctuation."""
        found: dict[bytes, list[int]] = {}
        for row in range(len(self.ids)):
            if len(shingles_of := self.of(row)):
                found.setdefault(hashlib.blake2b(shingles_of.tobytes(), digest_size=16).digest(), []).append(row)
        return found


def _index(sketches: _Sketches) -> Iterator[tuple[slice, MinHashLSH]]:
    """Some bands at a time: the columns of the signatures, and an index of all rows with several shingles."""
    rows = sketches.several
    for first in range(0, BANDS, BANDS_AT_ONCE):
        columns = slice(first * ROWS, (first + BANDS_AT_ONCE) * ROWS)
        index = MinHashLSH(num_perm=BANDS_AT_ONCE * ROWS, params=(BANDS_AT_ONCE, ROWS))
        for row in rows:
            index.insert(row, _lean(sketches, row, columns), check_duplication=False)
        yield columns, index


def _lean(sketches: _Sketches, row: int, columns: slice) -> LeanMinHash:
    return LeanMinHash(seed=SEED, hashvalues=sketches.signatures[row, columns], scheme="affine32")


def _buckets(sketches: _Sketches) -> Iterator[npt.NDArray[np.int64]]:
    """Rows that share a band."""
    for _, index in _index(sketches):
        for table in index.hashtables:
            for key in table.keys():  # noqa: SIM118 - a storage of datasketch, not a dict
                rows = table.get(key)
                if len(rows) > 1:
                    yield np.array(sorted(rows))


def _meetings(one: _Sketches, other: _Sketches) -> list[tuple[int, int]]:
    """Pairs of rows, one of each side, with equal shingles or a band in common."""
    equal = other.equal_sets()
    found = {(i, j) for key, rows in one.equal_sets().items() for i in rows for j in equal.get(key, ())}
    for columns, index in _index(other):
        for i in one.several:
            found |= {(i, j) for j in index.query(_lean(one, i, columns))}
    return sorted(found)


def jaccard(one: Hashes, other: Hashes) -> float:
    """Size of the intersection over that of the union of two sets of shingles."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)


def _alike(one: _Sketches, i: int, other: _Sketches, j: int) -> bool:
    if jaccard(one.of(i), other.of(j)) < one.kind.threshold:
        return False
    return one.kind.accept is None or one.kind.accept(one.texts[one.ids[i]], other.texts[other.ids[j]])


class _Joined:
    """Rows joined to groups: one label per row, in an array, so that whole buckets are looked up at once."""

    def __init__(self, count: int) -> None:
        self.labels = np.arange(count)
        self.members: dict[int, list[int]] = {}

    def join(self, row: int, other: int) -> None:
        small, large = (int(self.labels[r]) for r in (row, other))
        if small == large:
            return
        members = [self.members.pop(label, [label]) for label in (small, large)]
        # The smaller group takes the larger one's label.
        members.sort(key=len)
        label = int(self.labels[members[1][0]])
        self.labels[members[0]] = label
        self.members[label] = members[1] + members[0]


def _join_bucket(rows: npt.NDArray[np.int64], sketches: _Sketches, joined: _Joined) -> None:
    """Join the near duplicates among rows; those already in one group are not compared again."""
    if (joined.labels[rows] == joined.labels[rows[0]]).all():
        return
    signatures = sketches.signatures[rows]
    least = (sketches.kind.threshold - MARGIN) * signatures.shape[1]
    for place in range(1, len(rows)):
        row = int(rows[place])
        before = np.flatnonzero(joined.labels[rows[:place]] != joined.labels[row])
        if not len(before):
            continue
        likely = before[(signatures[before] == signatures[place]).sum(axis=1) >= least]
        for other in rows[likely]:
            if joined.labels[other] != joined.labels[row] and _alike(sketches, row, sketches, int(other)):
                joined.join(row, int(other))
