"""The export stage: golden pairs from the test sets, every target written and proven, the model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankwright import console, mining
from rankwright.data_files import read_split
from rankwright.evaluate import HEADLINE
from rankwright.export import export_targets
from rankwright.model_card import CardFacts
from rankwright.ranking import stable_hash
from rankwright.recipe import Recipe
from rankwright.results import results
from rankwright.run_folder import RunFolder
from rankwright.setup_model import tuned_reranker


def export_stage(recipe: Recipe, run: RunFolder, checkpoint: Path, system_inputs: Mapping[str, str]) -> dict[str, Any]:
    """Write run/export/TARGET for every target; returns the figures of their parity checks."""
    reranker = tuned_reranker(recipe, checkpoint, fp32=True)
    figures = export_targets(
        reranker.model,
        reranker.tokenizer,
        reranker.contract,
        targets=recipe.export_targets,
        folder=run.path / "export",
        golden_pairs=golden_pairs(recipe, run),
        base_name=recipe.model.base,
        revision=recipe.model.revision,
        tolerance=recipe.export.tolerance,
        facts=CardFacts(title=f"{recipe.name} reranker", figures=_card_figures(recipe, run, system_inputs)),
    )
    for target in figures:
        console.say(f"  {run.path / 'export' / target}: {_parity_line(figures[target])}")
    return {"targets": list(figures)}


def golden_pairs(recipe: Recipe, run: RunFolder) -> list[tuple[str, str]]:
    """Test pairs, queries by hash: each with a relevant document and the first stage's best."""
    collections = read_split(run.path / "data", "test")
    pairs: list[tuple[str, str]] = []
    share = -(-recipe.export.golden_pairs // len(collections))
    for collection in collections:
        candidates = mining.read_candidates(run.path / "eval" / collection.name / "candidates.jsonl")
        found: list[tuple[str, str]] = []
        for query_id in sorted(candidates, key=lambda q: stable_hash("golden", recipe.seed, q)):
            best = [c.document_id for c in candidates[query_id][:1]]
            for document_id in dict.fromkeys([*sorted(collection.positives(query_id))[:1], *best]):
                found.append((collection.queries[query_id], collection.corpus[document_id]))
        pairs += found[:share]
    return pairs[: recipe.export.golden_pairs]


def _card_figures(recipe: Recipe, run: RunFolder, system_inputs: Mapping[str, str]) -> dict[str, str | float | int]:
    figures: dict[str, str | float | int] = {}
    for row in results(run, recipe.seed, system_inputs):
        values = ", ".join(f"{system} {value:.3f}" for system, value in row.values.items())
        d = row.difference
        interval = f"; tuned - base {d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]" if d is not None else ""
        figures[f"{HEADLINE}, {row.name} ({row.queries} queries)"] = values + interval
    if recipe.model.merge_with_base:
        figures["share of the base in the weights (model.merge_with_base)"] = recipe.model.merge_with_base
    return figures


def _parity_line(figures: dict[str, Any]) -> str:
    """One line: every runtime with its largest difference of a logit, or why it was not checked."""
    parts = []
    for name, values in figures["engines"].items():
        if isinstance(values, str):
            parts.append(f"{name} {values}")
        else:
            worst = max(values["max_d_logit"], values["max_d_logit_batch"])
            parts.append(f"{name} max |d logit| {worst:.1e} on {values['rows']} pairs")
    return ", ".join(parts)
