"""wandb, trackio and tensorboard have one run for one training, with its outcome; what they wrote is read back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jobs
import pytest
import wandb_file

from rankwright.common.errors import UserError
from rankwright.common.run_folder import RunFolder
from rankwright.training.trackers import (
    Outcome,
    Tracked,
    TrackingRecord,
    check_trackers,
    reason,
    replay,
    show_outcome,
)
from rankwright.training.tracking import Tracker, open_trackers, read_steps

CONFIG = {"seed": 3, "train.learning_rate": 0.1, "train.trackers": ["a", "list"]}
KEY = "k3y" * 14


@pytest.fixture(autouse=True)
def no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Mapping[str, str]]:
    """A machine where wandb was never set up; returns a look at what the environment says of it."""
    for name in [n for n in os.environ if n.startswith(("WANDB_", "TRACKIO_"))]:
        monkeypatch.delenv(name)
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name.lower()))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return lambda: {n: v for n, v in os.environ.items() if n.startswith("WANDB_") and n != "WANDB_SERVICE"}


@pytest.fixture
def said() -> list[str]:
    return []


def start(folder: Path, name: str, said: list[str], resumed_step: int = 0) -> list[Tracker]:
    return open_trackers([name], folder, resumed_step, run_name="job", config=CONFIG, say=said.append)


def train(folder: Path, name: str, said: list[str], steps: range, loss: float = 0.0) -> None:
    """One start of a training that logs these steps; it continues after the step before them."""
    trackers = start(folder, name, said, max(0, steps.start - 1))
    for tracker in trackers:
        for step in steps:
            tracker.log({"loss": loss + step / 8}, step=step)
        tracker.close()


def outcome_of(folder: Path) -> Outcome:
    page = folder / "report.html"
    page.write_text("<p>a page</p>")
    row = {"test_set": "held-out", "system": "tuned", "value": 0.5, "low": None}
    values = {"test/held-out/tuned/nDCG@10": 0.5, "test/held-out/tuned/minus_base_low": -0.25}
    return Outcome(values, ["Do not deploy: a | b.", "Gate, FAILED: why."], [row], page, step=4)


def show(folder: Path, name: str, said: list[str], outcome: Outcome | None = None) -> None:
    run = RunFolder(folder)
    record = TrackingRecord(run)
    shown = outcome or outcome_of(folder)
    show_outcome([name], Tracked(folder, "job", CONFIG, record.id), record, read_steps(run.metrics), shown, said.append)


def offline_runs(folder: Path) -> list[Path]:
    return sorted((folder / "wandb").glob("offline-run-*"))


def test_a_training_that_continues_is_one_whole_wandb_run(
    tmp_path: Path, said: list[str], no_settings: Callable[[], Mapping[str, str]]
) -> None:
    folder, before = tmp_path / "run", no_settings()
    train(folder, "wandb", said, range(4))
    [first] = offline_runs(folder)
    # Killed after step 3, it continues from the checkpoint of step 2.
    train(folder, "wandb", said, range(3, 5))
    [second] = offline_runs(folder)
    show(folder, "wandb", said)
    [last] = offline_runs(folder)
    assert len({first, second, last}) == 3
    found = wandb_file.read(last)
    assert (found.id, found.project, found.name) == (TrackingRecord(RunFolder(folder)).id, "rankwright", "job")
    assert all(found.id in path.name for path in (first, second, last))
    assert {k: v for k, v in found.config.items() if k != "_wandb"} == {"seed": 3, "train.learning_rate": 0.1}
    assert {step: row["loss"] for step, row in found.history.items()} == {n: n / 8 for n in range(5)}
    assert found.repeated == []
    assert found.summary["test/held-out/tuned/minus_base_low"] == -0.25
    assert found.summary["verdict"] == "Do not deploy: a | b. Gate, FAILED: why."
    assert f"report-{found.id}" in found.artifacts
    [page] = (last / "files" / "media" / "html").iterdir()
    assert "<p>a page</p>" in page.read_text()
    [table] = (last / "files" / "media" / "table").iterdir()
    assert json.loads(table.read_text())["data"] == [["held-out", "tuned", 0.5, None]]
    assert [line.partition("`wandb sync ")[0] for line in said] == [
        *["tracker wandb: offline: upload it with "] * 2,
        "tracker wandb: has results, verdict and report.html; offline: upload it with ",
    ]
    # Other libraries of the process keep their own settings.
    assert no_settings() == before


def test_the_runs_of_a_sweep_are_a_group_in_wandb(tmp_path: Path, said: list[str]) -> None:
    folder = tmp_path / "run"
    open_trackers(["wandb"], folder, 0, run_name="job", config=CONFIG, say=said.append, group="my-sweep")[-1].close()
    [one] = offline_runs(folder)
    assert (wandb_file.read(one).group, wandb_file.read(one).name) == ("my-sweep", "job")
    # The results are shown by a command that knows nothing of the sweep.
    run = RunFolder(folder)
    record = TrackingRecord(run)
    tracked = Tracked(folder, "job", CONFIG, record.id, record.group)
    show_outcome(["wandb"], tracked, record, read_steps(run.metrics), outcome_of(folder), said.append)
    [one] = offline_runs(folder)
    assert wandb_file.read(one).group == "my-sweep"
    train(tmp_path / "other", "wandb", said, range(1))
    assert wandb_file.read(offline_runs(tmp_path / "other")[0]).group == ""


def test_the_same_outcome_is_shown_once(tmp_path: Path, said: list[str]) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    show(folder, "wandb", said)
    show(folder, "wandb", said)
    assert len(said) == 1 and len(offline_runs(folder)) == 1
    show(folder, "wandb", said, replace(outcome_of(folder), page=None))
    assert said[1].startswith("tracker wandb: has results and verdict; offline")
    [last] = offline_runs(folder)
    assert not (last / "files" / "media" / "html").exists()


def test_a_training_that_begins_is_another_wandb_run(tmp_path: Path, said: list[str]) -> None:
    train(tmp_path / "run", "wandb", said, range(3))
    train(tmp_path / "run", "wandb", said, range(2))
    runs = offline_runs(tmp_path / "run")
    found = [wandb_file.read(folder) for folder in runs]
    assert len(runs) == 2 and found[0].id != found[1].id
    assert sorted(len(run.history) for run in found) == [2, 3]


def test_a_run_of_the_caller_goes_on(tmp_path: Path, said: list[str]) -> None:
    import wandb

    own = wandb.init(project="own", dir=str(tmp_path), mode="offline", settings=wandb.Settings(silent=True))
    train(tmp_path / "run", "wandb", said, range(2))
    assert wandb.run is own
    own.log({"mine": 1.0})
    own.finish()
    [found] = [wandb_file.read(folder) for folder in offline_runs(tmp_path)]
    assert found.history == {0: {"mine": 1.0}}


class Refusing(BaseHTTPRequestHandler):
    """A server that knows no key."""

    def do_POST(self) -> None:
        self.send_error(401)

    do_HEAD = do_GET = do_POST

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(params=["nobody", "refusing"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """wandb has a key, and a server that does not answer, or refuses it."""
    import wandb

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        # Nothing listens at port 9.
        port = http.server_port if request.param == "refusing" else 9
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setattr("rankwright.training.trackers.SECONDS", 2)
        # It reads the environment once.
        wandb.teardown()
        yield
        http.shutdown()
    wandb.teardown()


@pytest.mark.usefixtures("server")
def test_without_the_server_the_run_is_offline_and_the_key_nowhere(tmp_path: Path, said: list[str]) -> None:
    train(tmp_path / "run", "wandb", said, range(2))
    [line] = said
    assert line.startswith("tracker wandb: offline (no connection: ") and "\n" not in line
    [folder] = offline_runs(tmp_path / "run")
    assert len(wandb_file.read(folder).history) == 2
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 4
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def test_an_error_is_one_line_without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "abcdefgh-secret")
    assert reason(ValueError("one\n  two\x1b abcdefgh-secret")) == "one two\\x1b ***"
    assert reason(TimeoutError()) == "TimeoutError"
    assert len(reason(ValueError("x" * 5000))) < 310


@pytest.mark.parametrize("name", ["tensorboard", "trackio"])
def test_a_tracker_that_is_missing_or_broken_is_one_line_and_tried_again(
    tmp_path: Path, said: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = {"tensorboard": "torch.utils.tensorboard", "trackio": "trackio"}[name]
    monkeypatch.setitem(sys.modules, library, None)
    train(tmp_path / "run", name, said, range(2))
    show(tmp_path / "run", name, said)
    show(tmp_path / "run", name, said)
    assert [line.partition(" (")[0] for line in said] == [
        f"tracker {name} could not start",
        *[f"tracker {name} failed"] * 2,
    ]
    assert said[1].endswith("it lacks the results, `rankwright run` tries again")
    assert [row["step"] for row in read_steps(tmp_path / "run" / "metrics.jsonl")] == [0, 1]


def test_other_trackers_have_the_training_only(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "run").mkdir()
    show(tmp_path / "run", "aim", said)
    show(tmp_path / "run", "aim", said)
    assert said == ["tracker aim: has the training only; wandb, trackio, tensorboard get the results too"]


def test_a_damaged_record_is_written_again(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.tracking.write_text('{"id": "abc", "started": 3, "shown": ["x"]}')
    record = TrackingRecord(run)
    assert (record.id, record.started, record.shown) == ("abc", [], {})
    run.tracking.write_text("no")
    assert TrackingRecord(run).id == TrackingRecord(run).id != TrackingRecord(run, new=True).id


def test_check_names_what_is_missing() -> None:
    check_trackers(["wandb"])
    with pytest.raises(UserError, match=r"unknown tracker 'wanbd', did you mean 'wandb'\? \(known: .*tensorboard"):
        check_trackers(["wandb", "wanbd"])
    with pytest.raises(UserError, match=r"^comet_ml is not installed: `pip install comet-ml`, or leave it out$"):
        check_trackers(["wandb", "comet_ml"])


# TensorBoard, by its own reader.


@pytest.fixture
def events() -> Callable[[Path], Any]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def read(folder: Path) -> Any:
        return accumulator.EventAccumulator(str(folder / "tensorboard")).Reload()

    return read


def scalars(found: Any, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in found.Scalars(name)]


def text(found: Any, name: str) -> str:
    [event] = found.Tensors(f"{name}/text_summary")
    return str(event.tensor_proto.string_val[0].decode())


def test_tensorboard_has_each_step_once_and_the_outcome(
    tmp_path: Path, said: list[str], events: Callable[[Path], Any]
) -> None:
    folder = tmp_path / "run"
    train(folder, "tensorboard", said, range(4))
    train(folder, "tensorboard", said, range(3, 5), loss=1.0)
    show(folder, "tensorboard", said)
    found = events(folder)
    steps = [(0, 0.0), (1, 0.125), (2, 0.25), (3, 1.375), (4, 1.5)]
    assert scalars(found, "loss") == steps
    assert scalars(found, "test/held-out/tuned/minus_base_low") == [(5, -0.25)]
    assert "Do not deploy" in text(found, "verdict") and "learning_rate: 0.1" in text(found, "recipe")
    assert text(found, "results").splitlines()[2] == "| held-out | tuned | 0.5000 |  |"
    # In the same run, for its table of settings.
    assert any(tag.startswith("_hparams_") for tag in found.summary_metadata)
    again = replace(outcome_of(folder), values={"test/held-out/tuned/nDCG@10": 0.75})
    show(folder, "tensorboard", said, again)
    found = events(folder)
    assert scalars(found, "loss") == steps
    assert scalars(found, "test/held-out/tuned/nDCG@10") == [(5, 0.75)]


def test_tensorboard_gets_what_was_trained_without_it(
    tmp_path: Path, said: list[str], events: Callable[[Path], Any]
) -> None:
    folder = tmp_path / "run"
    for tracker in open_trackers([], folder, 0, run_name="job", config=CONFIG, say=said.append):
        tracker.log({"loss": 2.0}, step=1)
        tracker.close()
    train(folder, "tensorboard", said, range(2, 4))
    assert scalars(events(folder), "loss") == [(1, 2.0), (2, 0.25), (3, 0.375)]
    train(folder, "tensorboard", said, range(2))
    assert scalars(events(folder), "loss") == [(0, 0.0), (1, 0.125)]


# trackio, in a process of its own: its folder is fixed when it is imported.

TRACKIO = """
import json, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_trackers import show, train
said, folder = [], Path({folder!r})
train(folder, "trackio", said, range(0, 4))
train(folder, "trackio", said, range(3, 5), loss=1.0)
show(folder, "trackio", said)
from trackio.sqlite_storage import SQLiteStorage
from trackio import Api
runs = list(Api().runs("rankwright"))
logs = SQLiteStorage.get_logs("rankwright", runs[0].name)
config = {{k: v for k, v in runs[0].config.items() if not k.startswith("_")}}
print(json.dumps({{"said": said, "runs": [r.name for r in runs], "config": config, "logs": logs}}))
"""


@pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is not installed: see scripts/README.md")
def test_trackio_has_each_step_once_and_the_outcome(tmp_path: Path) -> None:
    code = TRACKIO.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "run"))
    environment = jobs.environment(TRACKIO_DIR=str(tmp_path / "trackio"))
    environment["PYTHONPATH"] += os.pathsep + str(Path(jobs.__file__).parent)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # What trackio prints of itself goes to stderr.
    found = json.loads(done.stdout)
    assert len(found["runs"]) == 1 and found["config"] == {"seed": 3, "train.learning_rate": 0.1}
    logged = [(row["step"], row["loss"]) for row in found["logs"] if "loss" in row]
    # What it had before the kill stays: the steps that come again have the same values.
    assert logged == [(0, 0.0), (1, 0.125), (2, 0.25), (3, 0.375), (4, 1.5)]
    [shown] = [row for row in found["logs"] if "verdict" in row]
    assert shown["test/held-out/tuned/nDCG@10"] == 0.5 and shown["step"] == 5
    assert "Do not deploy" in shown["verdict"]["_value"]
    assert shown["report"]["_type"] == "trackio.html"
    assert found["said"][-1].startswith("tracker trackio: has results, verdict and report.html; run job-")


def test_a_place_gets_only_the_steps_that_it_lacks() -> None:
    class Steps:
        def __init__(self, next_step: int) -> None:
            self.next_step, self.steps = next_step, list[int]()

        def log(self, values: Mapping[str, float], step: int) -> None:
            self.steps.append(step)

    place: Any = Steps(2)
    replay(place, [{"step": n, "loss": 1.0} for n in range(4)])
    assert (place.steps, place.next_step) == ([2, 3], 4)
    replay(place, [])
    assert place.next_step == 4
