"""report.html: one page about a run that needs no other file (Jinja2, inline SVG, no script, no network)."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateError

from rankwright.common.components import SeedDifference
from rankwright.common.errors import UserError
from rankwright.common.files import write_text_atomic
from rankwright.common.lineage import OF, lineage
from rankwright.common.run_folder import STAGES, RunFolder
from rankwright.common.stats import Difference
from rankwright.common.templates import template_environment
from rankwright.data.split_files import read_split
from rankwright.evaluation.metrics import HEADLINE, Scale, measures_of
from rankwright.evaluation.mteb_results import read_records
from rankwright.evaluation.results import ALL, SetResults, read_results, rows_of, verdict
from rankwright.evaluation.runs import read_run
from rankwright.evaluation.slices import (
    ATTRIBUTES,
    FILE,
    RESAMPLES,
    SMALL,
    QueryAttributes,
    SliceTable,
    domain_attribute,
    read_attributes,
    set_attribute,
    slice_table,
)
from rankwright.evaluation.teacher_gate import recorded_verdict
from rankwright.recipe.schema import Recipe
from rankwright.report import gather, plots
from rankwright.report.cases import Cases, read_cases
from rankwright.retrieval.first_stages import stage_label
from rankwright.training.tracking import read_metrics

# Where the head of a page names what is stale; in a page of an earlier version the place above its title.
BANNER = re.compile(r"<!-- stale -->.*?<!-- /stale -->|(?=<h1[ >])", re.DOTALL)
# The results that a page shows.
RESULTS = re.compile(r'<h1 data-results="(\w*)">')
CURVES = {
    "loss": "training loss",
    f"dev_{HEADLINE}": f"{HEADLINE} on dev",
    "gradient_norm": "gradient norm, before clipping",
    "score_margin": "score margin, relevant - others",
    "learning_rate": "learning rate",
    "mfu": "share of peak FLOP/s (MFU)",
    "pairs_per_s": "pairs/s",
}

# The losses of the parts of a pre-training, and what chooses its step.
PRETRAINING_CURVES = {
    "loss": "loss",
    "query_likelihood": "loss of the queries' tokens",
    "text_loss": "loss of the text's tokens",
    "keep_answers": "divergence from the base's answers",
    f"dev_{HEADLINE}": f"{HEADLINE} on held-out pairs",
    "dev_log_likelihood": "log-likelihood of held-out text, per token",
}


def write_report(folder: Path, inputs: Mapping[str, str] | None = None, output: Path | None = None) -> Path:
    """Write report.html (or `output`) from the files of a run. The page names the files that are missing.

    inputs: system -> hash of what its numbers must come from. Without it, systems of several different evaluations are
    refused. Raises UserError for a folder that is not a run folder, and for damaged files.
    """
    recipe = gather.read_recipe(folder)
    run = RunFolder(folder)
    data = gather.read_json(run.data_report)
    try:
        sets = [str(row["set"]) for row in data["splits"]["test"]] if data else []
    except (LookupError, TypeError):
        raise UserError(f"{run.data_report}: has no test sets: delete it and give `rankwright run` again") from None
    if inputs is None and sets and all((run.eval_folder(s, "tuned") / "metrics.json").is_file() for s in sets):
        read_run(folder, folder.name)
    path = output or run.report
    try:
        write_page(path, "report.html.j2", **context(folder, recipe, data, sets, inputs))
    except UserError:
        raise
    except (TemplateError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{folder}: a file of this run is not as this version writes it ({error}): give "
            f"`{run.command('run')}` again"
        ) from error
    return path


def results_of(run: RunFolder) -> str:
    """Hash of the results that the folder holds now, as the evaluation recorded it; empty where it did not."""
    return str(run.facts("evaluate").get(OF, {}).get("results", ""))


def mark_report(run: RunFolder) -> None:
    """Put what is stale now into the head of the report that lies in the folder; the rest of the page stays."""
    path = run.report
    if not path.is_file():
        return
    page = path.read_text(encoding="utf-8", errors="replace")
    shown, now = RESULTS.search(page), results_of(run)
    is_old = shown is not None and shown[1] != now
    banner = _pages().get_template("banner.html.j2").render(stale=lineage(run), is_old=is_old).strip()
    marked = BANNER.sub(lambda _: banner, page, count=1)
    if marked != page:
        write_text_atomic(path, marked)


def write_page(path: Path, template: str, **values: Any) -> None:
    """Render a template of this folder, and write the page."""
    write_text_atomic(path, _pages().get_template(template).render(**values))


def _pages() -> Environment:
    """The templates of this folder, with the pages' ways to write numbers."""
    filters: dict[str, Callable[..., str]] = {
        "f3": lambda value: "\N{EN DASH}" if value is None else f"{value:.3f}",
        "signed": plots.signed,
        "interval": interval,
        "count": lambda value: f"{value:,}",
        "percent": lambda value: f"{100 * value:.1f}\N{NO-BREAK SPACE}%",
        "system": stage_label,
        # As a recipe writes it: text as it is, true and not True, [a, b] and not ('a', 'b').
        "yaml": lambda value: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
        "p": p_text,
    }
    return template_environment("rankwright.report", html=True, filters=filters)


