"""`rankwright init`: looks at a user's files and writes a commented recipe for them that passes `check`."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from rankwright.cli.naming import own_name, slug, written_base, written_path, yaml_text
from rankwright.common import console, resources
from rankwright.common.errors import UserError, UserErrors
from rankwright.common.files import write_text_atomic
from rankwright.common.plurals import counted
from rankwright.data import leakage
from rankwright.data.collection import Collection
from rankwright.data.discovery import FoundSet, find_sets, take_test, unread, write_taken
from rankwright.data.formats.detect import kinds_of
from rankwright.data.formats.read import read_collection
from rankwright.data.formats.reading import Faults, OnFault
from rankwright.data.formats.rows import DOCUMENTS, QUERIES, is_judgement, negatives_of
from rankwright.data.guesses import Format, Named, columns_text, first_rows, read_as
from rankwright.data.normalisation import normalised_key
from rankwright.data.sources import Located, read
from rankwright.data.statistics import SHARE_OF_CODE, drawn, share_of_code
from rankwright.model.lengths import Budget, choose_budget
from rankwright.model.prompt import PromptEncoder
from rankwright.pipeline.data import dev_share, stops_a_run
from rankwright.recipe.loading import load_recipe
from rankwright.recipe.schema import Model, Prompt, Recipe
from rankwright.recipe.sources import Data, DevFromTrain

# The JSON schema beside the recipe, for editors.
SCHEMA = "rankwright.schema.json"
DEFAULT_BASE = "Qwen/Qwen3-Reranker-0.6B"
# Stands in a draft for what the user knows.
FILL_IN = "FILL_IN"
# Longer than any text that is measured.
UNBOUNDED_TOKENS = 10**6


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user states: columns (ours -> theirs), labels (value -> label), and what happens to rows with faults.

    encoding: that of the text files.
    """

    columns: Mapping[str, str]
    labels: Mapping[str, float]
    on_fault: OnFault
    encoding: str | None = None


def init(paths: Sequence[Path], output: Path, *, base: str, name: str | None, fraction: float, wishes: Wishes) -> None:
    """Write `output`; without a test split also a folder beside it, with test queries taken out of train.

    Where the columns of a file are not known, `output` is a draft with `columns` to fill in, and UserErrors name them.
    Raises UserErrors too for faults of the files, and when something would be overwritten.
    """
    resources.check_output("--output", output)
    refuse_existing(output)
    folder = output.with_name(f"{output.name.split('.')[0]}-data")
    resources.resolve_base(base)
    name = name or own_name(output, paths)
    by_path = {path: find_sets(path, wishes.encoding) for path in paths}
    found = [one for sets in by_path.values() for one in sets]
    chosen, left_out = _choose(found)
    home = output.parent
    entries = read_sets(chosen, wishes, home, lambda formats: _draft(output, base, name, chosen, formats))
    said = [f"{one.path}: left out, no split in its name" for one in left_out]
    said += [line for entry in entries for line in _all_above(entry)]
    said += _same_rows(entries)
    said += [f"{file}: not read: {why}" for path in paths for file, why in unread(path, by_path[path]).items()]
    if not any(entry.split == "test" for entry in entries):
        refuse_existing(folder)
        entries, more = _take_out(entries, folder, home, fraction)
        said += more
    leaks = _rehearse(entries)
    train = [entry.collection for entry in entries if entry.split == "train"]
    queries = [text for c in train for text in drawn(c.queries)]
    corpus = [text for c in train for text in drawn(c.corpus)]
    relevant = [text for c in train for text in drawn({d: c.corpus[d] for q in c.queries for d in c.positives(q)})]
    encoder, missing = _encoder(base)
    budget = choose_budget(queries, corpus, relevant, encoder)
    code = {c.name: share for c in train if (share := share_of_code(drawn(c.corpus))) >= SHARE_OF_CODE}
    text = recipe_text(
        name=name or slug(entries[0].name),
        base=written_base(base, home),
        entries=entries,
        said=said,
        budget=budget,
        code=code,
        on_fault=wishes.on_fault,
        leaks=leaks,
    )
    write_recipe(output, text)
    for entry in entries:
        console.say(f"{entry.split}: {entry.name} ({entry.path}): {entry.found}")
    for line in [*said, *missing, *leaks]:
        console.say(line)
    console.say(f"prompt.max_tokens {budget.max_tokens}: {budget.why}")
    for set_name, share in code.items():
        console.say(f"bm25.code: {share:.0%} of the documents of {set_name} look like code")
    console.say(next_steps(output, without_base=bool(missing)))


