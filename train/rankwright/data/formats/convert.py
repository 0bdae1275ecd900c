"""A set written in another format: what the format cannot hold is counted and reported."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Unpack, cast

from rankwright.common.errors import UserError
from rankwright.common.files import atomic_file, atomic_folder, write_lines_atomic
from rankwright.common.plurals import counted
from rankwright.data.collection import Collection
from rankwright.data.formats.compression import plain_name
from rankwright.data.formats.detect import FOLDERS, check_format
from rankwright.data.formats.read import read_path, reading_of
from rankwright.data.formats.reading import Faults, Options, Say
from rankwright.data.formats.tables import is_table
from rankwright.data.formats.writers import (
    HOLDS,
    WRITERS,
    beir_qrels,
    beir_texts,
    fits_a_table,
    json_row,
    judgement_lines,
    losses,
    most_negatives,
    negatives,
    without_ids,
)

if TYPE_CHECKING:
    import pyarrow


SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
BATCH_ROWS = 1024


def convert(
    source: Path,
    target: Path,
    *,
    to: str,
    say: Say,
    split: str | None = None,
    **options: Unpack[Options],
) -> None:
    """Read `source` as a recipe's `path` is read, and write it in format `to`; reports what was read, written and lost.

    target: a folder for beir and trec, else a file that ends in .jsonl, .csv, .tsv (each also .gz, .zst) or
    .parquet; it must not be there. options: those of read_collection.
    Raises UserError(s) when there is a fault, and then writes nothing.
    """
    check_format(to)
    if to == "joined":
        raise UserError("--to joined: is only read: give beir, which has the same parts")
    if target.exists():
        raise UserError(f"{target}: is there already: remove it, or give another name")
    if to not in FOLDERS:
        check_suffix(target)
    elif is_table(target):
        raise UserError(f"{target}: format {to} is a folder of files: give a name without a suffix")
    reading = reading_of(source.name.split(".")[0], split, say, options, Faults())
    collection = read_path(source, options.get("format"), reading)
    judged = sum(map(len, collection.qrels.values()))
    say(
        f"{source}: {counted(len(collection.queries), 'query')}, "
        f"{counted(len(collection.corpus), 'document')}, {counted(judged, 'judgement')}"
    )
    lost = losses(collection, to)
    lost["titles apart from their texts, written as the first line of the text"] = reading.titles
    if "ids" not in HOLDS[to]:
        collection = without_ids(collection, lost)
    if to in FOLDERS:
        written = _write_folder(target, collection, to, split, lost)
    else:
        written = _write_rows(target, collection, to, lost)
    lost = +lost
    for what, count in lost.items():
        say(f"not held by {to}: {count:,} {what}")
    if not lost:
        say(f"{to} holds all of it")
    say(f"{target}: {written}")


def _write_rows(target: Path, collection: Collection, to: str, lost: Counter[str]) -> str:
    if target.suffix == ".csv" or ".csv" in target.suffixes or ".tsv" in target.suffixes:
        collection = _without_empty(collection, lost)
    if to == "flagembedding":
        collection = _whole_scores(collection, lost)
    if to == "n-tuple":
        width = most_negatives(collection)
        short = [q for q in collection.queries if len(negatives(collection, q)) < width]
        rows_short = sum(len(collection.positives(q)) for q in short)
        lost["rows with fewer negatives than there are columns, null there"] = rows_short
    rows = WRITERS[to](collection)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{target}: nothing of the set can be written as {to}: {', '.join(+lost)}")
    return f"{counted(write_table(target, itertools.chain([first], rows)), 'row')}"


def _without_empty(collection: Collection, lost: Counter[str]) -> Collection:
    """The set without empty documents: CSV cannot distinguish an empty text from a missing one."""
    qrels = {q: {d: label for d, label in row.items() if collection.corpus[d]} for q, row in collection.qrels.items()}
    before, after = (sum(map(len, judged.values())) for judged in (collection.qrels, qrels))
    lost["judgements of empty documents, which CSV cannot distinguish from missing ones"] = before - after
    return replace(collection, qrels=qrels)


def _whole_scores(collection: Collection, lost: Counter[str]) -> Collection:
    """Scores of the queries whose judged documents all have one: FlagEmbedding needs one number per element."""
    whole = {q: row for q, row in collection.teacher_scores.items() if set(collection.qrels.get(q, {})) <= set(row)}
    dropped = sum(map(len, collection.teacher_scores.values())) - sum(map(len, whole.values()))
    lost["teacher scores of queries with documents that have none"] = dropped
    return replace(collection, teacher_scores=whole)


def _write_folder(target: Path, collection: Collection, to: str, split: str | None, lost: Counter[str]) -> str:
    for key in itertools.chain(collection.queries, collection.corpus):
        if to == "trec" and key.split() != [key]:
            raise UserError(f"id {key!r}: trec cannot hold white space in ids, at which its readers split: rename it")
        if not fits_a_table(key):
            raise UserError(f"id {key!r}: {to} cannot hold white space at its ends, tabs or line breaks: rename it")
    with atomic_folder(target) as folder:
        write_lines_atomic(folder / "corpus.jsonl", beir_texts(collection.corpus, collection.document_groups))
        if to == "beir":
            name = split or "test"
            write_lines_atomic(folder / "queries.jsonl", beir_texts(collection.queries, collection.query_groups))
            write_lines_atomic(folder / "qrels" / f"{name}.tsv", beir_qrels(collection))
            return f"corpus.jsonl, queries.jsonl, qrels/{name}.tsv"
        end = f".{split}" if split is not None else ""
        topics = {q: " ".join(text.split()) for q, text in collection.queries.items()}
        changed = sum(topics[q] != text for q, text in collection.queries.items())
        lost["queries with line breaks, tabs or runs of spaces, written as single spaces"] = changed
        write_lines_atomic(folder / f"topics{end}.tsv", (f"{q}\t{text}" for q, text in topics.items()))
        write_lines_atomic(folder / f"qrels{end}.txt", judgement_lines(collection, "{}\t0\t{}\t{}"))
        return f"topics{end}.tsv, qrels{end}.txt, corpus.jsonl"


def check_suffix(path: Path) -> str:
    """The suffix that decides how a file is written. Raises UserError for one that we do not write."""
    suffix = next((end for end in SUFFIXES if plain_name(path).endswith(end)), None)
    if suffix is None:
        raise UserError(f"{path}: its name must end in {', '.join(SUFFIXES)}, or in those with .gz or .zst")
    if suffix == ".parquet" and path.suffix != ".parquet":
        raise UserError(f"{path}: a Parquet file is packed inside: leave {path.suffix} out")
    return suffix


def write_table(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write the rows (at least one, all with the same keys) and return how many; lists stand in CSV as JSON."""
    suffix = check_suffix(path)
    with atomic_file(path) as draft:
        if suffix == ".parquet":
            return _write_parquet(draft, rows)
        with _text_file(draft, path.suffix) as file:
            return _write_text(file, rows, suffix)


