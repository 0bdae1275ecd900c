"""train.first_stage_offset: the loss, its gradient, dev and a refresh are of score + gamma * z(first stage)."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jobs
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from at_step import reranker
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load
from tiny import PAIRS, add_random_lora
from torch import Tensor

from rankwright.common.errors import UserErrors
from rankwright.data.split_files import qualified, read_split
from rankwright.evaluation.metrics import measure_run
from rankwright.mining.pools import read_negatives
from rankwright.model.loading import load_model, load_tokenizer
from rankwright.model.prompt import RECIPROCAL_RANK, ZSCORE, PromptEncoder, make_contract
from rankwright.pipeline.combine import trained_weight
from rankwright.pipeline.stages import Pipeline
from rankwright.pipeline.train import make_source, tokenised
from rankwright.recipe.loading import load_recipe
from rankwright.recipe.schema import Loss, LossTerm
from rankwright.rerankers.combination import Combination, combined_scores
from rankwright.rerankers.reranker import Reranker
from rankwright.retrieval.candidates import Candidate, read_candidates
from rankwright.training.gradients import accumulate
from rankwright.training.loss_terms import bind_loss, refusing_offset
from rankwright.training.losses import LOSSES, OF_PAIR
from rankwright.training.offset import FirstStageOffset
from rankwright.training.sampling import TrainGroup
from rankwright.training.setup import load_base_tokenizer

GAMMA = 1.5
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def offset(scores: list[float], normaliser: str = ZSCORE) -> FirstStageOffset:
    found = [Candidate(f"d{n}", score, n) for n, score in enumerate(scores, start=1)]
    return FirstStageOffset(GAMMA, {"q": found, "empty": []}, normaliser)


def test_what_the_list_lacks_counts_as_its_lowest() -> None:
    # Mean 4, standard deviation sqrt(14).
    z = np.array([9, 5, 2, 0]) / 14**0.5 - 4 / 14**0.5
    assert abs(np.std([9, 5, 2, 0]) - 11.5**0.5) < 1e-12
    z *= 14**0.5 / 11.5**0.5
    found = offset([9, 5, 2, 0])
    assert found.of("q", ["d2", "elsewhere", "d1", "d4"]) == pytest.approx(GAMMA * z[[1, 3, 0, 3]])
    assert found.of("q", []) == ()
    assert offset([3, 3, 3]).of("q", ["d1", "elsewhere"]) == (0, 0)
    assert found.of("empty", ["d1"]) == found.of("unknown", ["d1"]) == (0,)
    ranks = np.array([1, 1 / 2, 1 / 3])
    expected = GAMMA * (ranks - ranks.mean()) / ranks.std()
    assert offset([50, 49, 48], RECIPROCAL_RANK).of("q", ["d1", "d2", "d3"]) == pytest.approx(expected)
    run = found.added({"q": {"d1": 10.0, "elsewhere": -1.0}})
    assert run == {"q": pytest.approx({"d1": 10 + GAMMA * z[0], "elsewhere": -1 + GAMMA * z[3]})}


numbers = st.lists(st.integers(-50, 50), min_size=2, max_size=8)


@given(numbers, st.integers(1, 9), st.integers(-9, 9))
def test_the_scale_of_the_first_stage_does_not_matter(scores: list[int], factor: int, shift: int) -> None:
    ids = [f"d{n}" for n in range(1, len(scores) + 2)]
    moved = offset([float(factor * s + shift) for s in scores])
    assert moved.of("q", ids) == pytest.approx(offset([float(s) for s in scores]).of("q", ids), abs=1e-9)


@given(
    st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=2, max_size=8, unique_by=lambda p: p[1])
)
def test_the_weight_of_training_gives_the_order_of_training(pairs: list[tuple[int, int]]) -> None:
    """For scores whose spread makes a weight of the grid: gamma 2 and a spread of 3 are 3/5."""
    first, draws = (np.array(values) for values in zip(*pairs, strict=True))
    scores = (3 * (draws - draws.mean()) / draws.std()).tolist()
    weight = trained_weight(2.0, [scores, scores])
    assert weight == 0.6
    combined = combined_scores(scores, [float(s) for s in first], Combination(weight))
    z = (first - first.mean()) / (first.std() or 1)
    assert np.array(combined) * 5 == pytest.approx(np.array(scores) + 2 * z, abs=1e-9)


@pytest.mark.parametrize("budget", [1, 300, 10**9])
def test_loss_and_gradient_are_those_of_the_sum(tiny_qwen3: Path, budget: int) -> None:
    """Against the cross-entropy of PyTorch, prompt by prompt; in one pass, in two, and with padding."""
    tokenizer = load_tokenizer(str(tiny_qwen3))
    contract = make_contract(tokenizer, mode="portable", max_tokens=160)
    encoder = PromptEncoder(contract, tokenizer)
    model = add_random_lora(load_model(str(tiny_qwen3), contract, tokenizer)).train()
    groups = []
    for number, count in enumerate((3, 6)):
        encoded = encoder.encode(PAIRS[number][0], [d for _, d in PAIRS[number : number + count]])
        added = tuple(1.7 * ((n * 5 + number) % 4) - 2 for n in range(count))
        groups.append(TrainGroup(f"q{number}", (1.0, *[0.0] * (count - 1)), encoded, 1 + number, offset=added))

    def gradient() -> Tensor:
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    total = torch.zeros(())
    for group in groups:
        single = [dataclasses.replace(group.encoded, tail_ids=[tail]) for tail in group.encoded.tail_ids]
        logits = torch.stack([model([one])[0] for one in single]) + torch.tensor(group.offset)
        total = total + group.weight * F.cross_entropy(logits.unsqueeze(0), torch.tensor([0])) / 3
    model.zero_grad()
    total.backward()  # type: ignore[no-untyped-call]
    expected = gradient()
    loss = bind_loss(Loss())
    options: dict[str, Any] = {"budget_tokens": budget, "seed": 0, "step": 1, "accelerator": Accelerator(cpu=True)}
    model.zero_grad()
    sums = accumulate(model, groups, loss, **options)
    assert sums.loss == pytest.approx(float(total.detach()), rel=1e-5)
    assert (gradient() - expected).norm() < 1e-5 * expected.norm()
    model.zero_grad()
    plain = accumulate(model, [dataclasses.replace(g, offset=None) for g in groups], loss, **options)
    assert (gradient() - expected).norm() > 0.01 * expected.norm()
    # What is logged is how far the model's own scores are apart.
    assert (plain.margin, plain.spread) == pytest.approx((sums.margin, sums.spread), rel=1e-5)


def test_every_loss_but_that_of_a_pair_takes_it() -> None:
    assert {"mse", "soft_bce"} == OF_PAIR
    terms = Loss(name="mse", plus=(LossTerm(name="bce"), LossTerm(name="mse")))
    assert refusing_offset(terms) == [("loss.name", "mse"), ("loss.plus.1.name", "mse")]
    assert not any(refusing_offset(Loss(name=name)) for name in LOSSES if name not in OF_PAIR)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["loss.name=mse"], r"loss\.name: mse gives each pair a score of its own"),
        (["evaluate.combine=null"], r"tuned alone lacks what bm25 knows, and evaluate\.combine is switched off"),
        (["gate={}"], r"tuned alone lacks what bm25 knows, and gate\.system is tuned: write gate\.system: combined"),
        (
            ["evaluate.first_stage=run", "data.test.0.run=sets/some.run"],
            r"evaluate\.first_stage is run, and training queries have no lists of it: add run: FILE",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_read(
    tmp_path: Path, tiny_qwen3: Path, settings: list[str], message: str
) -> None:
    recipe = jobs.job(tmp_path, tiny_qwen3, train={"first_stage_offset": 1.0})
    (tmp_path / "sets" / "some.run").write_text("q40 Q0 d40 1 1.0 x\n")
    Pipeline(load_recipe(str(recipe), ["gate={system: combined}"]), progress=False).check()
    with pytest.raises(UserErrors) as error:
        Pipeline(load_recipe(str(recipe), settings), progress=False).check(data=False)
    (line,) = [line for line in error.value.messages if line.startswith("train.first_stage_offset: ")]
    assert re.search(message, line), line


STEPS = {"max_steps": 5, "groups_per_step": 5, "evaluate_every": 9, "save_every": 9, "learning_rate": 0.01}
MINE = {"retriever": "bm25", "depth": 5, "refresh_steps": 2, "negatives": 2, "sampler": {"top": {}}, "fill": "random"}


def job(folder: Path, base: Path) -> Path:
    return jobs.job(folder, base, train={**STEPS, "first_stage_offset": GAMMA}, mine=MINE, evaluate={"depth": 8})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> Pipeline:
    pipeline = Pipeline(load_recipe(str(job(tmp_path_factory.mktemp("offset"), tiny_qwen3)), ["export.targets=[]"]))
    pipeline.train()
    return pipeline


def sums_of(one: Reranker, query: str, corpus: Any, ids: list[str], found: Any) -> dict[str, float]:
    """Document id -> score + gamma * z, by NumPy."""
    scores = np.array([c.score for c in found])
    z = dict(zip([c.document_id for c in found], (scores - scores.mean()) / (scores.std() or 1.0), strict=True))
    added = [GAMMA * float(z.get(d, min(z.values()))) for d in ids]
    own = one.score(query, [corpus[d] for d in ids])
    return {d: a + b for d, a, b in zip(ids, own, added, strict=True)}


def test_lists_losses_and_dev_of_a_run(trained: Pipeline) -> None:
    run, recipe = trained.folder, trained.recipe
    lists = read_candidates(run.train_lists)
    # As deep as lists are reranked, whatever is mined from; BM25's lists are nested.
    mined = read_candidates(run.candidates)
    assert {len(found) for found in mined.values()} == {5} and {len(found) for found in lists.values()} == {8}
    assert all(lists[q][:5] == mined[q] for q in mined)
    (train,), (dev,) = (map(qualified, read_split(run.data, name)) for name in ("train", "dev"))
    base, rows = reranker(trained, 0), jobs.metrics(run.path)

    dev_lists, qrels = read_candidates(run.dev_candidates), dict(dev.qrels)
    ranked = {
        q: sums_of(base, text, dev.corpus, [c.document_id for c in dev_lists[q]], dev_lists[q])
        for q, text in dev.queries.items()
    }
    expected = measure_run(ranked, qrels, ["nDCG@10"]).mean["nDCG@10"]
    assert rows[0]["dev_nDCG@10"] == pytest.approx(expected, abs=1e-9)

    encoder = PromptEncoder(base.contract, load_base_tokenizer(recipe)[1])
    source = make_source(recipe, run, tokenised(recipe, run, encoder))
    losses, outside = [], 0
    for query_id, draw in source.mixture.step(1, 5):
        group = source.group(query_id, draw)
        found = sums_of(base, group.query, train.corpus, list(group.document_ids), lists[query_id])
        logits, gains = torch.tensor(list(found.values())), torch.tensor(group.labels)
        losses.append(-float((gains / gains.sum() * logits.log_softmax(0)).sum()))
        outside += len(set(group.document_ids) - {c.document_id for c in lists[query_id]})
    assert rows[1]["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert outside or any(len(found) > 5 for found in lists.values())


def test_a_refresh_ranks_by_the_sum(trained: Pipeline) -> None:
    (path,) = trained.folder.pools.glob("step-4-*.jsonl")
    lists, mined = read_candidates(trained.folder.train_lists), read_candidates(trained.folder.candidates)
    (train,) = map(qualified, read_split(trained.folder.data, "train"))
    model = reranker(trained, 4)
    for query_id, pool in read_negatives(path).items():
        relevant = train.positives(query_id)
        ids = list(dict.fromkeys([*(c.document_id for c in mined[query_id]), *relevant]))
        found = sums_of(model, train.queries[query_id], train.corpus, ids, lists[query_id])
        order = sorted((d for d in ids if d not in relevant), key=lambda d: -found[d])
        own = [n for n in pool if n.source == "model"]
        assert [n.document_id for n in own] == order
        assert [n.score for n in own] == pytest.approx([found[d] for d in order], abs=1e-5)


def test_continued_from_step_4_it_gives_the_same_bits(trained: Pipeline, tmp_path: Path) -> None:
    shutil.copytree(trained.folder.path, tmp_path / "run")
    for name in ("stages/train.json", "checkpoints/step-5/state.json"):
        (tmp_path / "run" / name).unlink()
    shutil.rmtree(tmp_path / "run" / "pools")
    shutil.copytree(trained.folder.pools, tmp_path / "run" / "pools")
    for path in (tmp_path / "run" / "pools").glob("step-4-*.jsonl"):
        path.unlink()
    again = Pipeline(
        load_recipe(
            str(trained.folder.path.parent / "recipe.yaml"), [f"run_dir={tmp_path / 'run'}", "export.targets=[]"]
        ),
        progress=False,
    )
    again.train()
    weights = [load((p.folder.checkpoint(5) / "model.safetensors").read_bytes()) for p in (again, trained)]
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())
    assert {p.name for p in again.folder.pools.glob("*.jsonl")} == {
        p.name for p in trained.folder.pools.glob("*.jsonl")
    }
    rows = [[(r.get("loss"), r.get("dev_nDCG@10")) for r in jobs.metrics(p.folder.path)] for p in (again, trained)]
    assert rows[0] == rows[1]


def test_with_few_dev_queries_the_sum_of_training_is_served(
    trained: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    trained.evaluate()
    found = json.loads(trained.folder.combine.read_text())
    lines = trained.folder.dev_scores.read_text().splitlines()[1:]
    spread = np.mean([np.std(json.loads(line)["scores"]) for line in lines])
    assert found["dev_queries"] < 20 and found["note"]
    assert abs(found["weight"] - spread / (spread + GAMMA)) <= 0.025 + 1e-9
    assert f"so w = {found['weight']:g}, as in training (train.first_stage_offset)" in capsys.readouterr().out
    trained.report()
    page = trained.folder.report.read_text()
    assert "the model was trained on score + 1.5 z(BM25)" in page and "The weight is that of training" in page


@pytest.mark.slow
def test_two_processes_train_as_one_and_the_card_has_it(trained: Pipeline, tiny_qwen3: Path, tmp_path: Path) -> None:
    done = jobs.rankwright("run", job(tmp_path, tiny_qwen3), launcher=TWO, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    rows = [jobs.metrics(folder) for folder in (tmp_path / "run", trained.folder.path)]
    for key in ("loss", "dev_nDCG@10"):
        values = [[row[key] for row in found if key in row] for found in rows]
        assert values[0] == pytest.approx(values[1], rel=1e-3)
    card = (tmp_path / "run" / "export" / "hf" / "README.md").read_text()
    assert "Trained on score + 1.5 z(bm25), so that it adds to what bm25 knows" in card
