"""Every target says which frames it serves, and refuses the others before training."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny import PAIRS

from rankwright.common.errors import UserError, UserErrors
from rankwright.export.publish import export_targets
from rankwright.export.target import SERVED, Trained, in_fp32, refuse_unservable
from rankwright.export.targets import TARGETS
from rankwright.model.frames import FRAMES
from rankwright.model.loading import load_tokenizer
from rankwright.model.prompt import make_contract
from rankwright.pipeline.checks import check_names
from rankwright.recipe.schema import Data, Export, Model, Prompt, Recipe
from rankwright.training.setup import recipe_contract

ALL = ("hf", "causal", "adapter", "onnx", "gguf")


def test_every_target_states_its_frames() -> None:
    assert set(TARGETS) <= set(SERVED)
    assert all("{mode}" in why for _, why in SERVED.values())


@pytest.mark.parametrize("mode", FRAMES)
def test_what_a_target_cannot_serve_is_refused_in_one_line(tiny_qwen3: Path, mode: str) -> None:
    contract = make_contract(load_tokenizer(str(tiny_qwen3)), mode=mode, max_tokens=320)
    for target, (serves, _) in SERVED.items():
        if serves(FRAMES[mode]):
            refuse_unservable(contract, [target])
            continue
        with pytest.raises(UserError, match=rf"^export\.targets: {target}: .*frame {mode}.*prompt\.mode=portable") as e:
            refuse_unservable(contract, [target])
        assert "\n" not in str(e.value) and "export.targets=[]" in str(e.value)
    if contract.in_pieces:
        with pytest.raises(UserError, match=r"^export\.targets: hf, causal, adapter, onnx, gguf: .*in pieces"):
            refuse_unservable(contract, ALL)


def test_the_way_out_keeps_the_other_targets(tiny_qwen3: Path) -> None:
    contract = make_contract(load_tokenizer(str(tiny_qwen3)), mode="official", max_tokens=320)
    with pytest.raises(UserError, match=r"without it \(export\.targets=\[hf,gguf\]\)$"):
        refuse_unservable(contract, ["hf", "onnx", "gguf"])


def test_an_export_refuses_it_too(trained: dict[str, Trained], tmp_path: Path) -> None:
    one = trained["qwen3-portable"]
    contract = make_contract(one.tokenizer, mode="bge", max_tokens=320)
    with pytest.raises(UserError, match="in pieces"):
        export_targets(
            one.model,
            one.tokenizer,
            contract,
            targets={"hf": {}},
            folder=tmp_path,
            golden_pairs=PAIRS,
            base_name=one.base_name,
        )
    assert not any(tmp_path.iterdir())


def test_all_mistakes_of_targets_are_said_at_once(tiny_qwen3: Path) -> None:
    targets: dict[str, dict[str, object]] = {
        "hff": {},
        "onnx": {"quantize": ["4bit"]},
        "gguf": {"types": ["q2_k"]},
        "adapter": {},
    }
    recipe = recipe_on(tiny_qwen3, targets, method="full")
    faults = [fault for fault in check_names(recipe) if fault.startswith("export.targets: ")]
    assert len(faults) == 4 and ["hff" in faults[0], "quantize" in faults[1], "types" in faults[2]] == [True] * 3


def test_a_base_that_a_target_cannot_hold_is_refused_before_anything_is_read_or_trained(
    tmp_path: Path, tiny_qwen3: Path
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_qwen3 / name).read_bytes())
    config = transformers.GraniteConfig(architectures=["GraniteForCausalLM"], vocab_size=4096)
    config.save_pretrained(tmp_path)
    recipe = recipe_on(tmp_path, {target: {} for target in ALL})
    # There are no weights in this folder.
    with pytest.raises(UserErrors) as caught:
        recipe_contract(recipe, str(tmp_path), load_tokenizer(str(tmp_path)))
    assert [message.split(":")[1].strip() for message in caught.value.messages] == ["hf", "onnx", "gguf"]
    transformers.PhiConfig(architectures=["PhiForCausalLM"], vocab_size=4096).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="causal: the head of this base has a bias"):
        recipe_contract(recipe_on(tmp_path, {"causal": {}}), str(tmp_path), load_tokenizer(str(tmp_path)))


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
