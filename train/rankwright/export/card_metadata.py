"""The metadata of a model card: licence from the ledger, base, sets, and nDCG@10 with its interval (model-index)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rankwright.derived_licence import hub_sets
from rankwright.export.runtimes import Kind
from rankwright.export.trained import is_hub_id

LIBRARIES: dict[Kind, str] = {
    "hf": "sentence-transformers",
    "causal": "sentence-transformers",
    "adapter": "peft",
    "onnx": "fastembed",
    "gguf": "gguf",
}
RELATIONS: dict[Kind, str] = {
    "hf": "finetune",
    "causal": "finetune",
    "adapter": "adapter",
    "onnx": "finetune",
    "gguf": "quantized",
}


@dataclass(frozen=True, slots=True)
class SetResult:
    """nDCG@10 of the exported weights on a test set: mean and 95 % interval over its queries.

    hub: the set's id on the hub, or None; reranked: whose lists, and how long, such as `BM25, best 100`.
    """

    name: str
    hub: str | None
    queries: int
    value: float
    low: float
    high: float
    reranked: str


def metadata_yaml(
    kind: Kind,
    *,
    model_name: str,
    base_name: str,
    revision: str | None,
    ledger: dict[str, Any] | None,
    results: Sequence[SetResult],
) -> str:
    """The YAML block of README.md, through huggingface_hub, which knows what the hub reads. Ends with a newline."""
    from huggingface_hub import EvalResult, ModelCardData

    licence: dict[str, Any] = {} if ledger is None else {"license": ledger["licence"]["hub"]}
    if ledger is not None and ledger["licence"]["name"]:
        licence["license_name"] = ledger["licence"]["name"]
    base: dict[str, Any] = (
        {"base_model": base_name, "base_model_relation": RELATIONS[kind]} if is_hub_id(base_name) else {}
    )
    if base and revision:
        base["base_model_revision"] = revision
    rows = [
        EvalResult(
            task_type="text-ranking",
            task_name="Reranking",
            dataset_name=row.name,
            # The hub wants an id here; a set that is not there has its own name.
            dataset_type=row.hub or row.name,
            dataset_split="test",
            metric_type="ndcg_at_10",
            metric_name="nDCG@10",
            metric_value=round(row.value, 4),
            metric_args={
                "interval_95": [round(row.low, 4), round(row.high, 4)],
                "queries": row.queries,
                "reranked": row.reranked,
            },
        )
        for row in results
    ]
    data = ModelCardData(
        library_name=LIBRARIES[kind],
        pipeline_tag="text-ranking",
        datasets=None if ledger is None else hub_sets(ledger) or None,
        tags=["reranker", "cross-encoder", "rankwright"],
        model_name=model_name,
        eval_results=rows or None,
        **licence,
        **base,
    )
    return data.to_yaml() + "\n"