def write_recipe(output: Path, text: str) -> None:
    """Write a recipe, and beside it the schema that its first line names. Raises UserErrors for one that is wrong."""
    # What init writes must be right: it is loaded before it is written.
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        load_recipe(str(path))
    write_text_atomic(output, text)
    # A generated file, written anew.
    write_text_atomic(output.with_name(SCHEMA), resources.schema_file().read_text(encoding="utf-8"))


def next_steps(output: Path, *, without_base: bool = False) -> str:
    """What to do with the recipe that was written."""
    shown = shlex.quote(resources.shown(output))
    first = f"    set model.base in {shown} to a base that this machine has, or connect it to the hub\n"
    return (
        f"written: {output}. Next:\n{first if without_base else ''}"
        f"    rankwright check {shown}\n    rankwright run {shown}"
    )


def _rehearse(entries: Sequence[Entry]) -> list[str]:
    """The leaks that a run would find between the splits, in words. Raises UserErrors for other faults that stop it."""
    train, dev, test = ([e.collection for e in entries if e.split == split] for split in ("train", "dev", "test"))
    leaks: list[str] = []
    try:
        leakage.keep_apart(train, dev, test, on_leak="stop", say=lambda line: None)
    except UserError as error:
        leaks = [line.split(": set data.on_leak", 1)[0] for line in str(error).splitlines()]
        train, dev, _ = leakage.keep_apart(train, dev, test, on_leak="drop", say=lambda line: None)
    if not dev:
        train, dev = leakage.take_out("dev", train, fraction=DevFromTrain().fraction, seed=0, say=lambda line: None)
    mistakes = [line for split, sets in (("dev", dev), ("test", test)) for c in sets for line in stops_a_run(c, split)]
    if mistakes:
        raise UserErrors(mistakes)
    return leaks


def refuse_existing(path: Path) -> None:
    """Raise UserError for what is there already."""
    if path.exists():
        raise UserError(f"{path} is there already, and is not overwritten: remove it, or use -o OTHER.yaml")


def _choose(found: Sequence[FoundSet]) -> tuple[list[tuple[FoundSet, str]], list[FoundSet]]:
    """(sets with the split they become, sets left out)."""
    by_split: dict[str | None, list[FoundSet]] = {}
    for one in found:
        by_split.setdefault(one.split, []).append(one)
    named = [(one, one.split) for one in found if one.split is not None]
    if "train" in by_split:
        return named, by_split.get(None, [])
    if None in by_split:
        # Sets without a split in their names are for training, beside those for dev and test.
        return [*((one, "train") for one in by_split[None]), *named], []
    if "dev" not in by_split:
        # There are only test sets: queries are taken out of them again.
        return [(one, "train") for one, _ in named], []
    splits = ", ".join(sorted(split or "" for split in by_split))
    raise UserError(f"no set for training was found, only {splits}: name a file or folder train, or name one more")


def read_sets(
    chosen: Sequence[tuple[FoundSet, str]],
    wishes: Wishes,
    home: Path,
    draft: Callable[[Sequence[Format]], NoReturn] | None = None,
) -> list[Entry]:
    """The sets. home: the recipe's folder.

    draft: called with the formats, where the files leave some open; without it, UserErrors name what is open.
    """
    entries: list[Entry] = []
    mistakes: list[str] = []
    droppable = False
    formats = [read_as(one, Named(wishes.columns, wishes.labels, wishes.encoding)) for one, _ in chosen]
    questions = [format.question for format in formats if format.question]
    if questions and draft is None:
        raise UserErrors(questions)
    if questions and draft is not None:
        draft(formats)
    for (one, split), format in zip(chosen, formats, strict=True):
        path = written_path(one.path, home)
        faults = Faults(wishes.on_fault)
        try:
            collection = read(
                Located(format.source(path, one.upstream), one.name, one.upstream or split, one.path), say, faults
            )
        except UserError as error:
            mistakes += str(error).splitlines()
            droppable = droppable or faults.noted > faults.whole
            continue
        for row in faults.dropped:
            say(f"{row.file}: {counted(row.count, 'row')} will be dropped, {row.kind}; first: {row.examples[0]}")
        entries.append(Entry(split, one.name, path, one.upstream, collection, format))
    if mistakes:
        advice = ["mend the files, or use --drop-faults to write on_fault: drop into the recipe"] if droppable else []
        raise UserErrors([*mistakes, *advice])
    return _named_apart(entries)


