"""Commands on finished models: score, verify, push. Heavy imports stay inside the commands."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from rankwright.common import console
from rankwright.common.errors import UserError, UserErrors
from rankwright.common.resources import kind_of_path, nearby

if TYPE_CHECKING:
    from rankwright.rerankers.reranker import Ranked

EXIT_DIFFERENT = 1
SHOWN_CHARACTERS = 90


def verify(
    folder: Annotated[
        Path, typer.Argument(help="an exported folder (else the current one)", metavar="FOLDER")
    ] = Path(),
    base: Annotated[str | None, typer.Option(help="where the base of an adapter folder lies")] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="largest difference of a logit that is allowed (else as exported)", min=0.0)
    ] = None,
    url: Annotated[str | None, typer.Option(help="address of a running server, e.g. http://127.0.0.1:8000")] = None,
    api: Annotated[
        str | None, typer.Option(help="its kind: vllm, tei, infinity, cohere, jina, voyage or llama.cpp")
    ] = None,
    model: Annotated[str | None, typer.Option(help="name of the model on the server, where it has several")] = None,
    key_variable: Annotated[
        str | None, typer.Option("--key-variable", help="environment variable with the server's key", metavar="NAME")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one line of JSON in place of tables")] = False,
) -> None:
    """Check the scores of an export again.

    Checks its folder here or, with --url and --api, a running server. The exit code is 1 when scores differ.
    """
    server_only = {"--api": api, "--model": model, "--key-variable": key_variable}
    if url is None and any(value is not None for value in server_only.values()):
        given = next(name for name, value in server_only.items() if value is not None)
        raise UserError(f"{given}: goes with a server: give --url as well")
    if url is not None and api is None:
        raise UserError("--url: say which server it is: --api vllm, tei, infinity, cohere, jina, voyage or llama.cpp")
    from rankwright.export.verify.folder import open_export, verify_folder
    from rankwright.export.verify.server import verify_server

    console.quiet_libraries()
    opened = open_export(folder, base, tolerance)
    if url is None or api is None:
        equal = verify_folder(opened, as_json=as_json)
    else:
        equal = verify_server(opened, url, api, model=model or "", key_variable=key_variable, as_json=as_json)
    if not equal:
        raise typer.Exit(EXIT_DIFFERENT)


def push(
    run: Annotated[Path, typer.Argument(help="folder of a run", metavar="RUN")],
    target: Annotated[str, typer.Argument(help="one of its exports, e.g. hf", metavar="TARGET")],
    repository: Annotated[str, typer.Argument(help="OWNER/NAME on the hub", metavar="REPO")],
    public: Annotated[bool, typer.Option("--public", help="make a new repository public")] = False,
    revision: Annotated[str | None, typer.Option(help="branch (else main)")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only show what would go where")] = False,
) -> None:
    """Put an export on the Hugging Face hub.

    A new repository is private unless --public is given. The token is that of HF_TOKEN or of `hf auth login`.
    """
    from rankwright.export.push import plan_push, send, show_push

    console.quiet_libraries()
    planned = plan_push(run, target, repository, private=not public, revision=revision)
    show_push(planned, dry_run=dry_run)
    if not dry_run:
        console.say(f"pushed: {send(planned)}")


def score(
    model: Annotated[str, typer.Argument(help="exported folder, adapter folder, base folder or hub id")],
    query: Annotated[str, typer.Option("--query", "-q", help="the query")],
    documents: Annotated[Path, typer.Option("--documents", "-d", help="text (one per line), rows with `text`, or -")],
    mode: Annotated[str | None, typer.Option(help="name of the prompt, where the model's files do not show it")] = None,
    instruction: Annotated[str | None, typer.Option(help="instruction in place of the model's own")] = None,
    base: Annotated[str | None, typer.Option(help="where the base of an adapter folder lies")] = None,
    top_k: Annotated[int | None, typer.Option(help="show only this many of the best", min=1)] = None,
) -> None:
    """Rank the documents of a file for one query."""
    if not query.strip():
        raise UserError("--query: must not be empty")
    texts = read_documents(documents)
    # After the mistakes that need no torch.
    from rankwright.rerankers.reranker import Reranker

    console.quiet_libraries()
    reranker = Reranker.load(model, mode=mode, instruction=instruction, base=base)
    show_ranking(reranker.rank(query, texts, top_k), calibrated=reranker.contract.temperature != 1)
    if reranker.cut_documents or reranker.cut_queries:
        cut = f"{reranker.cut_documents} documents, {reranker.cut_queries} queries"
        console.say(f"cut to {reranker.contract.max_tokens} tokens: {cut}")


def read_documents(path: Path) -> list[str]:
    """Documents of a text file (one per line), or of rows with `text` and, optionally, `title`, joined as in training.

    Rows are those of a file whose name is that of a table (JSONL, JSON, CSV, TSV, Parquet, Arrow), and of any other
    whose first line is a JSON object, which is reported. `-` is standard input, read in the same way.
    Raises UserError for what is not a file, for a file without documents, and for rows without `text`.
    """
    if str(path) == "-":
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "standard input"
            with copy.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
            try:
                return _documents_of(copy, copy.name)
            except UserErrors as error:
                raise UserErrors([message.replace(f"{folder}/", "") for message in error.messages]) from None
    kind = kind_of_path(path)
    if kind == "file":
        return _documents_of(path, str(path))
    words = {
        "folder": "is a folder: give one of its files",
        "other": "is a pipe or a device, not a file: give - to read standard input",
        "nothing": f"no such file{nearby(path)}",
    }
    raise UserError(f"--documents: {path}: {words[kind]}")


def _documents_of(path: Path, name: str) -> list[str]:
    from rankwright.data.collection import join_title
    from rankwright.data.formats.fields import Fields
    from rankwright.data.formats.reading import Faults, Reading
    from rankwright.data.formats.tables import is_table, table_rows
    from rankwright.data.formats.text_rows import text_lines

    if not is_table(path):
        faults = Faults()
        lines = [line for _, line in text_lines(path, faults)]
        if not lines or not _is_json_object(lines[0]):
            faults.check()
            return lines
        console.say(f"{name}: read as JSONL, because its first line is a JSON object")
    faults, texts = Faults(), []
    reading = Reading(name, faults=faults)
    for number, row in table_rows(path, faults):
        fields = Fields(row, path, number, reading)
        title, text = fields.text("title") or "", fields.required_text("text")
        if text is not None:
            texts.append(join_title(title, text))
    faults.check()
    if not texts:
        raise UserError(f"--documents: {name}: holds no document")
    return texts


def _is_json_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def show_ranking(ranked: Sequence[Ranked], *, calibrated: bool) -> None:
    """Rank, raw score, probability, place in the input (from 1) and the start of the text.

    calibrated: a column for the calibrated probability too; for models whose temperature is not 1.
    """
    numbered = ("rank", "score", "probability", *(["calibrated"] if calibrated else []), "document")
    table = Table(*(Column(name, justify="right") for name in numbered), "text", box=None)
    for rank, row in enumerate(ranked, 1):
        text = " ".join(row.document.split())
        text = text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
        numbers = [row.score, row.probability, *([row.calibrated] if calibrated else [])]
        table.add_row(str(rank), *(f"{number:.4f}" for number in numbers), str(row.index + 1), text)
    console.show(table)
