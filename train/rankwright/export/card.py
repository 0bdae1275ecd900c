"""README.md and SERVE.md of an exported folder: what it is, how to load and serve it, the prompt, the figures."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankwright.data.licences.derived import hub_sets, public
from rankwright.export.proof.runtimes.base import Kind, kind_of
from rankwright.export.target import is_hub_id
from rankwright.model.prompt import PromptContract


def vllm_overrides(folder: Path, contract: PromptContract) -> str:
    """JSON for vLLM's --hf-overrides, which makes a classifier of the scored rows.

    It stays a flag: in config.json it would name a head that transformers does not find. Source: vLLM's
    documentation of score models; the order is [no, yes].
    """
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    classifier = settings["architectures"][0].replace("ForCausalLM", "ForSequenceClassification")
    tokens = [t for t in (contract.no_token, contract.yes_token) if t is not None]
    overrides: dict[str, Any] = {"architectures": [classifier], "classifier_from_token": tokens}
    if contract.no_token is None:
        overrides["method"] = "no_post_processing"
    elif classifier.startswith("Qwen3"):
        overrides["is_original_qwen3_reranker"] = True
    else:
        overrides["method"] = "from_2_way_softmax"
    return json.dumps(overrides)


CARD, SERVE = "README.md", "SERVE.md"
# Stands for the model in both files; `rankwright push` puts the repository's name there. Where a name on the hub would
# not do, they have FOLDER.
PLACE = "PATH"
EXAMPLE = ("what is a bond?", "A bond is a loan that an investor makes to a company.")
HOLDS: dict[Kind, str] = {
    "hf": "",
    "causal": "; this folder holds the language model in its yes/no form",
    "adapter": "; this folder holds the LoRA adapters only",
    "onnx": "; this folder holds it as ONNX",
    "gguf": "; this folder holds it as GGUF, for llama.cpp",
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


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What only the caller of an export knows.

    name: of the model, a word; results: nDCG@10 a test set; calibration: calibration.json; gate: gate.json, where the
    recipe has a gate; ledger: licences.json, without which the card states no licence; training: how the weights were
    made, in sentences.
    """

    title: str = "Reranker"
    name: str = "reranker"
    figures: Mapping[str, str | float | int] = field(default_factory=dict)
    results: Sequence[SetResult] = ()
    calibration: Mapping[str, Any] | None = None
    gate: Mapping[str, Any] | None = None
    ledger: dict[str, Any] | None = None
    training: Sequence[str] = ()


def write_card(
    folder: Path,
    facts: CardFacts,
    contract: PromptContract,
    parity: Mapping[str, Any],
    *,
    base_name: str,
    revision: str | None,
) -> None:
    """Write README.md and SERVE.md; last of all files, since peft writes a card of its own when it saves."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("rankwright.export", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # A bar or a line break would end the cell of a table.
    environment.filters["cell"] = lambda text: " ".join(str(text).split()).replace("|", "\\|")
    # Of a runtime that gives probabilities alone there is no difference of a score.
    environment.filters["figure"] = lambda value: f"{value:.1e}" if isinstance(value, float) else ""
    kind = kind_of(folder)
    facts_of_all = {
        "title": facts.title,
        "name": facts.name,
        "kind": kind,
        "contract": contract,
        "query": EXAMPLE[0],
        "document": EXAMPLE[1],
        **_files(folder, kind, contract),
    }
    metadata = metadata_yaml(
        kind,
        model_name=facts.name,
        base_name=base_name,
        revision=revision,
        ledger=facts.ledger,
        results=facts.results,
    )
    card = environment.get_template("model_card.md.j2").render(
        **facts_of_all,
        **_words(contract),
        metadata=metadata,
        holds=HOLDS[kind],
        ledger=None if facts.ledger is None else public(facts.ledger),
        figures=dict(facts.figures),
        training=list(facts.training),
        calibration=facts.calibration,
        gate=facts.gate,
        parity=parity,
        base_name=base_name,
        revision=revision,
        control_token=next(iter(re.findall(r"<\|\w+\|>", contract.suffix)), "<|im_end|>"),
    )
    serve = environment.get_template("serve.md.j2").render(**facts_of_all)
    for name, text in ((CARD, card), (SERVE, serve)):
        # Blocks that a kind of folder does not have leave empty lines.
        (folder / name).write_text(re.sub(r"\n{3,}", "\n\n", text), encoding="utf-8")


def _files(folder: Path, kind: Kind, contract: PromptContract) -> dict[str, Any]:
    """What the snippets say about the files of this folder."""
    external = (folder / "onnx" / "model.onnx_data").is_file()
    return {
        "gguf_files": sorted(path.name for path in folder.glob("*.gguf")),
        "quantised": (folder / "onnx" / "model_quantized.onnx").is_file(),
        "additional": ', additional_files=["onnx/model.onnx_data"]' if external else "",
        "vllm_overrides": vllm_overrides(folder, contract) if kind == "causal" else "",
    }


def _words(contract: PromptContract) -> dict[str, str]:
    """How a card names the scored tokens, what to take of the logits, the score, and the logits as code."""
    yes, times = f"`{contract.yes_token}` {contract.yes_id}", "" if contract.scale == 1 else f"{contract.scale:g} * "
    if contract.no_id is None:
        words = (f"token ({yes})", f"`{times}logits[yes]`", f"`{times}W[{contract.yes_token}] . h`")
        code = f"{times}logits[:, {contract.yes_id}]"
    else:
        difference = f"`{times}(W[{contract.yes_token}] - W[{contract.no_token}]) . h`"
        logits = f"{times}(logits[yes] - logits[no])" if times else "logits[yes] - logits[no]"
        code = f"{times}(logits[:, {contract.yes_id}] - logits[:, {contract.no_id}])"
        words = (f"tokens ({yes}, `{contract.no_token}` {contract.no_id})", f"`{logits}`", difference)
    return dict(zip(("scored_tokens", "logit", "score", "of_logits"), (*words, code), strict=True))


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
