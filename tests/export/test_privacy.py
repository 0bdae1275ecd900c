"""The safety scan: a planted path, key or pickle is found in every kind of file, and nothing is put in place."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import PAIRS

from rankwright.common.errors import UserError
from rankwright.export.card import CardFacts
from rankwright.export.privacy import BLOCK_BYTES, Private, scan
from rankwright.export.publish import export_targets, publish
from rankwright.export.target import Trained
from rankwright.export.targets import TARGETS

SECRET = "s3cr3t-value-of-a-test"
PLANTED: dict[str, Callable[[Path], str]] = {
    "home": lambda run: f"{Path.home()}/models/x",
    "working folder": lambda run: f"see {Path.cwd()}",
    "temporary folder": lambda run: f"{tempfile.gettempdir()}/x.json",
    "run folder": lambda run: str(run),
    "run folder in a URL": lambda run: f"file://{run}/x",
    "user": lambda run: "/Users/somebody/x",
    "HF_TOKEN": lambda run: f"Bearer {SECRET}",
    "WANDB_API_KEY": lambda run: "0123456789abcdef" * 2,
    "form of a token": lambda run: "hf_" + "aB3" * 12,
    "another form": lambda run: "sk-proj-" + "aB3_" * 12,
    "private key": lambda run: "-----BEGIN RSA PRIVATE KEY-----",
    "password in a URL": lambda run: "https://me:secret@host.example/x",
}


def test_the_folder_of_a_system_python_is_in_texts_about_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.prefix", "/usr/local")
    assert not Private.of_this_machine(tmp_path).in_text("#!/usr/local/bin/python3")
    monkeypatch.setattr("sys.prefix", "/opt/somewhere/venv")
    assert Private.of_this_machine(tmp_path).in_text("#!/opt/somewhere/venv/bin/python3")


def plant_text(path: Path, text: str) -> None:
    path.write_text(f"first line\n{text}\n", encoding="utf-8")


def plant_json(path: Path, text: str) -> None:
    path.write_text(json.dumps({"a": [{"_name_or_path": text}]}), encoding="utf-8")


def plant_safetensors(path: Path, text: str) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"w": np.zeros(4)}, path, metadata={"from": text})


def plant_gguf(path: Path, text: str) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "qwen3")
    writer.add_string("general.source.url", text)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def plant_onnx(path: Path, text: str) -> None:
    """A string field of protobuf: tag, length, text; a length may look like a letter."""
    content = text.encode() + b"/" * max(0, 65 - len(text))
    path.write_bytes(b"\x08\x08\x12" + bytes([len(content)]) + content)


FILES: dict[str, Callable[[Path, str], None]] = {
    "README.md": plant_text,
    "chat_template.jinja": plant_text,
    "1_LogitScore/config.json": plant_json,
    "model.safetensors": plant_safetensors,
    "model.gguf": plant_gguf,
    "onnx/model.onnx": plant_onnx,
}


@pytest.fixture
def private(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Private:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef" * 2)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false-but-long")
    monkeypatch.setenv("USER", "somebody")
    monkeypatch.setenv("LOGNAME", "somebody")
    return Private.of_this_machine(tmp_path / "runs" / "größe")


@pytest.mark.parametrize("planted", PLANTED)
def test_each_is_found_in_each_kind_of_file(planted: str, private: Private, tmp_path: Path) -> None:
    for name, write in FILES.items():
        folder = tmp_path / name.replace("/", "-")
        path = folder / name
        path.parent.mkdir(parents=True)
        text = PLANTED[planted](tmp_path / "runs" / "größe")
        write(path, text)
        with pytest.raises(UserError, match="nothing was put in place") as caught:
            scan(folder, private)
        assert str(caught.value).startswith(f"{name} holds ")
        for secret in (SECRET, str(Path.home()) + "/", str(tmp_path)):
            assert secret not in str(caught.value)


def test_what_is_harmless_passes(private: Private, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"vocab": {"/tmp": 1, "/root": 2, "/home": 3, "hf_": 4}}))
    inside = "/x"
    text = (
        f"Paths such as /tmp, ./tmp{inside}, https://github.com/root{inside}; risk-adjusted-returns-of-a-long-name-here"
    )
    (tmp_path / "README.md").write_text(f"{text}\ncommit {'0a1b2c3d' * 5}, false-but-long, https://host.example:80/@x")
    scan(tmp_path, private)


def test_a_place_across_two_blocks_is_found(private: Private, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"\0" * (BLOCK_BYTES - 5) + SECRET.encode())
    with pytest.raises(UserError, match="the value of HF_TOKEN"):
        scan(tmp_path, private)


def test_tensor_data_is_not_read(private: Private, tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "U8", "shape": [len(SECRET)], "data_offsets": [0, len(SECRET)]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + SECRET.encode())
    scan(tmp_path, private)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "modeling.py", "state.json"])
def test_pickles_and_code_are_refused(name: str, private: Private, tmp_path: Path) -> None:
    import pickle

    (tmp_path / name).write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match="only safetensors"):
        scan(tmp_path, private)


@pytest.mark.slow
def test_every_target_is_clean_and_readable_by_all(
    trained: dict[str, Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each planted secret is there while all targets are written; a golden pair that holds one is left out."""
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef" * 2)
    one = trained["qwen3-portable"]
    pairs = [*PAIRS, ("where is it?", f"In {Path.home()}/secrets"), (SECRET, "a document")]
    one = dataclasses.replace(one, golden_pairs=pairs)
    figures = export_targets(one, {name: {} for name in TARGETS}, tmp_path / "export")
    assert set(figures) == set(TARGETS) == {path.name for path in (tmp_path / "export").iterdir()}
    assert "2 of 23 hold a path or a key: left out" in capsys.readouterr().out
    needles = [SECRET, "0123456789abcdef" * 2, f"{Path.home()}/", f"{Path.cwd()}", f"{tmp_path}", one.base_name]
    files = [path for path in (tmp_path / "export").rglob("*") if path.is_file()]
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o644, path
        known = {".json", ".jsonl", ".jinja", ".md", ".safetensors", ".onnx", ".onnx_data", ".gguf"}
        assert path.suffix in known or path.name == "SHA256SUMS", path
        content = path.read_bytes()
        for needle in needles:
            assert needle.encode() not in content, (path, needle)


@pytest.mark.parametrize("target", ["hf", pytest.param("causal", marks=pytest.mark.slow)])
def test_an_export_that_holds_one_is_not_put_in_place(
    target: str, trained: dict[str, Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)

    def leaking(one: Trained, folder: Path) -> dict[str, Any]:
        figures = TARGETS[target].write(one, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "note": os.environ["HF_TOKEN"]}))
        return figures

    with pytest.raises(UserError, match=rf"^export {target}: config\.json holds the value of HF_TOKEN: nothing was"):
        publish(tmp_path, trained["qwen3-portable"], {target: leaking}, CardFacts())
    assert list(tmp_path.iterdir()) == []
