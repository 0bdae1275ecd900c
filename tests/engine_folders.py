"""Exports of tiny models with large random weights, for scripts/test_engines.sh: engine_folders.py FOLDER"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from rankwright.export import CardFacts, publish
from rankwright.export.trained import TARGETS
from tiny import make_tiny_qwen3, trained_of

# Name of the folder -> frame of the prompt, target, its options.
FOLDERS = {
    "hf": ("portable", "hf", {}),
    "onnx": ("portable", "onnx", {"quantize": ["8bit"]}),
    "gguf": ("portable", "gguf", {"types": ["f32", "f16", "q8_0"]}),
}


def main() -> None:
    out = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as scratch:
        # vLLM on CPUs takes no smaller heads.
        base = make_tiny_qwen3(Path(scratch) / "base", head=32)
        trained = {mode: trained_of(base, mode) for mode in ("portable", "official")}
        for name, (mode, target, options) in FOLDERS.items():
            publish(out, trained[mode], {name: TARGETS.bind(target, options)}, CardFacts(name=f"tiny-{name}"))
            print(f"export: {out / name}")


if __name__ == "__main__":
    main()
