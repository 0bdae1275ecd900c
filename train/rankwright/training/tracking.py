"""What a training reports: metrics.jsonl always, other trackers by name (none can stop it), progress, messages."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rankwright.common.disk import room_for
from rankwright.common.errors import UserError, no_such
from rankwright.common.files import write_lines_atomic, write_text_atomic
from rankwright.common.run_folder import RunFolder

if TYPE_CHECKING:
    # It brings torch, which the report does without.
    from rankwright.training.checkpoint import TrainState


class Tracker(Protocol):
    """Takes the values of one step."""

    def log(self, values: Mapping[str, float], *, step: int) -> None: ...

    def close(self) -> None: ...


class JsonlTracker:
    """A JSON object per line: `{"step": 1, "loss": ...}`. Rows after the resumed step are dropped: they come again."""

    def __init__(self, path: Path, *, resumed_step: int, say: Callable[[str], None] = lambda line: None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [row for row in read_metrics(path) if isinstance(row, dict) and isinstance(row.get("step"), int)]
        kept = [row for row in rows if row["step"] <= resumed_step] if resumed_step else []
        if lost := resumed_step - len({row["step"] for row in kept} - {0}):
            say(f"{path}: has no rows of {lost} steps before this one: the report's curves leave them out")
        write_lines_atomic(path, (json.dumps(row) for row in kept))
        self._path = path
        # Without a buffer: what there is no room for must not be written once more at the end.
        self._file = path.open("ab", buffering=0)

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        with room_for(self._path):
            self._file.write((json.dumps({"step": step, **values}) + "\n").encode())

    def close(self) -> None:
        self._file.close()


class GuardedTracker:
    """A tracker of another library: its first failure is reported, after which it is no longer used."""

    def __init__(self, name: str, tracker: Any, say: Callable[[str], None]) -> None:
        self._name, self._tracker, self._say = name, tracker, say

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        self._guard(lambda tracker: tracker.log(dict(values), step=step))

    def close(self) -> None:
        self._guard(lambda tracker: tracker.finish())

    def _guard(self, action: Callable[[Any], None]) -> None:
        if self._tracker is None:
            return
        try:
            action(self._tracker)
        except Exception as error:
            self._say(f"tracker {self._name} failed ({error}): training goes on without it")
            self._tracker = None


class Reports:
    """All that a training reports: to its trackers, the progress bar and the console.

    open_trackers: (the step that training continues after) -> its trackers. advance: moves the progress bar.
    """

    def __init__(
        self, open_trackers: Callable[[int], list[Tracker]], advance: Callable[..., None], say: Callable[[str], None]
    ) -> None:
        self.advance, self.say = advance, say
        self._open_trackers = open_trackers
        self._trackers: list[Tracker] = []

    def start(self, state: TrainState) -> None:
        """Open the trackers after the state's step; a training that begins logs the base's value on dev."""
        self._trackers = self._open_trackers(state.step)
        if state.step == 0:
            self.log({"dev_nDCG@10": state.base_value}, step=0)
        self.advance(state.step)

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """The values of one step, to the trackers."""
        for tracker in self._trackers:
            tracker.log(values, step=step)

    def end_early(self, state: TrainState, planned_steps: int) -> None:
        """Training is out of patience."""
        self.advance(0, total=state.step)
        evaluations = f"{state.since_best} evaluation{'s' if state.since_best > 1 else ''}"
        self.say(
            f"train.patience: {evaluations} on dev without a new best: ended after step {state.step} of {planned_steps}"
        )

    def close(self) -> None:
        """Close the trackers."""
        for tracker in self._trackers:
            tracker.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl; a line cut off by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def check_trackers(names: Sequence[str]) -> None:
    """Raises UserError for a name that Accelerate has no tracker for."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UserError(no_such("tracker", name, map(str, LOGGER_TYPE_TO_CLASS)))


def open_trackers(
    names: Sequence[str],
    folder: Path,
    resumed_step: int,
    *,
    run_name: str,
    config: Mapping[str, Any],
    say: Callable[[str], None],
) -> list[Tracker]:
    """metrics.jsonl and the named trackers of Accelerate (wandb, tensorboard, trackio, ...).

    wandb and trackio: an id is kept in the folder, so that a training that continues stays one run. Without a key
    wandb runs offline: each start then leaves its own folder, under the same id.
    """
    trackers: list[Tracker] = [JsonlTracker(RunFolder(folder).metrics, resumed_step=resumed_step, say=say)]
    run_id = _run_id(folder, resumed_step) if names else ""
    for name in names:
        try:
            tracker = _accelerate_tracker(name, folder, run_name, config, run_id)
            trackers.append(GuardedTracker(name, tracker, say))
        except Exception as error:
            say(f"tracker {name} could not start ({error}): training goes on without it")
    return trackers


def _run_id(folder: Path, resumed_step: int) -> str:
    """The id that the folder's run has, or a new one for a training that starts."""
    path = folder / "tracker_id"
    if resumed_step and path.is_file():
        return path.read_text(encoding="ascii").strip()
    name = uuid.uuid4().hex[:12]
    write_text_atomic(path, name + "\n")
    return name


def _accelerate_tracker(name: str, folder: Path, run_name: str, config: Mapping[str, Any], run_id: str) -> Any:
    import os

    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    factory = LOGGER_TYPE_TO_CLASS[name]
    options: dict[str, Any] = {"logging_dir": str(folder)} if factory.requires_logging_directory else {}
    if name == "wandb":
        options = {"dir": str(folder), "name": run_name, "id": run_id}
        if not os.environ.get("WANDB_API_KEY") and not os.environ.get("WANDB_MODE"):
            # Otherwise it waits for a key at the terminal.
            options["mode"] = "offline"
        if options.get("mode", os.environ.get("WANDB_MODE")) != "offline":
            options["resume"] = "allow"
    if name == "trackio":
        options |= {"name": f"{run_name}-{run_id}", "resume": "allow"}
    tracker = factory("rankwright" if name in ("wandb", "trackio") else run_name, **options)
    getattr(tracker, "start", lambda: None)()
    tracker.store_init_configuration({k: v for k, v in config.items() if isinstance(v, int | float | str)})
    return tracker
