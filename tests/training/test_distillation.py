"""What training says of a teacher's scores, what it refuses, and the scale of mse that a continued run goes on with."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import jobs
import numpy as np
import pytest
import torch
from safetensors.torch import load
from test_sampling import CORPUS, QUERIES, SET, make

from rankwright.common.errors import UserError, UserErrors
from rankwright.common.outputs import read_sealed, sealed
from rankwright.model.loading import load_tokenizer
from rankwright.model.prompt import PromptEncoder, make_contract
from rankwright.pipeline.checks import check_names
from rankwright.pipeline.stages import Pipeline
from rankwright.recipe.loading import load_recipe
from rankwright.recipe.schema import Loss, LossTerm, Mine, Model, Recipe
from rankwright.recipe.sources import Data
from rankwright.rerankers.pair_scores import read_teacher_scores, teacher_line
from rankwright.training.distillation import MATCHED_LISTS, TeacherFacts, check_scores

KL = Loss(name="kl_distil")


@pytest.fixture(scope="module")
def encoder(tiny_qwen3: Path) -> PromptEncoder:
    tokenizer = load_tokenizer(str(tiny_qwen3))
    return PromptEncoder(make_contract(tokenizer, mode="portable", max_tokens=128), tokenizer)


def raw_scores(*missing: tuple[str, str]) -> dict[str, dict[str, float]]:
    """Scores of all documents, those of a cross-encoder's size."""
    names = {(q, d): 9 * math.sin(3 * int(q[1:]) + int(d[1:])) for q in QUERIES for d in CORPUS}
    return {q: {d: names[q, d] for d in CORPUS if (q, d) not in missing} for q in QUERIES}


def said(encoder: PromptEncoder, loss: Loss, scores: dict[str, dict[str, float]], *, own: bool = True) -> list[str]:
    """What is said about these scores; own: they are those of mine.teacher, not of the data's files."""
    teacher = {"teacher": {"name": "big", "kind": "cross-encoder", "model": "x"}} if own else {}
    recipe = Recipe(name="r", model=Model(base="base"), data=Data(), loss=loss, mine=Mine.model_validate(teacher))
    collection = SET if own else dataclasses.replace(SET, teacher_scores=scores)
    source = make(encoder, [collection], **({"teacher_scores": scores} if own else {}))
    found: list[str] = []
    check_scores(recipe, source, found.append)
    return found


def test_good_scores_are_worth_no_word(encoder: PromptEncoder) -> None:
    assert said(encoder, KL, raw_scores()) == []
    # 13 pairs of each of 6 queries: a relevant document and a pool of 12.
    facts = TeacherFacts.of(make(encoder, teacher_scores=raw_scores()))
    values = [raw_scores()[q][d] for q in QUERIES for d in (f"d{q[1:]}", *(f"d{k}" for k in range(8, 20)))]
    assert (facts.pairs, facts.missing, facts.lists, facts.constant) == (78, 0, 6, 0)
    assert facts.lowest is not None and facts.highest is not None
    assert (facts.lowest[0], facts.highest[0]) == (min(values), max(values))
    # Nothing learns from them.
    assert said(encoder, Loss(), {}) == []


def test_missing_scores_are_counted_and_too_many_are_refused(encoder: PromptEncoder) -> None:
    three = (("q0", "d8"), ("q0", "d9"), ("q4", "d4"))
    line = "the teacher has no score for 3 of 78 pairs (3.8%) that training can draw: its losses leave them out"
    assert said(encoder, KL, raw_scores(*three)) == [line]
    # What no draw can hold does not count.
    assert said(encoder, KL, raw_scores(("q0", "d1"), ("q0", "d7"))) == []
    four = (*three, ("q5", "d19"))
    with pytest.raises(UserErrors) as caught:
        said(encoder, KL, raw_scores(*four))
    (fault,) = caught.value.messages
    assert fault.startswith("mine.teacher: teacher.jsonl has no score for 4 of 78 pairs (5.1%) that training can draw")
    # A data file scores its own documents alone, not what is mined: a warning, and what would help.
    (warning,) = said(encoder, KL, raw_scores(*four), own=False)
    assert warning.startswith("WARNING: the teacher has no score for 4 of 78 pairs (5.1%)")
    assert warning.endswith("its losses leave them out; mine.teacher would score them all")


def test_constant_lists_are_counted_once(encoder: PromptEncoder) -> None:
    scores = raw_scores() | {"q1": dict.fromkeys(CORPUS, 0.1), "q3": dict.fromkeys(CORPUS, -4.0)}
    line = "the teacher gives all documents of a query one score in 2 of 6 lists: nothing is learned from their order"
    assert said(encoder, KL, scores) == [line]
    assert said(encoder, Loss(name="kl_distil", options={"normalise": "zscore"}), scores) == [line]


