"""Which passages queries are written for: round the clusters of a corpus, so that no subject takes all of them.

Source: Chandradevan et al. 2024, arXiv 2404.02489 (DUQGen), where the clusters are those of dense vectors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rankwright.common.hashing import stable_hash
from rankwright.data.passages import Passage
from rankwright.data.words import Words

DIMENSIONS, MOST_CLUSTERS, PER_CLUSTER, ROUNDS = 64, 1000, 5, 20
# Vectors whose distances to all centres are held at once.
AT_ONCE = 4096

Vectors = npt.NDArray[np.float64]


def sample(passages: Sequence[Passage], count: int, clusters: int | None, seed: int, words: Words) -> list[Passage]:
    """At most `count` passages, by id: one of each cluster in turn, in an order by a hash with the seed.

    clusters: None for a fifth of the passages, at most MOST_CLUSTERS. The order of `passages` does not matter.
    """
    found = sorted(passages, key=lambda p: p.id)
    if len(found) <= count:
        return found
    order = {p.id: stable_hash("sample", seed, p.id) for p in found}
    most = clusters or min(MOST_CLUSTERS, max(1, len(found) // PER_CLUSTER))
    labels = cluster(vectors([words(p.text) for p in found]), most, [order[p.id] for p in found])
    turns: Counter[int] = Counter()
    places: dict[str, tuple[int, int]] = {}
    for passage, label in sorted(zip(found, labels, strict=True), key=lambda pair: (order[pair[0].id], pair[0].id)):
        places[passage.id] = turns[label], order[passage.id]
        turns[label] += 1
    chosen = sorted(found, key=lambda p: places[p.id])[:count]
    return sorted(chosen, key=lambda p: p.id)


def vectors(texts: Sequence[Sequence[str]]) -> Vectors:
    """TF-IDF of the words in DIMENSIONS by a truncated SVD, each of length 1 [texts, dimensions]."""
    # Seconds to import, and only needed here.
    from scipy.sparse import csr_array
    from scipy.sparse.linalg import svds

    vocabulary: dict[str, int] = {}
    rows, columns, values = [], [], []
    for row, text in enumerate(texts):
        for word, times in Counter(text).items():
            rows.append(row)
            columns.append(vocabulary.setdefault(word, len(vocabulary)))
            values.append(1 + np.log(times))
    matrix = csr_array((values, (rows, columns)), shape=(len(texts), max(len(vocabulary), 1)), dtype=np.float64)
    often = np.bincount(columns, minlength=matrix.shape[1])
    matrix = matrix * np.log(1 + len(texts) / np.maximum(often, 1))[None, :]
    found = csr_array(matrix)
    size = min(DIMENSIONS, min(found.shape) - 1)
    if size < 1:
        return np.zeros((len(texts), 1))
    left, strength, _ = svds(found, k=size, v0=np.ones(min(found.shape)))
    made = np.asarray(left * strength, dtype=np.float64)
    made /= np.maximum(np.linalg.norm(made, axis=1, keepdims=True), 1e-12)
    return made


def cluster(points: Vectors, count: int, order: Sequence[int]) -> list[int]:
    """The cluster of each point, by k-means (Lloyd) from the first `count` points in their order."""
    firsts = sorted(range(len(points)), key=lambda n: order[n])[:count]
    centres = points[firsts].copy()
    labels = np.full(len(points), -1)
    for _ in range(ROUNDS):
        nearest = np.concatenate(
            [
                (points[begin : begin + AT_ONCE] @ centres.T - (centres**2).sum(axis=1) / 2).argmax(axis=1)
                for begin in range(0, len(points), AT_ONCE)
            ]
        )
        if (nearest == labels).all():
            break
        labels = nearest
        sums = np.zeros_like(centres)
        np.add.at(sums, labels, points)
        sizes = np.bincount(labels, minlength=len(centres))
        centres[sizes > 0] = sums[sizes > 0] / sizes[sizes > 0, None]
    return [int(label) for label in labels]
