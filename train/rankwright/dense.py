"""Dense retrieval: any bi-encoder of sentence-transformers, searched exactly, its vectors kept on the disk.

Shapes: Q queries of a chunk, D documents of a chunk, E size of a vector.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rankwright import console
from rankwright.errors import UserError
from rankwright.keyed_texts import KeyedTexts
from rankwright.ranking import ranked
from rankwright.resources import resolve_base
from rankwright.retrieve import RETRIEVERS, Candidate
from rankwright.vectors import VectorStore, cache_folder, store_name

QUERIES_AT_ONCE = 256
# The names under which models keep the prompt of either side, as sentence-transformers looks for them.
PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}


def check_installed() -> None:
    """Raises UserError when sentence-transformers is missing."""
    if importlib.util.find_spec("sentence_transformers") is None:
        raise UserError("dense retrieval needs sentence-transformers: pip install 'rankwright[dense]'")


@RETRIEVERS.register
def dense(
    corpus: Mapping[str, str],
    queries: Mapping[str, str],
    *,
    model: str,
    depth: int = 100,
    revision: str | None = None,
    query_prompt: str = "",
    document_prompt: str = "",
    cache: Path | None = None,
) -> dict[str, list[Candidate]]:
    """Nearest documents by the model's own similarity: query id -> `depth` candidates, best first.

    model: a folder or a hub id; query_prompt, document_prompt: text in front, instead of the model's own prompts.
    Every document is scored. Texts are encoded once and kept under `cache` (by default vectors.cache_folder)
    by the content of the weights, the prompt and the text, so that a killed search continues. Neither the order of
    the corpus nor that of the queries matters, equal texts have equal scores; ties by ranking.tie_order.
    Raises UserError when sentence-transformers is missing or the model cannot be loaded.
    """
    if depth < 1:
        raise UserError(f"dense: depth {depth}: needs depth >= 1")
    if not queries or not corpus:
        return {query_id: [] for query_id in queries}
    encoder = BiEncoder(model, revision, {"query": query_prompt, "document": document_prompt})
    folder = (cache or cache_folder()) / "vectors"
    # Distinct and in an order of their own, so that what shares a batch or a product of matrices depends on the texts
    # alone.
    document_texts, query_texts = KeyedTexts(corpus), KeyedTexts(queries)
    documents = _vectors(encoder, "document", document_texts, folder)
    query_vectors = _vectors(encoder, "query", query_texts, folder).read(query_texts)
    search = Search(document_texts.ids, query_texts.ids, depth)
    for start, vectors in documents.chunks(document_texts):
        search.add(start, vectors, query_vectors, encoder.similarity)
    return search.lists()


def _vectors(encoder: BiEncoder, side: str, texts: KeyedTexts, folder: Path) -> VectorStore:
    store = VectorStore(folder / store_name(encoder.fingerprint, {side: encoder.prompts[side]}), console.say)
    missing = store.missing(texts)
    if missing:
        with console.progress(f"encode {side} texts", missing) as advance:
            store.encode_missing(texts, lambda some: encoder.encode(side, some), advance)
    cut = store.cut(texts)
    console.say(
        f"dense: {len(texts):,} distinct {side} texts, {len(texts) - missing:,} of them encoded before"
        + (f"; {cut:,} cut to the {encoder.max_tokens} tokens that the model reads" if cut else "")
    )
    return store


class BiEncoder:
    """A SentenceTransformer with the prompt of either side. prompts: `query` and `document` -> text in front."""

    def __init__(self, model: str, revision: str | None, prompts: Mapping[str, str]) -> None:
        check_installed()
        from sentence_transformers import SentenceTransformer

        folder = resolve_base(model, "dense.model")
        try:
            self._model: Any = SentenceTransformer(folder, revision=revision)
        except (OSError, ValueError, KeyError, ImportError, AttributeError, RuntimeError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(
                f"dense.model {model!r}: cannot be loaded as a sentence-transformers model: {reason[0]}: "
                "give a folder with modules.json, or a hub id"
            ) from None
        self._model.eval()
        own = dict(self._model.prompts or {})
        self.prompts = {
            side: text or next((own[name] for name in PROMPT_NAMES[side] if own.get(name)), "")
            for side, text in prompts.items()
        }
        self.max_tokens: int | None = self._model.max_seq_length
        self.fingerprint = _fingerprint(self._model)

    def encode(self, side: str, texts: Sequence[str]) -> tuple[Any, Any]:
        """(float32 [texts, E], for each text whether it was cut)."""
        encode = self._model.encode_query if side == "query" else self._model.encode_document
        prompt = self.prompts[side]
        vectors = encode(list(texts), prompt=prompt, show_progress_bar=False, convert_to_numpy=True)
        return np.asarray(vectors, dtype=np.float32), self._cut([prompt + text for text in texts])

    def _cut(self, texts: Sequence[str]) -> Any:
        tokenizer = self._model.tokenizer
        # Static models have another kind of tokenizer, and no limit.
        if self.max_tokens is None or not hasattr(tokenizer, "model_max_length"):
            return np.zeros(len(texts), dtype=bool)
        ids = tokenizer(list(texts), truncation=False, verbose=False, return_attention_mask=False)["input_ids"]
        return np.array([len(row) > self.max_tokens for row in ids])

    def similarity(self, queries_QE: Any, documents_DE: Any) -> Any:
        """float32 tensor [Q, D], higher is nearer; on the model's device."""
        import torch

        with torch.inference_mode():
            one, two = (
                torch.from_numpy(np.ascontiguousarray(v)).to(self._model.device) for v in (queries_QE, documents_DE)
            )
            return self._model.similarity(one, two).float()


