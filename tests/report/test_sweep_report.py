"""The page and the tables of a sweep: complete, without scripts, the same bytes each time, and escaped."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
from sweeps import loaded_sweep, simulated

from rankwright.evaluation.sweep_table import OnTest, RunRow, SweepTable, build_table
from rankwright.report.sweep import latex, markdown, ranked, tidy, verdict, would_show, write_sweep


def table_of(folder: Path, effect: float = 0.1, **keys: object) -> SweepTable:
    loaded = loaded_sweep(folder, **keys)
    rows = simulated(loaded, np.random.default_rng(0), {"loss-bce": effect})
    rows[1] = RunRow(rows[1].name, rows[1].configuration, rows[1].seed, "failed", "<b>boom</b> & 1_0")
    return build_table(loaded, rows)


def test_the_page_shows_everything_without_scripts(tmp_path: Path) -> None:
    table = table_of(tmp_path)
    best = table.of("loss-bce").contrast
    assert best is not None
    tests = [OnTest(None, "loss-bce", "default", best.difference, 0.01, True)]
    curves = {"default": [{"step": 1, "dev_nDCG@10": 0.5}, {"step": 2, "dev_nDCG@10": 0.6}]}
    page = write_sweep(tmp_path, table, tests, curves).read_text()
    for part in ("configurations", "needed", "test-table", "effect-1", "effect-2", "errors"):
        assert f'<table class="names" id="{part}"' in page, part
    assert page.count("<svg") == 5, "forest, two effects, pareto, curves"
    assert "&lt;b&gt;boom&lt;/b&gt;" in page and "<b>boom" not in page and "<script" not in page and " src=" not in page
    assert "loss-bce is the best on dev" in page and "more than chance" in page
    again = {p.name: p.read_bytes() for p in tmp_path.glob("[tr]*.*")}
    write_sweep(tmp_path, table, tests, curves)
    assert again == {p.name: p.read_bytes() for p in tmp_path.glob("[tr]*.*")}
    assert set(again) == {"report.html", "table.json", "table.csv", "table.md", "table.tex"}
    found = json.loads((tmp_path / "table.json").read_text())
    assert found["chosen"] == "loss-bce" and len(found["runs"]) == 12 and found["test"][0]["other"] == "default"


def test_tables_for_people_and_programs(tmp_path: Path) -> None:
    table = table_of(tmp_path)
    rows = list(csv.DictReader(tidy(table).splitlines()))
    assert len(rows) == 12 and rows[1]["state"] == "failed" and rows[1]["dev"] == "" and rows[0]["model.rank"] == "16"
    assert ranked(table)[0].name == "loss-bce"
    lines = markdown(table).splitlines()
    assert len(lines) == 6 and lines[2].startswith("| loss-bce | bce | 16 | 3 |")
    text = latex(table)
    assert r"listwise\_softmax" in text and r"95 \%" in text and text.count(r"\\") == 5


def test_what_would_show_a_difference(tmp_path: Path) -> None:
    table = table_of(tmp_path)
    found = would_show(table)
    assert found is not None and found.startswith("to show a difference of loss-bce from default of 0.01: ")
    first = table.of("loss-bce").contrast
    assert first is not None and [one.difference for one in first.needed] == [0.01, 0.02, 0.05]
    assert f"0.05: {first.needed[2].seeds} seeds" in found
    assert would_show(table_of(tmp_path, seeds=[0])) is None


def test_verdicts(tmp_path: Path) -> None:
    assert "not more than chance" in verdict(table_of(tmp_path, 0.012)) or "nothing that was changed" in verdict(
        table_of(tmp_path, 0.012)
    )
    assert "seed variance unknown" in verdict(table_of(tmp_path, 0.2, seeds=[0]))
    loaded = loaded_sweep(tmp_path)
    none = build_table(loaded, [RunRow(r.name, r.configuration.name, r.seed, "not run") for r in loaded.runs])
    assert verdict(none) == "No run is finished."
    assert "Not shown: no run is finished" in write_sweep(tmp_path, none, [], {}).read_text()


def pruned_of(folder: Path, over: dict[str, object], name: str, **keys: object) -> tuple[SweepTable, str]:
    """A table in which one configuration was stopped early, and its page."""
    loaded = loaded_sweep(folder, over, **keys)
    rows = [
        dataclasses.replace(row, state="pruned", steps=9, values=None) if row.configuration == name else row
        for row in simulated(loaded, np.random.default_rng(0), {})
    ]
    table = build_table(loaded, rows)
    pruned = {f"{name}-s0": [{"step": 1, "dev_nDCG@10": 0.4}, {"step": 2, "dev_nDCG@10": 0.45}]}
    curves = {"default": [{"step": 1, "dev_nDCG@10": 0.5}, {"step": 4, "dev_nDCG@10": 0.6}]}
    return table, write_sweep(folder, table, [], curves, pruned=pruned).read_text()


def test_two_factors_in_cells_and_what_was_pruned_is_grey(tmp_path: Path) -> None:
    over = {"loss.name": ["listwise_softmax", "bce"], "model.rank": [16, 8, 4]}
    table, page = pruned_of(tmp_path, over, "loss-bce_rank-8")
    heat = page[page.index('id="heat"') : page.index("Cost and quality")]
    assert heat.count("<tr>") == 4 and heat.count("--shade") == 5 and heat.count(">pruned</td>") == 1
    cells = [float(c.split("<")[0]) for c in heat.split('%">')[1:]]
    assert sorted(cells) == sorted(round(row.dev, 3) for row in table.configurations if row.dev is not None)
    # Numbers by size, and the factor with fewer values in the columns.
    assert [heat.index(f"<th>{rank}</th>") for rank in (4, 8, 16)] == sorted(
        heat.index(f"<th>{r}</th>") for r in (4, 8, 16)
    )
    assert '<tr class="soft"><td>loss-bce_rank-8' in page and "(3 pruned)" in page
    assert "runs that were stopped early" in page and "Grey: 3 runs stopped early" in page
    assert "0 (3 pruned)" in markdown(table) and table.of("loss-bce_rank-8").contrast is None


def test_three_factors_are_parallel_axes(tmp_path: Path) -> None:
    over = {"loss.name": ["listwise_softmax", "bce"], "model.rank": [16, 8], "mine.negatives": [5, 3]}
    table, page = pruned_of(tmp_path, over, "loss-bce")
    assert 'id="heat"' not in page and "Settings of 8 configurations" in page and "dotted grey: stopped early" in page
    for factor in table.factors:
        assert f">{factor}</text>" in page


def test_no_cells_without_a_grid(tmp_path: Path) -> None:
    over = {"loss.name": ["bce", "ranknet"], "model.rank": [8, 4]}
    _, page = pruned_of(tmp_path, over, "loss-bce", design="one_at_a_time")
    assert 'id="heat"' not in page and "Settings of 5 configurations" in page
    beside, page = pruned_of(tmp_path, over, "loss-bce_rank-8")
    heat = page[page.index('id="heat"') :]
    assert heat.count("<tr>") >= 3 and not any(row.name == "default" for row in beside.configurations if row.pruned)


def test_would_more_data_help_stands_on_the_page(tmp_path: Path) -> None:
    loaded = loaded_sweep(tmp_path, {}, design={"learning_curve": [0.25, 0.5, 1]})
    means = {"queries_share-0.25": -0.1, "queries_share-0.5": -0.04}
    table = build_table(loaded, simulated(loaded, np.random.default_rng(0), means, train_queries=400))
    page = write_sweep(tmp_path, table, [], {}).read_text()
    assert table.learning_curve is not None
    found = json.loads((tmp_path / "table.json").read_text())["learning_curve"]
    assert found["sentence"] == table.learning_curve.sentence and found["gain"] == table.learning_curve.gain
    assert page.count(found["sentence"]) >= 2 and "Would more data help?" in page and "training queries</text>" in page
