"""llama.cpp's own server over HTTP, from the wheel of xllamacpp: raw texts to /v1/rerank, as users send them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rankwright.export.runtimes import Answer, Exported
from rankwright.export.runtimes.gguf_files import GgufFile, render, template_of, tokenizer_of

SLOTS = 2
TIMEOUT_S = 600


def llama_server(exported: Exported, kind: str) -> Answer:
    """The file of one type of weights, with keys and values in f32; each document alone, then a query's together.

    Shows probabilities only; ids are its own of the prompt that its template makes. Documents are cut by the caller,
    as they must be.
    """
    path = next(exported.path.glob(f"*-{kind}.gguf"))
    file = GgufFile(path)
    template, tokenizer = template_of(file), tokenizer_of(file)
    limit = exported.contract.max_tokens
    pairs = [(row["query"], _cut(tokenizer, template, row["query"], row["document"], limit)) for row in exported.rows]
    with _served(path, limit) as url:
        texts = [render(template, query, document) for query, document in pairs]
        ids = [
            _post(f"{url}/tokenize", content=text, add_special=False, parse_special=True)["tokens"] for text in texts
        ]
        alone = [_scores(url, query, [document])[0] for query, document in pairs]
        together: list[float] = []
        for query, group in itertools.groupby(pairs, key=lambda pair: pair[0]):
            together += _scores(url, query, [document for _, document in group])
    return Answer(ids, None, [together], alone)


def _cut(tokenizer: Any, template: str, query: str, document: str, limit: int) -> str:
    """The start of the document that leaves room for the rest of the prompt."""
    length = len(tokenizer.encode(render(template, query, ""), add_special_tokens=False).ids)
    encoded = tokenizer.encode(document, add_special_tokens=False)
    # What was cut may have more tokens alone than it had in its place.
    budget = limit - length - 4
    return document if len(encoded.ids) <= budget else document[: encoded.offsets[max(budget, 0)][0]]


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


def _scores(url: str, query: str, documents: Sequence[str]) -> list[float]:
    results = _post(f"{url}/v1/rerank", query=query, documents=list(documents))["results"]
    found = {result["index"]: float(result["relevance_score"]) for result in results}
    return [found[i] for i in range(len(documents))]
