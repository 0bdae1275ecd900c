"""What the README promises of the quickstart: a real gain on held-out queries, and none from meaningless labels."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jobs
import pytest

from rankwright.evaluation.evaluate import read_per_query
from rankwright.evaluation.results import SetResults, read_results
from rankwright.report.gather import read_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def run_quickstart(folder: Path, *overrides: str) -> SetResults:
    """The last row of the table, over the queries of all test sets."""
    # Two threads, as a person's shell would have on the smallest machine.
    done = jobs.rankwright("run", "quickstart", f"run_dir={folder}", *overrides, OMP_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr
    systems = ("bm25", "base", "tuned")
    metrics = [json.loads((folder / "eval" / "code" / s / "metrics.json").read_text()) for s in systems]
    inputs = {system: values["inputs"] for system, values in zip(systems, metrics, strict=True)}
    row = read_results(folder, read_recipe(folder), ("finance", "legal", "code"), inputs)[0][-1]
    assert row.name == "all" and re.search(rf"all\W+{row.queries}\W", done.stdout)
    return row


def test_tuned_beats_the_base_by_a_tenth_of_ndcg(tmp_path: Path) -> None:
    row = run_quickstart(tmp_path / "run")
    assert row.to_base["tuned"].mean >= 0.10
    assert row.to_base["tuned"].low > 0


def test_meaningless_labels_gain_nothing(tmp_path: Path) -> None:
    row = run_quickstart(tmp_path / "run", "train.shuffle_labels=true")
    assert row.to_base["tuned"].mean < 0.05


def test_the_combination_is_not_worse_than_bm25(tmp_path: Path) -> None:
    row = run_quickstart(tmp_path / "run", "export.targets=[hf]")
    values = json.loads((tmp_path / "run" / "combine.json").read_text())
    means = {s: read_per_query_mean(tmp_path / "run", s) for s in ("bm25", "tuned", "combined")}
    # The lower bounds of what was measured.
    assert means["combined"] >= means["bm25"] - 0.007 and means["combined"] >= means["tuned"] + 0.059
    contract = json.loads((tmp_path / "run" / "export" / "hf" / "rankwright.json").read_text())
    assert [contract[f"combine_{key}"] for key in ("weight", "depth")] == [values["weight"], values["depth"]]
    assert row.queries == 270


def read_per_query_mean(run: Path, system: str) -> float:
    """nDCG@10 over the queries of all three sets."""
    sets = ("finance", "legal", "code")
    values = [v for name in sets for v in read_per_query(run / "eval" / name / system, "nDCG@10").values()]
    return sum(values) / len(values)