@contextlib.contextmanager
def _text_file(path: Path, packed: str) -> Iterator[IO[str]]:
    with contextlib.ExitStack() as stack:
        if packed == ".gz":
            # No time and no name inside: the same rows give the same bytes.
            plain = stack.enter_context(path.open("wb"))
            raw = stack.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=plain, mtime=0))
        elif packed == ".zst":
            import pyarrow

            sink = stack.enter_context(pyarrow.OSFile(str(path), "wb"))
            raw = stack.enter_context(pyarrow.CompressedOutputStream(sink, "zstd"))
        else:
            raw = cast("gzip.GzipFile", stack.enter_context(path.open("wb")))
        file = io.TextIOWrapper(raw, encoding="utf-8", newline="")
        yield file
        file.flush()
        file.detach()


def _write_text(file: IO[str], rows: Iterable[Mapping[str, Any]], suffix: str) -> int:
    # CRLF makes the writer quote a lone carriage return too.
    writer = csv.writer(file, delimiter="\t" if suffix == ".tsv" else ",", lineterminator="\r\n")
    number = 0
    for number, row in enumerate(rows, start=1):
        if suffix == ".jsonl":
            file.write(json_row(row) + "\n")
            continue
        if number == 1:
            writer.writerow(row)
        writer.writerow(json_row(cell) if isinstance(cell, list) else cell for cell in row.values())
    return number


def _write_parquet(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    import pyarrow
    import pyarrow.parquet

    found = iter(rows)
    first = next(found)
    types = _column_types()
    schema = pyarrow.schema([(name, types.get(name, pyarrow.string())) for name in first])
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        every, count = itertools.chain([first], found), 0
        while batch := list(itertools.islice(every, BATCH_ROWS)):
            writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema=schema))
            count += len(batch)
    return count


def _column_types() -> dict[str, pyarrow.DataType]:
    """The Parquet types of the columns that do not hold text."""
    import pyarrow

    text, number, many = pyarrow.string(), pyarrow.float64(), pyarrow.list_
    struct: Callable[..., pyarrow.DataType] = pyarrow.struct
    document = struct([("id", text), ("text", text), ("label", number), ("score", number), ("group", text)])
    passage = struct([("docid", text), ("title", text), ("text", text)])
    turns = many(struct([("role", text), ("content", text)]))
    return {
        **dict.fromkeys(("weight", "label"), number),
        **dict.fromkeys(("labels", "pos_scores", "neg_scores"), many(number)),
        **dict.fromkeys(("pos", "neg", "pos_id", "neg_id", "documents"), many(text)),
        **dict.fromkeys(("positives", "negatives"), many(document)),
        **dict.fromkeys(("positive_passages", "negative_passages"), many(passage)),
        "messages": turns,
        **dict.fromkeys(("positive_messages", "negative_messages"), many(turns)),
    }
