"""Commands about exported folders: `rankwright verify`. Heavy imports stay inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rankwright import console
from rankwright.errors import UserError

EXIT_DIFFERENT = 1


def verify(
    folder: Annotated[Path, typer.Argument(help="an exported folder (else this one)", metavar="FOLDER")] = Path(),
    base: Annotated[str | None, typer.Option(help="where the base of an adapter folder lies")] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="largest difference of a logit (else as exported)", min=0.0)
    ] = None,
    url: Annotated[str | None, typer.Option(help="of a running server, e.g. http://127.0.0.1:8000")] = None,
    api: Annotated[str | None, typer.Option(help="vllm, tei, infinity, cohere, jina, voyage or llama.cpp")] = None,
    model: Annotated[str | None, typer.Option(help="as the server names it, where it has several")] = None,
    key_variable: Annotated[
        str | None, typer.Option("--key-variable", help="environment variable with the server's key", metavar="NAME")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one line of JSON in place of tables")] = False,
) -> None:
    """Repeat the proof of an export here, or on a running server (--url, --api); exit code 1 when scores differ."""
    server_only = {"--api": api, "--model": model, "--key-variable": key_variable}
    if url is None and any(value is not None for value in server_only.values()):
        given = next(name for name, value in server_only.items() if value is not None)
        raise UserError(f"{given}: goes with a server: give --url as well")
    if url is not None and api is None:
        raise UserError("--url: say which server it is: --api vllm, tei, infinity, cohere, jina, voyage or llama.cpp")
    from rankwright.export.servers import verify_server
    from rankwright.export.verify import open_export, verify_folder

    console.quiet_libraries()
    opened = open_export(folder, base, tolerance)
    if url is None or api is None:
        equal = verify_folder(opened, as_json=as_json)
    else:
        equal = verify_server(opened, url, api, model=model or "", key_variable=key_variable, as_json=as_json)
    if not equal:
        raise typer.Exit(EXIT_DIFFERENT)


def add_to(app: typer.Typer) -> None:
    """Register the commands, in the order of `--help`."""
    app.command()(verify)
