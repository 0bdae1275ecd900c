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
import yaml
from tiny import PAIRS
from typer.testing import CliRunner

from rankwright.cli.main import app
from rankwright.common.errors import UserError
from rankwright.data.licences.derived import ledger_json
from rankwright.data.licences.ledger import Input
from rankwright.data.licences.terms import known, state
from rankwright.export.card import CardFacts, write_card
from rankwright.export.golden import FIXED, read_golden
from rankwright.export.proof.parity import measure
from rankwright.export.proof.sums import Changes, changes, write_sums
from rankwright.export.push import _holds, plan_push, prepared, send, with_name
from rankwright.model.prompt import PromptContract
from rankwright.recipe.export import LicenceRule

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
    assert all(f"bytes {path.name} " in words for path in files)
    assert f"would push {len(files)} files" in words and "to acme/finance-reranker (private)" in words
    public = CliRunner().invoke(app, ["push", str(run), "hf", "acme/x", "--public", "--revision", "v2", "--dry-run"])
    assert "(PUBLIC, branch v2)" in " ".join(public.output.split())


def test_texts_of_the_owner_stay_unless_they_are_asked_for(run: Path, tmp_path: Path) -> None:
    folder = run / "export" / "hf"
    rows = read_golden(folder)
    real = [row for row in rows if row["kind"] == "real"]
    assert len(real) == 20 and {tuple(pair) for pair in PAIRS} <= {(row["query"], row["document"]) for row in rows}
    ours = "\n".join(text for pair in FIXED for text in pair)
    words = [text.strip() for row in real for text in (row["query"], row["document"]) if text.strip() not in ours]
    assert len(set(words)) > 12

    def pushed(**options: bool) -> tuple[Path, str]:
        planned = plan_push(run, "hf", "acme/x", **options)
        place = tmp_path / f"pushed-{len(options)}"
        with prepared(planned) as copy:
            shutil.copytree(copy, place)
        assert {name: (place / name).stat().st_size for name in planned.files} == planned.files
        return place, planned.holds["golden.jsonl"]

    without, said = pushed()
    assert said == f"scores of {len(rows) - 20} synthetic pairs, no texts of yours"
    everything = b"".join(path.read_bytes() for path in without.rglob("*") if path.suffix not in (".safetensors",))
    # The vocabulary of a tokenizer holds single words; none of these texts is one.
    assert not [text for text in words if len(text.split()) > 2 and json.dumps(text)[1:-1].encode() in everything]
    assert changes(without) == Changes([], [], []) and measure(without, 1e-4)["failures"] == []
    with_texts, said = pushed(with_texts=True)
    assert (with_texts / "golden.jsonl").read_bytes() == (folder / "golden.jsonl").read_bytes()
    assert said.endswith("and of 20 pairs with TEXTS OF YOUR TEST SETS")
    done = CliRunner().invoke(app, ["push", str(run), "hf", "acme/x", "--dry-run"])
    assert "golden.jsonl: 20 pairs with texts of your test sets stay here; --with-texts pushes them too" in done.output


def licensed(run: Path, base: str, *sets: str | None) -> None:
    """licences.json and the licence of the card, for a base and training sets with these licences."""
    inputs = [Input("base", "base", "hub base", None, ("base",), known([state(base, "its card")]))]
    for number, licence in enumerate(sets):
        facts = known([] if licence is None else [state(licence, "the recipe")])
        inputs.append(Input(f"set-{number}", "data set", f"path set-{number}", None, ("train",), facts))
    ledger = ledger_json(inputs, LicenceRule())
    (run / "licences.json").write_text(json.dumps(ledger))
    (run / "provenance.json").write_text(json.dumps({"command": ["rankwright", "run", "mine.yaml"]}))
    folder = run / "export" / "hf"
    contract = PromptContract.load(folder)
    assert contract is not None
    facts_ = CardFacts(ledger=ledger)
    write_card(folder, facts_, contract, {"rows": 1, "engines": {}}, base_name="org/base", revision=None)


@pytest.mark.parametrize(
    ("base", "sets", "stated", "expected"),
    [
        ("Apache-2.0", ("CC-BY-4.0",), None, "apache-2.0"),
        ("CC-BY-NC-4.0", ("MIT",), None, "cc-by-nc-4.0"),
        ("Apache-2.0", ("own",), None, r"error: --public: .* made from your own texts \(set-0\)"),
        ("Apache-2.0", ("own",), "proprietary", "other: proprietary"),
        ("Apache-2.0", ("own",), "own", "other: proprietary"),
        ("Apache-2.0", ("own", "CC-BY-4.0"), "cc by 4.0", "cc-by-4.0"),
        ("CC0-1.0", ("own",), "Apache 2.0", "apache-2.0"),
        ("Apache-2.0", ("own",), "aapche-2.0", "error: --licence: unknown licence .*, did you mean"),
        ("Apache-2.0", ("own",), "unknown", "error: --licence: unknown licence 'unknown'"),
        ("CC-BY-NC-4.0", ("own",), "mit", r"error: --licence: it follows .* \(cc-by-nc-4.0-and-proprietary\)"),
        ("CC-BY-NC-4.0", ("own",), "proprietary", "other: cc-by-nc-4.0-and-proprietary"),
        ("Apache-2.0", ("own", "CC-BY-SA-4.0"), "mit", "error: --licence: it follows"),
        (
            "Apache-2.0",
            (None,),
            None,
            "error: --public: no licence is stated for set-0: .* mine.yaml`, and push with --licence",
        ),
        ("Apache-2.0", (None,), "mit", "error: --public: no licence is stated for set-0: .* export mine.yaml`$"),
        ("Apache-2.0", ("own", None), "mit", "error: --public: no licence is stated for set-1"),
        ("Apache-2.0", ("CC-BY-4.0",), "mit", r"error: --licence: it follows .* \(apache-2.0\): leave it out"),
    ],
)
def test_a_public_push_states_the_licence_of_own_texts(
    base: str, sets: tuple[str | None, ...], stated: str | None, expected: str, run: Path
) -> None:
    licensed(run, base, *sets)
    if expected.startswith("error: "):
        with pytest.raises(UserError, match=expected.removeprefix("error: ")) as caught:
            plan_push(run, "hf", "acme/x", private=False, licence=stated)
        assert "\n" not in str(caught.value)
        return
    card = plan_push(run, "hf", "acme/x", private=False, licence=stated).texts["README.md"]
    metadata = yaml.safe_load(card.split("---\n")[1])
    found = metadata["license"] + (f": {metadata['license_name']}" if "license_name" in metadata else "")
    assert found == expected
    assert f"`{expected.removeprefix('other: ')}`," in card.split("## Licence")[1].split("\n")[2].lower()
    # Without --public nothing has to be stated.
    assert plan_push(run, "hf", "acme/x").private


def test_every_file_of_every_target_is_described(folders: dict[str, Path]) -> None:
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "adapter_config.json"):
        assert _holds(name, []) not in ("written by the export target", "settings of the model")
    names = [path.name for path in folders["qwen3-portable"].iterdir()]
    names += ["onnx/model.onnx", "onnx/model.onnx_data", "model-Q8_0.gguf", "chat_template.jinja", "vocab.json"]
    assert not [name for name in names if _holds(name, []) == "written by the export target"]
    assert _holds("mark.json", []) == "written by the export target"


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
