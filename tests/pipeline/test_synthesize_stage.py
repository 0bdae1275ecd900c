"""The synthesize stage through the whole: planted faults, groups, kills, the same bytes, refusals, people's audit."""

from __future__ import annotations

import html
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rerank_server import running_server, true_score
from typer.testing import CliRunner
from writer_server import WriterServer, asked, documents, running_writer

from rankwright.cli.main import app
from rankwright.common.errors import UserError, UserErrors
from rankwright.common.lineage import lineage
from rankwright.common.run_folder import RunFolder
from rankwright.common.stats import wilson_interval
from rankwright.data.sources import locate_all
from rankwright.data.split_files import read_split
from rankwright.pipeline.checks import check_names
from rankwright.pipeline.overview import preview
from rankwright.pipeline.stages import Pipeline
from rankwright.pipeline.sweep import SweepRunner, shared_stages
from rankwright.pipeline.synthesize import bill
from rankwright.recipe.loading import load_recipe
from rankwright.recipe.sources import Data
from rankwright.recipe.sweep_runs import load_sweep
from rankwright.report.page import write_report
from rankwright.retrieval.bm25 import bm25

SHARES = {"copies": 0.1, "leaks": 0.1, "duplicates": 0.1, "malformed": 0.08, "unanswerable": 0.1, "mentions": 0.05}
REASONS = {
    "copies": "copies_passage",
    "leaks": "leaks",
    "duplicates": "duplicate_query",
    "malformed": "malformed",
    "unanswerable": "not_found",
    "mentions": "mentions_document",
}
FILES = ("queries.jsonl", "rejected.jsonl", "report.json", "train/queries.jsonl", "train/corpus.jsonl")
FILES += ("train/qrels/train.tsv", "held_out/queries.jsonl", "held_out/corpus.jsonl", "held_out/qrels/dev.tsv")


@pytest.fixture(scope="module")
def one_server() -> Iterator[WriterServer]:
    with running_writer(SHARES) as server:
        yield server


@pytest.fixture
def server(one_server: WriterServer, monkeypatch: pytest.MonkeyPatch) -> WriterServer:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    one_server.__dict__.update(asked=[], shares=dict(SHARES), pause_seconds=0.0)
    return one_server


def recipe(folder: Path, base: Path, rows: list[dict[str, str]] | None = None, **section: Any) -> Path:
    """A recipe with a table of documents, a test set of people, and what the section adds."""
    folder.mkdir(exist_ok=True)
    docs = folder / "docs.jsonl"
    docs.write_text("".join(json.dumps(row) + "\n" for row in (documents(240) if rows is None else rows)))
    people = folder / "people"
    (people / "qrels").mkdir(parents=True, exist_ok=True)
    (people / "corpus.jsonl").write_text(json.dumps({"_id": "p", "text": "The gates close at ten."}) + "\n")
    queries = [json.dumps({"_id": f"q{n}", "text": f"{asked(n).capitalize()}?"}) for n in range(240)]
    (people / "queries.jsonl").write_text("\n".join(queries))
    judged = [f"q{n}\tp\t1" for n in range(240)]
    (people / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]))
    whole = {
        "name": "made",
        "run_dir": str(folder / "run"),
        "model": {"base": str(base), "rank": 4, "alpha": 8},
        "synthesize": {"documents": [{"path": str(docs), "group_key": "case", "licence": "own"}], **section},
        "data": {
            "train": [{"synthesized": "train"}],
            "dev": [{"synthesized": "held_out"}],
            "test": [{"path": str(people), "split": "test"}],
        },
        "prompt": {"max_tokens": 160},
        "mine": {"depth": 20, "negatives": 3},
        "train": {"max_steps": 2, "groups_per_step": 4, "dev_queries": 10},
        "evaluate": {"depth": 8, "limit_queries": 12},
        "export": {"targets": []},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(whole))
    return path


def written(server: WriterServer, folder: Path, base: Path, *overrides: str, **section: Any) -> RunFolder:
    section = {"writer": {"url": server.url, "model": "m"}, "per_passage": 1, **section}
    return synthesized(recipe(folder, base, **section), *overrides)


