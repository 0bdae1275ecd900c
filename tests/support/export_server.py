"""A real local rerank server around an exported folder, scored by transformers, with faults to switch on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rerank_server import PATHS, JsonHandler, LocalServer, running

# What each server calls the wish for logits, written out by hand.
ASKS_LOGITS = {
    "vllm": lambda body: body.get("use_activation") is False,
    "tei": lambda body: body["raw_scores"],
    "infinity": lambda body: body.get("raw_scores", False),
}


@dataclass
class Faults:
    """What this server does wrong; the default is nothing.

    template: Jinja text that is rendered with query and document in place of the tokenizer's own pair; chat: the
    folder's chat template, with these variables. activation: sigmoid, none, twice, softmax or sharper.
    cut: tokens to which the whole prompt is cut from the right; keep: ids that stay at its end. order: `index` is the
    rank. refuse_empty: as some servers do. refuse_after: so many requests. fewer: results than documents of a list;
    not_a_number: as the score of the empty document.
    """

    template: str | None = None
    chat: dict[str, Any] | None = None
    pairs: bool = True
    activation: str = "sigmoid"
    cut: int | None = None
    keep: Sequence[int] = ()
    exchanged: bool = False
    order: bool = False
    refuse_empty: bool = False
    refuse_after: int | None = None
    fewer: bool = False
    not_a_number: bool = False
    padding_side: str = "left"
    dtype: torch.dtype = torch.float32
    asked: list[dict[str, Any]] = field(default_factory=list)


class Model:
    """The folder as a server reads it: AutoTokenizer on the pair, AutoModelForSequenceClassification."""

    def __init__(self, folder: Path, faults: Faults) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.faults = faults
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=faults.dtype).eval()

    def logits(self, query: str, documents: Sequence[str]) -> list[float]:
        prompts = [self._ids(query, document) for document in documents]
        batch = self.tokenizer.pad({"input_ids": prompts}, padding_side=self.faults.padding_side, return_tensors="pt")
        with torch.inference_mode():
            return self.model(**batch).logits[:, 0].float().tolist()

    def _ids(self, query: str, document: str) -> list[int]:
        if self.faults.exchanged:
            query, document = document, query
        if self.faults.chat is not None:
            messages = [{"role": "query", "content": query}, {"role": "document", "content": document}]
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, **self.faults.chat)
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        elif self.faults.template is not None:
            import jinja2

            text = jinja2.Template(self.faults.template, keep_trailing_newline=True).render(
                query=query.strip(), document=document.strip()
            )
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        elif self.faults.cut is not None:
            ids = self.tokenizer(query, document, truncation=False)["input_ids"]
        else:
            ids = self.tokenizer(query, document, truncation=True, add_special_tokens=self.faults.pairs)["input_ids"]
        limit, keep = self.faults.cut, list(self.faults.keep)
        return ids if limit is None or len(ids) <= limit else ids[: limit - len(keep)] + keep


class ExportServer(LocalServer):
    """Speaks the API of `shape`."""

    def __init__(self, folder: Path, shape: str, faults: Faults) -> None:
        super().__init__(_Handler)
        self.shape, self.faults, self.model = shape, faults, Model(folder, faults)


class _Handler(JsonHandler):
    server: ExportServer

    def do_POST(self) -> None:
        server = self.server
        body = self.read_json()
        server.faults.asked.append(body)
        status = 200 if self.path == PATHS[server.shape] else 404
        texts = body["texts"] if "texts" in body else body["documents"]
        if server.faults.refuse_empty and not all(texts):
            status = 422
        if server.faults.refuse_after is not None and len(server.faults.asked) > server.faults.refuse_after:
            status = 400
        answer = self._answer(body, texts) if status == 200 else {"error": "no empty text"}
        self.send(status, json.dumps(answer).encode())

    def _answer(self, body: dict[str, Any], texts: list[str]) -> Any:
        shape, faults = self.server.shape, self.server.faults
        logits = torch.tensor(self.server.model.logits(body["query"], texts), dtype=torch.float64)
        wants_logits = shape in ASKS_LOGITS and ASKS_LOGITS[shape](body)
        activation = {
            "sigmoid": torch.sigmoid,
            "none": lambda x: x,
            "twice": lambda x: torch.sigmoid(torch.sigmoid(x)),
            "softmax": torch.ones_like,
            "sharper": lambda x: torch.sigmoid(1.5 * x),
        }[faults.activation]
        scores = logits.tolist() if wants_logits else activation(logits).tolist()
        order = sorted(range(len(texts)), key=lambda i: -scores[i])
        name = "score" if shape == "tei" else "relevance_score"
        rows = [{"index": rank if faults.order else i, name: scores[i]} for rank, i in enumerate(order)]
        if faults.not_a_number and "" in texts:
            rows[0][name] = float("nan")
        if faults.fewer and len(rows) > 1:
            del rows[-1]
        return rows if shape == "tei" else {"results": rows}


def serving(folder: Path, shape: str = "vllm", **faults: Any) -> AbstractContextManager[ExportServer]:
    return running(ExportServer(folder, shape, Faults(**faults)))
