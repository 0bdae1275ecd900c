"""One training step over random texts, in a process of its own: what it computed and held, beside what plan says.

    python step_worker.py '{"method": "lora", "bf16": false, ...}'

Prints JSON: flops and memory (bytes above the loaded model), each as `real` and `plan`.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rankwright.model.prompt import EncodedGroup
from rankwright.model.rank_model import RankModel
from rankwright.model.trainable import add_lora, enable_checkpointing, train_all
from rankwright.training.estimate.cost import Types, step_bytes, step_flops
from rankwright.training.estimate.shapes import Target, architecture_of, row_work, rows_of, step_parts
from rankwright.training.gradients import accumulate, prepare
from rankwright.training.losses import LOSSES
from rankwright.training.sampling import TrainGroup

HIGHEST_MARK = "VmHWM"


def build(case: dict[str, Any], hidden: int, layers: int) -> RankModel:
    shape = {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": 3 * hidden, "vocab_size": 1000}
    heads = {
        "num_attention_heads": hidden // 32,
        "num_key_value_heads": hidden // 64,
        "head_dim": 64,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    lm: Any
    if case.get("family") == "llama":
        lm = LlamaForCausalLM(LlamaConfig(**shape, **heads))
    elif case.get("family") == "mistral":
        lm = MistralForCausalLM(MistralConfig(**shape, **heads))
    else:
        lm = Qwen3ForCausalLM(Qwen3Config(**shape, **heads))
    if case.get("bf16") and case["method"] == "lora":
        lm = lm.to(torch.bfloat16)
    model = RankModel(lm, torch.randn(2, hidden), 0)
    if case["method"] == "full":
        model = train_all(model)
    else:
        model.requires_grad_(False)
        model = add_lora(model, rank=16, alpha=16, dropout=case.get("dropout", 0.0), seed=0)
    model.attention = case.get("attention", "auto")
    if case.get("checkpointing"):
        enable_checkpointing(model, cheap=case["checkpointing"] == "cheap")
    return model.train()


def groups(count: int, documents: int, longest: int) -> list[EncodedGroup]:
    generator = torch.Generator().manual_seed(count)

    def ids(tokens: int) -> list[int]:
        return torch.randint(1, 900, (tokens,), generator=generator).tolist()

    lengths = torch.randint(longest // 3, longest, (count, documents), generator=generator).tolist()
    return [EncodedGroup(ids(longest // 3), list(map(ids, row)), False, 0) for row in lengths]


def count_flops(run: Any) -> int:
    """FLOPs of products as torch dispatches them; it does not know the attention kernels of CPUs by itself."""
    aten = torch.ops.aten

    def forward(q: Any, k: Any, v: Any, *rest: Any, out_shape: Any = None, **more: Any) -> int:
        return int(sdpa_flop_count(q, (*q[:2], *k[2:]), (*q[:2], *v[2:])))

    def backward(gradient: Any, q: Any, k: Any, v: Any, *rest: Any, out_shape: Any = None, **more: Any) -> int:
        return int(sdpa_backward_flop_count(gradient, q, (*q[:2], *k[2:]), (*q[:2], *v[2:])))

    kernels = {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    with FlopCounterMode(display=False, custom_mapping=kernels) as counter:
        run()
    return int(counter.get_total_flops())


def highest_memory(run: Any) -> int:
    """Bytes of resident memory at the highest, above what was resident before."""

    def mark() -> int:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(HIGHEST_MARK))

    # What was freed before goes back to the system (glibc). Writing 5 there sets the mark back to what is resident now.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = mark()
    run()
    return mark() - before


def main() -> None:
    case = json.loads(sys.argv[1])
    measure_memory = case.get("memory", False)
    model = build(case, *((256, 6) if measure_memory else (128, 3)))
    budget, bf16 = case.get("budget", 16384), bool(case.get("bf16"))
    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if bf16 else "no")
    prepare(model, accelerator)

    def step(drawn: list[EncodedGroup]) -> None:
        options: Any = {"budget_tokens": budget, "seed": 0, "step": 1}
        train_groups = [TrainGroup(str(i), (1.0, *[0.0] * (len(g.tail_ids) - 1)), g) for i, g in enumerate(drawn)]
        accumulate(model, train_groups, LOSSES.bind("listwise_softmax", {}), accelerator=accelerator, **options)

    many = 4 if case.get("checkpointing") is True else 2
    drawn = groups(many, 15, 300) if measure_memory else groups(3, 9, 200)
    # Gradients, compiled products and their buffers are there before the step that is measured.
    step(drawn)
    real = highest_memory(lambda: step(drawn)) if measure_memory else count_flops(lambda: step(drawn))

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        target = Target(model.route()[0], True, bf16, own_layers=model.has_own_layers)
    shape = architecture_of(model)
    if measure_memory:
        types = Types.of(full=shape.full, bits16=bf16)
        (batches,) = step_parts(drawn, ranks=1, budget_tokens=budget, one_by_one=shape.dropout)
        rows = [[row_work(row, target) for row in rows_of(part, target)] for batch in batches for part in batch]
        plan = max(step_bytes(shape, works, target, types).total for works in rows)
    else:
        plan = sum(step_flops(shape, drawn, target, budget_tokens=budget))
    print(json.dumps({"real": real, "plan": plan}))


if __name__ == "__main__":
    main()
