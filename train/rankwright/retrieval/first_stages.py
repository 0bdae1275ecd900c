"""The known first stages: which of them a recipe makes possible, its mistakes, and their candidates for a set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rankwright.common import console
from rankwright.common.errors import no_such
from rankwright.common.plurals import counted
from rankwright.data.collection import Collection
from rankwright.recipe.pretrain import CONTROL, CONTROL_LABEL
from rankwright.recipe.schema import Recipe
from rankwright.recipe.sources import Data
from rankwright.retrieval.candidates import Candidate, own_documents, without_own
from rankwright.retrieval.pairs import PAIRS
from rankwright.retrieval.retriever import retrievers


def stage_names() -> list[str]:
    """All first stages, in the order of every table."""
    return [one.name for one in sorted(retrievers().values(), key=lambda one: one.place)]


def stage_label(system: str) -> str:
    """How tables and pages show a system: the label of a first stage, or of the control, any other name as it is."""
    if system == CONTROL:
        return CONTROL_LABEL
    return retrievers()[system].label if system in retrievers() else system


def possible_stages(recipe: Recipe) -> tuple[str, ...]:
    """The first stages that are evaluated: all that need nothing more than the recipe holds."""
    if recipe.is_pairwise:
        # No search finds pairs.
        return (PAIRS.name,)
    return tuple(name for name in stage_names() if retrievers()[name].needs(recipe) is None)


def training_stage(recipe: Recipe) -> str:
    """Whose lists are reranked on dev: those of evaluate.first_stage, or BM25's where dev lacks their run files."""
    chosen = recipe.evaluate.first_stage
    lacks = reads_run_file(chosen) and any(source.run is None for source in recipe.data.dev_sources)
    return "bm25" if lacks else chosen


def searched(recipe: Recipe) -> str:
    """The first stage that searches texts which no run file knows: the recipe's, or BM25."""
    return "bm25" if reads_run_file(training_stage(recipe)) else training_stage(recipe)


def reads_run_file(name: str) -> bool:
    """Whether a first stage's lists are files of the recipe's sets; False for a name that none has."""
    return name in retrievers() and retrievers()[name].reads_run_file


def check_first_stages(recipe: Recipe) -> list[str]:
    """Mistakes of `dense`, `mine.retriever`, `evaluate.first_stage`, and the `run` of data sets, as `key: what`."""
    faults = []
    chosen = {"evaluate.first_stage": recipe.evaluate.first_stage, "mine.retriever": recipe.mine.retriever}
    for key, name in chosen.items():
        if name not in retrievers():
            faults.append(f"{key}: {no_such('retriever', name, retrievers())}")
        elif not reads_run_file(name) and (needed := retrievers()[name].needs(recipe)) is not None:
            faults.append(f"{key}: {name} needs {needed}")
    faults += _run_file_faults(recipe.data, *(key for key, name in chosen.items() if reads_run_file(name)))
    found = [fault for name in possible_stages(recipe) for fault in retrievers()[name].check(recipe)]
    # Two stages with one model find the same mistakes.
    return [*faults, *dict.fromkeys(found)]


def _run_file_faults(data: Data, *keys: str) -> Iterator[str]:
    """Sets that lack a run file, and those whose run file nothing reads; keys: those of the recipe that read some."""
    dev, test = (
        "train" if held is data.train else own for held, own in ((data.dev_sources, "dev"), (data.test_sources, "test"))
    )
    # Split -> the key that has the run files of its sets read.
    needed = {}
    if "evaluate.first_stage" in keys:
        needed[test] = "evaluate.first_stage"
        if any(source.run is not None for source in data.dev_sources):
            needed[dev] = "evaluate.first_stage"
    if "mine.retriever" in keys:
        needed["train"] = "mine.retriever"
    for split in ("train", "dev", "test"):
        sources = getattr(data, split)
        for number, source in enumerate(sources if isinstance(sources, tuple) else ()):
            where = f"data.{split}.{number}.run"
            if source.run is None and split in needed:
                yield f"{where}: {needed[split]} is run, and this set has no run file: add run: FILE"
            elif source.run is not None and split not in (*needed, "test"):
                key = "evaluate.first_stage" if split == dev else "mine.retriever"
                yield f"{where}: nothing reads this run file: write {key}: run, or remove it"


def ordering_models(recipe: Recipe) -> list[tuple[str, str, str | None, bool]]:
    """(what, model, revision, whether its lists are mined or reranked on dev) of the first stages that use a model."""
    mines = {training_stage(recipe), recipe.mine.retriever}
    return [(*model, name in mines) for name in possible_stages(recipe) for model in retrievers()[name].models(recipe)]


def own_of(recipe: Recipe, collection: Collection) -> frozenset[str]:
    """The queries of a set whose own document is left out of their lists, see data.ignore_identical_ids."""
    if not recipe.data.ignore_identical_ids:
        return frozenset()
    return own_documents(collection.queries, collection.corpus, collection.qrels)


def retrieve(
    recipe: Recipe, name: str, collection: Collection, depth: int, run_file: Path | None = None
) -> dict[str, list[Candidate]]:
    """A first stage's candidates for the queries of a set, without their own documents, whose number is reported."""
    own = own_of(recipe, collection)
    # One more, so that a list without its query's own document is as long as the others.
    lists = retrievers()[name].of(recipe, depth + bool(own), run_file)(collection.corpus)(collection.queries)
    if not own:
        return lists
    count = sum(any(c.document_id == q for c in lists[q]) for q in own if q in lists)
    console.say(
        f"{collection.name} {name}: "
        f"{counted(count, 'document with the id of its query', 'documents with the id of their query')} "
        "left out of its list "
        "(data.ignore_identical_ids)"
    )
    return without_own(lists, own, depth)
