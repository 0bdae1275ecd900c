"""The licence ledger of a run: its inputs with their licences, sources and uses, and what they permit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rankwright.common.errors import UserError, did_you_mean, no_such
from rankwright.common.files import read_json_object
from rankwright.common.lineage import loaded_export, run_around
from rankwright.common.resources import FIXTURES, expand, resolve_base, resolve_path
from rankwright.common.run_folder import RunFolder
from rankwright.data.cards import cards_at
from rankwright.data.licences.terms import (
    Known,
    Statement,
    find_model,
    find_term,
    known,
    read_statements,
    state,
    strictest,
    term_names,
)
from rankwright.data.sources import Located
from rankwright.recipe.export import Decision, LicenceRule
from rankwright.recipe.pretrain import Pretrain
from rankwright.recipe.schema import Baseline, Recipe
from rankwright.recipe.sources import DevFromTrain
from rankwright.recipe.synthesize import Synthesize
from rankwright.recipe.teacher import Judge

# What an input is: base, data set, teacher, baseline, or what a retriever calls its model (`dense model`).
Kind = str
# (kind, model, revision, whether its lists are mined or reranked on dev) of a model that a first stage uses.
Ordering = tuple[Kind, str, str | None, bool]
# base: the weights start there. dev: chooses the checkpoint and the temperature. mine: orders or drops candidates only.
Use = Literal["base", "train", "dev", "distil", "mine", "evaluate"]
USES: tuple[Use, ...] = ("base", "train", "dev", "distil", "mine", "evaluate")
# Uses through which an input reaches the exported weights.
TAINTING: tuple[Use, ...] = ("base", "train", "dev", "distil")
USE_WORDS = {"base": "the base", "train": "trained on", "dev": "chooses the weights", "distil": "distilled from"}
USE_WORDS |= {"mine": "orders or drops candidates", "evaluate": "evaluated only"}
NOTHING_KNOWN = "its licence is stated nowhere"


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a run. name, place (the card, hub id, path or address): either may stand in a decision.

    credit: whom to name, where the licence wants that. hub: its id there, if any. of: the set whose texts it holds.
    """

    name: str
    kind: Kind
    place: str
    revision: str | None
    uses: tuple[Use, ...]
    known: Known
    credit: str = ""
    hub: str | None = None
    decision: Decision | None = None
    of: str = ""

    @property
    def names(self) -> list[str]:
        """What a decision may call it."""
        return [name for name in (self.name, self.place.partition(" ")[2], self.of) if name]

    @property
    def taints(self) -> bool:
        """Whether its terms reach the exported weights."""
        return any(use in TAINTING for use in self.uses)

    @property
    def commercial(self) -> str:
        """Commercial use as stated; a statement that a decision overrides stays visible."""
        if self.decision is None or self.known.commercial == "yes":
            return self.known.commercial
        return f"{self.known.commercial}, {'overridden' if self.known.commercial == 'no' else 'decided'}"

    @property
    def stated(self) -> str:
        """The statements in words, each with its source."""
        said = [f"{s.source} ({s.date})" if s.date else s.source for s in self.known.statements]
        if self.known.conflicts:
            said = [f"{s.licence}: {text}" for s, text in zip(self.known.statements, said, strict=True)]
        return "; ".join([*said, *([self.known.note] if self.known.note else [])]) or NOTHING_KNOWN

    def refused_by(self, require: str | None) -> str | None:
        """Why `licence.require` refuses it; None where it does not."""
        if require is None or not self.taints or self.decision is not None:
            return None
        if self.known.commercial != "yes":
            conflict = ", and statements differ" if self.known.conflicts else ""
            return f"licence {self.known.licence}, commercial use {self.known.commercial}{conflict} ({self.stated})"
        if require == "commercial-strict" and self.known.trained_on_noncommercial:
            return f"its own training data forbid commercial use: {self.known.trained_on_noncommercial}"
        return None

    def as_json(self, require: str | None) -> dict[str, Any]:
        """The input as it stands in licences.json."""
        return {
            "input": self.name,
            "kind": self.kind,
            "place": self.place,
            "hub": self.hub,
            "revision": self.revision,
            "use": list(self.uses),
            "licence": self.known.licence,
            "commercial": self.commercial,
            "stated_by": self.stated,
            "statements": [asdict(statement) for statement in self.known.statements],
            "trained_on_noncommercial": self.known.trained_on_noncommercial or None,
            "taints": self.taints,
            "refused": self.refused_by(require),
            "credit": self.credit or None,
            "decision": None if self.decision is None else self.decision.model_dump(),
        }


