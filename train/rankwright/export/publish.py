"""Fill a folder beside each target's place, prove all of them in a fresh process, and only then put them in place."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rankwright.common import console
from rankwright.common.errors import UserError
from rankwright.common.files import atomic_folder
from rankwright.common.resources import resolve_base
from rankwright.export.card import CardFacts, write_card
from rankwright.export.privacy import Private, scan
from rankwright.export.proof.parity import PARITY_FILE, check_folders
from rankwright.export.servable import impossible, refuse, unservable
from rankwright.export.target import Figures, Trained, Writer, portable_name
from rankwright.export.targets import TARGETS
from rankwright.export.weights import has_adapter
from rankwright.model.prompt import PromptContract


def export_targets(
    trained: Trained, targets: Mapping[str, Mapping[str, Any]], folder: Path, facts: CardFacts | None = None
) -> dict[str, Figures]:
    """Write folder/TARGET for each target (name -> options); the figures of each, as in its parity.json.

    facts: for the cards; title, name and licence of `trained` are taken from them. Raises UserError, and leaves an
    earlier folder of the target in place, when a runtime does not reproduce the golden scores within the tolerance.
    """
    refuse(impossible(targets, lora=has_adapter(trained.model)))
    refuse(unservable(targets, trained.model.causal_lm.config, trained.tokenizer, trained.contract))
    facts = facts or CardFacts()
    licence = None if facts.ledger is None else facts.ledger["licence"]
    trained = dataclasses.replace(
        trained,
        title=facts.title,
        name=facts.name,
        licence=None if licence is None else (licence["hub"], licence["name"]),
    )
    writers = {name: TARGETS[name].bind(options) for name, options in targets.items()}
    return publish(folder, trained, writers, facts)


def publish(folder: Path, trained: Trained, writers: Mapping[str, Writer], facts: CardFacts) -> dict[str, Figures]:
    """Fill a folder beside each folder/TARGET, check all of them in one fresh process, then put them in place.

    Golden pairs that hold a path or a key of this machine are left out and counted; any other file with one is refused.
    """
    # A hub id stays out: the adapter then names it, with its revision.
    found = resolve_base(trained.base_name)
    base = found if Path(found).is_dir() else None
    private = Private.of_this_machine(folder, *([Path(base)] if base is not None else []))
    # Texts of users may hold paths and keys.
    kept = [pair for pair in trained.golden_pairs if not private.in_text(*pair)]
    if lost := len(trained.golden_pairs) - len(kept):
        console.say(f"  golden pairs: {lost} of {len(trained.golden_pairs)} hold a path or a key: left out")
    trained = dataclasses.replace(trained, golden_pairs=kept)
    with ExitStack() as stack:
        drafts = {name: stack.enter_context(atomic_folder(folder / name)) for name in writers}
        figures = {name: write(trained, drafts[name]) for name, write in writers.items()}
        reports = check_folders(drafts, trained.tolerance, base)
        for name, draft in drafts.items():
            figures[name] |= reports[name]
            text = json.dumps(figures[name], indent=2, ensure_ascii=False)
            (draft / PARITY_FILE).write_text(text + "\n", encoding="utf-8")
            # The folder's own: a target may have put the scale into its weights.
            contract = PromptContract.load(draft) or trained.contract
            base_name = portable_name(trained.base_name)
            write_card(draft, facts, contract, figures[name], base_name=base_name, revision=trained.revision)
            rights = draft.stat().st_mode & 0o777
            for path in draft.rglob("*"):
                # safetensors files are written 0600, which a server under another user cannot read where the umask
                # lets it read others.
                path.chmod(rights if path.is_dir() else rights & 0o666)
            try:
                scan(draft, private)
            except UserError as error:
                raise UserError(f"export {name}: {error}") from None
    return figures
