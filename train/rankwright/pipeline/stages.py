"""The stages of a run in their order, and the one loop that runs or skips each of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from rankwright.common import console, resources
from rankwright.common.errors import UserError, UserErrors
from rankwright.common.files import read_json_object
from rankwright.common.folder_lock import folder_lock
from rankwright.common.hashing import content_hash
from rankwright.common.outputs import CHANGED, right_places
from rankwright.common.processes import Processes, launched
from rankwright.common.run_folder import RunFolder, provenance
from rankwright.common.values import path_text
from rankwright.data.licences.derived import licence_faults, settle_licences, write_ledger
from rankwright.data.licences.ledger import Roles
from rankwright.data.sources import Located, locate_all
from rankwright.evaluation.evaluate import choose_systems
from rankwright.evaluation.gate import GateRefused, check_gate, check_override, decide, forget_stale, refusal
from rankwright.evaluation.metrics import measures_of
from rankwright.evaluation.results import result_rows
from rankwright.evaluation.runs import experiment_of
from rankwright.export.card import CARD, SERVE
from rankwright.export.publish import ExportFailed
from rankwright.mining.shards import Shards
from rankwright.pipeline.calibrate import calibrate
from rankwright.pipeline.checks import check_names, check_targets
from rankwright.pipeline.data import add_token_lengths, check_run_files, prepare_data
from rankwright.pipeline.evaluate import Evaluation, write_attributes
from rankwright.pipeline.export import export_stage, withdraw_exports
from rankwright.pipeline.inputs import StageInputs
from rankwright.pipeline.mine import mine
from rankwright.pipeline.train import make_accelerator, train
from rankwright.recipe.loading import LoadedRecipe, recipe_json
from rankwright.recipe.schema import EXPORTED, Recipe
from rankwright.report.page import write_report
from rankwright.retrieval.first_stages import ordering_models
from rankwright.training.checkpoint import read_state
from rankwright.training.losses import reads_teacher


class Pipeline:
    """A recipe with its run folder. Each stage is a method, which first runs those before it.

    A stage runs when its inputs changed since it was last done, and is skipped otherwise. The files of the sets are
    hashed once: after they have changed, make a new Pipeline. Mistakes raise UserError, with one line each. While the
    stages run, no other command writes to the folder: see folder_lock.

    folder: None for the recipe's run_dir, or runs/NAME. override: why the export is wanted although the gate refuses.
    progress: whether anything is printed. command: for provenance.json. verify: read all files of finished stages,
    not only those whose time or size differs from the record.
    """

    def __init__(
        self,
        loaded: LoadedRecipe,
        folder: RunFolder | str | Path | None = None,
        override: str | None = None,
        *,
        progress: bool = True,
        command: Sequence[str] = (),
        verify: bool = False,
    ) -> None:
        if not isinstance(loaded, LoadedRecipe):
            raise UserError(f"Pipeline: must be given what load_recipe returns, found {type(loaded).__name__}")
        if folder is not None and not isinstance(folder, RunFolder):
            folder = RunFolder(Path(path_text("folder", folder)))
        self.loaded = loaded
        self.recipe = loaded.recipe
        self.folder = folder or RunFolder(resources.expand(self.recipe.run_dir or f"runs/{self.recipe.name}"))
        self.override = override
        self.progress = progress
        self.verify = verify
        self.command = command or ("rankwright", "run", resources.shown(loaded.path), *loaded.overrides)
        # What the evaluate stage looks at.
        self.systems: Sequence[str] = ()
        # The verdict that let the model through, as gate.json has it.
        self.gate: dict[str, Any] | None = None
        self._started = False

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
                found += licence_faults(self.recipe, self._located, _roles(self.recipe))
        except UserErrors as error:
            found += error.messages
        if self.recipe.gate is not None:
            found += check_gate(self.recipe.gate, measures_of(self.recipe.evaluate), test_sets)
        found += check_override(self.override, self.recipe.gate)
        try:
            resources.resolve_base(self.recipe.model.base)
        except UserError as error:
            found.append(str(error))
        if found:
            raise UserErrors(found)
        return {split: [one.name for one in entries] for split, entries in self._located.items()} if data else {}

    def data(self) -> dict[str, Any]:
        """Read, split and check the data; returns the stage's facts, such as the queries of each split."""
        return self.run_to("data").folder.facts("data")

    def mine(self) -> dict[str, Any]:
        """Find candidates and negatives; returns the stage's facts: what every filter removed, estimates."""
        return self.run_to("mine").folder.facts("mine")

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
                run.write_json(run.provenance, provenance(self.recipe.seed, self.command))
                write_ledger(self.recipe, self._located, _roles(self.recipe), run)
        self._started = True

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
                stages = [stage for stage in stages if stage.name in ("data", "evaluate")]
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
        if refused is not None:
            raise refused
        return self

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
            started = time.perf_counter()
            facts = stage.work(self)
            if self.processes.is_first:
                seconds = time.perf_counter() - started
                self.folder.finish(stage.name, inputs, seconds=seconds, outputs=stage.outputs(self, facts), **facts)
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

    @cached_property
    def processes(self) -> Processes:
        """The processes that the launcher started, once they know each other."""
        if launched() == 1:
            return Processes()
        make_accelerator(self.recipe)
        return Processes.of_group()

    # What the stages work with.

    @cached_property
    def inputs(self) -> StageInputs:
        """What each stage depends on."""
        return StageInputs(self.recipe, self._located)

    @cached_property
    def _located(self) -> dict[str, list[Located]]:
        return locate_all(self.recipe.data)

    @property
    def test_sets(self) -> list[str]:
        """Names of the test sets, in the recipe's order."""
        return [located.name for located in self._located["test"]]

    def run_files(self, split: str) -> dict[str, Path | None]:
        """Set -> its TREC run file, where it has one."""
        return {located.name: located.run for located in self._located[split]}

    def ledger(self) -> dict[str, Any]:
        """The licence ledger of all files that were read so far."""
        return settle_licences(self.recipe, self._located, _roles(self.recipe), self.folder)

    @property
    def needs_training(self) -> bool:
        """Whether the systems to evaluate need a trained model."""
        return not {"tuned", EXPORTED}.isdisjoint(self.systems)

    def best_checkpoint(self) -> Path | None:
        """The checkpoint that the train stage chose, if it is whole and of this training."""
        step = self.folder.facts("train").get("best_step")
        folder = self.folder.checkpoint(step if isinstance(step, int) else 0)
        state = read_state(folder)
        return folder if state is not None and state.inputs == self.inputs.train else None

    def trained_checkpoint(self) -> Path:
        """The best checkpoint, for the stages after training."""
        checkpoint = self.best_checkpoint()
        if checkpoint is None:
            raise UserError(
                f"{self.folder.checkpoints}: the best checkpoint is gone or damaged: give the command again"
            )
        return checkpoint


