"""Devices by name, memory and peak, for which a plan is made; this machine's CPU is measured."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from rankwright.common.errors import UserError, no_such
from rankwright.training.estimate.cost import matmul_peak

GIB = 2**30
CPU = "cpu"
MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")
# The peak of a device that has no bf16; of one whose peak is not known it is None.
NO_BF16 = 0.0


@dataclass(frozen=True, slots=True)
class Device:
    """memory in bytes, as torch reports it; FLOP/s of dense products with fp32 sums (bf16; fp32 without TF32).

    reserve: bytes that are never ours: the CUDA context and libraries, or Python with torch.
    """

    name: str
    memory: int
    bf16: float | None
    fp32: float | None
    reserve: int = GIB

    @property
    def on_cpu(self) -> bool:
        return self.name == CPU

    @property
    def has_bf16(self) -> bool:
        """Whether `train.precision: auto` is bf16 there."""
        return not self.on_cpu and self.bf16 != NO_BF16


# GiB as torch reports them, TFLOP/s bf16, TFLOP/s fp32, the maker's document. Dense (half of what is stated "with
# sparsity"), with fp32 sums (on GeForce half of what is stated with fp16 sums), and SXM where there are several forms.
KNOWN: dict[str, tuple[float, float, float, str]] = {
    "b200": (178.0, 2250, 75, "NVIDIA Blackwell architecture brief, HGX B200"),
    "h200": (139.7, 989, 67, "NVIDIA H200 data sheet"),
    "h100": (79.1, 989, 67, "NVIDIA H100 data sheet"),
    "a100-80": (79.1, 312, 19.5, "NVIDIA A100 data sheet"),
    "a100-40": (39.4, 312, 19.5, "NVIDIA A100 data sheet"),
    "mi300x": (191.5, 1307, 163, "AMD Instinct MI300X data sheet"),
    "l40s": (44.4, 362, 91.6, "NVIDIA L40S data sheet"),
    "l4": (22.0, 121, 30.3, "NVIDIA L4 data sheet"),
    "a10": (22.0, 125, 31.2, "NVIDIA A10 data sheet"),
    "a10g": (22.0, 70, 31.5, "NVIDIA A10G, as AWS states it for G5"),
    "a6000": (47.4, 155, 38.7, "NVIDIA RTX A6000 data sheet; Ampere GA102 white paper"),
    "rtx5090": (31.3, 210, 105, "NVIDIA RTX Blackwell white paper"),
    "rtx4090": (23.5, 165, 82.6, "NVIDIA Ada white paper"),
    "rtx3090": (23.5, 71, 35.6, "NVIDIA Ampere GA102 white paper"),
    # Turing has tensor cores for fp16 (65 TFLOP/s), which is not trained in here.
    "t4": (14.6, NO_BF16, 8.1, "NVIDIA T4 data sheet"),
}


def parse_gpus(text: str, *, any_name: bool = False) -> tuple[int, str]:
    """`8xh100` -> (8, "h100"); `cpu` and `h100` are one. Raises UserError for what is not known, unless any_name."""
    found = re.fullmatch(r"(?:([1-9]\d{0,4})\s*[x*])?\s*([a-z][a-z0-9-]*)", text.strip().lower())
    name = found[2] if found else text
    if found is None or (name not in KNOWN and name != CPU and not any_name):
        how = "several are written 8xh100, and another is described by --memory GIB"
        raise UserError(f"--gpus: {no_such('device', name, [*KNOWN, CPU], how)}")
    return int(found[1] or 1), name


def gpu(name: str) -> Device:
    """A device of the table."""
    memory, bf16, fp32, _ = KNOWN[name]
    return Device(name, int(memory * GIB), bf16 * 1e12, fp32 * 1e12)


def find_devices(gpus: str | None, memory: float | None = None) -> tuple[int, Device]:
    """(how many, of which kind). gpus: as parse_gpus has it, by default one h100, or one that only has a memory.

    memory: GiB of each instead of the table's; the device may then have any name. Its peak is not known if it is not
    in the table, and it is taken for one with bf16. `cpu` is this machine, which is measured for half a second.
    """
    if gpus is None:
        gpus = "h100" if memory is None else "gpu"
    count, name = parse_gpus(gpus, any_name=memory is not None)
    if name == CPU:
        bf16, fp32 = (matmul_peak(dtype, torch.device(CPU)) for dtype in (torch.bfloat16, torch.float32))
        # As one of so many processes sees this machine.
        available = machine_memory() if memory is None else int(memory * GIB) * count
        return count, Device(CPU, available // count, bf16 / count, fp32 / count, reserve=GIB * 3 // 4)
    device = gpu(name) if name in KNOWN else Device(name, 0, None, None)
    if memory is not None:
        device = Device(device.name, int(memory * GIB), device.bf16, device.fp32)
    return count, device


def refuse_precision(device: Device, precision: str) -> None:
    """Raises UserError where the device lacks the recipe's number format."""
    if precision == "bf16" and device.bf16 == NO_BF16:
        raise UserError(
            f"train.precision: bf16, which {device.name} does not have (and fp16 is not trained in): write fp32, or "
            "take a device from A10 and RTX 3090 on"
        )


def machine_memory() -> int:
    """Bytes of this machine's memory, or of the container's limit."""
    limit = MEMORY_LIMIT.read_text().strip() if MEMORY_LIMIT.is_file() else "max"
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        raise UserError("--gpus: this system does not report its memory: name a GPU instead of cpu") from None
    return min(memory, int(limit)) if limit.isdigit() else memory