@dataclass(frozen=True, slots=True)
class Roles:
    """What the rooms above know of a recipe's inputs.

    distils: whether the loss learns from the scores of mine.teacher. orderings: the models of first stages.
    """

    distils: bool = False
    orderings: Sequence[Ordering] = ()


def make_inputs(
    recipe: Recipe, located: Mapping[str, Sequence[Located]], roles: Roles, teachers: Sequence[str] = ()
) -> list[Input]:
    """All inputs of a recipe, each once with all its uses, with the decisions about them.

    located: split -> sets. teachers: names of training sets that turned out to hold a teacher's scores.
    """
    found: list[Input] = [_model("base", recipe.model.base, recipe.model.revision, ("base",))]
    for split, entries in located.items():
        use: Use = "evaluate" if split == "test" else "dev" if split == "dev" else "train"
        # Queries that are taken out of train choose the checkpoint.
        from_train = split == "train" and isinstance(recipe.data.dev, DevFromTrain)
        uses: tuple[Use, ...] = (use, "dev") if from_train else (use,)
        for entry in entries:
            if entry.source.synthesized is not None and recipe.synthesize is not None:
                found += _written(recipe.synthesize, uses)
            elif entry.pairs is not None:
                found += _of_pairs(entry, uses)
            else:
                found += _with_judgements(_set(entry, uses), entry)
    if recipe.pretrain is not None:
        found += _texts(recipe.pretrain)
    if recipe.mine.teacher is not None:
        # Its scores replace those in the sets, which are then not read.
        found += _own_teacher(recipe, recipe.mine.teacher, roles.distils)
    elif recipe.pairs is not None:
        found += [_judge(judge) for judge in recipe.pairs.judges]
    else:
        found += [_teacher(entry) for entry in located.get("train", ()) if entry.name in teachers]
    for what, model, model_revision, mines in roles.orderings:
        found.append(_model(what, model, model_revision, ("mine", "evaluate") if mines else ("evaluate",)))
    # What scores are trained on starts from its scores.
    prior = None if recipe.pairs is None else recipe.pairs.fit.prior_baseline
    for baseline in recipe.evaluate.baselines:
        served = baseline.kind == "served"
        shares: tuple[Use, ...] = ("distil", "evaluate") if baseline.name == prior else ("evaluate",)
        found.append(_model("baseline", baseline.model, baseline.revision, shares, served=served))
    decisions = recipe.licence.decisions
    return [replace(one, decision=next((d for d in decisions if d.input in one.names), None)) for one in _merged(found)]


def _merged(inputs: Sequence[Input]) -> list[Input]:
    """Equal inputs as one, with the uses of all."""
    found: dict[tuple[object, ...], Input] = {}
    for one in inputs:
        key = (one.name, one.kind, one.place, one.revision, one.known)
        uses = {*one.uses, *(found[key].uses if key in found else ())}
        found[key] = replace(one, uses=tuple(use for use in USES if use in uses))
    return list(found.values())


