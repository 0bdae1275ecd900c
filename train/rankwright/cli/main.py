"""The command line. Heavy imports stay inside the commands, so that `--help` is quick."""

from __future__ import annotations

import dataclasses
import io
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from rankwright.cli.audit import audit_app
from rankwright.cli.columns import COLUMNS_HELP, ENCODING_HELP, LABELS_HELP
from rankwright.cli.data import data_app
from rankwright.cli.exits import (
    EXIT_GATE,
    EXIT_INTERRUPTED,
    EXIT_STOPPED,
    EXIT_USER,
    complain,
    interrupted,
    leave,
    let_the_first_speak,
)
from rankwright.cli.models import mteb, push, score, verify
from rankwright.cli.recipes import keys, recipes_app
from rankwright.cli.sweep import sweep
from rankwright.common import collector, console
from rankwright.common.disk import why_full
from rankwright.common.errors import PeerFailed, Refused, Stopped, UserError, UserErrors
from rankwright.common.resources import RUN, check_output, existing_folder, is_there, nearby, resolve_base

if TYPE_CHECKING:
    from rankwright.common.run_folder import RunFolder
    from rankwright.pipeline.stages import Pipeline
    from rankwright.recipe.schema import Recipe

app = typer.Typer(
    name="rankwright",
    help="Tune a Qwen3 language model into a reranker for one domain, and measure what it gained.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data_app)
app.add_typer(recipes_app)
app.add_typer(audit_app)


def _version(wanted: bool) -> None:
    if wanted:
        from rankwright import __version__

        typer.echo(f"rankwright {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Options of every command."""


RecipeArgument = Annotated[str, typer.Argument(help="name (see `rankwright recipes`) or YAML file", metavar="RECIPE")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="keys of the recipe to set, e.g. train.max_steps=100", metavar="[KEY=VALUE]..."),
]
Override = Annotated[
    str | None,
    typer.Option(
        "--override", help="go on although the teacher or the model is refused; the reason is recorded", metavar="WHY"
    ),
]


def _pipeline(
    recipe: str,
    overrides: list[str] | None,
    folder: RunFolder | None = None,
    override: str | None = None,
    *,
    verify: bool = False,
    files: bool = True,
) -> Pipeline:
    """files: whether sets and a base that are not there are reported at once, and not with all other mistakes."""
    from rankwright.recipe.loading import load_recipe

    # Before torch is imported: a mistake of the recipe is reported at once.
    loaded = load_recipe(recipe, overrides or [])
    if files:
        _refuse_missing(loaded.recipe)
    with collector.paused():
        from rankwright.pipeline.stages import Pipeline

        console.quiet_libraries()
    return Pipeline(loaded, folder, override, command=("rankwright", *sys.argv[1:]), verify=verify)


def _refuse_missing(recipe: Recipe) -> None:
    """Raise UserErrors for files of sets and a base that are not there."""
    from rankwright.data.sources import locate_all

    faults = []
    checks: list[Callable[[], object]] = [lambda: locate_all(recipe.data), lambda: resolve_base(recipe.model.base)]
    for check_one in checks:
        try:
            check_one()
        except UserError as error:
            faults += error.messages if isinstance(error, UserErrors) else [str(error)]
    if faults:
        raise UserErrors(faults)


def _show_results(pipeline: Pipeline) -> None:
    """Print the final table and its verdict."""
    from rankwright.cli.show import on_written_queries, results_tables
    from rankwright.evaluation.results import read_results, rows_of, verdict

    if not console.is_first_process():
        return
    results, _ = read_results(pipeline.folder.path, pipeline.recipe, pipeline.test_sets, pipeline.inputs.systems)
    if not pipeline.test_sets:
        console.say(on_written_queries(pipeline.folder.facts("train")))
        return
    rows = rows_of(results)
    for table in results_tables(rows):
        console.show(table)
    console.say(" ".join(verdict(rows).sentences))


@app.command()
def run(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    override: Override = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check the recipe, show what would run and how long it takes, and stop")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="print the results as JSON, and everything else to standard error")
    ] = False,
    verify_files: Annotated[
        bool, typer.Option("--verify", help="read all files of finished stages, not only those of another time or size")
    ] = False,
) -> None:
    """Run all stages of a recipe, or continue them.

    The stages are synthesize (where the recipe has it), data, teacher (as well), mine, judge (with teacher.pairs),
    train, evaluate, calibrate, export and report. Finished ones are skipped while their files are as they were written.
    """
    if as_json:
        console.console.stderr = True
    pipeline = _pipeline(recipe, overrides, override=override, verify=verify_files)
    from rankwright.evaluation.gate import GateRefused

    if dry_run:
        _preview(pipeline, as_json=as_json)
        return
    try:
        pipeline.run()
    except GateRefused:
        _show_run(pipeline, as_json=as_json)
        raise
    _show_run(pipeline, as_json=as_json)


