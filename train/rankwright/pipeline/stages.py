"""The stages in order, the inputs each depends on, and what is skipped or continued."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from rankwright.common import console, resources
from rankwright.common.errors import UserError, UserErrors
from rankwright.common.hashing import content_hash
from rankwright.common.processes import Processes, launched
from rankwright.common.run_folder import RunFolder, provenance
from rankwright.data.licences.derived import Sets, licence_faults, settle_licences, write_ledger
from rankwright.data.sources import Located, locate_all
from rankwright.evaluation.calibration import CALIBRATION
from rankwright.evaluation.gate import GateRefused, Verdict, check_gate, check_override, decide, forget_stale, refusal
from rankwright.evaluation.runs import experiment_of
from rankwright.model.instructions import frozen_instruction
from rankwright.pipeline.checks import check_names
from rankwright.pipeline.inputs import StageInputs
from rankwright.recipe.loading import LoadedRecipe, recipe_json
from rankwright.recipe.schema import EXPORTED, Recipe
from rankwright.training.checkpoint import read_state


class Pipeline:
    """A recipe with its run folder. Each stage runs when its inputs changed since it was last done."""

    def __init__(self, loaded: LoadedRecipe, run: RunFolder | None = None, override: str | None = None) -> None:
        self.loaded = loaded
        # Why the export is wanted although the gate refuses.
        self.override = override
        self.recipe = loaded.recipe
        self.run = run or RunFolder(Path(self.recipe.run_dir or f"runs/{self.recipe.name.replace('/', '-')}"))
        self.checkpoint: Path | None = None

    def start(self) -> None:
        """Check all names, make the run folder, and write recipe.json, provenance.json and licences.json."""
        self.check()
        self.run.create()
        if console.is_first_process():
            begin_run(self.recipe, self._located, self.run)

    def check(self, *, data: bool = True) -> None:
        """Raises UserErrors with all that registries and base, and (unless data=False) sets and licences forbid."""
        found = check_names(self.recipe)
        test_sets: list[str] | None = None
        try:
            if data:
                test_sets = self._test_sets
                found += licence_faults(self.recipe, self._located)
        except UserErrors as error:
            found += error.messages
        if self.recipe.gate is not None:
            found += check_gate(self.recipe.gate, self.recipe.evaluate.measures, test_sets)
        found += check_override(self.override, self.recipe.gate)
        try:
            resources.resolve_base(self.recipe.model.base)
        except UserError as error:
            found.append(str(error))
        if found:
            raise UserErrors(found)

    def ledger(self) -> dict[str, Any]:
        """The licence ledger as far as the files that were read say it."""
        return settle_licences(self.recipe, self._located, self.run)

    @cached_property
    def _located(self) -> dict[str, list[Located]]:
        return locate_all(self.recipe.data)

    @property
    def _test_sets(self) -> list[str]:
        return [located.name for located in self._located["test"]]

    @cached_property
    def inputs(self) -> StageInputs:
        """What each stage depends on."""
        return StageInputs(self.recipe, self._located)

    # The stages.

    def data(self) -> None:
        """Read, split and check the data, and the run files of test sets."""
        from rankwright.pipeline.data import add_token_lengths, check_run_files, prepare_data

        if console.is_first_process():
            corpora = self.run.facts("data").get("corpora", [])
            outputs = [*(f"data/{name}" for name in ("train.jsonl", "dev.jsonl", "test.jsonl", *corpora))]
            outputs.append("data_report.json")
            self._stage("data", self.inputs.data, lambda: prepare_data(self.recipe, self.run), outputs)
            add_token_lengths(self.recipe, self.run)
            check_run_files(self.recipe, self.run, self._run_files("test"))
            self.ledger()

    def _run_files(self, split: str) -> dict[str, Path | None]:
        return {located.name: located.run for located in self._located[split]}

    def mine(self) -> None:
        """Candidates and negatives, after the data stage; on many processes as well."""
        from rankwright.pipeline.mine import mine

        with self.processes.together():
            self.data()
            self.processes.meet()
            console.heading("mine")
            run_files = self._run_files("train")
            inputs, shards = self.inputs.mine, self.inputs.shards
            mine(self.recipe, self.run, inputs=inputs, shards=shards, run_files=run_files, processes=self.processes)

    def train(self) -> None:
        """Train, after the stages before; on many processes only the first one prepares."""
        from rankwright.pipeline.train import make_accelerator, state_facts, train
        from rankwright.training.sampling import MIX_FILE

        accelerator = make_accelerator(self.recipe)
        self.mine()
        if accelerator.is_main_process and self._best_checkpoint() is None:
            self.run.forget("train")
        accelerator.wait_for_everyone()

        def run() -> dict[str, Any]:
            state, steps = train(self.recipe, self.run, self.inputs.train, accelerator)
            return {**state_facts(state, steps), "processes": accelerator.num_processes}

        self._stage("train", self.inputs.train, run, [MIX_FILE])
        if accelerator.is_main_process:
            self.checkpoint = self._best_checkpoint()

    def _best_checkpoint(self) -> Path | None:
        """The checkpoint that the train stage chose, if it is whole and of this training."""
        folder = self.run.path / "checkpoints" / f"step-{self.run.facts('train').get('best_step')}"
        state = read_state(folder)
        return folder if state is not None and state.inputs == self.inputs.train else None

    @cached_property
    def processes(self) -> Processes:
        """The processes that the launcher started, once they know each other."""
        from rankwright.pipeline.train import make_accelerator

        if launched() > 1:
            make_accelerator(self.recipe)
        return Processes.of_group()

    def evaluate(self, only: Sequence[str] | None = None) -> None:
        """Systems of the table, all of them by default, after the stages that they need; on many processes as well."""
        from rankwright.evaluation.evaluate import choose_systems

        only = choose_systems(self.recipe, only)
        with self.processes.together():
            trained = not {"tuned", EXPORTED}.isdisjoint(only)
            if trained:
                self.train()
            else:
                self.data()
            self.processes.meet()
            self.checkpoint = self._best_checkpoint() if trained else None
            self._evaluate(only)

    def _evaluate(self, only: Sequence[str]) -> None:
        from rankwright.pipeline.evaluate import Evaluation

        console.heading("evaluate")
        started = time.perf_counter()
        inputs = self.inputs.systems
        evaluation = Evaluation(
            self.recipe,
            self.run,
            scores=self.inputs.scores,
            inputs=inputs,
            run_files=self._run_files("test"),
            processes=self.processes,
            checkpoint=self.checkpoint,
        )
        if self.processes.is_first:
            # First: a kill may come at any time, and what was said of other numbers must not stand beside these.
            self._forget_stale()
        evaluation(only)
        if self.processes.is_first:
            seconds = time.perf_counter() - started
            facts = {"systems": list(only), "system_inputs": inputs, "processes": self.processes.count}
            # What compare goes by: recipe.json is that of the last command.
            facts |= {"experiment": experiment_of(json.loads(recipe_json(self.recipe))), "seed": self.recipe.seed}
            self.run.finish("evaluate", content_hash(inputs), seconds=seconds, **facts)
        self.processes.meet()

    def _forget_stale(self) -> None:
        """Remove gate.json and calibration.json where they are of other inputs than the recipe's now."""
        forget_stale(self.run, self.recipe.gate, self.inputs.systems, self.recipe.seed)
        if not self.run.is_done("calibrate", self._calibrate_inputs):
            (self.run.path / CALIBRATION).unlink(missing_ok=True)

    def show_results(self) -> None:
        """Print the final table and its verdict."""
        from rankwright.cli.show import results_tables
        from rankwright.evaluation.results import read_results, rows_of, verdict

        if not console.is_first_process():
            return
        results, _ = read_results(self.run.path, self.recipe, self._test_sets, self.inputs.systems)
        found = rows_of(results)
        for table in results_tables(found):
            console.show(table)
        console.say(" ".join(verdict(found).sentences))

    def calibrate(self) -> None:
        """Temperature and reliability of tuned's probabilities, after evaluation: calibration.json."""
        from rankwright.pipeline.calibrate import calibrate

        self.evaluate()
        if not console.is_first_process():
            return
        assert self.checkpoint is not None
        checkpoint = self.checkpoint
        scores = self._scores_inputs
        self._stage(
            "calibrate",
            self._calibrate_inputs,
            lambda: calibrate(self.recipe, self.run, checkpoint, scores),
            [CALIBRATION],
        )

    @property
    def _scores_inputs(self) -> str:
        """What tuned's scores on dev depend on, under the instruction of the exports where there are some."""
        frozen = frozen_instruction(self.recipe) if self.recipe.export_targets else "each set's own"
        return content_hash(self.inputs.train, self.recipe.model.merge_with_base, frozen)

    @property
    def _calibrate_inputs(self) -> str:
        # Of the test sets the scores that an export gives are looked at.
        systems = [self.inputs.systems.get(name) for name in ("tuned", EXPORTED)]
        return content_hash(self._scores_inputs, systems)

    def export(self) -> None:
        """The export targets, each proven in a fresh process, after calibration; raises GateRefused."""
        from rankwright.pipeline.export import export_stage, withdraw_exports

        self.calibrate()
        if not console.is_first_process():
            return
        assert self.checkpoint is not None
        checkpoint, verdict, model = self.checkpoint, self._gate(), self._scores_inputs
        if verdict is not None and not verdict.may_export:
            self.run.forget("export")
            withdraw_exports(self.run)
            raise refusal(verdict)
        gate = None if verdict is None else verdict.as_json()
        systems = self.inputs.systems
        ledger = self.ledger()
        inputs = content_hash(self._calibrate_inputs, systems, self.inputs.section("export"), gate, ledger)
        if not all((self.run.path / "export" / t).is_dir() for t in self.recipe.export_targets):
            self.run.forget("export")
        self._stage(
            "export", inputs, lambda: export_stage(self.recipe, self.run, checkpoint, systems, ledger, model, gate=gate)
        )

    def _gate(self) -> Verdict | None:
        """The gate's verdict on the evaluation; None without a gate."""
        if self.recipe.gate is None:
            return None
        console.heading("gate")
        systems, seed = self.inputs.systems, self.recipe.seed
        return decide(
            self.recipe.gate, self.run, self._test_sets, system_inputs=systems, seed=seed, override=self.override
        )

    def report(self) -> None:
        """report.html, after everything else, and also where the gate refuses: that is raised after it."""
        from rankwright.pipeline.evaluate import write_attributes
        from rankwright.report.page import write_report

        refused: GateRefused | None = None
        try:
            self.export()
        except GateRefused as error:
            refused = error
        if console.is_first_process():
            console.heading("report")
            write_attributes(self.recipe, self.run)
            path = write_report(self.run.path, self.inputs.systems)
            console.say(f"report: {path}")
        if refused is not None:
            raise refused

    def _stage(self, name: str, inputs: str, action: Callable[[], dict[str, Any]], outputs: Sequence[str] = ()) -> None:
        console.heading(name)
        if self.run.is_done(name, inputs) and all((self.run.path / output).exists() for output in outputs):
            console.say("unchanged, skipped")
            return
        if console.is_first_process():
            # From here on the files are no longer those of the record.
            self.run.forget(name)
        started = time.perf_counter()
        facts = action()
        if console.is_first_process():
            self.run.finish(name, inputs, seconds=time.perf_counter() - started, **facts)


def begin_run(recipe: Recipe, located: Sets, run: RunFolder) -> None:
    """Write recipe.json, provenance.json and licences.json, and say which licences are in doubt."""
    run.write_json("recipe.json", json.loads(recipe_json(recipe)))
    run.write_json("provenance.json", provenance(recipe.seed, ["rankwright", *sys.argv[1:]]))
    write_ledger(recipe, located, run)
