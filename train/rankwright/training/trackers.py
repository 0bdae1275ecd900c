"""A run's place in wandb, trackio, tensorboard and Accelerate's other trackers; none of them can stop a training.

metrics.jsonl is what counts: a place that lacks steps of it gets them when it is opened.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rankwright.common.errors import UserError, no_such, one_line
from rankwright.common.files import read_json_object
from rankwright.common.hashing import content_hash
from rankwright.common.resources import shown
from rankwright.common.run_folder import RunFolder

# The project in wandb and trackio, unless WANDB_PROJECT names another.
PROJECT = "rankwright"
# wandb waits this long for a server that does not answer, at the start and at the end.
SECONDS = 60
# The most characters that are shown of a library's error.
LONGEST = 300


@dataclass(frozen=True, slots=True)
class Tracked:
    """The run that trackers know: folder, name, settings (`section.key` -> value). id, group: see TrackingRecord."""

    folder: Path
    name: str
    config: Mapping[str, Any]
    id: str
    group: str | None = None

    @property
    def plain_config(self) -> dict[str, int | float | str]:
        """The settings that every library takes: lists and sections are left out."""
        return {k: v for k, v in self.config.items() if isinstance(v, int | float | str)}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to after training.

    values: name of a number -> the number, such as `test/finance/tuned/nDCG@10`
    sentences: the verdict, first the sentence that decides, then those of the gate
    rows: the table of results, one mapping per test set and system, all with the same keys
    page: report.html, or None where it shall stay here; step: the last step of training
    """

    values: Mapping[str, float]
    sentences: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    page: Path | None
    step: int

    def table(self) -> str:
        """The rows as a table in Markdown."""
        if not self.rows:
            return ""
        lines = [list(self.rows[0]), ["---"] * len(self.rows[0]), *([*row.values()] for row in self.rows)]
        return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: Any) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)
    return text.replace("|", "\\|")


class Place(Protocol):
    """A run in another library.

    next_step: the first step that it does not have yet; where: for the reader; pages: whether it can show report.html.
    """

    next_step: int
    where: str
    pages: bool

    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def show(self, outcome: Outcome) -> None: ...

    def close(self) -> None: ...


class Wandb:
    """Without a key, or without the server, the run is written offline.

    `wandb sync` of an offline folder replaces what the server has of that run, so each folder holds the whole run, and
    the ones before it are removed unless they were uploaded.
    """

    pages = True

    def __init__(self, run: Tracked) -> None:
        import wandb

        mode, why = _wandb_mode(wandb.setup().settings.base_url)
        try:
            self._run = self._open(run, mode)
        except Exception as error:
            if mode == "offline" or wandb.run is not None:
                raise
            mode, why = "offline", f" (no connection: {reason(error)})"
            # Its own process still holds the id.
            wandb.teardown()
            self._run = self._open(run, mode)
        self._wandb = wandb
        # What a server has of a run that continues is not sent to it again.
        self.next_step = self._run.step if self._run.resumed else 0
        self._own = Path(self._run.dir).parent
        self._offline = self._run.settings.mode in ("offline", "dryrun")
        if self._offline:
            self.where = f"offline{why}: upload it with `wandb sync {shown(self._own)}`"
        else:
            self.where = self._run.url or f"WANDB_MODE={mode}"

    @staticmethod
    def _open(run: Tracked, mode: str | None) -> Any:
        import wandb

        # The terminal's text, the code and git's remote are not sent. A run of the caller's own goes on beside ours.
        wanted = {"silent": True, "console": "off", "disable_git": True, "save_code": False, "reinit": "create_new"}
        wanted |= {"init_timeout": SECONDS, "finish_timeout": SECONDS}
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            dir=str(run.folder),
            name=run.name,
            id=run.id,
            group=run.group,
            config=run.plain_config,
            resume="allow",
            mode=mode,  # type: ignore[arg-type]
            settings=wandb.Settings(**{k: v for k, v in wanted.items() if k in wandb.Settings.model_fields}),
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def show(self, outcome: Outcome) -> None:
        self._run.summary.update(dict(outcome.values))
        self._run.summary["verdict"] = " ".join(outcome.sentences)
        media: dict[str, Any] = {}
        if outcome.rows:
            rows = [list(row.values()) for row in outcome.rows]
            media["results"] = self._wandb.Table(columns=list(outcome.rows[0]), data=rows)
        if outcome.page is not None:
            media["report"] = self._wandb.Html(str(outcome.page), inject=False)
            artifact = self._wandb.Artifact(f"report-{self._run.id}", type="report")
            artifact.add_file(str(outcome.page))
            self._run.log_artifact(artifact)
        self._run.log(media)

    def close(self) -> None:
        self._run.finish()
        if self._offline:
            for folder in self._own.parent.glob(f"offline-run-*-{self._run.id}*"):
                if folder != self._own and not any(folder.glob("*.synced")):
                    shutil.rmtree(folder, ignore_errors=True)


