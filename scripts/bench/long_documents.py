"""A set planted into long documents: what `cut`, `max` and `blocks` find of it, and how fast. Never a test.

    python scripts/bench/long_documents.py MODEL --data FOLDER --filler FOLDER --out FOLDER
        [--split test] [--tokens 6000] [--queries 50] [--depth 20] [--max-tokens N]

MODEL: an exported folder, a base or a hub id, as for `rankwright score`. Every document of the set becomes a document
of --tokens tokens: passages of the filler, a set of another domain, with the document itself at a place drawn at
random. The lists are those of BM25 on the short documents, so that only the reading differs. `short` is the set as it
was, scored once; a value of 90 % of it is what the strategies are for. Scores are kept in --out block by block: the
same command continues a killed one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankwright import Reranker, read_collection
from rankwright.common import console
from rankwright.common.files import write_text_atomic
from rankwright.common.hashing import content_hash, files_hash, stable_hash
from rankwright.common.resources import resolve_path
from rankwright.data.collection import Collection
from rankwright.evaluation.evaluate import measure
from rankwright.evaluation.metrics import HEADLINE
from rankwright.model.long_documents import STRATEGIES, LongDocuments
from rankwright.model.prompt import PromptEncoder
from rankwright.rerankers import score_blocks
from rankwright.rerankers.score_blocks import BlockScores
from rankwright.retrieval.bm25 import bm25

PAIRS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True, help="a set that `data.test[].path` could name")
    parser.add_argument("--filler", required=True, help="a set whose documents answer none of these queries")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--tokens", type=int, default=6000)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--max-tokens", type=int)
    options = parser.parse_args()
    short, filler = (
        read_collection(resolve_path(place, root=None), name=name, split=options.split)
        for place, name in ((options.data, "short"), (options.filler, "filler"))
    )
    chosen = sorted((q for q in short.queries if short.positives(q)), key=lambda q: stable_hash("long", q))
    short = short.subset(chosen[: options.queries])
    lists = bm25(short.corpus, depth=options.depth)(short.queries)
    found = {c.document_id for row in lists.values() for c in row}
    reranker = Reranker.load(options.model, max_tokens=options.max_tokens)
    long = planted(short, sorted(found), list(filler.corpus.values()), reranker.encoder, options.tokens)
    # A pair is many prompts: a kill loses at most these.
    score_blocks.BLOCK_PAIRS = PAIRS
    folder = Path(options.model)
    weights = files_hash([folder]) if folder.is_dir() else options.model
    rows = []
    for name, strategy, collection in [("short", "cut", short), *((s, s, long) for s in STRATEGIES)]:
        scorer = reranker.reading(LongDocuments(strategy))
        texts = [collection.corpus[d] for d in sorted(found)]
        inputs = content_hash(weights, dataclasses.asdict(scorer.contract), texts)
        scores = BlockScores(options.out / name, inputs, lists, tuple(short.queries))
        missing = sorted(set(range(len(scores.blocks))) - set(scores.done()))
        with console.progress(name, sum(len(scores.blocks[number]) for number in missing)) as advance:
            scores.score(missing, scorer, collection, rank=0, advance=advance, look=lambda: None)
        run, facts = scores.gather()
        value = measure(run, collection.qrels, list(short.queries), [HEADLINE]).mean[HEADLINE]
        rows.append({"documents": name, HEADLINE: value, **facts})
    show(rows, lists, short, options)


def planted(
    short: Collection, ids: Sequence[str], filler: Sequence[str], encoder: PromptEncoder, tokens: int
) -> Collection:
    """The set with each of these documents somewhere in one of about `tokens` tokens, the same every time."""
    lengths = list(map(len, encoder.encode_documents(filler)))
    corpus: dict[str, str] = {}
    for key, own in zip(ids, map(len, encoder.encode_documents([short.corpus[d] for d in ids])), strict=True):
        draw = random.Random(stable_hash("planted", key))
        parts: list[str] = []
        total = own
        while total < tokens:
            place = draw.randrange(len(filler))
            parts.append(filler[place])
            total += lengths[place] + 1
        parts.insert(draw.randint(0, len(parts)), short.corpus[key])
        corpus[key] = "\n\n".join(parts)
    return dataclasses.replace(short, corpus=corpus)


def show(rows: Sequence[dict[str, Any]], lists: Any, short: Collection, options: argparse.Namespace) -> None:
    """The table in Markdown, and results.json."""
    whole = rows[0][HEADLINE]
    columns = ("documents", HEADLINE, "of that on short ones", "windows a document", "documents/s")
    print("", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", sep="\n")
    for row in rows:
        windows = row.get("windows", row["pairs"]) / row["pairs"]
        value, speed = row[HEADLINE], row["pairs_per_s"]
        print(f"| {row['documents']} | {value:.3f} | {value / whole:.0%} | {windows:.1f} | {speed:,.1f} |")
    facts = {"queries": len(short.queries), "pairs": sum(map(len, lists.values())), "tokens": options.tokens}
    write_text_atomic(options.out / "results.json", json.dumps({**facts, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    console.quiet_libraries()
    main()