def _roles(recipe: Recipe) -> Roles:
    """What the licence ledger has to know of the recipe's loss and first stages."""
    distils = recipe.mine.teacher is not None and reads_teacher(recipe.loss)
    return Roles(distils, ordering_models(recipe))


# What each stage does.


def _data_outputs(p: Pipeline, facts: Mapping[str, Any]) -> list[Path]:
    corpora = [p.folder.data / name for name in facts.get("corpora", [])]
    return [*(p.folder.split(name) for name in ("train", "dev", "test")), *corpora, p.folder.data_report]


def _after_data(p: Pipeline) -> None:
    """What another prompt, run file or licence changes without reading a set again."""
    if add_token_lengths(p.recipe, p.folder):
        p.folder.bind("data", p.folder.data_report)
    check_run_files(p.recipe, p.folder, {split: p.run_files(split) for split in ("train", "test")})
    p.ledger()


def _mine(p: Pipeline) -> dict[str, Any]:
    return mine(p.recipe, p.folder, inputs=p.inputs.shards, run_files=p.run_files("train"), processes=p.processes)


def _mine_outputs(p: Pipeline, facts: Mapping[str, Any]) -> list[Path]:
    run = p.folder
    lists = [run.negatives, run.candidates, run.removed, run.dev_candidates]
    return [*lists, run.teacher_scores] if p.recipe.mine.teacher else lists


def _evaluate(p: Pipeline) -> dict[str, Any]:
    evaluation = Evaluation(
        p.recipe,
        p.folder,
        scores=p.inputs.scores,
        inputs=p.inputs.systems,
        run_files=p.run_files("test"),
        processes=p.processes,
        checkpoint=p.trained_checkpoint() if p.needs_training else None,
        trained=p.inputs.train,
    )
    if p.processes.is_first:
        # First: a kill may come at any time, and a verdict on other numbers must not stand beside these.
        forget_stale(p.folder, p.recipe.gate, p.inputs.systems, p.recipe.evaluate.first_stage, p.recipe.seed)
        if not p.folder.is_done("calibrate", p.inputs.calibrate):
            p.folder.calibration.unlink(missing_ok=True)
    evaluation(p.systems)
    return {
        "systems": list(p.systems),
        "system_inputs": p.inputs.systems,
        "processes": p.processes.count,
        # What compare goes by: recipe.json is that of the last command.
        "experiment": experiment_of(json.loads(recipe_json(p.recipe))),
        "seed": p.recipe.seed,
    }