def test_probabilities_where_logits_are_expected_are_a_warning(encoder: PromptEncoder) -> None:
    scores = {q: {d: 1 / (1 + math.exp(-s)) for d, s in row.items()} for q, row in raw_scores().items()}
    for name in ("mse", "margin_mse", "kl_distil"):
        (line,) = said(encoder, Loss(plus=(LossTerm(name=name), LossTerm(name=name))), scores)
        assert (
            line.startswith("WARNING: all scores of the teacher lie from 0.000") and f"and {name} takes logits" in line
        )
        assert "use soft_bce with options.targets: teacher_probabilities" in line
    (line,) = said(encoder, Loss(name="mse", plus=(LossTerm(name="kl_distil"),)), scores)
    assert "and mse and kl_distil take logits" in line
    for options in ({"normalise": "zscore"}, {"normalise": "zscore", "temperature": 0.5}):
        assert said(encoder, Loss(name="kl_distil", options=options), scores) == []
    assert said(encoder, Loss(name="soft_bce", options={"targets": "teacher_probabilities"}), scores) == []
    assert said(encoder, KL, scores | {"q0": {**scores["q0"], "d0": 1.01}}) == []


@pytest.mark.parametrize(("wrong", "scale"), [(-0.25, 1.0), (1.5, 1.0), (20.0, 10.0)])
def test_a_teachers_probability_beyond_the_scale_is_refused(encoder: PromptEncoder, wrong: float, scale: float) -> None:
    good = {q: {d: scale / (1 + math.exp(-s)) for d, s in row.items()} for q, row in raw_scores().items()}
    loss = Loss(name="soft_bce", options={"targets": "teacher_probabilities", "scale": scale})
    assert said(encoder, loss, good) == []
    with pytest.raises(UserErrors) as caught:
        said(encoder, loss, good | {"q2": {**good["q2"], "d11": wrong}})
    (fault,) = caught.value.messages
    assert fault.startswith(
        f"loss.options.scale: {scale:g}: the teacher's score {wrong:g} of query 'q2' and document 'd11' is not from 0"
    )


def job(folder: Path, models: tuple[Path, Path], loss: dict[str, Any], **sections: Any) -> Path:
    base, teacher = models
    mine = {"teacher": {"name": "big", "kind": "cross-encoder", "model": str(teacher)}, **sections.pop("mine", {})}
    return jobs.job(folder, base, mine=mine, loss=loss, **sections)


def weights(run: Path, step: int = 4) -> dict[str, torch.Tensor]:
    return load((run / "checkpoints" / f"step-{step}" / "model.safetensors").read_bytes())


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def train(path: Path, run: Path) -> None:
    Pipeline(load_recipe(str(path), [f"run_dir={run}"]), progress=False).train()


