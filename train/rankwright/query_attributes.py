"""What is known of every test query before a model sees it: lengths, cuts, overlap, domain, what train has seen."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rankwright import console, mining
from rankwright.atomic import file_sha256, read_json_object, write_lines_atomic, write_text_atomic
from rankwright.cards import load_card
from rankwright.data_files import read_split
from rankwright.errors import UserError
from rankwright.examples import Collection
from rankwright.keyed_texts import get_many
from rankwright.recipe import Recipe
from rankwright.resources import resolve_base
from rankwright.retrieve import Candidate, Words
from rankwright.run_folder import RunFolder, code_version, content_hash
from rankwright.splits import normalised_key

if TYPE_CHECKING:
    from rankwright.prompts import PromptEncoder

Seen = Literal["unseen", "partly", "seen"]
FILE = "queries.jsonl"
# Documents handed to the tokenizer at once: only their lengths are kept.
BATCH = 512


@dataclass(frozen=True, slots=True)
class QueryAttributes:
    """One test query with its candidates and its relevant documents.

    query_tokens, document_tokens_*: tokens of the texts alone, before any cut; None without candidates
    candidates_cut, relevant_cut: candidates, and relevant ones among them, that are cut at the prompt's budget
    overlap: share of the query's distinct BM25 words that a relevant document has; None for a query without words
    domain: the card's, where the set comes from a card, else the set's name
    relevant, relevant_found, relevant_seen: relevant documents; those among the candidates; those whose text
        (as splits.normalised compares) is relevant to a train query. seen: the last as a word for all of them
    """

    query_id: str
    query_tokens: int
    query_cut: bool
    document_tokens_mean: float | None
    document_tokens_max: int | None
    candidates: int
    candidates_cut: int
    relevant_cut: int
    overlap: float | None
    domain: str
    relevant: int
    relevant_found: int
    relevant_seen: int
    seen: Seen


def write_attributes(recipe: Recipe, run: RunFolder) -> None:
    """Write eval/TESTSET/queries.jsonl for every test set that has candidates; unchanged files are kept."""
    todo = []
    tests = read_split(run.path / "data", "test")
    for collection in tests:
        folder = run.path / "eval" / collection.name
        if not (folder / "candidates.jsonl").is_file():
            continue
        inputs = {"inputs": _inputs(recipe, run, folder / "candidates.jsonl")}
        if not ((folder / FILE).is_file() and read_json_object(folder / "queries.json") == inputs):
            todo.append((collection, folder, inputs))
    if not todo:
        return
    from rankwright.setup_model import recipe_encoder

    encoder, domains = recipe_encoder(recipe), _domains(recipe)
    seen = seen_in_training(read_split(run.path / "data", "train"))
    words = Words(recipe.mine.language, code=recipe.mine.code)
    for collection, folder, inputs in todo:
        candidates = mining.read_candidates(folder / "candidates.jsonl")
        domain = domains.get(collection.name, collection.name)
        rows = attributes(collection, candidates, encoder.under(collection.instruction), words, seen, domain)
        (folder / "queries.json").unlink(missing_ok=True)
        lines = (json.dumps(dataclasses.asdict(row), ensure_ascii=False, allow_nan=False) for row in rows)
        write_lines_atomic(folder / FILE, lines)
        write_text_atomic(folder / "queries.json", json.dumps(inputs) + "\n")


def attributes(
    collection: Collection,
    candidates: Mapping[str, Sequence[Candidate]],
    encoder: PromptEncoder,
    words: Words,
    seen_texts: frozenset[bytes],
    domain: str,
) -> list[QueryAttributes]:
    """A row for each query that has a (maybe empty) list of candidates, by query id."""
    ids = sorted({c.document_id for found in candidates.values() for c in found})
    lengths = _document_tokens(ids, collection.corpus, encoder)
    rows = []
    for query_id in sorted(q for q in candidates if q in collection.queries):
        query, listed = collection.queries[query_id], [c.document_id for c in candidates[query_id]]
        head, query_cut = encoder.encode_head(query)
        budget = encoder.contract.max_tokens - len(head) - len(encoder.suffix_ids)
        cut = {d for d in listed if lengths[d] > budget}
        relevant = sorted(collection.positives(query_id))
        query_words = set(words(query))
        document_words = {word for d in relevant for word in words(collection.corpus[d])}
        seen = sum(normalised_key(collection.corpus[d]) in seen_texts for d in relevant)
        tokens = [lengths[d] for d in listed]
        rows.append(
            QueryAttributes(
                query_id=query_id,
                query_tokens=len(encoder.tokenizer(encoder.clean(query), add_special_tokens=False)["input_ids"]),
                query_cut=query_cut,
                document_tokens_mean=round(sum(tokens) / len(tokens), 2) if tokens else None,
                document_tokens_max=max(tokens, default=None),
                candidates=len(listed),
                candidates_cut=len(cut),
                relevant_cut=len(cut & set(relevant)),
                overlap=round(len(query_words & document_words) / len(query_words), 4) if query_words else None,
                domain=domain,
                relevant=len(relevant),
                relevant_found=len(set(listed) & set(relevant)),
                relevant_seen=seen,
                seen="unseen" if seen == 0 else "seen" if seen == len(relevant) else "partly",
            )
        )
    return rows


def seen_in_training(train: Sequence[Collection]) -> frozenset[bytes]:
    """The splits.normalised_key of the texts that are relevant to some train query."""
    return frozenset(normalised_key(c.corpus[d]) for c in train for q in c.queries for d in c.positives(q))


def read_attributes(path: Path) -> list[QueryAttributes]:
    """What write_attributes wrote. Raises UserError with file and line for anything else."""
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                rows.append(QueryAttributes(**json.loads(line)))
            except (ValueError, TypeError) as error:
                raise UserError(
                    f"{path}:{number}: not a row of attributes ({error}): delete it and give `rankwright run` again"
                ) from None
    return rows


def _document_tokens(ids: Sequence[str], corpus: Mapping[str, str], encoder: PromptEncoder) -> dict[str, int]:
    """Document id -> tokens, not cut; as the prompt counts them."""
    lengths: dict[str, int] = {}
    with console.progress("lengths of the candidates", len(ids)) as advance:
        for start in range(0, len(ids), BATCH):
            batch = ids[start : start + BATCH]
            found = encoder.encode_documents(get_many(corpus, batch))
            lengths |= {d: len(tokens) for d, tokens in zip(batch, found, strict=True)}
            advance(len(batch))
    return lengths


def _domains(recipe: Recipe) -> dict[str, str]:
    cards = [(source.name, load_card(source.card)) for source in recipe.data.test if source.card is not None]
    return {name or card.name: card.domain for name, card in cards}


def _inputs(recipe: Recipe, run: RunFolder, candidates: Path) -> str:
    base = Path(resolve_base(recipe.model.base))
    tokenizer = [file_sha256(f) for f in (base / "tokenizer.json", base / "rankwright.json") if f.is_file()]
    sections = recipe.model_dump(mode="json", include={"prompt", "data"})
    data = [file_sha256(run.path / "data" / f"{split}.jsonl") for split in ("train", "test")]
    words = (recipe.mine.language, recipe.mine.code)
    model = (recipe.model.base, recipe.model.revision)
    # A card's domain may change where its path does not.
    texts = (words, data, _domains(recipe))
    return content_hash(sections, model, tokenizer, texts, file_sha256(candidates), code_version())
