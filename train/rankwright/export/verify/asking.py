"""Golden pairs put to a server: each pair alone, then in lists of its query's documents and in mixed lists."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rankwright.common.errors import UserError, no_such
from rankwright.common.plurals import counted
from rankwright.export.proof.runtimes.base import Row
from rankwright.rerankers.client import Limits, Refused
from rankwright.rerankers.endpoints import SHAPES, Shape
from rankwright.rerankers.served import ServedReranker

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

    rows: Sequence[Row]
    observed: list[Observed] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def decides(self) -> list[int]:
        """Places of the rows that every server has to match and this one has scored."""
        return [place for place, row in enumerate(self.rows) if row["gate"] and place not in self.refused]


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
    shape, asked = SHAPES[shape_name](), Asked(rows)
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
        alone = _alone(server, asked, advance)
        _refuse_few(asked)
        asked.observed.append(Observed(scale, alone, _lists(server, shape, asked, advance)))  # type: ignore[arg-type]
    if len(asked.observed) == 2 and asked.observed[0].alone == asked.observed[1].alone:
        # It measured nothing new.
        del asked.observed[1]
        asked.notes.append("logit: not checked: the server answers the same when asked for logits")
    return asked


def _alone(server: ServedReranker, asked: Asked, advance: Callable[[int], None]) -> list[float | None]:
    found: list[float | None] = []
    for place, row in enumerate(asked.rows):
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


def _refuse_few(asked: Asked) -> None:
    wanted = sum(row["gate"] for row in asked.rows)
    refused = [why for place, why in asked.refused.items() if asked.rows[place]["gate"]]
    if 2 * len(refused) > wanted:
        raise UserError(
            f"the server refused {len(refused)} of {counted(wanted, 'pair')}: nothing is proven: {refused[0]}"
        )


def _lists(
    server: ServedReranker, shape: Shape, asked: Asked, advance: Callable[[int], None]
) -> dict[str, list[float | None]]:
    rows = asked.rows
    found: dict[str, list[float | None]] = {}
    for way, make in LISTS.items():
        scores: list[float | None] = [None] * len(rows)
        kept = (place for place in range(len(rows)) if place not in asked.refused)
        for query, places in places_by(rows, kept, "query").items():
            documents = make(rows, places, set(asked.refused))[: shape.batch]
            try:
                answer = dict(zip(documents, server.score(query, documents), strict=True))
            except Refused as error:
                asked.notes.append(f"{way} of {counted(len(documents), 'document')}: not checked: {error}")
                answer = {}
            for place in places:
                scores[place] = answer.get(rows[place]["document"])
            advance(len(places))
        found[way] = scores
    return found


def places_by(rows: Sequence[Row], places: Iterable[int], key: str) -> dict[str, list[int]]:
    """Value of `key` -> the places of its rows, in order."""
    groups: dict[str, list[int]] = {}
    for place in places:
        groups.setdefault(rows[place][key], []).append(place)
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


def requests_planned(rows: Sequence[Row], shape_name: str) -> int:
    """How often `ask` calls advance at most, in rows."""
    shape = SHAPES[shape_name]()
    scales = [fields for fields in (shape.probabilities, shape.logits) if fields is not None]
    return len(scales) * (1 + len(LISTS)) * len(rows)
