"""A finished run whose files are changed: the next run notices, makes them again, and ends with the same numbers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jobs
import pytest

from rankwright.common.errors import UserError
from rankwright.common.folder_lock import LOCK_FILE
from rankwright.pipeline.stages import Pipeline
from rankwright.recipe.loading import load_recipe

RESULTS = ("negatives.jsonl", "removed.jsonl", "dev_candidates.jsonl", "data/train.jsonl", "data/dev.jsonl")
EXPORT = ("config.json", "model.safetensors", "tokenizer.json", "golden.jsonl", "rankwright.json")


def made(folder: Path, base: Path, **sections: Any) -> Path:
    path = jobs.job(folder, base, **{"mine": {"refresh_steps": 2}, "export": {"targets": []}, **sections})
    Pipeline(load_recipe(str(path)), progress=False).run()
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> Path:
    """The folder of a finished job without exports; do not change its run."""
    return made(tmp_path_factory.mktemp("job"), tiny_qwen3)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> Path:
    """As `finished`, with an export."""
    return made(tmp_path_factory.mktemp("exported"), tiny_qwen3, export={"targets": ["hf"]})


def results(run: Path) -> dict[str, Any]:
    """What a reader of the run relies on."""
    found: dict[str, Any] = {name: (run / name).read_bytes() for name in (*RESULTS, "calibration.json")}
    found |= {name: (run / "export" / "hf" / name).read_bytes() for name in EXPORT if (run / "export" / "hf").is_dir()}
    weights = (run / "checkpoints" / "step-4" / "model.safetensors").read_bytes()
    return {**found, **jobs.evaluation_files(run), "weights": weights}


def copy(folder: Path, place: Path) -> Path:
    """A copy of a job's run with its times."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder / "run", place, symlinks=True)
    return place


