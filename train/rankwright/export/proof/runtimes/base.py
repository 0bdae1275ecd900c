"""Runtimes that read an exported folder as their users would: raw texts in, token ids, logits and probabilities out."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from rankwright.common.errors import UserError
from rankwright.export.golden import read_golden
from rankwright.model.prompt import CONTRACT_FILE, PromptContract

Row = dict[str, Any]
# Pairs of a mixed batch.
BATCH = 8
Kind = Literal["hf", "causal", "adapter", "onnx", "gguf"]


@dataclass(frozen=True, slots=True)
class Exported:
    """A folder that is to be proven: its kind, golden rows and contract; base: where an adapter's base lies."""

    path: Path
    kind: Kind
    rows: list[Row]
    contract: PromptContract
    base: str | None = None

    @classmethod
    def read(cls, path: Path, base: str | None = None) -> Exported:
        """Raises UserError for a folder that no export has written, or of which a part is missing or damaged."""
        rows = read_golden(path)
        contract = PromptContract.load(path)
        if contract is None:
            raise UserError(f"{path}: no {CONTRACT_FILE}: not an export, or a part: copy the whole folder again")
        return cls(path, kind_of(path), rows, contract, base)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a runtime made of the golden rows: ids and logits of each row alone, logits in batches, probabilities.

    ids: None where the runtime does not show them; logits: None where it gives probabilities only, and batched then
    holds probabilities. batched: one list a way to batch (padding side, order of the rows), each in the rows' order.
    """

    ids: list[list[int]] | None
    logits: list[float] | None
    batched: list[list[float]]
    probabilities: list[float]


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a runtime may be from the golden rows, in absolute numbers; None: does not decide.

    logit: to which `relative` times the golden logit's size is added. spearman: the least rank correlation with the
    golden logits over the rows that decide, for weights of few bits. batch: how far a row's logit in a batch may be
    from its own alone, for a runtime that is not held to the golden one as closely.
    """

    logit: float | None
    probability: float | None
    relative: float = 1e-5
    spearman: float | None = None
    batch: float | None = None


def exact(tolerance: float) -> Limits:
    """For a runtime that computes in fp32 what was written: the recipe's tolerance of a logit."""
    return Limits(logit=tolerance, probability=tolerance / 10)


@dataclass(frozen=True, slots=True)
class Runtime:
    """name: as in reports; kinds: of folders that it reads; module: what must be installed for it.

    file: of several in a folder the one it reads, a pattern; without it there is nothing to check. limits: of the
    recipe's tolerance. every_row: it reads texts as the trainer does, so that the rows which are no
    gate for others decide as well.
    """

    name: str
    kinds: frozenset[Kind]
    module: str
    run: Callable[[Exported], Answer]
    limits: Callable[[float], Limits] = exact
    every_row: bool = False
    file: str | None = None

    def reads(self, exported: Exported) -> bool:
        """Whether there is something in the folder for it."""
        return exported.kind in self.kinds and (self.file is None or any(exported.path.glob(self.file)))


def kind_of(folder: Path) -> Kind:
    """Which target wrote the folder, by its files."""
    if (folder / "adapter_config.json").is_file():
        return "adapter"
    if any(folder.glob("*.gguf")):
        return "gguf"
    if (folder / "onnx").is_dir():
        return "onnx"
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architecture = str((settings.get("architectures") or ["?"])[0])
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / 'config.json'}: cannot be read ({error}): copy the whole folder again") from None
    return "causal" if architecture.endswith("ForCausalLM") else "hf"


def cut_to_suffix(ids: list[int], limit: int, suffix_ids: list[int]) -> list[int]:
    """What a caller must do with a long prompt where the runtime does not: cut the document, keep the prompt's end."""
    return ids if len(ids) <= limit else ids[: limit - len(suffix_ids)] + suffix_ids


def in_both_orders(count: int, score: Callable[[list[int]], list[float]]) -> list[list[float]]:
    """score(places of the rows) in the rows' own order and in a shuffled one, both given back in the rows' order.

    Batches then have other members: a score that depends on them, or is given to another row, shows.
    """
    shuffled = random.Random(0).sample(range(count), count)
    given = dict(zip(shuffled, score(shuffled), strict=True))
    return [score(list(range(count))), [given[place] for place in range(count)]]


def sigmoid(logits: Sequence[float]) -> list[float]:
    """In double precision, as the golden probabilities."""
    found: list[float] = torch.sigmoid(torch.tensor(logits, dtype=torch.float64)).tolist()
    return found
