"""The prompt contract: instruction, query and document to token ids, the same for training, evaluation and export."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rankwright.common.errors import UserError, one_line
from rankwright.model.control_tokens import control_tokens, neutralise
from rankwright.model.frames import CUT, FRAMES, Frame, single_token_id
from rankwright.model.long_documents import (
    AS_CUT,
    BLOCK_TOKENS,
    BLOCKS,
    CUT_OFF,
    MAX,
    PAIRWISE,
    Blocks,
    LongDocuments,
    Part,
    Tokens,
    best_window,
    halves,
    windows,
)
from rankwright.model.score_line import ScoreLine

CONTRACT_FILE = "rankwright.json"
CONTRACT_VERSION = 1
LEAST_DOCUMENT_TOKENS = 8
MOST_TOKENS = 10_000_000
# Long documents whose blocks an encoder keeps: those of some queries' lists.
KEPT_DOCUMENTS = 512
# How the scores of a first stage are made comparable before they are combined with ours.
ZSCORE, RECIPROCAL_RANK = "zscore", "reciprocal_rank"
COMBINE_NORMALISERS = (ZSCORE, RECIPROCAL_RANK)
# Texts that reveal a fault at a boundary between pieces.
PROBES = [
    ("what is a bond?", "A bond is a loan."),
    ("où est l'été\u0301 ?", "  naïve 東京\n\n"),
    ("f(x)\n", "def f(x):\n    return x\n"),
    ("...", ""),
    ("123", "\t- item\r\n"),
]


@dataclass(frozen=True, slots=True)
class PromptContract:
    """What turns a pair into scored token ids; stored as rankwright.json with every checkpoint and export.

    prefix holds `{instruction}` at most once; the head of a prompt is prefix + query + middle. CUT separates pieces
    that are tokenised alone. max_tokens bounds the whole prompt, query_tokens the query; both count tokens of this
    tokenizer. The score is scale * (logit of yes - logit of no), without a `no` scale * (logit of yes).
    """

    mode: str
    prefix: str
    middle: str
    document_prefix: str
    suffix: str
    instruction: str
    yes_token: str
    no_token: str | None
    yes_id: int
    no_id: int | None
    max_tokens: int
    query_tokens: int
    padding_side: Literal["left"] = "left"
    # Fitted on dev for this model under this prompt: calibrated probability = sigmoid(score / temperature).
    temperature: float = 1.0
    version: int = CONTRACT_VERSION
    scale: float = 1.0
    # Between a document's title, where it has one, and its text: what data.collection.join_title puts there. For
    # callers, who have both apart; a document comes here as one text.
    title_join: str = "\n"
    # What is read of a document beyond the budget; not in the file where that is its beginning.
    long_documents: LongDocuments = AS_CUT
    # Fitted on dev: in a list that a search found, documents are ordered by combine_weight * z(score) + (1 -
    # combine_weight) * z(first stage), see rerankers/combination.py. A folder without these keys reads as 1, the score
    # alone; and without a depth all documents of the list are reranked.
    combine_weight: float = 1.0
    combine_normaliser: str = "zscore"
    combine_depth: int | None = None
    # Whether a line with the first stage's score begins each document of a list; not in the file where it does not.
    first_stage_score: ScoreLine | None = None

    def save(self, folder: Path) -> None:
        """Write rankwright.json into `folder`."""
        values = dataclasses.asdict(self)
        for key, unstated in (("long_documents", AS_CUT), ("first_stage_score", None)):
            if getattr(self, key) == unstated:
                del values[key]
        text = json.dumps(values, indent=2, ensure_ascii=False)
        (folder / CONTRACT_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> PromptContract | None:
        """The contract stored in `folder`, or None without one. Raises UserError if it is not readable."""
        path = folder / CONTRACT_FILE
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if "long_documents" in values:
                values["long_documents"] = LongDocuments(**values["long_documents"])
            if "first_stage_score" in values and values["first_stage_score"] is not None:
                values["first_stage_score"] = ScoreLine(**values["first_stage_score"])
            contract = cls(**values)
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(
                f"{path}: not a prompt contract of this version ({one_line(str(error))}): export it again"
            ) from None
        if contract.version != CONTRACT_VERSION:
            raise UserError(f"{path}: version {contract.version!r}, must be {CONTRACT_VERSION}: export it again")
        if wrong := contract._wrong():
            raise UserError(f"{path}: {wrong}: export it again")
        return contract

    def _wrong(self) -> str | None:
        """What is wrong with the first value that cannot be right; None where nothing is."""

        def is_whole(value: Any, least: int = 1, most: float = MOST_TOKENS) -> bool:
            return type(value) is int and least <= value <= most

        def is_above_zero(value: Any) -> bool:
            return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf

        texts = ("mode", "prefix", "middle", "document_prefix", "suffix", "instruction", "yes_token")
        combine_normalisers = " or ".join(COMBINE_NORMALISERS)
        # A rule may rely on those before it.
        rules: list[tuple[str, Callable[[], bool], str]] = [
            *((key, functools.partial(self._is_text, key), "a text") for key in texts),
            # Scoring needs no registered frame of that name.
            ("mode", lambda: re.fullmatch(r"[\w-]{1,100}", self.mode) is not None, "the name of a prompt frame"),
            ("prefix", lambda: self.prefix.count("{instruction}") <= 1, "a text with one place for an instruction"),
            ("no_token", lambda: isinstance(self.no_token, str | None), "a text, or null"),
            ("yes_id", lambda: is_whole(self.yes_id, 0, math.inf), "a token's number"),
            ("no_id", lambda: self.no_id is None or is_whole(self.no_id, 0, math.inf), "a token's number, or null"),
            ("no_id", lambda: (self.no_id is None) == (self.no_token is None), "the number of no_token"),
            ("no_id", lambda: self.no_id != self.yes_id, "another token than yes_id"),
            ("max_tokens", lambda: is_whole(self.max_tokens), f"a whole number up to {MOST_TOKENS:,}"),
            ("query_tokens", lambda: is_whole(self.query_tokens, most=self.max_tokens), "at most max_tokens, above 0"),
            ("padding_side", lambda: self.padding_side == "left", "left"),
            ("temperature", lambda: is_above_zero(self.temperature), "a number above 0"),
            ("scale", lambda: is_above_zero(self.scale), "a number above 0"),
            ("long_documents", lambda: self.long_documents.wrong() is None, "what this version reads"),
            (
                "first_stage_score",
                lambda: not (self.first_stage_score and self.first_stage_score.wrong()),
                "at most 1,000 levels",
            ),
            ("combine_weight", lambda: self._is_share("combine_weight"), "a number from 0 to 1"),
            ("combine_normaliser", lambda: self.combine_normaliser in COMBINE_NORMALISERS, combine_normalisers),
            ("combine_depth", lambda: self.combine_depth is None or is_whole(self.combine_depth), "above 0, or null"),
        ]
        for key, is_right, wanted in rules:
            if not is_right():
                return f"{key} {one_line(repr(getattr(self, key)))}: must be {wanted}"
        return None

    def _is_text(self, key: str) -> bool:
        return isinstance(getattr(self, key), str)

    def _is_share(self, key: str) -> bool:
        value = getattr(self, key)
        return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1

    def check_tokens(self, tokenizer: Any) -> None:
        """Raises UserError where the scored words are other tokens of this tokenizer than the contract's."""
        for token, number in ((self.yes_token, self.yes_id), (self.no_token, self.no_id)):
            if token is not None and single_token_id(tokenizer, token) != number:
                raise UserError(
                    f"{CONTRACT_FILE}: {token!r} is token {number} there, and {single_token_id(tokenizer, token)} in "
                    "the tokenizer: they belong to different models: export it again"
                )

    @property
    def takes_instruction(self) -> bool:
        """Whether the frame has a place for an instruction."""
        return "{instruction}" in self.prefix

    @property
    def is_pairwise(self) -> bool:
        """Whether a document is two, and the score is by how much the first is better: a pairwise student."""
        return self.long_documents.strategy == PAIRWISE

    @property
    def frame(self) -> Frame:
        """The template that the contract was made from. Raises UserError where its name is not registered."""
        return FRAMES[self.mode]

    @property
    def in_pieces(self) -> bool:
        """Whether the vendor tokenises the prompt in pieces, which no runtime of an export can repeat."""
        return CUT in self.prefix + self.middle + self.suffix

    @property
    def is_baked(self) -> bool:
        """Whether tokenizer.json holds the frame in an export: see Frame.baked."""
        return self.frame.baked

    @property
    def is_templated(self) -> bool:
        """Whether an export renders the frame by a chat template."""
        return self.frame.rendered and not self.frame.baked

    def head_text(self, query: str) -> str:
        """Frame, instruction and (clean) query, up to the document's place."""
        return "".join(self.head_pieces(query))

    def head_pieces(self, query: str) -> list[str]:
        """Frame, instruction and (clean) query, up to the document's place; each piece is tokenised alone."""
        # Split before texts are put in: they may hold the mark themselves.
        *before, last = [p.replace("{instruction}", self.instruction) for p in self.prefix.split(CUT)]
        first, *after = self.middle.split(CUT)
        return [*before, last + query + first, *after]

    def whole_pieces(self, query: str, document: str) -> list[str]:
        """The whole prompt of two clean texts, cut only where the vendor cuts: one piece for most frames."""
        *head, last = self.head_pieces(query)
        first, *suffix = self.suffix.split(CUT)
        return [*head, last + self.document_prefix + document + first, *suffix]

    def with_level(self, document: str, level: int | None) -> str:
        """What stands for a raw document in a list of a first stage that gave it this level; None: it gave none.

        Unchanged under a contract without levels. Idempotent only for None: give it raw documents.
        """
        line = self.first_stage_score
        return document if line is None else line.before(document, level, self.document_prefix)

    def split_level(self, text: str) -> tuple[str, str]:
        """(the line of a level or "", the document) of a text of with_level."""
        return ("", text) if (line := self.first_stage_score) is None else line.split(text, self.document_prefix)

    def replace(self, **changes: Any) -> PromptContract:
        """A copy with other values, e.g. other budgets."""
        return dataclasses.replace(self, **changes)

    def under(self, instruction: str, tokenizer: Any) -> PromptContract:
        """The contract under another instruction; unchanged if the frame has no place for one."""
        stated = neutralise(instruction.strip(), control_tokens(tokenizer))
        has_line = self.mode in FRAMES and self.frame.line_for_instruction
        prefix = self.frame.build(tokenizer, stated).prefix if has_line else self.prefix
        if stated == self.instruction or "{instruction}" not in self.prefix + prefix:
            return self
        # The temperature was fitted to scores under the contract's own instruction.
        return self.replace(prefix=prefix, instruction=stated, temperature=1.0)


