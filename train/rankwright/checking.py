"""What `check` and `score` read and show."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from rankwright import console, resources
from rankwright.errors import UserError
from rankwright.loading import LoadedRecipe
from rankwright.recipe import DevFromTrain
from rankwright.rows import Faults, json_rows, text_lines, text_of
from rankwright.sources import locate_all

if TYPE_CHECKING:
    from rankwright.reranker import Ranked

SHOWN_CHARACTERS = 90


def describe_recipe(loaded: LoadedRecipe, *, offline: bool) -> None:
    """Sets with their licences, then the prompt where the tokenizer can be had."""
    recipe = loaded.recipe
    table = Table(title=f"recipe {recipe.name}", title_justify="left")
    for column in ("split", "set", "from", "licence", "commercial use"):
        table.add_column(column)
    for split, entries in locate_all(recipe.data).items():
        for entry in entries:
            card = entry.card
            hub = entry.hub or (card.hub.id if card is not None and card.hub is not None else None)
            where = f"hub {hub}" + (" (not fetched)" if offline else "") if hub else f"files, split {entry.split}"
            licence = (card.licence.name, card.licence.commercial) if card is not None else ("not stated", "unknown")
            table.add_row(split, entry.name, where, *licence)
    console.show(table)
    if isinstance(recipe.data.dev, DevFromTrain):
        console.say(f"dev: {recipe.data.dev.fraction:.0%} of the training queries, by seed {recipe.seed}")
    base = resources.resolve_base(recipe.model.base)
    if offline and not Path(base).is_dir():
        console.say(f"model {recipe.model.base}: on the hub, not fetched; its prompt is checked before training")
    else:
        _describe_prompt(loaded)
    console.say(f"recipe {recipe.name} ({resources.shown(loaded.path)}): no mistakes found")


def _describe_prompt(loaded: LoadedRecipe) -> None:
    from rankwright.setup_model import load_base_tokenizer, recipe_contract

    base, tokenizer = load_base_tokenizer(loaded.recipe)
    contract = recipe_contract(loaded.recipe, base, tokenizer)
    console.say(
        f"prompt {contract.mode}, at most {contract.max_tokens} tokens, yes = {contract.yes_id}, no = {contract.no_id}"
    )


def read_documents(path: Path) -> list[str]:
    """Documents of a text file (one a line) or of JSONL rows with `text`; `-` is standard input.

    Raises UserError for a missing or empty file, and for rows without `text`.
    """
    if str(path) == "-":
        lines = [line for line in sys.stdin.read().split("\n") if line.strip()]
        if not lines:
            raise UserError("--documents: standard input holds no document: give one a line")
        return lines
    if not path.is_file():
        raise UserError(f"--documents: {path}: no such file")
    faults = Faults()
    if path.suffix == ".jsonl":
        texts = [text_of(row, "text", path, number, faults) for number, row in json_rows(path, faults)]
    else:
        texts = [line for _, line in text_lines(path, faults)]
    faults.check()
    return [text for text in texts if text is not None]


def show_ranking(ranked: Sequence[Ranked]) -> None:
    """Rank, raw score, probability, input line and the start of the text."""
    table = Table(box=None)
    for column in ("rank", "score", "probability", "document", "text"):
        table.add_column(column, justify="left" if column == "text" else "right")
    for rank, row in enumerate(ranked, 1):
        text = " ".join(row.document.split())
        text = text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
        table.add_row(str(rank), f"{row.score:.4f}", f"{row.probability:.4f}", str(row.index + 1), text)
    console.show(table)
