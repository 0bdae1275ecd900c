"""Fixtures that several test files share: tiny random bases, rerankers and exports (see tiny.py, tiny_encoder.py)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))
# No test may depend on a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# On tiny models threads only wait for each other: 5 s instead of 0.2 s on a busy machine. Set before torch loads.
os.environ.setdefault("OMP_NUM_THREADS", "1")


# A busy machine is not a fault of the code.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Qwen3; do not write into it."""
    from tiny import make_tiny_qwen3

    return make_tiny_qwen3(tmp_path_factory.mktemp("bases") / "tiny-qwen3")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Llama; do not write into it."""
    from tiny import make_tiny_llama

    return make_tiny_llama(tmp_path_factory.mktemp("bases") / "tiny-llama")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> Iterator[tuple[Path, Path]]:
    """(base, cross-encoder); scores are kept in a folder of the file's tests."""
    from tiny_encoder import make_tiny_cross_encoder

    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANKWRIGHT_CACHE", str(folder / "cache"))
        yield tiny_qwen3, make_tiny_cross_encoder(folder / "tiny-bert")


@pytest.fixture(scope="session")
def trained(tiny_qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Name -> rankwright.export.target.Trained; do not change the models."""
    from tiny import make_tiny_llama, trained_of

    llama = make_tiny_llama(tmp_path_factory.mktemp("bases") / "pad-is-eos", pad_is_eos=True)
    return {
        "qwen3-portable": trained_of(tiny_qwen3, "portable"),
        "qwen3-official": trained_of(tiny_qwen3, "official"),
        "llama-portable": trained_of(llama, "portable"),
        "qwen3-full": trained_of(tiny_qwen3, "portable", full=True),
    }


@pytest.fixture(scope="session")
def folders(trained: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The `hf` folder of each of `trained`, and `qwen3-bf16` of the first; not yet checked; do not write into it."""
    from rankwright.export.targets import TARGETS

    root = tmp_path_factory.mktemp("hf")
    options: dict[str, dict[str, Any]] = {name: {} for name in trained} | {"qwen3-bf16": {"dtype": "bf16"}}
    for name, values in options.items():
        (root / name).mkdir()
        TARGETS["hf"].bind(values)(trained.get(name, trained["qwen3-portable"]), root / name)
    return {name: root / name for name in options}


@pytest.fixture(scope="session")
def whole(tiny_qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of jobs.evaluation_job, trained and evaluated by one process; copy its run before changing it."""
    import jobs

    folder = tmp_path_factory.mktemp("whole")
    done = jobs.rankwright("evaluate", jobs.evaluation_job(folder, tiny_qwen3))
    assert done.returncode == 0, done.stderr
    assert "speed of tuned: 1 query x 16 documents" in done.stdout
    return folder