def _wandb_mode(server: str) -> tuple[str | None, str]:
    """(mode, why): `offline` without a key, where wandb would wait for one at the terminal, and without the server.

    None leaves the mode to wandb.
    """
    import requests

    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"], ""
    keys = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
    # `wandb login` writes the key into .netrc.
    if not any(map(os.environ.get, keys)) and requests.utils.get_netrc_auth(server) is None:
        return "offline", ""
    try:
        requests.head(server, timeout=SECONDS)
    except requests.RequestException as error:
        return "offline", f" (no connection: {reason(error)})"
    return None, ""


class Trackio:
    """Local, in trackio's own folder, unless TRACKIO_SPACE_ID or TRACKIO_SERVER_URL names another place."""

    pages = True

    def __init__(self, run: Tracked) -> None:
        import trackio

        self._trackio = trackio
        project = os.environ.get("TRACKIO_PROJECT") or PROJECT
        name = f"{run.name}-{run.id}"
        with _on_stderr():
            self._run = trackio.init(project=project, name=name, resume="allow", config=run.plain_config, embed=False)
        # It would keep a step twice.
        self.next_step = getattr(self._run, "_next_step", 0)
        self.where = f'run {name}: see it with `trackio show --project "{project}"`'

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def show(self, outcome: Outcome) -> None:
        values: dict[str, Any] = dict(outcome.values)
        values["verdict"] = self._trackio.Markdown("\n\n".join([*outcome.sentences, outcome.table()]))
        if outcome.page is not None:
            values["report"] = self._trackio.Html(str(outcome.page))
        self._run.log(values, step=max(self.next_step, outcome.step + 1))

    def close(self) -> None:
        with _on_stderr():
            # Not run.finish(), after which it would finish the run again at the end of the process.
            self._trackio.finish()


