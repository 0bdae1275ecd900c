"""Reranker.load(path).score / .rank: the scoring engine and the public Python API."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rankwright.common.errors import UserError, no_such, one_line
from rankwright.common.lineage import model_folder
from rankwright.common.plurals import counted
from rankwright.common.resources import resolve_base
from rankwright.common.values import list_of_texts, numbers_or_none, one_text, path_text, whole_number
from rankwright.model.bases import Origin, find_file, find_origin, refuse_other_kinds, refuse_unread
from rankwright.model.frames import FRAMES
from rankwright.model.loading import load_model, load_tokenizer
from rankwright.model.long_documents import AS_CUT, MAX, LongDocuments
from rankwright.model.prompt import CONTRACT_FILE, EncodedGroup, PromptContract, PromptEncoder, make_contract
from rankwright.model.rank_model import RankModel
from rankwright.rerankers.combination import Combination, combined_scores, levels_of, listed
from rankwright.rerankers.scorer import Scorer, text_groups, windows
from rankwright.retrieval.candidates import Candidate

# Prompts are gathered over queries up to this many tokens before they are scored together.
WINDOW_TOKENS = 65536
DEFAULT_MAX_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Ranked:
    """One document of a ranking: its place in the input, its text, raw score and probability.

    probability: sigmoid(score), as every runtime of an export gives it; calibrated: sigmoid(score / temperature), with
    the temperature that was fitted on dev (1 where none was). The order is the same by all three.
    first_stage: the first stage's score, where rank() was given those; combined: the score that ordered the list then.
    """

    index: int
    document: str
    score: float
    probability: float
    calibrated: float
    first_stage: float | None = None
    combined: float | None = None


class Reranker(Scorer):
    """A model with its tokenizer and prompt contract.

    >>> reranker = Reranker.load("runs/quickstart/export/hf")
    >>> reranker.rank("what is a bond?", ["A bond is a loan.", "A cat."])[0].index
    0
    """

    def __init__(
        self, model: RankModel, tokenizer: Any, contract: PromptContract, encoder: PromptEncoder | None = None
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.contract = contract
        self.encoder = encoder or PromptEncoder(contract, tokenizer)
        self.cut_queries = 0
        self.cut_documents = 0
        self.windows = 0

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        mode: str | None = None,
        instruction: str | None = None,
        max_tokens: int | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        base: str | Path | None = None,
        pairwise: bool = False,
    ) -> Reranker:
        """An exported folder, a run folder (its export is loaded), an adapter folder, a local base or a hub id.

        An export in a run folder that was trained or evaluated again since is loaded with a warning.

        A folder with rankwright.json is scored under that contract. Any other is scored in the frame it was trained in,
        which its files or its name tell, or `mode` states; raises UserError where neither does.
        base: where the base of an adapter folder lies, when its settings do not name a hub id.
        device: by default a GPU where there is one. dtype: a floating type of the weights; scores stay in fp32.
        pairwise: takes a model that compares two documents, too, which scores no document alone and is refused else.
        Raises UserError too for a value that has another type, or that torch does not know.
        """
        path = path_text("model", path)
        base = None if base is None else path_text("base", base)
        mode, instruction = (
            None if value is None else one_text(name, value)
            for name, value in (("mode", mode), ("instruction", instruction))
        )
        if mode is not None and mode not in FRAMES:
            raise UserError(f"mode: {no_such(FRAMES.kind, mode, FRAMES)}")
        max_tokens = None if max_tokens is None else whole_number("max_tokens", max_tokens)
        _check_device(device, dtype)
        folder = model_folder(resolve_base(path, "model"))
        refuse_unread(folder)
        tokenizer = load_tokenizer(folder)
        own = Own(instruction, max_tokens)
        contract = native_contract(folder, tokenizer, name=path, mode=mode, own=own)
        if contract.is_pairwise and not pairwise:
            raise UserError(compares_only(path))
        if instruction and not contract.takes_instruction:
            raise UserError(f"instruction: the frame {contract.mode} of {path} has no place for one: leave it out")
        model = load_model(folder, contract, tokenizer, dtype=dtype, base=base)
        target = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(model.to(target).eval(), tokenizer, contract)

    @property
    def cut(self) -> dict[str, int]:
        counts = {"documents_cut": self.cut_documents, "queries_cut": self.cut_queries}
        in_windows = self.contract.long_documents.strategy == MAX
        return counts | ({"windows": self.windows} if in_windows else {})

    @property
    def mode(self) -> str:
        return self.contract.mode

    def under(self, instruction: str | None) -> Reranker:
        """The same model under another instruction; None, and one that changes nothing: itself."""
        encoder = self.encoder.under(instruction)
        return self if encoder is self.encoder else Reranker(self.model, self.tokenizer, encoder.contract, encoder)

    def reading(self, long_documents: LongDocuments) -> Reranker:
        """The same model that reads other parts of long documents, see model/long_documents.py."""
        encoder = self.encoder.reading(long_documents)
        return self if encoder is self.encoder else Reranker(self.model, self.tokenizer, encoder.contract, encoder)

    def rank(
        self,
        query: str,
        documents: Iterable[str],
        top_k: int | None = None,
        first_stage_scores: Iterable[float | None] | None = None,
    ) -> list[Ranked]:
        """Documents by descending score, ties in input order; all of them, or the best top_k.

        documents: a list of texts, or what gives texts in an order: a column of pandas, NumPy, Arrow or datasets, a
        generator. `index` is the place in that order, from 0, whatever labels a column has.
        first_stage_scores: those of the search that found the documents, one for each; None: it did not find this one.
        With them the order is that of `combined`, by the weight, normaliser and depth that were fitted on dev and that
        the export carries; see rerankers/combination.py. An export without these orders by its own score. A model that
        was trained with prompt.first_stage_score reads them too.
        Raises UserError for what is not text, for a top_k that is not a whole number of at least 1, for first-stage
        scores that are not finite numbers, and for another number of them than of documents.
        """
        texts = list_of_texts("documents", documents)
        if top_k is not None:
            top_k = whole_number("top_k", top_k)
        found = None if first_stage_scores is None else numbers_or_none("first_stage_scores", first_stage_scores)
        if found is not None and len(found) != len(texts):
            raise UserError(
                f"first_stage_scores: {counted(len(found), 'score')} for {counted(len(texts), 'document')}: "
                "give one for each"
            )
        scores = self.score(query, texts) if found is None else self._score_found(query, texts, found)
        combined = None if found is None else combined_scores(scores, found, Combination.of(self.contract))
        by = scores if combined is None else combined
        order = sorted(range(len(texts)), key=lambda i: (-by[i], i))[:top_k]
        logits = torch.tensor(scores, dtype=torch.float64)
        probability, calibrated = (torch.sigmoid(logits / t).tolist() for t in (1.0, self.contract.temperature))
        ours = [Ranked(i, texts[i], scores[i], probability[i], calibrated[i]) for i in order]
        if found is None or combined is None:
            return ours
        return [dataclasses.replace(one, first_stage=found[one.index], combined=combined[one.index]) for one in ours]

    def _score_found(self, query: str, texts: Sequence[str], found: Sequence[float | None]) -> list[float]:
        """The scores where a first stage gave `found`."""
        line = self.contract.first_stage_score
        levels = [None] * len(texts) if line is None else levels_of(found, line.levels)
        read = [self.contract.with_level(text, level) for text, level in zip(texts, levels, strict=True)]
        return next(iter(self.score_groups([(query, read)])))

    def listed(
        self, documents: Sequence[str], document_ids: Sequence[str] = (), found: Sequence[Candidate] = ()
    ) -> Sequence[str]:
        return listed(self.contract, documents, document_ids, found)

    def score_groups(self, groups: Iterable[tuple[str, Sequence[str]]]) -> Iterator[list[float]]:
        """Scores of each (query, documents) in turn, streamed; prompts are batched over queries."""
        for window in windows(self._encode(groups), lambda group: group.tokens, WINDOW_TOKENS):
            yield from self._score_window(list(map(_distinct, window)))

    def _encode(self, groups: Iterable[tuple[str, Sequence[str]]]) -> Iterator[EncodedGroup]:
        for query, documents in text_groups(groups):
            encoded = self.encoder.encode_scored(query, documents)
            self.cut_queries += encoded.query_cut
            self.cut_documents += encoded.documents_cut
            self.windows += len(encoded.tail_ids)
            yield encoded

    def _score_window(self, window: Sequence[tuple[EncodedGroup, list[list[int]]]]) -> Iterator[list[float]]:
        scored = [group for group, _ in window if group.tail_ids]
        was_training = self.model.training
        self.model.eval()
        with torch.inference_mode():
            scores = self.model(scored).tolist() if scored else []
        self.model.train(was_training)
        start = 0
        for group, places in window:
            yield [max(scores[start + place] for place in own) for own in places]
            start += len(group.tail_ids)


def _check_device(device: str | torch.device | None, dtype: torch.dtype) -> None:
    """Raises UserError for a device that is not here, before anything is read, and for a dtype that is not floating."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UserError(f"dtype: must be a floating type of torch, such as torch.bfloat16, found {dtype!r}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        why = one_line(str(error).split("\n")[0])
        raise UserError(
            f"device: {device!r} cannot be used ({why}): give cpu, cuda or another of this machine"
        ) from None


