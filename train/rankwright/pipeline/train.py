"""The train stage: groups from the mined pools, fit(), and the best checkpoint by nDCG@10 on dev."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rankwright.common import console
from rankwright.common.hashing import stable_hash
from rankwright.common.run_folder import RunFolder
from rankwright.data.collection import Collection
from rankwright.data.split_files import qualified, read_split
from rankwright.data.store.views import Joined, KeyedTexts
from rankwright.evaluation.evaluate import measure
from rankwright.evaluation.metrics import HEADLINE
from rankwright.mining.pools import pool_id, read_negatives
from rankwright.model import sharding
from rankwright.model.instructions import frozen_instruction
from rankwright.model.prompt import PromptContract, PromptEncoder
from rankwright.model.token_store import TokenStore, token_store
from rankwright.recipe.schema import Recipe
from rankwright.rerankers.pair_scores import TEACHER_SCORES, read_teacher_scores
from rankwright.rerankers.reranker import Reranker
from rankwright.rerankers.scorer import rerank
from rankwright.retrieval.candidates import read_candidates
from rankwright.training.checkpoint import TrainState, newest_checkpoint, put_damaged_away
from rankwright.training.guards import stop_on_signals
from rankwright.training.loop import Refreshing, fit
from rankwright.training.losses import bind_loss, needs_positive
from rankwright.training.refresh import NoRefresh, Refresh
from rankwright.training.sampling import GroupSource, describe_mix, write_mix
from rankwright.training.setup import (
    budget_tokens,
    build_trainable,
    describe,
    load_base_tokenizer,
    precision,
    recipe_contract,
    total_steps,
)
from rankwright.training.tracking import Trackers, open_trackers

# Another process may still be mining a large corpus while this one waits for it.
WAIT_HOURS = 12


def make_accelerator(recipe: Recipe) -> Any:
    """One process or many, as the launcher's environment says; gloo on CPUs."""
    from datetime import timedelta

    from accelerate import Accelerator, InitProcessGroupKwargs

    sharding.is_wanted()  # refuses what we do not follow before Accelerate acts on it
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="bf16" if precision(recipe) == "bf16" else "no",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=WAIT_HOURS))],
    )


def train(recipe: Recipe, run: RunFolder, inputs: str, accelerator: Any) -> tuple[TrainState, int]:
    """Train, or continue; returns the state at the end, whose best_step is the one to use, and the planned steps."""
    base, tokenizer = load_base_tokenizer(recipe)
    contract = recipe_contract(recipe, base, tokenizer)
    # A single process has nobody to share with.
    shared = sharding.is_wanted() and accelerator.num_processes > 1
    # Not on the GPU before it is sharded: the whole model may be too large for it.
    model = build_trainable(recipe, base, tokenizer, contract, torch.device("cpu") if shared else None)
    if shared:
        sharding.shard(model, accelerator)
    describe(recipe, model, contract, console.say)
    encoder = PromptEncoder(contract, tokenizer)
    store = _tokens_of_all(recipe, run, encoder, accelerator)
    source = make_source(recipe, run, store)
    steps = total_steps(recipe, source.mixture.draws_an_epoch)
    _describe_data(recipe, run, source, steps, accelerator)
    root = run.path / "checkpoints"
    if accelerator.is_main_process:
        set_aside(root, inputs)
    accelerator.wait_for_everyone()
    reranker = Reranker(model, tokenizer, contract, encoder=store)

    def trackers(resumed_step: int) -> Trackers:
        if not accelerator.is_main_process:
            return Trackers()
        opened = open_trackers(
            recipe.train.trackers,
            run.path,
            run_name=recipe.name,
            config=flat_config(recipe),
            resumed_step=resumed_step,
            say=console.say,
        )
        return stack.enter_context(closing(opened))

    with console.progress("train", steps) as advance, ExitStack() as stack, stop_on_signals(console.say) as stop:
        state = fit(
            model,
            source,
            settings=recipe.train,
            loss=bind_loss(recipe.loss),
            total_steps=steps,
            budget_tokens=budget_tokens(recipe),
            seed=recipe.seed,
            contract=_kept_contract(recipe, reranker),
            root=root,
            inputs=inputs,
            accelerator=accelerator,
            evaluate=dev_evaluation(recipe, run, reranker),
            open_trackers=trackers,
            advance=advance,
            say=console.say,
            stop=stop,
            refresh=make_refresh(recipe, run, source, reranker, steps),
        )
    _keep_mix(recipe, run, source, steps, state.step, accelerator)
    _describe_end(state, source)
    return state, steps


