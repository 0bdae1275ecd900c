"""The same six groups in every format and container, written here without the package's own writers."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankwright.data.collection import Collection

DOCUMENTS = {
    "d1": "Die Haftung des Käufers endet mit der Übergabe.",
    "d2": 'Zinsen von 5 %, "pro Jahr", werden\nmonatlich gutgeschrieben.',
    "d3": "利息按月计算。",
    "d4": "def f(x):\n\treturn x, [x]",
    "d5": "Revenue rose to € 1,234; costs fell.",
    "d6": "A passage that is relevant to nothing.",
    "d7": "Émile paid the fee 🙂 in March.",
    "nobody": "A passage that no query judges.",
}
# query id, query, group, weight, document -> (label, a teacher's score)
GROUPS: list[tuple[str, str, str, float | None, dict[str, tuple[float, float | None]]]] = [
    ("q1", "Wann endet die Haftung für Schäden?", "case-1", 2.5, {"d1": (3, 4.25), "d2": (1, 0.5), "d6": (0, -3.5)}),
    ("q2", "利息怎么算", "case-1", None, {"d3": (2, 7.5), "d2": (2, 6.5), "d6": (0, -1.0), "d1": (0, 0.0)}),
    ("q3", "function, that returns\ttwo things", "case-2", None, {"d4": (1, None), "d6": (0, None)}),
    ("q4", "How much did revenue rise?", "case-2", 0.5, {"d5": (1, None), "d7": (1, None), "d3": (0, None)}),
    ("q5", "fee paid by Émile", "case-3", None, {"d7": (1, None)}),
    ("q6", "nothing fits", "case-3", None, {"d6": (0, None), "d5": (0, None)}),
]
INSTRUCTION = "Given a question, find the rule that answers it"
DOCUMENT_GROUPS = {"d1": "case-1", "d4": "case-2"}

# What each format can hold beside texts and which documents are relevant; all else is not in what is read.
ALL = "ids labels scores weights groups document_groups instruction negatives lonely unpaired documents"
HOLDS = {
    "beir": "ids labels groups document_groups negatives lonely unpaired documents",
    "trec": "ids labels negatives lonely unpaired documents",
    "groups": "ids labels scores weights groups document_groups instruction negatives lonely unpaired",
    "flagembedding": "ids scores instruction negatives lonely unpaired",
    "tevatron": "ids negatives lonely unpaired",
    "ms-swift": "instruction negatives lonely unpaired",
    "pairs": "unpaired",
    "triplets": "negatives",
    "n-tuple": "negatives unpaired",
    "scored-pairs": "labels negatives lonely unpaired",
    "labelled-lists": "labels negatives lonely unpaired",
}


@dataclass
class Plain:
    """The parts of a Collection, as plain values that compare equal whatever mappings hold them."""

    corpus: dict[str, str] = field(default_factory=dict)
    queries: dict[str, str] = field(default_factory=dict)
    qrels: dict[str, dict[str, float]] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    query_groups: dict[str, str] = field(default_factory=dict)
    document_groups: dict[str, str] = field(default_factory=dict)
    instruction: str | None = None


def plain(collection: Collection) -> Plain:
    return Plain(
        dict(collection.corpus),
        dict(collection.queries),
        {q: dict(row) for q, row in collection.qrels.items()},
        {q: dict(row) for q, row in collection.teacher_scores.items()},
        dict(collection.weights),
        dict(collection.query_groups),
        dict(collection.document_groups),
        collection.instruction,
    )


def hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def expected(*formats: str) -> Plain:
    """The groups after they went through these formats, one after the other."""
    holds = set(ALL.split())
    for name in formats:
        holds &= set(HOLDS[name].split())
    found = Plain(instruction=INSTRUCTION if "instruction" in holds else None)
    ids = {d: d if "ids" in holds else hashed(text) for d, text in DOCUMENTS.items()}
    if "documents" in holds:
        found.corpus = dict(DOCUMENTS)
    for query_id, query, group, weight, judged in GROUPS:
        labels = {d: label for d, (label, _) in judged.items() if label > 0 or "negatives" in holds}
        positive = any(label > 0 for label in labels.values())
        paired = any(label == 0 for label, _ in judged.values())
        if not (positive or "lonely" in holds) or not (paired or "unpaired" in holds):
            continue
        key = query_id
        for name in formats:
            # A TREC topic stands on one line, after a tab. An id is made of the text where a format first has none.
            query = " ".join(query.split()) if name == "trec" else query
            if "ids" not in HOLDS[name].split() and key == query_id:
                key = hashed(query)
        found.queries[key] = query
        graded = "labels" in holds
        found.qrels[key] = {ids[d]: float(label if graded else label > 0) for d, label in labels.items()}
        found.corpus |= {ids[d]: DOCUMENTS[d] for d in labels}
        scores = {ids[d]: score for d, (_, score) in judged.items() if score is not None and d in labels}
        if scores and "scores" in holds:
            found.scores[key] = scores
        if weight is not None and "weights" in holds:
            found.weights[key] = weight
        if "groups" in holds:
            found.query_groups[key] = group
    if "document_groups" in holds:
        found.document_groups = dict(DOCUMENT_GROUPS)
    return found


def _sides(judged: dict[str, tuple[float, float | None]]) -> tuple[list[str], list[str]]:
    return [d for d, (label, _) in judged.items() if label > 0], [d for d, (label, _) in judged.items() if label <= 0]


def groups_rows() -> list[dict[str, Any]]:
    rows = []
    for query_id, query, group, weight, judged in GROUPS:
        row: dict[str, Any] = {"query_id": query_id, "query": query, "group": group, "instruction": INSTRUCTION}
        row["weight"] = weight
        for side, ids in zip(("positives", "negatives"), _sides(judged), strict=True):
            row[side] = [
                {"id": d, "text": DOCUMENTS[d], "label": judged[d][0], "score": judged[d][1]}
                | {"group": DOCUMENT_GROUPS.get(d)}
                for d in ids
            ]
        rows.append(row)
    return rows


def flagembedding_rows() -> list[dict[str, Any]]:
    rows = []
    for query_id, query, _, _, judged in GROUPS:
        row: dict[str, Any] = {"query_id": query_id, "query": query, "prompt": INSTRUCTION, "type": "normal"}
        for side, ids in zip(("pos", "neg"), _sides(judged), strict=True):
            row |= {side: [DOCUMENTS[d] for d in ids], f"{side}_id": ids}
            scores = [judged[d][1] for d in ids]
            row[f"{side}_scores"] = None if None in scores else scores
        rows.append(row)
    return rows


def tevatron_rows() -> list[dict[str, Any]]:
    rows = []
    for query_id, query, _, _, judged in GROUPS:
        row: dict[str, Any] = {"query_id": query_id, "query": query}
        for side, ids in zip(("positive", "negative"), _sides(judged), strict=True):
            row[f"{side}_passages"] = [{"docid": d, "title": "", "text": DOCUMENTS[d]} for d in ids]
        rows.append(row)
    return rows


def ms_swift_rows() -> list[dict[str, Any]]:
    rows = []
    for _, query, _, _, judged in GROUPS:
        turns = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": query}]
        row: dict[str, Any] = {"messages": turns}
        for side, ids in zip(("positive", "negative"), _sides(judged), strict=True):
            row[f"{side}_messages"] = [[{"role": "assistant", "content": DOCUMENTS[d]}] for d in ids]
        rows.append(row)
    return rows


def pairs_rows() -> list[dict[str, Any]]:
    return [{"query": g[1], "answer": DOCUMENTS[d]} for g in GROUPS for d in _sides(g[4])[0]]


def triplets_rows() -> list[dict[str, Any]]:
    return [
        {"anchor": g[1], "positive": DOCUMENTS[p], "negative": DOCUMENTS[n]}
        for g in GROUPS
        for p in _sides(g[4])[0]
        for n in _sides(g[4])[1]
    ]


def n_tuple_rows() -> list[dict[str, Any]]:
    rows = []
    for _, query, _, _, judged in GROUPS:
        positives, negatives = _sides(judged)
        texts = [DOCUMENTS[d] for d in negatives] + [None, None]
        rows += [
            {"query": query, "positive": DOCUMENTS[p], "negative_1": texts[0], "negative_2": texts[1]}
            for p in positives
        ]
    return rows


def scored_pairs_rows() -> list[dict[str, Any]]:
    return [
        {"sentence1": g[1], "sentence2": DOCUMENTS[d], "label": label} for g in GROUPS for d, (label, _) in g[4].items()
    ]


def labelled_lists_rows() -> list[dict[str, Any]]:
    return [
        {"query": g[1], "docs": [DOCUMENTS[d] for d in g[4]], "labels": [label for label, _ in g[4].values()]}
        for g in GROUPS
    ]


ROWS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "groups": groups_rows,
    "flagembedding": flagembedding_rows,
    "tevatron": tevatron_rows,
    "ms-swift": ms_swift_rows,
    "pairs": pairs_rows,
    "triplets": triplets_rows,
    "n-tuple": n_tuple_rows,
    "scored-pairs": scored_pairs_rows,
    "labelled-lists": labelled_lists_rows,
}
CONTAINERS = ("jsonl", "json", "csv", "tsv", "parquet", "arrow", "stream.arrow")


def content(rows: list[dict[str, Any]], end: str) -> bytes:
    """A file of the rows."""
    import pyarrow
    import pyarrow.parquet

    if end == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if end == "json":
        return json.dumps(rows, ensure_ascii=False, indent=2).encode()
    if end in ("csv", "tsv"):
        text = io.StringIO()
        writer = csv.writer(text, delimiter="\t" if end == "tsv" else ",")
        writer.writerow(rows[0])
        for row in rows:
            writer.writerow(json.dumps(v, ensure_ascii=False) if isinstance(v, list) else v for v in row.values())
        return text.getvalue().encode("utf-8-sig")
    table, sink = pyarrow.Table.from_pylist(rows), pyarrow.BufferOutputStream()
    if end == "parquet":
        pyarrow.parquet.write_table(table, sink)
    else:
        open_writer = pyarrow.ipc.new_stream if "stream" in end else pyarrow.ipc.new_file
        with open_writer(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    return bytes(sink.getvalue())


def packed(data: bytes, packing: str) -> bytes:
    import pyarrow

    if packing == ".gz":
        return gzip.compress(data)
    if packing == ".zst":
        sink = pyarrow.BufferOutputStream()
        with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(data)
        return bytes(sink.getvalue())
    return data


def write_rows(path: Path, rows: list[dict[str, Any]], packing: str = "") -> Path:
    """PATH + packing, in the container that PATH's suffixes say."""
    end = "stream.arrow" if path.name.endswith("stream.arrow") else path.suffix[1:]
    file = path.with_name(path.name + packing)
    file.write_bytes(packed(content(rows, end), packing))
    return file


