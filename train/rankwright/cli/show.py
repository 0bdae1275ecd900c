"""What the commands print: plans, final tables, comparisons."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from rankwright.common import console, resources
from rankwright.common.errors import UserError
from rankwright.common.files import write_text_atomic
from rankwright.common.stats import Difference
from rankwright.data.sources import locate_all
from rankwright.evaluation.compare import Compared, Comparison
from rankwright.evaluation.metrics import HEADLINE
from rankwright.evaluation.results import ResultRow
from rankwright.recipe.loading import LoadedRecipe
from rankwright.recipe.schema import DevFromTrain
from rankwright.retrieval.first_stages import stage_label
from rankwright.retrieval.retriever import retrievers

if TYPE_CHECKING:
    from rankwright.training.estimate.plan import Plan

Column = tuple[str, list[str]]


def results_tables(rows: Sequence[ResultRow], width: int) -> list[Table]:
    """The table that every run ends with; its columns go on in a second one where `width` characters are too few."""
    tables: list[Table] = []
    names: Column = ("test set", [escape(row.name) for row in rows])
    left: list[Column] = []
    used = 0
    for column in _columns(rows):
        need = _width(column)
        if left and used + need > width:
            tables.append(_results_table([names, *left], rows, first=not tables))
            left, used = [], 0
        left.append(column)
        used = (used or _width(names) + 1) + need
    return [*tables, _results_table([names, *left], rows, first=not tables)] if left else tables


def _width(column: Column) -> int:
    title, cells = column
    return max(len(text) for text in (title, *cells)) + 3


def _columns(rows: Sequence[ResultRow]) -> list[Column]:
    columns: list[Column] = [("queries", [f"{row.queries:,}" for row in rows])]
    systems = list(dict.fromkeys(s for row in rows for s in row.values))
    # A set may lack a system that another one has, in the middle of the order.
    order = max(rows, key=lambda row: len(row.values)).values if rows else {}
    systems.sort(key=lambda s: (s not in order, list(order).index(s) if s in order else 0))
    for place, system in enumerate(systems):
        if system not in retrievers() and (not place or systems[place - 1] in retrievers()):
            columns += _ceiling_column(rows)
        columns.append((stage_label(system), [_number(row.values.get(system)) for row in rows]))
    if any(row.difference is not None for row in rows):
        columns.append(("tuned - base [95 % interval]", [_interval(row.difference) for row in rows]))
    if any(row.over_first is not None for row in rows):
        first = rows[-1].first_stage
        title = f"tuned - {stage_label(first)} [95 % interval]"
        columns.append((title, [_interval(row.over_first) for row in rows]))
    return columns


def _ceiling_column(rows: Sequence[ResultRow]) -> list[Column]:
    """What the best order of the reranked lists would reach."""
    if not any(row.ceiling is not None for row in rows):
        return []
    return [("best possible", [_number(row.ceiling) for row in rows])]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(d: Difference | None) -> str:
    return "-" if d is None else f"{d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"


def _results_table(columns: Sequence[Column], rows: Sequence[ResultRow], *, first: bool) -> Table:
    table = Table(title=f"{HEADLINE} on the test queries" if first else None, title_justify="left")
    for title, _ in columns:
        table.add_column(escape(title), justify="left" if title == "test set" else "right", no_wrap=True)
    for number, row in enumerate(rows):
        cells = [escape(cells[number]) if place else cells[number] for place, (_, cells) in enumerate(columns)]
        table.add_row(*cells, style="bold" if row.name == "all" else None)
    return table


def describe_recipe(loaded: LoadedRecipe, ledger: Mapping[str, Any], *, offline: bool) -> None:
    """Sets, then licences (ledger: licences.json), then the prompt where the tokenizer can be had."""
    recipe = loaded.recipe
    table = Table(title=f"recipe {recipe.name}", title_justify="left")
    for column in ("split", "set", "from"):
        table.add_column(column)
    for split, entries in locate_all(recipe.data).items():
        for entry in entries:
            card = entry.card
            hub = entry.hub or (card.hub.id if card is not None and card.hub is not None else None)
            where = f"hub {hub}" + (" (not fetched)" if offline else "") if hub else f"files, split {entry.split}"
            table.add_row(split, entry.name, where)
    console.show(table)
    _describe_licences(ledger)
    if isinstance(recipe.data.dev, DevFromTrain):
        console.say(f"dev: {recipe.data.dev.fraction:.0%} of the training queries, by seed {recipe.seed}")
    base = resources.resolve_base(recipe.model.base)
    if offline and not Path(base).is_dir():
        console.say(f"model {recipe.model.base}: on the hub, not fetched; its prompt is checked before training")
    else:
        _describe_prompt(loaded)
    console.say(f"recipe {recipe.name} ({resources.shown(loaded.path)}): no mistakes found")


def _describe_licences(ledger: Mapping[str, Any]) -> None:
    table = Table(title="licences", title_justify="left")
    for column in ("input", "kind", "use", "licence", "commercial use"):
        table.add_column(column)
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


def describe_plan(plan: Plan, *, mfu: float, draws: float | None, mean_tokens: int | None) -> None:
    """Parameters, memory of a device by part, FLOPs and time; draws: groups of an epoch, None when not known."""
    from rankwright.model.trainable import parameter_counts
    from rankwright.training.estimate.plan import GIB
    from rankwright.training.setup import lora_name, total_steps

    recipe, device = plan.recipe, plan.device
    if mean_tokens is not None and mean_tokens > recipe.prompt.max_tokens:
        raise UserError(f"--mean-tokens: {mean_tokens} is more than prompt.max_tokens, {recipe.prompt.max_tokens}")
    trained, total = parameter_counts(plan.model)
    method = lora_name(recipe.model) if recipe.model.method == "lora" else "full"
    precision, peak = ("bf16", device.bf16) if plan.bits16 else ("fp32", device.fp32)
    console.say(f"model {recipe.model.base}: {total:,} parameters, {trained:,} of them trained ({method}, {precision})")
    group = plan.group
    console.say(
        f"longest group: {len(group.tail_ids)} documents, prompts of {recipe.prompt.max_tokens} tokens, "
        f"{group.tokens:,} tokens in all; micro-batches of at most {plan.budget_tokens:,} tokens; "
        f"attention {plan.target.route}"
    )
    table = Table(title=f"memory of each of {plan.count} x {device.name}", title_justify="left")
    table.add_column("part")
    table.add_column("GiB", justify="right")
    for name, size in [*plan.memory.items(), ("at the peak", plan.total), ("available", device.memory)]:
        table.add_row(name, f"{size / GIB:.3f}")
    console.show(table)
    if not device.on_cpu:
        console.say(
            "counted from shapes; compared with real steps on a CPU, and by scripts/cluster/gpu_check.sh on a GPU"
        )
    if recipe.model.dora:
        console.say("not counted: what DoRA computes beside LoRA")
    flops, seconds = sum(plan.step_flops(mean_tokens)), plan.step_seconds(mfu, mean_tokens)
    length = "every prompt the longest" if mean_tokens is None else f"prompts of {mean_tokens} tokens"
    console.say(
        f"a step of {recipe.train.groups_per_step} groups, {length}: {flops / 1e12:,.3g} TFLOP, {seconds:,.3g} s at "
        f"{mfu:.0%} of {peak / 1e12:,.3g} TFLOP/s ({'measured here' if device.on_cpu else 'as its maker states'})"
    )
    steps = recipe.train.max_steps if draws is None else total_steps(recipe, draws)
    if steps is None:
        console.say("steps: not known before the data is read: say --queries N, or run `rankwright mine` first")
    else:
        hours = steps * seconds / 3600
        most = "at most " if draws is None else ""
        console.say(f"training: {most}{steps:,} steps, {hours:,.2g} hours, evaluation not counted")


def show(comparison: Comparison) -> None:
    """A table a test set, one of all of them and one over seeds where there are several, and what the numbers mean."""
    systems = comparison.systems
    for note in comparison.notes:
        console.say(note)
    for name, shared in comparison.sets.items():
        rows = {s.name: (shared.means(s.values(name)), comparison.compared.get((name, s.name))) for s in systems}
        console.show(_compared_table(comparison, f"{name}: {len(shared.queries):,} queries", rows))
        for note in shared.notes:
            console.say(f"{name}: {note}")
    if comparison.pooled:
        rows = {s.name: (comparison.pooled_means(s), comparison.pooled.get(s.name)) for s in systems}
        console.show(
            _compared_table(comparison, f"all test sets together: {comparison.pooled_queries:,} queries", rows)
        )
    if comparison.over_seeds:
        console.show(_seed_table(comparison))
    count = len(comparison.compared) + len(comparison.pooled)
    if count:
        console.say(
            f"difference: from {comparison.reference.name} by {HEADLINE}, BCa over queries. p: two-sided paired "
            f"randomisation test; Holm: adjusted for all {count} comparisons shown"
        )


def _compared_table(
    comparison: Comparison, title: str, rows: Mapping[str, tuple[Mapping[str, float], Compared | None]]
) -> Table:
    """rows: system -> its means by measure, and its difference from the reference, which has none."""
    measures = list(rows[comparison.reference.name][0])
    table = Table(title=escape(title), title_justify="left")
    for column in ("system", *measures, "difference [95 % interval]", "p", "Holm"):
        table.add_column(escape(column), justify="left" if column == "system" else "right", no_wrap=True)
    for system in comparison.systems:
        means, row = rows[system.name]
        cells = [f"{mean:.3f}" for mean in means.values()]
        if row is None:
            cells += ["reference", "-", "-"]
        else:
            d = row.difference
            cells += [f"{d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]", f"{row.p:.4f}", f"{row.p_holm:.4f}"]
        also = [run.name for run in system.runs[1:]] if "/" in system.name else []
        label = system.name + (f" (= {', '.join(also)})" if also else "")
        table.add_row(escape(label), *cells, style="bold" if row is None else None)
    return table


def _seed_table(comparison: Comparison) -> Table:
    table = Table(title=f"tuned {HEADLINE} over seeds", title_justify="left")
    for column in ("runs", "test set", "seeds", "mean", "deviation", "min", "max"):
        table.add_column(column, justify="left" if column in ("runs", "test set") else "right", no_wrap=True)
    for names, spreads in comparison.over_seeds.items():
        for name, s in spreads.items():
            numbers = [f"{value:.3f}" for value in (s.mean, s.deviation or 0.0, s.low, s.high)]
            table.add_row(escape(", ".join(names)), escape(name), str(s.count), *numbers)
    return table


def as_json(comparison: Comparison) -> dict[str, Any]:
    """All numbers, unrounded: what `--json` writes."""
    return {
        "measure": HEADLINE,
        "against": comparison.reference.name,
        "confidence": 0.95,
        "comparisons": len(comparison.compared) + len(comparison.pooled),
        "runs": {run.name: {"folder": str(run.folder), "seed": run.seed} for run in comparison.runs},
        "systems": {s.name: {"kind": s.kind, "runs": [run.name for run in s.runs]} for s in comparison.systems},
        "test_sets": {
            name: {
                "queries": len(shared.queries),
                "notes": list(shared.notes),
                "systems": {
                    s.name: {"measures": shared.means(s.values(name)), **_row(comparison.compared.get((name, s.name)))}
                    for s in comparison.systems
                },
            }
            for name, shared in comparison.sets.items()
        },
        "pooled": {
            s.name: {"measures": comparison.pooled_means(s), **_row(comparison.pooled.get(s.name))}
            for s in comparison.systems
            if comparison.pooled
        },
        "over_seeds": [
            {"runs": list(names), "test_sets": {name: dataclasses.asdict(s) for name, s in spreads.items()}}
            for names, spreads in comparison.over_seeds.items()
        ],
        "notes": list(comparison.notes),
    }


def write_json(comparison: Comparison, path: Path) -> None:
    """The comparison as a file, which appears whole or not at all."""
    text = json.dumps(as_json(comparison), indent=2, ensure_ascii=False, allow_nan=False)
    write_text_atomic(path, text + "\n")


def _row(row: Compared | None) -> dict[str, Any]:
    return {} if row is None else {"difference": dataclasses.asdict(row.difference), "p": row.p, "p_holm": row.p_holm}