def _gate(p: Pipeline) -> dict[str, Any]:
    """Judge the evaluation; raises GateRefused after withdrawing an earlier export."""
    if p.recipe.gate is None:
        return {}
    console.heading("gate")
    decision = decide(
        p.recipe.gate,
        p.folder,
        p.test_sets,
        system_inputs=p.inputs.systems,
        first_stage=p.recipe.evaluate.first_stage,
        seed=p.recipe.seed,
        override=p.override,
    )
    if not decision.may_export:
        p.folder.forget("export")
        withdraw_exports(p.folder)
        raise refusal(decision)
    p.gate = decision.as_json()
    return {}


def _export(p: Pipeline) -> dict[str, Any]:
    return export_stage(p.recipe, p.folder, p.trained_checkpoint(), p.inputs, p.ledger(), gate=p.gate)


def _export_outputs(p: Pipeline, facts: Mapping[str, Any]) -> list[Path]:
    # A person may add to the cards.
    files = [path for target in p.recipe.export_targets for path in p.folder.export(target).rglob("*")]
    return [path for path in files if path.suffix != ".md" and path.is_file()]


def _has_cards(p: Pipeline) -> bool:
    folders = [p.folder.export(target) for target in p.recipe.export_targets]
    return all((folder / name).is_file() for folder in folders for name in (CARD, SERVE))


def _report(p: Pipeline) -> dict[str, Any]:
    console.heading("report")
    write_attributes(p.recipe, p.folder)
    console.say(f"report: {write_report(p.folder.path, p.inputs.systems)}")
    return {}


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage. work: does it, and returns the facts of its record.

    inputs: hash of what it depends on; None: it runs every time and keeps no record.
    outputs: (the pipeline, its facts) -> the files and folders that it wrote, which its record is bound to.
    is_whole: whether what it has no record of is there and whole.
    processes: `all` share the work; the `first` works while the others wait; `one` works when the others are done.
    by_parts: it finds out itself which parts are done, and its record stays until the next one.
    afterwards: called on the first process, whether the stage ran or was skipped.
    """

    name: str
    work: Callable[[Pipeline], Mapping[str, Any]]
    inputs: Callable[[Pipeline], str] | None
    outputs: Callable[[Pipeline, Mapping[str, Any]], Collection[Path]]
    processes: Literal["all", "first", "one"]
    by_parts: bool = False
    afterwards: Callable[[Pipeline], None] = lambda p: None
    is_whole: Callable[[Pipeline], bool] = lambda p: True


STAGES = [
    Stage(
        "data",
        lambda p: prepare_data(p.recipe, p.folder),
        lambda p: p.inputs.data,
        _data_outputs,
        "first",
        afterwards=_after_data,
    ),
    Stage(
        "mine",
        _mine,
        lambda p: p.inputs.mine,
        _mine_outputs,
        "all",
        # Needed until the record is written: a kill before it continues from them.
        afterwards=lambda p: Shards.forget(p.folder.mining),
    ),
    Stage(
        "train",
        lambda p: train(p.recipe, p.folder, p.inputs.train),
        lambda p: p.inputs.train,
        lambda p, facts: [p.folder.mix, p.folder.metrics],
        "all",
        # Checkpoints hold the hashes of their files.
        is_whole=lambda p: p.best_checkpoint() is not None,
    ),
    Stage(
        "evaluate",
        _evaluate,
        lambda p: content_hash(p.inputs.systems),
        lambda p, facts: [p.folder.speed],
        "all",
        by_parts=True,
    ),
    Stage(
        "calibrate",
        lambda p: calibrate(p.recipe, p.folder, p.trained_checkpoint(), p.inputs.tuned, p.inputs.train),
        lambda p: p.inputs.calibrate,
        lambda p, facts: [p.folder.calibration, p.folder.dev_scores],
        "one",
    ),
    Stage("gate", _gate, None, lambda p, facts: [], "one"),
    Stage(
        "export",
        _export,
        lambda p: p.inputs.export(p.gate, p.ledger()),
        _export_outputs,
        "one",
        is_whole=_has_cards,
    ),
    Stage("report", _report, None, lambda p, facts: [], "one"),
]
