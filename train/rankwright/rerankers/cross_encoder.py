"""CrossEncoderScorer: any one-label CrossEncoder of sentence-transformers, used like a Reranker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from rankwright.common import console
from rankwright.common.errors import UserError
from rankwright.common.foreign_code import refuse_foreign_modules
from rankwright.model.bases import (
    ADAPTER_FILE,
    architecture,
    find_file,
    read_json,
    refuse_pickles,
    refuse_unread,
)
from rankwright.rerankers.scorer import Scorer, text_groups, windows
from rankwright.retrieval.dense import check_installed

# Pairs are gathered over queries up to this many before they are scored together, sorted by length.
WINDOW_PAIRS = 1024
# What loading a repository of another kind, or none at all, raises.
LOAD_ERRORS = (OSError, ValueError, KeyError, ImportError, AttributeError, RuntimeError, TypeError)


class CrossEncoderScorer(Scorer):
    """Raw scores (logits, without the model's own sigmoid) of a CrossEncoder.

    Equal documents of a query are scored once, so they tie exactly. Pairs are cut as the model's tokenizer cuts them:
    the longer text first, which is nearly always the document. `cut` counts them, but not for a model that is fed by
    a chat template.
    """

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        max_tokens: int = 512,
        batch: int = 32,
        remote_code: bool = False,
        dtype: torch.dtype = torch.float32,
        device: str | None = None,
    ) -> None:
        """Load a folder or hub id. max_tokens: of query and document with special tokens; the model's limit if lower.

        remote_code: run the code of the repository; read it first. Raises UserError for anything but a complete
        cross-encoder with one label.
        """
        check_installed("a cross-encoder")
        check_cross_encoder(model, revision, remote_code=remote_code)
        self.batch = batch
        options = {"revision": revision, "trust_remote_code": remote_code}
        _refuse_other_kinds(model, options, dtype)
        self._encoder = _load(model, options, dtype, device)
        limit = self._encoder.max_seq_length or max_tokens
        if limit < max_tokens:
            console.say(f"cross-encoder {model}: reads {limit} tokens of a pair, fewer than the {max_tokens} allowed")
        self.max_tokens = min(limit, max_tokens)
        self._encoder.max_seq_length = self.max_tokens
        tokenizer = self._encoder.tokenizer
        counted = hasattr(tokenizer, "num_special_tokens_to_add") and not tokenizer.chat_template
        self._special = tokenizer.num_special_tokens_to_add(pair=True) if counted else None
        self._counts = {"documents_cut": 0, "queries_cut": 0} if counted else {}

    @property
    def cut(self) -> dict[str, int]:
        return dict(self._counts)

    def score_groups(self, groups: Iterable[tuple[str, Sequence[str]]]) -> Iterator[list[float]]:
        """Scores of each (query, documents) in turn, streamed; pairs are batched over queries."""
        for window in windows(text_groups(groups), lambda group: len(group[1]), WINDOW_PAIRS):
            yield from self._score_window(window)

    def _score_window(self, window: Sequence[tuple[str, Sequence[str]]]) -> Iterator[list[float]]:
        pairs = list(dict.fromkeys((query, document) for query, documents in window for document in documents))
        if not pairs:
            yield from ([] for _ in window)
            return
        # It sorts by length itself.
        scores = self._encoder.predict(
            pairs, batch_size=self.batch, activation_fn=torch.nn.Identity(), show_progress_bar=False
        )
        found = dict(zip(pairs, map(float, scores), strict=True))
        cut = self._cut(pairs) if self._special is not None else {}
        for query, documents in window:
            if self._counts:
                self._counts["documents_cut"] += sum(cut[query, document][1] for document in documents)
                self._counts["queries_cut"] += any(cut[query, document][0] for document in documents)
            yield [found[query, document] for document in documents]

    def _cut(self, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], tuple[bool, bool]]:
        """Pair -> (whether its query is cut, whether its document is cut)."""
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        ids = self._encoder.tokenizer(texts, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        length = {text: len(found) for text, found in zip(texts, ids, strict=True)}
        room = self.max_tokens - (self._special or 0)
        return {(query, document): _cut_lengths(length[query], length[document], room) for query, document in pairs}


def check_cross_encoder(model: str, revision: str | None = None, *, remote_code: bool = False) -> None:
    """Raises UserError for what its settings, without its weights, show not to be a cross-encoder with one label."""
    refuse_pickles(model)
    refuse_unread(model)
    if find_file(model, ADAPTER_FILE, revision) is not None:
        raise UserError(
            f"{model}: holds adapters, not a whole model: merge them into their base, or use kind: rankwright"
        )
    if not remote_code:
        refuse_foreign_modules(model, revision)
    config = read_json(model, "config.json", revision)
    has_modules = find_file(model, "modules.json", revision) is not None
    if config is None:
        if Path(model).is_dir() and not has_modules:
            raise UserError(f"{model}: has no config.json: give a folder with config.json, weights and tokenizer")
        return
    kind = architecture(config)
    if kind.endswith("ForCausalLM") and not has_modules:
        raise UserError(
            f"{model}: {kind} is a language model, which needs its prompt: use the kind of its family "
            "(qwen3-reranker, zerank, mxbai, bge), or rankwright"
        )
    # transformers' own default is two.
    names = config.get("id2label")
    labels = config.get("num_labels") or len(names if isinstance(names, dict) else ()) or 2
    if kind.endswith("ForSequenceClassification") and labels != 1:
        raise UserError(f"{model}: has {labels} labels, must have 1: several classes give no single score")
    if Path(model).is_dir() and not any(Path(model).rglob("*.safetensors")):
        raise UserError(f"{model}: has no weights (*.safetensors): copy them there, or name another folder")


def _cut_lengths(query: int, document: int, room: int) -> tuple[bool, bool]:
    """Whether a query and a document of these lengths are cut by the tokenizers library's `longest_first`."""
    if query + document <= room:
        return False, False
    shorter = min(query, document)
    # The shorter text stays whole while it fits into half of the room; else each gets half.
    limits = (shorter, room - shorter) if shorter <= room // 2 else (room // 2, room - room // 2)
    of_query, of_document = limits if query <= document else limits[::-1]
    return query > of_query, document > of_document


def _load(model: str, options: dict[str, Any], dtype: torch.dtype, device: str | None) -> Any:
    from sentence_transformers import CrossEncoder

    # A pickle may run code when it is loaded.
    weights = {"dtype": dtype, "use_safetensors": True}
    try:
        encoder: Any = CrossEncoder(
            model, activation_fn=torch.nn.Identity(), model_kwargs=weights, device=device, **options
        )
    except LOAD_ERRORS as error:
        raise _not_loaded(model, error) from None
    encoder.eval()
    if encoder.num_labels != 1:
        raise UserError(f"{model}: has {encoder.num_labels} labels, must have 1: several classes give no single score")
    _score_in_fp32(encoder)
    return encoder


def _score_in_fp32(encoder: Any) -> None:
    """Compute the layer that gives the one logit in fp32, whatever the body uses: logits in bf16 tie in long lists.

    A head of another build stays as it is; its ties are counted like all others.
    """
    found = [layer for layer in encoder.modules() if isinstance(layer, torch.nn.Linear) and layer.out_features == 1]
    if len(found) == 1:
        found[0].float()
        found[0].register_forward_pre_hook(lambda layer, inputs: tuple(each.float() for each in inputs))


def _refuse_other_kinds(model: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    """Raises UserError for weights that are missing.

    sentence-transformers would only warn and continue with a random head, and the scores would be noise.
    """
    import transformers
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model, **options)
        kind = (config.architectures or [""])[0]
        has_modules = find_file(model, "modules.json", options["revision"]) is not None
        if has_modules and not kind.endswith("ForSequenceClassification"):
            # Its own modules make the score; sentence-transformers fails where their weights are missing.
            return
        auto = transformers.AutoModelForSequenceClassification
        labels = {} if kind.endswith("ForSequenceClassification") else {"num_labels": 1}
        loaded, info = auto.from_pretrained(
            model, dtype=dtype, use_safetensors=True, output_loading_info=True, **labels, **options
        )
    except LOAD_ERRORS as error:
        raise (error if isinstance(error, UserError) else _not_loaded(model, error)) from None
    bad = sorted(map(str, [*info["missing_keys"], *info.get("mismatched_keys", ())]))
    if bad:
        raise UserError(
            f"{model}: {len(bad)} weights are missing (first: {bad[0]}), so its scores would be random: "
            "it is not a cross-encoder, or its files are incomplete"
        )
    del loaded


def _not_loaded(model: str, error: Exception) -> UserError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return UserError(
        f"cannot load {model!r} as a CrossEncoder ({lines[0]}): give a folder with config.json, weights and tokenizer, "
        "or a hub id that this machine can reach"
    )
