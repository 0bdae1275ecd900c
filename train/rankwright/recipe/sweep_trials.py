"""Configurations that are proposed one after the other: what was proposed, as trials.json of a sweep keeps it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rankwright.common.files import read_json_object, write_text_atomic
from rankwright.recipe.sweep import Factor

# Swept key -> the number of its value, or for a range the share of it from 0 to 1.
Proposal = Mapping[str, float]
TRIALS_FILE = "trials.json"


def read_proposals(folder: Path, of: str) -> list[Proposal]:
    """The proposals so far, in their order. of: hash of what they were made for; those for something else are none."""
    kept = read_json_object(folder / TRIALS_FILE) or {}
    proposals = kept.get("proposals")
    return list(proposals) if kept.get("of") == of and isinstance(proposals, list) else []


def write_proposals(folder: Path, of: str, proposals: Sequence[Proposal]) -> None:
    """Keep all proposals so far; whole or not at all."""
    values = {"of": of, "proposals": [dict(one) for one in proposals]}
    write_text_atomic(folder / TRIALS_FILE, json.dumps(values, indent=2) + "\n")


def proposed(factors: Sequence[Factor], proposal: Proposal) -> dict[Factor, Any]:
    """The value of each factor in a proposal."""
    return {f: f.values[int(proposal[f.key])] if f.values else f.at(proposal[f.key]) for f in factors}


def proposal_of(factors: Sequence[Factor], settings: Mapping[str, Any]) -> Proposal | None:
    """The proposal that would give these values; None where one of them is not among those of its factor."""
    found = {f.key: _place(f, settings[f.key]) for f in factors}
    return None if None in found.values() else {key: place for key, place in found.items() if place is not None}


def _place(factor: Factor, value: Any) -> float | None:
    if factor.values:
        return next((n for n, one in enumerate(factor.values) if one == value), None)
    return factor.share(value) if isinstance(value, int | float) else None
