"""Reads what wandb wrote for a run: the records of run-ID.wandb, a LevelDB log of protocol buffers."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK, START = 32768, 7
WHOLE, FIRST, LAST = 1, 2, 4


@dataclass
class Written:
    """id, project, group, name, settings of a run; step -> its values; the summary; files by the kind of the panel."""

    id: str = ""
    project: str = ""
    group: str = ""
    name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    repeated: list[int] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)


def records(path: Path) -> Iterator[bytes]:
    """The records of a LevelDB log whose file starts with wandb's header."""
    data, place, whole = path.read_bytes(), START, b""
    while place + 7 <= len(data):
        left = BLOCK - place % BLOCK
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        piece = data[place + 7 : place + 7 + length]
        whole = piece if kind in (WHOLE, FIRST) else whole + piece
        if kind in (WHOLE, LAST) and length:
            yield whole
        place += 7 + length


def read(folder: Path) -> Written:
    """What the finished run in a folder `offline-run-*` holds; wandb's own process may write a moment after the end."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("run-*.wandb")
    deadline = time.monotonic() + 20
    while True:
        found = [wandb_internal_pb2.Record.FromString(raw) for raw in records(path)]
        if any(record.HasField("exit") for record in found):
            return written(found)
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} has no end")
        time.sleep(0.05)


def written(found: Iterable[Any]) -> Written:
    """The records as one run."""
    run = Written()
    for record in found:
        if record.HasField("run"):
            run.id, run.project, run.name = record.run.run_id, record.run.project, record.run.display_name
            run.group = record.run.run_group
            run.config |= values(record.run.config.update)
        if record.HasField("history"):
            row = values(record.history.item)
            step = int(row.pop("_step"))
            run.repeated += [step] if step in run.history else []
            run.history[step] = {name: value for name, value in row.items() if not name.startswith("_")}
        if record.HasField("summary"):
            run.summary |= values(record.summary.update)
        if record.HasField("artifact"):
            run.artifacts.append(record.artifact.name)
    return run


def values(items: Iterable[Any]) -> dict[str, Any]:
    """Name -> value."""
    return {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}
