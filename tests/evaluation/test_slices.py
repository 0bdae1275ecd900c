"""Attributes of test queries against a plain rewrite, and slices that divide them without losing one."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_runs import collection, make_report_run

from rankwright.common.errors import UserError
from rankwright.common.resources import card_files
from rankwright.common.run_folder import RunFolder
from rankwright.common.stats import holm, paired_difference, randomisation_test
from rankwright.evaluation.slices import (
    ATTRIBUTES,
    RESAMPLES,
    SMALL,
    QueryAttributes,
    divide,
    domain_attribute,
    ranges,
    read_attributes,
    set_attribute,
    slice_table,
)
from rankwright.model.loading import load_tokenizer
from rankwright.model.prompt import PromptEncoder
from rankwright.pipeline.evaluate import write_attributes
from rankwright.report.gather import read_recipe
from rankwright.retrieval.candidates import read_candidates
from rankwright.training.setup import recipe_contract


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> Path:
    folder = make_report_run(tmp_path_factory.mktemp("runs") / "run", tiny_qwen3, bm25={"language": "none"})
    write_attributes(read_recipe(folder), RunFolder(folder))
    return folder


def test_attributes_are_those_of_a_plain_rewrite(run: Path, tiny_qwen3: Path) -> None:
    recipe = read_recipe(run)
    tokenizer = load_tokenizer(str(tiny_qwen3))
    encoder = PromptEncoder(recipe_contract(recipe, str(tiny_qwen3), tokenizer), tokenizer)
    rows = {row.query_id: row for row in read_attributes(run / "eval" / "one" / "queries.jsonl")}
    candidates = read_candidates(run / "eval" / "one" / "candidates.jsonl")
    test = collection("one")
    assert set(rows) == set(test.queries)
    cut_somewhere = 0
    for query_id, query in test.queries.items():
        row, ids = rows[query_id], [c.document_id for c in candidates[query_id]]
        assert row.query_tokens == len(tokenizer.tokenize(query))
        tokens = [len(tokenizer.tokenize(encoder.contract.document_prefix + test.corpus[d])) for d in ids]
        assert row.document_tokens_max == (max(tokens) if tokens else None)
        assert row.document_tokens_mean == (pytest.approx(sum(tokens) / len(tokens), abs=0.01) if tokens else None)
        # As scoring itself counts them.
        assert row.candidates_cut == encoder.encode(query, [test.corpus[d] for d in ids]).documents_cut
        relevant = [d for d, label in test.qrels[query_id].items() if label > 0]
        listed = [d for d in relevant if d in ids]
        assert (row.relevant, row.relevant_found, row.candidates) == (len(relevant), len(listed), len(ids))
        assert row.relevant_cut == encoder.encode(query, [test.corpus[d] for d in listed]).documents_cut
        cut_somewhere += row.relevant_cut
        words = set(re.findall(r"\w+", query.lower()))
        found = {w for d in relevant for w in re.findall(r"\w+", test.corpus[d].lower())}
        assert row.overlap == pytest.approx(len(words & found) / len(words), abs=1e-4)
        # Train's only relevant text is document 3 of `one`, in capitals.
        seen = relevant.count("d3")
        assert (row.relevant_seen, row.seen) == (
            seen,
            "unseen" if not seen else "seen" if relevant == ["d3"] else "partly",
        )
    assert cut_somewhere and {row.seen for row in rows.values()} == {"unseen", "partly", "seen"}


def test_the_domain_is_the_cards_or_the_sets_name(run: Path) -> None:
    domains = {
        name: {r.domain for r in read_attributes(run / "eval" / name / "queries.jsonl")} for name in ("one", "two")
    }
    assert domains == {"one": {"one"}, "two": {"legal"}}


def test_attributes_are_written_again_only_when_what_they_are_made_from_changed(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    one, two = (folder / "eval" / name / "queries.jsonl" for name in ("one", "two"))
    before = [path.stat().st_ino for path in (one, two)]
    write_attributes(read_recipe(folder), RunFolder(folder))
    assert [path.stat().st_ino for path in (one, two)] == before
    candidates = folder / "eval" / "two" / "candidates.jsonl"
    candidates.write_text("".join(candidates.read_text().splitlines(keepends=True)[1:]))
    write_attributes(read_recipe(folder), RunFolder(folder))
    assert one.stat().st_ino == before[0] and len(read_attributes(two)) == 23
    # So is a file that is no longer as it was written.
    written = one.read_bytes()
    one.write_text("marker\n")
    with pytest.raises(UserError, match=r"one.queries\.jsonl:1: not a row of query attributes"):
        read_attributes(one)
    write_attributes(read_recipe(folder), RunFolder(folder))
    assert one.read_bytes() == written


def test_a_cards_new_domain_is_seen(run: Path, tmp_path: Path) -> None:
    folder, card = tmp_path / "copy", tmp_path / "obliqa.yaml"
    shutil.copytree(run, folder)
    shutil.copy(card_files()["obliqa"], card)
    recipe = read_recipe(folder)
    sources = (recipe.data.test[0], recipe.data.test[1].model_copy(update={"card": str(card)}))
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"test": sources})})
    for domain in ("legal", "general"):
        card.write_text(card.read_text().replace("domain: legal", f"domain: {domain}"))
        write_attributes(recipe, RunFolder(folder))
        assert {r.domain for r in read_attributes(folder / "eval" / "two" / "queries.jsonl")} == {domain}


@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=6, unique=True).map(sorted),
    st.floats(0, 1000, allow_nan=False),
)
def test_a_number_is_in_the_range_that_its_label_says(edges: list[int], value: float) -> None:
    labels, bin_of = ranges(edges)
    numbers = [int(n) for n in re.findall(r"\d+", bin_of(value) or "")]
    assert bin_of(value) in labels and bin_of(None) is None and len(set(labels)) == len(edges) + 1
    if (bin_of(value) or "").startswith("more"):
        assert value > numbers[0]
    else:
        # Means are no whole numbers: 8.5 is above 8, so in the bin that ends higher.
        assert numbers[0] - 1 < value <= numbers[-1] or (numbers[0] == 1 and value <= numbers[-1])


def attributes_of(number: int, **values: object) -> QueryAttributes:
    row = QueryAttributes(f"q{number}", 9, False, 80.0, 90, 10, 0, 0, 0.5, "finance", 1, 1, 0, "unseen")
    return dataclasses.replace(row, **values)  # type: ignore[arg-type]


ROWS = st.builds(
    lambda tokens, mean, cut, overlap, domain, relevant, found, seen: {
        "query_tokens": tokens,
        "document_tokens_mean": mean,
        "candidates_cut": cut,
        "relevant_cut": min(cut, found),
        "overlap": overlap,
        "domain": domain,
        "relevant": relevant,
        "relevant_found": min(found, relevant),
        "seen": seen,
    },
    st.integers(0, 200),
    st.none() | st.floats(0, 900),
    st.integers(0, 3),
    st.none() | st.floats(0, 1),
    st.sampled_from(["finance", "legal", "not known"]),
    st.integers(1, 30),
    st.integers(0, 30),
    st.sampled_from(["unseen", "partly", "seen"]),
)


@given(st.lists(ROWS, max_size=40))
def test_every_attribute_divides_all_queries(values: list[dict[str, object]]) -> None:
    rows = [attributes_of(n, **v) for n, v in enumerate(values)]
    sets = {row.query_id: f"set {n % 2}" for n, row in enumerate(rows)}
    for attribute in (*ATTRIBUTES, domain_attribute(rows), set_attribute(sets)):
        bins = divide(rows, attribute)
        assert sorted(q for ids in bins.values() for q in ids) == sorted(row.query_id for row in rows)
        assert all(bins.values()) and set(bins) <= {*attribute.bins, "not known"}


def test_slices_against_a_plain_rewrite() -> None:
    rows = [attributes_of(n, query_tokens=5 if n < 30 else 12 if n < 60 else 20 if n < 64 else 99) for n in range(80)]
    base = {row.query_id: (n * 37 % 11) / 10 for n, row in enumerate(rows)}
    tuned = {q: min(1.0, v + (0.2 if int(q[1:]) % 3 else -0.1)) for q, v in base.items()}
    # Without attributes, and without a value in every system: both are left out.
    base["unknown"] = tuned["unknown"] = 1.0
    del tuned["q79"]
    table = slice_table(rows, {"bm25": base, "base": base, "tuned": tuned}, seed=3)
    assert [s.label for s in table.slices] == ["1 to 8", "9 to 16", "17 to 32", "more than 64"]
    assert [s.queries for s in table.slices] == [30, 30, 4, 15] and table.comparisons == 3
    p_values = {}
    for s, start, end in zip(table.slices, (0, 30, 60, 64), (30, 60, 64, 79), strict=True):
        before, after = ({f"q{n}": v[f"q{n}"] for n in range(start, end)} for v in (base, tuned))
        assert s.means["bm25"] == s.means["base"] == pytest.approx(sum(before.values()) / s.queries)
        assert s.gain == pytest.approx(sum(after[q] - before[q] for q in before) / s.queries)
        if s.queries >= SMALL:
            assert s.difference == paired_difference(before, after, resamples=RESAMPLES, seed=3)
            p_values[s.label] = randomisation_test(before, after, resamples=RESAMPLES, seed=3)
        else:
            assert s.difference is None and s.p is None and s.p_holm is None
    adjusted = holm(p_values)
    assert {s.label: s.p_holm for s in table.slices if s.p_holm is not None} == adjusted
    assert table.standing == sum(p <= 0.05 for p in adjusted.values())
    assert table.one_bin["number of relevant documents"] == "1" and "query length, tokens" not in table.one_bin


def test_slices_without_tuned_have_no_gain() -> None:
    rows = [attributes_of(n, query_tokens=5 + 20 * (n % 2)) for n in range(24)]
    table = slice_table(rows, {"bm25": {row.query_id: 0.5 for row in rows}})
    assert [s.gain for s in table.slices] == [None, None] and not table.comparisons
    assert not slice_table([], {"bm25": {}}).slices


def test_rows_are_json_of_the_documented_keys(run: Path) -> None:
    row = json.loads((run / "eval" / "one" / "queries.jsonl").read_text().splitlines()[0])
    assert list(row) == [f.name for f in dataclasses.fields(QueryAttributes)]
