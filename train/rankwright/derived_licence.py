"""The licence of an exported model, derived from the inputs of its weights and never typed; the ledger as a file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rankwright.ledger import TAINTING, USE_WORDS, Input
from rankwright.licences import UNKNOWN, Term
from rankwright.recipe import LicenceRule

OTHER = "other"
SEE_DECISIONS = "see-decisions"


@dataclass(frozen=True, slots=True)
class Derived:
    """hub: `license` of a model card; name: its `license_name` where hub is `other`; why: a sentence a reason.

    attribution: whom the licences want named, a line an input.
    """

    hub: str
    name: str | None
    why: tuple[str, ...]
    attribution: tuple[str, ...]


def derive(inputs: Sequence[Input]) -> Derived:
    """The licence of weights made from the inputs; those that are only evaluated on do not count.

    - An input whose licence nobody settled makes it `unknown`.
    - Terms that forbid commercial use, share-alike terms, and terms that flow down to students bind the weights;
      several at once are `other`, with all their names.
    - Else it is the base's licence; where that asks for nothing and data ask for attribution, the data's.
    - A decision stands in place of terms that forbid commercial use; all else that an input's licence asks for stays.
    """
    tainting = [one for one in inputs if one.taints]
    credits = tuple(
        f"{one.name}: {one.known.licence}" + (f". {one.credit}" if one.credit not in ("", one.name) else "")
        for one in tainting
        if any(term.attribution for term in one.known.terms)
    )
    decided = [
        f"{one.name}: commercial use {one.known.commercial}, overridden by {one.decision.by}: {one.decision.why}"
        for one in tainting
        if one.decision is not None and one.known.commercial != "yes"
    ]
    unsettled = [one for one in tainting if _is_unsettled(one)]
    if unsettled:
        why = [f"{one.name} ({_used(one)}) has no settled licence: {one.stated}" for one in unsettled]
        return Derived(UNKNOWN, None, (*why, *decided), credits)
    binding = [(one, term) for one in tainting for term in _binding(one)]
    if binding:
        left = _absorbed(term for _, term in binding)
        why = [f"{one.name} ({_used(one)}) is under {term.id}, {_reason(term)}" for one, term in binding]
        hub, name = _named(left)
        return Derived(hub, name, (*why, *decided), credits)
    hub, name, why = _permissive(tainting)
    return Derived(hub, name, (*why, *decided), credits)


def _is_unsettled(one: Input) -> bool:
    """Whether nobody said which terms hold. Known terms that leave commercial use open are terms all the same."""
    if one.decision is not None or one.known.commercial != UNKNOWN:
        return False
    said = [(statement, statement.term) for statement in one.known.statements]
    open_terms = [term for statement, term in said if term is not None and term.commercial == statement.commercial]
    if one.known.conflicts or len(open_terms) < len(said):
        return True
    return not said or any(term.id == UNKNOWN for term in open_terms)


def _binding(one: Input) -> list[Term]:
    """Terms of an input that weights made from it are bound by, beside its base's own."""
    terms = [term for term in one.known.terms if _binds(term, one)]
    if one.decision is not None:
        return [term for term in terms if term.commercial != "no"]
    # Where sources conflict only one of them is right, and the most restrictive one counts.
    strictest = {s.licence for s in one.known.statements if s.commercial == one.known.commercial}
    return [term for term in terms if term.id in strictest]


def _binds(term: Term, one: Input) -> bool:
    if term.commercial == "no" or term.flows_down or (term.commercial != "yes" and "base" in one.uses):
        return True
    # What a teacher says is no adaptation of the teacher.
    return term.share_alike and any(use in one.uses for use in ("base", "train", "dev"))


def _reason(term: Term) -> str:
    reasons = {"no": ["forbids commercial use"], "unknown": ["has terms of its own"], "yes": []}[term.commercial]
    reasons += ["is share-alike"] if term.share_alike else []
    reasons += ["flows down to models made from it or from its outputs"] if term.flows_down else []
    return "which " + " and ".join(reasons)


def _absorbed(terms: Iterable[Term]) -> list[Term]:
    """One term a family, the newest version; non-commercial terms are kept by non-commercial share-alike ones."""
    newest: dict[str, Term] = {}
    for term in terms:
        family = re.sub(r"-[\d.]+$", "", term.id)
        if family not in newest or term.id > newest[family].id:
            newest[family] = term
    if "CC-BY-NC-SA" in newest:
        newest.pop("CC-BY-NC", None)
    return list(newest.values())


def _named(terms: Sequence[Term]) -> tuple[str, str | None]:
    if len(terms) == 1 and terms[0].hub != OTHER:
        return terms[0].hub, None
    return OTHER, "-and-".join(sorted(term.id.lower() for term in terms))


def _permissive(tainting: Sequence[Input]) -> tuple[str, str | None, list[str]]:
    base = next(one for one in tainting if one.kind == "base")
    # What a decision overrode is no licence that could be handed on.
    terms = [term for term in base.known.terms if term.id != UNKNOWN and term.commercial == "yes"]
    if not terms or (base.decision is not None and base.known.commercial != "yes"):
        return OTHER, SEE_DECISIONS, [f"{base.name} (the base) may be used by decision, not by a licence of its own"]
    asking = [(one, term) for one in tainting for term in one.known.terms if term.attribution]
    if all(term.public_domain for term in terms) and asking:
        one, term = asking[0]
        return (*_named([term]), [f"{one.name} ({_used(one)}) is under {term.id}, which asks for attribution"])
    return (*_named(terms), [f"{base.name} (the base) is under {base.known.licence}, and nothing else binds more"])


def _used(one: Input) -> str:
    return ", ".join(USE_WORDS[use] for use in one.uses if use in TAINTING)


def ledger_json(inputs: Sequence[Input], rule: LicenceRule) -> dict[str, Any]:
    """licences.json: the rule, the derived licence, and every input."""
    return {
        "require": rule.require,
        "licence": asdict(derive(inputs)),
        "inputs": [one.as_json(rule.require) for one in inputs],
    }


def public(ledger: dict[str, Any]) -> dict[str, Any]:
    """The ledger as a model card shows it: without paths of this machine."""
    rows = [one | {"place": "a folder"} if one["place"].startswith("path ") else one for one in ledger["inputs"]]
    return ledger | {"inputs": rows}


def hub_sets(ledger: dict[str, Any]) -> list[str]:
    """Hub ids of the sets that the weights were trained on."""
    return list(dict.fromkeys(one["hub"] for one in ledger["inputs"] if "train" in one["use"] and one["hub"]))
