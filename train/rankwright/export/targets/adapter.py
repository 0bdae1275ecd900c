"""Target `adapter`: LoRA adapters in the format of peft."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from rankwright.common.errors import UserError
from rankwright.export.golden import make_golden, write_golden
from rankwright.export.target import TARGETS, Figures, Trained, has_adapter, in_fp32, portable_name
from rankwright.export.tokenizer import write_tokenizer
from rankwright.model.prompt import PromptContract
from rankwright.model.rank_model import RankModel
from rankwright.rerankers.reranker import Reranker

NEEDS_LORA = "export.targets: `adapter` needs model.method: lora; `full` trains the weights themselves"


@TARGETS.register
def adapter(trained: Trained, folder: Path) -> Figures:
    """LoRA adapters in the format of peft, with tokenizer and prompt contract."""
    export_adapter(
        trained.model,
        trained.tokenizer,
        trained.contract,
        folder,
        base_name=trained.base_name,
        revision=trained.revision,
    )
    model = in_fp32(trained.model)
    write_golden(folder, make_golden(Reranker(model, trained.tokenizer, trained.contract), trained.golden_pairs))
    return {}


def export_adapter(
    model: RankModel,
    tokenizer: Any,
    contract: PromptContract,
    folder: Path,
    *,
    base_name: str,
    revision: str | None = None,
) -> None:
    """Write adapters, tokenizer and contract. Raises UserError for a model without adapters (`method: full`)."""
    if not has_adapter(model):
        raise UserError(NEEDS_LORA)
    # `auto` would look for the base on the hub.
    cast(Any, model.lm).save_pretrained(folder, save_embedding_layers=False)
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings |= {"base_model_name_or_path": portable_name(base_name), "revision": revision}
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_tokenizer(tokenizer, contract, folder)