def test_the_scale_of_mse_is_fitted_once_and_a_continued_training_goes_on_with_it(
    models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, run = job(tmp_path, models, {"name": "mse"}), tmp_path / "whole"
    Pipeline(load_recipe(str(path), [f"run_dir={run}"])).train()
    output = " ".join(capsys.readouterr().out.split())
    kept = read_sealed(run / "teacher_match.json")
    assert kept is not None and kept["lists"] == min(MATCHED_LISTS, 27) and kept["slope"] > 0
    line = f"(score - {kept['intercept']:.4g}) / {kept['slope']:.4g}, fitted before step 1 on {kept['pairs']} pairs"
    assert output.count("mse: the teacher's scores are matched to the model's: ") == 1 and line in output
    # The matched scores have the mean and the spread of the model's own, which are those of the base.
    scores = read_teacher_scores(run / "teacher.jsonl")
    matched = [(s - kept["intercept"]) / kept["slope"] for row in scores.values() for s in row.values()]
    assert np.isfinite(matched).all()
    # A training that ended after step 2 continues with the same scale, and gives the same bits.
    short = tmp_path / "short"
    shutil.copytree(run, short)
    shutil.rmtree(short / "checkpoints" / "step-4")
    (short / "stages" / "train.json").unlink()
    shutil.copytree(short, tmp_path / "other")
    train(path, short)
    assert same(weights(short), weights(run))
    assert (short / "teacher_match.json").read_bytes() == (run / "teacher_match.json").read_bytes()
    # It reads the file: another scale in it leads elsewhere, and a damaged one is fitted again.
    changed = {**{k: v for k, v in kept.items() if k != "seal"}, "slope": 9 * kept["slope"]}
    (tmp_path / "other" / "teacher_match.json").write_text(json.dumps(sealed(changed)))
    shutil.copytree(tmp_path / "other", tmp_path / "damaged")
    train(path, tmp_path / "other")
    assert not same(weights(tmp_path / "other"), weights(run))
    (tmp_path / "damaged" / "teacher_match.json").write_text(json.dumps(changed))
    train(path, tmp_path / "damaged")
    assert same(weights(tmp_path / "damaged"), weights(run))


def test_mse_without_a_match_takes_scores_as_they_are(models: tuple[Path, Path], tmp_path: Path) -> None:
    path = job(tmp_path, models, {"name": "mse", "options": {"match": "none"}})
    train(path, tmp_path / "run")
    assert not (tmp_path / "run" / "teacher_match.json").exists()


def test_a_recipe_of_all_of_it_trains(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Strata, a refresh that draws by them, and every loss that a teacher's scores can be the targets of."""
    plus = [
        {"name": "adr_mse", "weight": 0.1},
        {"name": "ranknet", "options": {"targets": "teacher"}},
        {"name": "ranknet", "options": {"targets": "teacher", "temperature": 2.0}},
        {"name": "lambda_rank", "options": {"targets": "teacher", "margin": 0.01}},
        {"name": "soft_bce", "options": {"targets": "teacher"}},
        {"name": "soft_bce", "options": {"scale": 2}},
        {"name": "mse"},
    ]
    loss = {"name": "kl_distil", "options": {"normalise": "zscore", "student_temperature": 2.0}, "plus": plus}
    mine = {"sampler": {"stratified": {"by": "teacher", "strata": 3}}, "refresh_steps": 2}
    path = job(tmp_path, models, loss, mine=mine)
    train(path, tmp_path / "run")
    rows = jobs.metrics(tmp_path / "run")
    assert len([row for row in rows if "loss" in row]) == 4
    assert all(math.isfinite(row["loss"]) for row in rows if "loss" in row)
    assert list((tmp_path / "run" / "pools").glob("step-2-*.jsonl"))


def test_an_incomplete_file_of_scores_stops_training(models: tuple[Path, Path], tmp_path: Path) -> None:
    path = job(tmp_path, models, {"name": "kl_distil"})
    pipeline = Pipeline(load_recipe(str(path), []), progress=False)
    pipeline.mine()
    file = tmp_path / "run" / "teacher.jsonl"
    rows = read_teacher_scores(file)
    few = {q: dict(list(row.items())[: len(row) // 2]) for q, row in rows.items()}
    file.write_text("".join(f"{teacher_line(q, row)}\n" for q, row in few.items()))
    # As if the stage had written it so.
    pipeline.folder.bind("mine", file)
    with pytest.raises(UserError, match=r"mine\.teacher: teacher\.jsonl has no score for \d+ of \d+ pairs"):
        Pipeline(load_recipe(str(path), []), progress=False).train()


def test_labels_that_are_no_probabilities_are_refused(tmp_path: Path, tiny_qwen3: Path) -> None:
    path = jobs.job(tmp_path, tiny_qwen3)
    Pipeline(load_recipe(str(path), []), progress=False).data()
    soft = "loss.name=soft_bce"
    with pytest.raises(UserErrors) as caught:
        Pipeline(load_recipe(str(path), [soft]), progress=False).data()
    (fault,) = caught.value.messages
    assert fault.startswith("loss.options.scale: 1: the label 2 (set 'one', query '")
    assert fault.endswith("is not from 0 to 1: write loss.options.scale=2")
    scaled = "loss.options={scale: 2}"
    Pipeline(load_recipe(str(path), [soft, scaled]), progress=False).data()
    # The data are read again for a new file: a label below 0 has no scale.
    qrels = tmp_path / "sets" / "one" / "qrels" / "train.tsv"
    for number in range(30):
        qrels.write_text(qrels.read_text() + f"q{number}\td{(number + 1) % 30}\t-3\n")
    with pytest.raises(UserErrors, match=r"the label -3 \(set 'one', .* map the labels with data\.train\[\]\.labels"):
        Pipeline(load_recipe(str(path), [soft, scaled]), progress=False).data()


def test_what_needs_a_teacher_is_refused_without_one(tmp_path: Path, models: tuple[Path, Path]) -> None:
    path = job(tmp_path, models, {"name": "ranknet", "options": {"targets": "teacher"}})
    plus = "loss.plus=[{name: soft_bce, options: {targets: teacher_probabilities}}]"
    sampler = "mine.sampler={stratified: {by: teacher}}"
    assert check_names(load_recipe(str(path), [plus, sampler]).recipe) == []
    needs = "needs mine.teacher: {name, kind, model}, or teacher.pairs"
    assert check_names(load_recipe(str(path), ["mine.teacher=null", plus, sampler]).recipe) == [
        f"loss.options.targets: teacher {needs}",
        f"loss.plus.0.options.targets: teacher_probabilities {needs}",
        f"mine.sampler.stratified.by: teacher {needs}",
    ]
    wrong = check_names(load_recipe(str(path), ["loss.options={targets: teachers}"]).recipe)
    assert len(wrong) == 1 and wrong[0].startswith("loss.options: loss 'ranknet': targets: Input should be 'labels' or")


def test_promoted_documents_fit_the_scale_of_soft_bce(models: tuple[Path, Path], tmp_path: Path) -> None:
    filters = {"teacher": {"above": "promote", "label": 3.0}}
    path = job(tmp_path, models, {"name": "soft_bce", "options": {"scale": 2}}, mine={"filters": filters})
    with pytest.raises(UserErrors, match=r"the label 3 \(mine\.filters\.teacher\.label\) is not from 0 to 2"):
        Pipeline(load_recipe(str(path), []), progress=False).data()
