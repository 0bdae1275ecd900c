"""Export: merge in fp32, write a target's folder, prove it in a fresh process, and only then put it in place.

A module a target (hf, adapter, ...), each with one registered function; runtimes: the readers that prove a folder.
"""

from rankwright.export import adapter, causal, gguf, hf, onnx  # noqa: F401  (registers the targets)
from rankwright.export.adapter import export_adapter
from rankwright.export.card import CardFacts
from rankwright.export.hf import export_hf
from rankwright.export.merging import merge
from rankwright.export.publish import export_targets, publish, refuse_base, refuse_impossible
from rankwright.export.trained import TARGETS, Figures, Trained

__all__ = [
    "TARGETS",
    "CardFacts",
    "Figures",
    "Trained",
    "export_adapter",
    "export_hf",
    "export_targets",
    "merge",
    "publish",
    "refuse_base",
    "refuse_impossible",
]
