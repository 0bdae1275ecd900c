"""What a recipe may contain: a frozen pydantic schema, without torch. Keys, defaults and their meaning: only here.

The text below a key is its description: in the table of recipes/README.md, and in the JSON schema that editors read.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic.fields import FieldInfo

from rankwright.recipe.export import Export, Gate, LicenceRule
from rankwright.recipe.kinds import (
    MOST_GRADE,
    Documents,
    FolderName,
    Gains,
    Line,
    NoResult,
    NumberOrAuto,
    Positive,
    Section,
    Share,
    Tokens,
    Weight,
    Words,
    tuple_of_list,
)
from rankwright.recipe.pretrain import Pretrain
from rankwright.recipe.sources import Data
from rankwright.recipe.synthesize import Synthesize
from rankwright.recipe.teacher import Pairs, Teaching

Key = tuple[str | int, ...]


class Model(Section):
    """The base and how its weights are tuned."""

    base: Line
    """A folder, relative to the recipe's, or a hub id `OWNER/NAME`."""
    revision: Line | None = None
    """A commit or tag of a base on the hub."""
    method: Literal["lora", "full"] = "lora"
    """`lora` trains small added matrices, `full` trains the weights themselves."""
    rank: Annotated[int, Field(gt=0, le=2**16)] = 16
    """Rank of the added matrices."""
    alpha: Annotated[int, Field(gt=0, le=10**6)] = 32
    """Sets the scale of the added matrices: `alpha / rank`, or `alpha / sqrt(rank)` with `rslora`."""
    dropout: Share = 0.0
    """Dropout on the inputs of the added matrices."""
    rslora: bool = False
    """Rank-stabilised LoRA."""
    dora: bool = False
    """DoRA: trains magnitude and direction of the weights separately."""
    targets: Annotated[tuple[Line, ...], Field(min_length=1)] | None = None
    """Names of the linear layers that get LoRA, such as `q_proj`; without it, all linear layers."""
    quantize: Literal["nf4"] | None = None
    """QLoRA: the frozen linear layers in 4 bits while LoRA is trained; without it, in the number format of training."""
    merge_with_base: Share = 0.0
    """The share of the base's weights that is mixed back into the tuned ones before evaluation and export."""
    gradient_checkpointing: Annotated[bool | Literal["full", "cheap", "none"], NoResult] = "none"
    """What the backward pass computes again, to save memory: `cheap` norms and activations, `full` (true) all."""
    attention: Annotated[Line, NoResult] = "auto"
    """How attention is computed; `auto`: the fastest way that the device and number format allow."""

    @property
    def recomputes(self) -> Literal["full", "cheap", "none"]:
        """gradient_checkpointing in words."""
        value = self.gradient_checkpointing
        return value if isinstance(value, str) else "full" if value else "none"

    @model_validator(mode="after")
    def _fit_together(self) -> Model:
        # Not rank and alpha: they always have a value, and a recipe may inherit them.
        lora_only = [k for k in ("dropout", "rslora", "dora", "targets") if getattr(self, k)]
        if self.method == "full" and lora_only:
            raise ValueError(f"{', '.join(lora_only)}: only with method lora: remove them, or use method: lora")
        if self.quantize and (self.method == "full" or self.dora):
            lacks = "method full trains the weights" if self.method == "full" else "dora scales the weights"
            raise ValueError(
                f"quantize: {lacks}, which are frozen in 4 bits: use method: lora without dora, or drop it"
            )
        if self.dora and self.merge_with_base:
            raise ValueError(
                "merge_with_base: not with dora, whose weights are not linear in what is trained: drop one"
            )
        return self


DEFAULT_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"


class FirstStageScore(Section):
    """A line before each document with the first stage's score: the model reads what the search thought of it."""

    levels: Annotated[int, Field(ge=2, le=1000)] = 50
    """The score is a whole number from 0, the lowest of its query's list, to this, the highest."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """The share of the training groups without the line, so that the model also works without a first stage."""


class Prompt(Section):
    """The text around query and document, and its budgets."""

    mode: Line = "auto"
    """The prompt that the model is trained with; `auto` is the base's own."""
    instruction: Words = DEFAULT_INSTRUCTION
    """The task in one sentence, for prompts that have a place for it."""
    max_tokens: Tokens = 512
    """At most this many tokens are in a whole prompt; of longer documents `long_documents` chooses what is read."""
    query_tokens: Tokens | None = None
    """At most this many tokens of a query are read; without it, a quarter of `max_tokens`."""
    long_documents: Literal["cut", "max", "blocks"] = "cut"
    """Documents beyond the budget: `cut` reads the start, `max` all in windows, `blocks` the best 128-token blocks."""
    first_stage_score: FirstStageScore | None = None
    """Off without it; `{}` switches the line on."""

    @model_validator(mode="after")
    def _fit_together(self) -> Prompt:
        if self.query_tokens is not None and self.query_tokens >= self.max_tokens:
            raise ValueError(
                f"query_tokens: {self.query_tokens} must be less than max_tokens, {self.max_tokens}: a document needs "
                "room too"
            )
        return self