def run_again(folder: Path, run: Path, **options: Any) -> None:
    Pipeline(load_recipe(str(folder / "recipe.yaml"), [f"run_dir={run}"]), **options).run()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    """Change one digit, or one bit where there is none."""
    content = bytearray(path.read_bytes())
    digits = [place for place in range(len(content) // 2, len(content)) if content[place] in b"01234567"]
    if content:
        content[digits[0] if digits else -1] ^= 1
    path.write_bytes(content or b"1")


def same_time(damage: Callable[[Path], object]) -> Callable[[Path], None]:
    def instead(path: Path) -> None:
        before = path.stat()
        damage(path)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    return instead


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe_instead(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def list_instead(path: Path) -> None:
    path.write_text('[{"inputs": 1}]\n')


DAMAGES = [Path.unlink, cut, folder_instead, pipe_instead, link_to_nowhere, list_instead]


def files_of(run: Path) -> list[str]:
    return sorted(p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file() and p.name != LOCK_FILE)


def finishes(folder: Path, run: Path, expected: dict[str, Any], case: str) -> None:
    """Run again; one line whose advice is followed may come before the run finishes with the same results."""
    try:
        run_again(folder, run, progress=False)
    except UserError as error:
        path = Path(str(error).partition(": ")[0])
        assert "\n" not in str(error) and "delete" in str(error) and path.is_relative_to(run), (case, error)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        run_again(folder, run, progress=False)
    assert results(run) == expected, case


@pytest.mark.slow
@pytest.mark.parametrize("first", [None, 0, 3])
def test_any_file_of_a_finished_run_may_be_damaged(finished: Path, tmp_path: Path, first: int | None) -> None:
    """first: the damage of the first file, and so on in turn; None: a digit of every file."""
    expected = results(finished / "run")
    names = files_of(finished / "run")
    assert len(names) > 45
    for number, name in enumerate(names):
        damage = flip if first is None else DAMAGES[(first + number) % len(DAMAGES)]
        run = copy(finished, tmp_path / "run")
        damage(run / name)
        finishes(finished, run, expected, f"{damage.__name__} {name}")


@pytest.mark.slow
def test_any_file_of_an_export_may_be_damaged(exported: Path, tmp_path: Path) -> None:
    expected = results(exported / "run")
    names = [name for name in files_of(exported / "run") if name.startswith("export/hf/") and not name.endswith(".md")]
    for number, name in enumerate(names):
        run = copy(exported, tmp_path / "run")
        (flip if number % 2 else cut)(run / name)
        finishes(exported, run, expected, name)
    # A person's words in a card stay; a card that is gone is written again.
    run = copy(exported, tmp_path / "run")
    card = run / "export" / "hf" / "README.md"
    card.write_text(card.read_text() + "Our own words.\n")
    run_again(exported, run, progress=False)
    assert "Our own words." in card.read_text()


def test_an_edited_negative_is_noticed_and_the_edited_file_is_kept(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, expected = copy(finished, tmp_path / "run"), results(finished / "run")
    edited = (run / "negatives.jsonl").read_text().replace("bm25", "hand", 1)
    (run / "negatives.jsonl").write_text(edited)
    run_again(finished, run)
    said = capsys.readouterr().out
    assert "not as the mine stage wrote them: negatives.jsonl (changed): made again; kept as *.changed: 1" in said
    assert said.count("unchanged, skipped") == 4
    assert results(run) == expected and (run / "negatives.jsonl.changed").read_text() == edited


def test_a_copy_with_other_times_repeats_nothing_and_a_change_at_the_same_time_needs_verify(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, expected = copy(finished, tmp_path / "run"), results(finished / "run")
    for path in run.rglob("*"):
        os.utime(path, ns=(10**18, 10**18))
    run_again(finished, run)
    assert capsys.readouterr().out.count("unchanged, skipped") == 5
    # The new times are in the records: nothing is read twice for them.
    same_time(flip)(run / "dev_candidates.jsonl")
    run_again(finished, run)
    assert capsys.readouterr().out.count("unchanged, skipped") == 5
    run_again(finished, run, verify=True)
    assert "dev_candidates.jsonl (changed)" in capsys.readouterr().out
    assert results(run) == expected


def test_a_changed_number_of_the_evaluation_is_measured_again(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, expected = copy(finished, tmp_path / "run"), results(finished / "run")
    folder = run / "eval" / "held-out"
    for number, name in enumerate(("bm25/run.trec", "base/per_query.jsonl", "tuned/metrics.json")):
        flip(folder / name)
        run_again(finished, run)
        said = capsys.readouterr().out
        assert f"{(folder / name).parent}: not as it was written: measured again" in said, number
        assert results(run) == expected
    # Scores that were kept are used only as they were written.
    flip(folder / "tuned" / "scores.jsonl")
    (folder / "tuned" / "metrics.json").unlink()
    run_again(finished, run, progress=False)
    assert results(run) == expected


def test_without_the_best_checkpoint_it_is_trained_again(
    tiny_qwen3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = {"max_steps": 8, "evaluate_every": 1, "save_every": 1, "groups_per_step": 2, "learning_rate": 0.05}
    recipe = load_recipe(str(jobs.job(tmp_path, tiny_qwen3, train=steps)))
    facts = Pipeline(recipe, progress=False).train()
    best, run = facts["checkpoint"], tmp_path / "run"
    # The case: those after it name it as the best.
    assert facts["best_step"] < 7
    weights = (best / "model.safetensors").read_bytes()
    cut(best / "model.safetensors")
    capsys.readouterr()
    again = Pipeline(recipe).train()
    said = capsys.readouterr().out
    assert f"checkpoint {best.name} is damaged or incomplete: passed over, and kept as damaged-{best.name}" in said
    assert f"checkpoint step-8 needs {best.name}, the best: kept as passed-over-step-8" in said
    assert {**again, "seconds": 0, "finished": 0} == {**facts, "seconds": 0, "finished": 0}
    assert (best / "model.safetensors").read_bytes() == weights
    assert (run / "checkpoints" / "passed-over-step-8").is_dir()
