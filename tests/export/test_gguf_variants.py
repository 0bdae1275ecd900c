"""Export target `gguf` on other splittings and rope scalings: read back and by llama.cpp's own server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import trained_of

from rankwright.export.proof.parity import measure, read_exported
from rankwright.export.proof.runtimes.base import Exported
from rankwright.export.proof.runtimes.gguf import SPLITS
from rankwright.export.proof.runtimes.llama_cpp import llama_server
from rankwright.export.targets import TARGETS
from rankwright.export.targets.gguf import PRE_TOKENIZERS

# Digits, contractions and spaces, where the splittings differ; as real pairs they decide.
TEXTS = [
    ("12 123 1234 12345.67 in 2024?", "He'LL pay 1234567 dollars,\n\n 20 x  20  = 400\n y_z!!?\nI'm 12"),
    ("3.14 or 31415", "foo(123)\r\n\tbar - 2024/12/31 ...½"),
]
MERGES = [("1", "2"), ("12", "3"), ("2", "0"), ("20", "2"), ("3", "1"), ("Ġ", "2"), ("!", "!")]
STEPS = {
    "bytes": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    "gpt-2": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "digits": {"type": "Digits", "individual_digits": True},
}
ROPES = {
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "yarn": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 512},
    "yarn-older": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 8.0, "original_max_position_embeddings": 256},
}


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def exported(base: Path, folder: Path) -> Exported:
    """The f32 file of a portable reranker on the base, whose golden pairs begin with TEXTS."""
    one = trained_of(base, "portable")
    object.__setattr__(one, "golden_pairs", [*TEXTS, *one.golden_pairs])
    folder.mkdir()
    TARGETS["gguf"].bind({"types": ["f32"]})(one, folder)
    return read_exported(folder)


@pytest.mark.parametrize("splitting", PRE_TOKENIZERS, ids=PRE_TOKENIZERS.values())
def test_each_splitting_gives_the_same_ids(
    splitting: tuple[tuple[str, ...], bool], tiny_qwen3: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_qwen3, tmp_path / "base"))
    steps, whole_words = splitting
    state = json.loads((base / "tokenizer.json").read_text())
    added = len(state["model"]["vocab"]) + len(state["added_tokens"])
    # tokenizers numbers added tokens by the vocabulary's size, unless they are in it.
    state["model"]["vocab"] |= {token["content"]: token["id"] for token in state["added_tokens"]}
    state["model"]["vocab"] |= {left + right: added + i for i, (left, right) in enumerate(MERGES)}
    state["model"]["merges"] += [list(merge) for merge in MERGES]
    state["model"]["ignore_merges"] = whole_words
    own = [
        STEPS.get(s) or {"type": "Split", "pattern": {"Regex": s}, "behavior": "Isolated", "invert": False}
        for s in steps
    ]
    change(base / "tokenizer.json", model=state["model"], pre_tokenizer={"type": "Sequence", "pretokenizers": own})
    change(base / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    folder = exported(base, tmp_path / "gguf")
    report = measure(folder.path, 1e-4)
    assert report["failures"] == []
    for engine in ("gguf f32", "llama-server f32"):
        assert report["engines"][engine]["ids_differ"] == 0
    # Another splitting would show.
    assert any(added <= number for row in folder.rows[:2] for number in row["token_ids"])
    assert set(SPLITS) == set(PRE_TOKENIZERS.values())


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_each_rope_scaling_gives_the_same_scores(rope: dict[str, Any], tiny_qwen3: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_qwen3, tmp_path / "base"))
    change(base / "config.json", rope_parameters=rope)
    folder = exported(base, tmp_path / "gguf")
    report = measure(folder.path, 1e-4)
    assert report["failures"] == []
    assert report["engines"]["llama-server f32"]["max_d_probability"] < 2e-6
    # The scaling shows: without it the scores are others.
    plain = exported(tiny_qwen3, tmp_path / "plain")
    shutil.copy(next(plain.path.glob("*.gguf")), next(folder.path.glob("*.gguf")))
    other = llama_server(folder, "f32").probabilities
    assert max(abs(p - row["probability"]) for p, row in zip(other, folder.rows, strict=True)) > 1e-3