def write_beir(folder: Path, split: str = "test") -> Path:
    (folder / "qrels").mkdir(parents=True)
    corpus = [
        {"_id": d, "title": "", "text": text, "metadata": {"group": DOCUMENT_GROUPS.get(d)}}
        for d, text in DOCUMENTS.items()
    ]
    queries = [{"_id": g[0], "text": g[1], "metadata": {"group": g[2]}} for g in GROUPS]
    (folder / "corpus.jsonl").write_bytes(content(corpus, "jsonl"))
    (folder / "queries.jsonl").write_bytes(content(queries, "jsonl"))
    lines = [f"{g[0]}\t{d}\t{label}\n" for g in GROUPS for d, (label, _) in g[4].items()]
    (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return folder


def write_trec(folder: Path, *, topics: str = "tsv", corpus: str = "jsonl") -> Path:
    folder.mkdir(parents=True)
    if topics == "tsv":
        text = "".join(f"{g[0]}\t{' '.join(g[1].split())}\n" for g in GROUPS)
    else:
        text = "".join(
            f"<top>\n\n<num> Number: {g[0]} \n<title> {' '.join(g[1].split())}\n\n<desc> Description:\nLong\nwords\n"
            f"\n<narr> Narrative:\nLonger words\n</top>\n\n"
            for g in GROUPS
        )
    (folder / f"topics.{'tsv' if topics == 'tsv' else 'txt'}").write_text(text)
    lines = [f"{g[0]} 0 {d} {label}\n" for g in GROUPS for d, (label, _) in g[4].items()]
    (folder / "qrels.txt").write_text("".join(lines))
    if corpus == "jsonl":
        body = content([{"_id": d, "text": text} for d, text in DOCUMENTS.items()], "jsonl").decode()
    else:
        body = "".join(
            f"<DOC>\n<DOCNO> {d} </DOCNO>\n<SOURCE>a <b> c</SOURCE>\n<TEXT>\n<P>\n{text}\n</P>\n</TEXT>\n</DOC>\n"
            for d, text in DOCUMENTS.items()
        )
    (folder / f"corpus.{'jsonl' if corpus == 'jsonl' else 'trec'}").write_text(body)
    return folder
