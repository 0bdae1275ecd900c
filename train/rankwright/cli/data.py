"""`rankwright data ...`: commands that look at sets or write them. Heavy imports stay inside the commands."""

from __future__ import annotations

import dataclasses
import functools
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from rankwright.cli.columns import COLUMNS_HELP, ENCODING_HELP, LABELS_HELP, columns_of, labels_of
from rankwright.cli.exits import EXIT_USER
from rankwright.common import console, resources
from rankwright.common.errors import UserError, no_such
from rankwright.common.files import write_text_atomic
from rankwright.common.plurals import counted

if TYPE_CHECKING:
    from rankwright.cli.data_check import DataCheck, Example, Problem
    from rankwright.data.statistics import Level

data_app = typer.Typer(
    name="data",
    help="Check sets, convert them, and list the known ones.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@data_app.command()
def check(
    target: Annotated[
        str, typer.Argument(help="recipe (name or YAML file), or a data file or folder", metavar="RECIPE|PATH")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="keys of the recipe to set, e.g. data.root=FOLDER", metavar="[KEY=VALUE]..."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="with a PATH: check only this split")] = None,
    base: Annotated[str | None, typer.Option(help="with a PATH: count tokens as this model does")] = None,
    columns: Annotated[
        list[str] | None, typer.Option(metavar="OURS=THEIRS", help=f"with a PATH: {COLUMNS_HELP}")
    ] = None,
    labels: Annotated[str | None, typer.Option(metavar="VALUE=NUMBER", help=f"with a PATH: {LABELS_HELP}")] = None,
    encoding: Annotated[str | None, typer.Option(metavar="NAME", help=f"with a PATH: {ENCODING_HELP}")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="exit with 2 for warnings too")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="write everything to this file")] = None,
) -> None:
    """Show what sets hold, and all their faults.

    Faults have file and line. The exit code is 2 when one would stop a run.
    """
    from rankwright.cli import data_check
    from rankwright.data.guesses import Named
    from rankwright.recipe.loading import load_recipe

    if json_file is not None:
        resources.check_output("--json", json_file)
    is_recipe = _is_recipe(target)
    if is_recipe:
        if any(option is not None for option in (split, base, columns, labels, encoding)):
            raise UserError(
                "--split, --base, --columns, --labels and --encoding are for a PATH; a recipe has its own keys: "
                "data.train.0.split=..., model.base=..."
            )
        found = data_check.check_recipe(load_recipe(target, overrides or []))
    else:
        named, rest = columns_of(columns or [], overrides or [])
        if rest:
            raise UserError(
                f"{rest[0]!r}: settings go with a recipe, and {target!r} is not one (its file ends in .yaml)"
            )
        given = Named(named, labels_of(labels), encoding)
        found = data_check.check_path(_path(target), split, base, given)
    _report(found, strict=strict, json_file=json_file)
    if not is_recipe and not found.count("error"):
        console.say(f"Next:\n    rankwright init {shlex.quote(target)}")


def _is_recipe(target: str) -> bool:
    """Whether a target is a recipe. A .json file may be data too: a recipe is an object with `model` or `extends`."""
    if not target.endswith(".json"):
        return target.endswith(resources.YAML_SUFFIXES) or target in resources.recipe_files()
    try:
        found = json.loads(Path(target).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        # A file that cannot be read so is data with faults; one that is not there may be meant as a recipe.
        return not Path(target).is_file()
    return isinstance(found, dict) and not {"model", "extends"}.isdisjoint(found)


def _report(found: DataCheck, *, strict: bool, json_file: Path | None) -> None:
    show(found)
    if json_file is not None:
        text = json.dumps(as_json(found), indent=2, ensure_ascii=False, allow_nan=False)
        # A lone surrogate, which is one of the faults, has no bytes.
        write_text_atomic(json_file, text.encode("utf-8", "backslashreplace").decode() + "\n")
    if found.count("error") or (strict and found.count("warning")):
        raise typer.Exit(EXIT_USER)


def _path(text: str) -> Path:
    try:
        return resources.resolve_path(text, root=None)
    except UserError as error:
        known = ", ".join(sorted(resources.recipe_files()))
        raise UserError(f"{error} (and no recipe of this name; known: {known})") from None


@data_app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="a file or folder that a recipe's `path` could name")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help=".jsonl, .csv, .tsv, .parquet, or a folder")],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="the format to write")],
    from_: Annotated[str | None, typer.Option("--from", metavar="FORMAT", help="the format of IN")] = None,
    split: Annotated[str | None, typer.Option(help="the split to read")] = None,
    columns: Annotated[list[str] | None, typer.Option(metavar="OURS=THEIRS", help=COLUMNS_HELP)] = None,
    labels: Annotated[str | None, typer.Option(metavar="VALUE=NUMBER", help=LABELS_HELP)] = None,
    group_key: Annotated[str | None, typer.Option(help="the column of the groups")] = None,
    encoding: Annotated[str | None, typer.Option(metavar="NAME", help=ENCODING_HELP)] = None,
) -> None:
    """Write a set in another format.

    Counts what that format cannot hold.
    """
    from rankwright.data.formats.convert import convert as write

    named, _ = columns_of(columns or [], [])
    write(
        source,
        target,
        to=to,
        say=console.say,
        format=from_,
        split=split,
        columns=named,
        labels=labels_of(labels),
        group_key=group_key,
        encoding=encoding,
    )


