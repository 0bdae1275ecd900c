"""QLoRA from the recipe to the export: what is trained, merged, evaluated and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from kill_points import drive
from tiny import PAIRS

from rankwright.common.errors import UserError, UserErrors
from rankwright.export.publish import export_targets
from rankwright.export.target import Trained
from rankwright.model.quantization import is_quantized
from rankwright.pipeline.checks import check_targets
from rankwright.recipe.loading import load_recipe
from rankwright.recipe.schema import Model, Prompt, Recipe
from rankwright.recipe.sources import Data
from rankwright.rerankers.reranker import Reranker
from rankwright.training.checkpoint import Checkpoints, TrainState
from rankwright.training.estimate.cost import Types
from rankwright.training.estimate.plan import make_plan
from rankwright.training.optim import make_optimizer
from rankwright.training.setup import (
    base_reranker,
    build_trainable,
    check_quantization,
    describe,
    recipe_prompt,
    tuned_reranker,
)

pytest.importorskip("bitsandbytes")

BASE = "fixtures/tiny-base"


def recipe_of(base: str = BASE, **model: Any) -> Recipe:
    settings = Model(base=base, **{"rank": 4, "alpha": 8, "quantize": "nf4"} | model)
    return Recipe(name="one", model=settings, data=Data(), prompt=Prompt(max_tokens=160))


def scores_of(reranker: Reranker) -> torch.Tensor:
    return torch.tensor([reranker.score(query, [document])[0] for query, document in PAIRS])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters that change the scores, trained over nothing."""
    recipe = recipe_of()
    base, tokenizer, contract = recipe_prompt(recipe)
    model = build_trainable(recipe, base, tokenizer, contract)
    said: list[str] = []
    describe(recipe, model, contract, said.append)
    assert ": QLoRA (nf4) rank 4 on 42 linear layers, 78,336 of 3,865,920 parameters trained" in said[0]
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    optimizer = make_optimizer(model.named_parameters(), learning_rate=0.1, weight_decay=0.0)
    root = tmp_path_factory.mktemp("checkpoints")
    return Checkpoints(root, "inputs", contract).save(TrainState(1, "inputs", 0.0), model, optimizer)


def test_the_export_scores_as_the_model_that_was_trained(checkpoint: Path, tmp_path: Path) -> None:
    recipe = recipe_of()
    trained = tuned_reranker(recipe, checkpoint, as_trained=True)
    assert is_quantized(trained.model)
    wanted = scores_of(trained)
    assert (wanted - scores_of(base_reranker(recipe))).abs().max() > 0.1
    tuned = tuned_reranker(recipe, checkpoint)
    assert not is_quantized(tuned.model) and not hasattr(tuned.model.lm, "peft_config")
    torch.testing.assert_close(scores_of(tuned), wanted, rtol=0, atol=1e-4)
    # Over the base's own weights the same adapters are another model.
    other = tuned_reranker(recipe_of(quantize=None), checkpoint)
    assert (scores_of(other) - wanted).abs().max() > 0.01
    exported = tuned_reranker(recipe, checkpoint, fp32=True)
    made = Trained(exported.model, exported.tokenizer, exported.contract, BASE, golden_pairs=PAIRS)
    assert list(recipe.export_targets) == ["hf"]
    figures = export_targets(made, {"hf": {"dtype": "fp32"}}, tmp_path / "export")
    assert figures["hf"]["failures"] == [] and figures["hf"]["max_d_merged_base"] > 0.1
    again = Reranker.load(str(tmp_path / "export" / "hf"))
    torch.testing.assert_close(scores_of(again), wanted, rtol=0, atol=1e-4)


def test_a_share_of_the_base_is_a_share_of_the_dequantised_one(checkpoint: Path) -> None:
    trained, between = (
        scores_of(tuned_reranker(recipe_of(merge_with_base=share), checkpoint)) for share in (0.0, 0.999)
    )
    own = scores_of(base_reranker(recipe_of()))
    # Almost the base in 4 bits, which is near the base itself.
    assert 0 < (between - own).abs().mean() < (trained - own).abs().mean()


