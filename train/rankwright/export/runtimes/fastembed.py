"""FastEmbed's TextCrossEncoder, from raw pairs: tokenizers and ONNX Runtime without transformers."""

from __future__ import annotations

import uuid

import torch

from rankwright.export.onnx import MODEL_FILE
from rankwright.export.runtimes import BATCH, Answer, Exported, in_both_orders, sigmoid


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
