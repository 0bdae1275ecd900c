"""The documents of the synthesize stage: read, split into passages, divided by groups, and drawn round clusters."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, replace

from rankwright.common import console, resources
from rankwright.common.errors import UserError, UserErrors
from rankwright.common.plurals import counted
from rankwright.data.documents import read_documents
from rankwright.data.formats.reading import Faults, Reading
from rankwright.data.passages import Passage, askable, held_out_groups, passages_of
from rankwright.data.words import Words
from rankwright.recipe.schema import Recipe
from rankwright.recipe.synthesize import Synthesize
from rankwright.supervision.queries.sampling import sample
from rankwright.supervision.queries.templates import TEMPLATES, Places, writable
from rankwright.supervision.queries.writers import KINDS

KEY = "synthesize"
TRAIN, HELD_OUT = "train", "held_out"
# Fewer passages give no set that could be trained on: NVIDIA's recipe for embedders asks for as many documents.
LEAST_PASSAGES = 50


def settings_of(recipe: Recipe) -> Synthesize:
    """The section of a recipe that has it."""
    assert recipe.synthesize is not None, "the stage is wanted only where the recipe has the section"
    return recipe.synthesize


@dataclass(slots=True)
class Corpus:
    """passages: all, by id; askable: those of them that queries can be written for; chosen: side -> the sampled ones.

    left_out: why others are not askable -> how many. held_groups: the groups that train nothing.
    """

    passages: list[Passage]
    askable: list[Passage]
    left_out: Counter[str]
    held_groups: set[str]
    groups: int
    chosen: dict[str, list[Passage]] = field(default_factory=dict)

    def side(self, group: str) -> str:
        """The side of the split that a group is on."""
        return HELD_OUT if group in self.held_groups else TRAIN


def read_passages(recipe: Recipe) -> list[Passage]:
    """The passages of all documents of the recipe, by id. Raises UserErrors with all faults of their files."""
    settings = settings_of(recipe)
    found: list[Passage] = []
    faults: list[str] = []
    for number, source in enumerate(settings.documents):
        key = f"{KEY}.documents.{number}"
        said = Faults(recipe.data.on_fault)
        try:
            path = resources.resolve_path(source.path, root=None)
            reading = Reading(path.name, None, said, say, source.columns, source.group_key, {}, source.encoding)
            documents = read_documents(path, reading)
        except UserError as error:
            faults += [f"{key}: {line}" for line in str(error).splitlines()]
            continue
        if source.group_key is None:
            console.say(f"  {path}: no group_key: each document is a group of its own")
        console.say(f"  {path}: {counted(len(documents), 'document')}")
        # Ids of several sources may be equal; white space stands between the columns of run files.
        prefix = f"{number}/" if len(settings.documents) > 1 else ""
        for row in said.dropped:
            say(row.told)
        for document in documents:
            # Values of a group key mean the same in all sources, and in the sets of people.
            group = document.group if source.group_key is not None else prefix + document.group
            own = replace(document, id=prefix + re.sub(r"\s", "_", document.id), group=group)
            found += passages_of(own, settings.passages.words)
    if faults:
        raise UserErrors(faults)
    again = [key for key, count in Counter(p.id for p in found).items() if count > 1]
    if again:
        raise UserError(f"{KEY}.documents: two documents have the id {again[0]!r}: rename one of them")
    return sorted(found, key=lambda p: p.id)


def say(line: str) -> None:
    """Print a line below that of its stage or file."""
    console.say(f"  {line}")


def kinds_of(recipe: Recipe) -> dict[str, float]:
    """The kinds of queries with their weights: those of the recipe, or all of its templates or its domain."""
    settings = settings_of(recipe)
    if settings.kinds:
        return settings.kinds
    if settings.writer is None:
        return {one.name: one.weight for one in TEMPLATES.values()}
    return dict.fromkeys(KINDS[settings.domain], 1.0)


def corpus_of(recipe: Recipe) -> Corpus:
    """The documents as the stage uses them. Raises UserError where there are too few to train on."""
    settings, passages = settings_of(recipe), read_passages(recipe)
    asked, why = askable(passages, settings.passages.least_words, code=recipe.bm25.code)
    if len(asked) < LEAST_PASSAGES:
        raise UserError(
            f"{KEY}.documents: {counted(len(asked), 'passage')} that a query can be written for: at least "
            f"{LEAST_PASSAGES} are needed: give more documents, or a smaller {KEY}.passages.words or least_words"
        )
    groups = {p.group for p in passages}
    if len(groups) == 1 and settings.held_out.fraction:
        raise UserError(
            f"{KEY}.held_out: all documents are of one group, so that none can be held out: name another group_key, or "
            f"set {KEY}.held_out.fraction=0"
        )
    held = held_out_groups(asked, settings.held_out.fraction, recipe.seed)
    corpus = Corpus(passages, asked, why, held, len(groups))
    clusters = None if settings.clusters == "auto" else int(settings.clusters)
    words = Words(**recipe.bm25.model_dump())
    share = settings.held_out.fraction / (1 - settings.held_out.fraction)
    for side, most in ((TRAIN, settings.sampled), (HELD_OUT, max(1, round(settings.sampled * share)))):
        of_side = [p for p in asked if corpus.side(p.group) == side]
        if settings.writer is None:
            of_side = writable(of_side, Places(of_side), kinds_of(recipe))
        corpus.chosen[side] = sample(of_side, most, clusters, recipe.seed, words)
    return corpus
