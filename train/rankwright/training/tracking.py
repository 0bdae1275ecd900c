"""What a training reports: metrics.jsonl always, trackers by name (see trackers), progress, messages."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rankwright.common.disk import room_for
from rankwright.common.files import write_lines_atomic
from rankwright.common.plurals import counted
from rankwright.common.run_folder import RunFolder
from rankwright.training.trackers import Place, Tracked, TrackingRecord, open_place, reason, replay

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
        kept = [row for row in read_steps(path) if row["step"] <= resumed_step] if resumed_step else []
        if lost := resumed_step - len({row["step"] for row in kept} - {0}):
            say(f"{path}: has no rows of {counted(lost, 'step')} before this one: the report's curves leave them out")
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

    def __init__(self, name: str, place: Place, say: Callable[[str], None]) -> None:
        self._name, self._say = name, say
        self._place: Place | None = place

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        # A step that it has comes again after a kill between two checkpoints.
        self._guard(lambda place: place.log(values, step) if step >= place.next_step else None)

    def close(self) -> None:
        self._guard(lambda place: place.close())

    def _guard(self, action: Callable[[Place], None]) -> None:
        if self._place is None:
            return
        try:
            action(self._place)
        except Exception as error:
            self._say(f"tracker {self._name} failed ({reason(error)}): training goes on without it")
            self._place = None


class Reports:
    """All that a training reports: to its trackers, the progress bar and the console.

    open_trackers: (the step that training continues after) -> its trackers. advance: moves the progress bar.
    earlier: rows of metrics.jsonl, for a training that continues.
    """

    def __init__(
        self,
        open_trackers: Callable[[int], list[Tracker]],
        advance: Callable[..., None],
        say: Callable[[str], None],
        earlier: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.advance, self.say, self.earlier = advance, say, earlier
        self._open_trackers = open_trackers
        self._trackers: list[Tracker] = []

    def start(self, state: TrainState, measure: str = "dev_nDCG@10") -> None:
        """Open the trackers after the state's step; a training that begins logs the base's value, by this name."""
        self._trackers = self._open_trackers(state.step)
        if state.step == 0:
            self.log({measure: state.base_value}, step=0)
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


def read_steps(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl that belong to a step."""
    return [row for row in read_metrics(path) if isinstance(row, dict) and isinstance(row.get("step"), int)]


def open_trackers(
    names: Sequence[str],
    folder: Path,
    resumed_step: int,
    *,
    run_name: str,
    config: Mapping[str, Any],
    say: Callable[[str], None],
    group: str | None = None,
) -> list[Tracker]:
    """metrics.jsonl and the named trackers; a training that continues stays one run in wandb, trackio and tensorboard.

    group: that wandb shows the run in.

    Each of these gets the steps that it lacks: of a training that continues, or that began without it.
    """
    run = RunFolder(folder)
    trackers: list[Tracker] = [JsonlTracker(run.metrics, resumed_step=resumed_step, say=say)]
    if not names:
        return trackers
    record = TrackingRecord(run, new=not resumed_step, group=group)
    tracked, rows = Tracked(folder, run_name, config, record.id, record.group), read_steps(run.metrics)
    for name in names:
        try:
            place = open_place(name, tracked, resumed_step + 1 if resumed_step and name in record.started else 0)
            replay(place, rows)
        except Exception as error:
            say(f"tracker {name} could not start ({reason(error)}): training goes on without it")
        else:
            record.start(name)
            trackers.append(GuardedTracker(name, place, say))
            if place.where:
                say(f"tracker {name}: {place.where}")
    return trackers
