"""Groups for make.py: a query, its document and wrong ones, drawn and turned into tensors."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from corpus import OPENERS, QUERY_TOKENS, STOP, WORD, Document, Lexicon, random_word, words
from tokenizers import Tokenizer
from torch import Tensor

INFLECTIONS = ("s", "ed", "ing", "er")
DOCUMENTS = 8  # in a training group: 1 right, 7 wrong


@dataclass(frozen=True, slots=True)
class Frame:
    """Token ids around query and document."""

    prefix: list[int]
    middle: list[int]
    suffix: list[int]
    pad: int


@dataclass(frozen=True, slots=True)
class Group:
    """A query with its documents, the first of them right."""

    query: str
    documents: list[Document]
    teacher: float  # share of BM25's opinion in the target


@dataclass(frozen=True, slots=True)
class Batch:
    """G groups of N documents. Heads are padded on the left and shared by a group; documents on the right."""

    heads_GH: Tensor
    real_GH: Tensor
    documents_BD: Tensor  # B = G * N
    last_B: Tensor
    target_GN: Tensor
    match_BD: Tensor  # 1 where a word of the query ends, 0 for other words, -1 for no label


def encode_query(tokenizer: Tokenizer, frame: Frame, query: str) -> list[int]:
    """The head: frame, query, up to the document's place."""
    return frame.prefix + tokenizer.encode(query.strip()).ids[:QUERY_TOKENS] + frame.middle


def collate(groups: Sequence[Group], lexicon: Lexicon, frame: Frame, length: int) -> Batch:
    """Tensors of groups of equal size; documents are cut to `length` tokens."""
    heads = [encode_query(lexicon.tokenizer, frame, g.query) for g in groups]
    widest = max(map(len, heads))
    heads_GH = np.full((len(groups), widest), frame.pad, np.int64)
    real_GH = np.zeros((len(groups), widest), bool)
    for row, head in enumerate(heads):
        heads_GH[row, widest - len(head) :] = head
        real_GH[row, widest - len(head) :] = True
    size = len(groups[0].documents)
    longest = min(length, max(len(d.ids) for g in groups for d in g.documents))
    documents_BD = np.full((len(groups) * size, longest + len(frame.suffix)), frame.pad, np.int64)
    match_BD = np.full(documents_BD.shape, -1, np.int64)
    last_B = np.zeros(len(documents_BD), np.int64)
    target_GN = np.zeros((len(groups), size), np.float32)
    for g, group in enumerate(groups):
        stems = lexicon.ids_of(words(group.query))
        scores = np.array([lexicon.score(stems, d) for d in group.documents])
        soft = np.exp((scores - scores.max()) / 2)
        target_GN[g] = group.teacher * soft / soft.sum()
        target_GN[g, 0] += 1 - group.teacher
        for n, document in enumerate(group.documents):
            row, cut = g * size + n, min(length, len(document.ids))
            end = cut + len(frame.suffix)
            documents_BD[row, :end] = [*document.ids[:cut], *frame.suffix]
            matched = np.isin(document.stems[:cut], stems)
            match_BD[row, :cut] = np.where(document.whole[:cut] == 1, matched, -1)
            last_B[row] = end - 1
    arrays = heads_GH, real_GH, documents_BD, last_B, target_GN, match_BD
    return Batch(*(torch.from_numpy(a) for a in arrays))