class TensorBoard:
    """Event files in the folder `tensorboard` of the run. The page stays beside them, since it shows no pages."""

    pages = False

    def __init__(self, run: Tracked, next_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = RunFolder(run.folder).tensorboard
        self.next_step = next_step
        # Readers leave out what earlier files have of this step and later ones.
        self._writer = SummaryWriter(str(folder), purge_step=next_step)
        self._config = run.plain_config
        self.where = f"see it with `tensorboard --logdir {shown(run.folder.parent)}`"
        if next_step == 0:
            lines = (f"    {key}: {value}" for key, value in self._config.items())
            self._writer.add_text("recipe", "\n".join(lines), 0)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def show(self, outcome: Outcome) -> None:
        from torch.utils.tensorboard import summary

        step = outcome.step + 1
        for name, value in outcome.values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.add_text("verdict", "\n\n".join(outcome.sentences), step)
        self._writer.add_text("results", outcome.table(), step)
        # Not by add_hparams, which makes a run of its own for them.
        made: Any = summary
        writer: Any = self._writer
        for part in made.hparams(self._config, dict(outcome.values)):
            writer._get_file_writer().add_summary(part)

    def close(self) -> None:
        self._writer.close()


class Other:
    """Accelerate's other trackers: they get what training logs, in a run of their own after each start."""

    pages = False

    def __init__(self, name: str, run: Tracked, next_step: int) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        factory = LOGGER_TYPE_TO_CLASS[name]
        self.next_step = next_step
        self.where = ""
        options = {"logging_dir": str(run.folder)} if factory.requires_logging_directory else {}
        self._tracker = factory(run.name, **options)
        getattr(self._tracker, "start", lambda: None)()
        self._tracker.store_init_configuration(run.plain_config)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._tracker.log(dict(values), step=step)

    def show(self, outcome: Outcome) -> None:
        raise LookupError("shows no results")

    def close(self) -> None:
        self._tracker.finish()


# The trackers whose run is opened again after training, to show the outcome.
LASTING = ("wandb", "trackio", "tensorboard")


def open_place(name: str, run: Tracked, next_step: int) -> Place:
    """Open a run's place in a tracker. next_step: of the training, for places that cannot tell what they have."""
    if name == "wandb":
        return Wandb(run)
    if name == "trackio":
        return Trackio(run)
    return TensorBoard(run, next_step) if name == "tensorboard" else Other(name, run, next_step)


def check_trackers(names: Sequence[str]) -> None:
    """Raises UserError for a name that Accelerate has no tracker for, and for one whose library is missing."""
    if not names:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    installed = set(map(str, get_available_trackers()))
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UserError(no_such("tracker", name, map(str, LOGGER_TYPE_TO_CLASS)))
        if name not in installed:
            package = name.replace("_", "-")
            raise UserError(f"{name} is not installed: `pip install {package}`, or leave it out")


class TrackingRecord:
    """tracking.json of a run: the id that trackers know it by, which of them started, what each of them shows.

    new: for a training that begins; else the record of the folder, if there is one. group: of runs that belong
    together, such as those of a sweep; None: that of the record.
    """

    def __init__(self, run: RunFolder, *, new: bool = False, group: str | None = None) -> None:
        self._run = run
        found = {} if new else read_json_object(run.tracking) or {}
        started, shown_by = found.get("started"), found.get("shown")
        self.id = str(found.get("id") or uuid.uuid4().hex[:12])
        known = found.get("group")
        self.group = group or (known if isinstance(known, str) else None)
        self.started: list[str] = started if isinstance(started, list) else []
        self.shown: dict[str, str] = shown_by if isinstance(shown_by, dict) else {}
        self.write()

    def start(self, name: str) -> None:
        """Record that a tracker has what training logs."""
        self.started = [*dict.fromkeys([*self.started, name])]
        self.write()

    def show(self, name: str, digest: str) -> None:
        """Record which outcome a tracker shows."""
        self.shown[name] = digest
        self.write()

    def write(self) -> None:
        """Write the record."""
        values = {"id": self.id, "started": self.started, "shown": self.shown}
        values |= {} if self.group is None else {"group": self.group}
        self._run.write_json(self._run.tracking, values)


def reason(error: BaseException) -> str:
    """Why a tracker failed: one line, without the values of keys and tokens of this process's environment."""
    text = " ".join((str(error) or type(error).__name__).split())
    text = one_line(text if len(text) <= LONGEST else f"{text[:LONGEST]}...")
    for name, value in os.environ.items():
        if name.endswith(("_KEY", "_TOKEN")) and len(value) >= 8:
            text = text.replace(value, "***")
    return text


def show_outcome(
    names: Sequence[str],
    run: Tracked,
    record: TrackingRecord,
    rows: Sequence[Mapping[str, Any]],
    outcome: Outcome,
    say: Callable[[str], None],
) -> None:
    """Open the run's places again and show the outcome there, where they do not show it yet. rows: of metrics.jsonl."""
    # Not of the page, which has the time of each command.
    has_page = outcome.page is not None
    digest = content_hash(outcome.values, list(outcome.sentences), list(outcome.rows), has_page)
    for name in names:
        if record.shown.get(name) == digest:
            continue
        if name not in LASTING:
            say(f"tracker {name}: has the training only; {', '.join(LASTING)} get the results too")
            record.show(name, digest)
            continue
        try:
            place = open_place(name, run, outcome.step + 1 if name in record.started else 0)
            replay(place, rows)
            place.show(outcome)
            place.close()
        except Exception as error:
            say(f"tracker {name} failed ({reason(error)}): it lacks the results, `rankwright run` tries again")
            continue
        what = "results, verdict and report.html" if place.pages and has_page else "results and verdict"
        say(f"tracker {name}: has {what}; {place.where}")
        record.start(name)
        record.show(name, digest)


def replay(place: Place, rows: Sequence[Mapping[str, Any]]) -> None:
    """Log the rows of metrics.jsonl that a place lacks."""
    for row in rows:
        if row["step"] >= place.next_step:
            place.log({name: value for name, value in row.items() if name != "step"}, row["step"])
    place.next_step = max([place.next_step, *(row["step"] + 1 for row in rows)])


@contextlib.contextmanager
def _on_stderr() -> Any:
    """Libraries print of themselves: not where `--json` prints."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
