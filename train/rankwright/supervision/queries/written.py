"""A written query: what it is, where it comes from, and what the filters thought of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rankwright.common.hashing import content_id
from rankwright.data.sources import MADE_BY


@dataclass(frozen=True, slots=True)
class Written:
    """One query. passage: id of the passage that answers it; source: of the one that it was written from.

    kind: of question. group: of the passage. style: what else the writer was asked for (persona, length, ...).
    malformed: why it is none, in words, "" for a query. verdicts: filter -> what it noted.
    """

    text: str
    kind: str
    passage: str
    source: str
    group: str
    style: dict[str, str] = field(default_factory=dict)
    malformed: str = ""
    verdicts: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The same for the same query of the same passage."""
        return "s" + content_id("\x1f".join((self.text, self.kind, self.passage, self.source)))

    def row(self, made_by: str) -> dict[str, Any]:
        """As a row of synthetic/queries.jsonl."""
        return {
            "_id": self.id,
            "text": self.text,
            "document": self.passage,
            "kind": self.kind,
            **({"written_from": self.source} if self.source != self.passage else {}),
            **self.style,
            "group": self.group,
            "verdicts": self.verdicts,
            "made_by": f"{MADE_BY}: {made_by}",
        }
