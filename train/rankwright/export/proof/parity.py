"""Proves in a fresh process that the runtimes read an exported folder as the trainer wrote it.

python -m rankwright.export.proof.parity FOLDER... [--tolerance 1e-4] [--base FOLDER]
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rankwright.common.errors import UserError
from rankwright.export.golden import GOLDEN_FILE
from rankwright.export.proof.comparing import compare
from rankwright.export.proof.runtimes.base import Exported, Kind, Runtime
from rankwright.export.proof.runtimes.table import RUNTIMES

NOT_CHECKED = "not installed: not checked"


def check_parity(folder: Path, tolerance: float = 1e-4, base: str | None = None) -> dict[str, Any]:
    """Check one folder in a fresh process and return its report; see check_folders."""
    return check_folders({folder.name: folder}, tolerance, base)[folder.name]


def check_folders(
    folders: Mapping[str, Path], tolerance: float = 1e-4, base: str | None = None
) -> dict[str, dict[str, Any]]:
    """measure_fresh, where every difference is an error.

    Raises UserError naming the runtime, the worst pair, both values and the likely cause.
    """
    reports = measure_fresh(folders, tolerance, base)
    failures = [f"export {name}: {f}" for name, report in reports.items() for f in report["failures"]]
    if failures:
        raise UserError("\n".join(failures))
    return reports


def measure_fresh(
    folders: Mapping[str, Path], tolerance: float = 1e-4, base: str | None = None, *, offline: bool = True
) -> dict[str, dict[str, Any]]:
    """Run this module on the folders (name -> path) in one fresh process and return their reports.

    base: where the base of an adapter folder lies. offline: ask no hub for it. Raises UserError when the check could
    not run at all.
    """
    command = [
        sys.executable,
        "-m",
        "rankwright.export.proof.parity",
        *map(str, folders.values()),
        "--tolerance",
        str(tolerance),
    ]
    paths = [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
        "TOKENIZERS_PARALLELISM": "false",
        **({"HF_HUB_OFFLINE": "1"} if offline else {}),
    }
    command += ["--base", base] if base else []
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    try:
        lines = done.stdout.strip().splitlines()[-len(folders) :]
        reports: dict[str, dict[str, Any]] = dict(zip(folders, map(json.loads, lines), strict=True))
        assert all("failures" in report for report in reports.values())
        return reports
    except (ValueError, TypeError, AssertionError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        names = ", ".join(folders)
        raise UserError(f"export {names}: the parity check did not run (exit {done.returncode}): {last}") from None


def measure(folder: Path, tolerance: float, base: str | None = None) -> dict[str, Any]:
    """The report of one folder: rows by kind, a section a runtime, versions, sums, failures (empty when equal)."""
    exported = Exported.read(folder, base)
    rows = exported.rows
    cut = sum(len(row["token_ids"]) == exported.contract.max_tokens for row in rows)
    report: dict[str, Any] = {
        "rows": len(rows),
        "gate_rows": sum(row["gate"] for row in rows),
        "cut_rows": cut,
        "kinds": dict(Counter(row["kind"] for row in rows)),
        "tolerance": tolerance,
        "engines": {},
        "versions": versions_of(["rankwright", "torch", "transformers", "tokenizers"]),
        "sha256": sums_of(folder),
        "failures": wrong_settings(folder, exported.kind),
    }
    if not cut:
        report["failures"].append(f"{GOLDEN_FILE}: no document is cut: truncation is not proven: export again")
    for runtime in RUNTIMES:
        if runtime.reads(exported):
            _measure_one(runtime, exported, tolerance, report)
    report["failures"] += _unchecked(exported, report["engines"])
    return report


def _unchecked(exported: Exported, engines: Mapping[str, Any]) -> list[str]:
    """What nobody has looked at, so that it is not taken for equal."""
    readers = [runtime for runtime in RUNTIMES if exported.kind in runtime.kinds]
    if not any(isinstance(figures, dict) for figures in engines.values()) and engines:
        modules = ", ".join(dict.fromkeys(runtime.module for runtime in readers))
        return [f"nothing was checked: install {modules}: pip install 'rankwright[{exported.kind}]'"]
    if exported.kind != "gguf":
        return []
    # Each pattern means one file: its readers take the first.
    read = {next(exported.path.glob(one.file), None) for one in readers if one.file}
    unread = sorted(path.name for path in exported.path.glob("*.gguf") if path not in read)
    return [f"{name}: not checked: its name must end in the type of its weights, as exported" for name in unread]


def _measure_one(runtime: Runtime, exported: Exported, tolerance: float, report: dict[str, Any]) -> None:
    if not importlib.util.find_spec(runtime.module):
        report["engines"][runtime.name] = NOT_CHECKED
        return
    report["versions"] |= versions_of([runtime.module])
    try:
        with torch.inference_mode():
            answer = runtime.run(exported)
    except Exception as error:  # whatever a runtime raises on the folder is the finding
        first = (str(error).strip().splitlines() or [""])[0]
        report["engines"][runtime.name] = {"error": f"{type(error).__name__}: {first}"}
        report["failures"].append(f"{runtime.name}: cannot score the folder: {type(error).__name__}: {first}")
        return
    figures, failure = compare(exported.rows, answer, runtime.limits(tolerance), every_row=runtime.every_row)
    report["engines"][runtime.name] = figures
    report["failures"] += [f"{runtime.name}: {failure}"] if failure else []


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m rankwright.export.proof.parity", description="Check exported folders"
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--base", help="where the base of an adapter folder lies")
    options = parser.parse_args(arguments)
    reports = [measure(folder, options.tolerance, options.base) for folder in options.folders]
    for report in reports:
        print(json.dumps(report, ensure_ascii=False))
    return 1 if any(report["failures"] for report in reports) else 0


CONFIG = "config.json"


def wrong_settings(folder: Path, kind: Kind) -> list[str]:
    """One line a setting that would make some reader score otherwise; none for kinds without a config of their own."""
    if kind not in ("hf", "causal", "onnx") or not (folder / CONFIG).is_file():
        return []
    settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    found = [*_pad(folder, settings)]
    if kind != "onnx":
        found += [*_rope(settings), *_types(settings)]
    if kind == "hf":
        found += _labels(settings)
    return [f"{CONFIG}: {line}" for line in found]


def _rope(settings: dict[str, Any]) -> Iterator[str]:
    theta = (settings.get("rope_parameters") or {}).get("rope_theta")
    if theta is not None and settings.get("rope_theta") != theta:
        yield (
            f"rope_theta is {settings.get('rope_theta', 'missing')}, rope_parameters has {theta:g}: transformers 4, "
            "and servers built on it, read the first and else take 10000 in silence"
        )


def _types(settings: dict[str, Any]) -> Iterator[str]:
    if settings.get("dtype") and settings.get("torch_dtype") != settings["dtype"]:
        yield (
            f"torch_dtype is {settings.get('torch_dtype', 'missing')}, dtype is {settings['dtype']}: transformers 4 "
            "reads the first"
        )


def _pad(folder: Path, settings: dict[str, Any]) -> Iterator[str]:
    pad, eos = settings.get("pad_token_id"), settings.get("eos_token_id")
    own = _pad_of_tokenizer(folder)
    if pad is None:
        yield "pad_token_id is missing: batches of several pairs fail or are read at a wrong place"
    elif own is not None and pad != own:
        yield f"pad_token_id is {pad}, the tokenizer pads with {own}: padded pairs are read at a wrong place"
    elif pad == eos:
        yield f"pad_token_id is eos_token_id ({pad}): texts that end in it are read at a wrong place"


def _pad_of_tokenizer(folder: Path) -> int | None:
    try:
        name = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("pad_token")
        added = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")).get("added_tokens", [])
    except (OSError, ValueError):
        return None
    name = name.get("content") if isinstance(name, dict) else name
    return next((token["id"] for token in added if token["content"] == name), None)


def _labels(settings: dict[str, Any]) -> Iterator[str]:
    if len(settings.get("id2label") or {}) != 1:
        yield "id2label must have one entry: servers take a model with one label for a reranker"
    if not (settings.get("sentence_transformers") or {}).get("activation_fn"):
        yield "sentence_transformers.activation_fn is missing: readers choose an activation themselves"


PARITY_FILE = "parity.json"


def versions_of(modules: Iterable[str]) -> dict[str, str]:
    """Distribution -> version, of those that are installed."""
    found = {}
    for module in modules:
        for name in (module.replace("_", "-"), *_distributions().get(module, [])):
            try:
                found[name] = importlib.metadata.version(name)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


@functools.cache
def _distributions() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


def sums_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that a runtime reads: all but texts for people, and parity.json itself."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    read = [p for p in files if p.suffix != ".md" and p.name != PARITY_FILE and not _hidden(p, folder)]
    return {path.relative_to(folder).as_posix(): _sum(path) for path in read}


def _hidden(path: Path, folder: Path) -> bool:
    """Left by downloaders and git (`.cache`, `.gitattributes`), not by us."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
