"""Training with the weights sharded over the processes (FSDP2), with the gradient of a single process.

A matrix of the base lies in parts on all ranks. It is gathered for a layer's forward and again for its backward pass,
after which the gradients' parts are summed where they belong. Vectors (norms, biases) and LoRA adapters are small and
stay whole on every rank: their gradients are all-reduced as without sharding.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from rankwright.common.errors import UserError
from rankwright.common.processes import Processes
from rankwright.model.prompt import EncodedGroup
from rankwright.model.rank_model import RankModel

# (variable of Accelerate's launcher, its default, the value that we need, what to do about another value).
NEEDED = (
    ("FSDP_VERSION", "1", "2", "fsdp_version 1 cannot shard this model: set fsdp_version: 2"),
    ("FSDP_OFFLOAD_PARAMS", "false", "false", "weights are not offloaded: set fsdp_offload_params: false"),
    (
        "FSDP_ACTIVATION_CHECKPOINTING",
        "false",
        "false",
        "the recipe decides that: set model.gradient_checkpointing there, and fsdp_activation_checkpointing: false",
    ),
)


def is_wanted() -> bool:
    """Whether the launcher asks for FSDP. Raises UserError for FSDP settings that we do not support."""
    # Not by Accelerate, which has no FSDP on CPUs; the environment is the same everywhere.
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    from torch.distributed.fsdp import FSDPModule

    if not hasattr(FSDPModule, "reset_iter_state"):
        raise UserError(
            f"FSDP2: torch {torch.__version__} is too old for it: install the one of scripts/constraints.txt"
        )
    # The launcher's default would let transformers leave the weights out on all ranks but the first.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    for variable, default, needed, advice in NEEDED:
        if os.environ.get(variable, default).lower() != needed:
            raise UserError(f"accelerate: fsdp_config: {advice}, as scripts/cluster/accelerate/fsdp2.yaml has it")
    return True


def shard(model: RankModel, accelerator: Any) -> None:
    """Keep only this rank's part of the weights, on the accelerator's device, wherever they were before.

    Parameters keep their names. From here on every rank must run the same number of forward and backward passes in
    training: see gradients.accumulate.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    # For autocast only: Accelerate's own sharding would miss our blocks, which do not call the layers.
    accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
    kept = {p for p in model.parameters() if p.ndim < 2 or (p.requires_grad and hasattr(model.lm, "peft_config"))}
    options: dict[str, Any] = {
        "mesh": init_device_mesh(accelerator.device.type, (Processes.of_group().count,)),
        "reshard_after_forward": True,
        "ignored_params": kept,
    }
    in_bf16 = accelerator.mixed_precision == "bf16"
    # Casts fp32 matrices before they are gathered: autocast would keep a copy of every layer's.
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if in_bf16 else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for block in model.blocks:
        layer = cast(Any, block.layer)
        fully_shard(layer, mp_policy=policy, **options)
        # The layer is gathered by its own __call__, which the plain forward uses, and by our forward of it.
        layer.packed = block.forward
        register_fsdp_forward_method(layer, "packed")
        block.forward = layer.packed  # type: ignore[method-assign]
    lm = model.causal_lm
    head = lm.get_output_embeddings()
    if head is not None and head.weight is not lm.get_input_embeddings().weight:
        # Never run, so never gathered.
        fully_shard(head, **options)
    root = fully_shard(cast(nn.Module, model), **options)
    # The embeddings are frozen.
    root.set_unshard_in_backward(False)
    for module in _shards(model):
        module.set_gradient_divide_factor(1.0)
        # Without this the collective multiplies by the factor of 1, which not every backend can.
        module.set_force_sum_reduction_for_comms(True)
    for parameter in kept:
        parameter.data = parameter.data.to(accelerator.device)
    model.sharded = True
    # The first forward fixes the groups of weights, and gathers: all ranks must run it together.
    with torch.no_grad():
        model([EncodedGroup([0], [[0]], False, 0)])


def _shards(model: RankModel) -> list[Any]:
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


@contextlib.contextmanager
def gathered(model: RankModel) -> Iterator[None]:
    """Inside, every rank holds all weights, and ranks may score different things: a forward gathers nothing.

    All ranks must enter and leave together. Inside, a rank needs the memory of the whole model in the type that it
    computes in; gradients and the optimizer's state stay sharded. Without sharding nothing happens.
    """
    if not model.sharded:
        yield
        return
    shards = _shards(model)
    cast(Any, model).set_reshard_after_forward(False)
    for module in shards:
        module.unshard()
    try:
        yield
    finally:
        for module in shards:
            module.reshard()
        cast(Any, model).set_reshard_after_forward(True)
        # Forwards without a backward pass leave marks, different on each rank, that a backward pass would follow.
        cast(Any, model).reset_iter_state()


def is_shard(tensor: Any) -> bool:
    """Whether a tensor lies in parts on all ranks."""
    # Not by isinstance: the import of DTensor would cost every command half a second.
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """The full tensor; a sharded one on the CPU. All ranks must ask for it, and all but the first get an empty one."""
    if not is_shard(tensor):
        return tensor
    full = cast(Tensor, cast(Any, tensor).full_tensor())
    return full.cpu() if Processes.of_group().is_first else full.new_empty(0)


def as_stored(full: Tensor, parameter: Tensor) -> Tensor:
    """A full tensor, equal on all ranks, sharded as the parameter is; unchanged if the parameter is not sharded."""
    if not is_shard(parameter) or full.shape != parameter.shape:
        return full
    from torch.distributed.tensor import distribute_tensor

    place = cast(Any, parameter)
    return distribute_tensor(full.to(parameter.device), place.device_mesh, place.placements, src_data_rank=None)


def whole_optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """optimizer.state_dict() with full tensors, as without sharding; on other ranks than the first see whole()."""
    return _with_tensors(optimizer.state_dict(), lambda number, value: whole(value))


def load_optimizer_state(optimizer: torch.optim.Optimizer, values: dict[str, Any]) -> None:
    """Restore a result of whole_optimizer_state(), whatever the number of processes then and now."""
    parameters: Sequence[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.load_state_dict(_with_tensors(values, lambda number, value: as_stored(value, parameters[number])))


def _with_tensors(values: dict[str, Any], change: Callable[[int, Tensor], Tensor]) -> dict[str, Any]:
    state = {
        number: {name: change(number, value) if isinstance(value, Tensor) else value for name, value in one.items()}
        for number, one in values["state"].items()
    }
    return {**values, "state": state}
