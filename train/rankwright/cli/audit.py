"""`rankwright audit`: the answers that people gave in audit.html, as judgements for a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rankwright.common import console, resources
from rankwright.common.errors import UserError

audit_app = typer.Typer(
    name="audit",
    help="Use what people judged in audit.html.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@audit_app.callback()
def audit() -> None:
    """Use what people judged in audit.html."""


@audit_app.command("read")
def read(
    files: Annotated[
        list[Path], typer.Argument(help="what the page saved, of one person or several", metavar="FILE...")
    ],
    run: Annotated[Path | None, typer.Option(help="folder of the run (else runs/ and the recipe's name)")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="folder to write to (else the recipe's name and -judgements)")
    ] = None,
) -> None:
    """Write the answers as judgements of the training sets.

    Writes a file per set, with a card. Name it in the recipe as `judgements` of the set. What an earlier call wrote
    there stays.
    """
    for path in files:
        if resources.kind_of_path(path) != "file":
            raise UserError(
                f"{path}: no such file{resources.nearby(path)}: give what `Save answers` of audit.html wrote"
            )
    from rankwright.common.run_folder import RunFolder
    from rankwright.report.answers import read_answers, write_answers
    from rankwright.report.query_audit import is_query_audit, write_accepted

    answers = [read_answers(path) for path in files]
    folder = run or Path("runs") / answers[0].recipe
    if not folder.is_dir():
        raise UserError(
            f"--run: {folder}: no such folder{resources.nearby(folder)}: give the folder of the audited run"
        )
    if all(map(is_query_audit, answers)):
        share = write_accepted(RunFolder(folder), answers)
        console.say(
            f"{share.mean:.0%} of {share.count:,} judged queries accepted (95 % interval {share.low:.0%} to "
            f"{share.high:.0%}); synthesize.audit.min_accepted of the recipe counts this"
        )
        return
    output = output or Path(f"{answers[0].recipe}-judgements")
    resources.check_output("--output", output, "folder")
    written, unsure = write_answers(RunFolder(folder), answers, output)
    for one in written:
        console.say(
            f"{one.set_name}: {one.relevant:,} relevant and {one.not_relevant:,} not relevant, {one.new:,} of them new"
            f": {one.path} (card: {one.card.name})"
        )
    if unsure:
        console.say(f"left out as unsure: {unsure:,}")
    console.say(
        "Next: name the file in data.train of the recipe, by its path from the recipe's folder, and run it again:"
    )
    for one in written:
        console.say(
            f"    judgements: {json.dumps(str(one.path), ensure_ascii=False)}    # in the entry of {one.set_name}"
        )