def _named_apart(entries: Sequence[Entry]) -> list[Entry]:
    """Sets of one split and name get the kinds of their files as well (`sales-csv`, `sales-xlsx`), or else numbers."""
    names = [(entry.split, entry.name) for entry in entries]
    twice = {name for split, name in names if names.count((split, name)) > 1}
    with_kinds = [
        replace(entry, name=f"{entry.name}-{kind}")
        if entry.name in twice and (kind := "-".join(Path(entry.path).name.split(".")[1:]))
        else entry
        for entry in entries
    ]
    kinds = [(entry.split, entry.name) for entry in with_kinds]
    if len({*kinds}) == len(kinds):
        return with_kinds
    return [
        replace(entry, name=f"{entry.name}-{number}") if entry.name in twice else entry
        for number, entry in enumerate(entries, 1)
    ]


def _same_rows(entries: Sequence[Entry]) -> Iterator[str]:
    """A line for sets of one split that hold the same judgements of the same texts, such as a table in two formats."""
    by_size: dict[tuple[str, int, int], list[Entry]] = {}
    for entry in entries:
        c = entry.collection
        by_size.setdefault((entry.split, len(c.queries), sum(map(len, c.qrels.values()))), []).append(entry)
    for similar in by_size.values():
        by_rows: dict[frozenset[tuple[bytes, bytes, float]], list[str]] = {}
        for entry in similar if len(similar) > 1 else ():
            c = entry.collection
            documents = {d: normalised_key(c.corpus[d]) for row in c.qrels.values() for d in row}
            queries = {q: normalised_key(c.queries[q]) for q in c.qrels}
            rows = frozenset(
                (queries[q], documents[d], label) for q, row in c.qrels.items() for d, label in row.items()
            )
            by_rows.setdefault(rows, []).append(entry.path)
        for paths in (paths for paths in by_rows.values() if len(paths) > 1):
            yield (
                f"{' and '.join(paths)} hold the same rows, which count {len(paths)} times: remove all but one, or "
                "name the files to read"
            )


def _draft(
    output: Path, base: str, name: str | None, chosen: Sequence[tuple[FoundSet, str]], formats: Sequence[Format]
) -> NoReturn:
    """Write a recipe whose columns or labels are to be filled in, and raise UserErrors that name them."""
    questions = [format.question for format in formats if format.question]
    lines = [
        "# A draft of `rankwright init`: replace each FILL_IN, by the name of a column or a number.",
        *(f"# {question}" for question in questions),
        f"name: {yaml_text(name or 'recipe')}",
        "model:",
        f"  base: {yaml_text(written_base(base, output.parent))}",
        "data:",
    ]
    for wanted in ("train", "dev", "test"):
        lines += [f"  {wanted}:"] if any(split == wanted for _, split in chosen) else []
        for (one, _), format in (pair for pair in zip(chosen, formats, strict=True) if pair[0][1] == wanted):
            lines += [
                f"    - name: {yaml_text(one.name)}",
                f"      path: {yaml_text(written_path(one.path, output.parent))}",
            ]
            columns = dict(format.columns)
            if format.question and not format.unclear:
                columns = {"query": FILL_IN, "document": FILL_IN, "label": FILL_IN} | columns
            labels = {value: f"{label:g}" for value, label in format.labels.items()}
            labels |= dict.fromkeys(format.unclear, FILL_IN)
            for key, pairs in (("columns", columns), ("labels", labels)):
                inside = ", ".join(
                    f"{yaml_text(k)}: {v if key == 'labels' else yaml_text(v)}" for k, v in pairs.items()
                )
                remark = "    # without a label all rows are relevant" if FILL_IN in columns.values() else ""
                lines += [f"      {key}: {{{inside}}}{remark if key == 'columns' else ''}"] if pairs else []
    write_text_atomic(output, "\n".join([*lines, ""]))
    shown = shlex.quote(resources.shown(output))
    raise UserErrors([*questions, f"a draft is written: fill it in, or remove {shown} and give --columns or --labels"])


