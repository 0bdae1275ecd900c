"""Every key of a recipe in words: type or choices, default, an example and its meaning, from the schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rankwright.common.errors import UserError, did_you_mean
from rankwright.common.resources import schema_file
from rankwright.recipe.schema import recipe_keys

LIMITS = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}
# Keys whose default is not an example of what can be written, in YAML.
EXAMPLES = {
    "extends": "quickstart",
    "name": "contracts",
    "description": "Contracts of 2019 to 2024, with BM25 negatives",
    "run_dir": "runs/contracts",
    "model.base": "Qwen/Qwen3-Reranker-0.6B",
    "model.revision": "main",
    "model.targets": "[q_proj, v_proj]",
    "model.quantize": "nf4",
    "data.root": "/data/sets",
    "data.train[].path": "contracts/train.jsonl",
    "data.train[].card": "coir-cosqa",
    "data.train[].hub": "OWNER/NAME",
    "data.train[].pairs": "runs/zelo-few",
    "data.train[].synthesized": "train",
    "data.train[].format": "pairs",
    "data.train[].columns": "{query: question, document: passage}",
    "data.train[].labels": "{Relevant: 1, Not relevant: 0}",
    "data.train[].encoding": "cp1252",
    "data.train[].config": "default",
    "data.train[].split": "train",
    "data.train[].name": "contracts",
    "data.train[].revision": "main",
    "data.train[].run": "contracts/bm25.run",
    "data.train[].judgements": "contracts-judgements/contracts-judgements.jsonl",
    "data.train[].limit": "5000",
    "data.train[].instruction": "Given a question about a contract, retrieve the clauses that answer it",
    "data.train[].group_key": "filing",
    "data.train[].licence": "own",
    "prompt.query_tokens": "128",
    "dense.model": "sentence-transformers/all-MiniLM-L6-v2",
    "dense.revision": "main",
    "dense.query_prompt": "'query: '",
    "dense.document_prompt": "'passage: '",
    "mine.filters": "{rank_window: {first: 6}}",
    "train.seed": "1",
    "mine.refresh_steps": "500",
    "mine.teacher.name": "large",
    "mine.teacher.kind": "rankwright",
    "mine.teacher.model": "Qwen/Qwen3-Reranker-4B",
    "mine.teacher.revision": "main",
    "mine.teacher.options": "{max_tokens: 1024}",
    "teacher.pairs.judges[].name": "local",
    "teacher.pairs.judges[].url": "http://127.0.0.1:8000/v1",
    "teacher.pairs.judges[].model": "Qwen/Qwen3-4B-Instruct-2507",
    "teacher.pairs.judges[].key_variable": "API_KEY",
    "teacher.pairs.judges[].requests_per_minute": "300",
    "teacher.pairs.judges[].price_per_million.input": "0.15",
    "teacher.pairs.judges[].price_per_million.output": "0.6",
    "teacher.pairs.judges[].extra": "{chat_template_kwargs: {enable_thinking: false}}",
    "teacher.pairs.judges[].licence": "Apache-2.0",
    "teacher.pairs.budget.calls": "200000",
    "teacher.pairs.budget.calls_per_query": "200",
    "teacher.pairs.budget.tokens": "180000000",
    "teacher.pairs.budget.money": "50",
    "teacher.pairs.design": "{top_heavy: {cycles: 1}}",
    "teacher.pairs.across_queries": "2",
    "teacher.pairs.refine.student": "runs/first",
    "synthesize.documents[].path": "contracts",
    "synthesize.documents[].columns": "{document: clause, title: name}",
    "synthesize.documents[].encoding": "cp1252",
    "synthesize.documents[].group_key": "filing",
    "synthesize.documents[].licence": "own",
    "synthesize.writer.model": "Qwen/Qwen3-4B-Instruct-2507",
    "synthesize.writer.url": "http://127.0.0.1:8000/v1",
    "synthesize.writer.key_variable": "API_KEY",
    "synthesize.writer.requests_per_minute": "300",
    "synthesize.writer.price_per_million": "{input: 0.15, output: 0.6}",
    "synthesize.writer.extra": "{chat_template_kwargs: {enable_thinking: false}}",
    "synthesize.writer.licence": "Apache-2.0",
    "synthesize.kinds": "{obligation: 3, exception: 1}",
    "synthesize.examples": "own_queries.txt",
    "synthesize.filters": "{round_trip: {top: 10}, mentions: null}",
    "synthesize.audit.min_accepted": "0.8",
    "synthesize.budget.calls": "4000",
    "synthesize.budget.tokens": "8000000",
    "synthesize.budget.money": "5",
    "pretrain.pairs[].from": "title",
    "pretrain.pairs[].to": "body",
    "pretrain.text[].path": "filings",
    "pretrain.text[].tokens": "50000000",
    "pretrain.text[].columns": "{document: clause, title: name}",
    "pretrain.text[].encoding": "cp1252",
    "pretrain.text[].licence": "own",
    "pretrain.replay.path": "general.jsonl",
    "pretrain.replay.columns": "{document: text}",
    "pretrain.replay.encoding": "cp1252",
    "pretrain.replay.licence": "CC-BY-SA-4.0",
    "pretrain.steps": "2000",
    "loss.options": "{temperature: 2.0}",
    "loss.plus[].name": "bce",
    "loss.plus[].options": "{}",
    "train.max_steps": "500",
    "train.budget_tokens": "8192",
    "train.patience": "5",
    "train.trackers": "[tensorboard]",
    "evaluate.limit_queries": "500",
    "evaluate.gains": "{0: 0, 1: 0, 2: 1}",
    "evaluate.baselines": "[{name: qwen, kind: rankwright, model: Qwen/Qwen3-Reranker-0.6B}]",
    "evaluate.combine": "{prefer: reranker}",
    "gate.at_least": "[first_stage]",
    "gate.guard": "[finance]",
    "licence.require": "commercial",
    "licence.decisions[].input": "contracts",
    "licence.decisions[].by": "A. Lawyer",
    "licence.decisions[].why": "agreement of 2024-05-01",
    "export.targets": "[hf, adapter]",
    "export.instruction": "Given a question about a contract, retrieve the clauses that answer it",
}


@dataclass(frozen=True, slots=True)
class KeyRow:
    """One key. key: dotted, `[]` for the elements of a list; kind: type or choices, in Markdown.

    default: as a recipe writes it, None for null or where the key is required. example: a value in YAML.
    """

    key: str
    kind: str
    default: str | None
    required: bool
    example: str
    meaning: str


def key_rows(section: str | None = None) -> list[KeyRow]:
    """All keys in the schema's order, or those of one section or one key. Raises UserError for an unknown one."""
    keys = recipe_keys()
    if section is None:
        return list(_rows(keys))
    wanted = section.strip(".").replace("[]", "")
    found = [key for key in keys if f"{key.replace('[]', '')}.".startswith(f"{wanted}.")]
    if not found:
        parts = [key.replace("[]", "").split(".") for key in keys]
        known = dict.fromkeys(".".join(path[:depth]) for path in parts for depth in range(1, len(path) + 1))
        sections = ", ".join(dict.fromkeys(path[0] for path in parts if len(path) > 1))
        raise UserError(f"unknown section or key {section!r}{did_you_mean(wanted, known)} (sections: {sections})")
    return [row for row in _rows(keys) if row.key in found]


