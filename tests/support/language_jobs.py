"""Texts of tokens for language modelling, and the set of PAIRS as one whose queries have a relevant document each."""

from __future__ import annotations

import itertools

import torch
from tiny import PAIRS

from rankwright.data.collection import Collection
from rankwright.model.text_blocks import Draws, Texts


def random_blocks(count: int, *, length: int = 48, vocabulary: int = 600, seed: int = 0) -> list[Texts]:
    """Blocks of `length` tokens, each of two or three texts of unequal length."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        ids = torch.randint(1, vocabulary, (length,), generator=generator).tolist()
        cuts = [0, 9 + number, *([30] if number % 2 else []), length]
        found.append([ids[a:b] for a, b in itertools.pairwise(cuts)])
    return found


def random_draws(a_step: int) -> Draws:
    """Five blocks of text and two to replay."""
    return Draws(random_blocks(5), random_blocks(2, seed=1), share=0.3, a_step=a_step, seed=0)


def collection() -> Collection:
    """Queries q0, q1, ... with the document of their pair, and q0 with that of q3 too."""
    corpus = {f"d{n}": document for n, (_, document) in enumerate(PAIRS)}
    queries = {f"q{n}": query for n, (query, _) in enumerate(PAIRS)}
    qrels = {f"q{n}": {f"d{n}": 1.0} for n in range(len(PAIRS))}
    qrels["q0"]["d3"] = 1.0
    return Collection("pairs", corpus, queries, qrels)
