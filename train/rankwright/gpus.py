"""Devices that `plan` knows: memory and peak as their makers state them, and this machine's CPU as measured."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from rankwright.errors import UserError, did_you_mean

GIB = 2**30
CPU = "cpu"
MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, slots=True)
class Device:
    """memory in bytes, as torch reports it; FLOP/s of dense products with fp32 sums (bf16; fp32 without TF32).

    reserve: bytes that are never ours: the CUDA context and libraries, or Python with torch.
    """

    name: str
    memory: int
    bf16: float
    fp32: float
    reserve: int = GIB

    @property
    def on_cpu(self) -> bool:
        return self.name == CPU


# GiB, TFLOP/s bf16, TFLOP/s fp32: NVIDIA's data sheets, dense, of the SXM form where there are several.
KNOWN = {
    "b200": (178.0, 2250, 75),
    "h200": (139.7, 989, 67),
    "h100": (79.1, 989, 67),
    "a100-80": (79.1, 312, 19.5),
    "a100-40": (39.4, 312, 19.5),
    "l40s": (44.4, 362, 91.6),
    "l4": (22.0, 121, 30.3),
    "a10": (22.0, 125, 31.2),
    "a10g": (22.0, 70, 31.5),
    "rtx4090": (23.5, 165, 82.6),
    "rtx3090": (23.5, 71, 35.6),
}


def parse_gpus(text: str) -> tuple[int, str]:
    """`8xh100` -> (8, "h100"); `cpu` and `h100` are one. Raises UserError for what is not known."""
    found = re.fullmatch(r"(?:([1-9]\d{0,4})\s*[x*])?\s*([a-z][a-z0-9-]*)", text.strip().lower())
    name = found[2] if found else text
    if found is None or (name not in KNOWN and name != CPU):
        known = [*KNOWN, CPU]
        raise UserError(
            f"--gpus: {text!r}: unknown{did_you_mean(name, known)} (known: {', '.join(known)}; 8xh100 is 8)"
        )
    return int(found[1] or 1), name


def gpu(name: str) -> Device:
    """A device of the table."""
    memory, bf16, fp32 = KNOWN[name]
    return Device(name, int(memory * GIB), bf16 * 1e12, fp32 * 1e12)


def this_cpu(processes: int, bf16: float, fp32: float) -> Device:
    """This machine as one of so many processes sees it, given its measured FLOP/s."""
    return Device(CPU, machine_memory() // processes, bf16 / processes, fp32 / processes, reserve=GIB * 3 // 4)


def machine_memory() -> int:
    """Bytes of this machine's memory, or of the container's limit."""
    limit = MEMORY_LIMIT.read_text().strip() if MEMORY_LIMIT.is_file() else "max"
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        raise UserError("--gpus: this system does not say how much memory it has: name a GPU instead of cpu") from None
    return min(memory, int(limit)) if limit.isdigit() else memory
