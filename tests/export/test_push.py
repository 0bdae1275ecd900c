"""`rankwright push`: what would go where, and what stops it; a real hub is not asked."""

from __future__ import annotations

import json
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rankwright.cli.main import app
from rankwright.common.errors import UserError
from rankwright.export.card import CardFacts, write_card
from rankwright.export.proof.sums import write_sums
from rankwright.export.push import plan_push, prepared, send, with_name
from rankwright.model.prompt import PromptContract

INSTRUCTION = 'Find the PATH (PATH=/bin) of "PATH" or `PATH`, by hf download PATH'


@pytest.fixture
def run(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A run folder with one proven export."""
    target = tmp_path / "run" / "export" / "hf"
    shutil.copytree(folders["qwen3-portable"], target)
    (target / "parity.json").write_text(json.dumps({"failures": []}))
    contract = PromptContract.load(target)
    assert contract is not None
    told = contract.replace(instruction=INSTRUCTION)
    facts = CardFacts(title="PATH reranker", figures={"nDCG@10, PATH (3 queries)": 0.5}, training=["Trained on PATH."])
    write_sums(target)
    write_card(target, facts, told, {"rows": 1, "engines": {}}, base_name="org/PATH", revision=None)
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
        card, serve = ((copy / name).read_text() for name in ("README.md", "SERVE.md"))
        assert (copy / "model.safetensors").read_bytes() == before[folder / "model.safetensors"]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    for text in (card, serve):
        assert "`acme/finance` stands for this model:" in text and "`hf download acme/finance --local-dir" in text
        code = re.findall(r"^```[a-z]+\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        assert len(code) >= 3 and not any("PATH" in block for block in code)
    assert 'CrossEncoder("acme/finance")' in card and "vllm serve acme/finance --runner" in serve
    assert "--model-id acme/finance " in serve and '"model": "acme/finance"' in serve
    assert 'SentenceTransformerRerank(model="acme/finance"' in serve and '(model_name="acme/finance")' in serve
    # Words of the user's stay.
    for words in (
        "Find the PATH (PATH=/bin)",
        "# PATH reranker",
        "nDCG@10, PATH (3 queries)",
        "- Trained on PATH.",
        "`org/PATH`",
    ):
        assert words in card
    before_card = before[folder / "README.md"].decode()
    assert card.count("PATH") == before_card.count("PATH") - card.count("acme/finance")


@pytest.mark.parametrize(
    "line", ["export PATH=$PATH:/opt", "ls $PATH", "cat /PATH/x", "echo XPATH PATHS PATH-1 a.PATH"]
)
def test_the_variable_of_a_shell_stays(line: str) -> None:
    text = f"`PATH` is a variable\n\n```bash\n{line}\nvllm serve PATH\n```\nPATH\n"
    assert with_name(text, r"acme/\1") == text.replace("serve PATH", r"serve acme/\1")


def test_a_card_in_another_encoding_is_one_line(run: Path) -> None:
    (run / "export" / "hf" / "README.md").write_bytes("# Modèle".encode("latin-1"))
    with pytest.raises(UserError, match=r"README\.md: not UTF-8 \(.* at byte 5\): save it in UTF-8$"):
        plan_push(run, "hf", "acme/x")


def test_what_is_no_proven_export_is_refused(run: Path) -> None:
    with pytest.raises(UserError, match=r"no export 'hff', did you mean 'hf'\?: it has hf"):
        plan_push(run, "hff", "acme/x")
    for name in ("acme", "acme/x/y", "/x", "acme/x y", "../x/y", "acme/x--y", "acme/x.git"):
        with pytest.raises(UserError, match="must be OWNER/NAME"):
            plan_push(run, "hf", name)
    (run / "export" / "hf" / "parity.json").write_text(json.dumps({"failures": ["transformers: ..."]}))
    with pytest.raises(UserError, match="parity was not proven"):
        plan_push(run, "hf", "acme/x")
    (run / "export" / "hf" / "parity.json").write_text("{")
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
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="acme/x: HF_HUB_OFFLINE is set"):
        send(plan_push(run, "hf", "acme/x"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match="acme/x: the hub cannot be reached"):
        send(plan_push(run, "hf", "acme/x"))


def test_only_what_was_proven_goes(run: Path, tmp_path: Path) -> None:
    folder = run / "export" / "hf"
    (folder / ".DS_Store").write_text("hidden")
    (folder / "NOTES.md").write_text("for people")
    planned = plan_push(run, "hf", "acme/x")
    assert ".DS_Store" not in planned.files and {"NOTES.md", "README.md", "parity.json"} <= set(planned.files)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "private.txt").write_text("secret")
    (folder / "link").symlink_to(elsewhere)
    with prepared(planned) as copy:
        assert {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()} == set(planned.files)
    (folder / "extra.bin").write_text("stray")
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"not what was proven: config.json, extra.bin changed, missing or new"):
        plan_push(run, "hf", "acme/x")


class Hub(BaseHTTPRequestHandler):
    """A hub that has a public repository of any name, and takes nothing."""

    def _say(self, status: int, body: Any) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._say(409, {"error": "You already created this model repo", "url": "http://127.0.0.1/acme/x"})

    def do_GET(self) -> None:
        self._say(
            200,
            [] if "/tree/" in self.path else {"id": "acme/x", "_id": "1", "private": False, "siblings": [], "tags": []},
        )

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def test_a_public_repository_takes_no_private_push(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01), daemon=True).start()
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)
    try:
        with pytest.raises(UserError, match="acme/x: exists already and is public: give --public"):
            send(plan_push(run, "hf", "acme/x"))
        with pytest.raises(UserError, match="the hub refused"):
            send(plan_push(run, "hf", "acme/x", private=False))
    finally:
        server.shutdown()
        server.server_close()
