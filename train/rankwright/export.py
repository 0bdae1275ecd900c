"""Export: merge in fp32, write a target's folder, prove it in a fresh process, and only then put it in place."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from rankwright.atomic import atomic_folder
from rankwright.bake import write_tokenizer
from rankwright.errors import UserError
from rankwright.golden import golden_texts, make_golden, write_golden
from rankwright.model import RankModel, load_model
from rankwright.model_card import CardFacts, write_card
from rankwright.parity import check_folders
from rankwright.prompts import PromptContract, PromptEncoder
from rankwright.registry import Registry
from rankwright.reranker import Reranker
from rankwright.resources import FIXTURES, resolve_base

PARITY_FILE = "parity.json"
ACTIVATION = "torch.nn.modules.activation.Sigmoid"
Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Trained:
    """What is exported: the trained model (left as it is) and what a target needs to know about it."""

    model: RankModel
    tokenizer: Any
    contract: PromptContract
    base_name: str
    revision: str | None
    golden_pairs: Sequence[tuple[str, str]]
    tolerance: float
    dtype: torch.dtype


# A target writes its files and golden.jsonl into an empty folder and returns figures for parity.json.
Writer = Callable[[Trained, Path], Figures]
TARGETS: Registry[Writer] = Registry("export target")


def export_targets(
    model: RankModel,
    tokenizer: Any,
    contract: PromptContract,
    *,
    targets: Sequence[str],
    folder: Path,
    golden_pairs: Sequence[tuple[str, str]],
    base_name: str,
    revision: str | None = None,
    tolerance: float = 1e-4,
    dtype: torch.dtype = torch.float32,
    facts: CardFacts | None = None,
) -> dict[str, Figures]:
    """Write folder/TARGET for each target; the figures of each, as in its parity.json.

    base_name: what the recipe calls the base. dtype: type of the written weights. Raises UserError, and leaves an
    earlier folder of the target in place, when a runtime does not reproduce the golden scores within tolerance.
    """
    refuse_impossible(targets, has_adapter=has_adapter(model))
    trained = Trained(model, tokenizer, contract, base_name, revision, golden_pairs, tolerance=tolerance, dtype=dtype)
    return publish(folder, trained, {t: TARGETS[t] for t in targets}, facts or CardFacts())


def refuse_impossible(targets: Sequence[str], *, has_adapter: bool) -> None:
    """Raises UserError for an unknown target, or one that this training method cannot have; call it before training."""
    for target in targets:
        TARGETS[target]
    if "adapter" in targets and not has_adapter:
        raise UserError("export.targets: `adapter` needs model.method: lora; `full` trains the weights themselves")


def has_adapter(model: RankModel) -> bool:
    """Whether the model carries LoRA adapters."""
    return hasattr(model.lm, "peft_config")


def publish(folder: Path, trained: Trained, writers: Mapping[str, Writer], facts: CardFacts) -> dict[str, Figures]:
    """Fill a folder beside each folder/TARGET, check all of them in one fresh process, then put them in place."""
    with ExitStack() as stack:
        drafts = {name: stack.enter_context(atomic_folder(folder / name)) for name in writers}
        figures = {name: write(trained, drafts[name]) for name, write in writers.items()}
        # A hub id stays out: the adapter then names it, with its revision.
        found = resolve_base(trained.base_name)
        base = found if Path(found).is_dir() else None
        reports = check_folders(drafts, trained.tolerance, base)
        for name, draft in drafts.items():
            figures[name] |= reports[name]
            text = json.dumps(figures[name], indent=2, ensure_ascii=False)
            (draft / PARITY_FILE).write_text(text + "\n", encoding="utf-8")
            _finish(draft, trained, facts, figures[name])
    return figures


def _finish(draft: Path, trained: Trained, facts: CardFacts, figures: Figures) -> None:
    write_card(
        draft,
        facts,
        trained.contract,
        figures,
        base_name=portable_name(trained.base_name),
        revision=trained.revision,
    )
    for path in draft.rglob("*"):
        # safetensors files are written 0600, which a server under another user cannot read.
        path.chmod(0o755 if path.is_dir() else 0o644)


@TARGETS.register
def hf(trained: Trained, folder: Path) -> Figures:
    """One-label sequence classifier: transformers, sentence-transformers, vLLM, Infinity and others."""
    merged = merge(trained.model)
    figures = merge_figures(trained, merged)
    write_hf(merged, trained.tokenizer, trained.contract, folder, dtype=trained.dtype)
    # Read back: a 16-bit file has its own, rounded weights, and its golden scores are theirs.
    written = load_model(str(folder), trained.contract, trained.tokenizer)
    rows = make_golden(Reranker(written, trained.tokenizer, trained.contract), trained.golden_pairs)
    write_golden(folder, rows)
    return {**figures, "dtype": str(trained.dtype).removeprefix("torch.")}


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
    model = fp32_copy(trained.model)
    write_golden(folder, make_golden(Reranker(model, trained.tokenizer, trained.contract), trained.golden_pairs))
    return {}


def fp32_copy(model: RankModel) -> RankModel:
    """A copy in fp32 on the CPU, which every machine has; the model itself stays as it is."""
    return copy.deepcopy(model).float().cpu().eval()


def export_hf(
    model: RankModel, tokenizer: Any, contract: PromptContract, folder: Path, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write config, weights (merged in fp32, cast once to `dtype`), tokenizer and contract into `folder`.

    Raises UserError for a base that has no sequence-classification form.
    """
    write_hf(merge(model), tokenizer, contract, folder, dtype=dtype)


