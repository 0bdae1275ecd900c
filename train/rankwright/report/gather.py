"""What the report shows of a run besides its results: recipe, mining, exports, stages; read from its files."""

from __future__ import annotations

import itertools
import json
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rankwright.common.errors import UserError
from rankwright.common.files import read_json_object, read_jsonl
from rankwright.common.run_folder import RunFolder
from rankwright.common.stats import wilson_interval
from rankwright.evaluation.runs import not_a_run
from rankwright.mining.false_negatives import read_estimate, share_text
from rankwright.mining.pools import FILL, IN_POOLS, JUDGED, reasons
from rankwright.recipe.kinds import Section
from rankwright.recipe.schema import Recipe

# The most rows of negatives.jsonl that are counted. A large file would take minutes.
MOST_POOLS = 20_000
# What the counts of the mine stage mean, beside those of removed candidates.
KEPT = {
    "kept": "retrieved and not judged: taken as not relevant, unless a filter promoted it or left it soft",
    "kept_judged": "judged not relevant",
}
OTHER_COUNTS = {
    JUDGED: "judged not relevant as well as retrieved: counted with kept_judged",
    "filled": IN_POOLS[FILL],
    "short_pools": "queries with fewer negatives than mine.negatives",
}


@dataclass(frozen=True, slots=True)
class Accepted:
    """A share of queries that people accepted, with its interval of 95 %; count: those that were judged."""

    mean: float
    low: float
    high: float
    count: int


def read_recipe(folder: Path) -> Recipe:
    """The recipe of a run folder. Raises UserError for any other folder, and for a recipe of another version."""
    path = RunFolder(folder).recipe_json
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise not_a_run(folder) from None
    try:
        return Recipe.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"{path}: {where}: {first['msg']}: written by another version of Rankwright, give `rankwright run` again"
        ) from None


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, or None where there is no such file. Raises UserError for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}): delete it and give `rankwright run` again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object: delete it and give `rankwright run` again")
    return value


def changed_keys(section: Section, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, value, default) of all keys that differ from their default; default: None for keys without one."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        if not field.is_required() and value == default:
            continue
        key = prefix + (field.alias or name)
        if isinstance(value, Section):
            yield from changed_keys(value, f"{key}.")
        elif value and isinstance(value, tuple) and all(isinstance(item, Section) for item in value):
            for number, item in enumerate(value):
                yield from changed_keys(item, f"{key}.{number}.")
        else:
            # A whole section that is switched off.
            yield key, value, default.model_dump(mode="json") if isinstance(default, Section) else default


def read_mining(run: RunFolder) -> dict[str, Any] | None:
    """What the mine stage counted, and what negatives.jsonl holds; None before mining.

    counts: code -> (number, meaning)
    sources: (source, reason code) -> negatives in the first `pools` pools; sizes: smallest, median and largest pool
    filters: (what removed candidates, how many, how many were left after it), in the order of use
    said: counts of filters, in words -> number
    estimates: of false negatives: (what it is a share of, the share with its interval)
    """
    facts = run.facts("mine")
    path = run.negatives
    if not facts and not path.is_file():
        return None
    counts = {str(k): int(v) for k, v in facts.get("counts", {}).items()}
    if "short_pools" in facts:
        counts["short_pools"] = facts["short_pools"]
    sources: Counter[tuple[str, str]] = Counter()
    sizes: list[int] = []
    pools = read_jsonl(path, lambda row: row["negatives"], "a pool of negatives, mine again") if path.is_file() else ()
    for pool in itertools.islice(pools, MOST_POOLS):
        # Promoted documents are drawn as relevant.
        sizes.append(sum((n.get("label", 0.0) or 0.0) <= 0 for n in pool))
        sources.update((str(n["source"]), str(n["reason"])) for n in pool)
    removed = {code: f"removed: {text}" for code, text in reasons().items() if code not in IN_POOLS}
    meanings = {**KEPT, **removed, **OTHER_COUNTS}
    order = [*(code for code in meanings if code in counts), *sorted(code for code in counts if code not in meanings)]
    return {
        "queries": facts.get("queries"),
        "counts": {code: (counts[code], meanings.get(code, "")) for code in order},
        "sources": dict(sorted(sources.items())),
        "pools": len(sizes),
        "sizes": (min(sizes), float(statistics.median_high(sizes)), max(sizes)) if sizes else None,
        "filters": [(str(row["filter"]), int(row["removed"]), int(row["left"])) for row in facts.get("filters", ())],
        "said": facts.get("said", {}),
        "estimates": [(words, share_text(share)) for words, share in read_estimate(facts.get("false_negatives", {}))],
    }


def read_parity(folder: Path, targets: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Target -> its parity.json, for those that have one."""
    run = RunFolder(folder)
    return {t: found for t in targets if (found := read_json(run.export(t) / "parity.json")) is not None}


def accepted_share(run: RunFolder) -> Accepted | None:
    """What people accepted of the queries that the run has now; None where they are unjudged."""
    made = read_json_object(run.synthetic_audited) or {}
    report = read_json_object(run.synthetic_report) or {}
    judged, accepted = made.get("judged"), made.get("accepted")
    if not isinstance(judged, int) or not isinstance(accepted, int) or not judged:
        return None
    if made.get("audit") != report.get("audit"):
        return None
    return Accepted(accepted / judged, *wilson_interval(accepted, judged), judged)


def read_written(run: RunFolder, recipe: Recipe) -> dict[str, Any] | None:
    """What synthetic/report.json has of the written queries; None before they are written.

    accepted: the share that people accepted, None where they are unjudged; least: what the recipe asks for.
    """
    report = read_json(run.synthetic_report)
    if report is None or recipe.synthesize is None:
        return None
    return {**report, "accepted": accepted_share(run), "least": recipe.synthesize.audit.min_accepted}
