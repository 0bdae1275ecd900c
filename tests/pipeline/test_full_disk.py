"""A disk without room: one line that names the file and what to do, and the same command then continues."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import jobs
import pytest

from rankwright.common.disk import room_for, why_full
from rankwright.common.errors import UserError
from rankwright.common.files import append_lines, atomic_folder, remove_drafts

# Writes until files may not grow any more: each library has words of its own for that. sys.argv: the folder.
WRITES = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from safetensors.torch import save_file
from rankwright.common.files import append_lines, atomic_folder, write_kept, write_text_atomic
values = torch.zeros(100_000)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

def in_folder(folder, write):
    with atomic_folder(folder / "a", 400_000) as draft:
        (draft / "small").write_text("x" * 10_000)
        write(draft / "x")

WRITERS = {
    "text": lambda folder: write_text_atomic(folder / "a", "x" * 100_000),
    "lines": lambda folder: append_lines(folder / "a", ["x" * 100_000]),
    "array": lambda folder: write_kept(folder, [b"key"], values.numpy()),
    "safetensors": lambda folder: in_folder(folder, lambda path: save_file({"x": values}, path)),
    "torch": lambda folder: in_folder(folder, lambda path: torch.save({"x": values}, path)),
    "numpy": lambda folder: in_folder(folder, lambda path: np.save(path, values.numpy())),
}
for case, write in WRITERS.items():
    (Path(sys.argv[1]) / case).mkdir()
    try:
        write(Path(sys.argv[1]) / case)
    except Exception as error:
        print(case, type(error).__name__, error)
"""


def test_every_library_without_room_gives_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITES, str(tmp_path)]
    done = subprocess.run(command, env=jobs.environment(), capture_output=True, text=True, check=False)
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert list(lines) == ["text", "lines", "array", "safetensors", "torch", "numpy"], done
    for case, line in lines.items():
        assert line.startswith(f"{case} UserError {tmp_path / case}/")
        assert "cannot be written, " in line and " MB are free: make room" in line
        assert case in ("text", "lines", "array") or "it needs 0.4 MB" in line
        # Nothing but what was cut off of lines, which the next ones do not continue.
        assert {path.name for path in (tmp_path / case).iterdir()} == ({"a"} if case == "lines" else set())


def test_a_device_without_room_and_other_errors() -> None:
    with pytest.raises(UserError, match=r"^/dev/full: cannot be written, the disk is full: it needs more than 0\.0 MB"):
        append_lines(Path("/dev/full"), ["x"])
    assert why_full(OSError(errno.EDQUOT, "quota")) == "the quota is used up"
    for error in (OSError(errno.EACCES, "denied"), RuntimeError("os error 2)"), ValueError("x")):
        assert why_full(error) is None
        with pytest.raises(type(error)), room_for(Path("x")):
            raise error


def limited(recipe: Path, size: int) -> subprocess.CompletedProcess[str]:
    """Run a recipe where no file may be larger than `size`."""
    command = [sys.executable, "-m", "rankwright", "run", str(recipe)]
    return subprocess.run(
        command,
        env=jobs.environment(),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )


@pytest.mark.slow
def test_a_run_on_a_full_disk_stops_with_one_line_and_continues(tmp_path: Path, tiny_qwen3: Path) -> None:
    recipe = jobs.job(tmp_path / "job", tiny_qwen3, export={"targets": ["hf"]})
    run, stopped = tmp_path / "job" / "run", set()
    for size in (0, 1_000, 8_000, 34_000, 90_000):
        done = limited(recipe, size)
        if done.returncode == 0:
            break
        lines = done.stderr.strip().splitlines()
        assert done.returncode == 2 and [line[:7] for line in lines] == ["error: "], (size, done.stderr)
        assert str(tmp_path) in lines[0] or "make room" in lines[0], lines
        stopped.add(len(list((run / "stages").glob("*"))))
    assert len(stopped) >= 3
    done = jobs.rankwright("run", recipe)
    assert done.returncode == 0, done.stderr
    assert not [path for path in run.rglob(".*") if path.name not in (".lock", ".model", ".proven.json")]
    whole = jobs.job(tmp_path / "whole", tiny_qwen3, export={"targets": ["hf"]})
    assert jobs.rankwright("run", whole).returncode == 0
    assert jobs.evaluation_files(run) == jobs.evaluation_files(tmp_path / "whole" / "run")
    weights = [folder / "export" / "hf" / "model.safetensors" for folder in (run, tmp_path / "whole" / "run")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    for name in (".a.json.0123.tmp", "deep/.step-4.tmp/x", ".write-test-12", "kept.tmp", ".hidden", ".step-4.old/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / ".link.tmp").symlink_to(tmp_path / "deep")
    os.utime(tmp_path / ".write-test-12", (1, 1))
    assert remove_drafts(tmp_path, older_than_s=3600) == 1
    assert remove_drafts(tmp_path) == 3
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".hidden", ".step-4.old", "deep", "kept.tmp", "x"]
    # An old folder whose new one never came is still put back.
    with pytest.raises(KeyError), atomic_folder(tmp_path / "step-4"):
        raise KeyError
    assert (tmp_path / "step-4" / "x").is_file()


def test_files_of_private_texts_are_no_wider_than_the_umask(tmp_path: Path) -> None:
    code = (
        "import os, sys; os.umask(int(sys.argv[1], 8)); from pathlib import Path\n"
        "from rankwright.common.files import *\n"
        "make_cache_folder(cache_folder() / 'vectors', 'x'); write_text_atomic(Path(sys.argv[2]) / 'run' / 'a', 'x')\n"
        "append_lines(Path(sys.argv[2]) / 'run' / 'b', ['x'])"
    )
    for umask, folder, file in (("022", 0o755, 0o644), ("077", 0o700, 0o600)):
        place = tmp_path / umask
        environment = jobs.environment(XDG_CACHE_HOME=str(place / "cache"))
        environment.pop("RANKWRIGHT_CACHE", None)
        subprocess.run([sys.executable, "-c", code, umask, str(place)], env=environment, check=True)
        assert (place / "run").stat().st_mode & 0o777 == folder
        assert [(place / "run" / name).stat().st_mode & 0o777 for name in "ab"] == [file, file]
        # Whatever the umask says: it lies where others of the machine may look.
        assert (place / "cache" / "rankwright").stat().st_mode & 0o777 == 0o700
        shutil.rmtree(place)