class Bm25(Section):
    """Search by words, the same way in mining, evaluation, slices and the search for duplicates."""

    language: Line = "english"
    """Language of stemmer and stop words; `none` takes words as they are. Chinese, Thai and others need none."""
    code: bool = False
    """For code: parts of camelCase and snake_case are words too, and near duplicates are compared without comments."""


class Dense(Section):
    """A bi-encoder of sentence-transformers: the first stage `dense`, and `fusion` of it and BM25."""

    model: Line
    """A folder, relative to the recipe's, or a hub id of the bi-encoder."""
    revision: Line | None = None
    """A commit or tag of it on the hub."""
    query_prompt: Words = ""
    """Text before every query, such as `query: `."""
    document_prompt: Words = ""
    """Text before every document, such as `passage: `."""


class Baseline(Section):
    """Another reranker."""

    name: FolderName
    """The reranker's name in tables, and that of its folder beside bm25, base and tuned."""
    kind: Line
    """The kind of reranker, which decides prompt and score."""
    model: Line
    """A folder, relative to the recipe's, a hub id, or the name that a server knows it by."""
    revision: Line | None = None
    """A commit or tag of it on the hub."""
    options: dict[str, Any] = {}
    """Options of this kind."""


class Mine(Section):
    """Hard negatives: retrieved to `depth`, filtered in the order of `filters`, drawn by the sampler."""

    retriever: Line = "bm25"
    """The search whose lists the negatives come from; `run`: each training set's own TREC run file."""
    depth: Documents = 100
    """Candidates retrieved for each query."""
    filters: dict[str, dict[str, Any]] = {}
    """Filters with their options, applied in the order in which they stand."""
    sampler: Annotated[dict[str, dict[str, Any]], Field(min_length=1, max_length=1)] = {"uniform": {}}
    """How negatives are drawn from the candidates that are left: one sampler with its options."""
    negatives: Documents = 7
    """Negatives in a training group."""
    positives: Documents = 4
    """At most this many relevant documents are in a training group."""
    fill: Literal["none", "random"] = "none"
    """Queries with too few negatives: `none` leaves them short, `random` adds documents of the corpus at random."""
    refresh_steps: Positive | None = None
    """Every this many steps, negatives are mined again with the model as it then stands; without it, never."""
    teacher: Baseline | None = None
    """A reranker whose scores filters, losses and the sampler use."""


class LossTerm(Section):
    """One more loss, added to the first with a weight."""

    name: Line
    """A further loss, which is added to the first."""
    options: dict[str, Any] = {}
    """Its options."""
    weight: Weight = 1.0
    """Its weight in the sum; the first loss has weight 1."""


class Loss(Section):
    """What training minimises."""

    name: Line = "listwise_softmax"
    """The loss that is minimised."""
    options: dict[str, Any] = {}
    """Its options, such as `temperature`."""
    plus: tuple[LossTerm, ...] = ()
    """More losses that are added to it."""


