"""What a first stage is: one record that every table, check and stage reads. A new one is a new file in this folder."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rankwright import retrieval
from rankwright.common.processes import Processes
from rankwright.common.registry import Records, bind
from rankwright.recipe.schema import Recipe
from rankwright.retrieval.candidates import Candidate

# Query id -> text, to query id -> candidates, best first.
Searcher = Callable[[Mapping[str, str]], dict[str, list[Candidate]]]
Options = dict[str, Any]
# (what it is called in the licence ledger, model, revision).
Model = tuple[str, str, str | None]


@dataclass(frozen=True)
class Retriever:
    """A first stage.

    name: what recipes write, and the folder of its results; label: how tables and pages show it
    search: called as search(corpus, **options), with keyword-only options, `depth` among them; it reads the corpus
        once, for any number of searches
    options: (recipe, the set's run file) -> the recipe's options for `search`, without depth
    needs: recipe -> what to add before it can be used, None when nothing is missing
    inputs: like `options`: what its lists depend on, beside texts and depth; a Path counts by the content it leads to
    models: recipe -> the models whose licences count
    check: recipe that it can be used with -> mistakes, as `key: what`
    prepare: work that the processes of a group share before any of them searches, such as encoding the texts
    reads_run_file: its lists come from the TREC run file of each set, which dev sets have not
    nested: a short list is the start of a longer one, so that one search serves several depths
    place: position in tables, smaller first; equal places are in the order of registration
    """

    name: str
    label: str
    search: Callable[..., Searcher]
    options: Callable[[Recipe, Path | None], Options] = lambda recipe, run_file: {}
    needs: Callable[[Recipe], str | None] = lambda recipe: None
    inputs: Callable[[Recipe, Path | None], Options] | None = None
    models: Callable[[Recipe], Sequence[Model]] = lambda recipe: ()
    check: Callable[[Recipe], Sequence[str]] = lambda recipe: ()
    prepare: Callable[[Recipe, Mapping[str, str], Mapping[str, str], Processes], None] | None = None
    reads_run_file: bool = False
    nested: bool = False
    place: int = 100

    def bind(self, options: Mapping[str, Any]) -> Callable[[Mapping[str, str]], Searcher]:
        """`search` with options fixed: called with a corpus. Raises UserError for an option that is wrong."""
        return bind(f"retriever {self.name!r}", self.search, options)

    def of(self, recipe: Recipe, depth: int, run_file: Path | None = None) -> Callable[[Mapping[str, str]], Searcher]:
        """`search` with the recipe's options; called and raises as that of `bind`."""
        return self.bind({**self.options(recipe, run_file), "depth": depth})

    def depends_on(self, recipe: Recipe, run_file: Path | None = None) -> Options:
        """`inputs`, by default the options."""
        return (self.inputs or self.options)(recipe, run_file)


# For what registers one; what reads them calls retrievers().
RETRIEVERS: Records[Retriever] = Records("retriever")


@cache
def retrievers() -> Records[Retriever]:
    """All first stages: those of the files of this folder, and those that other modules added."""
    for module in pkgutil.iter_modules(retrieval.__path__, f"{retrieval.__name__}."):
        importlib.import_module(module.name)
    return RETRIEVERS
