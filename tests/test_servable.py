"""Every target says which frames it serves, and refuses the others before training."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from rankwright.errors import UserError
from rankwright.export import TARGETS, Trained, export_targets
from rankwright.frames import Mode
from rankwright.model import load_tokenizer
from rankwright.prompts import make_contract
from rankwright.servable import SERVED, refuse_unservable
from tiny import PAIRS

ALL = ("hf", "causal", "adapter", "onnx", "gguf")


def test_every_target_states_its_frames() -> None:
    assert set(TARGETS) <= set(SERVED)
    for modes, why in SERVED.values():
        assert modes <= set(get_args(Mode)) and "{mode}" in why


@pytest.mark.parametrize("mode", get_args(Mode))
def test_what_a_target_cannot_serve_is_refused_in_one_line(tiny_qwen3: Path, mode: Mode) -> None:
    contract = make_contract(load_tokenizer(str(tiny_qwen3)), mode=mode, max_tokens=320)
    for target, (modes, _) in SERVED.items():
        if mode in modes:
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