class Train(Section):
    """Optimisation, checkpoints and evaluation on dev."""

    epochs: Annotated[float, Field(gt=0, le=10**6)] = 1.0
    """Passes over the training queries; fractions are allowed."""
    max_steps: Positive | None = None
    """Training ends after this many steps at the latest; without it, `epochs` alone decides."""
    queries_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The share of each set's training queries that is trained on, for as many epochs: `max_steps` shrinks with it."""
    groups_per_step: Annotated[int, Field(gt=0, le=10**5)] = 16
    """Groups (a query with its documents) in an optimiser step, over all processes together."""
    budget_tokens: Positive | None = None
    """At most this many tokens are in a micro-batch; without it, 4096 on a CPU and 16384 on a GPU."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 1e-4
    """The highest learning rate; the default suits LoRA, `full` needs about a tenth of it."""
    warmup_fraction: Share = 0.1
    """The share of the steps in which the learning rate rises from 0."""
    schedule: Line = "cosine"
    """How the learning rate falls after the warm-up: `cosine`, `linear`, `wsd` or `constant`."""
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 0.01
    """Weight decay of AdamW."""
    clip_norm: Annotated[float, Field(gt=0, le=10**6)] = 1.0
    """The largest norm that a gradient may have; a larger gradient is scaled down."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of training and scoring; `auto`: bf16 on a GPU, fp32 on a CPU. Scores stay in fp32."""
    evaluate_every: NumberOrAuto = "auto"
    """Steps between evaluations on dev; `auto`: 100, or fewer where dev would be evaluated less than five times."""
    save_every: Annotated[Positive, NoResult] = 50
    """Steps between checkpoints."""
    patience: Positive | None = None
    """Training ends early after this many evaluations on dev without a new best; without it, never."""
    dev_queries: Positive = 200
    """At most this many dev queries are evaluated, chosen by seed."""
    trackers: Annotated[tuple[Line, ...], NoResult] = ()
    """Trackers of Accelerate that log beside `metrics.jsonl`, such as `wandb`, `trackio` or `tensorboard`."""
    track_report: Annotated[bool, NoResult] = True
    """Shows the report page in wandb and trackio too, with its queries and documents; `false`: only its numbers."""
    first_stage_offset: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """While training, this much of the first stage's z-score is added to each score: the model learns what it lacks."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Seed of the training alone, with the same data, dev and mined lists; without it, the recipe's `seed`."""
    shuffle_labels: bool = False
    """Trains on shuffled, meaningless labels: a control that must not gain."""


class Combine(Section):
    """The row `combined`: the reranker's scores with those of the first stage. Weight and depth are chosen on dev."""

    prefer: Literal["first_stage", "reranker"] = "first_stage"
    """Which of the weights that are equally good on dev is taken: the one nearest to this."""
    depths: Annotated[tuple[Documents, ...], Field(min_length=1), BeforeValidator(tuple_of_list)] = (10, 20, 50, 100)
    """How many documents of a list are reranked: one of these, and at most `evaluate.depth`."""


def _switched(combine: Any) -> Any:
    return None if combine is False else combine


class Evaluate(Section):
    """What is measured on the test sets."""

    first_stage: Line = "bm25"
    """The search whose lists are reranked; `run`: each test set's own TREC run file."""
    depth: Documents = 100
    """How many documents of each list are reranked."""
    limit_queries: Positive | None = None
    """At most this many queries of each test set are evaluated, chosen by seed; without it, all."""
    measures: Annotated[tuple[Line, ...], Field(min_length=1)] = ("nDCG@10", "nDCG@5", "MRR@10", "MAP", "R@10", "R@100")
    """Measures, as ir-measures names them; nDCG@10 is always among them."""
    relevance_level: Annotated[int, Field(ge=1, le=MOST_GRADE)] = 1
    """The lowest label, as `relevant_from` leaves it, that counts as relevant on dev and test: in MRR, MAP, P, R."""
    gains: Gains = {}
    """What each label is worth in nDCG: `{0: 0, 1: 0, 2: 1}`; without it, a label is worth itself."""
    baselines: tuple[Baseline, ...] = ()
    """Other rerankers that score the same lists."""
    combine: Annotated[
        Combine | None, BeforeValidator(_switched, json_schema_input_type=Combine | Literal[False] | None)
    ] = Combine()
    """The row `combined`, with a weight and a depth that are chosen on dev; `null` or `false`: no such row."""

    @model_validator(mode="after")
    def _some_gain(self) -> Evaluate:
        if self.gains and not any(self.gains.values()):
            raise ValueError("gains: every label is worth 0, so that nDCG would be 0: give one of them a gain above 0")
        return self


