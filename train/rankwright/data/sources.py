"""A recipe's data entries as Collections: files, cards of data/, and sets on the hub."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwright.common import resources
from rankwright.common.errors import UserError, UserErrors
from rankwright.common.hashing import stable_hash
from rankwright.common.plurals import counted
from rankwright.data.cards import Card, Hub, load_card
from rankwright.data.collection import Collection
from rankwright.data.formats.compression import check_place
from rankwright.data.formats.detect import check_format
from rankwright.data.formats.encodings import check_encoding
from rankwright.data.formats.hub import has_beir_form, read_hub, read_hub_rows, read_nested
from rankwright.data.formats.read import read_path
from rankwright.data.formats.reading import Faults, OnFault, Reading, Say, check_columns
from rankwright.data.formats.trec import is_trec, run_file
from rankwright.data.judged_pairs import pair_files, read_pairs
from rankwright.data.judgements import judged
from rankwright.data.statistics import every_label_relevant, lowest_above_zero
from rankwright.recipe.sources import Data, DevFromTrain, Source, TestFromTrain

# What begins the name of every set of written queries, in every table.
SYNTHETIC = "synthetic"
# What begins the value of `made_by` in every row that written queries stand in.
MADE_BY = "rankwright synthesize"
# Side of written queries -> its split in the files.
OF_SIDE = {"train": "train", "held_out": "dev"}
LONGEST_FIRST_ROW = 1 << 20
# A set's name is also that of a folder, eval/NAME, and the prefix of its ids, NAME/ID.
LONGEST_NAME = 200


@dataclass(frozen=True, slots=True)
class Located:
    """Where an entry's rows come from: a local path, or a set on the hub.

    source: the entry as the recipe has it. run: its TREC run file, by the recipe or in a TREC folder. judgements: the
    file of `audit read` that is laid over it. pairs: the folder of the run whose judged pairs it is.
    """

    source: Source
    name: str
    split: str
    path: Path | None = None
    card: Card | None = None
    hub: str | None = None
    revision: str | None = None
    run: Path | None = None
    judgements: Path | None = None
    pairs: Path | None = None


def locate(source: Source, *, root: str | None, split: str, made: Path | None = None) -> Located:
    """Find an entry's files without reading them. `split` is the default. made: where a run writes its own queries.

    Raises UserError when nothing is there, for a set whose name cannot be that of a folder, for unknown formats and
    column names, and for a test set of written queries.
    """
    check_format(source.format)
    check_columns(source.columns)
    check_encoding(source.encoding)
    located = _labelled(_locate(source, root=root, split=split, made=made), split)
    if source.judgements is not None:
        located = dataclasses.replace(located, judgements=_file("judgements", source.judgements, root, "audit read"))
    name = located.name
    if name in (".", "..") or name != name.strip() or not name.isprintable() or {"/", "\\"} & {*name} or not name:
        why = "which cannot be the name of a folder"
    elif len(name.encode()) > LONGEST_NAME:
        why = f"which is longer than {LONGEST_NAME} bytes"
    else:
        return located
    raise UserError(f"the set is named {name!r}, {why}: give it another `name`")


def _labelled(located: Located, split: str) -> Located:
    """The entry, whose name shows where its queries were written. Raises UserError for such a set as `test`."""
    if located.source.synthesized is None and (located.path is None or written_by(located.path) is None):
        return located
    if split == "test":
        raise UserError(
            f"the queries of {located.name!r} were written by a program (rankwright synthesize): a score on them tells "
            "little about queries of people: give queries that people asked"
        )
    name = located.name if located.name.startswith(SYNTHETIC) else f"{SYNTHETIC}-{located.name}"
    return dataclasses.replace(located, name=name)


def asked_by_people(located: Mapping[str, Sequence[Located]]) -> list[Located]:
    """The sets of dev and test that a run does not write itself, nor takes out of train."""
    splits = [split for split in ("dev", "test") if located.get(split) is not located.get("train")]
    return [one for split in splits for one in located.get(split, ()) if one.source.synthesized is None]


def of_people(collections: Sequence[Collection]) -> list[Collection]:
    """The sets whose queries people asked, by their names."""
    return [collection for collection in collections if not collection.name.startswith(SYNTHETIC)]


def written_by(path: Path) -> str | None:
    """Who wrote the queries of a file or folder, where `rankwright synthesize` did; None for all others."""
    files = sorted(path.glob("queries*.jsonl")) if path.is_dir() else [path] if path.suffix == ".jsonl" else []
    for file in files:
        try:
            with file.open("rb") as opened:
                row = json.loads(opened.readline(LONGEST_FIRST_ROW))
        except (OSError, ValueError, RecursionError):
            continue
        made_by = row.get("made_by") if isinstance(row, dict) else None
        if isinstance(made_by, str) and made_by.startswith(MADE_BY):
            return made_by.removeprefix(f"{MADE_BY}: ")
    return None


def _locate(source: Source, *, root: str | None, split: str, made: Path | None) -> Located:
    if source.synthesized is not None:
        name = source.name or {"train": SYNTHETIC, "held_out": f"{SYNTHETIC}-held-out"}[source.synthesized]
        return Located(source, name, OF_SIDE[source.synthesized], (made or Path(SYNTHETIC)) / source.synthesized)
    run = None if source.run is None else _file("run", source.run, root, "TREC run")
    wanted = source.split or split
    if source.pairs is not None:
        folder = resources.expand(source.pairs)
        pair_files(folder)
        return Located(source, source.name or folder.resolve().name, wanted, pairs=folder)
    if source.card is not None:
        card = load_card(source.card)
        upstream = card.upstream_split(wanted)
        if card.path is not None and root is None:
            raise UserError(
                f"card {card.name!r} is a local set ({card.path}): set data.root=FOLDER to the folder of the sets"
            )
        path = None if card.path is None else resources.resolve_path(card.path, root=root)
        return Located(source, source.name or card.name, upstream, path, card, revision=source.revision, run=run)
    if source.path is not None:
        path = resources.resolve_path(source.path, root=root)
        # Before its content is hashed.
        check_place(path, folder=True)
        if run is None and split == "test" and path.is_dir() and is_trec(path):
            run = run_file(path, wanted)
        return Located(source, source.name or path.name.split(".")[0], wanted, path, run=run)
    assert source.hub is not None
    name = source.name or source.hub.split("/")[-1]
    return Located(source, name, wanted, hub=source.hub, revision=source.revision, run=run)


def _file(key: str, text: str, root: str | None, kind: str) -> Path:
    path = resources.resolve_path(text, root=root)
    if path.is_dir():
        raise UserError(f"{key}: {path} is a folder: give a {kind} file")
    check_place(path)
    return path


def read(located: Located, say: Say, faults: Faults) -> Collection:
    """Read an entry's rows. Raises UserError(s) with file and line of every fault that stops, see Faults.

    The recipe's columns, configuration and group key take precedence over those of the card. Labels are those of the
    files less what relevant_from states; judgements come after it.
    """
    found = _relabelled(_read(located, say, faults), located.source.relevant_from)
    return found if located.judgements is None else judged(found, located.judgements, say, faults)


def _relabelled(collection: Collection, lowest: int) -> Collection:
    """The set with `lowest` as label 1. Raises UserError where no label reaches it."""
    if lowest == 1:
        return collection
    labels = sorted({label for judged in collection.qrels.values() for label in judged.values()})
    if not labels or labels[-1] < lowest:
        raise UserError(
            f"set {collection.name!r}: relevant_from: {lowest}: the labels are {', '.join(f'{x:g}' for x in labels)}, "
            "so that no document is relevant: give one of them"
        )
    qrels = {
        query_id: {d: label - lowest + 1 if label >= lowest else 0.0 for d, label in judged.items()}
        for query_id, judged in collection.qrels.items()
    }
    return dataclasses.replace(collection, qrels=qrels)


def _read(located: Located, say: Say, faults: Faults) -> Collection:
    source, card = located.source, located.card
    if located.pairs is not None:
        return read_pairs(located.pairs, located.name, say)
    group_key = source.group_key or (card.group_key if card is not None else None)
    if source.synthesized is not None:
        group_key = "group"
    hub = _hub(located)
    columns = source.columns or ({} if hub is None else hub.columns)
    reading = Reading(located.name, located.split, faults, say, columns, group_key, source.labels, source.encoding)
    if hub is None:
        assert located.path is not None
        if source.config is not None:
            raise UserError(f"{located.path}: config: {source.config!r} is for sets on the hub: leave it out")
        return read_path(located.path, source.format, reading)
    if source.encoding is not None:
        raise UserError(f"{hub.id}: encoding: {source.encoding}: is for files: leave it out for a set on the hub")
    if _has_rows(hub, source, stated=card is not None):
        return read_hub_rows(hub, source.format, reading)
    given = [key for key in ("config", "columns") if getattr(source, key)]
    if given:
        raise UserError(
            f"{hub.id}: {given[0]}: the layout of this set is known (its card, or the BEIR form): leave it out"
        )
    return (read_hub if hub.nested is None else read_nested)(hub, reading)


def _hub(located: Located) -> Hub | None:
    """Where on the hub an entry's set is; None for a local path."""
    if located.path is not None:
        return None
    if located.hub is not None:
        stated = Hub.at(located.hub, None)
    else:
        assert located.card is not None and located.card.hub is not None
        stated = located.card.hub
    revision, config = located.revision or stated.revision, located.source.config or stated.config
    return stated.model_copy(update={"revision": revision, "config": config})


