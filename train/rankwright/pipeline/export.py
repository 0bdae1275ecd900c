"""The export stage: golden pairs from the test sets, every target written and proven, the model card."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rankwright.common import console
from rankwright.common.files import read_json_object, write_text_atomic
from rankwright.common.hashing import stable_hash
from rankwright.common.lineage import OF
from rankwright.common.plurals import counted
from rankwright.common.run_folder import RunFolder
from rankwright.common.stats import mean_interval
from rankwright.data.split_files import qualified, read_split
from rankwright.evaluation.results import ALL, SetResults, read_results, rows_of, verdict
from rankwright.evaluation.teacher_gate import recorded_verdict
from rankwright.export.card import CARD, CardFacts, SetResult, add_benchmarks
from rankwright.export.proof.parity import is_as_proven
from rankwright.export.publish import ExportFailed, export_targets
from rankwright.export.target import Trained
from rankwright.model.instructions import frozen_instruction
from rankwright.model.prompt import PromptContract
from rankwright.pipeline.combine import read_combination
from rankwright.pipeline.inputs import StageInputs
from rankwright.pipeline.mteb import benchmarks
from rankwright.pipeline.pretrain_recipes import from_pretrained
from rankwright.pipeline.student import in_words, read_agreement
from rankwright.recipe.schema import EXPORTED, Recipe
from rankwright.rerankers.combination import Combination, listed
from rankwright.retrieval.candidates import Candidates, read_candidates
from rankwright.retrieval.first_stages import stage_label
from rankwright.training.setup import tuned_reranker

# In export/: which model its folders hold.
EXPORTED_MODEL = ".model"


def export_stage(
    recipe: Recipe,
    run: RunFolder,
    checkpoint: Path,
    inputs: StageInputs,
    ledger: dict[str, Any],
    *,
    gate: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write run/export/TARGET for every target, with the fitted temperature in its contract; returns the targets.

    A target that was proven with the same inputs, before another one failed, is kept. Exports of an earlier model, to
    other targets, are put aside. Raises ExportFailed where a target failed; the others are in their places.
    ledger: licences.json, which the licence in the model card comes from.
    gate: the verdict that let this model through (gate.json), or None where the recipe has no gate.
    """
    of = inputs.of("export")
    wanted = {name: {"inputs": inputs.export(gate, ledger, name), OF: of} for name in recipe.export_targets}
    # Targets of an earlier recipe stay known as long as their folders stay.
    before = (read_json_object(run.proven) or {}).items()
    others = {name: made for name, made in before if name not in wanted and run.export(name).is_dir()}
    kept = _proven_before(run, wanted)
    for name in kept:
        console.say(f"  {run.path / 'export' / name}: proven before with the same inputs, kept")
    targets = {name: options for name, options in recipe.export_targets.items() if name not in kept}
    # A kill may come at any time: from here on these are the only ones known to be proven.
    run.write_json(run.proven, {**others, **{name: wanted[name] for name in kept}})
    failure: ExportFailed | None = None
    try:
        figures = _export(recipe, run, checkpoint, inputs, ledger, gate, targets)
    except ExportFailed as error:
        failure, figures = error, error.proven
    proven = [*kept, *figures]
    # Where nothing was put in place, an unknown model's exports stay unknown.
    if proven or (run.exports / EXPORTED_MODEL).is_file():
        put_others_aside(run, proven, inputs.tuned)
    if "hf" in figures:
        # A card that was written anew lacks them, though the model may be the same.
        add_benchmarks(run.export("hf") / CARD, benchmarks(run))
    run.write_json(run.proven, {**others, **{name: wanted[name] for name in proven}})
    for target in figures:
        console.say(f"  {run.path / 'export' / target}: {_parity_line(figures[target])}")
    if failure is not None:
        again = ", ".join(failure.failed)
        console.say(f"  in place: {', '.join(proven) or 'none'}; the same command tries again only {again}")
        raise failure
    return {"targets": list(recipe.export_targets)}


def _proven_before(run: RunFolder, wanted: Mapping[str, Any]) -> list[str]:
    """The targets whose folders were proven with these inputs and hold the same files still."""
    before = read_json_object(run.proven) or {}
    same = [name for name, made_from in wanted.items() if before.get(name) == made_from]
    return [name for name in same if is_as_proven(run.export(name))]


