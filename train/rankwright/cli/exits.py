"""How a command ends: what it writes to standard error, and its exit code."""

from __future__ import annotations

import os
import sys
import time
from typing import NoReturn

from rankwright.common.console import visible

EXIT_USER = 2
# The model is not good enough: the gate refused it.
EXIT_GATE = 3
# What a shell reports for a command that Ctrl-C ended: 128 + SIGINT.
EXIT_INTERRUPTED = 130
# EX_TEMPFAIL: a scheduler may start the same command again (scripts/cluster/slurm/train.sbatch does).
EXIT_STOPPED = 75
FIRST_SPEAKS_S = 5.0


def interrupted() -> NoReturn:
    """Report that the work was stopped, and exit."""
    complain("stopped. Finished stages and checkpoints are kept: the same command continues")
    leave(EXIT_INTERRUPTED)


def let_the_first_speak() -> None:
    """Have the first process report a mistake that all meet: the launcher ends the others once it has ended."""
    if os.environ.get("RANK", "0") != "0" and not _in_group():
        time.sleep(FIRST_SPEAKS_S)


def _in_group() -> bool:
    """Whether this process has met the others; from then on they agree on which one reports (processes.py)."""
    if "torch" not in sys.modules:
        return False
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def complain(line: str) -> None:
    """Write one line to standard error, with the number of the process where there are several."""
    rank = os.environ.get("RANK", "0")
    line = visible(line).replace("\n", "\\n")
    sys.stderr.write(line + "\n" if rank == "0" else f"[process {rank}] {line}\n")


def leave(code: int) -> NoReturn:
    """Exit; process groups are closed first, or their threads complain."""
    if code == 0 and _in_group():
        import torch.distributed as dist

        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    raise SystemExit(code)
