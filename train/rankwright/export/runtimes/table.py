"""All runtimes, in the order of reports."""

from __future__ import annotations

from rankwright.export.runtimes import Kind, Runtime
from rankwright.export.runtimes.cross_encoders import sentence_transformers
from rankwright.export.runtimes.own import rankwright
from rankwright.export.runtimes.torch_models import peft, transformers, transformers_causal


def _kinds(*kinds: Kind) -> frozenset[Kind]:
    return frozenset(kinds)


RUNTIMES = (
    Runtime("rankwright", _kinds("hf", "causal", "adapter"), "rankwright", rankwright, every_row=True),
    Runtime("transformers", _kinds("hf"), "transformers", transformers),
    Runtime("transformers-causal", _kinds("causal"), "transformers", transformers_causal),
    Runtime("sentence-transformers", _kinds("hf", "causal"), "sentence_transformers", sentence_transformers),
    Runtime("peft", _kinds("adapter"), "peft", peft),
)
