"""A small sweep for tests: two losses, two ranks and two seeds on the job of jobs.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jobs
import yaml

OVER = {"loss.name": ["listwise_softmax", "bce"], "model.rank": [2, 4]}


def sweep_file(folder: Path, base: Path | str, over: dict[str, Any] | None = None, **keys: Any) -> Path:
    """Write the job's recipe and sweep.yaml into `folder`; returns the sweep's path. Runs lie in folder/sweep."""
    train = {"max_steps": 2, "evaluate_every": 1, "save_every": 1}
    jobs.job(folder, base, train=train, export={"targets": []})
    values = {"extends": "./recipe.yaml", "name": "try", "over": over or OVER, "seeds": [0, 1], **keys}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path
