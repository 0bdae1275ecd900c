"""Fill a folder beside each target's place, prove all of them in a fresh process, and put the proven ones in place."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from rankwright.common import console
from rankwright.common.errors import UserError, UserErrors, one_line
from rankwright.common.files import atomic_folder
from rankwright.common.resources import resolve_base
from rankwright.export.card import CardFacts, write_card
from rankwright.export.golden import CHARACTERS_PER_TOKEN, within_bounds
from rankwright.export.privacy import Private, scan
from rankwright.export.proof.parity import PARITY_FILE, measure_fresh
from rankwright.export.proof.sums import write_sums
from rankwright.export.servable import impossible, refuse, unservable
from rankwright.export.target import Figures, Trained, Writer, portable_name
from rankwright.export.targets import TARGETS
from rankwright.export.weights import has_adapter
from rankwright.model.prompt import PromptContract


def export_targets(
    trained: Trained, targets: Mapping[str, Mapping[str, Any]], folder: Path, facts: CardFacts | None = None
) -> dict[str, Figures]:
    """Write folder/TARGET for each target (name -> options); the figures of each, as in its parity.json.

    facts: for the cards; title, name and licence of `trained` are taken from them. Raises ExportFailed, and leaves an
    earlier folder of the target in place, when a runtime does not reproduce the golden scores within the tolerance;
    the targets that are proven are in their places then. Raises UserErrors for what cannot be exported at all.
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
    """Fill a folder beside each folder/TARGET, check all of them in one fresh process, then put the proven in place.

    Golden pairs that hold a path or a key of this machine are left out and counted; any other file with one is refused.
    Raises ExportFailed where a target could not be written or proven; the others are in their places then.
    """
    # A hub id stays out: the adapter then names it, with its revision.
    found = resolve_base(trained.base_name)
    base = found if Path(found).is_dir() else None
    private = Private.of_this_machine(folder, *([Path(base)] if base is not None else []))
    pairs = within_bounds(trained.golden_pairs, trained.contract.max_tokens)
    if cut := sum(one != other for one, other in zip(pairs, trained.golden_pairs, strict=True)):
        most = CHARACTERS_PER_TOKEN * trained.contract.max_tokens
        console.say(f"  golden pairs: {cut} of {len(pairs)} are longer than {most:,} characters: their beginnings")
    # Texts of users may hold paths and keys.
    kept = [pair for pair in pairs if not private.in_text(*pair)]
    if lost := len(pairs) - len(kept):
        console.say(f"  golden pairs: {lost} of {len(pairs)} hold a path or a key: left out")
    trained = dataclasses.replace(trained, golden_pairs=kept)
    failed: dict[str, Exception] = {}
    figures: dict[str, Figures] = {}
    with ExitStack() as stack:
        drafts = {name: stack.enter_context(_draft(folder / name, failed)) for name in writers}
        for name, write in writers.items():
            with _noted(name, failed):
                figures[name] = write(trained, drafts[name])
        written = {name: draft for name, draft in drafts.items() if name not in failed}
        for name, report in _reports(written, trained.tolerance, base, failed).items():
            figures[name] |= report
            with _noted(name, failed):
                _complete(drafts[name], figures[name], trained, facts, private)
    proven = {name: figures[name] for name in writers if name not in failed}
    if failed:
        raise ExportFailed({name: failed[name] for name in writers if name in failed}, proven)
    return proven


class ExportFailed(UserErrors):
    """Targets that could not be written or proven, each with its reasons. proven: the figures of the others."""

    def __init__(self, failed: Mapping[str, Exception], proven: dict[str, Figures]) -> None:
        self.failed, self.proven = tuple(failed), proven
        lines = [(f"export {name}: ", line) for name, error in failed.items() for line in _lines(error)]
        super().__init__([start + line.removeprefix(start).removeprefix("export: ") for start, line in lines])


def _lines(error: Exception) -> list[str]:
    if isinstance(error, UserErrors):
        return error.messages
    if isinstance(error, UserError):
        return [str(error)]
    first = one_line((str(error).strip().splitlines() or [""])[0])
    return [f"cannot be written: {type(error).__name__}: {first}"]


@contextmanager
def _noted(name: str, failed: dict[str, Exception]) -> Iterator[None]:
    """An error inside is the target's failure and ends no other target."""
    try:
        yield
    except Exception as error:  # whatever a library raises on this base is the finding
        failed[name] = error


class _NotProven(Exception):
    """Ends the draft of a failed target."""


@contextmanager
def _draft(place: Path, failed: Mapping[str, Exception]) -> Iterator[Path]:
    """A folder that comes to its place at the end, unless its target has failed."""
    with suppress(_NotProven), atomic_folder(place) as draft:
        yield draft
        if place.name in failed:
            raise _NotProven


def _reports(
    drafts: Mapping[str, Path], tolerance: float, base: str | None, failed: dict[str, Exception]
) -> dict[str, Figures]:
    """The reports of the folders that are proven; the failures of the others are noted."""
    reports: dict[str, Figures] = {}
    try:
        reports = measure_fresh(drafts, tolerance, base) if drafts else {}
    except UserError:
        # One folder ended the process (a library that crashes, memory): it must not take the others with it.
        for name, draft in drafts.items():
            with _noted(name, failed):
                reports |= measure_fresh({name: draft}, tolerance, base)
    failed |= {name: UserErrors(report["failures"]) for name, report in reports.items() if report["failures"]}
    return {name: report for name, report in reports.items() if name not in failed}


def _complete(draft: Path, figures: Figures, trained: Trained, facts: CardFacts, private: Private) -> None:
    """parity.json, the cards, sums and permissions of a proven folder. Raises UserError where a file holds a secret."""
    text = json.dumps(figures, indent=2, ensure_ascii=False)
    (draft / PARITY_FILE).write_text(text + "\n", encoding="utf-8")
    # The folder's own: a target may have put the scale into its weights.
    contract = PromptContract.load(draft) or trained.contract
    base_name = portable_name(trained.base_name)
    write_card(draft, facts, contract, figures, base_name=base_name, revision=trained.revision)
    scan(draft, private)
    write_sums(draft)
    rights = draft.stat().st_mode & 0o777
    for path in draft.rglob("*"):
        # safetensors files are written 0600, which a server under another user cannot read where the umask
        # lets it read others.
        path.chmod(rights if path.is_dir() else rights & 0o666)
