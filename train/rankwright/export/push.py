"""`rankwright push`: a proven export folder to the hub, private unless asked otherwise."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from rankwright.common import console
from rankwright.common.errors import UserError, did_you_mean, no_such, one_line
from rankwright.common.files import read_json_object
from rankwright.common.lineage import lineage
from rankwright.common.plurals import counted
from rankwright.common.resources import RUN, existing_folder
from rankwright.common.run_folder import SUMS_FILE, RunFolder
from rankwright.data.licences.derived import OTHER, owned
from rankwright.data.licences.terms import PROPRIETARY, UNKNOWN, Term, find_term, term_names
from rankwright.export.card import CARD, PLACE, SERVE
from rankwright.export.golden import GOLDEN_FILE, REAL, Row, golden_text, read_golden, without_texts
from rankwright.export.proof.parity import PARITY_FILE
from rankwright.export.proof.sums import changes, read_sums, sums_text
from rankwright.model.prompt import CONTRACT_FILE

# Where PATH is the model: anywhere in code, and in these sentences of our templates. Any other is a word of the user's.
# What a public push of weights from own texts needs.
STATE_LICENCE = "--licence proprietary, apache-2.0, ..."
FENCE = re.compile(r"(^```[^\n]*\n.*?^```$)", re.DOTALL | re.MULTILINE)
IN_CODE = re.compile(rf"(?<![\w$/.-]){PLACE}(?![\w=/-])")
IN_SENTENCES = re.compile(
    rf"(?<=^`){PLACE}(?=` stands for this model:)|(?<=\(from the hub: `hf download ){PLACE}(?= --local-dir FOLDER`)"
    rf'|(?<=\(model="){PLACE}(?=")|(?<=\(model_name="){PLACE}(?=")',
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Push:
    """What would go where. files: name in the repository -> bytes, largest first; holds: name -> what is in it.

    texts: name -> content, of the files that are not pushed as they lie in the folder. notes: what stays here, and why.
    """

    folder: Path
    repository: str
    private: bool
    revision: str | None
    files: dict[str, int]
    holds: dict[str, str]
    texts: dict[str, str]
    notes: tuple[str, ...]


def plan_push(
    run: Path,
    target: str,
    repository: str,
    *,
    private: bool = True,
    revision: str | None = None,
    with_texts: bool = False,
    licence: str | None = None,
) -> Push:
    """Look at run/export/target. Raises UserError where there is no such proven export, or for a wrong repository.

    An export that the run went on without is refused, see lineage. with_texts: push golden pairs of the test sets too.
    licence: what the owner of the texts puts in place of the derived licence; a public push of weights from own texts
    is refused without one.
    """
    _check_name(repository)
    folder = _proven_export(run, target)
    stated = _stated_licence(run, licence, private=private)
    rows = read_golden(folder)
    pushed = rows if with_texts else without_texts(rows)
    texts = {
        name: with_name(_read_text(folder / name), repository) for name in (CARD, SERVE) if (folder / name).is_file()
    }
    if stated is not None and CARD in texts:
        texts[CARD] = with_licence(texts[CARD], stated)
    sums = read_sums(folder) or {}
    if len(pushed) < len(rows):
        texts[GOLDEN_FILE] = golden_text(pushed)
        digest = hashlib.sha256(texts[GOLDEN_FILE].encode()).hexdigest()
        texts[SUMS_FILE] = sums_text({**sums, GOLDEN_FILE: digest})
    # Texts for people may have been edited. Hidden files stay here.
    people = [path.name for path in folder.iterdir() if path.suffix == ".md" and path.is_file()]
    names = [*sums, *people, SUMS_FILE]
    sizes = {name: len(texts[name].encode()) if name in texts else (folder / name).stat().st_size for name in names}
    files = dict(sorted(sizes.items(), key=lambda entry: (-entry[1], entry[0])))
    holds = {name: _holds(name, pushed) for name in files}
    notes = [*_notes(rows, pushed), *([f"licence in the model card: {stated.id}"] if stated is not None else [])]
    return Push(folder, repository, private, revision, files, holds, texts, tuple(notes))


def _proven_export(run: Path, target: str) -> Path:
    """The folder of a proven export of the run's last training. Raises UserError where there is none."""
    existing_folder(run, RUN)
    exports = run / "export"
    known = sorted(path.parent.name for path in exports.glob(f"*/{PARITY_FILE}"))
    if target not in known:
        none = f"it has no exports: run `rankwright export {run / 'recipe.json'}`"
        have = f"it has {', '.join(known)}" if known else none
        raise UserError(f"{run}: no export {target!r}{did_you_mean(target, known)}: {have}")
    folder = exports / target
    if line := lineage(RunFolder(run)).line_of(f"export {target}"):
        raise UserError(f"{folder}: stale, not pushed: {line}")
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
    return folder


