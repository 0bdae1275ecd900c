"""Ways to damage a folder of a base, an export or adapters; each changes the files of a copy."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS, ADAPTER_WEIGHTS = "model.safetensors", "adapter_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
Change = Callable[[Path], object]


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def config(**values: Any) -> Change:
    return lambda folder: edit_json(folder / "config.json", **values)


def contract(**values: Any) -> Change:
    return lambda folder: edit_json(folder / "rankwright.json", **values)


def adapter_config(**values: Any) -> Change:
    return lambda folder: edit_json(folder / "adapter_config.json", **values)


def write(name: str, text: str) -> Change:
    return lambda folder: (folder / name).write_text(text)


def without(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def cut(name: str, share: float = 0.5) -> Change:
    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return change


def weights(edit: Callable[[dict[str, Tensor]], object], name: str = WEIGHTS) -> Change:
    def change(folder: Path) -> None:
        tensors = load_file(folder / name)
        edit(tensors)
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name, {"format": "pt"})

    return change


def replaced(key: str, make: Callable[[Tensor], Tensor], name: str = WEIGHTS) -> Change:
    """The first tensor whose name holds `key`, made anew from the old one."""

    def edit(tensors: dict[str, Tensor]) -> None:
        found = next(one for one in sorted(tensors) if key in one)
        tensors[found] = make(tensors[found])

    return weights(edit, name)


def one_number(value: float) -> Callable[[Tensor], Tensor]:
    """A copy with this value in one place."""

    def make(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[tensor.numel() // 2] = value
        return tensor

    return make


def sharded(folder: Path, parts: int = 2) -> None:
    """The same weights in several files with an index."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    place = {name: f"model-{number % parts + 1:05}-of-{parts:05}.safetensors" for number, name in enumerate(tensors)}
    for file in set(place.values()):
        save_file({n: t for n, t in tensors.items() if place[n] == file}, folder / file, {"format": "pt"})
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": place}))


def index(**values: Any) -> Change:
    def change(folder: Path) -> None:
        sharded(folder)
        edit_json(folder / INDEX, **values)

    return change


def after_sharding(change: Change) -> Change:
    def both(folder: Path) -> None:
        sharded(folder)
        change(folder)

    return both


def huge_header(folder: Path) -> None:
    """A file that claims a header of a terabyte."""
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 2**40) + data[8:])


def half(tensor: Tensor) -> Tensor:
    return tensor[: len(tensor) // 2].clone()


def same_twice(name: str, other: str) -> Change:
    return weights(lambda tensors: tensors.__setitem__(other, tensors[name].clone()))


def extra(name: str, *shape: int) -> Change:
    return weights(lambda tensors: tensors.__setitem__(name, torch.zeros(shape)))


def lost(key: str, name: str = WEIGHTS) -> Change:
    return weights(lambda tensors: tensors.pop(next(one for one in sorted(tensors) if key in one)), name)


def extra_adapter(place: str) -> Change:
    """Adapters of one more layer, such as the head."""

    def edit(tensors: dict[str, Tensor]) -> None:
        rank = next(t.shape[0] for n, t in tensors.items() if "lora_A" in n)
        tensors[f"base_model.model.{place}.lora_A.weight"] = torch.zeros(rank, 64)
        tensors[f"base_model.model.{place}.lora_B.weight"] = torch.zeros(704, rank)

    return weights(edit, ADAPTER_WEIGHTS)
