"""Licences: what each permits, which models have which, and what the files of a local folder state."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from rankwright.common import resources
from rankwright.recipe.kinds import Section
from rankwright.recipe.yaml_file import read_yaml, validate

Commercial = Literal["yes", "no", "unknown"]
Date = Annotated[str, Field(pattern=r"^\d{4}-\d{2}(-\d{2})?$")]
# From the most permissive to the most restrictive: a doubt is worse than a yes, and a no settles it.
STRICTNESS: tuple[Commercial, ...] = ("yes", "unknown", "no")
UNKNOWN: Commercial = "unknown"
# The term of texts whose owner keeps all rights.
PROPRIETARY = "proprietary"
# Fewer digits do not identify a commit.
SHORTEST_REVISION = 7
# On the hub: the licence is named in another key.
OTHER = "other"
# Free text after a name, such as `CC-BY-4.0 (dataset, README "License"); code MIT`.
_REST = re.compile(r"\s*[(;].*", re.DOTALL)


class Term(Section):
    """A licence by its SPDX identifier, or one of ours. commercial: use of weights made from what it covers."""

    id: str
    aliases: tuple[str, ...] = ()
    commercial: Commercial
    share_alike: bool = False
    attribution: bool = False
    # Binds a model that is trained on the outputs of a model under it.
    flows_down: bool = False
    public_domain: bool = False
    # The owner keeps all rights, also those in weights made from it.
    reserved: bool = False
    hub: str
    note: str = ""
    source: str
    date: Date


class Terms(Section):
    terms: tuple[Term, ...]


class ModelStatement(Section):
    """The statement of a source about a model. revisions: the commits that it covers; None: all of them."""

    licence: str
    revisions: tuple[str, ...] | None = None
    source: str
    date: Date


class KnownModel(Section):
    """match: hub ids, with `*`. trained_on_noncommercial: data of the weights that forbid commercial use."""

    match: Annotated[tuple[str, ...], Field(min_length=1)]
    statements: tuple[ModelStatement, ...]
    trained_on_noncommercial: str = ""
    note: str = ""


class KnownModels(Section):
    models: tuple[KnownModel, ...]


@dataclass(frozen=True, slots=True)
class Statement:
    """The statement of one source about an input's licence; date: when it was read, where that is known."""

    licence: str
    commercial: Commercial
    source: str
    date: str | None = None

    @property
    def term(self) -> Term | None:
        """The licence in our table."""
        return find_term(self.licence)


@dataclass(frozen=True, slots=True)
class Known:
    """What is known about an input's licence. commercial: the most restrictive of all statements; unknown without any.

    advice: what settles it, where something can.
    """

    statements: tuple[Statement, ...]
    commercial: Commercial
    note: str = ""
    trained_on_noncommercial: str = ""
    advice: str = ""

    @property
    def licence(self) -> str:
        """The names of the licences as they are stated, each once."""
        return " and ".join(dict.fromkeys(s.licence for s in self.statements)) or UNKNOWN

    @property
    def conflicts(self) -> bool:
        """Whether sources differ about commercial use."""
        return len({s.commercial for s in self.statements}) > 1

    @property
    def terms(self) -> list[Term]:
        """The stated licences that are in our table."""
        return list({t.id: t for s in self.statements if (t := s.term) is not None}.values())


def find_term(name: str) -> Term | None:
    """A licence by identifier or alias, in any case, spaces for hyphens; None for one that we do not know."""
    return _terms().get(_key(name))


def term_names() -> list[str]:
    """The identifiers of all licences in our table."""
    return list(dict.fromkeys(term.id for term in _terms().values()))


def strictest(values: Iterable[Commercial]) -> Commercial:
    """The most restrictive one; unknown where there is none."""
    return max(values, key=STRICTNESS.index, default=UNKNOWN)


def state(licence: str, source: str, *, date: str | None = None, commercial: Commercial | None = None) -> Statement:
    """A statement; a licence in our table is never more permissive than there, an unknown one is as `commercial`."""
    term = find_term(licence)
    given = strictest(c for c in (commercial, None if term is None else term.commercial) if c is not None)
    return Statement(term.id if term is not None else licence, given, source, date)


