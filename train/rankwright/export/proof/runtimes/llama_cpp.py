"""Runtimes on llama.cpp: the library, and its own server over HTTP."""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rankwright.export.proof.runtimes.base import BATCH, Answer, Exported, Limits, Runtime, cut_to_suffix, exact
from rankwright.export.proof.runtimes.gguf import GgufFile, read_back, render, template_of, tokenizer_of

SLOTS = 2
TIMEOUT_S = 600


def llama_cpp(exported: Exported, kind: str) -> Answer:
    """Scores of the file with one type of weights, keys and values in f32: f16, the default, alone costs 6e-4.

    The logit is ln(yes / no) of the two rows' probabilities, which are exact where they are small. Long prompts are cut
    as a caller must cut them.
    """
    import llama_cpp as lib

    path = next(exported.path.glob(f"*-{kind}.gguf"))
    _quiet(lib)
    with _model(lib, str(path)) as model:
        if (outputs := lib.llama_model_n_cls_out(model)) != 2:
            raise ValueError(f"its classifier has {outputs} row(s), not yes and no: softmax over one row is always 1.0")
        vocab = lib.llama_model_get_vocab(model)
        template = lib.llama_model_chat_template(model, b"rerank")
        if not template:
            raise ValueError("the file has no tokenizer.chat_template.rerank")
        template = template.decode("utf-8")
        suffix_ids = _tokenise(lib, vocab, template.rpartition("{document}")[2])
        texts = [render(template, row["query"], row["document"]) for row in exported.rows]
        limit = exported.contract.max_tokens
        ids = [cut_to_suffix(_tokenise(lib, vocab, text), limit, suffix_ids) for text in texts]
        with _context(lib, model, tokens=max(map(len, ids)) * BATCH) as context:

            def scores(size: int) -> list[tuple[float, float]]:
                parts = (ids[start : start + size] for start in range(0, len(ids), size))
                return [s for part in parts for s in _scores(lib, context, part)]

            alone = scores(1)
            return Answer(ids, _logits(alone), [_logits(scores(BATCH))], [yes for yes, _ in alone])


def _logits(probabilities: Sequence[tuple[float, float]]) -> list[float]:
    tiny = 5e-324
    return [math.log(max(yes, tiny)) - math.log(max(no, tiny)) for yes, no in probabilities]


@functools.cache
def _quiet(lib: Any) -> Any:
    """Its log would fill the report's stderr. Cached, since llama.cpp keeps a pointer to the callback."""
    silent = lib.llama_log_callback(lambda level, text, data: None)
    lib.llama_log_set(silent, ctypes.c_void_p(0))
    return silent


@contextmanager
def _model(lib: Any, path: str) -> Iterator[Any]:
    lib.llama_backend_init()
    parameters = lib.llama_model_default_params()
    parameters.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(path.encode(), parameters)
    if not model:
        raise ValueError("llama.cpp cannot load the file")
    try:
        yield model
    finally:
        lib.llama_model_free(model)


@contextmanager
def _context(lib: Any, model: Any, tokens: int) -> Iterator[Any]:
    parameters = lib.llama_context_default_params()
    parameters.n_ctx = tokens
    parameters.n_batch = parameters.n_ubatch = tokens
    parameters.n_seq_max = BATCH
    parameters.embeddings = True
    parameters.pooling_type = lib.LLAMA_POOLING_TYPE_RANK
    parameters.kv_unified = True
    parameters.type_k = parameters.type_v = lib.GGML_TYPE_F32
    parameters.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = lib.llama_init_from_model(model, parameters)
    if not context:
        raise ValueError("llama.cpp cannot make a context for reranking")
    try:
        yield context
    finally:
        lib.llama_free(context)


def _tokenise(lib: Any, vocab: Any, text: str) -> list[int]:
    """As llama-server does for a rerank prompt: nothing added, control tokens parsed."""
    raw = text.encode("utf-8")
    buffer = (lib.llama_token * (len(raw) + 8))()
    count = lib.llama_tokenize(vocab, raw, len(raw), buffer, len(buffer), False, True)
    assert count >= 0, "a token is at least one byte"
    return list(buffer[:count])


def _scores(lib: Any, context: Any, ids: Sequence[list[int]]) -> list[tuple[float, float]]:
    """The probabilities of yes and no of each prompt, all in one batch."""
    lib.llama_memory_clear(lib.llama_get_memory(context), True)
    batch = lib.llama_batch_init(sum(map(len, ids)), 0, 1)
    try:
        for sequence, prompt in enumerate(ids):
            for position, token in enumerate(prompt):
                at = batch.n_tokens
                batch.token[at], batch.pos[at] = token, position
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
                batch.logits[at] = True
                batch.n_tokens += 1
        if lib.llama_decode(context, batch) != 0:
            raise ValueError("llama.cpp cannot decode the prompts")
        found = [lib.llama_get_embeddings_seq(context, sequence) for sequence in range(len(ids))]
        return [(float(one[0]), float(one[1])) for one in found]
    finally:
        lib.llama_batch_free(batch)


