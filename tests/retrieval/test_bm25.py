# ruff: noqa: RUF001 (scripts of the world)
"""BM25 against a small independent implementation, its invariances, and the reference points of real sets."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from pathlib import Path

import bm25s
import pytest
import Stemmer
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwright.common.errors import UserError
from rankwright.data.formats.read import read_collection
from rankwright.data.words import Words, languages, stop_words
from rankwright.evaluation.metrics import measure_run
from rankwright.retrieval.bm25 import bm25
from rankwright.retrieval.candidates import Candidate, ranked
from rankwright.retrieval.retriever import retrievers

DATA = Path(os.environ.get("RANKWRIGHT_DATA", Path(__file__).parents[3] / "shared/data"))

WORDS = st.sampled_from(["alpha", "beta", "gamma", "delta", "running", "runs", "the", "of", "x1", "Beta"])
TEXTS = st.lists(WORDS, max_size=8).map(" ".join)
CORPORA = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), TEXTS, max_size=12)
QUERIES = st.dictionaries(st.sampled_from(["q1", "q2"]), TEXTS, min_size=1)


def independent(corpus: dict[str, str], query: str, k1: float, b: float) -> dict[str, float]:
    """Lucene's BM25 from its formula; no index, no bm25s."""
    stem = Stemmer.Stemmer("english").stemWord

    def words(text: str) -> list[str]:
        return [stem(w) for w in re.findall(r"\w+", text.lower()) if w not in {"the", "of"}]

    documents = {d: words(text) for d, text in corpus.items()}
    average = sum(map(len, documents.values())) / max(1, len(documents))
    scores: dict[str, float] = {}
    for document_id, document in documents.items():
        counts = Counter(document)
        total = 0.0
        for word in words(query):
            n = sum(word in other for other in documents.values())
            if counts[word]:
                idf = math.log(1 + (len(documents) - n + 0.5) / (n + 0.5))
                total += idf * counts[word] / (counts[word] + k1 * (1 - b + b * len(document) / average))
        if total > 0:
            scores[document_id] = total
    return scores


@given(CORPORA, QUERIES, st.sampled_from([(1.2, 0.75), (0.9, 0.4), (2.0, 0.0), (0.5, 1.0)]))
@settings(deadline=None)
def test_equal_to_an_independent_implementation(
    corpus: dict[str, str], queries: dict[str, str], parameters: tuple[float, float]
) -> None:
    k1, b = parameters
    found = bm25(corpus, k1=k1, b=b)(queries)
    assert set(found) == set(queries)
    for query_id, query in queries.items():
        expected = independent(corpus, query, k1, b)
        assert {c.document_id: c.score for c in found[query_id]} == pytest.approx(expected, abs=1e-12)


@given(CORPORA, QUERIES, st.integers(1, 5))
@settings(deadline=None)
def test_scores_are_those_of_bm25s_to_the_last_bit(corpus: dict[str, str], queries: dict[str, str], depth: int) -> None:
    words, ids = Words("english"), sorted(corpus)
    vocabulary: dict[str, int] = {}
    tokens = [[vocabulary.setdefault(w, len(vocabulary)) for w in words(corpus[d])] for d in ids]
    found = bm25(corpus, depth=depth)(queries)
    if not vocabulary:
        assert found == {q: [] for q in queries}
        return
    index = bm25s.BM25(k1=1.2, b=0.75, method="lucene", dtype="float64", backend="numpy")
    index.index((tokens, vocabulary), create_empty_token=False, show_progress=False)
    for query_id, query in queries.items():
        asked = [vocabulary[w] for w in words(query) if w in vocabulary]
        scores = index.get_scores_from_ids(asked) if asked else [0.0] * len(ids)
        best = ranked(query_id, {d: float(s) for d, s in zip(ids, scores, strict=True) if s > 0})[:depth]
        assert found[query_id] == [Candidate(d, s, rank) for rank, (d, s) in enumerate(best, start=1)]


