"""`rankwright data check`: every set of a recipe, or of a file or folder, with all its faults, by file and line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankwright.common import console, resources
from rankwright.common.errors import UserError, no_such
from rankwright.common.plurals import counted
from rankwright.data import leakage, sources
from rankwright.data.collection import Collection
from rankwright.data.discovery import Wanted, find_lines, find_sets, unread, wanted_judgement, wanted_text
from rankwright.data.formats.reading import Faults, OnFault
from rankwright.data.formats.tables import is_table
from rankwright.data.formats.trec import is_trec, run_file
from rankwright.data.guesses import Named, columns_text, read_as
from rankwright.data.sources import Located, locate_all
from rankwright.data.statistics import Finding, Level
from rankwright.evaluation.metrics import Scale
from rankwright.model.long_documents import BLOCKS, CUT_OFF, MAX, PAIRWISE
from rankwright.model.prompt import PromptEncoder
from rankwright.pipeline.data import SetReports, run_file_faults, stops_a_run
from rankwright.recipe.loading import LoadedRecipe
from rankwright.recipe.schema import Model, Recipe
from rankwright.recipe.sources import Data, DevFromTrain, TestFromTrain

# Limits per kind: rows with faults that are kept, and findings whose line is looked up. The report counts them all.
MOST_ROWS = 1000
MOST_PLACES = 200
SPLITS = ("train", "dev", "test")
# What happens to the documents that are counted as cut below.
LONG = {
    CUT_OFF: "",
    MAX: "; longer documents are read in windows (prompt.long_documents: max), and not cut",
    PAIRWISE: "; of longer pairs each document is cut to its share",
    BLOCKS: "; of longer documents the best blocks are read (prompt.long_documents: blocks), and not the start",
}
# A problem of a whole set: its text is complete.
SET, UNUSABLE = "set", "cannot be used"


@dataclass(frozen=True, slots=True)
class Example:
    """One text, group of texts or judgement that has a problem.

    where: `file:line` in the order of ids, one per (query, document) of judgements; "" where none was found.
    """

    ids: tuple[str, ...]
    where: tuple[str, ...] = ()
    what: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """A kind of fault in one split of one set; count: how often; examples: the first."""

    level: Level
    split: str
    set: str
    of: str
    kind: str
    what: str
    count: int
    examples: tuple[Example, ...]


@dataclass(slots=True)
class DataCheck:
    """What was found. statistics: split -> one row per set; tokens: whose tokens are counted, or why none are."""

    title: str
    tokens: str
    statistics: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def count(self, level: Level) -> int:
        """How many problems there are of a level."""
        return sum(problem.level == level for problem in self.problems)


def check_recipe(loaded: LoadedRecipe) -> DataCheck:
    """Check all entries of a recipe. Raises UserErrors for entries that are not there."""
    recipe = loaded.recipe
    entries = locate_all(recipe.data)
    encoder, tokens = _encoder(recipe)
    check = DataCheck(f"recipe {recipe.name} ({resources.shown(loaded.path)})", tokens)
    checker = _Checker(check, SetReports(recipe.bm25), encoder, recipe.data.on_fault, recipe)
    if isinstance(recipe.data.test, TestFromTrain):
        del entries["test"]
        console.say(f"test: {recipe.data.test.fraction:.0%} of the training queries, taken out by a run")
    for split, located in sorted(entries.items(), key=lambda item: SPLITS.index(item[0])):
        for entry in located:
            if entry.source.synthesized is not None:
                console.say(f"{split}: {entry.name}: queries that a run writes; `rankwright synthesize` shows them")
                continue
            checker.look(entry, split)
    if isinstance(recipe.data.dev, DevFromTrain):
        fraction = recipe.data.dev.fraction
        console.say(f"dev: {fraction:.0%} of the training queries, taken out by a run; train is whole here")
    check.problems += _between_splits(recipe, checker.read)
    return check


def _between_splits(recipe: Recipe, read: Mapping[str, Sequence[Collection]]) -> list[Problem]:
    """What train shares with dev and test, and whether dev can be taken out of train, as in a run."""
    kept, problems = _leaks(recipe.data.on_leak, read)
    try:
        if isinstance(recipe.data.dev, DevFromTrain) and kept:
            fraction = recipe.data.dev.fraction
            for taken in leakage.take_out("dev", kept, fraction=fraction, seed=recipe.seed, say=lambda line: None)[1]:
                lines = stops_a_run(taken, "dev", Scale.of(recipe.evaluate))
                problems += [Problem("error", "dev", taken.name, SET, UNUSABLE, line, 1, ()) for line in lines]
    except UserError as error:
        problems += _of_train(error)
    return problems


def _leaks(on_leak: OnFault, read: Mapping[str, Sequence[Collection]]) -> tuple[list[Collection], list[Problem]]:
    """What is left of train, nothing where leaks stop a run; what train shares with dev and test."""
    train, dev, test = (read.get(split, ()) for split in SPLITS)
    problems = []
    try:
        kept, _, leaks = leakage.keep_apart(train, dev, test, on_leak=on_leak, say=console.say)
    except UserError as error:
        return [], _of_train(error)
    for row in leaks:
        kinds = ", ".join(f"{kind} {found['queries']:,}" for kind, found in row["kinds"].items())
        what = (
            f"{counted(row['leaking'], 'query is', 'queries are')} in {row['held_out']} too, dropped by "
            f"on_leak: drop ({kinds})"
        )
        problems.append(Problem("warning", row["split"], "all sets", SET, "leak", what, row["leaking"], ()))
    return kept, problems


def _of_train(error: UserError) -> list[Problem]:
    return [Problem("error", "train", "all sets", SET, UNUSABLE, line, 1, ()) for line in str(error).splitlines()]


def check_path(
    path: Path,
    split: str | None,
    base: str | None,
    given: Named = Named(),  # noqa: B008 (frozen)
) -> DataCheck:
    """Check a file or folder, all its splits or one. base: a model whose tokenizer counts, under its default prompt.

    given: as in a recipe; what is not given is guessed as `init` does.
    """
    found = find_sets(path, given.encoding)
    left = unread(path, found)
    if split is not None:
        names = sorted({name for one in found for name in (one.split, one.upstream) if name})
        found = [one for one in found if split in (one.split, one.upstream)] or [
            one for one in found if one.split is one.upstream is None
        ]
        if not found:
            raise UserError(f"{path}: {no_such('split', split, names)}")
    recipe = Recipe(name="check", model=Model(base=base or "none"), data=Data())
    if base is None:
        encoder, tokens = None, "Lengths in tokens need a model: add --base MODEL, or check a recipe."
    else:
        encoder, tokens = _encoder(recipe)
    check = DataCheck(str(path), tokens)
    checker = _Checker(check, SetReports(recipe.bm25), encoder, "stop", recipe)
    for one in sorted(found, key=lambda one: SPLITS.index(one.split) if one.split else len(SPLITS)):
        format = read_as(one, given)
        if format.question:
            raise UserError(format.question)
        if format.guessed and not given.columns:
            console.say(f"{one.path}: guessed by names and values: {columns_text(format)}")
        source = format.source(str(one.path), one.upstream or split)
        run = run_file(one.path, one.upstream) if one.path.is_dir() and is_trec(one.path) else None
        entry = Located(source, one.name, one.upstream or split or "", one.path, run=run)
        checker.look(entry, one.split or one.upstream or split or "all")
    if len(checker.read.keys() & set(SPLITS)) > 1:
        check.problems += _leaks("stop", checker.read)[1]
    for file, why in left.items():
        # A file that looks like rows is missed; a PDF beside them mostly is not.
        level: Level = "warning" if is_table(file) else "note"
        check.problems.append(Problem(level, "all", resources.shown(file), SET, "not read", f"not read: {why}", 1, ()))
    return check


def _encoder(recipe: Recipe) -> tuple[PromptEncoder | None, str]:
    """The encoder, None without a tokenizer, and a sentence about it."""
    from rankwright.training.setup import recipe_encoder

    console.say(f"tokenizer of {recipe.model.base} ...")
    try:
        encoder = recipe_encoder(recipe)
    except UserError as error:
        return None, f"no lengths in tokens: the tokenizer cannot be had ({error})"
    contract = encoder.contract
    return encoder, (
        f"tokens of {recipe.model.base}, prompt {contract.mode}: at most {contract.max_tokens}, the query at most "
        f"{contract.query_tokens}" + LONG[contract.long_documents.strategy]
    )


@dataclass(slots=True)
class _Checker:
    """Looks at one set after the other and writes into `check`."""

    check: DataCheck
    reports: SetReports
    encoder: PromptEncoder | None
    on_fault: OnFault
    recipe: Recipe
    read: dict[str, list[Collection]] = field(default_factory=dict)
    reported: set[tuple[Path | None, Finding]] = field(default_factory=set)

    def look(self, entry: Located, split: str) -> None:
        """Read a set with all its faults, and look at what could be read."""
        console.say(f"{split}: {entry.name}")
        # Whatever the recipe sets: so all faults are seen, and the rest of the rows is looked at.
        faults = Faults("drop", examples=MOST_ROWS)
        collection: Collection | None = None
        stopped: list[str] = []
        try:
            collection = sources.read(entry, lambda line: console.say(f"  {line}"), faults)
        except UserError as error:
            stopped = str(error).splitlines()
        self.check.problems += self._of_rows(entry, split, faults)
        repeated = tuple(row.examples[0] for row in faults.dropped)
        stopped = [line for line in stopped if not line.startswith(repeated)] if repeated else stopped
        if collection is not None:
            stopped += stops_a_run(collection, split, Scale.of(self.recipe.evaluate))
            stopped += run_file_faults(self.recipe, collection, entry.run, split)
            row, findings = self.reports.look(collection)
            if self.encoder is not None:
                row["tokens"] = self.reports.tokens(collection, self.encoder)
            row["rows_with_faults"] = faults.rows_dropped
            self.check.statistics.setdefault(split, []).append(row)
            self.read.setdefault(split, []).append(collection)
            # Two splits of one folder share a corpus, which is not reported twice.
            new = [one for one in findings if (entry.path, one) not in self.reported]
            self.reported.update((entry.path, one) for one in new)
            self.check.problems += located(new, collection, entry, split)
        self.check.problems += [Problem("error", split, entry.name, SET, UNUSABLE, line, 1, ()) for line in stopped]

    def _of_rows(self, entry: Located, split: str, faults: Faults) -> Iterator[Problem]:
        level: Level = "error" if self.on_fault == "stop" else "warning"
        what = "would stop a run" if self.on_fault == "stop" else "dropped by on_fault: drop"
        for row in faults.dropped:
            examples = tuple(Example((), (), text) for text in row.examples)
            yield Problem(level, split, entry.name, "rows", row.kind, f"{row.file}: {what}", row.count, examples)


def located(findings: Sequence[Finding], collection: Collection, entry: Located, split: str) -> Iterator[Problem]:
    """The findings of a set; the first of each kind have their lines, where the files have lines."""
    wanted: list[Wanted] = []
    slots: list[tuple[int, int]] = []
    for number, finding in enumerate(findings):
        for place, ids in enumerate(finding.ids[:MOST_PLACES]):
            mine = list(_wanted(finding, ids, collection))
            wanted += mine
            slots += [(number, place)] * len(mine)
    places = {} if entry.path is None else find_lines(wanted, entry.path, entry.split or None, entry.source.encoding)
    where: dict[tuple[int, int], list[str]] = {}
    for number, slot in enumerate(slots):
        where.setdefault(slot, []).append(places.get(number, ""))
    for number, one in enumerate(findings):
        examples = tuple(Example(ids, tuple(where.get((number, i), ()))) for i, ids in enumerate(one.ids))
        yield Problem(one.level, split, collection.name, one.of, one.kind, one.what, len(one.ids), examples)


def _wanted(finding: Finding, ids: tuple[str, ...], collection: Collection) -> Iterator[Wanted]:
    if finding.of == "judgements":
        for query_id, document_id in zip(ids[::2], ids[1::2], strict=True):
            yield wanted_judgement(
                (query_id, document_id), (collection.queries[query_id], collection.corpus[document_id])
            )
        return
    texts = collection.corpus if finding.of == "documents" else collection.queries
    for key in ids:
        yield wanted_text(key, texts[key])
