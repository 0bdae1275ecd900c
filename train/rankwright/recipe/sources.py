"""The `data` section of a recipe: entries of sets, and what is taken out of the training queries."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from rankwright.recipe.kinds import Fraction, Line, Positive, Section, Weight, Words, given_beside

# The keys that an entry with `pairs` may have.
OF_PAIRS = {"pairs", "name", "weight", "limit"}

EntityKind = Literal["company", "date", "amount", "party", "statute"]


class Abstract(Section):
    """Entities that the first part of training sees as placeholders, the same in a query and its documents."""

    entities: Annotated[tuple[EntityKind, ...], Field(min_length=1)] = ("company", "date", "amount", "party", "statute")
    """The kinds of entities; rules find them, see [Entity abstraction](#entity-abstraction)."""
    until: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The share of the steps, from the first one on, that see placeholders; the others see the texts as they are."""

    @field_validator("entities")
    @classmethod
    def _once(cls, entities: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(entities)) < len(entities):
            raise ValueError("a kind is given twice: leave one of them out")
        return entities


class Source(Section):
    """One set, by exactly one of: a folder or file, a card, a set on the hub, pairs of a run, or written queries."""

    path: Line | None = None
    """A folder or file; relative to `data.root` if given, else to the recipe's folder. `fixtures/...` is embedded."""
    card: Line | None = None
    """A dataset card of `data/`, by its name (`rankwright data list`) or its path from the recipe's folder."""
    hub: Line | None = None
    """A set on the hub: `OWNER/NAME`."""
    pairs: Line | None = None
    """The folder of a run whose judges compared pairs, relative to the recipe's; trains a student that compares too."""
    synthesized: Literal["train", "held_out"] | None = None
    """Queries that `synthesize` writes: `train`, or those of the groups that are held out, for `data.dev`."""
    format: Line | None = None
    """The format of the files; without it, the content decides."""
    columns: dict[Line, Line] = {}
    """Names of columns: ours -> those in the file, or the path to a value inside: `annotations.0.choice`."""
    labels: dict[str, float] = {}
    """What the values of the label column mean: `{Relevant: 1, "Not relevant": 0}`; above 0 is relevant."""
    encoding: Line | None = None
    """The encoding of the text files, such as `cp1252` or `utf-16`; without it, their bytes show it."""
    config: Line | None = None
    """The configuration of a set on the hub."""
    split: Line | None = None
    """The split of the set that is read."""
    name: Line | None = None
    """The set's name in tables and folders; without it, that of the card, folder or file."""
    revision: Line | None = None
    """A commit or tag of a set on the hub."""
    run: Line | None = None
    """A TREC run file with candidate lists: for the sets whose lists are those of `run`, see `evaluate.first_stage`."""
    judgements: Line | None = None
    """What people judged in `audit.html`: a file of `rankwright audit read`, whose labels are laid over the set's."""
    weight: Weight = 1.0
    """How often each training query is drawn in an epoch; 0.5 means every other epoch."""
    limit: Positive | None = None
    """At most this many queries are kept, chosen by seed."""
    abstract: Abstract | None = None
    """Companies, dates and others become placeholders in the first part of training, so that no name is learned."""
    instruction: Words | None = None
    """The instruction of this set, in place of `prompt.instruction`."""
    relevant_from: Positive = 1
    """The lowest label that means relevant; it becomes 1, the next one 2, and all below it 0."""
    group_key: Line | None = None
    """A column such as filing, case or repository: queries and documents with one value stay on one side of a split."""
    licence: Line | None = None
    """The licence of a set without a card, such as `CC-BY-4.0`, or `own`."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Source:
        given = [k for k in ("path", "card", "hub", "pairs", "synthesized") if getattr(self, k) is not None]
        if len(given) != 1:
            found = f" (found {', '.join(given)})" if given else ""
            raise ValueError(f"give exactly one of path, card, hub, pairs, synthesized{found}")
        if self.pairs is not None and (others := given_beside(self, OF_PAIRS)):
            raise ValueError(f"{', '.join(others)}: not with pairs, which are read as the run wrote them: remove them")
        return self


class DevFromTrain(Section):
    """Development queries taken out of the training queries, by seed."""

    from_: Literal["train"] = Field(default="train", alias="from")
    """Dev queries are taken out of train; a list of sets, as in `data.train[]`, may stand in place of this mapping."""
    fraction: Fraction = 0.1
    """The share of the training queries that is taken."""


class TestFromTrain(Section):
    """Test queries taken out of the training queries, before dev is."""

    from_: Literal["train"] = Field(default="train", alias="from")
    """Test queries are taken out of train, the same ones for every seed; a list of sets may stand in place of this."""
    fraction: Fraction = 0.2
    """The share of the training queries that is taken."""


def _kind_of(held_out: type[Section]) -> Any:
    def kind(value: Any) -> str | None:
        # Chosen by shape, not by trial: a plain union would report the faults of both readings.
        if isinstance(value, dict | held_out):
            return held_out.__name__
        return "Source" if isinstance(value, list | tuple) else None

    default = held_out.model_fields["fraction"].default
    words = f"must be {{from: train, fraction: {default}}} or a list of sets"
    return Discriminator(kind, custom_error_type="held_out_shape", custom_error_message=words)


class Data(Section):
    """The sets that are trained on, choose the checkpoint, and are reported on."""

    root: Line | None = None
    """The folder that relative paths of sets start from; itself relative to the recipe's folder."""
    on_fault: Literal["stop", "drop"] = "stop"
    """What happens to rows with faults: `stop` reports each one, `drop` leaves them out and counts them."""
    on_leak: Literal["stop", "drop"] = "stop"
    """What happens to training queries that dev or test has too: `stop` reports them, `drop` leaves them out."""
    ignore_identical_ids: bool = True
    """A document with the id of a query is left out of its lists, as BEIR does, unless it is judged for that query."""
    train: tuple[Source, ...] = ()
    """Sets to train on; at least one."""
    dev: Annotated[
        Annotated[DevFromTrain, Tag("DevFromTrain")] | Annotated[tuple[Source, ...], Tag("Source")],
        _kind_of(DevFromTrain),
    ] = DevFromTrain()
    """Sets that choose the checkpoint and the temperature: a list of sets, or queries taken from train."""
    test: Annotated[
        Annotated[TestFromTrain, Tag("TestFromTrain")] | Annotated[tuple[Source, ...], Tag("Source")],
        _kind_of(TestFromTrain),
    ] = ()
    """Sets to report on: a list of at least one, or queries taken from train; nothing is chosen by their results."""

    @property
    def dev_sources(self) -> tuple[Source, ...]:
        """The entries of the dev sets; those of train where dev is taken out of it."""
        return self.dev if isinstance(self.dev, tuple) else self.train

    @property
    def test_sources(self) -> tuple[Source, ...]:
        """The entries of the test sets; those of train where test is taken out of it."""
        return self.train if isinstance(self.test, TestFromTrain) else self.test
