"""README.md of an exported folder: what it is, how to load it, the prompt, the figures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankwright.derived_licence import hub_sets, public
from rankwright.export.causal import LOGIT_SCORE, vllm_overrides
from rankwright.prompts import PromptContract

EXAMPLE = ("what is a bond?", "A bond is a loan that an investor makes to a company.")


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What only the caller of an export knows.

    calibration: calibration.json; gate: gate.json, where the recipe has a gate; ledger: licences.json, without which
    the card states no licence.
    """

    title: str = "Reranker"
    figures: Mapping[str, str | float | int] = field(default_factory=dict)
    calibration: Mapping[str, Any] | None = None
    gate: Mapping[str, Any] | None = None
    ledger: dict[str, Any] | None = None


def write_card(
    folder: Path,
    facts: CardFacts,
    contract: PromptContract,
    parity: Mapping[str, Any],
    *,
    base_name: str,
    revision: str | None,
) -> None:
    """Write README.md; last of all files, since peft writes one of its own when it saves."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("rankwright", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # A bar or a line break would end the cell of a table.
    environment.filters["cell"] = lambda text: " ".join(str(text).split()).replace("|", "\\|")
    text = environment.get_template("model_card.md.j2").render(
        title=facts.title,
        ledger=None if facts.ledger is None else public(facts.ledger),
        hub_sets=[] if facts.ledger is None else hub_sets(facts.ledger),
        figures=dict(facts.figures),
        calibration=facts.calibration,
        gate=facts.gate,
        contract=contract,
        **_words(contract),
        parity=parity,
        base_name=base_name,
        revision=revision,
        # `base_model` must be a hub id; a fixture of this package is none.
        hub_base=re.fullmatch(r"(?!fixtures/)[\w.-]+/[\w.-]+", base_name) is not None,
        adapter=(folder / "adapter_config.json").is_file(),
        vllm_overrides=vllm_overrides(folder, contract) if (folder / LOGIT_SCORE).is_dir() else None,
        control_token=next(iter(re.findall(r"<\|\w+\|>", contract.suffix)), "<|im_end|>"),
        query=EXAMPLE[0],
        document=EXAMPLE[1],
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _words(contract: PromptContract) -> dict[str, str]:
    """How a card names the scored tokens, what to take of the logits, and the score."""
    yes, times = f"`{contract.yes_token}` {contract.yes_id}", "" if contract.scale == 1 else f"{contract.scale:g} * "
    if contract.no_id is None:
        words = (f"token ({yes})", f"`{times}logits[yes]`", f"`{times}W[{contract.yes_token}] . h`")
    else:
        difference = f"`{times}(W[{contract.yes_token}] - W[{contract.no_token}]) . h`"
        logits = f"{times}(logits[yes] - logits[no])" if times else "logits[yes] - logits[no]"
        words = (f"tokens ({yes}, `{contract.no_token}` {contract.no_id})", f"`{logits}`", difference)
    return dict(zip(("scored_tokens", "logit", "score"), words, strict=True))
