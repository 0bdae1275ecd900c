"""What a target cannot serve is refused when a recipe is checked, before anything is read, mined or trained."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
import transformers

from rankwright.common.errors import UserError, UserErrors
from rankwright.export.publish import export_targets
from rankwright.export.servable import unservable
from rankwright.export.target import Trained, is_rendered
from rankwright.export.targets import TARGETS
from rankwright.export.weights import in_fp32
from rankwright.model.frames import FRAMES
from rankwright.model.loading import check_files, load_tokenizer
from rankwright.model.prompt import PromptContract, make_contract
from rankwright.pipeline.checks import check_targets
from rankwright.pipeline.stages import Pipeline
from rankwright.recipe.export import Export
from rankwright.recipe.loading import load_recipe
from rankwright.recipe.schema import Model, Prompt, Recipe
from rankwright.recipe.sources import Data

ALL = ("hf", "causal", "adapter", "onnx", "gguf")
SIZES: dict[str, Any] = {"vocab_size": 4096, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 2048}


def faults_of(base: Path, contract: PromptContract, *targets: str) -> list[str]:
    tokenizer = load_tokenizer(str(base))
    config = check_files(str(base), contract, tokenizer).causal_lm.config
    return unservable(targets, config, tokenizer, contract)


@pytest.mark.parametrize("mode", FRAMES)
def test_what_a_target_cannot_serve_is_refused_in_one_line(tiny_qwen3: Path, mode: str) -> None:
    contract = make_contract(load_tokenizer(str(tiny_qwen3)), mode=mode, max_tokens=320)
    assert is_rendered(contract) is not contract.in_pieces and set(TARGETS) == set(ALL)
    for target in TARGETS.values():
        faults = faults_of(tiny_qwen3, contract, target.name)
        assert len(faults) == (not target.serves(contract))
        for fault in faults:
            assert fault.startswith(f"export.targets: {target.name}: ") and f"frame {mode}" in fault
            assert "prompt.mode=portable" in fault and "without exports (export.targets=[])" in fault
    if contract.in_pieces:
        [fault] = faults_of(tiny_qwen3, contract, *ALL)
        assert fault.startswith("export.targets: hf, causal, adapter, onnx, gguf: ") and "in pieces" in fault


def test_the_way_out_keeps_the_other_targets(tiny_qwen3: Path) -> None:
    contract = make_contract(load_tokenizer(str(tiny_qwen3)), mode="official", max_tokens=320)
    [fault] = faults_of(tiny_qwen3, contract, "hf", "onnx", "gguf")
    assert fault.endswith("without it (export.targets=[hf,gguf])")


def test_an_export_refuses_it_too(trained: dict[str, Trained], tmp_path: Path) -> None:
    one = trained["qwen3-portable"]
    contract = make_contract(one.tokenizer, mode="bge", max_tokens=320)
    with pytest.raises(UserError, match="in pieces"):
        export_targets(Trained(one.model, one.tokenizer, contract, one.base_name), {"hf": {}}, tmp_path)
    assert not any(tmp_path.iterdir())


def test_all_mistakes_of_targets_are_said_at_once(tiny_qwen3: Path) -> None:
    targets: dict[str, dict[str, object]] = {
        "hff": {},
        "onnx": {"quantize": ["4bit"]},
        "gguf": {"types": ["q2_k"]},
        "adapter": {},
    }
    faults = check_targets(recipe_on(tiny_qwen3, targets, method="full"))
    assert all(fault.startswith("export.targets: ") for fault in faults)
    words = ("hff", "quantize", "types", "lora")
    assert [word in fault for word, fault in zip(words, faults, strict=True)] == [True] * 4


def granite(folder: Path, tiny_qwen3: Path) -> Path:
    """A base of a kind that has neither a classifier's form nor a place in llama.cpp."""
    folder.mkdir(exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_qwen3 / name).read_bytes())
    transformers.GraniteForCausalLM(transformers.GraniteConfig(**SIZES)).save_pretrained(folder)
    return folder


def test_a_base_that_a_target_cannot_hold_is_refused(tmp_path: Path, tiny_qwen3: Path) -> None:
    base = granite(tmp_path, tiny_qwen3)
    faults = check_targets(recipe_on(base, {target: {} for target in ALL}))
    assert [fault.split(": ")[1] for fault in faults] == ["hf", "onnx", "gguf"]
    transformers.PhiForCausalLM(transformers.PhiConfig(**SIZES)).save_pretrained(base)
    [fault] = check_targets(recipe_on(base, {"causal": {}}))
    assert "the head of phi adds an offset (bias)" in fault