def _set(entry: Located, uses: tuple[Use, ...]) -> Input:
    source, credit, hub = entry.source, "", None
    typed = [] if source.licence is None else [state(source.licence, "the recipe")]
    revision = entry.revision
    if entry.card is not None:
        place, facts, credit = f"card {entry.card.name}", entry.card.known, entry.card.citation
        if entry.card.hub is not None:
            hub, revision = entry.card.hub.id, revision or entry.card.hub.revision
            # A user's own card cannot override our card of the same set.
            ours = [card for card in cards_at(hub) if card != entry.card]
            facts = known([*facts.statements, *(s for card in ours for s in card.known.statements)])
    elif entry.hub is not None:
        local = Path(entry.hub).is_dir()
        hub = None if local else entry.hub
        place, cards = f"{'path' if local else 'hub'} {entry.hub}", [] if local else cards_at(entry.hub)
        facts = known([s for card in cards for s in card.known.statements])
        if cards:
            note = f"by the card{'s' if len(cards) > 1 else ''} {', '.join(c.name for c in cards)}"
            facts, credit = replace(facts, note=note), cards[0].citation
        elif local:
            facts = known(read_statements(Path(entry.hub)))
    else:
        assert entry.path is not None
        place, facts = f"path {source.path}", known(read_statements(entry.path))
    statements = [*typed, *facts.statements]
    facts = replace(facts, statements=tuple(statements), commercial=strictest(s.commercial for s in statements))
    return Input(entry.name, "data set", place, revision, uses, facts, credit or entry.name, hub)


def _written(settings: Synthesize, uses: tuple[Use, ...]) -> list[Input]:
    """The inputs of written queries: the documents that they are about, and the model that wrote them."""
    found = [_documents(source.path, source.licence, "documents", uses) for source in settings.documents]
    writer = settings.writer
    if writer is not None:
        said = [] if writer.licence is None else [state(writer.licence, "the recipe")]
        note = "" if said else "state the terms of its outputs as licence of synthesize.writer"
        place = f"{'model' if writer.url is None else 'served'} {writer.model}"
        found.append(Input(writer.model, "writer", place, None, ("distil",), known(said, note=note), writer.model))
    return found


def _texts(settings: Pretrain) -> list[Input]:
    """The texts that the base is pre-trained on; the weak pairs are among the sets."""
    return [_documents(one.path, one.licence, "text", ("train",)) for one in settings.texts.values()]


def _documents(path_text: str, licence: str | None, kind: str, uses: tuple[Use, ...]) -> Input:
    """Documents without queries. Two folders called `train` are different documents."""
    try:
        path = resolve_path(path_text, root=None)
    except UserError:
        # Reported elsewhere, with its key.
        path = expand(path_text)
    typed = [] if licence is None else [state(licence, "the recipe")]
    statements = [*typed, *read_statements(path)]
    name = f"{kind} {'/'.join(path.parts[-2:])}"
    return Input(name, "data set", f"path {path_text}", None, uses, known(statements), path.name)


def _with_judgements(one: Input, entry: Located) -> list[Input]:
    """The set, and the judgements that are laid over it: these hold its texts, under its licence."""
    if entry.judgements is None:
        return [one]
    note = "; ".join(text for text in (one.known.note, f"as the set {one.name}, whose texts it holds") if text)
    place = f"path {entry.source.judgements}"
    name, facts = f"judgements of {one.name}", replace(one.known, note=note)
    return [one, Input(name, "judgements", place, None, one.uses, facts, one.credit, of=one.name)]


def _teacher(entry: Located) -> Input:
    """The maker of a set's scores, as its card states; otherwise unknown."""
    name = None if entry.card is None else entry.card.teacher
    if name is None:
        facts = known([], note="the file does not state whose scores it holds")
        return Input(teacher_name(entry.name), "teacher", "unknown", None, ("distil",), facts)
    facts = find_model(name, None) or known([])
    return Input(teacher_name(entry.name), "teacher", f"hub {name}", None, ("distil",), facts, name)


