"""Folders that `verify` and `push` may be given: each ends in one line about what is wrong, never in a traceback."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_parity import edit_json

from rankwright.common.errors import UserError
from rankwright.export.proof.parity import measure
from rankwright.export.proof.sums import write_sums
from rankwright.export.push import plan_push
from rankwright.export.target import Trained
from rankwright.export.targets import TARGETS
from rankwright.export.verify.folder import open_export

Damage = Callable[[Path], Any]


def text(name: str, content: str | bytes) -> Damage:
    """The whole content of a file."""

    def write(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def values(name: str, **changed: Any) -> Damage:
    return lambda folder: edit_json(folder / name, **changed)


def lost(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def half(name: str) -> Damage:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def pipe(name: str) -> Damage:
    """A named pipe, from which whoever reads waits for ever."""

    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


def subfolder(name: str) -> Damage:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return make


def loop(name: str) -> Damage:
    """A link to itself."""

    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(name)

    return make


def row(**changed: Any) -> Damage:
    """Values of the first golden row."""

    def write(folder: Path) -> None:
        first, *rest = (folder / "golden.jsonl").read_text().splitlines()
        first = json.dumps({**json.loads(first), **changed})
        (folder / "golden.jsonl").write_text("\n".join([first, *rest]) + "\n")

    return write


def no_gate(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "golden.jsonl").read_text().splitlines()]
    (folder / "golden.jsonl").write_text("".join(json.dumps({**row, "gate": False}) + "\n" for row in rows))


def renamed(name: str, other: str) -> Damage:
    return lambda folder: (folder / name).rename(folder / other)


def only_golden(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != "golden.jsonl":
            path.unlink()


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("")


# What ends before a runtime is asked.
AT_ONCE: dict[str, Damage] = {
    "empty": emptied,
    "a file": a_file,
    "golden alone": only_golden,
    "golden is a folder": subfolder("golden.jsonl"),
    "golden is a pipe": pipe("golden.jsonl"),
    "golden is empty": text("golden.jsonl", ""),
    "golden is binary": text("golden.jsonl", os.urandom(3000)),
    "golden is no UTF-8": text("golden.jsonl", b'{"query": "\xff"}\n'),
    "golden is deep": text("golden.jsonl", "[" * 100_000 + "\n"),
    "golden is a list": text("golden.jsonl", "[]\n"),
    "golden without gates": no_gate,
    "ids are words": row(token_ids=["yes", "no"]),
    "ids are true": row(token_ids=[True]),
    "ids are negative": row(token_ids=[1, -5]),
    "no ids": row(token_ids=[]),
    "logit is a word": row(logit="high"),
    "logit is infinite": row(logit=float("inf")),
    "probability is 2": row(probability=2),
    "probability of another logit": row(probability=0.123456),
    "probability is no number": row(probability=float("nan")),
    "query is a list": row(query=["a"]),
    "a query with half a character": row(query="\ud83d"),
    "contract is empty": text("rankwright.json", ""),
    "contract is a list": text("rankwright.json", "[]"),
    "contract is null": text("rankwright.json", "null"),
    "contract is no UTF-8": text("rankwright.json", b"\xff\xfe"),
    "contract is a pipe": pipe("rankwright.json"),
    "contract is a loop": loop("rankwright.json"),
    "contract of a later version": values("rankwright.json", version=99),
    "contract with a new key": values("rankwright.json", colour="red"),
    "config is a list": text("config.json", "[]"),
    "config is half": half("config.json"),
    "config is a pipe": pipe("config.json"),
    "config is lost": lost("config.json"),
    "config is no UTF-8": text("config.json", b"\xff"),
    "parity is a list": text("parity.json", "[]"),
    "parity is deep": text("parity.json", "[" * 100_000),
    "parity is a pipe": pipe("parity.json"),
    "tolerance is a word": values("parity.json", tolerance="much"),
    "tolerance is true": values("parity.json", tolerance=True),
    "tolerance is none": values("parity.json", tolerance=None),
    "tolerance is negative": values("parity.json", tolerance=-1),
    "sums are binary": text("SHA256SUMS", os.urandom(300)),
    "sums are empty": text("SHA256SUMS", ""),
    "sums of nothing": text("SHA256SUMS", "0" * 64 + "  \n"),
    "foreign parts": text("modules.json", '[{"type": "a.B"}]'),
    "parts are deep": text("modules.json", "[" * 100_000),
    "adapters of no base": text("adapter_config.json", "{}"),
    "adapters of a number": text("adapter_config.json", '{"base_model_name_or_path": 3}'),
    "adapters are a list": text("adapter_config.json", "[]"),
    "adapters of an absent base": text("adapter_config.json", '{"base_model_name_or_path": "no/such"}'),
    "adapters of an odd base": text("adapter_config.json", '{"base_model_name_or_path": "\\u0000/\\n"}'),
}


@pytest.fixture(scope="module")
def proven(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/NAME/export/hf with its record; do not write into it."""
    folder = tmp_path_factory.mktemp("run") / "export" / "hf"
    shutil.copytree(folders["qwen3-portable"], folder)
    (folder / "parity.json").write_text('{"failures": [], "tolerance": 0.0001}')
    write_sums(folder)
    return folder


