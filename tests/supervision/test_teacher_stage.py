"""mine.teacher through the whole: mined, told, trained on, audited; the same files whatever the number of processes."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import jobs
import pytest

from rankwright.common.errors import UserError
from rankwright.common.run_folder import RunFolder
from rankwright.data.split_files import qualified, read_split
from rankwright.mining.pools import read_negatives
from rankwright.model.prompt import PromptEncoder
from rankwright.model.token_store import token_store
from rankwright.pipeline.checks import check_names
from rankwright.pipeline.stages import Pipeline
from rankwright.pipeline.train import make_source
from rankwright.recipe.loading import load_recipe
from rankwright.report.audit import write_audit
from rankwright.rerankers.kinds import load_baseline
from rankwright.rerankers.pair_scores import read_teacher_scores
from rankwright.retrieval.candidates import read_candidates
from rankwright.training.setup import load_base_tokenizer, recipe_contract

TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def mined(folder: Path, models: tuple[Path, Path], above: str, **mine: Any) -> Pipeline:
    base, teacher = models
    section = {"teacher": {"name": "big", "kind": "cross-encoder", "model": str(teacher)}, **mine}
    section["filters"] = {"teacher": {"above": above, "margin": 0.5, **({"label": 2.0} if above == "promote" else {})}}
    loss = {"plus": [{"name": "kl_distil", "weight": 0.5}]}
    path = jobs.job(folder, base, mine=section, loss=loss)
    rows = [json.loads(line) for line in (folder / "sets" / "one" / "corpus.jsonl").read_text().splitlines()]
    # One document more that is judged not relevant, and one query with two relevant ones.
    with (folder / "sets" / "one" / "qrels" / "train.tsv").open("a") as file:
        file.write(f"q0\t{rows[7]['_id']}\t0\nq1\t{rows[9]['_id']}\t1\n")
    pipeline = Pipeline(load_recipe(str(path), []))
    pipeline.start()
    pipeline.mine()
    return pipeline


def files(run: Path) -> dict[str, bytes]:
    return {
        n: (run / n).read_bytes() for n in ("negatives.jsonl", "candidates.jsonl", "removed.jsonl", "teacher.jsonl")
    }


def groups(pipeline: Pipeline) -> list[Any]:
    """All groups of the first epoch."""
    recipe = pipeline.recipe
    base, tokenizer = load_base_tokenizer(recipe)
    encoder = PromptEncoder(recipe_contract(recipe, base, tokenizer), tokenizer)
    source = make_source(
        recipe, pipeline.folder, token_store(pipeline.folder.path / "t", encoder, {}, [], lambda *_: None)
    )
    return [source.group(query_id, 0) for query_id in source.query_ids]


def test_dropped_ones_are_gone_and_the_rest_is_scored(
    models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = mined(tmp_path, models, "drop", refresh_steps=2)
    run, output = pipeline.folder.path, capsys.readouterr().out
    pools, scores = read_negatives(run / "negatives.jsonl"), read_teacher_scores(run / "teacher.jsonl")
    candidates = read_candidates(run / "candidates.jsonl")
    (collection,) = map(qualified, read_split(run / "data", "train"))
    plain: Any = load_baseline(pipeline.recipe.mine.teacher, pipeline.recipe.prompt, cache=tmp_path)  # type: ignore[arg-type]
    kept = 0
    for query_id, pool in pools.items():
        ids = [c.document_id for c in candidates[query_id]]
        found = plain.score(collection.queries[query_id], [collection.corpus[d] for d in ids])
        expected = dict(zip(ids, found, strict=True))
        assert {d: scores[query_id][d] for d in ids} == pytest.approx(expected, abs=1e-4)
        best = max(scores[query_id][d] for d in collection.positives(query_id))
        unjudged = [n for n in pool if n.reason == "unjudged"]
        judged = collection.qrels[query_id]
        assert [n.document_id for n in unjudged] == [
            d for d in ids if scores[query_id][d] <= best - 0.5 and d not in judged
        ]
        assert all(dict(n.decisions) == {"teacher": scores[query_id][n.document_id]} for n in unjudged)
        kept += len(unjudged)
    facts = pipeline.folder.facts("mine")
    estimates = facts["false_negatives"]
    # The filter left none above by the same scores: 0 % would be no finding.
    assert kept and "above_positive" not in estimates and "no estimate, its filter left none by these scores" in output
    assert estimates["held_out"]["whole"] >= 1 and estimates["judged"]["whole"] > 1
    assert "pairs scored" in output and f"{sum(map(len, scores.values())):,} in teacher.jsonl" in output
    assert "that would be negatives if they were unjudged" in output
    # Another order of keys or a setting of training asks for nothing again; a removed file does.
    pipeline.mine()
    assert "unchanged, skipped" in capsys.readouterr().out
    before = files(run)
    (run / "teacher.jsonl").unlink()
    pipeline.mine()
    assert "0 pairs scored" in capsys.readouterr().out
    assert files(run) == before


def test_soft_labels_are_seen_by_losses_of_scores_alone(models: tuple[Path, Path], tmp_path: Path) -> None:
    pipeline = mined(tmp_path, models, "soft")
    scores = read_teacher_scores(pipeline.folder.path / "teacher.jsonl")
    drawn = groups(pipeline)
    soft = 0
    for group in drawn:
        assert group.teacher == tuple(scores[group.query_id][d] for d in group.document_ids)
        best = max(t for t, label in zip(group.teacher, group.labels, strict=True) if label > 0)
        for label, score, source in zip(group.labels, group.teacher, group.sources, strict=True):
            if source == "bm25":
                assert math.isnan(label) if score > best - 0.5 else label == 0
                soft += math.isnan(label)
    assert soft
    assert pipeline.folder.facts("mine")["said"] == {
        "teacher: kept as soft labels": sum(
            n.label is None for pool in read_negatives(pipeline.folder.path / "negatives.jsonl").values() for n in pool
        )
    }


def test_promoted_ones_are_relevant_and_no_judged_negative_is(models: tuple[Path, Path], tmp_path: Path) -> None:
    pipeline = mined(tmp_path, models, "promote", positives=30, negatives=30)
    (collection,) = map(qualified, read_split(pipeline.folder.path / "data", "train"))
    pools = read_negatives(pipeline.folder.path / "negatives.jsonl")
    promoted = {q: {n.document_id for n in pool if n.is_promoted} for q, pool in pools.items()}
    assert sum(map(len, promoted.values()))
    for group in groups(pipeline):
        rows = list(zip(group.document_ids, group.labels, group.sources, strict=True))
        assert {d for d, _, source in rows if source == "promoted"} == promoted[group.query_id]
        assert all(label == 2.0 for _, label, source in rows if source == "promoted")
        judged = {d for d, label in collection.qrels[group.query_id].items() if label <= 0}
        assert not judged & promoted[group.query_id]
        assert {d for d, label, _ in rows if d in judged and label > 0} == set()


def test_promoted_ones_are_no_negatives_where_pools_are_short(models: tuple[Path, Path], tmp_path: Path) -> None:
    pipeline = mined(tmp_path, models, "promote", negatives=17, fill="random")
    pools = read_negatives(pipeline.folder.path / "negatives.jsonl")
    (collection,) = map(qualified, read_split(pipeline.folder.path / "data", "train"))
    filled = short = 0
    for query_id, pool in pools.items():
        promoted = sum(n.is_promoted for n in pool)
        # All that the corpus has, or as many as are drawn beside what was promoted.
        left = len(collection.corpus) - len(collection.positives(query_id)) - promoted
        assert min(17, left) <= len(pool) - promoted <= left
        filled += len(pool) > 17 and any(n.reason == "fill" for n in pool)
        short += len(pool) - promoted < 17
    assert filled and short
    assert pipeline.folder.facts("mine")["short_pools"] == short


@pytest.mark.slow
def test_two_processes_mine_the_same_files(models: tuple[Path, Path], tmp_path: Path) -> None:
    one = mined(tmp_path, models, "drop")
    setting = f"run_dir={tmp_path / 'two'}"
    cache = str(tmp_path / "cache")
    done = jobs.rankwright("mine", tmp_path / "recipe.yaml", setting, launcher=TWO, RANKWRIGHT_CACHE=cache)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "two") == files(one.folder.path)
    assert json.loads((tmp_path / "two" / "stages" / "mine.json").read_text())["processes"] == 2


def test_the_audit_page_shows_what_was_decided_and_takes_answers(models: tuple[Path, Path], tmp_path: Path) -> None:
    pipeline = mined(tmp_path, models, "drop")
    with pytest.raises(UserError, match="nothing is mined yet"):
        empty = tmp_path / "empty"
        empty.mkdir()
        (empty / "recipe.json").write_text((pipeline.folder.path / "recipe.json").read_text())
        write_audit(RunFolder(empty), 3)
    page = write_audit(pipeline.folder, 5).read_text(encoding="utf-8")
    assert page == write_audit(pipeline.folder, 5).read_text(encoding="utf-8")
    # Nothing comes from elsewhere.
    assert not re.search(r"""(?:src|href)=["']?(?!#)""", page.replace("link.href = URL", "")) and "http" not in page
    cases = page.split('<section class="case"')[1:]
    assert len(cases) == 5
    pools = read_negatives(pipeline.folder.path / "negatives.jsonl")
    for case in cases:
        (query_id,) = re.findall(r'<h3>.*?<span class="soft">([^<]+)<', case)
        asked = re.findall(r'data-document="([^"]+)" data-kind="([^"]+)"', case)
        unjudged = [n.document_id for n in pools[query_id] if n.reason == "unjudged"]
        assert [d for d, kind in asked if kind == "negative"] == unjudged[
            : len([1 for _, k in asked if k == "negative"])
        ]
        assert "teacher" in case and "relevant" in case
    assert "teacher_above_margin" in page and "What the filters removed" in page
    assert "that would be negatives if they were unjudged" in page
    assert "no estimate, its filter left none by these scores" in page
    # Other queries with another seed, and more of them come after the same first ones.
    more = write_audit(pipeline.folder, 9, tmp_path / "more.html").read_text(encoding="utf-8")
    chosen = [re.findall(r'<h3>.*?<span class="soft">([^<]+)<', text) for text in (page, more)]
    assert chosen[1][:5] == chosen[0]


