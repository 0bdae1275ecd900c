"""A module outside the package, as a user would write one: imported for a test, and forgotten after it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rankwright.training import losses


@contextmanager
def outside_module(registry: Any, folder: Path, name: str, source: str) -> Iterator[None]:
    """Write `source` as the module `name` into folder/modules and import it.

    The registry is as before afterwards, and so are the marks of losses.
    """
    (folder / "modules").mkdir()
    (folder / "modules" / f"{name}.py").write_text(source, encoding="utf-8")
    marks = [(names, set(names)) for names in (losses.NEED_POSITIVE, losses.OF_TEACHER, losses.OF_PAIR)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_known", dict(registry._known))
        patch.setattr(registry, "extensions", list(registry.extensions))
        patch.syspath_prepend(folder / "modules")
        importlib.import_module(name)
        yield
    for names, before in marks:
        names.intersection_update(before)
    del sys.modules[name]
