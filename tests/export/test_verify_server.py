"""`rankwright verify --url` against real local servers around real exports: equal, and every fault by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from export_server import serving

from rankwright.cli.models import verify
from rankwright.common.errors import UserError
from rankwright.export.target import Trained
from rankwright.model.prompt import PromptEncoder

TURNS = "<|im_start|>query\n{{query}}<|im_end|>\n<|im_start|>document\n{{document}}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def verified(
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    served: Path,
    api: str = "vllm",
    base: str | None = None,
    **faults: Any,
) -> tuple[bool, dict[str, Any]]:
    """(whether equal, the line of JSON) of the command on a server around `served`."""
    equal = True
    with serving(served, api.replace(".", "_"), **faults) as server:
        try:
            verify(folder, base=base, url=server.url, api=api, as_json=True)
        except typer.Exit as left:
            assert left.exit_code == 1
            equal = False
    [line] = capsys.readouterr().out.splitlines()
    return equal, json.loads(line)


@pytest.mark.parametrize("api", ["vllm", "tei", "infinity", "cohere", "jina", "llama.cpp"])
def test_a_right_server_is_equal_by_every_api(
    api: str, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folders["qwen3-portable"]
    equal, found = verified(capsys, folder, folder, api)
    assert equal and found["failures"] == [] and found["diagnosis"] is None
    assert found["rows"] == 49 and len(found["pairs"]) == 51
    assert found["max_d_probability"] < 1e-5
    has_logits = api in ("vllm", "tei", "infinity")
    assert ("max_d_logit" in found) == has_logits and found.get("max_d_logit", 0) < 1e-4
    assert any("logit: not asked for" in note for note in found["not_checked"]) != has_logits
    assert all(set(pair) >= {"kind", "decides", "probability", "d_probability"} for pair in found["pairs"])


def test_llama_and_official_exports_are_equal_too(
    trained: dict[str, Trained], folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert verified(capsys, folders["llama-portable"], folders["llama-portable"])[0]
    one, folder = trained["qwen3-official"], folders["qwen3-official"]
    suffix = PromptEncoder(one.contract, one.tokenizer).suffix_ids
    assert verified(capsys, folder, folder, chat={}, cut=160, keep=suffix)[0]


# Name of the fault -> what the server does, and the key and a word of the diagnosis.
FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "no template": ({"pairs": False}, "no template", "the bare query and document"),
    "turns of a chat": ({"template": TURNS}, "template of the base", "turns of the base's chat"),
    "no activation": ({"activation": "none"}, "wrong activation: no activation", "logits come where probabilities"),
    "doubled sigmoid": ({"activation": "twice"}, "wrong activation: sigmoid twice", "sigmoid is applied twice"),
    "one label": ({"activation": "softmax"}, "wrong activation: softmax over one label", "1 for every pair"),
    "truncation": ({"cut": 160}, "truncation", "the end of the prompt is cut off with the document, at 160 tokens"),
    "not cut": ({"cut": 10**6}, "truncation", "long documents are not cut"),
    "order": ({"order": True}, "order", "stand at other documents"),
    "exchanged": ({"exchanged": True}, "exchanged", "query and document are exchanged"),
    "two faults": ({"pairs": False, "activation": "twice"}, "no template + wrong activation: sigmoid twice", "; and "),
    "bf16": ({"dtype": torch.bfloat16}, "fewer bits", "--tolerance"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_a_server_is_named(
    fault: str, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, (faults, key, words) = folders["qwen3-portable"], FAULTS[fault]
    equal, found = verified(capsys, folder, folder, **faults)
    assert not equal and found["diagnosis"]["key"] == key
    if key == "truncation":
        by_kind = found["max_d_probability_by_kind"]
        assert by_kind.pop("long") > 1e-3 and max(by_kind.values()) < 1e-5
    [failure] = found["failures"]
    assert words in failure and "expected the probability" in failure and "\n" not in failure


@pytest.mark.parametrize("fault", ["no template", "no activation", "doubled sigmoid", "truncation"])
@pytest.mark.parametrize("case", ["qwen3-portable", "llama-portable"])
def test_faults_show_in_probabilities_alone_and_on_llama(
    fault: str, case: str, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    faults, key, words = FAULTS[fault]
    _, found = verified(capsys, folders[case], folders[case], "cohere", **faults)
    assert found["diagnosis"]["key"] == key and words in found["failures"][0]


def test_what_a_server_refuses_is_said_and_no_fault(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folders["qwen3-portable"]
    with serving(folder, "tei", refuse_empty=True) as server:
        verify(folder, url=server.url, api="tei")
    shown = capsys.readouterr().out
    assert "refused: empty pair 'what is a bond?'" in shown and "answered 422" in shown
    assert "48 of 51 pairs decide" in shown and "equal: largest difference probability" in shown
    with serving(folder, "tei") as server, pytest.raises(UserError, match="answered 404"):
        verify(folder, url=server.url, api="cohere")


def test_a_looser_tolerance_accepts_fewer_bits(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = folders["qwen3-portable"]
    _, found = verified(capsys, folder, folder, dtype=torch.bfloat16)
    needed = float(found["diagnosis"]["fix"].rsplit(" ", 1)[1])
    assert 0.01 < needed < 1
    with serving(folder, dtype=torch.bfloat16) as server:
        verify(folder, url=server.url, api="vllm", tolerance=needed, as_json=True)


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"not_a_number": True}, "answered no finite number"),
        ({"fewer": True}, "is missing: gave up"),
        ({"refuse_after": 5}, "refused 44 of 49 pairs: nothing is proven"),
    ],
)
def test_answers_that_are_none_are_never_equal(
    faults: dict[str, Any], message: str, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=message):
        verified(capsys, folders["qwen3-portable"], folders["qwen3-portable"], "cohere", **faults)
