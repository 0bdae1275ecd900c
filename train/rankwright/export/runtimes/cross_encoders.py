"""sentence-transformers' CrossEncoder, from raw pairs."""

from __future__ import annotations

from typing import Any

import torch

from rankwright.export.runtimes import BATCH, Answer, Exported, in_both_orders


def sentence_transformers(exported: Exported) -> Answer:
    """CrossEncoder.predict, in fp32; probabilities by the activation that the folder names."""
    from sentence_transformers import CrossEncoder

    model: Any = CrossEncoder(str(exported.path), device="cpu", model_kwargs={"dtype": torch.float32})
    pairs = [(row["query"], row["document"]) for row in exported.rows]
    options = {"show_progress_bar": False, "batch_size": BATCH}
    ids = [model.preprocess([pair])["input_ids"][0].tolist() for pair in pairs]
    alone = [float(model.predict([pair], activation_fn=torch.nn.Identity(), **options)[0]) for pair in pairs]
    batched = in_both_orders(
        len(pairs),
        lambda places: model.predict([pairs[p] for p in places], activation_fn=torch.nn.Identity(), **options).tolist(),
    )
    return Answer(ids, alone, batched, model.predict(pairs, **options).tolist())
