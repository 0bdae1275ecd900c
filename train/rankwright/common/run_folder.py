"""The folder of a run: what each stage read and wrote, and whether it must run again."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rankwright import __version__
from rankwright.common.errors import UserError
from rankwright.common.files import link_or_copy, read_json_object, remove_drafts, write_text_atomic
from rankwright.common.outputs import SEAL, Outputs, changed_outputs, outputs_of, put_aside, read_sealed, remove, sealed

PACKAGE = Path(__file__).parents[1]
# The file of an export that holds the sums of its other files.
SUMS_FILE = "SHA256SUMS"
STAGES = (
    *("synthesize", "data", "teacher", "mine", "judge", "pretrain", "train", "control", "evaluate", "calibrate"),
    *("export", "report"),
)
REPORTED_PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "bm25s", "ir-measures")


@cache
def code_hash(parts: tuple[str, ...] = ("",), package: Path = PACKAGE) -> str:
    """Hash of the Python files in `parts`: folders and files of the package, by their paths inside it."""
    digest = hashlib.sha256()
    places = [package / part for part in parts]
    for path in sorted({file for place in places for file in (place.rglob("*.py") if place.is_dir() else [place])}):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def code_version() -> str:
    """The package's version and a hash of its whole source, for a reader; a stage depends on its own part of it."""
    return f"{__version__}+{code_hash()}"