def _export(
    recipe: Recipe,
    run: RunFolder,
    checkpoint: Path,
    inputs: StageInputs,
    ledger: dict[str, Any],
    gate: Mapping[str, Any] | None,
    targets: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
    if not targets:
        return {}
    trained = from_pretrained(recipe, run)
    reranker = tuned_reranker(trained, checkpoint, inputs=inputs.train, fp32=True).under(frozen_instruction(recipe))
    calibration = json.loads(run.calibration.read_text(encoding="utf-8"))
    sets = [collection.name for collection in read_split(run.data, "test")]
    results, _ = read_results(run.path, recipe, sets, inputs.systems)
    combination = read_combination(run) if recipe.evaluate.combine is not None else Combination()
    made = Trained(
        reranker.model,
        reranker.tokenizer,
        reranker.contract.replace(
            temperature=calibration["temperature"],
            combine_weight=combination.weight,
            combine_normaliser=combination.normaliser,
            combine_depth=combination.depth,
        ),
        recipe.model.base,
        recipe.model.revision,
        golden_pairs(recipe, run, reranker.contract),
        recipe.export.tolerance,
    )
    facts = CardFacts(
        title=f"{recipe.name} reranker",
        name=recipe.name,
        results=_set_results(recipe, results, ledger),
        training=_training(recipe, run),
        verdict=verdict(rows_of(results)).sentences,
        figures=_card_figures(recipe, results),
        calibration=calibration,
        gate=gate,
        ledger=ledger,
    )
    if recipe.is_pairwise:
        facts = _of_student(facts, read_agreement(run))
    licence = ledger["licence"]
    console.say(f"  licence of the weights: {licence['name'] or licence['hub']} ({'; '.join(licence['why'])})")
    return export_targets(made, targets, run.exports, facts)


def _of_student(facts: CardFacts, found: Mapping[str, Mapping[str, Any]]) -> CardFacts:
    """The facts of a model that compares pairs: how it agrees with its judges, and nothing about lists.

    found: student.json.
    """
    figures = {f"{name}, {system}": in_words(own) for name, systems in found.items() for system, own in systems.items()}
    return dataclasses.replace(
        facts,
        title=f"{facts.name} judge of pairs",
        results=(),
        verdict=[f"On held-out pairs of {name} it {in_words(own['tuned'])}." for name, own in found.items()],
        figures=figures,
        calibration=None,
    )


def withdraw_exports(run: RunFolder) -> None:
    """Rename export/ to export-withdrawn-N, with the verdict inside: left in its place it would look accepted.

    Nothing is deleted: the export may be of another model, which was accepted, or from before there was a gate.
    """
    folder = run.exports
    if not folder.is_dir():
        return
    kept = _free_name(folder)
    folder.rename(kept)
    shutil.copy(run.gate, kept / run.gate.name)
    console.say(f"the earlier export is no longer in its place: it is kept as {kept}")


def put_others_aside(run: RunFolder, targets: Iterable[str], model: str) -> None:
    """Move exports to other targets to export-withdrawn-N where they hold an earlier model of this run."""
    folder = run.exports
    mark = folder / EXPORTED_MODEL
    earlier = mark.read_text(encoding="utf-8") if mark.is_file() else None
    others = sorted(path for path in folder.glob("[!.]*") if path.is_dir() and path.name not in targets)
    write_text_atomic(mark, model)
    # Without the mark it is not known which model the exports are from.
    if not others or earlier in (None, model):
        return
    kept = _free_name(folder)
    kept.mkdir()
    for path in others:
        path.rename(kept / path.name)
    names = ", ".join(path.name for path in others)
    console.say(f"exports of the model before, of other targets ({names}): kept in {kept}")


def _free_name(folder: Path) -> Path:
    number = 1
    while (kept := folder.with_name(f"export-withdrawn-{number}")).exists():
        number += 1
    return kept


def golden_pairs(recipe: Recipe, run: RunFolder, contract: PromptContract) -> list[tuple[str, str]]:
    """Test pairs, or those of dev without a test: by hash, with a relevant document and with the first stage's best.

    Under prompt.first_stage_score every second one has the line of its list, the others have none.
    """
    collections = read_split(run.data, "test")
    of_dev: Candidates = {}
    if not collections:
        collections, of_dev = [qualified(c) for c in read_split(run.data, "dev")], read_candidates(run.dev_candidates)
    pairs: list[tuple[str, str]] = []
    share = -(-recipe.export.golden_pairs // len(collections))
    for collection in collections:
        own = {q: found for q, found in of_dev.items() if q in collection.queries}
        candidates: Candidates = own or read_candidates(run.eval_folder(collection.name) / "candidates.jsonl")
        found: list[tuple[str, str]] = []
        for query_id in sorted(candidates, key=lambda q: stable_hash("golden", recipe.seed, q)):
            best = [c.document_id for c in candidates[query_id][:1]]
            relevant = sorted(collection.positives(query_id, recipe.evaluate.relevance_level))
            for document_id in dict.fromkeys([*relevant[:1], *best]):
                lists = () if len(found) % 2 else candidates[query_id]
                [document] = listed(contract, [collection.corpus[document_id]], [document_id], lists)
                found.append((collection.queries[query_id], document))
            if len(found) >= share:
                break
        pairs += found[:share]
    return pairs[: recipe.export.golden_pairs]


def _card_figures(recipe: Recipe, results: Sequence[SetResults]) -> dict[str, str | float | int]:
    figures: dict[str, str | float | int] = {}
    for row in results:
        values = ", ".join(f"{stage_label(system)} {mean:.3f}" for system, mean in row.means.items())
        d = row.to_base.get("tuned")
        interval = f"; tuned - base {d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]" if d is not None else ""
        figures[f"{row.measure}, {row.name} ({counted(row.queries, 'query')})"] = values + interval
    if recipe.model.merge_with_base:
        figures["share of the base in the weights (model.merge_with_base)"] = recipe.model.merge_with_base
    return figures


def _set_results(recipe: Recipe, results: Sequence[SetResults], ledger: Mapping[str, Any]) -> list[SetResult]:
    """nDCG@10 of the exported weights on every test set, with its interval over queries."""
    hubs = {one["input"]: one["hub"] for one in ledger["inputs"] if "evaluate" in one["use"]}
    found = []
    for row in results:
        # A set with an instruction of its own is also evaluated under the one that the exports hold.
        values = row.values.get(EXPORTED) or row.values.get("tuned")
        if row.name == ALL or not values:
            continue
        low, high = mean_interval([values[q] for q in sorted(values)], seed=recipe.seed)
        lists = f"{stage_label(row.first_stage)}, best {recipe.evaluate.depth}"
        found.append(
            SetResult(
                row.name,
                hubs.get(row.name),
                len(values),
                sum(values.values()) / len(values),
                low,
                high,
                lists,
                row.measure,
            )
        )
    return found


def _training(recipe: Recipe, run: RunFolder) -> list[str]:
    """How the weights were made, in sentences."""
    provenance = json.loads(run.provenance.read_text(encoding="utf-8"))
    record = run.facts("train")
    sets = json.loads(run.data_report.read_text(encoding="utf-8"))["splits"]["train"]
    trained = "; ".join(
        f"{row['set']} ({counted(row['queries'], 'query')}, {counted(row['documents'], 'document')})" for row in sets
    )
    of = "both orders of each pair" if recipe.is_pairwise else f"the negatives are from {recipe.mine.retriever}"
    said = [f"Trained on {trained}; {of}."]
    if "seconds" in record:
        hours, processes = record["seconds"] / 3600, record.get("processes", 1)
        said.append(
            f"Method {recipe.model.method}, loss {recipe.loss.name}, the best checkpoint on dev: step "
            f"{record.get('best_step')} of {record.get('planned_steps')}; {hours:.2f} hours, processes: {processes}."
        )
    if recipe.pretrain is not None:
        said.append(_pretrained(run.facts("pretrain")))
    if recipe.model.quantize:
        said.append(_of_quantized(recipe, run))
    judged = recorded_verdict(run) if recipe.has_teacher else None
    if judged is not None:
        reason = f" It was used all the same, for this reason: {judged['override']}" if judged["override"] else ""
        said.append(f"{judged['sentence']}.{reason}")
    if recipe.train.first_stage_offset:
        said.append(
            f"Trained on score + {recipe.train.first_stage_offset:g} z({recipe.evaluate.first_stage}), so that it "
            f"adds to what {recipe.evaluate.first_stage} knows: it is meant to be combined with it."
        )
    if (told := recipe.prompt.first_stage_score) is not None:
        said.append(
            f"Trained with the score of {recipe.evaluate.first_stage} in the prompt, a number from 0 to {told.levels}, "
            f"but for {told.dropout:.0%} of the queries drawn; tuned was measured with it, the base without."
        )
    packages = ", ".join(f"{name} {version}" for name, version in provenance["packages"].items())
    commit = provenance["commit"] or "unknown"
    said.append(f"Rankwright {provenance['rankwright']}, commit {commit}, seed {recipe.seed}; {packages}.")
    return said


def _pretrained(facts: Mapping[str, Any]) -> str:
    """What the base was trained on first, in one sentence. facts: of the stage pretrain."""
    parts = []
    if facts.get("pairs"):
        sets = ", ".join(f"{name} {number:,}" for name, number in facts["sets"].items())
        parts.append(f"{counted(facts['pairs'], 'weak pair')} ({sets})")
    if facts.get("text"):
        parts.append(f"{facts['text']['tokens']:,} tokens of text")
    return f"The base was trained first on {' and '.join(parts)}, in {counted(facts['step'], 'step')}."


def _of_quantized(recipe: Recipe, run: RunFolder) -> str:
    """What the weights are where adapters were trained over quantised ones."""
    found = read_json_object(run.quantization) or {}
    far = (
        f"; scores of {counted(found['pairs'], 'dev pair')} differ from those of the model in training by "
        f"{found['mean_difference']:.1e} in the mean, {found['max_difference']:.1e} at most"
        if found
        else ""
    )
    return (
        f"Trained with the base's linear layers in 4 bits ({recipe.model.quantize}, double quantisation): the adapters "
        f"are merged into the dequantised weights, and this merged model is what was evaluated{far}."
    )


def _parity_line(figures: dict[str, Any]) -> str:
    """One line: every runtime with its largest difference of a logit, or why it was not checked."""
    parts = []
    for name, values in figures["engines"].items():
        if isinstance(values, str):
            parts.append(f"{name} {values}")
        else:
            logit = "max_d_logit" in values
            worst = max(values["max_d_logit"], values["max_d_logit_batch"]) if logit else values["max_d_probability"]
            parts.append(
                f"{name} max |d {'logit' if logit else 'probability'}| {worst:.1e} on {counted(values['rows'], 'pair')}"
            )
    return ", ".join(parts)
