"""`rankwright push`: a proven export folder to the hub, private unless asked otherwise."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rankwright.common import console
from rankwright.common.errors import UserError, did_you_mean, one_line
from rankwright.common.files import read_json_object
from rankwright.export.card import CARD, PLACE, SERVE
from rankwright.export.proof.parity import PARITY_FILE
from rankwright.export.proof.sums import SUMS_FILE, changes, read_sums

# Where PATH is the model: anywhere in code, and in these sentences of our templates. Any other is a word of the user's.
FENCE = re.compile(r"(^```[^\n]*\n.*?^```$)", re.DOTALL | re.MULTILINE)
IN_CODE = re.compile(rf"(?<![\w$/.-]){PLACE}(?![\w=/-])")
IN_SENTENCES = re.compile(
    rf"(?<=^`){PLACE}(?=` stands for this model:)|(?<=\(from the hub: `hf download ){PLACE}(?= --local-dir FOLDER`)"
    rf'|(?<=\(model="){PLACE}(?=")|(?<=\(model_name="){PLACE}(?=")',
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Push:
    """What would go where. files: name in the repository -> bytes, largest first."""

    folder: Path
    repository: str
    private: bool
    revision: str | None
    files: dict[str, int]


def plan_push(run: Path, target: str, repository: str, *, private: bool = True, revision: str | None = None) -> Push:
    """Look at run/export/target. Raises UserError where there is no such proven export, or for a wrong repository."""
    _check_name(repository)
    # Path.is_dir() raises for a name that is too long.
    if not os.path.isdir(run):  # noqa: PTH112
        raise UserError(f"{one_line(str(run))}: no such folder: give that of a run, such as runs/NAME")
    exports = run / "export"
    known = sorted(path.parent.name for path in exports.glob(f"*/{PARITY_FILE}"))
    if target not in known:
        none = f"it has no exports: run `rankwright export {run / 'recipe.json'}`"
        have = f"it has {', '.join(known)}" if known else none
        raise UserError(f"{run}: no export {target!r}{did_you_mean(target, known)}: {have}")
    folder = exports / target
    record = read_json_object(folder / PARITY_FILE) or {}
    found = changes(folder)
    if record.get("failures") != [] or found is None:
        raise UserError(f"{folder / PARITY_FILE}: its parity was not proven: export it again")
    if found.any:
        names = one_line(", ".join(sorted([*found.changed, *found.missing, *found.new])))
        raise UserError(
            f"{folder}: not what was proven: {names} changed, missing or new since the export: "
            "move other files away, or export it again"
        )
    for name in (CARD, SERVE):
        _read_text(folder / name)
    # Texts for people may have been edited. Hidden files stay here.
    texts = [path.name for path in folder.iterdir() if path.suffix == ".md" and path.is_file()]
    sent = [*(read_sums(folder) or ()), *texts, SUMS_FILE]
    sizes = {name: (folder / name).stat().st_size for name in sent}
    files = dict(sorted(sizes.items(), key=lambda entry: (-entry[1], entry[0])))
    return Push(folder, repository, private, revision, files)


def _read_text(path: Path) -> str:
    """A text for people, "" without one. Raises UserError for one that an editor saved in another encoding."""
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}): save it in UTF-8") from None


def _check_name(repository: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        first = str(error).splitlines()[0]
        raise UserError(f"repository {repository!r}: must be OWNER/NAME as the hub takes it: {first}") from None
    if repository.count("/") != 1:
        raise UserError(f"repository {repository!r}: must be OWNER/NAME")


def show_push(push: Push, *, dry_run: bool) -> None:
    """Print what goes where, one line per file."""
    visible = "private" if push.private else "PUBLIC"
    branch = f", branch {push.revision}" if push.revision else ""
    for name, size in push.files.items():
        console.say(f"  {size:>13,} bytes  {name}")
    start = "would push" if dry_run else "pushing"
    what = f"{len(push.files)} files, {sum(push.files.values()) / 1e6:,.1f} MB, of {push.folder}"
    console.say(f"{start} {what} to {push.repository} ({visible}{branch})")
    console.say("files in the repository that are not in this export are removed there")


def send(push: Push) -> str:
    """Create the repository where there is none, and commit all files at once; the commit's address.

    An existing repository keeps its visibility; a public one is refused unless the push is public. Files that are not
    in the export are removed, so that the repository holds this export alone. Raises UserError when the hub refuses or
    cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api = HfApi()
    try:
        api.create_repo(push.repository, private=push.private, exist_ok=True)
        if push.private and api.repo_info(push.repository).private is False:
            raise UserError(f"{push.repository}: exists already and is public: give --public, or another name")
        if push.revision:
            api.create_branch(push.repository, branch=push.revision, exist_ok=True)
        with prepared(push) as folder:
            commit = api.upload_folder(
                repo_id=push.repository,
                folder_path=folder,
                revision=push.revision,
                commit_message="Export of Rankwright",
                delete_patterns="*",
            )
    except LocalTokenNotFoundError:
        raise UserError("the hub wants a token: set HF_TOKEN, or run `hf auth login`") from None
    except OfflineModeIsEnabled:
        raise UserError(f"{push.repository}: HF_HUB_OFFLINE is set, so the hub is not contacted: unset it") from None
    except HfHubHTTPError as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"{push.repository}: the hub refused: {first}: check the name and what your token may write"
        ) from None
    except Exception as error:
        # Errors of httpx or httpx2, one of which huggingface_hub uses by its version, are not OSErrors.
        if not isinstance(error, OSError) and not type(error).__module__.startswith("httpx"):
            raise
        raise UserError(
            f"{push.repository}: the hub cannot be reached: {type(error).__name__}: try again later"
        ) from None
    return str(commit.commit_url)


def with_name(text: str, repository: str) -> str:
    """The text of a card with the repository's name where PATH stands for the model."""
    parts = FENCE.split(text)
    # Every second one is code.
    places = [(IN_SENTENCES, IN_CODE)[number % 2] for number in range(len(parts))]
    return "".join(place.sub(lambda _: repository, part) for place, part in zip(places, parts, strict=True))


@contextmanager
def prepared(push: Push) -> Iterator[Path]:
    """A copy whose README.md and SERVE.md name the repository in place of PATH; large files are links, not copies."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "export"
        for name in push.files:
            source, target = push.folder / name, folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if name in (CARD, SERVE):
                target.write_text(with_name(_read_text(source), push.repository), encoding="utf-8")
            else:
                target.symlink_to(source.resolve())
        yield folder
