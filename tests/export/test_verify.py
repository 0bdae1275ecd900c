"""`rankwright verify FOLDER`: the proof repeated on copies, and what a user may have done to them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jobs
import pytest
import typer
from test_parity import edit_json, no_post_processor

from rankwright.cli.models import verify
from rankwright.common.errors import UserError
from rankwright.common.run_folder import SUMS_FILE
from rankwright.export.golden import make_golden, read_golden, write_golden
from rankwright.export.proof.parity import is_as_proven, measure
from rankwright.export.proof.sums import sums_of, write_sums
from rankwright.export.target import Trained
from rankwright.export.targets import TARGETS
from rankwright.export.verify.folder import open_export, verify_folder
from rankwright.rerankers.reranker import Reranker


@pytest.fixture(scope="module")
def proven(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of an export with its parity.json, under another name; do not write into it."""
    folder = Path(shutil.copytree(folders["qwen3-portable"], tmp_path_factory.mktemp("copies") / "another name"))
    (folder / "parity.json").write_text(json.dumps(measure(folder, 1e-4)))
    write_sums(folder)
    return folder


@pytest.mark.slow
def test_a_renamed_copy_is_proven_again_by_the_command(proven: Path) -> None:
    done = jobs.rankwright("verify", proven)
    assert done.returncode == 0, done.stderr
    for text in ("rankwright", "transformers", "sentence-transformers", "2 are cut", "20 real", "equal: every runtime"):
        assert text in done.stdout
    assert "changed since" not in done.stdout and "torch 2." in done.stdout and "versions: " in done.stdout


def test_a_fault_is_exit_code_1_and_named(proven: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(proven, tmp_path / "faulty"))
    no_post_processor(folder)
    with pytest.raises(typer.Exit) as left:
        verify(folder, as_json=True)
    assert left.value.exit_code == 1
    [line] = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["notes"] == [] and found["failures"].pop(0) == "changed since the export: tokenizer.json"
    assert found["engines"]["rankwright"]["ids_differ"] == 0
    assert [f.split(":")[0] for f in found["failures"]] == ["transformers", "sentence-transformers"]
    assert all("no template" in failure for failure in found["failures"])


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def other_contract(folder: Path) -> None:
    edit_json(folder / "rankwright.json", instruction="Something else")


def half_a_line(folder: Path) -> None:
    (folder / "golden.jsonl").write_text((folder / "golden.jsonl").read_text()[:-20])


def not_a_number(folder: Path) -> None:
    lines = (folder / "golden.jsonl").read_text().splitlines()
    lines[3] = json.dumps({**json.loads(lines[3]), "logit": float("nan")})
    (folder / "golden.jsonl").write_text("\n".join(lines) + "\n")


def another_pair(folder: Path) -> None:
    (folder / "golden.jsonl").write_text((folder / "golden.jsonl").read_text().replace("river", "brook"))


def damaged_record(folder: Path) -> None:
    (folder / "parity.json").write_text("{")


def endless_tolerance(folder: Path) -> None:
    edit_json(folder / "parity.json", tolerance=float("inf"))


MISTAKES: list[tuple[Callable[[Path], Any], str]] = [
    (remove("golden.jsonl"), "no golden.jsonl: not an export, or a part"),
    (remove("rankwright.json"), "no rankwright.json"),
    (remove("config.json"), "config.json: cannot be read"),
    (other_contract, "rankwright.json: not the file that was exported"),
    (another_pair, "golden.jsonl: not the file that was exported"),
    (half_a_line, "golden.jsonl:51: not a golden row"),
    (not_a_number, "golden.jsonl:4: not a golden row"),
    (damaged_record, "parity.json: damaged"),
    (endless_tolerance, "parity.json: damaged"),
]


@pytest.mark.parametrize(("mistake", "message"), MISTAKES)
def test_what_cannot_be_verified_is_the_users_to_mend(
    mistake: Callable[[Path], Any], message: str, proven: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(proven, tmp_path / "copy"))
    mistake(folder)
    with pytest.raises(UserError) as caught:
        open_export(folder)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", TARGETS)
def test_a_flipped_byte_in_any_file_is_found(kind: str, trained: dict[str, Trained], tmp_path: Path) -> None:
    TARGETS[kind].write(trained["qwen3-portable"], tmp_path)
    (tmp_path / "parity.json").write_text('{"failures": [], "tolerance": 0.0001}')
    (tmp_path / "README.md").write_text("a text for people")
    write_sums(tmp_path)
    lines = (tmp_path / SUMS_FILE).read_text().splitlines()
    subprocess.run(["sha256sum", "--check", "--quiet", SUMS_FILE], cwd=tmp_path, check=True)
    base = trained["qwen3-portable"].base_name
    assert open_export(tmp_path, base).faults == ()
    names = [line.split("  ", 1)[1] for line in lines]
    assert len(names) >= 5 and {"rankwright.json", "golden.jsonl", "parity.json"} < set(names)
    for name in names:
        content = (tmp_path / name).read_bytes()
        at = len(content) // 2
        (tmp_path / name).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        try:
            assert open_export(tmp_path, base).faults == (f"changed since the export: {name}",)
        except UserError as error:
            assert Path(name).name in str(error) and "\n" not in str(error)
        assert not is_as_proven(tmp_path)
        (tmp_path / name).write_bytes(content)
    assert is_as_proven(tmp_path) and sums_of(tmp_path).keys() == set(names)
    (tmp_path / SUMS_FILE).write_text("\n".join([*lines[:-1], lines[-1][:30]]))
    with pytest.raises(UserError, match=rf"SHA256SUMS:{len(lines)}: damaged"):
        open_export(tmp_path, base)