# Paths whose drafts are ready to be put in place.
POINTS = ["/checkpoints/.step-4.tmp", "quantization.json"]
FILES = (
    *("checkpoints/step-4/model.safetensors", "checkpoints/step-4/optimizer.pt", "quantization.json"),
    *("calibration.json", "eval/held-out/tuned/per_query.jsonl", "export/hf/model.safetensors"),
)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_run_ends_with_the_same_bytes_and_says_how_far_merging_moved_it(tmp_path: Path) -> None:
    recipe = jobs.job(tmp_path / "job", BASE, model={"quantize": "nf4"})
    runs = [tmp_path / "whole", tmp_path / "killed"]
    for run, points in zip(runs, ([], POINTS), strict=True):
        ended, printed = drive(recipe, run, 9, points, ("os.rename",))
        assert ended == [*([point, "-9"] for point in points), ["", "0"]]
        assert "tuned, merged into the dequantised base, scores " in printed
    assert all((runs[0] / name).read_bytes() == (runs[1] / name).read_bytes() for name in FILES)
    found = json.loads((runs[0] / "quantization.json").read_text())
    assert 0 < found["mean_difference"] <= found["max_difference"] < 1e-3 and found["pairs"] > 20
    assert "dev pairs the merged scores are" in (runs[0] / "report.html").read_text()
    assert "base&#39;s linear layers in 4 bits" in (runs[0] / "export" / "hf" / "README.md").read_text().replace(
        "'", "&#39;"
    )


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["model.method=full"],
            "quantize: method full trains the weights, which are frozen in 4 bits: use method: lora",
        ),
        (["model.dora=true"], "quantize: dora scales the weights, which are frozen in 4 bits: use method: lora"),
        (["model.quantize=int8"], "model.quantize"),
    ],
)
def test_recipes_that_cannot_be(tmp_path: Path, overrides: list[str], said: str) -> None:
    with pytest.raises((UserError, UserErrors)) as error:
        load_recipe(str(jobs.job(tmp_path / "job", BASE, model={"quantize": "nf4"})), overrides)
    assert said in str(error.value)


def test_adapters_are_not_exported_for_a_base_that_they_do_not_fit() -> None:
    recipe = recipe_of()
    asked = recipe.model_copy(
        update={"export": recipe.export.model_copy(update={"targets": {"hf": {}, "adapter": {}}})}
    )
    assert check_targets(asked, weights=False) == [
        "export.targets: `adapter` would be loaded on the base's own weights, and model.quantize trains it over "
        "quantised ones: export the merged model (export.targets=[hf])"
    ]
    assert check_targets(recipe, weights=False) == []


def test_what_this_machine_cannot_do_is_said_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_quantization(recipe_of()) == []
    monkeypatch.setattr("rankwright.training.setup.why_not_installed", lambda: "model.quantize: nf4 needs bitsandbytes")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    found = check_targets(recipe_of())
    assert found[0] == "model.quantize: nf4 needs bitsandbytes"
    assert found[1].startswith("model.quantize: nf4 weights are not sharded (FSDP2): start the processes without it")
    assert check_quantization(recipe_of(quantize=None)) == []


def test_plan_counts_the_bytes_of_the_loaded_model(tmp_path: Path) -> None:
    recipe = load_recipe(str(jobs.job(tmp_path / "job", BASE, model={"quantize": "nf4"}))).recipe
    plan = make_plan(recipe, "l4")
    base, tokenizer, contract = recipe_prompt(recipe)
    model = build_trainable(recipe, base, tokenizer, contract)
    layers = [m for m in model.modules() if hasattr(m, "state") and hasattr(m, "dequantized")]
    # On a GPU embeddings and norms have 16 bits; on this machine they have 32.
    frozen = sum(p.numel() for p in model.parameters() if p.dtype == torch.float32 and not p.requires_grad)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    expected = sum(layer.bytes for layer in layers) + 2 * frozen + 4 * trained
    weights = plan._weights(Types.of(full=False, bits16=True))["weights"]
    assert weights == expected
    without = make_plan(load_recipe(str(tmp_path / "job" / "recipe.yaml"), ["model.quantize=null"]).recipe, "l4")
    assert weights < 0.75 * without.memory["weights"]
    with pytest.raises(UserError, match="--fsdp2: nf4 weights are not sharded"):
        make_plan(recipe, "2xl4", sharded=True)
