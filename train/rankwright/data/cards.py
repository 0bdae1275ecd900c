"""Dataset cards: what a set is, where its files are, its splits, and its licence with source and date."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rankwright.common import resources
from rankwright.common.errors import UserError, no_such
from rankwright.data.formats.reading import check_columns
from rankwright.data.licences.terms import Commercial, Date, Known, known, state
from rankwright.recipe.kinds import Section
from rankwright.recipe.yaml_file import read_yaml, validate

Split = Literal["train", "dev", "test"]


class CardStatement(Section):
    """The statement of one source. Cards put commercial in quotes: a bare yes is a boolean in YAML 1.1."""

    name: str
    commercial: Commercial
    source: str
    date: Date


class Licence(CardStatement):
    """A licence as a fact: statements conflict and sets are relicensed, so each has a source and a date.

    others: statements of other sources about the same data. The most restrictive statement counts, so a tag that is
    known to be wrong stands here only when it is the stricter one; otherwise the text of `source` mentions it.
    """

    others: tuple[CardStatement, ...] = ()


class Nested(Section):
    """Columns of rows that hold a question with its passages; title and text are columns of a passage."""

    query: str
    query_id: str
    passages: str
    title: str
    text: str


class Hub(Section):
    """A set on the hub. corpus, queries and qrels are configurations; the qrels have the splits.

    layout beir: corpus `_id, title, text`; queries `_id, text`; qrels `query-id, corpus-id, score`.
    qrels_repo is the set that holds the qrels, when it is another one. layout nested: one table, with `nested`.
    layout rows: the tables of one `config`, in any row format; columns: our name -> the set's.
    """

    id: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    revision: str | None = None
    layout: Literal["beir", "nested", "rows"] = "beir"
    nested: Nested | None = None
    config: str | None = None
    columns: dict[str, str] = Field(default={})
    corpus: str = "corpus"
    queries: str = "queries"
    qrels: str = "default"
    qrels_repo: str | None = None

    @model_validator(mode="after")
    def _columns_of_layout(self) -> Hub:
        if (self.layout == "nested") != (self.nested is not None):
            raise ValueError("layout: nested needs `nested` with its columns, and no other layout has it")
        if self.layout != "rows" and (self.config is not None or self.columns):
            raise ValueError("config, columns: only with layout: rows")
        check_columns(self.columns)
        return self

    @classmethod
    def at(cls, id: str, revision: str | None) -> Hub:
        """A set of which only the place is known: an id, or a local folder of the same form."""
        # A folder's path does not match the pattern of an id.
        return cls.model_construct(id=id, revision=revision)


class Card(Section):
    """One set. path is a BEIR folder relative to data.root; hub a set to be downloaded; exactly one of them.

    splits: name in a recipe -> name in the files (`qrels_NAME.tsv` or `qrels/NAME.tsv`) or on the hub.
    group_key: the column of the queries whose equal values must stay in one split; null where queries are
    only bound by the relevant documents they share.
    """

    name: str
    title: str
    domain: Literal["finance", "legal", "code", "general"]
    description: str
    path: str | None = None
    hub: Hub | None = None
    splits: Annotated[dict[Split, str], Field(min_length=1)]
    group_key: str | None = None
    licence: Licence
    # Hub ids, with `*`, of other places that hold the same data: the licence holds there too.
    also: tuple[str, ...] = ()
    # The model whose scores the set holds, by hub id.
    teacher: str | None = None
    citation: str
    notes: str = ""

    @model_validator(mode="after")
    def _exactly_one(self) -> Card:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give exactly one of path, hub")
        return self

    @property
    def known(self) -> Known:
        """The card's statements about the licence."""
        said = (self.licence, *self.licence.others)
        return known([state(s.name, s.source, date=s.date, commercial=s.commercial) for s in said])

    def is_at(self, hub: str) -> bool:
        """Whether a hub id belongs to the card's set or to one of its copies."""
        own = [] if self.hub is None else [self.hub.id]
        return any(fnmatchcase(hub.casefold(), pattern.casefold()) for pattern in (*own, *self.also))

    def upstream_split(self, split: str) -> str:
        """The split's name in the files. Raises UserError when the set has no such split."""
        splits: dict[str, str] = dict(self.splits.items())
        if split not in splits:
            raise UserError(f"card {self.name!r}: {no_such('split', split, splits)}")
        return splits[split]


def load_card(name: str) -> Card:
    """A card by its name in data/, or by the path of a YAML file.

    Raises UserError when there is none, UserErrors with every mistake in it (`file:line: key: what`).
    """
    return _read(resources.find_yaml(name, resources.card_files(), kind="card"))


def list_cards() -> list[Card]:
    """All shipped cards, by name. Raises UserErrors for a faulty one."""
    return [_read(path) for path in resources.card_files().values()]


def cards_at(hub: str) -> list[Card]:
    """The shipped cards that a hub id belongs to; several, where one set is published in parts."""
    return [card for card in _shipped() if card.is_at(hub)]


@cache
def _shipped() -> tuple[Card, ...]:
    return tuple(list_cards())


def _read(path: Path) -> Card:
    tree = read_yaml(path)
    if tree.data.get("name") not in (None, path.stem):
        tree.blame(("name",), f"must be {path.stem!r}, as the file is called")
    return validate(Card, tree)
