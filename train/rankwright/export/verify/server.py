"""Asks a server, finds what differs and why, and reports it: a table of pairs and one line per fault, or JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from rankwright.common import console
from rankwright.common.resources import shown
from rankwright.export.proof.comparing import short, spearman
from rankwright.export.proof.runtimes.base import Exported, Limits, Row, exact
from rankwright.export.targets import TARGETS
from rankwright.export.verify.asking import Asked, Observed, api_name, ask, requests_planned
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
        for note in opened.notes:
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
    decides = [place for place, row in enumerate(rows) if row["gate"] and place not in asked.refused]
    served, limits = _best_limits(opened, asked, decides, shape)
    if served:
        within = f"within {limits.probability:g} of the golden probabilities"
        asked.notes.append(f"which file is served is unknown; compared as weights of type {served}: {within}")
    say = (lambda line: None) if as_json else console.say
    finding = find_difference(opened, asked, decides, limits, say)
    if as_json:
        print(json.dumps(_as_json(opened, url, api, asked, decides, finding), ensure_ascii=False))
    else:
        console.say(f"{url} ({api}) against {shown(opened.folder)}: {len(decides)} of {len(rows)} pairs decide")
        _show(rows, asked, decides, finding, limits)
    return finding is None


def _best_limits(opened: Opened, asked: Asked, decides: Sequence[int], shape: str) -> tuple[str, Limits]:
    """The strictest limits that the server keeps, with the type of file they belong to; else the loosest ones."""
    rows, known = opened.exported.rows, limits_of(shape, opened.exported, opened.tolerance)
    for served, limits in known.items():
        ways = ["alone", *asked.observed[0].lists]
        if all(_worst(rows, _way(asked, way), decides, limits) is None for way in ways) and not _disordered(
            rows, asked, decides, limits
        ):
            return served, limits
    return list(known.items())[-1]


def _way(asked: Asked, way: str) -> list[tuple[Observed, Sequence[float | None]]]:
    return [(one, one.alone if way == "alone" else one.lists[way]) for one in asked.observed]


def _disordered(rows: Sequence[Row], asked: Asked, decides: Sequence[int], limits: Limits) -> bool:
    """Whether pairs are in another order than limits.spearman allows."""
    if limits.spearman is None:
        return False
    found = [(asked.observed[0].alone[place], rows[place]["logit"]) for place in decides]
    seen = [(value, golden) for value, golden in found if value is not None]
    return not spearman([golden for _, golden in seen], [value for value, _ in seen]) >= limits.spearman


def find_difference(
    opened: Opened, asked: Asked, decides: Sequence[int], limits: Limits, say: Callable[[str], None]
) -> Finding | None:
    """The worst pair alone, or else in a list, with the cause; None when all are equal."""
    rows = opened.exported.rows
    worst = _worst(rows, _way(asked, "alone"), decides, limits)
    if worst is None and _disordered(rows, asked, decides, limits):
        worst = max(decides, key=lambda place: max(_distances(rows, asked, place).values()))
    if worst is not None:
        return Finding(worst, "alone", Explaining(opened.exported, asked.observed, decides, limits, say).diagnose())
    for way in asked.observed[0].lists:
        worst = _worst(rows, _way(asked, way), decides, limits)
        if worst is not None:
            return Finding(worst, f"in {way}", _list_fault(rows, asked.observed[0], decides, limits))
    return None


def _worst(
    rows: Sequence[Row],
    found: Sequence[tuple[Observed, Sequence[float | None]]],
    decides: Sequence[int],
    limits: Limits,
) -> int | None:
    """The row farthest beyond its limit, or None."""
    units = {
        place: max(
            max(excess(rows[place], one, value, limits), _apart(one.alone[place], value, limits))
            for one, values in found
            if (value := values[place]) is not None
        )
        for place in decides
        if any(values[place] is not None for _, values in found)
    }
    worst = max(units, key=lambda place: units[place], default=None)
    return None if worst is None or units[worst] < 1 else worst


def _apart(alone: float | None, listed: float, limits: Limits) -> float:
    """|alone - in a list| in units of limits.batch; 0 where there is no such limit."""
    return 0.0 if limits.batch is None or alone is None else abs(alone - listed) / limits.batch


def _list_fault(rows: Sequence[Row], observed: Observed, decides: Sequence[int], limits: Limits) -> Diagnosis:
    """Why scores differ in a list only: right scores at wrong places, or scores that depend on their batch."""
    groups: dict[str, list[int]] = {}
    for place in decides:
        groups.setdefault(rows[place]["query"], []).append(place)
    assert limits.probability is not None
    near = (limits.batch or limits.probability) * (1 if observed.scale == "probability" else 10)
    [(_, listed), *_] = observed.lists.items()
    for places in groups.values():
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


def _distances(rows: Sequence[Row], asked: Asked, place: int) -> dict[str, float]:
    """Scale -> the largest difference of a row, alone or in a list."""
    found: dict[str, float] = {}
    for one in asked.observed:
        values = [one.alone[place], *(scores[place] for scores in one.lists.values())]
        seen = [abs(value - rows[place][one.scale]) for value in values if value is not None]
        if seen:
            found[one.scale] = max(seen)
    return found


def _line(rows: Sequence[Row], asked: Asked, finding: Finding) -> str:
    row, diagnosis = rows[finding.place], finding.diagnosis
    one = asked.observed[0]
    seen = [one.alone[finding.place], *(scores[finding.place] for scores in one.lists.values())]
    got = max((v for v in seen if v is not None), key=lambda v: abs(v - row[one.scale]))
    return (
        f"query {short(row['query'])}, document {short(row['document'])}, {finding.where}: expected the {one.scale} "
        f"{row[one.scale]:.6f}, got {got:.6f}; {diagnosis.cause} -> {diagnosis.fix}"
    )


def _show(rows: Sequence[Row], asked: Asked, decides: Sequence[int], finding: Finding | None, limits: Limits) -> None:
    table = Table(box=None)
    for column in ("kind", "query", "document", "expected", "found", "|d probability|", "|d logit|", ""):
        text = column in ("kind", "query", "document", "")
        if text:
            table.add_column(column, no_wrap=True, max_width=TEXT_COLUMNS, overflow="ellipsis")
        else:
            table.add_column(column, justify="right", no_wrap=True, min_width=len(column) or None)
    one = asked.observed[0]
    for place, row in enumerate(rows):
        found, distances = one.alone[place], _distances(rows, asked, place)
        numbers = [f"{distances[s]:.1e}" if s in distances else "-" for s in ("probability", "logit")]
        mark = "refused" if place in asked.refused else "" if place in set(decides) else "does not decide"
        texts = [escape(short(row[key], TEXT_COLUMNS)) for key in ("query", "document")]
        score = "-" if found is None else f"{found:.6f}"
        table.add_row(row["kind"], *texts, f"{row[one.scale]:.6f}", score, *numbers, mark)
    console.show(table)
    for note in [*asked.notes, *(f"refused: {row}" for row in _refusals(rows, asked))]:
        console.say(note)
    if finding is not None:
        console.say(f"differs: {_line(rows, asked, finding)}")
    else:
        largest = _largest(rows, asked, decides)
        words = ", ".join(f"{scale} {value:.1e}" for scale, value in largest.items())
        listed = any(value is not None for values in one.lists.values() for value in values)
        console.say(f"equal: largest difference {words}, alone{' and in lists' if listed else '; lists not checked'}")


def _refusals(rows: Sequence[Row], asked: Asked) -> list[str]:
    return [f"{rows[place]['kind']} pair {short(rows[place]['query'])}: {why}" for place, why in asked.refused.items()]


def _largest(rows: Sequence[Row], asked: Asked, places: Sequence[int]) -> dict[str, float]:
    found: dict[str, float] = {}
    for place in places:
        for scale, distance in _distances(rows, asked, place).items():
            found[scale] = max(found.get(scale, 0.0), distance)
    return found


def _by_kind(rows: Sequence[Row], asked: Asked, decides: Sequence[int]) -> dict[str, float]:
    """The largest difference by kind of text: truncation shows in `long` alone."""
    kinds = dict.fromkeys(rows[place]["kind"] for place in decides)
    per_kind = {kind: _largest(rows, asked, [p for p in decides if rows[p]["kind"] == kind]) for kind in kinds}
    return {kind: values["probability"] for kind, values in per_kind.items() if "probability" in values}


def _as_json(
    opened: Opened, url: str, api: str, asked: Asked, decides: Sequence[int], finding: Finding | None
) -> dict[str, Any]:
    rows = opened.exported.rows
    pairs = [
        {
            "query": row["query"],
            "document": row["document"],
            "kind": row["kind"],
            "decides": place in set(decides),
            **{f"expected_{one.scale}": row[one.scale] for one in asked.observed},
            **{one.scale: one.alone[place] for one in asked.observed},
            **{f"d_{scale}": value for scale, value in _distances(rows, asked, place).items()},
        }
        for place, row in enumerate(rows)
    ]
    return {
        "url": url,
        "api": api,
        "folder": str(opened.folder),
        "tolerance": opened.tolerance,
        "rows": len(decides),
        **{f"max_d_{scale}": value for scale, value in _largest(rows, asked, decides).items()},
        "max_d_probability_by_kind": _by_kind(rows, asked, decides),
        "not_checked": [*opened.notes, *asked.notes, *_refusals(rows, asked)],
        "failures": [] if finding is None else [_line(rows, asked, finding)],
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
    found = {kind: _of_cache(limits, least) for kind, limits in _of_files(exported, tolerance).items()}
    if not found:
        return {"": Limits(logit=None, probability=least)}
    return dict(sorted(found.items(), key=lambda entry: entry[1].probability or 0.0))


def _of_files(exported: Exported, tolerance: float) -> dict[str, Limits]:
    """Type of the weights -> limits of the runtime that reads the file back."""
    readers = [one for one in TARGETS[exported.kind].runtimes if one.module == "gguf" and one.reads(exported.path)]
    return {one.name.split()[-1]: one.limits(tolerance) for one in readers}


def _of_cache(limits: Limits, least: float) -> Limits:
    # Rounded weights are the same in a list: a looser bound would hide documents of near scores that changed places.
    return dataclasses.replace(limits, logit=None, probability=max(limits.probability or 0.0, least), batch=least)
