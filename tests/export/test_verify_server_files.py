"""`rankwright verify --url` against servers of damaged files, other templates and other models: each is named."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_parity import lost_rope, other_pad, swapped_yes_and_no
from test_verify_server import no_proxy, verified  # noqa: F401  (a fixture)

from rankwright.export.target import Trained
from rankwright.export.targets import TARGETS
from rankwright.model.loading import load_model
from rankwright.model.prompt import PromptEncoder


@pytest.mark.parametrize(
    ("damage", "faults", "key"),
    [
        (swapped_yes_and_no, {}, "swapped yes and no"),
        (lost_rope, {}, "no rope_theta"),
        (other_pad, {"padding_side": "right"}, "batch"),
    ],
)
@pytest.mark.parametrize("case", ["qwen3-portable", "llama-portable"])
def test_a_server_of_damaged_files_is_named(
    damage: Callable[[Path], None],
    faults: dict[str, Any],
    key: str,
    case: str,
    folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    served = Path(shutil.copytree(folders[case], tmp_path / "served"))
    damage(served)
    equal, found = verified(capsys, folders[case], served, **faults)
    assert not equal and found["diagnosis"]["key"] == key, found["failures"]


def test_faults_of_a_chat_template(
    trained: dict[str, Trained], folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, one = folders["qwen3-official"], trained["qwen3-official"]
    suffix = PromptEncoder(one.contract, one.tokenizer).suffix_ids
    _, found = verified(capsys, folder, folder)
    assert found["diagnosis"]["key"] == "no template" and "--chat-template" in found["failures"][0]
    _, found = verified(capsys, folder, folder, chat={}, cut=160)
    assert found["diagnosis"]["key"] == "truncation"
    other = {"instruction": "Given a web search query, retrieve relevant passages that answer the query"}
    _, found = verified(capsys, folder, folder, chat=other, cut=160, keep=suffix)
    assert found["diagnosis"]["key"] == "instruction ignored" and "'Find what answers" in found["failures"][0]
    served = Path(shutil.copytree(folder, tmp_path / "served"))
    template = served / "chat_template.jinja"
    template.write_text(template.read_text().removesuffix('\\n" }}') + '" }}')
    _, found = verified(capsys, folder, served, chat={})
    assert found["diagnosis"]["key"] == "lost line break"


def test_wrong_models(
    trained: dict[str, Trained], folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = trained["qwen3-portable"]
    _, found = verified(capsys, folders["qwen3-portable"], folders["llama-portable"])
    assert found["diagnosis"]["key"] == "wrong model" and "rank correlation" in found["failures"][0]
    (tmp_path / "adapter").mkdir()
    TARGETS["adapter"].write(one, tmp_path / "adapter")
    base = load_model(one.base_name, one.contract, one.tokenizer)
    TARGETS["hf"].write(dataclasses.replace(one, model=base), tmp_path / "base")
    _, found = verified(capsys, tmp_path / "adapter", tmp_path / "base", base=one.base_name)
    assert found["diagnosis"]["key"] == "weights of the base"
    _, found = verified(capsys, folders["qwen3-portable"], tmp_path / "base", base=one.base_name)
    assert found["diagnosis"]["key"] == "weights of the base"


def test_a_server_of_one_gguf_file_is_held_to_its_type(
    trained: dict[str, Trained], folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    TARGETS["gguf"].bind({"types": ["f16", "q8_0"]})(trained["qwen3-portable"], tmp_path)
    served = folders["qwen3-portable"]
    # The second is as far off as 8 bits are, in the same order.
    for activation, kind in (("sigmoid", "f16"), ("sharper", "q8_0")):
        equal, found = verified(capsys, tmp_path, served, "llama.cpp", activation=activation)
        assert equal, found["failures"]
        assert any(f"compared as weights of type {kind}" in note for note in found["not_checked"])
    for faults in ({"pairs": False}, {"activation": "twice"}, {"activation": "softmax"}, {"order": True}):
        equal, found = verified(capsys, tmp_path, served, "llama.cpp", **faults)
        assert not equal, faults
        assert "activation" not in faults or "wrong activation" in found["diagnosis"]["key"]