def merge(model: RankModel) -> RankModel:
    """A copy in fp32 whose adapters are merged and whose decoder stands below a one-label head."""
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    model = fp32_copy(model)
    if has_adapter(model):
        model.lm = cast(Any, model.lm).merge_and_unload()
    config = copy.deepcopy(model.causal_lm.config)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UserError(f"export: {config.model_type} has no sequence-classification form in transformers")
    config.num_labels = 1
    config.pad_token_id = model.pad_id
    config.use_cache = True
    with torch.device("meta"):
        classifier = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)](config)
    prefix = classifier.base_model_prefix
    assert type(getattr(classifier, prefix)) is type(model.decoder), "the classifier has another decoder"
    setattr(classifier, prefix, model.decoder)
    assert classifier.score.bias is None, "a score head with a bias"
    classifier.score.weight = nn.Parameter(model.score_weight_H[None].clone())
    return RankModel(classifier, model.rows_2H, model.pad_id).eval()


def write_hf(merged: RankModel, tokenizer: Any, contract: PromptContract, folder: Path, *, dtype: torch.dtype) -> None:
    """Write what merge() returned, which is cast in place."""
    cast(Any, merged.lm).to(dtype).save_pretrained(folder)
    write_tokenizer(tokenizer, contract, folder)
    # Last: save_pretrained would drop these again.
    _patch_config(folder / "config.json")


def _patch_config(path: Path) -> None:
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings.pop("_name_or_path", None)
    settings["sentence_transformers"] = {"activation_fn": ACTIVATION}
    # transformers 4 knows these names only, and would go on with its defaults in silence.
    settings["torch_dtype"] = settings["dtype"]
    rope = settings.get("rope_parameters") or {}
    if "rope_theta" in rope:
        settings["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            settings["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"}
    assert settings["pad_token_id"] is not None and settings["pad_token_id"] != settings.get("eos_token_id")
    path.write_text(json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


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
    refuse_impossible(["adapter"], has_adapter=has_adapter(model))
    # `auto` would look for the base on the hub.
    cast(Any, model.lm).save_pretrained(folder, save_embedding_layers=False)
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings |= {"base_model_name_or_path": portable_name(base_name), "revision": revision}
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_tokenizer(tokenizer, contract, folder)


def portable_name(base_name: str) -> str:
    """The base's name as another machine can read it: of a local folder only its own name."""
    if not base_name.startswith(FIXTURES) and Path(base_name).expanduser().is_dir():
        return Path(base_name).expanduser().resolve().name
    return base_name


def merge_figures(trained: Trained, merged: RankModel) -> Figures:
    """How far the merged scores are from those of the trained model and of its base, all in fp32 on golden texts.

    Raises UserError when training changed no score, or when merging changed one by `tolerance` or more.
    """
    model = fp32_copy(trained.model)
    encoder = PromptEncoder(trained.contract, trained.tokenizer)
    groups = [encoder.encode(query, [d]) for _, query, d in golden_texts(encoder, trained.golden_pairs)]
    # The same groups for all: equal weights then give equal scores, bit for bit.
    with torch.inference_mode():
        own = merged(groups)
        from_trained = (own - model(groups)).abs().max().item()
        from_base = None
        if has_adapter(model):
            with cast(Any, model.lm).disable_adapter():
                from_base = (own - model(groups)).abs().max().item()
    if from_base == 0:
        raise UserError("export: the merged model scores exactly like its base: training changed nothing")
    if not from_trained < trained.tolerance:
        raise UserError(
            f"export: merged weights score up to {from_trained:.2e} away from the trained model "
            f"(tolerance {trained.tolerance:.0e}): merging is not exact for this base"
        )
    return {"max_d_merged_trained": from_trained, "max_d_merged_base": from_base}
