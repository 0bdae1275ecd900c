"""A prompt template is one record in one file: here in a module outside the package."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from outside import outside_module
from tiny import PAIRS

from rankwright.common.errors import UserError
from rankwright.export.servable import unservable
from rankwright.export.tokenizer import write_tokenizer
from rankwright.model.frames import FRAMES, check_prompt_mode, known_frame
from rankwright.model.loading import check_files, load_model, load_tokenizer
from rankwright.model.prompt import PromptContract, PromptEncoder
from rankwright.pipeline.checks import check_names
from rankwright.recipe.schema import Model, Prompt, Recipe
from rankwright.recipe.sources import Data
from rankwright.rerankers.reranker import Own, Reranker, native_contract
from rankwright.training.setup import recipe_encoder, recipe_prompt

MODULE = """
from rankwright.model.frames import FRAMES, Frame, FrameTexts


def short_frame(tokenizer, instruction):
    return FrameTexts("<|im_start|>query: ", " <|im_end|>", "document: ", "<|im_end|>\\n", "yes", "no")


FRAMES.add(Frame("short", short_frame, families=("short-reranker",), trainable=True, rendered=True), __name__)
"""


@pytest.fixture
def short(tmp_path: Path) -> Iterator[str]:
    """The frame's name, while its module is imported."""
    with outside_module(FRAMES, tmp_path, "my_frames", MODULE):
        yield "short"


def recipe_on(base: Path, mode: str) -> Recipe:
    prompt = Prompt(mode=mode, max_tokens=160, instruction="")
    return Recipe(name="r", model=Model(base=str(base)), data=Data(), prompt=prompt)


def test_a_frame_of_another_module_is_found_everywhere(short: str, tiny_qwen3: Path, tmp_path: Path) -> None:
    assert FRAMES.extensions == ["my_frames"]
    base = tmp_path / "my-short-reranker"
    shutil.copytree(tiny_qwen3, base)
    # A recipe may choose it, and `auto` finds it by the base's name.
    chosen = recipe_on(tiny_qwen3, short)
    assert not [fault for fault in check_names(chosen) if fault.startswith("prompt.")]
    for recipe in (chosen, recipe_on(base, "auto")):
        encoder = recipe_encoder(recipe)
        assert encoder.contract.mode == short
        assert encoder.render("q", "d") == "<|im_start|>query: q <|im_end|>document: d<|im_end|>\n"
    frame = known_frame("someone/short-reranker-0.6b")
    assert frame is not None and frame.name == short
    # A base, trained or not, scores in it.
    tokenizer = load_tokenizer(str(base))
    contract = native_contract(str(base), tokenizer, own=Own(max_tokens=160))
    scores = Reranker(load_model(str(base), contract, tokenizer).eval(), tokenizer, contract).score(*texts())
    assert contract.mode == short and len(set(scores)) == len(scores)
    # Exports hold it as a chat template, which is proven when it is written; targets without one refuse it.
    folder, tokenizer, contract = recipe_prompt(chosen)
    config = check_files(folder, contract, tokenizer).causal_lm.config
    (tmp_path / "export").mkdir()
    write_tokenizer(tokenizer, contract, tmp_path / "export")
    assert PromptContract.load(tmp_path / "export") == contract
    assert (tmp_path / "export" / "chat_template.jinja").is_file()
    assert unservable(["hf", "causal", "gguf"], config, tokenizer, contract) == []
    assert unservable(["onnx"], config, tokenizer, contract)[0].startswith("export.targets: onnx: ")


def texts() -> tuple[str, list[str]]:
    return PAIRS[0][0], [document for _, document in PAIRS[:4]]


def test_an_unknown_frame_is_named_with_those_that_a_recipe_may_choose(tiny_qwen3: Path) -> None:
    fault = "prompt.mode: unknown prompt frame 'offical', did you mean 'official'? (known: auto, official, portable)"
    assert fault in check_names(recipe_on(tiny_qwen3, "offical"))
    with pytest.raises(UserError, match=r"^unknown prompt frame 'bge' .*: `auto` finds this frame for bases"):
        check_prompt_mode("bge")
    check_prompt_mode("auto")


def test_a_contract_of_a_frame_that_is_not_imported_still_scores(tiny_qwen3: Path, tmp_path: Path) -> None:
    encoder = recipe_encoder(recipe_on(tiny_qwen3, "portable"))
    encoder.contract.replace(mode="gone").save(tmp_path)
    loaded = PromptContract.load(tmp_path)
    assert loaded is not None and loaded.under("Find the clause", encoder.tokenizer).instruction == "Find the clause"
    assert PromptEncoder(loaded, encoder.tokenizer).encode(*texts()) == encoder.encode(*texts())
    with pytest.raises(UserError, match="unknown prompt frame 'gone'"):
        _ = loaded.is_baked