def _has_rows(hub: Hub, source: Source, *, stated: bool) -> bool:
    """Whether a set on the hub is a table of rows: as its card states, or by the recipe or the configurations."""
    if stated:
        return hub.layout == "rows"
    if source.format is not None:
        return source.format != "beir"
    return bool(source.config or source.columns) or not has_beir_form(hub.id, hub.revision)


def locate_all(
    data: Data, made: Path | None = None, *, pairs: Sequence[Source] | None = None
) -> dict[str, list[Located]]:
    """Split -> entries, which must have different names. Raises UserErrors with every entry that is not there.

    made: where a run writes its own queries, which need not be there yet. pairs: the weak pairs of `pretrain`, the
    split of this name.

    Where test is taken out of train, its entries are those of train.
    """
    faults: list[str] = []
    # One line about the root takes the place of one for every set below it.
    rootless = data.root is not None and not resources.is_there(Path(data.root).expanduser())
    below_root = False
    entries: dict[str, Sequence[Source]] = {"train": data.train}
    if not isinstance(data.test, TestFromTrain):
        entries["test"] = data.test
    if not isinstance(data.dev, DevFromTrain):
        entries["dev"] = data.dev
    if pairs is not None:
        entries["pretrain"] = pairs
    found: dict[str, list[Located]] = {}
    for split, sources in entries.items():
        found[split], key = [], "pretrain.pairs" if split == "pretrain" else f"data.{split}"
        for number, source in enumerate(sources):
            try:
                wanted = "train" if split == "pretrain" else split
                found[split].append(locate(source, root=data.root, split=wanted, made=made))
            except UserError as error:
                lost = rootless and resources.ROOT_STARTS in str(error)
                below_root = below_root or lost
                faults += [] if lost else [f"{key}.{number}: {line}" for line in str(error).splitlines()]
        names = [located.name for located in found[split]]
        faults += [
            f"{key}: two entries are named {name!r}: give one of them another `name`"
            for name in sorted({n for n in names if names.count(n) > 1})
        ]
    if below_root:
        root = Path(data.root or "").expanduser()
        faults.insert(0, f"data.root: {root}: no such folder{resources.nearby(root)}: give the folder of the sets")
    if faults:
        raise UserErrors(faults)
    return {**found, "test": found.get("test", found["train"])}