def test_weights_that_changed_too_little_for_the_scores_are_not_equal(
    proven: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(proven, tmp_path / "copy"))
    weights = load_file(folder / "model.safetensors")
    weights["score.weight"][0, 0] += 1e-7
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    # What the fresh process does, without its start.
    monkeypatch.setattr(
        "rankwright.export.verify.folder.measure_fresh",
        lambda folders, tolerance, base, offline: {name: measure(path, tolerance) for name, path in folders.items()},
    )
    assert not verify_folder(open_export(folder))
    shown = capsys.readouterr().out
    assert shown.count("not proven: ") == 1 and "not proven: changed since the export: model.safetensors" in shown


def test_no_folder_and_a_folder_of_exports(proven: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        open_export(tmp_path / "nothing")
    shutil.copytree(proven, tmp_path / "hf")
    with pytest.raises(UserError, match="give one of its exports: hf"):
        open_export(tmp_path)
    done = jobs.rankwright("verify", tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"api": "vllm"}, "--api: goes with a server"),
        ({"model": "m"}, "--model: goes with a server"),
        ({"url": "http://127.0.0.1:1"}, "say which server"),
        ({"url": "http://127.0.0.1:1", "api": "vlm"}, "did you mean 'vllm'"),
        ({"url": "127.0.0.1:1", "api": "llama.cpp"}, "url: not an address"),
        ({"url": "http://127.0.0.1:1", "api": "cohere", "key_variable": "NO_SUCH_KEY"}, "NO_SUCH_KEY is not set"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, str], message: str, proven: Path) -> None:
    with pytest.raises(UserError, match=message):
        verify(proven, **options)


def test_an_adapter_folder_needs_its_base(
    trained: dict[str, Trained], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rankwright.export.targets import TARGETS

    one = trained["qwen3-portable"]
    TARGETS["adapter"].write(one, tmp_path)
    with pytest.raises(UserError, match="which is not here: give --base FOLDER"):
        open_export(tmp_path)
    verify(tmp_path, base=one.base_name)
    shutil.copytree(tmp_path, tmp_path / "damaged")
    (tmp_path / "damaged" / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match=r"adapter_config.json: damaged"):
        open_export(tmp_path / "damaged")
    shown = capsys.readouterr().out
    assert "peft" in shown and "no SHA256SUMS: not checked" in shown


def test_texts_with_other_line_separators_stay_one_row(trained: dict[str, Trained], tmp_path: Path) -> None:
    one = trained["qwen3-portable"]
    reranker = Reranker(one.model, one.tokenizer, one.contract)
    rows = make_golden(reranker, [("a\u2028query", "one\u2029two\u0085three\x1dfour")])
    write_golden(tmp_path, rows)
    assert read_golden(tmp_path) == rows


def test_scores_that_are_no_numbers_are_named_in_valid_json(
    proven: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(proven, tmp_path / "copy"))
    weights = load_file(folder / "model.safetensors")
    weights["score.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(typer.Exit):
        verify(folder, as_json=True)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert len(found["failures"]) == 4 and found["engines"]["transformers"]["max_d_logit"] is None


@pytest.mark.parametrize("tolerance", [0.0, float("nan"), float("inf")])
def test_a_tolerance_that_accepts_all_or_nothing_is_refused(tolerance: float, proven: Path) -> None:
    with pytest.raises(UserError, match="--tolerance: must be a number above 0"):
        open_export(proven, tolerance=tolerance)


def test_what_no_runtime_has_looked_at_is_not_equal(
    trained: dict[str, Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rankwright.export.targets import TARGETS

    onnx, gguf = tmp_path / "onnx", tmp_path / "gguf"
    for folder, options in ((onnx, {}), (gguf, {"types": ["f32"]})):
        folder.mkdir()
        TARGETS[folder.name].bind(options)(trained["qwen3-portable"], folder)
    for module in ("onnxruntime", "fastembed", "llama_cpp", "xllamacpp"):
        monkeypatch.setitem(sys.modules, module, None)
    [failure] = measure(onnx, 1e-4)["failures"]
    assert failure == "nothing was checked: install onnxruntime, fastembed: pip install 'rankwright[onnx]'"
    assert measure(gguf, 1e-4)["failures"] == []
    [file] = gguf.glob("*.gguf")
    file.rename(gguf / "renamed.gguf")
    [failure] = measure(gguf, 1e-4)["failures"]
    assert failure.startswith("renamed.gguf: not checked: its name must end in the type")
