"""The trained part of a model: LoRA adapters, or everything but the embeddings; and its state in a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from rankwright.common.errors import UserError, in_one_line, nearest
from rankwright.model.interface import checkpoint_contexts
from rankwright.model.quantization import NF4Linear, numbers_of, quantize
from rankwright.model.rank_model import RankModel
from rankwright.model.sharding import as_stored, whole

FULL_INSTEAD = "train all weights (model.method=full), or choose another base"
# Families in which peft refuses layers of these names.
MAMBA = {"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"}
FUSED = {"out_proj", "conv1d"}


def add_lora(
    model: RankModel,
    *,
    rank: int,
    alpha: int,
    dropout: float,
    seed: int,
    rslora: bool = False,
    dora: bool = False,
    targets: Sequence[str] | None = None,
) -> RankModel:
    """LoRA on the linear layers of these names that read text, or on all; adapters are always fp32.

    Weights of experts that are one tensor of three dimensions have no adapters: see expert_weights().

    rslora: scale by alpha / sqrt(rank) instead of alpha / rank; Kalajdzievski 2023, arXiv 2312.03732.
    dora: also train the length of each row of a weight; Liu et al. 2024, arXiv 2402.09353.
    Paper: Hu et al. 2021, arXiv 2106.09685; all linear layers as in Dettmers et al. 2023, arXiv 2305.14314.
    Raises UserError with all names of `targets` that no linear layer of the decoder has.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    names = target_names(model, targets)
    is_causal = model.lm.get_output_embeddings() is not None  # type: ignore[operator]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=sorted(names),
        exclude_modules=_excluded(model, names),
        use_rslora=rslora,
        use_dora=dora,
        task_type=TaskType.CAUSAL_LM if is_causal else None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with in_one_line(f"model.method: lora: peft cannot adapt {type(model.causal_lm).__name__}", FULL_INSTEAD):
            model.lm = get_peft_model(cast(Any, model.lm), config)
    return model


def target_names(model: RankModel, targets: Sequence[str] | None) -> set[str]:
    """Names of the layers that get adapters: `targets`, or all. Raises UserError for names that no layer has."""
    names = linear_names(model)
    if not names:
        raise UserError(f"model.method: lora: {type(model.causal_lm).__name__} has no linear layers: {FULL_INSTEAD}")
    if targets is None:
        return names
    _refuse_unknown(targets, names)
    return set(targets)


def linear_names(model: RankModel) -> set[str]:
    """Names of the linear layers that read text, each without its place: q_proj, up_proj, ...

    Those that peft cannot adapt are left out: fused kernels of Mamba read their weights past any adapter.
    """
    found = {name.rsplit(".", 1)[-1] for name, m in model.text_decoder.named_modules() if _is_plain(m)}
    return found - (FUSED if model.causal_lm.config.model_type in MAMBA else set())


def _is_plain(module: nn.Module) -> bool:
    """Whether a layer is one product: not one of a class that makes something else of it, as some routers do."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, Conv1D | NF4Linear):
        return True
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def quantize_base(model: RankModel) -> RankModel:
    """The model with the linear layers of its decoder in 4 bits; embeddings, norms and the head stay as they are.

    Raises UserError as quantization.quantize does.
    """
    quantize(model.text_decoder, linear_names(model))
    return model


def merge_adapters(model: RankModel) -> RankModel:
    """The model with each LoRA product added to its layer's weight, in fp32 and cast once; one layer at a time."""
    module: Any
    with torch.no_grad():
        for module in list(model.lm.modules()):
            if hasattr(module, "lora_A"):
                weight = module.base_layer.weight
                [name] = module.active_adapters
                weight.data = (weight.float() + module.get_delta_weight(name).float()).to(weight.dtype)
    model.lm = cast(Any, model.lm).unload()
    return model


def expert_weights(model: RankModel) -> dict[str, int]:
    """Names and sizes of the experts' weights that LoRA leaves as they are: all experts of a layer in one tensor."""
    return {
        name: parameter.numel()
        for name, parameter in model.text_decoder.named_parameters()
        # The third dimension of a convolution's weight is beside one of size 1.
        if parameter.ndim == 3 and min(parameter.shape[1:]) > 1 and "lora_" not in name
    }