def read_all(
    entries: Sequence[Located],
    say: Say,
    *,
    on_fault: OnFault = "stop",
    dropped: list[dict[str, Any]] | None = None,
) -> list[Collection]:
    """Read the entries of one split; entries that share a corpus share it in memory.

    on_fault="drop" leaves out rows with faults, reports them and adds them to `dropped` (set, split, file, kind, count,
    examples). Raises UserErrors for all other faults, and for a set without a relevant document after dropping.
    """
    collections: list[Collection] = []
    mistakes: list[str] = []
    for located in entries:
        faults = Faults(on_fault)
        try:
            collection = read(located, say, faults)
        except UserError as error:
            mistakes += str(error).splitlines()
            continue
        for row in faults.dropped:
            say(f"  {row.told}")
            if dropped is not None:
                dropped.append({"set": located.name, "split": located.split, **dataclasses.asdict(row)})
        if faults.rows_dropped and not any(collection.positives(q) for q in collection.queries):
            mistakes.append(
                f"set {located.name!r} ({located.split}): no query with a relevant document is left after "
                f"{counted(faults.rows_dropped, 'row was', 'rows were')} dropped for "
                f"{'its' if faults.rows_dropped == 1 else 'their'} faults (see above): mend the files"
            )
            continue
        collections.append(collection)
        pairs = sum(map(len, collection.qrels.values()))
        left_out = f", {counted(faults.rows_dropped, 'row')} with faults dropped" if faults.rows_dropped else ""
        say(
            f"  {collection.name} ({located.split}): {counted(len(collection.corpus), 'document')}, "
            f"{counted(len(collection.queries), 'query')}, {counted(pairs, 'judgement')}{left_out}"
        )
        # Labels of pairs are probabilities.
        if located.pairs is None and (lowest := lowest_above_zero(collection)):
            say(f"  WARNING: {collection.name} ({located.split}): {every_label_relevant(lowest)}")
    if mistakes:
        raise UserErrors(mistakes)
    return collections


def as_stated(
    collections: Sequence[Collection], sources: Sequence[Source], *, seed: int, say: Callable[[str], None]
) -> list[Collection]:
    """The sets of one split with the limit, weight and instruction of their entries."""
    found = []
    for collection, source in zip(collections, sources, strict=True):
        kept = limited(collection, source.limit, seed=seed)
        if len(kept.queries) < len(collection.queries):
            say(
                f"  {collection.name}: {len(kept.queries):,} of {counted(len(collection.queries), 'query')} kept "
                f"(limit, by seed {seed})"
            )
        found.append(dataclasses.replace(kept, instruction=source.instruction, draws=source.weight))
    return found


def limited(collection: Collection, limit: int | None, *, seed: int) -> Collection:
    """The set with the `limit` queries whose hash of (seed, id) is smallest, in the order of the file.

    A larger limit keeps all that a smaller one keeps.
    """
    if limit is None or limit >= len(collection.queries):
        return collection
    order = sorted(collection.queries, key=lambda q: (stable_hash("limit", seed, q), q))
    kept = set(order[:limit])
    return collection.subset(q for q in collection.queries if q in kept)


def with_share(collections: Iterable[Collection], share: float, *, seed: int) -> list[Collection]:
    """The sets with this share of the queries of each, rounded, but at least one query; see limited().

    seed: of the recipe, not of the training, so that all seeds of a training have the same queries.
    """
    return [limited(c, max(1, round(share * len(c.queries))), seed=seed) for c in collections]
