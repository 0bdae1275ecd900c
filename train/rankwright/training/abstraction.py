"""Placeholders for entities in the first part of training: which set has them until which step, what they replace."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

from rankwright.common.hashing import stable_hash
from rankwright.common.plurals import counted
from rankwright.data.collection import Group
from rankwright.data.entities.placeholders import abstracted, counted_mentions
from rankwright.model.long_documents import CUT_OFF
from rankwright.model.prompt import PromptContract
from rankwright.recipe.schema import Recipe

# Groups of each set in which mentions are counted for mix.json.
COUNTED_GROUPS = 200
# So many characters of a document for each token of the budget are looked at, where only its beginning is read: a text
# of any language has fewer in a token.
CHARACTERS = 40


class Abstraction:
    """What data.train[].abstract asks for, as a pure function of (group, step)."""

    def __init__(self, recipe: Recipe, names: Iterable[str], total_steps: int) -> None:
        """names: of the training sets, in the order of data.train. total_steps: those that are planned."""
        given = zip(names, recipe.data.train, strict=True)
        self._settings = {name: source.abstract for name, source in given if source.abstract is not None}
        self.total_steps = total_steps
        # The share as it is written in the recipe: a float's 0.7 is less than seven tenths.
        self.last_step = {
            name: math.floor(Fraction(str(one.until)) * total_steps) for name, one in self._settings.items()
        }

    def __contains__(self, name: str) -> bool:
        return name in self._settings

    def is_on(self, name: str, step: int) -> bool:
        """Whether groups of a set have placeholders in a step."""
        return step <= self.last_step.get(name, 0)

    def applied(self, name: str, group: Group, contract: PromptContract) -> Group:
        """The group with placeholders in its query and its documents."""
        return self._with_counts(name, group, contract)[0]

    def _with_counts(self, name: str, group: Group, contract: PromptContract) -> tuple[Group, Counter[str]]:
        # Relevant documents come first in a group: numbered in that order, a low number would tell the label.
        ids = group.document_ids
        order = sorted(range(len(ids)), key=lambda i: (stable_hash("abstract", group.query_id, ids[i]), ids[i]))
        cuts = contract.long_documents.strategy == CUT_OFF
        most = CHARACTERS * contract.max_tokens if cuts else None
        texts = [group.documents[i][:most] for i in order]
        (query, *changed), mentions = abstracted(group.query, texts, self._settings[name].entities)
        documents = dict(zip(order, changed, strict=True))
        return dataclasses.replace(group, query=query, documents=tuple(documents[i] for i in range(len(ids)))), mentions

    def facts(self, name: str, groups: Iterable[Group], contract: PromptContract) -> dict[str, Any]:
        """For mix.json: kinds, the last step with placeholders, and what they replace in these groups."""
        mentions: Counter[str] = Counter()
        texts = changed = found = 0
        for group in groups:
            new, here = self._with_counts(name, group, contract)
            mentions += here
            pairs = zip((group.query, *group.documents), (new.query, *new.documents), strict=True)
            changed += sum(old != text for old, text in pairs)
            texts += 1 + len(group.documents)
            found += 1
        kinds = self._settings[name].entities
        return {
            "entities": list(kinds),
            "last_step": self.last_step[name],
            "counted_groups": found,
            "texts": texts,
            "changed_texts": changed,
            "mentions": {kind: mentions[kind] for kind in kinds},
        }


def describe_abstraction(name: str, facts: Mapping[str, Any], planned_steps: int) -> str:
    """One line of a set about its placeholders."""
    last, kinds = facts["last_step"], ", ".join(facts["entities"])
    if not last:
        return f"WARNING: {name}: abstract.until ends before step 1 of {planned_steps}: no group has placeholders"
    where = f"in the first groups of {counted(facts['counted_groups'], 'query')}"
    if not facts["changed_texts"]:
        return f"WARNING: {name}: abstract finds no {kinds} {where}: training sees the texts as they are"
    return (
        f"{name}: placeholders for {kinds} until step {last} of {planned_steps}; {where} they replace "
        f"{counted_mentions(facts['mentions'])} in {facts['changed_texts']:,} of {facts['texts']:,} texts"
    )
