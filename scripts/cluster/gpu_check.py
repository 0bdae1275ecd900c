"""Checks of the training engine that need a GPU; see gpu_check.sh. Exit code 1 when one fails.

    python scripts/cluster/gpu_check.py [--device cuda] [--shape 0.6b|tiny] [--json FILE]

With --device cpu --shape tiny it only shows that the script itself runs: routes that need a GPU are left out, and said.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankwright.common.errors import UserError
from rankwright.model.attention import PLAIN, ROUTES
from rankwright.model.prompt import EncodedGroup
from rankwright.model.rank_model import RankModel
from rankwright.model.trainable import add_lora, enable_checkpointing
from rankwright.training.estimate.cost import Types, matmul_peak, step_bytes, step_flops
from rankwright.training.estimate.shapes import Target, architecture_of, row_work, rows_of

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from random_qwen3 import Shape, random_qwen3

# Shape, vocabulary, tokens of a head, of a document.
SHAPES = {
    "0.6b": (Shape(1024, 28, 16, 8, 128, 3072), 151_936, 120, 300),
    "tiny": (Shape(64, 2, 4, 2, 16, 128), 1000, 20, 40),
}
DOCUMENTS, REPEATS, BUDGET_TOKENS = 8, 5, 16384


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", choices=SHAPES, default="0.6b")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: this script checks what only a GPU can show")
        return 2
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, shape {options.shape}")
    found: dict[str, Any] = {"device": name, "torch": torch.__version__, "shape": options.shape}
    failures = []
    for dtype in (torch.float32, torch.bfloat16):
        label = str(dtype).removeprefix("torch.")
        model, groups = build(options.shape, device, dtype)
        found[label] = check_routes(model, groups, dtype, failures)
        found[label] |= {"speed": speeds(model, options.shape, device)}
        found[label] |= {"memory": check_memory(model, options.shape, device, failures)}
        del model
        torch.cuda.empty_cache() if device.type == "cuda" else None
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for failure in failures:
        print(f"FAILED: {failure}")
    print("all checks passed" if not failures else f"{len(failures)} checks failed")
    return 1 if failures else 0


def build(shape: str, device: torch.device, dtype: torch.dtype) -> tuple[RankModel, list[EncodedGroup]]:
    """A random Qwen3 with random adapters, and groups of unequal length."""
    sizes, vocabulary, _, _ = SHAPES[shape]
    lm = random_qwen3(sizes, vocabulary=vocabulary, pad_token_id=0).to(device=device, dtype=dtype)
    model = RankModel(lm, torch.randn(2, sizes.hidden, device=device), pad_id=0)
    model.requires_grad_(False)
    model = add_lora(model, rank=16, alpha=32, dropout=0.0, seed=0).to(device)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model.train(), make_groups(shape, 3, DOCUMENTS)


def make_groups(shape: str, groups: int, documents: int) -> list[EncodedGroup]:
    _, vocabulary, head, tail = SHAPES[shape]
    generator = torch.Generator().manual_seed(2)

    def ids(mean: int) -> list[int]:
        length = int(torch.randint(mean // 2, 3 * mean // 2, (1,), generator=generator))
        return torch.randint(1, vocabulary, (length,), generator=generator).tolist()

    return [EncodedGroup(ids(head), [ids(tail) for _ in range(documents)], False, 0) for _ in range(groups)]


def scores_and_gradient(model: RankModel, groups: Sequence[EncodedGroup]) -> tuple[Tensor, Tensor]:
    model.zero_grad(set_to_none=True)
    scores = model(groups)
    (scores * torch.linspace(-1, 1, len(scores), device=scores.device)).sum().backward()
    gradients = [p.grad.flatten().float() for p in model.parameters() if p.grad is not None]
    return scores.detach(), torch.cat(gradients)


def check_routes(
    model: RankModel, groups: Sequence[EncodedGroup], dtype: torch.dtype, failures: list[str]
) -> dict[str, Any]:
    """Every route against transformers' padded forward: scores and gradients, with and without checkpointing."""
    # fp32 products run in TF32 on a GPU only when asked for; 16 bits are as far from each other as from fp32.
    most = 1e-4 if dtype == torch.float32 else 0.05
    model.attention = PLAIN
    plain_scores, plain = scores_and_gradient(model, groups)
    scale = float(plain_scores.abs().max())
    found: dict[str, Any] = {}
    for route in ROUTES:
        model.attention = route
        try:
            scores, gradient = scores_and_gradient(model, groups)
        except (UserError, NotImplementedError) as error:
            print(f"  {dtype} {route}: left out: {str(error).splitlines()[0]}")
            found[route] = {"left_out": str(error).splitlines()[0]}
            continue
        d_score = float((scores - plain_scores).abs().max()) / scale
        d_gradient = float((gradient - plain).norm() / plain.norm())
        found[route] = {"d_score": d_score, "d_gradient": d_gradient}
        print(f"  {dtype} {route}: scores {d_score:.1e}, gradients {d_gradient:.1e} from the plain forward (relative)")
        # A gradient sums the roundings of all layers.
        if not (d_score < most and d_gradient < 10 * most):
            failures.append(f"{route} in {dtype}: scores {d_score:.1e}, gradients {d_gradient:.1e}")
    model.attention = "auto"
    before, own = scores_and_gradient(model, groups)
    enable_checkpointing(model)
    after, recomputed = scores_and_gradient(model, groups)
    distance = float((recomputed - own).norm() / own.norm())
    print(
        f"  {dtype} gradient checkpointing: gradients {distance:.1e}, scores {float((after - before).abs().max()):.1e}"
    )
    if not distance < most:
        failures.append(f"gradient checkpointing in {dtype}: gradients {distance:.1e}")
    model.causal_lm.gradient_checkpointing_disable()
    return found


