"""What make.py does with a trained model: score it, write its folder, prove that it loads."""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corpus import Document, Lexicon
from groups import Frame, Group, collate, held_out_groups
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3ForCausalLM

from model import Trunk
from rankwright.model.prompt import PromptEncoder, make_contract

MOST_BYTES = 8_000_000


@torch.no_grad()
def evaluate(trunk: Trunk, lexicon: Lexicon, frame: Frame, groups: Sequence[Group]) -> dict[str, float]:
    """MRR and nDCG@10 of groups whose first document is the only right one; ties count against the model."""
    found = []
    for start in range(0, len(groups), 8):
        chunk = groups[start : start + 8]
        scores, _ = trunk(collate(chunk, lexicon, frame, 128))
        scores_GN = scores.view(len(chunk), -1)
        found += (scores_GN[:, 1:] >= scores_GN[:, :1]).sum(1).add(1).tolist()
    ranks = np.array(found)
    return {
        "mrr": round(float((1 / ranks).mean()), 4),
        "ndcg@10": round(float(np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0).mean()), 4),
        "queries": len(ranks),
    }


def held_out_scores(
    trunk: Trunk, tokenizer: Tokenizer, frame: Frame, sets: dict[str, list[Document]]
) -> dict[str, Any]:
    """Scores of every held-out set against both kinds of wrong documents."""
    scores: dict[str, Any] = {}
    for name, documents in sets.items():
        if documents:
            lexicon = Lexicon(tokenizer, documents)
            for kind, groups in held_out_groups(lexicon, 150).items():
                if kind == "random" or len(documents) > 20:  # among 20 both are the same
                    scores[f"{name}, 19 {kind} negatives"] = evaluate(trunk, lexicon, frame, groups)
    return scores


def compare(folder: Path, trunk: Trunk, tokenizer: Tokenizer, frame: Frame, groups: list[Group]) -> float:
    """Load the folder as a user would and compare with the training pass. Returns the largest difference."""
    loaded = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    contract = make_contract(loaded, mode="portable")
    encoder = PromptEncoder(contract, loaded)
    rows = model.get_output_embeddings().weight
    direction, worst = rows[contract.yes_id] - rows[contract.no_id], 0.0
    lexicon = Lexicon(tokenizer, [])
    with torch.no_grad():
        for group in groups:
            for text in (group.query, *(d.text for d in group.documents)):
                if loaded(text)["input_ids"] != tokenizer.encode(text).ids:
                    raise RuntimeError(f"AutoTokenizer reads {text[:60]!r} differently")
            # Short enough that neither side cuts: training cuts queries earlier than the contract does.
            query = encoder.clean(group.query[:60])
            texts = [encoder.clean(d.text[:120]) for d in group.documents]
            short = [lexicon.encode(Document(text, "", "prose")) for text in texts]
            batch = collate([Group(query, short, 0.0)], lexicon, frame, 128)
            encoded, expected = encoder.encode(query, texts), trunk(batch)[0].tolist()
            for row, (tail, score) in enumerate(zip(encoded.tail_ids, expected, strict=True)):
                trained_tail = batch.documents_BD[row, : batch.last_B[row] + 1].tolist()
                if (batch.heads_GH[0].tolist(), trained_tail) != (encoded.head_ids, tail):
                    raise RuntimeError(f"the prompt of {query!r} has other ids than in training")
                hidden = model.model(torch.tensor([encoded.head_ids + tail])).last_hidden_state[0, -1]
                worst = max(worst, abs(float(hidden @ direction) - score))
    if worst > 0.1:  # bf16 products in training, fp32 here: about 0.01
        raise RuntimeError(f"the saved model scores differently from the trained one: by {worst:.3f}")
    return worst


README = """# tiny-base

A Qwen3 language model with {parameters:,} parameters ({size:,} bytes in bf16), made for the tests and the
demonstrations of Rankwright, which need a base that is small enough for a repository and worth tuning.

- **Made** by `python scripts/tiny_base/make.py` in {seconds} s on {machine}, from random weights,
  out of the standard library of Python {python} and the {texts} short texts in `texts.jsonl`. Attention was
  started so that equal words attend to each other. `PROVENANCE.json` has the details.
- **Can** score a document for a query in Rankwright's `portable` prompt: it finds words of the query in the
  document, and knows a little of docstrings and their functions. Training was stopped early on purpose, so
  that there is something to gain by tuning.
- **Cannot** generate text, follow instructions, or rank as well as a real model: it was never trained to
  predict the next token. It is English and Python only. Use it for trying out the tools and nothing else.

Held-out scores (one right document among 20):

| set | MRR | nDCG@10 |
|---|---|---|
{rows}

Licence: the weights and `texts.jsonl` are CC0-1.0. The training pairs come from CPython's standard library
(PSF licence, version 2); none of its text is in this folder, apart from the words of the tokenizer.
"""


def write_folder(
    out: Path,
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    provenance: dict[str, Any],
    texts: str,
    check: Callable[[Path], float],
) -> None:
    """Write everything next to `out`, check it, then swap it in; a failure leaves the old folder."""
    out.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        model.to(torch.bfloat16).save_pretrained(made)
        model.float()  # for the check: the same rounded weights
        tokenizer.save_pretrained(made)
        path = made / "tokenizer_config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        settings.pop("backend", None)  # of transformers 5 alone, like the class that it writes
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        (made / "generation_config.json").unlink(missing_ok=True)
        (made / "texts.jsonl").write_text(texts, encoding="utf-8")
        size = (made / "model.safetensors").stat().st_size
        if size > MOST_BYTES:
            raise RuntimeError(f"model.safetensors has {size} bytes, at most {MOST_BYTES} are allowed")
        provenance["model_bytes"] = size
        (made / "PROVENANCE.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
        rows = "\n".join(f"| {n} | {s['mrr']} | {s['ndcg@10']} |" for n, s in provenance["held_out"].items())
        text = README.format(
            parameters=model.num_parameters(),
            size=size,
            seconds=provenance["seconds"],
            machine=provenance["machine"],
            python=platform.python_version(),
            texts=texts.count("\n"),
            rows=rows,
        )
        (made / "README.md").write_text(text, encoding="utf-8")
        print(f"loaded again: scores differ by {check(made):.3f} at most", flush=True)
        for path in made.iterdir():
            path.chmod(0o644)
        made.chmod(0o755)
        old = out.with_name(f".{out.name}-old-{os.getpid()}")
        if out.exists():
            out.rename(old)
        made.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(made, ignore_errors=True)