def synthesized(path: Path, *overrides: str) -> RunFolder:
    pipeline = Pipeline(load_recipe(str(path), overrides), progress=False)
    pipeline.synthesize()
    return pipeline.folder


@pytest.mark.slow
def test_the_runs_of_a_sweep_share_what_was_written(server: WriterServer, tmp_path: Path, tiny_qwen3: Path) -> None:
    server.shares = {}
    recipe(tmp_path, tiny_qwen3, writer={"url": server.url, "model": "m"}, per_passage=1)
    path = tmp_path / "sweep.yaml"
    path.write_text("extends: ./recipe.yaml\nname: try\nover: {}\nseeds: [0, 1]\n")
    loaded = load_sweep(path, [f"run_dir={tmp_path / 'sweep'}"])
    table = SweepRunner(loaded)(loaded.runs)
    assert [row.state for row in table.runs] == ["done", "done"]
    one, other = (RunFolder(run.folder) for run in loaded.runs)
    assert one.facts("synthesize")["finished"] == other.facts("synthesize")["finished"]
    assert files(one) == files(other) and len(server.asked) == 240
    assert shared_stages(loaded, lambda line: None)["synthesize"] == 1


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(run: RunFolder) -> dict[str, bytes]:
    return {name: (run.synthetic / name).read_bytes() for name in FILES}


def test_every_planted_fault_is_caught_and_the_good_stay(
    server: WriterServer, tmp_path: Path, tiny_qwen3: Path
) -> None:
    run = written(server, tmp_path, tiny_qwen3)
    texts = {row["_id"]: row["text"] for row in documents(240)}
    kept, rejected = rows(run.synthetic_queries), rows(run.synthetic_rejected)
    assert len(kept) + len(rejected) == 240
    truth = {key: server.fault_of(text) for key, text in texts.items()}
    planted = Counter(fault for fault in truth.values() if fault)
    assert all(planted[fault] > 5 for fault in SHARES)
    caught = Counter(truth[row["document"]] for row in rejected if row["reason"] == REASONS.get(truth[row["document"]]))
    # One of the equal queries stays until the search does not find its passage.
    caught["duplicates"] += sum(
        truth[row["document"]] == "duplicates" for row in rejected if row["reason"] == "not_found"
    )
    for fault, count in planted.items():
        assert caught[fault] >= 0.95 * count, (fault, caught[fault], count)
    good = [key for key, fault in truth.items() if not fault]
    lost = [row for row in rejected if not truth[row["document"]]]
    assert len(lost) <= 0.05 * len(good), lost[:3]
    report = json.loads(run.synthetic_report.read_text())
    assert report["written"] == 240 and sum(report["kept"].values()) == len(kept) and report["made_by"] == "m"
    assert report["cost"]["calls"] == 240 + planted["malformed"] == len(server.asked), "one repair, no more"
    assert report["filters"][0]["filter"] == "format"
    assert all(row["made_by"] == "rankwright synthesize: m" and row["persona"] and row["kind"] for row in kept)
    assert all({"copies", "round_trip"} <= row["verdicts"].keys() for row in kept)
    card = json.loads((run.synthetic / "card.json").read_text())
    assert card["made_by"]["licence_of_outputs"] == "unknown"


def test_no_held_out_group_is_trained_on(server: WriterServer, tmp_path: Path, tiny_qwen3: Path) -> None:
    path = recipe(tmp_path, tiny_qwen3, held_out={"fraction": 0.25})
    pipeline = Pipeline(load_recipe(str(path)), progress=False)
    pipeline.data()
    run = pipeline.folder
    held = set(json.loads(run.synthetic_report.read_text())["held_out_groups"])
    (train,), (dev,) = read_split(run.data, "train"), read_split(run.data, "dev")
    assert (train.name, dev.name) == ("synthetic", "synthetic-held-out")
    assert (
        len(held) == 20
        and not held & set(train.document_groups.values())
        and not held & set(train.query_groups.values())
    )
    assert {dev.document_groups[d] for q in dev.queries for d in dev.positives(q)} <= held
    assert len(dev.corpus) == 240 and len(train.corpus) == 180 and dev.queries and train.queries
    names = {row["set"] for of in json.loads(run.data_report.read_text())["splits"].values() for row in of}
    assert names == {"synthetic", "synthetic-held-out", "people"}, "the label stands in every table"
    ledger = {one["input"]: one for one in pipeline.ledger()["inputs"]}
    assert (
        ledger[f"documents {tmp_path.name}/docs.jsonl"]["licence"] == "proprietary"
        and ledger[f"documents {tmp_path.name}/docs.jsonl"]["taints"]
    )


