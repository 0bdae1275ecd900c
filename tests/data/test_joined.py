"""Tables joined by ids: columns by their names in four languages, faults with their places, splits."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankwright import read_collection
from rankwright.common.errors import UserError
from rankwright.data.discovery import find_sets

TABLES = {
    "queries.csv": "query_id,query\n1,when does it end\n2,who pays\n",
    "documents.csv": "doc_id,title,text,team\nA, T ,it ends here,x\n B ,,the buyer pays,y\n",
    "labels.csv": "query_id,doc_id,label\n1,A,2\n1,B,0\n2,B,1\n",
}


def written(folder: Path, **changed: str | None) -> Path:
    for name, text in (TABLES | {f"{name}.csv": text for name, text in changed.items()}).items():
        if text is not None:
            (folder / name).write_text(text)
    return folder


def test_the_set_is_joined_by_its_ids(tmp_path: Path) -> None:
    said: list[str] = []
    read = read_collection(written(tmp_path), name="set", say=said.append)
    assert read.queries == {"1": "when does it end", "2": "who pays"}
    assert dict(read.corpus) == {"A": "T\nit ends here", "B": "the buyer pays"}
    assert read.qrels == {"1": {"A": 2, "B": 0}, "2": {"B": 1}}
    assert "documents.csv: id = doc_id, text = text, title = title; columns not used: team" in said


@pytest.mark.parametrize(
    ("queries", "documents", "labels"),
    [
        ("id,question", "id,answer", "question_id,answer_id,rating"),
        ("qid,text", "docid,body", "qid,docid,relevance"),
        ("nr,Frage", "nr,Text", "Frage Nr,Dokument Nr,Bewertung"),
        ("id_requ\u00eate,requ\u00eate", "id_document,contenu", "id_requ\u00eate,id_document,pertinence"),
        ("id,pregunta", "id,respuesta", "pregunta_id,respuesta_id,relevancia"),
        ("queryId,queryText", "documentId,documentText", "queryId,documentId,score"),
    ],
)
def test_columns_by_their_names(tmp_path: Path, queries: str, documents: str, labels: str) -> None:
    changed = {"queries": queries, "documents": documents, "labels": labels}
    rows = {"queries": "1,who pays\n", "documents": "7,the buyer\n8,nobody\n", "labels": "1,7,1\n1,8,0\n"}
    written(tmp_path, **{name: f"{header}\n{rows[name]}" for name, header in changed.items()})
    assert read_collection(tmp_path, name="set").qrels == {"1": {"7": 1, "8": 0}}


def test_columns_and_labels_that_are_named(tmp_path: Path) -> None:
    written(
        tmp_path,
        queries="k,x,y\n1,who pays,z\n",
        documents="k2,x2,y\n7,the buyer,z\n8,nobody,z\n",
        labels="k,k2,w,v\n1,7,good,z\n1,8,bad,z\n",
    )
    columns = {"query_id": "k", "query": "x", "document_id": "k2", "document": "x2", "label": "w"}
    read = read_collection(tmp_path, name="set", columns=columns, labels={"good": 1, "bad": 0})
    assert read.qrels == {"1": {"7": 1, "8": 0}} and read.corpus["7"] == "the buyer"
    with pytest.raises(UserError, match=r"labels\.csv:2: w 'good' is not a number"):
        read_collection(tmp_path, name="set", columns=columns)
    with pytest.raises(UserError, match=r"no column 'kk' for query_id, did you mean 'k'\?"):
        read_collection(tmp_path, name="set", columns=columns | {"query_id": "kk"})


@pytest.mark.parametrize(
    ("table", "text", "message"),
    [
        (
            "labels",
            "query_id,doc_id,label\n1,A,1\n1,C,1\n",
            "labels.csv:3: 1 judgement names a document that is not in",
        ),
        ("labels", "query_id,doc_id,label\n3,A,1\n4,A,1\n", "labels.csv:2: 2 judgements name a query that is not in"),
        (
            "labels",
            "query_id,doc_id,label\n1,A,1\n1,A,0\n",
            "labels.csv:3: query '1' and document 'A' are judged 0 here",
        ),
        ("labels", "query_id,doc_id,label\n1,A,\n", "labels.csv:2: `label` is null"),
        ("labels", "query_id,doc_id,label\n,A,1\n", "labels.csv:2: `query_id` is null"),
        ("labels", "query_id,doc_id,label\n1,A,maybe\n", "labels.csv:2: label 'maybe' is not a number"),
        (
            "labels",
            "query_id,label\n1,1\n",
            "labels.csv:1: no column is the id of a document; columns found: query_id, label",
        ),
        (
            "labels",
            "query_id,doc_id,label,grade\n1,A,1,2\n",
            "labels.csv:1: several columns could be the label (label, grade)",
        ),
        ("labels", "query_id,doc_id,checked\n1,A,1\n", "labels.csv:1: no column is the label; columns found"),
        ("labels", "query_id,doc_id,label\n", "labels.csv:1: holds no rows"),
        ("queries", "query_id,query\n1,a\n1,b\n2,c\n", "queries.csv:3: id '1' appears a second time"),
        ("queries", "query_id,query\n1,\n2,c\n", "queries.csv:2: `query` is null"),
        ("documents", "doc_id,text\nA,a\nA,b\nB,c\n", "documents.csv:3: id 'A' appears a second time"),
        (
            "documents",
            "doc_id,one,two\nA,a\u0020b,c d\n",
            "documents.csv:1: several columns could be the text of a document",
        ),
        (
            "documents",
            "doc_id,doc_key,text\nA,a,c d\n",
            "documents.csv:1: several columns could be the id of a document",
        ),
    ],
)
def test_faults_have_their_places(tmp_path: Path, table: str, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_collection(written(tmp_path, **{table: text}), name="set")
    assert str(caught.value).startswith(f"{tmp_path}/{message}")


def test_pairs_without_a_label_are_relevant_and_that_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    written(tmp_path, labels="query_id,doc_id\n1,A\n2,B\n")
    assert read_collection(tmp_path, name="set", say=said.append).qrels == {"1": {"A": 1}, "2": {"B": 1}}
    assert any("no label: every pair counts as relevant" in line for line in said)


def test_splits_are_those_in_the_names_of_the_labels(tmp_path: Path) -> None:
    header = "query_id,doc_id,label\n"
    written(tmp_path, labels=None, labels_train=f"{header}1,A,1\n", labels_test=f"{header}2,B,1\n")
    assert {(one.split, one.upstream) for one in find_sets(tmp_path)} == {("train", "train"), ("test", "test")}
    assert read_collection(tmp_path, name="set", split="test").queries == {"2": "who pays"}
    with pytest.raises(UserError, match="needs one file of labels, found 2"):
        read_collection(tmp_path, name="set")