def _all_above(entry: Entry) -> Iterator[str]:
    """A warning where each of several labels counts as relevant, as those of ratings by 1 to 5 stars do."""
    found = sorted({label for row in entry.collection.qrels.values() for label in row.values()})
    if len(found) > 1 and found[0] > 0:
        shown = ", ".join(f"{label:g}" for label in found[:6])
        yield (
            f"{entry.path}: its labels ({shown}) are all above 0, so all documents are relevant: if {found[0]:g} "
            "means not relevant, give the set `relevant_from` (the lowest relevant label), or --labels with its values"
        )


def say(line: str) -> None:
    """Print a line below that of its stage or file."""
    console.say(f"  {line}")


def _take_out(entries: Sequence[Entry], folder: Path, home: Path, fraction: float) -> tuple[list[Entry], list[str]]:
    """(the entries, with a test set taken out of each training set; what was done, in words)"""
    kept = [entry for entry in entries if entry.split != "train"]
    tests: list[Entry] = []
    said: list[str] = []
    for entry in entries:
        if entry.split != "train":
            continue
        rest, test = take_test(entry.collection, fraction=fraction, seed=0)
        place = folder / slug(entry.name, "set")
        train_path, test_path = write_taken(place, rest, test)
        for split, path in (("train", train_path), ("test", test_path)):
            upstream = split if path == "." else None
            # Read again: each side is reported as the recipe will find it.
            written = read_collection(place / path, name=entry.name, split=upstream, say=lambda line: None)
            written_as = Format("beir" if path == "." else "groups")
            new = Entry(split, entry.name, written_path(place / path, home), upstream, written, written_as)
            (kept if split == "train" else tests).append(new)
        if columns := _columns_read(entry, home):
            said.append(f"{entry.path}: columns used: {columns}")
        said.append(
            f"{entry.path}: no test split, so {len(test.queries):,} of "
            f"{counted(len(entry.collection.queries), 'query')} "
            f"({fraction:.0%} asked for) were taken out of it by a hash of their ids: train and test are both in "
            f"{written_path(place, home)}, a folder {'in BEIR layout' if train_path == '.' else 'with files of groups'}"
        )
    return kept + tests, said


def _columns_read(entry: Entry, home: Path) -> str:
    """The columns of a file that are read, in words; "" for a folder in a layout of its own."""
    path = home / entry.path
    if entry.format.columns or entry.format.labels:
        return columns_text(entry.format)
    if not path.is_file():
        return ""
    kinds = kinds_of(first_rows(path, Named(encoding=entry.format.encoding)))
    known = {*QUERIES, *DOCUMENTS, *negatives_of(kinds)}
    return ", ".join(name for name, kind in kinds.items() if name in known or is_judgement(name, kind))