def test_the_same_seed_gives_the_same_bytes_whatever_the_order(
    server: WriterServer, tmp_path: Path, tiny_qwen3: Path
) -> None:
    whole = files(written(server, tmp_path / "one", tiny_qwen3))
    calls = len(server.asked)
    shuffled = documents(240)
    random.Random(1).shuffle(shuffled)
    server.pause_seconds = 0.002
    other = written(server, tmp_path / "two", tiny_qwen3, rows=shuffled, parallel=1)
    assert [name for name, data in files(other).items() if data != whole[name]] == []
    assert len(server.asked) == 2 * calls
    # What a kill leaves: some of the answers, half a row, and no record.
    answers = other.synthetic_answers
    lines = answers.read_bytes().splitlines(keepends=True)
    answers.write_bytes(b"".join(lines[:100]) + lines[100][:40])
    other.forget("synthesize")
    (other.synthetic / "queries.jsonl").unlink()
    synthesized(tmp_path / "two" / "recipe.yaml")
    assert [name for name, data in files(other).items() if data != whole[name]] == []
    assert len(server.asked) == 2 * calls + calls - 100, "each answer is bought once"
    assert answers.read_bytes() == b"".join(lines)
    synthesized(tmp_path / "two" / "recipe.yaml")
    assert len(server.asked) == 3 * calls - 100, "skipped"
    third = synthesized(tmp_path / "two" / "recipe.yaml", "seed=1", f"run_dir={tmp_path / 'third'}")
    assert files(third)["train/qrels/train.tsv"] != whole["train/qrels/train.tsv"]


def test_templates_need_no_model_and_their_sets_train(tmp_path: Path, tiny_qwen3: Path) -> None:
    path = recipe(tmp_path, tiny_qwen3)
    pipeline = Pipeline(load_recipe(str(path)), progress=False)
    pipeline.run()
    run = pipeline.folder
    assert json.loads(run.synthetic_report.read_text())["made_by"] == "templates"
    systems = {row["system"]: row for row in pipeline.results()}
    assert {"base", "tuned"} <= systems.keys() and systems["tuned"]["difference"] is not None
    assert "synthetic" in run.report.read_text() and lineage(run).lines == []
    # New documents make all that follows stale, and are read again.
    with (tmp_path / "docs.jsonl").open("a") as file:
        file.write(json.dumps({"_id": "new", "text": documents(241)[240]["text"], "case": "new"}) + "\n")
    synthesized(path)
    assert any("Queries were written again" in line for line in lineage(run).lines)


def test_people_accept_before_anything_is_trained(tmp_path: Path, tiny_qwen3: Path) -> None:
    path = recipe(tmp_path, tiny_qwen3, audit={"queries": 10, "min_accepted": 0.7})
    with pytest.raises(UserError, match=r"these queries are unjudged: open .*audit\.html"):
        synthesized(path)
    run = RunFolder(tmp_path / "run")
    page = run.synthetic_audit.read_text()
    shown = re.findall(r'data-query="(.*?)" data-document="(.*?)" data-kind="query" data-texts="(.*?)"', page)
    assert len(shown) == 10 and "accept" in page
    name = re.search(r'const name = "(.*?)"', page)
    assert name is not None

    def answer(accepted: int, keys: list[tuple[str, str, str]] = shown) -> Path:
        answers = [
            {
                "query_id": q,
                "document_id": d,
                "answer": "relevant" if n < accepted else "not relevant",
                "note": "",
                "texts": t,
            }
            for n, (q, d, t) in enumerate(keys)
        ]
        file = tmp_path / "answers.json"
        file.write_text(json.dumps({"audit": name[1], "recipe": "made", "by": "A", "answers": answers}))
        return file

    def read(file: Path) -> str:
        return CliRunner().invoke(app, ["audit", "read", str(file), "--run", str(run.path)]).output

    assert "60% of 10 judged queries accepted (95 % interval 31% to 83%)" in read(answer(6))
    with pytest.raises(UserError, match="60% of 10 queries accepted, 31% to 83% in 95 %: change writer"):
        synthesized(path)
    read(answer(8))
    synthesized(path)
    assert json.loads(run.synthetic_audited.read_text())["accepted"] == 8
    with pytest.raises(UserError, match="the run has no such query"):
        from rankwright.report.answers import read_answers
        from rankwright.report.query_audit import write_accepted

        write_accepted(run, [read_answers(answer(1, [("other", "d", "t")]))])