class Recipe(Section):
    """One experiment. Every key but `name`, `model.base` and `data` has a default."""

    # It names the run's folder, so nothing that leads elsewhere.
    name: Annotated[FolderName, NoResult]
    """Name of the experiment, and of its folder in `runs/`."""
    description: Annotated[Words, NoResult] = ""
    """One line for `rankwright recipes`."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of everything that is drawn at random."""
    run_dir: Annotated[Line | None, NoResult] = None
    """The run's folder, relative to the working directory; without it, `runs/NAME` there."""
    model: Model
    data: Data
    prompt: Prompt = Prompt()
    bm25: Bm25 = Bm25()
    dense: Dense | None = None
    mine: Mine = Mine()
    teacher: Teaching = Teaching()
    synthesize: Synthesize | None = None
    pretrain: Pretrain | None = None
    loss: Loss = Loss()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    gate: Gate | None = None
    licence: LicenceRule = LicenceRule()
    export: Export = Export()

    @property
    def training_seed(self) -> int:
        """What the training draws by: adapters, the order of the queries, their negatives."""
        return self.seed if self.train.seed is None else self.train.seed

    @property
    def keys_of_lists(self) -> list[str]:
        """The keys that are given and need the first stage's lists of the training queries."""
        keys = {
            "train.first_stage_offset": bool(self.train.first_stage_offset),
            "prompt.first_stage_score": self.prompt.first_stage_score is not None,
        }
        return [key for key, given in keys.items() if given]

    @property
    def is_pairwise(self) -> bool:
        """Whether it trains a student that compares two documents: some set is the pairs of a run's judges."""
        sets = (*self.data.train, *self.data.dev_sources, *self.data.test_sources)
        return any(source.pairs is not None for source in sets)

    @property
    def asks_a_writer(self) -> bool:
        """Whether a language model writes queries, which may cost time and money."""
        return self.synthesize is not None and self.synthesize.writer is not None

    @property
    def pairs(self) -> Pairs | None:
        """The preferences that are the teacher, see pipeline/judge.py."""
        return self.teacher.pairs

    @property
    def has_teacher(self) -> bool:
        """Whether the run makes scores of a teacher of its own, teacher.jsonl."""
        return self.mine.teacher is not None or self.pairs is not None

    @property
    def export_targets(self) -> dict[str, dict[str, Any]]:
        """The chosen targets with their options; by default `hf`, and `adapter` where the base can take adapters."""
        if self.export.targets is not None:
            return self.export.targets
        if self.pretrain is not None or self.model.quantize is not None or self.model.method != "lora":
            # Adapters would be on a base that is nowhere but in the run.
            return {"hf": {}}
        return {"hf": {}, "adapter": {}}


def keys_of(section: type[Section]) -> dict[str, Any]:
    """The keys of a section as a file writes them -> their annotations."""
    hints = typing.get_type_hints(section)
    return {field.alias or name: hints[name] for name, field in section.model_fields.items()}


def sections_in(annotation: Any, in_list: bool = False) -> Iterator[tuple[type[Section], bool]]:
    """The sections that an annotation can hold, each with whether it is the element of a list."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation, in_list
    for argument in typing.get_args(annotation):
        yield from sections_in(argument, in_list or typing.get_origin(annotation) is tuple)


def walk_keys(section: type[Section] | None = None) -> Iterator[tuple[str, FieldInfo]]:
    """All dotted keys with their fields; those of the elements of a list (`[]`) only where they first appear.

    A section that extends another one shows only its own keys.
    """
    seen: set[type[Section]] = set()

    def walk(section: type[Section], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
        annotations = keys_of(section)
        inherited = {name for base in section.__mro__[1:] if base in seen for name in base.model_fields}
        for name, field in section.model_fields.items():
            if name in inherited:
                continue
            key = field.alias or name
            inner = [(found, in_list) for found, in_list in sections_in(annotations[key]) if found not in seen]
            seen.update(found for found, _ in inner)
            if not inner:
                yield prefix + key, field
            for found, in_list in inner:
                yield from walk(found, f"{prefix}{key}{'[]' if in_list else ''}.")

    return walk(section or Recipe, "")


def recipe_keys(root: type[Section] | None = None) -> list[str]:
    """All keys of a recipe, or of another section, dotted."""
    return [*(["extends"] if root in (None, Recipe) else []), *(key for key, _ in walk_keys(root))]


def result_values(values: Mapping[str, Any], section: type[Section] | None = None) -> dict[str, Any]:
    """A recipe's (or a section's) plain values without the keys that are marked as changing no result."""
    fields = (section or Recipe).model_fields
    kept = {}
    for key, value in values.items():
        extra = fields[key].json_schema_extra if key in fields else None
        if isinstance(extra, dict) and extra.get("changes_result") is False:
            continue
        inner = (
            [found for found, in_list in sections_in(fields[key].annotation) if not in_list] if key in fields else []
        )
        kept[key] = result_values(value, inner[0]) if len(inner) == 1 and isinstance(value, Mapping) else value
    return kept


# Tuned, under the instruction of the exports: a row of test sets that have another one.
EXPORTED = "exported"
# What the exports score, combined with the first stage.
COMBINED = "combined"
# With fewer dev queries the standard error is too uncertain to choose the combination by.
LEAST_DEV_QUERIES = 20
# Keys that are now in another section -> where.
MOVED: dict[Key, str] = {("mine", "language"): "bm25.language", ("mine", "code"): "bm25.code"}
