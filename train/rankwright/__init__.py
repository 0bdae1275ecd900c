"""Rankwright: turn a Qwen3 language model into a reranker for one domain, and prove that it got better."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Reranker", "__version__"]

if TYPE_CHECKING:
    from rankwright.rerankers.reranker import Reranker


def __getattr__(name: str) -> Any:
    """Import torch only when the reranker is asked for, so that `--help` stays fast."""
    if name == "Reranker":
        from rankwright.rerankers.reranker import Reranker

        return Reranker
    raise AttributeError(f"module 'rankwright' has no attribute {name!r}")