def test_wilson() -> None:
    assert wilson_interval(45, 50) == pytest.approx((0.7864, 0.9565), abs=1e-4)
    assert wilson_interval(0, 0) == (0.0, 1.0) and wilson_interval(10, 10)[1] == pytest.approx(1)


def test_written_queries_are_refused_as_a_test(tmp_path: Path, tiny_qwen3: Path) -> None:
    run = synthesized(recipe(tmp_path, tiny_qwen3))
    copied = tmp_path / "copy.jsonl"
    copied.write_bytes(run.synthetic_queries.read_bytes())
    for source in (
        {"synthesized": "held_out"},
        {"path": str(run.synthetic / "train"), "split": "train"},
        {"path": str(copied)},
    ):
        data = Data.model_validate_json(json.dumps({"train": [{"synthesized": "train"}], "test": [source]}))
        with pytest.raises(UserErrors, match="were written by a program"):
            locate_all(data, run.synthetic)
    # As a training set of another recipe it keeps its label.
    data = Data.model_validate_json(json.dumps({"train": [{"path": str(run.synthetic / "train"), "name": "mine"}]}))
    assert locate_all(data)["train"][0].name == "synthetic-mine"


@pytest.mark.parametrize(
    ("section", "data", "why"),
    [
        ({"documents": [{"path": "nowhere"}]}, {}, "synthesize.documents.0: .*nowhere"),
        ({"kinds": {"headng": 1.0}}, {}, "synthesize.kinds: unknown template 'headng', did you mean 'heading'"),
        ({"filters": {"copy": {}}}, {}, "synthesize.filters: unknown filter of queries 'copy'"),
        ({"filters": {"teacher": {}}}, {}, "needs mine.teacher"),
        ({"examples": "x.txt"}, {}, "only a writer has a style"),
        ({"writer": {"model": "m", "url": "ftp://x"}}, {}, "synthesize.writer.url"),
        ({"writer": {"model": "m", "url": "http://x", "key_variable": "NO_SUCH_KEY"}}, {}, "NO_SUCH_KEY is not set"),
        ({"writer": {"model": "m", "url": "http://x"}, "budget": {"money": 1.0}}, {}, "price_per_million: missing"),
        ({"held_out": {"fraction": 0.0}}, {}, "nothing is held out"),
        ({}, {"train": [{"synthesized": "held_out"}]}, "held_out is never trained on"),
        ({}, {"dev": [{"synthesized": "train"}]}, "train is trained on"),
        ({}, {"test": {"from": "train"}}, "would take written queries"),
    ],
)
def test_mistakes_of_the_section_are_named(
    tmp_path: Path, tiny_qwen3: Path, section: dict[str, Any], data: dict[str, Any], why: str
) -> None:
    path = recipe(tmp_path, tiny_qwen3, **section)
    whole = yaml.safe_load(path.read_text())
    whole["data"] |= data
    path.write_text(yaml.safe_dump(whole))
    assert any(re.search(why, fault) for fault in check_names(load_recipe(str(path)).recipe))