def _distinct(group: EncodedGroup) -> tuple[EncodedGroup, list[list[int]]]:
    """(the group with equal prompts once, the places of each document's prompts): equal prompts tie exactly."""
    found: dict[tuple[int, ...], int] = {}
    places = iter([found.setdefault(tuple(tail), len(found)) for tail in group.tail_ids])
    counts = (1,) * len(group.tail_ids) if group.windows is None else group.windows
    own = [list(itertools.islice(places, count)) for count in counts]
    return EncodedGroup(group.head_ids, list(map(list, found)), group.query_cut, group.documents_cut), own


def compares_only(model: str) -> str:
    """One line for a pairwise student where a reranker is wanted."""
    return (
        f"{model}: compares two documents, and scores none alone: it is a judge of teacher.pairs, {{kind: pairwise, "
        f"model: {model}}}"
    )


def saved_contract(folder: str, revision: str | None = None) -> PromptContract | None:
    """The contract that a local folder or a hub repository carries, or None. Raises UserError for a broken one."""
    found = find_file(folder, CONTRACT_FILE, revision)
    return None if found is None else PromptContract.load(found.parent)


class Own(NamedTuple):
    """Values of the user's own in place of a contract's; None: the contract's."""

    instruction: str | None = None
    max_tokens: int | None = None
    query_tokens: int | None = None
    long_documents: LongDocuments | None = None


