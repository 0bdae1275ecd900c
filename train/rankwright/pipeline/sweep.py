"""A sweep: its runs one after the other as ordinary run folders, what they share computed once, test opened last."""

from __future__ import annotations

import dataclasses
import gc
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rankwright.common import console, resources
from rankwright.common.disk import why_full
from rankwright.common.errors import Paused, PeerFailed, Stopped, UserError, one_line
from rankwright.common.files import link_or_copy, read_json_object
from rankwright.common.folder_lock import InUse, folder_lock
from rankwright.common.plurals import counted
from rankwright.common.processes import launched
from rankwright.common.run_folder import RunFolder
from rankwright.evaluation.halving import Standing, standing
from rankwright.evaluation.sweep_table import SweepTable
from rankwright.pipeline.context import Context
from rankwright.pipeline.control import BEFORE_TRAINING
from rankwright.pipeline.stage_table import STAGES, Stage
from rankwright.pipeline.stages import Pipeline
from rankwright.pipeline.sweep_rows import is_of, read_progress, read_table, training_seconds
from rankwright.pipeline.trials import propose
from rankwright.recipe.pretrain import CONTROL
from rankwright.recipe.schema import COMBINED, EXPORTED
from rankwright.recipe.sweep import Asha
from rankwright.recipe.sweep_runs import LoadedSweep, PlannedRun
from rankwright.recipe.sweep_trials import read_proposals, write_proposals

