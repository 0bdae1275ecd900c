"""The lines of JSON that the engines printed, as a table in Markdown. Usage: table.py RESULTS.jsonl"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    rows = [json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines() if line.strip()]
    print("| engine | version | target | pairs | max difference of a logit | of a probability | |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        # Of an engine that could not read a file there is an error and no figure.
        cells = [row["engine"], row["version"], row["target"], str(row.get("rows", ""))]
        cells += [
            f"{row[key]:.1e}" if isinstance(row.get(key), float) else "" for key in ("max_d_logit", "max_d_probability")
        ]
        said = [*row.get("failures", []), *[row[key] for key in ("error", "note") if key in row]]
        cells.append(" ".join("; ".join(said).split()).replace("|", "\\|"))
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
