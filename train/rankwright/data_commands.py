"""`rankwright data ...`: commands that look at sets or write them. Heavy imports stay inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rankwright import console
from rankwright.errors import UserError, did_you_mean
from rankwright.exits import EXIT_USER

app = typer.Typer(
    name="data",
    help="Look at sets, what they hold and what is wrong with them, and write them in other formats.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@app.command()
def check(
    target: Annotated[
        str, typer.Argument(help="recipe (name or YAML file), or a data file or folder", metavar="RECIPE|PATH")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="settings of the recipe, e.g. data.root=FOLDER", metavar="[KEY=VALUE]...")
    ] = None,
    split: Annotated[str | None, typer.Option(help="of a PATH: only this split")] = None,
    base: Annotated[str | None, typer.Option(help="of a PATH: count tokens as this model does")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="exit with 2 for warnings too")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="write everything to this file")] = None,
) -> None:
    """What every set holds, and all faults with file and line; exit code 2 when they would stop a run."""
    import json

    from rankwright import data_check, data_check_output, resources
    from rankwright.atomic import write_text_atomic
    from rankwright.loading import load_recipe

    is_recipe = target.endswith(resources.YAML_SUFFIXES) or target in resources.recipe_files()
    if is_recipe:
        if split is not None or base is not None:
            raise UserError(
                "--split and --base: for a PATH; a recipe says its own: data.train.0.split=..., model.base=..."
            )
        found = data_check.check_recipe(load_recipe(target, overrides or []))
    elif overrides:
        raise UserError(f"{overrides[0]!r}: settings go with a recipe, and {target!r} is none (a file ends in .yaml)")
    else:
        found = data_check.check_path(_path(target), split, base)
    data_check_output.show(found)
    if json_file is not None:
        text = json.dumps(data_check_output.as_json(found), indent=2, ensure_ascii=False, allow_nan=False)
        # A lone surrogate, which is one of the faults, has no bytes.
        write_text_atomic(json_file, text.encode("utf-8", "backslashreplace").decode() + "\n")
    if found.count("error") or (strict and found.count("warning")):
        raise typer.Exit(EXIT_USER)


def _path(text: str) -> Path:
    from rankwright import resources

    try:
        return resources.resolve_path(text, root=None)
    except UserError as error:
        known = ", ".join(sorted(resources.recipe_files()))
        raise UserError(f"{error} (and no recipe of this name; known: {known})") from None


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="a file or folder that a recipe's `path` could name")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help=".jsonl, .csv, .tsv, .parquet, or a folder")],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="the format to write")],
    from_: Annotated[str | None, typer.Option("--from", metavar="FORMAT", help="the format of IN")] = None,
    split: Annotated[str | None, typer.Option(help="the split to read")] = None,
    columns: Annotated[
        list[str] | None, typer.Option(metavar="OURS=THEIRS", help="our name of a column = the file's; repeat it")
    ] = None,
    group_key: Annotated[str | None, typer.Option(help="the column of the groups")] = None,
) -> None:
    """Write a set in another format; says what that format cannot hold."""
    from rankwright.convert import convert as write

    pairs = [text.partition("=") for text in columns or []]
    wrong = [ours for ours, mark, theirs in pairs if not (ours and mark and theirs)]
    if wrong:
        raise UserError(f"--columns {wrong[0]}: must be OURS=THEIRS, such as query=question")
    names = [ours for ours, *_ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--columns {twice[0]}: given twice: a column of ours is one of the file's")
    write(
        source,
        target,
        to=to,
        say=console.say,
        format=from_,
        split=split,
        columns={ours: theirs for ours, _, theirs in pairs},
        group_key=group_key,
    )


@app.command("list")
def list_sets(
    domain: Annotated[str | None, typer.Option(help="finance, legal, code or general")] = None,
    commercial: Annotated[bool, typer.Option("--commercial", help="only sets that permit commercial use")] = False,
) -> None:
    """The cards: sets with splits, place and licence, and what the filter left out."""
    from rich.table import Table

    from rankwright.cards import list_cards

    cards = list_cards()
    domains = sorted({card.domain for card in cards})
    if domain is not None and domain not in domains:
        near = did_you_mean(domain, domains)
        raise UserError(f"--domain: unknown domain {domain!r}{near} (known: {', '.join(domains)})")
    chosen = [card for card in cards if domain in (None, card.domain)]
    refused = [card for card in chosen if commercial and card.known.commercial != "yes"]
    table = Table(box=None)
    for column in ("card", "domain", "splits", "where", "licence", "commercial use"):
        table.add_column(column, no_wrap=column in ("card", "domain"))
    for card in (card for card in chosen if card not in refused):
        where = f"hub {card.hub.id}" if card.hub is not None else f"files, data.root/{card.path}"
        known = card.known
        table.add_row(card.name, card.domain, ", ".join(card.splits), where, known.licence, known.commercial)
    console.show(table)
    if others := len(cards) - len(chosen):
        console.say(f"left out: {others} sets of other domains")
    if refused:
        names = ", ".join(f"{card.name} ({card.known.commercial})" for card in refused)
        console.say(f"left out by --commercial: {len(refused)} sets: {names}")
    console.say("sources and dates of the statements are in the cards; unknown counts as no until somebody settles it")
