"""Time, memory and recall of the search for duplicates on made text with planted ones. Never a test.

    python scripts/bench/data.py [--documents 200000] [--code] [--json FILE]

The text: words drawn by Zipf's law, 30 to 600 of them a document (mean about 120), a tenth of the documents out of
families that share much of their text (boilerplate). Planted: exact duplicates (case, white space), and near ones with
one word to a fiftieth of them replaced, dropped or put in. What should be found is counted apart, by sets of shingles
that this script makes itself. Peak memory is the whole process's, texts included.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rankwright.data.duplicates import NEAR, find_duplicates

VOCABULARY, EXACT, NEARLY, FAMILY = 60_000, 0.03, 0.05, 0.1
FAMILY_SIZE = 400
SYLLABLES = "ba re to mi ka lu ne so di fa ge hu ja pe qui ru sta tri vo wen xa yo zu cla bre".split()


def vocabulary(random_: random.Random) -> list[str]:
    """Distinct made words, the frequent ones short."""
    words: dict[str, None] = {}
    while len(words) < VOCABULARY:
        size = 1 + min(4, int(np.log10(len(words) + 10)))
        words["".join(random_.choices(SYLLABLES, k=size))] = None
        if len(words) < 20:
            words[random_.choice(SYLLABLES) + random_.choice("nrst")] = None
    return list(words)


def edited(words: Sequence[str], known: Sequence[str], random_: random.Random) -> list[str]:
    """One word to a fiftieth of them replaced, dropped or put in: similarities from below 0.8 to near 1."""
    words = list(words)
    for _ in range(random_.randint(1, max(1, len(words) // 50))):
        place, what = random_.randrange(len(words)), random_.randrange(3)
        words[place : place + (what != 2)] = [] if what == 1 else [random_.choice(known)]
    return words


def layout(words: Sequence[str], *, code: bool, random_: random.Random) -> str:
    """Words as sentences, or as statements of code."""
    if code:
        lines = [words[i : i + 6] for i in range(0, len(words), 6)]
        return "\n".join(f"{line[0]} = {'_'.join(line[1:3])}({', '.join(line[3:])})" for line in lines)
    text, start = [], 0
    while start < len(words):
        end = start + random_.randint(8, 24)
        text.append(" ".join(words[start:end]).capitalize() + ".")
        start = end
    return " ".join(text)


def corpus(count: int, *, code: bool) -> tuple[dict[str, str], list[tuple[str, str]], list[tuple[str, str]]]:
    """Texts by id, planted exact pairs, planted near pairs (of any similarity)."""
    random_, numbers = random.Random(0), np.random.default_rng(0)
    known = vocabulary(random_)
    weights = 1 / np.arange(2, VOCABULARY + 2)
    weights /= weights.sum()
    made: list[list[str]] = []
    boilerplate: list[str] = []
    originals = int(count * (1 - EXACT - NEARLY))
    for number in range(originals):
        length = int(np.clip(numbers.lognormal(4.6, 0.6), 30, 600))
        words = [known[i] for i in numbers.choice(VOCABULARY, length, p=weights)]
        if number < originals * FAMILY:
            if number % FAMILY_SIZE == 0:
                boilerplate = words
            words = boilerplate + words[: max(1, len(boilerplate) // 3)]
        made.append(words)
    texts = {f"d{i}": layout(words, code=code, random_=random_) for i, words in enumerate(made)}
    exact, near = [], []
    for number in range(count - originals):
        source = random_.randrange(originals)
        copy = f"d{originals + number}"
        if number < count * EXACT:
            text = texts[f"d{source}"]
            texts[copy] = f"  {text}\n" if code else text.upper().replace(" ", "  ")
            exact.append((f"d{source}", copy))
        else:
            texts[copy] = layout(edited(made[source], known, random_), code=code, random_=random_)
            near.append((f"d{source}", copy))
    return texts, exact, near


def similarity(one: str, other: str, *, code: bool) -> float:
    """Jaccard of five-word shingles by plain Python, apart from what is measured."""

    def tokens(text: str) -> list[str]:
        if not code:
            return text.lower().replace(".", "").split()
        for sign in "=(),":
            text = text.replace(sign, f" {sign} ")
        return text.split()

    def shingles(text: str) -> set[tuple[str, ...]]:
        found = tokens(text)
        return {tuple(found[i : i + 5]) for i in range(len(found) - 4)}

    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--code", action="store_true", help="statements of code instead of sentences")
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args()
    texts, exact, near = corpus(options.documents, code=options.code)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu = time.perf_counter(), time.process_time()
    found = find_duplicates(texts, code=options.code)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    group = {i: n for n, ids in enumerate(found.exact) for i in ids}
    exact_found = sum(a in group and group[a] == group.get(b) for a, b in exact)
    first = {i: ids[0] for ids in found.exact for i in ids}
    place = {i: n for n, ids in enumerate(found.near) for i in ids}
    true = [(a, b) for a, b in near if similarity(texts[a], texts[b], code=options.code) >= NEAR]
    near_found = sum(first.get(a, a) in place and place[first.get(a, a)] == place.get(first.get(b, b)) for a, b in true)
    # Every member of a group has to be like another one of it.
    wrong = sum(
        all(similarity(texts[i], texts[j], code=options.code) < NEAR for j in ids if j != i)
        for ids in found.near[:2000]
        for i in ids
    )
    figures = {
        "documents": len(texts),
        "mean_words": round(sum(len(t.split()) for t in texts.values()) / len(texts), 1),
        "code": options.code,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_gib": round(peak / 2**20, 2),
        "peak_gib_before": round(before / 2**20, 2),
        "exact_planted": len(exact),
        "exact_recall": exact_found / max(1, len(exact)),
        "near_planted_at_threshold": len(true),
        "near_recall": near_found / max(1, len(true)),
        "members_without_a_like_one_in_2000_groups": wrong,
    }
    print(
        f"{len(texts):,} {'code' * options.code or 'text'} documents: {seconds:.0f} s ({cpu:.0f} s of CPU), peak "
        f"{figures['peak_gib']} GiB, recall exact {figures['exact_recall']:.4f} near {figures['near_recall']:.4f} "
        f"of {len(true):,}, wrong {wrong}"
    )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
