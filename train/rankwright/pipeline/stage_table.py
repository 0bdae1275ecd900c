"""The table of stages: what each one does, what it depends on, which files it writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rankwright.common import console
from rankwright.common.hashing import content_hash
from rankwright.evaluation.evaluate import has_control
from rankwright.evaluation.gate import decide, forget_stale, refusal
from rankwright.evaluation.runs import experiment_of
from rankwright.export.card import CARD, SERVE
from rankwright.mining.shards import Shards
from rankwright.pipeline.calibrate import calibrate
from rankwright.pipeline.context import Context
from rankwright.pipeline.control import control
from rankwright.pipeline.data import add_token_lengths, check_probabilities, check_run_files, prepare_data
from rankwright.pipeline.documents import HELD_OUT, TRAIN
from rankwright.pipeline.evaluate import Evaluation
from rankwright.pipeline.export import export_stage, withdraw_exports
from rankwright.pipeline.judge import judge
from rankwright.pipeline.mine import mine
from rankwright.pipeline.pretrain import pretrain
from rankwright.pipeline.pretrain_recipes import from_pretrained, has_control_checkpoint
from rankwright.pipeline.pretrain_text import train_on_text
from rankwright.pipeline.report import report
from rankwright.pipeline.student import write_agreement
from rankwright.pipeline.synthesize import audit, synthesize
from rankwright.pipeline.teacher import check_teacher, left_of_override
from rankwright.pipeline.train import train
from rankwright.recipe.loading import recipe_json


def _data_outputs(p: Context, facts: Mapping[str, Any]) -> list[Path]:
    corpora = [p.folder.data / name for name in facts.get("corpora", [])]
    return [*(p.folder.split(name) for name in ("train", "dev", "test")), *corpora, p.folder.data_report]


def _after_synthesize(p: Context) -> None:
    audit(p.recipe, p.folder)


def _synthesize_outputs(p: Context, facts: Mapping[str, Any]) -> list[Path]:
    # Not what people may look at, nor answers.jsonl: what is made of it stays true when it grows.
    run = p.folder
    sides = [path for side in (TRAIN, HELD_OUT) for path in (run.synthetic / side).rglob("*") if path.is_file()]
    return [run.synthetic_queries, run.synthetic_rejected, run.synthetic_report, *sides]


def _after_data(p: Context) -> None:
    """What another prompt, run file or licence changes without reading a set again."""
    if add_token_lengths(p.recipe, p.folder):
        p.folder.bind("data", p.folder.data_report)
    check_run_files(p.recipe, p.folder, {split: p.inputs.run_files(split) for split in ("train", "dev", "test")})
    check_probabilities(p.recipe, p.folder)
    p.ledger()


def _same_command(p: Context) -> str:
    """The command that continues this one, where it takes a reason."""
    name = p.command[1] if len(p.command) > 1 and p.command[1] in TAKE_OVERRIDE else "run"
    return p.folder.command(name)


def _teacher(p: Context) -> dict[str, Any]:
    return check_teacher(p.recipe, p.folder, p.inputs, p.processes, override=p.override, command=_same_command(p))


def _after_teacher(p: Context) -> None:
    p.override = left_of_override(p.folder, p.override, has_gate=p.recipe.gate is not None)


def _mine(p: Context) -> dict[str, Any]:
    files = {split: p.inputs.run_files(split) for split in ("train", "dev")}
    return mine(p.recipe, p.folder, inputs=p.inputs.shards, run_files=files, processes=p.processes)


def _mine_outputs(p: Context, facts: Mapping[str, Any]) -> list[Path]:
    run = p.folder
    lists = [run.negatives, run.candidates, run.removed, run.dev_candidates]
    lists += [run.train_lists] if p.recipe.keys_of_lists else []
    return [*lists, run.teacher_scores] if p.recipe.mine.teacher else lists


def _judge_outputs(p: Context, facts: Mapping[str, Any]) -> list[Path]:
    # Not answers.jsonl: what is made of it stays true when it grows.
    run = p.folder
    return [run.teacher_gate, run.judge_pairs, run.judge_scores, run.judge_report, run.teacher_scores]


def _has_sets(p: Context) -> bool:
    """Not where a pre-training reads text alone."""
    return bool(p.recipe.data.train)


def _train(p: Context) -> dict[str, Any]:
    recipe = from_pretrained(p.recipe, p.folder)
    if not recipe.data.train and p.further is not None:
        return train_on_text(recipe, p.folder, p.inputs.train, further=p.further)
    asked: dict[str, Any] = {"further": p.further, "pause_after": p.pause_after, "group": p.group}
    return train(recipe, p.folder, p.inputs.train, base=p.inputs.base, **asked)


def _evaluate(p: Context) -> dict[str, Any]:
    evaluation = Evaluation(
        p.recipe,
        p.folder,
        made_from=p.inputs,
        run_files=p.inputs.run_files("test"),
        processes=p.processes,
        checkpoint=p.trained_checkpoint() if p.needs_training else None,
    )
    if p.processes.is_first:
        # First: a kill may come at any time, and a verdict on other numbers must not stand beside these.
        forget_stale(p.folder, p.recipe.gate, p.inputs.systems, p.recipe.evaluate.first_stage, p.recipe.seed)
        if not p.folder.is_done("calibrate", p.inputs.calibrate):
            p.folder.calibration.unlink(missing_ok=True)
    evaluation(p.systems)
    if p.recipe.is_pairwise and p.processes.is_first:
        write_agreement(p.folder, [name for name in ("base", "tuned") if name in p.systems])
    return {
        "systems": list(p.systems),
        "system_inputs": p.inputs.systems,
        "processes": p.processes.count,
        # What compare goes by: recipe.json is that of the last command.
        "experiment": experiment_of(json.loads(recipe_json(p.recipe))),
        "seed": p.recipe.training_seed,
    }


def _gate(p: Context) -> dict[str, Any]:
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
        raise refusal(decision, p.folder.command("export"))
    p.gate = decision.as_json()
    return {}


def _export(p: Context) -> dict[str, Any]:
    return export_stage(p.recipe, p.folder, p.trained_checkpoint(), p.inputs, p.ledger(), gate=p.gate)


def _export_outputs(p: Context, facts: Mapping[str, Any]) -> list[Path]:
    # A person may add to the cards.
    files = [path for target in p.recipe.export_targets for path in p.folder.export(target).rglob("*")]
    return [path for path in files if path.suffix != ".md" and path.is_file()]


def _has_cards(p: Context) -> bool:
    folders = [p.folder.export(target) for target in p.recipe.export_targets]
    return all((folder / name).is_file() for folder in folders for name in (CARD, SERVE))


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage. work: does it, and returns the facts of its record.

    inputs: hash of what it depends on; None: it runs every time and keeps no record.
    outputs: (the pipeline, its facts) -> the files and folders that it wrote, which its record is bound to.
    is_whole: whether what it has no record of is there and whole.
    processes: `all` share the work; the `first` works while the others wait; `one` works when the others are done.
    by_parts: it finds out itself which parts are done, and its record stays until the next one.
    afterwards: called on the first process, whether the stage ran or was skipped.
    is_asked: whether the recipe has this stage.
    """

    name: str
    work: Callable[[Context], Mapping[str, Any]]
    inputs: Callable[[Context], str] | None
    outputs: Callable[[Context, Mapping[str, Any]], Collection[Path]]
    processes: Literal["all", "first", "one"]
    by_parts: bool = False
    afterwards: Callable[[Context], None] = lambda p: None
    is_whole: Callable[[Context], bool] = lambda p: True
    is_asked: Callable[[Context], bool] = lambda p: True


