"""The export stage: what it leaves of earlier exports, and how a target that fails leaves the others alone."""

from __future__ import annotations

from pathlib import Path

import jobs
import pytest
from outside import outside_module

from rankwright.common.run_folder import RunFolder
from rankwright.export.publish import ExportFailed, export_targets
from rankwright.export.target import TARGETS, Trained
from rankwright.pipeline.export import put_others_aside
from rankwright.pipeline.stages import Pipeline
from rankwright.recipe.loading import load_recipe


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


FAULTY = """
from pathlib import Path

from rankwright.export.target import TARGETS, Card, Target
from rankwright.export.targets.hf import hf


def faulty(trained, folder):
    figures = hf(trained, folder)
    (folder / "mark.json").write_text("{}")
    if Path(__file__).with_suffix(".fails").exists():
        (folder / "tokenizer_config.json").write_text("{}")
    return figures


TARGETS.add(
    Target(
        "faulty",
        faulty,
        recognises=lambda folder: (folder / "mark.json").is_file(),
        runtimes=TARGETS["hf"].runtimes[:2],
        card=Card(library="x", use="Use it.", serve="Serve it."),
    ),
    __name__,
)
"""


@pytest.mark.slow
def test_the_next_run_tries_only_the_target_that_failed(
    tmp_path: Path, tiny_qwen3: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = jobs.job(tmp_path / "job", tiny_qwen3, export={"targets": ["faulty", "hf", "adapter"]})
    run = tmp_path / "job" / "run"

    def files() -> dict[str, int]:
        return {p.relative_to(run).as_posix(): p.stat().st_ino for p in (run / "export").glob("[!.]*/*")}

    with outside_module(TARGETS, tmp_path, "faulty_target", FAULTY):
        fails = tmp_path / "modules" / "faulty_target.fails"
        fails.touch()
        with pytest.raises(ExportFailed) as caught:
            Pipeline(load_recipe(str(path))).run()
        assert list(caught.value.proven) == ["hf", "adapter"]
        assert all(message.startswith("export faulty: ") for message in caught.value.messages)
        assert "in place: hf, adapter; the same command tries again only faulty" in capsys.readouterr().out
        assert (run / "report.html").is_file(), "the report is written all the same"
        first = files()
        assert {name.split("/")[1] for name in first} == {"hf", "adapter"}
        with pytest.raises(ExportFailed) as caught:
            Pipeline(load_recipe(str(path))).run()
        assert caught.value.proven == {} and files() == first
        # A folder that was changed since is written again, and so is one that another recipe made.
        (run / "export" / "hf" / "golden.jsonl").write_text("")
        fails.unlink()
        Pipeline(load_recipe(str(path), ["export.targets=[faulty,hf,adapter]"])).run()
        second = files()
        assert {name.split("/")[1] for name in second} == {"faulty", "hf", "adapter"}
        same = {name.split("/")[1] for name, inode in first.items() if second[name] == inode}
        assert same == {"adapter"}


CRASHING = """
import os

from rankwright.export.proof.runtimes.base import Runtime
from rankwright.export.target import TARGETS, Card, Target
from rankwright.export.targets.hf import hf


def crashing(trained, folder):
    figures = hf(trained, folder)
    (folder / "mark.json").write_text("{}")
    return figures


TARGETS.add(
    Target(
        "crashing",
        crashing,
        recognises=lambda folder: (folder / "mark.json").is_file(),
        # As a library that dies of a signal.
        runtimes=(Runtime("dying", "json", lambda exported: os._exit(139)),),
        card=Card(library="x", use="Use it.", serve="Serve it."),
    ),
    __name__,
)
"""


@pytest.mark.slow
def test_a_library_that_ends_the_process_fails_its_own_target_alone(
    trained: dict[str, Trained], tmp_path: Path
) -> None:
    with outside_module(TARGETS, tmp_path, "crashing_target", CRASHING), pytest.raises(ExportFailed) as caught:
        export_targets(trained["qwen3-portable"], {"crashing": {}, "adapter": {}}, tmp_path / "export")
    [message] = caught.value.messages
    assert message.startswith("export crashing: the parity check did not run (exit 139)")
    assert list(caught.value.proven) == ["adapter"]
    assert [path.name for path in (tmp_path / "export").iterdir()] == ["adapter"]
