"""metrics.jsonl survives kills, and no tracker can stop training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rankwright.training.checkpoint import TrainState
from rankwright.training.trackers import Outcome
from rankwright.training.tracking import (
    GuardedTracker,
    JsonlTracker,
    Reports,
    Tracker,
    open_trackers,
    read_metrics,
)


def write(path: Path, steps: int) -> None:
    tracker = JsonlTracker(path, resumed_step=0)
    for step in range(steps + 1):
        tracker.log({"loss": step / 2}, step=step)
    tracker.close()


def start(folder: Path, *names: str, said: list[str] | None = None, resumed_step: int = 0) -> Reports:
    return reports_of(
        open_trackers(
            names,
            folder,
            resumed_step,
            run_name="job",
            config={"seed": 3, "train.learning_rate": 0.1, "train.trackers": ["a", "list"]},
            say=(said if said is not None else []).append,
        )
    )


def reports_of(trackers: list[Tracker], step: int = 1) -> Reports:
    reports = Reports(lambda resumed: trackers, lambda *_, **__: None, print)
    reports.start(TrainState(step, "inputs", base_value=0.25))
    return reports


def test_rows_are_there_as_soon_as_they_are_logged(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    tracker = JsonlTracker(path, resumed_step=0)
    tracker.log({"loss": 0.1, "dev_nDCG@10": 1 / 3}, step=1)
    assert path.read_text() == f'{{"step": 1, "loss": 0.1, "dev_nDCG@10": {1 / 3!r}}}\n'
    tracker.close()


def test_rows_after_the_resumed_step_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 5)
    tracker = JsonlTracker(path, resumed_step=3)
    tracker.log({"loss": 9.0}, step=4)
    tracker.close()
    rows = read_metrics(path)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["loss"] for row in rows] == [0.0, 0.5, 1.0, 1.5, 9.0]


def test_rows_that_are_missing_or_odd_are_counted_once(tmp_path: Path) -> None:
    path, said = tmp_path / "metrics.jsonl", list[str]()
    path.write_text('{"step": 0}\n[1]\nnull\n{"step": "x"}\n{"step": 2, "loss": 1.0}\n{"step": 4}\n')
    JsonlTracker(path, resumed_step=3, say=said.append).close()
    assert [row["step"] for row in read_metrics(path)] == [0, 2]
    assert said == [f"{path}: has no rows of 2 steps before this one: the report's curves leave them out"]


def test_a_start_from_the_beginning_keeps_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 5)
    JsonlTracker(path, resumed_step=0).close()
    assert read_metrics(path) == []


@pytest.mark.parametrize("cut", ['{"st', '{"step": 3, "loss": 1.', '{"step": 3, "loss": 1.5'])
def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path: Path, cut: str) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 2)
    with path.open("a") as file:
        file.write(cut)
    assert [row["step"] for row in read_metrics(path)] == [0, 1, 2]
    tracker = JsonlTracker(path, resumed_step=2)
    tracker.log({"loss": 1.5}, step=3)
    tracker.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2, 3]


def test_no_file_no_rows(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


class Failing:
    """A run in another library whose calls fail from the given one on."""

    next_step, where, pages = 0, "", False

    def __init__(self, good_calls: int) -> None:
        self.left = good_calls
        self.calls: list[Any] = []

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._call((step, values))

    def show(self, outcome: Outcome) -> None:
        self._call("show")

    def close(self) -> None:
        self._call("close")

    def _call(self, what: Any) -> None:
        self.calls.append(what)
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("the server is gone")


def test_a_failing_tracker_is_said_once_and_left_alone(tmp_path: Path) -> None:
    said: list[str] = []
    failing = Failing(good_calls=1)
    trackers = reports_of(
        [GuardedTracker("wandb", failing, said.append), JsonlTracker(tmp_path / "m.jsonl", resumed_step=0)]
    )
    for step in range(1, 5):
        trackers.log({"loss": 1.0}, step=step)
    trackers.close()
    assert said == ["tracker wandb failed (the server is gone): training goes on without it"]
    assert failing.calls == [(1, {"loss": 1.0}), (2, {"loss": 1.0})]
    assert [row["step"] for row in read_metrics(tmp_path / "m.jsonl")] == [1, 2, 3, 4]


def test_a_tracker_that_fails_at_the_end_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    failing = Failing(good_calls=1)
    guarded = GuardedTracker("wandb", failing, said.append)
    guarded.log({}, step=1)
    guarded.close()
    assert failing.calls == [(1, {}), "close"]
    assert len(said) == 1


def test_without_trackers_nothing_happens() -> None:
    reports = reports_of([])
    reports.log({"loss": 1.0}, step=1)
    reports.close()


def test_a_training_that_begins_logs_the_base(tmp_path: Path) -> None:
    reports_of([JsonlTracker(tmp_path / "m.jsonl", resumed_step=0)], step=0).close()
    assert read_metrics(tmp_path / "m.jsonl") == [{"step": 0, "dev_nDCG@10": 0.25}]


@pytest.mark.parametrize("name", ["weights-and-biases", "aim"])
def test_a_tracker_that_cannot_start_is_said_and_the_rest_goes_on(tmp_path: Path, name: str) -> None:
    said: list[str] = []
    # `aim` is known to Accelerate, but is not installed.
    trackers = start(tmp_path, name, said=said)
    trackers.log({"loss": 1.0}, step=1)
    trackers.close()
    assert len(said) == 1
    assert said[0].startswith(f"tracker {name} could not start (")
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1]
