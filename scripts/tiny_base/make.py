"""Train a tiny Qwen3 base for tests and demonstrations: it matches words of a query in a document.

Everything it learns from is on this machine: the standard library of the running Python, and the CC0 texts in
data/fixtures/tiny-base/texts.jsonl. Same seed, steps, threads and versions give the same weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from corpus import Lexicon, describe, read_corpus, train_tokenizer
from groups import Frame, Sampler, collate, held_out_groups
from results import compare, held_out_scores, write_folder
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedTokenizerFast

from model import Trunk, new_model
from rankwright.model.frames import PORTABLE_TASK, portable_frame
from rankwright.recipe.schema import DEFAULT_INSTRUCTION

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "data" / "fixtures" / "tiny-base"
GROUPS = 8
LENGTHS = (48, 64, 48, 112)  # document tokens, step by step
# Few steps on purpose: the base then finds words, and leaves something to learn. After 1400 steps the quickstart's
# few hundred queries hardly moved it (nDCG@10 on dev .720 -> .726).
STEPS, RATE, WARM_UP = 56, 4e-4, 60
FRAME_TEXT = (
    f"<|im_start|>system\n{PORTABLE_TASK}\n{DEFAULT_INSTRUCTION}<|im_end|>\n<|im_start|>query\n<|im_end|>\n"
    "<|im_start|>document\n<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers loads and saves it."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def read_frame(tokenizer: PreTrainedTokenizerFast) -> Frame:
    """The portable prompt frame of rankwright.model.prompt in token ids."""
    frame = portable_frame(tokenizer)
    prefix, middle, suffix = (
        tokenizer(part.replace("{instruction}", DEFAULT_INSTRUCTION), add_special_tokens=False)["input_ids"]
        for part in (frame.prefix, frame.middle, frame.suffix)
    )
    return Frame(prefix, middle, suffix, int(tokenizer.pad_token_id))


def rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then a cosine to a twentieth."""
    if step < WARM_UP:
        return peak * (step + 1) / WARM_UP
    return peak * (0.05 + 0.475 * (1 + math.cos(math.pi * (step - WARM_UP) / max(1, steps - WARM_UP))))


def train(trunk: Trunk, sampler: Sampler, frame: Frame, options: argparse.Namespace) -> None:
    """Listwise softmax over groups, plus, as a crutch, naming the document words that the query has."""
    torch.manual_seed(options.seed + 1)
    match = nn.Linear(192, 1)
    matrices = [p for p in trunk.model.parameters() if p.ndim == 2]
    gains = [p for p in trunk.model.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": 0.01, "share": 1.0},
            {"params": gains, "weight_decay": 0.0, "share": 1.0},
            {"params": match.parameters(), "weight_decay": 0.0, "share": 10.0},
        ],
        betas=(0.9, 0.98),
    )
    began, seen = time.monotonic(), np.zeros(3)
    for step in range(options.steps):
        length, progress = LENGTHS[step % len(LENGTHS)], step / options.steps
        groups = [sampler.group(progress, length) for _ in range(GROUPS)]
        batch = collate(groups, sampler.lexicon, frame, length)
        for group in optimizer.param_groups:
            group["lr"] = group["share"] * rate(step, options.steps, options.rate)
        scores, middle = trunk(batch)
        scores_GN = scores.view(batch.target_GN.shape)
        ranking = -(batch.target_GN * scores_GN.log_softmax(1)).sum(1).mean()
        labelled = batch.match_BD >= 0
        guesses = match(F.rms_norm(middle.float()[labelled], (192,)))[:, 0]
        matching = F.binary_cross_entropy_with_logits(guesses, batch.match_BD[labelled].float())
        optimizer.zero_grad(set_to_none=True)
        (ranking + options.match_weight * matching).backward()
        nn.utils.clip_grad_norm_(trunk.model.parameters(), 1.0)
        optimizer.step()
        hit = (scores_GN.argmax(1) == 0).float().mean()
        seen = 0.96 * seen + 0.04 * np.array([float(ranking.detach()), float(matching.detach()), float(hit)])
        if (step + 1) % 25 == 0:
            spent, share = time.monotonic() - began, 1 - 0.96 ** (step + 1)
            ranking_mean, matching_mean, hit_mean = seen / share
            left = spent / (step + 1) * (options.steps - step - 1)
            print(
                f"step {step + 1}/{options.steps}  ranking {ranking_mean:.3f}  matching {matching_mean:.4f}  "
                f"first {hit_mean:.3f}  {spent:.0f} s, {left:.0f} s left",
                flush=True,
            )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog="A run cannot be resumed: it starts anew.")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to replace (default: %(default)s)")
    parser.add_argument("--texts", type=Path, default=FOLDER / "texts.jsonl", help="general texts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--minutes", type=float, help="about this long instead, at 0.6 s a step")
    parser.add_argument("--quick", action="store_true", help="60 steps, to try the script")
    parser.add_argument("--rate", type=float, default=RATE, help="peak learning rate (default: %(default)s)")
    parser.add_argument("--match-weight", type=float, default=1.0, help="weight of the match loss")
    parser.add_argument("--threads", type=int, default=2, help="a run repeats with equal threads only")
    parser.add_argument("--eager", action="store_true", help="no torch.compile, which needs a C++ compiler")
    options = parser.parse_args()
    if options.minutes is not None:
        options.steps = max(1, round(options.minutes * 60 / 0.6))
    if options.quick:
        options.steps = 60
    return options


def main() -> None:
    options, began = parse_arguments(), time.monotonic()
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    training, code, general = read_corpus(options.texts)
    tokenizer = train_tokenizer(options.texts, FRAME_TEXT)
    wrapped = wrap(tokenizer)
    frame, lexicon = read_frame(wrapped), Lexicon(tokenizer, training)
    counts = describe(training)
    print(
        f"{counts['documents']} documents, {counts['pairs']} pairs, {time.monotonic() - began:.0f} s",
        flush=True,
    )
    torch.manual_seed(options.seed)
    model = new_model(wrapped)
    trunk = Trunk(model, tokenizer.token_to_id("yes"), tokenizer.token_to_id("no"), not options.eager)
    train(trunk, Sampler(lexicon, options.seed), frame, options)
    sets = {"standard library": code, "texts": general}
    scores = held_out_scores(trunk, tokenizer, frame, sets)
    print(json.dumps(scores, indent=2), flush=True)
    provenance = {
        "command": "python " + " ".join(["scripts/tiny_base/make.py", *sys.argv[1:]]),
        "python": platform.python_version(),
        "packages": {p: version(p) for p in ("torch", "transformers", "tokenizers", "numpy", "PyStemmer")},
        "machine": f"{platform.machine()}, {options.threads} threads",
        "seed": options.seed,
        "steps": options.steps,
        "groups_per_step": GROUPS,
        "seconds": round(time.monotonic() - began),
        **counts,
        "texts_sha256": hashlib.sha256(options.texts.read_bytes()).hexdigest(),
        "held_out": scores,
        "licence": "Weights, texts.jsonl: CC0-1.0. Pairs: CPython's standard library, PSF-2.0, not part of "
        "this folder. No text of data/fixtures/{code,finance,legal} was used.",
    }
    probes = [g for s in sets.values() if s for g in held_out_groups(Lexicon(tokenizer, s), 3)["random"]]

    def check(folder: Path) -> float:
        return compare(folder, trunk, tokenizer, frame, probes)

    write_folder(options.out, model, wrapped, provenance, options.texts.read_text(encoding="utf-8"), check)


if __name__ == "__main__":
    main()
