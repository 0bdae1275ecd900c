"""Asks a server, finds what differs and why, and reports it: a table of pairs and one line per fault, or JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from rankwright.common import console
from rankwright.common.plurals import counted
from rankwright.common.resources import shown
from rankwright.export.proof.comparing import short, spearman
from rankwright.export.proof.runtimes.base import Exported, Limits, exact
from rankwright.export.targets import TARGETS
from rankwright.export.verify.asking import Asked, api_name, ask, places_by, requests_planned
from rankwright.export.verify.diagnosis import Diagnosis, Explaining, excess
from rankwright.export.verify.folder import Opened

TEXT_COLUMNS = 28
# llama.cpp keeps keys and values in f16 by default.
LLAMA_CPP_PROBABILITY = 2e-3


@dataclass(frozen=True, slots=True)
class Finding:
    """What differs: the worst row, and its largest difference in units of the limit; why."""

    place: int
    where: str
    diagnosis: Diagnosis


def verify_server(
    opened: Opened, url: str, api: str, *, model: str = "", key_variable: str | None = None, as_json: bool = False
) -> bool:
    """Show how a running server scores the golden pairs; whether all that decide are equal.

    Raises UserError when the server cannot be asked at all.
    """
    shape, rows = api_name(api), opened.exported.rows
    planned = requests_planned(rows, shape)
    if not as_json:
        for note in (*opened.notes, *opened.faults):
            console.say(note)
    with nullcontext() if as_json else console.progress("pairs asked", planned) as advance:
        asked = ask(
            rows,
            url,
            shape,
            max_tokens=opened.exported.contract.max_tokens,
            model=model,
            key_variable=key_variable,
            advance=advance or (lambda count: None),
        )
    served, limits = _best_limits(opened, asked, shape)
    if served:
        within = f"within {limits.probability:g} of the golden probabilities"
        asked.notes.append(f"which file is served is unknown; compared as weights of type {served}: {within}")
    say = (lambda line: None) if as_json else console.say
    finding = find_difference(opened.exported, asked, limits, say)
    if as_json:
        print(json.dumps(_as_json(opened, url, api, asked, finding)))
    else:
        console.say(
            f"{url} ({api}) against {shown(opened.exported.path)}: {len(asked.decides)} of "
            f"{counted(len(rows), 'pair')} decide"
        )
        _show(asked, finding)
    return finding is None


def _best_limits(opened: Opened, asked: Asked, shape: str) -> tuple[str, Limits]:
    """The strictest limits that the server keeps, with the type of file they belong to; else the loosest ones."""
    known = limits_of(shape, opened.exported, opened.tolerance)
    for served, limits in known.items():
        ways = ["alone", *asked.observed[0].lists]
        if all(_worst(asked, way, limits) is None for way in ways) and not _disordered(asked, limits):
            return served, limits
    return list(known.items())[-1]


def _disordered(asked: Asked, limits: Limits) -> bool:
    """Whether pairs are in another order than limits.spearman allows."""
    if limits.spearman is None:
        return False
    alone = {place: value for place in asked.decides if (value := asked.observed[0].alone[place]) is not None}
    return not spearman([asked.rows[place]["logit"] for place in alone], list(alone.values())) >= limits.spearman


def find_difference(exported: Exported, asked: Asked, limits: Limits, say: Callable[[str], None]) -> Finding | None:
    """The worst pair alone, or else in a list, with the cause; None when all are equal."""
    worst = _worst(asked, "alone", limits)
    if worst is None and _disordered(asked, limits):
        worst = max(asked.decides, key=lambda place: max(_distances(asked, place).values()))
    if worst is not None:
        return Finding(worst, "alone", Explaining(exported, asked.observed, asked.decides, limits, say).diagnose())
    for way in asked.observed[0].lists:
        worst = _worst(asked, way, limits)
        if worst is not None:
            return Finding(worst, f"in {way}", _list_fault(asked, limits))
    return None


def _worst(asked: Asked, way: str, limits: Limits) -> int | None:
    """The row farthest beyond its limit, alone or in one kind of list; None where all keep it."""

    def apart(alone: float | None, listed: float) -> float:
        return 0.0 if limits.batch is None or alone is None else abs(alone - listed) / limits.batch

    found = [(one, one.alone if way == "alone" else one.lists[way]) for one in asked.observed]
    units = {
        place: max(
            max(excess(asked.rows[place], one, value, limits), apart(one.alone[place], value))
            for one, values in found
            if (value := values[place]) is not None
        )
        for place in asked.decides
        if any(values[place] is not None for _, values in found)
    }
    worst = max(units, key=lambda place: units[place], default=None)
    return None if worst is None or units[worst] < 1 else worst


def _list_fault(asked: Asked, limits: Limits) -> Diagnosis:
    """Why scores differ in a list only: right scores at wrong places, or scores that depend on their batch."""
    observed = asked.observed[0]
    assert limits.probability is not None
    near = (limits.batch or limits.probability) * (1 if observed.scale == "probability" else 10)
    [(_, listed), *_] = observed.lists.items()
    for places in places_by(asked.rows, asked.decides, "query").values():
        own = [v for p in places if (v := observed.alone[p]) is not None]
        seen = [v for p in places if (v := listed[p]) is not None]
        if len(own) != len(seen) or own == seen:
            continue
        same = all(abs(a - b) < near for a, b in zip(sorted(own), sorted(seen), strict=True))
        if same and not all(abs(a - b) < near for a, b in zip(own, seen, strict=True)):
            return Diagnosis(
                "order",
                "wrong order: the scores are right but stand at other documents, `index` is not that of the request",
                "the server must answer with each document's place in the request as `index`",
            )
    return Diagnosis(
        "batch",
        "equal alone, other in a list: padding (pad_token_id in config.json, the attention mask), or quantised "
        "activations, which depend on the batch",
        "serve this export's config.json, without dynamic quantisation",
    )


def _distances(asked: Asked, place: int) -> dict[str, float]:
    """Scale -> the largest difference of a row, alone or in a list."""
    found: dict[str, float] = {}
    for one in asked.observed:
        values = [one.alone[place], *(scores[place] for scores in one.lists.values())]
        seen = [abs(value - asked.rows[place][one.scale]) for value in values if value is not None]
        if seen:
            found[one.scale] = max(seen)
    return found


def _line(asked: Asked, finding: Finding) -> str:
    row, diagnosis = asked.rows[finding.place], finding.diagnosis
    one = asked.observed[0]
    seen = [one.alone[finding.place], *(scores[finding.place] for scores in one.lists.values())]
    got = max((v for v in seen if v is not None), key=lambda v: abs(v - row[one.scale]))
    return (
        f"query {short(row['query'])}, document {short(row['document'])}, {finding.where}: expected the {one.scale} "
        f"{row[one.scale]:.6f}, got {got:.6f}; {diagnosis.cause} -> {diagnosis.fix}"
    )


def _show(asked: Asked, finding: Finding | None) -> None:
    table = Table(box=None)
    for column in ("kind", "query", "document", "expected", "found", "|d probability|", "|d logit|", ""):
        if column in ("kind", "query", "document", ""):
            table.add_column(column, no_wrap=True, max_width=TEXT_COLUMNS, overflow="ellipsis")
        else:
            table.add_column(column, justify="right", no_wrap=True, min_width=len(column))
    one = asked.observed[0]
    for place, row in enumerate(asked.rows):
        found, distances = one.alone[place], _distances(asked, place)
        numbers = [f"{distances[s]:.1e}" if s in distances else "-" for s in ("probability", "logit")]
        mark = "refused" if place in asked.refused else "" if row["gate"] else "does not decide"
        texts = [short(row[key], TEXT_COLUMNS) for key in ("query", "document")]
        score = "-" if found is None else f"{found:.6f}"
        table.add_row(row["kind"], *texts, f"{row[one.scale]:.6f}", score, *numbers, mark)
    console.show(table)
    for note in [*asked.notes, *(f"refused: {row}" for row in _refusals(asked))]:
        console.say(note)
    if finding is not None:
        console.say(f"differs: {_line(asked, finding)}")
    else:
        largest = _largest(asked, asked.decides)
        words = ", ".join(f"{scale} {value:.1e}" for scale, value in largest.items())
        listed = any(value is not None for values in one.lists.values() for value in values)
        console.say(f"equal: largest difference {words}, alone{' and in lists' if listed else '; lists not checked'}")


def _refusals(asked: Asked) -> list[str]:
    refused = [(asked.rows[place], why) for place, why in asked.refused.items()]
    return [f"{row['kind']} pair {short(row['query'])}: {why}" for row, why in refused]


def _largest(asked: Asked, places: Sequence[int]) -> dict[str, float]:
    found: dict[str, float] = {}
    for place in places:
        for scale, distance in _distances(asked, place).items():
            found[scale] = max(found.get(scale, 0.0), distance)
    return found


def _by_kind(asked: Asked) -> dict[str, float]:
    """The largest difference by kind of text: truncation shows in `long` alone."""
    kinds = places_by(asked.rows, asked.decides, "kind")
    per_kind = {kind: _largest(asked, own) for kind, own in kinds.items()}
    return {kind: values["probability"] for kind, values in per_kind.items() if "probability" in values}


def _as_json(opened: Opened, url: str, api: str, asked: Asked, finding: Finding | None) -> dict[str, Any]:
    pairs = [
        {
            "query": row["query"],
            "document": row["document"],
            "kind": row["kind"],
            "decides": place in asked.decides,
            **{f"expected_{one.scale}": row[one.scale] for one in asked.observed},
            **{one.scale: one.alone[place] for one in asked.observed},
            **{f"d_{scale}": value for scale, value in _distances(asked, place).items()},
        }
        for place, row in enumerate(asked.rows)
    ]
    return {
        "url": url,
        "api": api,
        "folder": str(opened.exported.path),
        "tolerance": opened.tolerance,
        "rows": len(asked.decides),
        **{f"max_d_{scale}": value for scale, value in _largest(asked, asked.decides).items()},
        "max_d_probability_by_kind": _by_kind(asked),
        "not_checked": [*opened.notes, *opened.faults, *asked.notes, *_refusals(asked)],
        "failures": [] if finding is None else [_line(asked, finding)],
        "diagnosis": None if finding is None else asdict(finding.diagnosis),
        "pairs": pairs,
    }


def limits_of(shape: str, exported: Exported, tolerance: float) -> dict[str, Limits]:
    """What may be served -> its limits, the strictest first.

    llama-server has one file of a `gguf` folder, and does not tell the type of its weights.
    """
    if shape != "llama_cpp":
        return {"": exact(tolerance)}
    least = max(LLAMA_CPP_PROBABILITY, tolerance / 10)
    found = {}
    # A type of weights has the limits of the runtime that reads its file back.
    for one in TARGETS[exported.kind].runtimes:
        if one.module == "gguf" and one.reads(exported.path):
            limits = one.limits(tolerance)
            probability = max(limits.probability or 0.0, least)
            # Rounded weights are the same in a list: a looser bound would hide documents of near scores that changed
            # places.
            kind = one.name.split()[-1]
            found[kind] = dataclasses.replace(limits, logit=None, probability=probability, batch=least)
    if not found:
        return {"": Limits(logit=None, probability=least)}
    return dict(sorted(found.items(), key=lambda entry: entry[1].probability or 0.0))
