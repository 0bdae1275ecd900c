"""What `rankwright data check` shows: a table a split, then the faults; and all of it as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from rankwright import console
from rankwright.data_check import SET, DataCheck, Example, Problem

SHOWN_EXAMPLES = 5
SHOWN_CHARACTERS = 160
SHOWN_BINS = 8
LEVELS = ("error", "warning", "note")


def show(check: DataCheck) -> None:
    """A table a split with a column a set, then the problems, worst first."""
    console.say(check.title)
    console.say(check.tokens)
    for split, rows in check.statistics.items():
        table = Table(title=split, title_justify="left")
        table.add_column("")
        for row in rows:
            table.add_column(row["set"], justify="right")
        for name, cell in _lines(rows).items():
            table.add_row(name, *map(cell, rows))
        console.show(table)
    for level in LEVELS:
        for problem in check.problems:
            if problem.level == level:
                _show_problem(problem)
    counts = [f"{check.count(level)} {level}s" for level in LEVELS if check.count(level)]  # type: ignore[arg-type]
    console.say(", ".join(counts) or "clean: nothing found")


def _lines(rows: Sequence[Mapping[str, Any]]) -> dict[str, Callable[[Mapping[str, Any]], str]]:
    """Name of a line -> the cell of a set; lines of tokens where there are any."""
    lines: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "queries": lambda row: f"{row['queries']:,}",
        "  without a positive": lambda row: f"{row['queries_without_positive']:,}",
        "documents": lambda row: f"{row['documents']:,}",
        "  empty, not judged by anyone": lambda row: f"{row['empty_documents']:,}, {row['unused_documents']:,}",
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


def _show_problem(problem: Problem) -> None:
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
    return ", ".join(" ".join([_short(w), *map(repr, ids)]).strip() for w, ids in zip(where, parts, strict=True))


def _short(where: str) -> str:
    """A place of an example, whose set is named: the file without its folders."""
    return where.rsplit("/", 1)[-1]


def as_json(check: DataCheck) -> dict[str, Any]:
    """Everything that was found, in plain values."""
    return {
        "title": check.title,
        "tokens": check.tokens,
        "statistics": check.statistics,
        "problems": [dataclasses.asdict(problem) for problem in check.problems],
        **{f"{level}s": sum(problem.level == level for problem in check.problems) for level in LEVELS},
    }
