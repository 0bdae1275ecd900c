"""Golden pairs put to a server: each pair alone, then in lists of its query's documents and in mixed lists."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rankwright.common.errors import UserError, no_such
from rankwright.export.proof.runtimes.base import Row
from rankwright.rerankers.endpoints import SHAPES, Shape
from rankwright.rerankers.served import Limits, Refused, ServedReranker

Scale = Literal["probability", "logit"]
# Documents of other queries in a mixed list, short and long ones.
FILLERS = 6
# A running server answers at once or is not there, and somebody waits at a terminal.
RETRIES, BACKOFF_SECONDS, TIMEOUT_SECONDS = 2, 0.5, 120.0


@dataclass(frozen=True, slots=True)
class Observed:
    """A server's scores on one scale, by row; None where it would not score the row.

    lists: one entry for each way to ask for several documents at once (see LISTS), in the rows' order.
    """

    scale: Scale
    alone: list[float | None]
    lists: dict[str, list[float | None]]


@dataclass(slots=True)
class Asked:
    """All answers. refused: row -> why the server would not score it. notes: what else is not checked, and why."""

    observed: list[Observed] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def api_name(api: str) -> str:
    """The shape that `--api` means: `llama.cpp` for llama_cpp. Raises UserError for an unknown one."""
    name = api.strip().lower().replace(".", "_").replace("-", "_")
    if name not in set(SHAPES):
        known = [shape.replace("llama_cpp", "llama.cpp") for shape in SHAPES]
        raise UserError(f"--api: {no_such('server', api, known)}")
    return name


def ask(
    rows: Sequence[Row],
    url: str,
    shape_name: str,
    *,
    max_tokens: int,
    model: str,
    key_variable: str | None,
    advance: Callable[[int], None],
) -> Asked:
    """Ask for probabilities, and for logits where the server can give them.

    advance: called with the number of rows that were scored. Raises UserError when the first row is refused (the
    address, key or model is wrong), when most rows are, and for an answer with a score missing or not finite.
    """
    shape, asked = SHAPES[shape_name](), Asked()
    # vLLM refuses a prompt that is longer than its limit unless it is asked to cut; the others cut by their settings.
    cutting = {"truncate_prompt_tokens": max_tokens} if shape_name == "vllm" else {}
    for scale, fields in (("probability", shape.probabilities), ("logit", shape.logits)):
        if fields is None:
            asked.notes.append(f"{scale}: not asked for: the API of {shape_name.replace('_', '.')} has none")
            continue
        server = ServedReranker(
            url,
            shape=shape_name,
            model=model,
            key_variable=key_variable,
            extra={**cutting, **fields},
            limits=Limits(retries=RETRIES, backoff_seconds=BACKOFF_SECONDS, timeout_seconds=TIMEOUT_SECONDS),
        )
        alone = _alone(server, rows, asked, advance)
        _refuse_few(rows, asked)
        asked.observed.append(Observed(scale, alone, _lists(server, shape, rows, asked, advance)))  # type: ignore[arg-type]
    _drop_ignored(asked)
    return asked


def _alone(
    server: ServedReranker, rows: Sequence[Row], asked: Asked, advance: Callable[[int], None]
) -> list[float | None]:
    found: list[float | None] = []
    for place, row in enumerate(rows):
        try:
            found += server.score(row["query"], [row["document"]]) if place not in asked.refused else [None]
        # Anything else, such as a wrong answer or a server that is gone, leaves nothing to compare.
        except Refused as error:
            if place == 0:
                raise
            asked.refused[place] = str(error)
            found.append(None)
        advance(1)
    return found


def _refuse_few(rows: Sequence[Row], asked: Asked) -> None:
    decides = [place for place, row in enumerate(rows) if row["gate"]]
    refused = [place for place in decides if place in asked.refused]
    if 2 * len(refused) > len(decides):
        why = asked.refused[refused[0]]
        raise UserError(f"the server refused {len(refused)} of {len(decides)} pairs: nothing is proven: {why}")


def _lists(
    server: ServedReranker, shape: Shape, rows: Sequence[Row], asked: Asked, advance: Callable[[int], None]
) -> dict[str, list[float | None]]:
    found: dict[str, list[float | None]] = {}
    for way, make in LISTS.items():
        scores: list[float | None] = [None] * len(rows)
        for query, places in _by_query(rows, asked.refused).items():
            documents = make(rows, places, set(asked.refused))[: shape.batch]
            try:
                answer = dict(zip(documents, server.score(query, documents), strict=True))
            except Refused as error:
                asked.notes.append(f"{way} of {len(documents)} documents: not checked: {error}")
                answer = {}
            for place in places:
                scores[place] = answer.get(rows[place]["document"])
            advance(len(places))
        found[way] = scores
    return found


def _by_query(rows: Sequence[Row], refused: dict[int, str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        if place not in refused:
            groups.setdefault(row["query"], []).append(place)
    return groups


def own_list(rows: Sequence[Row], places: Sequence[int], refused: set[int]) -> list[str]:
    """The query's golden documents, last one first."""
    return list(dict.fromkeys(rows[place]["document"] for place in reversed(places)))


def mixed_list(rows: Sequence[Row], places: Sequence[int], refused: set[int]) -> list[str]:
    """The query's golden documents among others of all lengths, shuffled."""
    own = own_list(rows, places, refused)
    others = [row["document"] for place, row in enumerate(rows) if place not in refused]
    by_length = sorted(set(others) - set(own), key=lambda text: (len(text), text))
    fillers = [by_length[i * (len(by_length) - 1) // (FILLERS - 1)] for i in range(FILLERS)] if by_length else []
    documents = list(dict.fromkeys([*own, *fillers]))
    return random.Random(places[0]).sample(documents, len(documents))


LISTS: dict[str, Callable[[Sequence[Row], Sequence[int], set[int]], list[str]]] = {
    "the query's own list": own_list,
    "a mixed list": mixed_list,
}


def _drop_ignored(asked: Asked) -> None:
    """Drop the second scale of a server that answers the same on both: it measured nothing new."""
    if len(asked.observed) == 2 and asked.observed[0].alone == asked.observed[1].alone:
        del asked.observed[1]
        asked.notes.append("logit: not checked: the server answers the same when asked for logits")


def requests_planned(rows: Sequence[Row], shape_name: str) -> int:
    """How often `ask` calls advance at most, in rows."""
    shape = SHAPES[shape_name]()
    scales = [fields for fields in (shape.probabilities, shape.logits) if fields is not None]
    return len(scales) * (1 + len(LISTS)) * len(rows)
