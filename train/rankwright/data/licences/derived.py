"""The licence of an exported model, derived from the inputs of its weights; licences that stop a run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rankwright.common import console
from rankwright.common.errors import UserErrors
from rankwright.common.run_folder import RunFolder
from rankwright.data.licences.ledger import TAINTING, USE_WORDS, Input, Roles, faults, make_inputs, warning
from rankwright.data.licences.terms import UNKNOWN, Commercial, Statement, Term, find_term
from rankwright.data.sources import Located
from rankwright.recipe.export import LicenceRule
from rankwright.recipe.schema import Recipe

Sets = Mapping[str, Sequence[Located]]
OTHER = "other"
SEE_DECISIONS = "see-decisions"
FORBIDS = "forbids commercial use"


@dataclass(frozen=True, slots=True)
class Bond:
    """Terms that bind the weights. id: their name; hub: their name on the hub; why: a clause that follows the name."""

    id: str
    hub: str
    commercial: Commercial
    why: str


@dataclass(frozen=True, slots=True)
class Derived:
    """hub: `license` of a model card; name: its `license_name` where hub is `other`; why: one sentence per reason.

    attribution: whom the licences require to be named, one line per input.
    """

    hub: str
    name: str | None
    why: tuple[str, ...]
    attribution: tuple[str, ...]


def derive(inputs: Sequence[Input]) -> Derived:
    """The licence of weights made from the inputs; those that are only evaluated on do not count.

    - An input without a settled licence makes it `unknown`.
    - Terms that forbid commercial use, share-alike terms, terms that flow down to students, terms that are not in our
      table, and texts of one's own bind the weights; several at once are `other`, with all their names.
    - Otherwise it is the base's licence, or the data's where the base asks for nothing and the data for attribution.
    - A decision replaces terms that forbid commercial use; all other terms of the input's licence stay.
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
    binding = [(one, bond) for one in tainting for bond in _binding(one)]
    if binding:
        left = _absorbed(bond for _, bond in binding)
        why = [f"{one.name} ({_used(one)}) is under {bond.id}, {bond.why}" for one, bond in binding]
        hub, name = _named(left)
        why += _contradictions(left)
        return Derived(hub, name, (*why, *decided), credits)
    hub, name, why = _permissive(tainting)
    return Derived(hub, name, (*why, *decided), credits)


def _is_unsettled(one: Input) -> bool:
    """Whether it is unknown which terms hold. Known terms that leave commercial use open are settled."""
    if one.decision is not None or one.known.commercial != UNKNOWN:
        return False
    said = [(statement, statement.term) for statement in one.known.statements]
    open_terms = [term for statement, term in said if term is not None and term.commercial == statement.commercial]
    if one.known.conflicts or len(open_terms) < len(said):
        return True
    return not said or any(term.id == UNKNOWN for term in open_terms)


def _binding(one: Input) -> list[Bond]:
    """The terms of an input that bind the weights made from it."""
    decided = one.decision is not None
    # Where sources conflict only one of them is right, and the most restrictive one counts.
    statements = [s for s in one.known.statements if decided or s.commercial == one.known.commercial]
    # A decision replaces only terms that forbid commercial use: all others stay.
    return [bond for s in statements for bond in _bonds(s, one) if not decided or bond.commercial != "no"]


def _bonds(statement: Statement, one: Input) -> Iterator[Bond]:
    licence, term = statement.licence, statement.term
    if term is not None and _binds(term, one):
        yield Bond(term.id, term.hub, term.commercial, _reason(term))
    if statement.commercial == "no" and (term is None or term.commercial != "no"):
        yield Bond(licence if term is None else f"{licence} non-commercial", OTHER, "no", f"which {FORBIDS}")
    if statement.commercial == "yes" and term is None:
        # We have not read these terms: they may ask for anything.
        yield Bond(licence, OTHER, "yes", "whose terms we do not know")