def test_bad_documents_and_bad_writers_stop_the_stage(server: WriterServer, tmp_path: Path, tiny_qwen3: Path) -> None:
    with pytest.raises(UserError, match="40 passages that a query can be written for: at least 50"):
        synthesized(recipe(tmp_path / "few", tiny_qwen3, rows=documents(40)))
    one_case = [{**row, "case": "x"} for row in documents(60)]
    with pytest.raises(UserError, match="all documents are of one group"):
        synthesized(recipe(tmp_path / "case", tiny_qwen3, rows=one_case))
    with pytest.raises(UserErrors, match=r"docs.jsonl:1: no group key 'case'"):
        synthesized(recipe(tmp_path / "key", tiny_qwen3, rows=[{"text": "x"}]))
    server.shares = {"duplicates": 1.0}
    with pytest.raises(UserError, match=r"2\d\d of 240 queries rejected \(duplicate_query 239.*see .*rejected.jsonl"):
        written(server, tmp_path / "same", tiny_qwen3)
    assert len(rows(tmp_path / "same" / "run" / "synthetic" / "rejected.jsonl")) >= 239
    server.shares = {"malformed": 1.0}
    with pytest.raises(UserError, match="writer m: 20 of 20 calls gave no list of queries, such as 'I would ask"):
        written(server, tmp_path / "prose", tiny_qwen3)


def test_budgets_examples_and_the_bill(server: WriterServer, tmp_path: Path, tiny_qwen3: Path) -> None:
    examples = tmp_path / "own.txt"
    examples.write_text("is the ferry late?\n- who pays\n\nwhat now\n")
    server.shares = {}
    prices = {"input": 1.0, "output": 2.0}
    writer = {"url": server.url, "model": "m", "price_per_million": prices, "max_tokens": 100}
    run = written(
        server,
        tmp_path / "a",
        tiny_qwen3,
        writer=writer,
        examples=str(examples),
        kinds={"deadline": 1.0},
        budget={"calls": 60},
        held_out={"fraction": 0.2},
    )
    assert len(server.asked) == 60 and all("- who pays\n" in prompt for prompt in server.asked)
    report = json.loads(run.synthetic_report.read_text())
    assert report["kinds"].keys() == {"deadline"} and report["cost"]["money"] > 0 and report["written"] == 60
    loaded = load_recipe(str(tmp_path / "a" / "recipe.yaml")).recipe
    assert bill(loaded).startswith("60 calls") and "of money" in bill(loaded)
    for content in ("one\ntwo\n", "x\n" * 9):
        examples.write_text(content)
        assert any("give 3 to 8" in fault for fault in check_names(loaded))


