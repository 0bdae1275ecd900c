"""Pool files as the mine stage writes them, for tests that mine nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rankwright.common.files import write_lines_atomic
from rankwright.mining.pools import Negative, negatives_line


def write_negatives(path: Path, pools: Mapping[str, Sequence[Negative]]) -> None:
    """negatives.jsonl: one line per query, sorted by query id."""
    write_lines_atomic(path, (negatives_line(q, pools[q]) for q in sorted(pools)))
