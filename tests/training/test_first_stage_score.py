"""prompt.first_stage_score: training, dev, a refresh and the evaluation score texts with the first stage's level."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import jobs
import numpy as np
import pytest
import torch
from at_step import reranker
from safetensors.torch import load

from rankwright import Reranker
from rankwright.common.errors import UserErrors
from rankwright.data.split_files import qualified, read_split
from rankwright.evaluation.metrics import measure_run
from rankwright.mining.pools import read_negatives
from rankwright.model.prompt import PromptEncoder
from rankwright.pipeline.stages import Pipeline
from rankwright.pipeline.train import make_source, tokenised
from rankwright.recipe.loading import load_recipe
from rankwright.retrieval.candidates import Candidate, read_candidates
from rankwright.retrieval.run_file import read_trec_run
from rankwright.training.sampling import GroupSource
from rankwright.training.setup import load_base_tokenizer, recipe_contract

LEVELS = 20
STEPS = {"max_steps": 5, "groups_per_step": 5, "evaluate_every": 9, "save_every": 9, "learning_rate": 0.01}
MINE = {"retriever": "bm25", "depth": 8, "refresh_steps": 2, "negatives": 3, "fill": "random"}
PROMPT = {"max_tokens": 160, "first_stage_score": {"levels": LEVELS, "dropout": 0.4}}


def job(folder: Path, base: Path, **sections: Any) -> Path:
    return jobs.job(
        folder, base, **{"train": STEPS, "mine": MINE, "evaluate": {"depth": 4}, "prompt": PROMPT, **sections}
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> Pipeline:
    pipeline = Pipeline(load_recipe(str(job(tmp_path_factory.mktemp("score"), tiny_qwen3)), ["export.targets=[]"]))
    pipeline.evaluate()
    return pipeline


def source_of(pipeline: Pipeline) -> GroupSource:
    base, tokenizer = load_base_tokenizer(pipeline.recipe)
    encoder = PromptEncoder(recipe_contract(pipeline.recipe, base, tokenizer), tokenizer)
    return make_source(pipeline.recipe, pipeline.folder, tokenised(pipeline.recipe, pipeline.folder, encoder))


def scores_of(one: Reranker, query: str, texts: list[str], ids: list[str], found: list[Candidate]) -> list[float]:
    """Scores by a prompt each, whose texts are made by hand; without a list as they are."""
    scores = {c.document_id: c.score for c in found}
    low, high = min(scores.values(), default=0.0), max(scores.values(), default=0.0)
    prompts = texts
    if high > low:
        shares = [(scores.get(d, low) - low) / (high - low) for d in ids]
        levels = [math.floor(LEVELS * share + 0.5) for share in shares]
        prompts = [f"First-stage score: {n}\n{text}" for n, text in zip(levels, texts, strict=True)]
    return [next(iter(one.score_groups([(query, [prompt])])))[0] for prompt in prompts]


def test_losses_of_a_run_are_those_of_prompts_with_levels(trained: Pipeline) -> None:
    run, base, source = trained.folder, reranker(trained, 0), source_of(trained)
    lists = read_candidates(run.train_lists)
    # As deep as lists are reranked, whatever is mined from.
    assert {len(found) for found in lists.values()} == {4}
    (train,) = map(qualified, read_split(run.data, "train"))
    losses, kinds = [], set()
    for (query_id, draw), encoded in zip(source.mixture.step(1, 5), source.step(1, 5), strict=True):
        group = source.group(query_id, draw)
        dropped, found = source.is_dropped(query_id, draw), {c.document_id for c in lists[query_id]}
        texts = [train.corpus[d] for d in group.document_ids]
        own = scores_of(base, group.query, texts, list(group.document_ids), [] if dropped else list(lists[query_id]))
        logits, gains = torch.tensor(own), torch.tensor(group.labels)
        losses.append(-float((gains / gains.sum() * logits.log_softmax(0)).sum()))
        # The very prompts that are trained.
        with torch.inference_mode():
            assert base.model([encoded.encoded]).tolist() == pytest.approx(own, abs=1e-5)
        kinds |= {"dropped" if dropped else "outside" if d not in found else "inside" for d in group.document_ids}
    assert kinds == {"dropped", "inside", "outside"}
    assert jobs.metrics(run.path)[1]["loss"] == pytest.approx(np.mean(losses), rel=1e-4)


def test_dev_and_test_lists_are_scored_with_levels_and_the_base_without(trained: Pipeline) -> None:
    run = trained.folder
    (dev,) = map(qualified, read_split(run.data, "dev"))
    base, lists = reranker(trained, 0), read_candidates(run.dev_candidates)
    ranked = {}
    for query_id, query in dev.queries.items():
        ids = [c.document_id for c in lists[query_id]]
        rows = base.rank(query, [dev.corpus[d] for d in ids], first_stage_scores=[c.score for c in lists[query_id]])
        ranked[query_id] = {ids[row.index]: row.score for row in rows}
    expected = measure_run(ranked, dict(dev.qrels), ["nDCG@10"]).mean["nDCG@10"]
    assert jobs.metrics(run.path)[0]["dev_nDCG@10"] == pytest.approx(expected, abs=1e-9)

    (test,) = read_split(run.data, "test")
    tuned, found = reranker(trained, trained.folder.facts("train")["best_step"]), {}
    for system in ("bm25", "base", "tuned"):
        found[system] = read_trec_run(run.eval_folder("held-out", system) / "run.trec")
    for query_id, first in found["bm25"].items():
        ids = sorted(first, key=lambda d: -first[d])
        documents, scores = [test.corpus[d] for d in ids], [first[d] for d in ids]
        for row in tuned.rank(test.queries[query_id], documents, first_stage_scores=scores):
            assert row.document == documents[row.index]
            assert row.score == pytest.approx(found["tuned"][query_id][ids[row.index]], abs=1e-5)
        plain = dict(zip(ids, base.score(test.queries[query_id], documents), strict=True))
        assert plain == pytest.approx(found["base"][query_id], abs=1e-5)
        without = {row.index: row.score for row in tuned.rank(test.queries[query_id], documents)}
        assert max(abs(without[n] - found["tuned"][query_id][d]) for n, d in enumerate(ids)) > 1e-3
    # What weight and temperature are fitted to.
    lines = [json.loads(line) for line in run.dev_scores.read_text().splitlines()[1:]]
    for line in lines:
        own, query = lists[line["query_id"]], dev.queries[line["query_id"]]
        texts = [dev.corpus[c.document_id] for c in own]
        expected_scores = scores_of(tuned, query, texts, [c.document_id for c in own], list(own))
        assert line["scores"] == pytest.approx(expected_scores, abs=1e-5)
    assert len(lines) == len(dev.queries)


def test_a_refresh_ranks_by_prompts_with_levels_of_the_whole_list(trained: Pipeline) -> None:
    (path,) = trained.folder.pools.glob("step-4-*.jsonl")
    lists, mined = read_candidates(trained.folder.train_lists), read_candidates(trained.folder.candidates)
    (train,) = map(qualified, read_split(trained.folder.data, "train"))
    model, outside = reranker(trained, 4), 0
    for query_id, pool in read_negatives(path).items():
        own = [n for n in pool if n.source == "model"]
        ids = [n.document_id for n in own]
        assert set(ids) <= {c.document_id for c in mined[query_id]}
        texts = [train.corpus[d] for d in ids]
        found = scores_of(model, train.queries[query_id], texts, ids, list(lists[query_id]))
        assert [n.score for n in own] == pytest.approx(found, abs=1e-5)
        outside += len(set(ids) - {c.document_id for c in lists[query_id]})
    assert outside


def test_continued_from_step_4_it_gives_the_same_bits(trained: Pipeline, tmp_path: Path) -> None:
    shutil.copytree(trained.folder.path, tmp_path / "run")
    for name in ("stages/train.json", "checkpoints/step-5/state.json"):
        (tmp_path / "run" / name).unlink()
    recipe = str(trained.folder.path.parent / "recipe.yaml")
    again = Pipeline(load_recipe(recipe, [f"run_dir={tmp_path / 'run'}", "export.targets=[]"]), progress=False)
    again.train()
    weights = [load((p.folder.checkpoint(5) / "model.safetensors").read_bytes()) for p in (again, trained)]
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())
    rows = [[(r.get("loss"), r.get("dev_nDCG@10")) for r in jobs.metrics(p.folder.path)] for p in (again, trained)]
    assert rows[0] == rows[1]


def test_the_share_of_groups_without_the_line(trained: Pipeline) -> None:
    source = source_of(trained)
    draws = [(f"q{n}", draw) for n in range(500) for draw in range(8)]
    dropped = [source.is_dropped(*one) for one in draws]
    assert dropped == [source.is_dropped(*one) for one in draws]
    # Four standard errors; another draw of a query is another choice.
    assert abs(np.mean(dropped) - 0.4) < 4 * math.sqrt(0.24 / len(draws))
    both = np.mean([a and b for a, b in zip(dropped[::8], dropped[1::8], strict=True)])
    assert abs(both - 0.16) < 4 * math.sqrt(0.16 * 0.84 / 500)
    source.dropout = 0.0
    assert not any(source.is_dropped(*one) for one in draws)


def test_report_and_words_name_it(trained: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    trained.report()
    page = trained.folder.report.read_text()
    assert "prompt.first_stage_score: tuned reads the score of BM25 in its prompts, as a number from 0 to 20" in page


def test_what_does_not_fit_is_refused_before_anything_is_read(tmp_path: Path, tiny_qwen3: Path) -> None:
    recipe = str(job(tmp_path, tiny_qwen3))
    (tmp_path / "sets" / "some.run").write_text("q40 Q0 d40 1 1.0 x\n")
    Pipeline(load_recipe(recipe), progress=False).check()
    run = ["evaluate.first_stage=run", "data.test.0.run=sets/some.run", "train.first_stage_offset=1"]
    with pytest.raises(UserErrors) as error:
        Pipeline(load_recipe(recipe, run), progress=False).check(data=False)
    for key in ("prompt.first_stage_score", "train.first_stage_offset"):
        (line,) = [line for line in error.value.messages if line.startswith(f"{key}: ")]
        assert line.startswith(
            f"{key}: evaluate.first_stage is run, and training queries have no lists of it: add run:"
        )
    for wrong in ("{levels: 1}", "{levels: 1001}", "{dropout: 1.0}", "{dropout: -0.1}", "true"):
        with pytest.raises(UserErrors, match=r"prompt\.first_stage_score"):
            load_recipe(recipe, [f"prompt.first_stage_score={wrong}"])


@pytest.mark.slow
def test_two_processes_train_as_one_and_exports_carry_it(trained: Pipeline, tiny_qwen3: Path, tmp_path: Path) -> None:
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    recipe = job(tmp_path, tiny_qwen3, export={"targets": ["hf"]})
    done = jobs.rankwright("run", recipe, launcher=two, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    rows = [jobs.metrics(folder) for folder in (tmp_path / "run", trained.folder.path)]
    # Until the refresh after step 2: what is drawn from its pool depends on the last bits of its scores.
    for key, count in (("loss", 2), ("dev_nDCG@10", 1)):
        values = [[row[key] for row in found if key in row][:count] for found in rows]
        assert len(values[0]) == count and values[0] == pytest.approx(values[1], rel=1e-3)
    folder = tmp_path / "run" / "export" / "hf"
    card = (folder / "README.md").read_text()
    assert (
        "Trained with the score of bm25 in the prompt, a number from 0 to 20, but for 40% of the queries drawn" in card
    )
    golden = [json.loads(line) for line in (folder / "golden.jsonl").read_text().splitlines()]
    lined = [
        re.match(r"First-stage score: \d+\n", row["document"]) is not None for row in golden if row["kind"] == "real"
    ]
    assert 0.3 < np.mean(lined) < 0.7
    # The export's rank is what was measured.
    (test,) = read_split(trained.folder.data, "test")
    lists = read_candidates(tmp_path / "run" / "eval" / "held-out" / "candidates.jsonl")
    measured = read_trec_run(tmp_path / "run" / "eval" / "held-out" / "tuned" / "run.trec")
    exported = Reranker.load(folder)
    for query_id, found in lists.items():
        ids = [c.document_id for c in found]
        rows = exported.rank(
            test.queries[query_id], [test.corpus[d] for d in ids], first_stage_scores=[c.score for c in found]
        )
        scores = {ids[row.index]: row.score for row in rows}
        assert scores == pytest.approx(measured[query_id], abs=1e-4)