def llama_server(exported: Exported, kind: str) -> Answer:
    """Scores of the file with one type of weights, keys and values in f32: each document alone, then all of a query.

    The server gives probabilities only. Its ids are those of the prompt that its template makes. Documents are cut by
    the caller, as they must be.
    """
    path = next(exported.path.glob(f"*-{kind}.gguf"))
    file = GgufFile(path)
    template, tokenizer = template_of(file), tokenizer_of(file)
    limit = exported.contract.max_tokens
    pairs = [
        (row["query"], cut_document(tokenizer, template, row["query"], row["document"], limit)) for row in exported.rows
    ]
    with _served(path, limit) as url:
        texts = [render(template, query, document) for query, document in pairs]
        ids = [
            _post(f"{url}/tokenize", content=text, add_special=False, parse_special=True)["tokens"] for text in texts
        ]
        alone = [_served_scores(url, query, [document])[0] for query, document in pairs]
        together: list[float] = []
        for query, group in itertools.groupby(pairs, key=lambda pair: pair[0]):
            together += _served_scores(url, query, [document for _, document in group])
    return Answer(ids, None, [together], alone)


def cut_document(tokenizer: Any, template: str, query: str, document: str, limit: int) -> str:
    """The document whole where the prompt has at most `limit` tokens, else a start of it with which the prompt fits."""

    def excess() -> int:
        return len(tokenizer.encode(render(template, query, document), add_special_tokens=False).ids) - limit

    # What is left may have more tokens in its place than it had before: continue until it fits.
    while document and (over := excess()) > 0:
        offsets = tokenizer.encode(document, add_special_tokens=False).offsets
        document = document[: min(offsets[max(len(offsets) - over, 0)][0], len(document) - 1)]
    return document


@contextmanager
def _served(path: Path, tokens: int) -> Iterator[str]:
    import xllamacpp as lib

    parameters = lib.CommonParams()
    parameters.model.path = str(path)
    parameters.embedding = True
    parameters.pooling_type = lib.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    parameters.n_parallel = SLOTS
    parameters.n_ctx = SLOTS * (tokens + 8)
    parameters.n_batch = parameters.n_ubatch = SLOTS * (tokens + 8)
    parameters.cache_type_k = parameters.cache_type_v = lib.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = lib.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.n_gpu_layers = 0
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.port = 0
    parameters.verbosity = 0
    server = lib.Server(parameters)
    try:
        yield server.listening_address
    finally:
        del server


def _post(url: str, **body: Any) -> Any:
    import requests

    answer = requests.post(url, json=body, timeout=TIMEOUT_S)
    if answer.status_code != 200:
        raise ValueError(f"{url.rpartition('/')[2]}: {answer.status_code} {answer.text[:200]}")
    return answer.json()


def _served_scores(url: str, query: str, documents: Sequence[str]) -> list[float]:
    results = _post(f"{url}/v1/rerank", query=query, documents=list(documents))["results"]
    found = {result["index"]: float(result["relevance_score"]) for result in results}
    return [found[i] for i in range(len(documents))]


def _readers(kind: str, limits: Callable[[float], Limits] = exact) -> tuple[Runtime, ...]:
    """What reads the file whose weights are of one type."""
    return tuple(
        Runtime(f"{name} {kind}", module, functools.partial(run, kind=kind), limits, file=f"*-{kind}.gguf")
        for name, module, run in (
            ("gguf", "gguf", read_back),
            ("llama.cpp", "llama_cpp", llama_cpp),
            ("llama-server", "xllamacpp", llama_server),
        )
    )


def _rounded(logit: float, relative: float, probability: float, spearman: float) -> Callable[[float], Limits]:
    """For rounded weights, while the golden scores come from the exact ones: bounds, and the order but for near ties.

    A probability near 0 or 1 hides much of a logit, so logits decide where a runtime gives them.
    """
    return lambda tolerance: Limits(logit, probability, relative=relative, spearman=spearman)


RUNTIMES = (
    *_readers("f32"),
    *_readers("f16", _rounded(0.05, 0.01, 0.01, 0.99)),
    *_readers("bf16", _rounded(0.5, 0.05, 0.06, 0.98)),
    *_readers("q8_0", _rounded(1.0, 0.1, 0.15, 0.97)),
)