def _show_run(pipeline: Pipeline, *, as_json: bool) -> None:
    from rankwright.pipeline.overview import summary

    _show_results(pipeline)
    if as_json and console.is_first_process():
        typer.echo(json.dumps(summary(pipeline), indent=2, ensure_ascii=False, allow_nan=False))


def _preview(pipeline: Pipeline, *, as_json: bool) -> None:
    from rankwright.cli.show import preview_table
    from rankwright.pipeline.overview import preview

    states = preview(pipeline)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(state) for state in states], indent=2))
        return
    console.show(preview_table(pipeline.folder.path, states))


@app.command()
def check(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    offline: Annotated[bool, typer.Option("--offline", help="read no sets, and fetch nothing from the hub")] = False,
) -> None:
    """Check a recipe, its sets, licences and prompt.

    Reads the sets unless --offline is given, and trains nothing.
    """
    import tempfile

    from rankwright.common.run_folder import RunFolder

    # A check must not change a run: what it reads goes into a temporary folder.
    with tempfile.TemporaryDirectory() as folder:
        pipeline = _pipeline(recipe, overrides, RunFolder(Path(folder)), files=False)
        from rankwright.cli.show import describe_recipe

        pipeline.start(offline=offline)
        # A writer costs money.
        if not offline and not pipeline.recipe.asks_a_writer:
            pipeline.run_to("data")
        describe_recipe(pipeline.loaded, pipeline.ledger(), offline=offline)
        _show_bill(pipeline)


@app.command()
def init(
    paths: Annotated[list[str] | None, typer.Argument(help="your files and folders (else the current folder)")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="the recipe to write")] = Path("recipe.yaml"),
    base: Annotated[str | None, typer.Option(help="hub id or folder (else Qwen/Qwen3-Reranker-0.6B)")] = None,
    name: Annotated[str | None, typer.Option(help="name of the recipe (else that of its file, or of the data)")] = None,
    test_fraction: Annotated[
        float, typer.Option(help="share of the queries for testing, where no split is for that", min=0.01, max=0.5)
    ] = 0.2,
    columns: Annotated[list[str] | None, typer.Option(metavar="OURS=THEIRS", help=COLUMNS_HELP)] = None,
    labels: Annotated[str | None, typer.Option(metavar="VALUE=NUMBER", help=LABELS_HELP)] = None,
    encoding: Annotated[str | None, typer.Option(metavar="NAME", help=ENCODING_HELP)] = None,
    drop_faults: Annotated[
        bool, typer.Option("--drop-faults", help="leave out rows with faults, and count them")
    ] = False,
) -> None:
    """Write a commented recipe for your files.

    Finds sets and splits in them, and splits off a test set where there is none. For documents without queries the
    recipe writes some. Overwrites nothing.
    """
    from rankwright.cli.columns import columns_of, labels_of

    named, places = columns_of(columns or [], paths or [])
    for place in map(Path, places):
        if not is_there(place):
            raise UserError(f"{place}: no such file or folder{nearby(place)}")
    with collector.paused():
        from rankwright.cli.init import DEFAULT_BASE, Wishes, init
        from rankwright.cli.init_documents import init_documents
        from rankwright.data.documents import holds_only_documents

        console.quiet_libraries()
    given = [Path(place) for place in places] or [Path()]
    wishes = Wishes(named, labels_of(labels), "drop" if drop_faults else "stop", encoding)
    if documents := [path for path in given if holds_only_documents(path)]:
        sets = [path for path in given if path not in documents]
        init_documents(documents, sets, output, base=base or DEFAULT_BASE, name=name, wishes=wishes)
        return
    init(given, output, base=base or DEFAULT_BASE, name=name, fraction=test_fraction, wishes=wishes)


