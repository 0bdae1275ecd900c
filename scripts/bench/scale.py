"""Memory and time by stage for sets larger than memory: made, read, written, mapped, drawn from. Never a test.

    python scripts/bench/scale.py [--documents 4000000] [--rows 0] [--bm25] [--limit-mb 0] [--json FILE]

Two made-up sets: a corpus of --documents texts of --characters with 10,000 judged queries (4 GB by default), and
--rows lines of training groups, each with a query, a positive and seven negatives of its own. Every stage is a process
of its own, whose anonymous memory (RssAnon: what is its own and not a file's) is watched; `at start` is after imports.
--limit-mb holds each to so much more than that (RLIMIT_DATA). Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rankwright.data.collection import Collection
from rankwright.data.formats.read import read_collection
from rankwright.data.split_files import qualified, read_split, write_split
from rankwright.data.store.texts import spilling_to
from rankwright.mining.pools import Negative
from rankwright.mining.samplers import DrawKey
from rankwright.training.sampling import build_group

QUERIES, GROUPS, NEGATIVES = 10_000, 10_000, 7
MB = 2**20
# Words of a made-up language, with the frequencies of a real one (Zipf).
WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in ("ai", "o", "u", "en", "ar") for c in "dklmnrstvz"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=4_000_000)
    parser.add_argument("--characters", type=int, default=1000, help="of a document")
    parser.add_argument("--rows", type=int, default=0, help="lines of training groups")
    parser.add_argument("--bm25", action="store_true", help="BM25 over the corpus too: its index is held in memory")
    parser.add_argument("--limit-mb", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to write, instead of TMPDIR")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        print(json.dumps(measured(options)))
        return
    found: dict[str, Any] = {"documents": options.documents, "characters": options.characters, "rows": options.rows}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        options.folder = Path(name)
        print(f"{'stage':24}{'seconds':>9}{'at start':>10}{'peak':>8}  MB of anonymous memory")
        wanted = ["make", "read and write", "open", "draw groups", "stream"] + ["bm25"] * options.bm25
        wanted += ["make rows", "read and write rows", "open rows", "draw groups of rows"] * bool(options.rows)
        for stage in wanted:
            found[stage] = child(options, stage)
            row = found[stage]
            facts = ", ".join(f"{k} {v:,}" for k, v in row["facts"].items())
            print(f"{stage:24}{row['seconds']:9.1f}{row['start_mb']:10.0f}{row['peak_mb']:8.0f}  {facts}", flush=True)
            if "rows" in stage and stage != "make rows":
                row["bytes_a_row"] = round((row["peak_mb"] - row["start_mb"]) * MB / options.rows)
                print(f"{'':24}{row['bytes_a_row']:,} bytes a row")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def child(options: argparse.Namespace, stage: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--stage", stage]
    for name in ("documents", "characters", "rows", "limit_mb", "folder"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{stage}: failed (exit {done.returncode})")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def memory(name: str) -> int:
    """Bytes of /proc/self/status."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) * 1024


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Run one stage; its time, its anonymous memory before and at most, and what it counted."""
    start = peak = memory("RssAnon")
    if options.limit_mb:
        resource.setrlimit(resource.RLIMIT_DATA, (memory("VmData") + options.limit_mb * MB,) * 2)
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, memory("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    try:
        facts = STAGES[options.stage](options)
    finally:
        seconds = time.perf_counter() - began
        done.set()
        watcher.join()
    return {"seconds": round(seconds, 2), "start_mb": start / MB, "peak_mb": peak / MB, "facts": facts}


def texts(seed: int, count: int, characters: int) -> Iterable[str]:
    drawn = random.Random(seed)
    weights = [1 / (rank + 10) for rank in range(len(WORDS))]
    # Drawing every word would take longer than all that is measured: pieces of 50 words are put together.
    pieces = [" ".join(drawn.choices(WORDS, weights, k=50)) for _ in range(2000)]
    for number in range(count):
        text = f"{number}"
        while len(text) < characters:
            text += " " + drawn.choice(pieces)
        yield text[:characters]


def make(options: argparse.Namespace) -> dict[str, int]:
    folder = options.folder / "set"
    folder.mkdir()
    with (folder / "corpus.jsonl").open("w") as file:
        for number, text in enumerate(texts(0, options.documents, options.characters)):
            file.write(json.dumps({"_id": f"d{number}", "title": "", "text": text}) + "\n")
    drawn = random.Random(1)
    with (folder / "queries.jsonl").open("w") as queries, (folder / "qrels_train.tsv").open("w") as qrels:
        qrels.write("query-id\tcorpus-id\tscore\n")
        for number, query in enumerate(texts(2, QUERIES, 60)):
            queries.write(json.dumps({"_id": f"q{number}", "text": query}) + "\n")
            qrels.write(f"q{number}\td{drawn.randrange(options.documents)}\t1\n")
    return {"bytes": (folder / "corpus.jsonl").stat().st_size}


def make_rows(options: argparse.Namespace) -> dict[str, int]:
    made = iter(texts(3, options.rows * (NEGATIVES + 1), options.characters))
    path = options.folder / "rows.jsonl"
    with path.open("w") as file:
        for query in texts(4, options.rows, 60):
            row = {"query": query, "positives": [next(made)], "negatives": [next(made) for _ in range(NEGATIVES)]}
            file.write(json.dumps(row) + "\n")
    return {"bytes": path.stat().st_size}


def read_and_write(options: argparse.Namespace, source: str, split: str) -> dict[str, int]:
    data = options.folder / "data"
    with spilling_to(data):
        collection = read_collection(options.folder / source, name=source, split="train")
        write_split(data, split, [collection])
    return {"documents": len(collection.corpus), "queries": len(collection.queries)}


def opened(options: argparse.Namespace, split: str) -> Collection:
    (collection,) = map(qualified, read_split(options.folder / "data", split))
    return collection


def open_split(options: argparse.Namespace, split: str) -> dict[str, int]:
    collection = opened(options, split)
    found = sum(d in collection.corpus for q in collection.queries for d in collection.positives(q))
    return {"documents": len(collection.corpus), "positives": found}


def draw_groups(options: argparse.Namespace, split: str) -> dict[str, int]:
    collection = opened(options, split)
    drawn = random.Random(5)
    characters = 0
    for query_id in list(collection.queries)[:GROUPS]:
        judged = [d for d, label in collection.qrels[query_id].items() if label == 0]
        found = judged or [f"set/d{drawn.randrange(options.documents)}" for _ in range(4 * NEGATIVES)]
        pool = [Negative(d, "bm25", None, None, "") for d in found if d not in collection.qrels[query_id] or judged]
        group = build_group(collection, pool, DrawKey(0, 0, query_id, "pool"), negatives=NEGATIVES, positives=1)
        characters += sum(map(len, group.documents))
    return {"groups": min(GROUPS, len(collection.queries)), "characters": characters}


def stream(options: argparse.Namespace) -> dict[str, int]:
    return {"characters": sum(map(len, opened(options, "train").corpus.values()))}


def bm25(options: argparse.Namespace) -> dict[str, int]:
    from rankwright.retrieval.bm25 import bm25

    collection = opened(options, "train")
    queries = {q: collection.queries[q] for q in list(collection.queries)[:100]}
    return {"candidates": sum(map(len, bm25(collection.corpus, depth=50)(queries).values()))}


STAGES: dict[str, Callable[[argparse.Namespace], dict[str, int]]] = {
    "make": make,
    "read and write": lambda options: read_and_write(options, "set", "train"),
    "open": lambda options: open_split(options, "train"),
    "draw groups": lambda options: draw_groups(options, "train"),
    "stream": stream,
    "bm25": bm25,
    "make rows": make_rows,
    "read and write rows": lambda options: read_and_write(options, "rows.jsonl", "rows"),
    "open rows": lambda options: open_split(options, "rows"),
    "draw groups of rows": lambda options: draw_groups(options, "rows"),
}


if __name__ == "__main__":
    main()
