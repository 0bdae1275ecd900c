"""How far a server's scores may be from the golden ones: by what it computes with, and by the file that it serves."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rankwright.export.runtimes import Exported, Limits, exact
from rankwright.export.runtimes.table import RUNTIMES

# llama.cpp keeps keys and values in f16 unless it is told otherwise.
LLAMA_CPP_PROBABILITY = 2e-3


def limits_of(shape: str, exported: Exported, tolerance: float) -> dict[str, Limits]:
    """What is served -> its limits, the strictest first.

    Of a `gguf` folder a server has one file, whose weights are of a type that it does not say.
    """
    if shape != "llama_cpp":
        return {"": exact(tolerance)}
    least = max(LLAMA_CPP_PROBABILITY, tolerance / 10)
    if exported.kind != "gguf":
        return {"": Limits(logit=None, probability=least)}
    found = {kind: _of_cache(limits, least) for kind, limits in _of_files(exported.path, tolerance).items()}
    return dict(sorted(found.items(), key=lambda entry: entry[1].probability or 0.0))


def _of_files(folder: Path, tolerance: float) -> dict[str, Limits]:
    """Type of the weights -> limits of the runtime that reads the file back."""
    known = {one.file: one for one in RUNTIMES if one.module == "gguf" and one.file}
    return {one.name.split()[-1]: one.limits(tolerance) for pattern, one in known.items() if any(folder.glob(pattern))}


def _of_cache(limits: Limits, least: float) -> Limits:
    # Rounded weights are the same in a list: a looser bound would hide documents of near scores that changed places.
    return dataclasses.replace(limits, logit=None, probability=max(limits.probability or 0.0, least), batch=least)
