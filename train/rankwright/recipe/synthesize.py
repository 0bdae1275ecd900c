"""The `synthesize` section of a recipe: queries that are written for documents which nobody has asked about."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from rankwright.recipe.kinds import Line, NoResult, NumberOrAuto, Positive, Section, Share, Weight
from rankwright.recipe.teacher import Prices


class DocumentSource(Section):
    """Documents: a file, a folder of files, a table of rows, or a set whose corpus is read."""

    path: Line
    """A file or folder of documents, relative to the recipe's folder: `.txt`, `.md`, `.html`, `.pdf`, tables, sets."""
    columns: dict[Line, Line] = {}
    """Names of columns of a table: `document`, `title` and `document_id` -> those in the file."""
    encoding: Line | None = None
    """The encoding of the text files, such as `cp1252`; without it, their bytes show it."""
    group_key: Line | None = None
    """A column such as filing, case or repository: all documents with one value are held out, or none."""
    licence: Line | None = None
    """The licence of the documents, such as `CC-BY-4.0`, or `own`."""


class Writer(Section):
    """A language model that writes queries: behind a server, or on this machine."""

    model: Line
    """The name that the server knows the model by; without `url`, a folder or hub id that is loaded here."""
    url: Line | None = None
    """Address of an OpenAI-compatible server; without it, transformers runs the model on this machine."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    """How freely it writes; each request has a seed of its own, so that answers can be repeated."""
    max_tokens: Annotated[int, Field(ge=16, le=32768)] = 400
    """At most this many tokens are in an answer."""
    key_variable: Line | None = None
    """The environment variable with the API key."""
    requests_per_minute: Annotated[float, Field(gt=0, le=10**6)] | None = None
    """At most so many requests are sent in a minute, retries included."""
    price_per_million: Prices | None = None
    """Prices of a million tokens; `budget.money` needs them."""
    extra: dict[str, Any] = {}
    """Further fields of each request, such as those that switch off thinking; `null` takes one of ours out."""
    licence: Line | None = None
    """The licence of the model, or the terms of its outputs; without it, unknown."""


class WriterBudget(Section):
    """What writing may cost. It ends before any of these is exceeded."""

    calls: Positive | None = None
    """Calls in all; without it, one for each passage, and one more where an answer cannot be read."""
    tokens: Annotated[int, Field(gt=0, le=10**12)] | None = None
    """Tokens of prompts and answers in all; without it, any number."""
    money: Annotated[float, Field(gt=0, le=10**9)] | None = None
    """Money in all, in the currency of `price_per_million`; without it, any sum."""


class Passages(Section):
    """How documents are split."""

    words: Annotated[int, Field(ge=20, le=5000)] = 180
    """At most this many words and signs are in a passage; it begins at a heading where there are some."""
    least_words: Annotated[int, Field(ge=1, le=1000)] = 20
    """No query is written for a passage of fewer words; it stays among the documents."""


class HeldOut(Section):
    """Groups whose queries train nothing: an aid of development, never a test."""

    fraction: Share = 0.1
    """The share of the passages whose groups are held out, by seed; their queries are the set `held_out`."""


class Audit(Section):
    """`synthetic/audit.html`: some written queries for a person to accept or reject."""

    queries: Annotated[int, Field(ge=1, le=10_000), NoResult] = 50
    """How many queries the page shows, by seed."""
    min_accepted: Annotated[Annotated[float, Field(ge=0, le=1)] | None, NoResult] = None
    """The share that people must accept before anything is trained; without it, nobody need look."""


class Synthesize(Section):
    """Queries written for passages of documents, filtered; `data.train: [{synthesized: train}]` trains on them."""

    documents: Annotated[tuple[DocumentSource, ...], Field(min_length=1)]
    passages: Passages = Passages()
    writer: Writer | None = None
    kinds: dict[Line, Weight] = {}
    """Kinds of queries with weights: those of the templates, or of the writer's domain; without it, all of them."""
    domain: Literal["general", "finance", "legal", "code"] = "general"
    """The domain whose kinds of questions a writer is asked for, where `kinds` names none."""
    examples: Line | None = None
    """A text file with 3 to 8 queries of your own, one per line: a writer is shown them as the style to write in."""
    sampled: Positive = 2000
    """Queries are written for at most this many passages for training, drawn round the clusters of the corpus."""
    per_passage: Annotated[int, Field(ge=1, le=10)] = 2
    """At most this many queries are written for each passage."""
    clusters: NumberOrAuto = "auto"
    """Clusters that passages are drawn from in turn; `auto`: one for five passages, at most 1,000."""
    filters: dict[str, dict[str, Any] | None] = {}
    """Options of the filters, whose order is fixed; `null` switches one off."""
    held_out: HeldOut = HeldOut()
    audit: Audit = Audit()
    parallel: Annotated[int, Field(ge=1, le=512), NoResult] = 8
    """Requests that are under way at the same time."""
    budget: WriterBudget = WriterBudget()