def _binds(term: Term, one: Input) -> bool:
    if term.commercial == "no" or term.flows_down or (term.commercial != "yes" and "base" in one.uses):
        return True
    # A teacher's outputs are not an adaptation of the teacher.
    return (term.share_alike or term.reserved) and any(use in one.uses for use in ("base", "train", "dev"))


def _reason(term: Term) -> str:
    reasons = {"no": [FORBIDS], "unknown": ["has terms of its own"], "yes": []}[term.commercial]
    reasons += ["is share-alike"] if term.share_alike else []
    reasons += ["leaves all rights with its owner"] if term.reserved else []
    reasons += ["flows down to models made from it or from its outputs"] if term.flows_down else []
    return "which " + " and ".join(reasons)


def _absorbed(bonds: Iterable[Bond]) -> list[Bond]:
    """Each once: the newest version of Creative Commons, and non-commercial terms as part of share-alike ones."""
    newest: dict[str, Bond] = {}
    for bond in bonds:
        family = re.sub(r"^(CC-.*)-[\d.]+$", r"\1", bond.id)
        if family not in newest or bond.id > newest[family].id:
            newest[family] = bond
    if "CC-BY-NC-SA" in newest:
        newest.pop("CC-BY-NC", None)
    return list(newest.values())


def _contradictions(bonds: Iterable[Bond]) -> list[str]:
    """A sentence where some terms want the weights to be shared and others keep all rights."""
    terms = [term for bond in bonds if (term := find_term(bond.id)) is not None]
    if not (any(term.share_alike for term in terms) and any(term.reserved for term in terms)):
        return []
    return [
        "share-alike terms and rights that stay with an owner contradict each other: settle it before you pass it on"
    ]


def owned(ledger: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The sets that the weights are made from: those whose texts are the owner's, and local ones without a licence."""
    own, bare = [], []
    for one in ledger["inputs"]:
        if one["taints"] and one["kind"] == "data set":
            terms = [find_term(statement["licence"]) for statement in one["statements"]]
            if any(term is not None and term.reserved for term in terms):
                own.append(str(one["input"]))
            elif not terms and one["place"].startswith("path ") and one["decision"] is None:
                bare.append(str(one["input"]))
    return own, bare


def _named(terms: Sequence[Bond | Term]) -> tuple[str, str | None]:
    if len(terms) == 1 and terms[0].hub != OTHER:
        return terms[0].hub, None
    return OTHER, "-and-".join(sorted(re.sub(r"[^a-z0-9.]+", "-", term.id.lower()).strip("-") for term in terms))


def _permissive(tainting: Sequence[Input]) -> tuple[str, str | None, list[str]]:
    base = next(one for one in tainting if one.kind == "base")
    # A licence that a decision overrides cannot be handed on.
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


def licence_faults(recipe: Recipe, located: Sets, roles: Roles) -> list[str]:
    """What licence.require refuses before files are read, and decisions about inputs that the recipe does not have."""
    return _faults(make_inputs(recipe, located, roles), recipe, located)


def write_ledger(recipe: Recipe, located: Sets, roles: Roles, run: RunFolder) -> None:
    """licences.json before the files are read, and one line about doubtful licences."""
    inputs = make_inputs(recipe, located, roles)
    run.write_json(run.licences, ledger_json(inputs, recipe.licence))
    if doubts := warning(inputs, recipe.licence):
        console.say(doubts)


def settle_licences(recipe: Recipe, located: Sets, roles: Roles, run: RunFolder) -> dict[str, Any]:
    """licences.json after the data stage. Raises UserErrors where a set holds scores of a teacher that is refused."""
    teachers = run.facts("data").get("teacher_scores", [])
    inputs = make_inputs(recipe, located, roles, teachers)
    ledger = ledger_json(inputs, recipe.licence)
    run.write_json(run.licences, ledger)
    if found := _faults(inputs, recipe, located):
        raise UserErrors(found)
    return ledger


def _faults(inputs: Sequence[Input], recipe: Recipe, located: Sets) -> list[str]:
    return faults(inputs, recipe.licence, [entry.name for entry in located.get("train", ())])