def _excluded(model: RankModel, names: set[str]) -> str | None:
    """A pattern of the layers that get no adapters although they have one of these names; None where there are none.

    These are layers outside the decoder of texts, such as a vision tower, and those that are not plain.
    """
    modules = dict(model.causal_lm.named_modules())
    text = model.text_decoder
    [place] = [name for name, module in modules.items() if module is text]
    outside = [rf"(?!{re.escape(place)}\.).*"] if text is not model.decoder else []
    odd = [name for name, module in modules.items() if name.rsplit(".", 1)[-1] in names and not _is_plain(module)]
    return "|".join([*outside, *(re.escape(name) for name in odd if name.startswith(f"{place}."))]) or None


def _refuse_unknown(targets: Sequence[str], names: set[str]) -> None:
    known = sorted(names)
    unknown = []
    for target in dict.fromkeys(targets):
        if target not in names:
            near = nearest(target, known)
            unknown.append(f"{target!r} (did you mean {near[0]!r}?)" if near else repr(target))
    if unknown:
        raise UserError(
            f"model.targets: no linear layer of this base is named {' or '.join(unknown)}: "
            f"choose from {', '.join(known)}"
        )


def train_all(model: RankModel) -> RankModel:
    """Full fine-tuning with frozen input embeddings: tied bases would otherwise drift from the head.

    What no text goes through (a vision tower) is frozen: it has no gradient, and weight decay would move it.
    """
    model.requires_grad_(False)
    model.text_decoder.requires_grad_(True)
    model.causal_lm.get_input_embeddings().weight.requires_grad_(False)
    head = model.causal_lm.get_output_embeddings()
    for module in (head, getattr(model.causal_lm, "score", None)):
        if module is not None:
            module.weight.requires_grad_(False)
    return model


def enable_checkpointing(model: RankModel, *, cheap: bool = False) -> None:
    """Recompute activations in the backward pass; not reentrant, so that DDP and frozen inputs work.

    cheap: without products, see Block; where a base runs as transformers has it, all the same.
    """
    if cheap and model.has_own_layers:
        for block in model.blocks:
            block.cheap = True
        return
    with in_one_line("model.gradient_checkpointing: this base cannot", "set it to false"):
        options = {"use_reentrant": False, "context_fn": checkpoint_contexts}
        model.causal_lm.gradient_checkpointing_enable(options)


def trainable_state(model: RankModel) -> dict[str, Tensor]:
    """Name -> trained parameter, detached, on the CPU: what a checkpoint holds.

    For a sharded model all ranks must ask, and only the first gets the values: see sharding.whole.
    """
    return {n: whole(p.detach()).cpu().contiguous() for n, p in model.named_parameters() if p.requires_grad}


def load_trainable_state(model: RankModel, state: dict[str, Tensor], *, base_share: float = 0.0) -> None:
    """Put a checkpoint's parameters back, bit for bit. Raises UserError when names or shapes differ.

    base_share: with a share a above 0 the model becomes base + (1 - a) * (tuned - base), weight by weight; it must
    still be the base (fresh adapters, or weights as they were loaded), and have no DoRA adapters.
    """
    own = {n: p for n, p in model.named_parameters() if p.requires_grad}
    # Shapes too: some would be broadcast silently.
    mine, theirs = ({n: list(t.shape) for n, t in tensors.items()} for tensors in (own, state))
    differ = {n for n in mine.keys() | theirs.keys() if mine.get(n) != theirs.get(n)}
    if differ:
        odd = min(differ)
        raise UserError(
            f"checkpoint: its trained parameters are not those of this recipe ({len(differ)} differ; {odd} has shape "
            f"{theirs.get(odd, 'none')}, in this recipe {mine.get(odd, 'none')}): use the recipe it was made with, "
            "or another run_dir"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            stored = as_stored(state[name], parameter)
            parameter.copy_(stored if not base_share else _nearer_to_base(name, parameter, stored, base_share))


def _nearer_to_base(name: str, base: Tensor, tuned: Tensor, base_share: float) -> Tensor:
    """The value of a trained parameter in a model that lies between base and tuned."""
    assert "lora_magnitude" not in name, "DoRA is not linear in its parameters"
    if "lora_A" in name:
        return tuned
    if "lora_B" in name:
        # The adapter adds B A to the base's weight: scaling one of them scales the difference, exactly.
        return (1 - base_share) * tuned
    return torch.lerp(base, tuned.to(base), 1 - base_share)


def parameter_counts(model: RankModel) -> tuple[int, int]:
    """(trained, all) parameters."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(map(numbers_of, parameters))
