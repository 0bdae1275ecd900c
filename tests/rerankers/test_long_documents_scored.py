"""A sentence planted in long documents: a cut loses it, windows and blocks do not; training reads what is scored."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TEXTS

from rankwright import Reranker
from rankwright.data.collection import Collection
from rankwright.evaluation.evaluate import measure
from rankwright.mining.pools import Negative
from rankwright.model.long_documents import AS_CUT, LongDocuments
from rankwright.recipe.schema import Mine
from rankwright.rerankers.scorer import rerank
from rankwright.retrieval.candidates import Candidate
from rankwright.training.sampling import GroupSource, Pools

NEEDLE, WORD = "It pays interest until it matures.", " interest"
QUERY = "when does it mature: what matures?"
FILLER = [sentence for sentence in (*TEXTS[5:8], *TEXTS[8].split(". ")) if "interest" not in sentence]
LISTS, DOCUMENTS = 4, 8


@pytest.fixture(scope="module")
def finds_the_word(tiny_llama: Path) -> Reranker:
    """A real model whose score is the share of the prompt's tokens that are WORD: uniform attention, one direction."""
    reranker = Reranker.load(tiny_llama, mode="portable", max_tokens=330)
    decoder: Any = reranker.model.decoder
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.fill_(1.0 if parameter.ndim == 1 else 0.0)
        for layer in decoder.layers:
            layer.self_attn.v_proj.weight[0, 0] = layer.self_attn.o_proj.weight[0, 0] = 1.0
        decoder.embed_tokens.weight[:, 1] = 1.0
        (number,) = reranker.tokenizer(WORD, add_special_tokens=False)["input_ids"]
        decoder.embed_tokens.weight[number, 0] = 8.0
        reranker.model.rows_2H.zero_()
        reranker.model.rows_2H[1, 0] = 100.0
    return reranker


def planted(*, beyond: bool) -> tuple[Collection, dict[str, list[Candidate]]]:
    """Lists of documents of about 1,500 tokens, the relevant one in the middle of the list's order."""
    draw = random.Random(0)
    corpus, queries, qrels, lists = {}, {}, {}, {}
    for number in range(LISTS):
        ids = [f"d{number}-{place}" for place in range(DOCUMENTS)]
        relevant = ids[1 + number % (DOCUMENTS - 1)]
        for key in ids:
            sentences = [draw.choice(FILLER) for _ in range(36)]
            if key == relevant:
                sentences.insert(draw.randint(14, len(sentences)) if beyond else 1, NEEDLE)
            corpus[key] = "\n\n".join(sentences)
        queries[f"q{number}"], qrels[f"q{number}"] = f"{QUERY} {number}", {relevant: 1.0}
        lists[f"q{number}"] = [Candidate(key, 1.0, place) for place, key in enumerate(ids, start=1)]
    return Collection("planted", corpus, queries, qrels), lists


def quality(scorer: Reranker, collection: Collection, lists: dict[str, list[Candidate]]) -> float:
    run = rerank(scorer, collection, lists, list(lists), lambda *_: None)
    return measure(run, collection.qrels, list(lists), ["nDCG@10"]).mean["nDCG@10"]


@pytest.mark.parametrize("strategy", ["cut", "max", "blocks"])
def test_a_planted_sentence_is_found_wherever_it_is_but_by_a_cut(finds_the_word: Reranker, strategy: str) -> None:
    scorer = finds_the_word.reading(LongDocuments(strategy))
    early, late = (planted(beyond=beyond) for beyond in (False, True))
    assert quality(scorer, *early) == pytest.approx(1.0)
    found = quality(scorer, *late)
    assert found == pytest.approx(1.0) if strategy != "cut" else found < 0.6
    documents = 2 * LISTS * DOCUMENTS
    assert scorer.cut["documents_cut"] == (0 if strategy == "max" else documents)
    assert ("windows" in scorer.cut) == (strategy == "max")
    assert strategy != "max" or scorer.cut["windows"] > 3 * documents


@pytest.mark.parametrize("strategy", ["max", "blocks"])
def test_training_reads_what_is_scored(finds_the_word: Reranker, strategy: str) -> None:
    """The label's prompt is one of those that are scored, and the one that decides where BM25 is right."""
    collection, lists = planted(beyond=True)
    scorer = finds_the_word.reading(LongDocuments(strategy))
    pools = {
        q: [Negative(c.document_id, "bm25", c.rank, 1.0, "unjudged") for c in lists[q] if c.document_id not in judged]
        for q, judged in collection.qrels.items()
    }
    settings = Mine(negatives=3, positives=1)
    source = GroupSource([collection], Pools(pools, "p"), scorer.encoder, settings=settings, seed=0, need_positive=True)
    assert source.query_ids == list(lists)
    for group in source.step(1, LISTS):
        drawn = source.group(group.query_id, 0)
        query = collection.queries[group.query_id]
        assert (group.labels[0], len(group.encoded.tail_ids)) == (1.0, 4)
        with torch.inference_mode():
            trained = finds_the_word.model([group.encoded]).tolist()
        scored = scorer.score(query, drawn.documents)
        assert trained[0] == pytest.approx(scored[0], rel=1e-4) and trained[0] > max(trained[1:])
        assert all(one <= best + 1e-4 for one, best in zip(trained, scored, strict=True))
        if strategy == "blocks":
            assert trained == pytest.approx(scored, rel=1e-4)
        assert scored == pytest.approx(_slow(scorer, query, drawn.documents), rel=1e-4)
    assert source.cut_documents == 4 * LISTS


def _slow(scorer: Reranker, query: str, documents: Any) -> list[float]:
    cutting = scorer.reading(AS_CUT)
    return [max(cutting.score(query, [t])[0] for t in scorer.encoder.texts(query, one)) for one in documents]
