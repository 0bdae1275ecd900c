"""A recipe with its run folder, and the one loop that runs or skips each stage of the table."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rankwright.common import console, resources
from rankwright.common.errors import UserError, UserErrors
from rankwright.common.files import read_json_object
from rankwright.common.folder_lock import folder_lock
from rankwright.common.lineage import OF
from rankwright.common.outputs import CHANGED, right_places
from rankwright.common.processes import launched
from rankwright.common.run_folder import RunFolder, provenance
from rankwright.data.licences.derived import licence_faults, write_ledger
from rankwright.evaluation.evaluate import choose_systems
from rankwright.evaluation.gate import GateRefused, check_gate, check_override
from rankwright.evaluation.metrics import measures_of
from rankwright.evaluation.results import result_rows
from rankwright.evaluation.teacher_gate import TeacherRefused
from rankwright.export.publish import ExportFailed
from rankwright.pipeline.checks import check_names, check_targets
from rankwright.pipeline.context import Context, roles
from rankwright.pipeline.stage_table import STAGES, Stage
from rankwright.pipeline.train import make_accelerator
from rankwright.recipe.loading import LoadedRecipe, recipe_json
from rankwright.recipe.pretrain import PRETRAINED
from rankwright.recipe.schema import COMBINED, Recipe
from rankwright.report.page import mark_report, write_report


class Pipeline(Context):
    """A recipe with its run folder. Each stage is a method, which first runs those before it.

    A stage runs when its inputs changed since it was last done, and is skipped otherwise. The files of the sets are
    hashed once: after they have changed, make a new Pipeline. Mistakes raise UserError, with one line each. While the
    stages run, no other command writes to the folder: see folder_lock.

    folder: None for the recipe's run_dir, or runs/NAME. override: why a refused teacher, or else a refused model, is
    wanted all the same.
    progress: whether anything is printed. command: for provenance.json. verify: read all files of finished stages,
    not only those whose time or size differs from the record.
    """

    # The stages, as a notebook calls them.

    def run(self) -> Pipeline:
        """All stages. Raises GateRefused, a UserError, after the report where the recipe's gate refuses the export."""
        return self.run_to("report")

    def check(self, *, data: bool = True, offline: bool = False) -> dict[str, list[str]]:
        """Find all mistakes in names, base, exports and, unless data=False, sets, licences and files of weights.

        Returns split -> its sets. offline: do not ask the hub for the base.
        """
        found = check_names(self.recipe) + check_targets(self.recipe, offline=offline, weights=data)
        test_sets: list[str] | None = None
        try:
            if data:
                test_sets = self.test_sets
                found += licence_faults(self.recipe, self.located, roles(self.recipe))
        except UserErrors as error:
            found += error.messages
        if self.recipe.gate is not None:
            found += check_gate(self.recipe.gate, measures_of(self.recipe.evaluate), test_sets)
            if self.recipe.gate.system == COMBINED and self.recipe.evaluate.combine is None:
                found.append(
                    "gate.system: combined needs evaluate.combine, which is switched off: leave one of them out"
                )
        found += check_override(self.override, self.recipe)
        try:
            resources.resolve_base(self.recipe.model.base)
        except UserError as error:
            found.append(str(error))
        if found:
            raise UserErrors(found)
        return {split: [one.name for one in entries] for split, entries in self.located.items()} if data else {}

    def synthesize(self) -> dict[str, Any]:
        """Write queries for the documents of the recipe; returns the stage's facts: how many were kept of each side.

        Raises UserError where the recipe has no such section, and where people must accept them first.
        """
        if self.recipe.synthesize is None:
            raise UserError("synthesize: the recipe has no documents: see `rankwright keys synthesize`")
        return self.run_to("synthesize").folder.facts("synthesize")

    def data(self) -> dict[str, Any]:
        """Read, split and check the data; returns the stage's facts, such as the queries of each split."""
        return self.run_to("data").folder.facts("data")

    def mine(self) -> dict[str, Any]:
        """Find candidates and negatives; returns the stage's facts: what every filter removed, estimates.

        Raises UserError for a teacher that does not order dev better than the base, as all stages after it.
        """
        return self.run_to("mine").folder.facts("mine")

    def judge(self) -> dict[str, Any]:
        """Ask the judges of teacher.pairs, and score what they compared; returns the stage's facts.

        Raises UserError where the recipe has no such section.
        """
        if self.recipe.pairs is None:
            raise UserError("teacher.pairs: the recipe has no judges: see `rankwright keys teacher`")
        return self.run_to("judge").folder.facts("judge")

    def train(self) -> dict[str, Any]:
        """Train; returns the stage's facts, such as `base_value` and `best_value` on dev, and the best `checkpoint`."""
        return {**self.run_to("train").folder.facts("train"), "checkpoint": self.best_checkpoint()}

    def evaluate(self, only: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Evaluate systems, all by default, after the stages that they need; returns results()."""
        return self.run_to("evaluate", only).results()

    def calibrate(self) -> dict[str, Any]:
        """Fit the temperature of tuned's probabilities; returns calibration.json."""
        return read_json_object(self.run_to("calibrate").folder.calibration) or {}

    def export(self) -> dict[str, dict[str, Any]]:
        """Write and prove the export targets; returns target -> {folder: Path, parity: parity.json}.

        Raises GateRefused where the recipe's gate refuses, and ExportFailed where a target could not be proven.
        """
        run = self.run_to("export").folder
        folders = {target: run.export(target) for target in self.recipe.export_targets}
        return {
            target: {"folder": folder, "parity": read_json_object(folder / "parity.json")}
            for target, folder in folders.items()
        }

    def report(self) -> Path:
        """All stages, and the path of report.html. Raises as run() does."""
        return self.run_to("report").folder.report

    def results(self) -> list[dict[str, Any]]:
        """Results of the finished evaluation: one row per test set (and `all`) and system, see result_rows."""
        return result_rows(self.folder, self.recipe, self.inputs.systems, self.test_sets)

    # How they are run.

    def start(self, *, offline: bool = False) -> None:
        """Check the recipe, make the run folder, and write recipe.json, provenance.json and licences.json; once.

        Prints which licences are in doubt.
        """
        if self._started:
            return
        self.check(offline=offline)
        self.folder.create()
        if console.is_first_process():
            run = self.folder
            with ExitStack() as held:
                self._lock(held)
                run.write_json(run.recipe_json, json.loads(recipe_json(self.recipe)))
                stated = {OF: self.inputs.settings}
                run.write_json(run.provenance, {**provenance(self.recipe.seed, self.command), **stated})
                mark_report(run)
                self._write_ledger()
        self._started = True

    def _write_ledger(self) -> None:
        write_ledger(self.recipe, self.located, roles(self.recipe), self.folder)

    def _lock(self, held: ExitStack) -> None:
        """Let no other command write to the run folder until `held` ends; the first process holds the lock for all."""
        if console.is_first_process():
            held.enter_context(folder_lock(self.folder.path, self.command, console.say))

    def run_to(self, last: str, only: Sequence[str] | None = None) -> Pipeline:
        """Run the stages up to `last`. only: systems to evaluate, all by default; without tuned, nothing is trained."""
        with ExitStack() as held:
            if not self.progress:
                held.enter_context(console.silence())
            held.enter_context(right_places(self.folder.path))
            if launched() == 1 and self.folder.path.is_dir():
                # Before the checks, which may take long. Several processes must know each other first.
                self._lock(held)
            self.start()
            self.systems = choose_systems(self.recipe, only)
            with self.processes.together():
                self._lock(held)
                if self.processes.is_first:
                    self.folder.tidy()
                self.processes.meet()
            stages = STAGES[: 1 + next(n for n, stage in enumerate(STAGES) if stage.name == last)]
            if last == "evaluate" and not self.needs_training:
                needed = ["synthesize", "data", *["pretrain"] * (PRETRAINED in self.systems), "evaluate"]
                stages = [stage for stage in stages if stage.name in needed]
            stages = [stage for stage in stages if stage.is_asked(self)]
            if any(stage.name == "train" for stage in stages):
                # Refuses a launcher's settings that are not supported before hours of mining.
                make_accelerator(self.recipe)
            refused: GateRefused | ExportFailed | None = None
            for stage in stages:
                if refused is not None and stage.name != "report":
                    continue
                try:
                    self._meet_and_run(stage)
                except (GateRefused, ExportFailed) as error:
                    refused = error
                except TeacherRefused:
                    if stages[-1].name == "report" and self.processes.is_first:
                        console.say(f"report: {write_report(self.folder.path)}")
                    raise
        if refused is not None:
            raise refused
        return self

    def nested(self, recipe: Recipe, folder: RunFolder, inputs: str) -> Pipeline:
        """A run of another recipe in a folder of this one, which has checked it; its stages are those of any run.

        inputs: what it depends on in this one.
        """
        loaded = LoadedRecipe(recipe, self.loaded.path, self.loaded.sources, self.loaded.overrides)
        run = Nested(loaded, folder, self.override, progress=self.progress, command=self.command, verify=self.verify)
        run.inputs.within = inputs
        run.inputs.contents = self.inputs.contents
        return run

    def _meet_and_run(self, stage: Stage) -> None:
        """Run a stage on its processes; those that do not work on it wait, or have nothing left to do."""
        if stage.processes == "one":
            if self.processes.is_first:
                self._run_or_skip(stage)
            return
        with self.processes.together():
            if stage.processes == "all" or self.processes.is_first:
                self._run_or_skip(stage)
            self.processes.meet()

    def _run_or_skip(self, stage: Stage) -> None:
        if stage.inputs is None:
            stage.work(self)
            return
        console.heading(stage.name)
        inputs = stage.inputs(self)
        done = self.processes.is_first and self._is_done(stage, inputs)
        if stage.processes == "all":
            # What the first one finds counts: to another machine a file may seem to have another time.
            self.processes.meet()
            done = self.processes.from_first(done)
        if done:
            console.say("unchanged, skipped")
        else:
            if self.processes.is_first and not stage.by_parts:
                # From here on the files are no longer those of the record.
                self.folder.forget(stage.name)
                mark_report(self.folder)
            started = time.perf_counter()
            facts = stage.work(self)
            if self.processes.is_first:
                seconds = time.perf_counter() - started
                facts = {**facts, OF: self.inputs.of(stage.name)}
                self.folder.finish(stage.name, inputs, seconds=seconds, outputs=stage.outputs(self, facts), **facts)
                mark_report(self.folder)
        if self.processes.is_first:
            stage.afterwards(self)

    def _is_done(self, stage: Stage, inputs: str) -> bool:
        """Whether a stage finished with these inputs and its files are as it wrote them; puts changed ones aside."""
        run = self.folder
        if not stage.by_parts and not run.is_done(stage.name, inputs):
            return False
        changed = run.changed(stage.name, verify=self.verify)
        if changed:
            # An export is replaced as a whole. Its files hold nothing that a person has written.
            kept = sum(run.put_aside(name) for name in changed) if stage.name != "export" else 0
            names = [f"{name} ({what})" for name, what in sorted(changed.items())]
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            aside = f"; kept as *{CHANGED}: {kept}" if kept else ""
            console.say(f"not as the {stage.name} stage wrote them: {shown}: made again{aside}")
        return not changed and not stage.by_parts and stage.is_whole(self)


class Nested(Pipeline):
    """A run inside another one, which has checked what it is made of: it may lack a test set."""

    def check(self, *, data: bool = True, offline: bool = False) -> dict[str, list[str]]:
        """Nothing is left to be found."""
        return {}

    def _write_ledger(self) -> None:
        """The ledger of the run around it holds its inputs."""
