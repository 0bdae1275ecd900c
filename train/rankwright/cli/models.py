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

from rankwright.common import collector, console
from rankwright.common.errors import UserError, UserErrors
from rankwright.common.plurals import counted
from rankwright.common.resources import EXPORTED, RUN, existing_folder, kind_of_path, nearby, resolve_base

if TYPE_CHECKING:
    from rankwright.model.prompt import PromptContract
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
    existing_folder(folder, EXPORTED)
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
    licence: Annotated[
        str | None, typer.Option(help="licence of weights made from your own texts; a public push needs it")
    ] = None,
    with_texts: Annotated[
        bool, typer.Option("--with-texts", help="push the golden pairs with texts of your test sets too")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="only show what would go where, and what is in it")
    ] = False,
) -> None:
    """Put an export on the Hugging Face hub.

    A new repository is private unless --public is given. Texts of your sets stay here unless --with-texts is given; an
    export of an earlier training or evaluation is refused. The token is that of HF_TOKEN or of `hf auth login`.
    """
    existing_folder(run, RUN)
    from rankwright.export.push import plan_push, send, show_push

    console.quiet_libraries()
    planned = plan_push(
        run, target, repository, private=not public, revision=revision, with_texts=with_texts, licence=licence
    )
    show_push(planned, dry_run=dry_run)
    if not dry_run:
        console.say(f"pushed: {send(planned)}")


def mteb(
    run: Annotated[Path, typer.Argument(help="folder of a run with the export hf", metavar="RUN")],
    tasks: Annotated[str, typer.Option(help="names of mteb's tasks, e.g. FiQA2018,SCIDOCS")],
    task_folder: Annotated[
        Path | None, typer.Option(help="folder of your own sets, each named as its task", metavar="DIR")
    ] = None,
    lists: Annotated[
        Path | None, typer.Option(help="TREC run file to rerank (else the run's own first stage)", metavar="FILE")
    ] = None,
    top_k: Annotated[int, typer.Option(help="documents of each list that are reranked", min=1, max=100_000)] = 100,
) -> None:
    """Evaluate the export with mteb's own code.

    Reranks lists of the run's first stage, and compares mteb's figures with ours. The exit code is 1 when they differ.
    """
    from rankwright.cli.show import mteb_table
    from rankwright.evaluation.mteb_results import falls_apart
    from rankwright.pipeline.mteb import Wanted, run_mteb

    console.quiet_libraries()
    names = tuple(dict.fromkeys(filter(None, map(str.strip, tasks.split(",")))))
    results = run_mteb(run, Wanted(names, task_folder, lists, top_k), ("rankwright", *sys.argv[1:]))
    console.show(mteb_table(results))
    for row in results:
        where = f"{row.task} ({row.subset}, {row.split})"
        if row.ties:
            console.say(
                f"{where}: {row.ties:.1%} of neighbours tie; with trec_eval's order of ties, our nDCG@10 is "
                f"{row.ours_trec['nDCG@10']:.4f}"
            )
        if row.without_relevant:
            verb = "counts" if row.without_relevant == 1 else "count"
            queries = counted(row.without_relevant, "query")
            console.say(f"{where}: {queries} without a relevant document, which {verb} 0 in mteb")
        for name, value in row.labelled.items():
            console.say(f"{where}: {name} by the labels of the recipe is {value:.4f}")
    console.say(f"mteb's results and the lists: {run / 'mteb'}; the figures: export/hf/README.md and report.html")
    wrong = falls_apart(results)
    for sentence in wrong:
        console.say(f"WARNING: {sentence}")
    if wrong:
        raise typer.Exit(EXIT_DIFFERENT)


