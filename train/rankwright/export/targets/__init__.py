"""The export targets, one file each. Importing this package registers them."""

from rankwright.export.target import TARGETS
from rankwright.export.targets import adapter, causal, gguf, hf, onnx  # noqa: F401  (registers the targets)

__all__ = ["TARGETS"]
