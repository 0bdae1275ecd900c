"""What the commands print: the final table, comparisons of runs, a checked recipe, a plan."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.table import Column as TableColumn
from rich.table import Table

from rankwright.common import console, resources
from rankwright.common.components import POWER
from rankwright.common.errors import UserError
from rankwright.common.files import read_json_object, write_text_atomic
from rankwright.common.plurals import counted
from rankwright.data.sources import locate_all
from rankwright.evaluation.compare import Comparison
from rankwright.evaluation.metrics import HEADLINE
from rankwright.evaluation.results import ALL, ResultRow, by_test_set
from rankwright.recipe.loading import LoadedRecipe
from rankwright.recipe.schema import Recipe
from rankwright.recipe.sources import DevFromTrain, TestFromTrain
from rankwright.retrieval.first_stages import stage_label
from rankwright.retrieval.retriever import retrievers

if TYPE_CHECKING:
    from rankwright.common.run_folder import RunFolder
    from rankwright.evaluation.mteb_results import PartResult
    from rankwright.pipeline.overview import StageState
    from rankwright.training.estimate.plan import Plan

Column = tuple[str, list[str]]


def on_written_queries(facts: Mapping[str, Any]) -> str:
    """What is known of the gain where no query of a person tests it. facts: of the train stage."""
    known = all(isinstance(facts.get(name), float) for name in ("base_value", "best_value"))
    dev = f": nDCG@10 {facts['base_value']:.3f} of the base, {facts['best_value']:.3f} tuned" if known else ""
    return (
        f"No test: the gain is unknown. On dev, of queries that a program wrote{dev}. Name some 50 queries of people "
        "with their answers as data.test to learn what was gained."
    )


def results_tables(rows: Sequence[ResultRow], width: int | None = None) -> list[Table]:
    """The table at the end of every run; its columns go on in a second table where `width` characters are too few.

    width: by default that of the terminal.
    """
    width = console.console.width if width is None else width
    sets, measure = by_test_set(rows), rows[0].measure if rows else HEADLINE
    tables: list[Table] = []
    names: Column = ("test set", list(sets))
    part: list[Column] = []
    used = 0
    for column in _columns(sets):
        need = _width(column)
        if part and used + need > width:
            tables.append(_results_table([names, *part], None if tables else measure))
            part, used = [], 0
        part.append(column)
        used = (used or _width(names) + 1) + need
    return [*tables, _results_table([names, *part], None if tables else measure)] if part else tables


def _width(column: Column) -> int:
    title, cells = column
    return max(cell_len(console.visible(text)) for text in (title, *cells)) + 3


def _columns(sets: Mapping[str, Mapping[str, ResultRow]]) -> list[Column]:
    """sets: test set -> system -> its row."""
    columns: list[Column] = [("queries", [f"{max(r.queries for r in row.values()):,}" for row in sets.values()])]
    # A set may lack a system that another one has, in the middle of the order.
    order = max((list(row) for row in sets.values()), key=len, default=[])
    order += [s for s in dict.fromkeys(s for row in sets.values() for s in row) if s not in order]
    stages = [s for s in order if s in retrievers()]
    order = [*stages, *(s for s in order if s not in retrievers())]
    best = [next(iter(row.values())).best_possible for row in sets.values()]
    for system in order:
        if len(columns) == 1 + len(stages) and any(value is not None for value in best):
            columns.append(("at best", [_number(value) for value in best]))
        values = [row[system].value if system in row else None for row in sets.values()]
        columns.append((stage_label(system), [_number(value) for value in values]))
    tuned = [row.get("tuned") for row in sets.values()]
    to_base = [None if row is None else (row.difference, row.low, row.high) for row in tuned]
    to_first = [None if row is None else (row.to_first, row.to_first_low, row.to_first_high) for row in tuned]
    others = {"base": to_base, stage_label(tuned[-1].first_stage if tuned and tuned[-1] else ""): to_first}
    to_control = [None if row is None else (row.to_control, row.to_control_low, row.to_control_high) for row in tuned]
    others["no pretrain"] = to_control
    for other, intervals in others.items():
        if any(numbers is not None and numbers[0] is not None for numbers in intervals):
            columns.append((f"tuned - {other} [95 %]", [_interval(numbers) for numbers in intervals]))
    return columns


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(numbers: Sequence[float | None] | None) -> str:
    """`+0.103 [+0.071, +0.136]` of mean and ends."""
    if numbers is None or None in numbers:
        return "-"
    mean, low, high = numbers
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def _results_table(columns: Sequence[Column], measure: str | None) -> Table:
    """measure: named in the title, which only the first table has."""
    table = Table(title=f"{measure} on the test queries" if measure else None, title_justify="left")
    for title, _ in columns:
        table.add_column(title, justify="left" if title == "test set" else "right", no_wrap=True)
    for cells in zip(*(cells for _, cells in columns), strict=True):
        table.add_row(*cells, style="bold" if cells[0] == ALL else None)
    return table


def mteb_table(results: Sequence[PartResult]) -> Table:
    """Each task: the lists, and nDCG@10 by us and by mteb, with the differences of all measures."""
    table = Table(title="nDCG@10 by Rankwright and by mteb", title_justify="left")
    names = ("queries", "lists alone", "Rankwright", "mteb", "difference", "MAP@10 differs", "R@10 differs")
    for column in ("task", "lists", *names):
        table.add_column(column, justify="left" if column in ("task", "lists") else "right")
    for row in results:
        task = row.task if row.subset == "default" else f"{row.task} ({row.subset})"
        apart = [f"{row.ours[m] - row.theirs[m]:+.4f}" for m in ("nDCG@10", "AP@10", "R@10")]
        figures = [f"{x:.4f}" for x in (row.first_stage, row.ours["nDCG@10"], row.theirs["nDCG@10"])]
        table.add_row(f"{task}, {row.split}", row.lists, f"{row.queries:,}", *figures, *apart)
    return table


def preview_table(run: Path, states: Sequence[StageState]) -> Table:
    """What a run would do with each stage."""
    table = Table(title=f"what a run in {run} would do", title_justify="left")
    for column in ("stage", "state", "why", "took", "would take"):
        table.add_column(column, justify="right" if column in ("took", "would take") else "left")
    for one in states:
        took = "" if one.seconds is None else f"{one.seconds:,.0f} s"
        hours = "" if one.hours is None else f"{one.hours:,.2g} h"
        table.add_row(one.name, one.state, one.why, took, hours)
    return table


def show(comparison: Comparison) -> None:
    """Print a table for each test set, one for all of them, one over seeds where there are several; then the notes."""
    for note in comparison.notes:
        console.say(note)
    for name, shared in comparison.sets.items():
        console.show(_compared_table(comparison, f"{name}: {counted(len(shared.queries), 'query')}", name))
        for note in shared.notes:
            console.say(f"{name}: {note}")
    if comparison.pooled:
        console.show(
            _compared_table(comparison, f"all test sets together: {counted(comparison.pooled_queries, 'query')}", None)
        )
    if comparison.over_seeds:
        console.show(_seed_table(comparison))
        console.show(_seed_differences(comparison))
        console.say(
            "over seeds: t interval for other queries and seeds (variance components, Satterthwaite). shows from: "
            f"a true difference that {POWER:.0%} of such comparisons would find. Holm: p adjusted for all "
            f"{len(comparison.seed_differences)} of them"
        )
    else:
        console.say("seed variance unknown: no two of these runs differ only in their seed")
    count = len(comparison.compared) + len(comparison.pooled)
    if count:
        console.say(
            f"difference: system - {comparison.reference.name} by {comparison.measure}, BCa interval over queries. p: "
            f"two-sided paired randomisation test. Holm: p adjusted for all {count} comparisons shown"
        )


def _compared_table(comparison: Comparison, title: str, test_set: str | None) -> Table:
    rows = comparison.rows(test_set)
    measures = [comparison.scale.name(m) for m in rows[comparison.reference.name][0]]
    table = Table(title=title, title_justify="left")
    for column in ("system", *measures, "difference [95 %]", "p", "Holm"):
        table.add_column(column, justify="left" if column == "system" else "right", no_wrap=True)
    for system in comparison.systems:
        means, row = rows[system.name]
        cells = [f"{mean:.3f}" for mean in means.values()]
        if row is None:
            cells += ["reference", "-", "-"]
        else:
            d = row.difference
            cells += [_interval((d.mean, d.low, d.high)), f"{row.p:.4f}", f"{row.p_holm:.4f}"]
        name = stage_label(system.name) + (f" (= {', '.join(system.same_in)})" if system.same_in else "")
        table.add_row(name, *cells, style="bold" if row is None else None)
    return table


def _seed_table(comparison: Comparison) -> Table:
    table = Table(title=f"tuned {comparison.measure} over seeds", title_justify="left")
    for column in ("runs", "test set", "seeds", "mean", "deviation", "min", "max"):
        table.add_column(column, justify="left" if column in ("runs", "test set") else "right", no_wrap=True)
    for names, spreads in comparison.over_seeds.items():
        for name, s in spreads.items():
            numbers = [f"{value:.3f}" for value in (s.mean, s.deviation or 0.0, s.low, s.high)]
            table.add_row(", ".join(names), name, str(s.count), *numbers)
    return table


def _seed_differences(comparison: Comparison) -> Table:
    table = Table(title=f"differences in {comparison.measure} over seeds", title_justify="left")
    for column in ("tuned of", "minus", "test set", "difference [95 %]", "shows from", "p", "Holm"):
        table.add_column(column, justify="left" if column in ("tuned of", "minus", "test set") else "right")
    for row in comparison.seed_differences:
        d = row.found
        numbers = [_interval((d.mean, d.low, d.high)), f"{d.detectable:.3f}", f"{d.p:.4f}", f"{row.p_holm:.4f}"]
        table.add_row(", ".join(row.runs), ", ".join(map(stage_label, row.other)), row.test_set or ALL, *numbers)
    return table


def as_json(comparison: Comparison) -> dict[str, Any]:
    """All numbers, not rounded: what `--json` writes."""
    return {
        "measure": comparison.measure,
        "against": comparison.reference.name,
        "confidence": 0.95,
        "comparisons": len(comparison.compared) + len(comparison.pooled),
        "runs": {run.name: {"folder": str(run.folder), "seed": run.seed} for run in comparison.runs},
        "systems": {s.name: {"kind": s.kind, "runs": [run.name for run in s.runs]} for s in comparison.systems},
        "test_sets": {
            name: {
                "queries": len(shared.queries),
                "notes": list(shared.notes),
                "systems": _rows(comparison, name),
            }
            for name, shared in comparison.sets.items()
        },
        "pooled": _rows(comparison, None) if comparison.pooled else {},
        "over_seeds": [
            {"runs": list(names), "test_sets": {name: dataclasses.asdict(s) for name, s in spreads.items()}}
            for names, spreads in comparison.over_seeds.items()
        ],
        "seed_differences": [dataclasses.asdict(row) for row in comparison.seed_differences],
        "notes": list(comparison.notes),
    }


def write_json(comparison: Comparison, path: Path) -> None:
    """Write the comparison as a file, which appears whole or not at all."""
    text = json.dumps(as_json(comparison), indent=2, ensure_ascii=False, allow_nan=False)
    write_text_atomic(path, text + "\n")


def _rows(comparison: Comparison, test_set: str | None) -> dict[str, dict[str, Any]]:
    return {
        system: {"measures": means} | ({} if row is None else dataclasses.asdict(row))
        for system, (means, row) in comparison.rows(test_set).items()
    }


def describe_recipe(loaded: LoadedRecipe, ledger: Mapping[str, Any], *, offline: bool) -> None:
    """Print sets, licences (ledger: licences.json), and the prompt where the tokenizer is at hand."""
    recipe = loaded.recipe
    table = Table("split", "set", "from", title=f"recipe {recipe.name}", title_justify="left")
    for split, entries in locate_all(recipe.data).items():
        for entry in () if split == "test" and isinstance(recipe.data.test, TestFromTrain) else entries:
            card = entry.card
            hub = entry.hub or (card.hub.id if card is not None and card.hub is not None else None)
            if entry.source.synthesized is not None:
                table.add_row(split, entry.name, "queries that the run writes")
                continue
            where = f"hub {hub}" + (" (not fetched)" if offline else "") if hub else f"files, split {entry.split}"
            table.add_row(split, entry.name, where)
    console.show(table)
    _describe_licences(ledger)
    if isinstance(recipe.data.test, TestFromTrain):
        console.say(f"test: {recipe.data.test.fraction:.0%} of the training queries, the same for every seed")
    if isinstance(recipe.data.dev, DevFromTrain):
        console.say(f"dev: {recipe.data.dev.fraction:.0%} of the training queries, by seed {recipe.seed}")
    base = resources.resolve_base(recipe.model.base)
    if offline and not Path(base).is_dir():
        console.say(f"model {recipe.model.base}: on the hub, not fetched; its prompt will be checked before training")
    else:
        _describe_prompt(loaded)
    console.say(f"{recipe.name} ({resources.shown(loaded.path)}): no mistakes found")


def _describe_licences(ledger: Mapping[str, Any]) -> None:
    table = Table("input", "kind", "use", "licence", "commercial use", title="licences", title_justify="left")
    for one in ledger["inputs"]:
        table.add_row(one["input"], one["kind"], ", ".join(one["use"]), one["licence"], one["commercial"])
    console.show(table)
    derived = ledger["licence"]
    console.say(f"licence of the weights: {derived['name'] or derived['hub']} ({'; '.join(derived['why'])})")


def _describe_prompt(loaded: LoadedRecipe) -> None:
    from rankwright.training.setup import recipe_prompt

    _, _, contract = recipe_prompt(loaded.recipe)
    words = f"{contract.yes_token} = {contract.yes_id}"
    words += "" if contract.no_token is None else f", {contract.no_token} = {contract.no_id}"
    console.say(f"prompt {contract.mode}, at most {contract.max_tokens} tokens, {words}")


def describe_long_documents(recipe: Recipe, folder: RunFolder) -> None:
    """Print how many prompts a long document is, by the lengths in data_report.json where the run has read its data."""
    from rankwright.model.long_documents import BLOCK_TOKENS, BLOCKS, MAX, window_count

    strategy = recipe.prompt.long_documents
    if strategy == BLOCKS:
        console.say(f"long documents: one prompt each, of their best blocks of at most {BLOCK_TOKENS} tokens")
    if strategy != MAX:
        return
    console.say("long documents: training reads one window of each; evaluation, refresh and serving score all of them")
    found = []
    for split, rows in ((read_json_object(folder.data_report) or {}).get("splits") or {}).items():
        for row in (row for row in rows if row.get("tokens")):
            lengths = row["tokens"]["documents"]
            counts = [window_count(lengths[key] or 0, lengths["budget"]) for key in ("p50", "p90", "max")]
            found.append(f"  {split} {row['set']}: windows of a document p50, p90, max: {', '.join(map(str, counts))}")
    room = recipe.prompt.max_tokens
    default = f"  lengths are not known before the data is read; one of {10 * room:,} tokens has about"
    for line in found or [f"{default} {window_count(10 * room, room - room // 4)} windows"]:
        console.say(line)


def describe_plan(plan: Plan, *, mfu: float, draws: float | None, mean_tokens: int | None) -> None:
    """Print parameters, memory by part, FLOPs and time. draws: groups of an epoch, None when not known."""
    from rankwright.model.trainable import parameter_counts
    from rankwright.training.estimate.devices import GIB, KNOWN
    from rankwright.training.setup import lora_name, most_steps, total_steps

    recipe, device = plan.recipe, plan.device
    if mean_tokens is not None and mean_tokens > recipe.prompt.max_tokens:
        raise UserError(f"--mean-tokens: {mean_tokens} is more than prompt.max_tokens, {recipe.prompt.max_tokens}")
    trained, total = parameter_counts(plan.model)
    method = lora_name(recipe.model) if recipe.model.method == "lora" else "full"
    precision = "bf16" if plan.bits16 else "fp32"
    if not (plan.bits16 or device.on_cpu) and recipe.train.precision == "auto":
        console.say(
            f"{device.name} has no bf16, and fp16 is not trained in: planned in fp32, as train.precision=auto is"
        )
    console.say(f"model {recipe.model.base}: {total:,} parameters, {trained:,} of them trained ({method}, {precision})")
    group, layers = plan.group, "" if plan.target.own_layers else ", in transformers' own layers"
    how = f": {plan.why_plain}" if plan.why_plain else layers
    console.say(
        f"longest group: {counted(len(group.tail_ids), 'document')}, prompts of {recipe.prompt.max_tokens} tokens, "
        f"{group.tokens:,} tokens in all; micro-batches of at most {plan.budget_tokens:,} tokens; "
        f"attention {plan.target.route}" + how
    )
    title = f"memory of each of {plan.count} x {device.name}"
    table = Table("part", TableColumn("GiB", justify="right"), title=title, title_justify="left")
    for name, size in [*plan.memory.items(), ("at the peak", plan.total), ("available", device.memory)]:
        table.add_row(name, f"{size / GIB:.3f}")
    console.show(table)
    if not device.on_cpu:
        console.say(
            "computed from shapes; checked against real steps on a CPU; scripts/cluster/gpu_check.sh does it on a GPU"
        )
    if recipe.pretrain is not None:
        console.say("not included: the stage pretrain and its control, see `rankwright run --dry-run`")
    if recipe.model.dora:
        console.say("not included: what DoRA computes in addition to LoRA")
    flops, seconds = sum(plan.step_flops(mean_tokens)), plan.step_seconds(mfu, mean_tokens)
    length = "every prompt of full length" if mean_tokens is None else f"prompts of {mean_tokens} tokens"
    step = f"a step of {recipe.train.groups_per_step} groups, {length}: {flops / 1e12:,.3g} TFLOP"
    if seconds is None or plan.peak is None:
        console.say(f"{step}; how long it takes is not known, since the peak of {device.name} is not")
        return
    source = "measured here" if device.on_cpu else KNOWN[device.name][3]
    console.say(f"{step}, {seconds:,.3g} s at {mfu:.0%} of {plan.peak / 1e12:,.3g} TFLOP/s ({source})")
    if recipe.model.quantize:
        console.say(
            "not included: the time in which weights are dequantised, a quarter more or so for short micro-batches"
        )
    steps = most_steps(recipe) if draws is None else total_steps(recipe, draws)
    if steps is None:
        console.say("steps: not known before the data is read: give --queries N, or run `rankwright mine` first")
    else:
        most = "at most " if draws is None else ""
        took = "under a minute" if steps * seconds < 60 else console.duration(steps * seconds)
        console.say(f"training: {most}{counted(steps, 'step')}, {took}, without evaluation")
