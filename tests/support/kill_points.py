"""Kills a command at points of its work, and starts it again after each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jobs

# Starts the command once for each point, with a signal to itself when a path with that text in it first has one of the
# events; then once more without. Prints how each ended. sys.argv: recipe, run folder, signal, events, points.
DRIVER = """
import os, sys
import rankwright.pipeline.stages
from rankwright.cli.main import main

recipe, run, number, events, *points = sys.argv[1:]

def command(point):
    left = [point] if point else []
    def hook(event, arguments):
        if left and event in events.split(",") and any(left[0] in str(path) for path in arguments[:2]):
            left.clear()
            os.kill(os.getpid(), int(number))
    sys.addaudithook(hook)
    sys.argv = ["rankwright", "run", recipe, f"run_dir={run}"]
    try:
        main()
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(end.code)

for point in [*points, ""]:
    # The libraries are loaded once.
    child = os.fork()
    if child == 0:
        command(point)
    print("ENDED", point, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


# What points are looked for in by default; "os.rename" alone kills just before a finished draft is put in place.
EVENTS = ("open", "os.rename")


def drive(
    recipe: Path, run: Path, number: int, points: list[str], events: tuple[str, ...] = EVENTS
) -> tuple[list[list[str]], str]:
    """Start the command with each point, then without: the words of how each ended, and all that was printed."""
    command = [sys.executable, "-c", DRIVER, str(recipe), str(run), str(number), ",".join(events), *points]
    done = subprocess.run(command, env=jobs.environment(), capture_output=True, text=True, check=False)
    ended = [line.split(" ")[1:] for line in done.stdout.splitlines() if line.startswith("ENDED ")]
    assert len(ended) == len(points) + 1 and ended[-1] == ["", "0"], (ended, done.stderr[-2000:])
    assert "Traceback" not in done.stderr
    return ended, done.stdout