class Sampler:
    """Draws training groups: docstring and code, inverse cloze, and made-up word lists."""

    def __init__(self, lexicon: Lexicon, seed: int) -> None:
        self.lexicon = lexicon
        self.rng = Random(seed)
        self.asked = [n for n, d in enumerate(lexicon.documents) if d.queries]
        self.general = [n for n, d in enumerate(lexicon.documents) if d.source.startswith("texts/")]
        self.kinds: defaultdict[str, list[int]] = defaultdict(list)
        self.modules: defaultdict[str, list[int]] = defaultdict(list)
        for number, document in enumerate(lexicon.documents):
            self.kinds[document.kind].append(number)
            self.modules[document.source].append(number)
        found = {w.lower() for d in lexicon.documents for w in WORD.findall(d.text)}
        self.pool = sorted(w for w in found if len(w) > 2 and w not in STOP)

    def group(self, progress: float, length: int) -> Group:
        """One group; progress (0 to 1) moves from word matching and easy documents to pairs and hard ones."""
        kind, teacher = self.rng.random(), 0.5 - 0.4 * progress
        if kind < 0.35 - 0.2 * progress:
            return self._made_up()
        if kind < 0.65 - 0.15 * progress:
            number = self.rng.randrange(len(self.lexicon.documents))
            if self.rng.random() < 0.12 and self.general:
                number = self.rng.choice(self.general)
            query, document = self._cloze(self.lexicon.documents[number], length)
        else:
            number = self.rng.choice(self.asked)
            document = self.lexicon.documents[number]
            query = self._vary(self.rng.choice(document.queries))
        negatives = self._negatives(query, number, 0.1 + 0.5 * progress)
        return Group(query, [document, *negatives], teacher)

    def _vary(self, query: str) -> str:
        """Case and full stop are not to matter."""
        if "\n" not in query and self.rng.random() < 0.5:
            query = query.lower()
        return query.rstrip(".") if self.rng.random() < 0.5 else query

    def _inflect(self, word: str) -> str:
        if self.rng.random() > 0.25:
            return word
        for ending in ("s", "ed", "ing"):
            if word.endswith(ending) and len(word) > len(ending) + 2:
                return word[: -len(ending)]
        return word.removesuffix("e") + self.rng.choice(INFLECTIONS)

    def _cloze(self, document: Document, length: int) -> tuple[str, Document]:
        """A sentence out of a document with the rest of it, or some of its words with all of it."""
        pieces = re.split(r"(?<=[.!?;:])\s+|\n+", document.text[: length * 4])
        sentences = [s for s in pieces if len(s.split()) > 3]
        if len(sentences) > 2 and self.rng.random() < 0.5:
            sentence = self.rng.choice(sentences)
            if self.rng.random() < 0.6:
                rest = " ".join(s for s in sentences if s != sentence)
                document = self.lexicon.encode(Document(rest, document.source, document.kind))
            chosen = sentence.split()
            start = self.rng.randrange(max(1, len(chosen) - 10))
            return self._vary(" ".join(chosen[start : start + 20])), document
        found = [w for w in WORD.findall(document.text[: length * 3]) if len(w) > 2 and w.lower() not in STOP]
        if not found:
            return document.text[:40], document
        chosen = self.rng.sample(found, min(len(found), self.rng.randint(1, 6)))
        query = " ".join(self._inflect(w.lower()) for w in chosen)
        return (f"{self.rng.choice(OPENERS)} {query}" if self.rng.random() < 0.3 else query), document

    def _made_up(self) -> Group:
        """Lists of unrelated words: only matching helps, and every token of the vocabulary takes part."""
        rng = self.rng
        asked = [random_word(rng, self.pool) for _ in range(rng.randint(1, 5))]
        documents = []
        for number in range(DOCUMENTS):
            inside = [random_word(rng, self.pool) for _ in range(rng.randint(10, 40))]
            kept = asked if number == 0 else rng.sample(asked, rng.randrange(len(asked)))
            for word in kept:
                inside.insert(rng.randrange(len(inside) + 1), word)
            text = " ".join(w.capitalize() if rng.random() < 0.15 else w for w in inside)
            documents.append(self.lexicon.encode(Document(text, "", "prose")))
        return Group(" ".join(self._inflect(w) for w in asked), documents, 0.3)

    def _negatives(self, query: str, number: int, hard: float) -> list[Document]:
        """Wrong documents of the same kind: lexically near with probability `hard`, same module, or any."""
        rng, documents = self.rng, self.lexicon.documents
        right = documents[number]
        near = []
        for n in self.lexicon.search(self.lexicon.ids_of(words(query)), 60):
            also_right = n == number or not set(right.queries).isdisjoint(documents[n].queries)
            if documents[n].kind == right.kind and not also_right:
                near.append(n)
        chosen: list[Document] = []
        for _ in range(DOCUMENTS - 1):
            draw = rng.random()
            pool = near if draw < hard else self.modules[right.source] if draw < hard + 0.15 else []
            other = rng.choice(pool or self.kinds[right.kind])
            if documents[other].kind != right.kind or other == number:
                other = rng.choice([n for n in rng.sample(self.kinds[right.kind], 2) if n != number])
            chosen.append(documents[other])
        return chosen


def held_out_groups(lexicon: Lexicon, most: int) -> dict[str, list[Group]]:
    """Each of the lexicon's documents with 19 others: drawn at random, and BM25's best."""
    rng, documents = Random(7), lexicon.documents
    chosen = rng.sample(range(len(documents)), min(most, len(documents)))
    groups: dict[str, list[Group]] = {"random": [], "bm25": []}
    for number in chosen:
        right, query = documents[number], documents[number].queries[0]
        others = [n for n in range(len(documents)) if n != number and query not in documents[n].queries]
        drawn = rng.sample(others, min(19, len(others)))
        near = [n for n in lexicon.search(lexicon.ids_of(words(query)), 40) if n in set(others)]
        near = (near + [n for n in drawn if n not in near])[: len(drawn)]
        for name, picked in (("random", drawn), ("bm25", near)):
            groups[name].append(Group(query, [right, *(documents[n] for n in picked)], 0.0))
    return groups
