"""Time and memory of the mine stage on made-up text with Zipf's law: BM25, and dense over vectors that are there.

    python scripts/bench/mining.py                                   # 200,000 passages, 5,000 queries
    python scripts/bench/mining.py --passages 5000 --queries 500 --json FILE

Each stage runs in a process of its own, so that its peak memory is its own. What is timed is the whole stage: reading
the data, the index, search, filters, and all files written; where other work runs, the CPU's seconds say more than the
clock's. The bi-encoder is a table of random vectors of 384 numbers, whose texts are encoded before the clock starts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

WORDS = 60_000
PASSAGE_WORDS = 100
QUERY_WORDS = 9
VECTOR = 384
FILTERS: dict[str, dict[str, Any]] = {
    "rank_window": {"last": 80},
    "margin": {"relative_to_spread": 0.0},
    "near_duplicate": {},
    "same_group": {},
    "max_reuse": {"most": 50},
}
# Name -> (retriever, filters).
STAGES = {
    "bm25": ("bm25", {}),
    "bm25, five filters": ("bm25", FILTERS),
    "dense": ("dense", {}),
    "dense, five filters": ("dense", FILTERS),
}


def write_data(folder: Path, passages: int, queries: int, seed: int) -> None:
    """data/ as the data stage leaves it: passages of Zipf words, queries of words of their relevant passage."""
    from rankwright.data.collection import Collection
    from rankwright.data.split_files import write_split

    drawn = random.Random(seed)
    words = sorted({"".join(drawn.choices("aeioubcdfglmnprst", k=drawn.randint(2, 11))) for _ in range(WORDS)})
    drawn.shuffle(words)
    numbers = np.random.default_rng(seed)
    shares = np.cumsum(1 / np.arange(1, len(words) + 1))
    corpus: dict[str, str] = {}
    for number in range(passages):
        count = int(numbers.integers(PASSAGE_WORDS // 2, PASSAGE_WORDS * 3 // 2))
        places = np.searchsorted(shares, numbers.random(count) * shares[-1])
        corpus[f"d{number}"] = " ".join([words[i] for i in places])
    asked, qrels = {}, {}
    for number in range(queries):
        relevant = f"d{drawn.randrange(passages)}"
        asked[f"q{number}"] = " ".join(drawn.sample(corpus[relevant].split(), QUERY_WORDS))
        qrels[f"q{number}"] = {relevant: 1.0}
    groups = {d: f"g{n // 3}" for n, d in enumerate(corpus)}
    write_split(folder / "data", "train", [Collection("bench", corpus, asked, qrels, document_groups=groups)])
    write_split(folder / "data", "dev", [])


def write_encoder(folder: Path, seed: int) -> None:
    """A bi-encoder of sentence-transformers: the mean of random vectors of pieces of words."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*letters, *(a + b for a in letters for b in letters), "[UNK]"]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, *(f"##{p}" for p in pieces[:-1])])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = np.random.default_rng(seed).normal(size=(len(vocabulary), VECTOR)).astype(np.float32)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)]).save(str(folder))


def stage(folder: Path, name: str) -> None:
    """One stage, in this process; prints its figures as JSON."""
    from rankwright.common.processes import Processes
    from rankwright.common.run_folder import RunFolder
    from rankwright.pipeline import mine as mine_stage
    from rankwright.recipe.schema import Dense, Mine, Model, Recipe
    from rankwright.recipe.sources import Data

    retriever, filters = STAGES[name]
    dense = Dense(model=str(folder / "encoder")) if retriever == "dense" else None
    mine = Mine(retriever=retriever, filters=filters)
    recipe = Recipe(name="bench", model=Model(base="none"), data=Data(), mine=mine, dense=dense)
    if dense is not None and not (folder / "cache" / "encoded").exists():
        # In a process of its own, since the peak of this one must not be that of encoding.
        code = "import sys, mining; mining.encode(mining.Path(sys.argv[1]))"
        subprocess.run([sys.executable, "-c", code, str(folder)], check=True, cwd=Path(__file__).parent, env=os.environ)
    run = RunFolder(folder)
    started, before = time.perf_counter(), time.process_time()
    facts = mine_stage.mine(recipe, run, inputs=name, run_files={}, processes=Processes())
    seconds, cpu = time.perf_counter() - started, time.process_time() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30
    row = {"stage": name, "seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "peak_gib": round(peak, 2)}
    print(json.dumps({**row, **facts["counts"]}))


def encode(folder: Path) -> None:
    """Write the bi-encoder and the vectors of all texts."""
    from rankwright.common.processes import Processes
    from rankwright.data.split_files import qualified, read_split
    from rankwright.retrieval.dense import encode_together

    write_encoder(folder / "encoder", 0)
    [collection] = map(qualified, read_split(folder / "data", "train"))
    encode_together(collection.corpus, collection.queries, processes=Processes(), model=str(folder / "encoder"))
    (folder / "cache" / "encoded").write_text("")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=200_000)
    parser.add_argument("--queries", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=sorted(STAGES), action="append", help="may be given more than once")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="bench-mining-") as name:
        folder = Path(name)
        started = time.perf_counter()
        write_data(folder, options.passages, options.queries, options.seed)
        print(f"text written in {time.perf_counter() - started:.1f} s (not counted)", flush=True)
        environment = {**os.environ, "RANKWRIGHT_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
        for chosen in options.only or STAGES:
            code = "import sys, mining; mining.stage(mining.Path(sys.argv[1]), sys.argv[2])"
            command = [sys.executable, "-c", code, str(folder), chosen]
            done = subprocess.run(
                command, check=True, cwd=Path(__file__).parent, env=environment, stdout=subprocess.PIPE, text=True
            )
            rows.append({**json.loads(done.stdout.splitlines()[-1]), **vars(options), "json": None, "only": None})
            row = rows[-1]
            figures = f"{row['seconds']:7.1f} s, {row['cpu_seconds']:7.1f} s of CPU, {row['peak_gib']:5.2f} GiB"
            print(f"{row['stage']:20} {figures}", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
