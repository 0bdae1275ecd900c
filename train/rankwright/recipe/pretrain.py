"""The `pretrain` section of a recipe: the base is adapted to a domain before the reranker is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rankwright.common.resources import resolve_path
from rankwright.recipe.kinds import Fraction, Line, Positive, Section
from rankwright.recipe.sources import Source

# Systems of the evaluation: what the stage made of the base, and tuned without the stage at the same cost.
PRETRAINED, CONTROL = "pretrained", "no-pretrain"
CONTROL_LABEL = "tuned (no pretrain, same compute)"
# Below this, adapters are too small for what the stage is to teach.
LEAST_RANK = 16


class WeakPairs(Source):
    """Weak pairs, an entry as in `data.train[]`: a text that stands for a query, and the text that belongs to it."""

    from_: Line | None = Field(default=None, alias="from")
    """The column whose text stands for the query; the same as `columns: {query: ...}`. Other keys: `data.train[]`."""
    to: Line | None = None
    """The column whose text stands for the relevant document; the same as `columns: {document: body}`."""

    @model_validator(mode="after")
    def _are_pairs(self) -> WeakPairs:
        others = [key for key in ("pairs", "synthesized", "run", "judgements") if getattr(self, key) is not None]
        if others:
            raise ValueError(f"{', '.join(others)}: not with weak pairs, which are a file or a set: remove them")
        columns = {"query": self.from_, "document": self.to}
        twice = [ours for ours, theirs in columns.items() if theirs is not None and ours in self.columns]
        if twice:
            raise ValueError(f"columns.{twice[0]}: from and to state this already: leave one of them out")
        return self

    @property
    def as_source(self) -> Source:
        """The entry as one of `data.train`, with `from` and `to` among its columns."""
        stated = {"query": self.from_, "document": self.to}
        columns = {**self.columns, **{ours: theirs for ours, theirs in stated.items() if theirs is not None}}
        values = {key: getattr(self, key) for key in Source.model_fields if key in self.model_fields_set}
        return Source(**{**values, "columns": columns})


class DomainText(Section):
    """Texts of the domain, which are read as they are."""

    path: Line
    """A file or folder, relative to the recipe's folder: `.txt`, `.md`, `.html`, `.pdf`, tables, sets."""
    tokens: Annotated[int, Field(gt=0, le=10**12)] | None = None
    """So many tokens of it are trained on, the first in an order by content; without it, all."""
    columns: dict[Line, Line] = {}
    """Names of columns of a table: `document` and `title` -> those in the file."""
    encoding: Line | None = None
    """The encoding of the text files, such as `cp1252`; without it, their bytes show it."""
    licence: Line | None = None
    """The licence of the texts, such as `CC-BY-4.0`, or `own`."""


class Replay(Section):
    """General text, mixed into the domain's, so that less of what the base knows is forgotten."""

    path: Line
    """A file or folder of general text, relative to the recipe's folder."""
    share: Fraction = 0.05
    """The share of the trained tokens that is general text."""
    columns: dict[Line, Line] = {}
    """Names of columns of a table: `document` and `title` -> those in the file."""
    encoding: Line | None = None
    """The encoding of the text files; without it, their bytes show it."""
    licence: Line | None = None
    """The licence of the texts."""


Objective = Annotated[float, Field(ge=0, le=1000)]


class Objectives(Section):
    """What is minimised: the sum of these, each with its weight; 0 leaves one out."""

    list: Objective = 1.0
    """The reranker's own loss, over a weak pair's document and negatives."""
    query_likelihood: Objective = 0.1
    """The loss of the query's tokens after its document, over `pairs`."""
    text: Objective = 1.0
    """The loss of every next token, over `text` and `replay`."""
    keep_answers: Objective = 0.1
    """The divergence from the base's answers, yes or no, to the reranker's prompts: its head must not drift."""


class Pretrain(Section):
    """Weak pairs and domain text that the base learns from first; the reranker is trained from what comes out."""

    pairs: tuple[WeakPairs, ...] = ()
    """Weak pairs, such as title and body, heading and section, docstring and code."""
    text: tuple[DomainText, ...] = ()
    """Texts of the domain."""
    replay: Replay | None = None
    objective: Objectives = Objectives()
    rank: Annotated[int, Field(gt=0, le=2**16)] = 64
    """Rank of the added matrices, which are merged into the base at the end; their alpha is twice as much."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 1.5e-4
    """The highest learning rate; it rises in the first 3 % of the steps and falls along a cosine."""
    epochs: Annotated[float, Field(gt=0, le=10**6)] = 1.0
    """Passes over the pairs, or over the text where there are no pairs."""
    steps: Positive | None = None
    """It ends after this many steps at the latest; without it, `epochs` alone decides."""
    groups_per_step: Annotated[int, Field(gt=0, le=10**5)] = 16
    """Groups (a weak pair with its negatives) in a step, over all processes together."""
    negatives: Annotated[int, Field(gt=0, le=1000)] = 7
    """Negatives in a group: documents that BM25 finds for the query."""
    in_batch: Annotated[int, Field(ge=0, le=1000)] = 2
    """Further negatives in a group: documents of other pairs, drawn at random."""
    block_tokens: Annotated[int, Field(ge=16, le=10**6)] = 1024
    """Tokens of a block of text; texts are packed one after the other."""
    blocks_per_step: Annotated[int, Field(gt=0, le=10**5)] = 8
    """Blocks of text in a step, over all processes together."""
    held_out: Fraction = 0.02
    """The share of pairs and texts that is not trained on: it chooses the step, and perplexity is measured on it."""
    control: Literal["none", "equal_compute"] = "none"
    """`equal_compute` trains a second reranker without this stage, for as much longer as the stage took in FLOPs."""

    @property
    def texts(self) -> dict[str, DomainText | Replay]:
        """Key in the section -> the texts of `text` and `replay`."""
        found: dict[str, DomainText | Replay] = {f"text.{number}": one for number, one in enumerate(self.text)}
        return found if self.replay is None else {**found, "replay": self.replay}

    @property
    def replay_share(self) -> float:
        """The share of the trained tokens that is general text; 0 without any."""
        return 0.0 if self.replay is None else self.replay.share

    @property
    def predicts_tokens(self) -> bool:
        """Whether the base must have a head over its vocabulary."""
        return bool(self.text or (self.pairs and self.objective.query_likelihood))

    @model_validator(mode="after")
    def _has_something(self) -> Pretrain:
        if not self.pairs and not self.text:
            raise ValueError("has neither pairs nor text: name some of either")
        if self.replay is not None and not self.text:
            raise ValueError("replay: is mixed into text, and there is none: add text, or remove it")
        used = [
            self.pairs and (self.objective.list or self.objective.query_likelihood),
            self.text and self.objective.text,
        ]
        if not any(used):
            raise ValueError("objective: every part that has data weighs 0, so that nothing is learned: weigh one")
        return self


def text_path(source: DomainText | Replay) -> Path:
    """Where texts lie. Raises UserError where nothing is there."""
    return resolve_path(source.path, root=None)