def _rows(keys: Sequence[str]) -> Iterator[KeyRow]:
    # The shipped file, which a test compares: to make it anew brings torch with the names of losses.
    schema = json.loads(schema_file().read_text(encoding="utf-8"))
    # Section -> where its keys are listed.
    listed: dict[str, str] = {}
    for dotted in keys:
        key, required = find_key(schema, dotted, listed)
        default = None if required or key.get("default") is None else value_of(key["default"])
        example = EXAMPLES.get(dotted) or default
        assert example is not None, f"{dotted}: add an example"
        yield KeyRow(dotted, _type_of(key, listed), default, required, example, key.get("description", ""))


def value_of(value: Any) -> str:
    """A value as a recipe writes it on one line."""
    return json.dumps(value, ensure_ascii=False).replace('""', "''")


def find_key(schema: dict[str, Any], dotted: str, listed: dict[str, str]) -> tuple[dict[str, Any], bool]:
    """(the key's schema, whether it is required); notes in `listed` which sections lead to it."""
    places, prefix = [schema], ""
    key, required = schema, False
    for part in dotted.split("."):
        name = part.removesuffix("[]")
        place = next(place for place in places if name in place.get("properties", {}))
        key = place["properties"][name]
        required = name in place.get("required", ()) or dotted == "model.base" or dotted == "dense.model"
        prefix += part
        places = []
        for section in _references(key):
            if prefix != dotted:
                listed.setdefault(section, prefix)
            places.append(schema["$defs"][section])
        prefix += "."
    return key, required


def _references(key: Any) -> Iterator[str]:
    """The sections that a key can hold."""
    if isinstance(key, dict):
        for name, value in key.items():
            if name == "$ref":
                yield value.rpartition("/")[2]
            else:
                yield from _references(value)
    elif isinstance(key, list):
        for value in key:
            yield from _references(value)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def _type_of(key: dict[str, Any], listed: dict[str, str]) -> str:
    """The type in words, or the choices."""
    if "$ref" in key:
        return f"as `{listed[key['$ref'].rpartition('/')[2]]}`"
    for several in ("anyOf", "oneOf"):
        if several in key:
            return " or ".join(_type_of(kind, listed) for kind in key[several] if kind.get("type") != "null")
    if "enum" in key:
        return ", ".join(f"`{name}`" for name in key["enum"])
    if "const" in key:
        return f"`{key['const'] if isinstance(key['const'], str) else value_of(key['const'])}`"
    kind = key.get("type")
    if kind == "array":
        return f"list of: {_type_of(key['items'], listed)}"
    if kind == "object":
        names = key.get("propertyNames", {}).get("enum", ())
        return "mapping" + (f" of {', '.join(f'`{name}`' for name in names)}" if names else "")
    words = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true, false"}[str(kind)]
    limits = [f"{word} {_number(key[name])}" for name, word in LIMITS.items() if name in key]
    return f"{words} {' and '.join(limits)}".strip()
