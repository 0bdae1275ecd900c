"""`rankwright init` for documents that nobody has asked about: a recipe that writes queries for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rankwright.cli.init import (
    SCHEMA,
    Entry,
    Wishes,
    next_steps,
    read_sets,
    refuse_existing,
    say,
    split_lines,
    write_recipe,
)
from rankwright.cli.naming import own_name, slug, written_base, written_path, yaml_text
from rankwright.common import console, resources
from rankwright.common.errors import UserError
from rankwright.common.plurals import counted
from rankwright.data.discovery import find_sets
from rankwright.data.documents import Document, read_documents
from rankwright.data.formats.reading import Faults, Reading
from rankwright.data.passages import askable, passages_of
from rankwright.data.statistics import SHARE_OF_CODE, drawn, share_of_code
from rankwright.pipeline.documents import LEAST_PASSAGES
from rankwright.recipe.synthesize import Passages


def init_documents(
    documents: Sequence[Path], sets: Sequence[Path], output: Path, *, base: str, name: str | None, wishes: Wishes
) -> None:
    """Write `output` for documents without queries. sets: files of people's queries, which become the test.

    Raises UserErrors for faults of the files, for too few passages, and when something would be overwritten.
    """
    resources.check_output("--output", output)
    refuse_existing(output)
    resources.resolve_base(base)
    found: dict[Path, list[Document]] = {}
    for path in documents:
        reading = Reading(path.name, None, Faults(wishes.on_fault), say, wishes.columns, encoding=wishes.encoding)
        found[path] = read_documents(path, reading)
    passages = [p for of in found.values() for document in of for p in passages_of(document, Passages().words)]
    asked, _ = askable(passages, Passages().least_words, code=False)
    if len(asked) < LEAST_PASSAGES:
        raise UserError(
            f"{', '.join(map(str, documents))}: no queries, and {counted(len(asked), 'passage')} that some could be "
            f"written for: at least {LEAST_PASSAGES} are needed: give more documents, or files with queries"
        )
    chosen = [one for path in sets for one in find_sets(path, wishes.encoding)]
    tests = [one for one in chosen if one.split == "test"] or chosen
    home = output.parent
    entries = read_sets([(one, "test") for one in tests], wishes, home) if tests else []
    share = share_of_code(drawn({str(n): p.text for n, p in enumerate(asked)}))
    text = "\n".join(
        _lines(
            name or own_name(output, documents) or slug(documents[0].name, "documents"),
            written_base(base, home),
            {written_path(path, home): len(of) for path, of in found.items()},
            entries,
            share,
        )
    )
    write_recipe(output, text)
    for path, of in found.items():
        console.say(f"documents: {path}: {counted(len(of), 'document')}, no queries")
    console.say(f"{counted(len(asked), 'passage')} that queries can be written for")
    for entry in entries:
        console.say(f"test: {entry.name} ({entry.path}): {entry.found}")
    if not entries:
        console.say("no test: name a file of people's queries too, and the run states what was gained on them")
    console.say(next_steps(output))


def _lines(name: str, base: str, documents: dict[str, int], entries: Sequence[Entry], share: float) -> Iterator[str]:
    """The recipe, line by line. documents: path -> how many; share: of passages that look like code."""
    code = share >= SHARE_OF_CODE
    yield f"# yaml-language-server: $schema={SCHEMA}"
    yield "# Written by `rankwright init` for documents without queries. Relative paths start at its folder."
    yield from (
        f"name: {yaml_text(name)}",
        "",
        "model:",
        f"  base: {yaml_text(base)}",
        "",
        "synthesize:",
        "  documents:",
    )
    for path, count in documents.items():
        yield f"    # {counted(count, 'document')}"
        yield f"    - path: {yaml_text(path)}"
        yield "      # licence: own    # whose texts are these? own, or e.g. CC-BY-4.0; without it: unknown"
    yield from (
        "  # Templates write the queries, of titles, headings and sentences. A language model writes better ones:",
        "  # writer: {url: 'http://127.0.0.1:8000/v1', model: Qwen/Qwen3-4B-Instruct-2507, licence: Apache-2.0}",
        f"  domain: {'code' if code else 'general'}    # or finance, legal, code: the questions a writer is asked for",
        "  # examples: own_queries.txt    # 3 to 8 queries of your own, one per line, as the style",
        "  # audit: {min_accepted: 0.8}   # people look at 50 queries before anything is trained",
        "",
        "data:",
        "  train: [{synthesized: train}]",
        "  dev: [{synthesized: held_out}]    # of documents that are held out; an aid, never a test",
    )
    if entries:
        yield from split_lines("test", entries, 0.0)
    else:
        yield "  # Some 50 queries that people asked, with the documents that answer them, show what is gained:"
        yield "  # test: [{path: my-queries, split: test}]"
    if code:
        yield from ("", "bm25:", f"  code: true    # {share:.0%} of the passages look like code")
    if entries:
        yield from (
            "",
            "gate:",
            "  # Only a model that improves the search for people, and is not worse than the base, is exported.",
            "  system: combined",
            "  against: [first_stage]",
            "  at_least: [base]",
        )
    yield from ("", "# All other keys have defaults: `rankwright keys` prints them.", "")
