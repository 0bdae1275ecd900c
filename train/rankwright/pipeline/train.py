"""The train stage: groups from the mined pools, fit(), and the best checkpoint by nDCG@10 on dev."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

import torch

from rankwright.common import console
from rankwright.common.hashing import stable_hash
from rankwright.common.plurals import counted
from rankwright.common.processes import Processes
from rankwright.common.run_folder import RunFolder
from rankwright.data.collection import Collection
from rankwright.data.sources import with_share
from rankwright.data.split_files import qualified, read_split
from rankwright.data.store.views import Joined, KeyedTexts
from rankwright.evaluation.dev_values import add_evaluation, settle
from rankwright.evaluation.evaluate import measure
from rankwright.evaluation.metrics import HEADLINE, Scale
from rankwright.mining.pools import read_negatives
from rankwright.model import sharding
from rankwright.model.instructions import frozen_instruction
from rankwright.model.long_documents import PART_READ
from rankwright.model.prompt import PromptEncoder
from rankwright.model.token_store import TokenStore, token_store
from rankwright.recipe.schema import Recipe
from rankwright.rerankers.combination import normaliser_of
from rankwright.rerankers.pair_scores import read_teacher_scores
from rankwright.rerankers.reranker import Reranker
from rankwright.rerankers.scorer import Reranked, rerank
from rankwright.retrieval.candidates import Candidates, read_candidates
from rankwright.training.abstraction import Abstraction
from rankwright.training.checkpoint import Checkpoints, TrainState
from rankwright.training.distillation import affine_match, check_scores
from rankwright.training.guards import StopSignal, stop_on_signals
from rankwright.training.loop import Further, Job, evaluation_interval, fit
from rankwright.training.loss_terms import bind_loss, needs_positive, only_teacher
from rankwright.training.offset import FirstStageOffset
from rankwright.training.refresh import Refresh
from rankwright.training.sampling import GroupSource, Pools, describe_mix, write_mix
from rankwright.training.setup import (
    BaseScorer,
    base_contract,
    budget_tokens,
    build_trainable,
    describe,
    load_base_tokenizer,
    precision,
    recipe_prompt,
    total_steps,
)
from rankwright.training.tracking import Reports, open_trackers, read_metrics

# Another process may still be mining a large corpus while this one waits for it.
WAIT_HOURS = 12


def make_accelerator(recipe: Recipe) -> Any:
    """One process or many, as the launcher's environment has it; gloo on CPUs."""
    from datetime import timedelta

    from accelerate import Accelerator, InitProcessGroupKwargs
    from accelerate.state import AcceleratorState

    # Another training of this process (a notebook) may have had another precision, which Accelerate would not change.
    AcceleratorState._reset_state()
    sharding.is_wanted()  # refuses what we do not follow before Accelerate acts on it
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="bf16" if precision(recipe) == "bf16" else "no",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=WAIT_HOURS))],
    )


def train(
    recipe: Recipe,
    run: RunFolder,
    inputs: str,
    *,
    base: str,
    further: Further | None = None,
    pause_after: int | None = None,
    group: str | None = None,
) -> dict[str, Any]:
    """Train, or continue; returns the state at the end, whose best_step is the one to use, as facts of the stage.

    base: what the base's scores of dev are kept by. further: objectives beside the recipe's loss. group: in wandb.
    pause_after: raise Paused, with a checkpoint, after so many evaluations on dev. ended_early: by train.patience.
    """
    accelerator, processes = make_accelerator(recipe), Processes.of_group()
    model_base, tokenizer, contract = recipe_prompt(recipe)
    # A single process has no other to share with.
    shared = sharding.is_wanted() and processes.count > 1
    # Not on the GPU before it is sharded: the whole model may be too large for it.
    model = build_trainable(recipe, model_base, tokenizer, contract, torch.device("cpu") if shared else None)
    if shared:
        sharding.shard(model, accelerator)
    describe(recipe, model, contract, console.say)
    encoder = PromptEncoder(contract, tokenizer)
    # The first process tokenises, the others read.
    if processes.is_first:
        tokenised(recipe, run, encoder)
    processes.meet()
    store = tokenised(recipe, run, encoder)
    source = make_source(recipe, run, store)
    check_scores(recipe, source)
    steps = total_steps(recipe, source.mixture.draws_an_epoch)
    _describe_data(recipe, source, steps, processes)
    _keep_mix(recipe, run, source, steps, None)
    reranker = Reranker(model, tokenizer, contract, encoder=store)
    # Checkpoints are kept under the instruction of the exports, if there are any.
    kept = reranker.under(frozen_instruction(recipe) if recipe.export_targets else None).contract
    checkpoints = Checkpoints(run.checkpoints, inputs, kept)
    if processes.is_first:
        checkpoints.prepare()
    processes.meet()
    match = affine_match(recipe, run, source, reranker, accelerator, inputs=inputs)
    loss, tokens, auxiliary = bind_loss(recipe.loss, match), budget_tokens(recipe), None
    if further is not None:
        loss, auxiliary = further.weighted(loss), further.make(model, encoder)
    settings = (recipe.train, steps, tokens, recipe.training_seed, accelerator)
    job = Job(model, source, loss, *settings, auxiliary=auxiliary, pause_after=pause_after)
    with reporting(recipe, run, steps, group) as (reports, stop):
        evaluate = dev_evaluation(recipe, run, reranker, inputs)
        untrained = functools.partial(untrained_value, recipe, run, reranker, evaluate, base=base)
        refresh = _refresh(recipe, run, source, reranker, steps)
        state = fit(job, checkpoints, reports, evaluate=evaluate, untrained=untrained, refresh=refresh, stop=stop)
    _keep_mix(recipe, run, source, steps, state.step)
    if processes.is_first and state.best_value is not None:
        settle(run.dev_values, inputs, state.best_step)
    _describe_end(state, source)
    return facts_of(state, steps)


