"""Which export targets can serve a prompt's frame; the others are refused before training, with the way out."""

from __future__ import annotations

from collections.abc import Iterable

from rankwright.errors import UserError
from rankwright.prompts import PromptContract

# Their runtimes get the two texts and nothing else: the frame must be part of tokenizer.json.
PAIR_ONLY = frozenset({"onnx"})


def refuse_frame(targets: Iterable[str], contract: PromptContract) -> None:
    """Raises UserError for the targets whose runtimes cannot make the contract's prompt of a pair."""
    refused = sorted(PAIR_ONLY & set(targets))
    if refused and not contract.is_baked:
        raise UserError(
            f"export.targets: {', '.join(refused)}: its runtimes join query and document by tokenizer.json alone, "
            f"which cannot hold a prompt of the frame {contract.mode}: train in another frame (prompt.mode=portable) "
            f"or remove {', '.join(refused)}"
        )