@data_app.command("list")
def list_sets(
    domain: Annotated[str | None, typer.Option(help="finance, legal, code or general")] = None,
    commercial: Annotated[bool, typer.Option("--commercial", help="only sets that permit commercial use")] = False,
) -> None:
    """List the known public sets.

    Shows splits, place and licence of each, and counts the sets that --domain and --commercial leave out.
    """
    from rankwright.data.cards import list_cards

    cards = list_cards()
    domains = sorted({card.domain for card in cards})
    if domain is not None and domain not in domains:
        raise UserError(f"--domain: {no_such('domain', domain, domains)}")
    chosen = [card for card in cards if domain in (None, card.domain)]
    refused = [card for card in chosen if commercial and card.known.commercial != "yes"]
    narrow = (Column(name, no_wrap=True) for name in ("card", "domain"))
    table = Table(*narrow, "splits", "where", "licence", "commercial use", box=None)
    for card in (card for card in chosen if card not in refused):
        where = f"hub {card.hub.id}" if card.hub is not None else f"files, data.root/{card.path}"
        known = card.known
        table.add_row(card.name, card.domain, ", ".join(card.splits), where, known.licence, known.commercial)
    console.show(table)
    if others := len(cards) - len(chosen):
        console.say(f"left out: {counted(others, 'set')} of other domains")
    if refused:
        names = ", ".join(f"{card.name} ({card.known.commercial})" for card in refused)
        console.say(f"left out by --commercial: {counted(len(refused), 'set')}: {names}")
    console.say("sources and dates of the statements are in the cards; unknown counts as no until it is settled")


SHOWN_EXAMPLES = 5
SHOWN_CHARACTERS = 160
SHOWN_BINS = 8
LEVELS: tuple[Level, ...] = ("error", "warning", "note")


def show(check: DataCheck) -> None:
    """One table per split with one column per set, then the problems, worst first."""
    console.say(check.title)
    console.say(check.tokens)
    for split, rows in check.statistics.items():
        table = Table("", *(Column(row["set"], justify="right") for row in rows), title=split, title_justify="left")
        for name, cell in _lines(rows).items():
            table.add_row(name, *map(cell, rows))
        console.show(table)
    for level in LEVELS:
        for problem in check.problems:
            if problem.level == level:
                _show_problem(problem)
    counts = [f"{n} {level}{'s' if n > 1 else ''}" for level in LEVELS if (n := check.count(level))]
    console.say(", ".join(counts) or "clean: nothing found")