def native_contract(
    folder: str,
    tokenizer: Any,
    *,
    name: str | None = None,
    mode: str | None = None,
    unknown: str | None = None,
    own: Own | None = None,
    revision: str | None = None,
) -> PromptContract:
    """The contract a base was made for, the one it carries or its family's, with `own` values where given.

    An instruction is left out where the frame has no place for one.
    name: what the base is called (a hub id), when `folder` is a copy under another name.
    mode: the frame of a base that carries no contract, as its user states it; unknown: only where it is not found.
    Raises UserError for a base that is not a decoder with one score, or whose frame is neither found nor stated.
    """
    instruction, max_tokens, query_tokens, long_documents = own or Own()
    name = name or folder
    refuse_other_kinds(name, folder, revision)
    saved = saved_contract(folder, revision)
    if saved is not None and saved.is_pairwise and long_documents not in (None, saved.long_documents):
        raise UserError(compares_only(name))
    if saved is None:
        origin = Origin(mode) if mode is not None else _origin(name, folder, tokenizer, revision, unknown)
        return make_contract(
            tokenizer,
            mode=origin.mode,
            instruction=origin.instruction if instruction is None else instruction,
            max_tokens=next((n for n in (max_tokens, origin.max_tokens) if n is not None), DEFAULT_MAX_TOKENS),
            query_tokens=query_tokens,
            long_documents=long_documents or AS_CUT,
        )
    if mode is not None and mode != saved.mode:
        raise UserError(f"mode: {name} carries its own prompt contract, of the frame {saved.mode}: leave mode out")
    if instruction is not None:
        saved = saved.under(instruction, tokenizer)
    if max_tokens is not None or query_tokens is not None:
        limit = saved.max_tokens if max_tokens is None else max_tokens
        saved = saved.replace(max_tokens=limit, query_tokens=limit // 4 if query_tokens is None else query_tokens)
    return saved if long_documents is None else saved.replace(long_documents=long_documents)


def _origin(name: str, folder: str, tokenizer: Any, revision: str | None, unknown: str | None) -> Origin:
    try:
        return find_origin(name, folder, tokenizer, revision)
    except UserError:
        if unknown is None:
            raise
    return Origin(unknown)