@given(CORPORA, QUERIES, st.integers(1, 5), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_order_of_the_input_does_not_matter(
    corpus: dict[str, str], queries: dict[str, str], depth: int, random: object
) -> None:
    ids = list(corpus)
    random.shuffle(ids)  # type: ignore[attr-defined]
    other = bm25({d: corpus[d] for d in ids}, depth=depth)(dict(reversed(queries.items())))
    assert bm25(corpus, depth=depth)(queries) == other


@given(CORPORA, QUERIES, st.integers(1, 5))
@settings(deadline=None)
def test_a_shorter_list_is_the_head_of_a_longer_one(
    corpus: dict[str, str], queries: dict[str, str], depth: int
) -> None:
    short, long = bm25(corpus, depth=depth)(queries), bm25(corpus, depth=100)(queries)
    for query_id, candidates in long.items():
        assert short[query_id] == candidates[:depth]
        assert [c.rank for c in candidates] == list(range(1, len(candidates) + 1))
        by_rule = ranked(query_id, {c.document_id: c.score for c in candidates})
        assert [c.document_id for c in candidates] == [d for d, _ in by_rule]


def test_lists_are_not_filled_up() -> None:
    found = bm25({"a": "apple pie", "b": "banana", "c": "the of"})({"q": "apples", "r": "the", "s": "", "t": "zzz"})
    assert [c.document_id for c in found["q"]] == ["a"]
    assert found["r"] == found["s"] == found["t"] == []


@pytest.mark.parametrize("corpus", [{}, {"a": ""}, {"a": "the", "b": " . "}])
def test_a_corpus_without_words(corpus: dict[str, str]) -> None:
    assert bm25(corpus)({"q": "apple"}) == {"q": []}


def test_code_words_keep_the_whole_identifier() -> None:
    words = Words("english", code=True)
    assert words("parseHTTPResponse") == ["parsehttprespons", "pars", "http", "respons"]
    assert words("snake_case_name plain x2b") == ["snake_case_nam", "snake", "case", "name", "plain", "x2b"]
    assert words("np.random.randint(int32) getHTTP2Url") == [
        *("np", "random", "randint", "int32"),
        *("gethttp2url", "get", "http2", "url"),
    ]
    assert words("__init__ _") == ["__init__", "init", "_"]
    assert Words("english")("parseHTTP snake_case") == ["parsehttp", "snake_cas"]


def test_code_finds_what_words_do_not() -> None:
    corpus = {"a": "def readCsvFile(path): pass", "b": "def write_json(path): pass"}
    assert bm25(corpus)({"q": "read csv"})["q"] == []
    assert [c.document_id for c in bm25(corpus, code=True)({"q": "read csv"})["q"]] == ["a"]


def test_languages() -> None:
    found = bm25({"a": "die Häuser", "b": "und das"}, language="german")({"q": "und ein Haus"})
    assert [c.document_id for c in found["q"]] == ["a"]
    assert Words("none")("The Houses") == ["the", "houses"]
    assert "the" in stop_words("english") and not stop_words("none")
    for language in languages():
        assert Words(language)("word")


# (language, documents, query, those with a word of it, best first): in each, the others share signs but no word.
SCRIPTS = {
    "Chinese": ("english", ["清洗水壶时用湿布擦拭", "冬季把梯子放在棚子里", "修理电钻，更换零件"], "怎样清洗水壶", [0]),
    "Chinese, one character": ("english", ["喝茶以后洗杯子", "冬季把梯子放好"], "茶", [0]),
    "Chinese, a pair decides": ("english", ["包面烤机", "烤面包机"], "面包", [1, 0]),
    "Chinese beside Latin": ("english", ["用iPhone拍照", "用相机拍照"], "IPHONE怎么用", [0, 1]),
    "Japanese": ("none", ["やかんの洗い方", "自転車の修理"], "やかん", [0]),
    "Japanese, half-width letters": ("none", ["コーヒーを飲む", "紅茶です"], "ｺｰﾋｰ", [0]),
    "Thai": ("english", ["ล้างกาน้ำด้วยผ้าเปียก", "เก็บจักรยานไว้ในโรงเก็บ"], "กาน้ำ", [0, 1]),
    "Lao": ("english", ["ລ້າງກະຕ່າ", "ເກັບຈັກຍານ"], "ກະຕ່າ", [0, 1]),
    "Khmer": ("english", ["លាងកំសៀវ", "ជួសជុលកង់"], "កំសៀវ", [0]),
    "Burmese": ("english", ["ရေနွေးအိုးကို ဆေးပါ", "စက်ဘီး ပြင်ပါ"], "ရေနွေးအိုး", [0]),
    "Hindi": ("hindi", ["किला", "काला", "कुल"], "किला", [0]),
    "Hindi, any language": ("english", ["किला", "काला", "कुल"], "काला", [1]),
    "Hindi, a sign below": ("hindi", ["\u0958िला", "किताब"], "\u0915\u093cिला", [0]),
    "Tamil": ("tamil", ["கடல்", "கடை", "காடு"], "கடல்", [0]),
    "Nepali": ("nepali", ["किताब", "कोट", "काठ"], "किताब", [0]),
    "Arabic with vowels": ("none", ["كِتَابٌ", "كَلْبٌ", "بَابٌ"], "كِتَابٌ", [0]),
    "Arabic, its stemmer drops vowels": ("arabic", ["كِتَاب", "كَلْب"], "كتاب", [0]),
    "Hebrew with points": ("none", ["שָׁלוֹם", "מֶלֶךְ", "לֶחֶם"], "לֶחֶם", [2]),
    "French, decomposed": ("french", ["une poe\u0302le abi\u0302me\u0301e", "la fe\u0302te"], "poêles abîmées", [0]),
    "Vietnamese, decomposed": ("none", ["tie\u0302\u0301ng Vie\u0323\u0302t", "tiền"], "tiếng Việt", [0]),
    "Korean, decomposed": ("none", ["\u1112\u1161\u11ab\u1100\u1173\u11af", "한자"], "한글", [0]),
    "soft hyphen, zero-width space": (
        "english",
        ["re\u00adpaired in win\u200bter", "pair of ter"],
        "winter repairs",
        [0],
    ),
    "ligatures, full-width letters": ("english", ["ﬁlter Ｃｏｆｆｅｅ", "lter ilter"], "filter coffee", [0]),
    "German, capitals": ("german", ["die Strasse", "der Stern"], "STRAẞE", [0]),
    "Turkish": ("turkish", ["İSTANBUL IŞIK", "istasyon"], "istanbul ışık", [0]),
    "Russian with stress": ("russian", ["за\u0301мок", "замах"], "замок", [0]),
    "a trade mark": ("english", ["Windows™ licence", "tm"], "windows", [0]),
}


@pytest.mark.parametrize(("language", "documents", "query", "expected"), SCRIPTS.values(), ids=SCRIPTS)
@pytest.mark.parametrize("code", [False, True])
def test_scripts(language: str, documents: list[str], query: str, expected: list[int], code: bool) -> None:
    corpus = {str(number): text for number, text in enumerate(documents)}
    found = bm25(corpus, language=language, code=code)({"q": query})["q"]
    assert [int(c.document_id) for c in found] == expected


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_has_the_words_that_it_always_had(text: str) -> None:
    stem, stop = Stemmer.Stemmer("english").stemWord, stop_words("english")
    assert Words("english")(text) == [stem(w) for w in re.findall(r"\w+", text.lower()) if w not in stop]


def test_unknown_language_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'englisch', did you mean 'english'\?.*known: arabic"):
        bm25({"a": "x"}, language="englisch")({"q": "x"})


@pytest.mark.parametrize("options", [{"depth": 0}, {"k1": -1.0}, {"b": 1.5}])
def test_parameters_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match="bm25: depth"):
        bm25({"a": "x"}, **options)({"q": "x"})  # type: ignore[arg-type]


