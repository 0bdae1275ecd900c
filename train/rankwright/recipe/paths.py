"""Where relative paths of a recipe start: at the folder of the file that holds them, like those of `extends`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rankwright.common import resources
from rankwright.recipe.schema import Key
from rankwright.recipe.yaml_file import YamlFile

OF_A_RUN = "recipe.json"
SPLITS = ("train", "dev", "test")


def start_paths(tree: YamlFile, sources: Sequence[Path]) -> None:
    """Rewrite the relative paths of recipe files, so that they mean the same from the working directory.

    sources: the files, by rank. Overrides are left as they are: what is typed starts at the working directory, as do
    `run_dir`, which is written and not read, and the paths in the recipe.json of a run, which were rewritten before.
    Decisions about a path follow it.
    """
    moved: dict[str, str] = {}
    for holder, name, key in _paths(tree.data):
        text, folder = holder[name], _folder(tree, key, sources)
        if folder is None or not _is_relative(text, folder, str(name)):
            continue
        # What begins with fixtures/ is embedded.
        place = resources.shown(folder / text)
        holder[name] = f"./{place}" if place.startswith(resources.FIXTURES) else place
        moved[text] = holder[name]
    for decision in _items(_section(tree.data, "licence").get("decisions")):
        if (named := str(decision.get("input"))) in moved:
            decision["input"] = moved[named]


def _folder(tree: YamlFile, key: Key, sources: Sequence[Path]) -> Path | None:
    """The folder of the file that holds a key; None for an override, and in the working directory itself."""
    place = next((tree.places[key[:n]] for n in range(len(key), 0, -1) if key[:n] in tree.places), None)
    if place is None or place.rank >= len(sources) or sources[place.rank].name == OF_A_RUN:
        return None
    folder = sources[place.rank].parent
    return None if folder.resolve() == Path.cwd().resolve() else folder


def _is_relative(text: str, folder: Path, name: str) -> bool:
    """Whether a text is a relative path. What may also be an id is one where it begins with a dot, or is there."""
    if not text or text.startswith((resources.FIXTURES, "~")) or Path(text).is_absolute():
        return False
    if name in ("root", "path", "run", "judgements", "student", "examples") or text.startswith("."):
        return True
    return text.endswith(resources.YAML_SUFFIXES) if name == "card" else resources.is_there(folder / text)


def _paths(data: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, Key]]:
    """(mapping, name in it, key) of all texts that may be paths; the recipe is not yet validated."""
    sets = _section(data, "data")
    rooted = isinstance(sets.get("root"), str)
    mine, evaluate = _section(data, "mine"), _section(data, "evaluate")
    pairs = _section(_section(data, "teacher"), "pairs")
    places: list[tuple[Any, Key, tuple[str, ...]]] = [
        (sets, ("data",), ("root",)),
        (_section(data, "model"), ("model",), ("base",)),
        (_section(data, "dense"), ("dense",), ("model",)),
        (_section(pairs, "refine"), ("teacher", "pairs", "refine"), ("student",)),
    ]
    written = _section(data, "synthesize")
    places += [
        (one, ("synthesize", "documents", n), ("path",)) for n, one in enumerate(_items(written.get("documents")))
    ]
    places.append((written, ("synthesize",), ("examples",)))
    if isinstance(writer := written.get("writer"), dict) and writer.get("url") is None:
        places.append((writer, ("synthesize", "writer"), ("model",)))
    for split in SPLITS:
        # Relative to data.root where there is one.
        names: tuple[str, ...] = ("card", "hub") if rooted else ("path", "run", "judgements", "card", "hub")
        # A run's folder never is: where it is not beside the recipe, it starts at the working directory, as run_dir.
        names += ("pairs",)
        places += [(entry, ("data", split, n), names) for n, entry in enumerate(_items(sets.get(split)))]
    adapted = _section(data, "pretrain")
    names = ("card", "hub") if rooted else ("path", "card", "hub")
    places += [(one, ("pretrain", "pairs", n), names) for n, one in enumerate(_items(adapted.get("pairs")))]
    places += [(one, ("pretrain", "text", n), ("path",)) for n, one in enumerate(_items(adapted.get("text")))]
    places.append((_section(adapted, "replay"), ("pretrain", "replay"), ("path",)))
    rerankers: list[tuple[Any, Key]] = [(mine.get("teacher"), ("mine", "teacher"))]
    rerankers += [(one, ("evaluate", "baselines", n)) for n, one in enumerate(_items(evaluate.get("baselines")))]
    for one, key in rerankers:
        # A server's model is a name.
        if isinstance(one, dict) and one.get("kind") != "served":
            places += [(one, key, ("model",)), (_section(one, "options"), (*key, "options"), ("base",))]
    judges = _section(_section(data, "teacher"), "pairs").get("judges")
    for n, judge in enumerate(_items(judges)):
        if judge.get("kind") == "pairwise":
            places.append((judge, ("teacher", "pairs", "judges", n), ("model",)))
    for holder, around, names in places:
        yield from ((holder, name, (*around, name)) for name in names if isinstance(holder.get(name), str))


def _section(data: dict[str, Any], name: str) -> dict[str, Any]:
    found = data.get(name)
    return found if isinstance(found, dict) else {}


def _items(found: Any) -> list[dict[str, Any]]:
    # Numbers count the whole list: a key of a broken one is not asked for.
    return [one if isinstance(one, dict) else {} for one in found] if isinstance(found, list) else []
