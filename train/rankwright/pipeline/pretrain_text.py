"""The text of the stage pretrain: its blocks, objectives of a language model, training on it alone, perplexity."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rankwright.common import console
from rankwright.common.plurals import counted
from rankwright.common.processes import Processes
from rankwright.common.run_folder import RunFolder
from rankwright.data.formats.reading import Faults, Reading
from rankwright.data.leakage import LEAST_WORDS, QueriesInTexts
from rankwright.data.split_files import qualified, read_split
from rankwright.model.prompt import PromptEncoder
from rankwright.model.rank_model import RankModel
from rankwright.model.text_blocks import Blocks, Draws, read_texts, split_blocks
from rankwright.pipeline.pretrain_recipes import settings_of
from rankwright.pipeline.train import facts_of, make_accelerator, make_source, reporting, tokenised
from rankwright.recipe.pretrain import DomainText, Replay, text_path
from rankwright.recipe.schema import Recipe
from rankwright.training.checkpoint import Checkpoints
from rankwright.training.language import (
    DIVERGENCE,
    FrozenBase,
    KeepAnswers,
    LanguageObjectives,
    Objective,
    Pass,
    QueryLikelihood,
    TextObjective,
    perplexity,
)
from rankwright.training.loop import Further, Job, fit
from rankwright.training.loss_terms import bind_loss
from rankwright.training.sampling import GroupSource, TrainGroup
from rankwright.training.setup import (
    base_reranker,
    budget_tokens,
    build_trainable,
    describe,
    load_base_tokenizer,
    recipe_prompt,
)

# More is better, as of nDCG@10 on dev: nats per token of held-out text, below zero.
LOG_LIKELIHOOD = "dev_log_likelihood"
DOMAIN, GENERAL = "domain", "general"


@dataclass(frozen=True, slots=True)
class DomainTexts:
    """The blocks of the domain and, with replay, of general text; held_out: name -> the blocks that train nothing."""

    domain: Blocks
    replay: Blocks | None
    held_out: Mapping[str, Blocks]

    @property
    def tokens(self) -> int:
        """Tokens of the domain that are trained on."""
        return len(self.domain) * self.domain.length


def read_domain(recipe: Recipe, run: RunFolder) -> DomainTexts | None:
    """The texts of the recipe, which the first process tokenises; None where it has none.

    Paragraphs that hold a query of dev or test are left out and reported. Raises UserError for fewer tokens than are
    asked for, and for what cannot be read.
    """
    settings = settings_of(recipe)
    if not settings.text:
        return None
    _, tokenizer = load_base_tokenizer(recipe)
    queries = [q for split in ("dev", "test") for c in read_split(run.data, split) for q in c.queries.values()]
    held_out = QueriesInTexts(queries)
    short = f" ({counted(held_out.too_short, 'query')} of fewer than {LEAST_WORDS} words may be)" * bool(
        held_out.too_short
    )
    console.say(
        f"text: documents of the test sets may be in it; paragraphs that hold a query of dev or test are not{short}"
    )

    def blocks(key: str, source: DomainText | Replay, tokens: int | None = None) -> tuple[Blocks, Blocks]:
        path = text_path(source)
        faults = Faults(recipe.data.on_fault)
        reading = Reading(path.name, None, faults, console.say, source.columns, None, {}, source.encoding)
        root = run.pretraining / "texts"
        root.mkdir(parents=True, exist_ok=True)
        with console.progress(f"tokenise {path.name}", 0) as advance:
            stream = read_texts(root, path, tokenizer, reading, held_out=held_out, advance=advance)
        for row in faults.dropped:
            console.say(row.told)
        name = f"pretrain.{key}: {path}"
        length, share = settings.block_tokens, settings.held_out
        return split_blocks(stream, name, length=length, tokens=tokens, held_out=share)

    def read() -> DomainTexts:
        found = [blocks(f"text.{n}", source, source.tokens) for n, source in enumerate(settings.text)]
        domain, out = (Blocks.joined([pair[side] for pair in found]) for side in (0, 1))
        if settings.replay is None:
            return DomainTexts(domain, None, {DOMAIN: out})
        replay, general = blocks("replay", settings.replay)
        return DomainTexts(domain, replay, {DOMAIN: out, GENERAL: general})

    processes = Processes.of_group()
    made = read() if processes.is_first else None
    processes.meet()
    return read() if made is None else made


def draws_of(recipe: Recipe, texts: DomainTexts) -> Draws:
    """The blocks of each step."""
    settings = settings_of(recipe)
    shared: dict[str, Any] = {"share": settings.replay_share, "a_step": settings.blocks_per_step}
    return Draws(texts.domain, texts.replay, seed=recipe.training_seed, **shared)


def steps_of_text(recipe: Recipe, texts: DomainTexts) -> int:
    """The steps of a training on text alone."""
    settings = settings_of(recipe)
    blocks = len(texts.domain) / (1 - settings.replay_share)
    steps = math.ceil(settings.epochs * blocks / settings.blocks_per_step)
    return min(steps, settings.steps or steps)


def further_objectives(recipe: Recipe, run: RunFolder, texts: DomainTexts | None) -> Further | None:
    """The objectives beside the list loss, for the run in `run.pretraining`; None where there are none."""
    settings, weights = settings_of(recipe), settings_of(recipe).objective
    used = (settings.pairs and weights.query_likelihood, texts is not None and weights.text, weights.keep_answers)
    if not any(used) and weights.list == 1.0:
        return None
    return Further(functools.partial(_make, recipe, run, texts), list_weight=weights.list)


def _make(
    recipe: Recipe, run: RunFolder, texts: DomainTexts | None, model: RankModel, encoder: PromptEncoder
) -> LanguageObjectives:
    settings, weights, tokenizer = settings_of(recipe), settings_of(recipe).objective, encoder.tokenizer
    found: list[Objective] = []
    if settings.pairs and weights.query_likelihood:
        pairs = [qualified(c) for c in read_split(RunFolder(run.pretraining).data, "train")]
        most = recipe.prompt.max_tokens
        found.append(QueryLikelihood(weights.query_likelihood, pairs, tokenizer, max_tokens=most))
    # Only adapters are trained: nothing is copied.
    frozen = FrozenBase(model, torch.float32)
    if texts is not None and weights.text:
        # Without general text, what the base knows is held by its own predictions.
        divergence = DIVERGENCE if settings.replay is None else 0.0
        found.append(TextObjective(weights.text, draws_of(recipe, texts), divergence=divergence, base=frozen))
    if weights.keep_answers:
        if settings.pairs:
            found.append(KeepAnswers(weights.keep_answers, frozen))
        else:
            found.append(
                KeepAnswersOf(weights.keep_answers, frozen, _groups(recipe, run, encoder), settings.groups_per_step)
            )
    held_out = {} if texts is None else texts.held_out
    return LanguageObjectives(found, held_out=held_out, seed=recipe.training_seed, budget_tokens=budget_tokens(recipe))


class KeepAnswersOf(KeepAnswers):
    """KeepAnswers on the prompts of another source: text alone has none."""

    def __init__(self, weight: float, base: FrozenBase, source: GroupSource, groups_per_step: int) -> None:
        super().__init__(weight, base)
        self._source, self._groups_per_step = source, groups_per_step

    def add(self, run: Pass, groups: Sequence[TrainGroup]) -> dict[str, float]:
        """See Objective.add."""
        return super().add(run, self._source.step(run.step, self._groups_per_step))


def _groups(recipe: Recipe, run: RunFolder, encoder: PromptEncoder) -> GroupSource:
    """The groups that the reranker will be trained on."""
    processes = Processes.of_group()
    if processes.is_first:
        tokenised(recipe, run, encoder)
    processes.meet()
    return make_source(recipe, run, tokenised(recipe, run, encoder))


class NoGroups:
    """The source of a training on text alone."""

    def step(self, step: int, groups_per_step: int) -> list[TrainGroup]:
        """None."""
        return []


def train_on_text(recipe: Recipe, run: RunFolder, inputs: str, *, further: Further) -> dict[str, Any]:
    """As train(), without pairs: the best checkpoint is the one by the perplexity of held-out text of the domain."""
    accelerator, processes = make_accelerator(recipe), Processes.of_group()
    base, tokenizer, contract = recipe_prompt(recipe)
    model = build_trainable(recipe, base, tokenizer, contract)
    describe(recipe, model, contract, console.say)
    language = further.make(model, PromptEncoder(contract, tokenizer))
    checkpoints = Checkpoints(run.checkpoints, inputs, contract)
    if processes.is_first:
        checkpoints.prepare()
    processes.meet()
    steps = recipe.train.max_steps
    assert steps is not None, "the steps of a training on text follow from its blocks"
    settings = (recipe.train, steps, budget_tokens(recipe), recipe.training_seed)
    job = Job(model, NoGroups(), bind_loss(recipe.loss), *settings, accelerator, language, LOG_LIKELIHOOD)

    def evaluate(step: int = 0) -> float:
        return -math.log(language.evaluate(model)[f"{DOMAIN}_perplexity"])

    with reporting(recipe, run, steps) as (reports, stop):
        state = fit(job, checkpoints, reports, evaluate=evaluate, untrained=evaluate, refresh=None, stop=stop)
    return facts_of(state, steps)


def perplexities(recipes: Mapping[str, Recipe], texts: DomainTexts) -> dict[str, dict[str, float]]:
    """Name of the held-out text -> name of the recipe whose base reads it -> perplexity; of all processes together."""
    found: dict[str, dict[str, float]] = {name: {} for name in texts.held_out}
    for when, recipe in recipes.items():
        model = base_reranker(recipe).model
        for name, blocks in texts.held_out.items():
            with console.progress(f"perplexity, {when}, of {name} text", len(blocks)) as advance:
                found[name][when] = perplexity(model, blocks, budget_tokens=budget_tokens(recipe), advance=advance)
    for name, of in found.items():
        before, after = of.values()
        console.say(f"perplexity of held-out {name} text: {before:.2f} -> {after:.2f} ({after / before - 1:+.1%})")
    return found


def describe_text(recipe: Recipe, texts: DomainTexts, steps: int) -> None:
    """What is read of the text in so many steps."""
    settings = settings_of(recipe)
    rounds = draws_of(recipe, texts).rounds(steps)
    read = rounds * texts.tokens
    held = sum(len(blocks) for blocks in texts.held_out.values())
    console.say(
        f"text: {texts.tokens:,} tokens in {counted(len(texts.domain), 'block')} of {settings.block_tokens:,}, "
        f"{counted(held, 'block')} held out; {counted(steps, 'step')} read {read:,.0f} tokens of the domain "
        f"({rounds:.2f} times)"
    )
    if rounds > 1.01:
        console.say("WARNING: text is read more than once, which teaches little: fewer steps, or more text")
    elif rounds < 0.5:
        console.say("less than half of the text is read: raise pretrain.blocks_per_step, or pretrain.epochs and steps")
