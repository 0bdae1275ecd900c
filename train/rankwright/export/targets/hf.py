"""Target `hf`: a one-label sequence classifier in safetensors."""

from __future__ import annotations

from pathlib import Path

from rankwright.export.proof.runtimes.torch import RANKWRIGHT, SENTENCE_TRANSFORMERS, TRANSFORMERS
from rankwright.export.proof.settings import (
    architecture_of,
    dtype_of_older_libraries,
    one_label,
    pad_token,
    rope_of_older_libraries,
)
from rankwright.export.target import TARGETS, Card, Figures, Target, Trained
from rankwright.export.weights import SHARD_SIZE, Dtype, ShardSize, merge, why_no_classifier, write_folder


def hf(trained: Trained, folder: Path, *, shard_size: ShardSize = SHARD_SIZE, dtype: Dtype = "fp32") -> Figures:
    """One-label sequence classifier: transformers, sentence-transformers, vLLM, Infinity and others.

    shard_size: of a file of weights, e.g. 2GB. dtype: fp32, bf16, or auto for the type of the base's files.
    """
    return write_folder(trained, merge(trained.model), trained.contract, folder, dtype, shard_size)


def _is_classifier(folder: Path) -> bool:
    architecture = architecture_of(folder)
    # A folder of ONNX files has this config.json too.
    return architecture is not None and not architecture.endswith("ForCausalLM") and not (folder / "onnx").is_dir()


TARGETS.add(
    Target(
        "hf",
        hf,
        recognises=_is_classifier,
        runtimes=(RANKWRIGHT, TRANSFORMERS, SENTENCE_TRANSFORMERS),
        card=Card(library="sentence-transformers", use="use_hf.md.j2", serve="serve_hf.md.j2"),
        settings=(pad_token, rope_of_older_libraries, dtype_of_older_libraries, one_label),
        refusals=why_no_classifier,
    ),
    __name__,
)
