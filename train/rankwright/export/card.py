"""README.md and SERVE.md of an exported folder: what it is, how to load and serve it, the prompt, the figures."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankwright.common.files import write_text_atomic
from rankwright.common.templates import template_environment
from rankwright.data.licences.derived import hub_sets, public
from rankwright.export.target import Card, is_hub_id, target_of
from rankwright.model.prompt import PromptContract

CARD, SERVE = "README.md", "SERVE.md"
# Stands for the model in both files; `rankwright push` puts the repository's name there. Where only a folder on disk
# will do, the files have FOLDER.
PLACE = "PATH"
# A query and a document with its title, as it is joined for the model (golden.py has this pair too).
EXAMPLE = ("what is a bond?", "Bonds\nA bond is a loan that an investor makes to a company.")


@dataclass(frozen=True, slots=True)
class SetResult:
    """nDCG@10 of the exported weights on a test set: mean and 95 % interval over its queries.

    hub: the set's id on the hub, or None. reranked: the lists that were reranked, such as `BM25, best 100`.
    measure: its name, with the gains of labels that are not their own gain.
    """

    name: str
    hub: str | None
    queries: int
    value: float
    low: float
    high: float
    reranked: str
    measure: str = "nDCG@10"


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What only the caller of an export knows.

    name: of the model, one word. results: nDCG@10 on each test set. calibration: calibration.json. gate: gate.json,
    where the recipe has a gate. ledger: licences.json; without it the card states no licence. training: how the weights
    were made, in sentences. verdict: what the results mean, first the sentence that decides.
    """

    title: str = "Reranker"
    name: str = "reranker"
    figures: Mapping[str, str | float | int] = field(default_factory=dict)
    results: Sequence[SetResult] = ()
    calibration: Mapping[str, Any] | None = None
    gate: Mapping[str, Any] | None = None
    ledger: dict[str, Any] | None = None
    training: Sequence[str] = ()
    verdict: Sequence[str] = ()


def write_card(
    folder: Path,
    facts: CardFacts,
    contract: PromptContract,
    parity: Mapping[str, Any],
    *,
    base_name: str,
    revision: str | None,
) -> None:
    """Write README.md and SERVE.md. They come last of all files, since peft writes a card of its own when it saves."""
    card = target_of(folder).card
    # A runtime that gives only probabilities has no difference of a score.
    filters = {"figure": lambda value: f"{value:.1e}" if isinstance(value, float) else ""}
    environment = template_environment("rankwright.export", html=False, filters=filters)
    names: dict[str, Any] = {
        "title": facts.title,
        "name": facts.name,
        "contract": contract,
        "has_tokenizer": (folder / "tokenizer.json").is_file(),
        # Whether a list is ordered by more than the score of the model.
        "combines": contract.combine_weight < 1 or contract.combine_depth is not None,
        "query": EXAMPLE[0],
        # As it stands between the quotes of Python, JSON or JavaScript.
        "document": json.dumps(EXAMPLE[1])[1:-1],
        "control_token": next(iter(re.findall(r"<\|\w+\|>", contract.suffix)), "<|im_end|>"),
        **_words(contract),
        **card.values(folder, contract),
    }

    def render(text: str, **more: Any) -> str:
        is_file = text.endswith(".md.j2")
        template = environment.get_template(text) if is_file else environment.from_string(text)
        return template.render(**names, **more)

    readme = render(
        "model_card.md.j2",
        metadata=metadata_yaml(card, facts, base_name=base_name, revision=revision),
        holds=card.holds,
        use=render(card.use),
        prompt=render(card.prompt).rstrip(),
        ledger=None if facts.ledger is None else public(facts.ledger),
        figures=dict(facts.figures),
        training=list(facts.training),
        verdict=list(facts.verdict),
        calibration=facts.calibration,
        gate=facts.gate,
        parity=parity,
        base_name=base_name,
        revision=revision,
    )
    serve = "serve_pairwise.md.j2" if contract.is_pairwise else "serve.md.j2"
    for name, text in ((CARD, readme), (SERVE, render(serve, serve=render(card.serve)))):
        # Blocks that a kind of folder does not have leave empty lines.
        (folder / name).write_text(re.sub(r"\n{3,}", "\n\n", text), encoding="utf-8")


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


