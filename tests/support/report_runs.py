"""A run folder as the stages leave it, with texts that would break a page, for the tests of the report."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pool_files import write_negatives

from rankwright.common.hashing import content_hash
from rankwright.common.run_folder import RunFolder
from rankwright.data.cards import load_card
from rankwright.data.collection import Collection
from rankwright.data.licences.derived import ledger_json
from rankwright.data.licences.ledger import Roles, make_inputs
from rankwright.data.sources import Located
from rankwright.data.split_files import write_split
from rankwright.evaluation.evaluate import first_stage_run, measure, write_evaluation
from rankwright.mining.pools import Negative
from rankwright.recipe.loading import recipe_json
from rankwright.recipe.schema import Recipe
from rankwright.recipe.sources import Source
from rankwright.retrieval.candidates import Candidate, write_candidates
from rankwright.retrieval.first_stages import ordering_models

HOSTILE = "<script>alert('x')</script> & \"quoted\" $x_1$ {{ 7 * 7 }} <b>bold</b>"
QUERIES = tuple(f"q{i}" for i in range(24))
SKILL = {"bm25": 0.0, "dense": 0.3, "base": 0.2, "tuned": 0.9, "other": 0.5}


def collection(name: str, queries: Sequence[str] = QUERIES) -> Collection:
    """Twelve documents, one id with a space, one text hostile; every query has one or two relevant ones."""
    corpus = {f"d{i}": f"{'long ' * (i * 9)}document {i} of {name}" for i in range(11)}
    corpus["d 11"] = f"{HOSTILE} document 11"
    texts = {q: f"document {n % 12} of {name} please" for n, q in enumerate(queries)}
    texts[queries[0]] = f"{HOSTILE} document of {name}"
    ids = list(corpus)
    qrels = {
        q: {ids[n % 12]: 2.0 if n % 3 else 1.0, ids[(n + 5) % 12]: float(n % 2 == 0)} for n, q in enumerate(queries)
    }
    return Collection(name, corpus, texts, qrels)


def make_report_run(folder: Path, base: Path | str, *, seed: int = 0, tuned: float = 0.9, **sections: Any) -> Path:
    """Everything but queries.jsonl, of two test sets `one` and `two`."""
    values = {
        "name": "job",
        "description": HOSTILE,
        "seed": seed,
        "model": {"base": str(base)},
        "data": {
            "train": [{"card": "tatqa"}],
            "test": [{"path": "sets/one", "name": "one"}, {"card": "obliqa", "name": "two"}],
        },
        "prompt": {"max_tokens": 120},
        "mine": {"negatives": 3},
        "evaluate": {
            "depth": 9,
            "measures": ["nDCG@10", "RR"],
            "baselines": [{"name": "other", "kind": "cross_encoder", "model": "m"}],
        },
        **sections,
    }
    recipe = Recipe.model_validate_json(json.dumps(values))
    run = RunFolder(folder)
    run.create()
    run.write_json(run.path / "recipe.json", json.loads(recipe_json(recipe)))
    run.write_json(run.path / "provenance.json", {"command": ["rankwright", "run", "job.yaml"], "seed": seed})
    tests = [collection("one"), collection("two")]
    run.write_json(
        run.licences,
        ledger_json(make_inputs(recipe, _located(recipe), Roles(orderings=ordering_models(recipe))), recipe.licence),
    )
    train = Collection("tatqa", {"t": tests[0].corpus["d3"].upper()}, {"x": "other words"}, {"x": {"t": 1.0}})
    write_split(folder / "data", "train", [train])
    write_split(folder / "data", "test", tests)
    _write_counts(run, train, tests)
    inputs = {system: f"i-{system}-{folder.name if system == 'tuned' else ''}" for system in SKILL}
    for test in tests:
        _evaluate(folder / "eval" / test.name, test, recipe, inputs, {**SKILL, "tuned": tuned}, seed)
    run.finish(
        "mine",
        "i",
        seconds=1.25,
        counts={"kept": 40, "positive": 3},
        filters=[{"filter": "margin", "removed": 5, "left": 40}],
        said={"margin: <no relevant>": 2},
        false_negatives={
            "judged": {"part": 1, "whole": 8, "groups": 4, "share": 0.125, "low": 0.0, "high": 0.25},
        },
        queries=1,
        short_pools=0,
    )
    write_negatives(
        folder / "negatives.jsonl",
        {
            "x": [
                Negative("t1", "bm25", 2, 1.5, "unjudged"),
                Negative("t2", "judged", None, None, "judged_not_relevant"),
                Negative("t3", "promoted", 1, 2.5, "teacher_above_margin", (), 1.0),
            ]
        },
    )
    rows: list[dict[str, float]] = [{"step": 0, "dev_nDCG@10": 0.31}]
    for step in range(1, 41):
        rows.append({"step": step, "loss": 2 / step, "gradient_norm": 1.0 + step % 3, "learning_rate": 1e-4 / step})
        rows[-1] |= {"score_margin": step / 10, "pairs_per_s": 50.0} | ({"dev_nDCG@10": 0.4} if step % 20 == 0 else {})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.finish("train", "i", seconds=2.0, step=40, base_value=0.31, best_step=20, best_value=0.4, processes=1)
    systems = {s: inputs[s] for s in ("bm25", "base", "tuned")}
    run.finish("evaluate", content_hash(systems), seconds=1.0, systems=list(systems), system_inputs=systems)
    _write_proofs(run)
    return folder


def _located(recipe: Recipe) -> dict[str, list[Located]]:
    """The sets, which lie nowhere."""

    def one(source: Source, split: str) -> Located:
        card = None if source.card is None else load_card(source.card)
        path = Path("data") / (source.path or source.card or "")
        return Located(source, source.name or path.name, split, path, card, None, None)

    return {"train": [one(s, "train") for s in recipe.data.train], "test": [one(s, "test") for s in recipe.data.test]}


def _write_counts(run: RunFolder, train: Collection, tests: Sequence[Collection]) -> None:
    def counts(c: Collection) -> dict[str, Any]:
        relevant = sum(len(c.positives(q)) for q in c.queries)
        judged = sum(map(len, c.qrels.values()))
        facts = {"set": c.name, "documents": len(c.corpus), "queries": len(c.queries), "judgements": judged}
        return {**facts, "positives": relevant, "queries_without_positive": 0, "empty_documents": 0}

    overlap = {"same_queries": 0, "same_pairs": 0, "same_positives": 1, "queries_with_seen_positive": 4}
    run.write_json(
        run.path / "data_report.json",
        {
            "splits": {"train": [counts(train)], "dev": [], "test": [counts(c) for c in tests]},
            "overlap_with_train": [{"train": "tatqa", "split": "test", "held_out": "one", **overlap}],
        },
    )


def _evaluate(
    place: Path, test: Collection, recipe: Recipe, inputs: dict[str, str], skill: dict[str, float], seed: int
) -> None:
    candidates = {}
    for query_id in test.queries:
        ids = sorted(test.corpus)
        random.Random(f"{test.name} {query_id}").shuffle(ids)
        candidates[query_id] = [Candidate(d, 10.0 - n, n) for n, d in enumerate(ids[: recipe.evaluate.depth], start=1)]
    # A first stage may find nothing.
    candidates["q5"] = []
    write_candidates(place / "candidates.jsonl", candidates)
    first = first_stage_run(candidates, list(test.queries))
    for system, gain in skill.items():
        noise = random.Random(f"{system} {seed if system == 'tuned' else ''} {test.name}")
        scores = {
            q: {d: noise.random() + gain * (test.qrels[q].get(d, 0) > 0) for d in documents}
            for q, documents in first.items()
        }
        run = first if system == "bm25" else scores
        measured = measure(run, test.qrels, list(test.queries), list(recipe.evaluate.measures))
        facts: dict[str, Any] = {"depth": recipe.evaluate.depth, "ceiling": 0.875, "inputs": inputs[system]}
        if system not in ("bm25", "dense"):
            facts |= {"first_stage": "bm25", "pairs": 207, "pairs_per_s": 1234.5, "documents_cut": 4, "queries_cut": 0}
        write_evaluation(place / system, run, measured, tag=system, facts=facts)


def _write_proofs(run: RunFolder) -> None:
    def part(ece: float) -> dict[str, Any]:
        bins = [
            {"low": n / 5, "high": (n + 1) / 5, "pairs": 20, "mean_probability": n / 5 + 0.1, "relevant_share": n / 6}
            for n in range(5)
        ]
        spread = {"relevant": [-1.0, 0.5, 2.0], "others": [-3.0, -1.5, 0.25]}
        facts = {"queries": 24, "pairs": 207, "relevant": 40, "ece": ece, "ece_fitted": ece / 4, "spread": spread}
        return {**facts, "bins": bins, "bins_fitted": bins}

    thresholds = [{"probability": 0.5, "score": 0.125, "precision": 0.625, "recall": 0.5, "f1": 0.556, "kept": 0.125}]
    run.write_json(
        run.path / "calibration.json",
        {
            "temperature": 1.625,
            "fitted_on": "dev",
            "dev": part(0.25),
            "test": {"one": part(0.375), "two": part(0.125)},
            "thresholds": thresholds,
            "alarm": None,
        },
    )
    rule = {"rule": "min_gain", "value": 0.3, "low": 0.2, "wanted": 0.0, "passed": True, "sentence": f"gain {HOSTILE}"}
    guard = {
        "rule": "guard two",
        "value": -0.3,
        "low": None,
        "wanted": -0.01,
        "passed": False,
        "sentence": "two is worse",
    }
    run.write_json(run.path / "gate.json", {"accepted": False, "rules": [rule, guard], "override": f"why {HOSTILE}"})
    curve = [{"weight": n / 20, "mean": 0.5 - (n - 3) ** 2 / 900, "lost": (n - 3) ** 2 / 900} for n in range(21)]
    depths = [{"depth": n, "mean": 0.5, "lost": 0.0, "standard_error": 0.25} for n in (5, 9)]
    combine = {"weight": 0.15, "depth": 5, "normaliser": "zscore", "dev_queries": 24, "note": None, "by_set": {}}
    combine |= {"measure": "nDCG@10", "prefer": "first_stage", "first_stage": "bm25", "depths": depths}
    run.write_json(run.combine, {**combine, "weights": [{**row, "standard_error": 0.01} for row in curve]})
    speed = {"device": "cpu", "threads": 2, "precision": "fp32", "lists": 20, "documents": 9, "p50_ms": 141.0}
    speed |= {"p95_ms": 203.0, "pairs_per_s": 1139.0, "peak_memory_mb": 812.0, "note": f"note {HOSTILE}"}
    run.write_json(run.path / "speed.json", {"tuned": speed})
    engine = {"rows": 35, "ids_differ": 0, "max_d_logit": 4.5e-7, "max_d_logit_batch": 5e-6, "max_d_probability": 4e-8}
    parity = {
        "rows": 37,
        "gate_rows": 35,
        "tolerance": 1e-4,
        "engines": {"transformers": engine, "peft": "not checked"},
    }
    run.write_json(run.path / "export/hf/parity.json", {**parity, "failures": []})