def _of_pairs(entry: Located, uses: tuple[Use, ...]) -> list[Input]:
    """What the pairs of a run were made of, as its ledger has it: the sets with the texts, and the judges.

    Decisions of that run's recipe do not count here. Without its ledger nothing is known.
    """
    assert entry.pairs is not None
    ledger = read_json_object(RunFolder(entry.pairs).licences) or {}
    learns = any(use in TAINTING for use in uses)
    found = []
    try:
        for row in ledger.get("inputs", ()):
            if row["kind"] == "judge":
                found.append(_as_there(row, entry, ("distil",) if learns else uses))
            elif "train" in row["use"]:
                found.append(_as_there(row, entry, uses))
    except (KeyError, TypeError):
        found = []
    return found or [Input(entry.name, "data set", f"path {entry.source.pairs}", None, uses, known([]), entry.name)]


def _as_there(row: Mapping[str, Any], entry: Located, uses: tuple[Use, ...]) -> Input:
    """An input of the ledger of another run."""
    said = [Statement(**one) for one in row["statements"]]
    note = f"as the ledger of {entry.name} has it, whose judges compared its texts"
    facts = known(said, note=note, trained_on=row["trained_on_noncommercial"] or "")
    name, place, credit = row["input"], row["place"], row["credit"] or ""
    return Input(name, row["kind"], place, row["revision"], uses, facts, credit, row["hub"])


def _judge(judge: Judge) -> Input:
    """A judge of teacher.pairs: what its answers may be used for is stated by the recipe, or nowhere.

    A server may call any model by any name, so the name settles nothing. A student's export states its licence, which
    was derived from what it was trained with: texts, and answers of other judges.
    """
    if judge.kind == "pairwise":
        return _student(judge)
    said = [] if judge.licence is None else [state(judge.licence, "the recipe")]
    note = "" if said else f"a served model: state the terms of its outputs as licence of the judge {judge.name}"
    return Input(judge.model, "judge", f"served {judge.model}", None, ("distil",), known(said, note=note), judge.model)


def _student(judge: Judge) -> Input:
    typed = [] if judge.licence is None else [state(judge.licence, "the recipe")]
    try:
        folder = Path(loaded_export(resolve_base(judge.model, "model")))
    except UserError:
        # Reported elsewhere, with its key.
        return Input(judge.model, "judge", f"path {judge.model}", None, ("distil",), known(typed), judge.model)
    run = run_around(folder)
    ledger = {} if run is None else read_json_object(run.licences) or {}
    made_of = [f"{row['input']} ({row['kind']}, {row['licence']})" for row in ledger.get("inputs", ()) if row["taints"]]
    note = f"a student, trained from {', '.join(made_of)}" if made_of else "a student"
    facts = known([*typed, *read_statements(folder)], note=note)
    return Input(judge.name, "judge", f"path {judge.model}", None, ("distil",), facts, judge.name)


def _own_teacher(recipe: Recipe, teacher: Baseline, distils: bool) -> list[Input]:
    """mine.teacher, and the base that it names when it is an adapter.

    Both are distilled from where the teacher's scores, or labels made from them, are trained on; otherwise they only
    order or drop candidates.
    """
    above = recipe.mine.filters.get("teacher", {}).get("above", "drop")
    use: Use = "distil" if above != "drop" or distils else "mine"
    found = [_model("teacher", teacher.model, teacher.revision, (use,), served=teacher.kind == "served")]
    base = teacher.options.get("base")
    return [*found, *([_model("teacher", base, None, (use,))] if isinstance(base, str) else [])]


def teacher_name(set_name: str) -> str:
    """What decisions call the maker of a set's teacher scores."""
    return f"teacher of {set_name}"


def _model(kind: Kind, name: str, revision: str | None, uses: tuple[Use, ...], *, served: bool = False) -> Input:
    if served:
        return Input(name, kind, f"served {name}", None, uses, known([], note="a service with terms of its own"))
    folder = _folder(name)
    facts = find_model(name, revision)
    if facts is None:
        facts = known([] if folder is None else read_statements(folder))
    if folder is None:
        return Input(name, kind, f"hub {name}", revision, uses, facts, name, name)
    # Only the folder's own name: the lines of the ledger also stand in the model card.
    shown = name if name.startswith(FIXTURES) else folder.resolve().name
    return Input(shown, kind, f"path {name}", revision, uses, facts, shown)


