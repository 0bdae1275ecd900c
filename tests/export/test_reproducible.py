"""Two exports of one model are equal byte for byte, in processes that order their sets differently."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import jobs
import pytest

from rankwright.export.target import Trained
from rankwright.export.targets import TARGETS

EXPORT = """
import sys
from pathlib import Path

from tiny import make_tiny_qwen3, trained_of
from rankwright.export.card import CardFacts
from rankwright.export.publish import export_targets

one = trained_of(Path(sys.argv[1]), "portable")
targets = {"hf": {"shard_size": "100KB"}, "causal": {"dtype": "bf16"}, "adapter": {}}
targets |= {"onnx": {"quantize": ["8bit"]}, "gguf": {"types": ["f32", "q8_0"]}}
export_targets(one, targets, Path(sys.argv[2]), CardFacts(title="Tiny", name="tiny", figures={"b": 1, "a": 2}))
"""


def test_names_of_layers_are_in_order(trained: dict[str, Trained], tmp_path: Path) -> None:
    TARGETS["adapter"].write(trained["qwen3-portable"], tmp_path)
    found = json.loads((tmp_path / "adapter_config.json").read_text())
    assert found["target_modules"] == sorted(found["target_modules"]) and len(found["target_modules"]) == 7


@pytest.mark.slow
def test_two_exports_are_equal_byte_for_byte(tiny_qwen3: Path, tmp_path: Path) -> None:
    found = []
    for seed in ("1", "2"):
        out = tmp_path / seed
        command = [sys.executable, "-c", EXPORT, str(tiny_qwen3), str(out)]
        paths = f"{jobs.REPOSITORY / 'train'}:{jobs.REPOSITORY / 'tests' / 'support'}"
        environment = {**jobs.environment(), "PYTHONPATH": paths, "PYTHONHASHSEED": seed}
        subprocess.run(command, check=True, capture_output=True, env=environment, timeout=600)
        files = {path.relative_to(out).as_posix(): path for path in sorted(out.rglob("*")) if path.is_file()}
        found.append({name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()})
    first, second = found
    assert {name.split("/")[0] for name in first} == set(TARGETS) and len(first) > 50
    assert [name for name in first.keys() | second.keys() if first.get(name) != second.get(name)] == []
