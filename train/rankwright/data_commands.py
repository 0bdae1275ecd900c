"""`rankwright data ...`: commands for sets, without a recipe. Heavy imports stay inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rankwright import console

data_app = typer.Typer(
    name="data", help="Sets: read, look at and write them.", no_args_is_help=True, add_completion=False
)


@data_app.command()
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
    from rankwright.errors import UserError

    pairs = [text.partition("=") for text in columns or []]
    wrong = [ours for ours, mark, theirs in pairs if not (ours and mark and theirs)]
    if wrong:
        raise UserError(f"--columns {wrong[0]}: must be OURS=THEIRS, such as query=question")
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
