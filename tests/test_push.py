"""`rankwright push`: what would go where, and what stops it; a real hub is not asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rankwright.cli import app
from rankwright.errors import UserError
from rankwright.push import plan_push, prepared, send


@pytest.fixture
def run(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A run folder with one proven export."""
    target = tmp_path / "run" / "export" / "hf"
    shutil.copytree(folders["qwen3-portable"], target)
    (target / "parity.json").write_text(json.dumps({"failures": []}))
    (target / "README.md").write_text('# A model\n\nCrossEncoder("PATH"), PATHS and XPATH stay\n')
    (target / "SERVE.md").write_text("vllm serve PATH --chat-template PATH/chat_template.jinja\n")
    return tmp_path / "run"


def test_a_dry_run_names_every_file_and_sends_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A request would fail at once.
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    done = CliRunner().invoke(app, ["push", str(run), "hf", "acme/finance-reranker", "--dry-run"])
    assert done.exit_code == 0, done.output
    words = " ".join(done.output.split())
    files = [path for path in (run / "export" / "hf").rglob("*") if path.is_file()]
    assert all(f"bytes {path.name}" in words for path in files)
    assert f"would push {len(files)} files" in words and "to acme/finance-reranker (private)" in words
    public = CliRunner().invoke(app, ["push", str(run), "hf", "acme/x", "--public", "--revision", "v2", "--dry-run"])
    assert "(PUBLIC, branch v2)" in " ".join(public.output.split())


def test_what_is_sent_names_the_repository_and_leaves_the_export_alone(run: Path) -> None:
    folder = run / "export" / "hf"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with prepared(plan_push(run, "hf", "acme/finance")) as copy:
        assert (copy / "README.md").read_text().splitlines()[-1] == 'CrossEncoder("acme/finance"), PATHS and XPATH stay'
        assert (
            copy / "SERVE.md"
        ).read_text() == "vllm serve acme/finance --chat-template acme/finance/chat_template.jinja\n"
        assert (copy / "model.safetensors").read_bytes() == before[folder / "model.safetensors"]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_what_is_no_proven_export_is_refused(run: Path) -> None:
    with pytest.raises(UserError, match=r"no export 'hff', did you mean 'hf'\?: it has hf"):
        plan_push(run, "hff", "acme/x")
    for name in ("acme", "acme/x/y", "/x", "acme/x y", "../x/y"):
        with pytest.raises(UserError, match="must be OWNER/NAME"):
            plan_push(run, "hf", name)
    (run / "export" / "hf" / "parity.json").write_text(json.dumps({"failures": ["transformers: ..."]}))
    with pytest.raises(UserError, match="parity was not proven"):
        plan_push(run, "hf", "acme/x")
    shutil.rmtree(run / "export")
    with pytest.raises(UserError, match="no exports: run `rankwright export"):
        plan_push(run, "hf", "acme/x")


def test_a_hub_that_cannot_be_reached_is_one_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    # No server listens on this port.
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)
    with pytest.raises(UserError, match="acme/x: the hub cannot be reached"):
        send(plan_push(run, "hf", "acme/x"))
