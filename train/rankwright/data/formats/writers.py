"""Collections as rows of each format; what a format cannot hold is counted."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from rankwright.common.hashing import content_id
from rankwright.common.registry import Registry
from rankwright.data.collection import Collection
from rankwright.data.store.texts import TextBuilder

RowWriter = Callable[[Collection], Iterator[dict[str, Any]]]
WRITERS: Registry[RowWriter] = Registry("format", hyphens=True)

# Format -> what it holds in addition to texts and which documents are relevant:
#   ids, labels (graded), scores (a teacher's), weights, groups, instruction,
#   negatives (judged not relevant), lonely (queries without a positive), documents (unjudged ones),
#   queries (unjudged ones)
HOLDS: Mapping[str, frozenset[str]] = {
    "groups": frozenset("ids labels scores weights groups instruction negatives lonely queries".split()),
    "flagembedding": frozenset("ids scores instruction negatives lonely queries".split()),
    "tevatron": frozenset("ids negatives lonely queries".split()),
    "ms-swift": frozenset("instruction negatives lonely queries".split()),
    "pairs": frozenset(),
    "triplets": frozenset(["negatives"]),
    "n-tuple": frozenset(["negatives"]),
    "scored-pairs": frozenset("labels negatives lonely".split()),
    "labelled-lists": frozenset("labels negatives lonely queries".split()),
    "beir": frozenset("ids labels groups negatives lonely documents".split()),
    "trec": frozenset("ids labels negatives lonely documents".split()),
}


def losses(collection: Collection, format: str) -> Counter[str]:
    """What of a set the format cannot hold: description -> how many; some are 0."""
    holds, found = HOLDS[format], Counter[str]()
    judged = [(q, d, label) for q, row in collection.qrels.items() for d, label in row.items()]
    if "labels" not in holds:
        found["graded labels, written as relevant or not"] = sum(label not in (0, 1) for *_, label in judged)
    if "negatives" not in holds:
        found["documents judged not relevant"] = sum(label <= 0 for *_, label in judged)
    if "scores" not in holds:
        found["teacher scores"] = sum(map(len, collection.teacher_scores.values()))
    if "weights" not in holds:
        found["weights of queries"] = len(collection.weights)
    if "groups" not in holds:
        found["group keys"] = len(collection.query_groups) + len(collection.document_groups)
    if "instruction" not in holds:
        found["instruction"] = int(collection.instruction is not None)
    if "documents" not in holds:
        known = {d for _, d, _ in judged}
        found["unjudged documents"] = sum(d not in known for d in collection.corpus)
    unjudged = {q for q in collection.queries if not collection.qrels.get(q)}
    if "queries" not in holds:
        found["unjudged queries"] = len(unjudged)
    if "lonely" not in holds:
        lonely = sum(not collection.positives(q) for q in collection.queries if q not in unjudged)
        found["queries without a relevant document"] = lonely
    if "ids" not in holds:
        texts = itertools.chain(collection.corpus.items(), collection.queries.items())
        found["ids, made anew from the texts when read"] = sum(key != content_id(text) for key, text in texts)
    if format == "triplets":
        alone = [q for q in collection.queries if collection.positives(q) and not negatives(collection, q)]
        found["queries without a judged negative"] = len(alone)
    return found


def without_ids(collection: Collection, found: Counter[str]) -> Collection:
    """The set as a format without ids gives it back: equal texts are one, with the higher of two labels."""
    documents: dict[str, str] = {}
    corpus = TextBuilder()
    for d, text in collection.corpus.items():
        documents[d] = content_id(text)
        corpus.add(documents[d], text)
    queries = {q: content_id(text) for q, text in collection.queries.items()}
    qrels: dict[str, dict[str, float]] = {}
    scores: dict[str, dict[str, float]] = {}
    for q, row in collection.qrels.items():
        judged = qrels.setdefault(queries[q], {})
        for d, label in row.items():
            key = documents[d]
            found["judgements of documents with the text of another: the higher label is written"] += key in judged
            judged[key] = max(label, judged.get(key, label))
            score = collection.teacher_scores.get(q, {}).get(d)
            if score is not None:
                scores.setdefault(queries[q], {}).setdefault(key, score)
    found["queries with the text of another, written as one"] = len(queries) - len(set(queries.values()))
    return replace(
        collection,
        corpus=corpus.finish(),
        queries={queries[q]: text for q, text in collection.queries.items()},
        qrels=qrels,
        teacher_scores=scores,
        weights={queries[q]: weight for q, weight in collection.weights.items()},
        query_groups={},
        document_groups={},
    )


def fits_a_table(identifier: str) -> bool:
    """Whether an id survives a file of columns: no white space at its ends, no tab or line break inside."""
    return identifier == identifier.strip() and not set(identifier) & set("\t\r\n")


def negatives(collection: Collection, query: str) -> list[str]:
    """Ids of the documents judged not relevant."""
    return [d for d, label in collection.qrels.get(query, {}).items() if label <= 0]


def _sides(collection: Collection, query: str) -> tuple[list[str], list[str]]:
    return list(collection.positives(query)), negatives(collection, query)


def _texts(collection: Collection, ids: list[str]) -> list[str]:
    return [collection.corpus[d] for d in ids]


@WRITERS.register
def groups(collection: Collection) -> Iterator[dict[str, Any]]:
    for query, text in collection.queries.items():
        scores = collection.teacher_scores.get(query, {})

        def objects(ids: list[str], query: str = query, scores: Mapping[str, float] = scores) -> list[dict[str, Any]]:
            return [
                {
                    "id": d,
                    "text": collection.corpus[d],
                    "label": collection.qrels[query][d],
                    "score": scores.get(d),
                    "group": collection.document_groups.get(d),
                }
                for d in ids
            ]

        positives, others = _sides(collection, query)
        yield {
            "query_id": query,
            "query": text,
            "positives": objects(positives),
            "negatives": objects(others),
            "weight": collection.weights.get(query),
            "group": collection.query_groups.get(query),
            "instruction": collection.instruction,
        }


@WRITERS.register
def flagembedding(collection: Collection) -> Iterator[dict[str, Any]]:
    for query, text in collection.queries.items():
        positives, others = _sides(collection, query)
        scores = collection.teacher_scores.get(query, {})
        yield {
            "query_id": query,
            "query": text,
            "pos": _texts(collection, positives),
            "neg": _texts(collection, others),
            "pos_scores": [scores.get(d) for d in positives] if scores else None,
            "neg_scores": [scores.get(d) for d in others] if scores else None,
            "pos_id": positives,
            "neg_id": others,
            "prompt": collection.instruction,
        }


@WRITERS.register
def tevatron(collection: Collection) -> Iterator[dict[str, Any]]:
    for query, text in collection.queries.items():
        positives, others = (
            [{"docid": d, "title": "", "text": collection.corpus[d]} for d in ids] for ids in _sides(collection, query)
        )
        yield {"query_id": query, "query": text, "positive_passages": positives, "negative_passages": others}


@WRITERS.register
def ms_swift(collection: Collection) -> Iterator[dict[str, Any]]:
    system = [{"role": "system", "content": collection.instruction}] if collection.instruction is not None else []
    for query, text in collection.queries.items():
        positives, others = (
            [[{"role": "assistant", "content": collection.corpus[d]}] for d in ids] for ids in _sides(collection, query)
        )
        turns = [*system, {"role": "user", "content": text}]
        yield {"messages": turns, "positive_messages": positives, "negative_messages": others}


@WRITERS.register
def pairs(collection: Collection) -> Iterator[dict[str, Any]]:
    for query, text in collection.queries.items():
        for document in _texts(collection, list(collection.positives(query))):
            yield {"anchor": text, "positive": document}


@WRITERS.register
def triplets(collection: Collection) -> Iterator[dict[str, Any]]:
    for query, text in collection.queries.items():
        positives, others = (_texts(collection, ids) for ids in _sides(collection, query))
        # Each document at least once; all combinations would repeat every pair.
        for number in range(max(len(positives), len(others)) if positives and others else 0):
            yield {
                "anchor": text,
                "positive": positives[number % len(positives)],
                "negative": others[number % len(others)],
            }


@WRITERS.register
def n_tuple(collection: Collection) -> Iterator[dict[str, Any]]:
    width = most_negatives(collection)
    for query, text in collection.queries.items():
        positives, others = (_texts(collection, ids) for ids in _sides(collection, query))
        padded = [*others, *[None] * (width - len(others))]
        for document in positives:
            yield {
                "anchor": text,
                "positive": document,
                **{f"negative_{number}": other for number, other in enumerate(padded, start=1)},
            }


def most_negatives(collection: Collection) -> int:
    """How many columns of negatives the format n-tuple needs, at least two."""
    return max(2, *(len(negatives(collection, q)) for q in collection.queries if collection.positives(q)), 0)


@WRITERS.register
def scored_pairs(collection: Collection) -> Iterator[dict[str, Any]]:
    for query, text in collection.queries.items():
        for document, label in collection.qrels.get(query, {}).items():
            yield {"query": text, "document": collection.corpus[document], "label": label}


@WRITERS.register
def labelled_lists(collection: Collection) -> Iterator[dict[str, Any]]:
    for query, text in collection.queries.items():
        judged = collection.qrels.get(query, {})
        yield {"query": text, "documents": _texts(collection, list(judged)), "labels": list(judged.values())}


def json_row(value: Any) -> str:
    """A row, or a cell of CSV, as JSON."""
    return json.dumps(_slim(value), ensure_ascii=False)


def _slim(value: Any) -> Any:
    """Without keys whose value is None; Nones inside a list stay, since they hold a place."""
    if isinstance(value, Mapping):
        return {key: _slim(part) for key, part in value.items() if part is not None}
    return [_slim(part) for part in value] if isinstance(value, list) else value


def beir_texts(texts: Mapping[str, str], groups: Mapping[str, str]) -> Iterator[str]:
    """Lines of corpus.jsonl or queries.jsonl."""
    for key, text in texts.items():
        yield json_row({"_id": key, "text": text, "metadata": {"group": groups[key]} if key in groups else None})


def beir_qrels(collection: Collection) -> Iterator[str]:
    """Lines of a TSV of judgements, with its header."""
    yield "query-id\tcorpus-id\tscore"
    yield from judgement_lines(collection, "{}\t{}\t{}")


def judgement_lines(collection: Collection, form: str) -> Iterator[str]:
    """One line per judgement; form: with {} for query id, document id and label."""
    for query, row in collection.qrels.items():
        for document, label in row.items():
            yield form.format(query, document, int(label) if label == int(label) else label)