# The commands that take --override.
TAKE_OVERRIDE = ("run", "mine", "judge", "train", "export")
STAGES = [
    Stage(
        "synthesize",
        lambda p: synthesize(p.recipe, p.folder, p.located),
        lambda p: str(p.inputs.synthesize),
        _synthesize_outputs,
        "first",
        afterwards=_after_synthesize,
        is_asked=lambda p: p.recipe.synthesize is not None,
    ),
    Stage(
        "data",
        lambda p: prepare_data(p.recipe, p.folder),
        lambda p: p.inputs.data,
        _data_outputs,
        "first",
        afterwards=_after_data,
        is_asked=_has_sets,
    ),
    Stage(
        "teacher",
        _teacher,
        lambda p: p.inputs.teacher,
        lambda p, facts: [p.folder.teacher_gate],
        "all",
        afterwards=_after_teacher,
        is_asked=lambda p: p.recipe.mine.teacher is not None,
    ),
    Stage(
        "mine",
        _mine,
        lambda p: p.inputs.mine,
        _mine_outputs,
        "all",
        # Needed until the record is written: a kill before it continues from them.
        afterwards=lambda p: Shards.forget(p.folder.mining),
        is_asked=_has_sets,
    ),
    Stage(
        "judge",
        lambda p: judge(p.recipe, p.folder, p.inputs, override=p.override, command=_same_command(p)),
        lambda p: str(p.inputs.judge),
        _judge_outputs,
        "first",
        afterwards=_after_teacher,
        is_asked=lambda p: p.recipe.pairs is not None,
    ),
    Stage(
        "pretrain",
        pretrain,
        lambda p: str(p.inputs.pretrain),
        lambda p, facts: [path for path in p.folder.pretrained.rglob("*") if path.is_file()],
        "all",
        is_asked=lambda p: p.recipe.pretrain is not None,
    ),
    Stage(
        "train",
        _train,
        lambda p: p.inputs.train,
        lambda p, facts: [p.folder.metrics, *([p.folder.mix, p.folder.dev_values] if _has_sets(p) else [])],
        "all",
        # Checkpoints hold the hashes of their files.
        is_whole=lambda p: p.best_checkpoint() is not None,
    ),
    Stage(
        "control",
        control,
        lambda p: p.inputs.control,
        lambda p, facts: [],
        "all",
        is_whole=lambda p: has_control_checkpoint(p.folder),
        is_asked=lambda p: has_control(p.recipe),
    ),
    Stage(
        "evaluate",
        _evaluate,
        lambda p: content_hash(p.inputs.systems),
        lambda p, facts: [p.folder.speed, p.folder.combine, *[p.folder.student] * p.recipe.is_pairwise],
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
    Stage(
        "report",
        lambda p: report(p.recipe, p.folder, p.test_sets, p.inputs.systems),
        None,
        lambda p, facts: [],
        "one",
    ),
]
