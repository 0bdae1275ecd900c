"""Which prompt frames each export target serves exactly; the others are refused before training."""

from __future__ import annotations

from collections.abc import Iterable

from rankwright.errors import UserError, UserErrors
from rankwright.frames import Mode
from rankwright.prompts import PromptContract

# Of these query and document stand alone between special tokens: tokenizer.json holds the frame.
PAIRS: frozenset[Mode] = frozenset({"portable", "zerank"})
# A chat template renders these as one text.
RENDERED: frozenset[Mode] = PAIRS | {"official"}
IN_PIECES = "a prompt of the frame {mode} is tokenised in pieces, which no runtime of an export repeats"
JOINED = "its runtimes join query and document by themselves and render no chat template, as the frame {mode} needs"

# Target -> (frames that every one of its runtimes reads exactly, why not the others).
SERVED: dict[str, tuple[frozenset[Mode], str]] = {
    "hf": (RENDERED, IN_PIECES),
    "causal": (RENDERED, IN_PIECES),
    "adapter": (RENDERED, IN_PIECES),
    "onnx": (PAIRS, JOINED),
    "gguf": (RENDERED, IN_PIECES),
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
        modes, why = SERVED[target]
        if contract.mode not in modes:
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
