"""Which first stages a recipe makes possible, and their candidates for the queries of a set."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rankwright.common.errors import UserError
from rankwright.recipe.schema import FIRST_STAGES, Recipe
from rankwright.retrieval.candidates import RETRIEVERS, Candidate, Searcher

# In the order of every table; each is a registered retriever, in the module beside it.
MODULES = {"bm25": "bm25", "dense": "dense", "fusion": "fusion", "run": "run_file"}


def possible_stages(recipe: Recipe) -> tuple[str, ...]:
    """The first stages that are evaluated: BM25 always, dense and fusion with `dense:`, run with a set's `run:`."""
    given = {"bm25": True, "dense": recipe.dense is not None, "fusion": recipe.dense is not None}
    given["run"] = any(source.run is not None for source in recipe.data.test)
    return tuple(name for name in FIRST_STAGES if given[name])


def check_first_stages(recipe: Recipe) -> list[str]:
    """Mistakes of `dense`, `mine.retriever`, `evaluate.first_stage`, and the `run` of data sets, as `key: what`."""
    faults = []
    wanted = {"evaluate.first_stage": recipe.evaluate.first_stage, "mine.retriever": recipe.mine.retriever}
    for key, chosen in wanted.items():
        if chosen in ("dense", "fusion") and recipe.dense is None:
            faults.append(f"{key}: {chosen} needs a bi-encoder: add dense: {{model: FOLDER or hub id}}")
    dev = recipe.data.dev if isinstance(recipe.data.dev, tuple) else ()
    for split, sources in (("train", recipe.data.train), ("dev", dev)):
        for number, source in enumerate(sources):
            if source.run is not None and (split == "dev" or recipe.mine.retriever != "run"):
                takes = "test sets, and training sets with mine.retriever: run, take"
                faults.append(f"data.{split}.{number}.run: only {takes} a run file: remove it here")
    for split, key in (("test", "evaluate.first_stage"), ("train", "mine.retriever")):
        if wanted[key] == "run":
            faults += [
                f"data.{split}.{number}.run: {key} is run, and this set has no run file: add run: FILE"
                for number, source in enumerate(getattr(recipe.data, split))
                if source.run is None
            ]
    if recipe.dense is not None:
        faults += _check_dense(recipe.dense.model)
    return faults


def _check_dense(model: str) -> list[str]:
    from rankwright.common.resources import resolve_base
    from rankwright.retrieval.dense import check_installed

    faults = []
    for check in (check_installed, lambda: resolve_base(model, "dense.model")):
        try:
            check()
        except UserError as error:
            faults.append(str(error))
    return faults


def retriever(recipe: Recipe, name: str, depth: int, run_file: Path | None = None) -> Callable[..., Searcher]:
    """The first stage `name` with the recipe's settings: called with a corpus, as all retrievers are."""
    bm25: dict[str, Any] = {"language": recipe.mine.language, "code": recipe.mine.code}
    dense = {} if recipe.dense is None else recipe.dense.model_dump()
    options = {"bm25": bm25, "dense": dense, "fusion": {"bm25": bm25, "dense": dense}, "run": {"path": run_file}}
    importlib.import_module(f"rankwright.retrieval.{MODULES[name]}")
    return RETRIEVERS.bind(name, {**options[name], "depth": depth})


def retrieve(
    recipe: Recipe,
    name: str,
    corpus: Mapping[str, str],
    queries: Mapping[str, str],
    depth: int,
    run_file: Path | None = None,
) -> dict[str, list[Candidate]]:
    """A first stage's candidates for the queries."""
    return retriever(recipe, name, depth, run_file)(corpus)(queries)
