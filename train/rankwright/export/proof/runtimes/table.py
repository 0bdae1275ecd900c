"""All runtimes, in the order of reports."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from rankwright.export.proof.runtimes.base import Kind, Limits, Runtime, exact
from rankwright.export.proof.runtimes.gguf import read_back
from rankwright.export.proof.runtimes.llama_cpp import llama_cpp, llama_server
from rankwright.export.proof.runtimes.onnx import bits8, fastembed, onnxruntime, onnxruntime_8_bits
from rankwright.export.proof.runtimes.torch import (
    peft,
    rankwright,
    sentence_transformers,
    transformers,
    transformers_causal,
)
from rankwright.export.targets.onnx import QUANTIZED_FILE


def _kinds(*kinds: Kind) -> frozenset[Kind]:
    return frozenset(kinds)


def _gguf(kind: str, limits: Callable[[float], Limits] = exact) -> tuple[Runtime, ...]:
    """The readers of the files whose weights are of one type."""
    kinds, file = _kinds("gguf"), f"*-{kind}.gguf"
    return (
        Runtime(f"gguf {kind}", kinds, "gguf", partial(read_back, kind=kind), limits, file=file),
        Runtime(f"llama.cpp {kind}", kinds, "llama_cpp", partial(llama_cpp, kind=kind), limits, file=file),
        Runtime(f"llama-server {kind}", kinds, "xllamacpp", partial(llama_server, kind=kind), limits, file=file),
    )


def _rounded(logit: float, relative: float, probability: float, spearman: float) -> Callable[[float], Limits]:
    """For weights that are rounded and golden scores that are not: bounds, and the order (of near ties, nearly).

    A probability near 0 or 1 hides much of a logit, so logits decide wherever a runtime gives them.
    """
    return lambda tolerance: Limits(logit, probability, relative=relative, spearman=spearman)


RUNTIMES = (
    Runtime("rankwright", _kinds("hf", "causal", "adapter"), "rankwright", rankwright, every_row=True),
    Runtime("transformers", _kinds("hf"), "transformers", transformers),
    Runtime("transformers-causal", _kinds("causal"), "transformers", transformers_causal),
    Runtime("sentence-transformers", _kinds("hf", "causal"), "sentence_transformers", sentence_transformers),
    Runtime("peft", _kinds("adapter"), "peft", peft),
    *_gguf("f32"),
    *_gguf("f16", _rounded(0.05, 0.01, 0.01, 0.99)),
    *_gguf("bf16", _rounded(0.5, 0.05, 0.06, 0.98)),
    *_gguf("q8_0", _rounded(1.0, 0.1, 0.15, 0.97)),
    Runtime("onnxruntime", _kinds("onnx"), "onnxruntime", onnxruntime),
    Runtime("fastembed", _kinds("onnx"), "fastembed", fastembed),
    Runtime("onnxruntime 8bit", _kinds("onnx"), "onnxruntime", onnxruntime_8_bits, bits8, file=QUANTIZED_FILE),
)