@dataclass(frozen=True, slots=True)
class EncodedGroup:
    """Token ids of a query with its documents: head_ids + tail_ids[i] is the prompt of document i.

    A document's ids end with the suffix. documents_cut: of how many documents only a part is here.
    windows: how many prompts each document has, one after the other, where that is not one.
    """

    head_ids: list[int]
    tail_ids: list[list[int]]
    query_cut: bool
    documents_cut: int
    windows: tuple[int, ...] | None = None

    @property
    def tokens(self) -> int:
        """Tokens with the head counted once."""
        return len(self.head_ids) + sum(map(len, self.tail_ids))


def make_contract(
    tokenizer: Any,
    *,
    mode: str,
    instruction: str | None = None,
    max_tokens: int = 512,
    query_tokens: int | None = None,
    long_documents: LongDocuments = AS_CUT,
    first_stage_score: ScoreLine | None = None,
) -> PromptContract:
    """The contract of a frame with a tokenizer, after a proof on probe texts that pieces give the ids of the whole.

    instruction: None for the frame's default; left out if the frame has no place for one. query_tokens defaults to a
    quarter of max_tokens. Raises UserError if the proof fails, or if the frame leaves no room for a document.
    """
    frame = FRAMES[mode]
    instruction = frame.instruction if instruction is None else instruction
    instruction = neutralise(instruction.strip(), control_tokens(tokenizer))
    texts = frame.build(tokenizer, instruction)
    contract = PromptContract(
        mode,
        texts.prefix,
        texts.middle,
        texts.document_prefix,
        texts.suffix,
        instruction=instruction if "{instruction}" in texts.prefix else "",
        yes_token=texts.yes,
        no_token=texts.no,
        yes_id=single_token_id(tokenizer, texts.yes),
        no_id=None if texts.no is None else single_token_id(tokenizer, texts.no),
        max_tokens=max_tokens,
        query_tokens=max_tokens // 4 if query_tokens is None else query_tokens,
        scale=texts.scale,
        long_documents=long_documents,
        first_stage_score=first_stage_score,
    )
    assert not (frame.rendered and contract.in_pieces), f"frame {mode}: what is cut is not rendered"
    encoder = PromptEncoder(contract, tokenizer)
    for query, document in (*PROBES, *((q, contract.with_level(d, 0)) for q, d in PROBES)):
        if encoder.encode(query, [document], cut=False) != encoder.encode_whole(query, document):
            raise UserError(
                f"prompt.mode: {mode} is not exact with this tokenizer: piece-wise and whole-string ids differ "
                f"on {query!r}, {document!r}; choose the other mode or another base"
            )
    return contract