def facts_of(state: TrainState, planned_steps: int) -> dict[str, Any]:
    """What the record of a stage keeps of a training that ended: its state, and whether it was shorter than planned."""
    facts = {k: v for k, v in dataclasses.asdict(state).items() if k != "inputs"}
    early = {"planned_steps": planned_steps, "ended_early": state.step < planned_steps}
    return {**facts, **early, "processes": Processes.of_group().count}


def _refresh(recipe: Recipe, run: RunFolder, source: GroupSource, reranker: Reranker, steps: int) -> Refresh | None:
    if recipe.mine.refresh_steps is None:
        return None
    collections = [qualified(c) for c in read_split(run.data, "train")]
    return Refresh(recipe, run, source, reranker, collections, total_steps=steps)


@contextmanager
def reporting(
    recipe: Recipe, run: RunFolder, steps: int, group: str | None = None
) -> Iterator[tuple[Reports, StopSignal]]:
    """What a training of so many steps reports to, and what asks it to stop."""
    is_first = Processes.of_group().is_first
    settings: dict[str, Any] = {"run_name": recipe.name, "config": flat_config(recipe), "group": group}
    trackers = functools.partial(open_trackers, recipe.train.trackers, run.path, say=console.say, **settings)
    earlier = read_metrics(run.metrics) if is_first else []
    with (
        console.progress("train", steps) as advance,
        closing(Reports(trackers if is_first else lambda step: [], advance, console.say, earlier)) as reports,
        stop_on_signals(console.say) as stop,
    ):
        yield reports, stop


def tokenised(recipe: Recipe, run: RunFolder, encoder: PromptEncoder) -> TokenStore:
    """The token ids of everything that training and the evaluation on dev can use."""
    queries: dict[str | None, set[str]] = {}
    corpora: list[Mapping[str, str]] = []
    drawn: set[str] = set()
    pools = read_negatives(run.negatives)
    # A refresh scores everything that was retrieved, and may draw it.
    refreshed = recipe.mine.refresh_steps is not None
    retrieved = read_candidates(run.candidates) if refreshed else {}
    for collection in map(qualified, read_split(run.data, "train")):
        queries.setdefault(collection.instruction, set()).update(collection.queries.values())
        for query_id in collection.queries:
            documents = [*collection.positives(query_id), *(n.document_id for n in pools.get(query_id, ()))]
            documents += [c.document_id for c in retrieved.get(query_id, ())]
            documents += list(collection.qrels.get(query_id, {})) if refreshed else []
            drawn |= {f"{len(corpora)}/{d}" for d in documents}
        corpora.append(collection.corpus)
    candidates = read_candidates(run.dev_candidates)
    for collection, query_ids in dev_queries(recipe, [qualified(c) for c in read_split(run.data, "dev")]):
        queries.setdefault(collection.instruction, set()).update(collection.queries[q] for q in query_ids)
        drawn |= {f"{len(corpora)}/{c.document_id}" for q in query_ids for c in candidates.get(q, ())}
        corpora.append(collection.corpus)
    del pools, retrieved, candidates
    # Texts are read again when they are tokenised, so that they need not fit into memory together.
    texts = KeyedTexts(Joined(corpora), drawn)
    with console.progress("tokenise", sum(map(len, queries.values())) + len(texts)) as advance:
        return token_store(run.tokens, encoder, queries, texts, advance)


