"""Code that a stranger's file decides, run in a process of its own: one that may loop for years, or fill the memory."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

# Exit codes of the child.
REFUSED, NO_MEMORY = 3, 4
# The child's code is `ask(value)`: what it returns comes back as JSON, and what it raises is a refusal. At most a
# gigabyte of memory, where the system can bound it.
AROUND = f"""
import json, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
except (ImportError, ValueError, OSError):
    pass
try:
    answer = ask(json.load(sys.stdin))
except MemoryError:
    sys.exit({NO_MEMORY})
except Exception:
    sys.exit({REFUSED})
sys.stdout.write(json.dumps(answer))
"""


class Refusal(Exception):
    """The child's code raised."""


class OutOfBounds(Exception):
    """The child took too long, too much memory, or died."""


def run_bounded(code: str, asked: Any, *, seconds: float) -> Any:
    """What `ask` of the code returns for a value of JSON. code: Python that defines it, with the imports it needs.

    Nothing of the working directory is imported, and nothing is read from the terminal. Raises Refusal and OutOfBounds.
    """
    # -P: not from the working directory.
    command = [sys.executable, "-P", "-c", code + AROUND]
    try:
        done = subprocess.run(
            command, input=json.dumps(asked), capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise OutOfBounds from None
    if done.returncode == REFUSED:
        raise Refusal
    if done.returncode:
        raise OutOfBounds
    return json.loads(done.stdout)
