"""Dense retrieval: any bi-encoder of sentence-transformers, searched exactly, its vectors kept on the disk.

Shapes: Q queries of a chunk, D documents of a chunk, E size of a vector.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rankwright.common import console
from rankwright.common.errors import UserError
from rankwright.common.files import cache_folder
from rankwright.common.foreign_code import refuse_foreign_modules
from rankwright.common.processes import Processes
from rankwright.common.resources import resolve_base, resolve_model
from rankwright.data.store.views import KeyedTexts
from rankwright.recipe.schema import Recipe
from rankwright.retrieval.candidates import Candidate, best_candidates
from rankwright.retrieval.retriever import RETRIEVERS, Model, Options, Retriever, Searcher
from rankwright.retrieval.vectors import VectorStore, store_name

QUERIES_AT_ONCE = 256
# The names under which models keep the prompts of queries and documents, as sentence-transformers looks for them.
PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}

# Settings of a model that name the program that wrote them.
OF_THE_FILE = ("transformers_version", "architectures")


def check_installed(what: str = "dense retrieval") -> None:
    """Raises UserError when sentence-transformers is missing; what: that which needs it."""
    if importlib.util.find_spec("sentence_transformers") is None:
        raise UserError(f"{what} needs sentence-transformers: pip install 'rankwright[dense]'")


def dense(
    corpus: Mapping[str, str],
    *,
    model: str,
    depth: int = 100,
    revision: str | None = None,
    query_prompt: str = "",
    document_prompt: str = "",
    cache: Path | None = None,
) -> Searcher:
    """Nearest documents by the model's own similarity: `depth` candidates per query.

    model: a folder or a hub id; query_prompt, document_prompt: text in front, instead of the model's own prompts.
    Every document is scored. Each text is encoded once and kept under `cache` (by default files.cache_folder)
    by the content of the weights, the prompt and the text, so that a killed search continues. Neither the order of
    the corpus nor that of the queries matters; equal texts have equal scores; ties by candidates.tie_order.
    Raises UserError when sentence-transformers is missing or the model cannot be loaded.
    """
    if depth < 1:
        raise UserError(f"dense: depth {depth}: needs depth >= 1")
    if not corpus:
        return lambda queries: {query_id: [] for query_id in queries}
    encoder = BiEncoder(model, revision, {"query": query_prompt, "document": document_prompt})
    folder = (cache or cache_folder()) / "vectors"
    # Distinct and in an order of their own: which texts share a batch or a product of matrices depends on them alone.
    document_texts = KeyedTexts(corpus)
    documents = _vectors(encoder, "document", document_texts, folder)

    def search(queries: Mapping[str, str]) -> dict[str, list[Candidate]]:
        if not queries:
            return {}
        texts = KeyedTexts(queries)
        vectors = _vectors(encoder, "query", texts, folder).read(texts)
        lists = nearest(
            documents.chunks(document_texts), document_texts.ids, vectors, texts.ids, encoder.similarity, depth
        )
        return {query_id: lists[query_id] for query_id in queries}

    return search


def encode_together(
    corpus: Mapping[str, str],
    queries: Mapping[str, str],
    *,
    processes: Processes,
    model: str,
    revision: str | None = None,
    query_prompt: str = "",
    document_prompt: str = "",
    cache: Path | None = None,
) -> None:
    """Encode the texts that `dense` will need, each process its share; one process would write the same files."""
    encoder = BiEncoder(model, revision, {"query": query_prompt, "document": document_prompt})
    folder = (cache or cache_folder()) / "vectors"
    for side, texts in (("document", corpus), ("query", queries)):
        _vectors(encoder, side, KeyedTexts(texts), folder, processes)


def _vectors(
    encoder: BiEncoder, side: str, texts: KeyedTexts, folder: Path, processes: Processes | None = None
) -> VectorStore:
    processes = processes or Processes()
    store = VectorStore(folder / store_name(encoder.fingerprint, {side: encoder.prompts[side]}), console.say)
    missing = store.missing(texts)
    # No process writes before all have looked, so that all share out the same missing texts.
    processes.meet()
    if missing:
        with console.progress(f"encode {side} texts", missing) as advance:
            part = (processes.rank, processes.count)
            store.encode_missing(texts, lambda some: encoder.encode(side, some), advance, part)
    processes.meet()
    if processes.count > 1:
        return _vectors(encoder, side, texts, folder)
    cut = store.cut(texts)
    console.say(
        f"dense: {len(texts):,} distinct {side} texts, {len(texts) - missing:,} of them encoded before"
        + (f"; {cut:,} cut to the {encoder.max_tokens} tokens that the model reads" if cut else "")
    )
    return store


class BiEncoder:
    """A SentenceTransformer with a prompt for each side. prompts: `query` and `document` -> text in front."""

    def __init__(self, model: str, revision: str | None, prompts: Mapping[str, str], key: str = "dense.model") -> None:
        """key: the recipe's key of the model, for errors. Raises UserError for a model that cannot be loaded."""
        check_installed()
        from sentence_transformers import SentenceTransformer

        folder = resolve_base(model, key)
        refuse_foreign_modules(folder, revision)
        try:
            self._model: Any = SentenceTransformer(folder, revision=revision, trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError, AttributeError, RuntimeError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(
                f"{key} {model!r}: cannot be loaded as a sentence-transformers model: {reason[0]}: "
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
    """A hash of what decides a vector beside prompt and text: weights, tokenizer, modules and their settings."""
    import torch

    digest = hashlib.sha256()
    # Settings such as heads and positions are not in the weights. A module's parts share theirs: each is hashed once.
    found = (getattr(module, "config", None) for module in model.modules())
    configs: dict[int, Any] = {id(config): config for config in found if hasattr(config, "to_dict")}
    for config in configs.values():
        known = {k: v for k, v in config.to_dict().items() if not k.startswith("_") and k not in OF_THE_FILE}
        digest.update(f"{json.dumps(known, sort_keys=True, default=str)}\n".encode())
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


def nearest(
    chunks: Iterable[tuple[int, Any]],
    document_ids: Sequence[Sequence[str]],
    queries_QE: Any,
    query_ids: Sequence[Sequence[str]],
    similarity: Callable[[Any, Any], Any],
    depth: int,
) -> dict[str, list[Candidate]]:
    """The `depth` best documents of every query, from chunk after chunk of document vectors.

    chunks: (place of the first, vectors) over all distinct texts; document_ids, query_ids: the ids of each text.
    similarity: float32 [Q, E] and [D, E] -> tensor [Q, D], higher is nearer.
    Memory holds one chunk's scores and `depth` texts per query. All texts that tie with the last one are kept until
    candidates.ranked has decided, so that no library's sorting does.
    """
    best = [_Best(depth) for _ in query_ids]
    for first, vectors in chunks:
        for start in range(0, len(best), QUERIES_AT_ONCE):
            scores_QD = similarity(queries_QE[start : start + QUERIES_AT_ONCE], vectors)
            for row, found in enumerate(best[start : start + QUERIES_AT_ONCE]):
                found.add(first, scores_QD[row])
    lists = {}
    for found, ids in zip(best, query_ids, strict=True):
        pairs = list(zip(found.places.tolist(), found.values.tolist(), strict=True))
        scores = {d: value for place, value in pairs for d in document_ids[place]}
        # Queries of one text have the same scores, but the tie rule orders their lists differently.
        for query_id in ids:
            lists[query_id] = best_candidates(query_id, scores, depth)
    return lists


class _Best:
    """Places and scores of one query's `depth` best texts so far, and of all that tie with the last of them."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self.places = np.zeros(0, dtype=np.int64)
        self.values = np.zeros(0, dtype=np.float32)

    def add(self, first: int, scores_D: Any) -> None:
        if len(self.places) >= self._depth:
            near = (scores_D >= float(self.values.min())).nonzero().flatten()
            if not len(near):
                return
            values, places = scores_D[near].cpu().numpy(), near.cpu().numpy()
        else:
            values = scores_D.cpu().numpy()
            places = np.arange(len(values))
        self.places = np.concatenate([self.places, places + first])
        self.values = np.concatenate([self.values, values])
        if len(self.values) > self._depth:
            last = np.partition(self.values, -self._depth)[-self._depth]
            # Not `>= last`: a score that is not a number must reach candidates.ranked, which refuses it.
            kept = ~(self.values < last)
            self.places, self.values = self.places[kept], self.values[kept]


def _options(recipe: Recipe, run_file: Path | None) -> Options:
    return {} if recipe.dense is None else recipe.dense.model_dump()


def _inputs(recipe: Recipe, run_file: Path | None) -> Options:
    """The options, with a local model by its content and one of the hub by its revision."""
    options = _options(recipe, run_file)
    folder = Path(resolve_base(options["model"], "dense.model"))
    return {**options, "model": folder, "revision": None} if folder.is_dir() else options


def _needs(recipe: Recipe) -> str | None:
    return None if recipe.dense is not None else "a bi-encoder: add dense: {model: FOLDER or hub id}"


def _models(recipe: Recipe) -> list[Model]:
    return [] if recipe.dense is None else [("dense model", recipe.dense.model, recipe.dense.revision)]


def _check(recipe: Recipe) -> list[str]:
    faults = []
    checks: list[Callable[[], None]] = [check_installed, lambda: _check_folder(_options(recipe, None)["model"])]
    for check in checks:
        try:
            check()
        except UserError as error:
            faults.append(str(error))
    return faults


def _check_folder(model: str) -> None:
    folder = resolve_model(model, "dense.model")
    if Path(folder).is_dir():
        refuse_foreign_modules(folder)


def _prepare(recipe: Recipe, corpus: Mapping[str, str], queries: Mapping[str, str], processes: Processes) -> None:
    encode_together(corpus, queries, processes=processes, **_options(recipe, None))


DENSE = RETRIEVERS.add(
    Retriever(
        "dense",
        "dense",
        dense,
        _options,
        needs=_needs,
        inputs=_inputs,
        models=_models,
        check=_check,
        prepare=_prepare,
        nested=True,
        place=2,
    ),
    __name__,
)