def test_a_base_that_is_not_here_is_no_mistake(tmp_path: Path, tiny_qwen3: Path) -> None:
    """The stage that needs it says what it says today."""
    recipe = recipe_on(tiny_qwen3, {"hf": {}, "hff": {}})
    absent = recipe.model_copy(update={"model": Model(base="nobody/has-this-base")})
    for offline in (False, True):
        [fault] = check_targets(absent, offline=offline)
        assert "unknown export target 'hff'" in fault
    (tmp_path / "empty").mkdir()
    [fault] = check_targets(recipe_on(tmp_path / "empty", {"hf": {}}))
    assert fault.startswith("model.base: cannot load") and "\n" not in fault


MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "gguf of another base": (
        ["export.targets=[gguf]"],
        ["gguf: llama.cpp has a causal reranker's classifier"],
    ),
    "a rendered frame": (["export.targets=[hf,onnx]", "prompt.mode=official"], ["onnx: its runtimes join query and"]),
    "adapter without adapters": (
        ["export.targets=[hf,adapter]", "model.method=full"],
        ["`adapter` needs model.method: lora"],
    ),
    "a missing extra": (["export.targets=[onnx]"], ["`onnx` needs the package onnx: pip install 'rankwright[onnx]'"]),
    "several": (
        ["export.targets=[onnx,gguf]", "prompt.mode=official", "train.schedule=none"],
        ["train.schedule", "onnx: its runtimes join", "onnx: granite has no", "gguf: llama.cpp has"],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_pipeline_refuses_before_it_reads(
    name: str, tmp_path: Path, tiny_qwen3: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides, parts = MISTAKES[name]
    if name == "a missing extra":
        monkeypatch.setitem(sys.modules, "onnx", None)
    gguf = any("gguf" in text for text in overrides)
    path = jobs.job(tmp_path, granite(tmp_path / "base", tiny_qwen3) if gguf else tiny_qwen3)
    pipeline = Pipeline(load_recipe(str(path), overrides))
    with pytest.raises(UserErrors) as caught:
        pipeline.start()
    found = caught.value.messages
    for part in parts:
        [message] = [message for message in found if part in message]
        assert message.startswith(("export.targets: ", "train.schedule"))
    assert len(found) == len(parts) and not pipeline.folder.path.exists()


def test_adapters_on_adapters_are_refused(
    trained: dict[str, Trained], tmp_path: Path, tiny_qwen3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "adapters").mkdir()
    TARGETS["adapter"].write(trained["qwen3-portable"], tmp_path / "adapters")
    monkeypatch.chdir(tiny_qwen3.parent)
    path = jobs.job(tmp_path, tmp_path / "adapters")
    with pytest.raises(UserErrors) as caught:
        Pipeline(load_recipe(str(path), ["export.targets=[hf,adapter]"])).check()
    assert ["adapter: model.base is itself a folder of adapters" in text for text in caught.value.messages] == [True]


def test_the_tokenizer_of_such_a_recipe_can_be_had(tiny_qwen3: Path) -> None:
    """Commands that only count tokens do not take a refused export for a missing tokenizer."""
    from rankwright.training.setup import recipe_encoder

    recipe = recipe_on(tiny_qwen3, {"onnx": {}})
    official = recipe.model_copy(update={"prompt": Prompt(mode="official", max_tokens=160)})
    assert check_targets(official) and recipe_encoder(official).contract.mode == "official"


def recipe_on(base: Path, targets: dict[str, dict[str, object]], method: Any = "lora") -> Recipe:
    return Recipe(
        name="r",
        model=Model(base=str(base), method=method),
        data=Data(),
        prompt=Prompt(mode="portable", max_tokens=160),
        export=Export(targets=targets),
    )


def test_scoring_makes_no_copy_of_what_is_in_fp32_already(trained: dict[str, Trained]) -> None:
    model = trained["qwen3-portable"].model.eval()
    assert in_fp32(model) is model
    half = copy.deepcopy(model).bfloat16()
    assert in_fp32(half) is not half and in_fp32(half).causal_lm.get_input_embeddings().weight.dtype == torch.float32
    assert half.causal_lm.get_input_embeddings().weight.dtype == torch.bfloat16