def p_text(value: float) -> str:
    """A p value of three digits: `< 0.001` below."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def interval(difference: Difference | SeedDifference | None) -> str:
    """`+0.103 [+0.071, +0.136]`, with a real minus sign."""
    if difference is None:
        return "\N{EN DASH}"
    mean, low, high = map(plots.signed, (difference.mean, difference.low, difference.high))
    return f"{mean} [{low},\N{NO-BREAK SPACE}{high}]"


def context(
    folder: Path, recipe: Recipe, data: Mapping[str, Any] | None, sets: Sequence[str], inputs: Mapping[str, str] | None
) -> dict[str, Any]:
    """Everything that the template shows."""
    run = RunFolder(folder)
    rows, notes = read_results(folder, recipe, sets, inputs)
    metrics = read_metrics(run.metrics)
    trained = run.facts("train")
    kept = trained.get("best_step")
    calibration = gather.read_json(run.calibration)
    scale = Scale.of(recipe.evaluate)
    headline = rows[0].measure if rows else scale.name(HEADLINE)
    return {
        "stale": lineage(run),
        "is_old": False,
        "results_of": results_of(run),
        "recipe": recipe,
        "recipe_json": recipe.model_dump(mode="json", by_alias=True),
        "changed": list(gather.changed_keys(recipe)),
        "headline": headline,
        "scale": scale,
        "rows": rows,
        "left_out": _left_out(rows, data),
        "notes": notes,
        "verdict": verdict(rows_of(rows)),
        "measures": measures_of(recipe.evaluate),
        "systems": list(dict.fromkeys(s for row in rows for s in row.values)),
        "differences": plots.differences(
            _intervals(rows), "results", f"Difference in {headline} (tuned minus the other), 95 % interval"
        ),
        "curves": [svg for key, title in CURVES.items() if (svg := plots.curve(metrics, key, title, best=kept))],
        "no_curve": [title for key, title in CURVES.items() if metrics and not any(key in row for row in metrics)],
        "trained": trained,
        "pretraining": _pretraining(run) if recipe.pretrain is not None else None,
        "slices": read_slices(folder, rows, recipe.seed),
        "small": SMALL,
        "resamples": RESAMPLES,
        "cases": _cases(folder, rows, scale.level),
        "data": data,
        "ledger": gather.read_json(run.licences),
        "mix": gather.read_json(run.mix),
        "written": gather.read_written(run, recipe),
        "mined": gather.read_mining(run),
        "judged": gather.read_json(run.judge_report) if recipe.pairs is not None else None,
        "student": gather.read_json(run.student) if recipe.is_pairwise else None,
        "calibration": calibration,
        "reliability": _reliability(calibration),
        "combine": (combine := gather.read_json(run.combine)),
        "combine_curve": plots.combine_curve(combine),
        "gate": gather.read_json(run.gate),
        "teacher": recorded_verdict(run) if recipe.has_teacher else None,
        "speed": gather.read_json(run.speed),
        "quantization": gather.read_json(run.quantization) if recipe.model.quantize else None,
        "benchmarks": list(read_records(run)),
        "parity": gather.read_parity(folder, list(recipe.export_targets)),
        "stages": [(name, facts) for name in STAGES if (facts := run.facts(name))],
        "provenance": gather.read_json(run.provenance),
    }


def _pretraining(run: RunFolder) -> dict[str, Any] | None:
    """The facts of the stage pretrain, its curves and the facts of the control; None where it is not done."""
    facts = run.facts("pretrain")
    if not facts:
        return None
    metrics = read_metrics(RunFolder(run.pretraining).metrics)
    best = facts["best_step"]
    drawn = (plots.curve(metrics, key, title, best=best, of="pretrain") for key, title in PRETRAINING_CURVES.items())
    return {**facts, "curves": list(filter(None, drawn)), "control": run.facts("control")}


def _left_out(rows: Sequence[SetResults], data: Mapping[str, Any] | None) -> dict[str, int]:
    """Test set -> its queries without a relevant document: as they were measured, or else as the data have them."""
    read = {row["set"]: row["queries_without_positive"] for row in data["splits"]["test"]} if data else {}
    measured = {
        row.name: next(iter(row.metrics.values())).get("queries_without_relevant") for row in rows if row.metrics
    }
    return read | {name: count for name, count in measured.items() if count is not None}


def _intervals(rows: Sequence[SetResults]) -> list[tuple[str, list[tuple[str, Difference]]]]:
    firsts = {row.first_stage for row in rows}
    shown = stage_label(firsts.pop()) if len(firsts) == 1 else "first stage"
    pairs = [(row.name, (("vs base", row.to_base.get("tuned")), (f"vs {shown}", row.to_first))) for row in rows]
    return [(name, [(kind, d) for kind, d in found if d is not None]) for name, found in pairs]


def read_slices(folder: Path, rows: Sequence[SetResults], seed: int) -> list[tuple[str, str, SliceTable]]:
    """(test set, first stage, its slices), the pooled queries first. Sets without queries.jsonl are left out."""
    parts = [row for row in rows if row.name != ALL]
    known = {row.name: RunFolder(folder).eval_folder(row.name) / FILE for row in parts}
    found = {name: read_attributes(path) for name, path in known.items() if path.is_file()}
    tables = [
        (row.name, row.first_stage, slice_table(found[row.name], _three(row), seed=seed))
        for row in parts
        if row.name in found
    ]
    if len(parts) > 1 and len(found) == len(parts):
        row = rows[-1]
        pooled: list[QueryAttributes] = []
        sets: dict[str, str] = {}
        # A query that an earlier set has too counts once.
        counted = set[str]().union(*row.values.values())
        for name, attributes in found.items():
            ids = [(a, f"{name}/{a.query_id}") for a in attributes]
            pooled += [dataclasses.replace(a, query_id=q) for a, q in ids if q in counted]
            sets |= {q: name for _, q in ids if q in counted}
        by_set = [domain_attribute(pooled)]
        if set(by_set[0].bins) != set(sets.values()):
            by_set.insert(0, set_attribute(sets))
        table = slice_table(pooled, _three(row), attributes=[*by_set, *ATTRIBUTES], seed=seed)
        tables.insert(0, (ALL, row.first_stage, table))
    return tables


def _three(row: SetResults) -> dict[str, Mapping[str, float]]:
    """The systems that slices show: first stage, base and tuned."""
    return {s: row.values[s] for s in (row.first_stage, "base", "tuned") if s in row.values}


def _cases(folder: Path, rows: Sequence[SetResults], level: int) -> list[Cases]:
    if not RunFolder(folder).split("test").is_file():
        return []
    by_name = {row.name: row for row in rows if row.name != ALL}
    found: list[Cases] = []
    for collection in read_split(RunFolder(folder).data, "test"):
        if collection.name in by_name:
            found += read_cases(folder, by_name[collection.name], collection, level)
    # What training changed comes first.
    return sorted(found, key=lambda cases: cases.before != "base")


def _reliability(calibration: Mapping[str, Any] | None) -> list[str]:
    if calibration is None:
        return []
    parts = enumerate({"dev": calibration["dev"], **calibration["test"]}.items())
    drawn = (plots.reliability(f"reliability-{n}", name, p["bins"], p["bins_fitted"]) for n, (name, p) in parts if p)
    return list(filter(None, drawn))
