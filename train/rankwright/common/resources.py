"""Where recipes, cards and fixtures live (checkout or wheel), and what a path in a recipe means."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from rankwright.common.errors import UserError, did_you_mean, one_line

PACKAGE = Path(__file__).resolve().parents[1]
FIXTURES = "fixtures/"
# JSON is YAML: the recipe.json of a run is a recipe.
YAML_SUFFIXES = (".yaml", ".yml", ".json")
LONGEST_HUB_ID = 96
_HUB_ID = re.compile(rf"(?=.{{1,{LONGEST_HUB_ID}}}$)[\w.-]+(/[\w.-]+)?")
# The limit of common file systems, in bytes.
LONGEST_FILE_NAME = 255
# A folder without any of them is not a model.
MODEL_FILES = ("config.json", "adapter_config.json", "modules.json")
# Known names that a message lists.
MOST_NAMES = 30


# What to give in place of a folder that is not there.
RUN = "give that of a run, such as runs/NAME"
EXPORTED = "give an exported one, such as runs/NAME/export/hf"


def recipes_dir() -> Path:
    """The folder of the recipes: of the checkout, or embedded in the wheel."""
    return _embedded("recipes", "_recipes")


def data_dir() -> Path:
    """The folder of the cards and fixtures: of the checkout, or embedded in the wheel."""
    return _embedded("data", "_data")


def recipe_files() -> dict[str, Path]:
    """Name -> file of every shipped recipe; a name is the path inside recipes/ without `.yaml`."""
    return {name: path for name, path in _named_files(recipes_dir(), "**/*.yaml").items() if not is_sweep(path)}


def sweep_files() -> dict[str, Path]:
    """Name -> file of every shipped sweep, which lie beside the recipes."""
    return {name: path for name, path in _named_files(recipes_dir(), "**/*.yaml").items() if is_sweep(path)}


def is_sweep(path: Path) -> bool:
    """Whether a readable YAML file has the key that makes it a sweep."""
    try:
        return re.search(r"^over\s*:", path.read_text(encoding="utf-8"), re.MULTILINE) is not None
    except (OSError, UnicodeDecodeError):
        return False


def schema_file() -> Path:
    """The JSON schema of recipes."""
    return recipes_dir() / "schema.json"


def card_files() -> dict[str, Path]:
    """Name -> file of every shipped card."""
    return _named_files(data_dir(), "*.yaml")


def find_yaml(text: str, known: dict[str, Path], *, kind: str, folder: Path = Path()) -> Path:
    """The file that `text` means: a path (ends in .yaml, starts with . / ~), or one of the `known` names.

    A relative path starts at `folder`. Raises UserError with similar names.
    """
    if text.endswith(YAML_SUFFIXES) or text.startswith((".", "/", "~")):
        path = folder / expand(text)
        if not _is(path, "is_file"):
            raise UserError(f"{kind} {text!r}: no such file {path}{nearby(path)}")
        return path
    if text not in known:
        # The last part alone may be similar: `finance` for `offline/finance`.
        near = did_you_mean(text, known) or did_you_mean(text, [k for k in known if k.endswith(f"/{text}")])
        local = f"; to use the file {text}.yaml, write its suffix" if _is(folder / f"{text}.yaml", "is_file") else ""
        names = ", ".join(sorted(known)[:MOST_NAMES]) or "none"
        names += f", and {len(known) - MOST_NAMES} more" if len(known) > MOST_NAMES else ""
        raise UserError(f"unknown {kind} {text!r}{near}{local} (known: {names})")
    return known[text]


# In the message of a path below data.root that is not there.
ROOT_STARTS = "relative paths start at data.root, which is"


def resolve_path(text: str, *, root: str | None) -> Path:
    """The file or folder that a recipe's `path` means.

    An absolute path stays; `fixtures/...` is embedded; any other starts at `root` (data.root), or at the working
    directory when there is none: paths of recipe files are rewritten to start there when they are loaded. Raises
    UserError when nothing is there.
    """
    path = expand(text)
    if text.startswith(FIXTURES):
        path, start = data_dir() / path, ""
    elif path.is_absolute():
        start = ""
    elif root is not None:
        path = expand(root) / path
        start = f"; {ROOT_STARTS} {root!r}"
    else:
        start = "; relative paths start at the recipe's folder, or at the working directory where typed, unless "
        start += "data.root is set: data.root=FOLDER"
    kind = kind_of_path(path)
    if kind == "nothing":
        raise UserError(f"{Path.cwd() / path}: no such file or folder{nearby(path)}{start}")
    if kind == "other":
        raise UserError(f"{path}: is a pipe or a device: give a file or a folder")
    return path


def resolve_base(base: str, key: str = "model.base") -> str:
    """What `model.base`, or another key, means: the embedded folder, a local folder, or else a hub id, unchanged.

    Raises UserError for what looks like a path but does not exist.
    """
    if base.startswith(FIXTURES):
        return str(resolve_path(base, root=None))
    path = expand(base)
    if _is(path, "is_dir"):
        return str(path)
    if _is(path, "exists"):
        raise UserError(f"{key}: {base!r} is a file, must be a folder with config.json, or a hub id")
    # A hub id is NAME or OWNER/NAME; one whose owner is a folder here is more likely a mistyped path.
    parts = path.parts
    if base.startswith((".", "/", "~")) or len(parts) > 2 or (len(parts) == 2 and _is(Path(parts[0]), "is_dir")):
        raise UserError(f"{key}: {Path.cwd() / path}: no such folder{nearby(path)}; a hub id is OWNER/NAME")
    if not _HUB_ID.fullmatch(base):
        shown = base if len(base) <= LONGEST_HUB_ID else f"{base[:LONGEST_HUB_ID]}..."
        raise UserError(f"{key}: {shown!r} is neither a folder here nor a hub id, which is NAME or OWNER/NAME")
    return base


def resolve_model(name: str, key: str) -> str:
    """As resolve_base. Raises UserError too for a local folder that holds no model: known before it is loaded."""
    folder = resolve_base(name, key)
    if _is(Path(folder), "is_dir") and not any(_is(Path(folder) / file, "is_file") for file in MODEL_FILES):
        raise UserError(f"{key}: {name!r} holds none of {', '.join(MODEL_FILES)}: give the folder of a model")
    return folder


def shown(path: Path) -> str:
    """A path as messages show it: relative where it is inside the working directory."""
    full = Path.cwd() / path
    return str(full.relative_to(Path.cwd()) if full.is_relative_to(Path.cwd()) else path)


def _embedded(checkout: str, installed: str) -> Path:
    repository = PACKAGE.parent.parent
    if PACKAGE.parent.name == "train" and (repository / "pyproject.toml").is_file():
        return repository / checkout
    return PACKAGE / installed


def _named_files(folder: Path, pattern: str) -> dict[str, Path]:
    named = {p.relative_to(folder).with_suffix("").as_posix(): p for p in folder.glob(pattern)}
    return dict(sorted(named.items()))


def expand(text: str) -> Path:
    """A path with `~` for the home folder."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # an unknown user: `~nobody/x`
        return Path(text)


