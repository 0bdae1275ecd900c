"""`verify` on a folder with code of its own: nothing of it runs, and nobody is asked whether it may."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jobs
import pytest
from test_parity import edit_json

from rankwright.common.errors import UserError
from rankwright.export.proof.parity import measure
from rankwright.export.verify.folder import open_export

CODE = """
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerFast

MARK


class Evil(PretrainedConfig):
    model_type = "evil"


class EvilTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def hostile(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of an export whose config and tokenizer are of classes in a file beside them, which leaves a marker."""
    # transformers copies such files there before it imports them.
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = Path(shutil.copytree(folders["qwen3-portable"], tmp_path / "hostile"))
    (folder / "evil.py").write_text(CODE.replace("MARK", f"Path({str(tmp_path / 'MARKER')!r}).write_text('ran')"))
    kinds = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification")
    edit_json(folder / "config.json", model_type="evil", auto_map=dict.fromkeys(kinds, "evil.Evil"))
    edit_json(
        folder / "tokenizer_config.json",
        tokenizer_class="EvilTokenizer",
        auto_map={"AutoTokenizer": [None, "evil.EvilTokenizer"]},
    )
    return folder


def test_the_folder_would_run_its_code_where_it_is_trusted(hostile: Path) -> None:
    from transformers import AutoConfig

    AutoConfig.from_pretrained(hostile, trust_remote_code=True)
    assert (hostile.parent / "MARKER").is_file(), "the other tests would see it"


def test_a_yes_at_the_terminal_runs_nothing(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    report = measure(hostile, 1e-4)
    assert {failure.split(":")[0] for failure in report["failures"]} >= {"transformers", "sentence-transformers"}
    assert not (hostile.parent / "MARKER").exists() and sys.stdin.read() == "y\n" * 20, "nobody asked"


def test_a_foreign_part_of_a_cross_encoder_is_refused_before_anything_is_loaded(hostile: Path) -> None:
    (hostile / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "evil.Evil"}]))
    for read in (open_export, lambda folder: measure(folder, 1e-4)):
        with pytest.raises(UserError, match=r"modules\.json names the class 'evil\.Evil'"):
            read(hostile)
    assert not (hostile.parent / "MARKER").exists()


@pytest.mark.slow
@pytest.mark.parametrize("answers", ["y\n" * 20, None])
def test_the_command_neither_asks_nor_waits(answers: str | None, hostile: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rankwright", "verify", str(hostile)]
    started = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=jobs.environment(HF_MODULES_CACHE=str(tmp_path / "modules")),
    )
    if answers is not None:
        assert started.stdin is not None
        started.stdin.write(answers)
        started.stdin.flush()
    # The pipe stays open: whoever reads from it would wait.
    assert started.wait(timeout=300) == 1
    out, error = (stream.read() for stream in (started.stdout, started.stderr) if stream is not None)
    assert "not proven: transformers" in out and "Traceback" not in error
    assert not (tmp_path / "MARKER").exists()
