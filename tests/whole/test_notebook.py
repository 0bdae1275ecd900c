"""The notebook about own data runs from its first cell to its last, as a newcomer runs it."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import jobs
import nbclient
import nbformat
import pytest

NOTEBOOK = jobs.REPOSITORY / "recipes" / "own-data.ipynb"


def test_the_notebook_is_stored_without_outputs() -> None:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert len(cells) > 10 and not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in jobs.environment().items():
        monkeypatch.setenv(name, value)
    # The cells call `rankwright`, as an installation has it.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    printed = ["".join(out.get("text", "") for out in cell.get("outputs", ())) for cell in notebook.cells]
    assert any(text.startswith("question,passage\n") for text in printed)
    assert any("nDCG@10 on dev:" in text for text in printed)
    tables = [out["data"] for cell in notebook.cells for out in cell.get("outputs", ()) if "data" in out]
    assert any("tuned" in data.get("text/plain", "") and "bm25" in data["text/plain"] for data in tables)
    assert (tmp_path / "runs" / "questions" / "export" / "hf" / "model.safetensors").is_file()
    # One line for each document; a bar of transformers may stand above them.
    assert len(re.findall(r"^ *-?\d+\.\d+  \S.*$", printed[-1], re.M)) == 3