def _lines(rows: Sequence[Mapping[str, Any]]) -> dict[str, Callable[[Mapping[str, Any]], str]]:
    """Name of a line -> the cell of a set; with lines of tokens where there are any."""
    lines: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "queries": lambda row: f"{row['queries']:,}",
        "  without a positive": lambda row: f"{row['queries_without_positive']:,}",
        "documents": lambda row: f"{row['documents']:,}",
        "  empty, unjudged": lambda row: f"{row['empty_documents']:,}, {row['unused_documents']:,}",
        "judgements": lambda row: f"{row['judgements']:,}",
        "  label: how many": lambda row: _bins(row["labels"]),
        "  positives of a query: how many": lambda row: _bins(row["positives_per_query"]),
        "  conflicting labels": lambda row: f"{row['conflicting_labels']:,}",
        "duplicates: exact, near documents": lambda row: _duplicates(row["duplicate_documents"]),
        "  exact, near queries": lambda row: _duplicates(row["duplicate_queries"]),
        "encoding faults: documents, queries": lambda row: ", ".join(
            f"{sum(row['encoding_faults'][of].values()):,}" for of in ("documents", "queries")
        ),
        "rows with faults": lambda row: f"{row['rows_with_faults']:,}",
    }
    if any("tokens" in row for row in rows):
        lines["tokens of a query: p50, p90, p99, max"] = lambda row: _percentiles(row["tokens"]["queries"])
        lines["  of a document"] = lambda row: _percentiles(row["tokens"]["documents"])
        lines["cut queries, tokens lost"] = lambda row: _cut(row["tokens"]["queries"])
        lines["  documents (beside the median query)"] = lambda row: _cut(row["tokens"]["documents"])
        lines["  judged pairs"] = lambda row: _cut(row["tokens"]["judged_pairs"])
        lines["relevant documents beyond the budget"] = lambda row: _share(row["tokens"]["relevant_pairs"], "beyond")
        for known, what in (("best", "best block by BM25"), ("answers", "answer")):
            if any("tokens" in row and row["tokens"]["relevant_pairs"][f"{known}_known"] for row in rows):
                lines[f"  of which a cut loses the {what}"] = functools.partial(_lost, known=known)
    return lines


def _bins(histogram: Mapping[str, int]) -> str:
    shown = [f"{value}: {count:,}" for value, count in list(histogram.items())[:SHOWN_BINS]]
    return ", ".join(shown) + (", ..." if len(histogram) > SHOWN_BINS else "") or "-"


def _duplicates(counts: Mapping[str, int]) -> str:
    return f"{counts['exact']:,}, {counts['near']:,}"


def _percentiles(lengths: Mapping[str, Any]) -> str:
    return ", ".join("-" if lengths[key] is None else f"{lengths[key]:,}" for key in ("p50", "p90", "p99", "max"))


def _cut(lengths: Mapping[str, Any]) -> str:
    return f"{lengths['cut']:,}, {lengths['tokens_lost']:,}"


def _share(relevant: Mapping[str, int], name: str, of: str = "pairs") -> str:
    return f"{relevant[name]:,} of {relevant[of]:,}"


def _lost(row: Mapping[str, Any], *, known: str) -> str:
    return _share(row["tokens"]["relevant_pairs"], f"{known}_cut", f"{known}_known")


def _show_problem(problem: Problem) -> None:
    from rankwright.cli.data_check import SET

    place = f"{problem.level}: {problem.split} {problem.set}"
    if problem.of == SET:
        console.say(f"{place}: {problem.what}")
        return
    console.say(f"{place}: {problem.count:,} x {problem.kind} ({problem.of}): {problem.what}")
    for example in problem.examples[:SHOWN_EXAMPLES]:
        text = example.what or _words(example, judgement=problem.of == "judgements")
        console.say("    " + (text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."))
    if problem.count > SHOWN_EXAMPLES:
        console.say(f"    and {problem.count - SHOWN_EXAMPLES:,} more: --json FILE")


def _words(example: Example, *, judgement: bool) -> str:
    """`file:line 'id'` of each text; of a judgement `file:line 'query id' 'document id'`."""
    step = 2 if judgement else 1
    parts = [example.ids[i : i + step] for i in range(0, len(example.ids), step)]
    where = example.where or ("",) * len(parts)
    # Without the folders of the file: the set is named already.
    places = [w.rsplit("/", 1)[-1] for w in where]
    return ", ".join(" ".join([w, *map(repr, ids)]).strip() for w, ids in zip(places, parts, strict=True))


def as_json(check: DataCheck) -> dict[str, Any]:
    """Everything that was found, in plain values."""
    return {
        "title": check.title,
        "tokens": check.tokens,
        "statistics": check.statistics,
        "problems": [dataclasses.asdict(problem) for problem in check.problems],
        **{f"{level}s": check.count(level) for level in LEVELS},
    }
