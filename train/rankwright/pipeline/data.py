"""The data stage: reads and splits the sets, refuses what would stop a run later, and writes data_report.json."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rankwright.common import console, resources
from rankwright.common.errors import UserError, UserErrors
from rankwright.common.hashing import content_hash, files_hash
from rankwright.common.outputs import CHANGED, remove
from rankwright.common.plurals import counted
from rankwright.common.run_folder import RunFolder
from rankwright.data import leakage, splits
from rankwright.data.collection import Collection
from rankwright.data.judged_pairs import decided
from rankwright.data.judgements import counts_of
from rankwright.data.sources import as_stated, locate_all, read_all
from rankwright.data.split_files import read_split, write_split
from rankwright.data.statistics import Finding, TextFacts, counts, findings, text_facts
from rankwright.data.store.texts import spilling_to
from rankwright.data.words import Words
from rankwright.evaluation.evaluate import choose_queries
from rankwright.evaluation.metrics import LINEAR, Scale
from rankwright.model.lengths import document_lengths, token_report
from rankwright.model.long_documents import BLOCKS, CUT_OFF, MAX, PAIRWISE
from rankwright.model.prompt import PromptEncoder
from rankwright.recipe.schema import LEAST_DEV_QUERIES, Bm25, Recipe
from rankwright.recipe.sources import DevFromTrain, TestFromTrain
from rankwright.retrieval import run_file
from rankwright.retrieval.first_stages import training_stage
from rankwright.training.loss_terms import needs_positive

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
    entries = locate_all(recipe.data, run.synthetic)
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
    _warn_of_few_dev_queries(recipe, dev)
    if recipe.is_pairwise:
        dev, test = ([decided(collection) for collection in split] for split in (dev, test))
    by_split = {"train": train, "dev": dev, "test": test}
    _require_relevant(recipe, by_split)
    for collection in test:
        # Its evaluation writes run files that are read again after training.
        for ids in (collection.queries, collection.corpus):
            run_file.columns_of(ids, f"set {collection.name!r}")
    _require_whole_labels([*dev, *test])
    _require_gains(recipe, [*dev, *test])
    corpora = {file for split, found in by_split.items() for file in write_split(run.data, split, found)}
    reports = SetReports(recipe.bm25)
    counts = {split: [reports.look(c)[0] for c in collections] for split, collections in by_split.items()}
    overlaps = _overlaps(train, {"dev": dev, "test": test})
    laid = [
        {"set": one.name, "split": split, "file": one.judgements.name, **counts_of(one.judgements)}
        for split in ("train", *(s for s in ("dev", "test") if entries.get(s) is not entries["train"]))
        for one in entries.get(split, ())
        if one.judgements is not None
    ]
    report = {
        "splits": counts,
        "judgements": laid,
        "dropped": dropped,
        "overlap_with_train": overlaps,
        "leakage": leaks,
    }
    run.write_json(run.data_report, report)
    queries = {split: sum(row["queries"] for row in rows) for split, rows in counts.items()}
    return {**queries, "corpora": sorted(corpora), "teacher_scores": [c.name for c in train if c.teacher_scores]}


def check_run_files(recipe: Recipe, run: RunFolder, run_files: Mapping[str, Mapping[str, Path | None]]) -> None:
    """Read the run files of all sets, before hours of work. Raises UserErrors with what is wrong in them.

    run_files: split -> set -> its file.
    """
    faults = []
    for split, files in run_files.items():
        if any(files.values()):
            for collection in read_split(run.data, split):
                faults += run_file_faults(recipe, collection, files.get(collection.name), split)
    if faults:
        raise UserErrors(faults)


def check_probabilities(recipe: Recipe, run: RunFolder) -> None:
    """Raise UserErrors for labels of train that a loss would take for probabilities and that are none.

    Whenever the data are there: another loss reads no set again.
    """
    # torch comes with it, which `init` and `data check` need not load.
    from rankwright.training.loss_terms import probability_scales

    scales = probability_scales(recipe.loss, of_teacher=False)
    if not scales:
        return
    promoted = recipe.mine.filters.get("teacher", {})
    places = {"mine.filters.teacher.label": promoted.get("label", 1.0)} if promoted.get("above") == "promote" else {}
    for collection in read_split(run.data, "train"):
        for query_id, judged in collection.qrels.items():
            # The widest of each set are enough to name.
            for document_id in {choose(judged, key=judged.__getitem__) for choose in (min, max) if judged}:
                places[f"set {collection.name!r}, query {query_id!r}, document {document_id!r}"] = judged[document_id]
    faults = [_no_probability(key, scale, places) for key, scale in scales]
    if any(faults):
        raise UserErrors([fault for fault in faults if fault])


def _no_probability(key: str, scale: float, places: Mapping[str, float]) -> str:
    """One line about the label that is farthest from 0 to scale; empty where all lie there."""
    where = max(places, key=lambda place: max(-places[place], places[place] - scale), default="")
    if not where or 0 <= places[where] <= scale:
        return ""
    mend = f"write {key}={places[where]:g}" if places[where] > scale else "map the labels with data.train[].labels"
    return f"{key}: {scale:g}: the label {places[where]:g} ({where}) is not from 0 to {scale:g}: {mend}"


def run_file_faults(recipe: Recipe, collection: Collection, path: Path | None, split: str) -> list[str]:
    """What would stop a run in the run file of a set: one line with file and line per mistake."""
    if path is None:
        return []
    query_ids: Sequence[str] = list(collection.queries)
    depth = recipe.mine.depth
    if split == "test":
        level, limit = recipe.evaluate.relevance_level, recipe.evaluate.limit_queries
        chosen = choose_queries(collection, limit=limit, seed=recipe.seed, level=level)
        query_ids, depth = chosen.query_ids, recipe.evaluate.depth
    try:
        run_file.read_lists(path, collection.corpus, {q: collection.queries[q] for q in query_ids}, depth)
    except UserError as error:
        return str(error).splitlines()
    return []


def dev_share(queries: int) -> float:
    """The share of this many training queries that dev takes: a tenth, or up to three tenths for evaluate.combine."""
    return min(0.3, max(0.1, math.ceil(120 * LEAST_DEV_QUERIES / max(queries, 1)) / 100))


def _warn_of_few_dev_queries(recipe: Recipe, dev: Sequence[Collection]) -> None:
    """Before hours of training: the combination with the first stage cannot be chosen on so few."""
    level, evaluation = recipe.evaluate.relevance_level, recipe.evaluate
    if evaluation.combine is None or training_stage(recipe) != evaluation.first_stage:
        return
    found = min(sum(bool(c.positives(q, level)) for c in dev for q in c.queries), recipe.train.dev_queries)
    if found < LEAST_DEV_QUERIES:
        more = "data.dev.fraction" if isinstance(recipe.data.dev, DevFromTrain) else "data.dev"
        more = more if recipe.train.dev_queries >= LEAST_DEV_QUERIES else "train.dev_queries"
        console.say(
            f"WARNING: dev has {counted(found, 'query')} with a relevant document, and evaluate.combine needs "
            f"{LEAST_DEV_QUERIES}: tuned will not be combined with the first stage (w = 1): raise {more}"
        )


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


def _require_gains(recipe: Recipe, collections: Sequence[Collection]) -> None:
    """Raise UserErrors for labels that `evaluate.gains` does not name: one line for each label of a set."""
    faults = [line for collection in collections for line in _without_gains(collection, Scale.of(recipe.evaluate))]
    if faults:
        # Dev and test may have sets of one name.
        raise UserErrors(list(dict.fromkeys(faults)))


def _without_gains(collection: Collection, scale: Scale) -> list[str]:
    labels = {label for judged in collection.qrels.values() for label in judged.values()}
    return [
        f"evaluate.gains: the label {label:g} of set {collection.name!r} has no gain: add `{label:g}: GAIN`"
        for label in scale.without_gain(labels)
    ]


def _require_relevant(recipe: Recipe, by_split: Mapping[str, Sequence[Collection]]) -> None:
    """Raise UserError for a split in which nothing is relevant, unless a teacher or judges stand in for labels."""
    for split, collections in by_split.items():
        level = recipe.evaluate.relevance_level if split != "train" else 1
        # Documents alone may have no test.
        missing = split != "test" or collections
        if split == "test" and (bare := [c.name for c in collections if not any(c.qrels.values())]):
            raise UserError(f"data.test: {', '.join(bare)}: no judgements: nothing can be measured there, leave it out")
        if split == "train" and recipe.has_teacher and not needs_positive(recipe.loss):
            continue
        if missing and not any(c.positives(q, level) for c in collections for q in c.queries):
            if recipe.is_pairwise:
                raise UserError(f"data.{split}: every pair is a tie: judge more pairs, or take a larger fraction")
            raise UserError(_nothing_relevant(split, collections, level))


def _nothing_relevant(split: str, collections: Sequence[Collection], level: int) -> str:
    if level == 1:
        return f"data.{split}: no query has a relevant document: give judgements with a score above 0"
    labels = sorted({label for c in collections for judged in c.qrels.values() for label in judged.values()})
    return (
        f"data.{split}: no query has a document with a label of {level} or more, the evaluate.relevance_level: the "
        f"labels are {', '.join(f'{x:g}' for x in labels)}, as relevant_from of a set leaves them: set it to one"
        " of them"
    )


def stops_a_run(collection: Collection, split: str, scale: Scale = LINEAR) -> list[str]:
    """What the data stage would refuse in a set that can be read: one line per mistake. scale: of the recipe."""
    mistakes = [] if split == "train" else _without_gains(collection, scale)
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

    def __init__(self, bm25: Bm25) -> None:
        self.code = bm25.code
        self._words = Words(**bm25.model_dump())
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
        return token_report(collection, encoder, self._lengths[key], self._words)

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
    reports = SetReports(recipe.bm25)
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
    return content_hash(
        recipe.model.base, recipe.model.revision, content, recipe.prompt.model_dump(), recipe.bm25.model_dump(), stated
    )


def cut_warning(tokens: Mapping[str, Any]) -> str:
    """What to set where more than MOST_CUT of the judged pairs are cut; empty where they are not."""
    pairs = tokens["judged_pairs"]
    if pairs["cut"] <= MOST_CUT * pairs["pairs"] or tokens["long_documents"] != CUT_OFF:
        return ""
    share = pairs["cut"] / pairs["pairs"]
    return (
        f"{share:.0%} of the judged pairs are cut; prompt.max_tokens={pairs['p99']} would cut 1 %, and "
        "prompt.long_documents=max or =blocks reads what lies beyond"
    )


def cut_sentence(tokens: Mapping[str, Any]) -> str:
    """Lengths and what the budgets cut, in words."""
    queries, pairs, relevant = tokens["queries"], tokens["judged_pairs"], tokens["relevant_pairs"]
    ends = {
        CUT_OFF: f"cut to {pairs['budget']}, {counted(pairs['tokens_lost'], 'token')} lost",
        MAX: f"beyond {pairs['budget']}, read in windows",
        BLOCKS: f"beyond {pairs['budget']}, read by their best blocks",
        PAIRWISE: f"beyond {pairs['budget']}, both documents cut to their share",
    }
    return (
        f"queries p50 {queries['p50']}, max {queries['max']} tokens, {queries['cut']:,} cut to {queries['budget']}; "
        f"documents p50 {tokens['documents']['p50']}, max {tokens['documents']['max']} tokens; "
        f"{pairs['cut']:,} of {pairs['pairs']:,} judged pairs {ends[tokens['long_documents']]}"
    ) + (f"; {beyond_sentence(relevant)}" if relevant["beyond"] else "")


def beyond_sentence(relevant: Mapping[str, int]) -> str:
    """What relevant_report found, in words."""
    parts = [f"{relevant['beyond']:,} of {relevant['pairs']:,} relevant documents are beyond the budget"]
    for known, what in (("best", "the block that BM25 finds best for the query"), ("answers", "the answer")):
        if relevant[f"{known}_known"]:
            parts.append(f"{what} lies beyond a cut in {relevant[f'{known}_cut']:,} of {relevant[f'{known}_known']:,}")
    return ", ".join(parts)