# Stages before training: runs whose inputs of them are equal share them.
SHARED = (*BEFORE_TRAINING, "pretrain")
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
        # Run -> the inputs of its training, once they are known.
        self._inputs: dict[str, str] = {}

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
            if self.loaded.sweep.early is not None and only is None:
                self._work_by_rungs(runs, self.loaded.sweep.early.asha)
            elif self.loaded.trials is not None and only is None:
                self._work_by_trials()
            else:
                self._work(runs, "train")
            table = read_table(self.loaded)
            if only is None:
                self._work(tested_runs(self.loaded, table), "evaluate")
                table = read_table(self.loaded)
        return table

    def _work_by_rungs(self, runs: Sequence[PlannedRun], rule: Asha) -> None:
        """Train all runs to the first rung, those that it promotes to the second, and so on to the end."""
        while (now := self._standing(runs, rule)).pending:
            assert now.evaluations is not None
            left = [run for run in runs if run.name in now.pending]
            console.say(
                f"early: {counted(len(left), 'run')} to evaluation {now.evaluations} on dev, "
                f"{len(now.pruned)} of {len(runs)} pruned"
            )
            self._work(left, "train", now.evaluations)
            after = self._standing(runs, rule)
            if after.evaluations == now.evaluations and after.pending:
                # The budget is spent: a rung that some have not reached decides nothing.
                return

    def _work_by_trials(self) -> None:
        """Train what was proposed, propose the next configuration, and so on. Workers share the seeds of one."""
        sweep = self.loaded.sweep
        assert self.loaded.trials is not None and sweep.design.optuna is not None
        while True:
            runs = self.loaded.runs
            self._work(runs, "train")
            table, trials = read_table(self.loaded), self.loaded.trials
            assert trials is not None
            is_full = sweep.budget.runs is not None and len(runs) >= sweep.budget.runs
            # A run that was not begun: the budget is spent.
            spent = is_full or any(row.state == "not run" for row in table.runs)
            if len(trials.proposals) >= sweep.design.optuna.runs or spent:
                return
            place = self.loaded.folder / ".shared" / "trials"
            place.mkdir(parents=True, exist_ok=True)
            with _waiting(place, self.command):
                known = read_proposals(self.loaded.folder, trials.of)
                if len(known) <= len(trials.proposals):
                    known = [*trials.proposals, propose(self.loaded, table)]
                    write_proposals(self.loaded.folder, trials.of, known)
            self.loaded = self.loaded.with_proposals(known)
            assert self.loaded.trials is not None
            if self.loaded.trials.names[-1] is None:
                console.say(f"proposal {len(known)} does not make a valid recipe: passed over")

    def _standing(self, runs: Sequence[PlannedRun], rule: Asha) -> Standing:
        progress = {}
        for run in runs:
            found = read_progress(run, self._inputs_of(run))
            progress[run.name] = dataclasses.replace(found, failed=not found.ended and self._has_failed(run))
        return standing(rule, progress, self.loaded.default.name)

    def _inputs_of(self, run: PlannedRun) -> str:
        """The inputs of a run's training; empty where they cannot be read, which fails that run and no other."""
        if run.name not in self._inputs:
            try:
                self._inputs[run.name] = self._pipeline(run).inputs.train
            except UserError:
                return ""
        return self._inputs[run.name]

    def _work(self, runs: Sequence[PlannedRun], last: str, pause_after: int | None = None) -> None:
        """Bring each run to the stage `last`, in any order where others work on some of them.

        pause_after: to so many evaluations in training alone.
        """
        left = list(runs)
        while left:
            others = [
                run for n, run in enumerate(left) if not self._claim(run, last, f"{n + 1} of {len(left)}", pause_after)
            ]
            if len(others) == len(left):
                time.sleep(POLL_S)
            left = others

    def _claim(self, run: PlannedRun, last: str, place: str, pause_after: int | None) -> bool:
        """Do a run unless another process has it; whether it is over."""
        if self._has_reached(run, pause_after):
            # Another worker may already train it on.
            return True
        run.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            try:
                held.enter_context(folder_lock(run.folder, self.command, console.say))
            except InUse:
                return False
            if self._has_reached(run, pause_after) or self._is_over(run, last):
                return True
            console.heading(f"{run.name}: {last}, {place}")
            self._do(run, last, pause_after)
        # The model of a run must not stay beside the next one's.
        gc.collect()
        return True

    def _has_reached(self, run: PlannedRun, pause_after: int | None) -> bool:
        """Whether a run that is trained to a rung is there."""
        return pause_after is not None and len(read_progress(run, self._inputs_of(run)).values) >= pause_after

    def _has_failed(self, run: PlannedRun) -> bool:
        """Whether a run failed since this command began; what failed before is tried again."""
        failed = RunFolder(run.folder).failure
        return failed.is_file() and (not self.worker or failed.stat().st_mtime >= self._began)

    def _is_over(self, run: PlannedRun, last: str) -> bool:
        if self._has_failed(run):
            return True
        most = self.loaded.sweep.budget.most_seconds
        if last == "train" and most is not None and not is_of(RunFolder(run.folder), run):
            return sum(training_seconds(RunFolder(one.folder)) for one in self.loaded.runs) >= most
        return False

    def _pipeline(self, run: PlannedRun) -> Pipeline:
        folder = RunFolder(run.folder)
        # The recipe of a run is a recipe: the same command with it continues the run alone.
        p = Pipeline(run.loaded, folder, command=("rankwright", "run", resources.shown(folder.recipe_json)))
        p.inputs.contents = self._contents
        p.group = self.loaded.sweep.name
        return p

    def _do(self, run: PlannedRun, last: str, pause_after: int | None) -> None:
        folder = RunFolder(run.folder)
        try:
            p = self._pipeline(run)
            p.pause_after = pause_after
            self._share(p)
            if last == "evaluate":
                self._share_evaluation(p)
            p.run_to(last)
            folder.failure.unlink(missing_ok=True)
        except Paused as paused:
            console.say(f"{run.name}: evaluation {pause_after} on dev, paused after {counted(paused.step, 'step')}")
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
    for run in loaded.runs:
        p, is_first = Pipeline(run.loaded, RunFolder(run.folder)), run.seed == loaded.sweep.seeds[0]
        if is_first:
            p.check(offline=True)
        p.inputs.contents = contents
        for stage in STAGES:
            # Other seeds train again, from the same lists.
            if stage.name in ((*SHARED, "train") if is_first else ("pretrain",)) and stage.is_asked(p):
                distinct.setdefault(stage.name, set()).add(_inputs(stage, p))
    later = 0
    if loaded.trials is not None and loaded.sweep.design.optuna is not None:
        later = loaded.sweep.design.optuna.runs - len(loaded.trials.proposals)
    more = f", and {counted(later, 'configuration')} that optuna is still to propose" if later else ""
    say(f"{counted(len(loaded.runs), 'run')} in {loaded.folder}{more}")
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
