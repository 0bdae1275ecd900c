"""Proves in a fresh process that the runtimes read an exported folder as the trainer wrote it.

python -m rankwright.export.proof.parity FOLDER... [--tolerance 1e-4] [--base FOLDER] [--import MODULE]...
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rankwright.common.errors import UserError, one_line
from rankwright.common.files import read_json_object
from rankwright.common.foreign_code import refuse_foreign_modules
from rankwright.export.golden import GOLDEN_FILE, read_golden
from rankwright.export.proof.comparing import compare
from rankwright.export.proof.runtimes.base import Exported, Runtime
from rankwright.export.proof.settings import CONFIG, read_config
from rankwright.export.proof.sums import COPY_AGAIN, changes
from rankwright.export.target import Target, target_of
from rankwright.export.targets import TARGETS
from rankwright.model.frames import FRAMES
from rankwright.model.prompt import CONTRACT_FILE, PromptContract

PARITY_FILE = "parity.json"
NOT_CHECKED = "not installed: not checked"
# It reads the files of every installed package.
packages_distributions = functools.cache(importlib.metadata.packages_distributions)


def measure_fresh(
    folders: Mapping[str, Path], tolerance: float = 1e-4, base: str | None = None, *, offline: bool = True
) -> dict[str, dict[str, Any]]:
    """Run this module on the folders (name -> path) in one fresh process and return their reports.

    base: where the base of an adapter folder lies. offline: do not ask a hub for it. Raises UserError when the check
    could not run at all.
    """
    # Modules outside the package that added targets or frames: the fresh process has to know these too.
    known = (*TARGETS.extensions, *FRAMES.extensions)
    extensions = list(dict.fromkeys(known))
    command = [sys.executable, "-m", __name__, *map(str, folders.values()), "--tolerance", str(tolerance)]
    command += ["--base", base] if base else []
    command += [word for module in extensions for word in ("--import", module)]
    paths = [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", ""), *(sys.path if extensions else ())]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
        "TOKENIZERS_PARALLELISM": "false",
        **({"HF_HUB_OFFLINE": "1"} if offline else {}),
    }
    # Nobody can answer a question of a library that nobody sees.
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, check=False
    )
    try:
        lines = done.stdout.strip().splitlines()[-len(folders) :]
        reports: dict[str, dict[str, Any]] = dict(zip(folders, map(json.loads, lines), strict=True))
        assert all("failures" in report for report in reports.values())
        return reports
    except (ValueError, TypeError, AssertionError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        names = ", ".join(folders)
        raise UserError(f"export {names}: the parity check did not run (exit {done.returncode}): {last}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """In the fresh process: print one line of JSON for each folder; 1 where one has failures."""
    parser = argparse.ArgumentParser(
        prog="python -m rankwright.export.proof.parity", description="Check exported folders"
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--base", help="where the base of an adapter folder lies")
    parser.add_argument(
        "--import", dest="modules", action="append", default=[], metavar="MODULE", help="adds targets or frames"
    )
    options = parser.parse_args(arguments)
    for module in options.modules:
        importlib.import_module(module)
    reports = [measure(folder, options.tolerance, options.base) for folder in options.folders]
    for report in reports:
        print(json.dumps(report, ensure_ascii=False))
    return 1 if any(report["failures"] for report in reports) else 0


def read_exported(path: Path, base: str | None = None) -> Exported:
    """Raises UserError for a folder that is not an export, for a missing or damaged part, and for code of its own."""
    refuse_foreign_modules(path)
    rows = read_golden(path)
    contract = PromptContract.load(path)
    if contract is None:
        raise UserError(f"{path}: no {CONTRACT_FILE}: not an export, or a part: copy the whole folder again")
    return Exported(path, target_of(path).name, rows, contract, base)


def measure(folder: Path, tolerance: float, base: str | None = None) -> dict[str, Any]:
    """The report of one folder: rows by kind, figures by runtime, versions, failures (empty when equal)."""
    exported = read_exported(folder, base)
    target, rows = TARGETS[exported.kind], exported.rows
    cut = sum(len(row["token_ids"]) == exported.contract.max_tokens for row in rows)
    report: dict[str, Any] = {
        "rows": len(rows),
        "gate_rows": sum(row["gate"] for row in rows),
        "cut_rows": cut,
        "kinds": dict(Counter(row["kind"] for row in rows)),
        "tolerance": tolerance,
        "engines": {},
        "versions": versions_of(["rankwright", "torch", "transformers", "tokenizers"]),
        "failures": [],
    }
    if settings := read_config(folder):
        report["failures"] += [f"{CONFIG}: {line}" for line in _misleading(target, folder, settings)]
    if not cut:
        report["failures"].append(f"{GOLDEN_FILE}: no document is cut: truncation is not proven: export again")
    for runtime in target.runtimes:
        if runtime.reads(folder):
            _measure_one(runtime, exported, tolerance, report)
    report["failures"] += _unchecked(folder, target, report["engines"])
    return report


def _misleading(target: Target, folder: Path, settings: dict[str, Any]) -> list[str]:
    try:
        return [line for check in target.settings for line in check(folder, settings)]
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        return [f"a value of another type ({type(error).__name__}: {one_line(str(error))}): {COPY_AGAIN}"]


def _measure_one(runtime: Runtime, exported: Exported, tolerance: float, report: dict[str, Any]) -> None:
    if not importlib.util.find_spec(runtime.module):
        report["engines"][runtime.name] = NOT_CHECKED
        return
    report["versions"] |= versions_of([runtime.module])
    try:
        with torch.inference_mode():
            answer = runtime.run(exported)
    except Exception as error:  # whatever a runtime raises on the folder is the finding
        first = one_line((str(error).strip().splitlines() or [""])[0])
        report["engines"][runtime.name] = {"error": f"{type(error).__name__}: {first}"}
        report["failures"].append(f"{runtime.name}: cannot score the folder: {type(error).__name__}: {first}")
        return
    figures, failure = compare(exported.rows, answer, runtime.limits(tolerance), every_row=runtime.every_row)
    report["engines"][runtime.name] = figures
    report["failures"] += [f"{runtime.name}: {failure}"] if failure else []


def _unchecked(folder: Path, target: Target, engines: Mapping[str, Any]) -> list[str]:
    """What no runtime has looked at, so that it is not taken for equal."""
    if engines and not any(isinstance(figures, dict) for figures in engines.values()):
        modules = ", ".join(dict.fromkeys(runtime.module for runtime in target.runtimes))
        return [f"nothing was checked: install {modules}: {target.install}"]
    # Each pattern stands for one file: its readers take the first.
    patterns = [one.file for one in target.runtimes if one.file and "*" in one.file]
    read = {next(folder.glob(pattern), None) for pattern in patterns}
    present = {path for pattern in patterns for path in folder.glob(f"*{Path(pattern).suffix}")}
    unread = sorted(path.name for path in present - read)
    return [f"{name}: not checked: its name must end in the type of its weights, as exported" for name in unread]


def versions_of(modules: Iterable[str]) -> dict[str, str]:
    """Distribution -> version, of those that are installed."""
    found = {}
    for module in modules:
        for name in (module.replace("_", "-"), *packages_distributions().get(module, [])):
            try:
                found[name] = importlib.metadata.version(name)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


def is_as_proven(folder: Path) -> bool:
    """Whether the folder was proven, and its files are still what they were then."""
    record = read_json_object(folder / PARITY_FILE) or {}
    try:
        found = changes(folder)
    except UserError:
        return False
    return record.get("failures") == [] and found is not None and not found.any


if __name__ == "__main__":
    sys.exit(main())