def test_the_audit_page_asks_about_negatives_however_many_are_soft(models: tuple[Path, Path], tmp_path: Path) -> None:
    pipeline = mined(tmp_path, models, "soft")
    page = write_audit(pipeline.folder, 30).read_text(encoding="utf-8")
    pools = read_negatives(pipeline.folder.path / "negatives.jsonl")
    seen = 0
    for case in page.split('<section class="case"')[1:]:
        (query_id,) = re.findall(r'<h3>.*?<span class="soft">([^<]+)<', case)
        kinds = re.findall(r'data-kind="([^"]+)"', case)
        soft = sum(n.label is None for n in pools[query_id])
        plain = sum(n.label == 0 and n.source != "judged" for n in pools[query_id])
        assert (kinds.count("soft"), kinds.count("negative")) == (
            min(soft, max(5, 10 - plain - sum(n.source == "judged" for n in pools[query_id]))),
            min(plain, max(5, 10 - soft)),
        )
        seen += soft >= 10 and plain > 0
    assert seen


def test_texts_cannot_break_out_of_the_page(models: tuple[Path, Path], tmp_path: Path) -> None:
    base, _ = models
    path = jobs.job(tmp_path, base)
    corpus = tmp_path / "sets" / "one" / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace('"text": "', '"text": "</script><script>alert(1)</script> '))
    pipeline = Pipeline(load_recipe(str(path), ["name=a"]))
    pipeline.start()
    pipeline.mine()
    page = write_audit(pipeline.folder, 3).read_text(encoding="utf-8")
    assert page.count("<script>") == 1 and "&lt;script&gt;" in page