class PromptEncoder:
    """Applies a contract with a tokenizer: the only way from texts to ids in training, evaluation and export.

    Raises UserError if frame, instruction and the longest query leave no room for a document.
    """

    def __init__(self, contract: PromptContract, tokenizer: Any) -> None:
        self.contract = contract
        self.tokenizer = tokenizer
        self.control_tokens = control_tokens(tokenizer)
        self.suffix_ids = self._pieces_ids(contract.suffix.split(CUT))
        self._blocks = functools.lru_cache(maxsize=KEPT_DOCUMENTS)(self._blocks_of)
        frame = len(self._pieces_ids(contract.head_pieces(""))) + len(self.suffix_ids) + self.line_tokens
        for room, why in ((LEAST_DOCUMENT_TOKENS, ""), *self._room_wanted):
            least = frame + contract.query_tokens + room
            if least > contract.max_tokens:
                raise UserError(
                    f"prompt.max_tokens: {contract.max_tokens} is too small: frame, instruction and "
                    f"{contract.query_tokens} query tokens leave no room for {why or 'a document'}; use at least "
                    f"{least}, or lower prompt.query_tokens"
                )

    @property
    def line_tokens(self) -> int:
        """Tokens of the longest line with a first stage's score; 0 under a contract without one."""
        return 0 if (line := self.contract.first_stage_score) is None else len(self.tokens(line.line(line.levels)).ids)

    @property
    def _room_wanted(self) -> list[tuple[int, str]]:
        block = f"a block of {BLOCK_TOKENS} tokens (prompt.long_documents: {BLOCKS})"
        wanted = {BLOCKS: [(BLOCK_TOKENS, block)], PAIRWISE: [(2 * LEAST_DOCUMENT_TOKENS, "two documents")]}
        return wanted.get(self.contract.long_documents.strategy, [])

    def under(self, instruction: str | None) -> PromptEncoder:
        """The encoder under another instruction; itself for None and for an instruction that changes nothing."""
        contract = self.contract if instruction is None else self.contract.under(instruction, self.tokenizer)
        return self if contract is self.contract else PromptEncoder(contract, self.tokenizer)

    def reading(self, long_documents: LongDocuments) -> PromptEncoder:
        """The encoder that reads other parts of long documents."""
        if long_documents == self.contract.long_documents:
            return self
        return PromptEncoder(self.contract.replace(long_documents=long_documents), self.tokenizer)

    def clean(self, text: str) -> str:
        """Text as it enters the prompt: stripped, control tokens neutralised."""
        return neutralise(text.strip(), self.control_tokens).strip()

    def cut_query(self, query: str) -> tuple[str, bool]:
        """A clean query of at most query_tokens tokens, cut between characters, and whether it was cut."""
        limit, was_cut = self.contract.query_tokens, False
        while True:
            encoding = self.tokenizer(query, add_special_tokens=False, return_offsets_mapping=True)
            if len(encoding["input_ids"]) <= limit:
                return query, was_cut
            # A part of a word may be more tokens alone than inside the word: continue until it fits.
            end = min(encoding["offset_mapping"][limit][0], len(query) - 1)
            query, was_cut = query[:end].rstrip(), True

    def encode(self, query: str, documents: Sequence[str], *, cut: bool = True) -> EncodedGroup:
        """Token ids of one query with its documents (raw user texts), a prompt for each.

        Under `max` a document beyond the budget is its window with the best BM25 score: the one that training labels.
        cut=False: whole documents.
        """
        head, ids = self.encode_head(query), self.encode_documents(documents)
        return self.fitted(query, documents, head, ids) if cut else self.assemble(*head, ids, cut=False)

    def encode_scored(self, query: str, documents: Sequence[str]) -> EncodedGroup:
        """All prompts whose scores decide: as encode(), but under `max` every window of each document."""
        return self.fitted(query, documents, self.encode_head(query), self.encode_documents(documents), every=True)

    def texts(self, query: str, document: str, *, every: bool = True) -> list[str]:
        """What a runtime that only cuts must be given in place of a document, so that the largest score is ours.

        every: all windows under `max`, else the one that training labels. A document that fits is given as it is.
        """
        room = self._room(self.encode_head(query)[0])
        if self.contract.long_documents.strategy == CUT_OFF or len(self.encode_documents([document])[0]) <= room:
            return [document]
        return [part.text for part in self._parts(query, document, room, every=every)]

    def encode_head(self, query: str) -> tuple[list[int], bool]:
        """Ids of everything before the document, and whether the query was cut."""
        query, query_cut = self.cut_query(self.clean(query))
        return self._pieces_ids(self.contract.head_pieces(query)), query_cut

    def encode_documents(self, documents: Sequence[str]) -> list[list[int]]:
        """Ids of the documents alone, not cut."""
        texts = [self.contract.document_prefix + self.clean(d) for d in documents]
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    def assemble(
        self, head_ids: list[int], query_cut: bool, documents_ids: Sequence[list[int]], *, cut: bool = True
    ) -> EncodedGroup:
        """A group from the results of encode_head and encode_documents: documents cut to the budget, suffix added."""
        budget = self._room(head_ids)
        documents_cut = sum(len(ids) > budget for ids in documents_ids) if cut else 0
        tails = [(ids[:budget] if cut else list(ids)) + self.suffix_ids for ids in documents_ids]
        return EncodedGroup(head_ids, tails, query_cut, documents_cut)

    def fitted(
        self,
        query: str,
        documents: Sequence[str],
        head: tuple[list[int], bool],
        ids: Sequence[list[int]],
        *,
        every: bool = False,
    ) -> EncodedGroup:
        """The group of raw texts whose ids are known: of documents beyond the budget at least more than the budget.

        every: see texts().
        """
        strategy, room = self.contract.long_documents.strategy, self._room(head[0])
        if strategy == CUT_OFF:
            return self.assemble(*head, ids)
        found = [
            [own] if len(own) <= room else [p.ids for p in self._parts(query, document, room, every=every)]
            for document, own in zip(documents, ids, strict=True)
        ]
        # A block alone, or a single character, may still be too long.
        tails = [part[:room] + self.suffix_ids for parts in found for part in parts]
        counts = tuple(map(len, found))
        if strategy == MAX and every:
            return EncodedGroup(head[0], tails, head[1], 0, counts)
        return EncodedGroup(head[0], tails, head[1], sum(len(own) > room for own in ids))

    def _room(self, head_ids: Sequence[int]) -> int:
        """Tokens of a document beside this head."""
        return self.contract.max_tokens - len(head_ids) - len(self.suffix_ids)

    def _parts(self, query: str, document: str, room: int, *, every: bool) -> list[Part]:
        """What is scored in place of a document beyond the budget, which its strategy is not to cut."""
        own, (line, text) = self.contract.long_documents, self.contract.split_level(self.clean(document))
        # Each part begins with the line, and is read as a document of its own.
        room -= len(self.tokens(line).ids) if line else 0
        if own.strategy == PAIRWISE:
            parts = [halves(text, room, self.tokens)]
        elif own.strategy == BLOCKS:
            parts = [self._blocks(text).packed(own.words(query), room, self.tokens)]
        else:
            parts = windows(text, room, self.tokens)
            parts = parts if every else [best_window(query, parts, own.words)]
        texts = [line + self.contract.document_prefix + part.text for part in parts] if line else []
        return [Part(text, self.tokens(text).ids) for text in texts] if line else parts

    def _blocks_of(self, text: str) -> Blocks:
        return Blocks(text, self.tokens(text), self.contract.long_documents.words)

    def tokens(self, text: str) -> Tokens:
        """Tokens of a clean document, as they stand in a prompt, not cut."""
        before = self.contract.document_prefix
        found = self.tokenizer(before + text, add_special_tokens=False, return_offsets_mapping=True)
        return Tokens.of(list(found["input_ids"]), found["offset_mapping"], len(before))

    def render(self, query: str, document: str) -> str:
        """The whole prompt as one string, the document not cut: what a chat template renders."""
        query, _ = self.cut_query(self.clean(query))
        return "".join(self.contract.whole_pieces(query, self.clean(document)))

    def encode_whole(self, query: str, document: str) -> EncodedGroup:
        """Ids of the whole string, split where encode() splits them, to prove that both ways agree.

        A frame that its vendor tokenises in pieces is encoded in those pieces; most frames are one piece.
        """
        cut, query_cut = self.cut_query(self.clean(query))
        ids = self._pieces_ids(self.contract.whole_pieces(cut, self.clean(document)))
        head = len(self._pieces_ids(self.contract.head_pieces(cut)))
        return EncodedGroup(ids[:head], [ids[head:]], query_cut, 0)

    def _pieces_ids(self, pieces: Sequence[str]) -> list[int]:
        return [number for piece in pieces if piece for number in self._ids(piece)]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
