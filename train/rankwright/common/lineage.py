"""Lineage of a run folder: which part was made from which data, training and evaluation, and what is stale.

It is read from the files of the folder alone: the records of the stages, of the last command, of gate and exports.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwright.common import console
from rankwright.common.errors import UserError
from rankwright.common.files import read_json_object
from rankwright.common.outputs import content_of, read_sealed
from rankwright.common.run_folder import STAGES, RunFolder

# The key of a record with what its part was made from: a name of OWNERS -> hash.
OF = "of"
RECIPE = "recipe"
# What a record may name -> the part whose record names what is in the folder now. Earlier causes come first.
OWNERS = {
    "written queries": "synthesize",
    "training texts": "data",
    "training data": "data",
    "negatives": "mine",
    "preferences": "judge",
    "pretraining": "pretrain",
    "training": "train",
    "training settings": RECIPE,
    "test data": "data",
    "teacher settings": RECIPE,
    "test settings": RECIPE,
    "tuned": "evaluate",
    "results": "evaluate",
    "calibration": "calibrate",
}
# Part -> (what happened when it was made again, what began when it is not finished, its name in a list).
WORDS = {
    RECIPE: ("The last command changed settings of the recipe", "", "recipe"),
    "synthesize": ("Queries were written again", "Writing queries", "written queries"),
    "data": ("The data changed", "Reading the data", "data"),
    "teacher": ("teacher_gate.json is not as the teacher stage wrote it", "", "teacher gate"),
    "mine": ("Negatives were mined again", "Mining", "mining"),
    "judge": ("Pairs were judged again", "Judging", "judging"),
    "pretrain": ("The base was pre-trained again", "A pre-training", "pre-training"),
    "train": ("The model was trained again", "A training", "training"),
    "control": ("The control was trained again", "The training of the control", "control"),
    "evaluate": ("The evaluation was made again", "An evaluation", "evaluation"),
    "calibrate": ("The calibration was made again", "A calibration", "calibration"),
    "gate": ("gate.json is not the verdict on these numbers", "", "gate"),
    "export": ("", "An export", "export"),
}
# The exports that this package loads itself, the most common first.
LOADED = ("hf", "causal", "adapter")


@dataclass(frozen=True, slots=True)
class Lineage:
    """What is stale in a run folder.

    training: hash of the finished training in the folder, as its checkpoints record it; None without one.
    stale: part (a stage, or `export TARGET`) -> the part whose change it does not know of, or which is not finished.
    since: such a cause -> when, in UTC. unfinished: the causes that began and did not end.
    command: makes everything again that is stale.
    """

    training: str | None
    stale: Mapping[str, str]
    since: Mapping[str, str]
    unfinished: frozenset[str]
    command: str

    @property
    def lines(self) -> list[str]:
        """What happened, and what is still from before: one line for each cause; empty where nothing is stale."""
        return [self._line(cause) for cause in dict.fromkeys(self.stale.values())]

    def _line(self, cause: str) -> str:
        happened, begun, _ = WORDS[cause]
        when = f" ({self.since[cause]})" if cause in self.since else ""
        event = f"{begun} began and is not finished{when}" if cause in self.unfinished else f"{happened}{when}"
        parts = [part for part, why in self.stale.items() if why == cause and part != cause]
        exports = [part.removeprefix("export ") for part in parts if part.startswith("export ")]
        names = [WORDS[part][2] for part in parts if part in WORDS]
        names += [f"export {target}" for target in exports]
        if not names:
            return event
        listed = ", ".join(names[:-1]) + " and " * (len(names) > 1) + names[-1]
        are = "are" if len(names) > 1 else "is"
        return f"{event}; {listed} {are} {'not made again' if cause == 'gate' else 'still from before'}"

    def line_of(self, *parts: str) -> str | None:
        """One line about the first of these parts that is stale, with the command that mends it; None without one."""
        cause = next((self.stale[part] for part in parts if part in self.stale), None)
        return None if cause is None else f"{self._line(cause)}; `{self.command}` makes it again"


def lineage(run: RunFolder) -> Lineage:
    """Compare what each part of the folder was made from with what is there now.

    A folder of an earlier version recorded nothing of this: there nothing is known to be stale.
    """
    provenance = read_json_object(run.provenance) or {}
    records = {stage: run.facts(stage) for stage in STAGES if stage != "report"}
    made = {RECIPE: provenance, **records}
    now = {name: _of(made[owner]).get(name) for name, owner in OWNERS.items()}
    stale: dict[str, str] = {}
    for part, of, before, intact in _parts(run, records) if any(map(_of, made.values())) else ():
        causes = [stale[one] for one in before if one in stale]
        causes += [owner for name, owner in OWNERS.items() if name in of and owner != part and of[name] != now[name]]
        if not of and records.get(part):
            # An earlier version made it, and this one has made other parts since.
            causes.append(RECIPE)
        if causes or not intact:
            stale[part] = causes[0] if causes else part.partition(" ")[0]
    causes = list(dict.fromkeys(stale.values()))
    begun = [cause for cause in causes if WORDS[cause][1] and not records[cause]]
    unfinished = frozenset([*begun, *(part for part, cause in stale.items() if part == cause == "evaluate")])
    late = {RECIPE, *unfinished}
    times = {c: provenance.get("started") if c in late else made.get(c, {}).get("finished") for c in causes}
    since = {c: time.replace("T", " ").replace("Z", " UTC") for c, time in times.items() if isinstance(time, str)}
    training = records["train"].get("inputs")
    return Lineage(training if isinstance(training, str) else None, stale, since, unfinished, run.command("run"))


def _of(record: Any) -> Mapping[str, Any]:
    of = record.get(OF) if isinstance(record, dict) else None
    return of if isinstance(of, dict) else {}


def _parts(
    run: RunFolder, records: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any], tuple[str, ...], bool]]:
    """(part, what it was made from, the parts before it, whether it is whole) of the parts that the folder has."""
    # Not where the last command's recipe has no teacher.
    if records["teacher"] and "teacher settings" in _of(read_json_object(run.provenance)):
        yield "teacher", _of(records["teacher"]), (), read_sealed(run.teacher_gate) is not None
    earlier: dict[str, tuple[str, ...]] = {"mine": (), "judge": (), "pretrain": (), "train": ("mine",)}
    for name in ("preferences", "pretraining"):
        if name in _of(records["train"]):
            earlier["train"] += (OWNERS[name],)
    earlier["control"] = ("train",)
    for stage, before in earlier.items():
        if records[stage]:
            yield stage, _of(records[stage]), before, True
    is_tuned = any(run.eval.glob("*/tuned/metrics.json"))
    if is_tuned or records["evaluate"]:
        of = _of(records["evaluate"])
        of = of if is_tuned else {name: value for name, value in of.items() if name != "training"}
        yield "evaluate", of, ("train",) if is_tuned else (), _is_one_evaluation(run, records["evaluate"])
    if run.calibration.is_file():
        yield "calibrate", _of(records["calibrate"]), ("train", "evaluate"), bool(records["calibrate"])
    if run.gate.is_file():
        yield "gate", {}, ("train", "evaluate"), _has_these_numbers(run)
    proven = read_json_object(run.proven) or {}
    for parity in sorted(run.exports.glob("[!.]*/parity.json")):
        of = _of(proven.get(parity.parent.name))
        yield f"export {parity.parent.name}", of, ("train", "evaluate", "calibrate", "gate"), bool(of)


def _is_one_evaluation(run: RunFolder, record: Mapping[str, Any]) -> bool:
    """Whether the evaluation has ended, and all numbers of its systems are those that its record names."""
    inputs, systems = record.get("system_inputs"), record.get("systems")
    if not isinstance(inputs, dict) or not isinstance(systems, list):
        return False
    for folder in (path for name in run.test_sets() for path in run.eval_folder(name).glob("*") if path.is_dir()):
        metrics = read_json_object(folder / "metrics.json")
        if metrics is None and folder.name in systems and (folder / "run.trec").is_file():
            return False
        if metrics is not None and folder.name in inputs and metrics.get("inputs") != inputs[folder.name]:
            return False
    return True


def _has_these_numbers(run: RunFolder) -> bool:
    """Whether gate.json is as the gate wrote it, and the files that it judged are the same still."""
    verdict = read_sealed(run.gate)
    numbers = (verdict or {}).get("numbers")
    if not isinstance(numbers, dict):
        return False
    return all(content_of(run.path / name) == digest for name, digest in numbers.items())


def run_around(path: Path) -> RunFolder | None:
    """The run folder that a path is or lies in, None outside of one."""
    places = (path, *path.absolute().parents[:3])
    return next((RunFolder(place) for place in places if RunFolder(place).is_run()), None)


def stale_export(folder: Path) -> str | None:
    """One line where this folder is an export in a run folder that went on without it; None where nothing is stale."""
    run = run_around(folder)
    return None if run is None else lineage(run).line_of(f"export {folder.name}")


def export_to_load(run: RunFolder) -> Path | None:
    """The first export in LOADED that a run folder has."""
    return next((run.export(target) for target in LOADED if run.export(target).is_dir()), None)


def loaded_export(name: str) -> str:
    """The folder to be loaded for a run folder: its first export in LOADED; any other name as it is.

    Raises UserError for a run folder without an export.
    """
    run = RunFolder(Path(name))
    if not run.path.is_dir() or not run.is_run():
        return name
    found = export_to_load(run)
    if found is None:
        raise UserError(f"{name}: a run folder without an export to load: run `{run.command('export')}`")
    return str(found)


def model_folder(name: str) -> str:
    """As loaded_export; prints which export that is, and a warning for one that is stale."""
    found = loaded_export(name)
    folder = Path(found)
    if not folder.is_dir():
        return name
    if found != name:
        console.say(f"{name}: a run folder: its export {folder} is loaded")
    if line := stale_export(folder):
        console.say(f"WARNING: {folder} is stale: {line}")
    return str(folder)
