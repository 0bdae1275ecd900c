"""A sweep: its runs one after the other as ordinary run folders, what they share computed once, test opened last."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rankwright.common import console, resources
from rankwright.common.disk import why_full
from rankwright.common.errors import PeerFailed, Stopped, UserError, one_line
from rankwright.common.files import link_or_copy, read_json_object
from rankwright.common.folder_lock import InUse, folder_lock
from rankwright.common.plurals import counted
from rankwright.common.processes import launched
from rankwright.common.run_folder import RunFolder
from rankwright.evaluation.sweep_table import SweepTable
from rankwright.pipeline.context import Context
from rankwright.pipeline.stage_table import STAGES, Stage
from rankwright.pipeline.stages import Pipeline
from rankwright.pipeline.sweep_rows import is_of, read_table, training_seconds
from rankwright.recipe.pretrain import CONTROL
from rankwright.recipe.schema import COMBINED, EXPORTED
from rankwright.recipe.sweep_runs import LoadedSweep, PlannedRun

# Stages before training: runs whose inputs of them are equal share them.
SHARED = ("data", "teacher", "mine", "judge", "pretrain")
# Systems of an evaluation that are a run's own.
OWN_SYSTEMS = ("tuned", EXPORTED, COMBINED, CONTROL)
# Seconds between two looks at runs that others work on.
POLL_S = 2.0


class SweepRunner:
    """Trains the runs of a sweep that are not done, chooses on dev, and evaluates the chosen one and the default.

    worker: other workers do the same in this folder: each run is done by the one that holds the lock of its folder.
    A failing run leaves its error in failed.json, and the others go on.
    """

    def __init__(self, loaded: LoadedSweep, *, worker: bool = False, command: Sequence[str] = ()) -> None:
        self.loaded = loaded
        self.worker = worker
        self.command = command or ("rankwright", "sweep", str(loaded.path))
        self._began = time.time()
        self._contents: dict[Path, str] = {}

    def __call__(self, only: Sequence[PlannedRun] | None = None) -> SweepTable:
        """Do what is left. only: train these runs, choose nothing. Raises UserError where another command works here.

        A worker shares the folder with other workers, and ends when the last run is done, whoever did it.
        """
        if launched() > 1:
            raise UserError("sweep: runs as one process: start `rankwright sweep SWEEP --worker` once for each GPU")
        RunFolder(self.loaded.folder).create()
        runs = self.loaded.runs if only is None else only
        with ExitStack() as held:
            if not self.worker:
                held.enter_context(folder_lock(self.loaded.folder, self.command, console.say))
                for run in runs:
                    RunFolder(run.folder).failure.unlink(missing_ok=True)
            self._work(runs, "train")
            table = read_table(self.loaded)
            if only is None:
                self._work(tested_runs(self.loaded, table), "evaluate")
                table = read_table(self.loaded)
        return table

    def _work(self, runs: Sequence[PlannedRun], last: str) -> None:
        """Bring each run to the stage `last`, in any order where others work on some of them."""
        left = list(runs)
        while left:
            others = [run for n, run in enumerate(left) if not self._claim(run, last, f"{n + 1} of {len(left)}")]
            if len(others) == len(left):
                time.sleep(POLL_S)
            left = others

    def _claim(self, run: PlannedRun, last: str, place: str) -> bool:
        """Do a run unless another process has it; whether it is over."""
        run.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            try:
                held.enter_context(folder_lock(run.folder, self.command, console.say))
            except InUse:
                return False
            if self._is_over(run, last):
                return True
            console.heading(f"{run.name}: {last}, {place}")
            self._do(run, last)
        # The model of a run must not stay beside the next one's.
        gc.collect()
        return True

    def _is_over(self, run: PlannedRun, last: str) -> bool:
        folder = RunFolder(run.folder)
        failed = folder.failure
        if failed.is_file() and (not self.worker or failed.stat().st_mtime >= self._began):
            return True
        hours = self.loaded.sweep.budget.hours
        if last == "train" and hours is not None and not is_of(folder, run):
            return sum(training_seconds(RunFolder(one.folder)) for one in self.loaded.runs) >= hours * 3600
        return False

    def _do(self, run: PlannedRun, last: str) -> None:
        folder = RunFolder(run.folder)
        try:
            # The recipe of a run is a recipe: the same command with it continues the run alone.
            command = ("rankwright", "run", resources.shown(folder.recipe_json))
            p = Pipeline(run.loaded, folder, command=command)
            p.inputs.contents = self._contents
            self._share(p)
            if last == "evaluate":
                self._share_evaluation(p)
            p.run_to(last)
            folder.failure.unlink(missing_ok=True)
        except (Stopped, PeerFailed):
            raise
        except Exception as error:
            if isinstance(error, OSError) and why_full(error) is not None:
                # The next run would fail for the same reason.
                raise
            lines = str(error).strip().splitlines() or [type(error).__name__]
            shown = (
                one_line(lines[0]) if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(lines[0])}"
            )
            folder.write_json(folder.failure, {"error": shown, "stage": last, "seed": run.seed})
            console.say(f"{run.name} failed: {shown}")

    # What runs share.

    def _share(self, p: Pipeline) -> None:
        """Take the stages before training from a run with equal inputs that has done them, or do them for others."""
        stages = [stage for stage in STAGES if stage.name in SHARED and stage.is_asked(p)]
        missing = self._adopt(p, stages)
        if missing and self.worker:
            last = missing[-1]
            place = self.loaded.folder / ".shared" / _inputs(last, p)
            place.mkdir(parents=True, exist_ok=True)
            with _waiting(place, self.command):
                if self._adopt(p, missing):
                    p.run_to(last.name)
        self._share_tokens(p.folder)

    def _adopt(self, p: Pipeline, stages: Sequence[Stage]) -> list[Stage]:
        """The stages that no run has done yet with these inputs."""
        missing = []
        for stage in stages:
            inputs = _inputs(stage, p)
            if p.folder.is_done(stage.name, inputs):
                continue
            if not any(p.folder.adopt(stage.name, inputs, other) for other in self._others(p.folder)):
                missing.append(stage)
        return missing

    def _others(self, folder: RunFolder) -> list[RunFolder]:
        return [RunFolder(run.folder) for run in self.loaded.runs if run.folder != folder.path]

    def _share_tokens(self, folder: RunFolder) -> None:
        """The token store of another run: it is named by what it depends on, and made again where that differs."""
        with_store = (other for other in self._others(folder) if any(other.tokens.glob("*/*")))
        if not folder.tokens.exists() and (other := next(with_store, None)) is not None:
            shutil.copytree(
                other.tokens,
                folder.tokens,
                copy_function=lambda a, b: link_or_copy(Path(a), Path(b)),
                ignore=shutil.ignore_patterns(".*"),
            )

    def _share_evaluation(self, p: Pipeline) -> None:
        """What first stages, base and baselines gave in another run; the evaluation checks what it was made from."""
        for other in self._others(p.folder):
            # Only of a finished evaluation: nothing in it changes any more.
            if not other.facts("evaluate"):
                continue
            for metrics in sorted(other.eval.glob("*/*/metrics.json")):
                system = metrics.parent
                target = p.folder.eval_folder(system.parent.name, system.name)
                if system.name not in OWN_SYSTEMS and not target.exists():
                    shutil.copytree(system, target)
            return


def _inputs(stage: Stage, p: Context) -> str:
    assert stage.inputs is not None
    return stage.inputs(p)


class _waiting(ExitStack):
    """A folder's lock, waited for."""

    def __init__(self, folder: Path, command: Sequence[str]) -> None:
        super().__init__()
        told = False
        while True:
            try:
                self.enter_context(folder_lock(folder, command, console.say))
                return
            except InUse:
                if not told:
                    console.say("another worker makes what this run shares with others: waiting for it")
                told = True
                time.sleep(POLL_S)


