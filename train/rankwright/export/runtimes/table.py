"""All runtimes, in the order of reports."""

from __future__ import annotations

from rankwright.export.onnx import QUANTIZED_FILE
from rankwright.export.runtimes import Kind, Runtime
from rankwright.export.runtimes.cross_encoders import sentence_transformers
from rankwright.export.runtimes.fastembed import fastembed
from rankwright.export.runtimes.onnxruntime import bits8, onnxruntime, onnxruntime_8_bits
from rankwright.export.runtimes.own import rankwright
from rankwright.export.runtimes.torch_models import peft, transformers


def _kinds(*kinds: Kind) -> frozenset[Kind]:
    return frozenset(kinds)


RUNTIMES = (
    Runtime("rankwright", _kinds("hf", "adapter"), "rankwright", rankwright, every_row=True),
    Runtime("transformers", _kinds("hf"), "transformers", transformers),
    Runtime("sentence-transformers", _kinds("hf"), "sentence_transformers", sentence_transformers),
    Runtime("peft", _kinds("adapter"), "peft", peft),
    Runtime("onnxruntime", _kinds("onnx"), "onnxruntime", onnxruntime),
    Runtime("fastembed", _kinds("onnx"), "fastembed", fastembed),
    Runtime("onnxruntime 8bit", _kinds("onnx"), "onnxruntime", onnxruntime_8_bits, bits8, file=QUANTIZED_FILE),
)