def _folder(model: str) -> Path | None:
    try:
        folder = Path(resolve_base(model))
    except UserError:
        # Reported elsewhere, with its key.
        return None
    return folder if folder.is_dir() else None


def faults(inputs: Sequence[Input], rule: LicenceRule, train_sets: Sequence[str] = ()) -> list[str]:
    """What the rule refuses, and faulty decisions: one line each, with the way out.

    train_sets: sets whose teacher a decision may name before their files are read.
    """
    return [*_refusals(inputs, rule), *_decision_faults(inputs, rule, [teacher_name(s) for s in train_sets])]


def _refusals(inputs: Sequence[Input], rule: LicenceRule) -> Iterator[str]:
    for one in inputs:
        why = one.refused_by(rule.require)
        if why is None or one.of:
            # The line about the set settles both.
            continue
        used = ", ".join(USE_WORDS[use] for use in one.uses if use in TAINTING)
        what = "model.base" if one.kind == "base" else one.kind
        strange = [s.licence for s in one.known.statements if find_term(s.licence) is None and s.source == "the recipe"]
        typo = did_you_mean(strange[0], term_names()) if strange else ""
        other = f"{one.known.advice}, use another one" if one.known.advice else "use another one"
        yield (
            f"licence.require: {rule.require}: {what} {one.name!r} ({used}): "
            f"{why}{typo}: {other}, or state who decided and why: licence.decisions=[{{input: {one.name}, by: NAME, "
            "why: REASON}]"
        )


def _decision_faults(inputs: Sequence[Input], rule: LicenceRule, others: Sequence[str]) -> Iterator[str]:
    names = list(dict.fromkeys([name for one in inputs for name in one.names]))
    seen: dict[str, int] = {}
    decided: dict[str, int] = {}
    for number, decision in enumerate(rule.decisions):
        key = f"licence.decisions.{number}"
        if decision.input not in (*names, *others):
            yield f"{key}.input: {no_such('input', decision.input, [*names, *others])}"
        first = seen.setdefault(decision.input, number)
        if first != number:
            yield f"{key}.input: {decision.input!r} is also that of licence.decisions.{first}: keep one"
        for one in inputs if first == number else ():
            # Only the first of two would be kept, and the other would be ignored silently.
            if decision.input in one.names and (other := decided.setdefault(one.name, number)) != number:
                yield f"{key}.input: {decision.input!r} is {one.name!r}, that of licence.decisions.{other}: keep one"
        for field in ("by", "why"):
            if not getattr(decision, field).strip():
                yield f"{key}.{field}: is blank: fill it in, it is kept in the ledger and in the model card"


def warning(inputs: Sequence[Input], rule: LicenceRule) -> str | None:
    """A line about inputs that are not cleared for commercial use, where the recipe requires nothing.

    A set without any licence is a note that names what to write: a local one is mostly the user's own.
    """
    doubtful = [one for one in inputs if one.refused_by("commercial") is not None and not one.of]
    if rule.require is not None or not doubtful:
        return None
    bare = [one for one in doubtful if one.kind == "data set" and not one.known.statements]
    ways = {"if the texts are yours, write `licence: own` there": True, "write `licence: NAME` there": False}
    notes = [
        f"no licence is stated for {', '.join(names)}: {way}"
        for way, local in ways.items()
        if (names := [one.name for one in bare if one.place.startswith("path ") is local])
    ]
    note = "; ".join(notes)
    doubtful = [one for one in doubtful if one not in bare]
    if not doubtful:
        return note
    shown = ", ".join(f"{one.name} ({one.known.commercial}: {one.known.licence})" for one in doubtful)
    return (
        f"WARNING: not cleared for commercial use: {shown}; sources in licences.json; "
        "licence.require=commercial refuses" + (f". Also, {note}" if bare else "")
    )
