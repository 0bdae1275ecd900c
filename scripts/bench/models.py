"""For bench.py: random models of a given shape, as a base for us and as a cross-encoder for others, and real pairs."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwright.common.resources import resolve_base
from rankwright.data.formats.read import read_collection
from rankwright.export.target import Trained
from rankwright.export.targets import TARGETS
from rankwright.model.loading import load_model, load_tokenizer
from rankwright.model.prompt import PromptContract, make_contract
from rankwright.retrieval.bm25 import bm25

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from random_qwen3 import Shape, random_qwen3

# "wide" is the real 0.6B's layer, four of its 28.
SHAPES = {
    "tiny": Shape(256, 6, 4, 2, 64, 768),
    "small": Shape(512, 12, 8, 4, 64, 1536),
    "wide": Shape(1024, 4, 16, 8, 128, 3072),
}


@dataclass(frozen=True, slots=True)
class Texts:
    """One list: a query with documents, the first of which is relevant."""

    query: str
    documents: list[str]

    @property
    def labels(self) -> list[float]:
        return [1.0] + [0.0] * (len(self.documents) - 1)


def read_lists(folder: Path, *, count: int, documents: int, seed: int) -> list[Texts]:
    """`count` test queries with a relevant document and the best of BM25, `documents` in all."""
    collection = read_collection(folder, name=folder.name, split="test")
    queries = [q for q in collection.queries if collection.positives(q)]
    chosen = random.Random(seed).sample(sorted(queries), count)
    found = bm25(collection.corpus, depth=documents + 5)({q: collection.queries[q] for q in chosen})
    lists = []
    for query_id in chosen:
        positives = collection.positives(query_id)
        others = [c.document_id for c in found[query_id] if c.document_id not in positives]
        ids = [next(iter(positives)), *others][:documents]
        lists.append(Texts(collection.queries[query_id], [collection.corpus[d] for d in ids]))
    return [one for one in lists if len(one.documents) == documents]


def write_models(folder: Path, shape: str, *, max_tokens: int, seed: int = 0) -> tuple[Path, Path]:
    """(base folder, cross-encoder folder) of random weights; the same weights, prompt and tokenizer in both."""
    tokenizer = load_tokenizer(resolve_base("fixtures/tiny-base"))
    lm = random_qwen3(
        SHAPES[shape],
        vocabulary=len(tokenizer) + 64,
        pad_token_id=tokenizer.pad_token_id,
        seed=seed,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    lm.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    contract = make_contract(tokenizer, mode="portable", max_tokens=max_tokens)
    contract.save(folder / "base")
    model = load_model(str(folder / "base"), contract, tokenizer)
    TARGETS["hf"].write(Trained(model, tokenizer, contract, str(folder / "base")), folder / "hf")
    return folder / "base", folder / "hf"


def read_contract(base: Path) -> tuple[PromptContract, Any]:
    """The contract and the tokenizer of a folder of write_models()."""
    contract = PromptContract.load(base)
    assert contract is not None, "write_models() writes it"
    return contract, load_tokenizer(str(base))
