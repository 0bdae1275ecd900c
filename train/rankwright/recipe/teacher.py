"""The `teacher` section of a recipe: preferences of language models between two documents, made into scores."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from rankwright.recipe.kinds import FolderName, Line, NoResult, Positive, Section, Weight, given_beside

Price = Annotated[float, Field(ge=0, le=10**6)]


class Prices(Section):
    """What a judge costs, for a million tokens, in any one currency."""

    input: Price
    """The price of prompts."""
    output: Price
    """The price of answers."""


# The keys of a judge that is on this machine.
OF_STUDENT = {"kind", "name", "model", "weight", "licence"}


class Judge(Section):
    """A language model that is asked which of two documents answers a query better."""

    kind: Literal["endpoint", "pairwise"] = "endpoint"
    """`endpoint`: behind a server; `pairwise`: a student of earlier answers, which compares on this machine."""
    name: FolderName
    """The judge's name in files and tables."""
    url: Line | None = None
    """Address of an OpenAI-compatible server: of vLLM, of llama.cpp, or of an API."""
    model: Line
    """The name that the server knows the model by, under which answers are kept; of a student, its run or export."""
    logprobs: bool = True
    """Reads the probabilities of the answers A and B; `false` reads the word, for servers without log-probabilities."""
    weight: Weight = 1.0
    """What an answer of this judge counts in the fit."""
    key_variable: Line | None = None
    """The environment variable with the API key."""
    requests_per_minute: Annotated[float, Field(gt=0, le=10**6)] | None = None
    """At most so many requests are sent in a minute, retries included."""
    price_per_million: Prices | None = None
    """Prices of a million tokens; `budget.money` needs them of every judge."""
    extra: dict[str, Any] = {}
    """Further fields of each request, such as those that switch off thinking; `null` takes one of ours out."""
    licence: Line | None = None
    """The licence of the model, or the terms of its outputs; without it, unknown."""

    @model_validator(mode="after")
    def _fit_together(self) -> Judge:
        if self.kind == "endpoint" and self.url is None:
            raise ValueError(
                "url: missing: give the address of the server, or kind: pairwise for a student of your own"
            )
        if self.kind == "pairwise" and (others := given_beside(self, OF_STUDENT)):
            raise ValueError(f"{', '.join(others)}: only of a server: remove them from a judge of the kind pairwise")
        return self


class Budget(Section):
    """What judging may cost. It ends before any of these is exceeded."""

    calls: Positive | None = None
    """Calls in all; without it, `calls_per_query` for each query."""
    calls_per_query: Positive | None = None
    """Calls for each query, of all judges together; without it, two for each candidate and judge."""
    tokens: Annotated[int, Field(gt=0, le=10**12)] | None = None
    """Tokens of prompts and answers in all; without it, any number."""
    money: Annotated[float, Field(gt=0, le=10**9)] | None = None
    """Money in all, in the currency of `price_per_million`; without it, any sum."""


PRIORS = ("first_stage", "base", "none")
BASELINE = "baseline:"


def _prior(text: str) -> str:
    # By hand: a plain union would report the faults of both readings.
    if text in PRIORS or (text.startswith(BASELINE) and len(text) > len(BASELINE)):
        return text
    raise ValueError(f"must be {', '.join(PRIORS)} or {BASELINE}NAME, found {text!r}")


Prior = Annotated[
    Line,
    AfterValidator(_prior),
    WithJsonSchema({"anyOf": [{"enum": list(PRIORS)}, {"type": "string", "pattern": f"^{BASELINE}."}]}),
]


class PreferenceFit(Section):
    """How the scores of a query's documents are fitted to the answers."""

    model: Literal["bradley_terry", "thurstone"] = "bradley_terry"
    """The chance that a document wins, by the difference of two scores: logistic or normal."""
    ridge: Annotated[float, Field(gt=0, le=1000)] = 0.25
    """Precision of the normal prior of a score: without it, a document that wins every time would have no score."""
    prior: Prior = "first_stage"
    """Scores that the fit starts from, as far as they explain the answers; `baseline:NAME`: of `evaluate.baselines`."""

    @property
    def prior_baseline(self) -> str | None:
        """The name of the baseline whose scores are the prior, None for other priors."""
        return self.prior.removeprefix(BASELINE) if self.prior.startswith(BASELINE) else None


class Refine(Section):
    """More answers where a student disagrees with the scores that it was trained on."""

    student: Line
    """The folder of a run that was judged and trained by this recipe: its answers are taken, and its model is asked."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.2
    """The share of the judged queries that are judged further: those with the largest disagreement."""
    calls_per_query: Annotated[int, Field(gt=0, le=10**6)] = 50
    """Further calls for each of these queries, of all judges together."""
    positives_below: Annotated[int, Field(gt=0, le=1000)] | None = 10
    """Queries whose best relevant document lies below this place of the scores come first; `null`: they do not."""


class Pairs(Section):
    """Preferences: judges compare pairs of the documents that the first stage finds for training queries."""

    judges: Annotated[tuple[Judge, ...], Field(min_length=1, max_length=20)]
    queries: Positive = 1000
    """At most so many training queries are judged, chosen by seed."""
    skip_near_duplicates: bool = True
    """Judges one of several queries that are nearly equal; `false` judges all of them."""
    depth: Annotated[int, Field(ge=2, le=1000)] = 100
    """Candidates of each query: the first of the lists of `evaluate.first_stage`."""
    parallel: Annotated[int, Field(ge=1, le=512), NoResult] = 8
    """Requests that are under way at the same time."""
    budget: Budget = Budget()
    design: Annotated[dict[str, dict[str, Any]], Field(min_length=1, max_length=1)] = {"top_heavy": {}}
    """Which pairs are compared: `top_heavy`, or random `cycles` alone, with their options."""
    fit: PreferenceFit = PreferenceFit()
    across_queries: Annotated[int, Field(ge=1, le=100)] | None = None
    """Calls for each query and judge that put the scores of all queries on one scale; without it, none."""
    refine: Refine | None = None
    """Judges the queries of an earlier run further, where the model that it trained disagrees with the scores."""


class Teaching(Section):
    """Teachers that a run makes of its own data."""

    pairs: Pairs | None = None
    """Scores made of pairwise preferences; they take the place of those of `mine.teacher`."""
