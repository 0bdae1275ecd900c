"""The statistics of sets against a plain recount, duplicates and conflicts of texts, encoding, lengths in tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwright.data.collection import Collection
from rankwright.data.statistics import conflicts, counts, encoding_faults, findings, text_facts
from rankwright.model.lengths import document_lengths, percentiles, token_report
from rankwright.pipeline.data import cut_sentence, cut_warning

TEXTS = st.sampled_from(
    ["", " ", "one bond", "One  BOND", "a loan", "the court held", "court", "caf\ufffd", "\x07 bell"]
)
IDS = st.integers(0, 5)


@st.composite
def collections(draw: st.DrawFn) -> Collection:
    corpus = {f"d{i}": draw(TEXTS) for i in range(draw(st.integers(1, 6)))}
    queries = {f"q{i}": draw(TEXTS) for i in range(draw(st.integers(1, 5)))}
    judged = st.dictionaries(st.sampled_from(sorted(corpus)), st.sampled_from([0.0, 1.0, 2.0, 0.5]), max_size=4)
    qrels = {q: draw(judged) for q in queries if draw(st.booleans())}
    return Collection("set", corpus, queries, qrels)


def same(one: str, other: str) -> bool:
    return " ".join(one.split()).casefold() == " ".join(other.split()).casefold()


def naive(c: Collection) -> dict[str, Any]:
    """The numbers again, with loops over all pairs and nothing shared with the implementation."""
    pairs = [(q, d) for q in c.qrels for d in c.qrels[q]]
    labels = [c.qrels[q][d] for q, d in pairs]
    relevant = {q: sum(1 for d in c.qrels.get(q, {}) if c.qrels[q][d] > 0) for q in c.queries}
    conflicting = 0
    for n, (q, d) in enumerate(pairs):
        twins = [
            (a, b) for a, b in pairs[: n + 1] if same(c.queries[a], c.queries[q]) and same(c.corpus[b], c.corpus[d])
        ]
        a, b = twins[0]
        conflicting += c.qrels[a][b] != c.qrels[q][d]

    def twins_of(texts: dict[str, str]) -> int:
        full = {i: t for i, t in texts.items() if t.strip()}
        return sum(any(i != j and same(t, u) for j, u in full.items()) for i, t in full.items())

    return {
        "documents": len(c.corpus),
        "queries": len(c.queries),
        "judgements": len(pairs),
        "positives": sum(relevant.values()),
        "queries_without_positive": list(relevant.values()).count(0),
        "empty_documents": sum(t.strip() == "" for t in c.corpus.values()),
        "unused_documents": len(set(c.corpus) - {d for _, d in pairs}),
        "labels": {f"{v:g}": labels.count(v) for v in sorted(set(labels))},
        "positives_per_query": {str(n): list(relevant.values()).count(n) for n in sorted(set(relevant.values()))},
        "conflicting_labels": conflicting,
        "exact": (twins_of(dict(c.corpus)), twins_of(dict(c.queries))),
        "encoding": sum("\ufffd" in t or "\x07" in t for t in c.corpus.values()),
    }


@settings(max_examples=150, deadline=None)
@given(collections())
def test_statistics_equal_a_plain_recount(collection: Collection) -> None:
    documents = text_facts(collection.corpus, queries=False, code=False)
    queries = text_facts(collection.queries, queries=True, code=False)
    found = counts(collection, documents, queries)
    expected = naive(collection)
    assert (found["duplicate_documents"]["exact"], found["duplicate_queries"]["exact"]) == expected.pop("exact")
    assert sum(found["encoding_faults"]["documents"].values()) == expected.pop("encoding")
    assert {key: found[key] for key in expected} == expected
    told = findings(collection, documents, queries)
    assert (
        sum(len(f.ids) for f in told if f.kind in ("no positive", "no judgement")) == found["queries_without_positive"]
    )
    assert sum(len(f.ids) for f in told if f.kind == "conflicting labels") == found["conflicting_labels"]


def test_conflicts_are_found_across_ids_of_equal_texts() -> None:
    c = Collection(
        "s", {"a": "Text", "b": "text "}, {"p": "why", "q": "WHY"}, {"p": {"a": 1.0}, "q": {"b": 0.0, "a": 1.0}}
    )
    assert conflicts(c) == [(("p", "a"), ("q", "b"))]


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("plain text, with a\ttab and\r\nlines", []),
        ("donâ€™t", ["mojibake"]),
        ("rÃ©sumÃ©", ["mojibake"]),
        ("Où est l'été ? “Ja” — 東京 § 5 Привет £5 x² µm", []),
        ("MENÜ“ CAFÉ» É…", []),
        ("caf\ufffd", ["replacement characters (U+FFFD)"]),
        ("bell \x07", ["control characters"]),
        ("old \x93quotes\x94", ["control characters"]),
        ("half \ud83d", ["lone surrogates"]),
        ("\x00 and \ufffd", ["replacement characters (U+FFFD)", "control characters"]),
    ],
)
def test_encoding_faults(text: str, kinds: list[str]) -> None:
    found = list(encoding_faults(text))
    if "\x93" in text:
        # What a C1 character stands for is a guess of ftfy's too.
        found = [kind for kind in found if kind != "mojibake"]
    assert found == kinds


def encoder_of(base: Path, max_tokens: int, query_tokens: int) -> Any:
    from rankwright.model.loading import load_tokenizer
    from rankwright.model.prompt import PromptEncoder, make_contract

    tokenizer = load_tokenizer(str(base))
    contract = make_contract(tokenizer, mode="portable", max_tokens=max_tokens, query_tokens=query_tokens)
    return PromptEncoder(contract, tokenizer)


def test_what_is_cut_is_what_the_encoder_cuts(tiny_qwen3: Path) -> None:
    """Against the prompts themselves: encoded whole and cut, pair by pair."""
    encoder = encoder_of(tiny_qwen3, 140, 8)
    corpus = {f"d{i}": "the court held that the contract was void " * i for i in range(1, 12)}
    queries = {f"q{i}": "who bears the loss when " * i for i in range(1, 5)}
    qrels = {q: dict.fromkeys(corpus, 1.0) for q in queries}
    report = token_report(
        Collection("s", corpus, queries, qrels), encoder, document_lengths(corpus, encoder, lambda count: None)
    )
    cut = lost = 0
    for query in queries.values():
        group = encoder.encode(query, list(corpus.values()))
        whole = encoder.encode(query, list(corpus.values()), cut=False)
        cut += group.documents_cut
        lost += sum(len(w) - len(g) for w, g in zip(whole.tail_ids, group.tail_ids, strict=True))
    p99 = report["judged_pairs"].pop("p99")
    assert report["judged_pairs"] == {"pairs": 44, "cut": cut, "tokens_lost": lost, "budget": 140}
    assert cut and lost
    # With the budget that the warning names at most one pair in a hundred is cut.
    enough, less = (
        token_report(Collection("s", corpus, queries, qrels), one, document_lengths(corpus, one, lambda count: None))
        for one in (encoder_of(tiny_qwen3, p99, 8), encoder_of(tiny_qwen3, p99 - 1, 8))
    )
    assert enough["judged_pairs"]["cut"] <= 0.01 * 44 < less["judged_pairs"]["cut"]
    assert cut_warning(report | {"judged_pairs": report["judged_pairs"] | {"p99": p99}}) == (
        f"{cut / 44:.0%} of the judged pairs are cut; prompt.max_tokens={p99} would cut 1 %, and "
        "prompt.long_documents=max or =blocks reads what lies beyond"
    )
    # What is read in windows is not cut.
    assert cut_warning(report | {"long_documents": "max"}) == ""
    assert cut_warning(enough) == ""
    lengths = sorted(len(ids) for ids in encoder.encode_documents(list(corpus.values())))
    assert [report["documents"][p] for p in ("p50", "p90", "p99", "max")] == [lengths[5], lengths[9], *lengths[-1:] * 2]
    longer = [q for q in queries.values() if encoder.encode_head(q)[1]]
    assert report["queries"]["cut"] == len(longer) > 0 and report["queries"]["tokens_lost"] > 0


def test_relevant_documents_beyond_the_budget_and_what_a_cut_loses(tiny_qwen3: Path) -> None:
    encoder = encoder_of(tiny_qwen3, 300, 20)
    filler = "The river rises in the mountains in spring. " * 200
    answer = "It pays interest until it matures."
    corpus = {
        "early": f"{answer} {filler}",
        "late": f"{filler} {answer} {filler}",
        "short": answer,
        "other": filler,
        "unjudged": filler * 2,
    }
    queries = {"q": "what pays interest?", "n": "zebra"}
    qrels = {"q": dict.fromkeys(("early", "late", "short"), 1.0), "n": {"other": 2.0, "early": 0.0}}
    collection = Collection("s", corpus, queries, qrels, answers={"q": answer, "n": "nowhere"})
    report = token_report(collection, encoder, document_lengths(corpus, encoder, lambda count: None))
    expected = {"pairs": 4, "beyond": 3, "looked": 3, "best_known": 2, "best_cut": 1}
    assert report["relevant_pairs"] == {**expected, "answers_known": 2, "answers_cut": 1}
    assert cut_sentence(report).endswith(
        "; 3 of 4 relevant documents are beyond the budget, the block that BM25 finds best for the query lies beyond a "
        "cut in 1 of 2, the answer lies beyond a cut in 1 of 2"
    )
    plain = replace(collection, answers={})
    report = token_report(plain, encoder, document_lengths(corpus, encoder, lambda count: None))
    assert report["relevant_pairs"] == {**expected, "answers_known": 0, "answers_cut": 0}


def test_a_sets_own_instruction_leaves_less_room(tiny_qwen3: Path) -> None:
    encoder = encoder_of(tiny_qwen3, 160, 20)
    plain = Collection("s", {"d": "void"}, {"q": "why"}, {"q": {"d": 1.0}})
    told = Collection("s", plain.corpus, plain.queries, plain.qrels, instruction="Find what answers the query " * 3)
    rooms = [token_report(c, encoder, {"d": 1})["documents"]["budget"] for c in (plain, told)]
    assert rooms[1] < rooms[0]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=300))
def test_percentiles_are_lengths_that_occur(lengths: list[int]) -> None:
    ordered = sorted(lengths)
    found = percentiles(lengths)
    for share in (50, 90, 99):
        # The smallest length that so many per cent do not exceed, in whole numbers.
        least = next(v for v in ordered if 100 * sum(x <= v for x in ordered) >= share * len(ordered))
        assert found[f"p{share}"] == least
    assert found["max"] == ordered[-1]


def test_no_texts_have_no_percentiles() -> None:
    assert percentiles([]) == {"p50": None, "p90": None, "p99": None, "max": None}