def _stated_licence(run: Path, licence: str | None, *, private: bool) -> Term | None:
    """The licence of `--licence`, None without it. Raises UserError where it is missing or cannot be stated."""
    ledger = read_json_object(RunFolder(run).licences)
    own, bare = ([], []) if ledger is None else owned(ledger)
    derived = "not recorded" if ledger is None else ledger["licence"]["name"] or ledger["licence"]["hub"]
    if bare and not private:
        raise UserError(
            f"--public: no licence is stated for {', '.join(bare)}: write its licence at the set in the recipe, or "
            f"`licence: own` where the texts are yours, run `{RunFolder(run).command('export')}`"
            + (f", and push with {STATE_LICENCE}" if licence is None else "")
        )
    if licence is None:
        if private or not own:
            return None
        raise UserError(
            f"--public: the weights are made from your own texts ({', '.join(own)}), and anybody could then use them: "
            f"push without --public, or state the licence that you give them: {STATE_LICENCE}"
        )
    term = find_term(licence)
    if term is None or term.id == UNKNOWN:
        raise UserError(f"--licence: {no_such('licence', licence, [name for name in term_names() if name != UNKNOWN])}")
    # Terms of others stay: there it can only be confirmed that all rights in the own texts are kept.
    if not own or not (term.reserved or derived == PROPRIETARY):
        raise UserError(f"--licence: it follows from the inputs of the weights ({derived}): leave it out")
    return None if term.reserved else term


def with_licence(card: str, term: Term) -> str:
    """The card with a licence that the owner states in place of the derived one."""
    name = f"\nlicense_name: {term.id.lower()}" if term.hub == OTHER else ""
    metadata = f"license: {term.hub}{name}"
    card = re.sub(r"^license: .*(\nlicense_name: .*)?$", metadata, card, count=1, flags=re.MULTILINE)
    words = rf"`{term.id}`, stated by the owner of the texts. From the inputs of the weights follows \1; "
    return re.sub(r"^(`[^`\n]+`), derived from the inputs of the weights; ", words, card, count=1, flags=re.MULTILINE)


def _notes(rows: Sequence[Row], pushed: Sequence[Row]) -> Iterator[str]:
    real = sum(row["kind"] == REAL for row in rows)
    if len(pushed) < len(rows):
        yield (
            f"{GOLDEN_FILE}: {counted(real, 'pair')} with texts of your test sets "
            f"{'stays' if real == 1 else 'stay'} here; --with-texts pushes them too"
        )
    elif real:
        yield (
            f"{GOLDEN_FILE}: {counted(real, 'pair')} with texts of your test sets "
            f"{'is' if real == 1 else 'are'} pushed (--with-texts)"
        )


# What is in the files of an export: the first pattern that fits; `{}`: the golden pairs in words.
HOLDS = (
    (GOLDEN_FILE, "{}"),
    (PARITY_FILE, "figures of the proof, no texts"),
    (SUMS_FILE, "hashes of the files"),
    (CARD, "model card: results, names and licences of base and sets, instruction"),
    (SERVE, "how to serve it"),
    (CONTRACT_FILE, "prompt: template, instruction, temperature"),
    ("*.index.json", "which weights are in which file"),
    ("adapter_config.json", "settings of the adapters"),
    ("*token*.json", "tokenizer, and the instruction where it is baked in"),
    ("vocab.*", "tokenizer"),
    ("merges.txt", "tokenizer"),
    ("*.jinja", "prompt template, with the instruction"),
    ("*.safetensors", "weights"),
    ("*.onnx*", "weights and graph"),
    ("*.gguf", "weights, tokenizer, prompt template"),
    ("*config*.json", "settings of the model"),
    ("modules.json", "settings of the model"),
    ("*.md", "a text for people"),
)


def _holds(name: str, rows: Sequence[Row]) -> str:
    """What a file holds, in words."""
    found = next(
        (words for pattern, words in HOLDS if fnmatch(Path(name).name, pattern)), "written by the export target"
    )
    real = sum(row["kind"] == REAL for row in rows)
    pairs = f"scores of {counted(len(rows) - real, 'synthetic pair')}"
    return found.format(
        pairs + (f" and of {counted(real, 'pair')} with TEXTS OF YOUR TEST SETS" if real else ", no texts of yours")
    )


def _read_text(path: Path) -> str:
    """A text for people. Raises UserError for one that an editor saved in another encoding."""
    try:
        return path.read_text(encoding="utf-8")
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
    """Print what goes where and what is in it, one line per file; then what stays here."""
    visible = "private" if push.private else "PUBLIC"
    branch = f", branch {push.revision}" if push.revision else ""
    width = max(map(len, push.files))
    for name, size in push.files.items():
        console.say(f"  {size:>13,} bytes  {name:<{width}}  {push.holds[name]}")
    for note in push.notes:
        console.say(note)
    start = "would push" if dry_run else "pushing"
    what = f"{counted(len(push.files), 'file')}, {sum(push.files.values()) / 1e6:,.1f} MB, of {push.folder}"
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
    """A copy with push.texts in place of the folder's own; all other files are links, not copies.

    README.md and SERVE.md name the repository in place of PATH.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "export"
        for name in push.files:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if name in push.texts:
                target.write_text(push.texts[name], encoding="utf-8")
            else:
                target.symlink_to((push.folder / name).resolve())
        yield folder
