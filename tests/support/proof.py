"""The proof of exported folders in a fresh process, as one call that raises."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankwright.common.errors import UserErrors
from rankwright.export.proof.parity import measure_fresh


def check_folders(
    folders: Mapping[str, Path], tolerance: float = 1e-4, base: str | None = None
) -> dict[str, dict[str, Any]]:
    """measure_fresh() with every difference as an error.

    Raises UserErrors naming the runtime, the worst pair, both values and the likely cause.
    """
    reports = measure_fresh(folders, tolerance, base)
    failures = [f"export {name}: {f}" for name, report in reports.items() for f in report["failures"]]
    if failures:
        raise UserErrors(failures)
    return reports
