"""The pretrain stage: weak pairs and domain text are trained on, and the adapters are merged into the base.

The pairs go through the stages of an ordinary run in the folder `pretrain`, so that kills, several processes and curves
are those of any training. What it learned is merged into the base and written as a folder of a plain model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from rankwright.common import console
from rankwright.common.errors import UserError, UserErrors
from rankwright.common.files import atomic_folder
from rankwright.common.hashing import files_hash
from rankwright.common.outputs import remove
from rankwright.common.plurals import counted
from rankwright.common.run_folder import RunFolder
from rankwright.data import leakage
from rankwright.data.collection import Collection
from rankwright.data.formats.convert import write_table
from rankwright.data.formats.reading import Faults
from rankwright.data.formats.writers import WRITERS
from rankwright.data.normalisation import normalised
from rankwright.data.sources import Located, as_stated, read
from rankwright.data.split_files import read_split
from rankwright.export.weights import without_adapters
from rankwright.model import sharding
from rankwright.model.bases import adapter_base
from rankwright.pipeline.context import Context
from rankwright.pipeline.control import cost
from rankwright.pipeline.pretrain_recipes import (
    from_pretrained,
    pretraining_recipe,
    settings_of,
    share_held_out,
    with_steps,
)
from rankwright.pipeline.pretrain_text import (
    describe_text,
    further_objectives,
    perplexities,
    read_domain,
    steps_of_text,
)
from rankwright.recipe.pretrain import LEAST_RANK, text_path
from rankwright.recipe.schema import Recipe
from rankwright.recipe.sources import Source
from rankwright.training.setup import load_base_tokenizer, total_steps, tuned_reranker

KEY = "pretrain"
# The share of the rows with an empty field above which the columns are wrong, rather than some rows.
MOST_EMPTY = 0.1
FORMAT = "groups"


def check_pretrain(recipe: Recipe) -> list[str]:
    """All faults of the section that its schema does not know, each as `key: what`; none for other recipes."""
    if recipe.pretrain is None:
        return []
    return list(_faults(recipe))


def _faults(recipe: Recipe) -> Iterator[str]:
    settings = settings_of(recipe)
    if recipe.is_pairwise:
        yield f"{KEY}: not for a student that compares pairs: remove the section"
    if sharding.is_wanted():
        yield f"{KEY}: adapters are not merged under FSDP: start it without, or remove the section"
    if recipe.model.quantize is not None:
        yield f"{KEY}: its adapters are not merged into a quantised base: leave model.quantize out, or the section"
    if "adapter" in (recipe.export.targets or {}):
        yield (
            "export.targets: adapter: with pretrain it would be on a base that is nowhere but in the run's folder: "
            "write hf or causal"
        )
    for key, source in settings.texts.items():
        try:
            text_path(source)
        except UserError as error:
            yield f"{KEY}.{key}: {error}"


def pretrain(p: Context) -> dict[str, Any]:
    """The whole stage, which every process of the group calls; returns its facts on the first one."""
    settings, run = settings_of(p.recipe), p.folder
    if settings.rank < LEAST_RANK:
        console.say(
            f"WARNING: {KEY}.rank: {settings.rank}: adapters this small learn little of a domain: take 64, or at least "
            f"{LEAST_RANK}"
        )
    facts: dict[str, Any] = {"pairs": 0, "sets": {}, "equal_texts": 0, "leaking": 0, "text": None, "perplexity": {}}
    sources: tuple[Source, ...] = ()
    if p.processes.is_first and settings.pairs:
        found, sources = prepare_pairs(p.recipe, run, p.located["pretrain"])
        facts |= found
    facts, sources = p.processes.from_first((facts, sources))
    texts = read_domain(p.recipe, run)
    held_out = share_held_out(settings, facts["pairs"], p.recipe.train.dev_queries)
    recipe = pretraining_recipe(p.recipe, run, sources, held_out)
    if texts is not None:
        steps = steps_of_text(p.recipe, texts)
        if not sources:
            recipe = with_steps(recipe, steps)
        else:
            steps = total_steps(recipe, facts["draws"] * (1 - held_out))
        describe_text(p.recipe, texts, steps)
    child = p.nested(recipe, RunFolder(run.pretraining), str(p.inputs.pretrain))
    child.further = further_objectives(p.recipe, run, texts)
    child.run_to("train")
    trained = child.folder.facts("train")
    # Runs of a sweep share the base, and not the metrics.
    facts["cost"] = cost(child.folder)
    facts |= {key: trained.get(key) for key in ("step", "best_step", "base_value", "best_value", "planned_steps")}
    if p.processes.is_first:
        facts["base_after"] = write_base(recipe, child.trained_checkpoint(), child.inputs.train, run.pretrained)
        console.say(f"pre-trained base: {run.pretrained} (sha256 {facts['base_after'][:12]})")
    p.processes.meet()
    if texts is not None:
        after = from_pretrained(p.recipe, run)
        facts["perplexity"] = perplexities({"before": p.recipe, "after": after}, texts)
        facts["text"] = {"tokens": texts.tokens, "blocks": len(texts.domain)}
    return facts


def prepare_pairs(
    recipe: Recipe, run: RunFolder, entries: Sequence[Located]
) -> tuple[dict[str, Any], tuple[Source, ...]]:
    """Read, sift and write the weak pairs: (facts of the stage, entries of what was written).

    Pairs of two equal texts are left out and counted, as are rows with an empty field, and queries that dev or test
    has. Raises UserErrors where too many are, and, by data.on_leak, for queries that dev or test has.
    """
    console.say("weak pairs")
    found = [_read(number, entry) for number, entry in enumerate(entries)]
    sources = [entry.source for entry in entries]
    stated = as_stated(found, sources, seed=recipe.seed, say=console.say)
    sifted = [_without_equal(number, one) for number, one in enumerate(stated)]
    equal = sum(count for _, count in sifted)
    kept, leaks = _apart(recipe, run, [one for one, _ in sifted])
    remove(run.pretrain_pairs)
    made = []
    for source, collection in zip(sources, kept, strict=True):
        path = run.pretrain_pairs / f"{collection.name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(path, WRITERS[FORMAT](dataclasses.replace(collection, instruction=None)))
        made.append(
            Source(
                path=str(path.resolve()),
                format=FORMAT,
                name=collection.name,
                weight=source.weight,
                instruction=source.instruction,
                licence=source.licence,
            )
        )
    queries = {one.name: len(one.queries) for one in kept}
    facts = {"pairs": sum(queries.values()), "sets": queries, "equal_texts": equal, "leaking": leaks}
    facts["draws"] = sum(len(one.queries) * source.weight for source, one in zip(sources, kept, strict=True))
    return facts, tuple(made)


def _read(number: int, entry: Located) -> Collection:
    """The pairs of an entry. Raises UserError where more than MOST_EMPTY of its rows have an empty field."""
    faults = Faults("drop")
    collection = read(entry, console.say, faults)
    dropped = faults.rows_dropped
    pairs = sum(map(len, collection.qrels.values()))
    # A reader keeps a document without text.
    bare = _pairs_where(collection, lambda query, document: not (query.strip() and document.strip()))
    empty = len(bare) + dropped
    for row in faults.dropped:
        console.say(f"  {row.told}")
    if empty > MOST_EMPTY * (pairs + dropped):
        raise UserError(
            f"{KEY}.pairs.{number}: {empty:,} of {counted(pairs + dropped, 'pair')} have an empty field or a fault, "
            f"more than {MOST_EMPTY:.0%}: look at from and to, or mend the file"
        )
    if bare:
        console.say(f"  {collection.name}: {counted(len(bare), 'pair')} with an empty field left out")
    console.say(f"  {collection.name}: {counted(pairs - len(bare), 'pair')}")
    return _without(collection, bare)


def _without_equal(number: int, collection: Collection) -> tuple[Collection, int]:
    """(the set without pairs whose two texts are equal, how many there were)."""
    equal = _pairs_where(collection, lambda query, document: normalised(query) == normalised(document))
    if equal:
        console.say(f"  {collection.name}: {counted(len(equal), 'pair')} of two equal texts left out")
    kept = _without(collection, equal)
    if not kept.queries:
        raise UserError(f"{KEY}.pairs.{number}: {collection.name}: no pair of two different texts: look at from and to")
    return kept, len(equal)


def _pairs_where(collection: Collection, is_so: Callable[[str, str], bool]) -> set[tuple[str, str]]:
    """(query id, document id) of the judged pairs whose two texts are so."""
    return {
        (q, d)
        for q, judged in collection.qrels.items()
        for d in judged
        if is_so(collection.queries[q], collection.corpus[d])
    }


def _without(collection: Collection, pairs: set[tuple[str, str]]) -> Collection:
    """The set without these pairs, and without queries that have none left."""
    if not pairs:
        return collection
    qrels = {
        q: {d: label for d, label in judged.items() if (q, d) not in pairs} for q, judged in collection.qrels.items()
    }
    kept = dataclasses.replace(collection, qrels=qrels)
    return kept.subset(q for q in kept.queries if kept.positives(q))


def _apart(recipe: Recipe, run: RunFolder, pairs: list[Collection]) -> tuple[list[Collection], int]:
    """(the pairs without the queries that dev or test has, how many were left out); as data.on_leak has it."""
    kept, count = pairs, 0
    for split in ("dev", "test"):
        held_out = read_split(run.data, split)
        leaks = leakage.find_leaks(kept, held_out) if held_out else []
        leaking = {query for leak in leaks for query in leak.ours}
        if not leaking:
            continue
        example = leaks[0].example(min(leaks[0].ours))
        if recipe.data.on_leak == "stop":
            raise UserErrors(
                [
                    f"{KEY}.pairs: {counted(len(leaking), 'query')} {'is' if len(leaking) == 1 else 'are'} in {split} "
                    f"too ({leaks[0].kind}: {example}): set data.on_leak: drop to leave them out, or give other pairs"
                ]
            )
        console.say(f"leakage: {counted(len(leaking), 'weak pair')} dropped, in {split} too ({example})")
        kept, count = leakage.drop_leaks(kept, leaks), count + len(leaking)
    if bare := [one.name for one in kept if not one.queries]:
        raise UserError(f"{KEY}.pairs: {', '.join(bare)}: every query is in dev or test: give other pairs")
    if not count:
        console.say("leakage: no query of a weak pair is in dev or test; their documents may be")
    return kept, count


def write_base(recipe: Recipe, checkpoint: Path, inputs: str, folder: Path) -> str:
    """Write the base with the adapters of a checkpoint merged into it; returns the hash of the folder.

    It is a plain model in the number format of the base's own files, with the base's tokenizer and prompt.
    """
    from transformers import AutoTokenizer

    base, _ = load_base_tokenizer(recipe)
    reranker = tuned_reranker(recipe, checkpoint, inputs=inputs, fp32=True)
    merged = without_adapters(reranker.model)
    lm = cast(Any, merged.lm).to(_dtype(base, recipe.model.revision))
    lm.config.name_or_path = ""
    tokenizer = AutoTokenizer.from_pretrained(base, revision=recipe.model.revision, trust_remote_code=False)
    remove(folder)
    with atomic_folder(folder) as draft:
        lm.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        reranker.contract.save(draft)
    return files_hash([folder])


def _dtype(base: str, revision: str | None) -> torch.dtype:
    """The number format of the base's files; fp32 for adapters, whose base has its own."""
    from transformers import AutoConfig

    if adapter_base(base, revision) is not None:
        return torch.float32
    found = AutoConfig.from_pretrained(base, revision=revision, trust_remote_code=False).dtype
    return found if isinstance(found, torch.dtype) else torch.float32
