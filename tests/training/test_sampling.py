"""Training groups are a pure function of (seed, step); what is left out is counted; shuffled labels stay labels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import PAIRS

from rankwright.common.errors import UserError
from rankwright.data.collection import Collection
from rankwright.mining.pools import Negative
from rankwright.model.loading import load_tokenizer
from rankwright.model.prompt import PromptEncoder, make_contract
from rankwright.recipe.schema import Mine
from rankwright.training.sampling import GroupSource, Pools

CORPUS = {f"d{i}": document for i, (_, document) in enumerate(PAIRS)}
QUERIES = {f"q{i}": PAIRS[i][0] for i in range(6)}
SET = Collection("set", CORPUS, QUERIES, {f"q{i}": {f"d{i}": 1.0 + i % 2} for i in range(6)})


def mined(*ids: str, source: str = "bm25") -> tuple[Negative, ...]:
    return tuple(Negative(d, source, rank, 1.0, "unjudged") for rank, d in enumerate(ids, start=1))


POOLS = {q: mined(*(f"d{k}" for k in range(8, 20))) for q in QUERIES}


@pytest.fixture(scope="module")
def encoder(tiny_qwen3: Path) -> PromptEncoder:
    tokenizer = load_tokenizer(str(tiny_qwen3))
    return PromptEncoder(make_contract(tokenizer, mode="portable", max_tokens=128), tokenizer)


def make(
    encoder: PromptEncoder, collections: Sequence[Collection] = (SET,), pools: Any = POOLS, **options: Any
) -> GroupSource:
    settings = Mine(negatives=3, positives=2)
    defaults = {"settings": settings, "seed": 0, "need_positive": True}
    found = Pools(pools, options.pop("pool_id", "p"))
    return GroupSource(collections, found, encoder, **{**defaults, **options})


def drawn(source: GroupSource, epoch: int) -> dict[str, tuple[str, ...]]:
    return {q: source.group(q, epoch).document_ids for q in source.query_ids}


def test_a_step_is_a_pure_function_of_seed_and_step(encoder: PromptEncoder) -> None:
    steps = list(range(1, 9))
    source = make(encoder)
    forwards = {step: source.step(step, 4) for step in steps}
    # Backwards, each from a source that has seen nothing, and with the inputs in another order.
    turned = dataclasses.replace(SET, queries=dict(reversed(QUERIES.items())))
    pools = {q: pool[::-1] for q, pool in reversed(POOLS.items())}
    for step in reversed(steps):
        assert make(encoder, [turned], pools).step(step, 4) == forwards[step]
        assert source.step(step, 4) == forwards[step]
    other = make(encoder, seed=1)
    assert [other.step(s, 4) for s in steps] != list(forwards.values())


def test_every_query_once_an_epoch(encoder: PromptEncoder) -> None:
    # 4 steps of 3 groups are two epochs of 6 queries; steps of 4 straddle the epochs.
    for groups in (3, 4):
        flat = [g.query_id for step in range(1, 13) for g in make(encoder).step(step, groups)]
        for start in range(0, len(flat), 6):
            assert sorted(flat[start : start + 6]) == sorted(QUERIES)


def test_a_step_larger_than_an_epoch(encoder: PromptEncoder) -> None:
    ids = [g.query_id for g in make(encoder).step(1, 15)]
    assert sorted(ids[:6]) == sorted(ids[6:12]) == sorted(QUERIES)
    assert ids[:6] != ids[6:12]


@pytest.mark.parametrize("changed", [{"seed": 1}, {"pool_id": "other"}])
def test_other_epoch_seed_or_pool_draws_other_negatives(encoder: PromptEncoder, changed: dict[str, Any]) -> None:
    source = make(encoder)
    assert drawn(source, 0) == drawn(make(encoder), 0)
    assert drawn(source, 0) != drawn(source, 1)
    assert drawn(source, 0) != drawn(make(encoder, **changed), 0)
    # The relevant document stays.
    assert all(ids[0] == f"d{q[1:]}" for q, ids in drawn(source, 1).items())


def test_prompts_are_those_of_the_encoder_in_the_order_of_the_labels(encoder: PromptEncoder) -> None:
    source = make(encoder)
    for group in source.step(1, 6):
        texts = source.group(group.query_id, 0)
        assert group.labels == texts.labels == (1.0 + int(group.query_id[1:]) % 2, 0.0, 0.0, 0.0)
        assert group.encoded == encoder.encode(QUERIES[group.query_id], texts.documents)


def test_cut_texts_are_counted(encoder: PromptEncoder) -> None:
    long = Collection("long", {"d": "word " * 300, "e": "short"}, {"q": "why " * 100}, {"q": {"d": 1.0}})
    source = make(encoder, [long], {"q": mined("e")})
    assert (source.cut_queries, source.cut_documents) == (0, 0)
    (group,) = source.step(1, 1)
    assert len(group.encoded.head_ids) + max(map(len, group.encoded.tail_ids)) == 128
    assert (source.cut_queries, source.cut_documents) == (1, 1)


def mixed() -> tuple[Collection, dict[str, tuple[Negative, ...]]]:
    """One query of every kind."""
    qrels = {
        "good": {"d0": 1.0},
        "no pool": {"d0": 1.0},
        "judged only": {"d1": 0.0},
        "unjudged": {},
        "nothing": {},
    }
    pools = {
        "good": mined("d9"),
        "judged only": mined("d1", source="judged") + mined("d8", "d9"),
        "unjudged": mined("d8", "d9"),
    }
    return Collection("mixed", CORPUS, dict.fromkeys(qrels, "query"), qrels), pools


def test_what_a_list_loss_cannot_use_is_left_out_and_counted(encoder: PromptEncoder) -> None:
    collection, pools = mixed()
    source = make(encoder, [collection], pools)
    assert source.query_ids == ["good"]
    assert source.left_out == 4


def test_a_pointwise_loss_uses_every_query_with_a_judgement(encoder: PromptEncoder) -> None:
    collection, pools = mixed()
    source = make(encoder, [collection], pools, need_positive=False)
    assert source.query_ids == ["good", "no pool", "judged only"]
    assert source.left_out == 2
    # Nobody said that what it retrieves is not relevant.
    assert source.group("judged only", 0).document_ids == ("d1",)
    assert source.group("good", 0).document_ids == ("d0", "d9")


@pytest.mark.parametrize(("need_positive", "wanted"), [(True, "both a relevant"), (False, "a judged document")])
def test_nothing_to_train_on_is_an_error_for_the_user(encoder: PromptEncoder, need_positive: bool, wanted: str) -> None:
    bare = Collection("bare", CORPUS, {"q": "?"}, {"q": {}})
    with pytest.raises(UserError, match=rf"data\.train: no query has {wanted}"):
        make(encoder, [bare], {"q": mined("d1")}, need_positive=need_positive)


def test_two_sets_with_the_same_query_id_are_our_mistake(encoder: PromptEncoder) -> None:
    with pytest.raises(AssertionError, match="not qualified"):
        make(encoder, [SET, SET])


@given(seed=st.integers(0, 99), epoch=st.integers(0, 9))
def test_shuffled_labels_keep_labels_and_documents(encoder: PromptEncoder, seed: int, epoch: int) -> None:
    true, shuffled = (make(encoder, seed=seed, shuffle_labels=s) for s in (False, True))
    for query_id in QUERIES:
        ours, theirs = shuffled.group(query_id, epoch), true.group(query_id, epoch)
        assert sorted(ours.labels) == sorted(theirs.labels)
        assert dataclasses.replace(ours, labels=theirs.labels) == theirs
        assert ours == shuffled.group(query_id, epoch)


def test_shuffled_labels_mean_nothing(encoder: PromptEncoder) -> None:
    source = make(encoder, shuffle_labels=True)
    places = [max(range(4), key=source.group("q0", epoch).labels.__getitem__) for epoch in range(400)]
    # 100 expected at each place, with a standard deviation of 8.7.
    assert all(abs(places.count(p) - 100) < 45 for p in range(4))


def test_the_instruction_of_a_set_changes_its_ids_only(encoder: PromptEncoder) -> None:
    names = {"a": ["q0", "q1", "q2"], "b": ["q3", "q4", "q5"]}
    plain = [dataclasses.replace(SET.subset(ids), name=name) for name, ids in names.items()]
    told = [dataclasses.replace(plain[0], instruction="Find the clause."), plain[1]]
    before, after = make(encoder, plain).step(1, 6), make(encoder, told).step(1, 6)
    assert [dataclasses.replace(g, encoded=None) for g in before] == [
        dataclasses.replace(g, encoded=None) for g in after
    ]
    for old, new in zip(before, after, strict=True):
        assert (old.encoded == new.encoded) == (old.query_id in names["b"])
        assert old.encoded.tail_ids == new.encoded.tail_ids
        texts = make(encoder, told).group(new.query_id, 0)
        instruction = "Find the clause." if new.query_id in names["a"] else None
        assert new.encoded == encoder.under(instruction).encode(texts.query, texts.documents)


def test_a_weight_draws_a_query_again_with_other_documents(encoder: PromptEncoder) -> None:
    twice = dataclasses.replace(SET, draws=2.0)
    groups = make(encoder, [twice]).step(1, 12)
    for query_id in QUERIES:
        first, second = (g for g in groups if g.query_id == query_id)
        assert first.encoded != second.encoded and first.weight == second.weight == 1.0
    # Its second draw is that of a second epoch at a weight of 1.
    once = make(encoder)
    for group in [*once.step(1, 6), *once.step(2, 6)]:
        assert group in groups
    assert (make(encoder, [twice]).mixture.draws_an_epoch, once.mixture.draws_an_epoch) == (12.0, 6.0)


def test_other_pools_come_in_place_of_the_first_ones(encoder: PromptEncoder) -> None:
    source = make(encoder)
    before, order = drawn(source, 0), [[g.query_id for g in source.step(n, 4)] for n in range(1, 5)]
    assert source.queries_of(range(2, 4), 4) == {*order[1], *order[2]}
    source.use(Pools({"q1": mined("d5", "d6", "d7")}, "new"))
    after = drawn(source, 0)
    assert set(after["q1"][1:]) == {"d5", "d6", "d7"}
    assert drawn(make(encoder, pool_id="new"), 0) == {**after, "q1": drawn(make(encoder, pool_id="new"), 0)["q1"]}
    assert before.keys() == after.keys()
    assert [[g.query_id for g in source.step(n, 4)] for n in range(1, 5)] == order


def test_scores_of_a_teacher_are_the_recipes_or_else_the_files(encoder: PromptEncoder) -> None:
    own = dataclasses.replace(SET, teacher_scores={"q0": {"d0": 2.5}})
    assert make(encoder).group("q0", 0).teacher is None
    first, *others = make(encoder, [own]).group("q0", 0).teacher or ()
    assert first == 2.5 and all(map(math.isnan, others))
    # All groups have scores, if only unknown ones.
    assert all(map(math.isnan, make(encoder, [own]).group("q1", 0).teacher or (0.0,)))
    assert (make(encoder, [own], teacher_scores={"q0": {"d0": -1.0}}).group("q0", 0).teacher or (0.0,))[0] == -1.0


def test_a_query_without_labels_is_drawn_where_a_teacher_has_scored_its_candidates(encoder: PromptEncoder) -> None:
    bare = dataclasses.replace(SET, qrels={q: row for q, row in SET.qrels.items() if q != "q0"})
    scores = {q: {f"d{k}": float(k) for k in range(8, 11)} for q in QUERIES}
    assert "q0" not in make(encoder, [bare], need_positive=False).query_ids
    source = make(encoder, [bare], need_positive=False, teacher_scores=scores)
    group = source.group("q0", 0)
    # What has no score could only be taken as not relevant, which nobody knows.
    assert set(group.document_ids) == {"d8", "d9", "d10"} and all(map(math.isnan, group.labels))
    assert group.teacher == tuple(float(d[1:]) for d in group.document_ids)
    assert set(source.group("q1", 0).labels) == {0.0, 2.0}
    # A loss of labels still leaves it out.
    assert "q0" not in make(encoder, [bare], need_positive=True, teacher_scores=scores).query_ids
