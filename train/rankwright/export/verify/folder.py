"""`rankwright verify FOLDER`: the proof of an export repeated, wherever the folder is now."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from rankwright.common import console
from rankwright.common.errors import UserError, one_line
from rankwright.common.files import read_json_object
from rankwright.common.lineage import stale_export
from rankwright.common.plurals import counted
from rankwright.common.resources import EXPORTED, existing_folder, resolve_base, shown
from rankwright.common.run_folder import SUMS_FILE
from rankwright.export.golden import GOLDEN_FILE
from rankwright.export.proof.parity import PARITY_FILE, measure_fresh, read_exported
from rankwright.export.proof.runtimes.base import Exported
from rankwright.export.proof.sums import COPY_AGAIN, changes
from rankwright.model.bases import ADAPTER_FILE
from rankwright.model.prompt import CONTRACT_FILE

DEFAULT_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Opened:
    """A folder to be verified. notes: what the user should know beforehand, one line each.

    faults: files that are no longer what was proven, so that the folder is not equal whatever its scores are.
    """

    exported: Exported
    tolerance: float
    notes: tuple[str, ...]
    faults: tuple[str, ...] = ()


def open_export(folder: Path, base: str | None = None, tolerance: float | None = None) -> Opened:
    """Read what was proven about the folder.

    Raises UserError when it is not an export, or when its golden pairs or its prompt contract have changed since.
    """
    existing_folder(folder, EXPORTED)
    if not (folder / GOLDEN_FILE).is_file():
        inside = sorted(path.parent.name for path in folder.glob(f"*/{GOLDEN_FILE}"))
        fix = f"give one of its exports: {', '.join(inside)}" if inside else f"not an export, or a part: {COPY_AGAIN}"
        raise UserError(f"{shown(folder)}: no {GOLDEN_FILE}: {fix}")
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise UserError(f"--tolerance: must be a number above 0, found {tolerance:g}")
    exported = read_exported(folder, base)
    record = _record(folder)
    notes, faults = _changes(folder)
    if line := stale_export(folder):
        notes = (*notes, f"WARNING: stale: {line}")
    _find_base(exported)
    return Opened(exported, tolerance or float(record.get("tolerance", DEFAULT_TOLERANCE)), notes, faults)


def _record(folder: Path) -> dict[str, Any]:
    """parity.json, or {} where there is none."""
    path = folder / PARITY_FILE
    if not os.path.lexists(path):
        return {}
    record = read_json_object(path) or {}
    tolerance = record.get("tolerance", 1.0)
    if not record or type(tolerance) not in (int, float) or not 0 < tolerance < math.inf:
        raise UserError(f"{shown(path)}: damaged: {COPY_AGAIN}")
    return record


def _changes(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(notes, faults) about files that differ from the export.

    Raises UserError for those that all scores are measured with.
    """
    found = changes(folder)
    if found is None:
        return (f"no {SUMS_FILE}: not checked whether the files are as exported",), ()
    for name in (CONTRACT_FILE, GOLDEN_FILE, PARITY_FILE):
        if name in [*found.changed, *found.missing, *found.new]:
            raise UserError(
                f"{shown(folder / name)}: not the file that was exported (its SHA-256 is not that in {SUMS_FILE}), "
                f"so nothing can be verified with it: {COPY_AGAIN}"
            )
    return (f"new: {one_line(', '.join(found.new))}",) if found.new else (), tuple(found.lines())


def _find_base(exported: Exported) -> None:
    """Raises UserError where the base of an adapter folder cannot be read."""
    file = exported.path / ADAPTER_FILE
    if not file.is_file():
        return
    from transformers.utils import cached_file

    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        name = exported.base or settings["base_model_name_or_path"]
        assert isinstance(name, str)
    except (ValueError, TypeError, KeyError, AssertionError):
        raise UserError(f"{shown(file)}: damaged, or names no base: {COPY_AGAIN}") from None
    path = resolve_base(name, "--base" if exported.base else f"{shown(file)}: base_model_name_or_path")
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    revision = settings.get("revision") if exported.base is None else None
    try:
        found = cached_file(path, "config.json", revision=revision, **quiet)
    except OSError:
        found = None
    if found is None:
        raise UserError(f"{shown(exported.path)}: adapters of {name!r}, which is not here: give --base FOLDER")


def verify_folder(opened: Opened, *, as_json: bool = False) -> bool:
    """Show how every runtime scores the golden pairs, in a fresh process; whether all are equal."""
    folder = opened.exported.path
    if not as_json:
        console.say(f"{shown(folder)}: {opened.exported.kind} export, {len(opened.exported.rows)} golden pairs")
        for note in opened.notes:
            console.say(note)
    report = measure_fresh({folder.name: folder}, opened.tolerance, opened.exported.base, offline=False)[folder.name]
    report["failures"] = [*opened.faults, *report["failures"]]
    if as_json:
        whole = {"folder": str(folder), "kind_of_export": opened.exported.kind, "notes": opened.notes, **report}
        print(json.dumps(_finite(whole)))
    else:
        _show(report)
    return not report["failures"]


def _finite(value: Any) -> Any:
    """null for a number that JSON cannot hold: the distance to a score that is NaN."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _show(report: dict[str, Any]) -> None:
    kinds = ", ".join(f"{count} {kind}" for kind, count in report["kinds"].items())
    console.say(f"pairs: {kinds}; {report['gate_rows']} must match in every runtime, {report['cut_rows']} are cut")
    table = Table(box=None)
    columns = ("runtime", "ids differ", "max |d logit|", "in batches", "max |d probability|", "Spearman")
    for column in columns:
        table.add_column(column, justify="left" if column == "runtime" else "right", no_wrap=True)
    for name, figures in report["engines"].items():
        table.add_row(name, *_cells(figures))
    console.show(table)
    console.say("versions: " + ", ".join(f"{name} {version}" for name, version in report["versions"].items()))
    for name, figures in report["engines"].items():
        if isinstance(figures, str):
            console.say(f"{name}: {figures}")
        elif "other_rows" in figures:
            count, worst = figures["other_rows"]["rows"], figures["other_rows"]["max_d_probability"]
            console.say(
                f"{name}: {counted(count, 'pair')} that only Rankwright reads as in training need not match, "
                f"max |d probability| {worst:.1e} there"
            )
    for failure in report["failures"]:
        console.say(f"not proven: {failure}")
    if not report["failures"]:
        absent = " that was checked" if any(isinstance(figures, str) for figures in report["engines"].values()) else ""
        near = f"within {report['tolerance']:g} of the golden logits, or its own limits"
        console.say(f"equal: every runtime{absent} {near}")


def _cells(figures: Any) -> list[str]:
    if isinstance(figures, str):
        return ["not checked", *[""] * 4]
    if "error" in figures:
        return ["cannot read", *[""] * 4]
    ids = f"{figures['ids_differ']} of {figures['rows']}" if "ids_differ" in figures else "not shown"
    numbers = [figures.get(key) for key in ("max_d_logit", "max_d_logit_batch", "max_d_probability")]
    spearman = figures.get("spearman")
    shown_numbers = ["-" if n is None else f"{n:.1e}" for n in numbers]
    return [ids, *shown_numbers, "" if spearman is None else f"{spearman:.4f}"]