def known(statements: Sequence[Statement], *, note: str = "", advice: str = "", trained_on: str = "") -> Known:
    """All statements about one input; where they differ the most restrictive one counts."""
    return Known(tuple(statements), strictest(s.commercial for s in statements), note, trained_on, advice)


def find_model(name: str, revision: str | None) -> Known | None:
    """What data/licences/models.yaml states about a model; None for a model that it does not list.

    A model that was relicensed is unknown without a revision, and at a revision that no statement is about.
    """
    for entry in _models():
        if any(fnmatchcase(name.casefold(), pattern.casefold()) for pattern in entry.match):
            return _model(entry, revision)
    return None


def _model(entry: KnownModel, revision: str | None) -> Known:
    about = [s for s in entry.statements if s.revisions is None or _is_among(revision, s.revisions)]
    bound = any(s.revisions is not None for s in entry.statements)
    trained_on = entry.trained_on_noncommercial
    if not bound or any(s.revisions is not None for s in about):
        said = [state(s.licence, s.source, date=s.date) for s in about]
        return known(said, note=entry.note, trained_on=trained_on)
    # Which statement is about these weights is not known, so none of them settles it.
    said = [state(s.licence, s.source, date=s.date) for s in entry.statements]
    known_ones = [f"{r} is {s.licence}" for s in entry.statements for r in s.revisions or ()]
    advice = f"name a revision whose licence is known ({', '.join(known_ones)})"
    why = "no revision is named" if revision is None else f"no statement is about revision {revision}"
    return Known(tuple(said), UNKNOWN, f"{entry.note}, and {why}", trained_on, advice)


def _is_among(revision: str | None, revisions: Iterable[str]) -> bool:
    if revision is None or len(revision) < SHORTEST_REVISION:
        return False
    return any(full.startswith(revision.lower()) for full in revisions)


@cache
def _terms() -> dict[str, Term]:
    found: dict[str, Term] = {}
    for term in validate(Terms, read_yaml(resources.data_dir() / "licences" / "terms.yaml")).terms:
        for name in (term.id, *term.aliases):
            assert found.get(_key(name), term) is term, f"terms.yaml: {name!r} is of two licences"
            found[_key(name)] = term
    return found


@cache
def _models() -> tuple[KnownModel, ...]:
    return validate(KnownModels, read_yaml(resources.data_dir() / "licences" / "models.yaml")).models


def _key(name: str) -> str:
    return "-".join(name.casefold().replace("_", " ").replace("-", " ").split())


def read_statements(path: Path) -> list[Statement]:
    """Statements in the files of a set or a model; for a file or a split's folder, also in SOURCE.json one level up."""
    folder = path if path.is_dir() else path.parent
    found = list(_readme(folder / "README.md"))
    source = folder / "SOURCE.json"
    if not source.is_file() and path.is_dir():
        source = folder.parent / "SOURCE.json"
    return [*found, *_source(source)]


def _readme(path: Path) -> Iterator[Statement]:
    """The keys `license` and `license_name` of the front matter."""
    matter = _front_matter(path)
    names = matter.get("license")
    names = names if isinstance(names, list) else [names]
    if matter.get("license_name") is not None and names in ([None], [OTHER]):
        names = [matter["license_name"]]
    for name in names:
        if isinstance(name, str) and name.strip():
            yield state(name.strip(), f"license in the front matter of {path.name}")


def _front_matter(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        matter = text.split("---\n", 2)[1] if text.startswith("---\n") and text.count("---\n") > 1 else ""
        # All values are read as text, also those that look like a number or a date.
        value = yaml.load(matter, Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        # The file is optional: without a licence in it, the input is reported as unknown.
        return {}
    return value if isinstance(value, dict) else {}


def _source(path: Path) -> Iterator[Statement]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return
    text = value.get("licence", value.get("license")) if isinstance(value, dict) else None
    if isinstance(text, str) and text.strip():
        name = _REST.sub("", text.removeprefix("data: ")).strip()
        yield state(name if find_term(name) is not None else text.strip(), f"licence in {path.name}")
