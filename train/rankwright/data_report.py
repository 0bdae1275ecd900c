"""The statistics of all sets of a run or a check: each corpus is looked at once, with progress; data_report.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankwright import console, resources
from rankwright.data_files import read_split
from rankwright.data_statistics import Finding, TextFacts, counts, findings, text_facts
from rankwright.errors import UserError
from rankwright.examples import Collection
from rankwright.prompts import PromptEncoder
from rankwright.recipe import Recipe
from rankwright.run_folder import RunFolder, content_hash, files_hash
from rankwright.token_lengths import document_lengths, token_report

REPORT = "data_report.json"


class SetReports:
    """Statistics and findings of sets; what only depends on a corpus is made once for each content."""

    def __init__(self, *, code: bool) -> None:
        self.code = code
        self._documents: dict[bytes, TextFacts] = {}
        self._lengths: dict[bytes, dict[str, int]] = {}

    def look(self, collection: Collection) -> tuple[dict[str, Any], list[Finding]]:
        """(numbers as data_report.json has them, what a person should look at)."""
        key = _content(collection.corpus)
        if key not in self._documents:
            self._documents[key] = self._facts(collection.name, collection.corpus, queries=False)
        documents = self._documents[key]
        queries = self._facts(collection.name, collection.queries, queries=True)
        return counts(collection, documents, queries), findings(collection, documents, queries)

    def tokens(self, collection: Collection, encoder: PromptEncoder) -> dict[str, Any]:
        """Lengths in tokens and what the budgets cut, see token_lengths; always give the same encoder."""
        key = _content(collection.corpus)
        if key not in self._lengths:
            with console.progress(f"  {collection.name}: tokens", len(collection.corpus)) as advance:
                self._lengths[key] = document_lengths(collection.corpus, encoder, advance)
        return token_report(collection, encoder, self._lengths[key])

    def _facts(self, name: str, texts: Mapping[str, str], *, queries: bool) -> TextFacts:
        what = "queries" if queries else "documents"
        with console.progress(f"  {name}: duplicates of {what}", len(texts)) as advance:
            return text_facts(texts, queries=queries, code=self.code, advance=advance)


def _content(corpus: Mapping[str, str]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for key, text in corpus.items():
        data = f"{len(key)} {key} {len(text)} {text}".encode("utf-8", "surrogatepass")
        digest.update(data)
    return digest.digest()


def add_token_lengths(recipe: Recipe, run: RunFolder) -> None:
    """Put token lengths into data_report.json where they are missing, or are of another tokenizer or prompt.

    They are no part of the data stage: another prompt reads no set again. Without the tokenizer it says so.
    """
    path = run.path / REPORT
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    own = _tokenizer_inputs(recipe)
    if report.get("tokens_of") == own:
        return
    from rankwright.setup_model import recipe_encoder

    try:
        encoder = recipe_encoder(recipe)
    except UserError as error:
        console.say(f"lengths in tokens are left out of {REPORT}, for want of the tokenizer: {error}")
        return
    reports = SetReports(code=recipe.mine.code)
    for split, rows in report["splits"].items():
        for row, collection in zip(rows, read_split(run.path / "data", split), strict=True):
            row["tokens"] = reports.tokens(collection, encoder)
            console.say(f"  {collection.name} ({split}): {cut_sentence(row['tokens'])}")
    run.write_json(REPORT, {**report, "tokens_of": own})


def _tokenizer_inputs(recipe: Recipe) -> str:
    base = resources.resolve_base(recipe.model.base)
    file = Path(base) / "tokenizer.json"
    content = files_hash([file]) if file.is_file() else None
    stated = "instruction" in recipe.prompt.model_fields_set
    return content_hash(recipe.model.base, recipe.model.revision, content, recipe.prompt.model_dump(), stated)


def cut_sentence(tokens: Mapping[str, Any]) -> str:
    """What the budgets cut, in words."""
    queries, pairs = tokens["queries"], tokens["judged_pairs"]
    return (
        f"queries p50 {queries['p50']}, max {queries['max']} tokens, {queries['cut']:,} cut to {queries['budget']}; "
        f"documents p50 {tokens['documents']['p50']}, max {tokens['documents']['max']} tokens; "
        f"{pairs['cut']:,} of {pairs['pairs']:,} judged pairs cut to {pairs['budget']}, {pairs['tokens_lost']:,} "
        "tokens lost"
    )