@app.command()
def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    gpus: Annotated[str | None, typer.Option(help="e.g. 8xh100, or cpu for this machine; 1xh100 without it")] = None,
    memory: Annotated[float | None, typer.Option(help="GiB of each, for devices of any name", min=1, max=4096)] = None,
    fsdp2: Annotated[bool, typer.Option("--fsdp2", help="shard the weights over all devices")] = False,
    queries: Annotated[
        int | None, typer.Option(help="queries drawn in an epoch, where the run has not read its data yet", min=1)
    ] = None,
    mean_tokens: Annotated[
        int | None, typer.Option(help="mean tokens of a prompt, to estimate the time", min=1)
    ] = None,
    mfu: Annotated[float, typer.Option(help="share of the peak FLOP/s that is reached", min=0.01, max=1.0)] = 0.35,
) -> None:
    """Estimate memory, FLOPs and hours on given devices.

    Computes them from the shapes of the base, and reads no weights.
    """
    pipeline = _pipeline(recipe, overrides, files=False)
    from rankwright.cli.show import describe_long_documents, describe_plan
    from rankwright.training.estimate.plan import make_plan
    from rankwright.training.sampling import draws_of_prepared

    pipeline.check(data=False)
    made = make_plan(pipeline.recipe, gpus, sharded=fsdp2, memory=memory)
    draws = queries or draws_of_prepared(pipeline.recipe, pipeline.folder)
    describe_plan(made, mfu=mfu, draws=draws, mean_tokens=mean_tokens)
    describe_long_documents(pipeline.recipe, pipeline.folder)


@app.command()
def synthesize(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print what it would cost at most, and stop")] = False,
) -> None:
    """Write queries for documents that nobody has asked about, by templates or a language model, and filter them.

    Also writes synthetic/audit.html, some of them for a person to accept or reject. Asks a writer nothing twice.
    """
    pipeline = _pipeline(recipe, overrides)
    if dry_run:
        pipeline.check()
        _show_bill(pipeline)
        return
    pipeline.synthesize()


@app.command()
def mine(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    override: Override = None,
    audit: Annotated[
        int | None, typer.Option(help="write audit.html with this many queries for a person to judge", min=1)
    ] = None,
) -> None:
    """Find candidates and hard negatives, unless the teacher is refused.

    Writes negatives.jsonl, with source and reason of each. Also runs under torchrun and accelerate launch.
    """
    pipeline = _pipeline(recipe, overrides, override=override)
    pipeline.run_to("mine")
    if audit is not None and console.is_first_process():
        from rankwright.report.audit import write_audit

        page = write_audit(pipeline.folder, audit)
        console.say(f"audit: {page}: open it in a browser, judge, and save the answers. Then:")
        console.say(f"    rankwright audit read ANSWERS.json --run {shlex.quote(str(pipeline.folder.path))}")


@app.command()
def judge(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    override: Override = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print what it would cost at most, and stop")] = False,
) -> None:
    """Have language models compare documents (teacher.pairs), unless they order dev no better than the base.

    Makes scores of their preferences, which the losses of a teacher learn from. Asks nothing twice.
    """
    pipeline = _pipeline(recipe, overrides, override=override)
    if dry_run:
        pipeline.check()
        _show_bill(pipeline)
        return
    pipeline.judge()


def _show_bill(pipeline: Pipeline) -> None:
    """Print what the writer and the judges of the recipe cost at most."""
    if pipeline.recipe.synthesize is not None:
        from rankwright.pipeline.synthesize import bill as bill_of_writer

        console.say(f"synthesize: {bill_of_writer(pipeline.recipe)}")
    if pipeline.recipe.pairs is not None:
        from rankwright.pipeline.judge import bill

        console.say(f"judge: {bill(pipeline.recipe, pipeline.folder).words}")


@app.command()
def train(recipe: RecipeArgument, overrides: Overrides = None, override: Override = None) -> None:
    """Train, or continue a training.

    Also runs under torchrun and accelerate launch.
    """
    _pipeline(recipe, overrides, override=override).run_to("train")


