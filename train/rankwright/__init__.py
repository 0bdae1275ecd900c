"""Rankwright: tune a Qwen3 language model into a reranker for one domain, and measure what it gained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Pipeline",
    "Ranked",
    "Recipe",
    "Reranker",
    "UserError",
    "__version__",
    "compare",
    "load_recipe",
    "read_collection",
    "write_trec_run",
]

if TYPE_CHECKING:
    from rankwright.common.errors import UserError
    from rankwright.data.formats.read import read_collection
    from rankwright.evaluation.compare import compare
    from rankwright.pipeline.stages import Pipeline
    from rankwright.recipe.loading import load_recipe
    from rankwright.recipe.schema import Recipe
    from rankwright.rerankers.reranker import Ranked, Reranker
    from rankwright.retrieval.run_file import write_trec_run

# Name -> module. Imported when a name is asked for, so that `import rankwright` stays quick and without torch.
_HOMES = {
    "Pipeline": "pipeline.stages",
    "Ranked": "rerankers.reranker",
    "Recipe": "recipe.schema",
    "Reranker": "rerankers.reranker",
    "UserError": "common.errors",
    "compare": "evaluation.compare",
    "load_recipe": "recipe.loading",
    "read_collection": "data.formats.read",
    "write_trec_run": "retrieval.run_file",
}


def __getattr__(name: str) -> Any:
    """A public name, imported now."""
    if name not in _HOMES:
        raise AttributeError(f"module 'rankwright' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"rankwright.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
