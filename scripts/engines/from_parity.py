"""Runs the parity check on exported folders and prints one line of JSON for each runtime of one engine.

    python from_parity.py ENGINE VERSION FOLDER...

ENGINE as in parity.json ("llama.cpp", "llama-server"), of which a folder has one a file ("llama.cpp q8_0"). Needs
rankwright and the engine's packages to be importable; exit code 1 when one differs or was not checked.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rankwright.export.proof.parity import measure

TOLERANCE = 1e-4


def main() -> int:
    engine, version, *folders = sys.argv[1:]
    code = 0
    for folder in folders:
        report = measure(Path(folder), TOLERANCE)
        found = {name: figures for name, figures in report["engines"].items() if name.rpartition(" ")[0] == engine}
        failures = [failure for failure in report["failures"] if failure.startswith(f"{engine} ")]
        for name, figures in found.items():
            line = {"engine": engine, "version": version, "target": f"gguf {name.rpartition(' ')[2]}"}
            if isinstance(figures, dict):
                line |= {k: figures[k] for k in ("max_d_probability", "max_d_logit", "rows", "error") if k in figures}
            else:
                line["error"] = figures
            own = [failure for failure in failures if failure.startswith(f"{name}: ")]
            line |= {"failures": own} if own else {}
            print(json.dumps(line, ensure_ascii=False), flush=True)
        if failures or not found or not all(isinstance(figures, dict) for figures in found.values()):
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