def test_a_served_teacher_rejects_and_promotes(
    tmp_path: Path, tiny_qwen3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("RANKWRIGHT_CACHE", str(tmp_path / "cache"))
    with running_server() as reranker:
        reranker.reset("tei")
        teacher = {"name": "t", "kind": "served", "model": "m", "options": {"url": reranker.url, "shape": "tei"}}
        path = recipe(tmp_path, tiny_qwen3, filters={"teacher": {"top": 3, "depth": 6, "margin": 1.0}})
        run = synthesized(path, f"mine.teacher={json.dumps(teacher)}")
    corpora = {
        side: {row["_id"]: row["text"] for row in rows(run.synthetic / side / "corpus.jsonl")}
        for side in ("train", "held_out")
    }
    search = {side: bm25(texts, depth=6) for side, texts in corpora.items()}
    kept = rows(run.synthetic_queries)
    others = [row for row in rows(run.synthetic_rejected) if row["filter"] == "teacher"]
    promoted: dict[str, dict[str, str]] = {"train": {}, "held_out": {}}
    for row in [*kept, *others]:
        texts = corpora[row["side"]]
        ids = {row["document"], *(c.document_id for c in search[row["side"]]({"q": row["text"]})["q"])}
        scores = {d: true_score(row["text"], texts[d]) for d in ids}
        own, best = scores[row["document"]], max(scores, key=lambda d: scores[d])
        rank = 1 + sum(score > own for score in scores.values())
        if rank > 3:
            assert row["reason"] == "teacher_low" and row["detail"] == f"rank {rank}"
            continue
        verdict = row["verdicts"]["teacher"]
        assert (verdict["rank"], verdict["score"]) == (rank, pytest.approx(own, abs=1e-3))
        assert verdict.get("promoted") == (best if scores[best] > own + 1 else None)
        if "promoted" in verdict:
            promoted[row["side"]][row["_id"]] = verdict["promoted"]
    assert len(others) > 20 and len(promoted["train"]) > 5
    # What is promoted is relevant as well.
    for side, file in (("train", "train"), ("held_out", "dev")):
        lines = (run.synthetic / side / "qrels" / f"{file}.tsv").read_text().splitlines()[1:]
        judged = {tuple(line.split("\t")[:2]) for line in lines}
        own_pairs = {(row["_id"], row["document"]) for row in kept if row["side"] == side}
        assert judged == own_pairs | set(promoted[side].items())


def test_a_dry_run_states_the_bill_and_the_report_shows_what_was_written(
    server: WriterServer, tmp_path: Path, tiny_qwen3: Path
) -> None:
    writer = {"url": server.url, "model": "m", "price_per_million": {"input": 1.0, "output": 2.0}}
    path = recipe(tmp_path, tiny_qwen3, writer=writer, per_passage=1)
    stated = bill(load_recipe(str(path)).recipe)
    (state, *_) = preview(Pipeline(load_recipe(str(path)), progress=False))
    assert (state.name, state.state, state.why) == ("synthesize", "would run", f"not done yet; {stated}")
    assert server.asked == []
    run = synthesized(path)
    (state, *_) = preview(Pipeline(load_recipe(str(path)), progress=False))
    assert (state.state, state.why) == ("done", "unchanged")
    made = {"audit": json.loads(run.synthetic_report.read_text())["audit"], "judged": 50, "accepted": 45}
    run.write_json(run.synthetic_audited, made)
    page = write_report(run.path).read_text()
    section = page[page.index('<h2 id="written">') : page.index('<h2 id="mining">')]
    text = " ".join(re.sub(r"<[^>]+>", " ", section).split())
    assert "240 queries written by m for 240 passages of 240" in text
    assert "People accepted 90.0 % of 50 queries" in text.replace("\N{NO-BREAK SPACE}", " ")
    assert "78.6 % to 95.7 % in 95 % (Wilson)" in text.replace("\N{NO-BREAK SPACE}", " ")
    report = json.loads(run.synthetic_report.read_text())
    for row in report["filters"]:
        for reason, count in row["reasons"].items():
            line = f"{row['filter']} {reason} {count} {row['meanings'][reason]} {row['left']}"
            assert line in html.unescape(text)
    for kind, of in report["kinds"].items():
        assert f"{kind} {of['written']} {of['kept']}" in text
    (run.synthetic_report).unlink()
    assert "no queries are written yet" in write_report(run.path).read_text()


def test_bad_files_of_documents_are_named(tmp_path: Path, tiny_qwen3: Path) -> None:
    whole = documents(60)
    # Not UTF-8 and no text: named with the file.
    path = recipe(tmp_path / "bytes", tiny_qwen3)
    (tmp_path / "bytes" / "docs.jsonl").write_bytes(b"\x00\x01\xff\xfe\x00{" * 40)
    with pytest.raises(UserError, match=r"synthesize.documents.0: .*docs\.jsonl"):
        synthesized(path)
    # Empty documents and those of one line have no passage to ask about; the others are enough.
    rows_of = [*whole, {"_id": "empty", "text": "", "case": "e"}, {"_id": "line", "text": "One line.", "case": "l"}]
    run = synthesized(recipe(tmp_path / "empty", tiny_qwen3, rows=rows_of), "data.on_fault=drop")
    report = json.loads(run.synthetic_report.read_text())
    assert sum(report["asked_about"].values()) <= 60
    assert {"line", "empty"}.isdisjoint(row["document"] for row in rows(run.synthetic_queries))
    # Two documents of one id.
    with pytest.raises(UserError, match=r"(?i)d0"):
        synthesized(recipe(tmp_path / "twice", tiny_qwen3, rows=[*whole, {**documents(61)[60], "_id": "d0"}]))