def _tokens_of_all(recipe: Recipe, run: RunFolder, encoder: PromptEncoder, accelerator: Any) -> TokenStore:
    """The first process tokenises, the others read."""
    if accelerator.is_main_process:
        tokenised(recipe, run, encoder)
    accelerator.wait_for_everyone()
    return tokenised(recipe, run, encoder)


def tokenised(recipe: Recipe, run: RunFolder, encoder: PromptEncoder) -> TokenStore:
    """The token ids of all that training and the evaluation on dev can draw."""
    queries: dict[str | None, set[str]] = {}
    corpora: list[Mapping[str, str]] = []
    drawn: set[str] = set()
    pools = read_negatives(run.path / "negatives.jsonl")
    # A refresh scores, and may draw, all that was retrieved.
    refreshed = recipe.mine.refresh_steps is not None
    retrieved = read_candidates(run.path / "candidates.jsonl") if refreshed else {}
    for collection in map(qualified, read_split(run.path / "data", "train")):
        queries.setdefault(collection.instruction, set()).update(collection.queries.values())
        for query_id in collection.queries:
            documents = [*collection.positives(query_id), *(n.document_id for n in pools.get(query_id, ()))]
            documents += [c.document_id for c in retrieved.get(query_id, ())]
            documents += list(collection.qrels.get(query_id, {})) if refreshed else []
            drawn |= {f"{len(corpora)}/{d}" for d in documents}
        corpora.append(collection.corpus)
    candidates = read_candidates(run.path / "dev_candidates.jsonl")
    for collection, query_ids in dev_queries(recipe, [qualified(c) for c in read_split(run.path / "data", "dev")]):
        queries.setdefault(collection.instruction, set()).update(collection.queries[q] for q in query_ids)
        drawn |= {f"{len(corpora)}/{c.document_id}" for q in query_ids for c in candidates.get(q, ())}
        corpora.append(collection.corpus)
    del pools, retrieved, candidates
    # Texts are read again where they are tokenised: what training can draw need not fit into memory.
    texts = KeyedTexts(Joined(corpora), drawn)
    with console.progress("tokenise", sum(map(len, queries.values())) + len(texts)) as advance:
        return token_store(run.path / "tokens", encoder, queries, texts, advance)


def make_source(recipe: Recipe, run: RunFolder, encoder: TokenStore) -> GroupSource:
    """The run's training groups, from data/train.jsonl and negatives.jsonl."""
    path = run.path / "negatives.jsonl"
    return GroupSource(
        [qualified(c) for c in read_split(run.path / "data", "train")],
        read_negatives(path),
        encoder,
        settings=recipe.mine,
        seed=recipe.seed,
        pool_id=pool_id(path),
        need_positive=needs_positive(recipe.loss),
        shuffle_labels=recipe.train.shuffle_labels,
        teacher_scores=None if recipe.mine.teacher is None else read_teacher_scores(run.path / TEACHER_SCORES),
    )


def make_refresh(
    recipe: Recipe, run: RunFolder, source: GroupSource, reranker: Reranker, total_steps: int
) -> Refreshing:
    """What mines negatives again every mine.refresh_steps; NoRefresh without."""
    if recipe.mine.refresh_steps is None:
        return NoRefresh()
    collections = [qualified(c) for c in read_split(run.path / "data", "train")]
    return Refresh(recipe, run, source, reranker, collections, total_steps=total_steps)


def set_aside(root: Path, inputs: str) -> None:
    """Move checkpoints of other inputs out of the way: they are kept, but not continued from."""
    put_damaged_away(root, console.say)
    found = newest_checkpoint(root, console.say)
    if found is None or found[1].inputs == inputs:
        return
    kept = root.with_name(f"{root.name}-{found[1].inputs}")
    number = 1
    while kept.exists():
        number += 1
        kept = root.with_name(f"{root.name}-{found[1].inputs}-{number}")
    root.rename(kept)
    console.say(f"the recipe, the data or the code changed: earlier checkpoints are kept in {kept.name}")


def dev_queries(recipe: Recipe, collections: Sequence[Collection]) -> list[tuple[Collection, list[str]]]:
    """The dev queries of each set that are scored during training: at most train.dev_queries, fixed by seed."""
    relevant = [(c, q) for c in collections for q in c.queries if c.positives(q)]
    relevant.sort(key=lambda pair: stable_hash("dev", recipe.seed, pair[0].name, pair[1]))
    chosen = {(c.name, q) for c, q in relevant[: recipe.train.dev_queries]}
    return [(c, [q for q in c.queries if (c.name, q) in chosen]) for c in collections]


