"""Fill a folder beside each target's place, prove all of them in a fresh process, and only then put them in place."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from rankwright.atomic import atomic_folder
from rankwright.errors import UserError
from rankwright.export.adapter import NEEDS_LORA
from rankwright.export.card import CardFacts, write_card
from rankwright.export.parity import check_folders
from rankwright.export.records import PARITY_FILE
from rankwright.export.trained import TARGETS, Figures, Trained, Writer, has_adapter, portable_name
from rankwright.model import RankModel
from rankwright.prompts import PromptContract
from rankwright.resources import resolve_base


def export_targets(
    model: RankModel,
    tokenizer: Any,
    contract: PromptContract,
    *,
    targets: Mapping[str, Mapping[str, Any]],
    folder: Path,
    golden_pairs: Sequence[tuple[str, str]],
    base_name: str,
    revision: str | None = None,
    tolerance: float = 1e-4,
    dtype: torch.dtype = torch.float32,
    facts: CardFacts | None = None,
) -> dict[str, Figures]:
    """Write folder/TARGET for each target (name -> options); the figures of each, as in its parity.json.

    base_name: what the recipe calls the base. dtype: type of the written weights. Raises UserError, and leaves an
    earlier folder of the target in place, when a runtime does not reproduce the golden scores within tolerance.
    """
    refuse_impossible(targets, has_adapter=has_adapter(model))
    trained = Trained(model, tokenizer, contract, base_name, revision, golden_pairs, tolerance=tolerance, dtype=dtype)
    writers = {name: TARGETS.bind(name, options) for name, options in targets.items()}
    return publish(folder, trained, writers, facts or CardFacts())


def refuse_impossible(targets: Mapping[str, Mapping[str, Any]], *, has_adapter: bool) -> None:
    """Raises UserError for an unknown target or option, or one that this training cannot have; call it before."""
    for name, options in targets.items():
        TARGETS.bind(name, options)
    if "adapter" in targets and not has_adapter:
        raise UserError(NEEDS_LORA)


def publish(folder: Path, trained: Trained, writers: Mapping[str, Writer], facts: CardFacts) -> dict[str, Figures]:
    """Fill a folder beside each folder/TARGET, check all of them in one fresh process, then put them in place."""
    with ExitStack() as stack:
        drafts = {name: stack.enter_context(atomic_folder(folder / name)) for name in writers}
        figures = {name: write(trained, drafts[name]) for name, write in writers.items()}
        # A hub id stays out: the adapter then names it, with its revision.
        found = resolve_base(trained.base_name)
        base = found if Path(found).is_dir() else None
        reports = check_folders(drafts, trained.tolerance, base)
        for name, draft in drafts.items():
            figures[name] |= reports[name]
            text = json.dumps(figures[name], indent=2, ensure_ascii=False)
            (draft / PARITY_FILE).write_text(text + "\n", encoding="utf-8")
            _finish(draft, trained, facts, figures[name])
    return figures


def _finish(draft: Path, trained: Trained, facts: CardFacts, figures: Figures) -> None:
    write_card(
        draft,
        facts,
        trained.contract,
        figures,
        base_name=portable_name(trained.base_name),
        revision=trained.revision,
    )
    for path in draft.rglob("*"):
        # safetensors files are written 0600, which a server under another user cannot read.
        path.chmod(0o755 if path.is_dir() else 0o644)
