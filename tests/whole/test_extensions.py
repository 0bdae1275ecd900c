"""The five examples of train/README.md, each one file of a package of its own, in one run from check to cards."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import jobs

KINDS = ("loss", "filter", "retriever", "prompt template", "export target")
# As a notebook would: the modules are imported, and then the recipe is run.
RUN = """
import importlib, sys
for kind in sys.argv[2:]:
    importlib.import_module(f"acme.{kind}")
from rankwright import Pipeline, UserError, load_recipe
try:
    Pipeline(load_recipe(sys.argv[1], ["loss.options.margn=2"]), progress=False).check()
except UserError as error:
    print(error)
run = Pipeline(load_recipe(sys.argv[1]), progress=False)
run.check()
run.run()
"""


def example(kind: str) -> str:
    """The whole file that the document shows for a kind of part."""
    document = (jobs.REPOSITORY / "train" / "README.md").read_text(encoding="utf-8")
    section = re.search(rf"^## Add an? {kind}\n(.*?)(?=^## |\Z)", document, re.MULTILINE | re.DOTALL)
    assert section is not None, kind
    [block] = re.findall(r"```python\n(.*?)```", section[1], re.DOTALL)
    return str(block)


def test_each_part_is_one_file_and_found_everywhere(tiny_qwen3: Path, tmp_path: Path) -> None:
    package = tmp_path / "modules" / "acme"
    package.mkdir(parents=True)
    names = [kind.replace(" ", "_") for kind in KINDS]
    for kind, name in zip(KINDS, names, strict=True):
        (package / f"{name}.py").write_text(example(kind), encoding="utf-8")
    sections = {
        "loss": {"name": "hinge", "options": {"margin": 0.5}},
        "mine": {"retriever": "by_length", "filters": {"short_only": {"longest": 44}}},
        "prompt": {"mode": "terse", "instruction": ""},
        "evaluate": {"first_stage": "by_length"},
        "export": {"targets": {"noted": {"note": "for the desk"}}},
    }
    recipe = jobs.job(tmp_path / "job", tiny_qwen3, **sections)
    environment = jobs.environment()
    environment["PYTHONPATH"] += f":{package.parent}"
    command = [sys.executable, "-c", RUN, str(recipe), *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    # check names them, with their parameters.
    assert "no parameter 'margn', did you mean 'margin'?" in done.stdout

    run = tmp_path / "job" / "run"
    negatives = [json.loads(line) for line in (run / "negatives.jsonl").read_text().splitlines()]
    assert {n["source"] for row in negatives for n in row["negatives"]} == {"by_length"}
    assert json.loads((run / "eval" / "held-out" / "tuned" / "metrics.json").read_text())["first_stage"] == "by_length"
    contract = json.loads((run / "export" / "noted" / "rankwright.json").read_text())
    assert contract["mode"] == "terse" and (run / "export" / "noted" / "note.txt").read_text() == "for the desk"
    parity = json.loads((run / "export" / "noted" / "parity.json").read_text())
    assert {"rankwright", "transformers", "sentence-transformers"} <= set(parity["engines"]) and not parity["failures"]

    report = (run / "report.html").read_text()
    for shown in ("hinge", "longer than the passages that are searched", "By length", "terse", "noted"):
        assert shown in report, shown
    card = (run / "export" / "noted" / "README.md").read_text()
    assert "Read note.txt first." in card and "By length" in card
    assert "Serve it as the target hf." in (run / "export" / "noted" / "SERVE.md").read_text()