@app.command()
def evaluate(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    only: Annotated[str | None, typer.Option(help="systems to score, e.g. bm25,base (else all)")] = None,
) -> None:
    """Measure all systems on every test set.

    Systems are first stages, base, tuned and baselines. Also runs under torchrun and accelerate launch.
    """
    pipeline = _pipeline(recipe, overrides)
    pipeline.run_to("evaluate", None if only is None else [s.strip() for s in only.split(",") if s.strip()])
    _show_results(pipeline)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="folders of evaluated runs", metavar="RUN...")],
    against: Annotated[str | None, typer.Option(help="system to compare with (else the first run's tuned)")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write all numbers to this file")] = None,
) -> None:
    """Compare evaluated runs.

    Shows differences with intervals, p values and the spread over seeds.
    """
    for folder in runs:
        existing_folder(folder, RUN)
    from rankwright.cli.show import show, write_json
    from rankwright.evaluation.compare import compare as compare_runs

    if json_file is not None:
        check_output("--json", json_file)
    comparison = compare_runs(runs, against)
    show(comparison)
    if json_file is not None:
        write_json(comparison, json_file)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="folders of runs", metavar="RUN...")],
    output: Annotated[
        Path | None,
        typer.Option(help="file of the page (else RUN/report.html, or compare-report.html for several runs)"),
    ] = None,
) -> None:
    """Write the report of a run again.

    Reads the files of the run, without a model. Several runs are shown side by side on one page.
    """
    for folder in runs:
        existing_folder(folder, RUN)
    from rankwright.report.page import write_report
    from rankwright.report.side_by_side import write_comparison

    if output is not None:
        check_output("--output", output)
    if len(runs) == 1:
        path = write_report(runs[0], output=output)
    else:
        path = write_comparison(runs, output or Path("compare-report.html"))
    console.say(f"report: {path}")


@app.command()
def export(recipe: RecipeArgument, overrides: Overrides = None, override: Override = None) -> None:
    """Write the exports and check their scores.

    An export is kept only if it scores like the trainer. Nothing is written if the recipe's gate refuses the model.
    """
    _pipeline(recipe, overrides, override=override).run_to("export")


for command in (sweep, score, verify, push, mteb, keys):
    app.command()(command)


def main() -> NoReturn:
    """Run a command. Mistakes of the user give one line each and exit code 2, never a traceback; see exits.py."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal or a file in another encoding than UTF-8 shows what it lacks as an escape, as for errors.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = app(standalone_mode=False)
        if code == EXIT_INTERRUPTED:  # what typer makes of Ctrl-C
            interrupted()
        leave(code if isinstance(code, int) else 0)
    except PeerFailed:
        leave(EXIT_USER)
    except UserError as error:
        let_the_first_speak()
        for message in error.messages if isinstance(error, UserErrors) else [str(error)]:
            complain(f"error: {message}")
        leave(EXIT_GATE if isinstance(error, Refused) else EXIT_USER)
    except Stopped as error:
        complain(f"stopped. Saved after step {error.step}: the same command continues")
        leave(EXIT_INTERRUPTED if error.interrupted else EXIT_STOPPED)
    except (typer.Abort, KeyboardInterrupt):
        interrupted()
    except OSError as error:
        why = why_full(error)
        if why is not None:
            complain(f"error: {error.filename or 'disk'}: {why}: make room; the same command then continues")
        elif error.filename is not None:
            complain(f"error: {error.filename}: {error.strerror}: choose another folder, or mend its rights")
        else:
            raise
        leave(EXIT_USER)
    except Exception as error:
        if (why := why_full(error)) is not None:
            complain(f"error: {why} ({str(error).splitlines()[0]}): make room; the same command then continues")
            leave(EXIT_USER)
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for this alone
            complain(
                f"error: the GPU's memory is full ({str(error).splitlines()[0]}): lower train.budget_tokens, or set "
                "model.gradient_checkpointing=full; earlier checkpoints are kept"
            )
            leave(EXIT_USER)
        # typer carries its own copy of click's classes: a usage error is known by what it can do.
        if not (hasattr(error, "show") and hasattr(error, "exit_code")):
            raise
        usage = io.StringIO()
        error.show(file=usage)
        for line in usage.getvalue().splitlines():
            complain(line)
        leave(EXIT_USER)