def _fingerprint(model: Any) -> str:
    """A hash of all that decides a vector but prompt and text: weights, tokenizer, modules and their settings."""
    import torch

    digest = hashlib.sha256()
    for name, module in model.named_children():
        settings = module.get_config_dict() if hasattr(module, "get_config_dict") else {}
        digest.update(f"{name} {type(module).__name__} {json.dumps(settings, sort_keys=True, default=str)}\n".encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    tokenizer = model.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    text = backend.to_str() if hasattr(backend, "to_str") else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    digest.update(f"{model.max_seq_length} {model.truncate_dim} {text}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


class Search:
    """The `depth` best documents of every query, from chunk after chunk of document vectors.

    What is held is a chunk's scores and `depth` documents a query. Whatever ties with the last one is kept until
    ranking.ranked has decided, so that no library's sorting does.
    """

    def __init__(self, documents: Sequence[Sequence[str]], queries: Sequence[Sequence[str]], depth: int) -> None:
        """documents, queries: for each text in the order of its vector, the ids that have it."""
        self._ids, self._queries = documents, queries
        self._depth = depth
        self._best: dict[str, list[tuple[str, float]]] = {query_id: [] for ids in queries for query_id in ids}

    def add(self, first: int, documents_DE: Any, queries_QE: Any, similarity: Callable[[Any, Any], Any]) -> None:
        """Score a chunk; `first` is the place of its first text among the documents."""
        import torch

        for start in range(0, len(queries_QE), QUERIES_AT_ONCE):
            scores_QD = similarity(queries_QE[start : start + QUERIES_AT_ONCE], documents_DE)
            count = min(self._depth, scores_QD.shape[1])
            last_Q = torch.topk(scores_QD, count, dim=1).values[:, -1].cpu().numpy()
            for row, last in enumerate(last_Q):
                query_ids = self._queries[start + row]
                # Queries of one text have the same scores, and by the tie rule not the same lists.
                floor = max(float(last), min(self._floor(q) for q in query_ids))
                places = torch.nonzero(scores_QD[row] >= floor).flatten()
                if len(places):
                    values = scores_QD[row][places].tolist()
                    self._merge(query_ids, [(first + p, v) for p, v in zip(places.tolist(), values, strict=True)])

    def _floor(self, query_id: str) -> float:
        best = self._best[query_id]
        return best[-1][1] if len(best) >= self._depth else -float("inf")

    def _merge(self, query_ids: Sequence[str], found: Sequence[tuple[int, float]]) -> None:
        scores = {document_id: score for place, score in found for document_id in self._ids[place]}
        for query_id in query_ids:
            self._best[query_id] = ranked(query_id, {**dict(self._best[query_id]), **scores})[: self._depth]

    def lists(self) -> dict[str, list[Candidate]]:
        """Query id -> candidates, best first."""
        return {
            query_id: [Candidate(document_id, score, rank) for rank, (document_id, score) in enumerate(best, start=1)]
            for query_id, best in self._best.items()
        }
