"""Other rerankers, as rows of an evaluation or as teacher: loaded by kind, what their scores depend on, faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rankwright.baseline_kinds import BASELINES, FRAMES, refuse_other_bge, vendor_contract
from rankwright.cross_encoder import check_installed
from rankwright.endpoints import SHAPES
from rankwright.errors import UserError
from rankwright.evaluate import Scorer
from rankwright.first_stages import FIRST_STAGES
from rankwright.instructions import EXPORTED
from rankwright.prompts import CONTRACT_FILE, DEFAULT_INSTRUCTION, default_instruction
from rankwright.recipe import Baseline, Prompt, Recipe
from rankwright.reranker import Reranker, saved_contract
from rankwright.resources import resolve_base
from rankwright.run_folder import content_hash, files_hash
from rankwright.served import ServedReranker

ROWS, TEACHER = "evaluate.baselines", "mine.teacher"
# Names of rows that an evaluation has anyway.
TAKEN = (*FIRST_STAGES, "base", "tuned", EXPORTED)
# How fast or from where, which changes no score.
UNSCORED = {"key_variable", "batch", "requests_per_minute", "timeout_seconds", "retries"}
UNSCORED |= {"backoff_seconds", "longest_wait_seconds"}
# What a kind reads of the recipe's prompt section, where that is less than budgets and instruction.
BUDGETS = ("max_tokens", "query_tokens")
READS: dict[str, tuple[str, ...]] = {"cross-encoder": ("max_tokens",), "zerank": BUDGETS, "bge": BUDGETS}


def load_baseline(baseline: Baseline, prompt: Prompt, *, cache: Path, key: str = ROWS) -> Scorer:
    """The scorer of a baseline, ready to use.

    prompt: the recipe's section; its budgets hold for every local kind, its instruction, where it is not the default,
    for the frames that have a place for one. cache: folder for what was paid for. key: the recipe's key that holds it.
    Raises UserError naming key and row.
    """
    with _named(baseline, key):
        scorer: Scorer = BASELINES.bind(baseline.kind, baseline.options)(baseline, prompt, cache)
    return scorer


def baseline_under(baseline: Baseline, scorer: Scorer, instruction: str | None) -> Scorer:
    """The scorer under a test set's own instruction, where its kind reads the recipe's; None: the recipe's."""
    if instruction is None or not isinstance(scorer, Reranker) or READS.get(baseline.kind) is not None:
        return scorer
    if baseline.kind == "rankwright" and saved_contract(resolve_base(baseline.model, "model"), baseline.revision):
        # It is scored under its own.
        return scorer
    # The default is that of one family: each frame then has its own.
    own = default_instruction(scorer.contract.mode)
    return scorer.under(own if instruction == DEFAULT_INSTRUCTION else instruction)


def baseline_inputs(baseline: Baseline, prompt: Prompt, *, key: str = ROWS) -> str:
    """Hash of what the scores depend on beside the lists; never of a key.

    A local model counts by the content of its files, one of the hub by its id and revision; of the prompt counts what
    this kind reads of it.
    """
    options = {k: v for k, v in baseline.options.items() if k not in UNSCORED}
    if baseline.kind == "served":
        # The server makes the prompt.
        return content_hash("served", baseline.model, options)
    with _named(baseline, key):
        model = _content(baseline.model, baseline.revision)
        read = () if _has_contract(baseline) else READS.get(baseline.kind, (*BUDGETS, "instruction"))
        if options.get("base") is not None:
            options["base"] = _content(str(options["base"]), None)
    # The name, because an own frame is found by it.
    name = Path(baseline.model).name
    return content_hash(baseline.kind, name, model, options, [getattr(prompt, key) for key in read])


def _has_contract(baseline: Baseline) -> bool:
    """Whether it is a folder of ours, which is scored under its own contract. Of the hub it is not known here."""
    return baseline.kind == "rankwright" and (Path(resolve_base(baseline.model, "model")) / CONTRACT_FILE).is_file()