def score(
    model: Annotated[str, typer.Argument(help="exported folder, run folder, adapter folder, base folder or hub id")],
    query: Annotated[str, typer.Option("--query", "-q", help="the query")],
    documents: Annotated[Path, typer.Option("--documents", "-d", help="text (one per line), rows with `text`, or -")],
    mode: Annotated[str | None, typer.Option(help="name of the prompt, where the model's files do not show it")] = None,
    instruction: Annotated[str | None, typer.Option(help="instruction in place of the model's own")] = None,
    base: Annotated[str | None, typer.Option(help="where the base of an adapter folder lies")] = None,
    top_k: Annotated[int | None, typer.Option(help="show only this many of the best", min=1)] = None,
    first_stage_scores: Annotated[
        Path | None,
        typer.Option("--first-stage-scores", help="scores of the search that found them, one per line"),
    ] = None,
) -> None:
    """Rank the documents of a file for one query.

    With the scores of the search that found them, in the same order, the two are combined as was fitted on dev. An
    empty line stands for a document that the search did not find.
    """
    if not query.strip():
        raise UserError("--query: must not be empty")
    texts = read_documents(documents)
    found = None if first_stage_scores is None else read_scores(first_stage_scores, len(texts))
    # After the mistakes that need no torch.
    for name in (model, base):
        if name is not None:
            resolve_base(name, "model" if name is model else "base")
    with collector.paused():
        console.quiet_libraries()
        # Loading a model needs it, and most of the time is spent on it.
        import transformers.modeling_utils  # noqa: F401

        from rankwright.model.long_documents import BLOCKS
        from rankwright.rerankers.reranker import Reranker
    reranker = Reranker.load(model, mode=mode, instruction=instruction, base=base)
    ranked = reranker.rank(query, texts, top_k, found)
    show_ranking(ranked, calibrated=reranker.contract.temperature != 1)
    if found is not None:
        console.say(_combination(reranker.contract))
    if (line := reranker.contract.first_stage_score) is not None:
        hint = "--first-stage-scores gives this model the scores of a search, which it was trained to read"
        held = f"prompts hold the first stage's scores as numbers from 0 to {line.levels}, unless all are equal"
        console.say(hint if found is None else held)
    if reranker.cut_documents or reranker.cut_queries:
        cut = f"{counted(reranker.cut_documents, 'document')}, {counted(reranker.cut_queries, 'query')}"
        blocks = " (to their best blocks)" * (reranker.contract.long_documents.strategy == BLOCKS)
        console.say(f"cut to {reranker.contract.max_tokens} tokens: {cut}{blocks}")
    if reranker.cut.get("windows", 0) > len(texts):
        console.say(
            f"{counted(reranker.windows, 'window')} of {len(texts)} documents were scored; the largest score counts"
        )


def _combination(contract: PromptContract) -> str:
    """What the order of a ranking with first-stage scores comes from."""
    if contract.combine_weight == 1 and contract.combine_depth is None:
        return "combined: this model carries no weight below 1, so its own score decides"
    depth = "all documents" if contract.combine_depth is None else f"the first stage's best {contract.combine_depth:,}"
    return f"combined = {contract.combine_weight:g} z(score) + {1 - contract.combine_weight:g} z(first stage), {depth}"


def read_scores(path: Path, documents: int) -> list[float | None]:
    """One number per line, None for an empty line. Raises UserError with file and line, and for another count."""
    from rankwright.data.formats.fields import number_of

    if kind_of_path(path) != "file":
        raise UserError(f"--first-stage-scores: {path}: no such file{nearby(path)}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"--first-stage-scores: {path}: not UTF-8 text: give one number per line") from None
    if len(lines) != documents:
        raise UserError(
            f"--first-stage-scores: {path}: {counted(len(lines), 'line')} for "
            f"{counted(documents, 'document')}: give one for each, empty "
            "where the search did not find it"
        )
    scores = [number_of(line.strip()) if line.strip() else None for line in lines]
    for number, (line, score) in enumerate(zip(lines, scores, strict=True), start=1):
        if line.strip() and score is None:
            raise UserError(f"--first-stage-scores: {path}:{number}: {line.strip()!r} is not a finite number")
    return scores


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
    from rankwright.data.formats.reading import Reading
    from rankwright.data.formats.tables import is_table, table_rows
    from rankwright.data.formats.text_rows import text_lines

    if not is_table(path):
        reading = Reading(name, say=console.say)
        lines = [line for _, line in text_lines(path, reading)]
        if not lines or not _is_json_object(lines[0]):
            reading.faults.check()
            return lines
        console.say(f"{name}: read as JSONL, because its first line is a JSON object")
    # Brings pyarrow, which lines of text need not.
    from rankwright.data.formats.fields import Fields

    reading, texts = Reading(name, say=console.say), []
    for number, row in table_rows(path, reading):
        fields = Fields(row, path, number, reading)
        title, text = fields.text("title") or "", fields.required_text("text")
        if text is not None:
            texts.append(join_title(title, text))
    reading.faults.check()
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
    combined = any(row.combined is not None for row in ranked)
    more = [*(["calibrated"] if calibrated else []), *(["first stage", "combined"] if combined else [])]
    numbered = ("rank", "score", "probability", *more, "document")
    table = Table(*(Column(name, justify="right") for name in numbered), "text", box=None)
    for rank, row in enumerate(ranked, 1):
        text = " ".join(row.document.split())
        text = text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
        numbers: list[float | None] = [row.score, row.probability, *([row.calibrated] if calibrated else [])]
        numbers += [row.first_stage, row.combined] if combined else []
        cells = ("-" if number is None else f"{number:.4f}" for number in numbers)
        table.add_row(str(rank), *cells, str(row.index + 1), text)
    console.show(table)
