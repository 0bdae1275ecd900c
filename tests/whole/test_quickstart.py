"""What the README promises of the quickstart: a real gain on held-out queries, and none from meaningless labels."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jobs
import pytest

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
