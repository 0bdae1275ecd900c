"""scripts/engines/table.py: every line that an engine printed, also of one that failed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TABLE = Path(__file__).parents[2] / "scripts" / "engines" / "table.py"


def test_an_engine_that_could_not_read_a_file_is_a_row_with_its_error(tmp_path: Path) -> None:
    lines = [
        {"engine": "vllm", "version": "1", "target": "hf", "rows": 32, "max_d_logit": 1e-5, "max_d_probability": 1e-6},
        {"engine": "llama.cpp", "version": "2", "target": "gguf f16", "error": "ValueError: a | b", "failures": ["no"]},
        {"engine": "node", "version": "3", "target": "gguf", "rows": 1, "max_d_probability": 0.1, "note": "not exact"},
    ]
    results = tmp_path / "results.jsonl"
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = subprocess.run([sys.executable, TABLE, results], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[2:] == [
        "| vllm | 1 | hf | 32 | 1.0e-05 | 1.0e-06 |  |",
        "| llama.cpp | 2 | gguf f16 |  |  |  | no; ValueError: a \\| b |",
        "| node | 3 | gguf | 1 |  | 1.0e-01 | not exact |",
    ]