def metadata_yaml(card: Card, facts: CardFacts, *, base_name: str, revision: str | None) -> str:
    """The YAML block of README.md, through huggingface_hub, which knows what the hub reads. Ends with a newline."""
    from huggingface_hub import EvalResult, ModelCardData

    ledger = facts.ledger
    more: dict[str, Any] = {} if ledger is None else {"license": ledger["licence"]["hub"]}
    if ledger is not None and ledger["licence"]["name"]:
        more["license_name"] = ledger["licence"]["name"]
    if is_hub_id(base_name):
        more |= {"base_model": base_name, "base_model_relation": card.relation}
        if revision:
            more["base_model_revision"] = revision
    rows = [
        EvalResult(
            task_type="text-ranking",
            task_name="Reranking",
            dataset_name=row.name,
            # The hub wants an id here; a set that is not there has its own name.
            dataset_type=row.hub or row.name,
            dataset_split="test",
            metric_type="ndcg_at_10",
            metric_name=row.measure,
            metric_value=round(row.value, 4),
            metric_args={
                "interval_95": [round(row.low, 4), round(row.high, 4)],
                "queries": row.queries,
                "reranked": row.reranked,
            },
        )
        for row in facts.results
    ]
    data = ModelCardData(
        library_name=card.library,
        pipeline_tag="text-ranking",
        datasets=None if ledger is None else hub_sets(ledger) or None,
        tags=["reranker", "cross-encoder", "rankwright"],
        model_name=facts.name,
        eval_results=rows or None,
        **more,
    )
    return data.to_yaml() + "\n"


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A figure of mteb: nDCG@10 of one split of one subset of a task.

    hub: the data's id there, or the task's own name; value: nDCG@10, first_stage: that of the lists as they came
    lists: the lists that were reranked, such as `BM25, best 100`; version: of mteb
    """

    task: str
    hub: str
    revision: str | None
    subset: str
    split: str
    queries: int
    value: float
    first_stage: float
    lists: str
    version: str


MTEB = re.compile(r"\n## MTEB\n.*?(?=\n## |\Z)", re.DOTALL)


def add_benchmarks(path: Path, rows: Sequence[Benchmark]) -> None:
    """Put figures of mteb into a card, in place of earlier ones: its metadata, and a section. The rest stays."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    text = path.read_text(encoding="utf-8")
    card = ModelCard(text, ignore_metadata_errors=True)
    data = card.data
    assert isinstance(data, ModelCardData)
    kept = [row for row in data.eval_results or () if row.source_name != "MTEB"]
    if not rows and len(kept) == len(data.eval_results or ()):
        return
    added = [
        EvalResult(
            task_type="text-ranking",
            task_name="Reranking",
            dataset_name=f"MTEB {row.task}" + (f" ({row.subset})" if row.subset != "default" else ""),
            dataset_type=row.hub,
            dataset_config=row.subset,
            dataset_split=row.split,
            dataset_revision=row.revision,
            metric_type="ndcg_at_10",
            metric_name="nDCG@10",
            metric_value=round(row.value, 4),
            metric_args={
                "queries": row.queries,
                "reranked": row.lists,
                "first_stage": round(row.first_stage, 4),
                "mteb": row.version,
            },
            source_name="MTEB",
            source_url="https://github.com/embeddings-benchmark/mteb",
        )
        for row in rows
    ]
    data.eval_results = [*kept, *added] or None
    body = MTEB.sub("", card.text)
    if rows:
        environment = template_environment("rankwright.export", html=False, filters={})
        section = environment.get_template("part_mteb.md.j2").render(rows=rows)
        body = f"{body.rstrip()}\n\n{section.strip()}\n"
    write_text_atomic(path, f"---\n{data.to_yaml()}\n---\n{body}")
