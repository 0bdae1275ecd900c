"""What a recipe may contain: a frozen pydantic schema, without torch. Defaults live here and nowhere else."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

Key = tuple[str | int, ...]
Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """Base of every section: frozen, no unknown keys, no guessing of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Source(Section):
    """One set, by exactly one of: a folder or file, a card of `data/`, or a set on the hub."""

    path: str | None = None
    card: str | None = None
    hub: str | None = None
    # A registered format; without it the content decides.
    format: str | None = None
    # Our name of a column -> the file's.
    columns: dict[str, str] = {}
    # The configuration of a set on the hub.
    config: str | None = None
    split: str | None = None
    name: str | None = None
    revision: str | None = None
    # A TREC run file with candidate lists: of a test set, or of a training set with mine.retriever: run.
    run: str | None = None
    # How often a training query is drawn in an epoch; 0.5: every other epoch.
    weight: Annotated[float, Field(gt=0)] = 1.0
    # Queries that are kept, chosen by seed.
    limit: Positive | None = None
    # In place of prompt.instruction.
    instruction: str | None = None
    # The column whose equal values (filing, case, repository) may not be on two sides of a split.
    group_key: str | None = None
    # The licence of a set without a card, such as CC-BY-4.0, or `own`.
    licence: str | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Source:
        given = [k for k in ("path", "card", "hub") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of path, card, hub" + (f" (found {', '.join(given)})" if given else ""))
        return self


class DevFromTrain(Section):
    """Development queries taken out of the training queries, by seed."""

    from_: Literal["train"] = Field(default="train", alias="from")
    fraction: Fraction = 0.1


def _kind_of_dev(value: Any) -> str | None:
    # Chosen by shape, not by trial: a plain union would report the faults of both readings.
    if isinstance(value, dict | DevFromTrain):
        return "DevFromTrain"
    return "Source" if isinstance(value, list | tuple) else None


class Data(Section):
    root: str | None = None
    # Rows with faults, and training rows that a held-out set has too: an error, or dropped and counted.
    on_fault: Literal["stop", "drop"] = "stop"
    on_leak: Literal["stop", "drop"] = "stop"
    train: tuple[Source, ...] = ()
    dev: Annotated[
        Annotated[DevFromTrain, Tag("DevFromTrain")] | Annotated[tuple[Source, ...], Tag("Source")],
        Discriminator(
            _kind_of_dev,
            custom_error_type="dev_shape",
            custom_error_message="must be {from: train, fraction: 0.1} or a list of sets",
        ),
    ] = DevFromTrain()
    test: tuple[Source, ...] = ()


class Model(Section):
    base: str
    revision: str | None = None
    method: Literal["lora", "full"] = "lora"
    rank: Positive = 16
    alpha: Positive = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    rslora: bool = False
    dora: bool = False
    # Names of linear layers, such as q_proj; without them LoRA is on all.
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    # How far the tuned weights go back to the base's before they are evaluated and exported.
    merge_with_base: Annotated[float, Field(ge=0, lt=1)] = 0.0
    gradient_checkpointing: bool = False
    attention: str = "auto"

    @model_validator(mode="after")
    def _fit_together(self) -> Model:
        # Not rank and alpha: they always have a value, and a recipe may inherit them.
        lora_only = [k for k in ("dropout", "rslora", "dora", "targets") if getattr(self, k)]
        if self.method == "full" and lora_only:
            raise ValueError(f"{', '.join(lora_only)}: of method lora only: remove them, or use method: lora")
        if self.dora and self.merge_with_base:
            raise ValueError(
                "merge_with_base: not with dora, whose weights are not linear in what is trained: drop one"
            )
        return self


DEFAULT_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"


class Prompt(Section):
    # A frame that may be chosen (model/frames.py), or the base's own.
    mode: str = "auto"
    instruction: str = DEFAULT_INSTRUCTION
    max_tokens: Positive = 512
    query_tokens: Positive | None = None


class Bm25(Section):
    """Search by words: mined negatives, evaluation and slices read texts in this way, and so does the data report."""

    # Stemmer and stop words; `none`: words as they are.
    language: str = "english"
    # Code: the parts of camelCase and snake_case are words too, and near duplicates are compared without comments.
    code: bool = False


class Dense(Section):
    """A bi-encoder of sentence-transformers: the first stage `dense`, and `fusion` of it and BM25."""

    model: str
    revision: str | None = None
    query_prompt: str = ""
    document_prompt: str = ""


class Baseline(Section):
    """Another reranker, scored on the same lists. kind and options: a registered kind and its parameters."""

    # It names a folder beside bm25, base and tuned.
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    kind: str
    model: str
    revision: str | None = None
    options: dict[str, Any] = {}


class Mine(Section):
    """Hard negatives: retrieved to `depth`, filtered in the order of `filters`, drawn by the sampler."""

    # A registered retriever.
    retriever: str = "bm25"
    depth: Positive = 100
    # Name of a registered filter -> its options.
    filters: dict[str, dict[str, Any]] = {}
    # One registered sampler -> its options.
    sampler: Annotated[dict[str, dict[str, Any]], Field(min_length=1, max_length=1)] = {"uniform": {}}
    negatives: Positive = 7
    positives: Positive = 4
    # What becomes of a pool with fewer than `negatives`.
    fill: Literal["none", "random"] = "none"
    # Steps after which negatives are mined again with the current checkpoint.
    refresh_steps: Positive | None = None
    # A reranker that filters may ask.
    teacher: Baseline | None = None


class LossTerm(Section):
    """One more loss, added to the first with a weight."""

    name: str
    options: dict[str, Any] = {}
    weight: Annotated[float, Field(gt=0)] = 1.0


class Loss(Section):
    name: str = "listwise_softmax"
    options: dict[str, Any] = {}
    plus: tuple[LossTerm, ...] = ()


class Train(Section):
    epochs: Annotated[float, Field(gt=0)] = 1.0
    max_steps: Positive | None = None
    groups_per_step: Positive = 16
    budget_tokens: Positive | None = None  # tokens of a micro-batch; 4096 on a CPU, 16384 on a GPU
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    schedule: str = "cosine"
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    evaluate_every: Positive = 100
    save_every: Positive = 50
    # Evaluations on dev without a new best after which training ends early.
    patience: Positive | None = None
    dev_queries: Positive = 200
    trackers: tuple[str, ...] = ()
    shuffle_labels: bool = False


class Evaluate(Section):
    # The registered retriever whose lists are reranked. `run`: those of each test set's own TREC run file.
    first_stage: str = "bm25"
    depth: Positive = 100
    limit_queries: Positive | None = None
    measures: tuple[str, ...] = ("nDCG@10", "nDCG@5", "MRR@10", "MAP", "R@10", "R@100")
    baselines: tuple[Baseline, ...] = ()


class Gate(Section):
    """What tuned must reach before it may be exported."""

    metric: str = "nDCG@10"
    # Of tuned - base, over all test sets that are no guards.
    min_gain: float = 0.0
    confidence: Fraction = 0.95
    # Test sets, such as another domain's, on which tuned must not be worse than the base.
    guard: tuple[str, ...] = ()


class Decision(Section):
    """Who decided that an input may be used, although its licence does not settle it, and why."""

    input: str
    by: Annotated[str, Field(min_length=1)]
    why: Annotated[str, Field(min_length=1)]


class LicenceRule(Section):
    """What all inputs of the weights must permit, and what a person decided about those that are not clear."""

    # commercial-strict: also no base and no teacher whose own training data forbid commercial use.
    require: Literal["commercial", "commercial-strict"] | None = None
    decisions: tuple[Decision, ...] = ()


# NAME -> options; a list of names gives them their defaults.
Targets = Annotated[
    dict[str, dict[str, Any]], BeforeValidator(lambda t: {name: {} for name in t} if isinstance(t, list) else t)
]


class Export(Section):
    targets: Targets | None = None
    # The one that is frozen into the exports; to be chosen when the sets have several.
    instruction: str | None = None
    golden_pairs: Annotated[int, Field(ge=20)] = 24
    tolerance: Annotated[float, Field(gt=0)] = 1e-4


class Recipe(Section):
    """One experiment. Every key but `name`, `model.base` and `data` has a default."""

    # It names the run's folder, so nothing that leads elsewhere.
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    description: str = ""
    seed: int = 0
    run_dir: str | None = None
    model: Model
    data: Data
    prompt: Prompt = Prompt()
    bm25: Bm25 = Bm25()
    dense: Dense | None = None
    mine: Mine = Mine()
    loss: Loss = Loss()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    gate: Gate | None = None
    licence: LicenceRule = LicenceRule()
    export: Export = Export()

    @property
    def export_targets(self) -> dict[str, dict[str, Any]]:
        """The chosen targets with their options; by default `hf`, and `adapter` where there are adapters."""
        if self.export.targets is not None:
            return self.export.targets
        return {"hf": {}, "adapter": {}} if self.model.method == "lora" else {"hf": {}}


def keys_of(section: type[Section]) -> dict[str, Any]:
    """The keys of a section as a file spells them -> their annotations."""
    hints = typing.get_type_hints(section)
    return {field.alias or name: hints[name] for name, field in section.model_fields.items()}


def sections_in(annotation: Any, in_list: bool = False) -> Iterator[tuple[type[Section], bool]]:
    """The sections that an annotation can hold, each with whether it is the element of a list."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation, in_list
    for argument in typing.get_args(annotation):
        yield from sections_in(argument, in_list or typing.get_origin(annotation) is tuple)


def recipe_keys(root: type[Section] | None = None) -> list[str]:
    """All keys of a recipe, dotted; those of the elements of a list (`[]`) only where they first appear."""
    seen: set[type[Section]] = set()

    def walk(section: type[Section], prefix: str) -> Iterator[str]:
        for key, annotation in keys_of(section).items():
            inner = [(found, in_list) for found, in_list in sections_in(annotation) if found not in seen]
            seen.update(found for found, _ in inner)
            if not inner:
                yield prefix + key
            for found, in_list in inner:
                yield from walk(found, f"{prefix}{key}{'[]' if in_list else ''}.")

    return ["extends", *walk(Recipe, "")] if root in (None, Recipe) else list(walk(root, ""))


# Tuned, under the instruction of the exports: a row of test sets that have another one.
EXPORTED = "exported"
# Keys that are now in another section -> where.
MOVED: dict[Key, str] = {("mine", "language"): "bm25.language", ("mine", "code"): "bm25.code"}
