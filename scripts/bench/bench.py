"""Our training and scoring against sentence-transformers on the same model, texts and machine. Never a test.

    python scripts/bench/bench.py --data FOLDER [--shape tiny] [--bf16] [--method lora] [--quick] [--json FILE]

FOLDER: a set in BEIR layout (queries and documents of its test split). A and B alternate in one process; medians of
steps and their ratios are printed. sentence-transformers is tried in several settings, and its fastest counts.
Needs `pip install -e ".[dense]"`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from models import SHAPES, Texts, read_lists, write_models
from sides import cases, our_scorer, ours, sentence_transformers, st_scorer

OURS = "rankwright"
DOCUMENTS, SCORED, MAX_TOKENS, GROUPS_PER_STEP = 16, 100, 512, 2


def main() -> None:
    options = arguments()
    if options.child:
        memory_child(options)
        return
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    quiet()
    result: dict[str, Any] = {"settings": settings(options), "ratios": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, hf = write_models(folder, options.shape, max_tokens=MAX_TOKENS)
        train_lists = read_lists(options.data, count=24, documents=DOCUMENTS, seed=0)
        if not options.scoring_only:
            bench_training(options, base, hf, folder, train_lists, result)
        bench_scoring(
            options, base, hf, read_lists(options.data, count=options.rounds or 6, documents=SCORED, seed=1), result
        )
    print(json.dumps(result["ratios"], indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a set in BEIR layout")
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--method", choices=("lora", "full"), default="lora")
    parser.add_argument("--quick", action="store_true", help="fewer settings and rounds")
    parser.add_argument("--scoring-only", action="store_true")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--budget-tokens", type=int, default=4096)
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def quiet() -> None:
    import warnings

    from transformers.utils import logging

    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def settings(options: argparse.Namespace) -> dict[str, Any]:
    from importlib.metadata import version

    names = ("torch", "transformers", "sentence-transformers", "peft", "accelerate")
    return {
        "shape": options.shape,
        "method": options.method,
        "precision": "bf16" if options.bf16 else "fp32",
        "data": options.data.name,
        "documents": DOCUMENTS,
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in names},
    }


def side_options(options: argparse.Namespace) -> dict[str, Any]:
    return {"method": options.method, "bf16": options.bf16, "groups_per_step": GROUPS_PER_STEP}


def bench_training(
    options: argparse.Namespace, base: Path, hf: Path, folder: Path, lists: Sequence[Texts], result: dict[str, Any]
) -> None:
    """Pairs a second of every setting, alternating; then the peak memory of ours and of the fastest other."""
    shared = side_options(options)
    sides: dict[str, Callable[[int], list[float]]] = {
        OURS: ours(base, lists, budget_tokens=options.budget_tokens, **shared)
    }
    tried = dict(cases(options.bf16, GROUPS_PER_STEP, DOCUMENTS, options.quick))
    for name, setting in tried.items():
        sides[name] = sentence_transformers(hf, lists, folder=folder, **shared, **setting)
    seconds = alternate(sides, rounds=options.rounds or (2 if options.quick else 4), steps=6)
    pairs = GROUPS_PER_STEP * DOCUMENTS
    speeds = {name: pairs / statistics.median(values) for name, values in seconds.items()}
    best = max((n for n in speeds if n != OURS), key=lambda n: speeds[n])
    print(f"training, {options.shape}, {options.method}, {'bf16' if options.bf16 else 'fp32'}: pairs/s (median)")
    for name, speed in sorted(speeds.items(), key=lambda item: -item[1]):
        print(f"  {speed:8.1f}  {speeds[OURS] / speed:5.2f}x  {name}{'  <- its best' if name == best else ''}")
    ratio = [b / o for b, o in zip(seconds[best], seconds[OURS], strict=True)]
    result["training"] = {"pairs_per_s": speeds, "best_other": best, "ratio_of_each_step": ratio}
    result["ratios"]["train"] = speeds[OURS] / speeds[best]
    memory = {name: peak_memory(options, name) for name in (OURS, best)}
    print(f"  peak memory above the loaded model: ours {memory[OURS]:.2f} GB, {best} {memory[best]:.2f} GB")
    result["training"]["peak_gb"] = memory
    result["ratios"]["train_memory"] = memory[OURS] / memory[best]


def alternate(sides: dict[str, Callable[[int], list[float]]], *, rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds of each step; in every round each side runs once, and its first two steps do not count.

    They meet shapes that the sides between have pushed out of the caches of compiled products.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, train in sides.items():
            seconds[name] += train(steps)[2:]
            print(f"  round {number + 1}/{rounds}: {name}", end="\r", flush=True, file=sys.stderr)
    print(" " * 70, end="\r", file=sys.stderr)
    return seconds


def peak_memory(options: argparse.Namespace, name: str) -> float:
    """GB of the highest resident memory of three steps over that after loading, in a process of its own."""
    command = [sys.executable, __file__, "--data", str(options.data), "--shape", options.shape, "--child", name]
    command += ["--method", options.method, "--budget-tokens", str(options.budget_tokens)]
    command += ["--bf16"] if options.bf16 else []
    command += ["--quick"] if options.quick else []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def memory_child(options: argparse.Namespace) -> None:
    quiet()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, hf = write_models(folder, options.shape, max_tokens=MAX_TOKENS)
        lists = read_lists(options.data, count=24, documents=DOCUMENTS, seed=0)
        shared = side_options(options)
        if options.child == OURS:
            train = ours(base, lists, budget_tokens=options.budget_tokens, **shared)
        else:
            setting = dict(cases(options.bf16, GROUPS_PER_STEP, DOCUMENTS, options.quick))[options.child]
            train = sentence_transformers(hf, lists, folder=folder, **shared, **setting)
        # Writing 5 there sets the highest mark back to what is resident now: what came before does not count.
        Path("/proc/self/clear_refs").write_text("5")
        loaded = resident_kb("VmHWM")
        train(3)
        print((resident_kb("VmHWM") - loaded) / 2**20)


def resident_kb(key: str) -> int:
    """A line of /proc/self/status, in kB (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def bench_scoring(
    options: argparse.Namespace, base: Path, hf: Path, lists: Sequence[Texts], result: dict[str, Any]
) -> None:
    """One query with 100 documents; batch 1 is what scoring pair by pair costs."""
    sides = {OURS: our_scorer(base, bf16=options.bf16)}
    for batch in (1, 8, 32, SCORED):
        sides[f"predict, batch {batch}"] = st_scorer(hf, bf16=options.bf16, batch=batch)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    agree = 0.0
    for texts in (lists[0], *lists):
        scores = {}
        for name, score in sides.items():
            started = time.perf_counter()
            scores[name] = score(texts)
            seconds[name].append(time.perf_counter() - started)
        agree = max(agree, *(abs(a - b) for a, b in zip(scores[OURS], scores["predict, batch 8"], strict=True)))
    speeds = {name: SCORED / statistics.median(values[1:]) for name, values in seconds.items()}
    print(f"scoring 1 x {SCORED}: pairs/s (median); largest difference of a logit {agree:.2g}")
    for name, speed in sorted(speeds.items(), key=lambda item: -item[1]):
        print(f"  {speed:8.1f}  {speeds[OURS] / speed:5.2f}x  {name}")
    best = max(s for n, s in speeds.items() if n != OURS)
    result["scoring"] = {"pairs_per_s": speeds, "max_d_logit": agree}
    result["ratios"]["score"] = speeds[OURS] / best
    result["ratios"]["score_one_batch"] = speeds[OURS] / speeds[f"predict, batch {SCORED}"]
    result["ratios"]["score_one_by_one"] = speeds[OURS] / speeds["predict, batch 1"]


if __name__ == "__main__":
    main()