def test_what_is_kept_and_in_no_loss_is_refused(models: tuple[Path, Path], tmp_path: Path) -> None:
    base, teacher = models
    settings = {"teacher": {"name": "big", "kind": "cross-encoder", "model": str(teacher)}}
    path = jobs.job(tmp_path, base, mine={**settings, "filters": {"teacher": {"above": "soft"}}})
    (fault,) = check_names(load_recipe(str(path), []).recipe)
    assert fault.startswith("mine.filters.teacher.above: soft needs a loss of a teacher's scores: add one of adr_mse")
    ranknet = ["loss.name=ranknet", "loss.options={targets: teacher}"]
    assert check_names(load_recipe(str(path), ranknet).recipe) == []
    assert check_names(load_recipe(str(path), ["loss.name=mse"]).recipe) == []
    # Judged documents come first, and the filter decides only where there are some.
    promote = ["mine.filters.teacher.above=promote", "mine.positives=1"]
    (fault,) = check_names(load_recipe(str(path), promote).recipe)
    assert fault.startswith("mine.filters.teacher.above: promote needs mine.positives above 1")
    assert check_names(load_recipe(str(path), [promote[0], "mine.positives=2"]).recipe) == []
    (fault,) = check_names(load_recipe(str(path), ["mine.teacher=null", "loss.name=mse"]).recipe)
    assert "needs mine.teacher" in fault


def test_unlabelled_queries_stay_beside_a_loss_of_labels(models: tuple[Path, Path], tmp_path: Path) -> None:
    base, teacher = models
    loss = {"name": "kl_distil", "plus": [{"name": "listwise_softmax", "weight": 0.5}]}
    scored = {"teacher": {"name": "big", "kind": "cross-encoder", "model": str(teacher)}}
    path = jobs.job(tmp_path, base, mine=scored, loss=loss, train={"max_steps": 2, "groups_per_step": 30})
    qrels = tmp_path / "sets" / "one" / "qrels" / "train.tsv"
    lines = qrels.read_text().splitlines()
    # Only a document that is judged not relevant: what else they retrieve is unjudged.
    unlabelled = [re.sub(r"\td\d+\t\d", "\td0\t0", line) for line in lines[21:]]
    qrels.write_text("\n".join([*lines[:21], *unlabelled]) + "\n")
    pipeline = Pipeline(load_recipe(str(path), ["export.targets=[]"]), progress=False)
    pipeline.train()
    drawn = {group.query_id.rpartition("/")[2]: group for group in groups(pipeline)}
    (train,) = read_split(pipeline.folder.data, "train")
    bare = [q for q in train.queries if not train.positives(q)]
    assert len(bare) > 3 and set(bare) <= drawn.keys()
    for query_id in bare:
        group = drawn[query_id]
        assert any(map(math.isnan, group.labels)) and all(label == 0 or math.isnan(label) for label in group.labels)
        assert group.teacher is not None and not any(math.isnan(score) for score in group.teacher)
    assert all(math.isfinite(row["loss"]) for row in jobs.metrics(pipeline.folder.path) if "loss" in row)
    mix = json.loads(pipeline.folder.mix.read_text())
    assert (mix["sets"][0]["queries"], mix["sets"][0]["left_out"]) == (len(train.queries), 0)
