"""The exported model itself, scored here under other prompts to explain a server's scores."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch

from rankwright.common.errors import UserError
from rankwright.common.resources import resolve_base
from rankwright.export.proof.runtimes.base import Exported, Row
from rankwright.export.proof.runtimes.torch import RANKWRIGHT, TRUSTED
from rankwright.export.targets import TARGETS
from rankwright.export.weights import has_adapter
from rankwright.model.loading import load_model
from rankwright.model.long_documents import AS_CUT
from rankwright.model.prompt import EncodedGroup
from rankwright.model.rank_model import RankModel
from rankwright.rerankers.reranker import Reranker

# What transformers takes where config.json has none.
DEFAULT_THETA = 1e4


class Known:
    """The folder's model, tokenizer and golden rows."""

    def __init__(self, exported: Exported, reranker: Reranker) -> None:
        from transformers import AutoTokenizer

        self.exported, self.reranker = exported, reranker
        self.rows: list[Row] = exported.rows
        self.contract, self.encoder = reranker.contract, reranker.encoder
        # A server tokenises a rendered prompt with the exported tokenizer, whose Strip is off in ours.
        self.served_tokenizer = AutoTokenizer.from_pretrained(exported.path, **TRUSTED)
        self.tokenizer = reranker.tokenizer

    @classmethod
    def load(cls, exported: Exported) -> Known | None:
        """None for a folder whose weights cannot be scored here: not torch's, or damaged."""
        if RANKWRIGHT not in TARGETS[exported.kind].runtimes:
            return None
        try:
            reranker = Reranker.load(str(exported.path), device="cpu", base=exported.base, pairwise=True)
        except UserError:
            return None
        # As a server reads long documents.
        return cls(exported, reranker.reading(AS_CUT))

    def ids(self, text: str, *, served: bool = False) -> list[int]:
        """Ids of a text alone, its control tokens read as such; served: by the exported tokenizer."""
        tokenizer = self.served_tokenizer if served else self.tokenizer
        return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def golden_ids(self, place: int) -> list[int]:
        found: list[int] = self.rows[place]["token_ids"]
        return found

    def score(self, prompts: Sequence[Sequence[int]], model: RankModel | None = None) -> list[float]:
        """Logits of whole prompts, by this model or another one."""
        groups = [EncodedGroup(list(ids[:-1]), [list(ids[-1:])], False, 0) for ids in prompts]
        with torch.inference_mode():
            found: list[float] = (model or self.reranker.model)(groups).tolist()
        return found

    @contextmanager
    def without_theta(self) -> Iterator[bool]:
        """Inside, the model has the default base of its rotary positions; False where that changes nothing."""
        decoder = cast(Any, self.reranker.model.decoder)
        rope = getattr(decoder.config, "rope_parameters", None) or {}
        if rope.get("rope_theta") in (None, DEFAULT_THETA) or not hasattr(decoder, "rotary_emb"):
            yield False
            return
        config = copy.deepcopy(decoder.config)
        config.rope_parameters = {"rope_type": "default", "rope_theta": DEFAULT_THETA}
        own = decoder.rotary_emb
        decoder.rotary_emb = type(own)(config=config)
        try:
            yield True
        finally:
            decoder.rotary_emb = own

    def base_logits(self, places: Sequence[int]) -> list[float] | None:
        """Scores of the base's own weights; None where the base is not at hand."""
        prompts = [self.golden_ids(place) for place in places]
        model = self.reranker.model
        if has_adapter(model):
            with cast(Any, model.lm).disable_adapter():
                return self.score(prompts)
        if self.exported.base is None:
            return None
        base = load_model(resolve_base(self.exported.base, "--base"), self.contract, self.tokenizer)
        return self.score(prompts, base.eval())
