"""The page and the tables of a sweep: complete, without scripts, the same bytes each time, and escaped."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
from sweeps import loaded_sweep, simulated

from rankwright.evaluation.sweep_table import OnTest, RunRow, SweepTable, build_table
from rankwright.report.sweep import latex, markdown, ranked, tidy, verdict, write_sweep


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
    for part in ("configurations", "test-table", "effect-1", "effect-2", "errors"):
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


def test_verdicts(tmp_path: Path) -> None:
    assert "not more than chance" in verdict(table_of(tmp_path, 0.012)) or "nothing that was changed" in verdict(
        table_of(tmp_path, 0.012)
    )
    assert "seed variance unknown" in verdict(table_of(tmp_path, 0.2, seeds=[0]))
    loaded = loaded_sweep(tmp_path)
    none = build_table(loaded, [RunRow(r.name, r.configuration.name, r.seed, "not run") for r in loaded.runs])
    assert verdict(none) == "No run is finished."
    assert "Not shown: no run is finished" in write_sweep(tmp_path, none, [], {}).read_text()