def _content(model: str, revision: str | None) -> object:
    folder = Path(resolve_base(model, "model"))
    return files_hash([folder]) if folder.is_dir() else (model, revision)


def check_baselines(recipe: Recipe) -> list[str]:
    """All faults of evaluate.baselines, each as `evaluate.baselines.N.key: what`."""
    faults: list[str] = []
    seen: dict[str, int] = {}
    for number, baseline in enumerate(recipe.evaluate.baselines):
        key = f"{ROWS}.{number}"
        if baseline.name.lower() in TAKEN:
            faults.append(f"{key}.name: {baseline.name!r} is a row of every evaluation: choose another name")
        # Names are names of folders, and some disks take no notice of capitals.
        first = seen.setdefault(baseline.name.lower(), number)
        if first != number:
            faults.append(f"{key}.name: {baseline.name!r} is also that of {ROWS}.{first}: rename one")
        faults += [f"{key}.{fault}" for fault in _faults(baseline, recipe.prompt)]
    return faults


def check_teacher(recipe: Recipe) -> list[str]:
    """All faults of mine.teacher, each as `mine.teacher.key: what`."""
    teacher = recipe.mine.teacher
    return [] if teacher is None else [f"{TEACHER}.{fault}" for fault in _faults(teacher, recipe.prompt)]


def _faults(baseline: Baseline, prompt: Prompt) -> Iterator[str]:
    if baseline.kind not in BASELINES:
        try:
            BASELINES[baseline.kind]
        except UserError as error:
            yield f"kind: {error}"
        return
    checks: list[tuple[str, Callable[[], object]]] = [
        ("options", lambda: BASELINES.bind(baseline.kind, baseline.options)),
        ("model", lambda: _check_model(baseline, prompt)),
    ]
    for key, check in checks:
        try:
            check()
        except UserError as error:
            yield f"{key}: {_own_words(error)}"
    if baseline.kind == "served":
        yield from _served_faults(baseline)
    elif baseline.kind == "cross-encoder":
        yield from _cross_encoder_faults(baseline)


def _check_model(baseline: Baseline, prompt: Prompt) -> None:
    if baseline.kind == "bge":
        refuse_other_bge(baseline.model)
    if baseline.kind != "served" and Path(resolve_base(baseline.model, "model")).is_dir() and baseline.kind in FRAMES:
        # Of a local folder it is known now whether the frame fits, and not only after training.
        vendor_contract(baseline, prompt, FRAMES[baseline.kind])


def _served_faults(baseline: Baseline) -> Iterator[str]:
    if baseline.revision is not None:
        yield "revision: a served model has none: leave it out"
    options = baseline.options
    shape, url = options.get("shape"), options.get("url")
    if isinstance(shape, str):
        try:
            endpoint = SHAPES[shape]()
            if isinstance(url, str):
                endpoint.endpoint(url)
        except UserError as error:
            yield f"options: {error}"
            return
    known = set(BASELINES.parameters("served"))
    if isinstance(shape, str) and isinstance(url, str) and set(options) <= known:
        try:
            # It asks nothing yet; numbers and the key's variable are checked.
            ServedReranker(**{**options, "model": baseline.model})
        except UserError as error:
            yield f"options: {error}"
        except TypeError:
            pass  # The type of an option, which has been said.


def _cross_encoder_faults(baseline: Baseline) -> Iterator[str]:
    try:
        check_installed()
    except UserError as error:
        yield f"kind: {error}"
    if baseline.options.get("remote_code") is True and baseline.revision is None:
        yield "revision: options.remote_code runs the code of the repository: name the revision that you have read"


@contextmanager
def _named(baseline: Baseline, key: str) -> Iterator[None]:
    """Says of a mistake whose it is: a recipe may hold several baselines."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}: {baseline.name}: {_own_words(error)}") from None


def _own_words(error: UserError) -> str:
    """What is wrong, without the key of the recipe's own base."""
    return str(error).removeprefix("model.base: ").removeprefix("model: ").removeprefix("options: ")
