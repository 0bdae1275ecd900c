"""How the time of our training step grows with lists, documents and processes, and its share of the peak. Never a test.

    python scripts/bench/growth.py --data FOLDER [--shape tiny] [--bf16] [--method lora] [--json FILE]

FOLDER: a set in BEIR layout, whose texts are put together and cut to the length that is asked for. Every figure is a
median of steps, in rounds that alternate over all rows of a table; `plain` is the padded forward of transformers in
the same loop. Processes are real ones (gloo), with one thread each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from models import SHAPES, read_lists, write_models
from sides import OurTraining

from bench import quiet

BUDGET_TOKENS, MAX_TOKENS, HEAD_TOKENS = 4096, 2048, 96
LIST_LENGTHS, DOCUMENT_TOKENS = (4, 16, 64, 200), (64, 128, 256, 512, 1024)
ROUNDS = 4
# (processes, threads of each): two cores in three ways.
PROCESSES = ((1, 1), (1, 2), (2, 1))
GROUPS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a set in BEIR layout")
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--method", choices=("lora", "full"), default="lora")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory() as name:
        base, _ = write_models(Path(name), options.shape, max_tokens=MAX_TOKENS)
        if options.child:
            time_as_one_of_many(options, base)
            return
        found = {"lists": lengths(options, base, [(n, 128) for n in LIST_LENGTHS])}
        found["documents"] = lengths(options, base, [(16, n) for n in DOCUMENT_TOKENS])
    found["processes"] = processes(options)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def training(options: argparse.Namespace, base: Path, attention: str = "auto") -> OurTraining:
    return OurTraining(base, method=options.method, bf16=options.bf16, budget_tokens=BUDGET_TOKENS, attention=attention)


def groups(side: OurTraining, data: Path, *, count: int, documents: int, tokens: int) -> list[Any]:
    """Groups of real token ids: heads of HEAD_TOKENS, documents of `tokens`."""
    from rankwright.model.prompt import EncodedGroup
    from rankwright.training.sampling import TrainGroup

    texts = [d for one in read_lists(data, count=20, documents=100, seed=2) for d in one.documents]
    ids = endless(side.encoder.encode_documents(texts))
    made = []
    for number in range(count):
        head = [next(ids) for _ in range(HEAD_TOKENS)]
        tails = [[next(ids) for _ in range(tokens)] for _ in range(documents)]
        made.append(TrainGroup(str(number), (1.0, *[0.0] * (documents - 1)), EncodedGroup(head, tails, False, 0)))
    return made


def endless(documents: Sequence[Sequence[int]]) -> Iterator[int]:
    while True:
        for ids in documents:
            yield from ids


def lengths(options: argparse.Namespace, base: Path, cases: Sequence[tuple[int, int]]) -> list[dict[str, float]]:
    """A row for each (documents, tokens of a document): ours, plain, and the share of the peak."""
    from rankwright.training.estimate.cost import Utilisation

    sides = {name: training(options, base, name) for name in ("auto", "plain")}
    share = Utilisation(sides["auto"].model, sides["auto"].accelerator, BUDGET_TOKENS)
    drawn = [groups(sides["auto"], options.data, count=1, documents=d, tokens=t) for d, t in cases]
    seconds: dict[tuple[int, str], list[float]] = {}
    for number in range(ROUNDS + 1):
        for row, one in enumerate(drawn):
            for name, side in sides.items():
                seconds.setdefault((row, name), []).append(side.step(one, number))
    rows = []
    print(f"one list a step, {options.shape}, {options.method}, {'bf16' if options.bf16 else 'fp32'}:")
    print("  documents  tokens each  seconds  ms a document  plain / ours  share of the peak")
    for row, (documents, tokens) in enumerate(cases):
        ours, plain = (statistics.median(seconds[row, name][1:]) for name in sides)
        mfu = share.share(share.flops([g.encoded for g in drawn[row]]), ours)
        rows.append({"documents": documents, "tokens": tokens, "seconds": ours, "plain_seconds": plain, "mfu": mfu})
        each = 1000 * ours / documents
        print(f"  {documents:9}  {tokens:11}  {ours:7.3f}  {each:13.1f}  {plain / ours:12.2f}  {mfu:17.0%}")
    return rows


def processes(options: argparse.Namespace) -> list[dict[str, float]]:
    """Steps of GROUPS lists of 16 documents, shared by processes."""
    rows: list[dict[str, float]] = []
    print(f"{GROUPS} lists of 16 documents a step:\n  processes  threads each  seconds")
    for count, threads in PROCESSES:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
        command = [sys.executable, *launcher, __file__, "--child", "--data", str(options.data)]
        command += ["--shape", options.shape, "--method", options.method, *(["--bf16"] if options.bf16 else [])]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "ACCELERATE_USE_CPU": "true"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found = float(done.stdout.strip().splitlines()[-1])
        rows.append({"processes": count, "threads": threads, "seconds": found})
        print(f"  {count:9}  {threads:12}  {found:7.3f}")
    return rows


def time_as_one_of_many(options: argparse.Namespace, base: Path) -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    side = training(options, base)
    drawn = groups(side, options.data, count=GROUPS, documents=16, tokens=128)
    seconds = [side.step(drawn, number) for number in range(ROUNDS + 1)][1:]
    if side.accelerator.is_main_process:
        print(statistics.median(seconds))


if __name__ == "__main__":
    main()
