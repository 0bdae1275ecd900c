"""Target `adapter`: LoRA adapters in the format of peft."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from rankwright.export.golden import make_golden, write_golden
from rankwright.export.proof.runtimes.torch import PEFT, RANKWRIGHT
from rankwright.export.target import TARGETS, Card, Figures, Target, Trained, portable_name
from rankwright.export.tokenizer import write_tokenizer
from rankwright.export.weights import in_fp32
from rankwright.model.bases import ADAPTER_FILE
from rankwright.rerankers.reranker import Reranker

SETS = ("target_modules", "exclude_modules", "modules_to_save", "target_parameters")


def adapter(trained: Trained, folder: Path) -> Figures:
    """LoRA adapters in the format of peft, with tokenizer and prompt contract."""
    # `auto` would look for the base on the hub.
    cast(Any, trained.model.lm).save_pretrained(folder, save_embedding_layers=False)
    path = folder / ADAPTER_FILE
    settings = json.loads(path.read_text(encoding="utf-8"))
    # peft keeps names in sets, whose order differs from process to process.
    settings |= {key: sorted(value) for key in SETS if isinstance(value := settings.get(key), list)}
    settings |= {"base_model_name_or_path": portable_name(trained.base_name), "revision": trained.revision}
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_tokenizer(trained.tokenizer, trained.contract, folder)
    model = in_fp32(trained.model)
    write_golden(folder, make_golden(Reranker(model, trained.tokenizer, trained.contract), trained.golden_pairs))
    return {}


TARGETS.add(
    Target(
        "adapter",
        adapter,
        recognises=lambda folder: (folder / ADAPTER_FILE).is_file(),
        runtimes=(RANKWRIGHT, PEFT),
        card=Card(
            library="peft",
            relation="adapter",
            holds="; this folder holds the LoRA adapters only",
            use="use_adapter.md.j2",
            serve="serve_adapter.md.j2",
        ),
        needs_lora=True,
    ),
    __name__,
)