def make_source(recipe: Recipe, run: RunFolder, encoder: TokenStore) -> GroupSource:
    """The run's training groups, from data/train.jsonl and negatives.jsonl."""
    train = [qualified(c) for c in read_split(run.data, "train")]
    scores = read_teacher_scores(run.teacher_scores) if recipe.has_teacher else None
    if recipe.pairs is not None and scores is not None and only_teacher(recipe.loss):
        # The loss of all other queries would be 0.
        train = [c.subset(q for q in c.queries if q in scores) for c in train]
    train = with_share(train, recipe.train.queries_share, seed=recipe.seed)
    source = GroupSource(
        train,
        Pools.read(run.negatives),
        encoder,
        settings=recipe.mine,
        seed=recipe.training_seed,
        need_positive=needs_positive(recipe.loss),
        shuffle_labels=recipe.train.shuffle_labels,
        teacher_scores=scores,
    )
    if recipe.train.first_stage_offset:
        source.offset = first_stage_offset(recipe, run, read_candidates(run.train_lists))
    if recipe.prompt.first_stage_score is not None:
        source.lists, source.dropout = read_candidates(run.train_lists), recipe.prompt.first_stage_score.dropout
    if any(one.abstract is not None for one in recipe.data.train):
        steps = total_steps(recipe, source.mixture.draws_an_epoch)
        source.abstraction = Abstraction(recipe, [c.name for c in train], steps)
    return source


def first_stage_offset(recipe: Recipe, run: RunFolder, lists: Candidates) -> FirstStageOffset:
    """train.first_stage_offset of these lists, normalised as those of dev need it, where evaluate.combine is fitted."""
    dev = read_candidates(run.dev_candidates)
    shares = dev_queries(recipe, [qualified(c) for c in read_split(run.data, "dev")])
    normaliser = normaliser_of([c.score for c in dev.get(q, ())] for _, query_ids in shares for q in query_ids)
    return FirstStageOffset(recipe.train.first_stage_offset, lists, normaliser)


def dev_queries(
    recipe: Recipe, collections: Sequence[Collection], least: int = 0, most: int | None = None
) -> list[tuple[Collection, list[str]]]:
    """The dev queries of each set that are scored during training: at most train.dev_queries, fixed by seed.

    least, most: take so many where there are, or no more, whatever train.dev_queries is; the first of the same order.
    """
    level = recipe.evaluate.relevance_level
    relevant = [(c, q) for c in collections for q in c.queries if c.positives(q, level)]
    relevant.sort(key=lambda pair: stable_hash("dev", recipe.seed, pair[0].name, pair[1]))
    chosen = {(c.name, q) for c, q in relevant[: most or max(least, recipe.train.dev_queries)]}
    return [(c, [q for q in c.queries if (c.name, q) in chosen]) for c in collections]


def untrained_value(
    recipe: Recipe, run: RunFolder, reranker: Reranker, evaluate: Callable[..., float], *, base: str
) -> float:
    """Mean nDCG@10 on dev before step 1. Each process calls this; base: what the base's scores are kept by."""
    processes = Processes.of_group()
    # The first process decides for all: its cache may be another one than theirs.
    known = base_scores(recipe, run, reranker, base) if processes.is_first else None
    value = processes.from_first(None if known is None else evaluate(0, known))
    return evaluate(0) if value is None else value


def base_scores(recipe: Recipe, run: RunFolder, reranker: Reranker, base: str) -> Reranked | None:
    """The base's scores of the dev lists, if the model starts with the same: made once for all runs from this base.

    It does under the base's own contract and in the base's number format, unless it was pre-trained. Several processes
    share the work, and take these scores only where all of them are kept already.
    """
    if reranker.model.sharded or recipe.pretrain is not None or recipe.model.quantize:
        return None
    folder, tokenizer = load_base_tokenizer(recipe)
    in_fp32 = recipe.model.method == "full" and precision(recipe) == "bf16"
    if in_fp32 or reranker.contract != base_contract(recipe, folder, tokenizer):
        return None
    scorer, lists = BaseScorer(recipe, base, loaded=reranker), read_candidates(run.dev_candidates)
    found: Reranked = {}
    for collection, query_ids in dev_queries(recipe, [qualified(c) for c in read_split(run.data, "dev")]):
        wanted = {q: [c.document_id for c in lists.get(q, ())] for q in query_ids}
        if Processes.of_group().count > 1 and not scorer.knows(collection, wanted):
            return None
        found |= scorer.score_pairs(collection, wanted)
    return found


