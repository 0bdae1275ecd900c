"""ONNX Runtime on the CPU, with the folder's own tokenizer, padded on each side."""

from __future__ import annotations

from typing import Any

import torch

from rankwright.export.onnx import MODEL_FILE, QUANTIZED_FILE
from rankwright.export.runtimes import Answer, Exported, Limits
from rankwright.export.runtimes.torch_models import scores_of


def onnxruntime(exported: Exported) -> Answer:
    """InferenceSession of the fp32 file."""
    return _scores(exported, MODEL_FILE)


def onnxruntime_8_bits(exported: Exported) -> Answer:
    """InferenceSession of the file with 8-bit weights."""
    return _scores(exported, QUANTIZED_FILE)


def bits8(tolerance: float) -> Limits:
    """For 8-bit weights: the order, roughly the logit, and exactly the same in every batch.

    Random weights, harsher than trained ones, came out 0.34 away at most (logits spread by 4.5), rank correlation
    0.997; with 4 bits they are 6.6 away.
    """
    return Limits(logit=1.0, relative=0.1, probability=None, spearman=0.98, batch=tolerance)


def _scores(exported: Exported, file: str) -> Answer:
    from onnxruntime import InferenceSession, SessionOptions
    from transformers import AutoTokenizer

    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = InferenceSession(str(exported.path / file), options, providers=["CPUExecutionProvider"])

    def score(batch: Any) -> torch.Tensor:
        tensors = {name: batch[name].numpy() for name in ("input_ids", "attention_mask")}
        return torch.from_numpy(session.run(["logits"], tensors)[0][:, 0])

    return scores_of(AutoTokenizer.from_pretrained(exported.path), exported, score, sides=("left", "right"))
