"""What a target cannot export exactly: asked when a recipe is checked, long before there are weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from typing import Any

from rankwright.common.errors import UserError, UserErrors
from rankwright.export.target import IN_PIECES, Target
from rankwright.export.targets import TARGETS
from rankwright.model.prompt import PromptContract


def impossible(targets: Mapping[str, Mapping[str, Any]], *, lora: bool, quantized: bool = False) -> list[str]:
    """Faults of targets (name -> options): unknown names and options, missing packages, adapters without LoRA.

    quantized: adapters are trained over quantised weights, which whoever loads them would not have below them.
    """
    faults = []
    for name, options in targets.items():
        try:
            target = TARGETS[name]
            target.bind(options)
        except UserError as error:
            faults.append(f"export.targets: {error}")
            if name not in TARGETS:
                continue
        missing = [module for module in target.modules if not importlib.util.find_spec(module)]
        if missing:
            faults.append(
                f"export.targets: `{name}` needs the package {missing[0]}: {target.install}, or leave the target out"
            )
        if target.needs_lora and not lora:
            faults.append(f"export.targets: `{name}` needs model.method: lora; `full` trains the weights themselves")
        elif target.needs_lora and quantized:
            faults.append(
                f"export.targets: `{name}` would be loaded on the base's own weights, and model.quantize trains it "
                "over quantised ones: export the merged model (export.targets=[hf])"
            )
    return faults


def unservable(
    targets: Iterable[str], config: Any, tokenizer: Any, contract: PromptContract, *, on_adapters: bool = False
) -> list[str]:
    """Faults of known targets for this base and prompt, one line for each, with the ways out.

    config: of the base, whose weights are not needed. on_adapters: the base is a folder of adapters itself.
    """
    known = [TARGETS[name] for name in targets]
    faults = _unserved_frames(known, contract)
    if not contract.in_pieces:
        faults += [
            f"export.targets: {t.name}: {fault}" for t in known for fault in t.refusals(config, tokenizer, contract)
        ]
    if on_adapters:
        faults += [
            f"export.targets: {target.name}: model.base is itself a folder of adapters, and adapters on top of others "
            "have no base that peft could load: export the merged model only (export.targets=[hf])"
            for target in known
            if target.needs_lora
        ]
    return faults


def refuse(faults: list[str]) -> None:
    """Raises UserErrors where there are faults."""
    if faults:
        raise UserErrors(faults)


def _unserved_frames(targets: list[Target], contract: PromptContract) -> list[str]:
    refused: dict[str, list[str]] = {}
    for target in targets:
        if not target.serves(contract):
            refused.setdefault(IN_PIECES if contract.in_pieces else target.why_not, []).append(target.name)
    faults = []
    for why, unable in refused.items():
        rest = ",".join(target.name for target in targets if target.name not in unable)
        without = f"without {'it' if len(unable) == 1 else 'them'}" if rest else "without exports"
        faults.append(
            f"export.targets: {', '.join(unable)}: {why.format(mode=contract.mode)}: train in another frame "
            f"(prompt.mode=portable) or {without} (export.targets=[{rest}])"
        )
    return faults