def tested_runs(loaded: LoadedSweep, table: SweepTable) -> list[PlannedRun]:
    """The finished runs of the chosen configuration and of the default: the only ones that see the test sets."""
    done = {row.name for row in table.runs if row.state == "done"}
    wanted = {table.default, table.chosen}
    return [run for run in loaded.runs if run.name in done and run.configuration.name in wanted]


def shared_stages(loaded: LoadedSweep, say: Callable[[str], None]) -> dict[str, int]:
    """Stage -> how often it is computed in the whole sweep, by inputs; reads no weights and writes nothing.

    Raises UserErrors with all mistakes of the first run that has some, as `check` does.
    """
    distinct: dict[str, set[str]] = {}
    contents: dict[Path, str] = {}
    for run in (run for run in loaded.runs if run.seed == loaded.sweep.seeds[0]):
        p = Pipeline(run.loaded, RunFolder(run.folder))
        p.check(offline=True)
        p.inputs.contents = contents
        for stage in STAGES:
            if stage.name in (*SHARED, "train") and stage.is_asked(p):
                distinct.setdefault(stage.name, set()).add(_inputs(stage, p))
    say(f"{counted(len(loaded.runs), 'run')} in {loaded.folder}")
    return {name: len(found) for name, found in distinct.items()}


def known_dev_queries(loaded: LoadedSweep) -> int | None:
    """How many dev queries a finished data stage has at most; None before."""
    most = loaded.default.recipe.train.dev_queries
    for run in loaded.runs:
        data: Any = read_json_object(RunFolder(run.folder).data_report) or {}
        try:
            return min(most, sum(int(row["queries"]) for row in data["splits"]["dev"]))
        except (LookupError, TypeError, ValueError):
            continue
    return None
