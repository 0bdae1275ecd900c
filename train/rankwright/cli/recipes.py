"""`rankwright recipes` and `rankwright keys`: what can be trained out of the box, and what a recipe may contain."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated

import typer

from rankwright.common import console
from rankwright.common.resources import schema_file

# Listed first: the first run, one recipe per domain, their mix and a distilled one. Then the others by name.
FIRST = (
    *("quickstart", "finance", "legal", "code", "mixed", "distil", "permissive", "zelo", "zelo-student", "documents"),
    "pretrain",
)
recipes_app = typer.Typer(
    name="recipes",
    help="List the recipes that come with the package, or show one.",
    add_completion=False,
    rich_markup_mode=None,
    invoke_without_command=True,
)


@recipes_app.callback()
def recipes(
    context: typer.Context,
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON schema of recipes, and no list")] = False,
) -> None:
    """List the recipes that come with the package, or show one."""
    if context.invoked_subcommand is not None:
        return
    if schema:
        typer.echo(schema_file().read_text(encoding="utf-8"), nl=False)
        return
    from rich.table import Column, Table

    from rankwright.recipe.loading import list_recipes, list_sweeps

    table = Table(Column("recipe", no_wrap=True), "what it does", box=None)
    for info in sorted(list_recipes(), key=lambda info: _place(info.name)):
        table.add_row(info.name, info.description)
    for info in list_sweeps():
        table.add_row(info.name, f"sweep: {info.description}")
    console.show(table)


def _place(name: str) -> tuple[int, str, str]:
    folder = str(PurePosixPath(name).parent)
    return (FIRST.index(name) if name in FIRST else len(FIRST)), folder, name


@recipes_app.command("show")
def show_recipe(
    recipe: Annotated[str, typer.Argument(help="name or YAML file", metavar="RECIPE")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="keys of the recipe to set", metavar="[KEY=VALUE]...")
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="print every key with its value, after `extends` and defaults")
    ] = False,
) -> None:
    """Print a recipe, to start one of your own from it.

    Prints the file as it is, or with --whole or overrides what a run would use.
    """
    from rankwright.common.resources import shown, sweep_files
    from rankwright.recipe.loading import load_recipe, recipe_yaml

    if recipe in sweep_files() and not overrides and not whole:
        typer.echo(sweep_files()[recipe].read_text(encoding="utf-8"), nl=False)
        return
    loaded = load_recipe(recipe, overrides or [])
    if whole or overrides:
        typer.echo(recipe_yaml(loaded.recipe), nl=False)
        return
    typer.echo(f"# {shown(loaded.path)}")
    typer.echo(loaded.path.read_text(encoding="utf-8"), nl=False)


def keys(
    section: Annotated[
        str | None, typer.Argument(help="a section or a key, such as mine or train.patience (else all)")
    ] = None,
) -> None:
    """Show the keys of a recipe: default, choices, an example and what each one does."""
    from rankwright.pipeline.keys import key_rows

    rows = key_rows(section)
    for row in rows:
        default = "required" if row.required else "no default" if row.default is None else f"default {row.default}"
        typer.echo(f"{row.key}: {row.kind.replace('`', '')}; {default}")
        typer.echo(f"    {row.meaning.replace('`', '')}")
        if row.example != row.default:
            typer.echo(f"    for example: {row.example}")
    if section is None:
        typer.echo("\nOne section: `rankwright keys mine`. One key: `rankwright keys train.patience`.")
