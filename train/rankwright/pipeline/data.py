"""The data stage: reads and splits the sets, refuses what would stop a run later, and writes data_report.json."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rankwright.common import console, resources
from rankwright.common.errors import UserError, UserErrors
from rankwright.common.hashing import content_hash, files_hash
from rankwright.common.outputs import CHANGED, remove
from rankwright.common.run_folder import RunFolder
from rankwright.data import leakage, splits
from rankwright.data.collection import Collection
from rankwright.data.sources import as_stated, locate_all, read_all
from rankwright.data.split_files import read_split, write_split
from rankwright.data.statistics import Finding, TextFacts, counts, findings, text_facts
from rankwright.data.store.texts import spilling_to
from rankwright.evaluation.evaluate import choose_queries
from rankwright.model.lengths import document_lengths, token_report
from rankwright.model.prompt import PromptEncoder
from rankwright.recipe.schema import DevFromTrain, Recipe, TestFromTrain
from rankwright.retrieval import run_file

# The share of judged pairs above which a warning states what would keep them whole.
MOST_CUT = 0.1


def prepare_data(recipe: Recipe, run: RunFolder) -> dict[str, Any]:
    """Write data/{train,dev,test}.jsonl, data/corpora and data_report.json.

    Returns the stage's facts: the queries of each split, the corpora, the training sets with a teacher's scores.
    """
    # Corpora too large for memory are spilled into the run's folder, where they are kept: nothing is copied.
    # A corpus is named by its texts, so that one of an earlier run would be taken for this one, even if it is damaged.
    for path in (run.data / "corpora").glob("*"):
        if path.suffix != CHANGED:
            remove(path)
    with spilling_to(run.data):
        return _prepare_data(recipe, run)


def _prepare_data(recipe: Recipe, run: RunFolder) -> dict[str, Any]:
    entries = locate_all(recipe.data)
    dropped: list[dict[str, Any]] = []

    def read(split: str) -> list[Collection]:
        console.say(split)
        found = read_all(entries[split], console.say, on_fault=recipe.data.on_fault, dropped=dropped)
        return as_stated(found, [e.source for e in entries[split]], seed=recipe.seed, say=console.say)

    train = read("train")
    dev = [] if isinstance(recipe.data.dev, DevFromTrain) else read("dev")
    if isinstance(recipe.data.test, TestFromTrain):
        # The same queries whatever the seed: runs that differ in it are compared.
        train, test = leakage.take_out("test", train, fraction=recipe.data.test.fraction, seed=0, say=console.say)
    else:
        test = read("test")
    train, dev, leaks = leakage.keep_apart(train, dev, test, on_leak=recipe.data.on_leak, say=console.say)
    if isinstance(recipe.data.dev, DevFromTrain):
        # After leaks into test were removed: dev then has none, and keeps its size.
        fraction = recipe.data.dev.fraction
        train, dev = leakage.take_out("dev", train, fraction=fraction, seed=recipe.seed, say=console.say)
    by_split = {"train": train, "dev": dev, "test": test}
    for split, collections in by_split.items():
        if not any(c.positives(q) for c in collections for q in c.queries):
            raise UserError(f"data.{split}: no query has a relevant document: give judgements with a score above 0")
    for collection in test:
        # Its evaluation writes run files that are read again after training.
        for ids in (collection.queries, collection.corpus):
            run_file.columns_of(ids, f"set {collection.name!r}")
    _require_whole_labels([*dev, *test])
    corpora = {file for split, found in by_split.items() for file in write_split(run.data, split, found)}
    reports = SetReports(code=recipe.bm25.code)
    counts = {split: [reports.look(c)[0] for c in collections] for split, collections in by_split.items()}
    overlaps = _overlaps(train, {"dev": dev, "test": test})
    report = {"splits": counts, "dropped": dropped, "overlap_with_train": overlaps, "leakage": leaks}
    run.write_json(run.data_report, report)
    queries = {split: sum(row["queries"] for row in rows) for split, rows in counts.items()}
    return {**queries, "corpora": sorted(corpora), "teacher_scores": [c.name for c in train if c.teacher_scores]}


def check_run_files(recipe: Recipe, run: RunFolder, run_files: Mapping[str, Mapping[str, Path | None]]) -> None:
    """Read the run files of training and test sets, before hours of work. Raises UserErrors with what is wrong in them.

    run_files: split -> set -> its file.
    """
    faults = []
    for split, files in run_files.items():
        if any(files.values()):
            for collection in read_split(run.data, split):
                faults += run_file_faults(recipe, collection, files.get(collection.name), split)
    if faults:
        raise UserErrors(faults)


def run_file_faults(recipe: Recipe, collection: Collection, path: Path | None, split: str) -> list[str]:
    """What would stop a run in the run file of a set: one line with file and line per mistake."""
    if path is None:
        return []
    query_ids: Sequence[str] = list(collection.queries)
    depth = recipe.mine.depth
    if split == "test":
        chosen = choose_queries(collection, limit=recipe.evaluate.limit_queries, seed=recipe.seed)
        query_ids, depth = chosen.query_ids, recipe.evaluate.depth
    try:
        run_file.read_lists(path, collection.corpus, {q: collection.queries[q] for q in query_ids}, depth)
    except UserError as error:
        return str(error).splitlines()
    return []


def _require_whole_labels(collections: Sequence[Collection]) -> None:
    """Raise UserError before hours of training: measures need whole labels."""
    for collection in collections:
        for query_id, judged in collection.qrels.items():
            for document_id, label in judged.items():
                if label != int(label):
                    raise UserError(
                        f"set {collection.name!r}: query {query_id!r}, document {document_id!r}: the label {label} is "
                        "not a whole number, which nDCG@10 needs on dev and test: use 0, 1, 2, ..."
                    )


def stops_a_run(collection: Collection, split: str) -> list[str]:
    """What the data stage would refuse in a set that can be read: one line per mistake."""
    mistakes = []
    if split != "train":
        try:
            _require_whole_labels([collection])
        except UserError as error:
            mistakes.append(str(error))
    for ids in (collection.queries, collection.corpus) if split == "test" else ():
        try:
            run_file.columns_of(ids, f"set {collection.name!r}")
        except UserError as error:
            mistakes.append(str(error))
    return mistakes


def _overlaps(train: Sequence[Collection], held_out: Mapping[str, Sequence[Collection]]) -> list[dict[str, Any]]:
    """What train shares with dev and test: reported, since a score on what was trained on is memory, not skill."""
    rows = []
    for ours in train:
        for split, theirs in ((split, c) for split, collections in held_out.items() for c in collections):
            report = dataclasses.asdict(splits.overlap(ours, theirs))
            counts = {k.replace("_", " "): v for k, v in report.items() if isinstance(v, int) and v}
            if counts:
                rows.append({"train": ours.name, "split": split, "held_out": theirs.name, **report})
                shown = ", ".join(f"{name} {count}" for name, count in counts.items())
                console.say(f"shared between train {ours.name} and {split} {theirs.name}: {shown}")
    return rows


class SetReports:
    """Statistics and findings of sets; two sets with equal corpora share what depends on the corpus alone."""

    def __init__(self, *, code: bool) -> None:
        self.code = code
        self._documents: dict[bytes, TextFacts] = {}
        self._lengths: dict[bytes, dict[str, int]] = {}

    def look(self, collection: Collection) -> tuple[dict[str, Any], list[Finding]]:
        """(figures for data_report.json, findings for a person)."""
        key = _content(collection.corpus)
        if key not in self._documents:
            self._documents[key] = self._facts(collection.name, collection.corpus, queries=False)
        documents = self._documents[key]
        queries = self._facts(collection.name, collection.queries, queries=True)
        return counts(collection, documents, queries), findings(collection, documents, queries)

    def tokens(self, collection: Collection, encoder: PromptEncoder) -> dict[str, Any]:
        """Lengths in tokens and what the budgets cut, see token_report; give the same encoder in every call."""
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
        digest.update(f"{len(key)} {key} {len(text)} {text}".encode("utf-8", "surrogatepass"))
    return digest.digest()


def add_token_lengths(recipe: Recipe, run: RunFolder) -> bool:
    """Put token lengths into data_report.json where they are missing, or come from another tokenizer or prompt.

    Returns whether it was written.

    This comes after the data stage: another prompt reads no set again. A missing tokenizer is reported.
    """
    path = run.data_report
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    own = _tokenizer_inputs(recipe)
    if report.get("tokens_of") == own:
        return False
    from rankwright.training.setup import recipe_encoder

    try:
        encoder = recipe_encoder(recipe)
    except UserError as error:
        console.say(f"lengths in tokens are left out of {path.name}, the tokenizer is missing: {error}")
        return False
    reports = SetReports(code=recipe.bm25.code)
    for split, rows in report["splits"].items():
        for row, collection in zip(rows, read_split(run.data, split), strict=True):
            row["tokens"] = reports.tokens(collection, encoder)
            console.say(f"  {collection.name} ({split}): {cut_sentence(row['tokens'])}")
            if warning := cut_warning(row["tokens"]):
                console.say(f"  WARNING: {collection.name} ({split}): {warning}")
    run.write_json(run.data_report, {**report, "tokens_of": own})
    return True


def _tokenizer_inputs(recipe: Recipe) -> str:
    base = resources.resolve_base(recipe.model.base)
    file = Path(base) / "tokenizer.json"
    content = files_hash([file]) if file.is_file() else None
    stated = "instruction" in recipe.prompt.model_fields_set
    return content_hash(recipe.model.base, recipe.model.revision, content, recipe.prompt.model_dump(), stated)


def cut_warning(tokens: Mapping[str, Any]) -> str:
    """What to set where more than MOST_CUT of the judged pairs are cut; empty where they are not."""
    pairs = tokens["judged_pairs"]
    if pairs["cut"] <= MOST_CUT * pairs["pairs"]:
        return ""
    share = pairs["cut"] / pairs["pairs"]
    return f"{share:.0%} of the judged pairs are cut; prompt.max_tokens={pairs['p99']} would cut 1 %"


def cut_sentence(tokens: Mapping[str, Any]) -> str:
    """Lengths and what the budgets cut, in words."""
    queries, pairs = tokens["queries"], tokens["judged_pairs"]
    return (
        f"queries p50 {queries['p50']}, max {queries['max']} tokens, {queries['cut']:,} cut to {queries['budget']}; "
        f"documents p50 {tokens['documents']['p50']}, max {tokens['documents']['max']} tokens; "
        f"{pairs['cut']:,} of {pairs['pairs']:,} judged pairs cut to {pairs['budget']}, {pairs['tokens_lost']:,} "
        "tokens lost"
    )
