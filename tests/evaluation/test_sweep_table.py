"""The statistics of a sweep on simulated dev values: configurations x seeds x queries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sweeps import loaded_sweep, simulated

from rankwright.common.components import SeedDifference
from rankwright.common.stats import Difference
from rankwright.evaluation.sweep_table import RunRow, SweepTable, build_table, promise


def table_of(folder: Path, effects: dict[str, float] | None = None, **keys: Any) -> SweepTable:
    loaded = loaded_sweep(folder, **keys)
    return build_table(loaded, simulated(loaded, np.random.default_rng(0), effects or {}))


def test_a_large_difference_is_found_and_chosen(tmp_path: Path) -> None:
    table = table_of(tmp_path, {"loss-bce": 0.1, "loss-bce_rank-8": 0.1})
    row = table.of("loss-bce")
    assert row.contrast is not None and row.contrast.seeds_known and isinstance(row.contrast.difference, SeedDifference)
    assert 0.05 < row.contrast.difference.low < 0.1 < row.contrast.difference.high < 0.15
    assert row.p_holm is not None and row.p_bh is not None and row.contrast.p <= row.p_bh <= row.p_holm < 0.01
    assert table.chosen in ("loss-bce", "loss-bce_rank-8") and table.default == "default"
    assert table.of("default").contrast is None
    assert table.of("rank-8").p_holm is not None and table.of("rank-8").p_holm > 0.05


def test_main_effects_are_means_over_the_other_factors(tmp_path: Path) -> None:
    loaded = loaded_sweep(tmp_path)
    rows = simulated(loaded, np.random.default_rng(1), {"loss-bce": 0.1, "loss-bce_rank-8": 0.1})
    effects = {effect.factor: effect for effect in build_table(loaded, rows).effects}
    loss, rank = effects["loss.name"], effects["model.rank"]
    assert [level.value for level in loss.levels] == ["listwise_softmax", "bce"] and loss.combinations == 2
    wanted = np.mean([row.dev for row in rows if row.configuration in ("loss-bce", "loss-bce_rank-8")])
    assert loss.levels[1].mean == pytest.approx(wanted)
    assert loss.levels[1].low < wanted < loss.levels[1].high
    found = loss.levels[1].contrast
    assert found is not None and found.difference.low > 0.05
    assert rank.levels[1].contrast is not None and rank.levels[1].contrast.p > 0.05


def test_main_effects_leave_out_what_a_level_has_not_finished(tmp_path: Path) -> None:
    loaded = loaded_sweep(tmp_path)
    rows = [
        RunRow(row.name, row.configuration, row.seed, "failed", "out of memory")
        if row.configuration == "rank-8"
        else row
        for row in simulated(loaded, np.random.default_rng(1), {})
    ]
    table = build_table(loaded, rows)
    assert {effect.factor: effect.combinations for effect in table.effects} == {"loss.name": 1, "model.rank": 1}
    assert table.of("rank-8").failed == 3 and table.of("rank-8").contrast is None and table.of("rank-8").dev is None
    assert any("3 runs failed" in note for note in table.notes)


def test_one_seed(tmp_path: Path) -> None:
    table = table_of(tmp_path, {"loss-bce": 0.1}, seeds=[0])
    row = table.of("loss-bce")
    assert row.contrast is not None and not row.contrast.seeds_known and isinstance(row.contrast.difference, Difference)
    assert row.deviation is None and table.detectable is None
    assert any("seed variance unknown" in note for note in table.notes)
    assert "seed variance unknown" in promise(250, 1)


def test_other_dev_queries_are_not_compared(tmp_path: Path) -> None:
    loaded = loaded_sweep(tmp_path)
    rows = simulated(loaded, np.random.default_rng(0), {})
    assert rows[1].values is not None
    renamed = {f"x{q}": v for q, v in rows[1].values.items()}
    rows[1] = RunRow("a", rows[1].configuration, rows[1].seed, "done", dev=0.9, values=renamed)
    table = build_table(loaded, rows)
    assert table.of(rows[1].configuration).contrast is None
    assert any("different dev queries" in note for note in table.notes)


def test_only_configurations_with_the_most_seeds_are_chosen(tmp_path: Path) -> None:
    loaded = loaded_sweep(tmp_path, budget={"runs": 9})
    rows = simulated(loaded, np.random.default_rng(0), {})
    rows[1] = RunRow(rows[1].name, rows[1].configuration, 0, "failed", "x")
    lucky = rows[5]
    rows[5] = RunRow(lucky.name, lucky.configuration, 1, "done", dev=0.99, values=lucky.values)
    table = build_table(loaded, rows)
    assert table.chosen == "default", "it alone has three seeds"
    assert any("budget.runs leaves out 3 runs of 12" in note for note in table.notes)


def test_the_pareto_front(tmp_path: Path) -> None:
    loaded = loaded_sweep(tmp_path, seeds=[0])
    points = {"default": (0.5, 10.0), "rank-8": (0.6, 20.0), "loss-bce": (0.55, 20.0), "loss-bce_rank-8": (0.4, 5.0)}
    rows = [
        RunRow(run.name, name, 0, "done", dev=points[name][0], seconds=points[name][1])
        for run in loaded.runs
        for name in [run.configuration.name]
    ]
    front = {row.name for row in build_table(loaded, rows).configurations if row.pareto}
    assert front == {"default", "rank-8", "loss-bce_rank-8"}


@pytest.mark.parametrize(("queries", "seed_sd"), [(250, 0.005), (250, 0.01), (250, 0.02)])
def test_nulls_are_called_different_about_as_often_as_promised(tmp_path: Path, queries: int, seed_sd: float) -> None:
    """METHODS' settings through the table itself; a difference of means of seeds by queries alone: 8 to 36 %."""
    loaded = loaded_sweep(tmp_path, {"loss.name": ["listwise_softmax", "bce"]})
    rng, wrong, trials = np.random.default_rng(0), 0, 400
    for _ in range(trials):
        table = build_table(loaded, simulated(loaded, rng, {}, queries=queries, seed_sd=seed_sd))
        found = table.of("loss-bce").contrast
        assert found is not None
        wrong += found.p < 0.05
    assert 0.01 < wrong / trials < 0.08


def test_what_will_not_show_becomes_smaller_with_seeds_and_queries(tmp_path: Path) -> None:
    assert "with 3 seeds and 300 queries a difference below .034 will not show" in promise(300, 3)
    known = promise(250, 3, table_of(tmp_path))
    assert "by the finished runs" in known and "8 seeds" in known