def one_line(error: UserError) -> str:
    found = str(error)
    assert found.isprintable(), found
    return found


@pytest.mark.timeout(60)
@pytest.mark.parametrize("damage", AT_ONCE.values(), ids=AT_ONCE)
@pytest.mark.parametrize("summed", [True, False], ids=["with sums", "without sums"])
def test_verify_ends_in_one_line(damage: Damage, summed: bool, proven: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(proven, tmp_path / "copy"))
    if not summed:
        (folder / "SHA256SUMS").unlink()
    damage(folder)
    with pytest.raises(UserError) as caught:
        open_export(folder)
    assert "copy" in one_line(caught.value)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("damage", AT_ONCE.values(), ids=AT_ONCE)
def test_push_ends_in_one_line(damage: Damage, proven: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(proven, run / "export" / "hf")
    damage(run / "export" / "hf")
    with pytest.raises(UserError) as caught:
        plan_push(run, "hf", "acme/x")
    one_line(caught.value)


@pytest.mark.parametrize(
    "place",
    [
        *("/etc", "/proc/self", "/dev/null", "/dev", "~", "~nobody/x", "", "x" * 300, "x/" * 3000, "a\x00b"),
        *("a\nb", "[/bold]", "../" * 50 + "nothing"),
    ],
)
def test_places_that_hold_no_export_end_in_one_line(place: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for ask in (open_export, lambda folder: plan_push(folder, "hf", "acme/x")):
        with pytest.raises(UserError) as caught:
            ask(Path(place))
        assert (
            "no golden.jsonl" in str(caught.value)
            or "no such folder" in str(caught.value)
            or "no exports" in str(caught.value)
        )


def header(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


# What a runtime meets.
IN_RUNTIMES: dict[str, Damage] = {
    "weights are half": half("model.safetensors"),
    "weights are empty": text("model.safetensors", ""),
    "weights are lost": lost("model.safetensors"),
    "weights of an endless header": text("model.safetensors", struct.pack("<Q", 1 << 60)),
    "weights without a tensor": text("model.safetensors", header(b"{}")),
    "weights beyond their file": text(
        "model.safetensors", header(b'{"score.weight": {"dtype": "F32", "shape": [1, 64], "data_offsets": [0, 256]}}')
    ),
    "a lost shard": text("model.safetensors.index.json", '{"weight_map": {"score.weight": "x.safetensors"}}'),
    "an index is a list": text("model.safetensors.index.json", "[]"),
    "architecture is a number": values("config.json", architectures=5),
    "architecture of nothing": values("config.json", architectures=[None]),
    "rope is a word": values("config.json", rope_parameters="x"),
    "theta is a word": values("config.json", rope_parameters={"rope_theta": "x"}),
    "labels are a number": values("config.json", id2label=3),
    "two labels": values("config.json", id2label={"0": "a", "1": "b"}),
    "activation is a word": values("config.json", sentence_transformers="x"),
    "an activation of strangers": values("config.json", sentence_transformers={"activation_fn": "os.getcwd"}),
    "sizes are words": values("config.json", hidden_size="x"),
    "other heads": values("config.json", num_attention_heads=3),
    "a layer fewer": values("config.json", num_hidden_layers=1, layer_types=["full_attention"]),
    "a kind that nobody has": values("config.json", model_type="nope"),
    "pad is a word": values("config.json", pad_token_id="x"),
    "tokenizer is half": half("tokenizer.json"),
    "tokenizer is lost": lost("tokenizer.json"),
    "tokenizer is a list": text("tokenizer.json", "[]"),
    "added tokens are a number": values("tokenizer.json", added_tokens=3),
    "added tokens are empty": values("tokenizer.json", added_tokens=[{}]),
    "settings are a list": text("tokenizer_config.json", "[]"),
    "pad token is a list": values("tokenizer_config.json", pad_token=["x"]),
    "limit is a word": values("tokenizer_config.json", model_max_length="x"),
    "limit is zero": values("tokenizer_config.json", model_max_length=0),
    "template is broken": text("chat_template.jinja", "{% for"),
    "template of a missing name": text("chat_template.jinja", "{{ nope.nope }}"),
    "frame of nobody": values("rankwright.json", mode="nope"),
    "frame is a list": values("rankwright.json", mode=["official"]),
    "yes beyond the vocabulary": values("rankwright.json", yes_id=10**9),
    "yes is a word": values("rankwright.json", yes_id="x"),
    "scale is no number": values("rankwright.json", scale=float("nan")),
    "scale is a word": values("rankwright.json", scale="x"),
    "budget is a word": values("rankwright.json", max_tokens="160"),
    "no budget": values("rankwright.json", max_tokens=0),
    "prefix is a number": values("rankwright.json", prefix=7),
    "suffix is null": values("rankwright.json", suffix=None),
    "ids beyond the vocabulary": row(token_ids=[10**9]),
    "parts are a number": text("modules.json", "3"),
    "parts are half": text("modules.json", "[{"),
}


def lines_of(folder: Path) -> list[str]:
    """What `verify` would print about the folder."""
    try:
        opened = open_export(folder)
        found = [*opened.faults, *measure(folder, opened.tolerance)["failures"]]
    except UserError as error:
        found = [str(error)]
    assert all(line.isprintable() for line in found), found
    return found


@pytest.mark.parametrize("damage", IN_RUNTIMES.values(), ids=IN_RUNTIMES)
def test_the_sums_tell_before_any_runtime_is_asked(damage: Damage, proven: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(proven, tmp_path / "copy"))
    damage(folder)
    try:
        opened = open_export(folder)
        assert [*opened.faults, *opened.notes]
    except UserError as error:
        one_line(error)


# What changes no score of the classifier, or what the contract's own check refuses.
SCORED_ALL_THE_SAME = {
    *("a lost shard", "an index is a list", "an activation of strangers", "frame of nobody", "frame is a list"),
    *("yes beyond the vocabulary", "yes is a word", "scale is no number", "scale is a word", "parts are a number"),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", IN_RUNTIMES)
def test_what_runtimes_meet_is_named(damage: str, proven: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(proven, tmp_path / "copy"))
    # Without sums only the scores can tell.
    (folder / "SHA256SUMS").unlink()
    IN_RUNTIMES[damage](folder)
    assert lines_of(folder) or damage in SCORED_ALL_THE_SAME


OTHER_TARGETS: dict[str, dict[str, Damage]] = {
    "onnx": {
        "graph is half": half("onnx/model.onnx"),
        "graph is empty": text("onnx/model.onnx", ""),
        "graph is lost": lost("onnx/model.onnx"),
        "graph is a folder": subfolder("onnx/model.onnx"),
        "tokenizer is half": half("tokenizer.json"),
    },
    "gguf": {
        "file is half": half("reranker-f16.gguf"),
        "file is empty": text("reranker-f16.gguf", ""),
        "file is random": text("reranker-f16.gguf", os.urandom(5000)),
        "file of another name": renamed("reranker-f16.gguf", "mine.gguf"),
        "file is a folder": subfolder("reranker-f16.gguf"),
    },
    "causal": {
        "head of a number": text("1_LogitScore/config.json", "3"),
        "head is lost": lost("1_LogitScore/config.json"),
        "head of words": values("1_LogitScore/config.json", true_token_id="x"),
        "weights are half": half("model.safetensors"),
        "parts without a head": text("modules.json", "[]"),
    },
    "adapter": {
        "weights are half": half("adapter_model.safetensors"),
        "weights are lost": lost("adapter_model.safetensors"),
        "rank is a word": values("adapter_config.json", r="x"),
        "other rank": values("adapter_config.json", r=64),
        "no layers": values("adapter_config.json", target_modules=["nope"]),
        "layers are a number": values("adapter_config.json", target_modules=3),
        "kind is nobody's": values("adapter_config.json", peft_type="NOPE"),
        "task is nobody's": values("adapter_config.json", task_type="NOPE"),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHER_TARGETS)
def test_damaged_folders_of_the_other_targets_are_named(kind: str, trained: dict[str, Trained], tmp_path: Path) -> None:
    one = trained["qwen3-portable"]
    (tmp_path / "whole").mkdir()
    TARGETS[kind].bind({"types": ["f16"]} if kind == "gguf" else {})(one, tmp_path / "whole")
    if kind == "adapter":
        edit_json(tmp_path / "whole" / "adapter_config.json", base_model_name_or_path=one.base_name)
    assert measure(tmp_path / "whole", 1e-4)["failures"] == []
    for number, damage in enumerate(OTHER_TARGETS[kind].values()):
        folder = Path(shutil.copytree(tmp_path / "whole", tmp_path / str(number)))
        damage(folder)
        assert lines_of(folder), number
