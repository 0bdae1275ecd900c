"""What an export starts from, the registry of its targets, and which prompt frames each serves exactly."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rankwright.common.errors import UserError, UserErrors
from rankwright.common.registry import Registry
from rankwright.common.resources import FIXTURES
from rankwright.model.frames import Frame
from rankwright.model.prompt import PromptContract
from rankwright.model.rank_model import RankModel

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Trained:
    """What is exported: the trained model (left as it is) and what a target needs to know about it."""

    model: RankModel
    tokenizer: Any
    contract: PromptContract
    base_name: str
    revision: str | None
    golden_pairs: Sequence[tuple[str, str]]
    tolerance: float
    # For names and metadata of files: (id on the hub, name of its own or None) of the licence.
    title: str = "Reranker"
    name: str = "reranker"
    licence: tuple[str, str | None] | None = None


# A target writes its files and golden.jsonl into an empty folder and returns figures for parity.json; its
# keyword-only parameters are the options of a recipe. Which runtimes then prove the folder follows from its files.
Writer = Callable[[Trained, Path], Figures]
TARGETS: Registry[Callable[..., Figures]] = Registry("export target")
# Modules that a target needs beyond the core dependencies; the extra of pyproject.toml has the target's name.
NEEDS: dict[str, tuple[str, ...]] = {}
# (config of the base, its tokenizer, contract) -> why a target cannot serve it exactly; asked before training.
REFUSALS: dict[str, Callable[[Any, Any, PromptContract], list[str]]] = {}


def has_adapter(model: RankModel) -> bool:
    """Whether the model carries LoRA adapters."""
    return hasattr(model.lm, "peft_config")


def fp32_copy(model: RankModel) -> RankModel:
    """A copy in fp32 on the CPU, which every machine has; the model itself stays as it is."""
    return copy.deepcopy(model).float().cpu().eval()


def in_fp32(model: RankModel) -> RankModel:
    """The model itself where it is in fp32 on the CPU already, else a copy: to score with, not to change."""
    weights = (*model.parameters(), *model.buffers())
    if not model.training and all(w.device.type == "cpu" and w.dtype == torch.float32 for w in weights):
        return model
    return fp32_copy(model)


def portable_name(base_name: str) -> str:
    """The base's name as another machine can read it: of a local folder only its own name."""
    if not base_name.startswith(FIXTURES) and Path(base_name).expanduser().is_dir():
        return Path(base_name).expanduser().resolve().name
    return base_name


def is_hub_id(base_name: str) -> bool:
    """Whether a portable name can be an id of the hub; a fixture of this package is none."""
    return re.fullmatch(r"(?!fixtures/)[\w.-]+/[\w.-]+", base_name) is not None


IN_PIECES = "a prompt of the frame {mode} is tokenised in pieces, which no runtime of an export repeats"
JOINED = "its runtimes join query and document by themselves and render no chat template, as the frame {mode} needs"

# Target -> (whether every one of its runtimes reads a frame exactly, why not the others).
SERVED: dict[str, tuple[Callable[[Frame], bool], str]] = {
    "hf": (lambda frame: frame.rendered, IN_PIECES),
    "causal": (lambda frame: frame.rendered, IN_PIECES),
    "adapter": (lambda frame: frame.rendered, IN_PIECES),
    "onnx": (lambda frame: frame.baked, JOINED),
    "gguf": (lambda frame: frame.rendered, IN_PIECES),
}


def refuse_unservable(contract: PromptContract, targets: Iterable[str]) -> None:
    """Raises UserErrors, a line a reason, for targets that cannot serve the contract's frame exactly."""
    faults = unservable(contract, targets)
    if faults:
        raise UserErrors(faults) if len(faults) > 1 else UserError(faults[0])


def unservable(contract: PromptContract, targets: Iterable[str]) -> list[str]:
    """A line a reason why targets cannot serve the contract's frame exactly, with the ways out."""
    refused: dict[str, list[str]] = {}
    for target in targets:
        serves, why = SERVED[target]
        if not serves(contract.frame):
            refused.setdefault(IN_PIECES if contract.in_pieces else why, []).append(target)
    faults = []
    for why, names in refused.items():
        rest = [t for t in targets if t not in names]
        without = f"without {'it' if len(names) == 1 else 'them'} (export.targets={_as_list(rest)})"
        faults.append(
            f"export.targets: {', '.join(names)}: {why.format(mode=contract.mode)}: train in another frame "
            f"(prompt.mode=portable) or {without if rest else 'without exports (export.targets=[])'}"
        )
    return faults


def _as_list(names: Iterable[str]) -> str:
    return f"[{','.join(names)}]"
