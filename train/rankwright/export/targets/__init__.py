"""The export targets, one file each. Importing this package imports every file of it, and each adds its record."""

import importlib
import pkgutil

from rankwright.export.target import TARGETS

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)

__all__ = ["TARGETS"]
