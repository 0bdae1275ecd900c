"""`rankwright push`: a proven export folder to the hub, private unless asked otherwise."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rankwright import console
from rankwright.errors import UserError, did_you_mean
from rankwright.export.card import CARD, PLACE, SERVE
from rankwright.export.records import PARITY_FILE

# OWNER/NAME as the hub takes it.
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class Push:
    """What would go where. files: name in the repository -> bytes, largest first."""

    folder: Path
    repository: str
    private: bool
    revision: str | None
    files: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.files.values())


def plan_push(run: Path, target: str, repository: str, *, private: bool = True, revision: str | None = None) -> Push:
    """Look at run/export/target. Raises UserError where there is no such proven export, or for a wrong repository."""
    if not REPOSITORY.fullmatch(repository):
        raise UserError(f"repository {repository!r}: must be OWNER/NAME")
    exports = run / "export"
    known = sorted(path.parent.name for path in exports.glob(f"*/{PARITY_FILE}"))
    if target not in known:
        have = (
            f"it has {', '.join(known)}"
            if known
            else f"it has no exports: run `rankwright export {run / 'recipe.json'}`"
        )
        raise UserError(f"{run}: no export {target!r}{did_you_mean(target, known)}: {have}")
    folder = exports / target
    failures = json.loads((folder / PARITY_FILE).read_text(encoding="utf-8")).get("failures")
    if failures != []:
        raise UserError(f"{folder / PARITY_FILE}: its parity was not proven: export it again")
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    files = dict(sorted(sizes.items(), key=lambda entry: (-entry[1], entry[0])))
    return Push(folder, repository, private, revision, files)


def show_push(push: Push, *, dry_run: bool) -> None:
    """What goes where, a line a file."""
    visible = "private" if push.private else "PUBLIC"
    branch = f", branch {push.revision}" if push.revision else ""
    for name, size in push.files.items():
        console.say(f"  {size:>13,} bytes  {name}")
    start = "would push" if dry_run else "pushing"
    what = f"{len(push.files)} files, {push.total / 1e6:,.1f} MB, of {push.folder}"
    console.say(f"{start} {what} to {push.repository} ({visible}{branch})")


def send(push: Push) -> str:
    """Create the repository where there is none, and commit all files at once; the commit's address.

    An existing repository keeps its visibility. Files that it has and the export has not are removed, so that it holds
    this export alone. Raises UserError when the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi()
    try:
        api.create_repo(push.repository, private=push.private, exist_ok=True)
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
    except HfHubHTTPError as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"{push.repository}: the hub refused: {first}: check the name and what your token may write"
        ) from None
    except OSError as error:
        raise UserError(
            f"{push.repository}: the hub cannot be reached: {type(error).__name__}: try again later"
        ) from None
    return str(commit.commit_url)


@contextmanager
def prepared(push: Push) -> Iterator[Path]:
    """A copy whose README.md and SERVE.md name the repository in place of PATH; large files are links, not copies."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "export"
        shutil.copytree(push.folder, folder, copy_function=_link)
        for name in (CARD, SERVE):
            path = folder / name
            if path.is_file():
                text = path.read_text(encoding="utf-8")
                # A link would change the export itself.
                path.unlink()
                path.write_text(re.sub(rf"\b{PLACE}\b", push.repository, text), encoding="utf-8")
        yield folder


def _link(source: str, target: str) -> None:
    Path(target).symlink_to(Path(source).resolve())