def _encoder(base: str) -> tuple[PromptEncoder | None, list[str]]:
    # Brings torch, which nothing else here needs.
    from rankwright.training.setup import recipe_encoder

    prompt = Prompt(max_tokens=UNBOUNDED_TOKENS, query_tokens=UNBOUNDED_TOKENS // 4)
    try:
        return recipe_encoder(Recipe(name="look", model=Model(base=base), data=Data(), prompt=prompt)), []
    except UserError as error:
        return None, [f"the tokenizer of {base} cannot be had, lengths are estimated: {error}"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the recipe, and the set that was found there."""

    split: str
    name: str
    path: str
    upstream: str | None
    collection: Collection
    format: Format

    @property
    def found(self) -> str:
        """The set in words."""
        c = self.collection
        labels = sorted({label for row in c.qrels.values() for label in row.values()})
        extra = [what for what, has in (("teacher scores", c.teacher_scores), ("weights", c.weights)) if has]
        judged = sum(map(len, c.qrels.values()))
        return (
            f"{self.format.name}: {counted(len(c.queries), 'query')}, {counted(len(c.corpus), 'document')}, "
            f"{counted(judged, 'judgement')}"
            f" (labels {', '.join(f'{label:g}' for label in labels[:6])}{', ...' if len(labels) > 6 else ''})"
            + "".join(f", {what}" for what in extra)
        )


def recipe_text(
    *,
    name: str,
    base: str,
    entries: Sequence[Entry],
    said: Sequence[str],
    budget: Budget,
    code: Mapping[str, float],
    on_fault: OnFault,
    leaks: Sequence[str],
) -> str:
    """The recipe as a YAML file. code: training set -> share of its documents that look like code, where most do.

    said: where the sets come from; leaks: what train shares with dev or test, in words.
    """
    lines = [
        f"# yaml-language-server: $schema={SCHEMA}",
        "# Written by `rankwright init`. Relative paths start at the folder of this file, or at data.root.",
        f"name: {yaml_text(name)}",
        "",
        "model:",
        f"  base: {yaml_text(base)}",
        "",
        "data:",
        *(f"  # {line}" for line in said),
    ]
    if on_fault == "drop":
        lines.append("  on_fault: drop    # rows with faults are left out, and counted in data_report.json")
    if leaks:
        lines += [f"  # {line}" for line in leaks]
        lines.append("  on_leak: drop    # they are left out of training, and counted; without this a run stops")
    share = dev_share(sum(len(entry.collection.queries) for entry in entries if entry.split == "train"))
    for split in ("train", "dev", "test"):
        lines += split_lines(split, [entry for entry in entries if entry.split == split], share)
    lines += ["", "prompt:", f"  # {budget.why}", f"  max_tokens: {budget.max_tokens}"]
    if budget.query_tokens is not None:
        lines.append(f"  query_tokens: {budget.query_tokens}    # the queries are long: more than a quarter")
    lines.append("  # instruction: what a relevant document is to a query, in one sentence of your domain")
    if code:
        sets = ", ".join(f"{share:.0%} of the documents of {set_name}" for set_name, share in code.items())
        lines += ["", "bm25:", f"  code: true    # {sets} look like code: the words inside identifiers count too"]
    lines += [
        "",
        "gate:",
        "  # What is served is the model combined with the search whose lists it reorders. Only a model that makes",
        "  # this better than the search alone, and not worse than the base, is exported.",
        "  system: combined",
        "  against: [first_stage]",
        "  at_least: [base]",
        "",
        "# All other keys have defaults: `rankwright keys` prints them.",
        "",
    ]
    return "\n".join(lines)


def split_lines(split: str, entries: Sequence[Entry], dev_share: float) -> Iterator[str]:
    if not entries:
        if split == "dev":
            yield f"  dev: {{from: train, fraction: {dev_share:g}}}    # chooses checkpoint and combination; by seed"
        return
    yield f"  {split}:"
    for entry in entries:
        yield f"    # {entry.found}"
        yield f"    - name: {yaml_text(entry.name)}"
        yield f"      path: {yaml_text(entry.path)}"
        if entry.upstream is not None:
            yield f"      split: {yaml_text(entry.upstream)}"
        if entry.format.guessed:
            yield "      # GUESSED by names and values: our name of a column -> the file's, what its values mean"
        if entry.format.encoding is not None:
            yield f"      encoding: {yaml_text(entry.format.encoding)}"
        if columns := entry.format.columns:
            pairs = ", ".join(f"{ours}: {yaml_text(theirs)}" for ours, theirs in columns.items())
            yield f"      columns: {{{pairs}}}"
        if labels := entry.format.labels:
            pairs = ", ".join(f"{yaml_text(value)}: {label:g}" for value, label in labels.items())
            yield f"      labels: {{{pairs}}}"
        yield "      # licence: own    # whose texts are these? own, or e.g. CC-BY-4.0; without it: unknown"
