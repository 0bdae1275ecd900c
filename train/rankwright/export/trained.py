"""What an export starts from, and the registry of its targets."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rankwright.errors import UserError
from rankwright.model import RankModel
from rankwright.prompts import PromptContract
from rankwright.registry import Registry
from rankwright.resources import FIXTURES

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
    dtype: torch.dtype


# A target writes its files and golden.jsonl into an empty folder and returns figures for parity.json; its
# keyword-only parameters are the options of a recipe. Which runtimes then prove the folder follows from its files.
Writer = Callable[[Trained, Path], Figures]
TARGETS: Registry[Callable[..., Figures]] = Registry("export target")
# What a target imports beyond the core, all of it in the extra that has the target's name.
LIBRARIES: dict[str, tuple[str, ...]] = {"onnx": ("onnx", "onnx_ir", "onnxruntime")}


def refuse_uninstalled(targets: Iterable[str]) -> None:
    """Raises UserError for a target whose libraries are not installed here."""
    for target in targets:
        missing = [name for name in LIBRARIES.get(target, ()) if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(
                f"export.targets: `{target}` needs {', '.join(missing)}, not installed here: "
                f"pip install 'rankwright[{target}]'"
            )


def has_adapter(model: RankModel) -> bool:
    """Whether the model carries LoRA adapters."""
    return hasattr(model.lm, "peft_config")


def fp32_copy(model: RankModel) -> RankModel:
    """A copy in fp32 on the CPU, which every machine has; the model itself stays as it is."""
    return copy.deepcopy(model).float().cpu().eval()


def portable_name(base_name: str) -> str:
    """The base's name as another machine can read it: of a local folder only its own name."""
    if not base_name.startswith(FIXTURES) and Path(base_name).expanduser().is_dir():
        return Path(base_name).expanduser().resolve().name
    return base_name
