"""What an export leaves of the exports that were there before."""

from __future__ import annotations

from pathlib import Path

from rankwright.common.run_folder import RunFolder
from rankwright.pipeline.export import put_others_aside


def test_exports_of_an_earlier_model_do_not_stay_beside_the_new_ones(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for name in ("hf", "gguf"):
        (tmp_path / "export" / name).mkdir(parents=True)
    put_others_aside(run, {"hf": {}, "gguf": {}}, "first")
    put_others_aside(run, {"hf": {}}, "first")
    assert (tmp_path / "export" / "gguf").is_dir()
    put_others_aside(run, {"hf": {}}, "second")
    assert sorted(path.name for path in (tmp_path / "export").glob("[!.]*")) == ["hf"]
    assert (tmp_path / "export-withdrawn-1" / "gguf").is_dir()
