"""What `check`, `plan` and `score` read and show."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from rich.table import Table

from rankwright import console, resources
from rankwright.errors import UserError, did_you_mean
from rankwright.frames import Mode
from rankwright.gpus import GIB
from rankwright.loading import LoadedRecipe
from rankwright.recipe import DevFromTrain
from rankwright.rows import Faults, json_rows, text_lines, text_of
from rankwright.sources import locate_all

if TYPE_CHECKING:
    from rankwright.plan import Plan
    from rankwright.reranker import Ranked

SHOWN_CHARACTERS = 90


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
    from rankwright.setup_model import load_base_tokenizer, recipe_contract

    base, tokenizer = load_base_tokenizer(loaded.recipe)
    contract = recipe_contract(loaded.recipe, base, tokenizer)
    words = f"{contract.yes_token} = {contract.yes_id}"
    words += "" if contract.no_token is None else f", {contract.no_token} = {contract.no_id}"
    console.say(f"prompt {contract.mode}, at most {contract.max_tokens} tokens, {words}")


def describe_plan(plan: Plan, *, mfu: float, draws: float | None, mean_tokens: int | None) -> None:
    """Parameters, memory of a device by part, FLOPs and time; draws: groups of an epoch, None when not known."""
    from rankwright.methods import parameter_counts
    from rankwright.setup_model import lora_name, total_steps

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
            "counted from shapes, which was compared with real steps on a CPU; scripts/gpu_check.sh does so on a GPU"
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


def read_documents(path: Path) -> list[str]:
    """Documents of a text file (one a line) or of JSONL rows with `text`; `-` is standard input.

    Raises UserError for a missing or empty file, and for rows without `text`.
    """
    if str(path) == "-":
        lines = [line for line in sys.stdin.read().split("\n") if line.strip()]
        if not lines:
            raise UserError("--documents: standard input holds no document: give one a line")
        return lines
    if not path.is_file():
        raise UserError(f"--documents: {path}: no such file")
    faults = Faults()
    if path.suffix == ".jsonl":
        texts = [text_of(row, "text", path, number, faults) for number, row in json_rows(path, faults)]
    else:
        texts = [line for _, line in text_lines(path, faults)]
    faults.check()
    return [text for text in texts if text is not None]


def show_ranking(ranked: Sequence[Ranked], *, calibrated: bool) -> None:
    """Rank, raw score, probability, input line and the start of the text.

    calibrated: a column for the calibrated probability too; for models whose temperature is not 1.
    """
    table = Table(box=None)
    for column in ("rank", "score", "probability", *(["calibrated"] if calibrated else []), "document", "text"):
        table.add_column(column, justify="left" if column == "text" else "right")
    for rank, row in enumerate(ranked, 1):
        text = " ".join(row.document.split())
        text = text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
        numbers = [row.score, row.probability, *([row.calibrated] if calibrated else [])]
        table.add_row(str(rank), *(f"{number:.4f}" for number in numbers), str(row.index + 1), text)
    console.show(table)


def stated_mode(text: str | None) -> Mode | None:
    """The frame that a user names. Raises UserError for one that there is not."""
    found: Mode | None = next((mode for mode in get_args(Mode) if mode == text), None)
    if text is not None and found is None:
        raise UserError(f"mode: {text!r}{did_you_mean(text, get_args(Mode))} (known: {', '.join(get_args(Mode))})")
    return found