def dev_evaluation(recipe: Recipe, run: RunFolder, reranker: Reranker, inputs: str) -> Callable[..., float]:
    """A function of the step that returns the mean nDCG@10 on dev of the model as it stands, over all ranks' shares.

    Given scores that are known, it takes these instead. The first process keeps each query's value with the step and
    the inputs of the training.
    With train.first_stage_offset, documents are ranked by what is trained: score + offset. A sharded model is whole on
    every rank for that time: see sharding.gathered.
    """
    collections = [qualified(c) for c in read_split(run.data, "dev")]
    candidates = read_candidates(run.dev_candidates)
    shares = dev_queries(recipe, collections)
    offset = first_stage_offset(recipe, run, candidates) if recipe.train.first_stage_offset else None
    processes, scale = Processes.of_group(), Scale.of(recipe.evaluate)

    def score(collection: Collection, query_ids: Sequence[str]) -> Reranked:
        under = reranker.under(collection.instruction)
        share = query_ids[processes.rank :: processes.count]
        mine = rerank(under, collection, candidates, share, lambda *_: None)
        return {q: scores for part in processes.gather(mine) for q, scores in part.items()}

    def evaluate(step: int, known: Reranked | None = None) -> float:
        values: dict[str, float] = {}
        with sharding.gathered(reranker.model):
            for collection, query_ids in shares:
                scored = score(collection, query_ids) if known is None else {q: known[q] for q in query_ids}
                scored = scored if offset is None else offset.added(scored)
                if query_ids:
                    found = measure(scored, collection.qrels, query_ids, [HEADLINE], scale)
                    values |= found.per_query[HEADLINE]
        if processes.is_first:
            add_evaluation(run.dev_values, inputs, step, values)
        return sum(values.values()) / len(values)

    return evaluate


def flat_config(recipe: Recipe) -> dict[str, Any]:
    """`section.key` -> value, for trackers that take flat settings."""
    flat: dict[str, Any] = {}
    for section, value in recipe.model_dump(mode="json").items():
        flat |= {f"{section}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {section: value}
    return flat


def _describe_data(recipe: Recipe, source: GroupSource, steps: int, processes: Processes) -> None:
    queries, draws = len(source.query_ids), source.mixture.draws_an_epoch
    each = f" of {draws:,.6g} groups" if draws != queries else ""
    left_out = (
        f", {counted(source.left_out, 'query')} without a positive or a negative left out" if source.left_out else ""
    )
    console.say(
        f"train on {counted(queries, 'query')}{left_out}: {counted(steps, 'step')} of "
        f"{counted(recipe.train.groups_per_step, 'group')} "
        f"({steps * recipe.train.groups_per_step / draws:.2f} epochs{each}), up to "
        f"{counted(recipe.mine.positives, 'positive')} "
        f"and {counted(recipe.mine.negatives, 'negative')} a group, {counted(processes.count, 'process')}; "
        "dev is evaluated "
        f"every {counted(evaluation_interval(recipe.train, steps), 'step')}"
    )
    if recipe.train.first_stage_offset:
        added = f"{recipe.train.first_stage_offset:g} z({recipe.evaluate.first_stage})"
        console.say(
            f"train.first_stage_offset: the loss and dev nDCG@10 are of score + {added}; tuned alone lacks what "
            f"{recipe.evaluate.first_stage} knows: look at combined"
        )
    if (told := recipe.prompt.first_stage_score) is not None:
        console.say(
            f"prompt.first_stage_score: prompts hold the score of {recipe.evaluate.first_stage} as a number from 0 to "
            f"{told.levels}, but for {told.dropout:.0%} of the groups; so do all prompts of dev and of tuned"
        )
    if recipe.train.queries_share < 1:
        console.say(
            f"train.queries_share: {recipe.train.queries_share:g} of each set's queries, the same for all seeds"
        )
    if recipe.train.shuffle_labels:
        console.say("train.shuffle_labels: labels are shuffled in this run, which is a control")


def _keep_mix(recipe: Recipe, run: RunFolder, source: GroupSource, planned_steps: int, steps: int | None) -> None:
    """mix.json, from the first process; printed when training starts."""
    if Processes.of_group().is_first:
        mix = write_mix(run, source, recipe.train.groups_per_step, planned_steps, steps)
        if steps is None:
            describe_mix(mix, recipe)


def _describe_end(state: TrainState, source: GroupSource) -> None:
    assert state.best_value is not None, "the last step is always evaluated"
    console.say(
        f"dev nDCG@10 {state.base_value:.3f} -> {state.best_value:.3f}, best at step {state.best_step} of {state.step}"
    )
    if state.best_value <= state.base_value:
        console.say("WARNING: no step was better than the base on dev")
    if source.cut_documents or source.cut_queries:
        console.say(
            f"cut in training: {counted(source.cut_queries, 'query')}, {counted(source.cut_documents, 'document')}"
            + PART_READ[next(iter(source.encoders.values())).contract.long_documents.strategy]
        )