def test_the_registry_binds_its_parameters() -> None:
    retrieve = retrievers()["bm25"].bind({"depth": 1, "code": True})
    [candidate] = retrieve({"a": "fooBar", "b": "foo"})({"q": "bar"})["q"]
    assert candidate == Candidate("a", candidate.score, 1)
    with pytest.raises(UserError, match="dept"):
        retrievers()["bm25"].bind({"dept": 1})


def test_no_progress_bars(capfd: pytest.CaptureFixture[str]) -> None:
    bm25({"a": "x y", "b": "y"})({"q": "y"})
    assert tuple(capfd.readouterr()) == ("", "")


# The reference points of the sets' README came from another BM25 with the same parameters.
@pytest.mark.parametrize(
    ("folder", "code", "ndcg", "recall"),
    [("code/cosqa", True, 0.374, 0.790), ("finance/tatqa", False, 0.482, 0.801)],
)
def test_near_the_reference_points(folder: str, code: bool, ndcg: float, recall: float) -> None:
    if not (DATA / folder).is_dir():
        pytest.skip("the shared sets are not here")
    test = read_collection(DATA / folder, name="set", split="test")
    found = bm25(test.corpus, code=code)(test.queries)
    run = {q: {c.document_id: c.score for c in candidates} for q, candidates in found.items()}
    means = measure_run(run, test.qrels, ["nDCG@10", "R@100"]).mean
    assert means["nDCG@10"] == pytest.approx(ndcg, abs=0.02)
    assert means["R@100"] == pytest.approx(recall, abs=0.05)