def speeds(model: RankModel, shape: str, device: torch.device) -> dict[str, float]:
    """Pairs a second of training (also as a share of the peak) and of scoring 1 x 100: together, plain, one by one."""
    found: dict[str, float] = {}
    training = make_groups(shape, 2, 16)
    for name, attention in (("train", "auto"), ("train_plain", PLAIN)):
        model.attention = attention
        found[name] = 32 / timed(lambda: scores_and_gradient(model, training), device)
    model.attention = "auto"
    target = Target(model.route()[0], device.type == "cpu", model.compute_dtype == torch.bfloat16)
    (flops,) = step_flops(architecture_of(model), training, target, budget_tokens=BUDGET_TOKENS, again=False)
    found["matmul_peak_tflops"] = matmul_peak(model.compute_dtype, device) / 1e12
    found["mfu"] = flops * found["train"] / 32 / found["matmul_peak_tflops"] / 1e12
    (group,) = make_groups(shape, 1, 100)
    single = [EncodedGroup(group.head_ids, [tail], False, 0) for tail in group.tail_ids]
    with torch.no_grad():
        model.attention = "auto"
        found["score"] = 100 / timed(lambda: model([group]), device)
        model.attention = PLAIN
        found["score_plain"] = 100 / timed(lambda: model([group]), device)
        found["score_one_by_one"] = 100 / timed(lambda: [model([one]) for one in single], device)
    model.attention = "auto"
    found["score_over_one_by_one"] = found["score"] / found["score_one_by_one"]
    print("  " + ", ".join(f"{name} {value:.4g}" for name, value in found.items()))
    return found


def check_memory(model: RankModel, shape: str, device: torch.device, failures: list[str]) -> dict[str, float]:
    """The peak of a micro-batch, with and without gradient checkpointing, beside what `rankwright plan` counts."""
    if device.type != "cuda":
        print("  memory against the plan: left out: it is counted on a CUDA device only")
        return {}
    found = {}
    groups = make_groups(shape, 2, 16)
    target = Target(model.route()[0], False, model.compute_dtype == torch.bfloat16)
    for name in ("kept", "recomputed"):
        if name == "recomputed":
            enable_checkpointing(model)
        scores_and_gradient(model, groups)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model(groups).sum().backward()
        real = torch.cuda.max_memory_allocated() - before
        works = [row_work(row, target) for row in rows_of(groups, target)]
        types = Types.of(full=False, bits16=target.bits16)
        plan = step_bytes(architecture_of(model), works, target, types).total
        found |= {f"{name}_gb": real / 2**30, f"{name}_plan_gb": plan / 2**30}
        print(f"  {model.compute_dtype} activations {name}: {real / 2**30:.2f} GiB, planned {plan / 2**30:.2f}")
        if not abs(plan / real - 1) < 0.15:
            failures.append(f"memory in {model.compute_dtype}, {name}: {real / 2**30:.2f} GiB, plan {plan / 2**30:.2f}")
    model.causal_lm.gradient_checkpointing_disable()
    return found


def timed(run: Callable[[], Any], device: torch.device) -> float:
    """Median seconds; the first calls compile and do not count."""
    seconds = []
    for repeat in range(REPEATS + 2):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if repeat > 1:
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    raise SystemExit(main())
