"""`rankwright sweep`: many trainings of one recipe, compared with each other."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from rankwright.common import collector, console

if TYPE_CHECKING:
    from rankwright.evaluation.sweep_table import SweepTable
    from rankwright.recipe.sweep_runs import LoadedSweep

# Lines of the learning curves that can be told from each other.
MOST_CURVES = 6


def sweep(
    sweep: Annotated[str, typer.Argument(help="name (see `rankwright recipes`) or YAML file", metavar="SWEEP")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="keys of the recipe to set for all runs, e.g. data.root=FOLDER", metavar="[KEY=VALUE]..."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check all runs, show them, what they share, time and cost, and stop")
    ] = False,
    only: Annotated[
        str | None, typer.Option("--only", help="train this run, or this configuration, and choose nothing")
    ] = None,
    worker: Annotated[
        bool, typer.Option("--worker", help="share the runs with other workers of this sweep, one a GPU")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="more than 1,000 runs are wanted")] = False,
) -> None:
    """Train a recipe with every setting of a sweep and several seeds, and tell which differences are real.

    Continues where it was stopped. Chooses on dev; opens the test sets for the chosen configuration and the default.
    The file may ask for an early end of what is clearly worse, for proposals by Optuna, and for a budget in runs,
    hours or money: see "Sweeps" in recipes/README.md.
    """
    from rankwright.recipe.sweep_runs import load_sweep, named_runs

    # Before torch is imported: a mistake is reported at once.
    loaded = load_sweep(sweep, overrides or [], yes=yes)
    chosen = named_runs(loaded, only) if only is not None else None
    with collector.paused():
        from rankwright.pipeline.sweep import SweepRunner

        console.quiet_libraries()
    if dry_run:
        _preview(loaded)
        return
    runner = SweepRunner(loaded, worker=worker, command=("rankwright", *sys.argv[1:]))
    table = runner(chosen)
    # With the configurations that were proposed meanwhile.
    _show(runner.loaded, table)


def _preview(loaded: LoadedSweep) -> None:
    from rich.table import Table

    from rankwright.evaluation.sweep_table import promise
    from rankwright.pipeline.sweep import known_dev_queries, shared_stages
    from rankwright.pipeline.sweep_rows import read_table

    computed = shared_stages(loaded, console.say)
    table = read_table(loaded)
    shown = Table("configuration", *loaded.factors, "done", box=None)
    for row in table.configurations:
        planned = sum(run.configuration.name == row.name for run in loaded.runs)
        values = [row.settings[key] for key in loaded.factors]
        shown.add_row(row.name, *values, f"{len(row.seeds)} of {planned}")
    console.show(shown)
    console.say("computed: " + ", ".join(f"{name} {count}x" for name, count in computed.items() if name != "train"))
    _show_time(loaded, table)
    queries = table.queries or known_dev_queries(loaded)
    most = "" if queries else " (if dev has so many: train.dev_queries)"
    console.say(promise(queries or loaded.default.recipe.train.dev_queries, len(loaded.sweep.seeds), table) + most)


def _show_time(loaded: LoadedSweep, table: SweepTable) -> None:
    """Print what is left in time and money."""
    done = [row.seconds for row in table.runs if row.state == "done" and row.seconds is not None]
    left = sum(row.state not in ("done", "pruned") for row in table.runs)
    if loaded.trials is not None and loaded.sweep.design.optuna is not None:
        left += (loaded.sweep.design.optuna.runs - len(loaded.trials.proposals)) * len(loaded.sweep.seeds)
    budget = loaded.sweep.budget
    if not done:
        console.say(f"time{' and cost' if budget.cost is not None else ''}: not known before a run is finished")
        return
    each = sum(done) / len(done)
    seconds, about = left * each, "at most" if loaded.sweep.early is not None else "about"
    line = f"time: {about} {console.duration(seconds)} of training left, by the finished runs"
    if budget.cost is not None and budget.per_hour is not None:
        price, spent = budget.per_hour / 3600, sum(row.seconds or 0.0 for row in table.runs)
        line += f"; cost: {about} {seconds * price:,.2f}, beside {spent * price:,.2f} spent, of {budget.cost:,.2f}"
    console.say(line)
    if (most := budget.most_seconds) is not None and most < each:
        console.say(f"budget: smaller than one run, which takes {console.duration(each)}: no other run begins")


def _show(loaded: LoadedSweep, table: SweepTable) -> None:
    """Print the table and write the files of the results."""
    from rich.table import Column, Table

    from rankwright.pipeline.sweep_rows import dev_curves, pruned_curves, read_tests
    from rankwright.report.page import interval
    from rankwright.report.sweep import ranked, verdict, would_show, write_sweep

    curves, pruned = dev_curves(loaded, table, MOST_CURVES), pruned_curves(loaded, table)
    page = write_sweep(loaded.folder, table, read_tests(loaded, table), curves, pruned=pruned)
    numbers = [
        Column(name, justify="right") for name in ("seeds", "nDCG@10 on dev", "minus default [95 %]", "p (Holm)")
    ]
    shown = Table("configuration", *numbers, box=None)
    for row in ranked(table):
        values = ["-" if row.dev is None else f"{row.dev:.3f}", "-", "-"]
        if row.contrast is not None and row.p_holm is not None:
            values[1:] = [interval(row.contrast.difference), f"{row.p_holm:.3f}"]
        shown.add_row(row.name, str(len(row.seeds)), *values)
    console.show(shown)
    for note in table.notes:
        console.say(note)
    console.say(verdict(table))
    if (shows := would_show(table)) is not None:
        console.say(shows)
    if table.learning_curve is not None:
        console.say(table.learning_curve.sentence)
    for run in table.runs:
        if run.error:
            console.say(f"{run.name}: {run.error}")
    console.say(f"report: {page}")
