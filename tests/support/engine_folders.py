"""Exports of a tiny model with large random weights, for scripts/engines/test_engines.sh: engine_folders.py FOLDER"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from tiny import make_tiny_qwen3, trained_of

from rankwright.export.card import CardFacts
from rankwright.export.publish import export_targets

OPTIONS: dict[str, dict[str, Any]] = {
    "hf": {},
    "onnx": {"quantize": ["8bit"]},
    "gguf": {"types": ["f32", "f16", "q8_0"]},
}


def main() -> None:
    out = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as scratch:
        # vLLM on CPUs takes no smaller heads.
        trained = trained_of(make_tiny_qwen3(Path(scratch) / "base", head=32), "portable")
        export_targets(trained, OPTIONS, out, CardFacts(title="Tiny", name="tiny"))
    print(f"exports: {out}: {', '.join(OPTIONS)}")


if __name__ == "__main__":
    main()