def dev_evaluation(recipe: Recipe, run: RunFolder, reranker: Reranker) -> Callable[[], float]:
    """A function that returns the mean nDCG@10 on dev of the model as it stands, over all ranks' shares.

    A sharded model is whole on every rank for that time: see sharding.gathered.
    """
    collections = [qualified(c) for c in read_split(run.path / "data", "dev")]
    candidates = read_candidates(run.path / "dev_candidates.jsonl")
    shares = dev_queries(recipe, collections)
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if dist.is_initialized() else 0

    def evaluate() -> float:
        values: list[float] = []
        with sharding.gathered(reranker.model):
            for collection, query_ids in shares:
                under = reranker.under(collection.instruction)
                mine = rerank(under, collection, candidates, query_ids[rank::ranks], lambda *_: None)
                values += dev_values(mine, collection, query_ids, ranks)
        return sum(values) / len(values)

    return evaluate


def dev_values(
    mine: dict[str, dict[str, float]], collection: Collection, query_ids: list[str], ranks: int
) -> list[float]:
    """nDCG@10 of each query, from the ranks' shares of the run."""
    shares: list[Any] = [mine]
    if ranks > 1:
        shares = [None] * ranks
        dist.all_gather_object(shares, mine)
    run = {q: scores for share in shares for q, scores in share.items()}
    return list(measure(run, collection.qrels, query_ids, [HEADLINE]).per_query[HEADLINE].values()) if query_ids else []


def flat_config(recipe: Recipe) -> dict[str, Any]:
    """`section.key` -> value, for trackers that take flat settings."""
    flat: dict[str, Any] = {}
    for section, value in recipe.model_dump(mode="json").items():
        flat |= {f"{section}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {section: value}
    return flat


def _describe_data(recipe: Recipe, run: RunFolder, source: GroupSource, steps: int, accelerator: Any) -> None:
    ranks = accelerator.num_processes
    queries, draws = len(source.query_ids), source.mixture.draws_an_epoch
    each = f" of {draws:,.6g} groups" if draws != queries else ""
    left_out = f", {source.left_out} queries without a positive or a negative left out" if source.left_out else ""
    console.say(
        f"train on {queries} queries{left_out}: {steps} steps of {recipe.train.groups_per_step} groups "
        f"({steps * recipe.train.groups_per_step / draws:.2f} epochs{each}), up to {recipe.mine.positives} positives "
        f"and {recipe.mine.negatives} negatives a group, {ranks} process{'es' if ranks > 1 else ''}"
    )
    if recipe.train.shuffle_labels:
        console.say("train.shuffle_labels: labels mean nothing in this run, which is a control")
    _keep_mix(recipe, run, source, steps, None, accelerator)


def _keep_mix(
    recipe: Recipe, run: RunFolder, source: GroupSource, planned_steps: int, steps: int | None, accelerator: Any
) -> None:
    """mix.json, from the first process; printed when training starts."""
    if accelerator.is_main_process:
        mix = write_mix(run, source, recipe.train.groups_per_step, planned_steps, steps)
        if steps is None:
            describe_mix(mix, recipe)


def _kept_contract(recipe: Recipe, reranker: Reranker) -> PromptContract:
    """The contract of the checkpoints: with the instruction of the exports, where there are some."""
    return reranker.under(frozen_instruction(recipe) if recipe.export_targets else None).contract


def _describe_end(state: TrainState, source: GroupSource) -> None:
    assert state.best_value is not None, "the last step is always evaluated"
    console.say(
        f"dev nDCG@10 {state.base_value:.3f} -> {state.best_value:.3f}, best at step {state.best_step} of {state.step}"
    )
    if state.best_value <= state.base_value:
        console.say("WARNING: no step was better than the base on dev")
    if source.cut_documents or source.cut_queries:
        console.say(f"cut in training: {source.cut_queries} queries, {source.cut_documents} documents")


def state_facts(state: TrainState, planned_steps: int) -> dict[str, Any]:
    """What the stage's record says of the training; ended_early: by train.patience."""
    facts = {k: v for k, v in dataclasses.asdict(state).items() if k != "inputs"}
    return {**facts, "planned_steps": planned_steps, "ended_early": state.step < planned_steps}