def _is(path: Path, question: str) -> bool:
    """Path.exists and similar methods; False where they raise (a name too long, a folder that we may not read)."""
    try:
        return bool(getattr(path, question)())
    except (OSError, ValueError):
        return False


def is_there(path: Path) -> bool:
    """Whether a file or folder is there; a name that no file can have is not."""
    return _is(path, "exists")


def kind_of_path(path: Path) -> Literal["file", "folder", "other", "nothing"]:
    """What lies at a path; `other`: a pipe, a socket or a device, which reading may wait for without an end."""
    if not _is(path, "exists"):
        return "nothing"
    return "file" if _is(path, "is_file") else "folder" if _is(path, "is_dir") else "other"


def existing_folder(path: Path, advice: str) -> Path:
    """The folder that a command is given, known before anything heavy is imported. Raises UserError without one."""
    if not _is(path, "is_dir"):
        raise UserError(f"{one_line(str(path))}: no such folder{nearby(path)}: {advice}")
    return path


def check_output(key: str, path: Path, kind: Literal["file", "folder"] = "file") -> None:
    """Raises UserError where a file or folder cannot be written, before anything is computed for it."""
    if any(len(os.fsencode(part)) > LONGEST_FILE_NAME for part in path.parts):
        raise UserError(f"{key}: a name in {path} is longer than {LONGEST_FILE_NAME} bytes: give a shorter one")
    if kind == "file" and path.name in ("", ".."):
        raise UserError(f"{key}: cannot write to {path}: it is a folder: give the name of a file")
    for place in (path, *path.parents):
        found, wanted = kind_of_path(place), kind if place == path else "folder"
        if found == "nothing":
            continue
        if found != wanted:
            is_what = {"file": "a file", "folder": "a folder", "other": "a pipe or a device"}[found]
            which = "it" if place == path else place
            raise UserError(f"{key}: cannot write to {path}: {which} is {is_what}: give another {kind}")
        # A file is replaced as a whole, so its folder must be writable.
        folder = place if found == "folder" else place.parent
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(f"{key}: cannot write to {folder}: mend its rights, or give another {kind}")
        return


def nearby(path: Path) -> str:
    """`, did you mean X?` from the nearest folder that exists above a missing path."""
    path = Path.cwd() / path
    if _is(path, "is_symlink"):
        return " (it is a link that leads nowhere)"
    for parent in path.parents:
        if _is(parent, "is_dir"):
            wanted = path.relative_to(parent).parts[0]
            try:
                names = [p.name for p in parent.iterdir()]
            except OSError:
                return ""
            shown = ", ".join(sorted(names)[:8]) or "nothing"
            return did_you_mean(wanted, names) or f" ({parent} holds {shown}{', ...' if len(names) > 8 else ''})"
    return ""
