"""Runtimes on ONNX Runtime: onnxruntime with the folder's own tokenizer, and FastEmbed."""

from __future__ import annotations

import uuid
from functools import partial
from typing import Any

import torch

from rankwright.export.proof.runtimes.base import BATCH, Answer, Exported, Limits, Runtime, in_both_orders, sigmoid
from rankwright.export.proof.runtimes.torch import TRUSTED, scores_of

# Where ONNX Runtime's users look for them.
MODEL_FILE = "onnx/model.onnx"
QUANTIZED_FILE = "onnx/model_quantized.onnx"


def bits8(tolerance: float) -> Limits:
    """For 8-bit weights: nearly the same order and logits, and exactly the same score in every batch.

    Random weights are harsher than trained ones. With 8 bits their logits, spread by 4.5, moved by 0.34 at most, at a
    rank correlation of 0.997; with 4 bits by 6.6.
    """
    return Limits(logit=1.0, relative=0.1, probability=None, spearman=0.98, batch=tolerance)


def onnxruntime(exported: Exported, file: str = MODEL_FILE) -> Answer:
    """InferenceSession of one file."""
    from onnxruntime import InferenceSession, SessionOptions
    from transformers import AutoTokenizer

    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = InferenceSession(str(exported.path / file), options, providers=["CPUExecutionProvider"])

    def score(batch: Any) -> torch.Tensor:
        tensors = {name: batch[name].numpy() for name in ("input_ids", "attention_mask")}
        return torch.from_numpy(session.run(["logits"], tensors)[0][:, 0])

    return scores_of(AutoTokenizer.from_pretrained(exported.path, **TRUSTED), exported, score, sides=("left", "right"))


def fastembed(exported: Exported) -> Answer:
    """A custom model of the local folder; it gives logits."""
    from fastembed.common.model_description import ModelSource
    from fastembed.rerank.cross_encoder import TextCrossEncoder

    # The library keeps its models by name for the whole process.
    name = f"local/{uuid.uuid4().hex}"
    data = f"{MODEL_FILE}_data"
    TextCrossEncoder.add_custom_model(
        model=name,
        sources=ModelSource(hf=name),
        model_file=MODEL_FILE,
        additional_files=[data] if (exported.path / data).is_file() else [],
    )
    folder = str(exported.path)
    # Nothing is cached: a place that is there already keeps it from making one.
    model = TextCrossEncoder(
        name, cache_dir=folder, specific_model_path=folder, local_files_only=True, threads=torch.get_num_threads()
    )
    pairs = [(row["query"], row["document"]) for row in exported.rows]
    ids = [list(model.model.tokenize([pair])[0].ids) for pair in pairs]
    alone = [float(next(iter(model.rerank_pairs([pair])))) for pair in pairs]
    batched = in_both_orders(
        len(pairs), lambda places: list(map(float, model.rerank_pairs([pairs[p] for p in places], batch_size=BATCH)))
    )
    return Answer(ids, alone, batched, sigmoid(alone))


RUNTIMES = (
    Runtime("onnxruntime", "onnxruntime", onnxruntime),
    Runtime("fastembed", "fastembed", fastembed),
    Runtime("onnxruntime 8bit", "onnxruntime", partial(onnxruntime, file=QUANTIZED_FILE), bits8, file=QUANTIZED_FILE),
)
