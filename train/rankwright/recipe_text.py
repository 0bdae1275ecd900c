"""The text of a recipe that `rankwright init` writes: every choice with the reason for it beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rankwright.examples import Collection
from rankwright.rows import OnFault
from rankwright.text_traits import Budget
from rankwright.user_files import Format


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the recipe: what stands there, and what was found in it."""

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
            f"{self.format.name}: {len(c.queries):,} queries, {len(c.corpus):,} documents, {judged:,} judgements"
            f" (labels {', '.join(f'{label:g}' for label in labels[:6])}{', ...' if len(labels) > 6 else ''})"
            + "".join(f", {what}" for what in extra)
        )


@dataclass(frozen=True, slots=True)
class Draft:
    """What a recipe is written from. code: training set -> share of its documents that look like code, where most do.

    said: how the sets came about; leaks: what train shares with dev or test, in words.
    """

    name: str
    base: str
    entries: Sequence[Entry]
    said: Sequence[str]
    budget: Budget
    code: Mapping[str, float]
    on_fault: OnFault
    leaks: Sequence[str]


def recipe_text(draft: Draft) -> str:
    """The recipe as a YAML file."""
    budget = draft.budget
    lines = [
        "# Written by `rankwright init`. Relative paths start at the working directory, or at data.root.",
        f"name: {_text(draft.name)}",
        "",
        "model:",
        f"  base: {_text(draft.base)}",
        "",
        "data:",
        *(f"  # {line}" for line in draft.said),
    ]
    if draft.on_fault == "drop":
        lines.append("  on_fault: drop    # rows with faults are left out, and counted in data_report.json")
    if draft.leaks:
        lines += [f"  # {line}" for line in draft.leaks]
        lines.append("  on_leak: drop    # they are left out of training, and counted; without this a run stops")
    for split in ("train", "dev", "test"):
        lines += _split(split, [entry for entry in draft.entries if entry.split == split])
    lines += ["", "prompt:", f"  # {budget.why}", f"  max_tokens: {budget.max_tokens}"]
    if budget.query_tokens is not None:
        lines.append(f"  query_tokens: {budget.query_tokens}    # the queries are long: more than a quarter")
    lines.append("  # instruction: what a relevant document is to a query, in one sentence of your domain")
    if draft.code:
        sets = ", ".join(f"{share:.0%} of the documents of {name}" for name, share in draft.code.items())
        lines += ["", "mine:", f"  code: true    # {sets} look like code: the words inside identifiers count too"]
    lines += ["", "# All other keys have defaults, see train/rankwright/recipe.py.", ""]
    return "\n".join(lines)


def _split(split: str, entries: Sequence[Entry]) -> Iterator[str]:
    if not entries:
        if split == "dev":
            yield "  dev: {from: train, fraction: 0.1}    # chooses the checkpoint; taken out of train by seed"
        return
    yield f"  {split}:"
    for entry in entries:
        yield f"    # {entry.found}"
        yield f"    - name: {_text(entry.name)}"
        yield f"      path: {_text(entry.path)}"
        if entry.upstream is not None:
            yield f"      split: {_text(entry.upstream)}"
        if columns := entry.format.columns:
            pairs = ", ".join(f"{ours}: {_text(theirs)}" for ours, theirs in columns.items())
            yield f"      columns: {{{pairs}}}    # GUESSED by their names: our name of a column -> the file's"
        yield "      # licence: own    # whose texts are these? own, or e.g. CC-BY-4.0; without it: unknown"


def _text(value: str) -> str:
    """A YAML text: plain where it is harmless, else in double quotes, which JSON's are."""
    harmless = re.fullmatch(r"[A-Za-z/][\w./-]*", value, re.ASCII) and value.lower() not in _WORDS
    return value if harmless else json.dumps(value, ensure_ascii=False)


_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}