class _Place:
    """A property of RunFolder: where one of its files or folders lies."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: RunFolder, owner: type[RunFolder]) -> Path:
        return run.path / self.name


class RunFolder:
    """runs/NAME: where each file of a run lies, and one record per stage of the inputs that it was made from.

    train/README.md explains the files. A property states the place; the file may be missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    # What was run.
    recipe_json = _Place("recipe.json")
    provenance = _Place("provenance.json")
    licences = _Place("licences.json")

    # Written queries: those that passed the filters, the others, figures, a page for people and what they answered on
    # it, the writer's answers, and the sets that are trained on and held out.
    synthetic = _Place("synthetic")
    synthetic_queries = _Place("synthetic/queries.jsonl")
    synthetic_rejected = _Place("synthetic/rejected.jsonl")
    synthetic_report = _Place("synthetic/report.json")
    synthetic_audit = _Place("synthetic/audit.html")
    synthetic_audited = _Place("synthetic/audited.json")
    synthetic_answers = _Place("synthetic/answers.jsonl")

    # Data and mining.
    data = _Place("data")
    data_report = _Place("data_report.json")
    teacher_gate = _Place("teacher_gate.json")
    candidates = _Place("candidates.jsonl")
    dev_candidates = _Place("dev_candidates.jsonl")
    train_lists = _Place("train_lists.jsonl")
    negatives = _Place("negatives.jsonl")
    removed = _Place("removed.jsonl")
    teacher_scores = _Place("teacher.jsonl")
    # Preferences of language models: what they answered, and what was made of it.
    judge_answers = _Place("judge/answers.jsonl")
    judge_pairs = _Place("judge/pairs.jsonl")
    judge_scores = _Place("judge/scores.jsonl")
    judge_report = _Place("judge/report.json")
    # Parts of an unfinished mine stage.
    mining = _Place("mining")
    audit = _Place("audit.html")

    # Pre-training: a run folder of its own, its prepared pairs, and the base that it leaves; and the control's run.
    pretraining = _Place("pretrain")
    pretrain_pairs = _Place("pretrain/pairs")
    pretrained = _Place("pretrain/base")
    control = _Place("control")

    # Training.
    tokens = _Place("tokens")
    mix = _Place("mix.json")
    pools = _Place("pools")
    # The scale on which a teacher's scores are trained with, fitted before step 1.
    teacher_match = _Place("teacher_match.json")
    # The error that a run of a sweep ended with.
    failure = _Place("failed.json")
    metrics = _Place("metrics.jsonl")
    # Other trackers: the run's id there, and which of them have what; the events of tensorboard.
    tracking = _Place("tracking.json")
    tensorboard = _Place("tensorboard")
    # nDCG@10 of each dev query, of the untrained model and at each evaluation.
    dev_values = _Place("dev_values.jsonl")
    checkpoints = _Place("checkpoints")

    # Evaluation and what follows.
    eval = _Place("eval")
    cache = _Place("cache")
    speed = _Place("speed.json")
    gate = _Place("gate.json")
    dev_scores = _Place("dev_scores.jsonl")
    # How far the merged model, which is evaluated, is from the one with 4-bit weights, which was trained.
    quantization = _Place("quantization.json")
    combine = _Place("combine.json")
    student = _Place("student.json")
    calibration = _Place("calibration.json")
    exports = _Place("export")
    # What `rankwright mteb` left: TASK.json is mteb's result, TASK/record.json ours.
    mteb = _Place("mteb")
    # Target -> what its proven folder was made from.
    proven = _Place("export/.proven.json")
    report = _Place("report.html")

    def split(self, name: str) -> Path:
        """The rows of train, dev or test."""
        return self.data / f"{name}.jsonl"

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint after a step."""
        return self.checkpoints / f"step-{step}"

    def eval_folder(self, test_set: str, system: str = "") -> Path:
        """The folder of a test set's evaluation, or of one system in it."""
        return self.eval / test_set / system

    def export(self, target: str) -> Path:
        """The folder of one export target."""
        return self.exports / target

    def is_run(self) -> bool:
        """Whether this is a run folder: stages have recorded something, or the recipe stands in it."""
        return self.recipe_json.is_file() and ((self.path / "stages").is_dir() or self.provenance.is_file())

    def test_sets(self) -> list[str]:
        """The test sets of the run's data, without folders that an earlier recipe left in eval/."""
        try:
            return [str(row["set"]) for row in (read_json_object(self.data_report) or {})["splits"]["test"]]
        except (LookupError, TypeError):
            return sorted(path.name for path in self.eval.glob("*") if path.is_dir())

    def command(self, name: str) -> str:
        """The command `name` on this run again: its recipe, and the settings of its last command."""
        command = (read_json_object(self.provenance) or {}).get("command")
        command = command[2:] if isinstance(command, list) else []
        words = [
            word
            for before, word in zip(["", *command], command, strict=False)
            if not word.startswith("-") and before not in ("--only", "--override", "--audit")
        ]
        return shlex.join(["rankwright", name, *(words or ["RECIPE", f"run_dir={self.path}"])])

    def create(self) -> None:
        """Make the folder. Raises UserError where files cannot be written there."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".write-test-{os.getpid()}"
            probe.write_text("")
            probe.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"run_dir: cannot write to {self.path} ({error.strerror}): give another one, e.g. run_dir=PATH"
            ) from None

    def tidy(self) -> None:
        """Remove what killed commands left of unfinished files; for the holder of the folder's lock."""
        remove_drafts(self.path)

    def is_done(self, stage: str, inputs: str) -> bool:
        """Whether `stage` finished with exactly these inputs, by a record that nobody has changed."""
        return (read_sealed(self._record_path(stage)) or {}).get("inputs") == inputs

    def finish(self, stage: str, inputs: str, *, seconds: float, outputs: Iterable[Path] = (), **facts: Any) -> None:
        """Record that `stage` is done; written after all of its files.

        outputs: files, or folders with all their files, that the stage wrote: changed() compares them.
        """
        record = {"inputs": inputs, "seconds": round(seconds, 1), "finished": time.strftime("%FT%TZ", time.gmtime())}
        self._write_record(stage, {**record, **facts, "outputs": outputs_of(self.path, outputs)})

    def _write_record(self, stage: str, record: Mapping[str, Any]) -> None:
        write_text_atomic(self._record_path(stage), json.dumps(sealed(record), indent=2) + "\n")

    def bind(self, stage: str, path: Path) -> None:
        """Record a file of a finished stage again, which was written after the stage."""
        record = read_sealed(self._record_path(stage))
        if record is not None:
            self._write_record(stage, {**record, "outputs": {**record["outputs"], **outputs_of(self.path, [path])}})

    def changed(self, stage: str, *, verify: bool = False, keep_times: bool = True) -> dict[str, str]:
        """File -> `gone` or `changed`, for what `stage` wrote; see changed_outputs, whose new times are kept."""
        record = read_sealed(self._record_path(stage)) or {}
        outputs: Outputs = record.get("outputs", {})
        before = json.dumps(outputs)
        found = changed_outputs(self.path, outputs, verify=verify)
        if keep_times and json.dumps(outputs) != before:
            self._write_record(stage, record)
        return found

    def put_aside(self, name: str) -> bool:
        """Rename a changed file of the run to NAME.changed; whether it was there."""
        return put_aside(self.path / name) is not None

    def forget(self, stage: str) -> None:
        """Remove the record of `stage`, so that it runs again."""
        remove(self._record_path(stage))

    def facts(self, stage: str) -> dict[str, Any]:
        """The facts that finish() recorded; empty where the stage is not done."""
        record = read_json_object(self._record_path(stage)) or {}
        return {key: value for key, value in record.items() if key not in ("outputs", SEAL)}

    def adopt(self, stage: str, inputs: str, other: RunFolder) -> bool:
        """Take a finished stage of another run, if it is finished there with exactly these inputs; whether it was.

        Files become hard links, or copies where the file system has none: stages replace their files as a whole.
        The record comes last.
        """
        record = read_sealed(other._record_path(stage))
        if record is None or record.get("inputs") != inputs or other.changed(stage, keep_times=False):
            return False
        for name in record["outputs"]:
            target = self.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            remove(target)
            link_or_copy(other.path / name, target)
        self._write_record(stage, {key: value for key, value in record.items() if key != SEAL})
        return True

    def _record_path(self, stage: str) -> Path:
        assert stage in STAGES, stage
        return self.path / "stages" / f"{stage}.json"

    @staticmethod
    def write_json(path: Path, value: Mapping[str, Any]) -> None:
        """Write a JSON file of a run, by its property; whole or not at all."""
        write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def provenance(seed: int, command: Iterable[str]) -> dict[str, Any]:
    """Commit, versions, kind of machine, seed, command and its start: what a reader needs to repeat the run."""
    versions = {}
    for package in REPORTED_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "rankwright": code_version(),
        "commit": git_commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "packages": versions,
        "seed": seed,
        "command": list(command),
        "started": time.strftime("%FT%TZ", time.gmtime()),
    }


def git_commit() -> str | None:
    """The commit of the checkout that this package runs from (`-dirty` when changed), or None outside one."""
    # git resolves links, so this must too.
    here = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        top = git("rev-parse", "--show-toplevel")
        # A wheel inside somebody else's repository must not report that repository's commit.
        if not top or here != Path(top) / "train" / "rankwright":
            return None
        commit = git("rev-parse", "HEAD")
        return f"{commit}-dirty" if commit and git("status", "--porcelain", "--", ":/train") else commit or None
    except (OSError, subprocess.SubprocessError):
        return None
